"""Images with a mask each, for anomaly segmentation: what every later stage sees.

A mask says of every pixel: a class (0 and above) where it is ID, a negative number where it is an
outlier, `IGNORED` where it does not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ood import distributed
from ood.config import InputError, nearest
from ood.data import loading
from ood.data.array_files import open_array
from ood.data.decoding import Recipe, digest_files, digest_of
from ood.data.folders import own_path
from ood.data.images import spread
from ood.data.mask_layouts import LAYOUTS, Pairs, own_folder
from ood.data.registry.masks import masked_info
from ood.data.registry.table import info, is_folder_path
from ood.data.request import Request

OUTLIER = -1
OWN_OUTLIER = 254  # what stands for an outlier in the mask files of an own folder
IGNORED = 255  # a pixel that counts for nothing
RGB = Recipe(channels=3)


def _meaning(known: dict[int, int], other: int | None = None) -> np.ndarray:
    """Make a table from the 256 values of a mask file to labels; `other` is for the rest."""
    table = np.arange(256) if other is None else np.full(256, other)
    for value, label in known.items():
        table[value] = label
    return table.astype(np.int64)


MEANINGS = {
    "classes": _meaning({OWN_OUTLIER: OUTLIER}),
    "void": _meaning({0: 0}, IGNORED),  # Fishyscapes' outliers come from the overlay
    "one": _meaning({1: OUTLIER, 255: IGNORED}),
    "nonzero": _meaning({0: 0}, OUTLIER),
    "nonzero_void": _meaning({0: 0, 255: IGNORED}, OUTLIER),
    "streethazards": _meaning({0: IGNORED, **{v: v - 1 for v in range(1, 14)}}, OUTLIER),
}


class MaskedImages(Dataset):
    """N images with a mask each, decoded from their files at every reading.

    `images[i]` is (uint8 tensor (3, H, W), int64 tensor (H, W)). Sizes may differ between images.
    It works in a DataLoader with workers.

    Args:
        pairs: the files.
        meaning: key of `MEANINGS`.

    Attributes:
        name, split: as asked for.
        class_names: classes of the ID pixels, or None.
        digest: hex. It changes with the files (path, size, time) and the rows.
    """

    def __init__(
        self,
        pairs: Pairs,
        meaning: str,
        *,
        name: str = "masked",
        split: str = "test",
        class_names: tuple[str, ...] | None = None,
    ):
        self.pairs, self.meaning = pairs, meaning
        self.name, self.split, self.class_names = name, split, class_names

    def __len__(self) -> int:
        return len(self.pairs.images)

    def __repr__(self) -> str:
        return f"MaskedImages({self.name!r}, {self.split!r}, {len(self)} images)"

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.read(index)
        pixels = np.array(RGB(image))  # a copy: Pillow's own memory is read-only
        return torch.from_numpy(pixels), torch.from_numpy(mask)

    @property
    def paths(self) -> list[str]:
        """File of each image, relative to the set's folder."""
        return list(self.pairs.images)

    @property
    def digest(self) -> str:
        pairs = self.pairs
        masks = [mask for mask in pairs.masks if mask is not None]
        parts = [digest_files(pairs.folder, pairs.images), digest_files(pairs.folder, masks)]
        if pairs.photographs:
            parts.append(digest_files(pairs.base, pairs.photographs))
        return digest_of(*parts, [mask is None for mask in pairs.masks], self.meaning)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Read the image as Pillow opens it, in its own mode, and the mask (H, W) int64.

        Raises: IndexError; InputError for a damaged file, or a mask of another size.
        """
        pairs = self.pairs
        path, mask_file = pairs.folder / pairs.images[index], pairs.masks[index]
        if pairs.photographs:
            photograph = _opened(pairs.base / pairs.photographs[index]).convert("RGB")
            overlay = open_array(path, ("rgb",)).astype(np.int64)
            plain = np.asarray(photograph).astype(np.int64)
            if overlay.shape != plain.shape:
                raise InputError(f"'{path}' has the shape {overlay.shape}, not {plain.shape}")
            image = Image.fromarray(np.clip(plain + overlay, 0, 255).astype(np.uint8))
        else:
            image = _opened(path)
        shape = image.size[::-1]
        if mask_file is None:
            return image, np.zeros(shape, dtype=np.int64)
        values = np.asarray(_opened(pairs.folder / mask_file))
        if values.shape != shape or values.dtype not in (np.uint8, bool):
            raise InputError(
                f"'{pairs.folder / mask_file}' holds {values.dtype} {values.shape}; "
                f"the mask of '{path}' has one byte for each of its {shape} pixels"
            )
        mask = MEANINGS[self.meaning][values.astype(np.uint8)]
        if pairs.photographs:
            mask[(overlay != 0).any(axis=2)] = OUTLIER
        return image, mask

    def subset(self, rows: Iterable[int]) -> MaskedImages:
        """Choose images; the part has its own digest."""
        return MaskedImages(
            self.pairs.rows(rows),
            self.meaning,
            name=self.name,
            split=self.split,
            class_names=self.class_names,
        )

    def limited(self, limit: int | None) -> MaskedImages:
        """Choose at most `limit` images, evenly spread over the set, in their order."""
        if limit is None or limit >= len(self):
            return self
        return self.subset(spread(len(self), limit).tolist())


def load_masked(
    name: str,
    split: str = "test",
    data_dir: str | Path = "datasets",
    *,
    download: bool = False,
    limit: int | None = None,
    base: str | Path | None = None,
    advice: str | None = None,
) -> MaskedImages:
    """Load the images and masks of a set for anomaly segmentation.

    Args:
        name: a name of `ood.data.registry.masks.TABLE`; "mvtec:bottle" is one object of a set. Or
            the path of a folder of your own, with images/ and masks/<same name>.png, perhaps below
            train/ and test/. Values of these masks: a class, 254 for an outlier, 255 for ignored.
            A file classes.txt in the folder names the classes, one a line.
        split: "train", "val" or "test", where the set has it.
        data_dir: the data root.
        download: fetch the set if it is missing or damaged. Checksums are verified.
        limit: at most this many images, evenly spread over the set.
        base: for Fishyscapes, the folder leftImg8bit/val of Cityscapes; default: the one below the
            data root.
        advice: what the errors tell the user to do; default: the flag and the command that fetch
            the set.

    Raises:
        MissingData: the set is not there, and could not be fetched if `download` was given.
        DamagedData: some of its files are missing.
        InputError: an unknown name or split, a failed download.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} images makes no sense; it must be at least 1")
    if is_folder_path(name):
        return _own(name, split).limited(limit)
    masked, part = masked_info(name)
    if split not in masked.splits:
        raise InputError(
            f"'{name}' has no masks for '{split}'{nearest(split, masked.splits)}; "
            f"it has them for {', '.join(masked.splits)}"
        )
    row, row_split = masked.splits[split]
    base = None if base is None else own_path(base)
    request = Request(
        info(row), row_split, own_path(data_dir), Recipe(), download=download, advice=advice
    )

    def read(request: Request) -> MaskedImages:
        pairs = LAYOUTS[masked.layout](request, part, base)
        _check_whole(pairs, request)
        return MaskedImages(
            pairs, masked.meaning, name=name, split=split, class_names=masked.class_names
        )

    return distributed.in_turn(lambda: loading.read_or_fetch(request, read)).limited(limit)


def _own(name: str, split: str) -> MaskedImages:
    """Open a folder of images and masks."""
    folder = own_path(name)
    names, classes = folder / "classes.txt", None
    if names.is_file():
        classes = tuple(line for line in names.read_text("utf-8").splitlines() if line.strip())
    pairs = own_folder(folder, split)
    return MaskedImages(pairs, "classes", name=folder.name, split=split, class_names=classes)


def _check_whole(pairs: Pairs, request: Request) -> None:
    """Raise DamagedData where an image or its mask is not there, MissingData for a photograph."""
    if not pairs.images:
        raise request.damaged(f"no image with a mask in '{pairs.folder}'")
    files = [pairs.folder / name for name in (*pairs.images, *pairs.masks) if name]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise request.damaged(f"{len(absent)} of its files are not there, e.g. '{absent[0]}'")
    for name in pairs.photographs or ():  # of another set: fetching this one again is no help
        if not (pairs.base / name).is_file():
            raise request.missing(pairs.base / name)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except Exception as error:  # Pillow raises many kinds on damaged files
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot decode '{path}' ({why}); replace it or remove it") from None
