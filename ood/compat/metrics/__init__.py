"""pytorch-ood's metrics, over `ood.metrics`.

    metrics = OODMetrics()
    metrics.update(scores, labels)  # batch by batch
    metrics.compute()  # {name: fraction}

OOD has labels below 0 and is the positive class. AUPR is average precision, as everywhere here;
pytorch-ood joins the points of its curve by straight lines. The papers' FPR95, the share of OOD
accepted with 95 % of ID, is `ood.metrics.evaluate(...).fpr95`.
"""

from __future__ import annotations

import inspect
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


class Values(dict):
    """All values that a metric was given, by the name of the input: {name: (N,)}."""

    @cached_property
    def sides(self) -> tuple[SortedScores, SortedScores]:
        """The scores of ID and of OOD, sorted once for all metrics of a collection."""
        return functional.split(self["scores"], self["labels"])


class Metric:
    """A metric that keeps its inputs and computes from all of them.

    A metric of your own defines `keys` and `of`, and `inputs` where it takes others.

    Attributes:
        inputs: what update takes, in this order or by name.
        optional: those of `inputs` that may be missing. They are given in every update or in none.
        needs_id, needs_ood: whether the metric has no value without ID, or without OOD.
    """

    inputs: tuple[str, ...] = ("scores", "labels")
    optional: tuple[str, ...] = ()
    needs_id = needs_ood = True

    def __init__(self, *, device=None, void_label: int | None = None):
        """Args: device: where inputs are kept, None: the CPU. void_label: such entries are ignored.

        Raises: InputError for a void_label below 0.
        """
        if void_label is not None and void_label < 0:
            raise InputError(f"void_label is {void_label}: labels below 0 mean OOD")
        self.device, self.void_label = device, void_label
        self.reset()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in the result of compute."""
        raise NotImplementedError

    def of(self, values: Values) -> dict[str, float]:
        """Compute {name: value} from all inputs."""
        raise NotImplementedError

    def reset(self) -> Metric:
        """Forget all batches."""
        self._batches: list[dict[str, Tensor]] = []
        return self

    def update(self, *args: Tensor, **kwargs: Tensor) -> Metric:
        """Add a batch of tensors of one shape, each entry of which is an image or a pixel.

        Raises: TypeError for arguments that are not `inputs` or no tensors. InputError for missing
            ones, different shapes, and an optional input that only some batches have.
        """
        batch = self._match(*args, **kwargs)
        if self._batches and set(batch) != set(self._batches[0]):
            some = ", ".join(sorted(set(batch) ^ set(self._batches[0])))
            raise InputError(f"{self._name}: give {some} in all calls of update or in none")
        batch = self._entries(batch)
        if batch["labels"].numel():
            device = self.device or "cpu"
            self._batches.append({key: t.to(device, copy=True) for key, t in batch.items()})
        return self

    def compute(self) -> dict[str, float]:
        """Compute {name: value} from all batches. Raises InputError where it has no value."""
        if not self._batches:
            raise InputError(f"{self._name}: no scores yet, call update(scores, labels) first")
        names = self._batches[0]
        values = Values({key: torch.cat([b[key] for b in self._batches]) for key in names})
        return {key: float(value) for key, value in self.of(values).items()}

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
        given = {name: value for name, value in bound.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{self._name}.update: {name} is a {type(value).__name__}, not a tensor"
                )
        lacking = [n for n in self.inputs if n not in given and n not in self.optional]
        if lacking:
            raise InputError(f"{self._name}.update lacks {', '.join(lacking)}")
        if len({value.shape for value in given.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
            raise InputError(f"{self._name}.update: the shapes differ: {shapes}")
        return {name: value.detach() for name, value in given.items()}

    def _entries(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Flatten a batch, without the entries that have the void label."""
        if self.void_label is None:
            return {name: value.reshape(-1) for name, value in batch.items()}
        counts = batch["labels"] != self.void_label
        return {name: value[counts.to(value.device)] for name, value in batch.items()}


class _OfScores(Metric):
    """A metric of scores and labels alone."""

    def update(self, scores: Tensor, labels: Tensor) -> Metric:
        return super().update(scores, labels)


class AUROC(_OfScores):
    """Area under the ROC curve."""

    keys = ("AUROC",)

    def of(self, values: Values) -> dict[str, float]:
        return {"AUROC": evaluate(*values.sides).auroc}


class AUPR(_OfScores):
    """Average precision, with 'ood' (AUPR-OUT) or 'id' (AUPR-IN) as the positive class."""

    def __init__(self, positive: str = "ood", *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.positive = functional.known_side(positive)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("AUPR-OUT" if self.positive == "ood" else "AUPR-IN",)

    def of(self, values: Values) -> dict[str, float]:
        found = evaluate(*values.sides)
        return {self.keys[0]: found.aupr_out if self.positive == "ood" else found.aupr_in}


class FPRAtTPR(_OfScores):
    """Share of ID flagged where at least `tpr` of OOD is flagged. `tpr` is a fraction."""

    def __init__(self, tpr: float = 0.95, *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.tpr = functional.known_tpr(tpr)

    @property
    def keys(self) -> tuple[str, ...]:
        return (f"FPR{100 * self.tpr:g}TPR",)

    def of(self, values: Values) -> dict[str, float]:
        return {self.keys[0]: functional.fpr_of(*values.sides, self.tpr)}


class AUTC(_OfScores):
    """Area under the threshold curve; see `functional.autc`.

    For constant or infinite scores it is NaN, with a warning.
    """

    keys = ("AUTC",)

    def of(self, values: Values) -> dict[str, float]:
        low, high = functional.range_of(*values.sides)
        if not 0 < high - low < float("inf"):
            warnings.warn(f"AUTC is NaN: the scores range from {low} to {high}", stacklevel=3)
            return {"AUTC": float("nan")}
        return {"AUTC": functional.autc(values["scores"], values["labels"])}


class Accuracy(Metric):
    """Share of ID images whose predicted class is their label."""

    inputs, keys, needs_ood = ("predictions", "labels"), ("ACC",), False

    def update(self, predictions: Tensor, labels: Tensor) -> Metric:
        return super().update(predictions, labels)

    def of(self, values: Values) -> dict[str, float]:
        return {"ACC": functional.accuracy(values["predictions"], values["labels"])}


class MetricCollection(Metric):
    """Several metrics, whose inputs are kept and sorted once. update takes them by name.

    Raises: InputError for no metric, for two of one name, and for metrics that are collections,
        PerImage, or have a device or a void_label of their own.
    """

    def __init__(self, metrics: Iterable[Metric], *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.metrics = list(metrics)
        if not self.metrics or len(set(self.keys)) < len(self.keys):
            names = ", ".join(self.keys) or "none"
            raise InputError(
                f"MetricCollection takes one metric or more, of different names; got {names}"
            )
        for metric in self.metrics:
            if isinstance(metric, (MetricCollection, PerImage)):
                raise InputError(f"MetricCollection takes single metrics, not {metric._name}")
            _leaves_entries_to("MetricCollection", metric)
        named = [name for metric in self.metrics for name in metric.inputs]
        self.inputs = tuple(dict.fromkeys(named))
        self.needs_id = any(metric.needs_id for metric in self.metrics)
        self.needs_ood = any(metric.needs_ood for metric in self.metrics)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for metric in self.metrics for key in metric.keys)

    def update(self, **inputs: Tensor) -> MetricCollection:
        return super().update(**inputs)

    def of(self, values: Values) -> dict[str, float]:
        found = {}
        for metric in self.metrics:
            if all(name in values for name in metric.inputs):
                found.update(metric.of(values))
        return found


class OODMetrics(MetricCollection):
    """AUROC, AUTC, AUPR-IN, AUPR-OUT and FPR95TPR; with predictions also ACC.

    Args: fpr_at: the fraction of OOD flagged at which FPR is reported; 0.9 gives FPR90TPR.
    """

    optional = ("predictions",)

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__([*_usual(fpr_at), Accuracy()], device=device, void_label=void_label)

    def update(
        self, scores: Tensor, labels: Tensor, predictions: Tensor | None = None
    ) -> OODMetrics:
        return super().update(scores=scores, labels=labels, predictions=predictions)


class OODSegmentationMetrics(MetricCollection):
    """The metrics of OODMetrics, without ACC, over the pixels of all images together."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(_usual(fpr_at), device=device, void_label=void_label)

    def update(self, scores: Tensor, labels: Tensor) -> OODSegmentationMetrics:
        return super().update(scores=scores, labels=labels)


class PerImage(Metric):
    """A metric of the pixels of each image, averaged over images, which are the first axis.

    Images where the metric has no value are skipped, with a warning. They have no ID pixels, no
    OOD pixels, or void pixels only.

    Raises: InputError for a metric that takes no labels, is per image itself, or has a device or a
        void_label of its own.
    """

    def __init__(self, metric: Metric, *, device=None, void_label: int | None = None):
        if isinstance(metric, PerImage) or "labels" not in metric.inputs:
            raise InputError(f"PerImage takes a metric of pixels with labels, not {metric._name}")
        _leaves_entries_to("PerImage", metric)
        self.metric, self.inputs, self.optional = metric, metric.inputs, metric.optional
        super().__init__(device=device, void_label=void_label)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.metric.keys

    def reset(self) -> PerImage:
        self.found: list[dict[str, float]] = []  # results of the images that count
        self.skipped = 0
        return self

    def update(self, *args: Tensor, **kwargs: Tensor) -> PerImage:
        batch = self._match(*args, **kwargs)
        if not batch["labels"].dim():
            raise InputError(f"{self._name}.update: there is no axis of images")
        for row in range(len(batch["labels"])):
            image = self._entries({name: value[row] for name, value in batch.items()})
            if self._has_value(image["labels"]):
                result = self.metric.of(Values(image))
                self.found.append({name: float(value) for name, value in result.items()})
            else:
                self.skipped += 1
        return self

    def _has_value(self, labels: Tensor) -> bool:
        """Whether the metric has a value for an image with these labels (N,)."""
        ood = int((labels < 0).sum())
        enough_ood = ood > 0 or not self.metric.needs_ood
        enough_id = ood < len(labels) or not self.metric.needs_id
        return len(labels) > 0 and enough_ood and enough_id

    def compute(self) -> dict[str, float]:
        if not self.found:
            raise InputError(
                f"{self._name}: no image has both ID and OOD pixels; {self.skipped} were skipped"
            )
        if self.skipped:
            warnings.warn(
                f"{self._name}: {self.skipped} of {self.skipped + len(self.found)} images have "
                "no ID or no OOD pixels and do not count",
                stacklevel=2,
            )
        names = self.found[0]
        return {name: sum(f[name] for f in self.found) / len(self.found) for name in names}


class OODPerImageSegmentationMetrics(PerImage):
    """OODSegmentationMetrics of every image, averaged over the images."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(MetricCollection(_usual(fpr_at)), device=device, void_label=void_label)

    def update(self, scores: Tensor, labels: Tensor) -> OODPerImageSegmentationMetrics:
        return super().update(scores, labels)


def _usual(fpr_at: float) -> list[Metric]:
    return [AUROC(), AUTC(), AUPR("id"), AUPR("ood"), FPRAtTPR(fpr_at)]


def _leaves_entries_to(owner: str, metric: Metric) -> None:
    """Raise InputError for a metric inside another one that has a device or a void_label itself."""
    if metric.device is not None or metric.void_label is not None:
        raise InputError(
            f"{owner} needs device and void_label for itself; {metric._name} must have neither"
        )
