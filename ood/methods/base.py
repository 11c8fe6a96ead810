"""What a trainable method is, and how one is found by its name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ood.config import InputError, nearest
from ood.training.context import Context
from ood.training.runs import Run

__all__ = ["Context", "Method", "get", "names"]

MODULES = {
    "heatmap": "ood.methods.heatmap",
    "leaveout": "ood.methods.leaveout",
    "vmdls": "ood.methods.vmdls",
    "autoencoder": "ood.methods.vmdls",
}


class Method(ABC):
    """A trained method: made by `load`, it scores images. `train` writes the run folder that `load` reads."""

    name: ClassVar[str]
    Settings: ClassVar[type]  # frozen dataclass: the keys of a config that belong to the method

    classifier: nn.Module | None = (
        None  # the classifier whose detectors may be compared with the method, if it has one
    )
    preprocess = None  # its normalisation

    @classmethod
    @abstractmethod
    def train(cls, settings, context: Context) -> Run:
        """Train to the end (or from where it stopped, when context.resume) and return the run folder."""

    @classmethod
    @abstractmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> Method:
        """The trained method: from a weight file or run folder, else from the newest run of exactly these settings."""

    @abstractmethod
    def score(self, images) -> Tensor:
        """(N,) scores of an ImageSet, larger = OOD."""

    def accuracy(self, images) -> float | None:
        """Share of labelled images that the method classifies correctly; None when it does not classify."""
        return None


def names() -> list[str]:
    return list(MODULES)


def get(name: str) -> type[Method]:
    """The method's class. Raises InputError for an unknown name."""
    if name not in MODULES:
        raise InputError(
            f"unknown method '{name}'{nearest(name, MODULES)}; methods: {', '.join(MODULES)}"
        )
    module = importlib.import_module(MODULES[name])
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and getattr(c, "name", None) == name
    )
