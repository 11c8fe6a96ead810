"""StreetHazards: rendered streets with things that do not belong there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ood.compat.dataset.img.masks import MaskedSet, chosen
from ood.data.registry.masks import HAZARD_CLASSES

SPLITS = {"test": "test", "train": "train", "validation": "val"}


class StreetHazards(MaskedSet):
    """StreetHazards, of the benchmark CAOS. Only the test images hold outliers.

    Masks (H, W) int64: -1 outlier, else the class. The value 0 of a mask file, which stands for no
    class, becomes -1 as well, as in pytorch-ood; `ood.data.load_masked` ignores such pixels.

    Args:
        root: data root.
        subset: "train", "test" or "validation".
        transform: function of (image, mask), gives both.
        download: fetch the set if it is missing.

    Attributes: classes: names of the 13 classes.

    Raises: DatasetError (a RuntimeError) if the set is missing or cannot be fetched; InputError
        (a ValueError) for an unknown subset.
    Source: Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML
        2022, arXiv 1911.11132.
    """

    classes: list[str] = list(HAZARD_CLASSES)
    subset_list = list(SPLITS)
    ignored = -1

    def __init__(
        self,
        root: str,
        subset: str,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        download: bool = False,
    ) -> None:
        self.transform = transform
        split = SPLITS[chosen(subset, SPLITS, "subset")]
        super().__init__("streethazards", split, root, download, transform)
