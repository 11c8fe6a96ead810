"""Statistics of a training set's outputs, in bounded memory: all stream through `Outputs.chunks`.

Detectors share these results: each is kept with the outputs (`Outputs.memo`), so a second detector
on the same training set pays nothing. Rows with a negative label are not ID images and are skipped.

A `view` names the vectors to use: 'features', 'unit' (features scaled to length 1), or 'tap0',
'tap1', ... (pooled stages).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ood.config import InputError
from ood.outputs import Head, Outputs

SINGULAR = 1e-12  # eigenvalues below this share of the largest one count as zero
SIGNED = 0.01  # share of negative values above which features do not count as rectified
HALF = (torch.float16, torch.bfloat16)
GROUP = 1 << 24  # values of one feature group that `feature_quantiles` holds


def known(train: Outputs) -> Iterator[Outputs]:
    """Yield the chunks of a training set, ID rows only.

    Raises: InputError if features or logits are not finite, or if there is no ID row.
    """
    seen = 0
    for chunk in train.chunks():
        if (chunk.labels < 0).any():
            chunk = chunk[(chunk.labels >= 0).nonzero().flatten()]
        chunk = single(chunk)
        if not all_finite(chunk.features) or not all_finite(chunk.logits):
            raise InputError(
                "the training features or logits hold NaN or infinite values: "
                "no detector can be fitted to them"
            )
        seen += len(chunk)
        if len(chunk):
            yield chunk
    if not seen:
        raise InputError(
            f"no ID image to fit a detector to: {len(train)} rows, none with a label >= 0"
        )


def all_finite(values: Tensor) -> bool:
    """Tell whether no value is NaN or infinite.

    One sum answers it nearly always. A sum that overflows, as it does in half precision, says
    nothing, so then every value is looked at.
    """
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def single(batch: Outputs) -> Outputs:
    """Return outputs of half precision (float16, bfloat16) in float32, and any others as they are.

    Use it on chunks: it copies the arrays.
    """
    if batch.features.dtype not in HALF and batch.logits.dtype not in HALF:
        return batch
    head = batch.head
    if isinstance(head, Head):
        head = Head(head.weight.float(), head.bias.float())
    return replace(
        batch,
        features=batch.features.float(),
        logits=batch.logits.float(),
        taps=tuple(tap.float() for tap in batch.taps),
        head=head,
    )


def vectors(outputs: Outputs, view: str = "features") -> Tensor:
    """Return the vectors (N, D) that a view names."""
    if view.startswith("tap"):
        return outputs.taps[int(view[3:])]
    return normalize(outputs.features, dim=1) if view == "unit" else outputs.features


def remembered(function):
    """Decorator: compute function(train, *arguments) once for each training set."""

    @functools.wraps(function)
    def remember(train: Outputs, *arguments):
        key = (function.__name__, *arguments)
        if key not in train.memo:
            train.memo[key] = function(train, *arguments)
        return train.memo[key]

    return remember


@remembered
def count(train: Outputs) -> int:
    """Count the ID rows."""
    return sum(len(chunk) for chunk in known(train))


@remembered
def signed(train: Outputs) -> bool:
    """Tell whether the features take both signs: more than SIGNED of the values are negative.

    ReLU networks pool rectified features, which are never negative.
    """
    negative = sum((chunk.features < 0).sum().item() for chunk in known(train))
    return negative > SIGNED * count(train) * train.features.shape[1]


@remembered
def mean(train: Outputs, view: str = "features") -> Tensor:
    """Return the mean vector, (D,) float64."""
    return sum(vectors(chunk, view).double().sum(0) for chunk in known(train)) / count(train)


@remembered
def second_moment(train: Outputs, view: str = "features") -> Tensor:
    """Return E[x x^T], (D, D) float64, not centred."""
    doubles = (vectors(chunk, view).double() for chunk in known(train))
    return sum(x.T @ x for x in doubles) / count(train)


@remembered
def class_sums(train: Outputs, view: str = "features", by: str = "label") -> tuple[Tensor, Tensor]:
    """Return the counts (C,) and the sums (C, D) of the classes, float64.

    Args:
        by: the class of a row. 'label': its label. 'predicted': its largest logit. 'correct': its
            label; rows that are classified wrongly are left out.
    """
    classes = max(train.logits.shape[1], int(train.labels.max()) + 1 if len(train) else 0)
    counts = torch.zeros(classes, dtype=torch.float64, device=train.features.device)
    sums = torch.zeros(
        classes,
        vectors(train[:1], view).shape[1],
        dtype=torch.float64,
        device=train.features.device,
    )
    for chunk in known(train):
        label = chunk.labels if by == "label" else chunk.logits.argmax(1)
        x = vectors(chunk, view).double()
        if by == "correct":
            right = (label == chunk.labels).nonzero().flatten()
            label, x = label[right], x[right]
        counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
        sums.index_add_(0, label, x)
    return counts, sums


def class_means(train: Outputs, view: str = "features", by: str = "label") -> Tensor:
    """Return the means (C', D) of the classes that occur, float64, in class order."""
    counts, sums = class_sums(train, view, by)
    return sums[counts > 0] / counts[counts > 0, None]


def means_of_all(train: Outputs, view: str = "features", by: str = "label") -> Tensor:
    """Return a mean for every class, (C, D) float64.

    Where `by` finds no row of a class, it is the mean of the rows with that label. Where there are
    none either, it is the mean of all rows.
    """
    counts, sums = class_sums(train, view, by)
    labelled, label_sums = class_sums(train, view, "label")
    fallback = torch.where(
        labelled[:, None] > 0, label_sums / labelled[:, None].clamp(min=1), mean(train, view)
    )
    return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), fallback)


@remembered
def covariance(train: Outputs, view: str = "features", within: bool = False) -> Tensor:
    """Return the covariance (D, D), float64, divided by N.

    It is taken around the overall mean, or, with `within`, around the class means (the tied
    covariance).
    """
    if within:
        counts, sums = class_sums(train, view, "label")
        centre = (sums / counts.clamp(min=1).sqrt()[:, None]) / count(train) ** 0.5
        return second_moment(train, view) - centre.T @ centre
    centre = mean(train, view)
    return second_moment(train, view) - torch.outer(centre, centre)


@remembered
def whitener(train: Outputs, view: str = "features", within: bool = False) -> Tensor:
    """Return A (D, r), float64, with A A^T = covariance^-1.

    |x A - m A|^2 is the squared Mahalanobis distance of x from m.
    """
    return whitening(covariance(train, view, within))


@remembered
def eigen(train: Outputs, view: str = "features", around: str = "mean") -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (D,), descending, and eigenvectors (columns) of the covariance.

    Args:
        around: 'mean', or 'origin': the point that `origin` gives.
    """
    matrix = covariance(train, view)
    if around == "origin":
        offset = mean(train, view) - origin(train)
        matrix = matrix + torch.outer(offset, offset)
    values, columns = torch.linalg.eigh(matrix)
    return values.flip(0).clamp(min=0), columns.flip(1)


def rank(values: Tensor) -> int:
    """Count the eigenvalues that are not zero: above SINGULAR of the largest."""
    return int((values > SINGULAR * values.amax().clamp(min=1e-300)).sum())


@remembered
def origin(train: Outputs) -> Tensor:
    """Return -pinv(W) b, (D,) float64: the features for which all logits are nearest to zero."""
    return -torch.linalg.pinv(train.head.weight.double()) @ train.head.bias.double()


def whitening(matrix: Tensor) -> Tensor:
    """Return A (D, r) with A A^T = the inverse of a covariance.

    It comes from Cholesky; for a singular covariance, from eigenvectors of the pseudo-inverse.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = factor.diagonal()
    if not failed and (diagonal.min() / diagonal.max()) ** 2 > SINGULAR:
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()
    values, columns = torch.linalg.eigh(matrix)
    kept = values > SINGULAR * values.amax().clamp(min=torch.finfo(matrix.dtype).tiny)
    return columns[:, kept] / values[kept].sqrt()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (N, M), by one matrix product; never below zero."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def quantile(train: Outputs, q: float) -> float:
    """Return the exact q-quantile (0 <= q <= 1, linear interpolation) of all N*D feature values."""
    return quantiles(train, (q,))[0]


def quantiles(train: Outputs, wanted: tuple[float, ...]) -> list[float]:
    """Return exact quantiles of all N*D feature values, in two passes over the features.

    They equal numpy.quantile of the flattened float32 array, which is neither held nor sorted. This
    is radix selection: the first pass counts the upper 16 bits of the values. The second counts
    the lower 16 bits in the buckets that hold a wanted rank.
    """
    missing = [q for q in dict.fromkeys(wanted) if ("quantile", q) not in train.memo]
    if missing:
        names = [("quantile", q) for q in missing]
        train.memo.update(zip(names, _select(train, missing)))
    return [train.memo["quantile", q] for q in wanted]


def feature_quantiles(train: Outputs, wanted: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Return quantiles of every single feature, one (D,) float64 for each of `wanted`.

    Streams over the set once for every group of columns.
    """
    width = max(1, GROUP // count(train))
    found = []
    for start in range(0, train.features.shape[1], width):
        group = [chunk.features[:, start : start + width] for chunk in known(train)]
        columns = torch.cat(group).double().cpu().numpy()
        found.append(np.quantile(columns, wanted, axis=0))
    return tuple(torch.from_numpy(np.concatenate(found, axis=1)))


def _select(train: Outputs, wanted: list[float]) -> list[float]:
    upto = _upper_counts(train).cumsum(0)  # (65536,)
    positions = [q * (int(upto[-1]) - 1) for q in wanted]
    ranks = sorted({r for p in positions for r in (int(p), min(int(p) + 1, int(upto[-1]) - 1))})
    buckets = {rank: int(torch.searchsorted(upto, rank, right=True)) for rank in ranks}
    lower = {bucket: torch.zeros(1 << 16, dtype=torch.int64) for bucket in buckets.values()}
    for chunk in known(train):
        keys = _ordered(chunk.features)
        for bucket, counts in lower.items():
            counts += torch.bincount(keys[keys >> 16 == bucket] & 0xFFFF, minlength=1 << 16).cpu()
    values = {
        rank: _value(bucket, lower[bucket], rank - (int(upto[bucket - 1]) if bucket else 0))
        for rank, bucket in buckets.items()
    }
    return [
        values[int(p)]
        + (values[min(int(p) + 1, int(upto[-1]) - 1)] - values[int(p)]) * (p - int(p))
        for p in positions
    ]


@remembered
def _upper_counts(train: Outputs) -> Tensor:
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    for chunk in known(train):
        counts += torch.bincount(_ordered(chunk.features) >> 16, minlength=1 << 16).cpu()
    return counts


def _ordered(features: Tensor) -> Tensor:
    """Map float32 values to integers 0 .. 2^32-1 in the same order, flattened."""
    bits = features.float().contiguous().view(torch.int32).flatten().long()
    return torch.where(bits < 0, ~bits, bits + (1 << 31)) & 0xFFFFFFFF


def _value(bucket: int, counts: Tensor, rank: int) -> float:
    """Find the float by its upper 16 bits and its rank among the values that share them."""
    key = bucket << 16 | int(torch.searchsorted(counts.cumsum(0), rank, right=True))
    bits = key - (1 << 31) if key >= 1 << 31 else ~key
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32).item()
