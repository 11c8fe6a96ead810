"""What every network here answers: logits, pooled features, feature maps and the head, all from one forward pass."""

from __future__ import annotations

import difflib
from typing import Iterable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModelError(ValueError):
    """A network that cannot be built or used as asked; the message is one line for the user."""


class Activations(NamedTuple):
    """All that one forward pass yields.

    logits (N, num_classes); features (N, D), the input of `fc`; maps, list of (N, C, H, W), earliest first, the last one after
    the final norm and ReLU; stages, the raw stage outputs (see Classifier.stages); taps, list of pooled (N, C_k).
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]
    stages: list[Tensor]
    taps: list[Tensor]


class Classifier(nn.Module):
    """An image classifier in three steps: stages (convolutions), embed (pooling), fc (one linear layer).

    A subclass defines `stages(images)` and `fc`; where its features are not a plain average of the last map also `finish` or
    `embed`. Then fc(features(x)) == forward(x) and features(x) == embed(feature_maps(x)[-1]) hold by construction.

    Attributes:
        fc: nn.Linear (num_classes, D), the head.
        arch: keyword arguments of `models.build` that build this network again.
        window: side of the average pool of `embed`; None: the average over the whole map.
    """

    fc: nn.Linear
    arch: dict
    window: int | None = None

    def stages(self, images: Tensor) -> list[Tensor]:
        """Raw stage outputs, earliest first. In pre-activation networks the last one is BEFORE the final norm and ReLU."""
        raise NotImplementedError

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        """Feature maps from stages: pre-activation networks put the last one through their final norm and ReLU."""
        return stages

    def embed(self, last_map: Tensor) -> Tensor:
        """The last feature map (N, C, H, W) -> features (N, D)."""
        return average(last_map, self.window)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return self.finish(self.stages(images))

    def features(self, images: Tensor) -> Tensor:
        return self.embed(self.feature_maps(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))

    def everything(self, images: Tensor) -> Activations:
        """Logits, features, maps, stages and taps of ONE forward pass."""
        stages = self.stages(images)
        maps = self.finish(stages)
        features = self.embed(maps[-1])
        return Activations(
            self.fc(features), features, maps, stages, self.pool_taps(stages, maps, features)
        )

    def taps(self, images: Tensor) -> list[Tensor]:
        """The pooled vectors that are joined to a feature ensemble: (N, C_k) for k = 1, 2, 3, then the features.

        Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for out-of-distribution detection",
        UAI 2022. Their code runs the network anew for every k; here all come from one pass.
        """
        return self.everything(images).taps

    def pool_taps(self, stages: list[Tensor], maps: list[Tensor], features: Tensor) -> list[Tensor]:
        return [average(m, None) for m in maps[:3]] + [features]


def average(maps: Tensor, window: int | None) -> Tensor:
    """(N, C, H, W) -> (N, C): the mean over everything, or over the top-left window x window pixels.

    The CIFAR networks of the papers pool with a fixed window (8 x 8 or 4 x 4), so that a 9 x 9 map, from a 36 x 36 image, loses
    a border row and column. Kept, because it changes the numbers.
    """
    if window is None:
        return maps.mean((2, 3))
    pooled = F.avg_pool2d(maps, window)
    if pooled.shape[2:] != (1, 1):
        raise ModelError(
            f"the last map is {maps.shape[2]} x {maps.shape[3]} but this network averages one window of {window} x "
            f"{window}: use images of the size it was built for, or build it with pool='adaptive'"
        )
    return pooled.flatten(1)


def pool_window(arch: str, pool: str, window: int, image_size: int, last: int) -> int | None:
    """The window for option `pool` (its own fixed window or 'adaptive'), after checking that the last map fits it.

    Args:
        image_size, last: sides of the input and of the last map, in pixels.
    """
    fixed = f"{window}x{window}"
    one_of("pool", pool, (fixed, "adaptive"))
    if pool == "adaptive":
        require(
            image_size >= 8,
            f"{arch} needs images of at least 8 x 8 pixels, got image_size={image_size}",
        )
        return None
    require(
        window <= last < 2 * window,
        f"{arch} averages one {fixed} window but its last map would be {last} x {last} at image_size={image_size}: too "
        f"{'small' if last < window else 'large'}; pass pool='adaptive' or choose a small_* network",
    )
    return window


def init_fan_out(network: nn.Module) -> None:
    """conv ~ Normal(0, sqrt(2 / (k * k * out_channels))), norm weight 1 and bias 0, linear bias 0 (its weight: PyTorch's default)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(
                module.weight, 0, (2 / (module.weight[0, 0].numel() * module.out_channels)) ** 0.5
            )
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


def one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise a ModelError that names the nearest allowed word."""
    allowed = list(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = (
            allowed
            if len(allowed) <= 24 or not near
            else difflib.get_close_matches(str(value), allowed, 8, 0.3)
        )
        raise ModelError(
            f"unknown {what} {value!r}; {hint}allowed: {', '.join(shown)}{'' if shown is allowed else ', ...'}"
        )


def parameters(network: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in network.parameters())


def device_of(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


COMMON = ("num_classes", "in_channels", "image_size")


TORCHVISION = "torchvision_"
