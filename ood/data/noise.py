"""Sets made from random numbers.

Every image has its own generator, keyed by (seed, split, row): any row can be made at any time.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable

import numpy as np
import torch

from ood.data.images import ImageSet
from ood.data.request import Request


class GeneratedImages(ImageSet):
    """Images that are made when they are read; nothing is kept.

    Args:
        make: gives the image of a row, float32 (C, H, W) in pixel units. Workers of a loader need
            one that can be pickled: a function of a module, or a partial of one.
        key: everything that decides what `make` gives.
    """

    def __init__(self, make: Callable[[int], np.ndarray], key: str, **details):
        # The first image is part of the digest: this catches a change of NumPy's streams.
        first = hashlib.blake2b(make(0), digest_size=16).hexdigest()
        super().__init__(source=f"{key} {first}", shape=make(0).shape, **details)
        self._make = make

    def _fetch(self, rows):
        rows = range(rows.start, rows.stop) if isinstance(rows, slice) else rows
        images = np.empty((len(rows), *self.shape), dtype=np.float32)
        for place, row in enumerate(rows):
            images[place] = self._make(int(row))
        return torch.from_numpy(images)


def uniform(generator: np.random.Generator, shape) -> np.ndarray:
    """Draw from U[0,1) (ODIN)."""
    return generator.random(shape, dtype=np.float32)


def gaussian(generator: np.random.Generator, shape) -> np.ndarray:
    """Draw from N(0.5, 1), clipped to [0,1] (ODIN)."""
    return np.clip(generator.standard_normal(shape, dtype=np.float32) + np.float32(0.5), 0, 1)


def normalised_uniform(generator: np.random.Generator, shape) -> np.ndarray:
    """Draw what is U[0,1) AFTER the normalisation (x - 0.5) / 0.5 (VMDLS).

    In pixel units this is 0.5 + 0.5 * U[0,1).
    """
    return np.float32(0.5) + np.float32(0.5) * generator.random(shape, dtype=np.float32)


KINDS = {"uniform": uniform, "gaussian": gaussian, "noise": normalised_uniform}


def read_noise(request: Request) -> ImageSet:
    """Make pure noise, of the size and channels asked for."""
    row = request.row
    side, channels = request.recipe.size or row.size, request.recipe.channels or row.channels
    shape = (channels, side, side)
    caps = (row.count[request.split], request.first, request.limit)
    count = min(cap for cap in caps if cap is not None)
    key = f"{row.name} {request.split} {request.seed} {shape}"
    return GeneratedImages(
        functools.partial(_noise, request, shape),
        key,
        name=row.name,
        split=request.split,
        labels=np.full(count, -1),
    )


def _noise(request: Request, shape: tuple[int, int, int], row: int) -> np.ndarray:
    return KINDS[request.row.options["kind"]](_generator(request, row), shape)


def read_image_noise(request: Request) -> ImageSet:
    """Make images of the base set + 0.5 * U[0,1) per pixel, not clipped.

    VMDLS adds U[0,1) to the image normalised by (x - 0.5) / 0.5, which is the same.
    """
    base = request.base
    key = f"{request.row.name} {base.digest} {request.split} {request.seed}"
    return GeneratedImages(
        functools.partial(_noisy, request),
        key,
        name=request.row.name,
        split=request.split,
        labels=np.full(len(base), -1),
        original_labels=base.labels,
        paths=base.paths,
    )


def _noisy(request: Request, row: int) -> np.ndarray:
    image = request.base.read([row])[0].numpy().astype(np.float32) / np.float32(255)
    noise = _generator(request, row).random(image.shape, dtype=np.float32)
    return image + np.float32(0.5) * noise


def _generator(request: Request, row: int) -> np.random.Generator:
    """Make the generator of one row, keyed by (set, split, seed) and the row.

    Philox is counter-based: such keys make independent streams at no cost.
    """
    name = zlib.crc32(f"{request.row.name} {request.split}".encode())
    key = np.array([(name << 32) + request.seed % 2**32, row], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
