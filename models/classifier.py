"""The interface of every network: logits, features, feature maps and head from one forward pass."""

from __future__ import annotations

import difflib
from typing import Iterable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMMON = ("num_classes", "in_channels", "image_size")  # arguments that every architecture takes
DEEPEST = 4000  # layers; a loop that makes many more takes hours and all memory
TORCHVISION = "torchvision_"  # how the names of torchvision's networks begin


class ModelError(ValueError):
    """A network cannot be built or used as asked; the message is one line for the user."""


class Activations(NamedTuple):
    """Everything that one forward pass gives.

    Attributes:
        logits: (N, num_classes).
        features: (N, D), the input of `fc`.
        maps: list of (N, C, H, W), earliest first; the last one is after the final norm and ReLU.
        stages: the raw stage outputs, see Classifier.stages.
        taps: list of pooled vectors (N, C_k), see Classifier.taps.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]
    stages: list[Tensor]
    taps: list[Tensor]


class Classifier(nn.Module):
    """An image classifier in three steps: stages (convolutions), embed (pooling), fc (linear).

    A subclass defines `stages(images)` and `fc`. If its features are not a plain average of the
    last map, it also defines `finish` or `embed`. Then fc(features(x)) == forward(x) and
    features(x) == embed(feature_maps(x)[-1]) hold by construction.

    Attributes:
        fc: nn.Linear (num_classes, D), the head.
        arch: keyword arguments of `models.build` that build this network again.
        window: side of the average pool of `embed`; None: it averages the whole map.
    """

    fc: nn.Linear
    arch: dict
    window: int | None = None

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the raw stage outputs, list of (N, C, H, W), earliest first.

        In pre-activation networks the last one is BEFORE the final norm and ReLU.
        """
        raise NotImplementedError

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        """Turn stages into maps; pre-activation networks apply their final norm and ReLU."""
        return stages

    def embed(self, last_map: Tensor) -> Tensor:
        """Turn the last feature map (N, C, H, W) into features (N, D)."""
        return average(last_map, self.window)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, list of (N, C, H, W), earliest first."""
        return self.finish(self.stages(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of images (N, C, H, W)."""
        return self.embed(self.feature_maps(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, C, H, W)."""
        return self.fc(self.features(images))

    def everything(self, images: Tensor) -> Activations:
        """Return logits, features, maps, stages and taps of ONE forward pass."""
        stages = self.stages(images)
        maps = self.finish(stages)
        features = self.embed(maps[-1])
        taps = self.pool_taps(stages, maps, features)
        return Activations(self.fc(features), features, maps, stages, taps)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the vectors of VMDLS's feature ensemble: pooled maps (N, C_k), then the features.

        Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for
            out-of-distribution detection", UAI 2022, k = 1, 2, 3. Their code runs the network anew
            for every k; here all come from one pass.
        """
        return self.everything(images).taps

    def pool_taps(self, stages: list[Tensor], maps: list[Tensor], features: Tensor) -> list[Tensor]:
        """Pool the taps from what a pass gave; a subclass may choose other taps."""
        return [average(m, None) for m in maps[:3]] + [features]


def average(maps: Tensor, window: int | None) -> Tensor:
    """Average maps (N, C, H, W) to (N, C), wholly or over the top-left window x window pixels.

    The CIFAR networks of the papers pool with a fixed window (8 x 8 or 4 x 4). So a 9 x 9 map, from
    a 36 x 36 image, loses a border row and column. This is kept because it changes the numbers.

    Raises: ModelError if the map holds no window, or more than one.
    """
    if window is None:
        return maps.mean((2, 3))
    pooled = F.avg_pool2d(maps, window)
    if pooled.shape[2:] != (1, 1):
        raise ModelError(
            f"the last map is {maps.shape[2]} x {maps.shape[3]} but this network averages one "
            f"window of {window} x {window}: use images of the size it was built for, or build it "
            "with pool='adaptive'"
        )
    return pooled.flatten(1)


def pool_window(arch: str, pool: str, window: int, image_size: int, last: int) -> int | None:
    """Return the window that the option `pool` asks for; None for 'adaptive'.

    Args:
        arch: name of the network, for messages.
        pool: '<window>x<window>' or 'adaptive'.
        window: side of the fixed window, in pixels of the last map.
        image_size, last: sides of the input and of the last map, in pixels.

    Raises: ModelError if the last map does not fit the window.
    """
    fixed = f"{window}x{window}"
    one_of("pool", pool, (fixed, "adaptive"))
    if pool == "adaptive":
        require(
            image_size >= 8,
            f"{arch} needs images of at least 8 x 8 pixels, got image_size={image_size}",
        )
        return None
    size = "small" if last < window else "large"
    require(
        window <= last < 2 * window,
        f"{arch} averages one {fixed} window but its last map would be {last} x {last} at "
        f"image_size={image_size}: too {size}; pass pool='adaptive' or choose a small_* network",
    )
    return window


def init_fan_out(network: nn.Module) -> None:
    """Initialise a network by the fan-out of its convolutions, in place.

    Convolutions: Normal(0, sqrt(2 / (k * k * out_channels))). Norms: weight 1, bias 0. Linear
    layers: bias 0; the weight keeps PyTorch's default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels
            nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def require(condition: bool, message: str) -> None:
    """Raise a ModelError with this message unless the condition holds."""
    if not condition:
        raise ModelError(message)


def one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise a ModelError unless `value` is allowed; the message names the nearest allowed word."""
    allowed = list(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        listed = ", ".join(allowed)
        if len(allowed) > 24 and near:
            listed = ", ".join(difflib.get_close_matches(str(value), allowed, 8, 0.3)) + ", ..."
        raise ModelError(f"unknown {what} {value!r}; {hint}allowed: {listed}")


def parameters(network: nn.Module) -> int:
    """Count the numbers in a network's parameters."""
    return sum(p.numel() for p in network.parameters())


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters; the CPU if it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))
