"""Time the checksums of the output cache against the forward pass that they guard.

    python3 scripts/bench_cache.py                     # ResNet-18 on 2,000 images of 32 x 32, CPU
    python3 scripts/bench_cache.py -images 20000 -device cuda:0

Each round extracts the outputs of random images into an empty cache, then opens them as a second
run does: every file is read and its checksum compared. The medians and their ratio are printed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli
from ood.cache import Cache
from ood.data import ArrayImages, Preprocess
from ood.outputs import extract

PARTS = ["features", "logits"]


def main() -> None:
    parser = cli.Parser("Time the checksums of the output cache.")
    parser.flag("-images", type=int, help="images in each pass", default=2000)
    parser.flag("-rounds", type=int, help="timed rounds", default=3)
    parser.flag("-arch", help="network", default="resnet18")
    parser.flag("-device", help="device; default: cuda:0 where there is one, else the CPU")
    flags = parser.parse_args()

    device = cli.choose_device(flags.device)
    network = models.build(flags.arch, 10).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (flags.images, 3, 32, 32), dtype=np.uint8)
    images, preprocess = ArrayImages(pixels), Preprocess((0.5,) * 3, (0.25,) * 3)
    seconds: dict[str, list[float]] = {"pass": [], "open": []}
    for _ in range(flags.rounds):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            extract(network, images, preprocess, device=device, cache=Cache(folder), digest="")
            seconds["pass"].append(time.perf_counter() - begun)
            (entry,) = Path(folder).iterdir()
            begun = time.perf_counter()
            assert Cache(folder).sound(entry.name, PARTS) == set(PARTS)
            seconds["open"].append(time.perf_counter() - begun)
            size = sum(file.stat().st_size for file in entry.iterdir())
    forward, opened = (statistics.median(found) for found in seconds.values())
    cli.log(
        f"{flags.arch}, {flags.images:,} images of 32 x 32 on {cli.describe_device(device)}, "
        f"median of {flags.rounds}: pass {forward:.3f} s, checksums of {size / 1e6:.1f} MB "
        f"{1000 * opened:.2f} ms, that is {100 * opened / forward:.3f} % of the pass"
    )
    if opened > 0.02 * forward:
        raise cli.RunError("the checksums take more than 2 % of the pass")


if __name__ == "__main__":
    cli.run(main)
