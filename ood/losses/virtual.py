"""VOS: a logistic regression on weighted energies, against real outliers or against ones drawn from the tails of the ID features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import distributed
from ood.losses.base import Loss, cross_entropy, known_reduction, reduced, register, require


@register("vos_reg")
class VOSRegLoss(Loss):
    """Cross-entropy, and a binary one that tells ID from outliers by the weighted energy.

        L = CE + alpha * BCE( phi(E(x)) ),    E = -log sum_c relu(w_c) exp(f_c),    phi: R -> R^2, class 1: ID

    Args:
        logistic_regression: phi, (N, 1) -> (N, 2), e.g. nn.Linear(1, 2). weights_energy: nn.Linear(C, 1) whose weight is w; begin
            with uniform ones, a negative one is 0. alpha: 0.1, the paper's.
        reduction: of the cross-entropy; with "none" the second term, one number, is added to every row.
    Logits (B, C) or (B, C, H, W). Without outliers (or ID rows) the second term sees one class only; without rows it is 0.
    Source: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022, arXiv 2202.01197, eq. 5-6. The authors'
        code has the energy with the other sign, which phi learns as well.
    """

    outliers = "needed"
    brings = ("logistic regression", "energy weights")

    def __init__(
        self,
        logistic_regression: nn.Module,
        weights_energy: nn.Module,
        alpha: float = 0.1,
        reduction: str | None = "mean",
    ):
        super().__init__()
        require(alpha >= 0, f"vos: alpha is {alpha}; it must be at least 0")
        self.logistic_regression, self.weights_energy = logistic_regression, weights_energy
        self.alpha, self.reduction = alpha, known_reduction(reduction)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        e, known = self.energy(logits), y >= 0
        return cross_entropy(logits, y, self.reduction) + self.alpha * self.separation(
            e[known], e[~known]
        )

    def energy(self, logits: Tensor) -> Tensor:
        """(B, C, ...) -> (B, ...)."""
        weights = F.relu(self.weights_energy.weight[0]).clamp_min(1e-12).log()  # (C,)
        return -torch.logsumexp(logits + weights.view(-1, *[1] * (logits.dim() - 2)), 1)

    def separation(self, inside: Tensor, outside: Tensor) -> Tensor:
        """Cross-entropy of phi over both energies (N,) and (M,)."""
        e = torch.cat((inside, outside))
        labels = torch.cat((torch.ones_like(inside), torch.zeros_like(outside))).long()
        return reduced(
            F.cross_entropy(self.logistic_regression(e[:, None]), labels, reduction="none"), "mean"
        )


@register("vos")
class VirtualOutlierSynthesizingRegLoss(VOSRegLoss):
    """VOS without outliers: it keeps the newest features of every class, fits Gaussians of one covariance, and takes its least likely draws.

    forward(logits (B, C), features (B, D), y); rows with y < 0 are left out. Until every queue is full there is only the cross-entropy.
    Args:
        logistic_regression, weights_energy, alpha, reduction: as in VOSRegLoss. fc: the network's head, which makes logits of draws.
        sample_number: features kept per class; select of sample_from draws per class become outliers. 1000, 1 and 10000: the paper's
            for CIFAR; the authors begin at epoch 40 of 100.
    Source: as VOSRegLoss, eq. 3-4. The least likely draws of one Gaussian are those of the longest white noise, so no density is
        computed. Differs from pytorch-ood's: full queues go on while others fill, and are part of the state dict (a resumed run is
        the run). Under torchrun the queues are one process's (every step gathers the features), the draws each process's own.
    """

    inputs = ("logits", "features")
    outliers = "ignored"
    brings = ("logistic regression", "energy weights", "queues of features")

    def __init__(
        self,
        logistic_regression: nn.Module,
        weights_energy: nn.Module,
        fc: nn.Linear,
        alpha: float = 0.1,
        reduction: str | None = "mean",
        sample_number: int = 1000,
        select: int = 1,
        sample_from: int = 10000,
    ):
        super().__init__(logistic_regression, weights_energy, alpha, reduction)
        require(sample_number >= 2, f"vos: sample_number is {sample_number}; it must be at least 2")
        require(
            1 <= select <= sample_from,
            f"vos: select is {select}, sample_from is {sample_from}; take at least 1 and at most all draws",
        )
        self.fc, self.sample_number, self.select, self.sample_from = (
            fc,
            sample_number,
            select,
            sample_from,
        )
        self.register_buffer("queue", torch.zeros(fc.out_features, sample_number, fc.in_features))
        self.register_buffer("seen", torch.zeros(fc.out_features, dtype=torch.long))

    def forward(self, logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
        known = y >= 0
        logits, features, y = logits[known], features[known], y[known]
        full = bool((self.seen >= self.sample_number).all())
        if self.training:
            self.store(features.detach(), y)
        loss = cross_entropy(logits, y, self.reduction)
        if not full or not len(y):
            return loss
        return loss + self.alpha * self.separation(
            self.energy(logits), self.energy(self.fc(self.draw()))
        )

    def store(self, features: Tensor, y: Tensor) -> None:
        """Newest over oldest, per class; under torchrun the features of all processes, so that every one has the same queues."""
        features, y = (
            distributed.gather_rows(features).to(self.queue),
            distributed.gather_rows(y).to(self.seen),
        )
        ones = F.one_hot(y, len(self.seen))  # (B, C)
        rank = (ones.cumsum(0) - 1).gather(1, y[:, None])[:, 0]
        newest = rank >= ones.sum(0)[y] - self.sample_number
        self.queue[y[newest], ((self.seen[y] + rank) % self.sample_number)[newest]] = features[
            newest
        ]
        self.seen += ones.sum(0)

    @torch.no_grad()
    def draw(self) -> Tensor:
        """Virtual outliers (C * select, D)."""
        means = self.queue.mean(1)  # (C, D)
        centred = (self.queue - means[:, None]).flatten(0, 1)
        covariance = centred.T @ centred / len(centred) + 1e-4 * torch.eye(
            means.shape[1], device=means.device, dtype=means.dtype
        )
        factor = torch.linalg.cholesky(covariance)
        found = []
        for mean in means:
            noise = torch.randn(self.sample_from, len(mean), device=means.device, dtype=means.dtype)
            found.append(mean + noise[noise.square().sum(1).topk(self.select).indices] @ factor.T)
        return torch.cat(found)
