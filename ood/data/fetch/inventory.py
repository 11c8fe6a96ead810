"""What is there of a set, without decoding anything: counts against the published ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ood.config import InputError
from ood.data.readers import listed
from ood.data.registry.entry import DatasetInfo
from ood.data.request import Listed, MissingData

MADE = (
    "mnist5k",
    "letters",
    "patches",
    "noise",
    "image_noise",
)  # readers of sets that need no files


def splits_of(row: DatasetInfo) -> list[str]:
    """The splits that differ: those with a published number; else every one that has files of its own."""
    if row.count:
        return [split for split in row.splits if split in row.count]
    return [
        split
        for number, split in enumerate(row.splits)
        if row.splits[split] not in list(row.splits.values())[:number] or split == "test"
    ][-2:]


def found(row: DatasetInfo, split: str, data_dir: Path) -> tuple[Listed | None, str | None]:
    """(what is there, what is wrong with it); (None, None) where nothing is."""
    try:
        return listed(row.name, split, data_dir), None
    except MissingData:
        return None, None
    except InputError as error:
        return None, str(error)


def state(
    row: DatasetInfo, data_dir: Path, splits: Iterable[str] | None = None
) -> tuple[bool | None, str]:
    """(True whole, False not whole, None not there; one line that says so)."""
    if row.reader in MADE:
        return True, f"made from {row.options['base']}" if "base" in row.options else "made here"
    if row.name == "openood_lists":
        lists = sum(1 for _ in (Path(data_dir) / row.folders[0]).glob("*/*.txt"))
        return (True, f"{lists} lists") if lists else (None, "not there")
    words, whole, there = [], True, False
    for split in splits or splits_of(row):
        listed, wrong = found(row, split, data_dir)
        wanted = row.count.get(split)
        there |= listed is not None or wrong is not None
        if wrong:
            words.append(f"{split}: {wrong}")
        elif listed is None:
            words.append(f"{split}: not there")
        else:
            words.append(
                f"{split}: {len(listed):,} images"
                if wanted in (None, len(listed))
                else f"{split}: {len(listed):,} of {wanted:,} images"
            )
        whole &= listed is not None and wanted in (None, len(listed))
    return (whole if there else None), ", ".join(words)
