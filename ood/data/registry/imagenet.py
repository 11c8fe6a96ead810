"""Facts about ImageNet and OpenImage-O that no row can hold: lists of names, in JSON files."""

from __future__ import annotations

import functools
import json
from pathlib import Path

OPENIMAGE_O = ("test", "val")  # OpenOOD's splits of it


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes; a class's label is its place."""
    return tuple(_content("imagenet_wnids.json").split())


def openimage_o_files(split: str) -> list[str]:
    """Return the file names of OpenImage-O's "test" or "val" split, in the order of OpenOOD's list.

    The file beside this holds {split: names without .jpg, separated by spaces}.
    """
    return [f"{name}.jpg" for name in _content("openimage_o.json")[split].split()]


def _content(file: str):
    return json.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))
