"""Detectors that compare histograms of activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, linear, normalize, pad

from ood import statistics
from ood.detectors.base import Detector, register
from ood.detectors.neighbours import draw
from ood.outputs import Head, Outputs

CHUNK_VALUES = 1 << 22  # perturbed logits held at a time


@register("weiper")
class WeiPer(Detector):
    """Weight perturbations: score = KLD(z) + lambda_1 KLD(W~ z + b) - lambda_2 mean over the copies of max softmax.

    W~ stacks `repeats` copies of W, each row plus delta |w_c| times a random unit vector. KLD is the symmetric divergence between
    the smoothed histogram of one image's values and the mean histogram of training images.

    Args:
        repeats: r, 100 (authors).
        delta: 1.8 for CIFAR-10, 2.4 for CIFAR-100 and ImageNet (ResNet-50).
        bins: of the histograms, between the least and largest training value; 100.
        lambda_1, lambda_2: 2.5 and 0.1 for CIFAR-10; 0.1 and 1 for CIFAR-100; 2.5 and 0.25 for ImageNet.
        smooth, smooth_perturbed: widths in bins of the moving average; 4 and 15 for CIFAR-10, 4 and 40, 40 and 15.
        samples: training images that the mean histograms are taken of, drawn once; 1000.
        seed: of the noise and of the draw.

    Source: Granz, Heurich & Landgraf, NeurIPS 2024, arXiv 2405.17164 and the authors' code (README's table of
    hyper-parameters; 0.01 and 0.025 are added to the densities of z and of the perturbed logits).
    """

    repeats: int = 100
    delta: float = 1.8
    bins: int = 100
    lambda_1: float = 2.5
    lambda_2: float = 0.1
    smooth: int = 4
    smooth_perturbed: int = 15
    samples: int = 1000
    seed: int = 0
    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> WeiPer:
        parts, _ = draw(train, min(1.0, self.samples / statistics.count(train)), self.seed)
        pieces = [piece for part in parts for piece in part.chunks(self.rows(train.head))]
        ranges = [[(v.amin(), v.amax()) for v in self.values(piece)] for piece in pieces]
        self.ranges = [
            float(f(r[i][j] for r in ranges)) for i in (0, 1) for j, f in ((0, min), (1, max))
        ]  # z: low, high; perturbed: low, high
        count = sum(len(p) for p in pieces)
        self.densities = [
            sum(self.histograms(piece)[i].sum(0) for piece in pieces) / count for i in (0, 1)
        ]  # 2 x (bins,)
        return self

    def rows(self, head: Head) -> int:
        return max(1, CHUNK_VALUES // (self.repeats * len(head.weight)))

    def perturbed(self, head: Head) -> Tensor:
        """W~, (r C, D); drawn anew from the seed, not part of what is learned."""
        if self.__dict__.get("_for") is not head.weight:
            generator = torch.Generator().manual_seed(self.seed)
            noise = normalize(
                torch.randn(self.repeats, *head.weight.shape, generator=generator), dim=2
            ).to(head.weight)
            self._for, self._made = (
                head.weight,
                (head.weight + self.delta * head.weight.norm(dim=1, keepdim=True) * noise).flatten(
                    0, 1
                ),
            )
        return self._made

    def values(self, batch: Outputs) -> tuple[Tensor, Tensor]:
        """z (N, D) and the perturbed logits (N, r C)."""
        return batch.features, linear(
            batch.features,
            self.perturbed(batch.head).to(batch.features),
            batch.head.bias.repeat(self.repeats).to(batch.features),
        )

    def histograms(self, batch: Outputs) -> tuple[Tensor, Tensor]:
        low, high, low_perturbed, high_perturbed = self.ranges
        z, perturbed = self.values(batch)
        return histogram(z, low, high, self.bins), histogram(
            perturbed, low_perturbed, high_perturbed, self.bins
        )

    def score(self, batch: Outputs) -> Tensor:
        return (
            torch.cat([self._score(piece) for piece in batch.chunks(self.rows(batch.head))])
            if len(batch)
            else batch.features.new_zeros(0)
        )

    def _score(self, batch: Outputs) -> Tensor:
        of_z, of_perturbed = self.histograms(batch)
        confidence = (
            self.values(batch)[1]
            .double()
            .view(len(batch), self.repeats, -1)
            .softmax(2)
            .amax(2)
            .mean(1)
        )
        return (
            divergence(self.densities[0], of_z, self.smooth, 0.01)
            + self.lambda_1
            * divergence(self.densities[1], of_perturbed, self.smooth_perturbed, 0.025)
            - self.lambda_2 * confidence
        )


def histogram(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Share of each row's values in equal bins of [low, high], (N, bins) float64; values outside count in no bin."""
    index = torch.floor((values.double() - low) / max(high - low, 1e-12) * bins).masked_fill(
        values == high, bins - 1
    )
    index = torch.where((index >= 0) & (index < bins), index, bins).long()
    counts = torch.zeros(len(values), bins + 1, dtype=torch.float64, device=values.device)
    return (
        counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))[:, :bins]
        / values.shape[1]
    )


def divergence(reference: Tensor, densities: Tensor, width: int, epsilon: float) -> Tensor:
    """KL(p || q) + KL(q || p), (N,): p the reference, q the densities after a moving average of `width` bins, epsilon added to both."""
    left = (width - 1) // 2
    q = (
        avg_pool1d(pad(densities[:, None], (left, width - 1 - left), mode="replicate"), width, 1)[
            :, 0
        ]
        + epsilon
    )
    p = reference + epsilon
    p, q = p / p.sum(), q / q.sum(1, keepdim=True)
    return ((p - q) * (p.log() - q.log())).sum(1)
