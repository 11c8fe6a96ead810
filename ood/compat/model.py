"""Class centres of pytorch_ood.model. Networks are in `models` of this repository."""

from ood.losses import ClassCenters, RunningCenters

__all__ = ["ClassCenters", "RunningCenters"]
