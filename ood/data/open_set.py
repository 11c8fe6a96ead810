"""Open-set class splits: which classes of a set are known, and which images serve for what.

Terms of Bendale and Boult:
- KKC, known known classes: ID.
- KUC, known unknown classes: outliers that one may train on.
- UUC, unknown unknown classes: outliers that are seen in validation or test only.

`dynamic` draws a split with a seed; for the same seed and NumPy it gives the split of pytorch-ood's
`DynamicOSS`. `SPLITS` holds the fixed splits of the literature, which benchmarks name as
`id_classes` and `classes` (configs/benchmarks/osr_cifar10_1.json).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ood.config import InputError, nearest
from ood.data.images import ImageSet

STAGES = ("train", "val", "test")
ROLES = ("kkc", "kuc", "uuc")

# Known classes per trial, as published with Vaze et al., ICLR 2022, arXiv 2110.06207
# (protocol of Neal et al., ECCV 2018).
# fmt: off
SPLITS = {
    "cifar10": (
        (0, 1, 2, 4, 5, 9),
        (0, 3, 5, 7, 8, 9),
        (0, 1, 5, 6, 7, 8),
        (3, 4, 5, 7, 8, 9),
        (0, 1, 2, 3, 7, 8),
    ),
    "tinyimagenet": (
        (
            108, 147, 17, 58, 193, 123, 72, 144, 75, 167, 134, 14, 81, 171, 44, 197, 152, 66, 1,
            133,
        ),
        (
            198, 161, 91, 59, 57, 134, 61, 184, 90, 35, 29, 23, 199, 38, 133, 19, 186, 18, 85, 67,
        ),
        (
            177, 0, 119, 26, 78, 80, 191, 46, 134, 92, 31, 152, 27, 60, 114, 50, 51, 133, 162, 93,
        ),
        (
            98, 36, 158, 177, 189, 157, 170, 191, 82, 196, 138, 166, 43, 13, 152, 11, 75, 174,
            193, 190,
        ),
        (
            95, 6, 145, 153, 0, 143, 31, 23, 189, 81, 20, 21, 89, 26, 36, 170, 102, 177, 108, 169,
        ),
    ),
}
# Unknown classes of CIFAR-100 for the four vehicle classes of CIFAR-10 (CIFAR+10, CIFAR+50), from
# the same source.
CIFAR_PLUS = {
    10: (49, 74, 0, 50, 2, 31, 43, 83, 92, 77),
    50: (
        9, 74, 0, 50, 2, 31, 43, 83, 92, 77, 1, 95, 32, 87, 5, 70, 73, 51, 16, 39, 52, 11, 19, 71,
        47, 38, 20, 94, 53, 82, 80, 68, 12, 37, 67, 86, 57, 97, 98, 15, 33, 24, 27, 79, 18, 35,
        61, 56, 84, 25,
    ),
}
# fmt: on


@dataclass(frozen=True)
class OpenSetSplit:
    """Classes of each role, and images of each stage and role.

    Attributes:
        kkc: known classes, in the order in which they become the labels 0, 1, 2, ...
        kuc, uuc_val, uuc_test: unknown classes.
        rows: `rows[stage][role]` are row numbers, ascending.
        seed: of the draw; None for a fixed split.
    """

    kkc: tuple[int, ...]
    kuc: tuple[int, ...]
    uuc_val: tuple[int, ...]
    uuc_test: tuple[int, ...]
    rows: dict[str, dict[str, np.ndarray]] = field(repr=False)
    seed: int | None = None

    @property
    def uuc(self) -> tuple[int, ...]:
        return self.uuc_val + self.uuc_test

    def openness(self) -> float:
        """Compute 1 - sqrt(2 K / (2 K + U)) for K known and U unknown classes of the test.

        Source: Scheirer et al., TPAMI 2013.
        """
        known, unknown = len(self.kkc), len(self.kuc) + len(self.uuc_test)
        return 1 - (2 * known / (2 * known + unknown)) ** 0.5

    def take(
        self, images: ImageSet, stage: str, *, known: bool = True, unknown: bool = True
    ) -> tuple[ImageSet | None, ImageSet | None]:
        """Take the images of a stage.

        Returns: (ID images with labels 0..K-1, outliers with the label -1); None for what was not
            asked for or is empty.
        Raises: InputError for an unknown stage.
        """
        if stage not in STAGES:
            raise InputError(
                f"unknown stage '{stage}'{nearest(stage, STAGES)}; "
                f"the stages are {', '.join(STAGES)}"
            )
        rows, inside, outliers = self.rows[stage], None, None
        if known and len(rows["kkc"]):
            inside = images.subset(rows["kkc"]).of_classes(self.kkc)
        others = np.sort(np.concatenate([rows["kuc"], rows["uuc"]]))
        if unknown and len(others):
            outliers = images.subset(others).as_outliers()
        return inside, outliers


def dynamic(
    labels: Iterable[int],
    *,
    train: float = 0.7,
    val: float = 0.2,
    test: float = 0.1,
    kuc: int = 0,
    uuc_val: int = 2,
    uuc_test: int = 2,
    seed: int = 0,
) -> OpenSetSplit:
    """Draw a random split.

    `kuc` + `uuc_val` + `uuc_test` classes are unknown, the rest is known. Images of known and known
    unknown classes are divided among the stages. An unknown unknown class goes to one stage as a
    whole.

    Args:
        labels: (N,) of all images.
        train, val, test: shares of the images of a class.
        kuc, uuc_val, uuc_test: numbers of classes.

    Raises: InputError for shares that do not add up to 1, and for too few classes.
    Source: `DynamicOSS` of pytorch-ood, whose order of draws this follows.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)
    if min(train, val, test) < 0 or abs(train + val + test - 1) > 1e-9:
        raise InputError(
            f"the shares train={train}, val={val}, test={test} "
            "must not be negative and must add up to 1"
        )
    if min(kuc, uuc_val, uuc_test) < 0 or kuc + uuc_val + uuc_test >= len(classes):
        raise InputError(
            f"kuc={kuc}, uuc_val={uuc_val}, uuc_test={uuc_test}: "
            f"at least one of the {len(classes)} classes must stay known"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(classes)
    outer, middle, inner = np.split(order, [kuc, kuc + uuc_val + uuc_test])
    rows = {stage: {role: [np.empty(0, dtype=np.int64)] for role in ROLES} for stage in STAGES}
    for role, chosen in (("kkc", inner), ("kuc", outer)):
        for label in chosen:
            own = generator.permutation(np.flatnonzero(labels == label))
            first, second = int(len(own) * train), int(len(own) * train) + int(len(own) * val)
            for stage, part in zip(STAGES, np.split(own, [first, second])):
                rows[stage][role].append(part)
    for stage, chosen in (("val", middle[:uuc_val]), ("test", middle[uuc_val:])):
        rows[stage]["uuc"] += [np.flatnonzero(labels == label) for label in chosen]
    numbers = {
        stage: {role: np.sort(np.concatenate(parts)) for role, parts in roles.items()}
        for stage, roles in rows.items()
    }
    drawn = (inner, outer, middle[:uuc_val], middle[uuc_val:])
    return OpenSetSplit(*map(_plain, drawn), numbers, seed)


def fixed(labels: Iterable[int], known: Iterable[int]) -> OpenSetSplit:
    """Split test labels by a fixed list of known classes, such as one of `SPLITS`.

    All images are in the stage 'test'.

    Raises: InputError for known classes that are named twice or that the set does not have.
    """
    labels, known = np.asarray(labels), tuple(int(label) for label in known)
    classes = set(np.unique(labels).tolist())
    if not known or len(set(known)) != len(known) or not set(known) <= classes:
        raise InputError(
            f"known classes {list(known)} must be different "
            f"and among the {len(classes)} classes of the set"
        )
    unknown = tuple(sorted(classes - set(known)))
    empty = {role: np.empty(0, dtype=np.int64) for role in ROLES}
    inside = np.isin(labels, known)
    stages = {stage: dict(empty) for stage in STAGES}
    stages["test"].update(kkc=np.flatnonzero(inside), uuc=np.flatnonzero(~inside))
    return OpenSetSplit(known, (), (), unknown, stages)


def _plain(classes: np.ndarray) -> tuple[int, ...]:
    return tuple(int(label) for label in classes)
