"""Textures, also called DTD.

Source: Cimpoi et al., "Describing textures in the wild", CVPR 2014, arXiv 1311.3618.
"""

from ood.compat.dataset.base import RegistrySet


class Textures(RegistrySet):
    """5,640 images of 47 textures. Labels are -1."""

    row = "dtd"
