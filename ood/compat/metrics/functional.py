"""Metrics of outlier scores and labels in one call, over `ood.metrics`.

OOD has labels below 0 and is the positive class, as in pytorch-ood. Scores and labels may have any
shape, the same for both. All functions raise InputError for different shapes, for NaN among the
scores, and where there is no ID or no OOD.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ood import metrics
from ood.config import InputError
from ood.metrics import SortedScores, cauroc, evaluate, prepare

__all__ = [
    "accuracy",
    "aupr",
    "auroc",
    "aurra",
    "autc",
    "calc_openness",
    "calibration_error",
    "fpr_at_tpr",
    "oscr_score",
    "pr_curve",
    "roc_curve",
]


def flat(*values) -> list[np.ndarray]:
    """Flatten each into an array (N,). Raises InputError when the shapes differ."""
    tensors = [torch.as_tensor(v).detach() for v in values]
    if len({t.shape for t in tensors}) > 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise InputError(f"scores, labels and predictions differ in shape: {shapes}")
    half = (torch.float16, torch.bfloat16)
    tensors = [t.float() if t.dtype in half else t for t in tensors]
    return [t.reshape(-1).cpu().numpy() for t in tensors]


def split(scores, labels) -> tuple[SortedScores, SortedScores]:
    """Sort the scores of ID and of OOD. Raises InputError for NaN, and where either is empty."""
    scores, labels = flat(scores, labels)
    return prepare(scores[labels >= 0]), prepare(scores[labels < 0], "OOD scores")


def known_side(positive: str) -> str:
    """Return 'ood' or 'id', the positive class. Raises InputError for anything else."""
    if positive not in ("ood", "id"):
        raise InputError(f"the positive class is {positive!r}; allowed: 'ood', 'id'")
    return positive


def known_tpr(tpr: float) -> float:
    """Return a fraction in [0, 1]. Raises InputError for anything else."""
    if not 0 <= tpr <= 1:
        raise InputError(f"tpr is {tpr}; it is a fraction, from 0 to 1")
    return tpr


def range_of(known: SortedScores, novel: SortedScores) -> tuple[float, float]:
    """Find the least and the largest of all scores."""
    ends = [float(side.values[end]) for side in (known, novel) for end in (0, -1)]
    return min(ends), max(ends)


def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """P(score of OOD > score of ID) + P(equal) / 2."""
    return _scalar(evaluate(*split(scores, labels)).auroc)


def aupr(scores: Tensor, labels: Tensor, positive: str = "ood") -> Tensor:
    """Average precision, with 'ood' or 'id' positive.

    pytorch-ood joins the points of the curve by straight lines, which is optimistic.
    """
    known_side(positive)
    found = evaluate(*split(scores, labels))
    return _scalar(found.aupr_out if positive == "ood" else found.aupr_in)


def fpr_at_tpr(scores: Tensor, labels: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of ID flagged at the first threshold that flags at least the fraction `tpr` of OOD."""
    known_tpr(tpr)
    return _scalar(fpr_of(*split(scores, labels), tpr))


def fpr_of(known: SortedScores, novel: SortedScores, tpr: float) -> float:
    """Share of ID flagged where at least `tpr` of OOD is; 0 for tpr = 0."""
    return evaluate(known, novel, tpr).fpr95_ood_positive if tpr else 0.0


def autc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the threshold curve: both error rates, averaged over all thresholds.

    For scores s scaled to [0, 1] it is (mean s of ID + 1 - mean s of OOD) / 2. Lower is better.

    Raises: InputError also for constant or infinite scores.
    Source: Humblot-Renaux et al., arXiv 2306.14658. The scaling is pytorch-ood's.
    """
    low, high = range_of(*split(scores, labels))
    if not 0 < high - low < math.inf:
        raise InputError(f"AUTC has no value where the scores range from {low} to {high}")
    scores, labels = flat(scores, labels)
    scaled = (scores.astype(np.float64) - low) / (high - low)
    flagged, accepted = scaled[labels >= 0].mean(), 1 - scaled[labels < 0].mean()
    return _scalar((flagged + accepted) / 2)


def accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of ID images whose predicted class is their label; OOD is left out."""
    predictions, labels = flat(predictions, labels)
    return _scalar(metrics.accuracy(predictions[labels >= 0], labels[labels >= 0]))


def roc_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the ROC curve.

    Returns: fpr (U + 1,) and tpr (U + 1,), from (0, 0) to (1, 1), and the U distinct scores in
        descending order. Point k + 1 belongs to threshold k.
    """
    *flagged, thresholds = _flagged(*split(scores, labels))
    fpr, tpr = (torch.from_numpy(np.append(0.0, n / n[-1])) for n in flagged)
    return fpr, tpr, torch.from_numpy(thresholds)


def pr_curve(
    scores: Tensor, labels: Tensor, positive: str = "ood"
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of precision and recall; the positive class is 'ood' or 'id'.

    Returns: precision (U + 1,) and recall (U + 1,), recall falling to the end (1, 0), and the U
        thresholds in the same order.
    """
    sign = 1 if known_side(positive) == "ood" else -1
    known, novel = split(sign * torch.as_tensor(scores), labels)
    false, true, thresholds = _flagged(known, novel) if sign == 1 else _flagged(novel, known)
    precision = np.append((true / (true + false))[::-1], 1.0)
    recall = np.append((true / true[-1])[::-1], 0.0)
    return tuple(torch.from_numpy(a) for a in (precision, recall, sign * thresholds[::-1]))


def oscr_score(outlier_scores: Tensor, predictions: Tensor, labels: Tensor) -> float:
    """Open-set classification rate.

    The area under the share of ID that is accepted and classified correctly, drawn against the
    share of OOD that is accepted. It equals accuracy * `cauroc`.
    """
    split(outlier_scores, labels)
    scores, predictions, labels = flat(outlier_scores, predictions, labels)
    known = labels >= 0
    correct = (predictions == labels)[known]
    if not correct.any():
        return 0.0
    return float(correct.mean() * cauroc(scores[known], scores[~known], correct))


# Norms of the gaps (K,) of bins that hold the given shares (K,) of the images.
NORMS = {
    "1": lambda gaps, share: share @ gaps,
    "2": lambda gaps, share: np.sqrt(share @ gaps**2),
    "infty": lambda gaps, share: gaps.max(),
}
NORMS["infinity"] = NORMS["max"] = NORMS["infty"]


def calibration_error(confidence: Tensor, correct: Tensor, p: str = "2", beta: int = 100) -> float:
    """Norm of |mean confidence - accuracy| over bins of images with similar confidence.

    Args:
        p: the norm, '1', '2' or 'infty'.
        beta: images per bin, in the order of confidence. The last bin takes the rest.
    """
    if p not in NORMS or beta < 1:
        raise InputError(f"p is {p!r} and beta {beta}; p is '1', '2' or 'infty', beta at least 1")
    confidence, correct = _answers(confidence, correct)
    order = np.argsort(confidence, kind="stable")
    starts = beta * np.arange(1, max(1, len(order) // beta))
    bins = np.split(confidence[order] - correct[order], starts)
    share = np.array([len(b) for b in bins]) / len(order)
    return float(NORMS[p](np.abs([b.mean() for b in bins]), share))


def aurra(confidence: Tensor, correct: Tensor) -> float:
    """Accuracy among the n most confident images, averaged over all n."""
    confidence, correct = _answers(confidence, correct)
    hits = np.cumsum(correct[np.argsort(-confidence, kind="stable")])
    return float(np.mean(hits / np.arange(1, len(hits) + 1)))


def calc_openness(n_train: int, n_test: int, n_target: int) -> float:
    """Openness 1 - sqrt(2 n_train / (n_test + n_target)).

    Source: Scheirer et al., "Toward Open Set Recognition", TPAMI 2013.
    """
    return 1 - math.sqrt(2 * n_train / (n_test + n_target))


def _flagged(known: SortedScores, novel: SortedScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many of either have at least each distinct score, and these scores, descending."""
    thresholds = np.union1d(known.values, novel.values)[::-1]
    counts = (len(s) - s.below[np.searchsorted(s.values, thresholds)] for s in (known, novel))
    return *counts, thresholds.copy()


def _answers(confidence, correct) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = (a.astype(np.float64) for a in flat(confidence, correct))
    if not len(confidence) or np.isnan(confidence).any():
        raise InputError("there must be at least one confidence, and none may be NaN")
    return confidence, correct


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
