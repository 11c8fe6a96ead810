"""Obtain a data set by name: fetch, verify and unpack its archives, then put each part in place.

Archives and unfinished work lie in `<data root>/.download`. A part of a set gets its final name by
one rename, after its archive was verified and unpacked elsewhere, so it is there whole or not at
all. `<data root>/downloads.json` records what was fetched. If an archive has no published
checksum, the sha256 of its first download is written there and enforced from then on (trust on
first use).
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ood.cli import progress
from ood.config import InputError
from ood.data.fetch import archives, inventory, prepare
from ood.data.fetch.archives import RECORD, WORK, ObtainError
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError
from ood.data.fetch.unpack import UnpackError, unpack
from ood.data.folders import EXTENSIONS
from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import info

KEPT = "kept"  # marks a work folder whose archive is to stay (-keep)
CHOICE_SALT = "ood-1"  # of `choose`; another salt would choose other images


@dataclass
class Outcome:
    """What became of one set.

    Attributes:
        state: "done"; "there" (nothing was to do); "steps" (a person has to act); or "failed".
        text: the counts, the steps to take, or the reason of the failure.
    """

    name: str
    state: str
    text: str = ""


def with_needs(names: Iterable[str | DatasetInfo]) -> list[DatasetInfo]:
    """Return the rows of these sets and of the sets they need. A needed set comes first."""
    rows: dict[str, DatasetInfo] = {}

    def add(name: str | DatasetInfo) -> None:
        row = info(name)
        for other in row.needs:
            add(other)
        rows.setdefault(row.name, row)

    for name in names:
        add(name)
    return list(rows.values())


def describe(row: DatasetInfo, data_dir: Path) -> list[str]:
    """Say what `obtain` would do, line by line (for -dry_run)."""
    counts = ", ".join(f"{split} {count:,}" for split, count in row.count.items())
    head = f"{row.name}: {row.layout or 'made here'}; licence: {row.licence}"
    lines = [head + (f"; {row.unit}: {counts}" if counts else "")]
    if not (row.archives or row.prepare or row.needs or row.steps):
        how = f": {row.fetch.format(data_dir=data_dir)}" if row.fetch else ""
        return [*lines, f"  nothing to fetch{how}"]
    for archive in row.archives:
        lines += _describe_archive(archive, data_dir)
    if row.needs:
        lines.append(f"  needs {', '.join(row.needs)}")
    if row.prepare:
        lines.append(f"  then: {prepare.summary(row.prepare)}")
    if row.steps:
        lines += ["  " + line for line in row.steps.format(data_dir=data_dir).splitlines()]
    return lines


def _describe_archive(archive: Archive, data_dir: Path) -> list[str]:
    place = data_dir / archive.place
    size = f"{archive.bytes:,} bytes" if archive.bytes else "size not published"
    if archive.sha256:
        checksum = f"sha256 {archive.sha256}"
    elif archive.md5:
        checksum = f"md5 {archive.md5}"
    else:
        checksum = "no checksum is published: trust on first use"
    if place.exists():
        state = "there"
    else:
        state = "to fetch" if archive.mirrors else "only a person can get it"
    mirrors = [f"    {'then ' if n else ''}{url}" for n, url in enumerate(archive.mirrors)]
    return [f"  {archive.name} -> {place} ({size}; {checksum}; {state})", *mirrors]


def obtain(
    row: DatasetInfo,
    data_dir: Path,
    *,
    replace: bool = False,
    keep: bool = False,
    split: str | None = None,
    patience: Patience = Patience(),
    log: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Fetch, verify, unpack and prepare one set, but not the sets it needs.

    Args:
        replace: if a part is there but not whole, replace it once the new part is whole.
        keep: leave the verified archives in `.download`.
        split: fetch only the archives that this split needs; default: all.
        patience: how long to try; see `connection.Patience`.
        log: gets one line for each step and each failed attempt.
    """
    whole, text = inventory.state(row, data_dir)
    if whole and not replace:
        if _left_over(row, data_dir):
            with suppress(OSError), archives.alone(data_dir, wait=False):
                _sweep(row, data_dir)
        return Outcome(row.name, "there", text)
    if row.steps and not row.archives:
        return Outcome(row.name, "steps", row.steps.format(data_dir=data_dir))
    if not row.archives and not row.prepare:
        made = not row.fetch or row.reader in inventory.MADE
        how = row.fetch.format(data_dir=data_dir) or "made here"
        return Outcome(row.name, "there" if made else "steps", how)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with archives.alone(data_dir, log):
            return _obtain(row, data_dir, replace, keep, split, patience, log)
    except (DownloadError, UnpackError, ObtainError, InputError) as error:
        return Outcome(row.name, "failed", str(error))
    except OSError as error:
        reason = f"{error.strerror or error}: '{error.filename or data_dir}'"
        return Outcome(row.name, "failed", reason)


def _obtain(row, data_dir, replace, keep, split, patience, log) -> Outcome:
    _sweep(row, data_dir, replace)
    missing = []  # archives that only a person can get
    for archive in row.archives:
        if split and archive.split not in (None, split):
            continue
        place = data_dir / archive.place
        if archives.is_there(place) and not replace or prepare.unneeded(row, archive, data_dir):
            continue
        work = archives.work_folder(archive, data_dir)
        placed = archives.find_placed(archive, data_dir)
        if not placed and archive.by_hand:
            missing.append(archive.name)
            continue
        try:
            file = placed or archives.download(archive, work, data_dir, patience, log)
        except DownloadError as error:
            raise DownloadError(f"{error}{_by_hand(row, archive, data_dir)}") from None
        staged = _staged(row, archive, file, work, data_dir)
        if keep and not placed:
            (work / KEPT).touch()
        archives.move(staged, place, replace)
        log(f"{row.name}: {place}")
        if placed or not keep:
            shutil.rmtree(work, ignore_errors=True)
    steps = row.steps.format(data_dir=data_dir)
    if missing:
        names = f"(not found in '{data_dir}': {', '.join(missing)})"
        return Outcome(row.name, "steps", f"{steps}\n{names}")
    if row.prepare in prepare.AFTER:
        move = functools.partial(archives.move, replace=True)
        prepare.AFTER[row.prepare](data_dir, _prepare_work(row, data_dir), move)
    whole, text = inventory.state(row, data_dir, splits=[split] if split in row.splits else None)
    if whole is not False:
        return Outcome(row.name, "done", text)
    if steps:
        return Outcome(row.name, "steps", f"{text}\n{steps}")
    again = row.command(data_dir, " -replace")
    return Outcome(row.name, "failed", f"{text}; remove it, or replace it with {again}")


def _prepare_work(row: DatasetInfo, data_dir: Path) -> Path:
    return data_dir / WORK / f"prepare-{row.name}"


def _by_hand(row: DatasetInfo, archive: Archive, data_dir: Path) -> str:
    """Say how a person gets an archive that no mirror gave; Google Drive's own page is said."""
    if archive.drive or not row.source:
        return ""
    page = f"{row.source}, save it in '{data_dir}' and run this again"
    return f"; or get '{archive.name}' by hand from {page}"


def _left_over(row: DatasetInfo, data_dir: Path, replace: bool = False) -> list[Path]:
    """List what a killed run left behind and no later run goes on from.

    Args:
        replace: this run replaces what is there, so it goes on from archives that are there.
    """
    found = [*data_dir.glob(f".{RECORD}.*"), _prepare_work(row, data_dir)]
    for archive in row.archives:
        place, work = data_dir / archive.place, archives.work_folder(archive, data_dir)
        if archives.is_there(place) and not replace and not (work / KEPT).exists():
            found.append(work)
        found.append(place.with_name(f".incoming-{place.name}"))
        found += place.parent.glob(f".replaced-{glob.escape(place.name)}-*")
    return [path for path in found if path.exists()]


def _sweep(row: DatasetInfo, data_dir: Path, replace: bool = False) -> None:
    """Remove what a killed run left behind; put back what it had moved away to replace it."""
    for path in _left_over(row, data_dir, replace):
        if path.name.startswith(".replaced-"):
            place = path.with_name(path.name.removeprefix(".replaced-").rpartition("-")[0])
            if not place.exists():
                os.replace(path, place)
                continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _staged(row: DatasetInfo, archive: Archive, file: Path, work: Path, data_dir: Path) -> Path:
    """Unpack and prepare an archive inside `work`. Returns the folder (or file) to be moved."""
    work.mkdir(parents=True, exist_ok=True)
    if not archive.unpack:
        if file.parent == work:
            return file
        shutil.copyfile(file, work / archive.name)
        return work / archive.name
    aside = work / "unpacked"
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    select = None
    if archive.choose:
        select = functools.partial(choose, count=archive.choose)
    bar = functools.partial(progress, label=f"unpack {archive.name}")
    try:
        unpack(file, aside, select=select, progress=bar)
        staged = _part(aside, archive)
        if row.prepare in prepare.STAGED:
            prepare.STAGED[row.prepare](staged, archive, data_dir, work)
        return staged
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def choose(names: list[str], count: int) -> list[str]:
    """Choose `count` images, the same ones on every machine.

    An image ranks by the sha256 of CHOICE_SALT and its file name; the smallest are chosen.
    """
    images = [name for name in names if name.lower().endswith(EXTENSIONS)]
    if len(images) < count:
        raise ObtainError(
            f"the archive holds {len(images):,} images, fewer than the {count:,} to be chosen"
        )

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{CHOICE_SALT} {name.rsplit('/', 1)[-1]}".encode()).digest()

    return sorted(images, key=rank)[:count]


def _part(aside: Path, archive: Archive) -> Path:
    """Find the part of the unpacked archive that becomes `archive.place`."""
    shutil.rmtree(aside / "__MACOSX", ignore_errors=True)
    entries = list(aside.iterdir())
    if archive.inside and (aside / archive.inside).exists():
        return aside / archive.inside
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name == Path(archive.place).name:
        return entries[0]
    if archive.inside:
        held = ", ".join(sorted(entry.name for entry in entries)[:5]) or "nothing"
        raise ObtainError(f"'{archive.name}' does not hold '{archive.inside}', but {held}")
    return aside
