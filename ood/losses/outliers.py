"""Losses that learn from auxiliary outliers (labels below 0): by their softmax, their energy, their features, or a class of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ood.losses.base import (
    Loss,
    cross_entropy,
    energy,
    known_reduction,
    mean_where,
    reduced,
    register,
    require,
)


@register("outlier_exposure")
class OutlierExposureLoss(Loss):
    """Cross-entropy on ID images, cross-entropy to the uniform distribution on outliers.

        L = E_in[ -log softmax_y(f) ] + alpha E_out[ logsumexp(f) - mean_c f_c ]

    Args:
        alpha: lambda, 0.5 as in the paper's image experiments.
        reduction: "mean" as above; "sum" and "none": of the terms per row, alpha included.
        balance: what "mean" means. "expectation": each mean over its own rows, the paper and its code; "batch": one mean over all
            rows, which is what pytorch-ood computes (the cross-entropy then weighs less the more outliers a batch has).
    Logits (B, C) or (B, C, H, W). A batch without outliers gives the cross-entropy; one without ID rows only the other term.
    Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv 1812.04606, sec. 4.3. The authors' code
        takes twice as many outliers as ID images per batch.
    """

    outliers = "needed"

    def __init__(
        self, alpha: float = 0.5, reduction: str | None = "mean", balance: str = "expectation"
    ):
        super().__init__()
        require(alpha >= 0, f"outlier_exposure: alpha is {alpha}; it must be at least 0")
        require(
            balance in ("expectation", "batch"),
            f"outlier_exposure: balance is {balance!r}; allowed: expectation, batch",
        )
        self.alpha, self.reduction, self.balance = alpha, known_reduction(reduction), balance

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        to_uniform = -energy(logits) - logits.mean(1)
        if self.reduction == "mean" and self.balance == "expectation":
            return cross_entropy(logits, y) + self.alpha * mean_where(to_uniform, y < 0)
        return reduced(
            cross_entropy(logits, y, "none") + self.alpha * torch.where(y < 0, to_uniform, 0),
            self.reduction,
        )


@register("energy_bounded")
class EnergyRegularizedLoss(Loss):
    """Cross-entropy, and squared hinges that push the energy E = -logsumexp(f) of ID images below one margin, of outliers above another.

        L = CE + alpha ( E_in[ max(0, E - margin_in)^2 ] + E_out[ max(0, margin_out - E)^2 ] )

    Args:
        alpha: 0.1, the paper's. margin_in, margin_out: -25 and -7, the defaults of the authors' code and of pytorch-ood, for CIFAR and
            WideResNet-40-2; the README there takes -23, -5 for CIFAR-10 and -27, -5 for CIFAR-100.
        reduction: "mean": each mean over its own rows, as above; "sum" and "none": of the terms per row.
    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv 2010.03759, eq. 8-9. The authors fine-tune a
        trained network for ten epochs at a rate of 0.001 (classifier_pretraining.py -init).
    """

    outliers = "needed"

    def __init__(
        self,
        alpha: float = 0.1,
        margin_in: float = -25.0,
        margin_out: float = -7.0,
        reduction: str | None = "mean",
    ):
        super().__init__()
        require(alpha >= 0, f"energy_bounded: alpha is {alpha}; it must be at least 0")
        self.alpha, self.margin_in, self.margin_out, self.reduction = (
            alpha,
            margin_in,
            margin_out,
            known_reduction(reduction),
        )

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        e, known = energy(logits), y >= 0
        hinge = torch.where(known, e - self.margin_in, self.margin_out - e).relu().square()
        if self.reduction == "mean":
            return cross_entropy(logits, y) + self.alpha * (
                mean_where(hinge, known) + mean_where(hinge, ~known)
            )
        return reduced(cross_entropy(logits, y, "none") + self.alpha * hinge, self.reduction)


def _entropic(logits: Tensor, y: Tensor) -> Tensor:
    """Per row: -log softmax_y for ID, -mean_c log softmax_c for outliers."""
    return cross_entropy(logits, y, "none") + torch.where(
        y < 0, -energy(logits) - logits.mean(1), 0
    )


@register("entropic_open_set")
class EntropicOpenSetLoss(Loss):
    """Cross-entropy on ID images, the mean cross-entropy over all classes on outliers, in one mean over the batch.

        L = -log softmax_y(f)  if y >= 0,   -1/C sum_c log softmax_c(f)  if y < 0

    With reduction "mean" it is outlier exposure of alpha 1 and balance "batch". Logits (B, C) or (B, C, H, W).
    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv 1811.04110, eq. 1.
    """

    outliers = "needed"

    def __init__(self, reduction: str | None = "mean"):
        super().__init__()
        self.reduction = known_reduction(reduction)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return reduced(_entropic(logits, y), self.reduction)


@register("objectosphere")
class ObjectosphereLoss(Loss):
    """Entropic open-set loss, and features longer than xi for ID images, short ones for outliers.

        L = L_entropic + alpha * ( max(0, xi - |h|)^2  if y >= 0,   |h|^2  if y < 0 )

    forward(logits (B, C), features h (B, D), y).
    Args: alpha: lambda; xi: least length. 1 and 1 are pytorch-ood's, with which a small network learns no classes here; 1e-4 and 50 are
        those of the authors' code, and -loss's.
    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv 1811.04110, eq. 2.
    """

    inputs = ("logits", "features")
    outliers = "needed"
    recipe = {"alpha": 1e-4, "xi": 50.0}

    def __init__(self, alpha: float = 1.0, xi: float = 1.0, reduction: str | None = "mean"):
        super().__init__()
        require(
            alpha >= 0 and xi >= 0,
            f"objectosphere: alpha is {alpha}, xi is {xi}; they must be at least 0",
        )
        self.alpha, self.xi, self.reduction = alpha, xi, known_reduction(reduction)

    def forward(self, logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(features, dim=1)
        sphere = torch.where(y >= 0, (self.xi - length).relu().square(), features.square().sum(1))
        return reduced(_entropic(logits, y) + self.alpha * sphere, self.reduction)

    @staticmethod
    def score(logits: Tensor) -> Tensor:
        """(B,) -max_c softmax_c(f) |f|, larger = OOD."""
        return -logits.softmax(1).amax(1) * torch.linalg.vector_norm(logits, dim=1)


@register("background_class")
class BackgroundClassLoss(Loss):
    """Cross-entropy over C + 1 classes; outliers are the last one.

    Logits (B, C + 1), or (B, C + 1, H, W); score: softmax of the last. In training here the extra row of the head lies outside of the
    network, which keeps its C classes.
    Args: n_classes: C.
    Raises: ValueError for a label of C or more.
    Source: the baseline of Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv 1811.04110.
    """

    outliers = "needed"
    brings = ("extra class",)

    def __init__(self, n_classes: int, reduction: str | None = "mean"):
        super().__init__()
        self.num_classes, self.reduction = n_classes, known_reduction(reduction)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        if (
            y.device.type == "cpu" and (y >= self.num_classes).any()
        ):  # a GPU reports it by itself, without waiting here
            raise ValueError(
                f"label {int(y.max())} of {self.num_classes} classes (the background class {self.num_classes} is that of labels below 0)"
            )
        return cross_entropy(logits, torch.where(y < 0, self.num_classes, y), self.reduction)
