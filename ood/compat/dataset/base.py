"""What the data sets of `ood.compat.dataset` share: they are torch data sets over our registry.

To add a set of images:

1. Its row goes to `ood/data/registry`, unless it is there: folders, archives, checksums, reader.
2. A class that names the row is the rest:

        class LSUNCrop(RegistrySet):
            '''LSUN, crops of 32x32 (Liang et al., ICLR 2018, arXiv 1706.02690).'''

            row, mode = "LSUN", "RGB"

   `split` names a split of the row, and `labelled = True` gives the labels of the files instead of
   -1. A set with arguments of its own has its own `__init__`: it checks them, then calls
   `RegistrySet.__init__` with `row` and `split`. A set whose items are no (image, label) overrides
   `image` or `target`, or `__getitem__`.

A set that is not made of images (text, sound) has a row with the reader "parts", and calls
`look(row, "test", root, download=...)`. It returns only when every archive is in its place:
`look(...).folder` is the root, `look(...).paths` are the places.

Where the files lie: `root` is a data root of ours. The message of a missing set names the folders,
and datasets/README.md lists them all. Folders that pytorch-ood has unpacked below the same root are
found too, but for ImageNetC's, which it unpacks elsewhere than it reads. pytorch-ood reads a set
only if its archive still lies beside it, and hashes the archive each time. Here the checksum is
enforced when the archive is fetched, and the archive is removed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ood.compat.papers import Info
from ood.config import InputError, nearest
from ood.data.decoding import digest_files
from ood.data.loading import find
from ood.data.registry import DatasetInfo, info
from ood.data.request import Listed


class DatasetError(InputError, RuntimeError):
    """A set is missing, damaged, or could not be fetched. The message says where and what to do."""


class MissingFile(DatasetError, FileNotFoundError):
    """The same for the sets where pytorch-ood raises FileNotFoundError."""


def look(
    row: str | DatasetInfo,
    split: str,
    root: str | Path,
    *,
    download: bool = False,
    error: type[DatasetError] = DatasetError,
    lists: tuple[str, ...] | None = None,
) -> Listed:
    """Find the files of a set below `root`, and fetch them first if they are missing.

    Args:
        row: a name of our registry, or a row of your own.
        download: fetch what is missing. Sizes and checksums are enforced, mirrors are tried in
            order, and an interrupted download is continued.
        error: what to raise.
        lists: the lists that name the images, for sets of OpenOOD and OpenMIBOOD.

    Raises: DatasetError, or `error`.
    """
    row = info(row)
    advice = row.fetch.format(data_dir=root) or "give download=True to fetch it"
    try:
        return find(row, split, root, download=download, advice=advice, lists=lists)
    except InputError as problem:
        raise error(str(problem)) from None


def check_choice(what: str, given: str, allowed: Iterable[str]) -> None:
    """Raise InputError, which is a ValueError, if `given` is none of `allowed`."""
    allowed = list(allowed)
    if given not in allowed:
        raise InputError(
            f"unknown {what} '{given}'{nearest(given, allowed)}; known: {', '.join(allowed)}"
        )


class RegistrySet(Dataset):
    """Items (image, label) of one set of our registry; see the module for how to make one.

    Args:
        root: data root; the set is looked up, or fetched to, a folder below it.
        transform: function of the image, a PIL image.
        target_transform: function of the label.
        download: fetch the set if it is missing.

    Attributes:
        row, split: name in our registry (or a row of your own), and its split.
        labelled: the labels are those of the files. False: all are -1, as for OOD data.
        mode: PIL mode that images are converted to; None: as stored.
        found: the files, as `ood.data.request.Listed`.

    Raises: DatasetError (a RuntimeError) if the set is missing, damaged, or cannot be fetched.
    """

    row: str | DatasetInfo
    split = "test"
    labelled = False
    mode: str | None = None
    error: type[DatasetError] = DatasetError
    info = Info()  # the record of the paper and licence, see `ood.compat.papers`

    def __init__(
        self,
        root: str | Path,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
    ):
        self.root, self.transform, self.target_transform = root, transform, target_transform
        self.found = look(self.row, self.split, root, download=download, error=self.error)

    def download(self) -> None:
        """Fetch what is missing of the set. `download=True` has done so already."""
        look(self.row, self.split, self.root, download=True, error=self.error)

    @functools.cached_property
    def files(self) -> list[str]:
        """Path of each image. Raises AttributeError for a set that is kept in arrays."""
        if self.found.paths is None:
            raise AttributeError(f"'{type(self).__name__}' is kept in arrays, not in image files")
        return [str(self.found.folder / path) for path in self.found.paths]

    @property
    def data(self) -> np.ndarray:
        """Images (N, H, W[, 3]), uint8. Raises AttributeError for a set that is kept in files."""
        if self.found.images is None:
            raise AttributeError(f"'{type(self).__name__}' is kept in image files, not in arrays")
        return self.found.images

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels before `target_transform` (N,), int64."""
        if self.labelled:
            return np.asarray(self.found.labels, dtype=np.int64)
        return np.full(len(self), -1, dtype=np.int64)

    @property
    def targets(self) -> np.ndarray:
        """The same, by torchvision's name."""
        return self.labels

    @property
    def digest(self) -> str:
        """Digest of the files and their labels, hex. Transforms are no part of it."""
        found = self.found
        digest = hashlib.blake2b(digest_size=16)
        files = found.files if found.paths is None else found.paths
        digest.update(digest_files(found.folder, files).encode())
        for array in (found.labels, None if files else found.images):
            digest.update(b"|" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Give (image, label) after the transforms."""
        image, target = self.image(index), self.target(index)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def image(self, index: int) -> Image.Image:
        """Decode one image."""
        if self.found.paths is None:
            image = Image.fromarray(np.asarray(self.found.images[index]))
        else:
            image = Image.open(self.found.folder / self.found.paths[index])
        return image if self.mode is None else image.convert(self.mode)

    def target(self, index: int) -> Any:
        """Give the label of one image before `target_transform`."""
        return int(self.found.labels[index]) if self.labelled else -1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of '{self.found.folder}')"

    def __getstate__(self) -> dict:
        """Leave out an array that is mapped from a file: a worker process opens the file itself."""
        mapped = isinstance(self.found.images, np.memmap)
        return {**vars(self), "found": None} if mapped else vars(self)

    def __setstate__(self, state: dict):
        vars(self).update(state)
        if self.found is None:
            self.found = look(self.row, self.split, self.root, error=self.error)


class EndlessSet(RegistrySet):
    """A set for auxiliary outliers: an index beyond its end begins again at the first image.

    Iteration ends after the last image; in pytorch-ood it never does.
    """

    error = MissingFile

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return super().__getitem__(index % len(self))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self[index] for index in range(len(self)))
