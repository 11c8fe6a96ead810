"""Images of four digits of MNIST, which are normal where the digits add up to 20.

Source: Kirchheim, "Towards deep anomaly detection with structured knowledge representations",
SAFECOMP 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ood.compat.dataset.base import look
from ood.compat.papers import Info
from ood.data.anomalies import NORMAL_SUM
from ood.data.array_files import open_array
from ood.data.registry import info

CORNERS = [0, 2, 1, 3]  # the files hold x_min, x_max, y_min, y_max


class SuMNIST(Dataset):
    """Items (image (3, 56, 56), target) for object detection with anomalies.

    The image is a tensor, not a PIL image. The target is a dict of tensors:

        boxes     (4, 4) float32: x_min, y_min, x_max, y_max of each digit
        labels    (4,) int64: the digits
        image_id  (1,): the index
        area      (4,): area of each box
        iscrowd   (4,): zeros
        anomaly   scalar: -1 where the digits do not add up to 20, else 0

    60,000 images for training are all normal; of 10,000 test images, 1,500 are not.

    Args:
        train: the training images; False: the test images.
        transforms: function of (image, target), which gives both.
        download: fetch the six files that are missing; their md5 is enforced then.

    Raises: DatasetError (a RuntimeError) if a file is missing or cannot be fetched.
    """

    info = Info()

    def __init__(self, root, train=True, transforms: Callable | None = None, download=False):
        self.root, self.transforms = root, transforms
        folder = self._folder(download)
        split = "train" if train else "test"
        self.x, self.y, self.b = (
            torch.as_tensor(open_array(folder / f"{letter}-{split}.npz", ("arr_0",)))
            for letter in "xyb"
        )

    def download(self) -> None:
        """Fetch the files that are missing. `download=True` has done so already."""
        self._folder(download=True)

    def _folder(self, download: bool) -> Path:
        files = replace(info("sumnist"), reader="parts", count={})
        return look(files, "test", self.root, download=download).folder / "sumnist"

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, boxes = self.x[index].repeat(3, 1, 1), self.b[index][:, CORNERS].float()
        digits = self.y[index].long()
        target = {
            "boxes": boxes,
            "labels": digits,
            "image_id": torch.tensor([index]),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(dim=1),
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
            "anomaly": torch.tensor(0 if int(digits.sum()) == NORMAL_SUM else -1),
        }
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target
