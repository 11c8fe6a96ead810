"""Archives of strangers: unpacked only if every member stays inside the target folder, is a file or a folder, and the whole stays in bounds.

Refused are absolute paths, '..', links that lead out, devices and pipes, encrypted members, and more bytes or members than the archive
can honestly hold. Links that stay inside become copies. Nothing is executed, no owner and no permission is taken over.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

BLOCK = 2**20
RATIO = 50  # bytes out per byte in: images are packed about 1:1, arrays of digits up to 20:1
FLOOR = 2**30  # below this much no archive is called a bomb
MEMBERS = 5_000_000
DRIVE = re.compile(r"^[A-Za-z]:")


class UnpackError(RuntimeError):
    """An archive that is damaged or not safe; nothing of it is kept."""


@dataclass
class _Member:
    name: str  # as the archive says
    path: PurePosixPath  # checked
    size: int
    kind: str  # file, folder, symlink, hardlink
    target: str = ""
    handle: object = None


def unpack(
    archive: Path,
    target: Path,
    *,
    limit: int | None = None,
    select: Callable[[list[str]], Iterable[str]] | None = None,
    progress: Callable = lambda members, **_: members,
) -> int:
    """Unpack a zip or a (compressed) tar into the empty folder `target`. Returns the number of files.

    Args:
        limit: bytes that may come out; default: 50 times the archive, at least 1 GiB.
        select: of the names of all files, those to be unpacked.

    Raises:
        UnpackError: damaged or unsafe; what was written so far is for the caller to remove.
    """
    limit = limit if limit is not None else max(FLOOR, RATIO * archive.stat().st_size)
    target.mkdir(parents=True, exist_ok=True)
    try:
        opened = (
            _Zip(archive)
            if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive)
            else _Tar(archive, target)
        )
        with opened:
            return _write(opened, target, limit, select, progress)
    except UnpackError:
        raise
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UnpackError(
                f"cannot unpack '{archive.name}' ({error.strerror}: {error.filename or target})"
            ) from None
        raise UnpackError(
            f"'{archive.name}' is damaged ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from None


def is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def _write(opened, target: Path, limit: int, select, progress) -> int:
    chosen = None
    if select:
        chosen = set(select([member.name for member in opened.members() if member.kind == "file"]))
    left, files, links = limit, 0, []
    for number, member in enumerate(progress(opened.members(), unit="files")):
        if number >= MEMBERS:
            raise UnpackError(f"'{opened.name}' holds more than {MEMBERS:,} members")
        if chosen is not None and member.name not in chosen:
            continue
        place = target.joinpath(*member.path.parts)
        if member.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
        elif member.kind == "file":
            if member.size > left:
                raise UnpackError(
                    f"'{opened.name}' unpacks to more than {limit:,} bytes ('{member.name}'): not what it should be"
                )
            left -= _copy(opened, member, place, left, limit)
            files += 1
        else:
            links.append(member)
    for member in links:
        left -= _materialise(member, target, left, opened.name)
        files += 1
    return files


def _copy(opened, member: _Member, place: Path, left: int, limit: int) -> int:
    place.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(member) as source, open(place, "wb") as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > left:
                raise UnpackError(
                    f"'{opened.name}' unpacks to more than {limit:,} bytes ('{member.name}'): not what it should be"
                )
            file.write(block)
    if written != member.size:
        raise UnpackError(
            f"'{opened.name}' is damaged ('{member.name}' has {written:,} bytes instead of {member.size:,})"
        )
    return written


def _materialise(member: _Member, target: Path, left: int, name: str) -> int:
    """A link that stays inside, as a copy of the file it leads to."""
    base = PurePosixPath() if member.kind == "hardlink" else member.path.parent
    parts: list[str] = []
    for part in (*base.parts, *PurePosixPath(member.target.replace("\\", "/")).parts):
        if part == ".." and not parts:
            raise UnpackError(
                f"'{name}' holds the link '{member.name}' -> '{member.target}', which leads out of it"
            )
        if part == "..":
            parts.pop()
        elif part not in (".", ""):
            parts.append(part)
    source = target.joinpath(*parts)
    if not source.is_file():
        raise UnpackError(
            f"'{name}' holds the link '{member.name}' -> '{member.target}', which leads to no file of it"
        )
    if source.stat().st_size > left:
        raise UnpackError(
            f"'{name}' unpacks to too many bytes ('{member.name}'): not what it should be"
        )
    place = target.joinpath(*member.path.parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    return source.stat().st_size


def _checked(name: str, archive: str) -> PurePosixPath:
    """The member's path, which must lead into the folder."""
    plain = name.replace("\\", "/")
    path = PurePosixPath(plain)
    if plain.startswith("/") or DRIVE.match(plain):
        raise UnpackError(f"'{archive}' holds the absolute path '{name}'; it is not unpacked")
    if ".." in path.parts or "\0" in name:
        raise UnpackError(
            f"'{archive}' holds the path '{name}', which leads out of it; it is not unpacked"
        )
    return path


class _Zip:
    def __init__(self, path: Path):
        self.name, self.file = path.name, zipfile.ZipFile(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def members(self) -> Iterator[_Member]:
        for entry in self.file.infolist():
            mode = entry.external_attr >> 16
            kind = "folder" if entry.is_dir() else "file"
            if stat.S_IFMT(mode) == stat.S_IFLNK:
                kind = "symlink"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnpackError(
                    f"'{self.name}' holds '{entry.filename}', which is a device or a pipe; it is not unpacked"
                )
            if entry.flag_bits & 1:
                raise UnpackError(f"'{self.name}' holds '{entry.filename}', which is encrypted")
            path = _checked(entry.filename, self.name)
            target = ""
            if kind == "symlink":
                target = (
                    self.file.read(entry).decode("utf-8", "replace")
                    if entry.file_size < 4096
                    else ""
                )
                _checked_link(entry.filename, target, self.name)
            yield _Member(entry.filename, path, entry.file_size, kind, target, entry)

    def open(self, member: _Member):
        return self.file.open(member.handle)


class _Tar:
    def __init__(self, path: Path, target: Path):
        self.name, self.path, self.target, self.file = path.name, path, target, tarfile.open(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def members(self) -> Iterator[_Member]:
        """From the beginning each time; a compressed archive is read as a stream, once per call."""
        self.file.close()
        self.file = tarfile.open(self.path)
        while (entry := self.file.next()) is not None:
            self.file.members = []  # tarfile keeps every header otherwise
            path = _checked(entry.name, self.name)
            kind = (
                "folder"
                if entry.isdir()
                else "file"
                if entry.isfile()
                else "symlink"
                if entry.issym()
                else "hardlink"
                if entry.islnk()
                else None
            )
            if kind is None:
                raise UnpackError(
                    f"'{self.name}' holds '{entry.name}', which is a device or a pipe; it is not unpacked"
                )
            if kind in ("symlink", "hardlink"):
                _checked_link(entry.name, entry.linkname, self.name)
            if hasattr(tarfile, "data_filter"):  # the library's own rules, as a second pair of eyes
                try:
                    tarfile.data_filter(entry, str(self.target))
                except tarfile.FilterError as error:
                    raise UnpackError(f"'{self.name}' is not unpacked: {error}") from None
            yield _Member(
                entry.name, path, entry.size if kind == "file" else 0, kind, entry.linkname, entry
            )
        if self.file.offset == 0:
            raise UnpackError(f"'{self.name}' is damaged (it holds nothing)")
        while self.file.fileobj.read(
            BLOCK
        ):  # to the end: there the compressed stream has its checksum
            pass

    def open(self, member: _Member):
        return self.file.extractfile(member.handle)


def _checked_link(name: str, target: str, archive: str) -> None:
    plain = target.replace("\\", "/")
    if not plain or plain.startswith("/") or DRIVE.match(plain):
        raise UnpackError(
            f"'{archive}' holds the link '{name}' -> '{target}', which leads out of it"
        )
