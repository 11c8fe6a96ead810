"""Arrays that are computed once and memory-mapped from then on, in `<data root>/.decoded`.

A file appears under its name only when it is complete: an interrupted or failed run leaves nothing
that could be taken for whole. A checksum stands behind the array in each file. It is verified
whenever the file is opened, so that a disk's fault cannot become wrong pixels: a file that does not
agree with its checksum is computed again. The check reads the file once, in blocks and threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ood.cli import log
from ood.data import memory

try:
    import fcntl
except ImportError:  # no file locks on this system
    fcntl = None

CACHE = ".decoded"
MARK = b"ood-crc1"  # the kind of checksum, before the checksum itself
SEAL_BYTES = len(MARK) + 16
BLOCK = 2**23  # bytes that one thread checks at a time
THREADS = min(8, os.cpu_count() or 1)
STALE = 24 * 3600  # seconds after which an unfinished file goes, where the system has no locks


def kept_array(
    data_dir: Path, slot: str, digest: str, plan: Callable[[], tuple[tuple[int, ...], Callable]]
) -> np.ndarray:
    """Open the read-only uint8 memory map for `digest`; compute it if it is not there or damaged.

    Args:
        data_dir: the data root. The array lies in its `.decoded`, or in a private temporary folder
            if that cannot be written.
        slot: what the array is for (folder, split, recipe). A new array of a slot replaces the old
            one, whose files have changed.
        plan: called only when the array has to be computed. It gives the shape, and a function that
            fills an empty array of that shape.
    """
    slot_digest = hashlib.blake2b(slot.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    name = f"{slot_digest}-{digest}.npy"
    places = [data_dir / CACHE] if data_dir.is_dir() else []
    places.append(_private_temp())
    for place in places:
        _remove_abandoned(place)
        array = _opened(place / name)
        if array is not None:
            return array
    shape, fill = plan()
    for place in places:
        array = _written(place, name, shape, fill)
        if array is not None:
            _remove_old(place, name)
            return array
    # No disk to write to: keep it in memory.
    memory.check(
        math.prod(shape),
        f"no disk has room for {shape[0]:,} decoded images {tuple(shape[1:])}, and memory",
        f"make room in '{places[0]}', or ask for a smaller size",
    )
    array = np.empty(shape, dtype=np.uint8)
    fill(array)
    return array


def _opened(path: Path) -> np.ndarray | None:
    """Map a file whose checksum agrees; None for a file that is missing or damaged."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        end = array.offset + array.nbytes
        size = os.stat(path).st_size
        if size == end:
            fault = "has no checksum"
        elif array.dtype != np.uint8 or size != end + SEAL_BYTES:
            fault = "is not whole"
        elif _seal(path, end) != _stored_seal(path, end):
            fault = "does not agree with its checksum"
        else:
            return array
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises many kinds on damaged files
        fault = f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})"
    log(f"'{path}' {fault}: its images are decoded again")
    return None


def _written(
    place: Path, name: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]
) -> np.ndarray | None:
    """Compute an array in a file; None where no file can be made."""
    file = _reserve(place, shape)
    if file is None:
        return None
    temporary = Path(file.name)
    try:
        array = np.lib.format.open_memmap(temporary, mode="r+")
        fill(array)
        array.flush()
        end = array.offset + array.nbytes
        with contextlib.suppress(
            OSError
        ):  # a full disk; the array serves this process all the same
            file.seek(end)
            file.write(_seal(temporary, end))
            file.flush()
            os.replace(temporary, place / name)
            return np.lib.format.open_memmap(place / name, mode="r")
    finally:
        temporary.unlink(missing_ok=True)
        file.close()  # and its lock is gone
    array.flags.writeable = False  # the map stays open without its file
    return array


def _reserve(place: Path, shape: tuple[int, ...]) -> BinaryIO | None:
    """Make an unfinished file with its space allocated, open and locked; None if not possible.

    Writing a memory map on a full disk would kill the process. The lock says that the file has an
    owner; it ends with the process, however that ends.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
    temporary = place / f".{os.getpid()}-{threading.get_ident()}-{time.time_ns()}.tmp"
    file = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = open(temporary, "x+b")
        with contextlib.suppress(BlockingIOError):  # another process takes it for abandoned
            _lock(file)
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + math.prod(header["shape"]) + SEAL_BYTES
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        if temporary.exists():  # else it was removed before it was locked
            return file
    except OSError:  # read-only, full, or no folder at all
        with contextlib.suppress(OSError):
            temporary.unlink()
    if file is not None:
        file.close()
    return None


def _seal(path: Path, size: int) -> bytes:
    """Compute the checksum of the first `size` bytes of a file.

    It is a digest of the CRC-32 of every block.
    """

    def block(start: int) -> int:
        with open(path, "rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(min(BLOCK, size - start)))

    starts = range(0, size, BLOCK)
    if len(starts) == 1:
        sums = [block(0)]
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            sums = list(pool.map(block, starts))
    return MARK + hashlib.blake2b(repr((size, sums)).encode(), digest_size=16).digest()


def _stored_seal(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(size)
        return file.read()


def _remove_old(place: Path, name: str) -> None:
    """Remove arrays of the same slot."""
    for path in place.glob(f"{name.partition('-')[0]}-*.npy"):
        if path.name != name:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_abandoned(place: Path) -> None:
    """Remove unfinished files of processes that are gone: nobody holds their locks."""
    for path in place.glob("*.tmp"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if _lock(file, old=time.time() - path.stat().st_mtime > STALE):
                path.unlink(missing_ok=True)


def _lock(file: BinaryIO, old: bool = False) -> bool:
    """Lock an open file, without waiting.

    Returns: whether it is ours; `old` where the system, or the disk, has no locks.
    Raises: BlockingIOError if another process holds it.
    """
    if fcntl is None:
        return old
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return old
    return True


def _private_temp() -> Path:
    """Find a folder under the system's temporary one that belongs to this user alone."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    place = Path(tempfile.gettempdir()) / f"ood-decoded-{user}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
        if stat.S_ISDIR(status.st_mode) and (user == "user" or status.st_uid == user):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="ood-decoded-"))
