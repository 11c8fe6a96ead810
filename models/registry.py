"""Architectures by name: `@register` on a class, `build` with checked options, `names`."""

from __future__ import annotations

import inspect
import os
from typing import Callable, NamedTuple

import torch
from torch import nn

from .classifier import COMMON, Classifier, ModelError, one_of, require
from .foreign import HF, is_foreign, runs_code
from .foreign import build as build_foreign

LARGE = 1024  # an integer argument above this may ask for more memory than there is


class Entry(NamedTuple):
    factory: Callable[..., Classifier]
    fixed: dict  # arguments that the name stands for
    options: dict  # {option: default}, in the order of the constructor
    in_channels: int
    image_size: int


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, fixed: dict | None = None, in_channels: int = 3, image_size: int = 32, **defaults
):
    """Decorator: let `build` find factory(num_classes, in_channels, image_size, **options) by name.

    A factory may be registered under several names with different arguments.

    Args:
        fixed: arguments that the name stands for; a user cannot change them.
        in_channels, image_size: what the network is built for unless the user says otherwise.
        defaults: of the options, where they differ from the factory's.
    """

    def add(factory):
        fixed_ = fixed or {}
        signature = inspect.signature(factory).parameters
        options = {
            k: defaults.get(k, p.default)
            for k, p in signature.items()
            if k not in COMMON and k not in fixed_
        }
        _ENTRIES[name] = Entry(factory, fixed_, options, in_channels, image_size)
        return factory

    return add


def names() -> list[str]:
    """Return all architecture names, sorted. `build` also takes torchvision_<name>."""
    return sorted(_ENTRIES)


def options(arch: str) -> dict:
    """Return the options of an architecture with their defaults."""
    one_of("architecture", arch, names())
    return dict(_ENTRIES[arch].options)


def build(
    arch: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    **options,
) -> Classifier:
    """Build a network, with fresh weights unless an option asks for published ones.

    Args:
        arch: one of `names()`, or the spelling of a network of another library or of your own, such
            as timm:resnet18 or my_file.py:build; see `foreign.py`.
        num_classes: outputs of the head, >= 1. None: the own number of a foreign network.
        in_channels: 3 (RGB) or 1 (grey); None: 3, for mnist_conv 1.
        image_size: side of the square input in pixels; None: 32 (mnist_conv: 28, torchvision: 224).
        options: of the architecture, for example depth, width, dropout, pool; see `options(arch)`.

    Raises:
        ModelError: unknown architecture or option (the message names the nearest one), a value of
            the wrong type, or images that are too small.
    """
    ours = not is_foreign(str(arch))
    require(
        _is_int(num_classes) and num_classes >= 1 or num_classes in (None, 0) and not ours,
        f"num_classes must be a positive integer, got {num_classes!r}",
    )
    for name, value in (("in_channels", in_channels), ("image_size", image_size)):
        require(
            value is None or _is_int(value) and value >= 1,
            f"{name} must be a positive integer, got {value!r}",
        )
    if not ours:
        return build_foreign(str(arch), num_classes, in_channels, image_size, **options)
    require(
        arch != "adapted", "an adapted network is built by its own code: models.adapt(your_network)"
    )
    one_of("architecture", arch, names())
    entry = _ENTRIES[arch]
    for key, value in options.items():
        one_of(f"option of {arch}", key, entry.options)
        _check_type(arch, key, value, entry.options[key])
    common = {
        "num_classes": num_classes,
        "in_channels": in_channels or entry.in_channels,
        "image_size": image_size or entry.image_size,
    }
    chosen = {**entry.options, **options}
    arguments = {**common, **entry.fixed, **chosen}
    if any(_is_int(value) and value > LARGE for value in arguments.values()):
        _require_memory(arch, entry, arguments)
    network = entry.factory(**arguments)
    network.arch = {"arch": arch, **common, **chosen}
    return network


def _require_memory(arch: str, entry: Entry, arguments: dict) -> None:
    """Raise a ModelError if this machine's memory cannot hold the network and one image's pass.

    The network is built without memory (on torch's meta device) and asked for its shapes.
    """
    numbers = [0]
    try:
        with torch.device("meta"):
            network = entry.factory(**arguments).eval()
            hooks = [
                module.register_forward_hook(lambda _, __, out: numbers.append(out.numel()))
                for module in network.modules()
                if isinstance(module, (nn.Conv2d, nn.Linear))
            ]
            side = arguments["image_size"]
            network(torch.empty(1, arguments["in_channels"], side, side))
            for hook in hooks:
                hook.remove()
    except (RuntimeError, TypeError) as error:  # sizes beyond 64 bits
        reason = str(error).splitlines()[0]
        raise ModelError(f"{arch} cannot be built with {_large(arguments)}: {reason}") from None
    needed = 4 * (sum(p.numel() for p in network.parameters()) + max(numbers))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    require(
        needed <= there,
        f"{arch} with {_large(arguments)} would need at least {needed / 1e9:,.0f} GB of memory, "
        f"this machine has {there / 1e9:,.0f} GB",
    )


def _large(arguments: dict) -> str:
    """Name the arguments that may be too large: 'num_classes=1000000000000'."""
    return ", ".join(f"{k}={v}" for k, v in arguments.items() if _is_int(v) and v > LARGE)


def rebuild(arch: dict) -> Classifier:
    """Build the network that a file describes, with fresh weights; nothing is downloaded.

    Args: arch: keyword arguments of `build`. `weights`, which torchvision would download, is left
        out.

    Raises: ModelError as `build`, and for arguments that `build` does not take.
    """
    require(
        isinstance(arch, dict) and all(isinstance(key, str) for key in arch),
        "the file describes no network",
    )
    for name in ("arch", "num_classes"):
        require(name in arch, f"the file does not say the network's {name}")
    require(
        not runs_code(str(arch["arch"])),
        f"the network is {arch['arch']}, which runs code; name it yourself: -arch {arch['arch']}",
    )
    kept = {k: v for k, v in arch.items() if k not in ("weights", "pretrained")}
    if str(arch["arch"]).startswith(HF):
        require("hf_config" in arch, f"the file does not hold the configuration of {arch['arch']}")
    return build(**kept)


def _check_type(arch: str, key: str, value, default) -> None:
    """Raise a ModelError unless `value` has the type of the default; floats may be integers."""
    if isinstance(default, (int, float)) and isinstance(value, bool):
        right = isinstance(default, bool)
    else:
        right = isinstance(value, (int, float) if isinstance(default, float) else type(default))
    require(
        right,
        f"option {key} of {arch} must be of type {type(default).__name__} "
        f"(default {default!r}), got {value!r}",
    )


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
