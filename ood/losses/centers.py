"""Losses that place a centre for every class in feature or logit space.

The file holds the modules of centres and the objectives of four papers. As in pytorch-ood, forward
takes distances: loss(loss.distance(z), y).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.losses.base import (
    ABOVE_0,
    AT_LEAST_0,
    Checked,
    Loss,
    also,
    cross_entropy,
    mean_where,
    reduced,
    register,
    squared_distances,
)


class ClassCenters(Checked):
    """Class centres, one for every class, drawn from N(0, 1).

    `params` holds the centres (K, D). A call with x (N, D) gives squared distances (N, K).
    """

    def __init__(self, n_classes: int, n_features: int, fixed: bool = False):
        super().__init__()
        drawn = torch.randn(n_classes, n_features)
        self._params = nn.Parameter(drawn, requires_grad=not fixed)

    @property
    def params(self) -> nn.Parameter:
        return self._params

    @property
    def num_classes(self) -> int:
        return self._params.shape[0]

    @property
    def n_features(self) -> int:
        return self._params.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return squared_distances(x, self._params)

    def predict(self, x: Tensor) -> Tensor:
        """Softmin of the squared distances: (N, D) -> (N, K)."""
        return F.softmin(self(x), 1)


class RunningCenters(Checked):
    """Running class means (K, D): for each class, the average of its means in the batches seen.

    Differs from pytorch-ood's: every class counts only the batches in which it occurred. The mean
    of a rare class is therefore not drawn to 0.
    """

    def __init__(self, n_classes: int, n_embedding: int):
        super().__init__()
        self.num_classes, self.n_embedding = n_classes, n_embedding
        self.register_buffer("running_centers", torch.zeros(n_classes, n_embedding))
        self.register_buffer("num_batches_tracked", torch.zeros(n_classes))

    @property
    def centers(self) -> Tensor:
        return self.running_centers

    def reset(self) -> None:
        """Forget all batches."""
        self.running_centers.zero_()
        self.num_batches_tracked.zero_()

    @also(embeddings="x", target="y")
    def calculate_centers(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean of each class in the batch: (N, D), (N,) -> (K, D). A class without rows has 0."""
        sums = x.new_zeros(self.num_classes, x.shape[1]).index_add(0, y, x)
        return sums / y.bincount(minlength=self.num_classes).clamp_min(1)[:, None]

    @also(target="y")
    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a batch (labels >= 0) into the running means. Returns the batch's means (K, D)."""
        mu, present = self.calculate_centers(x, y), y.bincount(minlength=self.num_classes) > 0
        self.num_batches_tracked += present
        step = present / self.num_batches_tracked.clamp_min(1)
        self.running_centers += step[:, None] * (mu.detach() - self.running_centers)
        return mu

    def forward(self, x: Tensor) -> Tensor:
        """Squared distances (N, D) -> (K, N); centres come first, as in pytorch-ood."""
        return squared_distances(self.running_centers, x)


def nearest_centre(centres: Tensor) -> tuple[Tensor, Tensor]:
    """Linear head (W, b) with softmax(W z + b) = softmin_k |z - mu_k|^2: W = 2 mu, b = -|mu|^2."""
    return 2 * centres, -centres.square().sum(1)


@register("center")
class CenterLoss(Loss):
    """Keep features near the centre of their class, up to a radius.

        L = 1/(B C) sum_i max(0, |z_i - mu_{y_i}|^2 - r)

    L alone does not tell classes apart; a cross-entropy beside it does. -loss center minimises
    CE + weight * L, and the centres are learned with the rest. The weight is 0.02. At ten classes
    this is about the paper's lambda of 0.003.

    Args:
        n_classes: C, the number of classes.
        n_dim: D, the length of the features.
        magnitude: factor on the initial centres. They are unit vectors where C = D, else drawn from
            N(0, 1). pytorch-ood applies it only to fixed unit vectors.
        radius: r, subtracted from the SQUARED distance, as in pytorch-ood.
        fixed: whether the centres stay where they are.
    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition",
        ECCV 2016 (no arXiv id), eq. 2 and 5. Equation 2 sums 1/2 |z - mu|^2 over the batch. Ours,
        like pytorch-ood's, is that sum times 2 / (B C). The paper moves a centre by its own rule
        (equation 5), a step of 0.5 towards the batch's mean. Here, as in the usual PyTorch
        versions, centres follow the gradient.
    """

    inputs = ("distances",)
    brings = ("centres",)
    head = "joint"
    weight = 0.02
    ranges = {"magnitude": ABOVE_0, "radius": AT_LEAST_0}

    def __init__(
        self,
        n_classes: int,
        n_dim: int,
        magnitude: float = 1.0,
        radius: float = 0.0,
        fixed: bool = False,
    ):
        super().__init__()
        self.num_classes, self.radius = n_classes, radius
        self._centers = ClassCenters(n_classes, n_dim, fixed)
        with torch.no_grad():
            if n_classes == n_dim:
                nn.init.eye_(self._centers.params)
            self._centers.params.mul_(magnitude)

    @property
    def centers(self) -> ClassCenters:
        return self._centers

    def distance(self, z: Tensor) -> Tensor:
        """Squared distances (B, D) -> (B, C)."""
        return self._centers(z)

    @also(distmat="distances", target="y")
    def forward(self, distances: Tensor, y: Tensor) -> Tensor:
        return mean_where((_own(distances, y) - self.radius).relu(), y >= 0) / self.num_classes


def _own(distances: Tensor, y: Tensor) -> Tensor:
    """Distance of each row to the centre of its class, (B,); to that of class 0 for outliers."""
    return distances.gather(1, y.clamp_min(0)[:, None])[:, 0]


@register("cac")
class CACLoss(Loss):
    """Draw logits to the anchor of their class and away from the other anchors.

        d_c = |z - magnitude e_c|,    L = mean [ log(1 + sum_{c != y} exp(d_y - d_c)) + alpha d_y ]

    Anchors are fixed: unit vectors e_c times a magnitude.

    Args:
        n_classes: C, which is also the length of z.
        magnitude: length of the anchors, alpha in the paper. The default 1 is pytorch-ood's. The
            authors and -loss take 10.
        alpha: weight of the anchor term, lambda in the paper. The default 1 is pytorch-ood's. The
            authors and -loss take 0.1.
        squared: whether distances are squared, as in pytorch-ood. The paper and its code take plain
            distances.
    Source: Miller et al., "Class Anchor Clustering: a Loss for Distance-based Open Set
        Recognition", WACV 2021, arXiv 2004.02434, eq. 3-6. pytorch-ood 0.4.0 sums over the classes
        0..C-2 instead of all but y. The two agree where y = C-1.
    """

    inputs = ("distances",)
    brings = ("anchors",)
    space = "logits"
    recipe = {"magnitude": 10.0, "alpha": 0.1}
    ranges = {"magnitude": ABOVE_0, "alpha": AT_LEAST_0}

    def __init__(
        self, n_classes: int, magnitude: float = 1.0, alpha: float = 1.0, squared: bool = False
    ):
        super().__init__()
        self.n_classes, self.magnitude = n_classes, magnitude
        self.alpha, self.squared = alpha, squared
        self._centers = ClassCenters(n_classes, n_features=n_classes, fixed=True)
        self._centers.params.data = magnitude * torch.eye(n_classes)

    @property
    def centers(self) -> ClassCenters:
        return self._centers

    @also(x="z")
    def distance(self, z: Tensor) -> Tensor:
        """Distance of logits to every anchor: (B, C) -> (B, C)."""
        if self.squared:
            return self._centers(z)
        return torch.linalg.vector_norm(z[:, None] - self._centers.params, dim=2)

    @also(target="y")
    def forward(self, distances: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(-distances, y) + self.alpha * mean_where(_own(distances, y), y >= 0)

    @staticmethod
    @also(distance="distances")
    def score(distances: Tensor) -> Tensor:
        """Score min_c d_c (1 - softmin_c(d)): (B, C) -> (B,), larger = OOD.

        Source: eq. 7 and the authors' code. pytorch-ood returns -max_c of the same product.
        """
        return (distances * (1 - F.softmin(distances, 1))).amin(1)


@register("ii")
class IILoss(Loss):
    """Shrink the spread within classes, and push the two nearest class means apart.

        L = 1/N sum_i |z_i - mu_{y_i}|^2  -  alpha min_{j != k} |mu_j - mu_k|^2

    In training, mu are the means of the batch, and running means follow them. In eval mode, mu are
    the running means. With fewer than two classes in a batch the second term is 0 (pytorch-ood:
    -1e24).

    Args:
        n_classes: C, the number of classes.
        n_embedding: D, the length of the features.
        alpha: weight of the second term. The default 1 is the paper's.
    Source: Hassen and Chan, "Learning a Neural-network-based Representation for Open Set
        Recognition", SDM 2020, arXiv 1802.04365, eq. 2-4. The paper computes the means over the
        whole training set afterwards. Here they are running means, as in pytorch-ood. -loss ii
        minimises CE + weight * L with a weight of 0.1, a combination that the paper also has. With
        L alone, at the learning rates of a classifier, the features collapse to one point.
    """

    inputs = ("features",)
    brings = ("running centres",)
    head = "joint"
    weight = 0.1
    ranges = {"alpha": AT_LEAST_0}

    def __init__(self, n_classes: int, n_embedding: int, alpha: float = 1.0):
        super().__init__()
        self.num_classes, self.alpha = n_classes, alpha
        self.running_centers = RunningCenters(n_classes, n_embedding)

    @property
    def centers(self) -> RunningCenters:
        return self.running_centers

    @also(x="z")
    def distance(self, z: Tensor) -> Tensor:
        """Squared distances to the running means: (B, D) -> (B, C)."""
        return squared_distances(z, self.running_centers.centers)

    @also(x="z")
    def predict(self, z: Tensor) -> Tensor:
        """Softmin of the squared distances: (B, D) -> (B, C)."""
        return F.softmin(self.distance(z), 1)

    @also(x="z", target="y")
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = z[y >= 0], y[y >= 0]
        mu = self.running_centers.update(z, y) if self.training else self.running_centers.centers
        spread = (z - mu[y]).square().sum() / max(len(y), 1)
        present = y.bincount(minlength=self.num_classes) > 0
        itself = torch.eye(len(present), dtype=torch.bool, device=z.device)
        pairs = present[:, None] & present & ~itself
        least = squared_distances(mu, mu).masked_fill(~pairs, torch.inf).amin()
        return spread - self.alpha * torch.where(pairs.any(), least, 0)


class CenterRegularizationLoss(Checked):
    """Push outliers at least `margin` away from every centre.

        L_i = sum_k max(0, margin^2 - |z_i - mu_k|^2)  if y_i < 0,   else 0

    forward(squared distances (B, C), y). Differs from pytorch-ood 0.4.0, which squares the
    distances once more although they are squares already.

    Args:
        margin: the least distance to a centre, the radius included.
        reduction: over the outliers, "sum" (pytorch-ood's default), "mean" or "none".
    """

    ranges = {"margin": AT_LEAST_0}

    def __init__(self, margin: float, reduction: str | None = "sum"):
        super().__init__()
        self.register_buffer("margin", torch.tensor(float(margin)))
        self.reduction = reduction

    @also(distmat="distances", target="y")
    def forward(self, distances: Tensor, y: Tensor) -> Tensor:
        return reduced((self.margin.square() - distances[y < 0]).relu().sum(1), self.reduction)


@register("mchad")
class MCHADLoss(Loss):
    """Keep ID features in a sphere around the centre of their class, and outliers outside.

        L = w_center E_in[ max(0, d_y - r^2) ] + w_nll E_in[ -log softmin_y(d) ]
            + w_oe E_out[ sum_k max(0, (r + m)^2 - d_k) ],    d_k = |z - mu_k|^2

    The centres mu are learned. The second term keeps a feature nearer to its own centre than to
    others. The head that decides is the softmin of the distances.

    Args:
        n_classes: C, the number of classes.
        n_dim: D, the length of the features.
        radius: r. The default 0 is pytorch-ood's.
        margin: m. The default 0 is pytorch-ood's; with a radius of 0, outliers then change nothing.
            -loss takes 8, because centres begin about sqrt(2 D) apart.
        weight_center, weight_nll, weight_oe: factors of the three terms, 1 each. -loss takes 0.1, 1
            and 0.1, found by trials on digits, not published.
    Source: Kirchheim et al., "Multi-Class Hypersphere Anomaly Detection", ICPR 2022 (no arXiv id),
        eq. 3-6. pytorch-ood 0.4.0, of the same authors, divides the first term by C and compares
        squared distances with r. In its third term it squares distances twice, leaves r out and
        sums over the batch.
    """

    inputs = ("distances",)
    outliers = "used"
    brings = ("centres",)
    head = "computed"
    recipe = {"margin": 8.0, "weight_center": 0.1, "weight_oe": 0.1}
    ranges = {
        "radius": AT_LEAST_0,
        "margin": AT_LEAST_0,
        "weight_center": AT_LEAST_0,
        "weight_nll": AT_LEAST_0,
        "weight_oe": AT_LEAST_0,
    }

    def __init__(
        self,
        n_classes: int,
        n_dim: int,
        radius: float = 0.0,
        margin: float = 0.0,
        weight_center: float = 1.0,
        weight_nll: float = 1.0,
        weight_oe: float = 1.0,
    ):
        super().__init__()
        self.radius, self.weight_center = radius, weight_center
        self.weight_nll, self.weight_oe = weight_nll, weight_oe
        self._centers = ClassCenters(n_classes, n_dim)
        self.outside = CenterRegularizationLoss(radius + margin, "mean")

    @property
    def centers(self) -> ClassCenters:
        return self._centers

    def distance(self, z: Tensor) -> Tensor:
        """Squared distances (B, D) -> (B, C)."""
        return self._centers(z)

    def classifier(self) -> tuple[Tensor, Tensor]:
        return nearest_centre(self._centers.params)

    @also(distmat="distances")
    def forward(self, distances: Tensor, y: Tensor) -> Tensor:
        near = mean_where((_own(distances, y) - self.radius**2).relu(), y >= 0)
        return (
            self.weight_center * near
            + self.weight_nll * cross_entropy(-distances, y)
            + self.weight_oe * self.outside(distances, y)
        )
