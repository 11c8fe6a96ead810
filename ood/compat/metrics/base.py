"""What all metrics share: batches come in one after another, values come out at the end.

Classes to derive a metric of your own from:

    BufferedMetric    keeps all inputs. Define `keys` and `_compute_from(data)`, where
                      data["scores"] is (N,).
    StreamingMetric   keeps a state of fixed size. Define `keys`, `_update(inputs)`, `_compute()`
                      and `_reset()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from ood.compat.metrics import functional
from ood.config import InputError
from ood.metrics import SortedScores

__all__ = ["BufferedMetric", "Metric", "MetricCollection", "StreamingMetric"]


class Values(dict):
    """All values that a metric was given, by the name of the input: {name: (N,)}."""

    @cached_property
    def sides(self) -> tuple[SortedScores, SortedScores]:
        """The scores of ID and of OOD, sorted once for all metrics of a collection."""
        return functional.split(self["scores"], self["labels"])


class Metric:
    """The calls that every metric has: update, compute, reset, and one call for a single batch.

    Attributes:
        inputs: what update takes, in this order or by name.
        optional: those of `inputs` that may be missing. They are given in every update or in none.
        needs_id, needs_ood: whether the metric has no value without ID, or without OOD.
        single: whether it may be part of a collection, or of PerImage.
    """

    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needs_id = needs_ood = False
    single = True

    def __init__(self, *, device=None, void_label: int | None = None):
        """Args: device: where inputs are kept, None: the CPU. void_label: such entries are ignored.

        Raises: InputError for a void_label below 0.
        """
        if void_label is not None and void_label < 0:
            raise InputError(f"void_label is {void_label}: labels below 0 mean OOD")
        self.device = None if device is None else torch.device(device)
        self.void_label = void_label

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in the result of compute."""
        raise NotImplementedError

    def reset(self) -> Metric:
        """Forget all batches."""
        self._reset()
        return self

    def update(self, *args: Tensor, **kwargs: Tensor) -> Metric:
        """Add a batch of tensors of one shape, each entry of which is an image or a pixel.

        Raises: TypeError for arguments that are not `inputs` or no tensors. InputError for missing
            ones, different shapes, and an optional input that only some batches have.
        """
        batch = self._entries(self._match(*args, **kwargs))
        if len(next(iter(batch.values()))):
            device = self.device or "cpu"
            self._update({key: t.to(device, copy=True) for key, t in batch.items()})
        return self

    def compute(self) -> dict[str, float]:
        """Compute {name: value} from all batches. Raises InputError where it has no value."""
        found = self._compute()
        return dict(zip(found, map(float, found.values())))

    def _update(self, inputs: dict[str, Tensor]) -> None:
        """Take in a batch that `update` has checked: {name: (N,)} with N > 0."""
        raise NotImplementedError

    def _compute(self) -> dict:
        raise NotImplementedError

    def _reset(self) -> None:
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _match(self, *args, **kwargs) -> dict[str, Tensor]:
        """Match the arguments of update with `inputs`, and check them."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        accepted = inspect.Signature([inspect.Parameter(name, kind) for name in self.inputs])
        try:
            bound = accepted.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(
                f"{self._name}.update takes {', '.join(self.inputs)}: {error}"
            ) from None
        given = {key: part for key, part in bound.items() if part is not None}
        if wrong := [key for key, part in given.items() if not torch.is_tensor(part)]:
            kind = type(given[wrong[0]]).__name__
            raise TypeError(f"{self._name}.update: {wrong[0]} is a {kind}, not a tensor")
        lacking = [n for n in self.inputs if n not in given and n not in self.optional]
        if lacking:
            raise InputError(f"{self._name}.update lacks {', '.join(lacking)}")
        if len({value.shape for value in given.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
            raise InputError(f"{self._name}.update: the shapes differ: {shapes}")
        return {name: value.detach() for name, value in given.items()}

    def _entries(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Flatten a batch, without the entries that have the void label."""
        if self.void_label is None or "labels" not in batch:
            return {name: value.reshape(-1) for name, value in batch.items()}
        counts = batch["labels"] != self.void_label
        return {name: value[counts.to(value.device)] for name, value in batch.items()}


class StreamingMetric(Metric):
    """A metric with a state of fixed size, such as a count."""


class BufferedMetric(Metric):
    """A metric that keeps its inputs and computes from all of them."""

    def __init__(self, *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self._batches: list[dict[str, Tensor]] = []

    def _update(self, inputs: dict[str, Tensor]) -> None:
        self._batches.append(inputs)

    def _reset(self) -> None:
        self._batches = []

    def _values(self) -> Values:
        """All inputs. They are concatenated once and kept so."""
        if not self._batches:
            raise InputError(f"{self._name}: no scores yet, call update(scores, labels) first")
        if len(self._batches) > 1:
            names = self._batches[0]
            self._batches = [{key: torch.cat([b[key] for b in self._batches]) for key in names}]
        return Values(self._batches[0])

    def _compute(self) -> dict:
        return self._compute_from(self._values())

    def _compute_from(self, data: Values) -> dict:
        """Compute {name: value} from all inputs, {name: (N,)}."""
        raise NotImplementedError


class MetricCollection(BufferedMetric):
    """Several metrics, whose inputs are kept and sorted once. update takes them by name.

    Raises: InputError for no metric, for two of one name, and for metrics that are collections,
        PerImage, or have a device or a void_label of their own.
    """

    single = False

    def __init__(self, metrics: Iterable[Metric], *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.metrics = list(metrics)
        if not self.metrics or len(set(self.keys)) < len(self.keys):
            names = ", ".join(self.keys) or "none"
            raise InputError(
                f"MetricCollection takes one metric or more, of different names; got {names}"
            )
        for metric in self.metrics:
            if not metric.single:
                raise InputError(f"MetricCollection takes single metrics, not {metric._name}")
            leave_entries_to("MetricCollection", metric)
        named = [name for metric in self.metrics for name in metric.inputs]
        self.inputs = tuple(dict.fromkeys(named))
        self.needs_id = any(metric.needs_id for metric in self.metrics)
        self.needs_ood = any(metric.needs_ood for metric in self.metrics)
        self._given: set[str] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return sum((metric.keys for metric in self.metrics), ())

    def update(self, **inputs: Tensor) -> MetricCollection:
        return super().update(**inputs)

    def _match(self, *args, **kwargs) -> dict[str, Tensor]:
        batch = super()._match(*args, **kwargs)
        if self._given not in (None, set(batch)):
            some = ", ".join(sorted(set(batch) ^ self._given))
            raise InputError(f"{self._name}: give {some} in every update or in no update")
        return batch

    def _fed(self) -> list[Metric]:
        """Those metrics all of whose inputs are given."""
        return [metric for metric in self.metrics if set(metric.inputs) <= (self._given or set())]

    def _update(self, inputs: dict[str, Tensor]) -> None:
        """Keep what buffered metrics need, once. Hand the rest on."""
        self._given, kept = set(inputs), {}
        for metric in self._fed():
            part = {key: inputs[key] for key in metric.inputs}
            if isinstance(metric, BufferedMetric):
                kept |= part
            else:
                metric._update(part)
        super()._update(kept)

    def _reset(self) -> None:
        super()._reset()
        self._given = None
        for metric in self.metrics:
            metric.reset()

    def _compute_from(self, data: Values) -> dict:
        found = {}
        for metric in self._fed():
            whole = isinstance(metric, BufferedMetric)
            found |= metric._compute_from(data) if whole else metric._compute()
        return found


def leave_entries_to(owner: str, metric: Metric) -> None:
    """Raise InputError for a metric inside another one that has a device or a void_label itself."""
    if (metric.device, metric.void_label) != (None, None):
        raise InputError(
            f"{owner} needs device and void_label for itself; {metric._name} must have neither"
        )
