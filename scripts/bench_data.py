"""Time the reading of 100,000 small JPEGs, here and with torchvision's ImageFolder + DataLoader.

    python3 scripts/bench_data.py -data_dir ./datasets        # tinyimagenet32's training set
    python3 scripts/bench_data.py -dataset cifar10 -limit 10000 -rounds 1

Every reader does a whole epoch from nothing: list the files, then read batches of uint8 tensors in
order. Our first read decodes the images and keeps the array; the second one maps it. The array lies
in a data root of its own under the temporary folder, with links to the images; it is removed
afterwards. Rounds alternate, and medians are reported. An untimed pass brings all files into the
page cache before. -record writes docs/data/data_reading.json.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import torch
from torch.utils.data import DataLoader, Subset

from ood import cli
from ood.config import InputError
from ood.data import load
from ood.data.readers import listed
from ood.evaluation import measurements

COMMAND = "python3 scripts/bench_data.py -data_dir ./datasets"


def main() -> None:
    parser = cli.Parser("Time the reading of a folder of small images.")
    parser.flag("-dataset", help="a set that is a folder of classes", default="tinyimagenet32")
    parser.flag("-split", choices=("train", "test"), help="train or test", default="train")
    parser.flag("-data_dir", help="the data root", default="./datasets")
    parser.flag("-limit", type=int, help="at most so many images; default: all")
    parser.flag("-rounds", type=int, help="timed rounds", default=3)
    parser.flag("-batch_size", type=int, help="images per batch", default=256)
    parser.flag(
        "-workers", type=int, help="processes of the DataLoader", default=os.cpu_count() or 1
    )
    measurements.add_flag(parser, seconds=True)
    flags = parser.parse_args()
    flags.load_before = measurements.require_quiet(flags)
    torch.set_num_threads(1)

    found = listed(flags.dataset, flags.split, flags.data_dir)
    if found.paths is None or not found.folder.is_dir():
        raise InputError(
            f"'{flags.dataset}' is no folder of images; the comparison with ImageFolder needs one"
        )
    count = min(len(found), flags.limit or len(found))

    with tempfile.TemporaryDirectory(prefix="ood-bench-") as aside:
        root = linked(found.folder, Path(flags.data_dir), Path(aside))

        def ours(fresh: bool):
            if fresh:
                shutil.rmtree(root / ".decoded", ignore_errors=True)
            images = load(flags.dataset, flags.split, root, first=flags.limit)
            return sum(len(batch) for batch in images.batches(flags.batch_size))

        def theirs(workers: int):
            from torchvision import transforms
            from torchvision.datasets import ImageFolder

            images = ImageFolder(found.folder, transforms.PILToTensor())
            images = images if count == len(images) else Subset(images, range(count))
            loader = DataLoader(images, batch_size=flags.batch_size, num_workers=workers)
            return sum(len(batch) for batch, _ in loader)

        same(flags, root, found.folder, count)
        timed = {
            "first read": lambda: ours(True),
            "second read": lambda: ours(False),
            "ImageFolder + DataLoader, 0 workers": lambda: theirs(0),
            f"ImageFolder + DataLoader, {flags.workers} workers": lambda: theirs(flags.workers),
        }
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for round_number in range(flags.rounds):
            for name, work in timed.items():
                began = time.perf_counter()
                read = work()
                seconds[name].append(time.perf_counter() - began)
                if read != count:
                    raise cli.RunError(f"{name} read {read} of {count} images")
                cli.log(
                    f"round {round_number + 1} of {flags.rounds}: {name}: "
                    f"{seconds[name][-1]:.2f} s, {count / seconds[name][-1]:,.0f} images/s"
                )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report(flags, count, medians, seconds)


def linked(folder: Path, data_dir: Path, aside: Path) -> Path:
    """Make a data root in which the set's folder is a link.

    The decoded array is kept there, and nothing is written to the user's data root.
    """
    place = aside / folder.resolve().relative_to(data_dir.resolve())
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder.resolve(), target_is_directory=True)
    return aside


def same(flags, root: Path, folder: Path, count: int) -> None:
    """Check that both read the same pixels and labels in the same order.

    This also brings the files into the page cache.
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    images = load(flags.dataset, flags.split, root, first=flags.limit)
    reference = ImageFolder(folder, transforms.PILToTensor())
    for row in range(0, count, max(1, count // 200)):
        pixels, label = reference[row]
        if not torch.equal(images.read([row])[0], pixels) or images.labels[row] != label:
            raise cli.RunError(f"image {row} differs from ImageFolder's")


def report(flags, count: int, medians: dict[str, float], seconds: dict[str, list[float]]) -> None:
    """Print the medians, and write the record where it is asked for."""
    best = min(value for name, value in medians.items() if name.startswith("ImageFolder"))
    rows = [
        [name, round(value, 2), round(count / value), round(best / value, 2)]
        for name, value in medians.items()
    ]
    for name, value, rate, ratio in rows:
        cli.log(
            f"{name:<40} {value:8.2f} s   {rate:>10,} images/s   "
            f"{ratio:6.2f} x the faster ImageFolder"
        )
    if not flags.record:
        return
    spread = "; ".join(
        f"{name} {min(values):.1f} to {max(values):.1f} s" for name, values in seconds.items()
    )
    text = [
        f"{count:,} JPEG files of 32x32 pixels ({flags.dataset}, {flags.split}), one epoch in "
        f"order, batches of {flags.batch_size} uint8 tensors; listing the files is part of every "
        "reading. The first read decodes on all cores and keeps the array; the second maps it. "
        "Pixels, labels and order are compared with ImageFolder's before anything is timed. All "
        "files are in the page cache; nothing else is cached for ImageFolder, whose second epoch "
        "costs what its first does.",
        f"Medians of {flags.rounds} rounds; fastest and slowest: {spread}. "
        "The machine was shared with other work while this was measured.",
    ]
    table = {
        "columns": ["reader", "seconds", "images/s", "times as fast as the faster ImageFolder"],
        "rows": rows,
    }
    path = measurements.write(
        "data_reading",
        load_before=flags.load_before,
        page="benchmarks",
        order=600,
        title="Reading 100,000 small images",
        tables=[table],
        text=text,
        command=COMMAND,
        device="cpu (2 cores)",
    )
    cli.log(f"record: {path}")


if __name__ == "__main__":
    cli.run(main)
