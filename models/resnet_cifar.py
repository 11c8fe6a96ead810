"""The ResNets that He et al. built for CIFAR-10: depths 20 to 110, with at most 64 channels.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, arXiv
1512.03385. Published weights: Y. Idelbayev, github.com/akamaster/pytorch_resnet_cifar10.

State-dict keys: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, fc (in the published files:
linear). A shortcut has no weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import DEEPEST, Classifier, require
from .registry import register


class CifarBlock(nn.Module):
    """conv3x3(stride)-BN-ReLU-conv3x3-BN + shortcut, ReLU.

    Where the shape changes, the shortcut takes every second pixel and adds channels of zeros, half
    of them before and half behind (option A of the paper).
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, more = stride, width - channels
        self.padding = (0, 0, 0, 0, more // 2, more - more // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)
        return F.relu(self.bn2(self.conv2(out)) + short)


@register("resnet20", fixed={"depth": 20})
@register("resnet32", fixed={"depth": 32})
@register("resnet44", fixed={"depth": 44})
@register("resnet56", fixed={"depth": 56})
@register("resnet110", fixed={"depth": 110})
class CifarResNet(Classifier):
    """ResNet of three stages with 16, 32 and 64 channels, and a plain average of the last map.

    Args:
        depth: 6 n + 2; a stage has n blocks.
        width: channels of the first stage (16); each further stage doubles them.

    Maps: the stage outputs; at 32 x 32 they are (N, 16, 32, 32), (N, 32, 16, 16), (N, 64, 8, 8).

    Convolutions and the head are initialised as in He et al., ICCV 2015 (fan-in, ReLU), as in the
    code of the published weights.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        depth: int = 20,
        width: int = 16,
    ):
        super().__init__()
        require(
            8 <= depth <= DEEPEST and (depth - 2) % 6 == 0,
            f"the depth of a CIFAR ResNet must be 6 n + 2 (20, 32, ... 110), got {depth}",
        )
        require(width >= 1, f"width must be >= 1, got {width}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage in range(3):
            out = width * 2**stage
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(CifarBlock(channels, out, 2 if stage and not i else 1))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = self.layer1(F.relu(self.bn1(self.conv1(images))))
        second = self.layer2(first)
        return [first, second, self.layer3(second)]
