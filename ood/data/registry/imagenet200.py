"""ImageNet-200: 200 of ImageNet's classes, and OpenOOD's division of their validation images.

The 200 classes are those of ImageNet-R. `imagenet200.json` beside this file has a row for each: the
label in ImageNet-1K, then the numbers of the 50 validation images, 5 for validation and 45 for the
test, in the order of OpenOOD's lists.

Source: Zhang et al., "OpenOOD v1.5", DMLR 2024, arXiv 2306.09301; the lists are MIT-licensed.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from ood.data.registry.imagenet import imagenet_wnids

COLUMNS = {"val": slice(1, 6), "test": slice(6, 51)}
VALIDATION = "ILSVRC2012_val_{:08d}.JPEG"


def imagenet200_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes; a class's label is its place."""
    wnids = imagenet_wnids()
    return tuple(wnids[row[0]] for row in _table())


def imagenet800_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's other 800 classes."""
    known = set(imagenet200_wnids())
    return tuple(wnid for wnid in imagenet_wnids() if wnid not in known)


def imagenet200_files(split: str) -> list[tuple[str, int]]:
    """Return (file name, label) of the validation images of "val" (1,000) or "test" (9,000)."""
    return [
        (VALIDATION.format(number), label)
        for label, row in enumerate(_table())
        for number in row[COLUMNS[split]]
    ]


@functools.cache
def _table() -> list[list[int]]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
