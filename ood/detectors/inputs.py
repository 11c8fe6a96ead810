"""Detectors that perturb the image along a gradient, or pass it several times.

They run inside the pass over a data set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import COUNTS, SEEDS, ImageDetector, register
from ood.detectors.distances import Mahalanobis
from ood.detectors.shaping import Shaping, nonzero, rising
from ood.outputs import Outputs, Pass

NO_DROPOUT = "dropout: this network has no dropout (build it with dropout > 0)"


@register("odin")
class ODIN(ImageDetector):
    """Temperature and input perturbation: score = -max softmax(z(x') / T).

    x' = x - eps * sign(grad CE(z / T, argmax z)).

    Args:
        temperature: T, in (0, 1e6]; 1000 in the paper.
        magnitude: eps in pixel units, in [0, 1]; 0.0014 is the paper's value for CIFAR-10,
            0.002 for CIFAR-100. 0 leaves the perturbation out.
        unit: 'pixel' divides the step by the normalisation's std, so that eps is a step in raw
            pixels (the authors' code). 'normalised' takes the step on the normalised image as it
            is (the copy in the DICE authors' repository).

    Source: Liang, Li & Srikant, ICLR 2018, arXiv 1706.02690, and the authors' code. As there, a
    zero gradient counts as +1 and the perturbed image is not clipped. Our softmax is in float64,
    because scores lie close together at T = 1000.
    """

    temperature: float = ranged(1000.0, above=0, high=1e6)
    magnitude: float = ranged(0.0014, 0, 1)
    unit: Literal["pixel", "normalised"] = "pixel"

    def score_images(self, batch: Pass) -> Tensor:
        logits = batch.logits
        if self.magnitude:
            loss = cross_entropy(
                logits / self.temperature, logits.detach().argmax(1), reduction="sum"
            )
            std = batch.std if self.unit == "pixel" else (1.0,) * len(batch.std)
            with torch.no_grad():
                logits = batch.network(perturb(batch.images, loss, self.magnitude, std))
        return -(logits.double() / self.temperature).softmax(1).amax(1)


def perturb(
    images: Tensor, loss: Tensor, magnitude: float, std: tuple[float, ...], axis: int = 1
) -> Tensor:
    """Return images - magnitude * sign(d loss / d images) / std, with std per channel (`axis`).

    A zero gradient counts as +1. The result is detached; the graph of the loss is kept.
    """
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    std = torch.tensor(std, device=images.device, dtype=images.dtype)
    shape = [1] * images.dim()
    shape[axis] = -1
    step = magnitude / std.view(shape)
    return (images - step * torch.where(gradient >= 0, 1.0, -1.0)).detach()


@register("mds_odin")
class MahalanobisODIN(ImageDetector):
    """Mahalanobis distance of the perturbed image: score = MD(z(x')), MD as in `mds`.

    x' = x - eps * sign(grad MD(z(x))). It is the variant on the penultimate layer alone: one
    distance, no sum over layers.

    Args:
        magnitude: eps in pixel units, in [0, 1]; 0.0014 in the authors' search, 0.002 in
            pytorch-ood. 0 leaves the perturbation out.
        unit: see `odin`.

    Source: Lee et al., NeurIPS 2018, arXiv 1807.03888, and their code, which perturbs once per
    layer and weighs the layers' distances by a logistic regression on OOD data. A zero gradient
    counts as +1, as there.
    """

    magnitude: float = ranged(0.0014, 0, 1)
    unit: Literal["pixel", "normalised"] = "pixel"
    uses_fit: ClassVar[bool] = True

    def __post_init__(self):
        self.gaussian = Mahalanobis()

    def fit(self, train: Outputs) -> MahalanobisODIN:
        self.gaussian.fit(train)
        return self

    def score_images(self, batch: Pass) -> Tensor:
        self.gaussian.to(batch.features.device)
        distance = self.gaussian.nearest(batch.features)
        if self.magnitude:
            std = batch.std if self.unit == "pixel" else (1.0,) * len(batch.std)
            moved = perturb(batch.images, distance.sum(), self.magnitude, std)
            with torch.no_grad():
                distance = self.gaussian.nearest(batch.network.features(moved))
        return distance


@register("dropout", "mc_dropout")
class MonteCarloDropout(ImageDetector):
    """Softmax p over several passes with dropout: score = mean_c of the variance of p_c.

    Args:
        samples: number of passes, at least 2; 30 as in pytorch-ood.
        mode: 'var' for the formula above, or 'mean' for score = -max_c of the mean of p_c.
        seed: of the dropout masks of every batch.

    Source: Gal & Ghahramani, ICML 2016, arXiv 1506.02142. Batch norm stays in evaluation mode.
    Masks differ between the positions in a batch, so the score of an image depends on the batch
    size by chance.
    """

    samples: int = ranged(30, 2, 10_000)
    mode: Literal["var", "mean"] = "var"
    seed: int = ranged(0, *SEEDS)
    needs_gradient: ClassVar[bool] = False

    def check(self, network: nn.Module) -> None:
        super().check(network)
        if not any(_drops(module) for module in network.modules()):
            raise InputError(NO_DROPOUT)

    def score_images(self, batch: Pass) -> Tensor:
        devices = [batch.images.device] if batch.images.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices), _dropping(batch.network):
            torch.manual_seed(self.seed)
            # moments around the first pass: no cancellation, no list of passes
            first, total, square = batch.network(batch.images).double().softmax(1), 0.0, 0.0
            for _ in range(self.samples):
                change = batch.network(batch.images).double().softmax(1) - first
                total, square = total + change, square + change.square()
        if not bool(square.any()):
            raise InputError(f"{NO_DROPOUT}: all passes agree")
        if self.mode == "mean":
            return -(first + total / self.samples).amax(1)
        return ((square - total.square() / self.samples) / max(self.samples - 1, 1)).mean(1)


@contextlib.contextmanager
def _dropping(network: nn.Module) -> Iterator[None]:
    """Put all modules but batch norms into training mode, and back at the end."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    quiet = [m for m in network.modules() if not isinstance(m, batch_norm) and not m.training]
    for module in quiet:
        module.training = True
    try:
        yield
    finally:
        for module in quiet:
            module.training = False


def _drops(module: nn.Module) -> bool:
    """Tell whether a module has a dropout rate above 0.

    A rate is nn.Dropout's p, or an attribute like `dropout`, `drop_prob` or `attn_drop_rate`.
    """
    dropping = "drop" in type(module).__name__.lower() or type(module).__name__ == "StochasticDepth"
    return any(
        isinstance(rate, float)
        and rate > 0
        and ("drop" in name.lower() or name == "p" and dropping)
        for name, rate in vars(module).items()
    )


@dataclass(eq=False)
class AdaSCALE(Shaping, ImageDetector):
    """What both forms of AdaSCALE share: SCALE's ratio r, with a percentile p of its own per image.

    p follows from how much a trivial perturbation moves the strongest features:

    x' = x + step sign(grad f_y) at the `share` of pixels with the smallest |grad f_y|,
    y = argmax f, z' = z(x');
    Q = weight * sum of |z - z'| over the k2 % largest z
        + sum of max(z', 0) over the k1 % largest z;
    p = lower + (1 - F(Q)) (upper - lower), F the distribution of Q on ID images;
    r = sum z+ / sum of the largest (100 - p) % of z+.

    Args:
        detector: see `Shaping`.
        lower: least p, a percentile (0-100); 80 for ResNet-50 in the authors' configuration. 75
            is the default of OpenOOD, which searches all pairs of 60-99.
        upper: largest p; 85 in both.
        k1: per cent of the features, 5 (authors); at least one feature counts.
        k2: the same, 1 (authors).
        weight: lambda, 10 (authors).
        share: o, fraction of the pixels that are changed, channels counted apart; 0.05 (authors).
        step: of the change, in units of the normalised image; 0.5 (authors' code).
        samples: how many ID images, evenly spread, F is kept of; 5000 (authors).

    Source: Regmi et al., arXiv 2503.08023, and the authors' code in OpenOOD. We take F from
    training images, they from validation images.
    """

    lower: float = ranged(80.0, 0, 100)
    upper: float = ranged(85.0, 0, 100)
    k1: float = ranged(5.0, above=0, high=100)
    k2: float = ranged(1.0, above=0, high=100)
    weight: float = ranged(10.0, 0)
    share: float = ranged(0.05, above=0, high=1)
    step: float = ranged(0.5, above=0)
    samples: int = ranged(5000, *COUNTS)
    needs = frozenset({"images", "features", "logits"})
    measures_train: ClassVar[bool] = True
    measured_by: ClassVar[tuple[str, ...]] = ("k1", "k2", "share", "step")

    def __post_init__(self):
        super().__post_init__()
        rising(self)

    def score_images(self, batch: Pass) -> Tensor:
        """The two sums that Q is made of, (B, 2): over z', and over the changes |z - z'|."""
        (gradient,) = torch.autograd.grad(
            batch.logits.amax(1).sum(), batch.images, retain_graph=True
        )
        flat = gradient.flatten(1)
        count = max(1, int(flat.shape[1] * self.share))
        least = flat.abs().topk(count, dim=1, largest=False).indices
        steps = self.step * flat.sign().gather(1, least)
        change = torch.zeros_like(flat).scatter(1, least, steps).view_as(batch.images)
        with torch.no_grad():
            z = batch.features.detach()
            moved = batch.network.features((batch.images + change).detach()).float()
            k1, k2 = (max(1, int(z.shape[1] * k / 100)) for k in (self.k1, self.k2))
            kept = moved.clamp(min=0).gather(1, z.topk(k1, dim=1).indices)
            changed = (z - moved).abs().gather(1, z.topk(k2, dim=1).indices)
            return torch.stack([kept.sum(1), changed.sum(1)], 1)

    def q(self, batch: Outputs) -> Tensor:
        """Q, (N,) float64."""
        kept, changed = self.measured(batch).double().unbind(1)
        return kept + self.weight * changed

    def learn(self, train: Outputs) -> None:
        values = torch.cat([self.q(chunk) for chunk in statistics.known(train)]).sort().values
        spread = torch.linspace(0, len(values) - 1, min(self.samples, len(values)))
        self.reference = values[spread.round().long()]

    def ratio(self, batch: Outputs) -> Tensor:
        """r, (N, 1)."""
        below = torch.searchsorted(self.reference, self.q(batch), right=True) / len(self.reference)
        percentile = self.lower + (1 - below.double()) * (self.upper - self.lower)
        z = batch.features.clamp(min=0).sort(1, descending=True).values
        n = z.shape[1]
        count = (n - torch.round(n * percentile / 100)).long().clamp(min=1)
        return z.sum(1, keepdim=True) / nonzero(z.cumsum(1).gather(1, count[:, None] - 1))


@register("adascale_a")
class AdaSCALEActivations(AdaSCALE):
    """AdaSCALE on the activations: score = energy of W (z exp(r)) + b.

    r and the arguments are those of `AdaSCALE`.
    """

    def logits(self, batch: Outputs) -> Tensor:
        return batch.head(batch.features * self.ratio(batch).exp())


@register("adascale_l")
class AdaSCALELogits(AdaSCALE):
    """AdaSCALE on the logits: score = energy of r^2 f.

    r and the arguments are those of `AdaSCALE`.
    """

    def logits(self, batch: Outputs) -> Tensor:
        return batch.logits * self.ratio(batch).square()
