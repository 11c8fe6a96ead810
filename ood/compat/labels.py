"""pytorch-ood's labels and its metrics: OOD has negative labels, OOD is the positive class."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ood import metrics
from ood.config import InputError


def is_known(labels):
    """Whether a label is that of a known class (>= 0); elementwise for arrays."""
    return labels >= 0


def is_unknown(labels):
    """Whether a label marks an outlier (< 0); elementwise for arrays."""
    return labels < 0


class ToUnknown:
    """A target transform that marks every image as an outlier."""

    def __call__(self, y) -> int:
        return -1


class OODMetrics:
    """Collects scores and labels of ID and OOD images; `compute` gives fractions under pytorch-ood's names.

    AUROC, AUPR-IN and AUPR-OUT (average precision, not a trapezoid), FPR95TPR with OOD positive, AUTC = (mean normalised ID score + 1 -
    mean normalised OOD score) / 2, and FPR95-ID, the papers' number: share of OOD accepted when 95 % of ID is accepted.
    """

    def __init__(self, device: str = "cpu"):
        self.reset()

    def reset(self) -> OODMetrics:
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []
        return self

    def update(self, scores: Tensor, labels: Tensor) -> OODMetrics:
        self.scores.append(scores.detach().double().cpu().flatten())
        self.labels.append(torch.as_tensor(labels).cpu().flatten())
        return self

    def compute(self) -> dict[str, float]:
        if not self.scores:
            raise InputError("OODMetrics: no scores yet, call update(scores, labels) first")
        scores, labels = torch.cat(self.scores).numpy(), torch.cat(self.labels).numpy()
        known, novel = scores[labels >= 0], scores[labels < 0]
        found = metrics.evaluate(known, novel)
        low, high = scores.min(), scores.max()
        autc = (np.mean((known - low) / (high - low)) + 1 - np.mean((novel - low) / (high - low))) / 2 if high > low else 0.5
        return {"AUROC": found.auroc, "AUTC": float(autc), "AUPR-IN": found.aupr_in, "AUPR-OUT": found.aupr_out,
                "FPR95TPR": found.fpr95_ood_positive, "FPR95-ID": found.fpr95}
