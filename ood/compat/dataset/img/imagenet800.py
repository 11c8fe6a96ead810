"""ImageNet-800: the classes of ImageNet that ImageNet-200 leaves out, as auxiliary outliers."""

from __future__ import annotations

from collections.abc import Callable

from ood.compat.dataset.base import RegistrySet
from ood.compat.dataset.img.imagenet200 import training_images
from ood.data.registry.imagenet200 import imagenet800_wnids


class ImageNet800(RegistrySet):
    """All training images of 800 classes, with the label -1: outliers to train with.

    Args:
        root: folder of ImageNet, with train/<wnid>/*.
        transform: function of the image, a PIL image as stored.
        target_transform: function of the label -1.

    Attributes:
        classes: the 800 WordNet ids. samples: path of every image.

    Raises: DatasetError (a RuntimeError) if there are no images.
    Source: Zhang et al., "OpenOOD v1.5", DMLR 2024, arXiv 2306.09301.
    """

    def __init__(
        self,
        root: str,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
    ) -> None:
        self.root, self.transform, self.target_transform = root, transform, target_transform
        self.classes = list(imagenet800_wnids())
        self.found = training_images(root, self.classes)
        self.samples = self.files
