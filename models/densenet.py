"""DenseNet-BC, the network of DICE, ODIN, the leave-out ensemble and VMDLS on CIFAR.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993
(DenseNet-BC, depth 100, growth 12).

State-dict keys are as in the public weight files of the papers above: conv1,
block{1,2,3}.layer.{i}.{bn1,conv1,bn2,conv2}, trans{1,2}.{bn1,conv1}, bn1, fc.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import DEEPEST, Classifier, init_fan_out, one_of, pool_window, require
from .dropout import drop
from .registry import register


class Layer(nn.Module):
    """BN-ReLU-1x1(4 growth)-BN-ReLU-3x3(growth), whose result is appended to the input.

    (N, C, H, W) -> (N, C + growth, H, W).
    """

    def __init__(self, channels: int, growth: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        new = self._drop(self.conv1(F.relu(self.bn1(x))))
        new = self._drop(self.conv2(F.relu(self.bn2(new))))
        return torch.cat([x, new], 1)

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self.dropout, self.training) if self.dropout else x


class Block(nn.Module):
    """`count` layers at one resolution."""

    def __init__(self, channels: int, growth: int, count: int, dropout: float):
        super().__init__()
        self.layer = nn.Sequential(
            *(Layer(channels + i * growth, growth, dropout) for i in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Transition(nn.Module):
    """BN-ReLU-1x1-average pool 2: (N, C, H, W) -> (N, C_out, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


@register("densenet")
@register("small_densenet", depth=22, pool="adaptive")
class DenseNet(Classifier):
    """DenseNet-BC with three blocks; channels at depth 100: 24 -> 216 -> 108 -> 300 -> 150 -> 342.

    Args:
        depth: 6 n + 4, with n layers in a block.
        growth: new channels per layer.
        reduction: share of the channels that a transition keeps.
        dropout: rate after each convolution of a layer.
        pool: '8x8', as released (for 32 x 32 images; 36 x 36 images lose a border), or 'adaptive'.
        init: 'fan_out' as in the leave-out ensemble, 'released' as in DICE's and VMDLS's code, or
            'default' for PyTorch's. In the released code the n of sqrt(2 / n) holds the layers of a
            block, so every convolution gets the standard deviation sqrt(2 / 16) = 0.354.

    Maps: after transition 1, after transition 2, after the final BN and ReLU (as VMDLS taps them).
    Stages: the same, but the last one is before the final BN.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        depth: int = 100,
        growth: int = 12,
        reduction: float = 0.5,
        dropout: float = 0.0,
        pool: str = "8x8",
        init: str = "fan_out",
    ):
        super().__init__()
        require(
            depth >= 10 and (depth - 4) % 6 == 0,
            f"the depth of a DenseNet-BC must be 6 n + 4 (10, 16, ... 100), got {depth}",
        )
        require(depth <= DEEPEST, f"the depth may be {DEEPEST} at most, got {depth}")
        require(
            growth >= 1 and 0 < reduction <= 1,
            f"growth must be >= 1 and reduction in (0, 1], got {growth}, {reduction}",
        )
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        one_of("init", init, ("fan_out", "released", "default"))
        self.window = pool_window("densenet", pool, 8, image_size, image_size // 4)
        count, channels = (depth - 4) // 6, 2 * growth
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            self.add_module(f"block{i}", Block(channels, growth, count, dropout))
            channels += count * growth
            if i < 3:
                kept = int(channels * reduction)
                self.add_module(f"trans{i}", Transition(channels, kept))
                channels = kept
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        if init != "default":
            init_fan_out(self)
        if init == "released":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, 0, (2 / count) ** 0.5)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = self.trans1(self.block1(self.conv1(images)))  # (N, 108, 16, 16)
        second = self.trans2(self.block2(first))  # (N, 150, 8, 8)
        return [first, second, self.block3(second)]  # (N, 342, 8, 8)

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return [*stages[:-1], F.relu(self.bn1(stages[-1]))]
