"""Images of noise.

Distributions and arguments are those of pytorch-ood, the draws are not. Here every image has a
generator of its own, keyed by (seed, index): an index always gives the same image, in any order and
in any number of workers. In pytorch-ood an image depends on how often the set was read before, and
every worker of a DataLoader draws the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ood.compat.papers import Info
from ood.config import InputError

WORD = 2**64  # a key of Philox is two such numbers


class NoiseDataset(Dataset):
    """Base class: a subclass says how an array of `size` is drawn (`draw`).

    Args:
        seed: any whole number; None: a new one for each set.
    """

    default_target = -1
    info = Info()

    def __init__(self, seed: int | None = None):
        self.seed = np.random.SeedSequence().entropy if seed is None else seed

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw one image (H, W, C), uint8."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        """Give (image, -1) after the transforms. Raises IndexError beyond the length."""
        index = range(self.num)[item]
        key = np.array([self.seed % WORD, index], dtype=np.uint64)
        image = self.draw(np.random.Generator(np.random.Philox(key=key)))
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        target = self.default_target
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def _set(self, length: int, size: tuple[int, int, int], transform, target_transform) -> None:
        if not isinstance(length, int):
            raise InputError(f"length must be a whole number, got {length!r}")
        self.num, self.size = length, tuple(size)
        self.transform, self.target_transform = transform, target_transform


class GaussianNoise(NoiseDataset):
    """Values drawn from N(loc, scale^2), clipped to [0, 255] and rounded down.

    Args:
        length: number of images.
        size: (height, width, channels); one channel gives grey images.
        loc, scale: mean and standard deviation, in 0..255.

    Raises: ValueError for a length that is no whole number.
    """

    def __init__(
        self,
        length: int,
        size=(224, 224, 3),
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        loc: int = 128,
        scale: int = 128,
        seed: int | None = None,
    ):
        super().__init__(seed)
        self._set(length, size, transform, target_transform)
        self.loc, self.scale = loc, scale

    def draw(self, generator):
        values = generator.normal(self.loc, self.scale, self.size)
        return np.clip(values, 0, 255).astype(np.uint8)


class UniformNoise(NoiseDataset):
    """Values drawn from U[0, 255) and rounded down: 0 to 254, equally likely.

    Args:
        length: number of images.
        size: (height, width, channels); one channel gives grey images.

    Raises: ValueError for a length that is no whole number.
    """

    def __init__(
        self,
        length: int,
        size=(224, 224, 3),
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        seed: int | None = None,
    ):
        super().__init__(seed)
        self._set(length, size, transform, target_transform)

    def draw(self, generator):
        return generator.integers(0, 255, self.size, dtype=np.uint8)
