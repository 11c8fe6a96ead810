"""Open-set metrics of an ID and an OOD set, from sorted scores without a loop over thresholds.

Source: Dinari & Freifeld, UAI 2022. Their code scans 100,000 thresholds for the curves, and 1,000
for the F1, of which it logs the best. Their README asks for the F1 at the threshold that keeps 95 %
of the known images; no released command prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ood import metrics


@dataclass(frozen=True)
class Scored:
    """The images of one set.

    Attributes:
        scores: (N,), larger for OOD.
        predictions: (N,), the most likely class.
        labels: (N,), -1 for OOD.
    """

    scores: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray


def open_set(known: Scored, novel: Scored, tpr: float = 0.95) -> dict[str, float]:
    """Return everything that the paper's tables need, as fractions.

    Returns:
        auroc, fpr95, and tnr95 = 1 - fpr95.
        cauroc: an ID image counts as accepted only if it is also classified correctly.
        accuracy: of ID images, nothing rejected.
        macro_f1: over K + 1 classes, at threshold95, which accepts 95 % of the ID images.
        best_f1, best_f1_threshold: an oracle, because the threshold is chosen on the test set.
    """
    values = metrics.evaluate(known.scores, novel.scores, tpr)
    right = known.predictions == known.labels
    threshold = metrics.threshold_at_tpr(known.scores, tpr)
    macro_f1 = metrics.open_set_f1(
        known.predictions, known.labels, known.scores, novel.predictions, novel.scores, threshold
    )
    thresholds, f1 = f1_curve(known, novel)
    best = int(np.argmax(f1))
    return {
        "auroc": values.auroc,
        "fpr95": values.fpr95,
        "tnr95": 1 - values.fpr95,
        "cauroc": metrics.cauroc(known.scores, novel.scores, right),
        "accuracy": float(right.mean()),
        "macro_f1": macro_f1,
        "threshold95": threshold,
        "best_f1": float(f1[best]),
        "best_f1_threshold": float(thresholds[best]),
    }


def f1_curve(known: Scored, novel: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Return the thresholds (T,), ascending, and the macro F1 (T,) at each of them.

    Every distinct score is a threshold; images with scores <= threshold are accepted. A rejected
    image is assigned to the extra class, to which every OOD image belongs. With the images in the
    order of their scores, all counts are cumulative sums: (N, K) integers, no loop. The mean leaves
    out classes that occur neither as a label nor as a prediction.
    """
    scores = np.concatenate((known.scores, novel.scores))
    labels = np.concatenate((known.labels, np.full(len(novel.scores), -1)))
    predictions = np.concatenate((known.predictions, novel.predictions))
    order = np.argsort(scores, kind="stable")
    scores, labels, predictions = scores[order], labels[order], predictions[order]
    # The last image of each distinct score.
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)

    classes = np.unique(np.concatenate((known.labels, predictions)))
    predicted = predictions[:, None] == classes  # (N, K)
    correct = predicted & (labels == predictions)[:, None]
    hits = np.cumsum(correct, 0, dtype=np.int32)[ends]  # (T, K)
    assigned = np.cumsum(predicted, 0, dtype=np.int32)[ends]
    true = (labels[:, None] == classes).sum(0)
    total = assigned + true
    sums = np.divide(2 * hits, total, out=np.zeros(total.shape), where=total > 0).sum(1)
    present = (total > 0).sum(1)

    rejected = len(scores) - 1 - ends
    rejected_ood = (labels < 0).sum() - np.cumsum(labels < 0)[ends]
    extra = rejected + (labels < 0).sum()
    sums = sums + np.divide(2 * rejected_ood, extra, out=np.zeros(len(ends)), where=extra > 0)
    return scores[ends], sums / (present + (extra > 0))


def threshold_table(known: Scored, novel: Scored, rows: int = 200) -> list[dict[str, float]]:
    """Tabulate tpr, fpr, macro F1 and accuracy with rejections over thresholds, ascending.

    The thresholds accept evenly spaced shares of the known images.
    """
    thresholds, f1 = f1_curve(known, novel)
    id_sorted, ood_sorted = np.sort(known.scores), np.sort(novel.scores)
    right = np.sort(known.scores[known.predictions == known.labels])
    picked = np.unique(np.quantile(id_sorted, np.linspace(0, 1, rows), method="lower"))
    table = []
    for t in np.append(picked, thresholds[-1]):
        accepted = [np.searchsorted(s, t, side="right") for s in (id_sorted, ood_sorted, right)]
        table.append(
            {
                "threshold": float(t),
                "tpr": accepted[0] / len(id_sorted),
                "fpr": accepted[1] / len(ood_sorted),
                "macro_f1": float(f1[np.searchsorted(thresholds, t, side="right") - 1]),
                "accuracy": accepted[2] / len(id_sorted),
            }
        )
    return table
