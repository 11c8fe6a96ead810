"""The VGG network of VMDLS.

Source: Dinari & Freifeld, UAI 2022 (encoder `vgg`). Their VAE has no classifier; the head `fc` is
ours. State-dict keys: encoder.{0..30} as in their files, and fc.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, average, require
from .registry import register

LAYOUT = (64, 128, "pool", 256, 256, "pool", 256, 256, 256, 256, "pool")
CUTS = (5, 12, 25)  # where the three stages of `encoder` end: after the BN, before the last ReLU


@register("vgg")
class VGG(Classifier):
    """Eight conv3x3-BN-ReLU in three stages, then two linear layers with ReLU; no dropout.

    At 32 x 32 the linear layers map 256 * 4 * 4 -> 1024 -> 1024.

    Stages: (N, 128, 32, 32), (N, 256, 16, 16), (N, 256, 8, 8), each before its last ReLU.
    Maps: the same after that ReLU.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 32):
        super().__init__()
        require(
            image_size >= 8,
            "vgg halves its images three times: at least 8 x 8 pixels, "
            f"got image_size={image_size}",
        )
        layers, channels = [], in_channels
        for entry in LAYOUT:
            if entry == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(channels, entry, 3, padding=1),
                    nn.BatchNorm2d(entry),
                    nn.ReLU(),
                ]
                channels = entry
        side = image_size // 8
        layers += [
            nn.Flatten(),
            nn.Linear(channels * side * side, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
        ]
        self.encoder = nn.Sequential(*layers)
        self.fc = nn.Linear(1024, num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        outputs, start, x = [], 0, images
        for cut in CUTS:
            x = self.encoder[start:cut](x)
            outputs.append(x)
            start = cut
        return outputs

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return [F.relu(stage) for stage in stages]

    def embed(self, last_map: Tensor) -> Tensor:
        return self.encoder[CUTS[-1] + 1 :](last_map)

    def pool_taps(self, stages, maps, features) -> list[Tensor]:
        return [average(stage, None) for stage in stages] + [features]
