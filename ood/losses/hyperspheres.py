"""One-class losses: ID features near a fixed centre, labelled outliers far from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ood.config import Range
from ood.losses.base import ABOVE_0, AT_LEAST_0, Loss, check_range, reduced, register, require
from ood.losses.centers import ClassCenters

# Entries of the centre that are closer to 0 are moved to this distance, as in the authors' code. A
# network could reach a centre of zeros by setting all its weights to 0.
LEAST = 0.1


class _Hypersphere(Loss):
    """Base of both losses: it holds the centre.

    The centre is given, or drawn from a normal distribution. A training without a given centre sets
    it to the mean feature before its first epoch.
    """

    inputs = ("features",)
    brings = ("centre",)
    head = "probe"

    def __init__(self, n_dim: int, center: Tensor | None):
        super().__init__()
        self._center = ClassCenters(n_classes=1, n_features=n_dim, fixed=True)
        self.given = center is not None
        if self.given:
            require(center.shape == (n_dim,), f"center must have the shape ({n_dim},)")
            require(bool(center.isfinite().all()), "center holds NaN or infinite values")
            self._center.params.data = center.detach().clone()[None]

    @property
    def center(self) -> ClassCenters:
        return self._center

    def squared(self, x: Tensor) -> Tensor:
        """Squared distance |x - centre|^2: (B, D) -> (B,)."""
        return (x - self._center.params[0]).square().sum(1)

    def epoch_begins(self, epoch: int, outputs: Callable, *modules) -> None:
        """Before the first epoch, set the centre to the mean feature, unless one was given."""
        if epoch == 1 and not self.given:
            total, count = 0, 0
            for features, _, _ in outputs():
                total, count = total + features.double().sum(0), count + len(features)
            mean = (total / max(count, 1)).to(self._center.params)
            moved = torch.where(mean < 0, -LEAST, LEAST)
            self._center.params.data[0] = torch.where(mean.abs() < LEAST, moved, mean)


@register("deep_svdd")
class DeepSVDDLoss(_Hypersphere):
    """Keep ID features within a ball around a centre.

        L = max(0, |h - c|^2 - r^2)

    The score is `distance`, |h - c|^2 - r^2.

    forward(features (B, D), y=None). Rows with y < 0 are left out. Without labels every row is ID.

    Args:
        n_dim: D, the length of the features.
        reduction: over the ID rows, "mean", "sum" or "none".
        radius: r. The one-class objective has 0. A radius above 0 is fixed while the network
            trains (soft boundary); `fit_radius` sets it from distances.
        center: c (D,). With None it is drawn at random. classifier_pretraining.py then sets it to
            the mean feature before training.
    Source: Ruff et al., "Deep One-Class Classification", ICML 2018 (PMLR 80), eq. 3-4. The terms
        r^2 and 1/nu of the soft boundary only shift and scale the loss. They are left out, as in
        pytorch-ood. The authors' networks have no biases, because a constant output would have no
        loss. Ours have biases, so few epochs and a small learning rate are advised. A probe on the
        features learns the classes.
    """

    ranges = {"radius": AT_LEAST_0}

    def __init__(
        self,
        n_dim: int,
        reduction: str | None = "mean",
        radius: float = 0.0,
        center: Tensor | None = None,
    ):
        super().__init__(n_dim, center)
        self.reduction = reduction
        self.register_buffer("radius", torch.tensor(float(radius)))

    def distance(self, x: Tensor) -> Tensor:
        """Score |h - c|^2 - r^2: (B, D) -> (B,), larger = OOD."""
        return self.squared(x) - self.radius.square()

    def fit_radius(self, x: Tensor, nu: float = 0.1) -> None:
        """Set r to the (1 - nu) quantile of |h - c| over features x (N, D).

        At most a share nu of these features, in (0, 1], then stays outside the ball.
        """
        check_range("nu", nu, Range(high=1, above=0))
        self.radius.fill_(self.squared(x.detach()).sqrt().quantile(1 - nu))

    @staticmethod
    def svdd_loss(
        x: Tensor, center: ClassCenters, radius: Tensor | float = 0.0, y: Tensor | None = None
    ) -> Tensor:
        """Loss of every row, (B,), for any centre and radius. It is 0 for outliers."""
        loss = (center(x)[:, 0] - radius**2).relu()
        return loss if y is None else torch.where(y < 0, 0, loss)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return reduced(self.distance(x if y is None else x[y >= 0]).relu(), self.reduction)


@register("deep_sad")
class DeepSADLoss(_Hypersphere):
    """Draw ID features to a centre, and push labelled outliers away from it.

        L = |h - c|^2  if y >= 0,   eta / (|h - c|^2 + eps)  if y < 0

    The score is `distance`, |h - c|^2.

    Args:
        n_dim: D, the length of the features.
        eta: weight of the outliers, 1 in the paper.
        eps: 1e-6 as in the authors' code.
        reduction: over all rows, "mean", "sum" or "none".
        center: as in DeepSVDDLoss.
    Source: Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, arXiv 1906.02694,
        eq. 7. The paper also has labelled normal images, which eta weighs like the outliers. Here,
        as in pytorch-ood, all images with y >= 0 count as the paper's unlabelled ones.
    """

    outliers = "needed"
    ranges = {"eta": AT_LEAST_0, "eps": ABOVE_0}

    def __init__(
        self,
        n_dim: int,
        eta: float = 1.0,
        eps: float = 1e-6,
        reduction: str | None = "mean",
        center: Tensor | None = None,
    ):
        super().__init__(n_dim, center)
        self.eta, self.eps, self.reduction = eta, eps, reduction

    def distance(self, x: Tensor) -> Tensor:
        """Score |h - c|^2: (B, D) -> (B,), larger = OOD."""
        return self.squared(x)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        d = self.distance(x)
        return reduced(torch.where(y >= 0, d, self.eta / (d + self.eps)), self.reduction)
