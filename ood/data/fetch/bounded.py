"""Streams over archives that give only so much of themselves, for tarfile and zipfile.

Both read what a header claims into memory, whatever it claims.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from contextlib import contextmanager
from pathlib import Path

BLOCK = 2**20
HEADER_BYTES = 2**20  # of one member of a tar: names, pax records, sparse maps; usually 512
DICTIONARY_BYTES = 2**28  # memory of an xz decoder; `xz -9` needs a quarter


class UnpackError(RuntimeError):
    """An archive is damaged or not safe."""


def too_long(archive: str, what: str, most: int) -> UnpackError:
    return UnpackError(f"'{archive}' has {what} of more than {most:,} bytes; it is not unpacked")


def open_tar(path: Path) -> tuple[Bounded, tarfile.TarFile]:
    """Open a tar for reading, whatever it is compressed with. Reads its first header."""
    file = open(path, "rb")
    try:
        stream = Bounded(file, path, _decompressed(file))
        with stream.at_most(HEADER_BYTES, "a header"):
            return stream, tarfile.TarFile(str(path), fileobj=stream)
    except BaseException:
        file.close()
        raise


def _decompressed(file):
    """Return a stream of what is in an open file, by its first bytes."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if start == b"\xfd7zXZ\0":
        return io.BufferedReader(_Unxz(file))
    return file


class Bounded:
    """A file for tarfile or zipfile. Inside `at_most`, they can read only so much of it.

    Args:
        content: what they read; default: the file itself.
    """

    def __init__(self, file, path: Path, content=None):
        self.file, self.content = file, content or file
        self.archive, self.length = path.name, path.stat().st_size
        self.left, self.most, self.what = None, 0, ""

    def __getattr__(self, name: str):
        return getattr(self.content, name)  # seek, tell, seekable

    @contextmanager
    def at_most(self, most: int, what: str):
        self.left, self.most, self.what = most, most, what
        try:
            yield
        finally:
            self.left = None

    def read(self, size: int = -1) -> bytes:
        if self.left is not None:
            if size < 0:  # to the end, which is known of a file that is not compressed
                rest = self.length - self.file.tell()
                size = rest if self.content is self.file else self.left + 1
            if size > self.left:
                raise too_long(self.archive, self.what, self.most)
            self.left -= size
        return self.content.read(size)

    def close(self) -> None:
        self.content.close()
        self.file.close()


class _Unxz(io.RawIOBase):
    """The content of an xz file, decoded with bounded memory. Goes forward only."""

    def __init__(self, file):
        self.file, self.at = file, 0
        self.decoder = self.new_decoder()

    def new_decoder(self):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DICTIONARY_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = b""
        while not data:
            if self.decoder.eof:
                rest = (self.decoder.unused_data or self.file.read(BLOCK)).lstrip(b"\0")
                if not rest:
                    return 0
                self.decoder = self.new_decoder()  # files may be joined
            else:
                rest = self.file.read(BLOCK) if self.decoder.needs_input else b""
                if not rest and self.decoder.needs_input:
                    raise EOFError("the compressed file ended before its end was marked")
            data = self.decoder.decompress(rest, max_length=len(buffer))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + (self.at if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < self.at:
            raise io.UnsupportedOperation("an xz file is read forward only")
        skipped = bytearray(min(BLOCK, target - self.at))
        while self.at < target and self.readinto(memoryview(skipped)[: target - self.at]):
            pass
        return self.at

    def tell(self) -> int:
        return self.at
