"""MVTec AD: objects and textures of industry, whole and with defects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ood.compat.dataset.img.masks import MaskedSet, chosen
from ood.data.registry.anomaly import MVTEC_CLASSES


class MVTechAD(MaskedSet):
    """MVTec AD; the name is pytorch-ood's. Masks (H, W) int64: 0 normal, -1 defect.

    An image without a defect has a mask of zeros. In pytorch-ood the defects are 1, because it
    negates bytes, and a mask of zeros is float and turned on its side (W, H).

    Args:
        root: data root.
        split: "train" (normal images only) or "test".
        subset: one of the 15 objects; None: all of them.
        transform: function of the image.
        target_transform: function of the mask.
        download: fetch the set if it is missing.

    Raises: DatasetError (a RuntimeError) if the set is missing or cannot be fetched; InputError
        (a ValueError) for an unknown split or subset.
    Source: Bergmann et al., "The MVTec anomaly detection dataset", IJCV 2021.
    """

    splits = ["train", "test"]
    subsets = list(MVTEC_CLASSES)

    def __init__(
        self,
        root: str,
        split: str,
        subset: str | None = None,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
    ) -> None:
        self.split, self.subset = chosen(split, self.splits, "split"), subset or None
        self.transform, self.target_transform = transform, target_transform
        name = f"mvtec:{chosen(subset, self.subsets, 'subset')}" if subset else "mvtec"
        super().__init__(name, split, root, download, None)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Give (image, mask) after the transforms."""
        image, mask = self.pair(index)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            mask = self.target_transform(mask)
        return image, mask
