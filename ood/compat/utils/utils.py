"""Labels, seeds, features, buffers, class centres and distances."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, KeysView

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ood import detectors
from ood.cli import set_seed
from ood.config import InputError
from ood.outputs import Outputs

__all__ = [
    "TensorBuffer",
    "apply_reduction",
    "contains_known",
    "contains_known_and_unknown",
    "contains_unknown",
    "drop_unknown",
    "estimate_class_centers",
    "evaluate_energy_logistic_loss",
    "extract_feature_avg",
    "extract_features",
    "fix_random_seed",
    "is_known",
    "is_unknown",
    "pairwise_distances",
    "temperature_calibration",
    "to_np",
    "torch_get_distances",
]


def is_known(labels):
    """Whether a label names a known class (>= 0); elementwise for arrays."""
    return labels >= 0


def is_unknown(labels):
    """Whether a label marks an outlier (< 0); elementwise for arrays."""
    return labels < 0


def contains_known(labels: Tensor):
    """Whether any label names a known class."""
    return is_known(labels).any()


def contains_unknown(labels: Tensor):
    """Whether any label marks an outlier."""
    return is_unknown(labels).any()


def contains_known_and_unknown(labels: Tensor):
    """Whether there are labels of both kinds."""
    return contains_known(labels) & contains_unknown(labels)


def fix_random_seed(seed: int = 12345) -> None:
    """Seed torch, NumPy and `random`."""
    set_seed(seed)


class TensorBuffer:
    """Collects batches under names, detached and on one device, and concatenates them."""

    def __init__(self, device="cpu"):
        self.device, self._parts = device, {}

    def is_empty(self) -> bool:
        return not self._parts

    def append(self, key, value: Tensor) -> TensorBuffer:
        if not torch.is_tensor(value):
            raise ValueError(f"a TensorBuffer holds tensors, got {type(value).__name__}")
        self._parts.setdefault(key, []).append(value.detach().to(self.device))
        return self

    def __contains__(self, key) -> bool:
        return key in self._parts

    def keys(self) -> KeysView:
        return self._parts.keys()

    def get(self, key) -> Tensor:
        return torch.cat(self._parts[key])

    __getitem__ = get

    def sample(self, key) -> Tensor:
        """Pick one of the batches at random."""
        return self._parts[key][int(torch.randint(len(self._parts[key]), (1,)))]

    def clear(self) -> TensorBuffer:
        self._parts.clear()
        return self

    def save(self, path) -> TensorBuffer:
        torch.save({key: self.get(key).cpu() for key in self.keys()}, path)
        return self


@torch.no_grad()
def extract_features(
    data_loader: Iterable, model: Callable[[Tensor], Tensor], device
) -> tuple[Tensor, Tensor]:
    """Run `model` over the ID images of a loader.

    Args: device: where images are moved to. With None they stay where they are.
    Returns: the flattened outputs (N, D) and the labels (N,), both on the CPU.
    Raises: InputError if the loader has no ID image.
    """
    features, labels = [], []
    for images, targets in data_loader:
        rows = is_known(targets).nonzero()[:, 0]
        if len(rows):
            features.append(model(images[rows.to(images.device)].to(device)).flatten(1).cpu())
            labels.append(targets[rows].cpu())
    if not labels:
        raise InputError("the loader has no ID image (label >= 0)")
    return torch.cat(features), torch.cat(labels)


def extract_feature_avg(
    data_loader: Iterable, model: Callable[[Tensor], Tensor], device
) -> tuple[Tensor, Tensor]:
    """Like extract_features, for feature maps (B, C, H, W): averages over positions, (N, C)."""
    return extract_features(data_loader, lambda x: model(x).mean((2, 3)), device)


def drop_unknown(target: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Keep the rows with a label >= 0. Warns if there are others.

    Raises: ValueError for labels of another shape than (B,).
    """
    kept = is_known(target)
    if kept.ndim != 1:
        raise ValueError(f"one label per row is needed, (B,); got {tuple(kept.shape)}")
    if dropped := len(kept) - int(kept.sum()):
        warnings.warn(f"{dropped} rows with labels below 0 are left out", stacklevel=2)
    return tuple(rows[kept] for rows in (target, *tensors))


def estimate_class_centers(
    embedding: Tensor, target: Tensor, num_centers: int | None = None
) -> Tensor:
    """Mean embedding (K, D) of every class. A class without rows has zeros."""
    target = target.to(embedding.device).long()
    count = int(num_centers or target.max() + 1)
    sums = embedding.new_zeros(count, embedding.shape[1]).index_add(0, target, embedding)
    return sums / torch.bincount(target, minlength=count).clamp(min=1)[:, None]


def pairwise_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances of x (N, D) to y (M, D), or to x itself: (N, M)."""
    return torch_get_distances(x if y is None else y, x).square()


def torch_get_distances(centers: Tensor, embeddings: Tensor) -> Tensor:
    """Euclidean distances of embeddings (N, D) to centres (K, D): (N, K)."""
    return torch.cdist(embeddings, centers, compute_mode="donot_use_mm_for_euclid_dist")


def apply_reduction(tensor: Tensor, reduction: str | None) -> Tensor:
    """Reduce to the mean or the sum, or not at all. Raises ValueError for another reduction."""
    if reduction not in ("mean", "sum", "none", None):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")
    return tensor if reduction in ("none", None) else getattr(tensor, reduction)()


def temperature_calibration(
    logits: Tensor, labels: Tensor, lower: float = 0.2, upper: float = 5.0, eps: float = 0.0001
) -> float:
    """Find the temperature in [lower, upper] with the least cross-entropy.

    Detector `temp_scaling` finds the minimum exactly, so `eps` has no effect.
    """
    logits, labels = torch.as_tensor(logits).detach(), torch.as_tensor(labels)
    batch = Outputs(logits.new_zeros(len(logits), 0), logits, labels.long(), None)
    return min(max(detectors.create("temp_scaling").fit(batch).temperature, lower), upper)


@torch.no_grad()
def evaluate_energy_logistic_loss(
    model: nn.Module,
    train_loader_in: Iterable,
    logistic_regression: Callable[[Tensor], Tensor],
    device=None,
) -> tuple[float, float, float]:
    """Average over the ID images of a loader, with phi (N, 1) -> (N, 1) and S = logsumexp(f).

    The model is put into eval mode.

    Returns: the means of sigmoid(phi(S)), of -log sigmoid(phi(S)), and of the cross-entropy.
    Raises: InputError if the loader has no ID image.
    """
    model.eval()
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for x, y, *_ in train_loader_in:
        x, y = (t if device is None else t.to(device) for t in (x, y))
        logits, y = model(x)[is_known(y)], y[is_known(y)]
        phi = logistic_regression(logits.logsumexp(1, keepdim=True))[:, 0]
        parts = (phi.sigmoid(), softplus(-phi), cross_entropy(logits, y, reduction="none"))
        sums += torch.stack([part.sum() for part in parts]).double().cpu()
        count += len(y)
    if not count:
        raise InputError("the loader has no ID image (label >= 0)")
    return tuple((sums / count).tolist())


def to_np(x: Tensor) -> np.ndarray:
    """Turn a tensor into an array."""
    return x.detach().cpu().numpy()
