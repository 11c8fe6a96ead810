"""One archive: placed by a person or fetched, verified, recorded, moved to its final name.

Files on the way lie in `<root>/.download`; `<root>/downloads.json` records what was fetched. Data
sets (`obtain`) and weight files (`weights`) share this.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fault, fetch
from ood.data.fetch.unpack import UnpackError, is_archive
from ood.data.registry.entry import Archive

WORK = ".download"
RECORD = "downloads.json"
FIRST_USE = (
    "first use: no checksum is published, the sha256 of the first download is enforced from then on"
)


class ObtainError(RuntimeError):
    """A set or a file could not be obtained; the message says why and what to do, in one line."""


def work_folder(archive: Archive, data_dir: Path) -> Path:
    """Return the folder in which an archive is fetched and unpacked."""
    return data_dir / WORK / archive.place.replace("/", "__")


def find_placed(archive: Archive, data_dir: Path) -> Path | None:
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


def verify(archive: Archive, data_dir: Path) -> None:
    """Verify a file that lies in its place already, against its published or recorded checksum.

    Raises ObtainError if it is another one.
    """
    place = data_dir / archive.place
    first = _recorded(data_dir).get(archive.place, {}).get("sha256")
    sha256 = archive.sha256 or (None if archive.md5 else first)
    wrong, _ = fault(place, archive.bytes, archive.md5, sha256)
    if wrong:
        raise ObtainError(f"'{place}' {wrong}; remove it and run this again")


def download(archive: Archive, work: Path, data_dir: Path, patience: Patience, log) -> Path:
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


def move(staged: Path, place: Path, replace: bool = False) -> None:
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


def is_there(place: Path) -> bool:
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
def alone(data_dir: Path, log: Callable = lambda line: None, wait: bool = True) -> Iterator[None]:
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
