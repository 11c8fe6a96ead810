"""MNIST with corrupted images.

Source: Mu and Gilmer, "MNIST-C: a robustness benchmark for computer vision", 2019, arXiv
1906.02337.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ood.compat.dataset.base import check_choice
from ood.compat.dataset.img.base import ImageDatasetBase
from ood.config import InputError
from ood.data.array_files import open_array, read_array
from ood.data.registry.shift import MNIST_CORRUPTIONS
from ood.data.request import Listed


class MNISTC(ImageDatasetBase):
    """MNIST under one corruption, or under all 16, one after the other.

    Images are 28x28, grey. Labels are the digits, as int.

    Args:
        subset: one of `subsets`, or "all".
        split: "train" (60,000 images a corruption), "test" (10,000), or "leftovers": the files
            leftovers_{images,labels}.npy of the archive of corruptions that the authors left out.

    Raises: ValueError for an unknown subset or split. DatasetError if the set is missing.
    """

    splits = ["train", "test", "leftovers"]
    subsets = list(MNIST_CORRUPTIONS)
    labelled = True

    def __init__(self, root, subset, split, transform=None, target_transform=None, download=False):
        check_choice("subset", subset, [*self.subsets, "all"])
        check_choice("split", split, self.splits)
        self.subset = subset
        if split == "leftovers":
            self.row = "mnistc_leftovers"
        else:
            self.row = "mnistc" if subset == "all" else f"mnistc:{subset}"
            self.split = split
        super().__init__(root, transform, target_transform, download)
        if split == "leftovers":
            self.found = self._leftovers(self.found.folder / self.found.paths[0])

    def _leftovers(self, folder: Path) -> Listed:
        subsets = self.subsets if self.subset == "all" else [self.subset]
        try:
            images = [read_array(folder / name / "leftovers_images.npy") for name in subsets]
            labels = [
                open_array(folder / name / "leftovers_labels.npy", ()).reshape(-1)
                for name in subsets
            ]
        except InputError as problem:
            raise self.error(str(problem)) from None
        return Listed(folder, images=np.concatenate(images), labels=np.concatenate(labels))
