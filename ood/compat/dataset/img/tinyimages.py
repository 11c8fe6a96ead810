"""80 Million Tiny Images, which its authors have withdrawn, and the 300,000 cleaned ones of it.

Both served as auxiliary outliers: Hendrycks, Mazeika and Dietterich, "Deep anomaly detection with
outlier exposure", ICLR 2019, arXiv 1812.04606. Birhane and Prabhu say why the large set should not
be used: "Large image datasets: a pyrrhic win for computer vision?", WACV 2021, arXiv 2006.16923.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ood.compat.dataset.base import EndlessSet, MissingFile
from ood.compat.papers import Info

SIDE = 32
BYTES = 3 * SIDE * SIDE  # of one image: all red, then green, then blue values, column by column


class TinyImages(Dataset):
    """Items (image (32, 32, 3) uint8 array, -1) of the one binary file of all images.

    Indices begin again after the last image; iteration ends there. An image that shows a class of
    CIFAR is replaced by another one, the same at every reading (a new draw each time in
    pytorch-ood). The file is read through a memory map, so workers do not disturb each other, and
    its size gives the length: 79,302,017 for the whole file.

    Args:
        datafile: tiny_images.bin.
        cifar_index_file: text file with the numbers of the images to leave out, counted from 1.
        transform: function of the array.
        exclude_cifar: leave these images out; False: the index file is not read.

    Raises: FileNotFoundError (a DatasetError) for a file that is not there.
    """

    info = Info()

    def __init__(
        self,
        datafile,
        cifar_index_file,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        exclude_cifar=True,
    ):
        for file in (datafile, cifar_index_file)[: 2 if exclude_cifar else 1]:
            if not os.path.isfile(file):
                raise MissingFile(f"no file '{file}'; the set is withdrawn and cannot be fetched")
        self.datafile, self.cifar_index_file = datafile, cifar_index_file
        self.transform, self.target_transform = transform, target_transform
        self.exclude_cifar, self.offset = exclude_cifar, 0
        self.n_images = os.path.getsize(datafile) // BYTES
        self.cifar_idxs: set[int] = set()
        if exclude_cifar:
            numbers = Path(cifar_index_file).read_text(encoding="utf-8").split()
            self.cifar_idxs = {int(number) - 1 for number in numbers}

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.load_image(self._allowed(index)), -1
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def load_image(self, index: int) -> np.ndarray:
        """Read one image (32, 32, 3), whether it shows a class of CIFAR or not."""
        values = np.fromfile(self.datafile, np.uint8, BYTES, offset=index * BYTES)
        return values.reshape(SIDE, SIDE, 3, order="F")

    def _allowed(self, index: int) -> int:
        index = (index + self.offset) % self.n_images
        draw = np.random.default_rng(index)
        while index in self.cifar_idxs:
            index = int(draw.integers(self.n_images))
        return index


class TinyImages300k(EndlessSet):
    """300,000 images of 32x32, cleaned of CIFAR's classes and of much else. Labels are -1.

    Raises: FileNotFoundError (a DatasetError) if the set is missing.
    """

    row = "tinyimages300k"
