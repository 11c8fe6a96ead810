"""ResNets for small images: no 7 x 7 stem, no max-pool at 32 x 32.

Source: He et al., CVPR 2016, arXiv 1512.03385, in the form of two other papers. Hornauer &
Belagiannis ("Heatmap-based Out-of-Distribution Detection", WACV 2023, arXiv 2211.08115) train depth
18 for CIFAR and 50 for Tiny ImageNet. VMDLS trains depth 18 for CIFAR, with pool='adaptive'.

State-dict keys: conv1, bn1, layer{1..4}.{i}.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, fc (in the
heatmap authors' files: linear). Weights are initialised by PyTorch's defaults.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, pool_window, require
from .registry import register


class BasicBlock(nn.Module):
    """conv3x3(stride)-BN-ReLU-conv3x3-BN + shortcut, ReLU."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """conv1x1-BN-ReLU-conv3x3(stride)-BN-ReLU-conv1x1(4 width)-BN + shortcut, ReLU."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return the identity, or a strided 1 x 1 projection with BN where the shape changes."""
    if stride == 1 and channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


LAYOUTS = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


@register("resnet18", fixed={"depth": 18})
@register("resnet34", fixed={"depth": 34})
@register("resnet50", fixed={"depth": 50})
@register("small_resnet", fixed={"depth": 10}, width=16, pool="adaptive")
class ResNet(Classifier):
    """ResNet with a 3 x 3 stem; with images of 64 pixels or more, a 2 x 2 max-pool follows it.

    Args:
        depth: 10, 18, 34 or 50.
        width: channels of the stem and the first stage (64); each further stage doubles them.
        pool: '4x4', as released by the heatmap authors, or 'adaptive' (VMDLS). Both give the same
            on 32 x 32 images, but not on 36 x 36.

    Maps: the four stage outputs; for resnet18 at 32 x 32 they are (N, 64, 32, 32),
    (N, 128, 16, 16), (N, 256, 8, 8), (N, 512, 4, 4).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        depth: int = 18,
        width: int = 64,
        pool: str = "4x4",
    ):
        super().__init__()
        require(depth in LAYOUTS, f"a ResNet has depth {', '.join(map(str, LAYOUTS))}, got {depth}")
        require(width >= 1, f"width must be >= 1, got {width}")
        block, counts = LAYOUTS[depth]
        self.stem_pool = image_size >= 64
        last = -(-(image_size // 2 if self.stem_pool else image_size) // 8)
        self.window = pool_window(f"resnet{depth}", pool, 4, image_size, last)
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                blocks.append(block(channels, width * 2**i, 2 if i and not j else 1))
                channels = width * 2**i * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 2) if self.stem_pool else x
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outputs.append(x)
        return outputs
