"""Detectors that keep the training features, or a share of them, and look at the nearest ones.

They work tile by tile, so that the matrix of all pairs never exists.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import COUNTS, SEEDS, Detector, register
from ood.detectors.distances import Mahalanobis
from ood.detectors.logits import energy
from ood.outputs import Outputs

TILE = 1 << 23  # similarities held at a time


@register("knn")
class KNN(Detector):
    """Distance to the k-th nearest training feature: score = |u - u_(k)|, u = z / |z|.

    Args:
        k: at least 1; 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet in the paper (10 with
            a share of 1 %).
        normalise: False compares the features as they are.
        fraction: share of the training set that is kept, in (0, 1]; the paper's alpha, 1 in its
            main tables. It is drawn once.
        seed: of the draw.

    Source: Sun et al., ICML 2022, arXiv 2204.06507, and the authors' code. Their faiss index
    gives the squared distance, which orders the images equally.
    """

    k: int = ranged(50, *COUNTS)
    normalise: bool = True
    fraction: float = ranged(1.0, above=0, high=1)
    seed: int = ranged(0, *SEEDS)
    needs = frozenset({"features"})
    headless = True

    def fit(self, train: Outputs) -> KNN:
        self.bank = keep(train, self.fraction, self.seed, "unit" if self.normalise else "features")
        require(self, len(self.bank))
        return self

    def score(self, batch: Outputs) -> Tensor:
        x = statistics.vectors(batch, "unit" if self.normalise else "features").to(self.bank.dtype)
        # the nearest y has the largest x.y - |y|^2 / 2
        offset = None if self.normalise else -self.bank.square().sum(1) / 2
        nearest = kth(*top_tiled(x, self.bank, self.k, offset))
        difference = x.double() - self.bank[nearest].double()  # exact, unlike sqrt(2 - 2 cos)
        return difference.norm(dim=1)


@register("nnguide")
class NNGuide(Detector):
    """Energy guided by neighbours: score = -S(z) * mean of the k largest S(z_i) cos(z, z_i).

    S = logsumexp of the logits; z_i are the training features.

    Args:
        k: how many neighbours, at least 1; 10 in pytorch-ood; 100 with a share of 1 % in the paper
            (ImageNet).
        fraction: share of the training set that is kept, in (0, 1]. It is drawn once.
        seed: of the draw.

    Source: Park, Jung & Teoh, ICCV 2023, arXiv 2309.14888, and the authors' code. The product
    assumes S > 0. Where all logits are low, S is negative and the order reverses. `fit` counts
    such training images (`not_positive`), and ood.evaluation.diagnosis warns.
    """

    k: int = ranged(10, *COUNTS)
    fraction: float = ranged(1.0, above=0, high=1)
    seed: int = ranged(0, *SEEDS)
    needs = frozenset({"features", "logits"})

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
        u = statistics.vectors(batch, "unit").to(self.bank.dtype)
        guidance = top_tiled(u, self.bank, self.k)[0].mean(1)
        return energy(batch.logits) * guidance


@register("relation")
class Relation(Detector):
    """Neural relation graph: score = -sum of r_i^power over the edges r_i above a threshold.

    r_i = max(0, cos(z, z_i)) * <p, p_i>, where p is the softmax and i runs over the training set.

    Args:
        power: the kernel's temperature, in (0, 100]; 1 by default. OpenOOD searches 1, 2, 4, 6, 8.
        threshold: smaller relations count as no edge, in [0, 1); 0.03 in the authors' code.
        fraction: share of the training set that is kept, in (0, 1]. It is drawn once.
        seed: of the draw.

    Source: Kim et al., NeurIPS 2023, arXiv 2301.12321, and the authors' code.
    """

    power: float = ranged(1.0, above=0, high=100)
    threshold: float = ranged(0.03, 0, below=1)
    fraction: float = ranged(1.0, above=0, high=1)
    seed: int = ranged(0, *SEEDS)
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> Relation:
        parts, _ = draw(train, self.fraction, self.seed)
        self.bank = torch.cat([statistics.vectors(c, "unit") for c in parts])  # (M, D)
        self.probabilities = torch.cat([c.logits.softmax(1) for c in parts])  # (M, C)
        return self

    def score(self, batch: Outputs) -> Tensor:
        u = statistics.vectors(batch, "unit").to(self.bank.dtype)
        p = batch.logits.softmax(1).to(self.bank.dtype)
        edges = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for rows, tile in tiles(len(u), len(self.bank)):
            cosine, agreement = u[rows] @ self.bank[tile].T, p[rows] @ self.probabilities[tile].T
            relation = cosine.clamp(min=0) * agreement
            relation = torch.where(relation > self.threshold, relation, 0).double()
            edges[rows] += relation.pow(self.power).sum(1)
        return -edges


@register("combood")
class CombOOD(Mahalanobis):
    """Nearest neighbour and Mahalanobis together: score = D log d_k(z) + MD_0(z).

    d_k is the squared distance to the k-th neighbour among features of length 1. MD_0 is the
    squared Mahalanobis distance to one Gaussian over all classes. It is the variant on penultimate
    features alone, not the paper's main one.

    Args:
        k: neighbour whose distance counts, at least 1; ours is 50, as in `knn`.
        fraction: share of the training set that is kept, in (0, 1]. It is drawn once.
        seed: of the draw.

    Source: Rajasekaran et al., SDM 2024, arXiv 2602.07042, who add the log-density of a k-NN
    estimate to the log-density of one Gaussian. In their main variant that Gaussian is over
    power-transformed minima and maxima of every layer. In their second one it is over the
    penultimate features, as here; we leave the power transform out. Their near-OOD numbers on
    ImageNet are disputed (OpenOOD #307).
    """

    k: int = ranged(50, *COUNTS)
    fraction: float = ranged(1.0, above=0, high=1)
    seed: int = ranged(0, *SEEDS)
    view: ClassVar[str] = "features"

    def fit(self, train: Outputs) -> CombOOD:
        self.centre = statistics.mean(train)
        self.whitener = statistics.whitener(train, "features", False)
        self.bank = keep(train, self.fraction, self.seed, "unit")
        require(self, len(self.bank))
        return self

    def score(self, batch: Outputs) -> Tensor:
        u = statistics.vectors(batch, "unit").to(self.bank.dtype)
        x = batch.features.double() - self.centre
        nearest = kth(*top_tiled(u, self.bank, self.k))
        squared = (u.double() - self.bank[nearest].double()).square().sum(1).clamp(min=1e-12)
        return x.shape[1] * squared.log() + (x @ self.whitener).square().sum(1)


def draw(train: Outputs, fraction: float, seed: int) -> tuple[list[Outputs], int]:
    """Draw a share of the ID training rows without replacement, and keep their order.

    Returns the rows as chunks, and how many there are.
    """
    total = statistics.count(train)
    wanted = max(1, round(fraction * total))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:wanted]] = True
    parts, start = [], 0
    for chunk in statistics.known(train):
        rows = chosen[start : start + len(chunk)].nonzero().flatten().to(chunk.labels.device)
        parts.append(chunk if fraction == 1 else chunk[rows])
        start += len(chunk)
    return parts, wanted


def keep(train: Outputs, fraction: float, seed: int, view: str) -> Tensor:
    """Return the vectors of the rows that `draw` chooses, (M, D)."""
    return torch.cat([statistics.vectors(part, view) for part in draw(train, fraction, seed)[0]])


def require(detector, available: int) -> None:
    """Raise InputError when fewer images are kept than neighbours are asked for."""
    if detector.k > available:
        raise InputError(
            f"{detector.name}: k = {detector.k} neighbours, but only {available} training images "
            "are kept"
        )


def tiles(rows: int, bank: int):
    """Cut the matrix (rows, bank) into pairs of slices of at most TILE values each."""
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
    """Find the k largest of x @ bank.T (+ offset) per row, without the (N, M) matrix.

    Returns values (N, k) and indices (N, k), in no order.
    """
    if torch.compiler.is_compiling():  # into one graph: no tiles
        similar = x @ bank.T
        return (similar if offset is None else similar + offset).topk(k, dim=1)
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
    """Find the k largest of each row, in no order.

    On a CPU, NumPy's partition is an order of magnitude faster than topk.
    """
    if values.is_cuda:
        return values.topk(k, dim=1, sorted=False)
    first = values.shape[1] - k
    where = torch.from_numpy(np.argpartition(values.numpy(), first, axis=1)[:, first:])
    return values.gather(1, where), where


def kth(values: Tensor, indices: Tensor) -> Tensor:
    """Return the index of the smallest of the k largest values, (N,)."""
    return indices.gather(1, values.argmin(1, keepdim=True))[:, 0]
