"""The lock of a run folder: only one training writes into it at a time.

The operating system holds the lock as long as the process lives. When a training is killed, its
lock is free at once, and a requeued job takes the run over. The file `.lock` says who holds it.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ood.config import InputError

try:
    import fcntl
except ImportError:  # no such locks on this system; the owner's process is looked up instead
    fcntl = None

NAME = ".lock"


@contextmanager
def locked(folder: str | Path):
    """Hold the lock of a run folder.

    Raises: InputError when another training holds it, or the folder cannot be written to.
    """
    path = Path(folder) / NAME
    try:
        file = _acquire(path)
    except OSError as error:
        raise InputError(f"cannot lock the run folder '{folder}': {error}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _acquire(path: Path) -> int:
    """Open and lock the file, write the owner into it, and return its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _claim(file, path)
            # The owner before may have removed the file between our two steps.
            if _same(file, path):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_owner()).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _claim(file: int, path: Path) -> None:
    """Lock the open file. Raises InputError when another training holds the lock."""
    owner = _read(file)
    try:
        if fcntl is None:
            raise OSError("no locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        taken = True
    except OSError:  # a file system without locks
        taken = bool(owner) and _alive(owner)
    if taken:
        who = "another process"
        if owner:
            who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
        raise InputError(
            f"the run in '{path.parent}' is being trained by {who}; wait until it ends or stop it, "
            f"or give another -out_dir (if that process is gone, delete '{path}')"
        )


def _owner() -> dict:
    since = datetime.now().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _alive(owner: dict) -> bool:
    """Whether the owner may still be there: on another host nobody can know."""
    if owner.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(owner["pid"]), 0)
    except (KeyError, ValueError, TypeError, ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        return True
    return True


def _read(file: int) -> dict:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
