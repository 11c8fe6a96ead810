"""Losses that change the batch before the network sees it: rotated copies, mixed-in outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from ood.config import Range
from ood.losses.base import AT_LEAST_0, Loss, cross_entropy, register


@register("rotation")
class RotationLoss(Loss):
    """Classify the upright images, and predict by how much each of their four copies was turned.

        L = CE(f(x), y) + weight * mean over x and r of CE(g(turn(x, r 90 degrees)), r)

    forward(logits (4B, C), rotations (4B, 4), y (B,)). `stage` makes such a batch: the rows of
    r = 0 come first, then r = 1, 2, 3. Rows with y < 0 count in neither term. The paper's score is
    that of detector msp minus the second loss.

    Args:
        weight: factor of the second term. 0.5 is the paper's; OpenOOD's rotpred has 1.
    Source: Hendrycks et al., "Using Self-Supervised Learning Can Improve Model Robustness and
        Uncertainty", NeurIPS 2019, arXiv 1906.12340, sec. 5. Not in pytorch-ood.
    """

    inputs = ("logits", "rotations")
    brings = ("rotation head",)
    ranges = {"weight": AT_LEAST_0}

    def __init__(self, weight: float = 0.5):
        super().__init__()
        self.weight = weight

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        return torch.cat([images.rot90(r, (2, 3)) for r in range(4)]), labels, ()

    def forward(self, logits: Tensor, rotations: Tensor, y: Tensor) -> Tensor:
        turned = torch.arange(4, device=y.device).repeat_interleave(len(y))
        turned = torch.where(y.repeat(4) < 0, -1, turned)
        return cross_entropy(logits[: len(y)], y) + self.weight * cross_entropy(rotations, turned)


@register("openmix")
class OpenMixLoss(Loss):
    """Cross-entropy over C + 1 classes, on ID images and on their mixtures with outliers.

        x' = lam x + (1 - lam) o,   lam ~ Beta(alpha, alpha)
        L = CE(f(x), y) + gamma * E[ lam CE(f(x'), y) + (1 - lam) CE(f(x'), C) ]

    Class C stands for outliers, so a mixture belongs to it in part. `stage` pairs ID images with
    outliers in their order, draws one lam for the batch, and appends the mixtures to the ID images.
    There are as many mixtures as the batch has pairs.

    forward(logits (B + M, C + 1), y (B,), lam, partners (M,)). `partners` holds the row of the ID
    image in each mixture.

    Args:
        n_classes: C, the number of ID classes.
        alpha: parameter of the Beta distribution. The paper's value is 10.
        gamma: factor of the mixtures, lambda_o in the authors' code. The paper's value is 1.
    Source: Zhu et al., "OpenMix: Exploring Outlier Samples for Misclassification Detection", CVPR
        2023, arXiv 2303.17093, eq. 4-6, and the authors' code. Not in pytorch-ood.
    """

    outliers = "needed"
    brings = ("extra class",)
    ranges = {"alpha": Range(1e-3, 1e6), "gamma": AT_LEAST_0}

    def __init__(self, n_classes: int, alpha: float = 10.0, gamma: float = 1.0):
        super().__init__()
        self.num_classes, self.alpha, self.gamma = n_classes, alpha, gamma

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        known = labels >= 0
        inside, outside = images[known], images[~known]
        count = min(len(inside), len(outside))
        lam = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        mixed = lam * inside[:count] + (1 - lam) * outside[:count]
        partners = torch.arange(count, device=labels.device)
        return torch.cat((inside, mixed)), labels[known], (lam, partners)

    def forward(
        self, logits: Tensor, y: Tensor, lam: float = 1.0, partners: Tensor | None = None
    ) -> Tensor:
        loss = cross_entropy(logits[: len(y)], y)
        if partners is None or not len(partners):
            return loss
        mixed, outlier = logits[len(y) :], torch.full_like(partners, self.num_classes)
        known, rejected = cross_entropy(mixed, y[partners]), cross_entropy(mixed, outlier)
        return loss + self.gamma * (lam * known + (1 - lam) * rejected)
