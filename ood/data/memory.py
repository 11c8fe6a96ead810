"""What fits into memory: a check before the system would kill the process without a word."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ood.config import InputError

CGROUP_LIMITS = (  # of a container, versions 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@functools.cache
def limit() -> int:
    """Give the bytes of memory that this process may use: those of the machine or its container."""
    limits = [2**63]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            pass
    return min(size for size in limits if size > 0)


def check(needed: int, what: str, advice: str) -> None:
    """Raise InputError if `what` needs more bytes than there are.

    Args:
        needed: bytes that are needed at once.
        advice: what to ask for instead.
    """
    if needed > limit():
        raise InputError(
            f"{what} would need {_gigabytes(needed)} of memory, "
            f"but there are {_gigabytes(limit())}; {advice}"
        )


def _gigabytes(size: int) -> str:
    return f"{min(size, 10**20) / 1e9:,.1f} GB"  # a number of any length would not fit a float
