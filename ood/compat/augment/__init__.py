"""pytorch-ood's augmentations: PixMix, and outliers of COCO pasted into scenes.

Random numbers come from torch's default generator, which a DataLoader seeds in each worker.
"""

from ood.compat.augment.img import COCO, InsertCOCO, PixMixDataset

__all__ = ["COCO", "InsertCOCO", "PixMixDataset"]
