"""The statistics of the test: one full-covariance Gaussian per class on the feature ensemble.

The covariance is always singular, for three reasons: mu is an affine function of the last tap, the
DenseNet's last two taps are equal, and dead channels do not vary. A jitter on the diagonal makes it
invertible, so the jitter is a hyper-parameter of the method. The released code raises it by 1e-6
until a float32 Cholesky factorisation works; round-off decides where that search ends. In float64
(our default) the same search ends far lower.

Source: Dinari & Freifeld, UAI 2022, stages 1 and 2 of the released test.
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
EXTRA_STEPS = 2  # the released code adds them to what the search finds
ROWS = 4096  # images whose likelihoods are computed in one go
MOST_STEPS = 2**50


@dataclass(frozen=True)
class Moments:
    """Statistics of K classes: counts (K,), means (K, F), covariances (K, F, F).

    The covariances are biased: they are divided by the count.
    """

    counts: Tensor
    means: Tensor
    covariances: Tensor

    def search(self) -> int:
        """Return the number of steps of 1e-6 that the released rule adds to every covariance."""
        return jitter_steps(self.covariances)

    def gaussians(self, jitter: float | None = None) -> Gaussians:
        """Return the Gaussians of covariance + jitter * I.

        Args:
            jitter: None: what `search` finds.
        Raises: InputError when a covariance with this jitter is not positive definite.
        """
        used = self.search() * STEP if jitter is None else jitter
        factors = torch.empty_like(self.covariances)
        for c, covariance in enumerate(self.covariances):
            factors[c], failed = torch.linalg.cholesky_ex(_raised(covariance, used))
            if failed:
                raise InputError(
                    f"jitter {used:g} leaves the covariance of class {c} without a Cholesky "
                    f"factor; at least {self.search() * STEP:g} is needed here"
                )
        return Gaussians(self.means, factors, used)


@dataclass(frozen=True)
class Gaussians:
    """Gaussians of K classes: means (K, F), lower Cholesky factors (K, F, F), and their jitter."""

    means: Tensor
    factors: Tensor
    jitter: float

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Return log N(f; mean_c, cov_c + jitter I): (N, F) -> (N, K).

        It is computed in the precision of the statistics.
        """
        constants = self._peaks()
        result = torch.empty(len(features), len(self.means), dtype=self.means.dtype)
        for start in range(0, len(features), ROWS):
            rows = features[start : start + ROWS].to(self.means)
            for c, (mean, factor) in enumerate(zip(self.means, self.factors)):
                centred = (rows - mean).T  # (F, rows)
                whitened = torch.linalg.solve_triangular(factor, centred, upper=False)
                result[start : start + len(rows), c] = constants[c] - 0.5 * whitened.square().sum(0)
        return result

    def peak(self) -> float:
        """Return the largest log-likelihood that any input can have.

        It is reached at the mean of the narrowest class.
        """
        return self._peaks().max().item()

    def _peaks(self) -> Tensor:
        half_log_determinants = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * self.means.shape[1] * math.log(2 * math.pi) - half_log_determinants


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
    """Return mean_c = sum f / n_c and cov_c = sum f f^T / n_c - mean_c mean_c^T of every class.

    Args:
        features: (N, F); labels: (N,) in 0..K-1.
        dtype: torch.float64, or torch.float32 as released.
        accumulate: "all": sums over every image. "released": the images come in batches of
            `batch_classes` classes with `sample_count` images each. The sums are those of a class's
            LAST batch, but n_c counts the images of ALL its batches. A class that is met twice
            therefore gets half its mean. The published commands for MNIST, VGG, WideResNet and
            CIFAR-100 meet classes twice.
        seed: of the reshuffle after a class's images have run out ("released" only).
    Raises: InputError for a class without images, and for features that are not finite.
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
            "the feature ensemble of the training images is not finite; "
            "the weights do not fit the network or its input"
        )
    return Moments(torch.tensor(counts), means, covariances)


def released_rows(
    rows: list[np.ndarray], batch_classes: int, sample_count: int, seed: int = 0
) -> tuple[list[np.ndarray], list[int]]:
    """Walk the training set as the released test sampler does.

    A batch takes the next `batch_classes` classes in turn, and the next `sample_count` images of
    each: in order until fewer than that remain, then shuffled. There are as many batches as
    `batches_per_epoch` says.

    Returns: for each class the rows of its last batch, and the number of images in all its batches.
    Raises: InputError when the batches do not fit the classes, or never meet one of them.
    """
    chance = np.random.default_rng(seed)
    smallest = min(map(len, rows))
    if not 1 <= batch_classes <= len(rows) or not 1 <= sample_count <= smallest:
        raise InputError(
            f"accumulate 'released' with batches of {batch_classes} x {sample_count}: there are at "
            f"most {len(rows)} classes and {smallest} images of each (the smallest class); "
            "set test_batch_classes and test_sample_count"
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
            f"accumulate 'released' with batches of {batch_classes} x {sample_count} never meets "
            f"class {', '.join(unseen)}; lower test_sample_count"
        )
    return last, counts


def jitter_steps(covariances: Tensor) -> int:
    """Return J = 2 + the smallest number of 1e-6 steps that gives every covariance a factor.

    The released code counts up one by one, through all classes. Doubling and bisection find the
    same number where "a Cholesky factor exists" is monotone in the jitter, as it is in float64. In
    float32 round-off makes the border ragged: on rank-deficient features factors come and go over a
    thousand steps. There the steps below the result of the bisection are tried in turn, beginning
    where no factor can exist.
    """
    steps = 0
    for covariance in covariances:
        steps = _smallest(covariance, steps)
    return steps + EXTRA_STEPS


def _smallest(covariance: Tensor, start: int) -> int:
    """Return the smallest j >= start such that covariance + j * 1e-6 * I has a Cholesky factor."""

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
        # The backward error of the factorisation.
        slack = len(covariance) * torch.finfo(torch.float32).eps * eigenvalues.abs().max()
        first = int(((-eigenvalues[0] - slack) / STEP).clamp(min=0))
        return next(j for j in range(max(start, first), high + 1) if j == high or works(j))
    return high


def _raised(covariance: Tensor, jitter: float) -> Tensor:
    raised = covariance.clone()
    raised.diagonal().add_(jitter)
    return raised
