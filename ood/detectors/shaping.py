"""Detectors that reshape the features or the last layer and then score the new logits.

The score is the energy, or any detector of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import Detector, create, parse, register
from ood.detectors.logits import energy
from ood.outputs import Outputs


@dataclass(eq=False)
class Shaping(Detector):
    """What all shapings share: `detector` scores the logits of the shaped features.

    Args:
        detector: the logit detector that scores the new logits: 'energy', 'msp', 'maxlogit',
            'gen', ..., with its own hyper-parameters as in 'gen:gamma=0.5'.
    """

    detector: str = "energy"
    needs = frozenset({"features"})

    def __post_init__(self):
        name, values = parse(self.detector)
        try:
            self.scorer = create(name, **values)
        except InputError as error:
            raise InputError(f"{self.name}: detector='{self.detector}': {error}") from None
        if self.scorer.needs != {"logits"}:
            raise InputError(
                f"{self.name}: detector='{self.detector}' must look at logits alone, "
                "like energy, msp, maxlogit, gen, klm"
            )

    @property
    def learns(self) -> bool:
        """Whether `learn` needs ID training images: so for every class that writes its own."""
        return type(self).learn is not Shaping.learn

    @property
    def requires_fit(self) -> bool:
        return self.learns or self.__dict__["scorer"].requires_fit

    def fit(self, train: Outputs) -> Shaping:
        self.learn(train)
        if self.scorer.requires_fit:
            self.scorer.fit(_WithLogits(train, self.logits))
        return self

    def learn(self, train: Outputs) -> None:
        """Learn what the shaping itself needs from the training set."""

    def shape(self, features: Tensor) -> Tensor:
        """Return the new features, (N, D)."""
        return features

    def logits(self, batch: Outputs) -> Tensor:
        """Return the new logits, (N, C)."""
        return batch.head(self.shape(batch.features))

    def score(self, batch: Outputs) -> Tensor:
        return self.scorer.score(replace(batch, logits=self.logits(batch), memo={}))


class _WithLogits:
    """A training set whose logits are replaced chunk by chunk.

    The detector behind a shaping is fitted to it.
    """

    def __init__(self, train: Outputs, logits: Callable[[Outputs], Tensor]):
        self.train, self.made, self.memo = train, logits, {}
        for part in ("features", "logits", "labels", "head", "taps"):
            setattr(self, part, getattr(train, part))

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, rows) -> Outputs:
        part = statistics.single(self.train[rows])
        return replace(part, logits=self.made(part))

    def chunks(self, size: int | None = None) -> Iterator[Outputs]:
        for chunk in map(statistics.single, self.train.chunks(size)):
            yield replace(chunk, logits=self.made(chunk))


@register("react")
class ReAct(Shaping):
    """Rectified activations: score = energy of W min(h, c) + b.

    It assumes that OOD images have a few activations far above those of ID images, so that the clip
    takes much of their energy and little of the ID images'. Where nearly all activations are close
    to zero, a percentile of all values lies far below the few that carry the class, and the clip
    takes most of the ID energy. On DICE's CIFAR-10 DenseNet, percentile 90 is 0.4 and takes 79 % of
    the ID energy but 54 % of iSUN's; percentile 99 is 2.0 and takes 10 % and 5 %. Then a higher
    percentile or a `threshold` is needed. `fit` measures the share (`removed`), and
    ood.evaluation.diagnosis warns.

    Args:
        detector: see `Shaping`.
        percentile: c is this percentile of all training features, in (0, 100]; 90 in the paper.
        threshold: c itself, > 0, in feature units. It overrides `percentile` and needs no training
            set; 1.0 for the ResNet-50 of the paper.

    Source: Sun, Guo & Li, NeurIPS 2021, arXiv 2111.12797. The authors take the percentile over
    about 2,000 ID validation images, we over the whole training set.
    """

    percentile: float = ranged(90.0, above=0, high=100)
    threshold: float | None = ranged(None, above=0)

    @property
    def learns(self) -> bool:
        return self.threshold is None

    def learn(self, train: Outputs) -> None:
        self.clip = self.threshold
        if self.threshold is None:
            self.clip = statistics.quantile(train, self.percentile / 100)
        if (train.labels >= 0).any():
            self.removed = self._removed(train)

    def _removed(self, train: Outputs) -> float:
        """Share of the training energy that the clip takes; 0 where the energy is negative."""
        whole = kept = 0.0
        for chunk in statistics.known(train):
            whole -= energy(chunk.logits).double().sum().item()
            kept -= energy(self.logits(chunk)).double().sum().item()
        return 1 - kept / whole if whole > 0 else 0.0

    def shape(self, features: Tensor) -> Tensor:
        return features.clamp(max=self.clip if self.threshold is None else self.threshold)


@register("dice")
class DICE(Shaping):
    """Directed sparsification: score = energy of (M * W) h + b.

    M (C, D) is 1 where the contribution W * mean(h) is above its percentile, else 0.

    Args:
        detector: see `Shaping`.
        percentile: p, the share of contributions that is cut off, in [0, 100), over all C*D
            entries at once. The paper takes 90 for CIFAR and 70 for ImageNet, and writes
            fractions. (100 would leave no contribution.)
        feature_mean: .npy file with the mean training feature, (D,), as the authors publish it.
            None fits it.
        clip: largest feature value (ReAct before DICE), > 0, in feature units; None for no
            clipping. The authors pair percentile 10 with clip 1.0, or 15 with 1.5, on ImageNet.
        clip_percentile: the same as a percentile of the training features, in (0, 100]. The mean
            is taken over unclipped features, as in the released code.

    Source: Sun & Li, ECCV 2022, arXiv 2111.09805, eq. 3-5. We use one matrix product with a masked
    weight; the released code broadcasts to (B, C, D) and sums. As there, contributions are signed,
    the comparison is strict and the bias stays.
    """

    percentile: float = ranged(90.0, 0, below=100)
    feature_mean: str | None = None
    clip: float | None = ranged(None, above=0)
    clip_percentile: float | None = ranged(None, above=0, high=100)

    @property
    def learns(self) -> bool:
        return self.feature_mean is None or self.clip_percentile is not None

    def learn(self, train: Outputs) -> None:
        weight = train.head.weight
        if self.feature_mean is None:
            mean = statistics.mean(train)
        else:
            mean = read_mean(self.feature_mean, weight.shape[1])
        found = contribution_mask(weight, mean, self.percentile)
        self.mask, self.contribution_threshold = found  # (C, D), scalar
        self.limit = self.clip
        if self.clip_percentile is not None:
            self.limit = statistics.quantile(train, self.clip_percentile / 100)

    def logits(self, batch: Outputs) -> Tensor:
        h = batch.features if self.limit is None else batch.features.clamp(max=self.limit)
        weight = self.mask * batch.head.weight
        return linear(h, weight.to(h.dtype), batch.head.bias.to(h.dtype))


@register("dice_react")
class DICEReAct(DICE):
    """DICE on rectified activations: `dice` on features clipped at a percentile.

    Args:
        detector, percentile, feature_mean, clip: as in `dice`.
        clip_percentile: percentile of the training features that clips, in (0, 100]; 90 is
            ReAct's value. For a fixed value set `clip` and make this null.

    Source: Sun & Li, ECCV 2022, table 1 (DICE + ReAct). The released code offers it for ImageNet
    only.
    """

    clip_percentile: float | None = ranged(90.0, above=0, high=100)


def contribution_mask(weight: Tensor, mean: Tensor, percentile: float) -> tuple[Tensor, float]:
    """Return M (C, D) in the weight's type, and the threshold.

    The threshold is the percentile of W * mean over all entries, in float64.
    """
    contribution = weight.double() * mean.double()  # (C, D), signed
    threshold = float(np.percentile(contribution.cpu().numpy(), percentile))
    return (contribution > threshold).to(weight.dtype), threshold


def read_mean(path: str, dimension: int) -> Tensor:
    """Read the mean feature from a .npy file, (D,) float64.

    Raises: InputError when the file is missing or does not hold D finite numbers.
    """
    if not Path(path).is_file():
        raise InputError(
            f"no feature mean in '{path}'; give a .npy file of {dimension} numbers, "
            "or leave feature_mean out to fit it"
        )
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"'{path}' is not a plain .npy file: {error}") from None
    if values.shape != (dimension,) or not np.isfinite(values).all():
        raise InputError(
            f"feature mean in '{path}' has shape {values.shape}; "
            f"this network's features need ({dimension},) finite numbers"
        )
    return torch.from_numpy(values.astype(np.float64))


@register("ash")
class ASH(Shaping):
    """Activation shaping: score = energy of W a(h) + b; a sets the lowest activations to zero.

    Let A be the sum of all n activations of an image, B the sum of the k that are kept. A kept
    activation becomes: 's' h exp(A / B); 'b' A / k; 'p' h.

    Args:
        detector: see `Shaping`.
        variant: 's' (scale), 'b' (binarise) or 'p' (prune only). 's' is the paper's best; OpenOOD
            implements 'b'.
        percentile: share that is pruned, 0-100; 90 is OpenOOD's default, 65 pytorch-ood's, 65-95
            the usual search.

    Source: Djurisic et al., ICLR 2023, arXiv 2209.09858, on the pooled penultimate features, as in
    the authors' code. pytorch-ood prunes the map before pooling. The formula assumes rectified
    features: a sum over both signs is no scale.
    """

    variant: Literal["s", "b", "p"] = "s"
    percentile: float = ranged(90.0, 0, 100)

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
    """Scaled activations: score = energy of W (h exp(r)) + b.

    r = sum of h / sum of the largest (100 - percentile) % of h.

    Args:
        detector: see `Shaping`.
        percentile: share left out of the denominator, 0-100; 85 in the paper and OpenOOD.

    Source: Xu et al., ICLR 2024, arXiv 2310.00227. The formula assumes rectified features.
    """

    percentile: float = ranged(85.0, 0, 100)

    def shape(self, features: Tensor) -> Tensor:
        return features * scaling(features, self.percentile).exp()


@register("lts")
class LTS(Shaping):
    """Logit scaling: score = energy of S f, S = (sum of h+ / sum of the largest h+)^2.

    h+ = max(h, 0); the largest ones are the `share` of an image's activations.

    Args:
        detector: see `Shaping`.
        share: which part of the activations the denominator sums, in (0, 1]; 0.05 in the paper.

    Source: Djurisic et al., arXiv 2409.01175.
    """

    share: float = ranged(0.05, above=0, high=1)

    def logits(self, batch: Outputs) -> Tensor:
        s = scaling(batch.features.clamp(min=0), 100 * (1 - self.share)).square()
        return batch.head(batch.features) * s


@register("vra")
class VRA(Shaping):
    """Variational rectified activations: score = energy of W v(h) + b.

    v(h) = 0 below a, h + gamma between a and b, and b above b.

    Args:
        detector: see `Shaping`.
        lower: percentile of the training features that gives a, in [0, 100]; 60 in the authors'
            command for CIFAR-10.
        upper: percentile that gives b, in (0, 100], not below `lower`; 90 in that command. For
            CIFAR-100 the authors take 95.
        gamma: >= 0, added between a and b. 0 is VRA; VRA+ takes 0.6 with an `upper` of 95 on CIFAR.
        below: 'zero' as in the paper. 'clip' lifts small activations to a, as OpenOOD and
            pytorch-ood do.
        per_feature: take a and b of each feature by itself, as the authors' code for CIFAR and
            pytorch-ood do. False takes them of all values together, as OpenOOD does.

    Source: Xu et al., NeurIPS 2023, arXiv 2302.11716, and the authors' code. For ImageNet their
    code has two fixed numbers (0.5 and 1 for ResNet-50) instead of percentiles.
    """

    lower: float = ranged(60.0, 0, 100)
    upper: float = ranged(90.0, above=0, high=100)
    gamma: float = ranged(0.0, 0)
    below: Literal["zero", "clip"] = "zero"
    per_feature: bool = True

    def __post_init__(self):
        super().__post_init__()
        rising(self)

    def learn(self, train: Outputs) -> None:
        wanted = (self.lower / 100, self.upper / 100)
        if self.per_feature:
            self.low, self.high = statistics.feature_quantiles(train, wanted)  # (D,) each
        else:
            self.low, self.high = torch.tensor(statistics.quantiles(train, wanted))

    def shape(self, features: Tensor) -> Tensor:
        low, high = self.low.to(features), self.high.to(features)
        floor = low if self.below == "clip" else torch.zeros_like(low)
        kept = torch.where(features > high, high, features + self.gamma)
        return torch.where(features < low, floor, kept)


@register("ras")
class RAS(Shaping):
    """Ranked activation shift: score = energy of W h' + b.

    h' is the mean sorted training feature, put into the order of h.

    Args:
        detector: see `Shaping`.
        order: 'value' sorts the activations (the released code). 'magnitude' sorts and replaces
            |h| and keeps the signs, which is how we read the abstract's "sorted activation
            magnitudes". On rectified features they differ in exact zeros alone: 'value' replaces
            them by the lower end of the profile, 'magnitude' leaves them at zero.

    Source: Guglielmo & Masana, arXiv 2604.08572 (2026), and the authors' code (gigug/RAS), which
    is the default. We know only the abstract of the paper, and cannot tell whether its algorithm
    differs from the code. Ties: we rank equal activations by feature index. The released code
    leaves their order to the sort, so it is not defined.
    """

    order: Literal["value", "magnitude"] = "value"

    def learn(self, train: Outputs) -> None:
        ordered = (self.ranked(c.features).sort(1).values for c in statistics.known(train))
        total = sum(values.double().sum(0) for values in ordered)
        self.profile = total / statistics.count(train)  # (D,) ascending

    def ranked(self, features: Tensor) -> Tensor:
        """Return what is sorted: the features or their magnitudes, (N, D)."""
        return features.abs() if self.order == "magnitude" else features

    def shape(self, features: Tensor) -> Tensor:
        ranks = self.ranked(features).argsort(dim=1, stable=True)
        profile = self.profile.to(features).expand_as(features)
        shifted = torch.zeros_like(features).scatter(1, ranks, profile)
        return shifted * features.sign() if self.order == "magnitude" else shifted


@register("optfs")
class OptFS(Shaping):
    """Optimal feature shaping: score = -w_y (theta(h) h), y = argmax f.

    theta is constant on each bin of the activations: the contribution w_y h of the training set
    that falls into the bin, scaled to length 1000 over all bins. It is the closed form that
    maximises the expected largest logit of ID images. Activations outside the bins become zero.

    Args:
        detector: 'vanilla' for the formula above, with y from the network's own logits and no bias
            (default of the authors' code). Any detector of `Shaping` scores the logits
            W (theta(h) h) + b instead; 'energy' is the authors' other choice.
        bins: number of bins of equal width; 100 in the paper.
        tail: quantile of the training features left out at either end, in [0, 0.5); 0.001 in the
            paper.

    Source: Zhao et al., ICLR 2024, arXiv 2402.00865, and the authors' code (use_ood_score,
    'vanilla' or 'energy').
    """

    detector: str = "vanilla"
    bins: int = ranged(100, 1, 100_000)
    tail: float = ranged(0.001, 0, below=0.5)
    needs = frozenset({"features", "logits"})

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
            where, what = self.bin(chunk.features).flatten(), contribution.double().flatten()
            gain += torch.bincount(where, what, self.bins + 1)
        self.theta = 1000 * gain / gain[:-1].norm().clamp(min=1e-300)
        self.theta[-1] = 0.0  # everything outside

    def bin(self, features: Tensor) -> Tensor:
        """Return the bin of each value; its number is `bins` for values outside."""
        index = torch.floor((features.double() - self.left) / self.width)
        return torch.where((index >= 0) & (index < self.bins), index, self.bins).long()

    def shape(self, features: Tensor) -> Tensor:
        return features * self.theta[self.bin(features)].to(features)


def rising(detector) -> None:
    """Raise InputError where the percentile `lower` of a detector lies above its `upper`."""
    if detector.lower > detector.upper:
        raise InputError(
            f"{detector.name}: percentiles must rise from lower to upper, "
            f"got {detector.lower:g} and {detector.upper:g}"
        )


def largest(features: Tensor, percentile: float) -> torch.return_types.topk:
    """Find the (100 - percentile) % largest activations of each row.

    They are n - round(n percentile / 100) of n, but at least one.
    """
    n = features.shape[1]
    return features.topk(max(1, n - int(np.round(n * percentile / 100))), dim=1, sorted=False)


def scaling(features: Tensor, percentile: float) -> Tensor:
    """Return sum of h / sum of the largest (100 - percentile) % of h, (N, 1)."""
    kept = largest(features, percentile).values.sum(1, keepdim=True)
    return features.sum(1, keepdim=True) / nonzero(kept)


def nonzero(values: Tensor) -> Tensor:
    """Replace exact zeros by the smallest positive number, for a division."""
    return torch.where(values == 0, torch.finfo(values.dtype).tiny, values)
