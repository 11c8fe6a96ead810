"""The parts of pytorch_ood.model that hold no architecture; networks are in this repository's `models`."""

from ood.losses import ClassCenters, RunningCenters

__all__ = ["ClassCenters", "RunningCenters"]
