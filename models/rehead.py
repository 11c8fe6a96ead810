"""A network with another linear head, or with none: its features stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import heads
from .classifier import Activations, Classifier, device_of


class Reheaded(Classifier):
    """The features of `base` under a head of their own. State-dict keys: base.*, and fc.* if any.

    Attributes:
        base: the network whose features are used; its own head is not.
        headless: whether there is no head: `fc` then has no outputs, logits are (N, 0).
        head_kind: "linear", or "none".
        arch: of the base.
    """

    def __init__(self, base: Classifier, fc: nn.Linear | None):
        super().__init__()
        self.base, self.headless = base, fc is None
        self._width = base.fc.weight.shape[1]
        self.probe = fc
        self.head_kind = "none" if fc is None else "linear"
        self.arch = base.arch

    @property
    def fc(self) -> nn.Linear:
        if self.probe is not None:
            return self.probe
        return heads.as_linear(torch.empty(0, self._width, device=device_of(self.base)), None)

    def stages(self, images: Tensor) -> list[Tensor]:
        return self.base.stages(images)

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return self.base.finish(stages)

    def embed(self, last_map: Tensor) -> Tensor:
        return self.base.embed(last_map)

    def features(self, images: Tensor) -> Tensor:
        return self.base.features(images)

    def everything(self, images: Tensor) -> Activations:
        every = self.base.everything(images)
        return every._replace(logits=self.fc(every.features))

    def pool_taps(self, stages, maps, features) -> list[Tensor]:
        return self.base.pool_taps(stages, maps, features)


def with_head(network: Classifier, weight: Tensor, bias: Tensor) -> Reheaded:
    """Give the features of a network another linear head: logits = features @ weight.T + bias.

    Args:
        weight: (C, D), D as the features.
        bias: (C,).
    """
    classes, width = weight.shape
    fc = nn.Linear(width, classes)
    with torch.no_grad():
        fc.weight.copy_(weight)
        fc.bias.copy_(bias)
    return Reheaded(network, fc.to(device_of(network))).train(network.training)


def without_head(network: Classifier) -> Classifier:
    """Keep the features of a network and leave its head out; a feature extractor stays itself."""
    if getattr(network, "headless", False):
        return network
    return Reheaded(network, None).train(network.training)
