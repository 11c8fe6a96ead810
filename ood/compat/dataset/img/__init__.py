"""Image data sets under pytorch-ood's names; `ood.compat.dataset.base` says how they work."""

from ood.compat.dataset.img.base import ImageDatasetBase
from ood.compat.dataset.img.fishyscapes import FishyScapes, LostAndFound
from ood.compat.dataset.img.mvtech import MVTechAD
from ood.compat.dataset.img.odin import (
    LSUNCrop,
    LSUNResize,
    TinyImageNetCrop,
    TinyImageNetResize,
)
from ood.compat.dataset.img.roadanomaly import RoadAnomaly
from ood.compat.dataset.img.smiyc import SegmentMeIfYouCan
from ood.compat.dataset.img.streethazards import StreetHazards

__all__ = [
    "FishyScapes",
    "ImageDatasetBase",
    "LSUNCrop",
    "LSUNResize",
    "LostAndFound",
    "MVTechAD",
    "RoadAnomaly",
    "SegmentMeIfYouCan",
    "StreetHazards",
    "TinyImageNetCrop",
    "TinyImageNetResize",
]
