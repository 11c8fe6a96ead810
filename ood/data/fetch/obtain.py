"""From a name to a set on disk: what has to be fetched, and every part of it put in its place at once or not at all.

Archives and unfinished work lie in `<data root>/.download`; a part of a set appears under its name by one rename, after its archive
was verified and unpacked aside. `<data root>/downloads.json` records what was fetched: where an archive has no published checksum,
the sha256 of its first download stands there and is enforced from then on (trust on first use).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ood.cli import progress
from ood.config import InputError
from ood.data.fetch import inventory, prepare
from ood.data.fetch.download import DownloadError, Patience, fault, fetch
from ood.data.fetch.unpack import UnpackError, is_archive, unpack
from ood.data.folders import EXTENSIONS
from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import info

WORK = ".download"
RECORD = "downloads.json"
FIRST_USE = (
    "first use: no checksum is published, the sha256 of the first download is enforced from then on"
)
CHOICE = "ood-1"  # salt of seeded choices; another one chooses other images


class ObtainError(RuntimeError):
    """A set could not be had; one line that says why and what to do."""


@dataclass
class Outcome:
    """What became of one set: done, there (nothing to do), steps (a person has to act) or failed."""

    name: str
    state: str
    text: str = ""


def with_needs(names: Iterable[str]) -> list[DatasetInfo]:
    """The rows of the names, each once, what it needs before it."""
    rows: dict[str, DatasetInfo] = {}

    def add(name: str) -> None:
        row = info(name)
        for other in row.needs:
            add(other)
        rows.setdefault(row.name, row)

    for name in names:
        add(name)
    return list(rows.values())


def describe(row: DatasetInfo, data_dir: Path) -> list[str]:
    """What `obtain` would do, line by line (for -dry_run)."""
    lines = [
        f"{row.name}: {row.layout or 'made here'}; licence: {row.licence}"
        + (
            f"; images: {', '.join(f'{split} {count:,}' for split, count in row.count.items())}"
            if row.count
            else ""
        )
    ]
    if not row.archives and not row.prepare:
        return lines + [
            f"  nothing to fetch{': ' + row.fetch.format(data_dir=data_dir) if row.fetch else ''}"
        ]
    for archive in row.archives:
        size = f"{archive.bytes:,} bytes" if archive.bytes else "size not published"
        known = (
            f"sha256 {archive.sha256}"
            if archive.sha256
            else f"md5 {archive.md5}"
            if archive.md5
            else "no checksum is published: trust on first use"
        )
        state = (
            "there"
            if (data_dir / archive.place).exists()
            else "to fetch"
            if archive.mirrors
            else "only a person can get it"
        )
        lines.append(f"  {archive.name} -> {data_dir / archive.place} ({size}; {known}; {state})")
        lines += [
            f"    {'then ' if number else ''}{url}" for number, url in enumerate(archive.mirrors)
        ]
    if row.needs:
        lines.append(f"  needs {', '.join(row.needs)}")
    if row.prepare:
        lines.append(f"  then: {prepare.summary(row.prepare)}")
    if row.steps:
        lines += ["  " + line for line in row.steps.format(data_dir=data_dir).splitlines()]
    return lines


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
    """Fetch, verify, unpack and prepare one set (not what it needs).

    Args:
        replace: a part that is there but not whole is replaced, once the new one is whole.
        keep: leave the verified archives in `.download`. split: only what this split needs.
    """
    whole, text = inventory.state(row, data_dir)
    if whole and not replace:
        return Outcome(row.name, "there", text)
    if not row.archives and not row.prepare:
        return Outcome(
            row.name,
            "there" if not row.fetch or row.reader in inventory.MADE else "steps",
            row.fetch.format(data_dir=data_dir) or "made here",
        )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _alone(data_dir, log):
            return _obtain(row, data_dir, replace, keep, split, patience, log)
    except (DownloadError, UnpackError, ObtainError, InputError) as error:
        return Outcome(row.name, "failed", str(error))
    except OSError as error:
        return Outcome(
            row.name, "failed", f"{error.strerror or error}: '{error.filename or data_dir}'"
        )


def _obtain(row, data_dir, replace, keep, split, patience, log) -> Outcome:
    missing = []
    for archive in row.archives:
        if split and archive.split not in (None, split):
            continue
        place = data_dir / archive.place
        if _is_there(place) and not replace or prepare.unneeded(row, archive, data_dir):
            continue
        work = data_dir / WORK / archive.place.replace("/", "__")
        file, ours = _placed(archive, data_dir), False
        if file is None and archive.by_hand:
            missing.append(archive)
            continue
        if file is None:
            file, ours = _fetched(archive, work, data_dir, patience, log), True
        staged = _staged(row, archive, file, work, data_dir, log)
        _move(staged, place, replace)
        log(f"{row.name}: {place}")
        if ours and not keep:
            shutil.rmtree(work, ignore_errors=True)
    if missing:
        names = ", ".join(archive.name for archive in missing)
        return Outcome(
            row.name,
            "steps",
            f"{row.steps.format(data_dir=data_dir)}\n(not found in '{data_dir}': {names})",
        )
    if row.prepare in prepare.AFTER:
        prepare.AFTER[row.prepare](
            data_dir,
            data_dir / WORK / f"prepare-{row.name}",
            functools.partial(_move, replace=True),
        )
    whole, text = inventory.state(row, data_dir, splits=[split] if split in row.splits else None)
    if whole is False:
        return Outcome(
            row.name,
            "steps" if row.steps else "failed",
            text
            + (
                f"\n{row.steps.format(data_dir=data_dir)}"
                if row.steps
                else "; remove it, or run again with -replace"
            ),
        )
    return Outcome(row.name, "done", text)


def _placed(archive: Archive, data_dir: Path) -> Path | None:
    """An archive that a person put into the data root, verified. Raises ObtainError if it is not what it should be."""
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
    file = work / archive.name
    known = _recorded(data_dir).get(archive.place, {}).get("sha256")
    sha256 = archive.sha256 or (None if archive.md5 else known)
    if (
        file.is_file()
        and fault(file, archive.bytes, archive.md5, sha256)[0] is None
        and (archive.md5 or sha256)
    ):
        return file

    def accept(part: Path) -> str | None:
        return (
            "is no archive"
            if archive.unpack and not is_archive(part)
            else "is empty"
            if not part.stat().st_size
            else None
        )

    try:
        digest = fetch(
            archive.mirrors,
            file,
            size=archive.bytes,
            md5=archive.md5,
            sha256=sha256,
            patience=patience,
            log=log,
            accept=accept,
        )
    except DownloadError as error:
        hint = (
            f"; or get it by hand from https://drive.google.com/file/d/{archive.drive}/view, save it as '{data_dir / archive.name}' and run this again"
            if archive.drive
            else ""
        )
        changed = (
            f"; if its publisher has changed it, remove the entry '{archive.place}' from '{data_dir / RECORD}'"
            if known and sha256 == known
            else ""
        )
        raise DownloadError(f"{error}{hint}{changed}") from None
    _trust(archive, digest, "download", data_dir)
    return file


def _staged(
    row: DatasetInfo, archive: Archive, file: Path, work: Path, data_dir: Path, log
) -> Path:
    """The archive's content, ready for its place: a folder (or file) inside the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    if not archive.unpack:
        if file.parent == work:
            return file
        shutil.copyfile(file, work / archive.name)
        return work / archive.name
    aside = work / "unpacked"
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    try:
        select = (
            functools.partial(choose, count=archive.choose, inside=archive.inside)
            if archive.choose
            else None
        )
        unpack(
            file,
            aside,
            select=select,
            progress=functools.partial(progress, label=f"unpack {archive.name}"),
        )
        staged = _part(aside, archive)
        if row.prepare in prepare.STAGED:
            staged = prepare.STAGED[row.prepare](staged, archive, data_dir, work) or staged
        return staged
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def choose(names: list[str], count: int, inside: str = "") -> list[str]:
    """`count` of the images, the same ones on every machine: those with the smallest sha256 of a salt and their file name."""
    images = [name for name in names if name.lower().endswith(EXTENSIONS)]
    if len(images) < count:
        raise ObtainError(
            f"the archive holds {len(images):,} images, fewer than the {count:,} to be chosen"
        )
    rank = {
        name: hashlib.sha256(f"{CHOICE} {name.rsplit('/', 1)[-1]}".encode()).digest()
        for name in images
    }
    return sorted(images, key=rank.get)[:count]


def _part(aside: Path, archive: Archive) -> Path:
    """The folder of the unpacked archive that becomes the place."""
    shutil.rmtree(aside / "__MACOSX", ignore_errors=True)
    entries = list(aside.iterdir())
    if archive.inside and (aside / archive.inside).exists():
        return aside / archive.inside
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name == Path(archive.place).name:
        return entries[0]
    if archive.inside:
        raise ObtainError(
            f"'{archive.name}' does not hold '{archive.inside}', but {', '.join(sorted(e.name for e in entries)[:5]) or 'nothing'}"
        )
    return aside


def _move(staged: Path, place: Path, replace: bool = False) -> None:
    """`staged` under its name, by one rename; what stood there is removed only after that."""
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
        if error.errno != errno.EXDEV:  # another disk: copy beside the place first
            if old:
                os.replace(old, place)
            raise
        near = place.with_name(f".incoming-{place.name}")
        shutil.rmtree(near, ignore_errors=True)
        shutil.copytree(staged, near) if staged.is_dir() else shutil.copyfile(staged, near)
        os.replace(near, place)
    if old:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


def _is_there(place: Path) -> bool:
    return place.is_file() or place.is_dir() and any(place.iterdir())


def _trust(archive: Archive, digest: str, source: str, data_dir: Path) -> None:
    """Record what was fetched, before it is used."""
    record, known = _recorded(data_dir), archive.md5 or archive.sha256
    before = record.get(archive.place, {}).get("sha256")
    if not known and before and before != digest:
        raise ObtainError(
            f"'{archive.name}' has the sha256 {digest}, but the first one had {before}; if its publisher has changed it, remove "
            f"the entry '{archive.place}' from '{data_dir / RECORD}'"
        )
    record[archive.place] = {
        "file": archive.name,
        "sha256": digest,
        "trust": "published checksum" if known else FIRST_USE,
        "from": source,
        "date": time.strftime("%Y-%m-%d"),
    }
    path = data_dir / RECORD
    temporary = path.with_name(f".{RECORD}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def _recorded(data_dir: Path) -> dict:
    path = data_dir / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        if isinstance(record, dict):
            return record
    except (OSError, ValueError):
        pass
    raise ObtainError(
        f"'{path}' is damaged; it records the checksums of first downloads: restore it, or remove it to trust what comes next"
    )


@contextmanager
def _alone(data_dir: Path, log) -> Iterator[None]:
    """One download at a time per data root (where the system has file locks)."""
    (data_dir / WORK).mkdir(exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(data_dir / WORK / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log(f"another download is at work in '{data_dir}'; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
