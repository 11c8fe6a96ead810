"""Detectors that look at whole feature maps, inside the pass: rank-1 removal and Gram matrices."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ood import statistics
from ood.config import InputError, ranged
from ood.detectors.base import ImageDetector, register
from ood.detectors.shaping import Shaping
from ood.outputs import Outputs, Pass

TINY = 1e-6  # keeps the relative deviation finite, as in the authors' code


@register("rankfeat")
class RankFeat(Shaping, ImageDetector):
    """Removed dominant singular component: score = energy of the logits of X - s_1 u_1 v_1^T.

    X (C, H W) is the last feature map. The component comes from the smaller of its two Gram
    matrices.

    Args:
        detector: see `Shaping`.

    Source: Song, Sebe & Wang, NeurIPS 2022, arXiv 2209.08590, on the last stage, as in
    pytorch-ood. The paper also averages in the logits of the last stage but one, which needs a
    second run of the stages after it.
    """

    needs = frozenset({"images", "maps"})
    needs_gradient: ClassVar[bool] = False
    measured_by: ClassVar[tuple[str, ...]] = ()

    @property
    def measures_train(self) -> bool:
        return self.scorer.requires_fit

    def score_images(self, batch: Pass) -> Tensor:
        """Logits without the dominant component, (B, C)."""
        last = batch.maps[-1].detach().to(batch.features.dtype)
        return batch.network.fc(batch.network.embed(remove_rank1(last)))

    def logits(self, batch: Outputs) -> Tensor:
        return self.measured(batch)


def remove_rank1(maps: Tensor) -> Tensor:
    """Remove the largest singular component of maps (B, C, H, W), seen as matrices (C, H W).

    Raises: InputError for maps that are not finite.
    """
    matrix = maps.flatten(2)  # (B, C, P)
    wide = matrix.shape[1] <= matrix.shape[2]
    gram = (matrix @ matrix.mT if wide else matrix.mT @ matrix).double()
    if not torch.isfinite(gram).all():
        bad = int((~torch.isfinite(gram).flatten(1).all(1)).sum())
        raise InputError(
            f"rankfeat: the last feature maps of {bad} of {len(maps)} images of a batch "
            "hold NaN or infinite values"
        )
    top = torch.linalg.eigh(gram)[1][:, :, -1:].to(matrix.dtype)  # (B, min(C, P), 1)
    return (matrix - (top @ (top.mT @ matrix) if wide else (matrix @ top) @ top.mT)).view_as(maps)


@register("gram")
class Gram(ImageDetector):
    """Deviation of Gram matrices from their range in training: score = sum_l delta_l / E[delta_l].

    g_lp are the row sums of F^p F^pT of stage l, to the power 1/p (signed). delta_l is how far g
    lies outside the range of the training images predicted as the same class. It is relative to
    the violated bound, summed over p and rows, and divided by the largest softmax probability. E
    is the mean over a held-out tenth of the training images of every predicted class.

    Args:
        powers: p, each from 1 to 100. 1 to 5 as in OpenOOD; 1 to 10 in the paper, which takes
            twice the memory, and activations above about 80 overflow float32 there.
        by_confidence: divide by the largest softmax probability, as the authors' code and OpenOOD
            do. False leaves it out.

    Source: Sastry & Oore, ICML 2020, arXiv 1912.12510, and the authors' code (row sums; E over a
    part of the test set). Here E comes from training images, which the range is not taken from.
    Row sums are F^p (F^pT 1), without a C x C matrix. The pass leaves one number of 4 bytes per
    image, channel and power.
    """

    powers: tuple[int, ...] = ranged((1, 2, 3, 4, 5), 1, 100)
    by_confidence: bool = True
    needs = frozenset({"images", "maps", "taps"})
    needs_gradient: ClassVar[bool] = False
    measures_train: ClassVar[bool] = True
    measured_by: ClassVar[tuple[str, ...]] = ("powers",)
    formerly: ClassVar[dict] = {"by_confidence": False}

    def __post_init__(self):
        if not self.powers:
            raise InputError("gram: powers is empty; give at least one, like [1, 2, 3, 4, 5]")

    def score_images(self, batch: Pass) -> Tensor:
        """Row sums g, (B, P * sum of C_l), ordered by stage, then power."""
        rows = [gram_rows(m.detach().float(), p) for m in batch.maps for p in self.powers]
        return torch.cat(rows, 1)

    def fit(self, train: Outputs) -> Gram:
        classes, width = train.logits.shape[1], self.measured(train[:1]).shape[1]
        device = train.logits.device
        self.low, self.high = (
            torch.full((classes, width), v, device=device) for v in (torch.inf, -torch.inf)
        )
        held, seen = [], torch.zeros(classes, dtype=torch.long, device=device)
        for chunk in statistics.known(train):
            predicted = chunk.logits.argmax(1)
            tenth = (positions(predicted, seen) + predicted) % 10 == 9
            seen += predicted.bincount(minlength=classes)
            held.append(chunk[tenth.nonzero().flatten()])
            g, index = self.measured(chunk)[~tenth], predicted[~tenth, None].expand(-1, width)
            self.low.scatter_reduce_(0, index, g, "amin")
            self.high.scatter_reduce_(0, index, g, "amax")
        occurs = torch.isfinite(self.low[:, :1])  # a class never predicted: the overall range
        self.low = torch.where(occurs, self.low, self.low.amin(0))
        self.high = torch.where(occurs, self.high, self.high.amax(0))
        total = torch.zeros(len(train.taps), dtype=torch.float64, device=device)
        for part in held:
            total = total + self.deviations(part).sum(0)
        expected = total / max(1, sum(len(part) for part in held))
        self.expected = torch.where(expected > 0, expected, 1.0)  # (L,)
        return self

    def deviations(self, batch: Outputs) -> Tensor:
        """delta, (N, L) float64."""
        g, y = self.measured(batch).double(), batch.logits.argmax(1)
        low, high = self.low[y].double(), self.high[y].double()
        below = (low - g).clamp(min=0) / (low + TINY).abs()
        above = (g - high).clamp(min=0) / (high + TINY).abs()
        stages = [tap.shape[1] * len(self.powers) for tap in batch.taps]
        delta = torch.stack([part.sum(1) for part in (below + above).split(stages, 1)], 1)
        if not self.by_confidence:
            return delta
        return delta / batch.logits.double().softmax(1).amax(1, keepdim=True)

    def score(self, batch: Outputs) -> Tensor:
        return (self.deviations(batch) / self.expected).sum(1)


def positions(classes: Tensor, before: Tensor) -> Tensor:
    """Return the position of every image within its class, (N,).

    Args:
        classes: the class of every image, (N,).
        before: how many images of each class came before, (C,).
    """
    order = classes.argsort(stable=True)
    counts = classes.bincount(minlength=len(before))
    first = counts.cumsum(0) - counts  # where each class begins in `order`
    found = torch.empty_like(classes)
    found[order] = torch.arange(len(classes), device=classes.device) - first[classes[order]]
    return found + before[classes]


def gram_rows(maps: Tensor, power: int) -> Tensor:
    """Return the signed p-th root of the row sums of F^p F^pT, (B, C); F is (B, C, H W)."""
    f = maps.flatten(2).pow(power)
    rows = (f * f.sum(1, keepdim=True)).sum(2)
    return rows.sign() * rows.abs().pow(1 / power)
