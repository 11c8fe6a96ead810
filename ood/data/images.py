"""Sets of images as every later stage sees them: labels, a digest, batches in pixel units.

`ArrayImages` keeps small images as one uint8 array, usually memory-mapped. `StreamedImages` decodes
large ones from their files whenever they are read, in threads. `JoinedImages` puts several sets one
after the other. Nothing here normalises: see `ood.data.transforms`.

Every set is also a `torch.utils.data.Dataset` of pairs (image, label), for loops and libraries that
know nothing else:

    loader = DataLoader(load("cifar10", "test").with_transform(transform), 128, num_workers=4)
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import mmap
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ood.config import InputError
from ood.data import memory
from ood.data.decoding import Recipe, decode

FLOAT_BYTES = 4  # of a value of the batch that a network sees
AHEAD = 3  # batches that a streamed set decodes ahead of the one being used


class ImageSet(Dataset):
    """N images with labels. Subclasses say how rows become a tensor (`_fetch`).

    Attributes:
        name, split: as asked for. A folder without train/test sub-folders has the split "all".
        labels: (N,) int64; -1 for every image of an OOD or unlabelled set.
        original_labels: (N,) int64, what the files say; None where they say nothing.
        num_classes, class_names: of a labelled set, else None.
        shape: (C, H, W).
        digest: hex. It changes with the files (path, size, time), the decoding, the seed, the rows
            and the labels.
        paths: file of each image relative to the set's folder, or None.
        transform: what `images[i]` does to a PIL image; None: nothing. See `with_transform`. It is
            no part of the digest, and batches never apply it.
    """

    transform: Callable | None = None

    def __init__(
        self,
        *,
        name: str,
        split: str,
        labels: np.ndarray,
        shape: tuple[int, int, int],
        source: str,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        original_labels: np.ndarray | None = None,
        paths: Sequence[str] | None = None,
    ):
        self.name, self.split = name, split
        self.labels = np.asarray(labels, dtype=np.int64)
        self.original_labels = (
            None if original_labels is None else np.asarray(original_labels, dtype=np.int64)
        )
        self.shape = tuple(int(side) for side in shape)
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self._paths = paths
        self._source = source  # digest of what lies behind all rows
        self._rows: slice | np.ndarray = slice(0, len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | object, int]:
        """Read one image and its label.

        Returns: the image as a float tensor (C, H, W) in pixel units, nominally 0..1. With a
            `transform`, what it makes of the PIL image (RGB, or L for one channel); pixels that are
            no bytes are rounded to bytes for it.
        """
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place %= len(self)
        image = self._fetch(self._backing_rows(slice(place, place + 1)))[0]
        if self.transform is not None:
            image = self.transform(_picture(image))
        elif not image.is_floating_point():
            image = image.float() / 255
        return image, int(self.labels[place])

    def __copy__(self) -> ImageSet:
        """Copy the attributes as they are; pickling, which also copies, may open files again."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def with_transform(self, transform: Callable | None) -> ImageSet:
        """Give the set a `transform` for `images[i]`. Nothing is copied."""
        twin = copy.copy(self)
        twin.transform = transform
        return twin

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.split!r}, {len(self)} images {self.shape})"
        )

    @property
    def digest(self) -> str:
        rows = self._rows
        rows = f"{rows.start}:{rows.stop}".encode() if isinstance(rows, slice) else rows.tobytes()
        return hashlib.blake2b(
            b"|".join((self._source.encode(), rows, self.labels.tobytes())), digest_size=16
        ).hexdigest()

    @property
    def paths(self) -> list[str] | None:
        if self._paths is None:
            return None
        if isinstance(self._rows, slice):
            return list(self._paths[self._rows])
        return [self._paths[row] for row in self._rows]

    def read(self, indices: slice | Sequence[int] | np.ndarray) -> torch.Tensor:
        """Read images (B, C, H, W): uint8 0..255, or float32 in pixel units (nominally 0..1).

        Raises: InputError for more images than fit into memory.
        """
        rows = self._backing_rows(indices)
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        self._check_memory(count, 1)
        return self._fetch(rows)

    def batches(
        self, batch_size: int, indices: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[torch.Tensor]:
        """Read all images in order, or those of `indices` in the order given.

        Batches have `batch_size` images; the last one may be smaller.
        """
        for part in self._parts(batch_size, indices):
            yield self._fetch(self._backing_rows(part))

    def subset(self, indices: Sequence[int] | np.ndarray | slice) -> ImageSet:
        """Choose the images of `indices`. Nothing is copied; the part has its own digest."""
        chosen = _as_rows(indices, len(self))
        part = copy.copy(self)
        part._rows = self._backing_rows(chosen)
        part.labels = self.labels[chosen]
        part.original_labels = (
            None if self.original_labels is None else self.original_labels[chosen]
        )
        return part

    def limited(self, limit: int | None) -> ImageSet:
        """Choose at most `limit` images, in their order: what -limit means everywhere.

        They are evenly spread over the set and every class is kept, see `spread`.
        """
        if limit is None or limit >= len(self):
            return self
        return self.subset(spread(len(self), limit, self.labels))

    def first(self, count: int | None) -> ImageSet:
        """Choose the first `count` images; all for None, or when there are fewer."""
        return self if count is None or count >= len(self) else self.subset(slice(0, count))

    def as_outliers(self) -> ImageSet:
        """Give all images the label -1; the labels they had move to `original_labels`."""
        if (self.labels < 0).all():
            return self
        outliers = copy.copy(self)
        outliers.original_labels = self.labels
        outliers.labels = np.full(len(self), -1, dtype=np.int64)
        return outliers

    def of_classes(self, classes: Sequence[int]) -> ImageSet:
        """Choose the images of these classes, for open-set splits.

        The first class becomes the label 0, the second 1, and so on.

        Raises: InputError for a class that is named twice or that the set does not have.
        """
        truth = (
            self.labels
            if self.original_labels is None or (self.labels >= 0).any()
            else self.original_labels
        )
        new_label = {int(label): number for number, label in enumerate(classes)}
        known = self.num_classes or int(truth.max(initial=-1)) + 1
        if len(new_label) != len(classes) or not set(new_label) <= set(range(known)):
            raise InputError(
                f"classes {list(classes)} of '{self.name}' must be different and below {known}"
            )
        kept = np.isin(truth, list(new_label))
        part = self.subset(np.flatnonzero(kept))
        part.labels = np.array([new_label[label] for label in truth[kept].tolist()], dtype=np.int64)
        part.original_labels, part.num_classes = None, len(new_label)
        if self.class_names is not None:
            part.class_names = tuple(self.class_names[label] for label in classes)
        return part

    def _parts(self, batch_size: int, indices) -> Iterator[slice | np.ndarray]:
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} must be at least 1")
        self._check_memory(min(batch_size, len(self)), AHEAD + FLOAT_BYTES)
        rows = None if indices is None else _as_rows(indices, len(self))
        if rows is None or isinstance(rows, slice):
            first, last = (0, len(self)) if rows is None else (rows.start, rows.stop)
            for start in range(first, last, batch_size):
                yield slice(start, min(start + batch_size, last))
        else:
            for start in range(0, len(rows), batch_size):
                yield rows[start : start + batch_size]

    def _check_memory(self, count: int, bytes_each: int) -> None:
        """Raise InputError if `count` images with so many bytes a value do not fit into memory."""
        memory.check(
            count * math.prod(self.shape) * bytes_each,
            f"{count:,} images {self.shape} of '{self.name}' at a time",
            "ask for a smaller batch size or image size",
        )

    def _backing_rows(self, part) -> slice | np.ndarray:
        """Turn rows of this view into rows of what lies behind it."""
        part = _as_rows(part, len(self))
        if not isinstance(self._rows, slice):
            return self._rows[part]
        if isinstance(part, slice):
            return slice(self._rows.start + part.start, self._rows.start + part.stop)
        return part + self._rows.start

    def _fetch(self, rows: slice | np.ndarray) -> torch.Tensor:
        raise NotImplementedError


class ArrayImages(ImageSet):
    """Images that lie in one array, in memory or memory-mapped.

    Args:
        images: (N, C, H, W), uint8 0..255 or float32 in pixel units.
        labels: (N,); default: -1 everywhere (unlabelled).
        source: digest of the content; default: a hash of the array itself.

    Raises: InputError for an array of another type or shape, or labels of another number.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        name: str = "array",
        split: str = "test",
        source: str | None = None,
        **details,
    ):
        if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
            raise InputError(
                "images must be a uint8 or float32 array (N, C, H, W), "
                f"got {images.dtype} {images.shape}"
            )
        labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
        if len(labels) != len(images):
            raise InputError(f"'{name}' has {len(images)} images but {len(labels)} labels")
        source = source or hashlib.blake2b(np.ascontiguousarray(images), digest_size=16).hexdigest()
        super().__init__(
            name=name, split=split, labels=labels, shape=images.shape[1:], source=source, **details
        )
        self._array = images

    def __getstate__(self) -> dict:
        """Pickle a memory map as the name of its file, so that a worker opens it again."""
        state = dict(vars(self))
        if _is_whole_map(self._array):
            array = self._array
            order = "C" if array.flags.c_contiguous else "F"
            state["_array"] = (array.filename, array.dtype, "r", array.offset, array.shape, order)
        return state

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        if isinstance(self._array, tuple):
            self._array = np.memmap(*self._array)

    @property
    def images(self) -> np.ndarray:
        """The array (N, C, H, W): a view where the rows lie side by side, else a copy."""
        return self._array[self._rows]

    def _fetch(self, rows):
        copied = np.array(self._array[rows])  # a memory map is read-only, a tensor is not
        return torch.from_numpy(copied)


class StreamedImages(ImageSet):
    """Images decoded from their files whenever they are read; for images too large to keep.

    Threads do the work, not worker processes: Pillow releases the interpreter lock while it decodes
    and resizes. So nothing has to go through shared memory, which containers limit to 64 MB.

    Args:
        folder: the folder to which `paths` are relative.
        workers: number of threads; default: one per core, at most 16.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, workers: int | None = None, **details):
        super().__init__(**details)
        self.folder, self.recipe = Path(folder), recipe
        self.workers = workers or min(16, os.cpu_count() or 1)

    def batches(self, batch_size, indices=None):
        parts = self._parts(batch_size, indices)
        pool, pending = ThreadPoolExecutor(self.workers), deque()
        try:
            for part in itertools.islice(parts, AHEAD):
                pending.append(self._submit(pool, part))
            while pending:
                images, jobs = pending.popleft()
                for job in jobs:
                    job.result()
                pending.extend(self._submit(pool, part) for part in itertools.islice(parts, 1))
                yield images
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool, part):
        rows = self._backing_rows(part)
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        return images, [
            pool.submit(self._decode_into, images.numpy(), place, row)
            for place, row in enumerate(rows)
        ]

    def _decode_into(self, images: np.ndarray, place: int, row: int) -> None:
        images[place] = decode(self.folder / self._paths[row], self.recipe, self.shape)

    def _fetch(self, rows):
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)
        if len(rows) == 1:
            self._decode_into(images, 0, rows[0])
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(lambda pair: self._decode_into(images, *pair), enumerate(rows)))
        return torch.from_numpy(images)


class JoinedImages(ImageSet):
    """Several sets of one shape, one after the other, as one set. Nothing is copied.

    Pixels are uint8, or float32 in pixel units (0..1) as soon as one of the parts has floats.
    `batches` of the whole set starts a new batch where a new part begins.

    Args:
        source: digest of the content; default: the digests of the parts.

    Raises: InputError for parts of different shapes.
    """

    def __init__(self, parts: Sequence[ImageSet], *, source: str | None = None, **details):
        for part in parts[1:]:
            if part.shape != parts[0].shape:
                raise InputError(
                    f"'{part.name}' has images {part.shape} "
                    f"but '{parts[0].name}' {parts[0].shape}; give both a size"
                )
        super().__init__(
            labels=np.concatenate([part.labels for part in parts]),
            shape=parts[0].shape,
            source=source or " ".join(part.digest for part in parts),
            **details,
        )
        self._members = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        floats = {part.read([0]).is_floating_point() for part in parts if len(part)}
        self._dtype = torch.float32 if True in floats else torch.uint8
        self._mixed = len(floats) > 1

    def batches(self, batch_size, indices=None):
        everything = slice(0, int(self._starts[-1]))
        whole = isinstance(self._rows, slice) and self._rows == everything
        if indices is not None or self._mixed or not whole:
            yield from super().batches(batch_size, indices)
        else:  # the members' own batches are read ahead
            for part in self._members:
                yield from part.batches(batch_size)

    def _fetch(self, rows):
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        read = {
            number: self._members[number].read(rows[owner == number] - self._starts[number])
            for number in np.unique(owner)
        }
        images = torch.empty((len(rows), *self.shape), dtype=self._dtype)
        for number, part in read.items():
            images[torch.from_numpy(owner == number)] = (
                part if part.dtype == self._dtype else part.float() / 255
            )
        return images


def spread(
    length: int, count: int | None, labels: Sequence[int] | np.ndarray | None = None
) -> np.ndarray | slice:
    """Choose `count` rows evenly spread over `length`, every class kept.

    Args:
        count: None, or `length` and more: all rows.
        labels: (length,). Where an even spread would lose a class, every class keeps its share of
            the rows, at least one, evenly spread over the class. With fewer rows than classes the
            rows are evenly spread and some classes are lost. None: no classes.
    """
    if count is None or count >= length:
        return slice(0, length)
    even = np.arange(count) * length // count
    if labels is None:
        return even
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if count < len(classes) or len(np.unique(labels[even])) == len(classes):
        return even
    others = np.concatenate(([0], np.cumsum(sizes - 1)))  # rows beyond the first of each class
    shares = 1 + np.diff(others * (count - len(classes)) // others[-1])
    rows = [
        np.arange(length)[labels == label][spread(size, share)]
        for label, size, share in zip(classes, sizes, shares)
    ]
    return np.sort(np.concatenate(rows))


def _picture(image: torch.Tensor) -> Image.Image:
    """Make a PIL image of (C, H, W): bytes, or floats in pixel units."""
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().byte()
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _is_whole_map(array: np.ndarray) -> bool:
    """Tell whether an array is a memory map from its first to its last value, of a file that is."""
    return (
        isinstance(array, np.memmap)
        and isinstance(array.base, mmap.mmap)
        and array.filename is not None
        and os.path.isfile(array.filename)
    )


def _as_rows(indices, length: int) -> slice | np.ndarray:
    """Bring indices to a slice of step 1 where possible, else to non-negative int64 indices.

    Raises: IndexError for an index or a mask that does not fit the length.
    """
    if isinstance(indices, slice):
        start, stop, step = indices.indices(length)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if rows.shape != (length,):
            raise IndexError(f"a mask of shape {rows.shape} for {length} images")
        rows = np.flatnonzero(rows)
    rows = rows.astype(np.int64).reshape(-1)
    if len(rows) and (rows.min() < -length or rows.max() >= length):
        raise IndexError(f"index out of range: {rows.min()}..{rows.max()} of {length} images")
    rows = np.where(rows < 0, rows + length, rows)
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
