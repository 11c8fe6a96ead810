"""VOS: a logistic regression on weighted energies tells ID images from outliers.

The outliers are real ones, or virtual ones drawn from the tails of the ID features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import distributed
from ood.config import Range
from ood.losses.base import AT_LEAST_0, Loss, cross_entropy, reduced, register, require


@register("vos_reg")
class VOSRegLoss(Loss):
    """Cross-entropy, and a binary one that tells ID from outliers by the weighted energy.

        L = CE + alpha * BCE( phi(E(x)) ),    E = -log sum_c relu(w_c) exp(f_c)

    phi maps R to R^2, and class 1 is ID. forward(logits (B, C), y (B,)), or (B, C, H, W) and
    (B, H, W). Without outliers, or without ID rows, the second term sees one class only. Without
    any row it is 0.

    Args:
        logistic_regression: phi, (N, 1) -> (N, 2), for example nn.Linear(1, 2).
        weights_energy: nn.Linear(C, 1) whose weight is w. Start from uniform weights. A negative
            one counts as 0.
        alpha: 0.1, the paper's value.
        reduction: of the cross-entropy. With "none", the second term, which is one number, is added
            to every row.
    Source: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
        arXiv 2202.01197, eq. 5-6. The authors' code has the energy with the other sign. phi can
        learn either.
    """

    outliers = "needed"
    brings = ("logistic regression", "energy weights")
    ranges = {"alpha": AT_LEAST_0}

    def __init__(
        self,
        logistic_regression: nn.Module,
        weights_energy: nn.Module,
        alpha: float = 0.1,
        reduction: str | None = "mean",
    ):
        super().__init__()
        self.logistic_regression, self.weights_energy = logistic_regression, weights_energy
        self.alpha, self.reduction = alpha, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        e, known = self.energy(logits), y >= 0
        apart = self.separation(e[known], e[~known])
        return cross_entropy(logits, y, self.reduction) + self.alpha * apart

    def energy(self, logits: Tensor) -> Tensor:
        """Weighted energy E: (B, C, ...) -> (B, ...), larger = OOD."""
        weights = F.relu(self.weights_energy.weight[0]).clamp_min(1e-12).log()  # (C,)
        return -torch.logsumexp(logits + weights.view(-1, *[1] * (logits.dim() - 2)), 1)

    def separation(self, inside: Tensor, outside: Tensor) -> Tensor:
        """Cross-entropy of phi over the energies of ID images (N,) and outliers (M,)."""
        e = torch.cat((inside, outside))
        labels = torch.cat((torch.ones_like(inside), torch.zeros_like(outside))).long()
        found = self.logistic_regression(e[:, None])
        return reduced(F.cross_entropy(found, labels, reduction="none"), "mean")


@register("vos")
class VirtualOutlierSynthesizingRegLoss(VOSRegLoss):
    """VOS that draws its outliers from Gaussians fitted to the ID features.

    The loss keeps the newest features of every class in a queue. It fits one Gaussian per class,
    all with the same covariance, and takes their least likely draws as outliers. Until every queue
    is full, the loss is the cross-entropy alone.

    forward(logits (B, C), features (B, D), y). Rows with y < 0 are left out.

    Args:
        logistic_regression, weights_energy, alpha, reduction: as in VOSRegLoss.
        fc: the network's head, which turns draws into logits.
        sample_number: length of a queue, 1000 as in the paper for CIFAR.
        select: number of draws per class that become outliers, 1 as in the paper.
        sample_from: number of draws per class, 10000 as in the paper.
    Source: as VOSRegLoss, eq. 3-4. The least likely draws of a Gaussian are those with the longest
        white noise, so no density is computed. The authors start at epoch 40 of 100. Differs from
        pytorch-ood's: a full queue stays current while others fill. The queues are in the state
        dict, so a resumed run equals an uninterrupted one. Under torchrun every step gathers the
        features, and all processes have the same queues. Each process draws its own outliers.
    """

    inputs = ("logits", "features")
    outliers = "ignored"
    brings = ("logistic regression", "energy weights", "queues of features")
    ranges = {
        "sample_number": Range(2, 10**6),
        "select": Range(1, 10**6),
        "sample_from": Range(1, 10**6),
    }

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
        require(
            select <= sample_from,
            f"vos: select is {select}, sample_from is {sample_from}; "
            "select must be at most sample_from",
        )
        self.fc, self.sample_number = fc, sample_number
        self.select, self.sample_from = select, sample_from
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
        virtual = self.energy(self.fc(self.draw()))
        return loss + self.alpha * self.separation(self.energy(logits), virtual)

    def store(self, features: Tensor, y: Tensor) -> None:
        """Write features (B, D) over the oldest ones of their class.

        Under torchrun it takes the features of all processes, so that their queues are the same.
        """
        features = distributed.gather_rows(features).to(self.queue)
        y = distributed.gather_rows(y).to(self.seen)
        ones = F.one_hot(y, len(self.seen))  # (B, C)
        rank = (ones.cumsum(0) - 1).gather(1, y[:, None])[:, 0]
        newest = rank >= ones.sum(0)[y] - self.sample_number
        place = (self.seen[y] + rank) % self.sample_number
        self.queue[y[newest], place[newest]] = features[newest]
        self.seen += ones.sum(0)

    @torch.no_grad()
    def draw(self) -> Tensor:
        """Draw virtual outliers, (C * select, D)."""
        means = self.queue.mean(1)  # (C, D)
        centred = (self.queue - means[:, None]).flatten(0, 1)
        kind = {"device": means.device, "dtype": means.dtype}
        small = 1e-4 * torch.eye(means.shape[1], **kind)
        factor = torch.linalg.cholesky(centred.T @ centred / len(centred) + small)
        found = []
        for mean in means:
            noise = torch.randn(self.sample_from, len(mean), **kind)
            farthest = noise.square().sum(1).topk(self.select).indices
            found.append(mean + noise[farthest] @ factor.T)
        return torch.cat(found)
