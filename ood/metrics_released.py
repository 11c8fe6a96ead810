"""The metric rules of the papers' released code, for comparing like with like; `ood.metrics` holds the exact ones.

Each function takes our scores (larger = OOD) and looks at the confidence c = -score as the authors do. X are the confidences of ID, Y of
OOD, d runs over thresholds on c. Where the authors' code divides by zero the value is nan. Everything is exact for the given thresholds:
counting by bisection gives what their loops give.

| rule                                          | FPR95            | AUROC             | AUPR In (Out)    | detection error          |
|-----------------------------------------------|------------------|-------------------|------------------|--------------------------|
| DICE (ECCV 2022)                              | `fpr95_dice`     | exact             | `aupr_in_dice`   | `detection_error_counts` |
| ODIN (ICLR 2018), over `odin_thresholds`      | `fpr95_window`   | `auroc_rectangle` | `aupr_in_rates`  | `detection_error_strict` |
| leave-out ensemble (ECCV 2018), at the scores | `fpr95_window`   | `auroc_rectangle` | `aupr_in_rates`  | `detection_error_strict` |
| heatmap decoder (WACV 2023)                   | `fpr95_released` | exact             | exact, by counts | none                     |
"""

from __future__ import annotations

import numpy as np

from ood.config import InputError
from ood.metrics import SortedScores, prepare

WINDOW = (0.9495, 0.9505)  # TPR values that ODIN, leave-out and heatmap take for 95 %
NAN = float("nan")


def fpr95_dice(id_scores, ood_scores) -> float:
    """Share of Y strictly above the round(0.05 N)-th smallest X, counted from 0; its TPR is just below 95 %."""
    known, novel = _pair(id_scores, ood_scores)
    index = len(known) - 1 - round(0.05 * len(known))
    threshold = known.values[np.searchsorted(known.below[1:], index, side="right")]
    return float(_above(novel, threshold) / len(novel))


def aupr_in_dice(id_scores, ood_scores) -> float:
    """DICE's AUIN: trapezoid of precision (from counts) over recall, ending in the point (0, 0)."""
    known, novel = _pair(id_scores, ood_scores)
    scores = np.union1d(known.values, novel.values)[::-1]
    tp, fp = _at_least(known, scores), _at_least(novel, scores)
    precision, recall = np.append(tp / (tp + fp), 0.0), np.append(tp / len(known), 0.0)
    return float(np.sum((recall[:-1] - recall[1:]) * (precision[:-1] + precision[1:])) / 2)


def aupr_out_dice(id_scores, ood_scores) -> float:
    """DICE's AUOUT: the same with OOD positive."""
    known, novel = _pair(id_scores, ood_scores)
    return aupr_in_dice(_mirrored(novel), _mirrored(known))


def detection_error_counts(id_scores, ood_scores) -> float:
    """DICE's DTERR: smallest share of ALL inputs decided wrongly; unlike ODIN's, the larger set weighs more."""
    known, novel = _pair(id_scores, ood_scores)
    wrong = len(known) - _at_least(known, known.values) + _at_least(novel, known.values)
    return float(min(wrong.min(), len(known)) / (len(known) + len(novel)))


def odin_thresholds(num_classes: int, tempered: bool, descending: bool = False) -> np.ndarray:
    """ODIN's fixed grid on the largest softmax value. `tempered`: T = 1000, else T = 1. `descending`: the grid of its AUPR-Out.

    Source: the authors' code hard-codes the upper ends for 10 and 100 classes only, so other class counts are an InputError.
    """
    ends = {(10, False): 1.0, (10, True): 0.12, (100, False): 1.0, (100, True): 0.0104}
    if (num_classes, tempered) not in ends:
        raise InputError(
            f"ODIN's threshold grid exists for 10 and 100 classes, not for {num_classes}; use ood.metrics.evaluate"
        )
    start, end = 1 / num_classes, ends[num_classes, tempered]
    step = (end - start) / 100000
    return np.arange(end, start, -step) if descending else np.arange(start, end, step)


def fpr95_window(id_scores, ood_scores, thresholds=None) -> float:
    """Mean of P(Y > d) over all d with P(X >= d) in WINDOW; nan if there is no such d (few or tied ID scores).

    Args: thresholds on the confidence; None = the distinct scores (leave-out), `odin_thresholds(...)` = ODIN.
    """
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    tpr = _at_least(known, t) / len(known)
    inside = (WINDOW[0] <= tpr) & (tpr <= WINDOW[1])
    return float(np.mean(_above(novel, t[inside]) / len(novel))) if inside.any() else NAN


def auroc_rectangle(id_scores, ood_scores, thresholds=None, strict: bool = True) -> float:
    """Sum of (previous fpr - fpr) * tpr over ascending d, from fpr 1. `strict`: fpr = P(Y > d), else P(Y >= d) (ODIN with T = 1000)."""
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    tpr = _at_least(known, t) / len(known)
    fpr = (_above if strict else _at_least)(novel, t) / len(novel)
    return _area(fpr, tpr)


def aupr_in_rates(id_scores, ood_scores, thresholds=None) -> float:
    """Area of tp / (tp + fp) over tp with RATES tp = P(X >= d), fp = P(Y >= d): both classes weigh the same whatever their sizes."""
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    return _area_by_rates(_at_least(known, t) / len(known), _at_least(novel, t) / len(novel))


def aupr_out_rates(id_scores, ood_scores, thresholds=None) -> float:
    """The same with OOD positive: d descends, tp = P(Y < d), fp = P(X < d). ODIN: `odin_thresholds(..., descending=True)`."""
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)[::-1]
    return _area_by_rates(
        (len(novel) - _at_least(novel, t)) / len(novel),
        (len(known) - _at_least(known, t)) / len(known),
    )


def detection_error_strict(id_scores, ood_scores, thresholds=None) -> float:
    """min over d of (P(X < d) + P(Y > d)) / 2: an OOD input AT d counts as rejected and an ID input there as accepted."""
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    return float(
        np.min((len(known) - _at_least(known, t)) / len(known) + _above(novel, t) / len(novel)) / 2
    )


def fpr95_released(id_scores, ood_scores) -> float:
    """The heatmap authors' scan: 10,000 equal steps from the smallest confidence; P(Y >= d) at the first d with P(X >= d) in WINDOW.

    0 if no step falls into the window, as released: a value of 0 may mean "not found". nan if all scores are equal or one is infinite.
    """
    known, novel = _pair(id_scores, ood_scores)
    low, high = min(known.values[0], novel.values[0]), max(known.values[-1], novel.values[-1])
    span = float(high) - float(low)
    if not np.isfinite(span) or span == 0:
        return NAN
    d = np.arange(0.0, span, span / 10000)

    def share_accepted(scores: SortedScores) -> np.ndarray:
        confidences = (float(high) - scores.values.astype(np.float64))[
            ::-1
        ]  # the authors shift them to start at 0
        return scores.below[confidences.size - np.searchsorted(confidences, d, side="left")] / len(
            scores
        )

    tpr = share_accepted(known)
    inside = np.flatnonzero((WINDOW[0] <= tpr) & (tpr <= WINDOW[1]))
    return float(share_accepted(novel)[inside[0]]) if inside.size else 0.0


def _pair(id_scores, ood_scores) -> tuple[SortedScores, SortedScores]:
    return prepare(id_scores), prepare(ood_scores, "OOD scores")


def _thresholds(known: SortedScores, novel: SortedScores, thresholds) -> np.ndarray:
    """Thresholds on the score, in the order of ascending confidence."""
    if thresholds is None:
        return np.union1d(known.values, novel.values)[::-1]
    return -np.sort(np.asarray(thresholds, dtype=np.float64))


def _at_least(scores: SortedScores, t) -> np.ndarray:
    """How many confidences are >= -t, that is, scores <= t."""
    return scores.below[np.searchsorted(scores.values, t, side="right")]


def _above(scores: SortedScores, t) -> np.ndarray:
    """How many confidences are > -t, that is, scores < t."""
    return scores.below[np.searchsorted(scores.values, t, side="left")]


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Right-rectangle sum over falling x that starts at 1, and the last rectangle down to 0; nan without a point."""
    if x.size == 0:
        return NAN
    return float(np.sum((np.append(1.0, x[:-1]) - x) * y) + x[-1] * y[-1])


def _area_by_rates(tp: np.ndarray, fp: np.ndarray) -> float:
    some = tp + fp > 0
    tp, fp = tp[some], fp[some]
    return _area(tp, tp / (tp + fp))


def _mirrored(scores: SortedScores) -> SortedScores:
    """The same scores with the opposite sign, without a second sort."""
    mirrored = object.__new__(SortedScores)
    mirrored.values, mirrored.below = -scores.values[::-1], len(scores) - scores.below[::-1]
    return mirrored
