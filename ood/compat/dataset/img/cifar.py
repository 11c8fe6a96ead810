"""CIFAR-10 and CIFAR-100 with corrupted images.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019, arXiv 1903.12261.
"""

from __future__ import annotations

from ood.compat.dataset.base import check_choice
from ood.compat.dataset.img.base import ImageDatasetBase
from ood.data.registry.shift import CORRUPTIONS


class CIFAR10C(ImageDatasetBase):
    """CIFAR-10's test set under one corruption, or under all 19, one after the other.

    A corruption has 5 x 10,000 images of 32x32, by severity. Labels are the classes 0 to 9, as int
    (uint8 in pytorch-ood).

    Args:
        subset: one of `subsets`, or "all".

    Raises: ValueError for an unknown subset. DatasetError if the set is missing.
    """

    subsets = list(CORRUPTIONS)
    row, labelled = "cifar10c", True

    def __init__(self, root, subset, transform=None, target_transform=None, download=False):
        check_choice("subset", subset, [*self.subsets, "all"])
        self.subset = subset
        if subset != "all":
            self.row = f"{self.row}:{subset}"
        super().__init__(root, transform, target_transform, download)


class CIFAR100C(CIFAR10C):
    """The same for CIFAR-100: labels are the classes 0 to 99."""

    row = "cifar100c"
