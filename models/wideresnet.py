"""Wide ResNets under three names.

- `wrn`: the network of ODIN, the leave-out ensemble, Outlier Exposure and energy_ood.
- `vmdls_wrn`: the same with the settings of VMDLS.
- `wideresnet`: the network of the heatmap paper.

Source: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import DEEPEST, Classifier, init_fan_out, one_of, pool_window, require
from .dropout import drop
from .registry import register

POSITIONS = ("before_conv2", "before_bn2")


class WRNBlock(nn.Module):
    """Pre-activation block.

    Where the width changes, the ACTIVATED input feeds the 1 x 1 shortcut as well as conv1.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        dropout: float,
        position: str,
        drop_at_test: bool,
    ):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = (
            None if channels == width else nn.Conv2d(channels, width, 1, stride, bias=False)
        )
        self.dropout, self.position, self.drop_at_test = dropout, position, drop_at_test

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self._drop(self.conv1(active), "before_bn2")
        out = self.conv2(self._drop(F.relu(self.bn2(out)), "before_conv2"))
        return out + (x if self.convShortcut is None else self.convShortcut(active))

    def _drop(self, x: Tensor, position: str) -> Tensor:
        if not self.dropout or position != self.position:
            return x
        return drop(x, self.dropout, self.training or self.drop_at_test)


class WRNGroup(nn.Module):
    """The blocks of one width."""

    def __init__(self, channels: int, width: int, stride: int, count: int, *dropout):
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WRNBlock(width if i else channels, width, 1 if i else stride, *dropout)
                for i in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@register("wrn")
@register("vmdls_wrn", dropout=0.1, init="default")
@register("small_wideresnet", depth=10, width=2, pool="adaptive")
class WRN(Classifier):
    """Wide ResNet with bias-free convolutions; at width 10: 16 -> 160 -> 320 -> 640 channels.

    State-dict keys: conv1, block{1,2,3}.layer.{i}.{bn1,conv1,bn2,conv2},
    block{1,2,3}.layer.0.convShortcut, bn1, fc.

    Args:
        depth, width: 28, 10 in ODIN, the leave-out ensemble and VMDLS; 40, 2 in Outlier Exposure
            and energy_ood.
        dropout: rate. The leave-out ensemble and Outlier Exposure train with 0.3, VMDLS with 0.1,
            ODIN with 0.
        dropout_position: 'before_conv2' (leave-out, Outlier Exposure) or 'before_bn2' (ODIN).
        dropout_at_test: True: dropout stays on at test time, so scores are random. VMDLS's code
            does so; its paper does not ask for it.
        pool: '8x8' or 'adaptive'.
        init: 'fan_out', or 'default' for PyTorch's (VMDLS).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        dropout_position: str = "before_conv2",
        dropout_at_test: bool = False,
        pool: str = "8x8",
        init: str = "fan_out",
    ):
        super().__init__()
        count = blocks_per_group(depth, width, dropout)
        one_of("dropout_position", dropout_position, POSITIONS)
        one_of("init", init, ("fan_out", "default"))
        self.window = pool_window("wrn", pool, 8, image_size, -(-image_size // 4))
        drop = (dropout, dropout_position, dropout_at_test)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = WRNGroup(16, 16 * width, 1, count, *drop)
        self.block2 = WRNGroup(16 * width, 32 * width, 2, count, *drop)
        self.block3 = WRNGroup(32 * width, 64 * width, 2, count, *drop)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        if init == "fan_out":
            init_fan_out(self)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = self.block1(self.conv1(images))  # (N, 16 width, 32, 32)
        second = self.block2(first)  # (N, 32 width, 16, 16)
        return [first, second, self.block3(second)]  # (N, 64 width, 8, 8), before bn1 and ReLU

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return [*stages[:-1], F.relu(self.bn1(stages[-1]))]


class BiasedBlock(nn.Module):
    """Pre-activation block of the heatmap paper.

    Its convolutions have biases, the stride is on the SECOND convolution, and the shortcut takes
    the raw input.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1)
        changes = stride != 1 or channels != width
        self.shortcut = nn.Sequential(*([nn.Conv2d(channels, width, 1, stride)] if changes else []))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        out = drop(self.conv1(F.relu(self.bn1(x))), self.dropout, self.training)
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


@register("wideresnet")
class WideResNet(Classifier):
    """Wide ResNet of the heatmap paper; at width 2: 16 -> 32 -> 64 -> 128 channels.

    State-dict keys: conv1, layer{1,2,3}.{i}.{bn1,conv1,bn2,conv2,shortcut.0}, bn1, fc (in the
    authors' files: linear). Weights are initialised by PyTorch's defaults.

    Source: Hornauer & Belagiannis, WACV 2023, arXiv 2211.08115.

    Args:
        depth, width: 40, 2.
        dropout: rate between conv1 and bn2.
        final_momentum: of the last BN. It is 0.9 as released, so the running statistics follow the
            last few training batches.
        pool: '8x8' or 'adaptive'.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        depth: int = 40,
        width: int = 2,
        dropout: float = 0.3,
        final_momentum: float = 0.9,
        pool: str = "8x8",
    ):
        super().__init__()
        count = blocks_per_group(depth, width, dropout)
        require(0 < final_momentum <= 1, f"final_momentum must be in (0, 1], got {final_momentum}")
        self.window = pool_window("wideresnet", pool, 8, image_size, -(-image_size // 4))
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1)
        channels = 16
        for i in (1, 2, 3):
            out = 16 * width * 2 ** (i - 1)
            blocks = [
                BiasedBlock(out if j else channels, out, 2 if i > 1 and not j else 1, dropout)
                for j in range(count)
            ]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            channels = out
        self.bn1 = nn.BatchNorm2d(channels, momentum=final_momentum)
        self.fc = nn.Linear(channels, num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = self.layer1(self.conv1(images))  # (N, 32, 32, 32)
        second = self.layer2(first)  # (N, 64, 16, 16)
        third = self.layer3(second)  # (N, 128, 8, 8), before bn1 and ReLU: may be negative
        return [first, second, third]

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return [*stages[:-1], F.relu(self.bn1(stages[-1]))]


def blocks_per_group(depth: int, width: int, dropout: float) -> int:
    """Return how many blocks each of the three groups has. Raises ModelError for bad arguments."""
    require(
        depth >= 10 and (depth - 4) % 6 == 0,
        f"the depth of a wide ResNet must be 6 n + 4 (10, 16, ... 28, 40), got {depth}",
    )
    require(depth <= DEEPEST, f"the depth may be {DEEPEST} at most, got {depth}")
    require(
        width >= 1 and 0 <= dropout < 1,
        f"width must be >= 1 and dropout in [0, 1), got {width}, {dropout}",
    )
    return (depth - 4) // 6
