"""The heatmap decoder: pooled features and predicted class -> signed map of the image's size.

Source: Hornauer & Belagiannis, "Heatmap-based Out-of-Distribution Detection", WACV 2023, arXiv
2211.08115. State-dict keys are as in their files: fc1, conv_block{i}.0 (transposed convolution),
conv_block{i}.1 (BN). Weights are initialised by PyTorch's defaults.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, ModelError, device_of, require

# (architecture, classes) -> bottleneck, channels, first block that takes a skip connection
PUBLISHED = {
    ("resnet18", 10): (100, (512, 256, 128, 64), 1),
    ("resnet18", 100): (512, (512, 256, 128, 64), 1),
    ("wideresnet", 10): (128, (256, 128, 64, 32), 2),
    ("wideresnet", 100): (128, (256, 128, 64, 32), 2),
    ("resnet50", 200): (512, (2048, 1024, 512, 256, 128), 1),
}


class Decoder(nn.Module):
    """concat(z, class) -> Linear -> (N, bottleneck, 1, 1) -> transposed convolutions -> Tanh.

    The first block turns 1 x 1 into s x s pixels with s = image_size / 2^(blocks - 1). Each further
    block (kernel 4, stride 2, padding 1, BN, ReLU) doubles the side. A 1 x 1 convolution without
    bias gives the `out_channels`.

    Args:
        feature_dim, num_classes: sizes of z and of the one-hot vector.
        bottleneck: channels after the linear layer.
        channels: of each block.
        out_channels, image_size: of the map; 3 and 32 on CIFAR, 1 and 28 on MNIST (three blocks: 7,
            14, 28).
        first_skip: the block after which `forward` adds the deepest map; the other maps are added
            after the blocks that follow.

    Raises:
        ModelError: image_size cannot be reached by doubling, or there is no block `first_skip`.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        bottleneck: int = 100,
        channels: Sequence[int] = (512, 256, 128, 64),
        out_channels: int = 3,
        image_size: int = 32,
        first_skip: int = 1,
    ):
        super().__init__()
        channels = tuple(channels)
        require(
            len(channels) >= 1 and image_size % 2 ** (len(channels) - 1) == 0,
            f"a decoder with {len(channels)} blocks cannot end at image_size={image_size}: "
            f"it must be a multiple of {2 ** max(len(channels) - 1, 0)}",
        )
        require(
            1 <= first_skip <= len(channels),
            f"first_skip must be a block (1..{len(channels)}), got {first_skip}",
        )
        self.arch = {
            "feature_dim": feature_dim,
            "num_classes": num_classes,
            "bottleneck": bottleneck,
            "channels": list(channels),
            "out_channels": out_channels,
            "image_size": image_size,
            "first_skip": first_skip,
        }
        self.num_classes, self.first_skip, self.depth = num_classes, first_skip, len(channels)
        self.fc1 = nn.Linear(feature_dim + num_classes, bottleneck)
        before = bottleneck
        for i, after in enumerate(channels, 1):
            shape = (4, 2, 1) if i > 1 else (image_size // 2 ** (len(channels) - 1), 1, 0)
            self.add_module(
                f"conv_block{i}",
                nn.Sequential(
                    nn.ConvTranspose2d(before, after, *shape, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ),
            )
            before = after
        self.add_module(
            f"conv_block{self.depth + 1}",
            nn.Sequential(nn.ConvTranspose2d(before, out_channels, 1, bias=False), nn.Tanh()),
        )

    def forward(self, features: Tensor, labels: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        """Return the map, values in (-1, 1).

        Args:
            features: (N, feature_dim) pooled features of the classifier.
            labels: (N,) predicted classes.
            maps: stage outputs of the classifier, DEEPEST first, that is,
                `Classifier.stages(x)[::-1][:fw_layers - 1]`. Each is added to the block output of
                its size. Empty for fw_layers = 1.

        Returns:
            (N, out_channels, image_size, image_size).

        Raises:
            ModelError: too many maps, or a map of another size than the block's output.
        """
        one_hot = F.one_hot(labels, self.num_classes).to(features.dtype)
        x = self.fc1(torch.cat([features, one_hot], 1))[:, :, None, None]
        skips = dict(enumerate(maps, self.first_skip))
        if skips and max(skips) > self.depth:
            raise ModelError(
                f"this decoder takes at most {self.depth - self.first_skip + 1} maps, "
                f"got {len(maps)}"
            )
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"conv_block{i}")(x)
            if i in skips:
                if skips[i].shape != x.shape:
                    raise ModelError(
                        f"map {tuple(skips[i].shape)} cannot be added after block {i}, which gives "
                        f"{tuple(x.shape)}; use fw_layers=1 with this classifier"
                    )
                x = x + skips[i]
        return self.get_submodule(f"conv_block{self.depth + 1}")(x)


def decoder_for(network: Classifier, fw_layers: int = 1, **overrides) -> Decoder:
    """Build the decoder of a classifier.

    The five classifiers of the paper get the published decoder. Any other gets blocks that double
    from at most 8 x 8 pixels up to the image. A block has the channels of the classifier's stage of
    its size, else half the channels of the block before. The bottleneck has the channels of the
    first block.

    Args:
        fw_layers: 1 + the number of skip connections that will be used (1..4). They are tried here,
            before any training.
        overrides: arguments of the Decoder (bottleneck, channels, ...).

    Raises:
        ModelError: the classifier's stages do not fit as skip connections.
    """
    require(fw_layers in (1, 2, 3, 4), f"fw_layers must be 1, 2, 3 or 4, got {fw_layers!r}")
    arch = network.arch
    size, channels = arch["image_size"], arch["in_channels"]
    settings = {
        "feature_dim": network.fc.in_features,
        "num_classes": network.fc.out_features,
        "out_channels": channels,
        "image_size": size,
    }
    published = PUBLISHED.get((arch["arch"], network.fc.out_features))
    published_size = 64 if arch["arch"] == "resnet50" else 32
    unchanged = arch.get("width") in (None, 64, 2) and size == published_size
    if published and unchanged:
        settings |= dict(zip(("bottleneck", "channels", "first_skip"), published))
    else:
        settings |= _cut_to(network)
    decoder = Decoder(**{**settings, **overrides})
    if fw_layers > 1:
        stages = [stage.cpu() for stage in _stages(network)]
        features, label = torch.zeros(1, network.fc.in_features), torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            decoder.eval()(features, label, stages[::-1][: fw_layers - 1])
    return decoder.train()


def _stages(network: Classifier) -> list[Tensor]:
    """Return the stages of one blank image; the network keeps its mode (train or eval)."""
    size, channels = network.arch["image_size"], network.arch["in_channels"]
    was_training = network.training
    image = torch.zeros(1, channels, size, size, device=device_of(network))
    with torch.no_grad():
        stages = network.eval().stages(image)
    network.train(was_training)
    return stages


def _cut_to(network: Classifier) -> dict:
    """Return bottleneck, channels and first_skip that fit the stages of a classifier."""
    sides = [network.arch["image_size"]]
    while sides[-1] % 2 == 0 and sides[-1] > 7:
        sides.append(sides[-1] // 2)
    stages = _stages(network)
    widths = {stage.shape[-1]: stage.shape[1] for stage in stages}
    channels: list[int] = []
    for side in reversed(sides):
        if side in widths:
            channels.append(widths[side])
        elif channels:
            channels.append(max(channels[-1] // 2, 8))
        else:  # the first block: the nearest smaller stage
            smaller = [widths[s] for s in sorted(widths) if s <= side]
            channels.append(smaller[-1] if smaller else network.fc.in_features)
    deepest = stages[-1].shape[-1]
    first = list(reversed(sides)).index(deepest) + 1 if deepest in sides else 1
    return {"bottleneck": channels[0], "channels": channels, "first_skip": first}
