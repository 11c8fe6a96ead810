"""The two losses of VMDLS, and the margin that grows over the epochs.

The metric loss is a triplet hinge plus a distancing hinge on samples of the latent space. The other
loss is the KL divergence to the Gaussian of the class.

Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for out-of-distribution
detection", UAI 2022. Only the released code was at hand, so every formula is that code's. It builds
the triplets from a B x B x B mask. Here they are a broadcast of (B, B_s - 1, 1) against
(B, 1, B - B_s), or a sort per anchor where the classes of a batch have different sizes.
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
    """Return the margin M of an epoch (0-based).

    It is `first` before `margins_epoch`. Then every epoch adds one `jump`, while M is at most
    `largest`. With the published jump of 1 it ends at largest + 0.15: 0.15, 1.15, ... 32.15.
    """
    if jump <= 0 or largest < first:
        return first
    most = math.floor((largest - first) / jump + 1e-9) + 1  # the last one starts at M <= largest
    return first + jump * min(max(epoch - margins_epoch + 1, 0), most)


def metric_loss(
    z: Tensor,
    labels: Tensor,
    margin: float,
    *,
    triplet_margin: float = TRIPLET_MARGIN,
    normalise: bool = True,
) -> Tensor:
    """Return the mean of l = relu(d_ap - d_an + m) + relu(M - d_an) over triplets with l > 0.

    Triplets are all (a, p, n) with y_a = y_p, a != p and y_n != y_a.

    Args:
        z: (B, D), samples of the latent space; labels: (B,).
        margin: M, the distance up to which negatives are pushed apart.
        triplet_margin: m.
        normalise: take distances between z / |z|. Then d <= 2, and M has no effect on the gradient
            once it is above 2. The released code does so, because it is the default of its
            metric-learning library. The published M of 32 and 64 suggest that the authors meant
            plain distances, which False gives.
    Returns: a scalar; 0 without a triplet with l > 0.
    """
    u = F.normalize(z, dim=1, eps=1e-12) if normalise else z
    # (B, B). The faster mode loses half the digits of small distances.
    d = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist")
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
    """Return the sum of l and the number of l > 0, for classes of B_s samples each.

    Every anchor then has the same numbers of positives and negatives.
    """
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
    """Return the same for any labels.

    The negatives of an anchor are sorted, so the hinges below t sum to count * t - prefix sum.
    """
    negative = d.masked_fill(same, math.inf).sort(1).values  # (B, B), inf behind the last one
    prefix = F.pad(negative.masked_fill(negative.isinf(), 0.0).cumsum(1), (1, 0))  # (B, B + 1)
    number = (~same).sum(1, keepdim=True)

    def hinges(t: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each entry of t (B, T) the sum of relu(t - negative) and its terms above 0."""
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
    """Estimate KL(q(z|x) || N(mean_c, prior_std^2 I)) from one sample.

    The estimate is log N(z; mu, std) - log N(z; mean_c, prior_std). It is averaged (not summed)
    over the dimensions, over the samples of a class, and then over the classes of the batch.

    Args:
        z, mu, std: (B, D) each, z = mu + std * eps.
        labels: (B,) in 0..K-1; class_means: (K, D), constants.
    Returns: a scalar, without the coefficient.
    """
    prior = (z - class_means[labels]) / prior_std
    posterior = (z - mu) / std
    estimate = 0.5 * (prior.square() - posterior.square()) - std.log() + math.log(prior_std)
    per_sample = estimate.mean(1)  # (B,)
    sizes = torch.bincount(labels, minlength=len(class_means))
    weights = 1.0 / (sizes[labels] * (sizes > 0).sum()).to(z.dtype)
    return (per_sample * weights).sum()
