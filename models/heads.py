"""The last layer of a foreign network, read as logits = W h + b.

A head knows the modules whose inputs it needs, what the features h are, and W and b. `candidates`
runs a network once and yields the heads that it might have, the likeliest first. `models.adapt`
takes the first one that gives the network's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import ModelError


@dataclass(frozen=True)
class Head:
    """One nn.Linear: its input (N, D) is the features.

    Attributes:
        names: dotted names of the modules whose inputs are caught.
    """

    names: tuple[str, ...]

    def read(self, inputs: list[Tensor]) -> Tensor:
        """Return the features (N, D) from the inputs of the modules."""
        return inputs[0]

    def linear(self, network: nn.Module) -> nn.Linear:
        """Return the head as an nn.Linear."""
        return network.get_submodule(self.names[0])


class Convolution(Head):
    """A 1x1 convolution of pooled maps, or one that is followed by nothing but an average."""

    def read(self, inputs):
        return inputs[0].mean((2, 3))

    def linear(self, network):
        convolution = network.get_submodule(self.names[0])
        return as_linear(convolution.weight.flatten(1), convolution.bias)


class Averaged(Head):
    """The mean of two linear heads, as distilled transformers use it (DeiT, LeViT)."""

    def read(self, inputs):
        return torch.cat(inputs, 1)

    def linear(self, network):
        first, second = (network.get_submodule(name) for name in self.names)
        bias = None if first.bias is None else (first.bias + second.bias) / 2
        return as_linear(torch.cat([first.weight, second.weight], 1) / 2, bias)


class Cosine(Head):
    """s * cos(h, w) for every row w of a weight; the features are h / |h|."""

    def read(self, inputs):
        return F.normalize(inputs[0], dim=1)

    def linear(self, network):
        module = network.get_submodule(self.names[0])
        with torch.no_grad():
            scale = module(module.weight[:1])[0, 0]  # the cosine of a row with itself is 1
        return as_linear(scale * F.normalize(module.weight, dim=1), None)


class NoHead(Head):
    """A feature extractor: its output (N, D) is the features, and there are no logits (N, 0)."""

    def linear(self, network):
        raise NotImplementedError  # `adapt` makes one of the output's width


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return an nn.Linear with these values, which are not copied."""
    linear = nn.Linear(1, 1, bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def candidates(network: nn.Module, images: Tensor, title: str) -> Iterator[Head]:
    """Run the network and yield the heads that it might have.

    Raises: ModelError if it runs no layer that could be a head.
    """
    called = _called(network, images)
    linears = [name for name, kind, _ in called if kind is nn.Linear]
    convolutions = [name for name, kind, _ in called if kind is nn.Conv2d]
    others = [name for name, kind, _ in called if kind is None]
    if not called:
        there = any(isinstance(module, nn.Linear) for module in network.modules())
        raise ModelError(
            f"{title} has no nn.Linear as its head{'' if there else ' (it has none at all)'}; "
            "detectors need logits = W h + b"
        )
    last = called[-1][1]
    if last is nn.Conv2d:
        yield Convolution((convolutions[-1],))
    if others and last is None:
        yield Cosine((others[-1],))
    if linears:
        yield Head((linears[-1],))
    if len(linears) > 1:
        yield Averaged(tuple(linears[-2:]))
    if others and last is not None:
        yield Cosine((others[-1],))
    if convolutions and last is not nn.Conv2d:
        yield Convolution((convolutions[-1],))


def _called(network: nn.Module, images: Tensor) -> list[tuple[str, type | None, int]]:
    """Return (name, kind, width) of the layers that run and could be a head, in their order.

    The kind is nn.Linear, nn.Conv2d (1x1), or None for another module without children that has a
    two-dimensional `weight` and maps (N, D) to (N, C).
    """
    called: list[tuple[str, type | None, int]] = []

    def note(name, kind):
        def hook(module, inputs, output):
            if kind is not None:
                called.append((name, kind, module.weight.shape[0]))
            elif (
                inputs
                and isinstance(output, Tensor)
                and output.shape[1:] == module.weight.shape[:1]
                and inputs[0].shape[1:] == module.weight.shape[1:]
            ):
                called.append((name, kind, output.shape[1]))

        return hook

    hooks = []
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or any(True for _ in module.children()) or not name:
            continue
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(note(name, nn.Linear)))
        elif isinstance(module, nn.Conv2d):
            if weight.shape[2:] == (1, 1) and module.groups == 1:
                hooks.append(module.register_forward_hook(note(name, nn.Conv2d)))
        elif weight.dim() == 2 and not isinstance(module, nn.Embedding):
            hooks.append(module.register_forward_hook(note(name, None)))
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return called
