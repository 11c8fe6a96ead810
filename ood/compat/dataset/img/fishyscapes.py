"""Fishyscapes: outliers blended into Cityscapes, and Lost and Found with Fishyscapes' masks."""

from __future__ import annotations

import torch

from ood.compat.dataset.img.masks import MaskedSet, chosen

ROWS = {"1.0.0": "fishyscapes_v1", "2.0.0": "fishyscapes_v2", "3.0.0": "fishyscapes"}


class FishyScapes(MaskedSet):
    """Fishyscapes Static: objects from the web, blended into Cityscapes' validation images.

    Masks (H, W) int64: 0 ID, -1 outlier, `VOID_LABEL` does not count. An outlier is where the
    blending changed a pixel.

    Args:
        root: data root.
        cs_root: Cityscapes' folder leftImg8bit/val, one folder for each city. A person has to get
            it: registration at https://www.cityscapes-dataset.com
        version: "1.0.0" is not blended, "2.0.0" slightly, "3.0.0" well.
        download: fetch the overlays if they are missing.
        transforms: function of (image, mask), gives both.

    Raises: DatasetError (a RuntimeError) if overlays or photographs are missing; InputError for an
        unknown version. pytorch-ood raises AssertionError for that, and finds out that a photograph
        is missing when it is read.
    Source: Blum et al., "The Fishyscapes benchmark", IJCV 2021, arXiv 1904.03215.
    """

    VOID_LABEL = 1

    def __init__(self, root, cs_root, version="3.0.0", download: bool = False, transforms=None):
        self.version, self.cs_root, self.transforms = version, cs_root, transforms
        name = ROWS[chosen(version, ROWS, "version")]
        super().__init__(name, "test", root, download, transforms, cs_root)


class LostAndFound(MaskedSet):
    """Small obstacles on the road, photographed; 100 images with the masks of Fishyscapes.

    Masks (H, W) int32: 0 ID, -1 outlier, `VOID_LABEL` does not count. The image 79 has no outlier.

    Args:
        root: data root.
        download: fetch images and masks if they are missing.
        transforms: function of (image, mask), gives both.

    Raises: DatasetError (a RuntimeError) if the set is missing or cannot be fetched.
    Source: Pinggera et al., "Lost and Found", IROS 2016, arXiv 1609.04653; masks: arXiv 1904.03215.
    """

    VOID_LABEL = 1
    dtype = torch.int32

    def __init__(self, root, download=False, transforms=None):
        self.transforms = transforms
        super().__init__("lostandfound", "test", root, download, transforms)
