"""Is a set on disk what it should be: counted, every file decoded, images that are in two sets found.

Images are the same when their decoded pixels are (as RGB, at their stored size): a content hash, so names and formats do not matter.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ood.data.fetch import inventory
from ood.data.registry.entry import DatasetInfo
from ood.data.request import Listed

AT_ONCE = 512


@dataclass
class SetReport:
    """One split of one set.

    Attributes:
        state: complete, incomplete (another number than published), present (no number is published), damaged, absent.
        damaged: {file: what is wrong}. problem: what keeps the set from being read at all.
        repeated: images that are in this split more than once.
    """

    name: str
    role: str
    split: str
    state: str
    found: int = 0
    published: int | None = None
    place: str = ""
    damaged: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    repeated: int = 0

    @property
    def label(self) -> str:
        return f"{self.name} ({self.split})"


@dataclass
class Shared:
    """Images that are in two splits: `count` of the second one; `examples` of (file of the first, file of the second)."""

    first: str
    second: str
    count: int
    examples: list[tuple[str, str]]
    mixes: bool  # an ID set with an OOD set, or the training with the test images of one set


@dataclass
class Hashes:
    """Content hashes of a split: {hash: a file that has it}; `files` tells sets that read the same files."""

    report: SetReport
    files: frozenset
    found: dict[bytes, str] = field(default_factory=dict)


def check(
    rows: Iterable[DatasetInfo],
    data_dir: Path,
    *,
    decode: bool = True,
    progress: Callable = lambda items, *_, **__: items,
    splits: Callable[[DatasetInfo], list[str]] = inventory.splits_of,
) -> tuple[list[SetReport], list[Shared]]:
    """Every split of every set, and what they share. decode=False: counts only."""
    reports, hashes = [], []
    for row in rows:
        if row.reader in inventory.MADE:
            continue
        for split in splits(row):
            report, listed = _counted(row, split, Path(data_dir))
            reports.append(report)
            if listed is None or not decode:
                continue
            hashes.append(Hashes(report, _files(listed)))
            _hash(listed, hashes[-1], progress)
            if report.damaged:
                report.state = "damaged"
    return reports, _shared(hashes)


def _counted(row: DatasetInfo, split: str, data_dir: Path) -> tuple[SetReport, Listed | None]:
    if row.name == "openood_lists":
        whole, text = inventory.state(row, data_dir)
        return SetReport(
            row.name,
            "lists",
            split,
            "present" if whole else "absent",
            problem="" if whole else text,
        ), None
    listed, wrong = inventory.found(row, split, data_dir)
    report = SetReport(row.name, row.role, split, "absent", published=row.count.get(split))
    if wrong:
        report.state, report.problem = "damaged", wrong
    elif listed is not None:
        report.found, report.place = (
            len(listed),
            str(
                listed.folder
                if listed.paths is not None
                else ", ".join(str(listed.folder / file) for file in listed.files)
            ),
        )
        report.state = (
            "present"
            if report.published is None
            else "complete"
            if report.found == report.published
            else "incomplete"
        )
    return report, listed


def _files(listed: Listed) -> frozenset:
    if listed.paths is None:
        return frozenset(str((listed.folder / file).resolve()) for file in listed.files)
    return frozenset(str(listed.folder.resolve() / path) for path in listed.paths[:1])


def _hash(listed: Listed, hashes: Hashes, progress) -> None:
    """Decode every image; damaged ones go into the report, the others' hashes into `hashes.found`."""
    report, count = hashes.report, len(listed)
    work = (
        functools.partial(_of_file, listed.folder, listed.paths)
        if listed.paths is not None
        else functools.partial(_of_row, listed.images)
    )
    names = listed.paths if listed.paths is not None else None

    def several(start: int) -> list:
        return [work(row) for row in range(start, min(start + AT_ONCE, count))]

    starts = range(0, count, AT_ONCE)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start, results in zip(
            starts,
            progress(
                pool.map(several, starts),
                f"check {report.label}",
                total=len(starts),
                unit="images",
                scale=AT_ONCE,
            ),
        ):
            for row, (digest, wrong) in enumerate(results, start):
                name = names[row] if names is not None else f"image {row}"
                if wrong:
                    report.damaged[name] = wrong
                elif digest in hashes.found:
                    report.repeated += 1
                else:
                    hashes.found[digest] = name


def _of_file(folder: Path, paths: list[str], row: int) -> tuple[bytes | None, str | None]:
    try:
        with Image.open(folder / paths[row]) as image:
            image.load()
            return _digest(np.asarray(image if image.mode == "RGB" else image.convert("RGB"))), None
    except Exception as error:  # Pillow raises many kinds on damaged files
        return None, (str(error).splitlines() or [type(error).__name__])[0]


def _of_row(images: np.ndarray, row: int) -> tuple[bytes, None]:
    image = np.asarray(images[row])
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = image.transpose(1, 2, 0)
    return _digest(
        np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        if image.ndim == 2 or image.shape[2] == 1
        else image
    ), None


def _digest(pixels: np.ndarray) -> bytes:
    """Of (H, W, 3) uint8."""
    return hashlib.blake2b(
        np.ascontiguousarray(pixels),
        digest_size=16,
        salt=f"{pixels.shape[0]}x{pixels.shape[1]}".encode()[:16],
    ).digest()


def _shared(hashes: list[Hashes], shown: int = 5) -> list[Shared]:
    """Pairs of splits with images in common, except those that read the same files."""
    owners: dict[bytes, list[int]] = defaultdict(list)
    for number, one in enumerate(hashes):
        for digest in one.found:
            owners[digest].append(number)
    pairs: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for digest, numbers in owners.items():
        for place, first in enumerate(numbers):
            for second in numbers[place + 1 :]:
                if not hashes[first].files & hashes[second].files:
                    pairs[first, second].append(digest)
    found = []
    for (first, second), digests in sorted(pairs.items()):
        one, other = hashes[first].report, hashes[second].report
        mixes = (
            {one.role, other.role} == {"id", "ood"}
            or one.name == other.name
            and one.split != other.split
        )
        examples = [
            (hashes[first].found[digest], hashes[second].found[digest])
            for digest in digests[:shown]
        ]
        found.append(Shared(one.label, other.label, len(digests), examples, mixes))
    return found
