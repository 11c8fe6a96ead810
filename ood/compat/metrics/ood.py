"""The metrics of scores and labels, and of predictions and labels."""

from __future__ import annotations

import warnings

from torch import Tensor

from ood.compat.metrics import functional
from ood.compat.metrics.base import (
    BufferedMetric,
    Metric,
    MetricCollection,
    StreamingMetric,
    Values,
)
from ood.config import InputError
from ood.metrics import evaluate

__all__ = ["AUPR", "AUROC", "AUTC", "Accuracy", "FPRAtTPR", "OODMetrics"]


class _OfScores(BufferedMetric):
    """A metric of scores and labels alone."""

    inputs, needs_id, needs_ood = ("scores", "labels"), True, True

    def update(self, scores: Tensor, labels: Tensor) -> Metric:
        return super().update(scores, labels)


class AUROC(_OfScores):
    """Area under the ROC curve."""

    keys = ("AUROC",)

    def _compute_from(self, data: Values) -> dict:
        return {"AUROC": evaluate(*data.sides).auroc}


class AUPR(_OfScores):
    """Average precision. The positive class is 'ood' for AUPR-OUT, and 'id' for AUPR-IN."""

    def __init__(self, positive: str = "ood", *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.positive = functional.known_side(positive)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("AUPR-OUT" if self.positive == "ood" else "AUPR-IN",)

    def _compute_from(self, data: Values) -> dict:
        found = evaluate(*data.sides)
        return {self.keys[0]: found.aupr_out if self.positive == "ood" else found.aupr_in}


class FPRAtTPR(_OfScores):
    """Share of ID flagged where at least `tpr` of OOD is flagged. `tpr` is a fraction."""

    def __init__(self, tpr: float = 0.95, *, device=None, void_label: int | None = None):
        super().__init__(device=device, void_label=void_label)
        self.tpr = functional.known_tpr(tpr)

    @property
    def keys(self) -> tuple[str, ...]:
        return (f"FPR{100 * self.tpr:g}TPR",)

    def _compute_from(self, data: Values) -> dict:
        return {self.keys[0]: functional.fpr_of(*data.sides, self.tpr)}


class AUTC(_OfScores):
    """Area under the threshold curve; see `functional.autc`.

    For constant or infinite scores it is NaN, with a warning.
    """

    keys = ("AUTC",)

    def _compute_from(self, data: Values) -> dict:
        low, high = functional.range_of(*data.sides)
        if not 0 < high - low < float("inf"):
            warnings.warn(f"AUTC is NaN: the scores range from {low} to {high}", stacklevel=4)
            return {"AUTC": float("nan")}
        return {"AUTC": functional.autc(data["scores"], data["labels"])}


class Accuracy(StreamingMetric):
    """Share of ID images whose predicted class is their label."""

    inputs, keys, needs_id = ("predictions", "labels"), ("ACC",), True
    correct = count = 0

    def update(self, predictions: Tensor, labels: Tensor) -> Metric:
        return super().update(predictions, labels)

    def _update(self, inputs: dict[str, Tensor]) -> None:
        known = inputs["labels"] >= 0
        self.correct += int((inputs["predictions"] == inputs["labels"])[known].sum())
        self.count += int(known.sum())

    def _compute(self) -> dict:
        if not self.count:
            raise InputError("Accuracy has no value: no label of an ID image was given")
        return {"ACC": self.correct / self.count}

    def _reset(self) -> None:
        self.correct = self.count = 0


class OODMetrics(MetricCollection):
    """AUROC, AUTC, AUPR-IN, AUPR-OUT and FPR95TPR; with predictions also ACC.

    Args: fpr_at: the fraction of OOD flagged at which FPR is reported; 0.9 gives FPR90TPR.
    """

    optional = ("predictions",)

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__([*of_scores(fpr_at), Accuracy()], device=device, void_label=void_label)

    def update(
        self, scores: Tensor, labels: Tensor, predictions: Tensor | None = None
    ) -> OODMetrics:
        return super().update(scores=scores, labels=labels, predictions=predictions)


def of_scores(fpr_at: float) -> list[Metric]:
    """The metrics that need scores and labels alone."""
    return [AUROC(), AUTC(), *map(AUPR, ("id", "ood")), FPRAtTPR(tpr=fpr_at)]
