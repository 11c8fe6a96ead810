"""pytorch-ood's labels: 0 and above for known classes, below 0 for outliers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def is_known(labels):
    """Whether a label names a known class (>= 0); elementwise for arrays."""
    return labels >= 0


def is_unknown(labels):
    """Whether a label marks an outlier (< 0); elementwise for arrays."""
    return labels < 0


def contains_known(labels: Tensor):
    """Whether any label names a known class."""
    return is_known(labels).any()


def contains_unknown(labels: Tensor):
    """Whether any label marks an outlier."""
    return is_unknown(labels).any()


def contains_known_and_unknown(labels: Tensor):
    """Whether there are labels of both kinds."""
    return contains_known(labels) & contains_unknown(labels)


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
            **{c: i for i, c in enumerate(sorted(known))},
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
