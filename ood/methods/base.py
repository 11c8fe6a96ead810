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

# Bounds of settings that no sensible value reaches.
MOST = 10**9  # epochs, images, features
MOST_CLASSES = 10**6
MOST_PIXELS = 10**5  # side of an image
SEEDS = (0, 2**32 - 1)  # NumPy's old generator takes these


class Method(ABC):
    """A trained method. `train` writes the run folder that `load` reads; `score` scores images.

    Attributes:
        Settings: frozen dataclass whose fields are the config keys that belong to the method.
        classifier: the network whose detectors are compared with the method, or None.
        preprocess: the normalisation of the classifier's input, or None.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]

    classifier: nn.Module | None = None
    preprocess = None

    @classmethod
    @abstractmethod
    def train(cls, settings, context: Context) -> Run:
        """Train to the end and return the run folder. Continue a run when context.resume is set."""

    @classmethod
    @abstractmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> Method:
        """Load the trained method from a weight file or a run folder.

        Without `checkpoint`, take the newest run of exactly these settings.
        """

    @abstractmethod
    def score(self, images) -> Tensor:
        """Return the scores (N,) of an ImageSet. Larger means OOD."""

    def variants(self) -> dict:
        """Return further scores of this method to report beside it: {label: has score(images)}."""
        return {}

    def accuracy(self, images) -> float | None:
        """Return the share of labelled images that the method classifies correctly.

        None when the method does not classify.
        """
        return None


def names() -> list[str]:
    return list(MODULES)


def get(name: str) -> type[Method]:
    """Return the class of a method. Raises InputError for an unknown name."""
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
