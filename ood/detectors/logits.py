"""Detectors that look at the logits alone.

Any of them can also score the logits behind a feature shaping (`detector=` there).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import COUNTS, Detector, register
from ood.outputs import Outputs

# bounds of a fitted temperature: a training set without errors has no finite optimum
TEMPERATURES = (0.05, 20.0)
TRANSLATION = 10000.0  # OpenMax: libMR adds it to the distances before the fit


@register("msp")
class MaxSoftmax(Detector):
    """Maximum softmax probability: score = -max_c softmax(z / T)_c.

    Args:
        temperature: T, in (0, 1e6]; 1 in the paper.

    Source: Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136.
    """

    temperature: float = ranged(1.0, above=0, high=1e6)

    def score(self, batch: Outputs) -> Tensor:
        return -(batch.logits.double() / self.temperature).softmax(1).amax(1)


@register("maxlogit", "mls")
class MaxLogit(Detector):
    """Largest logit: score = -max_c z_c.

    Source: Hendrycks et al., ICML 2022, arXiv 1911.11132.
    """

    def score(self, batch: Outputs) -> Tensor:
        return -batch.logits.amax(1)


@register("energy", "ebo")
class Energy(Detector):
    """Free energy: score = -T * logsumexp_c(z_c / T).

    Args:
        temperature: T, in (0, 1e6]; 1 in the paper.

    Source: Liu et al., NeurIPS 2020, arXiv 2010.03759, eq. 4.
    """

    temperature: float = ranged(1.0, above=0, high=1e6)

    def score(self, batch: Outputs) -> Tensor:
        return energy(batch.logits, self.temperature)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the free energy -T logsumexp(z / T), (N,): larger = OOD."""
    return -temperature * (logits / temperature).logsumexp(1)


@register("webo")
class WeightedEnergy(Detector):
    """Energy with a weight per class: score = -log sum_c relu(w_c) exp(z_c).

    Args:
        weights: C numbers, the layer that VOS trains with its regulariser. None for ones, which
            gives the plain energy.

    Source: Du et al. (VOS), ICLR 2022, arXiv 2202.01197. We compute it by logsumexp, so large
    logits do not overflow.
    """

    weights: tuple[float, ...] | None = None

    def score(self, batch: Outputs) -> Tensor:
        if self.weights is None:
            return energy(batch.logits)
        if len(self.weights) != batch.logits.shape[1]:
            raise InputError(
                f"webo: {len(self.weights)} weights for {batch.logits.shape[1]} classes"
            )
        weight = torch.tensor(self.weights, dtype=torch.float64, device=batch.logits.device).relu()
        return -(batch.logits.double() + weight.log()).logsumexp(1)


@register("temp_scaling", "temperature_scaling")
class TemperatureScaling(Detector):
    """Maximum softmax probability at the temperature with the least negative log-likelihood.

    `fit` looks for T in [0.05, 20]. The problem is convex in 1/T, and Newton steps reach the
    optimum. An LBFGS with a fixed number of small steps does not.

    Source: Guo et al., ICML 2017, arXiv 1706.04599. They fit T on a validation set. The training
    set, used here, asks for a lower T. Give `fit` validation outputs to do as they did.
    """

    def fit(self, train: Outputs) -> TemperatureScaling:
        sharpest, flattest = 1 / TEMPERATURES[0], 1 / TEMPERATURES[1]
        sharpness = 1.0  # s = 1 / T
        for _ in range(100):
            chunks = [_likelihood(chunk, sharpness) for chunk in statistics.known(train)]
            slope, curvature = (sum(parts) for parts in zip(*chunks))
            change = max(-sharpness / 2, min(sharpness, -slope / max(curvature, 1e-12)))
            before, sharpness = sharpness, min(max(sharpness + change, flattest), sharpest)
            if abs(sharpness - before) < 1e-9 * before:
                break
        self.temperature = 1 / sharpness
        return self

    def score(self, batch: Outputs) -> Tensor:
        return -(batch.logits.double() / self.temperature).softmax(1).amax(1)


def _likelihood(chunk: Outputs, sharpness: float) -> tuple[float, float]:
    """First and second derivative in s of sum_i logsumexp(s z_i) - s z_{i, y_i}."""
    logits = chunk.logits.double()
    p = (sharpness * logits).softmax(1)
    expected = (p * logits).sum(1)
    variance = (p * logits.square()).sum(1) - expected.square()
    slope = expected - logits.gather(1, chunk.labels[:, None])[:, 0]
    return slope.sum().item(), variance.sum().item()


@register("entropy")
class Entropy(Detector):
    """Entropy of the softmax: score = -sum_c p_c log p_c, natural logarithm.

    Source: Hendrycks et al. (as a score), see Macedo et al., arXiv 2006.04005.
    """

    def score(self, batch: Outputs) -> Tensor:
        log_p = batch.logits.double().log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)


@register("gen")
class GEN(Detector):
    """Generalised entropy: score = sum over the M largest p_c of p_c^gamma (1 - p_c)^gamma.

    Args:
        gamma: in (0, 100]; 0.1 in the paper, which keeps it in (0, 1). OpenOOD searches 0.01 to
            10.
        top: M, how many of the largest probabilities count, at least 1; 100 in the paper
            (ImageNet). All count where there are fewer classes.

    Source: Liu, Lochman & Zach, CVPR 2023 (CVF open access; no arXiv version), and the authors'
    code. The paper sums; pytorch-ood takes the mean over M of probabilities that it first clamps
    to [1e-7, 1 - 1e-7]. The mean changes no order, but the clamp does: on a confident network most
    probabilities lie below it, and images that we tell apart get one score there.
    """

    gamma: float = ranged(0.1, above=0, high=100)
    top: int = ranged(100, *COUNTS)

    def score(self, batch: Outputs) -> Tensor:
        p = batch.logits.double().softmax(1)
        if self.top < p.shape[1]:
            p = p.topk(self.top, dim=1).values
        return (p * (1 - p).clamp(min=0)).pow(self.gamma).sum(1)


@register("klm")
class KLMatching(Detector):
    """Distance to the nearest mean softmax: score = min_k KL(p || d_k).

    d_k is the mean p of the training images predicted as class k. A class that is never predicted
    has no d_k.

    Source: Hendrycks et al., ICML 2022, arXiv 1911.11132. They fit on a validation set, we on the
    training set.
    """

    def fit(self, train: Outputs) -> KLMatching:
        classes, device = train.logits.shape[1], train.logits.device
        counts = torch.zeros(classes, dtype=torch.float64, device=device)
        sums = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        for chunk in statistics.known(train):
            predicted = chunk.logits.argmax(1)
            counts.index_add_(0, predicted, torch.ones_like(predicted, dtype=torch.float64))
            sums.index_add_(0, predicted, chunk.logits.double().softmax(1))
        self.mean_softmax = sums[counts > 0] / counts[counts > 0, None]  # (K, C)
        return self

    def score(self, batch: Outputs) -> Tensor:
        log_p = batch.logits.double().log_softmax(1)
        log_d = self.mean_softmax.clamp(min=torch.finfo(torch.float64).tiny).log()
        return ((log_p.exp() * log_p).sum(1, keepdim=True) - log_p.exp() @ log_d.T).amin(1)


@register("openmax")
class OpenMax(Detector):
    """Probability of an unknown class after the top logits are recalibrated by their distances.

    mean_c is the mean of the logits z of the training images that are correctly classified as c.
    The distance d_c = |z - mean_c| is compared with the largest distances that these images have.
    With rank i = 1 .. alpha of a logit among the largest:

    w_c = 1 - (alpha + 1 - i) / alpha * Weibull_c(d_c) for the alpha largest logits, else 1;
    score = softmax([sum_c z_c (1 - w_c), z_1 w_1, ..., z_C w_C])_0.

    Args:
        tail: how many of a class's largest distances the Weibull distribution is fitted to, from
            2 to 10,000; 20 in the paper, 25 in pytorch-ood.
        alpha: how many top classes are recalibrated, at least 1; 10 in the paper, 3 in OpenOOD.
        euclid_weight: 1 for Euclidean distances, 0 for cosine distances; between them, their
            weighted sum (the paper's "eucos"). 1 as in pytorch-ood and OpenOOD. The authors' eucos
            divides the Euclidean distance by 200, a number made for the logits of their network.

    Source: Bendale & Boult, CVPR 2016, arXiv 1511.06233, algorithms 1 and 2. As in the authors'
    libMR, 10,000 is added to the distances before the two-parameter fit. We solve the fit by
    Newton steps; libMR and scipy use simplex search. A class without a correctly classified image
    takes all its images. pytorch-ood takes all images of every class, and there a score depends on
    which classes the other images of a batch are predicted as; here it does not.
    """

    tail: int = ranged(20, 2, 10_000)
    alpha: int = ranged(10, *COUNTS)
    euclid_weight: float = ranged(1.0, 0, 1)

    def fit(self, train: Outputs) -> OpenMax:
        correct, _ = statistics.class_sums(train, "features", "correct")
        classes, device = len(correct), train.logits.device

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            """Logits and labels of the images that count."""
            for chunk in statistics.known(train):
                right = chunk.logits.argmax(1) == chunk.labels
                rows = (right | (correct[chunk.labels] == 0)).nonzero().flatten()
                yield chunk.logits[rows].double(), chunk.labels[rows]

        sums = torch.zeros(classes, train.logits.shape[1], dtype=torch.float64, device=device)
        counts = torch.zeros(classes, dtype=torch.float64, device=device)
        for logits, labels in chunks():
            sums.index_add_(0, labels, logits)
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self.centres = sums / counts.clamp(min=1)[:, None]  # (K, C)
        largest = torch.full((classes, self.tail), -torch.inf, dtype=torch.float64, device=device)
        for logits, labels in chunks():
            distance = self.distances(logits).gather(1, labels[:, None])[:, 0]
            for label in labels.unique():
                both = torch.cat([largest[label], distance[labels == label]])
                largest[label] = both.topk(self.tail).values
        fitted = [weibull(row[row > -torch.inf]) for row in largest]
        self.shape, self.scale, self.least = (
            torch.tensor(v, dtype=torch.float64, device=device) for v in zip(*fitted)
        )  # (K,)
        return self

    def distances(self, logits: Tensor) -> Tensor:
        """Distances in logit space to every class mean, (N, K)."""
        weight, distance = self.euclid_weight, 0.0
        if weight:
            euclidean = statistics.squared_distances(logits, self.centres).sqrt()
            distance = distance + weight * euclidean
        if weight != 1:
            cosine = normalize(logits, dim=1) @ normalize(self.centres, dim=1).T
            distance = distance + (1 - weight) * (1 - cosine)
        return distance

    def revised(self, batch: Outputs) -> Tensor:
        """Softmax of the recalibrated logits, with the unknown class first, (N, C + 1)."""
        logits = batch.logits.double()
        shifted = (self.distances(logits) + TRANSLATION - self.least).clamp(min=0)
        outside = 1 - torch.exp(-(self.shape * (shifted.log() - self.scale)).exp())  # (N, K) cdf
        alpha = min(self.alpha, logits.shape[1])
        top = logits.topk(alpha, dim=1).indices
        rank = torch.arange(alpha, 0, -1, dtype=torch.float64, device=logits.device) / alpha
        removed = torch.zeros_like(logits).scatter(1, top, rank * outside.gather(1, top))  # 1 - w
        revised = torch.cat([(logits * removed).sum(1, keepdim=True), logits * (1 - removed)], 1)
        return revised.softmax(1)

    def score(self, batch: Outputs) -> Tensor:
        return self.revised(batch)[:, 0]


def weibull(tail: Tensor) -> tuple[float, float, float]:
    """Fit a Weibull distribution to distances, by maximum likelihood.

    Returns (shape, log of the scale, least distance). The distances are first shifted so that the
    least is 10,000. All distances equal: a point mass.
    """
    if not len(tail):
        return 1.0, float("-inf"), 0.0  # a class without images: everything is outside
    least = tail.amin()
    log_y = torch.log1p((tail - least) / TRANSLATION)  # log(y / 10000), exact for tiny numbers
    spread = log_y.std(correction=0).item()
    if len(tail) < 2 or spread < 1e-15:
        return 1e9, math.log(TRANSLATION), least.item()
    shape, u = 1.0, log_y / spread  # solve for k * spread
    for _ in range(100):  # sum w u / sum w - 1 / k - mean u = 0, w = exp(k u)
        weight = (shape * (u - u.amax())).exp()
        first = ((weight * u).sum() / weight.sum()).item()
        second = ((weight * u * u).sum() / weight.sum()).item() - first * first
        step = (first - 1 / shape - u.mean().item()) / (second + 1 / shape**2)
        shape = max(shape - step, shape / 2)
        if abs(step) < 1e-12 * shape:
            break
    scale = u.amax().item() + ((shape * (u - u.amax())).exp().mean().log().item()) / shape
    return shape / spread, scale * spread + math.log(TRANSLATION), least.item()


@register("mcm")
class MCM(Detector):
    """Maximum concept matching: score = -max_c softmax(cos(z, t_c) / T)_c.

    t_c are the rows of the last layer. For a CLIP model whose head holds the text embeddings of
    the class names, this is the paper's zero-shot detector. For any other classifier it is the
    cosine form of it.

    Args:
        temperature: T, in (0, 1e6]; 1 in the paper.

    Source: Ming et al., NeurIPS 2022, arXiv 2211.13445.
    """

    temperature: float = ranged(1.0, above=0, high=1e6)
    needs = frozenset({"features"})

    def score(self, batch: Outputs) -> Tensor:
        text = normalize(batch.head.weight.double(), dim=1)
        cosine = normalize(batch.features.double(), dim=1) @ text.T
        return -(cosine / self.temperature).softmax(1).amax(1)
