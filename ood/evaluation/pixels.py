"""Metrics of very many scores, such as those of pixels, in bounded memory.

pixels = PixelScores()
for scores, mask in images:                       # (H, W) each
    pixels.update(scores[mask != IGNORED], mask[mask != IGNORED] < 0)
found = pixels.metrics()                          # Metrics, fractions
low, high = pixels.bounds()                       # where the exact values lie
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma

from ood import metrics
from ood.config import InputError
from ood.metrics import Metrics, SortedScores, smallest_count

EXACT = 1 << 22  # pixels that are kept as they are: two images of Cityscapes
BINS = 1 << 16
CHUNK = 1 << 20  # scores that are counted at a time
TPR = 0.95  # of the FPR95

# Edges for scores unlike those that the bins were made from: 16 between two powers of 2.
_STEPS = 2.0 ** np.arange(-20, 20)[:, None] * (1 + np.arange(16) / 16)
GRID = np.concatenate((-_STEPS.ravel()[::-1], [0.0], _STEPS.ravel()))


class PixelScores:
    """Scores of ID and of OOD pixels, kept until they are too many, then counted in bins.

    Up to `exact` pixels the metrics are exact. One pixel more, and the scores so far choose the
    edges of the bins: equally many of either side fall between two edges, and a score that occurs
    often has a bin of its own. From then on only the bins are counted. Memory: at most 8 bytes for
    each of `exact` pixels and of one CHUNK, then 24 bytes per bin, whatever comes.

    Within a bin the order of the scores is lost, so they count as equal. `bounds` says what that
    can have changed; it is computed from the counts and holds for any scores.

    Args:
        exact: pixels up to which everything is exact, at least 1.
        bins: about how many bins, at least 2. Half of them are chosen by either side.

    Attributes:
        is_exact: whether all scores are still kept.
        n_id, n_ood: pixels so far.
    """

    def __init__(self, exact: int = EXACT, bins: int = BINS):
        if exact < 1 or bins < 2:
            raise InputError(f"exact is {exact} and bins {bins}; at least 1 and 2 are needed")
        self.exact, self.bins = exact, bins
        self.n_id = self.n_ood = 0
        self._kept: tuple[list, list] | None = ([], [])  # ID, OOD
        self._edges = np.empty(0)
        self._counts = np.empty((2, 0), np.int64)

    @property
    def is_exact(self) -> bool:
        return self._kept is not None

    @property
    def nbytes(self) -> int:
        """Memory in bytes that the scores or the counts take."""
        kept = sum(part.nbytes for side in self._kept or () for part in side)
        return kept + self._edges.nbytes + self._counts.nbytes

    def update(self, scores, outlier) -> None:
        """Add scores and whether each belongs to an OOD pixel: arrays or tensors of one shape.

        Raises: InputError for NaN, for scores that are no real numbers, for different shapes.
        """
        scores, outlier = _flat(scores), _flat(outlier).astype(bool)
        if scores.shape != outlier.shape:
            raise InputError(f"{scores.size} scores for {outlier.size} pixels")
        if scores.dtype.kind not in "fiub":
            raise InputError(f"scores must be real numbers, got dtype {scores.dtype}")
        for start in range(0, scores.size, CHUNK):
            part = scores[start : start + CHUNK].astype(np.float64)
            if np.isnan(part).any():
                raise InputError("a score is NaN, and cannot be ranked: look at the detector")
            is_ood = outlier[start : start + CHUNK]
            self._add(part[~is_ood], part[is_ood])

    def metrics(self) -> Metrics:
        """Compute all metrics of `ood.metrics`, scores in one bin counting as equal.

        Raises: InputError where there are no ID or no OOD pixels.
        """
        return metrics.evaluate(*self._sides(), tpr=TPR)

    def bounds(self) -> tuple[Metrics, Metrics]:
        """Return (low, high): the metrics of the exact scores lie between them.

        - auroc: the pairs of ID and OOD in one bin count one half; each may count 0 or 1.
        - fpr95, fpr95_ood_positive: the threshold lies somewhere in one bin.
        - detection_error: the best threshold may lie inside a bin.
        - aupr: precision at any score of a bin, in the worst and the best order.
        """
        found = self.metrics()
        if self.is_exact:
            return found, found
        known, novel = self._counts
        alone = np.zeros(len(known), dtype=bool)  # bins of one value: their scores are equal
        alone[1:-1] = np.nextafter(self._edges[:-1], np.inf) == self._edges[1:]
        lost = (~alone * known) @ (novel / self.n_ood) / self.n_id / 2
        accepted, passed = np.cumsum(known), np.cumsum(novel)
        at_id = np.searchsorted(accepted, smallest_count(TPR, self.n_id))
        flagged = np.cumsum(novel[::-1])[::-1]
        at_ood = len(novel) - 1
        at_ood -= np.searchsorted(flagged[::-1], smallest_count(TPR, self.n_ood))
        inside = np.where(alone, passed, passed - novel)
        error = np.min((self.n_id - accepted) / self.n_id + inside / self.n_ood) / 2
        low_in, high_in = _precision_bounds(known, novel, alone)
        low_out, high_out = _precision_bounds(novel[::-1], known[::-1], alone[::-1])
        low = Metrics(
            fpr95=found.fpr95 - float(~alone[at_id] * novel[at_id] / self.n_ood),
            auroc=max(0.0, found.auroc - float(lost)),
            aupr_in=low_in,
            aupr_out=low_out,
            detection_error=float(min(error, found.detection_error)),
            fpr95_ood_positive=found.fpr95_ood_positive
            - float(~alone[at_ood] * known[at_ood] / self.n_id),
        )
        high = found._replace(
            auroc=min(1.0, found.auroc + float(lost)), aupr_in=high_in, aupr_out=high_out
        )
        return low, high

    def _add(self, known: np.ndarray, novel: np.ndarray) -> None:
        self.n_id, self.n_ood = self.n_id + len(known), self.n_ood + len(novel)
        if self._kept is None:
            self._count(known, novel)
            return
        for side, part in zip(self._kept, (known, novel)):
            side.append(part)
        if self.n_id + self.n_ood > self.exact:
            kept = [np.concatenate(side) for side in self._kept]
            self._edges = _edges(kept, self.bins // 2)
            self._counts = np.zeros((2, len(self._edges) + 1), np.int64)
            self._kept = None
            self._count(*kept)

    def _count(self, *sides: np.ndarray) -> None:
        """Count scores; bin j holds those from edge j - 1 to below edge j."""
        for row, scores in zip(self._counts, sides):
            for start in range(0, len(scores), CHUNK):
                bins = np.searchsorted(self._edges, scores[start : start + CHUNK], side="right")
                row += np.bincount(bins, minlength=len(row))

    def _sides(self) -> tuple[SortedScores, SortedScores]:
        if not (self.n_id and self.n_ood):
            lacking = "OOD" if self.n_id else "ID"
            raise InputError(f"no {lacking} pixels: there is nothing to tell apart")
        if self._kept is not None:
            known, novel = (np.concatenate(side) for side in self._kept)
            return metrics.prepare(known), metrics.prepare(novel, "OOD scores")
        known, novel = (SortedScores.counted(row) for row in self._counts)
        return known, novel


def _edges(sides: list[np.ndarray], bins: int) -> np.ndarray:
    """Choose edges, ascending: `bins` quantiles of each side, and those of GRID.

    A value that holds the place of several quantiles is followed by the next larger number, so
    that it has a bin of its own.
    """
    chosen = [GRID]
    for scores in sides:
        if len(scores):
            places = np.linspace(0, len(scores) - 1, bins).astype(np.int64)
            values = np.sort(scores)[places]
            often = values[1:][values[1:] == values[:-1]]
            chosen += [values, np.nextafter(often, np.inf)]
    edges = np.unique(np.concatenate(chosen))
    return edges[np.isfinite(edges)]


def _precision_bounds(
    positive: np.ndarray, negative: np.ndarray, alone: np.ndarray
) -> tuple[float, float]:
    """Bound the average precision, given counts by bin in the order of acceptance.

    In a bin with p positives and n negatives, after TP and FP: at its j-th positive the precision
    is at least (TP + j) / (TP + j + FP + n), and at most (TP + p) / (TP + p + FP). In a bin of one
    value it is (TP + p) / (TP + p + FP + n).
    """
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    tp, fp = np.cumsum(positive) - positive, np.cumsum(negative)  # fp: with the bin's own
    some = positive > 0
    p, n, tp, fp, alone = positive[some], negative[some], tp[some], fp[some], alone[some]
    equal = p * (tp + p) / (tp + p + fp)
    # sum over j of 1 - fp / (tp + j + fp)
    worst = p - fp * (digamma(tp + p + fp + 1) - digamma(tp + fp + 1))
    best = p * (tp + p) / (tp + p + fp - n)
    total = positive.sum()
    low = np.where(alone, equal, np.minimum(worst, equal)).sum() / total
    return float(low), float(np.where(alone, equal, best).sum() / total)


def _flat(values) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values).reshape(-1)
