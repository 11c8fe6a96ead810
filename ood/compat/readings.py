"""One view of detectors of every kind: what they read of the images, how they fit, how they score.

A detector may be one of these:

- ours (`ood.detectors`), which reads the features and the head of a `network`;
- one of `ood.compat.detector`, or pytorch-ood's own, which holds what it reads: a `model`, an
  `encoder` or a `backbone`;
- an object of yours with `predict_logits`, `predict_features` or `predict_feature_maps`, or with
  `predict(images)`. Where it learns, it has the fit of that name. It may hold a `model`, an
  `encoder` or a `backbone`; without one it reads the `network`.

`Together` forwards images once for all of them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ood.compat import base
from ood.compat.sharing import Shared
from ood.config import InputError
from ood.detectors import Detector as Formula
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.outputs import Forward, Head, Outputs

# what an array-level call is about -> the attribute that holds the function of images behind it
HELD_AS = {"logits": "model", "features": "encoder", "feature_maps": "backbone"}


@dataclass(eq=False)
class Reading:
    """A detector, and the function of images that it reads.

    Attributes:
        kind: "logits", "features", "feature_maps", "images" (it reads the images themselves), or
            "outputs" (one of `ood.detectors`).
        function: images -> what it reads; None for "images".
        fit_seconds, seconds: what fits and scores took so far, without the pass that it shares.
    """

    detector: object
    kind: str
    function: Callable[[Tensor], Tensor] | None = None
    fit_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def learns(self) -> bool:
        """Whether it has to be fitted."""
        own = getattr(self.detector, "requires_fit", None)
        return hasattr(self.detector, self._fit_name) if own is None else bool(own)

    def waits(self, values: Tensor) -> bool:
        """Whether it scores a whole set at once, from rows (N, D)."""
        return self.kind in ("features", "outputs") or self.kind == "logits" and values.dim() == 2

    def fit(self, *values) -> None:
        """Fit to what the function gives for ID images, and their labels; else to a loader."""
        call, began = getattr(self.detector, self._fit_name), time.perf_counter()
        try:
            inspect.signature(call).bind(*values)
        except TypeError:  # it takes no labels
            values = values[:1]
        call(*values)
        self.fit_seconds += time.perf_counter() - began

    def score(self, values) -> Tensor:
        """Score (N,) what the function gives for N images, or the images, or Outputs."""
        began = time.perf_counter()
        if self.kind == "images":
            scores = getattr(self.detector, "predict", self.detector)(values)
        elif self.kind == "outputs":
            scores = chunked_score(self.detector, values)
        else:
            with torch.no_grad():
                scores = getattr(self.detector, f"predict_{self.kind}")(values)
        scores = torch.as_tensor(scores).detach().cpu()
        self.seconds += time.perf_counter() - began
        return scores

    @property
    def _fit_name(self) -> str:
        return "fit" if self.kind in ("images", "outputs") else f"fit_{self.kind}"


@dataclass(frozen=True)
class LastMap:
    """Images -> the last feature map of a network that gives a list of them."""

    network: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        maps = self.network.feature_maps(images)
        return maps if isinstance(maps, Tensor) else maps[-1]


def reading(detector, network: nn.Module | None = None) -> Reading:
    """Find out what a detector reads.

    Args: network: what our detectors read, and objects that hold no network.

    Raises: InputError for an object that is no detector, or that needs a network and got none.
    """
    if isinstance(detector, Formula):
        if not (hasattr(network, "features") and hasattr(network, "fc")):
            raise InputError(
                f"{type(detector).__name__} reads the features and the last layer of a network: "
                "give network=, with features(x) and fc (models.adapt makes one of any network)"
            )
        detector.check(network)
        return Reading(detector, "outputs", network.features)
    if not _has_own_way(detector):
        for kind, held_as in HELD_AS.items():
            if hasattr(detector, f"predict_{kind}"):
                held = getattr(detector, held_as, None)
                function = _piece(network, kind) if held is None else held
                if function is not None:
                    return Reading(detector, kind, function)
    if hasattr(detector, "predict") or callable(detector):
        return Reading(detector, "images")
    arrays = [f"predict_{kind}" for kind in HELD_AS if hasattr(detector, f"predict_{kind}")]
    if arrays:
        raise InputError(
            f"{type(detector).__name__} has {arrays[0]} and holds no network: give network="
        )
    raise InputError(
        f"{type(detector).__name__} is no detector: it has none of predict(images), "
        f"{', '.join(f'predict_{kind}' for kind in HELD_AS)}"
    )


def is_detector(thing) -> bool:
    """Tell whether something can be scored with, at least by its names."""
    arrays = (f"predict_{kind}" for kind in HELD_AS)
    return callable(thing) or any(hasattr(thing, name) for name in ("score", "predict", *arrays))


def _has_own_way(detector) -> bool:
    """Whether images go through its `predict`: it uses gradients, or overrides the way there."""
    names = {cls.__name__ for cls in type(detector).__mro__}
    if names & {"GradientDetector", "StructuredDetector"}:
        return True
    if not isinstance(detector, base.Detector):
        return False
    ways = ("predict", "_represent")
    return any(getattr(type(detector), way) is not getattr(base.Detector, way) for way in ways)


def _piece(network: nn.Module | None, kind: str) -> Callable[[Tensor], Tensor] | None:
    """The function of a network that gives logits, features or feature maps; None without one."""
    if network is None or kind == "logits":
        return network
    if kind == "features":
        return getattr(network, "features", None)
    return LastMap(network) if hasattr(network, "feature_maps") else None


@dataclass
class Passed:
    """What one pass over a set gave.

    Attributes:
        labels: of the images, as the loader gives them.
        arrays: {function: (N, D), or (N, ...) for a fit}.
        scores: {place of a detector: (N,)}, of those that score batch by batch.
        ours: parts of the Outputs that our detectors read, by name.
    """

    labels: Tensor
    arrays: dict[Callable, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    ours: dict[str, Tensor] = field(default_factory=dict)


class Together:
    """Detectors of any kind that see each batch together: one pass for all that share a network.

    Args:
        detectors: of any kind, see the module.
        device: they and their networks are moved there.
        network: what our detectors read, and objects that hold no network. Default: the one network
            behind the other detectors.
        std: of the normalisation of the images, per channel, for our detectors that move pixels.

    Raises: InputError as `reading` does.
    """

    def __init__(
        self,
        detectors: Sequence,
        *,
        device: torch.device | str = "cpu",
        network: nn.Module | None = None,
        std: Sequence[float] | None = None,
    ):
        self.device = torch.device(device)
        network = _common_network(detectors) if network is None else network
        self.readings = [reading(detector, network) for detector in detectors]
        for part in (network, *(one.detector for one in self.readings if one.kind != "outputs")):
            if hasattr(part, "to"):
                part.to(self.device)
        ours = [one.detector for one in self.readings if one.kind == "outputs"]
        beside = {d.key: d for d in ours if isinstance(d, ImageDetector)}
        taps, self.forward = any("taps" in d.needs for d in ours), None
        if beside or taps:  # the features alone do not do
            same = _AsGiven(beside, std)
            self.forward = Forward(network, same, self.device, "fp32", taps, beside)
        self.head = getattr(network, "fc", None)
        self.functions = list(dict.fromkeys(self._function(one) for one in self.readings))
        self.functions = [function for function in self.functions if function is not None]
        self._shared: dict[tuple, Shared] = {}

    def fit(
        self,
        batches: Iterable,
        have: dict[Callable, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Fit all that learn, to ID images. One pass, and one each for those that read images.

        Args:
            batches: (images, labels), from the beginning each time that it is iterated.
            have: see `run`; labels: of these arrays.
        """
        have, learners = have or {}, [one for one in self.readings if one.learns]
        readers = [one for one in learners if one.kind != "images"]
        if all(one.function in have for one in readers) and not self.forward:
            passed = self.passed(have, labels)
        else:
            passed = self.run(batches, have, readers, fitting=True)
        for one in learners:
            if one.kind == "images":
                one.fit(batches)
            elif one.kind == "outputs":
                one.fit(self.outputs(passed))
            else:
                one.fit(passed.arrays[one.function], passed.labels)

    def scores(self, passed: Passed) -> list[Tensor]:
        """Scores (N,) of each detector, after a pass."""
        outputs = None
        found = []
        for place, one in enumerate(self.readings):
            if place in passed.scores:
                found.append(passed.scores[place])
            elif one.kind == "outputs":
                outputs = outputs or self.outputs(passed)
                found.append(one.score(outputs))
            else:
                found.append(one.score(passed.arrays[one.function]))
        return found

    def run(
        self,
        batches: Iterable,
        have: dict[Callable, Tensor] | None = None,
        readings: Sequence[Reading] | None = None,
        fitting: bool = False,
    ) -> Passed:
        """Forward batches of (images, labels) once.

        Args:
            have: arrays of functions that need not be computed again.
            readings: the detectors that take part; default: all.
            fitting: keep what they read instead of scoring it.
        """
        readings = self.readings if readings is None else readings
        have = {
            function: values
            for function, values in (have or {}).items()
            if all(one.waits(values) for one in readings if one.function == function)
        }
        wanted = [self._function(one) for one in readings]
        needed = tuple(f for f in self.functions if f in wanted and f not in have)
        shared = self._shared.setdefault(needed, Shared(needed))
        parts: dict[tuple, list[Tensor]] = {}
        add = lambda *key, value: parts.setdefault(key, []).append(value.detach().cpu())
        for x, y in batches:
            x = x.to(self.device)
            values = dict(zip(needed, shared(x))) if needed else {}
            add("labels", value=torch.as_tensor(y))
            for function, value in values.items():
                if fitting or any(
                    one.waits(value) for one in readings if self._function(one) == function
                ):
                    flat = _is_flat(function, readings)
                    add("arrays", function, value=value.flatten(1) if flat else value)
            if self.forward and any(one.kind == "outputs" for one in readings):
                for name, value in self.forward(x).items():
                    add("ours", name, value=value)
            for place, one in enumerate(self.readings if not fitting else ()):
                if one.function in have or one not in readings:
                    continue
                seen = x if one.function is None else values.get(one.function)
                if one.kind == "images" or seen is not None and not one.waits(seen):
                    add("scores", place, value=one.score(seen))
        if not parts:
            raise InputError("the loader gave no batch")
        whole = {key: torch.cat(parts.pop(key)) for key in list(parts)}
        kept = lambda kind: {key[1]: value for key, value in whole.items() if key[0] == kind}
        return Passed(whole["labels",], have | kept("arrays"), kept("scores"), kept("ours"))

    def passed(self, have: dict[Callable, Tensor], labels: Tensor) -> Passed:
        """What `run` would give where the arrays at hand are enough."""
        return Passed(labels, dict(have))

    def needs_pass(self, have: dict[Callable, Tensor]) -> bool:
        """Whether the arrays at hand are not enough to score with all detectors."""
        return bool(self.forward) or any(
            one.function is None or not one.waits(have.get(one.function, _NOTHING))
            for one in self.readings
        )

    def outputs(self, passed: Passed) -> Outputs:
        """Outputs for our detectors."""
        weight = self.head.weight.detach().float().cpu()
        bias = weight.new_zeros(len(weight)) if self.head.bias is None else self.head.bias
        head, ours = Head(weight, bias.detach().float().cpu()), passed.ours
        if not self.forward:
            features = next(
                passed.arrays[one.function] for one in self.readings if one.kind == "outputs"
            ).float()
            return Outputs(features, head(features), passed.labels.long(), head)
        taps = sorted((name for name in ours if name.startswith("tap")), key=lambda n: int(n[3:]))
        return Outputs(
            ours["features"],
            ours["logits"],
            passed.labels.long(),
            head,
            tuple(ours[name] for name in taps),
            {name.removeprefix("score-"): v for name, v in ours.items() if "score-" in name},
        )

    def _function(self, one: Reading) -> Callable | None:
        return None if one.kind == "outputs" and self.forward else one.function


_NOTHING = torch.zeros(0)


class _AsGiven:
    """Leaves images as they are; says the std of their normalisation. See `ood.data.Preprocess`."""

    def __init__(self, detectors: dict, std: Sequence[float] | None):
        if std is None and detectors:
            names = ", ".join(sorted(d.name for d in detectors.values()))
            raise InputError(f"{names} moves pixels: give norm_std=, the normalisation's std")
        self.std = tuple(std or ())

    def __call__(self, images: Tensor) -> Tensor:
        return images


def _is_flat(function: Callable, readings: Sequence[Reading]) -> bool:
    """Whether what a function gives is read as rows (N, D), whatever its shape."""
    kinds = {one.kind for one in readings if one.function == function}
    return not kinds & {"feature_maps", "logits"}


def _common_network(detectors: Sequence) -> nn.Module | None:
    """The network behind the detectors' functions, if it is one that has features and fc."""
    found = {}
    for detector in detectors:
        for held_as in HELD_AS.values():
            held = getattr(detector, held_as, None)
            held = getattr(held, "__self__", held)
            if isinstance(held, nn.Module) and hasattr(held, "features") and hasattr(held, "fc"):
                found[held] = None
    return next(iter(found)) if len(found) == 1 else None
