"""The test sets of ODIN: 10,000 images of 32x32 each, cut out of larger sets or resized.

Source: Liang, Li and Srikant, "Enhancing the reliability of out-of-distribution image detection in
neural networks", ICLR 2018, arXiv 1706.02690.
"""

from ood.compat.dataset.base import RegistrySet


class TinyImageNetCrop(RegistrySet):
    """Tiny ImageNet, random crops (our set "Imagenet"). Labels are -1."""

    row, mode = "Imagenet", "RGB"


class TinyImageNetResize(RegistrySet):
    """Tiny ImageNet, resized to 32x32 (our set "Imagenet_resize"). Labels are -1."""

    row, mode = "Imagenet_resize", "RGB"


class LSUNCrop(RegistrySet):
    """LSUN, random crops (our set "LSUN"). Labels are -1."""

    row, mode = "LSUN", "RGB"


class LSUNResize(RegistrySet):
    """LSUN, resized to 32x32 (our set "LSUN_resize"). Labels are -1."""

    row, mode = "LSUN_resize", "RGB"
