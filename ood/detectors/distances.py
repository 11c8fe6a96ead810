"""Gaussian densities of the features: Mahalanobis distances and their relatives.

They are fitted from class sums and second moments. Every distance is a Euclidean distance after
whitening with one triangular factor of the covariance, in float64. A singular covariance (dead
features, or fewer images than features) is inverted on its own range, as scikit-learn's
EmpiricalCovariance does.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import Detector, register
from ood.outputs import Outputs

LARGEST = 8 << 30  # bytes that class covariances may take


@register("mds", "mahalanobis")
class Mahalanobis(Detector):
    """Squared Mahalanobis distance to the nearest class: score = min_c (z - m_c)^T S^-1 (z - m_c).

    S is the tied covariance: around the class means, divided by N.

    Source: Lee et al., NeurIPS 2018, arXiv 1807.03888, on the penultimate layer. Their input
    perturbation is in `mds_odin`, their sum over layers in `mds_ensemble`. pytorch-ood does not
    divide S by N, adds 1e-6 to its diagonal and halves the score; the order is the same.
    """

    needs = frozenset({"features"})
    headless = True
    view: ClassVar[str] = "features"

    def fit(self, train: Outputs) -> Mahalanobis:
        self.centre = statistics.mean(train, self.view)
        self.whitener = statistics.whitener(train, self.view, True)  # (D, r)
        means = statistics.class_means(train, self.view) - self.centre
        self.means = means @ self.whitener  # (K, r)
        return self

    def score(self, batch: Outputs) -> Tensor:
        return self.distances(batch).amin(1)

    def distances(self, batch: Outputs) -> Tensor:
        """Squared distances to the classes, (N, K)."""
        x = statistics.vectors(batch, self.view).double() - self.centre
        return statistics.squared_distances(x @ self.whitener, self.means)

    def nearest(self, features: Tensor) -> Tensor:
        """Squared distance to the nearest class, (N,), with a gradient in the features."""
        x = (features.double() - self.centre) @ self.whitener
        nearest = self.means[statistics.squared_distances(x.detach(), self.means).argmin(1)]
        return (x - nearest).square().sum(1)


@register("rmds")
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance relative to the background: score = min_c MD_c(z) - MD_0(z).

    MD_0 is the distance to one Gaussian over all classes.

    Source: Ren et al., arXiv 2106.09022.
    """

    def fit(self, train: Outputs) -> RelativeMahalanobis:
        super().fit(train)
        self.background = statistics.whitener(train, self.view, False)  # (D, r)
        return self

    def score(self, batch: Outputs) -> Tensor:
        x = statistics.vectors(batch, self.view).double() - self.centre
        return self.distances(batch).amin(1) - (x @ self.background).square().sum(1)


@register("mdspp", "mds++")
class MahalanobisPP(Mahalanobis):
    """Mahalanobis++: the distance of `mds` between features of length 1.

    Source: Mueller & Hein, ICML 2025, arXiv 2505.18032. The distance no longer depends on the norm
    of the features, which breaks `mds` on large models.
    """

    view: ClassVar[str] = "unit"


@register("rmdspp", "rmds++")
class RelativeMahalanobisPP(RelativeMahalanobis):
    """Relative Mahalanobis++: `rmds` between features of length 1.

    Source: Mueller & Hein, ICML 2025, arXiv 2505.18032.
    """

    view: ClassVar[str] = "unit"


@register("mds_ensemble")
class MahalanobisEnsemble(Detector):
    """Weighted sum of Mahalanobis distances over the stages: score = sum_l a_l min_c MD_c(tap_l).

    Args:
        weights: a_l, one per stage, earliest first; None for ones (pytorch-ood).

    Source: Lee et al., NeurIPS 2018, arXiv 1807.03888. They and OpenOOD fit a_l by logistic
    regression on OOD data. Without such data, the plain sum remains.
    """

    weights: tuple[float, ...] | None = None
    needs = frozenset({"taps"})
    headless = True

    def fit(self, train: Outputs) -> MahalanobisEnsemble:
        if not train.taps:
            raise InputError("mds_ensemble needs pooled stage outputs: extract(..., taps=True)")
        if self.weights is not None and len(self.weights) != len(train.taps):
            raise InputError(
                f"mds_ensemble: {len(self.weights)} weights for {len(train.taps)} stages"
            )
        views = [f"tap{i}" for i in range(len(train.taps))]
        self.centres = [statistics.mean(train, v) for v in views]
        self.whiteners = [statistics.whitener(train, v, True) for v in views]
        self.means = [
            (statistics.class_means(train, v) - c) @ a
            for v, c, a in zip(views, self.centres, self.whiteners)
        ]
        return self

    def score(self, batch: Outputs) -> Tensor:
        weights = self.weights or (1.0,) * len(self.means)
        stages = zip(weights, batch.taps, self.centres, self.whiteners, self.means)
        return sum(
            weight * statistics.squared_distances((tap.double() - centre) @ whitener, means).amin(1)
            for weight, tap, centre, whitener, means in stages
        )


@register("gmm")
class GaussianMixture(Detector):
    """One Gaussian per class: score = -log sum_c (N_c / N) Normal(z; m_c, S_c + reg I).

    It needs C x D x D numbers, in contrast to the tied covariance of `mds`.

    Args:
        reg: >= 0, added to the diagonal of every class covariance, in squared feature units; 1e-6
            as in pytorch-ood. Raise it when classes have fewer images than features.

    Source: class-conditional densities as in Mukhoti et al. (DDU), arXiv 2102.11582. OpenOOD's
    `gmm` instead fits several mixture components, and a regression over layers.
    """

    reg: float = ranged(1e-6, 0)
    needs = frozenset({"features"})
    headless = True

    def check(self, network: nn.Module) -> None:
        super().check(network)
        self._require_room(*network.fc.weight.shape)

    def _require_room(self, classes: int, d: int) -> None:
        needed = classes * d * d * 8
        if needed > LARGEST:
            raise InputError(
                f"gmm needs a covariance per class, {classes} x {d} x {d} numbers of 8 bytes "
                f"({needed / 1e9:.1f} GB): use mds, whose covariance is shared"
            )

    def fit(self, train: Outputs) -> GaussianMixture:
        counts, _ = statistics.class_sums(train)
        present, d = (counts > 0).nonzero().flatten(), train.features.shape[1]
        self._require_room(len(present), d)
        means = statistics.class_means(train)  # (K, D)
        scatter = torch.zeros(len(present), d, d, dtype=torch.float64, device=means.device)
        for chunk in statistics.known(train):
            for k, label in enumerate(present):
                x = chunk.features[chunk.labels == label].double() - means[k]
                scatter[k] += x.T @ x
        scatter = scatter / counts[present, None, None]
        scatter.diagonal(dim1=1, dim2=2).add_(self.reg)
        factors, failed = torch.linalg.cholesky_ex(scatter)
        if failed.any():
            raise InputError(
                f"gmm: the covariance of class {int(present[failed > 0][0])} is not positive "
                f"definite; raise reg (now {self.reg:g})"
            )
        eye = torch.eye(d, dtype=means.dtype, device=means.device).expand_as(factors)
        self.means = means  # (K, D)
        self.whiteners = torch.linalg.solve_triangular(factors, eye, upper=False).mT.contiguous()
        share = counts[present] / counts.sum()
        half_log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        self.log_weight = share.log() - half_log_det - d / 2 * math.log(2 * math.pi)
        return self

    def score(self, batch: Outputs) -> Tensor:
        x = batch.features.double()
        squared = torch.stack(
            [((x - m) @ a).square().sum(1) for a, m in zip(self.whiteners, self.means)], 1
        )
        return -(self.log_weight - squared / 2).logsumexp(1)


@register("ssd")
class SSD(Detector):
    """Mahalanobis distance to the nearest cluster of unit features, without labels.

    score = min_k (u - m_k)^T S_k^-1 (u - m_k), u = z / |z|.

    Args:
        clusters: number of k-means clusters, from 1 to 10,000; 1 is the paper's choice for
            features without labels.

    Source: Sehwag, Chiang & Mittal, ICLR 2021, arXiv 2103.12051. Their features come from
    contrastive training; ours from any network. Our clusters start at images far from each other,
    which is deterministic, and follow ten rounds of Lloyd's algorithm.
    """

    clusters: int = ranged(1, 1, 10_000)
    needs = frozenset({"features"})
    headless = True

    def fit(self, train: Outputs) -> SSD:
        if self.clusters > statistics.count(train):
            raise InputError(
                f"ssd: {self.clusters} clusters need at least as many training images; there are "
                f"{statistics.count(train)} images"
            )
        if self.clusters == 1:
            self.means = [statistics.mean(train, "unit")]
            self.whiteners = [statistics.whitener(train, "unit", False)]
            return self
        centres = _far_apart(train, self.clusters)
        for _ in range(10):
            counts, sums, _ = _assign(train, centres)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        counts, sums, seconds = _assign(train, centres, second=True)
        kept = [k for k in range(self.clusters) if counts[k] > 1]
        self.means = [sums[k] / counts[k] for k in kept]
        self.whiteners = [
            statistics.whitening(seconds[k] / counts[k] - torch.outer(m, m))
            for k, m in zip(kept, self.means)
        ]
        return self

    def score(self, batch: Outputs) -> Tensor:
        u = statistics.vectors(batch, "unit").double()
        clusters = zip(self.means, self.whiteners)
        return torch.stack([((u - m) @ a).square().sum(1) for m, a in clusters], 1).amin(1)


def _far_apart(train: Outputs, clusters: int) -> Tensor:
    """Choose k unit features, (k, D): the first, then each time the farthest from those chosen."""
    first = next(statistics.known(train))
    chosen = statistics.vectors(first[:1], "unit").double()
    for _ in range(clusters - 1):
        best, found = -1.0, chosen[:1]
        for chunk in statistics.known(train):
            u = statistics.vectors(chunk, "unit").double()
            distance = statistics.squared_distances(u, chosen).amin(1)
            if distance.amax() > best:
                best, found = distance.amax().item(), u[distance.argmax()][None]
        chosen = torch.cat([chosen, found])
    return chosen


def _assign(
    train: Outputs, centres: Tensor, second: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Count and sum the unit features nearest to each centre.

    Returns counts (k,), sums (k, D) and, if asked for, the sums of x x^T (k, D, D).
    """
    counts, sums = centres.new_zeros(len(centres)), torch.zeros_like(centres)
    seconds = centres.new_zeros(len(centres), *centres.shape[1:] * 2) if second else None
    for chunk in statistics.known(train):
        u = statistics.vectors(chunk, "unit").double()
        nearest = statistics.squared_distances(u, centres).argmin(1)
        counts.index_add_(0, nearest, torch.ones_like(nearest, dtype=torch.float64))
        sums.index_add_(0, nearest, u)
        for k in range(len(centres)) if second else ():
            part = u[nearest == k]
            seconds[k] += part.T @ part
    return counts, sums, seconds
