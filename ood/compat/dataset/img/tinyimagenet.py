"""Tiny ImageNet: 200 classes, 64x64 pixels (Stanford's course CS231n)."""

from __future__ import annotations

from pathlib import Path

from ood.compat.dataset.base import DatasetError, RegistrySet, check_choice, look
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
    labelled = True

    def __init__(self, root, subset="train", download=False, transform=None, target_transform=None):
        check_choice("subset", subset, self.subsets)
        self.root, self.transform, self.target_transform = root, transform, target_transform
        self.subset = subset
        found = look("tinyimagenet", "train", root, download=download)
        classes = sorted({path.split("/")[0] for path in found.paths})
        self.class_map = {wnid: label for label, wnid in enumerate(classes)}
        top = found.folder.parent
        if subset == "val":
            found = self._validation(top / "val")
        elif subset == "test":
            paths = list_images(top / "test" / "images").paths
            found = Listed(top / "test" / "images", paths=paths, labels=[-1] * len(paths))
        self.found = found

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
        return Listed(folder, paths=paths, labels=labels)
