"""OpenMax: the detector, and in `numpy` and `libnotmr` the parts that it is made of."""

from ood.compat.detector.openmax.torch import OpenMax

__all__ = ["OpenMax"]
