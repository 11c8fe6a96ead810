"""What a detector is, and the registry of all detectors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from ood import statistics
from ood.config import InputError, build, check_setting, nearest
from ood.outputs import Outputs, Pass

_REGISTRY: dict[str, type[Detector]] = {}
_ALIASES: dict[str, str] = {}
COMMA = re.compile(r",(?![^\[]*\])")  # not a comma inside [...], which belongs to a list
SEEDS = (0, 2**63 - 1)  # the least and largest seed of a random draw
COUNTS = (1, 2**31 - 1)  # of numbers that the images or features at hand limit anyway


class NotFitted(InputError, AttributeError):
    """A detector that learns from the training set was asked for a score before `fit`."""

    def __init__(self, msg: str = "fit the detector on the training set's outputs first"):
        super().__init__(msg)


def register(name: str, *aliases: str):
    """Class decorator: make the class a dataclass and list it under its short name.

    The fields of the dataclass are the hyper-parameters. `ood.config.ranged` gives a field the
    range of its numbers.
    """

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
    """Make the detector called `name`, which is a short name or an alias.

    Raises: InputError for an unknown name or hyper-parameter, and for a value out of its range.
    """
    known = _ALIASES.get(name, name)
    if known not in _REGISTRY:
        hint = nearest(name, [*_REGISTRY, *_ALIASES])
        raise InputError(f"unknown detector '{name}'{hint}; detectors: {', '.join(names())}")
    return build(_REGISTRY[known], hyperparameters, f"detector '{name}'")


def restore(name: str, hyperparameters: dict) -> Detector:
    """Make a detector that was saved, perhaps before some of its hyper-parameters existed.

    A field that is missing takes the value that its absence meant then (`formerly`).

    Raises: InputError as `create` does.
    """
    formerly = type(create(name)).formerly
    return create(name, **{**formerly, **hyperparameters})


def parse(text: str) -> tuple[str, dict]:
    """Split 'dice:percentile=70,clip=1.0' into ('dice', {'percentile': 70, 'clip': 1.0}).

    A value is read as JSON; what is not JSON stays text.

    Raises: InputError for a part that is not of the form key=value.
    """
    name, _, rest = text.partition(":")
    values = {}
    for item in filter(None, COMMA.split(rest)):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(
                f"detector '{text}': '{item}' is not of the form key=value (dice:percentile=70)"
            )
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return name, values


class Detector(ABC):
    """Score the outputs of a classifier: a larger score means more likely out-of-distribution.

    A subclass is a dataclass whose fields are the hyper-parameters. `fit` looks at the outputs of
    the training set, and only if `requires_fit`. `score` looks at any batch. `fit` keeps what it
    learns in plain attributes: tensors, numbers, lists of these, or other detectors.
    """

    name: ClassVar[str]
    # the value that a field had before it existed, for what was saved then: {field: value}
    formerly: ClassVar[dict] = {}
    # the parts of `Outputs` that it reads: logits, features, taps, maps, images
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    # whether it works on a feature extractor: it reads neither logits nor head
    headless: ClassVar[bool] = False

    @property
    def requires_fit(self) -> bool:
        """Whether `fit` must see the training set's outputs before `score`.

        By default that is so for every class that writes a `fit` of its own.
        """
        return type(self).fit is not Detector.fit

    def __setattr__(self, name: str, value) -> None:
        """Check a hyper-parameter whenever it is set. Raises InputError."""
        if name in _fields(type(self)):
            label = getattr(type(self), "name", type(self).__name__)
            value = check_setting(type(self), name, value, f"detector '{label}': '{name}'")
        object.__setattr__(self, name, value)

    def check(self, network: nn.Module) -> None:
        """Raise InputError if this detector cannot work with the network.

        It is called before the first pass. The choice `all` leaves such detectors out. A subclass
        that has more to check calls this first.
        """
        if not self.headless and getattr(network, "headless", False):
            raise InputError(
                f"{self.name}: this network gives features and no logits; choose a detector of "
                "features alone (knn, mds, rmds, ssd, residual, kpca, ...), or fit a linear head "
                "on the ID training features with -head linear"
            )

    def fit(self, train: Outputs) -> Detector:
        """Learn from the ID training outputs and return self. Negative labels are skipped."""
        return self

    @abstractmethod
    def score(self, batch: Outputs) -> Tensor:
        """Score N images: (N,), larger = OOD."""

    def hyperparameters(self) -> dict:
        """{field: value}, as `create` takes them."""
        return dataclasses.asdict(self)

    def state(self) -> dict[str, Tensor | float | int | str | None]:
        """Everything that `fit` learned, as a flat dict. It is empty before `fit`.

        Keys of nested detectors and lists read 'attribute.key'. A detector made by
        `create(name, **hyperparameters).load_state(state)` gives the same scores as this one and
        needs no training set.
        """
        return {key: value for name, held in self._learned() for key, value in _flatten(name, held)}

    def load_state(self, state: dict) -> Detector:
        """Take over what `state` returned, and return self.

        Raises: InputError for a key that does not fit this detector, or that none of its methods
            uses.
        """
        lists: dict[str, dict[int, Tensor | float]] = {}
        nested: dict[str, dict] = {}
        taken = {*dir(type(self)), *_fields(type(self))}
        for key, value in state.items():
            name, dot, rest = key.partition(".")
            if name in taken or name not in _mentioned(type(self)) or name.startswith("_"):
                raise InputError(f"detector '{self.name}' learns no '{name}': '{key}' is no part")
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
        """Move what was learned to a device, and return self."""
        for name, held in self._learned():
            if isinstance(held, (Tensor, Detector)):
                setattr(self, name, held.to(device))
            elif isinstance(held, list):
                setattr(self, name, [x.to(device) if isinstance(x, Tensor) else x for x in held])
        return self

    def _learned(self) -> Iterator[tuple[str, object]]:
        return (
            (name, held)
            for name, held in list(vars(self).items())
            if name not in _fields(type(self)) and not name.startswith("_")
        )

    def __getattr__(self, name: str):
        if not name.startswith("_") and self.requires_fit:
            raise NotFitted(
                f"detector '{self.name}' has no '{name}': "
                "fit it on the training set's outputs first"
            )
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")


@functools.cache
def _fields(cls: type[Detector]) -> frozenset[str]:
    """Names of the hyper-parameters of a detector's class."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return frozenset(f.name for f in fields)


@functools.cache
def _mentioned(cls: type[Detector]) -> frozenset[str]:
    """Names of the attributes and variables that the methods of a class and its parents use.

    What `fit` learns is among them. A stored value of another name can have no effect.
    """
    codes = [
        function.__code__
        for parent in cls.__mro__
        for held in vars(parent).values()
        if hasattr(function := getattr(held, "__func__", getattr(held, "fget", held)), "__code__")
    ]
    found: set[str] = set()
    while codes:
        code = codes.pop()
        found.update(code.co_names)
        codes += [inner for inner in code.co_consts if hasattr(inner, "co_names")]
    return frozenset(found)


class ImageDetector(Detector):
    """A detector that needs the images and the network. It runs inside the one pass, per batch.

    `score_images` returns scores (B,), or measurements (B, K) that `score` turns into scores.
    The cache keeps both.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    needs_gradient: ClassVar[bool] = True
    # whether `fit` reads measurements of the training set, so that the pass over it runs this too
    measures_train: ClassVar[bool] = False
    # whether score_images depends on what was fitted
    uses_fit: ClassVar[bool] = False
    # the fields that score_images depends on; None for all
    measured_by: ClassVar[tuple[str, ...] | None] = None

    @property
    def key(self) -> str:
        """Name of the measurements in the cache: the short name and a digest.

        The digest covers the hyper-parameters that the measurements depend on, and what was
        fitted if `uses_fit`.
        """
        settings = {
            k: v
            for k, v in self.hyperparameters().items()
            if self.measured_by is None or k in self.measured_by
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.state().items()) if self.uses_fit else ():
            content = value.cpu().numpy().tobytes() if isinstance(value, Tensor) else value
            digest.update(f"{name}={content}".encode())
        return f"{self.name}-{digest.hexdigest()[:12]}"

    @abstractmethod
    def score_images(self, batch: Pass) -> Tensor:
        """Score or measure one batch inside the pass: (B,) or (B, K)."""

    def measured(self, batch: Outputs) -> Tensor:
        """Return what the pass measured: (N,) or (N, K).

        Raises: InputError if the pass ran without this detector.
        """
        if self.key not in batch.scores:
            raise InputError(
                f"detector '{self.name}' needs images: "
                "extract(..., image_detectors=[detector]) first"
            )
        return batch.scores[self.key]

    def score(self, batch: Outputs) -> Tensor:
        return self.measured(batch)


def chunked_score(detector: Detector, outputs: Outputs) -> Tensor:
    """Score all rows in bounded memory: (N,) float64.

    Raises: InputError if an input that the detector reads is not finite, or a score is NaN.
    """
    with torch.no_grad():
        scores = (
            torch.cat([_scored(detector, chunk) for chunk in outputs.chunks()])
            if len(outputs)
            else torch.zeros(0)
        )
    if torch.isnan(scores).any():
        raise InputError(
            f"detector '{detector.name}' gave NaN for {int(torch.isnan(scores).sum())} of "
            f"{len(scores)} images; are the features finite?"
        )
    return scores


def _scored(detector: Detector, chunk: Outputs) -> Tensor:
    """Score one chunk. A row gets NaN where an array that the detector reads is not finite."""
    chunk = statistics.single(chunk)
    scores = detector.score(chunk).double().reshape(-1)
    for values in _read_by(detector, chunk):
        if not statistics.all_finite(values):
            finite = torch.isfinite(values).reshape(len(scores), -1).all(1)
            scores = scores.masked_fill(~finite, float("nan"))
    return scores


def _read_by(detector: Detector, chunk: Outputs) -> list[Tensor]:
    """The arrays of a chunk that `detector` reads: features, logits, measurements or taps."""
    read = [getattr(chunk, part) for part in ("features", "logits") if part in detector.needs]
    if isinstance(detector, ImageDetector):
        return [*read, detector.measured(chunk)]
    return [*read, *chunk.taps] if "taps" in detector.needs else read


def possible(
    detectors: dict[str, Detector], network: nn.Module
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Split `detectors` into those that work with this network and the reasons the others do not.

    Both are dicts keyed by label.
    """
    left_out = {}
    for label, detector in detectors.items():
        try:
            detector.check(network)
        except InputError as error:
            left_out[label] = str(error)
    kept = {label: detector for label, detector in detectors.items() if label not in left_out}
    return kept, left_out


def _flatten(name: str, held) -> Iterator[tuple[str, Tensor | float | int | str | None]]:
    if isinstance(held, Detector):
        yield from ((f"{name}.{key}", value) for key, value in held.state().items())
    elif isinstance(held, (list, tuple)):
        yield from ((f"{name}.{i}", value) for i, value in enumerate(held))
    else:
        yield name, held


def size(detector: Detector) -> int:
    """Count the bytes of what `fit` learned."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, Tensor) else 8
        for value in detector.state().values()
    )
