"""Obtain a data set by name: fetch, verify and unpack its archives, then put each part in place.

Archives and unfinished work lie in `<data root>/.download`. A part of a set gets its final name by
one rename, after its archive was verified and unpacked elsewhere, so it is there whole or not at
all. `<data root>/downloads.json` records what was fetched. If an archive has no published
checksum, the sha256 of its first download is written there and enforced from then on (trust on
first use).
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ood.cli import progress
from ood.config import InputError
from ood.data.fetch import inventory, prepare
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fault, fetch
from ood.data.fetch.unpack import UnpackError, is_archive, unpack
from ood.data.folders import EXTENSIONS
from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import info

WORK = ".download"
RECORD = "downloads.json"
KEPT = "kept"  # marks a work folder whose archive is to stay (-keep)
FIRST_USE = (
    "first use: no checksum is published, the sha256 of the first download is enforced from then on"
)
CHOICE_SALT = "ood-1"  # of `choose`; another salt would choose other images


class ObtainError(RuntimeError):
    """A set could not be obtained; the message says why and what to do, in one line."""


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
    lines = [head + (f"; images: {counts}" if counts else "")]
    if not row.archives and not row.prepare:
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
            with suppress(OSError), _alone(data_dir, wait=False):
                _sweep(row, data_dir)
        return Outcome(row.name, "there", text)
    if not row.archives and not row.prepare:
        made = not row.fetch or row.reader in inventory.MADE
        how = row.fetch.format(data_dir=data_dir) or "made here"
        return Outcome(row.name, "there" if made else "steps", how)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _alone(data_dir, log):
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
        if _is_there(place) and not replace or prepare.unneeded(row, archive, data_dir):
            continue
        work = _work(archive, data_dir)
        placed = _placed(archive, data_dir)
        if not placed and archive.by_hand:
            missing.append(archive.name)
            continue
        file = placed or _fetched(archive, work, data_dir, patience, log)
        staged = _staged(row, archive, file, work, data_dir)
        if keep and not placed:
            (work / KEPT).touch()
        _move(staged, place, replace)
        log(f"{row.name}: {place}")
        if placed or not keep:
            shutil.rmtree(work, ignore_errors=True)
    steps = row.steps.format(data_dir=data_dir)
    if missing:
        names = f"(not found in '{data_dir}': {', '.join(missing)})"
        return Outcome(row.name, "steps", f"{steps}\n{names}")
    if row.prepare in prepare.AFTER:
        move = functools.partial(_move, replace=True)
        prepare.AFTER[row.prepare](data_dir, _prepare_work(row, data_dir), move)
    whole, text = inventory.state(row, data_dir, splits=[split] if split in row.splits else None)
    if whole is not False:
        return Outcome(row.name, "done", text)
    if steps:
        return Outcome(row.name, "steps", f"{text}\n{steps}")
    again = row.command(data_dir, " -replace")
    return Outcome(row.name, "failed", f"{text}; remove it, or replace it with {again}")


def _work(archive: Archive, data_dir: Path) -> Path:
    """Return the folder in which an archive is fetched and unpacked."""
    return data_dir / WORK / archive.place.replace("/", "__")


def _prepare_work(row: DatasetInfo, data_dir: Path) -> Path:
    return data_dir / WORK / f"prepare-{row.name}"


def _left_over(row: DatasetInfo, data_dir: Path, replace: bool = False) -> list[Path]:
    """List what a killed run left behind and no later run goes on from.

    Args:
        replace: this run replaces what is there, so it goes on from archives that are there.
    """
    found = [*data_dir.glob(f".{RECORD}.*"), _prepare_work(row, data_dir)]
    for archive in row.archives:
        place, work = data_dir / archive.place, _work(archive, data_dir)
        if _is_there(place) and not replace and not (work / KEPT).exists():
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


def _placed(archive: Archive, data_dir: Path) -> Path | None:
    """Find and verify an archive that a person put into the data root.

    Raises ObtainError if the file is wrong and no mirror has it.
    """
    for folder in (data_dir, data_dir / "ood_datasets", (data_dir / archive.place).parent):
        file = folder / archive.name
        if file == data_dir / archive.place or not file.is_file():
            continue
        wrong, digest = fault(file, archive.bytes, archive.md5, archive.sha256)
        if wrong and archive.by_hand:
            raise ObtainError(f"'{file}' {wrong}; get it again")
        if wrong is None:
            _trust(archive, digest, str(file), data_dir)
            return file
    return None


def _fetched(archive: Archive, work: Path, data_dir: Path, patience: Patience, log) -> Path:
    """Download an archive into `work` and record its checksum."""
    file = work / archive.name
    first = _recorded(data_dir).get(archive.place, {}).get("sha256")
    sha256 = archive.sha256 or (None if archive.md5 else first)

    def wrong_with(part: Path) -> str | None:
        try:
            if archive.unpack and not is_archive(part):
                return "is no archive"
        except UnpackError as error:
            return f"is refused: {error}"
        return None if part.stat().st_size else "is empty"

    try:
        digest = fetch(
            archive.mirrors,
            file,
            size=archive.bytes,
            md5=archive.md5,
            sha256=sha256,
            patience=patience,
            log=log,
            accept=wrong_with,
        )
    except DownloadError as error:
        advice = ""
        if archive.drive:
            page = f"https://drive.google.com/file/d/{archive.drive}/view"
            copy = data_dir / archive.name
            advice += f"; or get it by hand from {page}, save it as '{copy}' and run this again"
        if first and sha256 == first:
            advice += f"; {_if_changed(archive, data_dir)}"
        raise DownloadError(f"{error}{advice}") from None
    _trust(archive, digest, "download", data_dir)
    return file


def _if_changed(archive: Archive, data_dir: Path) -> str:
    entry, file = archive.place, data_dir / RECORD
    return f"if its publisher has changed it, remove the entry '{entry}' from '{file}'"


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


def _move(staged: Path, place: Path, replace: bool = False) -> None:
    """Give `staged` its final name by one rename; what stood there is removed after that."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = None
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    if place.exists():
        if not replace:
            raise ObtainError(f"'{place}' is there already")
        old = place.with_name(f".replaced-{place.name}-{os.getpid()}")
        os.replace(place, old)
    try:
        os.replace(staged, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            if old:
                os.replace(old, place)
            raise
        _move_between_disks(staged, place)
    if old:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


def _move_between_disks(staged: Path, place: Path) -> None:
    """A rename cannot leave a disk: copy beside the place first, then rename."""
    near = place.with_name(f".incoming-{place.name}")
    shutil.rmtree(near, ignore_errors=True)
    shutil.copytree(staged, near) if staged.is_dir() else shutil.copyfile(staged, near)
    os.replace(near, place)


def _is_there(place: Path) -> bool:
    return place.is_file() or place.is_dir() and any(place.iterdir())


def _trust(archive: Archive, digest: str, source: str, data_dir: Path) -> None:
    """Record the checksum of an archive before it is used.

    Raises ObtainError if no checksum is published and the first download had another one.
    """
    record, published = _recorded(data_dir), archive.md5 or archive.sha256
    before = record.get(archive.place, {}).get("sha256")
    if not published and before and before != digest:
        raise ObtainError(
            f"'{archive.name}' has the sha256 {digest}, but the first one had {before}; "
            f"{_if_changed(archive, data_dir)}"
        )
    record[archive.place] = {
        "file": archive.name,
        "sha256": digest,
        "trust": "published checksum" if published else FIRST_USE,
        "from": source,
        "date": time.strftime("%Y-%m-%d"),
    }
    path = data_dir / RECORD
    temporary = path.with_name(f".{RECORD}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _recorded(data_dir: Path) -> dict:
    path = data_dir / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    except (OSError, ValueError):
        pass
    raise ObtainError(
        f"'{path}' is damaged; it records the checksums of first downloads: "
        "restore it, or remove it to trust the next download"
    )


@contextmanager
def _alone(data_dir: Path, log: Callable = lambda line: None, wait: bool = True) -> Iterator[None]:
    """Let one process at a time download into a data root, if the system has file locks.

    Raises OSError if another one is at work and `wait` is False.
    """
    (data_dir / WORK).mkdir(exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(data_dir / WORK / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise
            log(f"another download is at work in '{data_dir}'; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
