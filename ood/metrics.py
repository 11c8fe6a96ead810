"""How well scores separate ID from OOD: six numbers from one sort, exact in the presence of ties.

    ours = evaluate(id_scores, ood_scores)        # Metrics(fpr95=..., auroc=..., ...), fractions
    known = prepare(id_scores)                    # sorted once ...
    rows = [evaluate(known, ood) for ood in sets]  # ... and used for every OOD set

A score is larger for outliers. "Accepted at t" means score <= t, so equal scores are accepted together, and every curve has one point
per distinct score. Counts are integers; only their ratios are floats (float64). Results are fractions, never percent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ood.config import InputError


class Metrics(NamedTuple):
    """Fractions in [0, 1].

    fpr95               share of OOD accepted at the first threshold that accepts >= 95 % of ID      (ID positive, as in the papers)
    auroc               P(score of OOD > score of ID) + P(equal) / 2                                 (the same for either positive class)
    aupr_in             average precision with ID positive, from counts: depends on the ratio ID : OOD
    aupr_out            average precision with OOD positive
    detection_error     min over thresholds of (share of ID rejected + share of OOD accepted) / 2    (both classes weigh the same)
    fpr95_ood_positive  share of ID flagged at the first threshold that flags >= 95 % of OOD         (pytorch-ood's and OpenOOD's FPR95)
    """

    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    detection_error: float
    fpr95_ood_positive: float


class SortedScores:
    """Scores of one data set, sorted: `values` (U,) distinct and ascending; `below` (U + 1,) int64, below[k] = how many scores
    are smaller than values[k], below[U] = all of them. Made by `prepare`."""

    def __init__(self, scores, name: str = "scores"):
        ordered = np.sort(_as_array(scores, name))
        if np.isnan(ordered[-1]):  # NaN sorts last
            raise InputError(
                f"{name}: {np.isnan(ordered).sum()} of {ordered.size} are NaN; a NaN cannot be ranked, look at the detector or the data"
            )
        distinct = ordered[1:] != ordered[:-1]
        if distinct.all():
            self.values, self.below = ordered, np.arange(ordered.size + 1)
        else:
            starts = np.concatenate(([0], np.flatnonzero(distinct) + 1))
            self.values, self.below = ordered[starts], np.append(starts, ordered.size)

    def __len__(self) -> int:
        return int(self.below[-1])


def prepare(scores, name: str = "ID scores") -> SortedScores:
    """Sort scores (N,) once, to evaluate them against many sets. Raises InputError for NaN, no scores, or a wrong shape."""
    return scores if isinstance(scores, SortedScores) else SortedScores(scores, name)


def evaluate(id_scores, ood_scores, tpr: float = 0.95) -> Metrics:
    """All six metrics of one ID and one OOD set.

    Args: id_scores (N,), ood_scores (M,): numpy, torch, a sequence, or what `prepare` returned; larger = OOD; +-inf allowed.
          tpr: the operating point in (0, 1] of the two fpr95 values.
    Returns: Metrics, fractions.
    Raises: InputError for NaN, an empty set, or a shape other than (N,).
    Source: equal to scikit-learn's roc_curve (all points), roc_auc_score and average_precision_score; detection error as in Liang et
        al., ICLR 2018 (ODIN), whose text fixes TPR = 95 % but whose code and most of whose table take the minimum.
    """
    known, novel = prepare(id_scores), prepare(ood_scores, "OOD scores")
    n_id, n_ood = len(known), len(novel)
    known_count, novel_count = _smallest_count(tpr, n_id), _smallest_count(tpr, n_ood)

    # At each distinct ID score: how many distinct OOD values are <= it (upper) and < it (lower); with them the accepted counts.
    upper = np.searchsorted(novel.values, known.values, side="right")
    lower = upper - ((upper > 0) & (novel.values[upper - 1] == known.values))
    share_id = np.diff(known.below)  # ID scores at each distinct value
    accepted_id = known.below[1:]  # tp with ID positive
    accepted_ood = novel.below[upper]  # fp with ID positive
    # At each distinct OOD score v: ID values below v are those whose `upper` does not yet count v. Flagged means score >= v.
    flagged_id = (
        n_id - known.below[np.cumsum(np.bincount(upper, minlength=novel.values.size + 1))[:-1]]
    )
    flagged_ood = n_ood - novel.below[:-1]
    share_ood = np.diff(novel.below)

    twice_pairs_lost = int(
        share_id @ (accepted_ood + novel.below[lower])
    )  # 2 * (#OOD < ID pairs) + #equal pairs, exact
    at_id = np.searchsorted(accepted_id, known_count)
    at_ood = np.searchsorted(-flagged_ood, -novel_count, side="right") - 1
    return Metrics(
        fpr95=float(accepted_ood[at_id] / n_ood),
        auroc=(2 * n_id * n_ood - twice_pairs_lost) / (2 * n_id * n_ood),
        aupr_in=float(np.sum(share_id * (accepted_id / (accepted_id + accepted_ood))) / n_id),
        aupr_out=float(np.sum(share_ood * (flagged_ood / (flagged_ood + flagged_id))) / n_ood),
        detection_error=float(np.min((n_id - accepted_id) / n_id + accepted_ood / n_ood) / 2),
        fpr95_ood_positive=float(flagged_id[at_ood] / n_id),
    )


def roc_curve(id_scores, ood_scores) -> tuple[np.ndarray, np.ndarray]:
    """Corner points (fpr, tpr) of the ROC curve with ID positive, from (0, 0) to (1, 1); points inside a straight line are left out."""
    known, novel = prepare(id_scores), prepare(ood_scores, "OOD scores")
    thresholds = np.union1d(known.values, novel.values)
    tp = np.append(0, known.below[np.searchsorted(known.values, thresholds, side="right")])
    fp = np.append(0, novel.below[np.searchsorted(novel.values, thresholds, side="right")])
    step_t, step_f = np.diff(tp), np.diff(fp)
    turns = step_t[1:] * step_f[:-1] != step_t[:-1] * step_f[1:]
    keep = np.concatenate(([True], turns, [True]))
    return fp[keep] / len(novel), tp[keep] / len(known)


def threshold_at_tpr(id_scores, tpr: float = 0.95) -> float:
    """The smallest score t for which at least `tpr` of the ID scores are <= t: accept an input if its score is <= t."""
    known = prepare(id_scores)
    return float(known.values[np.searchsorted(known.below[1:], _smallest_count(tpr, len(known)))])


def cauroc(id_scores, ood_scores, correct) -> float:
    """AUROC in which an ID input counts as accepted only if it is also classified correctly; `correct` (N,) bool.

    The tpr axis is (accepted and correct) / correct, so this is the AUROC of the correctly classified ID inputs; nan if there are none.
    Source: Dinari & Freifeld, UAI 2022; their code sums rectangles over a grid of 100,000 thresholds, this is the exact area.
    """
    scores, correct = _as_array(id_scores, "ID scores"), _mask(correct)
    if scores.shape != correct.shape:
        raise InputError(
            f"cauroc: {scores.size} ID scores but {correct.size} entries in `correct`; give one per score"
        )
    return evaluate(scores[correct], ood_scores).auroc if correct.any() else float("nan")


def accuracy(predictions, labels) -> float:
    """Share of predictions (N,) int, or logits (N, C), that equal labels (N,) int. Raises InputError if there are none."""
    predictions, labels = _predicted(predictions), _labels(labels)
    _same_length("accuracy", predictions, labels)
    return float(np.mean(predictions == labels))


def macro_f1(predictions, labels) -> float:
    """Unweighted mean over all classes that occur in either array of 2 tp / (2 tp + fp + fn); the rejected class is one of them."""
    predictions, labels = _predicted(predictions), _labels(labels)
    _same_length("macro_f1", predictions, labels)
    classes, codes = np.unique(np.concatenate((predictions, labels)), return_inverse=True)
    predicted, true = codes[: predictions.size], codes[predictions.size :]
    hits = np.bincount(true[predicted == true], minlength=classes.size)
    total = np.bincount(codes, minlength=classes.size)
    return float(np.mean(2 * hits / total))


def open_set_f1(
    id_predictions, id_labels, id_scores, ood_predictions, ood_scores, threshold: float
) -> float:
    """Macro F1 over K + 1 classes, where an input with score > threshold is assigned to the extra class -1, as is every OOD label.

    Source: the open-set protocol of VMDLS (UAI 2022), with the threshold from `threshold_at_tpr` instead of the best one on the test set.
    """
    id_scores, ood_scores = _as_array(id_scores, "ID scores"), _as_array(ood_scores, "OOD scores")
    scores = np.concatenate((id_scores, ood_scores))
    predictions = np.concatenate((_predicted(id_predictions), _predicted(ood_predictions)))
    labels = np.concatenate((_labels(id_labels), np.full(ood_scores.size, -1)))
    _same_length("open_set_f1", predictions, scores)
    return macro_f1(np.where(scores > threshold, -1, predictions), labels)


def _smallest_count(share: float, total: int) -> int:
    """The smallest k with k / total >= share in float64, the comparison that scikit-learn users write."""
    if not 0 < share <= 1:
        raise InputError(f"tpr is {share}; it must be a fraction in (0, 1], such as 0.95")
    count = int(np.ceil(share * total))
    while count > 1 and (count - 1) / total >= share:
        count -= 1
    while count / total < share:
        count += 1
    return max(count, 1)


def _numpy(values) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, on any device, in any precision
        values = values.detach().cpu()
        values = (
            values.float() if values.is_floating_point() and values.element_size() < 4 else values
        ).numpy()
    return np.asarray(values)


def _as_array(scores, name: str) -> np.ndarray:
    """A (N,) float32 or float64 array with N >= 1; half precision is widened, integers become float64."""
    array = _numpy(scores)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: must be real numbers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise InputError(
            f"{name}: must have shape (N,), got {array.shape}; give one score per image"
        )
    if array.size == 0:
        raise InputError(f"{name}: there are none; at least one image is needed")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _mask(correct) -> np.ndarray:
    return _numpy(correct).astype(bool).ravel()


def _labels(labels) -> np.ndarray:
    return _numpy(labels).ravel()


def _predicted(predictions) -> np.ndarray:
    array = _numpy(predictions)
    return array.argmax(1) if array.ndim == 2 else array


def _same_length(what: str, first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.size == 0:
        raise InputError(
            f"{what}: {first.shape} predictions for {second.shape} labels or scores; there must be one each, at least one"
        )
