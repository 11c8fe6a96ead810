"""What a trainable method is, and what a script hands to it."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ood import provenance
from ood.config import InputError, nearest, to_dict
from ood.outputs import Cache
from ood.training.runs import Run

MODULES = {
    "heatmap": "ood.methods.heatmap",
    "leaveout": "ood.methods.leaveout",
    "vmdls": "ood.methods.vmdls",
    "autoencoder": "ood.methods.vmdls",
}


@dataclass(frozen=True)
class Context:
    """Everything that is not a setting of the method: where things are, on what to compute, how to speak."""

    networks: ModuleType  # the package `models`; a script introduces it, `ood` never imports it
    device: torch.device = torch.device("cpu")
    data_dir: str | Path = "./datasets"
    checkpoints_dir: str | Path = "./checkpoints"
    out_dir: str | Path | None = None  # of a training run; None: checkpoints_dir/<stem>_<timestamp>
    resume: bool = False
    download: bool = False
    limit: int | None = None  # at most so many images per set
    cache: Cache | None = None  # of forward passes
    progress: Callable[..., Iterable] | None = None
    log: Callable[[str], None] = lambda line: None
    deterministic: bool = False  # deterministic kernels on a GPU too, slower
    tensorboard: bool = False  # also write events for TensorBoard into the run folder

    def begin(
        self, run: Run, settings, digests: dict[str, str], resumed: bool = False, **sizes: int
    ) -> None:
        """Write into the run's log what is needed to repeat it: command, settings, versions, machine, digests and numbers of images."""
        run.log(
            {
                "event": "resume" if resumed else "start",
                **sizes,
                **provenance.provenance(
                    sys.argv, to_dict(settings), settings.seed, self.device, digests, {}
                ),
            }
        )


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
