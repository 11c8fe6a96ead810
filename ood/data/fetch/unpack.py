"""Unpack archives from strangers safely.

Refused are absolute paths, "..", links that lead out of the target folder, devices, pipes,
encrypted members, and more bytes or members than an archive of that size can honestly hold. Links
that stay inside become copies. Nothing is executed, and owners and permissions are ignored.

Python's readers trust what an archive says about its own headers: one that claims 4 GiB is read
into memory. So they get a stream that gives only so much of itself (bounded.py).
"""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ood.data.fetch.bounded import HEADER_BYTES, Bounded, UnpackError, open_tar, too_long

BLOCK = 2**20
RATIO = 50  # bytes out per byte in: images pack about 1:1, arrays of digits up to 20:1
FLOOR = 2**30  # below this much no archive is called a bomb
MEMBERS = 5_000_000
DIRECTORY_BYTES = 2**26  # the list of members of a zip; about 110 bytes each
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others are expanded in memory
LONGEST_LINK = 4096  # bytes of the target of a link in a zip
DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass
class _Member:
    name: str  # as the archive says
    path: PurePosixPath  # the same, checked: it leads into the target folder
    size: int
    kind: str  # file, folder, symlink, hardlink
    target: str = ""  # of a link
    handle: object = None  # what the library calls the member


def unpack(
    archive: Path,
    target: Path,
    *,
    limit: int | None = None,
    select: Callable[[list[str]], Iterable[str]] | None = None,
    progress: Callable = lambda members, **_: members,
) -> int:
    """Unpack a zip or a (compressed) tar into the empty folder `target`; return the file count.

    Args:
        limit: most bytes that may come out; default: 50 times the archive, but at least 1 GiB.
        select: gets the names of all files and returns those to be unpacked; default: all.
        progress: wraps the iteration over the members, as `cli.progress` does.

    Raises:
        UnpackError: damaged or unsafe. The caller removes what was written so far.
    """
    limit = limit if limit is not None else max(FLOOR, RATIO * archive.stat().st_size)
    target.mkdir(parents=True, exist_ok=True)
    try:
        is_zip = zipfile.is_zipfile(archive) and not _is_tar(archive)
        with _Zip(archive) if is_zip else _Tar(archive, target) as opened:
            return _write(opened, target, limit, select, progress)
    except UnpackError:
        raise
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnpackError(f"'{archive.name}' is damaged ({reason})") from None


def is_archive(path: Path) -> bool:
    """True for a zip and for a (compressed) tar, judged by content.

    Raises UnpackError for a tar whose first header is not safe to read.
    """
    return zipfile.is_zipfile(path) or _is_tar(path)


def _is_tar(path: Path) -> bool:
    try:
        stream, _ = open_tar(path)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError):
        return False
    stream.close()
    return True


def _write(opened, target: Path, limit: int, select, progress) -> int:
    """Write all members, links last. Returns the number of files."""
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
            left -= _copy(opened, member, place, left, limit)
            files += 1
        else:
            links.append(member)
    for member in links:
        left -= _materialise(member, target, left, opened.name, limit)
        files += 1
    return files


def _copy(opened, member: _Member, place: Path, left: int, limit: int) -> int:
    """Write one file; its size may lie, so what arrives is counted. Returns its bytes."""
    if member.size > left:
        raise _too_large(opened.name, member, limit)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(member) as source, open(place, "wb") as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > left:
                raise _too_large(opened.name, member, limit)
            file.write(block)
    if written != member.size:
        raise UnpackError(
            f"'{opened.name}' is damaged "
            f"('{member.name}' has {written:,} bytes instead of {member.size:,})"
        )
    return written


def _too_large(archive: str, member: _Member, limit: int) -> UnpackError:
    return UnpackError(
        f"'{archive}' unpacks to more than {limit:,} bytes ('{member.name}'): "
        "it is not what it should be"
    )


def _materialise(member: _Member, target: Path, left: int, archive: str, limit: int) -> int:
    """Write a link that stays inside as a copy of the file it leads to. Returns its bytes."""
    link = f"'{archive}' holds the link '{member.name}' -> '{member.target}'"
    base = PurePosixPath() if member.kind == "hardlink" else member.path.parent
    parts: list[str] = []
    for part in (*base.parts, *PurePosixPath(member.target.replace("\\", "/")).parts):
        if part == ".." and not parts:
            raise UnpackError(f"{link}, which leads out of it")
        if part == "..":
            parts.pop()
        elif part not in (".", ""):
            parts.append(part)
    source = target.joinpath(*parts)
    if not source.is_file():
        raise UnpackError(f"{link}, which leads to no file of it")
    if source.stat().st_size > left:
        raise _too_large(archive, member, limit)
    place = target.joinpath(*member.path.parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    return source.stat().st_size


def _checked(name: str, archive: str) -> PurePosixPath:
    """Return the member's path. Raises UnpackError unless it leads into the target folder."""
    plain = name.replace("\\", "/")
    path = PurePosixPath(plain)
    if plain.startswith("/") or DRIVE.match(plain):
        raise UnpackError(f"'{archive}' holds the absolute path '{name}'; it is not unpacked")
    if ".." in path.parts or "\0" in name:
        raise UnpackError(
            f"'{archive}' holds the path '{name}', which leads out of it; it is not unpacked"
        )
    return path


def _checked_link(name: str, target: str, archive: str) -> None:
    """Raise UnpackError for a link without a target or to an absolute path."""
    plain = target.replace("\\", "/")
    if not plain or plain.startswith("/") or DRIVE.match(plain):
        raise UnpackError(
            f"'{archive}' holds the link '{name}' -> '{target}', which leads out of it"
        )


def _not_a_file(name: str, archive: str) -> UnpackError:
    return UnpackError(
        f"'{archive}' holds '{name}', which is a device or a pipe; it is not unpacked"
    )


class _Zip:
    """The members of a zip."""

    def __init__(self, path: Path):
        self.name, self.stream = path.name, Bounded(open(path, "rb"), path)
        try:
            with self.stream.at_most(DIRECTORY_BYTES, "a list of members"):
                self.file = zipfile.ZipFile(self.stream)
        except BaseException:
            self.stream.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.stream.close()

    def members(self) -> Iterator[_Member]:
        for entry in self.file.infolist():
            name, kind, target = entry.filename, "folder" if entry.is_dir() else "file", ""
            type_bits = stat.S_IFMT(entry.external_attr >> 16)
            if type_bits == stat.S_IFLNK:
                kind = "symlink"
            elif type_bits not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(name, self.name)
            if entry.flag_bits & 1:
                raise UnpackError(f"'{self.name}' holds '{name}', which is encrypted")
            if entry.compress_type not in ZIP_METHODS:
                raise UnpackError(
                    f"'{self.name}' holds '{name}', compressed by method {entry.compress_type}; "
                    "only stored and deflated files are unpacked"
                )
            path = _checked(name, self.name)
            if kind == "symlink":
                with self.file.open(entry) as content:
                    target = content.read(LONGEST_LINK).decode("utf-8", "replace")
                _checked_link(name, target, self.name)
            yield _Member(name, path, entry.file_size, kind, target, entry)

    def open(self, member: _Member):
        return self.file.open(member.handle)


class _Tar:
    """The members of a tar, compressed or not."""

    def __init__(self, path: Path, target: Path):
        self.name, self.path, self.target = path.name, path, target
        self.stream = self.file = None
        self.rewind()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def rewind(self) -> None:
        if self.stream:
            self.stream.close()
        self.stream, self.file = open_tar(self.path)

    def members(self) -> Iterator[_Member]:
        """Read from the beginning at each call; a compressed archive is read as a stream."""
        self.rewind()
        while (entry := self.next_entry()) is not None:
            path, kind = _checked(entry.name, self.name), self._kind(entry)
            if kind in ("symlink", "hardlink"):
                _checked_link(entry.name, entry.linkname, self.name)
            if hasattr(tarfile, "data_filter"):  # the library's own rules, as a second pair of eyes
                try:
                    tarfile.data_filter(entry, str(self.target))
                except tarfile.FilterError as error:
                    raise UnpackError(f"'{self.name}' is not unpacked: {error}") from None
            size = entry.size if kind == "file" else 0
            yield _Member(entry.name, path, size, kind, entry.linkname, entry)
        if self.file.offset == 0:
            raise UnpackError(f"'{self.name}' is damaged (it holds nothing)")
        while self.stream.read(BLOCK):  # the checksum of the stream is at its end
            pass

    def next_entry(self) -> tarfile.TarInfo | None:
        with self.stream.at_most(HEADER_BYTES, "a header"):
            entry = self.file.next()
        self.file.members = []  # tarfile keeps every header otherwise
        kept = self.file.pax_headers.items()  # of global headers, for all members that follow
        if sum(len(key) + len(value) for key, value in kept) > HEADER_BYTES:
            raise too_long(self.name, "a header", HEADER_BYTES)
        if entry is not None and entry.size < 0:
            raise UnpackError(f"'{self.name}' is damaged ('{entry.name}' has a negative size)")
        return entry

    def _kind(self, entry: tarfile.TarInfo) -> str:
        if entry.isdir():
            return "folder"
        if entry.isfile():
            return "file"
        if entry.issym():
            return "symlink"
        if entry.islnk():
            return "hardlink"
        raise _not_a_file(entry.name, self.name)

    def open(self, member: _Member):
        return self.file.extractfile(member.handle)
