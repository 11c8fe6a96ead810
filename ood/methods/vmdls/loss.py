"""The two losses of VMDLS and the growing margin: triplet and distancing hinges on samples of the latent space, KL to class Gaussians.

Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for out-of-distribution detection", UAI 2022. Only the
released code was at hand, so every formula is that code's. It builds the triplets from a B x B x B mask; here they are a broadcast of
(B, B_s - 1, 1) against (B, 1, B - B_s), or, in a batch whose classes have different sizes, a sort per anchor.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIPLET_MARGIN = 0.1  # of the triplet hinge
FIRST_MARGIN = 0.15  # M before its ramp
PRIOR_STD = 0.1  # of the class Gaussians


def margin_at(
    epoch: int, margins_epoch: int, largest: float, jump: float = 1.0, first: float = FIRST_MARGIN
) -> float:
    """M in an epoch (0-based): `first` before `margins_epoch`, then one `jump` more in every epoch while it is <= `largest`.

    With the published jump 1 it ends at largest + 0.15: 0.15, 1.15, ... 32.15.
    """
    if jump <= 0 or largest < first:
        return first
    most = (
        math.floor((largest - first) / jump + 1e-9) + 1
    )  # the last jump starts from a margin <= largest
    return first + jump * min(max(epoch - margins_epoch + 1, 0), most)


def metric_loss(
    z: Tensor,
    labels: Tensor,
    margin: float,
    *,
    triplet_margin: float = TRIPLET_MARGIN,
    normalise: bool = True,
) -> Tensor:
    """mean over triplets with l > 0 of l = relu(d_ap - d_an + m) + relu(M - d_an); 0 without such a triplet.

    Args:
        z: (B, D) samples of the latent space; labels (B,).
        margin: M, up to which negatives are pushed apart; triplet_margin: m.
        normalise: distances between z / |z|, so that d <= 2 and M has no effect on the gradient once it is above 2. That is what the
            released code does (the default of its metric-learning library); the published M of 32 and 64 suggest that its authors
            meant plain distances, which False gives.
    Returns: a scalar; triplets are all (a, p, n) with y_a = y_p, a != p, y_n != y_a.
    """
    u = F.normalize(z, dim=1, eps=1e-12) if normalise else z
    d = torch.cdist(
        u, u, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (B, B); the faster mode loses half the digits of small d
    same = labels[:, None] == labels[None, :]
    positive = same.clone().fill_diagonal_(False)
    sizes = same.sum(1)
    if bool((sizes == sizes[0]).all()):
        total, count = _balanced(d, same, positive, margin, triplet_margin)
    else:
        total, count = _any_sizes(d, same, positive, margin, triplet_margin)
    return total / count.clamp(min=1)


def _balanced(
    d: Tensor, same: Tensor, positive: Tensor, margin: float, m: float
) -> tuple[Tensor, Tensor]:
    """(sum of l, number of l > 0) when every class has B_s samples: each anchor has as many positives and negatives as the next."""
    bound = d[positive].view(len(d), -1, 1) + m  # (B, B_s - 1, 1)
    negative = d[~same].view(len(d), 1, -1)  # (B, 1, B - B_s)
    first = F.relu(bound - negative).sum()
    second = F.relu(margin - negative).sum() * bound.shape[1]
    with torch.no_grad():
        count = (negative < bound.clamp(min=margin)).sum()
    return first + second, count


def _any_sizes(
    d: Tensor, same: Tensor, positive: Tensor, margin: float, m: float
) -> tuple[Tensor, Tensor]:
    """The same for any labels: the negatives of an anchor sorted, the sum of hinges below t is count * t - prefix sum."""
    negative = d.masked_fill(same, math.inf).sort(1).values  # (B, B), inf behind the last one
    prefix = F.pad(negative.masked_fill(negative.isinf(), 0.0).cumsum(1), (1, 0))  # (B, B + 1)
    number = (~same).sum(1, keepdim=True)

    def hinges(t: Tensor) -> tuple[Tensor, Tensor]:
        """Per entry of t (B, T): sum of relu(t - negative) and number of negatives below t."""
        below = torch.searchsorted(negative.detach(), t.detach()).minimum(number)
        return t * below - prefix.gather(1, below), below

    first, below_bound = hinges(d + m)  # (B, B): anchor, positive
    second, below_margin = hinges(torch.full_like(d[:, :1], margin))  # (B, 1)
    total = torch.where(positive, first + second, 0.0).sum()
    return total, (torch.maximum(below_bound, below_margin) * positive).sum()


def kl_loss(
    z: Tensor,
    mu: Tensor,
    std: Tensor,
    labels: Tensor,
    class_means: Tensor,
    prior_std: float = PRIOR_STD,
) -> Tensor:
    """Single-sample estimate of KL(q(z|x) || N(mean_c, prior_std^2 I)): log N(z; mu, std) - log N(z; mean_c, prior_std).

    Mean over the dimensions (not their sum) and over the samples of a class, then over the classes of the batch.

    Args:
        z, mu, std: (B, D), z = mu + std * eps; labels (B,) in 0..K-1; class_means (K, D), constants.
    Returns: a scalar, without the coefficient.
    """
    prior = (z - class_means[labels]) / prior_std
    posterior = (z - mu) / std
    per_sample = (
        0.5 * (prior.square() - posterior.square()) - std.log() + math.log(prior_std)
    ).mean(1)  # (B,)
    sizes = torch.bincount(labels, minlength=len(class_means))
    weights = 1.0 / (sizes[labels] * (sizes > 0).sum()).to(z.dtype)
    return (per_sample * weights).sum()
