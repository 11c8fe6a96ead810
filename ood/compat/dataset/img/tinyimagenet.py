"""Tiny ImageNet: 200 classes, 64x64 pixels (Stanford's course CS231n)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ood.compat.dataset.base import DatasetError, RegistrySet, check_choice
from ood.config import InputError
from ood.data.folders import list_images
from ood.data.request import Listed


class TinyImageNet(RegistrySet):
    """100,000 images for training, 10,000 for validation, 10,000 for test without labels.

    Labels are the places of the class folders in string order, 0 to 199; -1 for the test images.
    Validation images come in the order of val_annotations.txt, wherever they lie: in val/images, or
    in val/<wnid>, where our download sorts them.

    Args:
        subset: "train", "val" or "test".

    Raises: ValueError for another subset. DatasetError if the set is missing or not whole.
    """

    subsets = ["train", "val", "test"]
    row, split, labelled = "tinyimagenet", "train", True

    def __init__(self, root, subset="train", download=False, transform=None, target_transform=None):
        check_choice("subset", subset, self.subsets)
        super().__init__(root, transform, target_transform, download)
        self.subset = subset
        classes = sorted({path.split("/")[0] for path in self.found.paths})
        self.class_map = {wnid: label for label, wnid in enumerate(classes)}
        top = self.found.folder.parent
        if subset == "val":
            self.found = self._validation(top / "val")
        elif subset == "test":
            self.found = self._unlabelled(top / "test" / "images")

    def _unlabelled(self, folder: Path) -> Listed:
        try:
            paths = list_images(folder).paths
        except InputError as problem:
            raise DatasetError(str(problem)) from None
        return Listed(folder, paths=paths, labels=np.full(len(paths), -1))

    def _validation(self, folder: Path) -> Listed:
        try:
            lines = (folder / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
            pairs = [line.split()[:2] for line in lines if line.strip()]
            labels = [self.class_map[wnid] for _, wnid in pairs]
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"'{folder / 'val_annotations.txt'}' is damaged ({error})") from None
        sorted_in = not (folder / "images").is_dir()
        paths = [f"{wnid if sorted_in else 'images'}/{file}" for file, wnid in pairs]
        absent = next((path for path in paths if not (folder / path).is_file()), None)
        if absent:
            raise DatasetError(f"'{folder / absent}' is not there; fetch the set again")
        return Listed(folder, paths=paths, labels=np.array(labels))
