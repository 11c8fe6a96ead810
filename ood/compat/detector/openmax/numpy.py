"""OpenMax as a layer: logits and labels as arrays in, probabilities of C + 1 classes out."""

from __future__ import annotations

import numpy as np
import torch

from ood import detectors
from ood.compat.base import logits_alone
from ood.outputs import Outputs

__all__ = ["OpenMax"]


class OpenMax:
    """Our formula `openmax`, fitted to the rows whose class is the largest logit.

    pytorch-ood fits to all rows of a class.

    Args: tailsize, alpha, euclid_weight: see `ood.detectors.logits.OpenMax`.
    """

    def __init__(self, tailsize=25, alpha=10, euclid_weight=1.0):
        self.tailsize, self.alpha, self.euclid_weight = tailsize, alpha, euclid_weight
        self._formula = self._formula_now()

    def _formula_now(self):
        settings = {"alpha": self.alpha, "euclid_weight": self.euclid_weight}
        return detectors.create("openmax", tail=self.tailsize, **settings)

    def fit(self, x: np.ndarray, y: np.ndarray) -> OpenMax:
        """Fit to logits x (N, C) and labels y (N,)."""
        self._formula = self._formula_now().fit(_outputs(x, torch.as_tensor(y)))
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Give the probabilities (N, C + 1) of logits x (N, C). The unknown class is column 0.

        Raises: RequiresFittingException before a fit.
        """
        return self._formula.revised(_outputs(x)).numpy()


def _outputs(x: np.ndarray, labels: torch.Tensor | None = None) -> Outputs:
    return logits_alone(torch.as_tensor(x), labels)
