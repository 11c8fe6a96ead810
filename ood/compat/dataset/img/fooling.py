"""Images that networks name with confidence, and people cannot name.

Source: Nguyen, Yosinski and Clune, "Deep neural networks are easily fooled", CVPR 2015, arXiv
1412.1897.
"""

from ood.compat.dataset.img.base import ImageDatasetBase


class FoolingImages(ImageDatasetBase):
    """10,000 evolved images: 10 runs, 1,000 images each. Labels are -1."""

    row = "fooling"
