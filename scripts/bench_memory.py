"""Peak memory and time of fitting every detector to features that do not fit into memory.

    python3 scripts/bench_memory.py -record                                   # 1,281,167 x 2,048 features, 1,000 classes: 15.6 GB of disk
    python3 scripts/bench_memory.py -images 20000 -features 256 -classes 20   # a minute

Writes features and logits of rectified class clusters to a folder (removed afterwards), then fits each detector to them in chunks that
are read from disk, one after the other in one process, and scores 1,000 rows. Statistics that several detectors need are computed
once, by the first of them. The peak is the process's resident memory (Linux: VmHWM, reset before each detector).
Detectors that keep training features (knn, nnguide, relation, combood) keep 1 % of them; gmm needs a covariance per class and
is left out when that alone passes the limit.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from ood import cli, detectors
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.detectors.distances import LARGEST
from ood.evaluation import measurements
from ood.outputs import Head, Outputs

LIMIT_MIB = 4096
BANKS = ("knn", "nnguide", "relation", "combood")


class Streamed:
    """Outputs whose rows are read from two files, chunk by chunk: nothing stays mapped."""

    def __init__(self, folder: Path, labels: torch.Tensor, head: Head, rows: int | None = None):
        self.folder, self.labels, self.head, self.memo, self.taps, self.scores, self.rows = (
            folder,
            labels,
            head,
            {},
            (),
            {},
            rows,
        )
        classes, width = head.weight.shape
        self.features, self.logits = (torch.empty(0, w).expand(0, w) for w in (width, classes))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Outputs:
        start, stop, _ = rows.indices(len(self))
        parts = [
            torch.from_numpy(
                np.fromfile(
                    self.folder / name, np.float32, (stop - start) * width, offset=4 * start * width
                ).reshape(-1, width)
            )
            for name, width in (
                ("features", self.features.shape[1]),
                ("logits", self.logits.shape[1]),
            )
        ]
        return Outputs(*parts, self.labels[start:stop], self.head)

    def chunks(self, size: int | None = None) -> Iterator[Outputs]:
        size = size or self.rows or max(1, (1 << 23) // max(self.head.weight.shape))
        return (self[start : start + size] for start in range(0, len(self), size))


def main() -> None:
    parser = cli.Parser("Measure the memory that fitting detectors takes.")
    parser.flag("-images", type=int, help="rows", default=1281167)
    parser.flag("-features", type=int, help="features per row", default=2048)
    parser.flag("-classes", type=int, help="classes", default=1000)
    parser.flag("-detectors", nargs="+", help="names; default: all that work on arrays")
    parser.flag(
        "-rows", type=int, help="rows that are read at a time; default: 8,388,608 values' worth"
    )
    parser.flag("-folder", help="where to write the arrays; default: the system's temporary folder")
    parser.flag(
        "-record", action="store_true", help="write docs/data/bench_memory.json", default=False
    )
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=flags.folder))
    try:
        began = time.perf_counter()
        train = generate(folder, flags.images, flags.features, flags.classes, flags.rows)
        cli.log(
            f"{flags.images} x {flags.features} features and {flags.classes} logits written in {time.perf_counter() - began:.0f} s; "
            f"this process holds {peak():.0f} MiB"
        )
        rows = [measure(name, train) for name in chosen(flags)]
    finally:
        shutil.rmtree(folder)
    worst = max(row[3] for row in rows)
    cli.log(
        f"largest peak {worst:.0f} MiB ({'within' if worst < LIMIT_MIB else 'ABOVE'} {LIMIT_MIB} MiB)"
    )
    if flags.record:
        measurements.write(
            "bench_memory",
            page="benchmarks",
            order=510,
            title=f"Memory: fitting to {flags.images:,} x {flags.features:,} features in chunks",
            command="python3 scripts/bench_memory.py -record"
            + (f" -images {flags.images}" if flags.images != 1281167 else ""),
            seeds=[0],
            text=[
                f"Rectified class clusters, {flags.classes:,} classes, {flags.images * (flags.features + flags.classes) * 4 / 1e9:.1f} GB on disk, read in "
                f"chunks; {torch.get_num_threads()} threads on a shared machine, so times are upper bounds. Detectors run one after the other in one process; what "
                "several need (class sums, second moments, quantiles) is charged to the first. Peak: resident memory of the whole process, "
                "PyTorch itself included. knn, nnguide, relation and combood keep 1 % of the rows. gmm is left out: "
                f"{flags.classes:,} covariances of {flags.features:,} x {flags.features:,} numbers are {flags.classes * flags.features**2 * 8 / 1e9:.0f} GB."
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
    if flags.detectors:
        return flags.detectors
    names = [
        n
        for n in detectors.names()
        if not isinstance(detectors.create(n), ImageDetector)
        and "taps" not in detectors.create(n).needs
    ]
    return [
        n
        for n in names
        if n != "gmm" or flags.classes * flags.features**2 * 8 < min(LARGEST, LIMIT_MIB << 19)
    ]


def generate(
    folder: Path, images: int, features: int, classes: int, rows: int | None = None
) -> Streamed:
    """Write the arrays block by block and return them as a training set."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator).relu()
    noise = torch.randn(4096, features, generator=generator)
    head = Head(centres * (4 / features) ** 0.5 - 0.05, torch.zeros(classes))
    labels = torch.randint(classes, (images,), generator=generator)
    with open(folder / "features", "wb") as f, open(folder / "logits", "wb") as g:
        for start in range(0, images, len(noise)):
            y = labels[start : start + len(noise)]
            z = (
                centres[y]
                + noise[torch.randperm(len(noise), generator=generator)[: len(y)]].roll(
                    start // len(noise), 1
                )
            ).relu()
            z.numpy().tofile(f)
            head(z).numpy().tofile(g)
    return Streamed(folder, labels, head, rows)


def measure(name: str, train: Streamed) -> list:
    """[name, seconds of fit, of scoring, peak MiB of the process, MiB that the detector keeps]."""
    detector = detectors.create(
        name,
        **(
            {"fraction": 0.01, **({"k": 10} if name != "relation" else {})} if name in BANKS else {}
        ),
    )
    reset_peak()
    began = time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    chunked_score(detector, train[0:1000])
    kept = (
        sum(
            v.numel() * v.element_size()
            for v in detector.state().values()
            if isinstance(v, torch.Tensor)
        )
        / 2**20
    )
    row = [name, fitted - began, time.perf_counter() - fitted, peak(), kept]
    print(
        "{:<14} fit {:8.1f} s   score {:6.2f} s   peak {:7.0f} MiB   keeps {:8.2f} MiB".format(
            *row
        ),
        flush=True,
    )
    return row


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak since the start
        pass


def peak() -> float:
    """Largest resident memory since the last reset, MiB."""
    try:
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return int(line.split()[1]) / 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    cli.run(main)
