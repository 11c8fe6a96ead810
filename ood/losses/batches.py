"""Auxiliary outliers in training: their images as one set, and batches in which they follow the ID images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ood.batches import ImageBatches, mix
from ood.data import ImageSet
from ood.methods.auxiliary import open_pool, show, split_names


class JoinedImages(ImageSet):
    """Several sets of one shape, one after the other, nothing copied. float32 in pixel units where one of them is, else uint8."""

    def __init__(self, parts: Sequence[ImageSet], name: str):
        self.parts = list(parts)
        source = hashlib.blake2b(
            " ".join(part.digest for part in parts).encode(), digest_size=16
        ).hexdigest()
        super().__init__(
            name=name,
            split="train",
            labels=np.concatenate([part.labels for part in parts]),
            shape=parts[0].shape,
            source=source,
        )
        self._ends = np.cumsum([len(part) for part in parts])
        self._floats = any(part.read([0]).is_floating_point() for part in parts)

    def _fetch(self, rows) -> Tensor:
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        images = torch.empty(
            (len(rows), *self.shape), dtype=torch.float32 if self._floats else torch.uint8
        )
        owner = np.searchsorted(self._ends, rows, side="right")
        for number, (part, end) in enumerate(zip(self.parts, self._ends)):
            places = np.flatnonzero(owner == number)
            if len(places):
                pixels = part.read(rows[places] - (end - len(part)))
                images[torch.from_numpy(places)] = (
                    pixels if pixels.dtype == images.dtype else pixels.float() / 255
                )
        return images


def load_outliers(
    pools: str | Sequence[str],
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    download: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """The images of all pools ("letters+patches": training halves, folders, .npy arrays), labels -1; `limit`: a seeded choice."""
    names = split_names(pools if isinstance(pools, str) else tuple(pools), data_dir)
    parts = [
        open_pool(name, data_dir, size=size, channels=channels, download=download) for name in names
    ]
    images = (
        parts[0]
        if len(parts) == 1
        else JoinedImages(parts, show(pools if isinstance(pools, str) else tuple(pools)))
    )
    if limit is None or limit >= len(images):
        return images
    return images.subset(np.sort(np.random.RandomState(seed).permutation(len(images))[:limit]))


class MixedBatches:
    """Every ID batch with a batch of outliers behind it: (images (B + B', C, H, W), labels (B + B',)), the latter -1.

    An epoch is one of the ID images; outliers begin anew in another order when they are used up. Which ones come, and how they are
    augmented, follows from (seed, epoch), like the ID images: there is no state to save.

    Attributes: counted: ID images of the batch given last, by which an epoch's means weigh it.
    """

    counted = 0

    def __init__(self, known: ImageBatches, outliers: ImageBatches):
        self.known, self.outliers = known, outliers

    def __len__(self) -> int:
        return len(self.known)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        recycled = itertools.chain.from_iterable(
            self.outliers.epoch(mix(number, turn)) for turn in itertools.count()
        )
        for (images, labels), (others, negative) in zip(self.known.epoch(number), recycled):
            self.counted = len(labels)
            yield torch.cat((images, others)), torch.cat((labels, negative))
