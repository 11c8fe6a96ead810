"""Count what is on disk of a data set, and compare with the published count. Decodes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ood.config import InputError
from ood.data.readers import listed
from ood.data.registry.entry import DatasetInfo
from ood.data.request import DamagedData, Listed, MissingData

MADE = ("mnist5k", "letters", "patches", "noise", "image_noise")  # readers that need no files


def splits_of(row: DatasetInfo) -> list[str]:
    """Name the splits of a set that are worth checking.

    These are the splits with a published count. Where no count is published, they are the last
    two of the splits that have files of their own ("test" always counts as one of these).
    """
    if row.count:
        return [split for split in row.splits if split in row.count]
    folders = list(row.splits.values())
    own_files = [
        split
        for number, split in enumerate(row.splits)
        if row.splits[split] not in folders[:number] or split == "test"
    ]
    return own_files[-2:]


def found(row: DatasetInfo, split: str, data_dir: Path) -> tuple[Listed | None, str | None]:
    """List one split: (listing, None), (None, what is wrong with it) or (None, None) if absent."""
    try:
        return listed(row, split, data_dir), None
    except MissingData:
        return None, None
    except DamagedData as error:
        return None, error.what
    except InputError as error:
        return None, str(error)


def state(
    row: DatasetInfo, data_dir: Path, splits: Iterable[str] | None = None
) -> tuple[bool | None, str]:
    """Say whether a set is whole.

    Args:
        splits: the splits to look at; default: those of `splits_of`.

    Returns:
        (True if whole, False if something of it is missing or wrong, None if it is not there at
        all; a line that says so, split by split).
    """
    if row.reader in MADE:
        return True, f"made from {row.options['base']}" if "base" in row.options else "made here"
    if row.name == "openood_lists":
        lists = sum(1 for _ in (Path(data_dir) / row.folders[0]).glob("*/*.txt"))
        return (True, f"{lists} lists") if lists else (None, "not there")
    words, whole, there = [], True, False
    for split in splits or splits_of(row):
        listing, wrong = found(row, split, data_dir)
        published = row.count.get(split)
        complete = listing is not None and published in (None, len(listing))
        if wrong:
            words.append(f"{split}: {wrong}")
        elif listing is None:
            words.append(f"{split}: not there")
        elif complete:
            words.append(f"{split}: {len(listing):,} {row.unit}")
        else:
            words.append(f"{split}: {len(listing):,} of {published:,} {row.unit}")
        whole &= complete
        there |= listing is not None or wrong is not None
    return (whole if there else None), ", ".join(words)
