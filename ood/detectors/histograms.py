"""Detectors that compare histograms of activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, linear, normalize, pad

from ood import statistics
from ood.config import ranged
from ood.detectors.base import COUNTS, SEEDS, Detector, register
from ood.detectors.neighbours import draw
from ood.outputs import Head, Outputs

CHUNK_VALUES = 1 << 22  # perturbed logits held at a time


@register("weiper")
class WeiPer(Detector):
    """Weight perturbations: score = KLD(z) + lambda_1 KLD(W~ z + b) - lambda_2 confidence.

    W~ stacks `repeats` copies of W. Each row of a copy is moved by delta |w_c| times a random unit
    vector. KLD is the symmetric divergence between the smoothed histogram of one image's values
    and the mean histogram of training images. The confidence is the largest softmax probability,
    averaged over the copies.

    Args:
        repeats: r, 100 (authors).
        delta: 1.8 for CIFAR-10, 2.4 for CIFAR-100 and ImageNet (ResNet-50).
        bins: of the histograms, between the least and largest training value; 100.
        lambda_1: 2.5 for CIFAR-10, 0.1 for CIFAR-100, 2.5 for ImageNet.
        lambda_2: 0.1 for CIFAR-10, 1 for CIFAR-100, 0.25 for ImageNet.
        smooth: width in bins of the moving average over the histogram of z; 4 for CIFAR-10, 4 for
            CIFAR-100, 40 for ImageNet.
        smooth_perturbed: the same for the perturbed logits; 15, 40 and 15.
        samples: how many training images give the mean histograms, drawn once; 1000.
        seed: of the noise and of the draw.

    Source: Granz, Heurich & Landgraf, NeurIPS 2024, arXiv 2405.17164, and the authors' code, whose
    README has the table of hyper-parameters. As there, 0.01 is added to the densities of z and
    0.025 to the densities of the perturbed logits.
    """

    repeats: int = ranged(100, 1, 1000)
    delta: float = ranged(1.8, 0)
    bins: int = ranged(100, 2, 10_000)
    lambda_1: float = ranged(2.5, 0)
    lambda_2: float = ranged(0.1, 0)
    smooth: int = ranged(4, 1, 10_000)
    smooth_perturbed: int = ranged(15, 1, 10_000)
    samples: int = ranged(1000, *COUNTS)
    seed: int = ranged(0, *SEEDS)
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> WeiPer:
        parts, _ = draw(train, min(1.0, self.samples / statistics.count(train)), self.seed)
        pieces = [piece for part in parts for piece in part.chunks(self.rows(train.head))]
        ranges = [[(v.amin(), v.amax()) for v in self.values(piece)] for piece in pieces]
        # low and high of z, then low and high of the perturbed logits
        self.ranges = [
            float(f(r[i][j] for r in ranges)) for i in (0, 1) for j, f in ((0, min), (1, max))
        ]
        count = sum(len(p) for p in pieces)
        self.densities = [
            sum(self.histograms(piece)[i].sum(0) for piece in pieces) / count for i in (0, 1)
        ]  # 2 x (bins,)
        return self

    def rows(self, head: Head) -> int:
        """How many images to look at in one go."""
        return max(1, CHUNK_VALUES // (self.repeats * len(head.weight)))

    def perturbed(self, head: Head) -> Tensor:
        """W~, (r C, D). It is drawn anew from the seed and is not part of what is learned."""
        weight = head.weight
        if self.__dict__.get("_for") is not weight:
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(self.repeats, *weight.shape, generator=generator)
            noise = normalize(noise, dim=2).to(weight)
            moved = weight + self.delta * weight.norm(dim=1, keepdim=True) * noise
            self._for, self._made = weight, moved.flatten(0, 1)
        return self._made

    def values(self, batch: Outputs) -> tuple[Tensor, Tensor]:
        """z (N, D) and the perturbed logits (N, r C)."""
        z = batch.features
        weight, bias = self.perturbed(batch.head).to(z), batch.head.bias.repeat(self.repeats).to(z)
        return z, linear(z, weight, bias)

    def histograms(self, batch: Outputs) -> tuple[Tensor, Tensor]:
        """Histograms of z and of the perturbed logits, (N, bins) each."""
        limits = self.ranges[:2], self.ranges[2:]
        of_z, of_perturbed = (
            histogram(values, low, high, self.bins)
            for values, (low, high) in zip(self.values(batch), limits)
        )
        return of_z, of_perturbed

    def score(self, batch: Outputs) -> Tensor:
        if not len(batch):
            return batch.features.new_zeros(0)
        return torch.cat([self._score(piece) for piece in batch.chunks(self.rows(batch.head))])

    def _score(self, batch: Outputs) -> Tensor:
        of_z, of_perturbed = self.histograms(batch)
        perturbed = self.values(batch)[1].double().view(len(batch), self.repeats, -1)  # (N, r, C)
        confidence = perturbed.softmax(2).amax(2).mean(1)
        kld_z = divergence(self.densities[0], of_z, self.smooth, 0.01)
        kld = divergence(self.densities[1], of_perturbed, self.smooth_perturbed, 0.025)
        return kld_z + self.lambda_1 * kld - self.lambda_2 * confidence


def histogram(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Return each row's share of values in equal bins of [low, high], (N, bins) float64.

    A value outside counts in no bin.
    """
    index = torch.floor((values.double() - low) / max(high - low, 1e-12) * bins)
    index = index.masked_fill(values == high, bins - 1)
    index = torch.where((index >= 0) & (index < bins), index, bins).long()
    counts = torch.zeros(len(values), bins + 1, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    return counts[:, :bins] / values.shape[1]


def divergence(reference: Tensor, densities: Tensor, width: int, epsilon: float) -> Tensor:
    """Return KL(p || q) + KL(q || p), (N,).

    p is the reference plus epsilon. q are the densities after a moving average of `width` bins,
    plus epsilon.
    """
    left = (width - 1) // 2
    padded = pad(densities[:, None], (left, width - 1 - left), mode="replicate")
    p, q = reference + epsilon, avg_pool1d(padded, width, 1)[:, 0] + epsilon
    p, q = p / p.sum(), q / q.sum(1, keepdim=True)
    return ((p - q) * (p.log() - q.log())).sum(1)
