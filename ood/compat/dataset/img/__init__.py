"""Image data sets under pytorch-ood's names; `ood.compat.dataset.base` says how they work."""

from ood.compat.dataset.img.base import ImageDatasetBase
from ood.compat.dataset.img.odin import (
    LSUNCrop,
    LSUNResize,
    TinyImageNetCrop,
    TinyImageNetResize,
)

__all__ = [
    "ImageDatasetBase",
    "LSUNCrop",
    "LSUNResize",
    "TinyImageNetCrop",
    "TinyImageNetResize",
]
