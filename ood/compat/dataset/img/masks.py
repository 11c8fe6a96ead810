"""What the sets for anomaly segmentation share: items (image, mask) over `ood.data.load_masked`.

Masks are tensors (H, W): -1 where a pixel is an outlier, 0 or a class where it is ID, and
`VOID_LABEL` where it does not count. `ood.data.load_masked` gives the same sets natively, with
`ood.data.IGNORED` for what does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ood.compat.dataset.base import DatasetError
from ood.compat.papers import Info
from ood.config import InputError
from ood.data.masked import IGNORED, MaskedImages, load_masked
from ood.data.registry import info
from ood.data.registry.masks import masked_info


class MaskedSet(Dataset):
    """Items (PIL image as stored, mask) of one set of our registry.

    Attributes:
        root: the data root.
        images: the set itself, an `ood.data.MaskedImages`.
        place: name, split, root and base, as for `load_masked`.
        ignored: label of pixels that do not count.
        dtype: of the masks.
        whole: the set must have its published number of images.
    """

    info = Info()
    ignored = 1
    dtype = torch.int64
    whole = False

    def __init__(
        self,
        name: str,
        split: str,
        root: str | Path,
        download: bool,
        joint: Callable | None,
        base: str | Path | None = None,
    ):
        self.root, self.joint, self.place = root, joint, (name, split, root, base)
        self.images = _loaded(*self.place, download)
        count = masked_info(name)[0].count.get(split)
        if self.whole and count != len(self.images):
            raise DatasetError(
                f"'{self.images.pairs.folder}' holds {len(self.images)} images with masks, "
                f"'{name}' has {count}; remove it and give download=True"
            )

    def download(self) -> None:
        """Fetch what is missing of the set. `download=True` has done so already."""
        self.images = _loaded(*self.place, True)

    @property
    def files(self) -> list[str]:
        """Path of each image."""
        return [str(self.images.pairs.folder / path) for path in self.images.paths]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Give (image, mask) after the transform."""
        image, mask = self.pair(index)
        return (image, mask) if self.joint is None else self.joint(image, mask)

    def pair(self, index: int) -> tuple[Image.Image, torch.Tensor]:
        """Read (image, mask) before the transform."""
        image, mask = self.images.read(index)
        mask[mask == IGNORED] = self.ignored
        return image, torch.from_numpy(mask).to(self.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of '{self.images.pairs.folder}')"


def _loaded(name, split, root, base, download) -> MaskedImages:
    """Load the set. Raises DatasetError, with the steps that only a person can take."""
    advice = "give download=True to fetch it"
    masked = masked_info(name)[0]
    try:
        return load_masked(name, split, root, download=download, base=base, advice=advice)
    except InputError as problem:
        steps = info(masked.splits[split][0]).steps.format(data_dir=root)
        raise DatasetError(f"{problem}\n{steps}".strip()) from None


def chosen(value: str, allowed, what: str) -> str:
    """Check an argument. Raises InputError (a ValueError) for what is not allowed."""
    if value not in allowed:
        raise InputError(f"{what} '{value}' is not one of {', '.join(allowed)}")
    return value
