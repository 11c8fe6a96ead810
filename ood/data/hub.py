"""Sets of the Hugging Face hub, and of folders in its layout: hf:NAME, read by `datasets`.

    hf:uoft-cs/cifar10
    hf:uoft-cs/cifar100?label=fine_label
    hf:NAME?config=CONFIG&image=COLUMN&label=COLUMN

The library `datasets` is optional: pip install datasets. It fetches a set only if a download was
asked for; else what lies in its cache is used. No code that comes with a set is run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

import numpy as np

from ood.config import InputError, nearest
from ood.data.encoded import Encoded, from_encoded, named_classes
from ood.data.folders import SPLITS
from ood.data.images import ImageSet
from ood.data.request import Listed, Request

PREFIX = "hf:"
OPTIONS = ("config", "image", "label")


@dataclass
class HubImages(Encoded):
    """Images in a column of a `datasets.Dataset`, memory-mapped by it.

    Attributes:
        table: the data set; its column is not decoded.
        column: the name of the column.
    """

    table: object = None
    column: str = "image"

    def read(self, row):
        held = self.table[int(row)][self.column]
        if held["bytes"] is not None:
            return held["bytes"]
        with open(held["path"], "rb") as file:
            return file.read()


def read_hub(request: Request, name: str) -> ImageSet | Listed:
    """Read a split of a set of the hub.

    Raises: InputError where `datasets` is not installed, or where the set has no such split,
        column of images or column of labels.
    """
    datasets = _library(name)
    path, options = _spelled(name)
    table, split = _table(datasets, path, options, request)
    images = _column(table, datasets.Image, options.get("image"), name, "images")
    kind = datasets.ClassLabel
    labels = None
    if "label" in options or any(isinstance(f, kind) for f in table.features.values()):
        labels = _column(table, kind, options.get("label"), name, "labels")
    table = table.cast_column(images, datasets.Image(decode=False))
    numbers, classes = _labels(table, labels, name)
    encoded = HubImages(
        name=path.rstrip("/").rpartition("/")[2],
        source=f"{name} {split} {table._fingerprint}",
        titles=_Titles(name, len(table)),
        labels=numbers,
        class_names=classes,
        table=table.select_columns([images]),
        column=images,
    )
    upright = replace(request, recipe=replace(request.recipe, upright=True))
    return from_encoded(upright, encoded, split)


def _library(name: str):
    """The library `datasets`; the folder of that name beside the scripts is none."""
    try:
        import datasets
    except ImportError:
        datasets = None
    if not hasattr(datasets, "load_dataset"):
        raise InputError(f"'{name}' needs the library datasets: pip install datasets")
    return datasets


class _Titles:
    """What messages call each image; a list of a million texts is not needed."""

    def __init__(self, name: str, length: int):
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(self.length))]
        return f"{self.name}[{row}]"


def _spelled(name: str) -> tuple[str, dict]:
    """Split 'hf:NAME?key=value' into the name and its options."""
    path, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in OPTIONS:
            raise InputError(
                f"'{name}' has the option '{key}'{nearest(key, OPTIONS)}; "
                f"known: {', '.join(OPTIONS)}"
            )
    if not path:
        raise InputError(f"'{name}' names no set; write for example hf:uoft-cs/cifar10")
    return path, options


def _table(datasets, path: str, options: dict, request: Request):
    """The split that is asked for, as (datasets.Dataset, its name)."""
    limits = datasets.DownloadConfig(local_files_only=not request.download)
    reasons = []
    for split in SPLITS.get(request.split, (request.split,)):
        try:
            found = datasets.load_dataset(
                path, options.get("config"), split=split, download_config=limits
            )
            return found, request.split
        except Exception as error:  # its kinds differ between versions
            reasons.append((str(error).splitlines() or [type(error).__name__])[0])
    hint = "" if request.download else "; add -download to fetch it"
    raise InputError(f"cannot read '{PREFIX}{path}' ({request.split}): {reasons[0]}{hint}")


def _column(table, kind, wanted: str | None, name: str, what: str) -> str:
    """The column of a kind: the one that was named, or the first."""
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if wanted is None and found:
        return found[0]
    if wanted in table.features and (wanted in found or what == "labels"):
        return wanted
    held = ", ".join(f"{column} ({type(f).__name__})" for column, f in table.features.items())
    asked = f"'{wanted}'" if wanted else "one"
    raise InputError(f"'{name}' has no column of {what} ({asked} was asked for); it has: {held}")


def _labels(table, column: str | None, name: str) -> tuple[np.ndarray | None, tuple | None]:
    if column is None:
        return None, None
    values, feature = table[column][:], table.features[column]
    if not hasattr(feature, "names"):
        return named_classes(values, f"'{name}'")
    numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if (numbers < 0).all():  # hidden labels of a test split
        return None, None
    return numbers, tuple(feature.names)
