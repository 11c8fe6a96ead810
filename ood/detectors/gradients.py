"""Detectors that read gradients.

Gradients of the last layer are in closed form; all others come by automatic differentiation.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import Detector, ImageDetector, register
from ood.outputs import Outputs, Pass

PER_SAMPLE = 1 << 26  # numbers that the gradients of one group of images may take


@register("gradnorm")
class GradNorm(Detector):
    """L1 norm of a gradient of the last weight: score = -|p - 1/C|_1 |z|_1 / T, p = softmax(f / T).

    It is the gradient of KL(uniform || p). It is an outer product, so its norm factorises and no
    backward pass is needed.

    Args:
        temperature: T, in (0, 1e6]; 1 in the paper.

    Source: Huang, Geng & Li, NeurIPS 2021, arXiv 2110.00218 (last layer). The authors' loss sums
    over the classes, so their score is C times larger. pytorch-ood's default takes all layers.
    """

    temperature: float = ranged(1.0, above=0, high=1e6)
    needs = frozenset({"features", "logits"})

    def score(self, batch: Outputs) -> Tensor:
        p = (batch.logits.double() / self.temperature).softmax(1)
        of_logits = (p - 1 / p.shape[1]).abs().sum(1)
        return -of_logits * batch.features.double().abs().sum(1) / self.temperature


@register("gradunc")
class GradientUncertainty(ImageDetector):
    """Squared gradient norm of a loss towards "every class": score = |grad BCE(sigmoid(f), 1)|^2.

    Args:
        output: 'sigmoid' as in the paper. 'softmax' takes BCE(softmax(f), 1) as pytorch-ood does,
            and the other sign, because that gradient vanishes for a uniform softmax.
        parameters: 'all' of the network, or the last layer only ('head', in closed form).

    Source: Lee & AlRegib, ICIP 2020, arXiv 2008.08030. Their detector learns a weight per layer
    from OOD data. The plain sum, used here, needs none.
    """

    output: Literal["sigmoid", "softmax"] = "sigmoid"
    parameters: Literal["all", "head"] = "all"

    def score_images(self, batch: Pass) -> Tensor:
        sign = 1.0 if self.output == "sigmoid" else -1.0
        if self.parameters == "head":
            logits = batch.logits.detach().double().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self.loss(logits), logits)
            norm = batch.features.detach().double().square().sum(1) + 1  # + 1: the bias
            return sign * gradient.square().sum(1) * norm
        return sign * squared_gradients(batch.network, batch.images, self.loss)

    def loss(self, logits: Tensor) -> Tensor:
        if self.output == "sigmoid":
            return binary_cross_entropy_with_logits(
                logits, torch.ones_like(logits), reduction="sum"
            )
        return binary_cross_entropy(logits.softmax(1), torch.ones_like(logits), reduction="sum")


def squared_gradients(
    network, images: Tensor, loss, power: int = 2, chosen=lambda name: True
) -> Tensor:
    """Sum |d loss / d parameter|^power over the chosen parameters, for every image: (B,).

    One vectorised backward pass serves a group of images.

    Args:
        loss: logits (1, C) -> scalar.
        chosen: name of a parameter -> whether it counts.
    """
    parameters = {n: p.detach() for n, p in network.named_parameters()}
    wanted = {n: p for n, p in parameters.items() if chosen(n)}
    rest = {
        **{n: p for n, p in parameters.items() if n not in wanted},
        **dict(network.named_buffers()),
    }

    def of_one(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(torch.func.functional_call(network, {**values, **rest}, (image[None],)))

    group = max(1, PER_SAMPLE // max(1, sum(p.numel() for p in wanted.values())))
    with torch.enable_grad():
        gradients = (
            torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(wanted, part)
            for part in images.detach().split(group)
        )
        sums = [sum(g.abs().pow(power).flatten(1).sum(1) for g in d.values()) for d in gradients]
        return torch.cat(sums)


@register("nac")
class NAC(Detector):
    """Neuron activation coverage of the features: score = -mean_d min(n_d(s_d) / saturation, 1).

    s = sigmoid(alpha z dKL/dz) is the state of a neuron, and n_d(s_d) counts the training images
    whose state falls into the same bin. KL is from the uniform distribution to the softmax p; on
    the last layer its gradient is W^T (p - 1/C). The bins are narrow around s = 1/2, where a
    neuron has no influence.

    Args:
        bins: how many bins, even (two mirrored halves), from 2 to 10,000. 48 is the M = 50 of the
            authors' code for CIFAR-10: their M counts thresholds, the last of which lie beyond
            every state, so M - 2 bins can be filled.
        alpha: steepness of the sigmoid, > 0; 100 in the paper for CIFAR-10 and in pytorch-ood. The
            authors sum z over the positions of the map; our z is the mean. So ours corresponds to
            their alpha times the number of positions.
        saturation: O > 0, how many training images fill a bin; 50 as in pytorch-ood. The authors
            tune it per layer.

    Source: Liu et al., ICLR 2024, arXiv 2306.02879, and the authors' code. `nac_stages` covers all
    stages.
    """

    bins: int = ranged(48, 2, 10_000)
    alpha: float = ranged(100.0, above=0)
    saturation: float = ranged(50.0, above=0)
    needs = frozenset({"features", "logits"})

    def __post_init__(self):
        if self.bins < 2 or self.bins % 2:
            raise InputError(
                f"{self.name}: bins is {self.bins}; it must be even, because the bins are "
                "mirrored at 1/2"
            )

    def fit(self, train: Outputs) -> NAC:
        self.counts = sum(
            torch.bincount(cells.flatten(), minlength=cells.shape[1] * (self.bins + 1)).float()
            for cells in (self.cells(self.states(chunk)) for chunk in statistics.known(train))
        )  # (D (bins + 1),)
        return self

    def states(self, batch: Outputs) -> Tensor:
        """z dKL/dz, (N, D)."""
        p = batch.logits.double().softmax(1)
        return batch.features.double() * ((p - 1 / p.shape[1]) @ batch.head.weight.double())

    def cells(self, states: Tensor) -> Tensor:
        """Index of every neuron's bin in the flat counts, (N, D)."""
        edges = bin_edges(self.bins).to(states.device)
        index = torch.bucketize((self.alpha * states.double()).sigmoid(), edges, right=True)
        return index + torch.arange(states.shape[1], device=states.device) * (self.bins + 1)

    def score(self, batch: Outputs) -> Tensor:
        return -self.covered(batch).mean(1)

    def covered(self, batch: Outputs) -> Tensor:
        """How full the bin of every neuron is, in [0, 1], (N, D)."""
        count = self.counts[self.cells(self.states(batch))].double()
        return (count / self.saturation).clamp(max=1)


def bin_edges(bins: int) -> Tensor:
    """Return the inner edges of the bins of [0, 1], denser towards 1/2.

    They are log_1000 of even steps from 1 to sqrt(1000), and their mirror images.
    """
    steps = torch.linspace(1, 1000**0.5, bins // 2 + 1, dtype=torch.float64)
    left = steps.log() / torch.log(torch.tensor(1000.0, dtype=torch.float64))
    return torch.cat([left[1:], (1 - left[1:-1]).flip(0)])


@register("nac_stages")
class NACStages(NAC, ImageDetector):
    """Neuron activation coverage over all stages of the network: the mean of `nac` over the stages.

    z is the pooled map of a stage, and dKL/dz comes from a backward pass. The average is over the
    neurons of each stage, then over the stages.

    Args:
        bins, alpha, saturation: as in `nac`, the same for all stages. The paper tunes them per
            layer.

    Source: Liu et al., ICLR 2024, arXiv 2306.02879.
    """

    needs = frozenset({"images", "maps", "taps"})
    measures_train: ClassVar[bool] = True
    measured_by: ClassVar[tuple[str, ...]] = ()

    def score_images(self, batch: Pass) -> Tensor:
        """z dKL/dz of every stage, (B, sum of C_l)."""
        loss = -batch.logits.log_softmax(1).mean(1).sum()
        gradients = torch.autograd.grad(loss, batch.maps, retain_graph=True)
        states = [
            m.detach().flatten(2).mean(2) * g.flatten(2).sum(2)
            for m, g in zip(batch.maps, gradients)
        ]
        return torch.cat(states, 1).float()

    def states(self, batch: Outputs) -> Tensor:
        return self.measured(batch)

    def score(self, batch: Outputs) -> Tensor:
        stages = self.covered(batch).split([tap.shape[1] for tap in batch.taps], 1)
        return -sum(part.mean(1) for part in stages) / len(batch.taps)
