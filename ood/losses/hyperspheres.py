"""One-class losses: a fixed centre in feature space, ID images near it, labelled outliers far from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ood.losses.base import Loss, known_reduction, reduced, register, require
from ood.losses.centers import ClassCenters

LEAST = 0.1  # an entry of the centre closer to 0 is moved there: a network can give 0 with all its weights at 0 (authors' code)


class _Hypersphere(Loss):
    """A centre that is given, drawn from a normal distribution, or set to the mean feature when a training begins."""

    inputs = ("features",)
    brings = ("centre",)
    head = "probe"

    def __init__(self, n_dim: int, center: Tensor | None):
        super().__init__()
        require(
            center is None or center.shape == (n_dim,), f"center must have the shape ({n_dim},)"
        )
        self.given = center is not None
        self._center = ClassCenters(1, n_dim, fixed=True)
        if center is not None:
            self._center.params.data = center.detach().clone().reshape(1, n_dim)

    @property
    def center(self) -> ClassCenters:
        return self._center

    def squared(self, x: Tensor) -> Tensor:
        """|x - centre|^2, (B, D) -> (B,)."""
        return (x - self._center.params[0]).square().sum(1)

    def epoch_begins(self, epoch: int, outputs: Callable, *modules) -> None:
        """The mean feature of the untrained network becomes the centre, unless one was given."""
        if epoch == 1 and not self.given:
            total, count = 0, 0
            for features, _, _ in outputs():
                total, count = total + features.double().sum(0), count + len(features)
            mean = (total / max(count, 1)).to(self._center.params)
            self._center.params.data[0] = torch.where(
                mean.abs() < LEAST, torch.where(mean < 0, -LEAST, LEAST), mean
            )


@register("deep_svdd")
class DeepSVDDLoss(_Hypersphere):
    """ID features within a ball: L = max(0, |h - c|^2 - r^2). Score: `distance`, |h - c|^2 - r^2.

    forward(features (B, D), y=None): without labels every row is ID; rows with y < 0 are left out.
    Args:
        n_dim: D. center: c (D,); None: drawn at random, or, in classifier_pretraining.py, the mean feature before the training.
        radius: r; 0: the one-class objective; above: the soft boundary with a fixed radius, which `fit_radius` sets from distances.
    Source: Ruff et al., "Deep One-Class Classification", ICML 2018 (PMLR 80), eq. 3-4. r^2 and 1/nu of the soft boundary only shift
        and scale the loss and are left out, as in pytorch-ood. The authors' networks have no biases, because a constant output has
        no loss; ours do, so few epochs and a small rate are advised. The classes are learned by a probe on the features.
    """

    def __init__(
        self,
        n_dim: int,
        reduction: str | None = "mean",
        radius: float = 0.0,
        center: Tensor | None = None,
    ):
        super().__init__(n_dim, center)
        require(radius >= 0, f"deep_svdd: radius is {radius}; it must be at least 0")
        self.reduction = known_reduction(reduction)
        self.register_buffer("radius", torch.tensor(float(radius)))

    def distance(self, x: Tensor) -> Tensor:
        return self.squared(x) - self.radius.square()

    def fit_radius(self, x: Tensor, nu: float = 0.1) -> None:
        """r = the (1 - nu) quantile of |h - c|: at most a share nu of these features stays outside."""
        require(0 < nu <= 1, f"nu is {nu}; it must be in (0, 1]")
        self.radius.fill_(self.squared(x.detach()).sqrt().quantile(1 - nu))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return reduced(self.distance(x if y is None else x[y >= 0]).relu(), self.reduction)


@register("deep_sad")
class DeepSADLoss(_Hypersphere):
    """ID features near a centre, labelled outliers far from it. Score: `distance`, |h - c|^2.

        L = |h - c|^2  if y >= 0,   eta / (|h - c|^2 + eps)  if y < 0

    Args: n_dim: D. eta: weight of the outliers, 1 in the paper. eps: 1e-6 as in the authors' code. center: as in DeepSVDDLoss.
    Source: Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, arXiv 1906.02694, eq. 7. The paper also knows labelled
        normal images, weighted by eta like the outliers; here all with y >= 0 count as its unlabelled ones (as in pytorch-ood).
    """

    outliers = "needed"

    def __init__(
        self,
        n_dim: int,
        eta: float = 1.0,
        eps: float = 1e-6,
        reduction: str | None = "mean",
        center: Tensor | None = None,
    ):
        super().__init__(n_dim, center)
        require(
            eta >= 0 and eps > 0,
            f"deep_sad: eta is {eta}, eps is {eps}; eta must be at least 0, eps above 0",
        )
        self.eta, self.eps, self.reduction = eta, eps, known_reduction(reduction)

    def distance(self, x: Tensor) -> Tensor:
        return self.squared(x)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        d = self.distance(x)
        return reduced(torch.where(y >= 0, d, self.eta / (d + self.eps)), self.reduction)
