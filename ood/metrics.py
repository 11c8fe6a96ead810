"""How well scores separate ID from OOD: six numbers from one sort, exact in the presence of ties.

    ours = evaluate(id_scores, ood_scores)        # Metrics(fpr95=..., auroc=..., ...), fractions
    known = prepare(id_scores)                    # sorted once ...
    rows = [evaluate(known, ood) for ood in sets]  # ... and used for every OOD set

A score is larger for outliers. "Accepted at t" means score <= t. So equal scores are accepted
together, and every curve has one point per distinct score. Counts are integers; only their ratios
are floats (float64). Results are fractions, never percent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ood.config import InputError


class Metrics(NamedTuple):
    """Fractions in [0, 1].

    fpr95               share of OOD accepted at the first threshold that accepts >= 95 % of ID
                        (ID positive, as in the papers)
    auroc               P(score of OOD > score of ID) + P(equal) / 2
                        (the same for either positive class)
    aupr_in             average precision with ID positive, from counts: depends on ID : OOD
    aupr_out            average precision with OOD positive
    detection_error     min over thresholds of (share of ID rejected + share of OOD accepted) / 2
                        (both classes weigh the same)
    fpr95_ood_positive  share of ID flagged at the first threshold that flags >= 95 % of OOD
                        (OOD positive: the FPR95 of pytorch-ood and OpenOOD)
    """

    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    detection_error: float
    fpr95_ood_positive: float


class SortedScores:
    """The scores of one data set, sorted; made by `prepare`.

    Attributes:
        values: (U,) the distinct scores, ascending.
        below: (U + 1,) int64. below[k] is the number of scores smaller than values[k]; below[U] is
            the number of all scores.
    """

    def __init__(self, scores, name: str = "scores"):
        ordered = np.sort(as_scores(scores, name))
        if np.isnan(ordered[-1]):  # NaN sorts last
            raise InputError(
                f"{name}: {np.isnan(ordered).sum()} of {ordered.size} are NaN; a NaN cannot be "
                "ranked, look at the detector or the data"
            )
        distinct = ordered[1:] != ordered[:-1]
        if distinct.all():
            self.values, self.below = ordered, np.arange(ordered.size + 1)
        else:
            starts = np.concatenate(([0], np.flatnonzero(distinct) + 1))
            self.values, self.below = ordered[starts], np.append(starts, ordered.size)

    @classmethod
    def counted(cls, counts: np.ndarray) -> SortedScores:
        """Make the scores 0, 1, 2, ... of which there are so many: counts (K,) int64, not all 0."""
        made = cls.__new__(cls)
        made.values = np.flatnonzero(counts)
        made.below = np.append(0, np.cumsum(counts[made.values]))
        return made

    def __len__(self) -> int:
        return int(self.below[-1])


def prepare(scores, name: str = "ID scores") -> SortedScores:
    """Sort scores (N,) once, to evaluate them against many sets.

    Raises: InputError for NaN, for no scores and for another shape.
    """
    return scores if isinstance(scores, SortedScores) else SortedScores(scores, name)


def evaluate(id_scores, ood_scores, tpr: float = 0.95) -> Metrics:
    """Return all six metrics of one ID and one OOD set.

    Args:
        id_scores: (N,) numpy, torch, a sequence, or what `prepare` returned; larger = OOD; may be
            infinite.
        ood_scores: (M,) likewise.
        tpr: the operating point of the two fpr95 values, in (0, 1].

    Returns: Metrics, fractions.

    Raises: InputError for NaN, for an empty set and for another shape.

    Source: equal to scikit-learn's roc_curve (all points), roc_auc_score and
        average_precision_score. The detection error is Liang et al.'s (ODIN, ICLR 2018). Their text
        fixes TPR = 95 %, but their code and most of their table take the minimum, as we do.
    """
    known, novel = prepare(id_scores), prepare(ood_scores, "OOD scores")
    n_id, n_ood = len(known), len(novel)
    known_count, novel_count = smallest_count(tpr, n_id), smallest_count(tpr, n_ood)

    # At each distinct ID score: how many distinct OOD values are <= it (upper) and < it (lower).
    upper = np.searchsorted(novel.values, known.values, side="right")
    lower = upper - ((upper > 0) & (novel.values[upper - 1] == known.values))
    share_id = np.diff(known.below)  # ID scores at each distinct value
    accepted_id = known.below[1:]  # tp with ID positive
    accepted_ood = novel.below[upper]  # fp with ID positive
    # At each distinct OOD score v: an ID value is below v if its `upper` does not yet count v.
    # Flagged means score >= v.
    id_values_below = np.cumsum(np.bincount(upper, minlength=novel.values.size + 1))[:-1]
    flagged_id = n_id - known.below[id_values_below]
    flagged_ood = n_ood - novel.below[:-1]
    share_ood = np.diff(novel.below)

    # 2 * (pairs with OOD < ID) + (equal pairs), exact
    twice_pairs_lost = int(share_id @ (accepted_ood + novel.below[lower]))
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
    """Return the corners of the ROC curve: two arrays, fpr (P,) and tpr (P,), with ID positive.

    The curve runs from (0, 0) to (1, 1). Points inside a straight line are left out.
    """
    known, novel = prepare(id_scores), prepare(ood_scores, "OOD scores")
    thresholds = np.union1d(known.values, novel.values)
    tp = np.append(0, known.below[np.searchsorted(known.values, thresholds, side="right")])
    fp = np.append(0, novel.below[np.searchsorted(novel.values, thresholds, side="right")])
    step_t, step_f = np.diff(tp), np.diff(fp)
    turns = step_t[1:] * step_f[:-1] != step_t[:-1] * step_f[1:]
    keep = np.concatenate(([True], turns, [True]))
    return fp[keep] / len(novel), tp[keep] / len(known)


def threshold_at_tpr(id_scores, tpr: float = 0.95) -> float:
    """Return the smallest t for which at least the share `tpr` of the ID scores is <= t.

    Accept an input if its score is <= t.
    """
    known = prepare(id_scores)
    return float(known.values[np.searchsorted(known.below[1:], smallest_count(tpr, len(known)))])


def cauroc(id_scores, ood_scores, correct) -> float:
    """Return the AUROC where an ID input is accepted only if it is also classified correctly.

    The tpr axis is (accepted and correct) / correct. So this is the AUROC of the correctly
    classified ID inputs; nan if there are none.

    Args:
        id_scores: (N,). ood_scores: (M,).
        correct: (N,) bool, whether each ID input is classified correctly.

    Source: Dinari & Freifeld, UAI 2022. Their code sums rectangles over a grid of 100,000
        thresholds; this is the exact area.
    """
    scores, correct = as_scores(id_scores, "ID scores"), _mask(correct)
    if scores.shape != correct.shape:
        raise InputError(
            f"cauroc: {scores.size} ID scores but {correct.size} entries in `correct`; "
            "give one per score"
        )
    return evaluate(scores[correct], ood_scores).auroc if correct.any() else float("nan")


def accuracy(predictions, labels) -> float:
    """Return the share of predictions that equal the labels.

    Args: predictions: (N,) int, or logits (N, C). labels: (N,) int.

    Raises: InputError if there are none, or not as many of one as of the other.
    """
    predictions, labels = _predicted(predictions), _labels(labels)
    _same_length("accuracy", predictions, labels)
    return float(np.mean(predictions == labels))


def macro_f1(predictions, labels) -> float:
    """Return the unweighted mean of 2 tp / (2 tp + fp + fn) over the classes.

    Every class that occurs in either array counts; the rejected class (-1) is one of them.
    Args and Raises as for `accuracy`.
    """
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
    """Return the macro F1 over K + 1 classes, where class -1 holds what is rejected.

    An input with score > threshold is assigned to class -1. Every OOD label is -1.

    Args:
        id_predictions, ood_predictions: (N,) and (M,) classes, or logits. id_labels: (N,).
        id_scores, ood_scores: (N,) and (M,); larger = OOD.

    Source: the open-set protocol of VMDLS (UAI 2022). The threshold comes from `threshold_at_tpr`
        instead of being the best one on the test set.
    """
    id_scores, ood_scores = as_scores(id_scores, "ID scores"), as_scores(ood_scores, "OOD scores")
    scores = np.concatenate((id_scores, ood_scores))
    predictions = np.concatenate((_predicted(id_predictions), _predicted(ood_predictions)))
    labels = np.concatenate((_labels(id_labels), np.full(ood_scores.size, -1)))
    _same_length("open_set_f1", predictions, scores)
    return macro_f1(np.where(scores > threshold, -1, predictions), labels)


def smallest_count(share: float, total: int) -> int:
    """Return the smallest k with k / total >= share in float64, as scikit-learn users compare.

    Raises: InputError for a share outside (0, 1].
    """
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
        if values.is_meta or values.is_sparse:
            kind = "a tensor of the meta device" if values.is_meta else "a sparse tensor"
            raise InputError(f"scores and labels are dense values, got {kind}")
        values = values.detach().cpu()
        values = (
            values.float() if values.is_floating_point() and values.element_size() < 4 else values
        ).numpy()
    return np.asarray(values)


def as_scores(scores, name: str) -> np.ndarray:
    """Return scores as a float32 or float64 array (N,) with N >= 1.

    Half precision is widened to float32; integers become float64. `name` stands in the messages.

    Raises: InputError for values that are not real numbers, for another shape and for no scores.
    """
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
            f"{what}: {first.shape} predictions for {second.shape} labels or scores; "
            "there must be one each, at least one"
        )
