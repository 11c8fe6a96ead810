"""What a detector is, and the registry of all of them."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ood.config import InputError, build, nearest
from ood.outputs import Outputs, Pass

_REGISTRY: dict[str, type[Detector]] = {}


def register(name: str):
    """Class decorator: put a detector under its short name. Hyper-parameters are the fields of the (data)class."""
    def decorate(cls):
        if name in _REGISTRY:
            raise ValueError(f"two detectors are called '{name}'")
        cls = dataclasses.dataclass(eq=False)(cls)
        cls.name = name
        _REGISTRY[name] = cls
        return cls
    return decorate


def names() -> list[str]:
    """Short names of all detectors, sorted."""
    return sorted(_REGISTRY)


def create(name: str, **hyperparameters) -> Detector:
    """The detector called `name`. Raises InputError for an unknown name or hyper-parameter."""
    if name not in _REGISTRY:
        raise InputError(f"unknown detector '{name}'{nearest(name, names())}; detectors: {', '.join(names())}")
    return build(_REGISTRY[name], hyperparameters, f"detector '{name}'")


def parse(text: str) -> tuple[str, dict]:
    """'dice:percentile=70,clip=1.0' -> ('dice', {'percentile': 70, 'clip': 1.0}); values are JSON, else plain text."""
    name, _, rest = text.partition(":")
    values = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"detector '{text}': '{item}' is not of the form key=value (dice:percentile=70)")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return name, values


class Detector(ABC):
    """Scores outputs of a classifier; a larger score means more likely out-of-distribution.

    A subclass is a dataclass: its fields are the hyper-parameters. `fit` looks at the training set's outputs (only when
    `requires_fit`), `score` at any batch.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})      # of: logits, features, taps, images

    @property
    def requires_fit(self) -> bool:
        """Whether `fit` must see the training set's outputs before `score`."""
        return False

    def fit(self, train: Outputs) -> Detector:
        """Learn from ID training outputs; returns self."""
        return self

    @abstractmethod
    def score(self, batch: Outputs) -> Tensor:
        """(N,) scores of N images, larger = OOD."""


class ImageDetector(Detector):
    """A detector that needs the images and the network: it runs batch by batch inside the one pass over a data set."""

    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    needs_gradient: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """Name of its scores in the cache: the short name and a digest of the hyper-parameters."""
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    @abstractmethod
    def score_images(self, batch: Pass) -> Tensor:
        """(B,) scores of one batch inside the pass."""

    def score(self, batch: Outputs) -> Tensor:
        """The scores that the pass left in the outputs."""
        if self.key not in batch.scores:
            raise InputError(f"detector '{self.name}' needs images: extract(..., image_detectors=[detector]) first")
        return batch.scores[self.key]


def chunked_score(detector: Detector, outputs: Outputs) -> Tensor:
    """Scores of all rows in bounded memory, float64, (N,). Raises InputError when a score is NaN."""
    scores = torch.cat([detector.score(chunk).double().reshape(-1) for chunk in outputs.chunks()]) if len(outputs) else torch.zeros(0)
    if torch.isnan(scores).any():
        raise InputError(f"detector '{detector.name}' gave NaN for {int(torch.isnan(scores).sum())} of {len(scores)} images; "
                         "are the features finite?")
    return scores
