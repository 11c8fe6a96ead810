"""Files written whole or not at all, values as JSON, names as file names, tables as Markdown."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from ood.cli import RunError


def file_stem(name: str) -> str:
    """Make a name (of a data set, a detector, a folder) fit to be part of a file name."""
    allowed = "".join(c if c.isalnum() or c in "-_.=," else "_" for c in name)
    return allowed.strip("._") or "unnamed"


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all. Raises RunError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path, *, new: bool = False):
    """Give a temporary path that takes the place of `path` when the block ends well.

    It lies in the same folder (made if needed) and has a name of its own, so that two processes
    never write into one file. The content reaches the disk before the name does.

    Args: new: there must be no `path` yet, not even one that another process just made.
    Raises:
        RunError: the disk refuses. What was there before is untouched.
        FileExistsError: with `new`, there is a `path` already.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        _name_new(temporary, path) if new else os.replace(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error}; what was there before is untouched"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _name_new(temporary: Path, path: Path) -> None:
    """Give a file its name unless the name is taken. Raises FileExistsError when it is."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(f"'{path}' is there already") from None
        os.replace(temporary, path)


def remove_left_over(path: Path) -> None:
    """Remove the temporary files that a process left when it was killed while it wrote `path`."""
    name = glob.escape(f".{path.name}.")
    for left in (*path.parent.glob(f"{name}*.tmp"), *path.parent.glob(f"{name}tmp")):
        left.unlink(missing_ok=True)


def plain(value):
    """Return a value as JSON can hold it.

    Dataclasses and dicts become objects; sequences, sets and arrays become lists; nan and inf
    become null; anything else that JSON does not know becomes text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def markdown_table(head: list[str], body: list[list[str]], align: bool = True) -> str:
    """Write a Markdown table, without a newline at its end.

    Args:
        head: the titles of the columns.
        body: the cells, one list per line.
        align: put the first column to the left and the others, which hold numbers, to the right.
    """
    titles, *lines = (f"| {' | '.join(map(_cell, line))} |" for line in (head, *body))
    rule = "| :-- |" + " --: |" * (len(head) - 1) if align else "|---" * len(head) + "|"
    return "\n".join([titles, rule, *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
