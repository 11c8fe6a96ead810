"""Sound under pytorch-ood's names."""

from ood.compat.dataset.audio.fsdd import FSDD

__all__ = ["FSDD"]
