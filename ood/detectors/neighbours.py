"""Detectors that keep the training features (or a share of them) and look at the nearest ones, tile by tile."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ood import statistics
from ood.config import InputError
from ood.detectors.base import Detector, register
from ood.detectors.distances import Mahalanobis
from ood.detectors.logits import energy
from ood.outputs import Outputs

TILE = 1 << 23  # similarities held at a time


@register("knn")
class KNN(Detector):
    """Distance to the k-th nearest training feature, all of length 1: score = |u - u_(k)|, u = z / |z|.

    Args:
        k: 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet in the paper (10 with a share of 1 %).
        normalise: False compares the features as they are.
        fraction: share of the training set that is kept, drawn once; the paper's alpha, 1 in its main tables.
        seed: of the draw.

    Source: Sun et al., ICML 2022, arXiv 2204.06507, and the authors' code (faiss; the squared distance orders equally).
    """

    k: int = 50
    normalise: bool = True
    fraction: float = 1.0
    seed: int = 0
    needs = frozenset({"features"})
    requires_fit = True

    def fit(self, train: Outputs) -> KNN:
        self.bank = keep(train, self.fraction, self.seed, "unit" if self.normalise else "features")
        require(self, len(self.bank))
        return self

    def score(self, batch: Outputs) -> Tensor:
        x = statistics.vectors(batch, "unit" if self.normalise else "features").to(self.bank.dtype)
        offset = (
            None if self.normalise else -self.bank.square().sum(1) / 2
        )  # largest x.y - |y|^2/2 = nearest
        nearest = kth(*top_tiled(x, self.bank, self.k, offset))
        return (x.double() - self.bank[nearest].double()).norm(
            dim=1
        )  # exact, unlike sqrt(2 - 2 cos)


@register("nnguide")
class NNGuide(Detector):
    """Energy guided by neighbours: score = -S(z) * mean of the k largest S(z_i) cos(z, z_i), S = logsumexp of the logits.

    Args:
        k: 10 in pytorch-ood, 100 with a share of 1 % in the paper (ImageNet).
        fraction: share of the training set that is kept, drawn once.
        seed: of the draw.

    Source: Park, Jung & Teoh, ICCV 2023, arXiv 2309.14888, and the authors' code. The product takes S > 0 for granted: where all
    logits are low S is negative and the order reverses. `fit` counts such training images (`not_positive`), ood.evaluation.diagnosis warns.
    """

    k: int = 10
    fraction: float = 1.0
    seed: int = 0
    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> NNGuide:
        parts, _ = draw(train, self.fraction, self.seed)
        confidences = [-energy(c.logits) for c in parts]
        self.bank = torch.cat(
            [statistics.vectors(c, "unit") * s[:, None] for c, s in zip(parts, confidences)]
        )
        self.not_positive = (torch.cat(confidences) <= 0).double().mean().item()
        require(self, len(self.bank))
        return self

    def score(self, batch: Outputs) -> Tensor:
        guidance = top_tiled(
            statistics.vectors(batch, "unit").to(self.bank.dtype), self.bank, self.k
        )[0].mean(1)
        return energy(batch.logits) * guidance


@register("relation")
class Relation(Detector):
    """Neural relation graph: score = -sum_i r_i^power over edges r_i = max(0, cos(z, z_i)) * <p, p_i> above a threshold.

    Args:
        power: the kernel's temperature; 1 by default, 1, 2, 4, 6, 8 searched in OpenOOD.
        threshold: smaller relations count as no edge; 0.03 in the authors' code.
        fraction, seed: share of the training set that is kept, drawn once.

    Source: Kim et al., NeurIPS 2023, arXiv 2301.12321, and the authors' code. p = softmax.
    """

    power: float = 1.0
    threshold: float = 0.03
    fraction: float = 1.0
    seed: int = 0
    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> Relation:
        parts, _ = draw(train, self.fraction, self.seed)
        self.bank = torch.cat([statistics.vectors(c, "unit") for c in parts])  # (M, D)
        self.probabilities = torch.cat([c.logits.softmax(1) for c in parts])  # (M, C)
        return self

    def score(self, batch: Outputs) -> Tensor:
        u, p = (
            statistics.vectors(batch, "unit").to(self.bank.dtype),
            batch.logits.softmax(1).to(self.bank.dtype),
        )
        edges = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for rows, tile in tiles(len(u), len(self.bank)):
            relation = (u[rows] @ self.bank[tile].T).clamp(min=0) * (
                p[rows] @ self.probabilities[tile].T
            )
            edges[rows] += (
                torch.where(relation > self.threshold, relation, 0).double().pow(self.power).sum(1)
            )
        return -edges


@register("combood")
class CombOOD(Mahalanobis):
    """Nearest neighbour and Mahalanobis together: score = D log d_k(z) + MD_0(z), d_k squared to the k-th unit neighbour.

    Args:
        k: neighbour whose distance counts; ours: 50 as in `knn`.
        fraction, seed: share of the training set that is kept, drawn once.

    Source: Rajasekaran et al., SDM 2024, arXiv 2602.07042: the log-density of a k-NN estimate plus that of one Gaussian. Their
    Gaussian is over power-transformed minima and maxima of every layer; ours over the penultimate features, as they do in
    their second variant, without the power transform. Their near-OOD numbers on ImageNet are disputed (OpenOOD #307).
    """

    k: int = 50
    fraction: float = 1.0
    seed: int = 0
    view: ClassVar[str] = "features"

    def fit(self, train: Outputs) -> CombOOD:
        self.centre = statistics.mean(train)
        self.whitener = statistics.whitener(train, "features", False)
        self.bank = keep(train, self.fraction, self.seed, "unit")
        require(self, len(self.bank))
        return self

    def score(self, batch: Outputs) -> Tensor:
        u, x = (
            statistics.vectors(batch, "unit").to(self.bank.dtype),
            batch.features.double() - self.centre,
        )
        nearest = kth(*top_tiled(u, self.bank, self.k))
        squared = (u.double() - self.bank[nearest].double()).square().sum(1).clamp(min=1e-12)
        return x.shape[1] * squared.log() + (x @ self.whitener).square().sum(1)


def draw(train: Outputs, fraction: float, seed: int) -> tuple[list[Outputs], int]:
    """A share of the ID training rows as chunks, without replacement, in their order; and how many rows."""
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}; it must lie in (0, 1]")
    total = statistics.count(train)
    wanted = max(1, round(fraction * total))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:wanted]] = True
    parts, start = [], 0
    for chunk in statistics.known(train):
        parts.append(
            chunk
            if fraction == 1
            else chunk[
                chosen[start : start + len(chunk)].nonzero().flatten().to(chunk.labels.device)
            ]
        )
        start += len(chunk)
    return parts, wanted


def keep(train: Outputs, fraction: float, seed: int, view: str) -> Tensor:
    """The vectors of `draw`, (M, D)."""
    return torch.cat([statistics.vectors(part, view) for part in draw(train, fraction, seed)[0]])


def require(detector, available: int) -> None:
    if detector.k > available:
        raise InputError(
            f"{detector.name}: k = {detector.k} neighbours, but only {available} training images are kept"
        )


def tiles(rows: int, bank: int):
    """Pairs of slices over rows and bank whose products hold at most TILE values."""
    width = min(bank, max(1024, TILE // max(rows, 1)))
    height = max(1, TILE // width)
    return (
        (slice(i, i + height), slice(j, j + width))
        for i in range(0, rows, height)
        for j in range(0, bank, width)
    )


def top_tiled(
    x: Tensor, bank: Tensor, k: int, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest of x @ bank.T (+ offset), in no order: values (N, k) and indices (N, k), without the (N, M) matrix."""
    values = x.new_full((len(x), k), -torch.inf)
    indices = torch.zeros(len(x), k, dtype=torch.long, device=x.device)
    for rows, tile in tiles(len(x), len(bank)):
        similar = x[rows] @ bank[tile].T
        if offset is not None:
            similar = similar + offset[tile]
        best, where = top(similar, min(k, similar.shape[1]))
        where = where + tile.start
        if tile.start or best.shape[1] < k:
            best, where = torch.cat([values[rows], best], 1), torch.cat([indices[rows], where], 1)
            best, chosen = top(best, k)
            where = where.gather(1, chosen)
        values[rows], indices[rows] = best, where
    return values, indices


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in no order. NumPy's partition is an order of magnitude faster than topk on a CPU."""
    if values.is_cuda:
        return values.topk(k, dim=1, sorted=False)
    where = torch.from_numpy(
        np.argpartition(values.numpy(), values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
    )
    return values.gather(1, where), where


def kth(values: Tensor, indices: Tensor) -> Tensor:
    """The index that belongs to the smallest of the k largest values, (N,)."""
    return indices.gather(1, values.argmin(1, keepdim=True))[:, 0]
