"""ImageNet-200, the middle-sized ID set of OpenOOD, as a part of an ImageNet that is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ood.compat.dataset.base import DatasetError, RegistrySet
from ood.compat.dataset.img.masks import chosen
from ood.data.folders import EmptyFolder, list_images
from ood.data.registry.imagenet200 import imagenet200_files, imagenet200_wnids
from ood.data.request import Listed

MISSING = (
    "no images of ImageNet in '{}/<class>/'; register at https://www.image-net.org, and see "
    "`python3 scripts/download_data.py imagenet -dry_run` for the steps"
)


class ImageNet200(RegistrySet):
    """Images of 200 classes; the labels 0..199 follow the WordNet ids in string order.

    Args:
        root: folder of ImageNet, with train/<wnid>/* and val/<wnid>/*. pytorch-ood also needs the
            development kit there.
        split: "train": all training images of the classes, about 259,000. "val": 1,000 validation
            images. "test": the other 9,000 of them.
        transform: function of the image, a PIL image as stored.
        target_transform: function of the label.

    Attributes:
        classes: the 200 WordNet ids. wnid_to_label: the label of each.
        samples: (path, label) of every image; those of "val" and "test" in the order of OpenOOD's
            lists.

    Raises: DatasetError (a RuntimeError) if images are missing; InputError (a ValueError) for an
        unknown split.
    Source: Zhang et al., "OpenOOD v1.5", DMLR 2024, arXiv 2306.09301.
    """

    splits = ("train", "val", "test")
    labelled = True

    def __init__(
        self,
        root: str,
        split: str = "test",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
    ) -> None:
        self.root, self.split = root, chosen(split, self.splits, "split")
        self.transform, self.target_transform = transform, target_transform
        self.classes = list(imagenet200_wnids())
        self.wnid_to_label = {wnid: label for label, wnid in enumerate(self.classes)}
        if split == "train":
            self.found = training_images(root, self.classes)
        else:
            self.found = _validation_images(root, self.classes, split)
        self.samples = list(zip(self.files, self.labels.tolist()))


def training_images(root: str, wnids: Sequence[str]) -> Listed:
    """List the training images of these classes, class by class; the label is the place in `wnids`.

    Raises: DatasetError if there are none.
    """
    folder = Path(root).expanduser() / "train"
    paths, labels = [], []
    for label, wnid in enumerate(wnids):
        try:
            names = list_images(folder / wnid).paths if (folder / wnid).is_dir() else []
        except EmptyFolder:
            continue
        paths += [f"{wnid}/{name}" for name in names]
        labels += [label] * len(names)
    if not paths:
        raise DatasetError(MISSING.format(folder))
    return Listed(folder, paths=paths, labels=np.array(labels))


def _validation_images(root: str, wnids: Sequence[str], split: str) -> Listed:
    folder = Path(root).expanduser() / "val"
    names, labels = zip(*imagenet200_files(split))
    paths = [f"{wnids[label]}/{name}" for name, label in zip(names, labels)]
    absent = [path for path in paths if not (folder / path).is_file()]
    if len(absent) == len(paths):
        raise DatasetError(MISSING.format(folder))
    if absent:
        raise DatasetError(
            f"{len(absent):,} of the {len(paths):,} images of '{split}' are not in '{folder}', "
            f"e.g. '{absent[0]}'"
        )
    return Listed(folder, paths=paths, labels=np.array(labels))
