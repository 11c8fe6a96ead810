"""CIDER: features on a sphere near the prototype of their class, and prototypes far apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ood.config import Range
from ood.losses.base import AT_LEAST_0, TEMPERATURE, Loss, cross_entropy, register, unit


@register("cider")
class CIDERLoss(Loss):
    """Draw embeddings to the prototype of their class, and push the prototypes apart.

        L = weight * E[ -log softmax_y( z . mu_c / t ) ]
            + 1/C sum_i log 1/(C-1) sum_{j != i} exp( mu_i . mu_j / t )
        mu_c <- unit( momentum mu_c + (1 - momentum) z )

    In training, every z of class c moves the prototype mu_c, one z after the other. The first term
    takes the prototypes as constants. The gradient of the second term reaches z through the moved
    prototypes. A prototype is 0 until its class is seen, and then its first z.

    forward(projections z (B, n_dim) of length 1, y).

    Args:
        n_classes: C, the number of classes.
        n_dim: length of the projection, 128.
        t: temperature, 0.1.
        weight: lambda_c, 2.
        momentum: 0.95, the authors' value for CIFAR-10. For CIFAR-100 they take 0.5.
    Source: Ming et al., "How to Exploit Hyperspherical Embeddings for Out-of-Distribution
        Detection?" (CIDER), ICLR 2023, arXiv 2203.04450, eq. 5-8. Not in pytorch-ood. As in the
        authors' code, each image comes twice, augmented differently (`views`). A step then holds
        2 * batch_size rows; the authors' 512 is batch_size 512. The authors start from class
        means. In training the network's head is a probe. A detector sees the features before the
        projection, as the authors' detector (knn) does.
    """

    inputs = ("projections",)
    brings = ("projection head", "prototypes")
    head = "probe"
    views = 2
    ranges = {
        "n_dim": Range(1, 2**16),
        "t": TEMPERATURE,
        "weight": AT_LEAST_0,
        "momentum": Range(0, below=1),
    }

    def __init__(
        self,
        n_classes: int,
        n_dim: int = 128,
        t: float = 0.1,
        weight: float = 2.0,
        momentum: float = 0.95,
    ):
        super().__init__()
        self.t, self.weight, self.momentum = t, weight, momentum
        self.register_buffer("prototypes", torch.zeros(n_classes, n_dim))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = z[y >= 0], y[y >= 0]
        moved = self.moved(z, y) if self.training else self.prototypes
        if self.training:
            self.prototypes = moved.detach()
        compactness = cross_entropy(z @ self.prototypes.T / self.t, y)
        return self.weight * compactness + self.dispersion(moved)

    def moved(self, z: Tensor, y: Tensor) -> Tensor:
        """Compute the prototypes after the batch, (C, n_dim).

        Step r takes the r-th image of every class and moves all their prototypes at once.
        """
        prototypes, counts = self.prototypes.to(z), y.bincount(minlength=len(self.prototypes))
        order = y.argsort(stable=True)
        first = counts.cumsum(0) - counts  # where a class begins in `order`
        for r in range(int(counts.max()) if len(y) else 0):
            classes = (counts > r).nonzero()[:, 0]
            rows = order[first[classes] + r]
            step = unit(self.momentum * prototypes[classes] + (1 - self.momentum) * z[rows])
            prototypes = prototypes.index_copy(0, classes, step)
        return prototypes

    def dispersion(self, prototypes: Tensor) -> Tensor:
        """Compute the second term from prototypes (C, n_dim). It is 0 for a single class."""
        count = len(prototypes)
        if count < 2:
            return prototypes.sum() * 0
        itself = torch.eye(count, dtype=torch.bool, device=prototypes.device)
        similar = (prototypes @ prototypes.T / self.t).masked_fill(itself, -torch.inf)
        return torch.logsumexp(similar, 1).mean() - math.log(count - 1)
