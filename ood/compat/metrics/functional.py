"""A metric of outlier scores and labels in one call, over `ood.metrics`: OOD (labels below 0) is positive, as in pytorch-ood."""

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
    """Each as an array (N,). Raises InputError when the shapes differ."""
    tensors = [torch.as_tensor(v).detach() for v in values]
    if len({t.shape for t in tensors}) > 1:
        raise InputError(
            f"scores, labels and predictions must have the same shape, got {', '.join(str(tuple(t.shape)) for t in tensors)}"
        )
    return [
        (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t).reshape(-1).cpu().numpy()
        for t in tensors
    ]


def split(scores, labels) -> tuple[SortedScores, SortedScores]:
    """The sorted scores of ID and of OOD. Raises InputError for NaN, and where there are none of either."""
    scores, labels = flat(scores, labels)
    return prepare(scores[labels >= 0]), prepare(scores[labels < 0], "OOD scores")


def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """P(score of OOD > score of ID) + P(equal) / 2."""
    return _scalar(evaluate(*split(scores, labels)).auroc)


def aupr(scores: Tensor, labels: Tensor, positive: str = "ood") -> Tensor:
    """Average precision with 'ood' or 'id' positive (pytorch-ood joins the points by straight lines, which is optimistic)."""
    if positive not in ("ood", "id"):
        raise InputError(f"positive is 'ood' or 'id', got {positive!r}")
    found = evaluate(*split(scores, labels))
    return _scalar(found.aupr_out if positive == "ood" else found.aupr_in)


def fpr_at_tpr(scores: Tensor, labels: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of ID flagged at the first threshold that flags at least `tpr` of OOD."""
    return _scalar(fpr_of(*split(scores, labels), tpr))


def fpr_of(known: SortedScores, novel: SortedScores, tpr: float) -> float:
    return evaluate(known, novel, tpr).fpr95_ood_positive if tpr else 0.0


def autc(scores: Tensor, labels: Tensor) -> Tensor:
    """(mean of ID + 1 - mean of OOD) / 2 of the scores scaled to [0, 1]: error rates averaged over all thresholds.

    Raises InputError for constant or infinite scores. Source: Humblot-Renaux et al., arXiv 2306.14658; scaled as in pytorch-ood.
    """
    split(scores, labels)
    scores, labels = flat(scores, labels)
    low, high = float(scores.min()), float(scores.max())
    if not math.isfinite(high - low) or low == high:
        raise InputError("AUTC is not defined for constant or infinite scores")
    scaled = (scores.astype(np.float64) - low) / (high - low)
    return _scalar((scaled[labels >= 0].mean() + 1 - scaled[labels < 0].mean()) / 2)


def accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of ID images classified as their label; OOD is left out."""
    predictions, labels = flat(predictions, labels)
    return _scalar(metrics.accuracy(predictions[labels >= 0], labels[labels >= 0]))


def roc_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """fpr, tpr from (0, 0) to (1, 1) and the U thresholds, descending; one point per distinct score after the first."""
    flagged_id, flagged_ood, thresholds = _flagged(*split(scores, labels))
    return tuple(
        torch.from_numpy(np.append(0.0, flagged / flagged[-1]))
        for flagged in (flagged_id, flagged_ood)
    ) + (torch.from_numpy(thresholds),)


def pr_curve(
    scores: Tensor, labels: Tensor, positive: str = "ood"
) -> tuple[Tensor, Tensor, Tensor]:
    """precision, recall with falling recall, ending at (1, 0), and the U thresholds in the same order."""
    if positive not in ("ood", "id"):
        raise InputError(f"positive is 'ood' or 'id', got {positive!r}")
    sign = 1 if positive == "ood" else -1
    known, novel = split(sign * torch.as_tensor(scores), labels)
    false, true, thresholds = _flagged(known, novel) if sign == 1 else _flagged(novel, known)
    precision, recall = (
        np.append((true / (true + false))[::-1], 1.0),
        np.append((true / true[-1])[::-1], 0.0),
    )
    return (
        torch.from_numpy(precision),
        torch.from_numpy(recall),
        torch.from_numpy(sign * thresholds[::-1]),
    )


def oscr_score(outlier_scores: Tensor, predictions: Tensor, labels: Tensor) -> float:
    """Area under the share of ID accepted and classified correctly, against the share of OOD accepted: accuracy * `cauroc`."""
    split(outlier_scores, labels)
    scores, predictions, labels = flat(outlier_scores, predictions, labels)
    correct = (predictions == labels)[labels >= 0]
    return (
        float(correct.mean() * cauroc(scores[labels >= 0], scores[labels < 0], correct))
        if correct.any()
        else 0.0
    )


def calibration_error(confidence: Tensor, correct: Tensor, p: str = "2", beta: int = 100) -> float:
    """Norm p ('1', '2', 'infty') of |mean confidence - accuracy| over bins of `beta` images in the order of confidence; the last takes the rest."""
    if p not in ("1", "2", "infty", "infinity", "max") or beta < 1:
        raise InputError(f"p is '1', '2' or 'infty' and beta at least 1, got {p!r} and {beta}")
    confidence, correct = _answers(confidence, correct)
    order = np.argsort(confidence, kind="stable")
    bins = np.split(
        confidence[order] - correct[order], beta * np.arange(1, max(1, len(order) // beta))
    )
    gaps, share = np.abs([b.mean() for b in bins]), np.array([len(b) for b in bins]) / len(order)
    return float(share @ gaps if p == "1" else np.sqrt(share @ gaps**2) if p == "2" else gaps.max())


def aurra(confidence: Tensor, correct: Tensor) -> float:
    """Accuracy among the n most confident images, averaged over all n."""
    confidence, correct = _answers(confidence, correct)
    hits = np.cumsum(correct[np.argsort(-confidence, kind="stable")])
    return float(np.mean(hits / np.arange(1, len(hits) + 1)))


def calc_openness(n_train: int, n_test: int, n_target: int) -> float:
    """1 - sqrt(2 n_train / (n_test + n_target)), Scheirer et al., TPAMI 2013."""
    return 1 - math.sqrt(2 * n_train / (n_test + n_target))


def _flagged(known: SortedScores, novel: SortedScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many of either have a score of at least each distinct score, which descend."""
    thresholds = np.union1d(known.values, novel.values)[::-1]
    return *(
        len(s) - s.below[np.searchsorted(s.values, thresholds)] for s in (known, novel)
    ), thresholds.copy()


def _answers(confidence, correct) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = (a.astype(np.float64) for a in flat(confidence, correct))
    if not len(confidence) or np.isnan(confidence).any():
        raise InputError("there must be at least one confidence, and none may be NaN")
    return confidence, correct


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
