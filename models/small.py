"""A plain convolutional network for a demonstration on the CPU.

Its siblings small_resnet, small_wideresnet and small_densenet are the networks of resnet.py,
wideresnet.py and densenet.py with fewer and narrower layers and adaptive pooling. All take 28 x 28
or 32 x 32 images, grey or colour.
"""

from __future__ import annotations

from torch import Tensor, nn

from .classifier import Classifier, pool_window, require
from .registry import register


@register("small_cnn")
class SmallCNN(Classifier):
    """Three stages of conv3x3-BN-ReLU-MaxPool; the features are the mean over the last map.

    Args:
        width: channels of the first stage; the other stages have 2 and 4 times as many.

    Maps at 28 x 28 and width 32: (N, 32, 14, 14), (N, 64, 7, 7), (N, 128, 3, 3).
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, image_size: int = 32, *, width: int = 32
    ):
        super().__init__()
        require(width >= 1, f"width must be >= 1, got {width}")
        self.window = pool_window("small_cnn", "adaptive", 4, image_size, image_size // 8)
        self.stage1 = _stage(in_channels, width)
        self.stage2 = _stage(width, 2 * width)
        self.stage3 = _stage(2 * width, 4 * width)
        self.fc = nn.Linear(4 * width, num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = self.stage1(images)
        second = self.stage2(first)
        return [first, second, self.stage3(second)]


def _stage(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
