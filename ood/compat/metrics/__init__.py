"""pytorch-ood's metrics: update(scores, labels) batch by batch, compute() -> {name: fraction}, reset(). OOD has labels below 0 and is positive.

AUPR is average precision, as everywhere here; pytorch-ood joins the points of the curve by straight lines. The papers' FPR95, the share of OOD
accepted with 95 % of ID, is `ood.metrics.evaluate(...).fpr95`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from ood.compat.metrics import functional
from ood.compat.metrics.functional import aurra, calc_openness, calibration_error, oscr_score
from ood.config import InputError
from ood.metrics import SortedScores, evaluate

__all__ = [
    "AUPR",
    "AUROC",
    "AUTC",
    "Accuracy",
    "FPRAtTPR",
    "Metric",
    "MetricCollection",
    "OODMetrics",
    "OODPerImageSegmentationMetrics",
    "OODSegmentationMetrics",
    "PerImage",
    "aurra",
    "calc_openness",
    "calibration_error",
    "functional",
    "oscr_score",
]


class _Data(dict):
    """{input: values (N,)}; the scores are sorted once for all metrics."""

    @cached_property
    def pair(self) -> tuple[SortedScores, SortedScores]:
        return functional.split(self["scores"], self["labels"])


class Metric:
    """Keeps its inputs, on `device` (default: the CPU), and computes from all of them. Entries labelled `void_label` do not count."""

    inputs: tuple[str, ...] = ("scores", "labels")
    optional: tuple[str, ...] = ()  # inputs given in all calls of update or in none
    needs_id = needs_ood = True

    def __init__(self, *, device=None, void_label: int | None = None):
        if void_label is not None and void_label < 0:
            raise InputError(f"void_label is {void_label}: labels below 0 mean OOD")
        self.device, self.void_label = device, void_label
        self.reset()

    @property
    def keys(self) -> tuple[str, ...]:
        """The names that compute gives."""
        raise NotImplementedError

    def of(self, data: _Data) -> dict[str, float]:
        """{name: value} of all inputs."""
        raise NotImplementedError

    def reset(self) -> Metric:
        self.kept: dict[str, list[Tensor]] = {}
        return self

    def update(self, *args: Tensor, **kwargs: Tensor) -> Metric:
        """Add a batch: `inputs` in their order or by name, all of one shape. Every entry is an image, or a pixel."""
        self._keep(self._flat(self._named(args, kwargs)))
        return self

    def compute(self) -> dict[str, float]:
        if not self.kept.get("labels"):
            raise InputError(
                f"{type(self).__name__}: no scores yet, call update(scores, labels) first"
            )
        return {
            name: float(value)
            for name, value in self.of(
                _Data({name: torch.cat(parts) for name, parts in self.kept.items()})
            ).items()
        }

    def _keep(self, given: dict[str, Tensor]) -> None:
        if self.kept and set(given) != set(self.kept):
            raise InputError(
                f"{type(self).__name__}: give {', '.join(sorted(set(given) ^ set(self.kept)))} in all calls of update or in none"
            )
        for name, values in given.items():
            self.kept.setdefault(name, []).append(values.to(self.device or "cpu", copy=True))

    def _named(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        named = dict(zip(self.inputs, args))
        if (
            len(args) > len(self.inputs)
            or set(kwargs) - set(self.inputs)
            or set(kwargs) & set(named)
        ):
            raise TypeError(f"{type(self).__name__}.update takes {', '.join(self.inputs)}")
        given = {
            name: torch.as_tensor(values).detach()
            for name, values in {**named, **kwargs}.items()
            if values is not None
        }
        missing = set(self.inputs) - set(self.optional) - set(given)
        if missing:
            raise InputError(f"{type(self).__name__}.update lacks {', '.join(sorted(missing))}")
        if len({values.shape for values in given.values()}) > 1:
            raise InputError(
                f"{type(self).__name__}: shapes differ: {', '.join(f'{name} {tuple(values.shape)}' for name, values in given.items())}"
            )
        return given

    def _flat(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: values.reshape(-1) for name, values in given.items()}
        keep = slice(None) if self.void_label is None else given["labels"] != self.void_label
        return {
            name: values[keep.to(values.device) if isinstance(keep, Tensor) else keep]
            for name, values in given.items()
        }


class AUROC(Metric):
    keys = ("AUROC",)

    def of(self, data: _Data) -> dict[str, float]:
        return {"AUROC": evaluate(*data.pair).auroc}


class AUPR(Metric):
    def __init__(self, positive: str = "ood", *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        if positive not in ("ood", "id"):
            raise InputError(f"AUPR: positive is 'ood' or 'id', got {positive!r}")
        self.positive = positive

    @property
    def keys(self) -> tuple[str, ...]:
        return ("AUPR-OUT" if self.positive == "ood" else "AUPR-IN",)

    def of(self, data: _Data) -> dict[str, float]:
        found = evaluate(*data.pair)
        return {self.keys[0]: found.aupr_out if self.positive == "ood" else found.aupr_in}


class FPRAtTPR(Metric):
    """Share of ID flagged where at least `tpr` of OOD is."""

    def __init__(self, tpr: float = 0.95, *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        if not 0 <= tpr <= 1:
            raise InputError(f"FPRAtTPR: tpr is a fraction between 0 and 1, got {tpr}")
        self.tpr = tpr

    @property
    def keys(self) -> tuple[str, ...]:
        return (f"FPR{100 * self.tpr:g}TPR",)

    def of(self, data: _Data) -> dict[str, float]:
        return {self.keys[0]: functional.fpr_of(*data.pair, self.tpr)}


class AUTC(Metric):
    """See `functional.autc`; NaN, with a warning, for constant or infinite scores."""

    keys = ("AUTC",)

    def of(self, data: _Data) -> dict[str, float]:
        known, novel = data.pair
        low, high = min(known.values[0], novel.values[0]), max(known.values[-1], novel.values[-1])
        if low == high or abs(low) == float("inf") or abs(high) == float("inf"):
            warnings.warn("AUTC is not defined for constant or infinite scores: NaN", stacklevel=3)
            return {"AUTC": float("nan")}
        return {"AUTC": functional.autc(data["scores"], data["labels"])}


class Accuracy(Metric):
    """Share of ID images classified as their label."""

    inputs, keys, needs_ood = ("predictions", "labels"), ("ACC",), False

    def of(self, data: _Data) -> dict[str, float]:
        return {"ACC": functional.accuracy(data["predictions"], data["labels"])}


class MetricCollection(Metric):
    """Several metrics of the same inputs, which are kept and sorted once. update takes them by name."""

    def __init__(self, metrics: Iterable[Metric], *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.metrics = list(metrics)
        names = [key for metric in self.metrics for key in metric.keys]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"MetricCollection: one metric or more, all of different names, got {', '.join(names) or 'none'}"
            )
        if any(
            isinstance(m, (MetricCollection, PerImage))
            or m.device is not None
            or m.void_label is not None
            for m in self.metrics
        ):
            raise InputError(
                "MetricCollection: no collections and no PerImage inside; device and void_label are those of the collection"
            )
        self.inputs = tuple(
            dict.fromkeys(name for metric in self.metrics for name in metric.inputs)
        )
        self.needs_id, self.needs_ood = (
            any(m.needs_id for m in self.metrics),
            any(m.needs_ood for m in self.metrics),
        )

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for metric in self.metrics for key in metric.keys)

    def of(self, data: _Data) -> dict[str, float]:
        return {
            name: value
            for metric in self.metrics
            if set(metric.inputs) <= set(data)
            for name, value in metric.of(data).items()
        }


class OODMetrics(MetricCollection):
    """AUROC, AUTC, AUPR-IN, AUPR-OUT, FPR95TPR (or what `fpr_at` says) and, when predictions are given, ACC."""

    optional = ("predictions",)

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__([*_usual(fpr_at), Accuracy()], device=device, void_label=void_label)

    def update(
        self, scores: Tensor, labels: Tensor, predictions: Tensor | None = None
    ) -> OODMetrics:
        return super().update(scores, labels, predictions)


class OODSegmentationMetrics(MetricCollection):
    """The same over the pixels of all images together."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(_usual(fpr_at), device=device, void_label=void_label)


class PerImage(Metric):
    """The mean over images, the first axis, of a metric of each one's pixels; an image without ID or OOD pixels is skipped, with a warning."""

    def __init__(self, metric: Metric, *, device=None, void_label: int | None = None):
        if (
            isinstance(metric, PerImage)
            or "labels" not in metric.inputs
            or metric.device is not None
            or metric.void_label is not None
        ):
            raise InputError(
                "PerImage: the metric takes labels, is not per image itself, and leaves device and void_label to PerImage"
            )
        self.metric, self.inputs, self.optional = metric, metric.inputs, metric.optional
        super().__init__(device=device, void_label=void_label)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.metric.keys

    def reset(self) -> PerImage:
        self.found: list[dict[str, float]] = []
        self.skipped = 0
        return self

    def update(self, *args: Tensor, **kwargs: Tensor) -> PerImage:
        given = self._named(args, kwargs)
        for i in range(len(given["labels"])):
            image = self._flat({name: values[i] for name, values in given.items()})
            ood = image["labels"] < 0
            if (
                not len(ood)
                or self.metric.needs_ood
                and not ood.any()
                or self.metric.needs_id
                and ood.all()
            ):
                self.skipped += 1
            else:
                self.found.append(
                    {name: float(value) for name, value in self.metric.of(_Data(image)).items()}
                )
        return self

    def compute(self) -> dict[str, float]:
        if not self.found:
            raise InputError(
                f"{type(self).__name__}: no image with both ID and OOD pixels, {self.skipped} were skipped"
            )
        if self.skipped:
            warnings.warn(
                f"{self.skipped} of {self.skipped + len(self.found)} images have no ID or no OOD pixels and are skipped",
                stacklevel=2,
            )
        return {
            name: sum(values[name] for values in self.found) / len(self.found)
            for name in self.found[0]
        }


class OODPerImageSegmentationMetrics(PerImage):
    """`OODSegmentationMetrics` of every image, averaged."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(MetricCollection(_usual(fpr_at)), device=device, void_label=void_label)


def _usual(fpr_at: float) -> list[Metric]:
    return [AUROC(), AUTC(), AUPR("id"), AUPR("ood"), FPRAtTPR(fpr_at)]
