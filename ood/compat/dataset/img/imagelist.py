"""Images that a text file names, in the format of OpenOOD and OpenMIBOOD."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ood.compat.dataset.base import DatasetError


class ImageListDataset(Dataset):
    """Images and labels of a list with one 'path label' a line, in the order of the list.

    Empty lines, comments ('# ...') and lines without a label are left out. A path may hold spaces;
    in pytorch-ood it cannot. For lists of OpenOOD's own sets see also `ood.data.load`.

    Args:
        root: folder that the paths are relative to.
        imglist_path: the list.
        loader: function that turns a path into an image; default: PIL.Image.open.

    Raises: DatasetError (a RuntimeError) for a folder or list that is not there, or a line whose
        label is no whole number.
    """

    def __init__(
        self,
        root: str,
        imglist_path: str,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        loader: Callable[[str], Any] | None = None,
    ):
        if not os.path.isdir(root):
            raise DatasetError(f"no folder '{root}', which the paths of a list are relative to")
        if not os.path.isfile(imglist_path):
            raise DatasetError(f"no list of images '{imglist_path}'")
        self.root, self.transform, self.target_transform = root, transform, target_transform
        self.loader = loader or Image.open
        self.files, self.labels = [], []
        lines = Path(imglist_path).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            fields = line.strip().rsplit(None, 1)
            if len(fields) < 2 or line.lstrip().startswith("#"):
                continue
            try:
                label = int(fields[1])
            except ValueError:
                raise DatasetError(
                    f"'{imglist_path}', line {number}: '{line.strip()}' is not 'path label'"
                ) from None
            self.files.append(os.path.join(root, fields[0]))
            self.labels.append(label)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Give (image, label) after the transforms."""
        image, label = self.loader(self.files[index]), self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label
