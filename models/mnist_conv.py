"""The convolutional MNIST network of VMDLS.

Source: Dinari & Freifeld, UAI 2022 (encoder `mnist-conv`). Their VAE has no classifier; the head
`fc` is ours. State-dict keys: encoder.{0,2,5,7,10} and dec_layer as in their files, and fc.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, average, require
from .registry import register

CUTS = (3, 5, 7, 11)  # after conv 2; after its ReLU and pool; after conv 3 and ReLU; after conv 5


@register("mnist_conv", in_channels=1, image_size=28)
class MnistConv(Classifier):
    """Five conv3x3 of 100 channels, then a linear layer to 500 features without activation.

    Max-pools follow convolutions 2, 4 and 5: 28 -> 14 -> 7 -> 3 pixels.

    Stages, as VMDLS taps them:
    - convolution 2 before its ReLU, (N, 100, 28, 28);
    - the same after ReLU and pool, (N, 100, 14, 14);
    - convolution 3 after its ReLU, (N, 100, 14, 14);
    - convolution 5 before its ReLU, (N, 100, 7, 7).
    Maps: the same, but the last one is after its ReLU.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, image_size: int = 28):
        super().__init__()
        require(
            image_size >= 8,
            "mnist_conv halves its images three times: at least 8 x 8 pixels, "
            f"got image_size={image_size}",
        )

        def conv(channels):
            return [nn.Conv2d(channels, 100, 3, padding=1), nn.ReLU()]

        self.encoder = nn.Sequential(
            *conv(in_channels),
            *conv(100),
            nn.MaxPool2d(2),
            *conv(100),
            *conv(100),
            nn.MaxPool2d(2),
            *conv(100),
            nn.MaxPool2d(2),
        )
        side = image_size // 8
        self.dec_layer = nn.Linear(100 * side * side, 500)
        self.fc = nn.Linear(500, num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        outputs, start, x = [], 0, images
        for cut in CUTS:
            x = self.encoder[start:cut](x)
            outputs.append(x)
            start = cut
        return outputs

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return [*stages[:-1], F.relu(stages[-1])]

    def embed(self, last_map: Tensor) -> Tensor:
        return self.dec_layer(F.max_pool2d(last_map, 2).flatten(1))

    def pool_taps(self, stages, maps, features) -> list[Tensor]:
        return [average(stage, None) for stage in stages[:3]] + [features]
