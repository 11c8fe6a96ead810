"""Your own images in a table: .csv, .tsv or .parquet with columns of paths and classes.

    path,label,split
    cats/1.jpg,cat,train
    dogs/7.jpg,dog,test

Paths are relative to the table's folder or to the data root. Classes are whole numbers or names. A
column `split` says which images are for training and which for testing; without it, all are for
both. Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ood.config import InputError, nearest
from ood.data.encoded import named_classes
from ood.data.folders import SPLITS, Listing
from ood.data.images import ImageSet
from ood.data.request import Listed, Request, from_files

SUFFIXES = (".csv", ".tsv", ".parquet")
PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath")
LABELS = ("label", "class", "target", "category", "class_name")


def read_table(request: Request, file: Path) -> ImageSet | Listed:
    """Read the images that a table lists.

    Raises: InputError for a table without a column of paths, rows that lead out of its folder, or
        labels that are partly missing.
    """
    if not file.is_file():
        raise InputError(
            f"no file '{file}'; a table of images has a column of paths ({', '.join(PATHS[:3])}) "
            f"and may have one of classes ({', '.join(LABELS[:3])}) and one called split"
        )
    columns = _columns(file)
    names = {name.strip().lower(): name for name in columns}
    paths = columns[_column(names, PATHS, file)]
    label = next((names[name] for name in LABELS if name in names), None)
    labels = [""] * len(paths) if label is None else columns[label]
    # before the split: training and test images share their numbering
    numbers, classes = named_classes(labels, f"'{file}'")
    rows, split = _rows(columns.get(names.get("split")), request.split, len(paths), file)
    paths = [_checked(paths[row], file, row) for row in rows]
    if not paths:
        raise InputError(f"'{file}' lists no images for '{request.split}'")
    root = next((r for r in (file.parent, request.data_dir) if (r / paths[0]).is_file()), None)
    if root is None:
        raise InputError(
            f"'{file}' names '{paths[0]}', which is neither in '{file.parent}' nor in "
            f"'{request.data_dir}'"
        )
    listing = Listing(
        root,
        paths,
        None if numbers is None else numbers[rows].tolist(),
        classes,
        final=numbers is not None,
    )
    row = replace(request.row, name=file.stem, role="id")
    return from_files(listing, replace(request, row=row, lists=(str(file.resolve()),)), split)


def _columns(file: Path) -> dict[str, Sequence]:
    """Read a table as {column: values}."""
    if file.suffix.lower() == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise InputError(f"'{file}' needs pyarrow: pip install pyarrow") from None
        try:
            return parquet.read_table(file).to_pydict()
        except Exception as error:  # pyarrow raises many kinds on damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"cannot read the table '{file}' ({reason})") from None
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        with open(file, newline="", encoding="utf-8-sig") as content:
            header, *lines = list(csv.reader(content, delimiter=delimiter)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table '{file}' ({error})") from None
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise InputError(
                f"'{file}', row {number}: {len(line)} values for {len(header)} columns"
            )
    return {name: [line[place] for line in lines] for place, name in enumerate(header)}


def _column(names: dict[str, str], wanted: tuple[str, ...], file: Path) -> str:
    found = next((names[name] for name in wanted if name in names), None)
    if found is None:
        raise InputError(
            f"'{file}' has the columns {', '.join(names) or 'none'}; one of them must be called "
            f"{', '.join(wanted)}"
        )
    return found


def _rows(splits: Sequence | None, wanted: str, count: int, file: Path) -> tuple[list[int], str]:
    """The rows of the split that is asked for, and its name; 'all' without such a column."""
    if splits is None:
        return list(range(count)), "all"
    words = [str(word).strip().lower() for word in splits]
    names = SPLITS.get(wanted, (wanted,))
    for name in names:
        rows = [row for row, word in enumerate(words) if word == name]
        if rows:
            return rows, wanted
    known = sorted(set(words))
    raise InputError(
        f"'{file}' has no images for '{wanted}'{nearest(wanted, known)}; its column split holds: "
        f"{', '.join(known[:8])}"
    )


def _checked(path: str, file: Path, row: int) -> str:
    """The path, which must stay below the folder of the table (absolute ones are kept)."""
    name = str(path).strip()
    if not name or ".." in name.replace("\\", "/").split("/"):
        raise InputError(
            f"'{file}', row {row + 2}: the path '{name}' does not stay below its folder"
        )
    return name
