"""A cache of arrays on disk, named by their content and guarded by a checksum.

    cache = Cache("./checkpoints/.outputs")
    cache.put(key, "features", features)             # written aside, renamed when complete
    if cache.sound(key, ["features"]):               # reads the file and compares its checksum
        features = cache.get(key, "features")        # memory-mapped

A part is the file `<folder>/<key>/<part>.npy`: a NumPy file, followed by the CRC-32 of everything
before. NumPy reads it as it is. A part without the right checksum (flipped bits, a truncated file,
a file that somebody else has written) is removed with one line in the log, and computed again.

A file is written under a name that begins with a dot, by a process that holds its lock. When the
process dies, the lock goes, and the next process removes the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # a system without such locks: nobody removes what killed runs leave
    fcntl = None

from ood import distributed
from ood.cli import RunError, log
from ood.config import InputError

MARK = b"crc-32 of the above: "
TRAILER = len(MARK) + 9  # eight hexadecimal digits and a line's end
BLOCK = 1 << 20  # bytes that are read at a time


class Cache:
    """A folder of arrays: `<folder>/<key>/<part>.npy`. The folder is made with the first array.

    Args:
        folder: where the arrays are.
        log: takes the line that says which damaged part is computed again.

    Raises: InputError if `folder` is no folder.
    """

    def __init__(self, folder: str | Path, log: Callable[[str], None] = log):
        self.folder, self.log = Path(folder), log
        self._verified: dict[Path, tuple] = {}  # the stamps of sound files
        self._swept = False
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise InputError(f"the cache folder '{folder}' cannot be made: '{path}' is a file")

    def parts(self, key: str) -> set[str]:
        """Return the names of the parts of an entry, sound or not."""
        return {p.stem for p in self._entry(key).glob("*.npy") if not p.name.startswith(".")}

    def sound(self, key: str, parts: Iterable[str]) -> set[str]:
        """Return those of `parts` that are there with the right checksum; remove the damaged ones.

        Reads every file once, and again only if it has changed. Under torchrun only one process may
        call it at a time (`distributed.from_first`).
        """
        if not self._swept:
            self._remove_left_over()
        return {part for part in parts if self._is_sound(self._file(key, part))}

    def get(self, key: str, part: str) -> Tensor:
        """Return an array, memory-mapped; ask `sound` before."""
        file = self._file(key, part)
        try:
            return torch.from_numpy(np.load(file, mmap_mode="c"))
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise RunError(f"the cache file '{file}' cannot be read: {error}") from error

    def put(self, key: str, part: str, values: Tensor) -> None:
        """Store an array that is complete in memory. Raises RunError if the disk is full."""
        rows = values.numpy()
        writer = self.writer(key, part, rows.shape, rows.dtype)
        try:
            writer.add(rows)
            writer.commit()
        finally:
            writer.close()

    def writer(self, key: str, part: str, shape: tuple[int, ...], dtype) -> Writer:
        """Return a `Writer` for the rows of an array: add rows, commit, close in any case."""
        return Writer(self._file(key, part), shape, dtype)

    def remove(self, key: str, part: str) -> None:
        """Remove a part, if it is there."""
        self._file(key, part).unlink(missing_ok=True)

    def _entry(self, key: str) -> Path:
        return self.folder / key

    def _file(self, key: str, part: str) -> Path:
        return self._entry(key) / f"{part}.npy"

    def _is_sound(self, file: Path) -> bool:
        try:
            status = file.stat()
        except FileNotFoundError:
            return False
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        if self._verified.get(file) != stamp:
            try:
                damage = damaged(file)
            except OSError as error:
                damage = str(error)
            if damage:
                self.log(f"cache: '{file}' is damaged ({damage}); it is computed again")
                file.unlink(missing_ok=True)
                return False
            self._verified[file] = stamp
        return True

    def _remove_left_over(self) -> None:
        """Remove, once per run, the files of processes that have died while they wrote them."""
        self._swept = True
        for file in self.folder.glob("*/.*.npy"):
            with contextlib.suppress(OSError), open(file, "rb") as handle:
                if _lock(handle) and _is_file(handle.fileno(), file):
                    file.unlink()


class Writer:
    """Write an array row by row into a locked file with another name, then give it its name.

    Args:
        file: the part; its folder is made.
        shape, dtype: of the whole array.

    Raises: RunError if the disk has no room for the whole array.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], dtype):
        self.file, self.shape, self.rows = file, shape, 0
        self.checksum = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.aside, self.handle = _locked_file(file)
        except OSError as error:
            raise RunError(f"cannot write the cache '{file.parent}': {error}") from error
        dtype = np.dtype(dtype)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        try:
            _reserve(self.handle.fileno(), size + TRAILER)
            header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(_Tee(self), header)
        except OSError as error:
            self.close()
            raise self._failed(error, size) from error

    def add(self, rows: np.ndarray) -> None:
        """Append rows (n, ...)."""
        try:
            self.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._failed(error, rows.nbytes) from error
        self.rows += len(rows)

    def write(self, block) -> None:
        self.checksum = zlib.crc32(block, self.checksum)
        self.handle.write(block)

    def commit(self) -> None:
        """Give the file its name. Raises RuntimeError unless it has all its rows."""
        if self.rows != self.shape[0]:
            raise RuntimeError(
                f"{self.rows} of {self.shape[0]} images came out of the pass ({self.file.stem})"
            )
        try:
            self.handle.write(MARK + b"%08x\n" % self.checksum)
            self.handle.truncate()
            self.handle.flush()
            os.replace(self.aside, self.file)
        except OSError as error:
            raise self._failed(error, 0) from error
        self.aside = None

    def close(self) -> None:
        """Close the file; it is removed unless it was committed."""
        if self.aside is not None:
            self.aside.unlink(missing_ok=True)
            self.aside = None
        with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffer
            self.handle.close()

    def _failed(self, error: OSError, size: int) -> RunError:
        folder = self.file.parent
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return RunError(f"cannot write the cache file '{self.file}': {error}")
        free = shutil.disk_usage(folder).free
        return RunError(
            f"the disk is full: the cache file '{self.file}' needs {size / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free; make room, give another -cache_dir, or -no_cache"
        )


class _Tee:
    """What NumPy's header writer needs of a file."""

    def __init__(self, writer: Writer):
        self.write = writer.write


def damaged(file: str | Path) -> str:
    """Return what is wrong with a part, or "" if its checksum is right.

    Streams through the file in blocks.
    """
    with open(file, "rb") as handle:
        left = os.fstat(handle.fileno()).st_size - TRAILER
        if left <= 0:
            return "too short" if left > -TRAILER else "empty"
        checksum = 0
        while left:
            block = handle.read(min(BLOCK, left))
            if not block:
                return "too short"
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        trailer = handle.read()
    if not trailer.startswith(MARK):
        return "it ends without a checksum"
    return "" if trailer == MARK + b"%08x\n" % checksum else "its checksum is wrong"


def content_key(*content: str) -> str:
    """Name a cache entry after everything that its values depend on: digests and texts.

    Raises: TypeError for anything but text. The printed form of an object may leave out what counts
        (a tensor's middle values), so the caller says how it is written: `repr(preprocess)`.
    """
    for text in content:
        if not isinstance(text, str):
            raise TypeError(f"a cache key is made of text; got {type(text).__name__} {text!r}")
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]


def cached(
    cache: Cache | None,
    parts: dict[str, tuple[str, ...]],
    compute: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the arrays of a pass that is not `extract`'s, from the cache or by `compute`.

        def _pass(self, images):
            content = (self.digest, images.digest, repr(self.preprocess), device.type)
            return cached(cache, {"leaveout-softmax": content}, lambda: self._forward(images))

    Args:
        cache: where the arrays are kept; None computes them every time.
        parts: for each array its name and everything that its values depend on, as for
            `content_key`. Begin the name with the method's. Arrays of one pass may depend on
            different things: then changing one setting leaves the others in the cache.
        compute: gives all arrays, {name: (N, ...) on the CPU}, with the rows of the whole set.
            It runs if the cache lacks one of them, or has one that is damaged.

    Returns:
        {name: array}, one for each of `parts`. With a cache they are memory-mapped.

    Under torchrun every process must call this. All of them run `compute`, which may share the
    images and gather the rows (ood.distributed); rank 0 writes.

    Raises:
        InputError: another process cannot see the cache's folder.
        RunError: the disk is full.
    """
    if cache is None:
        return compute()
    keys = {part: content_key(*content) for part, content in parts.items()}
    if not distributed.from_first(lambda: all(cache.sound(k, [p]) for p, k in keys.items())):
        made = compute()

        def put_all():
            for part, key in keys.items():
                cache.put(key, part, made[part])

        distributed.from_first(put_all)
    require_seen(cache, keys)
    return {part: cache.get(key, part) for part, key in keys.items()}


def require_seen(cache: Cache, keys: dict[str, str]) -> None:
    """Raise InputError if {part: key} that rank 0 has are not on this process's disk."""
    if not all(part in cache.parts(key) for part, key in keys.items()):
        raise InputError(
            f"process {distributed.rank()} does not see '{cache.folder}'; the cache must be on a "
            "disk that all machines share (-cache_dir), or -no_cache"
        )


def _locked_file(file: Path):
    """Make a new file beside `file` that this process holds the lock of: (path, open file)."""
    while True:
        aside = file.with_name(f".{file.stem}.{os.getpid()}-{secrets.token_hex(4)}.npy")
        handle = open(aside, "xb")
        _lock(handle)
        if _is_file(handle.fileno(), aside):  # else another process has just cleaned it up
            return aside, handle
        handle.close()


def _lock(handle) -> bool:
    """Lock an open file if nobody else has it locked; False also where the disk has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (OSError, AttributeError):
        return False


def _is_file(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _reserve(descriptor: int, size: int) -> None:
    """Reserve room on the disk, so that a full disk is known before the pass. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # this disk cannot reserve room: it will say later that it is full
