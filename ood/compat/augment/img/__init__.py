"""pytorch-ood's augmentations of images."""

from ood.compat.augment.img.cocopaste import COCO, InsertCOCO
from ood.compat.augment.img.pixmix import PixMixDataset

__all__ = ["COCO", "InsertCOCO", "PixMixDataset"]
