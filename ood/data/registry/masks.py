"""Which registered sets have masks, how a mask lies beside its image, and what its values mean.

A row here names rows of the table: those say where the files are and how to fetch them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ood.config import InputError, nearest
from ood.data.registry.anomaly import MVTEC_CLASSES

HAZARD_CLASSES = (
    "unlabeled",
    "building",
    "fence",
    "other",
    "pedestrian",
    "pole",
    "road line",
    "road",
    "sidewalk",
    "vegetation",
    "car",
    "wall",
    "traffic sign",
)


@dataclass(frozen=True)
class MaskedInfo:
    """A set of images with one mask each.

    Attributes:
        splits: for each split, the name and the split of the row with its files.
        layout: key of `mask_layouts.LAYOUTS`.
        meaning: key of `masked.MEANINGS`.
        count: published number of images with a public mask.
        class_names: classes of the pixels that are ID; None where the masks do not tell them apart.
        parts: names that may follow a colon ("mvtec:bottle").
    """

    name: str
    splits: dict[str, tuple[str, str]]
    layout: str
    meaning: str
    count: dict[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    parts: tuple[str, ...] = ()


def _test(name: str, row: str, layout: str, meaning: str, count: int | None = None) -> MaskedInfo:
    return MaskedInfo(
        name, {"test": (row, "test")}, layout, meaning, {"test": count} if count else {}
    )


ROWS = (
    _test("fishyscapes", "fishyscapes", "fishyscapes", "void"),
    _test("fishyscapes_v2", "fishyscapes_v2", "fishyscapes", "void"),
    _test("fishyscapes_v1", "fishyscapes_v1", "fishyscapes", "void"),
    _test("lostandfound", "fishyscapes_lostandfound", "lostandfound", "one"),
    MaskedInfo(
        "streethazards",
        {
            "train": ("streethazards_normal", "train"),
            "val": ("streethazards_normal", "test"),
            "test": ("streethazards", "test"),
        },
        "annotations",
        "streethazards",
        {"train": 5125, "val": 1031, "test": 1500},
        HAZARD_CLASSES,
    ),
    _test("roadanomaly", "roadanomaly", "roadanomaly", "nonzero", 60),
    _test("roadanomaly21", "roadanomaly21", "smiyc", "nonzero_void", 10),
    _test("roadobstacle21", "roadobstacle21", "smiyc", "nonzero_void", 30),
    MaskedInfo(
        "mvtec",
        {"train": ("mvtec", "train"), "test": ("mvtec", "test")},
        "mvtec",
        "nonzero",
        {"train": 3629, "test": 1725},
        parts=MVTEC_CLASSES,
    ),
)
TABLE = {row.name: row for row in ROWS}


def masked_info(name: str) -> tuple[MaskedInfo, str | None]:
    """Find the row of a name, and the part that follows its colon.

    Raises: InputError, with the nearest name, for what is not known.
    """
    whole, _, part = name.partition(":")
    if whole not in TABLE:
        raise InputError(
            f"no set '{whole}' with masks{nearest(whole, TABLE)}; known: {', '.join(TABLE)}"
        )
    row = TABLE[whole]
    if part and part not in row.parts:
        has = f"its parts: {', '.join(row.parts)}" if row.parts else "it has no parts"
        raise InputError(f"'{whole}' has no part '{part}'{nearest(part, row.parts)}; {has}")
    return row, part or None
