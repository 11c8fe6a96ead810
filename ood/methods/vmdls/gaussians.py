"""The test stage's statistics: one full-covariance Gaussian per class on the feature ensemble, and the jitter that makes it invertible.

The covariance is always singular: mu is an affine function of the last tap, the DenseNet's last two taps are equal, dead channels do
not vary. So the jitter is a hyper-parameter of the method. The released code raises it by 1e-6 until a float32 Cholesky
factorisation works and ends where round-off lets it; in float64 (our default) the same search ends far lower.

Source: Dinari & Freifeld, UAI 2022, stage 1 and 2 of the released test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ood.config import InputError
from ood.training.batches import batches_per_epoch, class_rows

STEP = 1e-6  # of the jitter
EXTRA_STEPS = 2  # that the released code adds to what the search finds
ROWS = 4096  # images whose likelihoods are computed in one go
MOST_STEPS = 2**50


@dataclass(frozen=True)
class Moments:
    """counts (K,), means (K, F), covariances (K, F, F), biased (divided by the count)."""

    counts: Tensor
    means: Tensor
    covariances: Tensor

    def search(self) -> int:
        """Number of steps of 1e-6 that the released rule adds to every covariance."""
        return jitter_steps(self.covariances)

    def gaussians(self, jitter: float | None = None) -> Gaussians:
        """Gaussians of covariance + jitter * I. Raises InputError when the jitter given does not make them positive definite."""
        used = self.search() * STEP if jitter is None else jitter
        factors = torch.empty_like(self.covariances)
        for c, covariance in enumerate(self.covariances):
            factors[c], failed = torch.linalg.cholesky_ex(_raised(covariance, used))
            if failed:
                raise InputError(
                    f"jitter {used:g} leaves the covariance of class {c} without a Cholesky factor; at least {self.search() * STEP:g} is needed here"
                )
        return Gaussians(self.means, factors, used)


@dataclass(frozen=True)
class Gaussians:
    """means (K, F), factors (K, F, F) lower triangular, the jitter in them."""

    means: Tensor
    factors: Tensor
    jitter: float

    def log_likelihood(self, features: Tensor) -> Tensor:
        """log N(f; mean_c, cov_c + jitter I): (N, F) -> (N, K), in the precision of the statistics."""
        constants = self._peaks()
        result = torch.empty(len(features), len(self.means), dtype=self.means.dtype)
        for start in range(0, len(features), ROWS):
            rows = features[start : start + ROWS].to(self.means)
            for c, (mean, factor) in enumerate(zip(self.means, self.factors)):
                whitened = torch.linalg.solve_triangular(
                    factor, (rows - mean).T, upper=False
                )  # (F, rows)
                result[start : start + len(rows), c] = constants[c] - 0.5 * whitened.square().sum(0)
        return result

    def peak(self) -> float:
        """The largest log-likelihood that any input can have: that of the mean of the narrowest class."""
        return self._peaks().max().item()

    def _peaks(self) -> Tensor:
        return -0.5 * self.means.shape[1] * math.log(2 * math.pi) - self.factors.diagonal(
            dim1=1, dim2=2
        ).log().sum(1)


def class_moments(
    features: Tensor,
    labels: np.ndarray,
    *,
    dtype: torch.dtype = torch.float64,
    accumulate: str = "all",
    batch_classes: int = 1,
    sample_count: int = 4996,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Moments:
    """mean_c = sum f / n_c, cov_c = sum f f^T / n_c - mean_c mean_c^T.

    Args:
        features: (N, F); labels: (N,) in 0..K-1.
        dtype: torch.float64, or torch.float32 as released.
        accumulate: "all": sums over every image. "released": the images come in batches of `batch_classes` classes with `sample_count`
            images each; sums are those of a class's LAST batch, n_c counts the images of ALL its batches. A class that is met twice so
            gets half its mean. Seen by the published commands for MNIST, VGG, WideResNet and CIFAR-100.
        seed: of the reshuffle after a class's images have run out ("released" only).
    Raises: InputError for a class without images.
    """
    rows = class_rows(labels)
    counts = [len(r) for r in rows]
    if accumulate == "released":
        rows, counts = released_rows(rows, batch_classes, sample_count, seed)
    size = features.shape[1]
    means = torch.empty(len(rows), size, dtype=dtype, device=device)
    covariances = torch.empty(len(rows), size, size, dtype=dtype, device=device)
    for c, (of_class, count) in enumerate(zip(rows, counts)):
        first, second = torch.zeros_like(means[c]), torch.zeros_like(covariances[c])
        for start in range(0, len(of_class), ROWS):
            f = features[torch.as_tensor(of_class[start : start + ROWS])].to(means)
            first += f.sum(0)
            second.addmm_(f.T, f)
        means[c] = first / count
        covariance = second / count - torch.outer(means[c], means[c])
        covariances[c] = (covariance + covariance.T) / 2
    if not (means.isfinite().all() and covariances.isfinite().all()):
        raise InputError(
            "the feature ensemble of the training images is not finite; the weights do not fit the network or its input"
        )
    return Moments(torch.tensor(counts), means, covariances)


def released_rows(
    rows: list[np.ndarray], batch_classes: int, sample_count: int, seed: int = 0
) -> tuple[list[np.ndarray], list[int]]:
    """(rows of each class's last batch, images in all its batches) as the released test sampler walks the training set.

    Classes in turn, `batch_classes` a batch, the next `sample_count` images of each: in order until fewer than that remain, then
    shuffled. As many batches as `batches_per_epoch`.
    """
    chance = np.random.default_rng(seed)
    smallest = min(map(len, rows))
    if not 1 <= batch_classes <= len(rows) or not 1 <= sample_count <= smallest:
        raise InputError(
            f"accumulate 'released' with batches of {batch_classes} x {sample_count}: at most {len(rows)} classes and {smallest} "
            f"images of each (the smallest class) are there; set test_batch_classes and test_sample_count"
        )
    order, used = [r.copy() for r in rows], [0] * len(rows)
    last, counts, turn = [r[:0] for r in rows], [0] * len(rows), 0
    for _ in range(batches_per_epoch(sum(map(len, rows)), batch_classes * sample_count)):
        for _ in range(batch_classes):
            c = turn % len(rows)
            turn += 1
            if used[c] + sample_count > len(order[c]):
                order[c], used[c] = chance.permutation(order[c]), 0
            last[c] = order[c][used[c] : used[c] + sample_count]
            used[c] += sample_count
            counts[c] += sample_count
    unseen = [str(c) for c, n in enumerate(counts) if not n]
    if unseen:
        raise InputError(
            f"accumulate 'released' with batches of {batch_classes} x {sample_count} never meets class {', '.join(unseen)}; "
            f"lower test_sample_count"
        )
    return last, counts


def jitter_steps(covariances: Tensor) -> int:
    """J = 2 + the smallest number of 1e-6 steps that gives every covariance a Cholesky factor.

    The released code counts up one by one through the classes. Doubling and bisection find the same number wherever "a factor exists"
    is monotone in the jitter; so it is in float64. In float32 round-off makes the border ragged (on rank-deficient features factors
    come and go over a thousand steps), so there the steps below the bisection's are tried in turn, from where none can exist.
    """
    steps = 0
    for covariance in covariances:
        steps = _smallest(covariance, steps)
    return steps + EXTRA_STEPS


def _smallest(covariance: Tensor, start: int) -> int:
    """The smallest j >= start for which covariance + j * 1e-6 * I has a Cholesky factor."""

    def works(steps: int) -> bool:
        return not torch.linalg.cholesky_ex(_raised(covariance, steps * STEP)).info

    if works(start):
        return start
    low, width = start, 1
    while not works(start + width):
        low, width = start + width, 2 * width
        if width > MOST_STEPS:
            raise InputError("no jitter makes the covariance of the features positive definite")
    high = start + width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    if covariance.dtype == torch.float32:
        eigenvalues = torch.linalg.eigvalsh(covariance.double())
        slack = (
            len(covariance) * torch.finfo(torch.float32).eps * eigenvalues.abs().max()
        )  # backward error of the factorisation
        first = int(((-eigenvalues[0] - slack) / STEP).clamp(min=0))
        return next(j for j in range(max(start, first), high + 1) if j == high or works(j))
    return high


def _raised(covariance: Tensor, jitter: float) -> Tensor:
    raised = covariance.clone()
    raised.diagonal().add_(jitter)
    return raised
