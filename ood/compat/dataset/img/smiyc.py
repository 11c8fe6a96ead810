"""SegmentMeIfYouCan: RoadAnomaly21 and RoadObstacle21."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ood.compat.dataset.img.masks import MaskedSet, chosen

ROWS = {"RoadAnomaly21": "roadanomaly21", "RoadObstacle21": "roadobstacle21"}


class SegmentMeIfYouCan(MaskedSet):
    """The images with a public mask: 10 of RoadAnomaly21, 30 of RoadObstacle21.

    Masks (H, W) int64: 0 ID, -1 outlier, `VOID_LABEL` does not count.

    Args:
        root: data root.
        subset: "RoadAnomaly21" or "RoadObstacle21".
        transform: function of (image, mask), gives both.
        download: fetch the set if it is missing.

    Raises: DatasetError (a RuntimeError) if the set is missing, not whole, or cannot be fetched;
        InputError (a ValueError) for an unknown subset.
    Source: Chan et al., "SegmentMeIfYouCan", NeurIPS 2021, arXiv 2104.14812.
    """

    VOID_LABEL = 1
    subset_list = list(ROWS)
    dataset_length = {"RoadAnomaly21": 10, "RoadObstacle21": 30}
    whole = True

    def __init__(
        self,
        root: str,
        subset: str,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        download: bool = False,
    ) -> None:
        self.transform = transform
        name = ROWS[chosen(subset, ROWS, "subset")]
        super().__init__(name, "test", root, download, transform)
