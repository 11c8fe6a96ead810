"""The base class of objective functions, their registry, and the formulas that they share.

A loss is a module: loss(logits, y) -> scalar, where labels below 0 are outliers. Some losses take
something else than logits before y; `inputs` says what. Some take a module after y; `modules` names
it. Nothing here knows images or networks: `ood.losses.objective` does.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import typing
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import InputError, Range, nearest

REDUCTIONS = ("mean", "sum", "none", None)
OUTLIERS = ("ignored", "used", "needed")
HEADS = ("trained", "joint", "probe", "computed")
INPUTS = ("logits", "features", "distances", "confidence", "projections", "rotations")

# Ranges of arguments. The bound of 1e9 keeps squares within float32.
NUMBER = Range(-1e9, 1e9)
AT_LEAST_0 = Range(0, 1e9)
ABOVE_0 = Range(high=1e9, above=0)
FRACTION = Range(0, 1)
TEMPERATURE = Range(1e-6, 1e6)
COUNT = Range(1, 2**24)


def also(**names: str):
    """Accept an argument under pytorch-ood's other names too, as in also(target="y"). A decorator.

    The decorated function has the names in its attribute `also`.
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*arguments, **options):
            for other in [key for key in options if key in names]:
                if names[other] in options:
                    raise TypeError(f"{function.__name__}: '{other}' is given twice")
                options[names[other]] = options.pop(other)
            return function(*arguments, **options)

        call.also = names
        return call

    return decorate


class Checked(nn.Module):
    """A module whose constructor's arguments must lie in `ranges`.

    They are checked before `__init__` runs. Raises: InputError.
    """

    ranges: ClassVar[dict[str, Range | tuple]] = {
        "n_classes": COUNT,
        "n_dim": COUNT,
        "n_embedding": COUNT,
        "n_features": COUNT,
        "reduction": REDUCTIONS,
    }

    def __new__(cls, *args, **kwargs):
        given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs).arguments
        whole = typing.get_type_hints(cls.__init__) if given else {}
        label = getattr(cls, "name", cls.__name__)
        for key, value in given.items():
            if key in cls.ranges:
                check_range(f"{label}: {key}", value, cls.ranges[key], whole.get(key) is int)
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs):
        """Add the ranges of the base classes to those of the class."""
        super().__init_subclass__(**kwargs)
        cls.ranges = {**super(cls, cls).ranges, **cls.__dict__.get("ranges", {})}


def check_range(what: str, value, allowed: Range | tuple, whole: bool = False) -> None:
    """Raise InputError for a value that is not `allowed`, a range of numbers or a list of words.

    None passes as a number: it stands for an argument that is not given. With `whole`, the number
    must be a whole one.
    """
    if isinstance(allowed, tuple):
        words = ", ".join(str(word) for word in allowed if word is not None)
        require(value in allowed, f"{what} is {value!r}; allowed: {words}")
    elif value is not None:
        number = value.item() if getattr(value, "ndim", 1) == 0 else value
        kind = numbers.Integral if whole else numbers.Real
        fits = isinstance(number, kind) and not isinstance(number, bool) and number in allowed
        large = isinstance(number, int) and number.bit_length() > 100
        shown = "a number of more than 30 digits" if large else repr(value)
        require(fits, f"{what} is {shown}; it must be {allowed}{' and whole' if whole else ''}")


class Loss(Checked):
    """Base class: what a loss says about itself.

    Where pytorch-ood has a loss, its name and constructor arguments are used here.

    Attributes:
        name: the name in the registry, which -loss takes.
        inputs: what forward takes before y, from INPUTS. Shapes: logits (B, C); features (B, D);
            distances (B, C), which `distance` gives from features or logits; confidence (B, 1) in
            [0, 1]; projections (B, P) of length 1; rotations (B, 4), logits of four turns.
        modules: names of the modules that forward takes after y.
        outliers: "ignored": rows with y < 0 change nothing. "used": a batch may hold such rows.
            "needed": the method does not exist without them.
        brings: what the loss learns or keeps beside the network, such as "centres", "extra class"
            or "confidence head".
        head: how the network's linear head gets its weights. "trained": this loss trains it.
            "joint": a cross-entropy is added to this loss. "probe": a cross-entropy trains the head
            and does not reach the features. "computed": `classifier()` gives the weights.
        weight: factor of this loss beside the cross-entropy of a "joint" head. -loss_args
            weight=... overrides it.
        space: what `distance` takes, "features" or "logits".
        pretrained: whether the loss continues a trained network.
        views: how many differently augmented copies of each image a batch holds.
        recipe: arguments that -loss sets where the constructor's defaults, which are pytorch-ood's,
            are not the paper's.
        ranges: the numbers or words that each argument may be, see `Checked`.
        info: None. `ood.compat.loss` sets it to pytorch-ood's record of the paper.
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
    info: ClassVar[None] = None

    def stage(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        """Change a batch before the network sees it.

        Returns: (images, labels, further arguments of forward). There may be more images than
            labels: the labels then belong to the first images.
        """
        return images, labels, ()

    def epoch_begins(
        self,
        epoch: int,
        outputs: Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]],
        *modules: nn.Module,
    ) -> None:
        """Prepare for an epoch. Called before each one.

        Args:
            epoch: its number, from 1.
            outputs: outputs() iterates over (features, logits, labels) of the training images,
                computed in eval mode.
            modules: the modules that forward takes after y.
        """

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Give the linear head that decides as this loss does, where `head` is "computed".

        Returns: (weight (C, D), bias (C,)).
        """
        raise NotImplementedError


# ---- registry ------------------------------------------------------------------------------------

_CLASSES: dict[str, type[Loss]] = {}


def register(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Make a class known under a short lowercase name. A decorator."""

    def add(cls: type[Loss]) -> type[Loss]:
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return add


def names() -> list[str]:
    """List the names of all losses in alphabetical order."""
    return sorted(_CLASSES)


def get(name: str) -> type[Loss]:
    """Find the class of a name. Raises InputError, which suggests the nearest name."""
    if name not in _CLASSES:
        raise InputError(
            f"unknown loss '{name}'{nearest(name, _CLASSES)}; losses: {', '.join(names())}"
        )
    return _CLASSES[name]


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """List the constructor arguments of a loss."""
    signature = inspect.signature(get(name).__init__).parameters
    return {key: parameter for key, parameter in signature.items() if key != "self"}


def create(name: str, **args) -> Loss:
    """Make the loss of a name.

    Raises: InputError for an unknown name or argument (it suggests the nearest one), for a value
        of a wrong type, and for a missing argument.
    """
    known = parameters(name)
    check_arguments(name, args)
    missing = [key for key, p in known.items() if p.default is p.empty and key not in args]
    if missing:
        raise InputError(f"loss '{name}' needs {missing[0]}; its arguments: {', '.join(known)}")
    return get(name)(**args)


def check_arguments(name: str, args: dict, beside: tuple[str, ...] = ()) -> None:
    """Raise InputError for an argument that the loss does not take, or a value of a wrong type.

    Args: beside: further names that are allowed, of numbers from 0.
    """
    known, hints = parameters(name), typing.get_type_hints(get(name).__init__)
    allowed = [*known, *beside]
    for key, value in args.items():
        if key not in allowed:
            raise InputError(
                f"loss '{name}' takes no '{key}'{nearest(key, allowed)}; "
                f"its arguments: {', '.join(allowed) or 'none'}"
            )
        hint = hints.get(key, float)
        if not any(_is(value, kind) for kind in typing.get_args(hint) or (hint,)):
            kind = KINDS.get(hint) or getattr(hint, "__name__", str(hint))
            raise InputError(f"loss '{name}': {key} must be a {kind}, got {value!r}")
        if key in beside:
            check_range(f"loss '{name}': {key}", value, AT_LEAST_0)


KINDS = {float: "finite number", int: "whole number", bool: "bool (true or false)"}


def _is(value, kind: type) -> bool:
    """Whether a value is of a type. A whole number counts as a float, a bool as no number."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
    return isinstance(value, kind)


def require(condition: bool, message: str) -> None:
    """Raise InputError with a message unless a condition holds."""
    if not condition:
        raise InputError(message)


# ---- shared formulas -----------------------------------------------------------------------------
# The class axis is 1: logits (B, C) with labels (B,), or logits (B, C, H, W) with labels (B, H, W).


@also(targets="y")
def cross_entropy(logits: Tensor, y: Tensor, reduction: str | None = "mean") -> Tensor:
    """Cross-entropy over the rows with y >= 0.

    Args: reduction: "mean" over those rows, 0 without any; "sum" over them; "none" or None: a value
        for every row, 0 for outliers.
    """
    targets = torch.where(y < 0, -100, y)
    if reduction == "mean":
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
        return total / (y >= 0).sum().clamp_min(1)
    return F.cross_entropy(logits, targets, reduction=reduction or "none", ignore_index=-100)


def energy(logits: Tensor) -> Tensor:
    """Energy E = -log sum_c exp(f_c): (B, C, ...) -> (B, ...), larger = OOD."""
    return -torch.logsumexp(logits, 1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows of a mask. Without any row it is 0, and so is its gradient."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)


def reduced(values: Tensor, reduction: str | None) -> Tensor:
    """Reduce values to their mean or sum, or return them as they are. The mean of nothing is 0."""
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    return values.sum() if reduction == "sum" else values


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distance |x - c|^2 of every row to every centre: (N, D), (K, D) -> (N, K).

    This is one matrix product, in float64 where the device has it. In float32 the sum below would
    be 0 for features of length 1000 that are 0.1 apart. On a CPU it takes twice the time of
    float32, and a tenth of the time of explicit differences.
    """
    kind, wide = x.dtype, torch.float64 if x.device.type != "mps" else x.dtype
    x, centres = x.to(wide), centres.to(wide)
    squares = x.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * x @ centres.T
    return squares.clamp_min(0).to(kind)


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """Divide by the length: x / (|x| + eps) along axis 1.

    It works where |x|^2 would overflow. A row of zeros stays zero and has a finite gradient.
    """
    scale = x.detach().abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    x = x / scale
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (torch.where(length > 0, length, 1) + eps / scale)
