"""NINCO, a set that was checked by hand for objects of ImageNet.

Source: Bitterwolf, Mueller and Hein, "In or out? Fixing ImageNet out-of-distribution detection
evaluation", ICML 2023, arXiv 2306.00826.
"""

from ood.compat.dataset.img.base import ImageDatasetBase


class NINCO(ImageDatasetBase):
    """5,879 images of 64 classes. Labels are -1.

    The paper computes its metrics class by class and averages them; metrics over the whole set
    differ a little.
    """

    row = "ninco"
