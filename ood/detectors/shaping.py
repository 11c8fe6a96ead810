"""Detectors that reshape the features or the last layer and then score the new logits, by the energy or by any logit detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ood import statistics
from ood.config import InputError
from ood.detectors.base import Detector, create, parse, register
from ood.outputs import Outputs


@dataclass(eq=False)
class Shaping(Detector):
    """What all of them share: score = that of `detector` on the logits of the shaped features.

    Args:
        detector: which logit detector scores the new logits: 'energy', 'msp', 'maxlogit', 'gen', ... or 'gen:gamma=0.5'.
    """

    detector: str = "energy"
    needs = frozenset({"features"})
    learns: ClassVar[bool] = False  # whether `learn` needs ID training images

    def __post_init__(self):
        name, values = parse(self.detector)
        self.scorer = create(name, **values)
        if self.scorer.needs != {"logits"}:
            raise InputError(
                f"{self.name}: detector='{self.detector}' must look at logits alone, like energy, msp, maxlogit, gen, klm"
            )

    @property
    def requires_fit(self) -> bool:
        return self.learns or self.__dict__["scorer"].requires_fit

    def fit(self, train: Outputs) -> Shaping:
        self.learn(train)
        if self.scorer.requires_fit:
            self.scorer.fit(_WithLogits(train, self.logits))
        return self

    def learn(self, train: Outputs) -> None:
        """What the shaping itself takes from the training set."""

    def shape(self, features: Tensor) -> Tensor:
        """The new features, (N, D)."""
        return features

    def logits(self, batch: Outputs) -> Tensor:
        """The new logits, (N, C)."""
        return batch.head(self.shape(batch.features))

    def score(self, batch: Outputs) -> Tensor:
        return self.scorer.score(replace(batch, logits=self.logits(batch), memo={}))


class _WithLogits:
    """A training set whose logits are replaced chunk by chunk, for fitting the detector behind a shaping."""

    def __init__(self, train: Outputs, logits: Callable[[Outputs], Tensor]):
        self.train, self.made, self.memo = train, logits, {}
        self.features, self.logits, self.labels, self.head, self.taps = (
            train.features,
            train.logits,
            train.labels,
            train.head,
            train.taps,
        )

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, rows) -> Outputs:
        return replace(self.train[rows], logits=self.made(self.train[rows]))

    def chunks(self, size: int | None = None) -> Iterator[Outputs]:
        return (replace(chunk, logits=self.made(chunk)) for chunk in self.train.chunks(size))


@register("react")
class ReAct(Shaping):
    """Rectified activations: score = energy of W min(h, c) + b.

    Args:
        detector: see `Shaping`.
        percentile: c is this percentile (0-100) of all training features; 90 in the paper.
        threshold: c itself, in feature units; overrides `percentile` and needs no training set (1.0 for the ResNet-50 of the paper).

    Source: Sun, Guo & Li, NeurIPS 2021, arXiv 2111.12797. The authors take the percentile over about 2,000 ID validation
    images, we over the whole training set.
    """

    percentile: float = 90.0
    threshold: float | None = None

    @property
    def learns(self) -> bool:
        return self.threshold is None

    def learn(self, train: Outputs) -> None:
        self.clip = (
            statistics.quantile(train, self.percentile / 100)
            if self.threshold is None
            else self.threshold
        )

    def shape(self, features: Tensor) -> Tensor:
        return features.clamp(max=self.clip if self.threshold is None else self.threshold)


@register("dice")
class DICE(Shaping):
    """Directed sparsification: score = energy of (M * W) h + b, M = 1 where the contribution W * mean(h) is above its percentile.

    Args:
        detector: see `Shaping`.
        percentile: p of the contributions that is cut off, 0-100, over all C*D entries at once; the paper takes 90 for
            CIFAR and 70 for ImageNet (and writes fractions).
        feature_mean: .npy file with the mean training feature, (D,), as the authors publish it; else it is fitted.
        clip: largest feature value (ReAct before DICE), in feature units; None for no clipping. The authors pair
            percentile 10 with clip 1.0, or 15 with 1.5, on ImageNet.
        clip_percentile: the same as a percentile (0-100) of the training features. The mean is that of the unclipped
            features, as in the released code.

    Source: Sun & Li, ECCV 2022, arXiv 2111.09805, eq. 3-5. One matrix product with a masked weight; the released code
    broadcasts to (B, C, D) and sums. Contributions are signed, the comparison is strict and the bias stays, as there.
    """

    percentile: float = 90.0
    feature_mean: str | None = None
    clip: float | None = None
    clip_percentile: float | None = None

    @property
    def learns(self) -> bool:
        return self.feature_mean is None or self.clip_percentile is not None

    def learn(self, train: Outputs) -> None:
        mean = (
            statistics.mean(train)
            if self.feature_mean is None
            else read_mean(self.feature_mean, train.head.weight.shape[1])
        )
        self.mask, self.contribution_threshold = contribution_mask(
            train.head.weight, mean, self.percentile
        )  # (C, D)
        self.limit = self.clip
        if self.clip_percentile is not None:
            self.limit = statistics.quantile(train, self.clip_percentile / 100)

    def logits(self, batch: Outputs) -> Tensor:
        features = batch.features if self.limit is None else batch.features.clamp(max=self.limit)
        return linear(
            features,
            (self.mask * batch.head.weight).to(features.dtype),
            batch.head.bias.to(features.dtype),
        )


@register("dice_react")
class DICEReAct(DICE):
    """DICE on rectified activations: `dice` with the features clipped at a percentile of the training features.

    Args:
        percentile: as in `dice`.
        clip_percentile: 90, ReAct's value; set `clip` and make this null for a fixed value.

    Source: Sun & Li, ECCV 2022, table 1 (DICE + ReAct); the released code offers it for ImageNet only.
    """

    clip_percentile: float | None = 90.0


def contribution_mask(weight: Tensor, mean: Tensor, percentile: float) -> tuple[Tensor, float]:
    """M (C, D) in the weight's type and the threshold: the percentile of W * mean over all entries, in float64."""
    contribution = weight.double() * mean.double()  # (C, D), signed
    threshold = float(np.percentile(contribution.cpu().numpy(), percentile))
    return (contribution > threshold).to(weight.dtype), threshold


def read_mean(path: str, dimension: int) -> Tensor:
    """The mean feature from a .npy file, (D,) float64. Raises InputError when it is missing or of another length."""
    if not Path(path).is_file():
        raise InputError(
            f"no feature mean in '{path}'; give a .npy file of {dimension} numbers, or leave feature_mean out to fit it"
        )
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"'{path}' is not a plain .npy file: {error}") from None
    if values.shape != (dimension,) or not np.isfinite(values).all():
        raise InputError(
            f"feature mean in '{path}' has shape {values.shape}; this network's features need ({dimension},) finite numbers"
        )
    return torch.from_numpy(values.astype(np.float64))


@register("ash")
class ASH(Shaping):
    """Activation shaping: prune the lowest activations of each image, then 's' scale, 'b' binarise or 'p' keep the rest; energy.

    With A the sum of all activations and B the sum of the kept ones: 's' multiplies the kept ones by exp(A / B), 'b' sets each of
    them to A / (how many), 'p' leaves them.

    Args:
        detector: see `Shaping`.
        variant: 's', 'b' or 'p'; 's' is the paper's best, OpenOOD implements 'b'.
        percentile: share that is pruned, 0-100; 90 is OpenOOD's default, 65-95 the usual search (pytorch-ood: 65).

    Source: Djurisic et al., ICLR 2023, arXiv 2209.09858, on the pooled penultimate features as in the authors'
    code; pytorch-ood prunes the map before pooling. Assumes rectified features: sums of both signs are no scale.
    """

    variant: Literal["s", "b", "p"] = "s"
    percentile: float = 90.0

    def shape(self, features: Tensor) -> Tensor:
        values, where = largest(features, self.percentile)
        total, kept = features.sum(1, keepdim=True), values.sum(1, keepdim=True)
        if self.variant == "b":
            values = (total / values.shape[1]).expand_as(values)
        elif self.variant == "s":
            values = values * (total / nonzero(kept)).exp()
        return torch.zeros_like(features).scatter(1, where, values)


@register("scale")
class SCALE(Shaping):
    """Scaled activations: score = energy of W (h exp(r)) + b, r = sum h / sum of the largest (100 - percentile) % of h.

    Args:
        detector: see `Shaping`.
        percentile: share left out of the denominator, 0-100; 85 in the paper and OpenOOD.

    Source: Xu et al., ICLR 2024, arXiv 2310.00227. Assumes rectified features.
    """

    percentile: float = 85.0

    def shape(self, features: Tensor) -> Tensor:
        return features * scaling(features, self.percentile).exp()


@register("lts")
class LTS(Shaping):
    """Logit scaling: score = energy of S f, S = (sum h+ / sum of the largest `share` of h+)^2, h+ = max(h, 0).

    Args:
        detector: see `Shaping`.
        share: of the activations in the denominator, in (0, 1]; 0.05 in the paper.

    Source: Djurisic et al., arXiv 2409.01175.
    """

    share: float = 0.05

    def logits(self, batch: Outputs) -> Tensor:
        return (
            batch.head(batch.features)
            * scaling(batch.features.clamp(min=0), 100 * (1 - self.share)).square()
        )


@register("vra")
class VRA(Shaping):
    """Variational rectified activations: score = energy of W v(h) + b, v = 0 below a, h + gamma between, b above.

    Args:
        detector: see `Shaping`.
        lower, upper: percentiles (0-100) of the training features that give a and b; 60 and 95 are ours, within the paper's
            search of 50-70 and 80-99.
        gamma: added between (VRA+, 0.2-0.7 in the paper); 0 is VRA.
        below: 'zero' as in the paper; 'clip' lifts small activations to a, as OpenOOD and pytorch-ood do.
        per_feature: a and b of each feature by itself (pytorch-ood), not of all values together (the paper, OpenOOD).

    Source: Xu et al., NeurIPS 2023, arXiv 2302.11716.
    """

    lower: float = 60.0
    upper: float = 95.0
    gamma: float = 0.0
    below: Literal["zero", "clip"] = "zero"
    per_feature: bool = False
    learns = True

    def learn(self, train: Outputs) -> None:
        if not 0 <= self.lower <= self.upper <= 100:
            raise InputError(
                f"vra: percentiles must rise from lower to upper within 0-100, got {self.lower} and {self.upper}"
            )
        wanted = (self.lower / 100, self.upper / 100)
        self.low, self.high = (
            statistics.feature_quantiles(train, wanted)
            if self.per_feature
            else torch.tensor(statistics.quantiles(train, wanted))
        )

    def shape(self, features: Tensor) -> Tensor:
        low, high = self.low.to(features), self.high.to(features)
        floor = low if self.below == "clip" else torch.zeros_like(low)
        return torch.where(
            features < low, floor, torch.where(features > high, high, features + self.gamma)
        )


@register("ras")
class RAS(Shaping):
    """Ranked activation shift: score = energy of W h' + b, h' the mean sorted training feature put in the order of h.

    Args:
        detector: see `Shaping`.
        order: 'value' sorts the activations (the released code); 'magnitude' sorts and replaces |h| and keeps the signs (how we
            read the abstract's "sorted activation magnitudes"). On rectified features they differ in exact zeros alone, which
            'value' replaces by the lower end of the profile and 'magnitude' leaves at zero.

    Source: Guglielmo & Masana, arXiv 2604.08572 (2026), and the authors' code (gigug/RAS). We know the paper by its abstract
    only and cannot tell whether its algorithm is another than the released one, which is the default. Equal activations
    are ranked in the order of the features, in the released code as its sort happens to leave them.
    """

    order: Literal["value", "magnitude"] = "value"
    learns = True

    def learn(self, train: Outputs) -> None:
        total = sum(
            self.ranked(chunk.features).sort(1).values.double().sum(0)
            for chunk in statistics.known(train)
        )
        self.profile = total / statistics.count(train)  # (D,) ascending

    def ranked(self, features: Tensor) -> Tensor:
        return features.abs() if self.order == "magnitude" else features

    def shape(self, features: Tensor) -> Tensor:
        ranks = self.ranked(features).argsort(dim=1, stable=True)
        shifted = torch.zeros_like(features).scatter(
            1, ranks, self.profile.to(features).expand_as(features)
        )
        return shifted * features.sign() if self.order == "magnitude" else shifted


@register("optfs")
class OptFS(Shaping):
    """Optimal feature shaping: score = -w_y (theta(h) h), y = argmax f, theta constant on each of the bins of the activations.

    theta is the mean contribution w_y h (y the predicted class) that falls into a bin, scaled to length 1000: the closed form
    that maximises the expected largest logit of ID images. Activations outside the outermost bins are set to zero.

    Args:
        detector: 'vanilla', the formula above: y from the network's own logits, no bias (default of the authors' code); else a
            logit detector of the logits W (theta(h) h) + b: 'energy' is the authors' other choice, any of `Shaping` works.
        bins: of equal width; 100 in the paper.
        tail: quantile (0-1) of the training features left out at either end; 0.001 in the paper.

    Source: Zhao et al., ICLR 2024, arXiv 2402.00865, and the authors' code (use_ood_score, 'vanilla' or 'energy').
    """

    detector: str = "vanilla"
    bins: int = 100
    tail: float = 0.001
    needs = frozenset({"features", "logits"})
    learns = True

    def __post_init__(self):
        if self.detector != "vanilla":
            super().__post_init__()

    def fit(self, train: Outputs) -> OptFS:
        if self.detector != "vanilla":
            return super().fit(train)
        self.learn(train)
        return self

    def score(self, batch: Outputs) -> Tensor:
        if self.detector != "vanilla":
            return super().score(batch)
        return -(batch.head.weight[batch.logits.argmax(1)] * self.shape(batch.features)).sum(1)

    def learn(self, train: Outputs) -> None:
        self.left, right = statistics.quantiles(train, (self.tail, 1 - self.tail))
        self.width = max((right - self.left) / self.bins, 1e-12)
        gain = torch.zeros(self.bins + 1, dtype=torch.float64, device=train.features.device)
        for chunk in statistics.known(train):
            contribution = chunk.head.weight[chunk.logits.argmax(1)] * chunk.features
            gain += torch.bincount(
                self.bin(chunk.features).flatten(), contribution.double().flatten(), self.bins + 1
            )
        self.theta = 1000 * gain / gain[:-1].norm().clamp(min=1e-300)
        self.theta[-1] = 0.0  # everything outside

    def bin(self, features: Tensor) -> Tensor:
        """The bin of each value; `bins` for those outside."""
        index = torch.floor((features.double() - self.left) / self.width)
        return torch.where((index >= 0) & (index < self.bins), index, self.bins).long()

    def shape(self, features: Tensor) -> Tensor:
        return features * self.theta[self.bin(features)].to(features)


def largest(features: Tensor, percentile: float) -> torch.return_types.topk:
    """The (100 - percentile) % largest activations of each row, at least one: n - round(n percentile / 100) of n."""
    n = features.shape[1]
    return features.topk(max(1, n - int(np.round(n * percentile / 100))), dim=1, sorted=False)


def scaling(features: Tensor, percentile: float) -> Tensor:
    """sum h / sum of the largest (100 - percentile) % of h, (N, 1)."""
    return features.sum(1, keepdim=True) / nonzero(
        largest(features, percentile).values.sum(1, keepdim=True)
    )


def nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, torch.finfo(values.dtype).tiny, values)
