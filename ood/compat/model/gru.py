"""The text classifier of `models.gru`, under pytorch-ood's path."""

from ood.deployment import networks

GRUClassifier = networks.submodule("gru").GRUClassifier

__all__ = ["GRUClassifier"]
