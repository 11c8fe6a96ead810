"""The metric rules of the papers' released code, for comparing like with like.

The exact metrics are in `ood.metrics`. Each function here takes our scores (larger = OOD) and
works on the confidence c = -score, as the authors do. X are the confidences of ID images, Y those
of OOD images. d runs over thresholds on c. Where the authors' code divides by zero, the value is
nan. Counting is by bisection, which gives what the authors' loops give.

| rule                               | FPR95            | AUROC             | AUPR In (Out)   |
|------------------------------------|------------------|-------------------|-----------------|
| ODIN (ICLR 2018), on its grid      | `fpr95_window`   | `auroc_rectangle` | `aupr_in_rates` |
| leave-out (ECCV 2018), at scores   | `fpr95_window`   | `auroc_rectangle` | `aupr_in_rates` |
| heatmap decoder (WACV 2023)        | `fpr95_released` | exact             | exact, by counts|

The detection error of ODIN and leave-out is `detection_error_strict`; heatmap has none.
"""

from __future__ import annotations

import numpy as np

from ood.metrics import SortedScores, prepare

WINDOW = (0.9495, 0.9505)  # TPR values that ODIN, leave-out and heatmap take for 95 %
NAN = float("nan")


def fpr95_window(id_scores, ood_scores, thresholds=None) -> float:
    """Mean of P(Y > d) over all d with P(X >= d) in WINDOW.

    Args:
        id_scores: (N,). ood_scores: (M,).
        thresholds: (T,) on the confidence, in any order; None: every distinct confidence.

    Returns: a fraction; nan if no d falls into the window (few or tied ID scores).
    """
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    tpr = _at_least(known, t) / len(known)
    inside = (WINDOW[0] <= tpr) & (tpr <= WINDOW[1])
    return float(np.mean(_above(novel, t[inside]) / len(novel))) if inside.any() else NAN


def auroc_rectangle(id_scores, ood_scores, thresholds=None, strict: bool = True) -> float:
    """Sum of (previous fpr - fpr) * tpr over ascending d, starting at fpr = 1.

    Args:
        id_scores, ood_scores, thresholds: as for `fpr95_window`.
        strict: fpr = P(Y > d). False: fpr = P(Y >= d), as in ODIN's code for T = 1000.
    """
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    tpr = _at_least(known, t) / len(known)
    fpr = (_above if strict else _at_least)(novel, t) / len(novel)
    return _area(fpr, tpr)


def aupr_in_rates(id_scores, ood_scores, thresholds=None) -> float:
    """Area of tp / (tp + fp) over tp, with the RATES tp = P(X >= d) and fp = P(Y >= d).

    Because of the rates both classes weigh the same, whatever their sizes.
    """
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    return _area_by_rates(_at_least(known, t) / len(known), _at_least(novel, t) / len(novel))


def aupr_out_rates(id_scores, ood_scores, thresholds=None) -> float:
    """`aupr_in_rates` with OOD positive: d descends, tp = P(Y < d), fp = P(X < d)."""
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)[::-1]
    return _area_by_rates(
        (len(novel) - _at_least(novel, t)) / len(novel),
        (len(known) - _at_least(known, t)) / len(known),
    )


def detection_error_strict(id_scores, ood_scores, thresholds=None) -> float:
    """Minimum over d of (P(X < d) + P(Y > d)) / 2.

    An OOD input exactly at d counts as rejected; an ID input exactly at d counts as accepted.
    """
    known, novel = _pair(id_scores, ood_scores)
    t = _thresholds(known, novel, thresholds)
    rejected = (len(known) - _at_least(known, t)) / len(known)
    return float(np.min(rejected + _above(novel, t) / len(novel)) / 2)


def fpr95_released(id_scores, ood_scores) -> float:
    """P(Y >= d) at the first d with P(X >= d) in WINDOW: the heatmap authors' scan.

    d takes 10,000 equal steps from the smallest confidence to the largest.

    Returns: a fraction. 0 if no step falls into the window, as released: a value of 0 may mean
        "not found". nan if all scores are equal or one is infinite.
    """
    known, novel = _pair(id_scores, ood_scores)
    low, high = min(known.values[0], novel.values[0]), max(known.values[-1], novel.values[-1])
    span = float(high) - float(low)
    if not np.isfinite(span) or span == 0:
        return NAN
    d = np.arange(0.0, span, span / 10000)

    def share_accepted(scores: SortedScores) -> np.ndarray:
        # the authors shift the confidences to start at 0
        confidences = (float(high) - scores.values.astype(np.float64))[::-1]
        rejected = np.searchsorted(confidences, d, side="left")
        return scores.below[confidences.size - rejected] / len(scores)

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
    """Sum of right rectangles over falling x, from 1 down to 0; nan without a point."""
    if x.size == 0:
        return NAN
    return float(np.sum((np.append(1.0, x[:-1]) - x) * y) + x[-1] * y[-1])


def _area_by_rates(tp: np.ndarray, fp: np.ndarray) -> float:
    some = tp + fp > 0
    tp, fp = tp[some], fp[some]
    return _area(tp, tp / (tp + fp))
