"""The table of data sets: what each is, where its files lie, where it comes from.

The rows lie in one file per family beside this one.

To add a set: one `DatasetInfo` row there (and a reader only if none understands its layout).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ood.config import InputError, nearest
from ood.data.registry import (
    anomaly,
    classic,
    id,
    large,
    openmibood,
    openood,
    shift,
    sound,
    text,
)
from ood.data.registry.entry import Archive, DatasetInfo

__all__ = ["Archive", "DatasetInfo", "TABLE", "info", "is_folder_path", "names"]

# Own data in one file: an array, several arrays, a list or table of images, shards.
FILES = (".npy", ".npz", ".txt", ".csv", ".tsv", ".parquet", ".tar")
HUB = "hf:"  # sets of the Hugging Face hub
FAMILIES = (id, classic, large, openood, shift, anomaly, openmibood, sound, text)
TABLE = {row.name: row for family in FAMILIES for row in family.ROWS}


def names(role: str | None = None) -> list[str]:
    """List all registered names, or the names of one role ("id", "ood")."""
    return [name for name, row in TABLE.items() if role in (None, row.role)]


def info(name: str | DatasetInfo) -> DatasetInfo:
    """Find the row of a name or alias. A row of your own, which is in no table, is itself.

    Case matters only where two names differ by nothing else. 'cifar10c:fog:5' is one corruption at
    one severity. A folder of images gets a row of its own; what its files do not tell stays at the
    defaults.

    Raises: InputError, with the nearest name, for a name that is unknown or ambiguous.
    """
    if isinstance(name, DatasetInfo):
        return name
    if is_folder_path(name):
        return DatasetInfo(name, "id", "path")
    whole, _, part = name.partition(":")
    if part:
        return _part_of(info(whole), part)
    matches = _matches(name)
    if len(matches) == 1:
        return TABLE[matches.pop()]
    if matches:
        raise InputError(
            f"data set '{name}' is ambiguous: write one of {', '.join(sorted(matches))}"
        )
    raise InputError(
        f"unknown data set '{name}'{nearest(name, TABLE)}; known: {', '.join(TABLE)}, "
        "or the path of a folder of images, an .npy or .npz file, a .txt list or .csv table of "
        "images, .tar shards, or hf:NAME"
    )


def is_folder_path(name: str) -> bool:
    """Say whether `name` means a path rather than a registered set.

    Paths are './photos', '/data/photos', 'photos/', 'images.npy', 'list.txt', 'table.csv',
    'train-{0000..0009}.tar', 'hf:uoft-cs/cifar10', and the name of a folder that exists and is no
    registered set.
    """
    return (
        name.lower().endswith(FILES)
        or name.startswith(HUB)
        or "/" in name
        or "\\" in name
        or name in (".", "..")
        or name.startswith("~")
        or name != ""
        and ":" not in name
        and not _matches(name)
        and _is_folder(name)
    )


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # longer than a file name can be
        return False


def _part_of(row: DatasetInfo, part: str) -> DatasetInfo:
    """Make the row of 'fog' or 'fog:5' of a set that has parts."""
    parts, severities = row.options.get("parts"), row.options.get("severities", 0)
    if not parts:
        raise InputError(f"data set '{row.name}' has no parts; write it without ':{part}'")
    kind, _, severity = part.partition(":")
    if kind not in parts:
        raise InputError(
            f"data set '{row.name}' has no part '{kind}'{nearest(kind, parts)}; "
            f"it has: {', '.join(parts)}"
        )
    if severity and severity not in map(str, range(1, severities + 1)):
        known = f"the severities 1 to {severities}, not '{severity}'"
        none = f"no severities ('{severity}')"
        raise InputError(f"'{row.name}:{kind}' has {known if severities else none}")
    share = len(parts) * (severities if severity else 1)
    return replace(
        row,
        name=f"{row.name}:{part}",
        count={split: count // share for split, count in row.count.items()},
        options={**row.options, "part": kind, "severity": int(severity) if severity else None},
    )


def _matches(name: str) -> set[str]:
    if name in TABLE:
        return {name}
    return {
        row.name
        for row in TABLE.values()
        for known in (row.name, *row.aliases)
        if known.lower() == name.lower()
    }
