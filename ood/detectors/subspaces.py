"""Detectors that split the features into a principal subspace and a rest.

They are fitted from first and second moments.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import COUNTS, SEEDS, Detector, register
from ood.detectors.logits import energy
from ood.outputs import Outputs


@register("residual")
class Residual(Detector):
    """Norm outside the principal subspace: score = |P_rest (z - o)|, o = -pinv(W) b.

    Args:
        dim: dimension of the principal subspace, 1 to D - 1. None for the ViM authors' rule: 1000
            for 2,048 features or more, 512 from 768 on, else half of the features. Where the
            training features fill less than half of the rest, as with fewer images than features,
            the rule is applied to their rank instead.

    Source: Wang et al. (ViM), CVPR 2022, arXiv 2203.10807, where it is the baseline "Residual".
    """

    dim: int | None = ranged(None, *COUNTS)
    needs = frozenset({"features"})
    headless = True

    def fit(self, train: Outputs) -> Residual:
        self.origin = statistics.origin(train)  # (D,)
        values, columns = statistics.eigen(train, "features", "origin")
        self.rank = statistics.rank(values)
        self.dimension = principal(self.dim, len(self.origin), self.rank, self.name)
        self.rest = columns[:, self.dimension :].contiguous()  # (D, D - dim)
        return self

    def score(self, batch: Outputs) -> Tensor:
        return ((batch.features.double() - self.origin) @ self.rest).norm(dim=1)


@register("vim")
class ViM(Residual):
    """Virtual-logit matching: score = alpha |P_rest (z - o)| - logsumexp(logits).

    alpha = sum of the largest logits / sum of the residual norms, over the training set.

    Args:
        dim: as in `residual`, and below the rank of the training features.

    Raises: InputError in `fit` when `dim` leaves no training feature outside the subspace: alpha
        would have nothing to divide by.

    Source: Wang et al., CVPR 2022, arXiv 2203.10807. Their score is the softmax probability of a
    virtual logit alpha |P_rest (z - o)|; ours is a monotone function of it.
    """

    needs = frozenset({"features", "logits"})
    headless = False

    def fit(self, train: Outputs) -> ViM:
        super().fit(train)
        if self.dimension >= self.rank:
            raise InputError(
                f"vim: dim is {self.dimension}, but the training features span only {self.rank} "
                "dimensions, so nothing is left as residual; choose a smaller dim or fit to more "
                "images"
            )
        largest_logits, residual_norms = 0.0, 0.0
        for chunk in statistics.known(train):
            largest_logits += chunk.logits.double().amax(1).sum().item()
            residual_norms += super().score(chunk).sum().item()
        self.alpha = largest_logits / max(residual_norms, 1e-300)
        return self

    def score(self, batch: Outputs) -> Tensor:
        return self.alpha * super().score(batch) + energy(batch.logits.double())


def principal(dim: int | None, features: int, rank: int, name: str) -> int:
    """Return the dimension of a principal subspace: `dim`, or the ViM authors' rule for None.

    Args:
        features: D, how many features there are.
        rank: in how many directions the training features lie.

    Raises: InputError when no dimension would be left outside the subspace.
    """
    if dim is None:
        dim = default_dimension(name, features)
        return dim if rank - dim >= (features - dim) / 2 else max(1, default_dimension(name, rank))
    if not 0 < dim < features:
        raise InputError(
            f"{name}: dim is {dim}, the principal subspace of {features} features must have "
            f"1 to {features - 1} dimensions"
        )
    return dim


def default_dimension(name: str, features: int) -> int:
    """Return the dimension that the authors take for so many features of full rank.

    It is the rule of ViM for 'vim' and 'residual', and 100 or half of the features for 'neco'.
    """
    if name == "neco":
        return min(100, max(1, features // 2))
    return 1000 if features >= 2048 else 512 if features >= 768 else features // 2


@register("neco")
class NECO(Detector):
    """Share of the norm inside the principal subspace: score = -|P_d (x - m)| / |x|.

    x are the standardised features: each one minus its mean, divided by its deviation. m is the
    mean of x, which is zero unless `standardise` is False.

    Args:
        dim: d, 1 to D - 1. None for 100, or for half of the dimensions in which the training
            features vary where these are fewer than 200. The paper tunes it per network.
        standardise: False for the raw features. The authors advise it when classes have collapsed
            (ViT on CIFAR).
        max_logit: multiply by the largest logit, as the authors do for every network but ResNet.
            None multiplies where the training features take both signs (more than 1 % negative).
            Without the logit, the score falls below chance on such networks.

    Source: Ben Ammar et al., ICLR 2024, arXiv 2310.06823, eq. 6, and the authors' code. As there,
    raw features are centred in the projection and not in the norm. For DeiT and Swin their code
    divides the projection of standardised features by the norm of raw ones; here `standardise`
    holds for both. With the logit as factor, the largest logit has to be positive, else the order
    reverses. `fit` counts the training images where it is not (`not_positive`), and
    ood.evaluation.diagnosis warns.
    """

    dim: int | None = ranged(None, *COUNTS)
    standardise: bool = True
    max_logit: bool | None = None
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> NECO:
        matrix, mean = statistics.covariance(train), statistics.mean(train)
        deviation = matrix.diagonal().clamp(min=0).sqrt()
        alive = deviation > 1e-12 * deviation.amax()  # a dead feature is left as it is
        deviation = torch.where(alive, deviation, 1.0)
        if self.standardise:
            self.shift, self.scale, self.mean = mean, deviation, torch.zeros_like(mean)
        else:
            self.shift, self.scale = torch.zeros_like(mean), torch.ones_like(mean)
            self.mean = mean
        values, columns = torch.linalg.eigh(matrix / self.scale[:, None] / self.scale)
        self.rank = statistics.rank(values)
        dim = default_dimension("neco", self.rank) if self.dim is None else self.dim
        self.dimension = principal(dim, len(mean), self.rank, self.name)
        self.principal = columns.flip(1)[:, : self.dimension].contiguous()  # (D, d)
        self.signed = statistics.signed(train)
        self.not_positive = self._share_not_positive(train) if self.multiplies else 0.0
        return self

    @property
    def multiplies(self) -> bool:
        """Whether the largest logit is a factor of the score."""
        return self.signed if self.max_logit is None else self.max_logit

    def _share_not_positive(self, train: Outputs) -> float:
        lowest = sum((c.logits.amax(1) <= 0).sum().item() for c in statistics.known(train))
        return lowest / statistics.count(train)

    def score(self, batch: Outputs) -> Tensor:
        x = (batch.features.double() - self.shift) / self.scale
        mean = self.__dict__.get("mean", 0.0)  # not in files of older versions, which took zero
        share = ((x - mean) @ self.principal).norm(dim=1) / x.norm(dim=1).clamp(min=1e-12)
        return -share * (batch.logits.double().amax(1) if self.multiplies else 1.0)


@register("kpca")
class KernelPCA(Detector):
    """Reconstruction error of kernel PCA: score = |phi(u) - m - P (phi(u) - m)|, u = z / |z|.

    Args:
        kernel: 'cosine' for phi(u) = u (the paper's CoP), or 'cosine-gaussian' for random Fourier
            features of u (CoRP).
        variance: share of the variance that the kept components explain, in (0, 1]. CoP: 0.85 on
            CIFAR-10, 0.99 on ImageNet. CoRP: 0.8 and 0.5. At most the directions in which the
            training features vary are kept, and one direction always stays outside.
        gamma: > 0, of the Gaussian kernel exp(-gamma |u - v|^2); 2 on CIFAR-10, 3 on ImageNet.
        features: number of random Fourier features, up to 32,768; 2048 on CIFAR-10, 4096 on
            ImageNet.
        seed: of the random features.

    Source: Fang et al., NeurIPS 2024, arXiv 2402.02949, and the authors' code.
    """

    kernel: Literal["cosine", "cosine-gaussian"] = "cosine"
    variance: float = ranged(0.85, above=0, high=1)
    gamma: float = ranged(2.0, above=0)
    features: int = ranged(2048, 1, 32768)
    seed: int = ranged(0, *SEEDS)
    needs = frozenset({"features"})
    headless = True

    def fit(self, train: Outputs) -> KernelPCA:
        if self.kernel == "cosine":
            self.centre = statistics.mean(train, "unit")
            values, columns = statistics.eigen(train, "unit")
        else:
            self._draw(train)
            values, columns = self._eigen_of_mapped(train)
        explained = values.cumsum(0) / values.sum().clamp(min=1e-300)
        count = int((explained < self.variance).sum()) + 1
        count = min(count, statistics.rank(values), len(values) - 1)  # something is left outside
        self.kept = columns[:, :count].contiguous()  # (M, q)
        return self

    def _draw(self, train: Outputs) -> None:
        """Draw the random features: frequencies (D, M) and phases (M,)."""
        generator = torch.Generator().manual_seed(self.seed)
        d, device = train.features.shape[1], train.features.device
        normal = torch.randn(d, self.features, generator=generator, dtype=torch.float64)
        uniform = torch.rand(self.features, generator=generator, dtype=torch.float64)
        self.frequency = ((2 * self.gamma) ** 0.5 * normal).to(device)
        self.phase = (2 * torch.pi * uniform).to(device)

    def _eigen_of_mapped(self, train: Outputs) -> tuple[Tensor, Tensor]:
        """Set m, and return eigenvalues (descending) and eigenvectors of the covariance of phi."""
        total, second = 0.0, 0.0
        for phi in (self.mapped(chunk) for chunk in statistics.known(train)):
            total, second = total + phi.sum(0), second + phi.T @ phi
        self.centre = total / statistics.count(train)
        matrix = second / statistics.count(train) - torch.outer(self.centre, self.centre)
        values, columns = torch.linalg.eigh(matrix)
        return values.flip(0).clamp(min=0), columns.flip(1)

    def mapped(self, batch: Outputs) -> Tensor:
        """phi(u), (N, M)."""
        u = statistics.vectors(batch, "unit").double()
        if self.kernel == "cosine":
            return u
        return (2 / self.features) ** 0.5 * torch.cos(u @ self.frequency + self.phase)

    def score(self, batch: Outputs) -> Tensor:
        phi = self.mapped(batch) - self.centre
        return (phi - phi @ self.kept @ self.kept.T).norm(dim=1)


@register("pnml")
class PNML(Detector):
    """Regret of the predictive normalised maximum likelihood learner of the last layer.

    u = z / |z|, g = u^T G u, x = g / (1 + g), where G is the pseudo-inverse of the sum of
    u_i u_i^T over the training set;
    score = log sum_c p_c / (p_c + p_c^x (1 - p_c)) / log C.

    Args:
        logits: what p is the softmax of. 'normalised' is the head at u (the authors' released
            code), 'network' the network's own logits.
        eps: p is clamped to [eps, 1 - eps], in (0, 0.5); 1e-12 as in pytorch-ood.

    Source: Bibas, Feder & Hassner, NeurIPS 2021, arXiv 2110.09246, eq. 20, and the authors' code.
    Their code also weighs the part of u outside the training span. That part is empty as soon as
    there are more images than features.
    """

    logits: Literal["normalised", "network"] = "normalised"
    eps: float = ranged(1e-12, above=0, below=0.5)
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> PNML:
        second = statistics.second_moment(train, "unit") * statistics.count(train)
        self.inverse = torch.linalg.pinv(second, rtol=statistics.SINGULAR, hermitian=True)  # (D, D)
        return self

    def score(self, batch: Outputs) -> Tensor:
        u = statistics.vectors(batch, "unit")
        logits = batch.head(u) if self.logits == "normalised" else batch.logits
        p = logits.double().softmax(1).clamp(self.eps, 1 - self.eps)
        u = u.double()
        projected = ((u @ self.inverse) * u).sum(1, keepdim=True).clamp(min=0)
        regret = (p / (p + (1 - p) * p.pow(projected / (1 + projected)))).sum(1).log()
        return regret / max(torch.tensor(float(p.shape[1])).log().item(), 1e-300)
