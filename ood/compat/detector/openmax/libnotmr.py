"""The fit of a Weibull distribution to the largest of some distances."""

from __future__ import annotations

import math

import numpy as np
import torch

from ood.detectors.logits import TRANSLATION, weibull

__all__ = ["LibNotMR"]


class LibNotMR:
    """Two-parameter Weibull distribution of the `tailsize` largest of the inputs.

    The inputs are shifted so that the least of the tail is 10,000, as in libMR.

    Attributes: c: the shape. scale: the scale. min_val: the least of the tail. They are None before
        a fit.
    """

    translation = TRANSLATION

    def __init__(self, tailsize: int = 20):
        self.tailsize = tailsize
        self.c = self.scale = self.min_val = None

    def fit_high(self, inputs: np.ndarray) -> None:
        """Fit to inputs (N,)."""
        tail = torch.as_tensor(np.asarray(inputs, dtype=np.float64)).sort().values
        self.c, log_scale, self.min_val = weibull(tail[-self.tailsize :])
        self.scale = math.exp(log_scale)

    def w_score(self, inputs: np.ndarray) -> np.ndarray:
        """Share of the distribution that lies below each input: values in [0, 1]."""
        shifted = np.maximum(inputs + self.translation - self.min_val, 0)
        return -np.expm1(-((shifted / self.scale) ** self.c))
