"""ImageNet's relatives: adversarial, outlying, rendered and corrupted images."""

from __future__ import annotations

from ood.compat.dataset.base import RegistrySet, check_choice
from ood.compat.dataset.img.base import ImageDatasetBase
from ood.data.registry.shift import IMAGENET_C


class ImageNetA(RegistrySet):
    """ImageNet-A: 7,500 natural images of 200 classes that a ResNet-50 gets wrong.

    Labels are the places of the class folders in string order, 0 to 199.

    Attributes:
        classes, class_to_idx: names of the class folders, and the label of each.
        samples, imgs: (path, label) of each image.

    Source: Hendrycks et al., "Natural adversarial examples", CVPR 2021, arXiv 1907.07174.
    """

    row, labelled = "imagenet_a", True

    @property
    def classes(self) -> list[str]:
        return sorted({path.split("/")[0] for path in self.found.paths})

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def samples(self) -> list[tuple[str, int]]:
        return list(zip(self.files, self.labels.tolist()))

    @property
    def imgs(self) -> list[tuple[str, int]]:
        return self.samples


class ImageNetO(ImageNetA):
    """ImageNet-O: 2,000 images of classes that ImageNet-1k does not have.

    Labels are the places of the class folders, as in pytorch-ood, not -1: give
    `target_transform=ToUnknown()` to use the set as OOD data.

    Source: as ImageNet-A.
    """

    row = "imagenet_o"


class ImageNetR(ImageNetA):
    """ImageNet-R: 30,000 renditions (art, cartoons, toys and more) of 200 classes.

    Labels are the places of the class folders in string order, 0 to 199.

    Source: Hendrycks et al., "The many faces of robustness", ICCV 2021, arXiv 2006.16241.
    """

    row = "imagenet_r"


class ImageNetC(ImageDatasetBase):
    """ImageNet-C: the validation images under the corruptions of one family, 5 severities each.

    Order: corruptions as in `ood.data.registry.shift.IMAGENET_C`, then severity, class, file.
    Labels are the classes 0 to 999. pytorch-ood lists the folders of the corruptions instead of
    images, so that it cannot read an item.

    Args:
        subset: "blur", "digital", "extra", "noise" or "weather".

    Raises: ValueError for another subset. DatasetError if the set is missing.

    Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261.
    """

    subset_list = sorted(IMAGENET_C)
    labelled = True

    def __init__(self, root, subset, transform=None, target_transform=None, download=False):
        check_choice("subset", subset, self.subset_list)
        self.row = f"imagenet_c_{subset}"
        super().__init__(root, transform, target_transform, download)
