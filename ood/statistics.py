"""Statistics of a training set's outputs in bounded memory: everything streams through `Outputs.chunks`."""
from __future__ import annotations

import torch
from torch import Tensor

from ood.outputs import Outputs


def mean(train: Outputs) -> Tensor:
    """Mean feature, (D,) float64."""
    return sum(chunk.features.double().sum(0) for chunk in train.chunks()) / len(train)


def quantile(train: Outputs, q: float) -> float:
    """The exact q-quantile (0 <= q <= 1, linear interpolation) over all N*D feature values.

    Equal to numpy.quantile of the flattened float32 array, without holding or sorting it: radix selection, which counts the
    upper 16 bits of the values in one pass and the lower 16 bits of the one bucket that holds the wanted rank in a second.
    """
    position = q * (len(train) * train.features.shape[1] - 1)
    ranks = (int(position), min(int(position) + 1, len(train) * train.features.shape[1] - 1))
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for chunk in train.chunks():
        upper += torch.bincount(_ordered(chunk.features) >> 16, minlength=1 << 16)
    upto = upper.cumsum(0)
    buckets = [int(torch.searchsorted(upto, rank, right=True)) for rank in ranks]
    lower = {bucket: torch.zeros(1 << 16, dtype=torch.int64) for bucket in buckets}
    for chunk in train.chunks():
        keys = _ordered(chunk.features)
        for bucket, counts in lower.items():
            counts += torch.bincount(keys[keys >> 16 == bucket] & 0xFFFF, minlength=1 << 16)
    low, high = (_value(bucket, lower[bucket], rank - int(upto[bucket] - upper[bucket])) for bucket, rank in zip(buckets, ranks))
    return low + (high - low) * (position - ranks[0])


def _ordered(features: Tensor) -> Tensor:
    """float32 values as integers 0 .. 2^32-1 in the same order, flattened."""
    bits = features.float().contiguous().view(torch.int32).flatten().long()
    return torch.where(bits < 0, ~bits, bits + (1 << 31)) & 0xFFFFFFFF


def _value(bucket: int, counts: Tensor, rank: int) -> float:
    """Back from (upper 16 bits, rank within the bucket) to the float."""
    key = bucket << 16 | int(torch.searchsorted(counts.cumsum(0), rank, right=True))
    bits = key - (1 << 31) if key >= 1 << 31 else ~key
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32).item()
