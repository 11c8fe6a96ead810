"""Characters in natural images.

Source: de Campos, Babu and Varma, "Character recognition in natural images", VISAPP 2009.
"""

from ood.compat.dataset.img.base import ImageDatasetBase


class Chars74k(ImageDatasetBase):
    """7,705 images of single characters, English/Img/GoodImg of the collection.

    Labels are the classes 0 to 61 (digits, capitals, small letters), not -1: give
    `target_transform=ToUnknown()` to use the set as OOD data.
    """

    row, labelled = "chars74k", True
