"""Check data sets on disk: count images, decode every file, find images that are in two sets.

Two images are the same if their decoded pixels are the same (as RGB, at their stored size). The
comparison uses a hash of the pixels, so file names and file formats do not matter.
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

from ood.data.decoding import open_image
from ood.data.fetch import inventory
from ood.data.registry.entry import DatasetInfo
from ood.data.request import Listed

AT_ONCE = 512  # images per task of the thread pool


@dataclass
class SetReport:
    """What was found of one split of one set.

    Attributes:
        state: "complete"; "incomplete" (another number of images than published); "present" (no
            number is published); "damaged"; or "absent".
        place: the folder or files that were read.
        damaged: {file: what is wrong with it}.
        problem: why the set cannot be read at all; "" if it can.
        repeated: how many images occur a second time in this split.
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
    """Images that two splits have in common.

    Attributes:
        count: how many images.
        examples: some of them, as (file of the first split, file of the second split).
        mixes: True if this spoils an evaluation: an ID set shares images with an OOD set, or the
            training split of a set shares images with its test split.
    """

    first: str
    second: str
    count: int
    examples: list[tuple[str, str]]
    mixes: bool


@dataclass
class Hashes:
    """The pixel hashes of one split.

    Attributes:
        files: identifies the files that were read; sets over the same files are not compared.
        found: {hash: the first file that has it}.
    """

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
    """Report on every split of every set, and on the images that splits share.

    Args:
        decode: False counts images only; damaged and shared images are then not seen.
        progress: wraps the iteration over a split's images, as `cli.progress` does.
        splits: returns the splits of a set that are checked.
    """
    reports, hashes = [], []
    for row in rows:
        if row.reader in inventory.MADE:
            continue
        for split in splits(row):
            report, listing = _counted(row, split, Path(data_dir))
            reports.append(report)
            if listing is None or not decode:
                continue
            hashes.append(Hashes(report, _files(listing)))
            _hash(listing, hashes[-1], progress)
            if report.damaged:
                report.state = "damaged"
    return reports, _shared(hashes)


def _counted(row: DatasetInfo, split: str, data_dir: Path) -> tuple[SetReport, Listed | None]:
    if row.name == "openood_lists":
        whole, text = inventory.state(row, data_dir)
        report = SetReport(row.name, "lists", split, "present" if whole else "absent")
        report.problem = "" if whole else text
        return report, None
    listing, wrong = inventory.found(row, split, data_dir)
    report = SetReport(row.name, row.role, split, "absent", published=row.count.get(split))
    if wrong:
        report.state, report.problem = "damaged", wrong
    elif listing is not None:
        report.found = len(listing)
        if listing.paths is None:
            report.place = ", ".join(str(listing.folder / file) for file in listing.files)
        else:
            report.place = str(listing.folder)
        if report.published is None:
            report.state = "present"
        else:
            report.state = "complete" if report.found == report.published else "incomplete"
    return report, listing


def _files(listing: Listed) -> frozenset:
    """Identify what a listing reads: its array files, or the first file of its folder."""
    if listing.paths is None:
        return frozenset(str((listing.folder / file).resolve()) for file in listing.files)
    return frozenset(str(listing.folder.resolve() / path) for path in listing.paths[:1])


def _hash(listing: Listed, hashes: Hashes, progress) -> None:
    """Decode every image. Damaged files go into the report, hashes into `hashes.found`."""
    report, count = hashes.report, len(listing)
    if listing.paths is not None:
        digest_of = functools.partial(_of_file, listing.folder, listing.paths)
    else:
        digest_of = functools.partial(_of_row, listing.images)

    def several(start: int) -> list:
        return [digest_of(row) for row in range(start, min(start + AT_ONCE, count))]

    starts = range(0, count, AT_ONCE)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        batches = progress(
            pool.map(several, starts),
            f"check {report.label}",
            total=len(starts),
            unit="images",
            scale=AT_ONCE,
        )
        for start, results in zip(starts, batches):
            for row, (digest, wrong) in enumerate(results, start):
                name = f"image {row}" if listing.paths is None else listing.paths[row]
                if wrong:
                    report.damaged[name] = wrong
                elif digest in hashes.found:
                    report.repeated += 1
                else:
                    hashes.found[digest] = name


def _of_file(folder: Path, paths: list[str], row: int) -> tuple[bytes | None, str | None]:
    try:
        with open_image(folder / paths[row]) as image:
            image.load()
            return _digest(np.asarray(image if image.mode == "RGB" else image.convert("RGB"))), None
    except Exception as error:  # Pillow raises many kinds on damaged files
        return None, (str(error).splitlines() or [type(error).__name__])[0]


def _of_row(images: np.ndarray, row: int) -> tuple[bytes, None]:
    """The hash of a text, or of an image of an array: (H, W), (H, W, 1 or 3), (1 or 3, H, W)."""
    if isinstance(images[row], str):
        return hashlib.blake2b(images[row].encode(), digest_size=16, salt=b"text").digest(), None
    image = np.asarray(images[row])
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return _digest(image), None


def _digest(pixels: np.ndarray) -> bytes:
    """Hash (H, W, 3) uint8. The salt is the shape: the same bytes may be two images."""
    salt = f"{pixels.shape[0]}x{pixels.shape[1]}".encode()[:16]
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16, salt=salt).digest()


def _shared(hashes: list[Hashes], shown: int = 5) -> list[Shared]:
    """Find the pairs of splits with images in common, except pairs that read the same files."""
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
        one, other = hashes[first], hashes[second]
        examples = [(one.found[digest], other.found[digest]) for digest in digests[:shown]]
        mixes = _mixes(one.report, other.report)
        found.append(Shared(one.report.label, other.report.label, len(digests), examples, mixes))
    return found


def _mixes(one: SetReport, other: SetReport) -> bool:
    """True if no image may be in both: an ID and an OOD set, or two splits of one set."""
    return {one.role, other.role} == {"id", "ood"} or (
        one.name == other.name and one.split != other.split
    )
