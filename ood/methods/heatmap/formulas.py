"""Formulas of the heatmap decoder: score and loss of a map."""

from __future__ import annotations

from torch import Tensor


def score_of(maps: Tensor) -> Tensor:
    """Score each map by the mean over pixels of max_c |h|.

    Args:
        maps: (B, C, H, W) in (-1, 1).
    Returns: (B,) in [0, 1). Larger means OOD.
    """
    return maps.abs().amax(1).mean((1, 2))


def weighted_errors(maps: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Return (B,): the sum over (C, H, W) of (1 + 5 |t|) (h + x - t)^2.

    Args:
        maps, images, targets: h, x and t, each (B, C, H, W); x and t are in [-1, 1].
    """
    return ((1 + 5 * targets.abs()) * (maps + images - targets).square()).flatten(1).sum(1)
