"""Transforms of images and labels: 0 and above for known classes, below 0 for outliers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["TargetMapping", "ToRGB", "ToUnknown"]


class ToUnknown:
    """A target transform that marks every image as an outlier."""

    def __call__(self, y) -> int:
        return -1


class ToRGB:
    """An image transform that makes PIL images RGB and leaves everything else as it is."""

    def __call__(self, x):
        return x.convert("RGB") if hasattr(x, "convert") else x


class TargetMapping:
    """A target transform for open sets.

    Known classes become 0, 1, ... in ascending order. An unknown class c becomes -(c + 1). Every
    other class becomes -1.
    """

    def __init__(self, known: Iterable[int], unknown: Iterable[int]):
        known, unknown = set(known), set(unknown)
        if known & unknown:
            raise ValueError(f"classes {sorted(known & unknown)} are both known and unknown")
        self.labels = {
            **dict(zip(sorted(known), range(len(known)))),
            **{c: -(c + 1) for c in unknown},
        }

    def __call__(self, target) -> int:
        return self.labels.get(_number(target), -1)

    def __getitem__(self, target) -> int:
        return self.labels[_number(target)]

    def items(self):
        return self.labels.items()

    def __repr__(self) -> str:
        return repr(self.labels)


def _number(target):
    return target.item() if isinstance(target, torch.Tensor) else target
