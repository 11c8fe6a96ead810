"""What an objective function is here, the registry of them, and the few formulas that many share.

A loss is a module: loss(logits, y) -> scalar, where labels below 0 are outliers. Some take something else than logits before y
(`inputs` says what), some pass a module after it (`modules`). Nothing here knows images or networks: `ood.losses.objective` does.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import InputError, nearest

REDUCTIONS = ("mean", "sum", "none", None)
OUTLIERS = ("ignored", "used", "needed")
HEADS = ("trained", "joint", "probe", "computed")
INPUTS = ("logits", "features", "distances", "confidence", "projections", "rotations")


class Loss(nn.Module):
    """Base class: what a loss says about itself. Names and constructor arguments are pytorch-ood's where it has the loss.

    Attributes:
        name: in the registry, and of -loss.
        inputs: what forward takes before y, of INPUTS: logits (B, C), features (B, D), distances (B, C) = self.distance(features or
            logits), confidence (B, 1) in [0, 1], projections (B, P) of length 1, rotations (B, 4) logits.
        modules: modules that forward takes after y.
        outliers: "ignored": rows with y < 0 change nothing; "used": they may be there; "needed": without them there is no method.
        brings: what it learns or keeps beside the network: "centres", "extra class", "confidence head", ...
        head: how the network's linear head gets its weights. "trained": by this loss. "joint": by a cross-entropy added to this
            loss. "probe": by a cross-entropy that does not reach the features. "computed": from `classifier()`.
        weight: of this loss beside the cross-entropy of a "joint" head, unless -loss_args weight=... says otherwise.
        space: what `distance` takes, "features" or "logits".
        pretrained: it continues a trained network.
        views: how often a batch has each image, augmented differently (ImageBatches(views=...)).
        recipe: the values that -loss takes where the constructor's defaults (pytorch-ood's) are not the paper's.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("logits",)
    modules: ClassVar[tuple[str, ...]] = ()
    outliers: ClassVar[str] = "ignored"
    brings: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[str] = "trained"
    weight: ClassVar[float] = 1.0
    space: ClassVar[str] = "features"
    pretrained: ClassVar[bool] = False
    views: ClassVar[int] = 1
    recipe: ClassVar[dict] = {}

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        """Change a batch before the network sees it: (images, labels, further arguments of forward). Labels: of the first rows."""
        return images, labels, ()

    def epoch_begins(
        self,
        epoch: int,
        outputs: Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]],
        *modules: nn.Module,
    ) -> None:
        """Called before each epoch; outputs() iterates over (features, logits, labels) of the training images, in eval mode."""

    def classifier(self) -> tuple[Tensor, Tensor]:
        """(weight (C, D), bias (C,)) of the linear head that decides as this loss does, where `head` is "computed"."""
        raise NotImplementedError


# ---- registry ----------------------------------------------------------------------------------------------------------------

_CLASSES: dict[str, type[Loss]] = {}


def register(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Decorator: make the class known under a short lowercase name."""

    def add(cls: type[Loss]) -> type[Loss]:
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return add


def names() -> list[str]:
    """All losses, in alphabetical order."""
    return sorted(_CLASSES)


def get(name: str) -> type[Loss]:
    """The class of a name. Raises InputError with the nearest name."""
    if name not in _CLASSES:
        raise InputError(
            f"unknown loss '{name}'{nearest(name, _CLASSES)}; losses: {', '.join(names())}"
        )
    return _CLASSES[name]


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Constructor arguments of a loss."""
    signature = inspect.signature(get(name).__init__).parameters
    return {key: parameter for key, parameter in signature.items() if key != "self"}


def create(name: str, **args) -> Loss:
    """The loss of a name. Raises InputError for an unknown name or argument (the nearest is named), a wrong type or a missing one."""
    known = parameters(name)
    check_arguments(name, args)
    missing = [key for key, p in known.items() if p.default is p.empty and key not in args]
    if missing:
        raise InputError(f"loss '{name}' needs {missing[0]}; its arguments: {', '.join(known)}")
    return get(name)(**args)


def check_arguments(name: str, args: dict, also: tuple[str, ...] = ()) -> None:
    """Raises InputError for a key that the loss does not take, or a value of another type than its default's."""
    known, hints = parameters(name), typing.get_type_hints(get(name).__init__)
    for key, value in args.items():
        if key not in known and key not in also:
            allowed = [*known, *also]
            raise InputError(
                f"loss '{name}' takes no '{key}'{nearest(key, allowed)}; its arguments: {', '.join(allowed) or 'none'}"
            )
        hint = hints.get(key, float)
        if not any(_is(value, kind) for kind in typing.get_args(hint) or (hint,)):
            kind = getattr(hint, "__name__", str(hint)) if hint is not float else "finite number"
            raise InputError(f"loss '{name}': {key} must be a {kind}, got {value!r}")


def _is(value, kind: type) -> bool:
    """Whether a value is of a type; whole numbers pass as floats, true and false as neither."""
    if kind is float:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def known_reduction(reduction: str | None) -> str | None:
    """`reduction` if it is one. Raises InputError."""
    require(reduction in REDUCTIONS, f"reduction is {reduction!r}; allowed: mean, sum, none")
    return reduction


# ---- shared formulas ---------------------------------------------------------------------------------------------------------
# Class axis 1: logits (B, C) with labels (B,), or pixels: logits (B, C, H, W) with labels (B, H, W).


def cross_entropy(logits: Tensor, y: Tensor, reduction: str | None = "mean") -> Tensor:
    """Cross-entropy over the rows with y >= 0: their mean (0 when there are none), their sum, or all rows with 0 for outliers."""
    targets = torch.where(y < 0, -100, y)
    if reduction == "mean":
        return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100) / (
            y >= 0
        ).sum().clamp_min(1)
    return F.cross_entropy(logits, targets, reduction=reduction or "none", ignore_index=-100)


def energy(logits: Tensor) -> Tensor:
    """E = -log sum_c exp(f_c): (B, C, ...) -> (B, ...), larger = OOD."""
    return -torch.logsumexp(logits, 1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows of a mask; 0, with a gradient of 0, when there are none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)


def reduced(values: Tensor, reduction: str | None) -> Tensor:
    """mean, sum, or the values themselves. The mean of nothing is 0."""
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    return values.sum() if reduction == "sum" else values


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """|x - c|^2 of every row with every centre: (N, D), (K, D) -> (N, K).

    One matrix product, in float64 where the device has it: in float32 the sum below is 0 for features of length 1000 that are 0.1
    apart. On a CPU twice the time of float32, a tenth of the explicit differences.
    """
    kind, wide = x.dtype, torch.float64 if x.device.type != "mps" else x.dtype
    x, centres = x.to(wide), centres.to(wide)
    return (
        (x.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * x @ centres.T)
        .clamp_min(0)
        .to(kind)
    )


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / (|x| + eps) along axis 1, also where |x|^2 would overflow; 0 stays 0, with a finite gradient."""
    scale = x.detach().abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    x = x / scale
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (torch.where(length > 0, length, 1) + eps / scale)
