"""Formulas of the leave-out ensemble: folds, loss, score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import InputError
from ood.detectors.inputs import perturb


def class_folds(num_classes: int, folds: int = 5, seed: int = 3) -> list[np.ndarray]:
    """Return the classes that each fold leaves out.

    They are consecutive parts of a permutation by NumPy's legacy generator.

    Raises: InputError when the folds do not divide the classes, or keep fewer than two.
    """
    if folds < 2 or num_classes % folds or num_classes // folds >= num_classes - 1:
        raise InputError(
            f"{num_classes} classes cannot be split into {folds} folds; the number of folds "
            "(2 or more) must divide it, and two classes or more must be kept"
        )
    return np.split(np.random.RandomState(seed % 2**32).permutation(num_classes), folds)


def kept_classes(num_classes: int, fold: int, folds: int = 5, seed: int = 3) -> np.ndarray:
    """Return the classes that a fold (1-based) keeps, in the order of its network's outputs.

    This is the order of the permutation. It is NOT sorted.

    Raises: InputError for a fold that does not exist.
    """
    parts = class_folds(num_classes, folds, seed)
    if not 1 <= fold <= folds:
        raise InputError(f"fold {fold} does not exist; folds are 1 to {folds}")
    return np.concatenate(parts[: fold - 1] + parts[fold:])


def positions(num_classes: int, kept: np.ndarray) -> np.ndarray:
    """Return (num_classes,): the output of each class, -1 for a left-out class."""
    table = np.full(num_classes, -1)
    table[kept] = np.arange(len(kept))
    return table


def held_out(count: int, wanted: int = 1000, seed: int = 3) -> np.ndarray:
    """Return the positions of a test set that serve as validation images.

    They are the first `wanted` of a permutation, at most a tenth of the set.
    """
    return np.random.RandomState(seed % 2**32).permutation(count)[: min(wanted, count // 10)]


def evaluated(
    count_id: int, count_ood: int, holdout: str, wanted: int = 1000, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the ID and of the OOD test set that are evaluated.

    Args:
        holdout: "full": all rows. "released", as the repository does: the positions held out of the
            ID set are skipped in BOTH sets, and the OOD set ends where the ID set does. The
            repository stops at an OOD set of fewer than 10,000 images; here it is simply shorter.
    """
    if holdout == "full":
        return np.arange(count_id), np.arange(count_ood)
    rows = np.setdiff1d(np.arange(count_id), held_out(count_id, wanted, seed))
    return rows, rows[rows < count_ood]


def entropy(logits: Tensor) -> Tensor:
    """Return H = -sum_c p_c log p_c of the softmax, in nats: (..., C) -> (...)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def margin_loss(
    logits_in: Tensor, labels: Tensor, logits_out: Tensor, beta: float = 0.2, margin: float = 0.4
) -> tuple[Tensor, dict]:
    """Return CE + beta * max(0, margin + mean H_in - mean H_out), at T = 1, and its parts.

    Args:
        logits_in (B, C), labels (B,): of images of kept classes.
        logits_out: (B', C), of left-out images, from a forward pass of their own.
        margin: in nats.
    Returns: the loss, and its parts: cross_entropy, entropy_in, entropy_out, hinge (before beta)
        and accuracy.
    """
    cross_entropy = F.cross_entropy(logits_in, labels)
    entropy_in, entropy_out = entropy(logits_in).mean(), entropy(logits_out).mean()
    hinge = F.relu(margin + entropy_in - entropy_out)
    accuracy = (logits_in.argmax(1) == labels).float().mean()
    parts = {
        "cross_entropy": cross_entropy,
        "entropy_in": entropy_in,
        "entropy_out": entropy_out,
        "hinge": hinge,
        "accuracy": accuracy,
    }
    return cross_entropy + beta * hinge, {name: part.detach() for name, part in parts.items()}


def confidence(logits: Tensor) -> Tensor:
    """Return max p - H(p) in float64, larger for ID: (..., C) -> (...).

    The logits are already divided by the temperature.
    """
    logits = logits.double()
    return logits.softmax(-1).amax(-1) - entropy(logits)


def pass_over(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    temperature: float,
    magnitude: float,
    std: Sequence[float],
    gradient: str = "cross_entropy",
) -> tuple[Tensor, Tensor]:
    """Take one batch through one network, or through all folds at once.

    The perturbed image is x' = x - eps * sign(g) / std. A forward, a backward and a forward pass
    serve everything.

    Args:
        forward: images (..., B, C, H, W) -> logits (..., B, K'). Its parameters should not require
            gradients.
        images: normalised, without or with a leading axis of folds.
        magnitude: eps, in pixel units. 0: no perturbation and no backward pass.
        std: of the normalisation, per channel.
        gradient: g is the gradient of CE(z / T, argmax z) for "cross_entropy", of H(z / T) for
            "entropy".
    Returns: confidence of the perturbed images (..., B) in float64, and softmax of the unperturbed
        images at T = 1 (..., B, K').
    """
    images = images.detach().requires_grad_(bool(magnitude))
    with torch.set_grad_enabled(bool(magnitude)):
        logits = forward(images)
        plain = logits.detach()
        if magnitude:
            tempered = logits / temperature
            if gradient == "entropy":
                loss = entropy(tempered).sum()
            else:
                predicted = plain.argmax(-1).flatten()
                loss = F.cross_entropy(tempered.flatten(0, -2), predicted, reduction="sum")
            images = perturb(images, loss, magnitude, tuple(std), axis=-3)
            with torch.no_grad():
                logits = forward(images)
    return confidence(logits.detach() / temperature), plain.softmax(-1)


def stacked(networks: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Join the networks into one function (F, B, C, H, W) -> (F, B, K').

    Their weights are stacked, and one vectorised forward pass runs all of them.
    """
    weights, buffers = torch.func.stack_module_state(list(networks))
    weights = {name: tensor.detach() for name, tensor in weights.items()}

    def one(weights_, buffers_, images):
        return torch.func.functional_call(networks[0], (weights_, buffers_), (images,))

    together = torch.vmap(one)
    return lambda images: together(weights, buffers, images)
