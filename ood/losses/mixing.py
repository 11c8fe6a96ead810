"""Losses that change the batch before the network sees it: rotated copies, mixtures with outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from ood.losses.base import Loss, cross_entropy, register, require


@register("rotation")
class RotationLoss(Loss):
    """Cross-entropy on the upright images, and a second one on how far each of four copies was turned.

        L = CE(f(x), y) + weight * mean over x and r of CE(g(turn(x, r 90 degrees)), r)

    forward(logits (4B, C), rotations (4B, 4), y (B,)): the rows of r = 0 first, then those of 1, 2, 3 (`stage` makes such a batch).
    Rows with y < 0 take part in neither. Score of the paper: detector msp, minus the second loss.
    Args: weight: 0.5, the paper's; OpenOOD's rotpred has 1.
    Source: Hendrycks et al., "Using Self-Supervised Learning Can Improve Model Robustness and Uncertainty", NeurIPS 2019, arXiv 1906.12340, sec.
        5. Not in pytorch-ood.
    """

    inputs = ("logits", "rotations")
    brings = ("rotation head",)

    def __init__(self, weight: float = 0.5):
        super().__init__()
        require(weight >= 0, f"rotation: weight is {weight}; it must be at least 0")
        self.weight = weight

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        return torch.cat([images.rot90(r, (2, 3)) for r in range(4)]), labels, ()

    def forward(self, logits: Tensor, rotations: Tensor, y: Tensor) -> Tensor:
        turned = torch.arange(4, device=y.device).repeat_interleave(len(y))
        turned = torch.where(y.repeat(4) < 0, -1, turned)
        return cross_entropy(logits[: len(y)], y) + self.weight * cross_entropy(rotations, turned)


@register("openmix")
class OpenMixLoss(Loss):
    """Cross-entropy over C + 1 classes on ID images, and on their mixtures with outliers, which belong to the last class in part.

        x' = lam x + (1 - lam) o,   lam ~ Beta(alpha, alpha)
        L = CE(f(x), y) + gamma * E[ lam CE(f(x'), y) + (1 - lam) CE(f(x'), C) ]

    `stage` pairs ID images and outliers in their order, as many as there are of both, with one lam for the batch, and gives the ID
    images followed by the mixtures. forward(logits (B + M, C + 1), y (B,), lam, partners (M,): the row of each mixture's ID image).
    Args: n_classes: C. alpha: 10; gamma: 1 (lambda_o in the authors' code): the paper's.
    Source: Zhu et al., "OpenMix: Exploring Outlier Samples for Misclassification Detection", CVPR 2023, arXiv 2303.17093, eq. 4-6, and the
        authors' code. Not in pytorch-ood.
    """

    outliers = "needed"
    brings = ("extra class",)

    def __init__(self, n_classes: int, alpha: float = 10.0, gamma: float = 1.0):
        super().__init__()
        require(
            alpha > 0 and gamma >= 0,
            f"openmix: alpha is {alpha}, gamma is {gamma}; they must be above 0 and at least 0",
        )
        self.num_classes, self.alpha, self.gamma = n_classes, alpha, gamma

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        known = labels >= 0
        inside, outside = images[known], images[~known]
        count = min(len(inside), len(outside))
        lam = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        mixed = lam * inside[:count] + (1 - lam) * outside[:count]
        return (
            torch.cat((inside, mixed)),
            labels[known],
            (lam, torch.arange(count, device=labels.device)),
        )

    def forward(
        self, logits: Tensor, y: Tensor, lam: float = 1.0, partners: Tensor | None = None
    ) -> Tensor:
        loss = cross_entropy(logits[: len(y)], y)
        if partners is None or not len(partners):
            return loss
        mixed = logits[len(y) :]
        rejected = torch.full_like(partners, self.num_classes)
        return loss + self.gamma * (
            lam * cross_entropy(mixed, y[partners]) + (1 - lam) * cross_entropy(mixed, rejected)
        )
