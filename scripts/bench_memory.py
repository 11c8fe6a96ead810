"""Measure peak memory and time of fitting every detector to features that do not fit into memory.

    python3 scripts/bench_memory.py -record      # the size of ImageNet: 15.6 GB of disk
    python3 scripts/bench_memory.py -images 20000 -features 256 -classes 20   # a minute

Writes features and logits of rectified class clusters to a folder, which is removed afterwards.
Then fits the detectors one after the other in one process, in chunks read from disk, and scores
1,000 rows with each. Statistics that several detectors need are computed once, by the first of
them. The peak is the process's resident memory (Linux: VmHWM, reset before each detector).
Detectors that keep training features (knn, nnguide, relation, combood) keep 1 % of them. gmm needs
a covariance per class and is left out if the covariances alone pass the limit.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np
import torch

from ood import cli, detectors
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.detectors.distances import LARGEST
from ood.evaluation import measurements
from ood.outputs import Head, Outputs

LIMIT_MIB = 4096  # the aim for the peak
BANKS = ("knn", "nnguide", "relation", "combood")  # these keep training features


class Streamed:
    """Outputs whose rows are read from two files chunk by chunk; nothing stays mapped."""

    def __init__(self, folder: Path, labels: torch.Tensor, head: Head, rows: int | None = None):
        self.folder, self.labels, self.head, self.rows = folder, labels, head, rows
        self.memo, self.taps, self.scores = {}, (), {}
        classes, width = head.weight.shape
        self.features, self.logits = torch.empty(0, width), torch.empty(0, classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Outputs:
        start, stop, _ = rows.indices(len(self))

        def read(name: str, width: int) -> torch.Tensor:
            file, count = self.folder / name, (stop - start) * width
            values = np.fromfile(file, np.float32, count, offset=4 * start * width)
            return torch.from_numpy(values.reshape(-1, width))

        features = read("features", self.features.shape[1])
        logits = read("logits", self.logits.shape[1])
        return Outputs(features, logits, self.labels[start:stop], self.head)

    def chunks(self, size: int | None = None) -> Iterator[Outputs]:
        size = size or self.rows or max(1, (1 << 23) // max(self.head.weight.shape))
        return (self[start : start + size] for start in range(0, len(self), size))


def read_flags():
    parser = cli.Parser("Measure the memory that fitting detectors takes.")
    parser.flag("-images", type=int, help="rows", default=1281167)
    parser.flag("-features", type=int, help="features per row", default=2048)
    parser.flag("-classes", type=int, help="classes", default=1000)
    parser.flag("-detectors", nargs="+", help="names; default: all that work on arrays")
    parser.flag(
        "-rows", type=int, help="rows that are read at a time; default: 8,388,608 values' worth"
    )
    parser.flag("-folder", help="where to write the arrays; default: the system's temporary folder")
    measurements.add_flag(parser, seconds=True)
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=flags.folder))
    try:
        began = time.perf_counter()
        train = generate(folder, flags.images, flags.features, flags.classes, flags.rows)
        cli.log(
            f"{flags.images} x {flags.features} features and {flags.classes} logits written "
            f"in {time.perf_counter() - began:.0f} s; this process holds {peak():.0f} MiB"
        )
        rows = [measure(name, train) for name in chosen(flags)]
    finally:
        shutil.rmtree(folder)
    worst = max(row[3] for row in rows)
    verdict = "within" if worst < LIMIT_MIB else "ABOVE"
    cli.log(f"largest peak {worst:.0f} MiB ({verdict} {LIMIT_MIB} MiB)")
    if flags.record:
        write(flags, rows)


def write(flags, rows: list) -> None:
    disk = flags.images * (flags.features + flags.classes) * 4 / 1e9
    covariances = flags.classes * flags.features**2 * 8 / 1e9
    options = f" -images {flags.images}" if flags.images != 1281167 else ""
    measurements.write(
        "bench_memory",
        load_before=flags.load_before,
        page="benchmarks",
        order=510,
        title=f"Memory: fitting to {flags.images:,} x {flags.features:,} features in chunks",
        command=f"python3 scripts/bench_memory.py -record{options}",
        seeds=[0],
        text=[
            f"Rectified class clusters, {flags.classes:,} classes, {disk:.1f} GB on disk, read in "
            f"chunks; {torch.get_num_threads()} threads on a shared machine, so times are upper "
            "bounds. Detectors run one after the other in one process; what several of them need "
            "(class sums, second moments, quantiles) is charged to the first. Peak: resident "
            "memory of the whole process, PyTorch itself included. knn, nnguide, relation and "
            f"combood keep 1 % of the rows. gmm is left out: {flags.classes:,} covariances of "
            f"{flags.features:,} x {flags.features:,} numbers are {covariances:.0f} GB."
        ],
        tables=[
            {
                "caption": None,
                "columns": [
                    "detector",
                    "fit, s",
                    "score 1,000 rows, s",
                    "peak, MiB",
                    "learned, MiB",
                ],
                "rows": rows,
            }
        ],
    )


def chosen(flags) -> list[str]:
    """Return the detectors to measure: those named, else all that work on arrays and fit."""
    if flags.detectors:
        return flags.detectors
    covariances = flags.classes * flags.features**2 * 8  # bytes that gmm needs
    names = []
    for name in detectors.names():
        detector = detectors.create(name)
        if isinstance(detector, ImageDetector) or "taps" in detector.needs:
            continue
        if name != "gmm" or covariances < min(LARGEST, LIMIT_MIB << 19):
            names.append(name)
    return names


def generate(
    folder: Path, images: int, features: int, classes: int, rows: int | None = None
) -> Streamed:
    """Write the arrays block by block, and return them as a training set."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator).relu()
    noise = torch.randn(4096, features, generator=generator)
    head = Head(centres * (4 / features) ** 0.5 - 0.05, torch.zeros(classes))
    labels = torch.randint(classes, (images,), generator=generator)
    with open(folder / "features", "wb") as f, open(folder / "logits", "wb") as g:
        for start in range(0, images, len(noise)):
            y = labels[start : start + len(noise)]
            drawn = noise[torch.randperm(len(noise), generator=generator)[: len(y)]]
            z = (centres[y] + drawn.roll(start // len(noise), 1)).relu()
            z.numpy().tofile(f)
            head(z).numpy().tofile(g)
    return Streamed(folder, labels, head, rows)


def measure(name: str, train: Streamed) -> list:
    """Return [name, seconds of fit, of scoring, peak MiB, MiB that the detector keeps]."""
    options = {}
    if name in BANKS:
        options = {"fraction": 0.01, **({"k": 10} if name != "relation" else {})}
    detector = detectors.create(name, **options)
    reset_peak()
    began = time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    chunked_score(detector, train[0:1000])
    scored = time.perf_counter()
    learned = [v for v in detector.state().values() if isinstance(v, torch.Tensor)]
    kept = sum(v.numel() * v.element_size() for v in learned) / 2**20
    row = [name, fitted - began, scored - fitted, peak(), kept]
    print(
        "{:<14} fit {:8.1f} s   score {:6.2f} s   peak {:7.0f} MiB   keeps {:8.2f} MiB".format(
            *row
        ),
        flush=True,
    )
    return row


def reset_peak() -> None:
    """Let the next `peak` count from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:  # not Linux: the peak since the start
        pass


def peak() -> float:
    """Return the largest resident memory since the last reset, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    cli.run(main)
