"""The detector OpenMax."""

from ood.compat.arrays import OpenMax

__all__ = ["OpenMax"]
