"""RoadAnomaly: animals, rocks and other things on roads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ood.compat.dataset.img.masks import MaskedSet


class RoadAnomaly(MaskedSet):
    """RoadAnomaly, 60 photographs. Masks (H, W) float32: 0 ID, -1 outlier.

    Args:
        root: data root.
        transform: function of (image, mask), gives both.
        download: fetch the set if it is missing.

    Raises: DatasetError (a RuntimeError) if the set is missing, not whole, or cannot be fetched.
    Source: Lis et al., "Detecting the unexpected via image resynthesis", ICCV 2019, arXiv
        1904.07595.
    """

    dtype = torch.float32
    whole = True

    def __init__(
        self,
        root: str,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        download: bool = False,
    ) -> None:
        self.transform = transform
        super().__init__("roadanomaly", "test", root, download, transform)
