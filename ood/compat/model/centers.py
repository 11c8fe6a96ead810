"""The class centres of `ood.losses`, under pytorch-ood's path."""

from ood.losses import ClassCenters, RunningCenters

__all__ = ["ClassCenters", "RunningCenters"]
