"""Detectors that reshape the features or the last layer and then take the energy of the new logits."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ood import statistics
from ood.config import InputError
from ood.detectors.base import Detector, register
from ood.detectors.logits import energy
from ood.outputs import Outputs


@register("react")
class ReAct(Detector):
    """Rectified activations: score = energy of W min(h, c) + b.

    Args:
        percentile: c is this percentile (0-100) of all training features; 90 in the paper.
        threshold: c itself, in feature units; overrides `percentile` and needs no training set (1.0 for the ResNet-50 of the paper).

    Source: Sun, Guo & Li, NeurIPS 2021, arXiv 2111.12797. The authors take the percentile over about 2,000 ID validation
    images, we over the whole training set.
    """
    percentile: float = 90.0
    threshold: float | None = None
    needs = frozenset({"features"})

    @property
    def requires_fit(self) -> bool:
        return self.threshold is None

    def fit(self, train: Outputs) -> ReAct:
        self.clip = statistics.quantile(train, self.percentile / 100) if self.threshold is None else self.threshold
        return self

    def score(self, batch: Outputs) -> Tensor:
        clip = self.clip if self.threshold is None else self.threshold
        return energy(batch.head(batch.features.clamp(max=clip)))


@register("dice")
class DICE(Detector):
    """Directed sparsification: score = energy of (M * W) h + b, M = 1 where the contribution W * mean(h) is above its percentile.

    Args:
        percentile: p of the contributions that is cut off, 0-100, over all C*D entries at once; the paper takes 90 for
            CIFAR and 70 for ImageNet (and writes fractions).
        feature_mean: .npy file with the mean training feature, (D,), as the authors publish it; else it is fitted.
        clip: largest feature value (ReAct before DICE), in feature units; None for no clipping. The authors pair
            percentile 10 with clip 1.0, or 15 with 1.5, on ImageNet.
        clip_percentile: the same as a percentile (0-100) of the training features. The mean is that of the unclipped
            features, as in the released code.

    Source: Sun & Li, ECCV 2022, arXiv 2111.09805, eq. 3-5. One matrix product with a masked weight; the released code
    broadcasts to (B, C, D) and sums. Contributions are signed, the comparison is strict and the bias stays, as there.
    """
    percentile: float = 90.0
    feature_mean: str | None = None
    clip: float | None = None
    clip_percentile: float | None = None
    needs = frozenset({"features"})

    @property
    def requires_fit(self) -> bool:
        return self.feature_mean is None or self.clip_percentile is not None

    def fit(self, train: Outputs) -> DICE:
        mean = statistics.mean(train) if self.feature_mean is None else read_mean(self.feature_mean, train.head.weight.shape[1])
        self.mask, self.contribution_threshold = contribution_mask(train.head.weight, mean, self.percentile)    # (C, D)
        self.limit = self.clip
        if self.clip_percentile is not None:
            self.limit = statistics.quantile(train, self.clip_percentile / 100)
        return self

    def score(self, batch: Outputs) -> Tensor:
        features = batch.features if self.limit is None else batch.features.clamp(max=self.limit)
        return energy(linear(features, self.mask * batch.head.weight, batch.head.bias))


@register("dice_react")
class DICEReAct(DICE):
    """DICE on rectified activations: `dice` with the features clipped at a percentile of the training features.

    Args:
        percentile: as in `dice`.
        clip_percentile: 90, ReAct's value; set `clip` and make this null for a fixed value.

    Source: Sun & Li, ECCV 2022, table 1 (DICE + ReAct); the released code offers it for ImageNet only.
    """
    clip_percentile: float | None = 90.0


def contribution_mask(weight: Tensor, mean: Tensor, percentile: float) -> tuple[Tensor, float]:
    """M (C, D) in the weight's type and the threshold: the percentile of W * mean over all entries, in float64."""
    contribution = weight.double() * mean.double()                      # (C, D), signed
    threshold = float(np.percentile(contribution.numpy(), percentile))
    return (contribution > threshold).to(weight.dtype), threshold


def read_mean(path: str, dimension: int) -> Tensor:
    """The mean feature from a .npy file, (D,) float64. Raises InputError when it is missing or of another length."""
    if not Path(path).is_file():
        raise InputError(f"no feature mean in '{path}'; give a .npy file of {dimension} numbers, or leave feature_mean out to fit it")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"'{path}' is not a plain .npy file: {error}") from None
    if values.shape != (dimension,) or not np.isfinite(values).all():
        raise InputError(f"feature mean in '{path}' has shape {values.shape}; this network's features need ({dimension},) finite numbers")
    return torch.from_numpy(values.astype(np.float64))
