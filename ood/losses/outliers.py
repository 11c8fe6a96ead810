"""Losses that learn from auxiliary outliers, which have labels below 0.

They look at the outliers' softmax, energy or features, or give the outliers an extra class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ood.losses.base import (
    AT_LEAST_0,
    NUMBER,
    Loss,
    also,
    cross_entropy,
    energy,
    mean_where,
    reduced,
    register,
)


@register("outlier_exposure")
class OutlierExposureLoss(Loss):
    """Cross-entropy on ID images, and cross-entropy to the uniform distribution on outliers.

        L = E_in[ -log softmax_y(f) ] + alpha E_out[ logsumexp(f) - mean_c f_c ]

    forward(logits (B, C), y (B,)), or (B, C, H, W) and (B, H, W). Without outliers in a batch the
    loss is the first term, without ID rows the second.

    Args:
        alpha: lambda, 0.5 as in the paper's image experiments.
        reduction: "mean" as above; "sum" or "none" of the terms per row, alpha included.
        balance: what "mean" averages over. "expectation": each term over its own rows, as in the
            paper and its code. "batch": one mean over all rows, as in pytorch-ood. The
            cross-entropy then weighs less, the more outliers a batch has.
    Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv
        1812.04606, sec. 4.3. The authors' code takes twice as many outliers as ID images per batch.
    """

    outliers = "needed"
    ranges = {"alpha": AT_LEAST_0, "balance": ("expectation", "batch")}

    def __init__(
        self, alpha: float = 0.5, reduction: str | None = "mean", balance: str = "expectation"
    ):
        super().__init__()
        self.alpha, self.reduction, self.balance = alpha, reduction, balance

    @also(target="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        to_uniform = -energy(logits) - logits.mean(1)
        if self.reduction == "mean" and self.balance == "expectation":
            return cross_entropy(logits, y) + self.alpha * mean_where(to_uniform, y < 0)
        exposed = torch.where(y < 0, to_uniform, 0)
        return reduced(cross_entropy(logits, y, "none") + self.alpha * exposed, self.reduction)


@register("energy_bounded")
class EnergyRegularizedLoss(Loss):
    """Cross-entropy, and squared hinges on the energy of ID images and of outliers.

        L = CE + alpha ( E_in[ max(0, E - margin_in)^2 ] + E_out[ max(0, margin_out - E)^2 ] )

    The hinges push the energy E = -logsumexp(f) of ID images below one margin, and that energy of
    outliers above another.

    Args:
        alpha: 0.1, the paper's value.
        margin_in, margin_out: -25 and -7, the defaults of the authors' code and of pytorch-ood, for
            CIFAR and WideResNet-40-2. The authors' README takes -23 and -5 for CIFAR-10, and -27
            and -5 for CIFAR-100.
        reduction: "mean": each mean over its own rows, as above. "sum" or "none": of the terms per
            row.
    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv
        2010.03759, eq. 8-9. The authors fine-tune a trained network for ten epochs at a rate of
        0.001 (classifier_pretraining.py -init).
    """

    outliers = "needed"
    ranges = {"alpha": AT_LEAST_0, "margin_in": NUMBER, "margin_out": NUMBER}

    def __init__(
        self,
        alpha: float = 0.1,
        margin_in: float = -25.0,
        margin_out: float = -7.0,
        reduction: str | None = "mean",
    ):
        super().__init__()
        self.alpha, self.reduction = alpha, reduction
        self.margin_in, self.margin_out = margin_in, margin_out

    @also(targets="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        e, known = energy(logits), y >= 0
        hinge = torch.where(known, e - self.margin_in, self.margin_out - e).relu().square()
        if self.reduction == "mean":
            hinges = mean_where(hinge, known) + mean_where(hinge, ~known)
            return cross_entropy(logits, y) + self.alpha * hinges
        return reduced(cross_entropy(logits, y, "none") + self.alpha * hinge, self.reduction)


def _entropic(logits: Tensor, y: Tensor) -> Tensor:
    """Values per row: -log softmax_y for ID images, -mean_c log softmax_c for outliers."""
    to_uniform = -energy(logits) - logits.mean(1)
    return cross_entropy(logits, y, "none") + torch.where(y < 0, to_uniform, 0)


@register("entropic_open_set")
class EntropicOpenSetLoss(Loss):
    """Cross-entropy on ID images, and mean cross-entropy over all classes on outliers.

        L = -log softmax_y(f)  if y >= 0,   -1/C sum_c log softmax_c(f)  if y < 0

    forward(logits (B, C), y (B,)), or (B, C, H, W) and (B, H, W). With reduction "mean", one mean
    over the batch, it equals outlier exposure with alpha 1 and balance "batch".

    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv
        1811.04110, eq. 1.
    """

    outliers = "needed"

    def __init__(self, reduction: str | None = "mean"):
        super().__init__()
        self.reduction = reduction

    @also(target="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return reduced(_entropic(logits, y), self.reduction)


@register("objectosphere")
class ObjectosphereLoss(Loss):
    """Entropic open-set loss, with long features for ID images and short ones for outliers.

        L = L_entropic + alpha * ( max(0, xi - |h|)^2  if y >= 0,   |h|^2  if y < 0 )

    forward(logits (B, C), features h (B, D), y).

    Args:
        alpha: lambda, the factor of the second term.
        xi: least length of ID features. The defaults, alpha 1 and xi 1, are pytorch-ood's; a small
            network learns no classes with them. The authors' code and -loss take 1e-4 and 50.
        reduction: over all rows, "mean", "sum" or "none".
    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv
        1811.04110, eq. 2.
    """

    inputs = ("logits", "features")
    outliers = "needed"
    recipe = {"alpha": 1e-4, "xi": 50.0}
    ranges = {"alpha": AT_LEAST_0, "xi": AT_LEAST_0}

    def __init__(self, alpha: float = 1.0, xi: float = 1.0, reduction: str | None = "mean"):
        super().__init__()
        self.alpha, self.xi, self.reduction = alpha, xi, reduction

    @also(target="y")
    def forward(self, logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(features, dim=1)
        sphere = torch.where(y >= 0, (self.xi - length).relu().square(), features.square().sum(1))
        return reduced(_entropic(logits, y) + self.alpha * sphere, self.reduction)

    @staticmethod
    def score(logits: Tensor) -> Tensor:
        """Score -max_c softmax_c(f) |f|: (B, C) -> (B,), larger = OOD."""
        return -logits.softmax(1).amax(1) * torch.linalg.vector_norm(logits, dim=1)


@register("background_class")
class BackgroundClassLoss(Loss):
    """Cross-entropy over C + 1 classes, where the last class holds the outliers.

    forward(logits (B, C + 1), y (B,)), or (B, C + 1, H, W) and (B, H, W). The score is the softmax
    of the last class. classifier_pretraining.py keeps the extra row of the head outside the
    network, which stays a classifier of C classes.

    Args:
        n_classes: C, the number of ID classes.
        reduction: over all rows, "mean", "sum" or "none".
    Raises: ValueError in forward, for a label of C or more.
    Source: the baseline of Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS
        2018, arXiv 1811.04110.
    """

    outliers = "needed"
    brings = ("extra class",)

    def __init__(self, n_classes: int, reduction: str | None = "mean"):
        super().__init__()
        self.num_classes, self.reduction = n_classes, reduction

    @also(targets="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        # Only on the CPU: a GPU reports such a label itself, and looking would make it wait.
        if y.device.type == "cpu" and (y >= self.num_classes).any():
            raise ValueError(
                f"label {int(y.max())} of {self.num_classes} classes: labels go from 0 to "
                f"{self.num_classes - 1}, and labels below 0 mean the background class"
            )
        return cross_entropy(logits, torch.where(y < 0, self.num_classes, y), self.reduction)
