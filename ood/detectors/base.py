"""What a detector is, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from ood.config import InputError, build, nearest
from ood.outputs import Outputs, Pass

_REGISTRY: dict[str, type[Detector]] = {}
_ALIASES: dict[str, str] = {}


class NotFitted(InputError, AttributeError):
    """A detector that learns from the training set was asked for a score before `fit`."""


def register(name: str, *aliases: str):
    """Class decorator: put a detector under its short name. Hyper-parameters are the fields of the (data)class."""

    def decorate(cls):
        for word in (name, *aliases):
            if word in _REGISTRY or word in _ALIASES:
                raise ValueError(f"two detectors are called '{word}'")
        cls = dataclasses.dataclass(eq=False)(cls)
        cls.name = name
        _REGISTRY[name] = cls
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return decorate


def names() -> list[str]:
    """Short names of all detectors, sorted."""
    return sorted(_REGISTRY)


def aliases() -> dict[str, str]:
    """{other name: short name}, e.g. OpenOOD's 'ebo' for 'energy'."""
    return dict(_ALIASES)


def create(name: str, **hyperparameters) -> Detector:
    """The detector called `name` (or by an alias). Raises InputError for an unknown name or hyper-parameter."""
    known = _ALIASES.get(name, name)
    if known not in _REGISTRY:
        raise InputError(
            f"unknown detector '{name}'{nearest(name, [*_REGISTRY, *_ALIASES])}; detectors: {', '.join(names())}"
        )
    return build(_REGISTRY[known], hyperparameters, f"detector '{name}'")


def parse(text: str) -> tuple[str, dict]:
    """'dice:percentile=70,clip=1.0' -> ('dice', {'percentile': 70, 'clip': 1.0}); values are JSON, else plain text."""
    name, _, rest = text.partition(":")
    values = {}
    for item in filter(
        None, re.split(r",(?![^\[]*\])", rest)
    ):  # commas inside [...] belong to a list
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(
                f"detector '{text}': '{item}' is not of the form key=value (dice:percentile=70)"
            )
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return name, values


class Detector(ABC):
    """Scores outputs of a classifier; a larger score means more likely out-of-distribution.

    A subclass is a dataclass: its fields are the hyper-parameters. `fit` looks at the training set's outputs (only when
    `requires_fit`), `score` at any batch. What `fit` learns are plain attributes: tensors, numbers, lists of them, detectors.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset(
        {"logits"}
    )  # of: logits, features, taps, maps, images

    @property
    def requires_fit(self) -> bool:
        """Whether `fit` must see the training set's outputs before `score`."""
        return False

    def check(self, network: nn.Module) -> None:  # noqa: B027
        """Raise InputError where this detector cannot work with the network: said before the first pass, and left out of `all`."""

    def fit(self, train: Outputs) -> Detector:
        """Learn from ID training outputs (rows with a negative label are passed over); returns self."""
        return self

    @abstractmethod
    def score(self, batch: Outputs) -> Tensor:
        """(N,) scores of N images, larger = OOD."""

    def hyperparameters(self) -> dict:
        """{field: value}, as `create` takes them."""
        return dataclasses.asdict(self)

    def state(self) -> dict[str, Tensor | float | int | str | None]:
        """All that `fit` learned, flat: nested detectors and lists are spelled 'attribute.key'. Empty before `fit`.

        `create(name, **hyperparameters).load_state(state)` scores as this detector does, without a training set.
        """
        return {key: value for name, held in self._learned() for key, value in _flatten(name, held)}

    def load_state(self, state: dict) -> Detector:
        """Take over what `state` gave; returns self. Raises InputError for a key that does not fit this detector."""
        lists: dict[str, dict[int, Tensor | float]] = {}
        nested: dict[str, dict] = {}
        for key, value in state.items():
            name, dot, rest = key.partition(".")
            if not dot:
                setattr(self, name, value)
            elif isinstance(self.__dict__.get(name), Detector):
                nested.setdefault(name, {})[rest] = value
            elif rest.isdigit():
                lists.setdefault(name, {})[int(rest)] = value
            else:
                raise InputError(
                    f"detector '{self.name}' has no part '{name}' to load '{key}' into"
                )
        for name, items in lists.items():
            setattr(self, name, [items[i] for i in sorted(items)])
        for name, part in nested.items():
            getattr(self, name).load_state(part)
        return self

    def to(self, device: torch.device | str) -> Detector:
        """Move what was learned to a device; returns self."""
        for name, held in self._learned():
            if isinstance(held, (Tensor, Detector)):
                setattr(self, name, held.to(device))
            elif isinstance(held, list):
                setattr(self, name, [x.to(device) if isinstance(x, Tensor) else x for x in held])
        return self

    def _learned(self) -> Iterator[tuple[str, object]]:
        fields = {f.name for f in dataclasses.fields(self)}
        return (
            (name, held)
            for name, held in list(vars(self).items())
            if name not in fields and not name.startswith("_")
        )

    def __getattr__(self, name: str):
        if not name.startswith("_") and self.requires_fit:
            raise NotFitted(
                f"detector '{self.name}' has no '{name}': fit it on the training set's outputs first"
            )
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")


class ImageDetector(Detector):
    """A detector that needs the images and the network: it runs batch by batch inside the one pass over a data set.

    `score_images` gives the scores, or measurements (B, K) from which `score` makes them; both go through the cache.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    needs_gradient: ClassVar[bool] = True
    measures_train: ClassVar[bool] = (
        False  # run it over the training set too: `fit` reads its measurements
    )
    uses_fit: ClassVar[bool] = False  # score_images depends on what was fitted
    measured_by: ClassVar[tuple[str, ...] | None] = (
        None  # fields that score_images depends on; None: all
    )

    @property
    def key(self) -> str:
        """Name of its scores in the cache: the short name and a digest of the hyper-parameters (and of the fit, where it matters)."""
        settings = {
            k: v
            for k, v in self.hyperparameters().items()
            if self.measured_by is None or k in self.measured_by
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.state().items()) if self.uses_fit else ():
            digest.update(
                f"{name}={value.cpu().numpy().tobytes() if isinstance(value, Tensor) else value}".encode()
            )
        return f"{self.name}-{digest.hexdigest()[:12]}"

    @abstractmethod
    def score_images(self, batch: Pass) -> Tensor:
        """(B,) scores, or (B, K) measurements, of one batch inside the pass."""

    def measured(self, batch: Outputs) -> Tensor:
        """What the pass left in the outputs. Raises InputError when the pass ran without this detector."""
        if self.key not in batch.scores:
            raise InputError(
                f"detector '{self.name}' needs images: extract(..., image_detectors=[detector]) first"
            )
        return batch.scores[self.key]

    def score(self, batch: Outputs) -> Tensor:
        return self.measured(batch)


def chunked_score(detector: Detector, outputs: Outputs) -> Tensor:
    """Scores of all rows in bounded memory, float64, (N,). Raises InputError when an input or a score is NaN."""
    with torch.no_grad():
        scores = (
            torch.cat([_scored(detector, chunk) for chunk in outputs.chunks()])
            if len(outputs)
            else torch.zeros(0)
        )
    if torch.isnan(scores).any():
        raise InputError(
            f"detector '{detector.name}' gave NaN for {int(torch.isnan(scores).sum())} of {len(scores)} images; "
            "are the features finite?"
        )
    return scores


def _scored(detector: Detector, chunk: Outputs) -> Tensor:
    """The scores of one chunk; NaN where an input that the detector needs, or what it measured in the pass, is not finite."""
    scores = detector.score(chunk).double().reshape(-1)
    inputs = [
        values
        for part, values in (("features", chunk.features), ("logits", chunk.logits))
        if part in detector.needs
    ]
    inputs += (
        [detector.measured(chunk)]
        if isinstance(detector, ImageDetector)
        else list(chunk.taps)
        if "taps" in detector.needs
        else []
    )
    for values in inputs:
        if not torch.isfinite(values.sum()):
            scores = scores.masked_fill(
                ~torch.isfinite(values).reshape(len(scores), -1).all(1), float("nan")
            )
    return scores


def possible(
    detectors: dict[str, Detector], network: nn.Module
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Those that can work with the network, and why the others cannot, both by label."""
    left_out = {}
    for label, detector in detectors.items():
        try:
            detector.check(network)
        except InputError as error:
            left_out[label] = str(error)
    return {
        label: detector for label, detector in detectors.items() if label not in left_out
    }, left_out


def _flatten(name: str, held) -> Iterator[tuple[str, Tensor | float | int | str | None]]:
    if isinstance(held, Detector):
        yield from ((f"{name}.{key}", value) for key, value in held.state().items())
    elif isinstance(held, (list, tuple)):
        yield from ((f"{name}.{i}", value) for i, value in enumerate(held))
    else:
        yield name, held


def size(detector: Detector) -> int:
    """Bytes of what `fit` learned."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, Tensor) else 8
        for value in detector.state().values()
    )
