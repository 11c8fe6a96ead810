"""Auto-encoders whose reconstruction error weights the VMDLS score.

Source: Dinari & Freifeld, UAI 2022. They take the ResNet auto-encoder of lightning-bolts 0.2.5 for
CIFAR and one of their own for MNIST. Both are trained with the mean squared error. State-dict keys
are as in their files: encoder.*, fc, decoder.* (where theirs say downsample, ours say shortcut).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, one_of, require
from .mnist_conv import MnistConv
from .resnet import ResNet


class AutoEncoder(nn.Module):
    """encoder -> Linear -> decoder.

    It maps images (N, C, H, W) to reconstructions of the same shape, in the units of the input.
    """

    def __init__(self, encoder: Classifier, decoder: nn.Module, latent_dim: int, arch: dict):
        super().__init__()
        self.encoder, self.decoder, self.arch = encoder, decoder, arch
        self.fc = nn.Linear(encoder.fc.in_features, latent_dim)
        encoder.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.fc(self.encoder.features(images)))


def build_autoencoder(
    kind: str,
    latent_dim: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> AutoEncoder:
    """Build an auto-encoder with fresh weights; `build_autoencoder(**net.arch)` builds it again.

    Args:
        kind: 'resnet18' (VMDLS on CIFAR), 'resnet50' or 'mnist_conv' (VMDLS on MNIST).
        latent_dim: None: 256, as in VMDLS; for mnist_conv 32.
        in_channels, image_size: None: 3 and 32; for mnist_conv 1 and 28.

    Raises: ModelError for an unknown kind or a size that the decoder cannot reach.
    """
    one_of("auto-encoder", kind, ("resnet18", "resnet50", "mnist_conv"))
    mnist = kind == "mnist_conv"
    channels = in_channels or (1 if mnist else 3)
    size = image_size or (28 if mnist else 32)
    latent = latent_dim or (32 if mnist else 256)
    arch = {"kind": kind, "latent_dim": latent, "in_channels": channels, "image_size": size}
    if mnist:
        require(
            size == 28, f"the mnist_conv auto-encoder takes 28 x 28 images, got image_size={size}"
        )
        return AutoEncoder(
            MnistConv(1, channels, size), MnistConvDecoder(latent, channels), latent, arch
        )
    encoder = ResNet(1, channels, size, depth=int(kind.removeprefix("resnet")), pool="adaptive")
    encoder.stem_pool = False
    return AutoEncoder(encoder, ResNetDecoder(latent, channels, size, kind), latent, arch)


class Up(nn.Module):
    """Nearest-neighbour interpolation by a factor."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale)


def up_conv(channels: int, out_channels: int, kernel: int, scale: int) -> nn.Module:
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return conv if scale == 1 else nn.Sequential(Up(scale), conv)


class DecoderBlock(nn.Module):
    """3x3-BN-ReLU-(up)3x3-BN + shortcut, ReLU."""

    expansion = 1

    def __init__(self, channels: int, width: int, scale: int):
        super().__init__()
        self.conv1 = up_conv(channels, channels, 3, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = up_conv(channels, width, 3, scale)
        self.bn2 = nn.BatchNorm2d(width)
        self.upsample = up_shortcut(channels, width, scale)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.upsample(x))


class DecoderBottleneck(nn.Module):
    """1x1-BN-ReLU-(up)3x3-BN-ReLU-1x1(4 width)-BN + shortcut, ReLU."""

    expansion = 4

    def __init__(self, channels: int, width: int, scale: int):
        super().__init__()
        self.conv1 = up_conv(channels, width, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = up_conv(width, width, 3, scale)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = up_conv(width, 4 * width, 1, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.upsample = up_shortcut(channels, 4 * width, scale)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.upsample(x))


def up_shortcut(channels: int, out_channels: int, scale: int) -> nn.Sequential:
    if scale == 1 and channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(up_conv(channels, out_channels, 1, scale), nn.BatchNorm2d(out_channels))


class ResNetDecoder(nn.Module):
    """A ResNet in reverse: (N, latent_dim) -> (N, out_channels, image_size, image_size).

    There is no activation at the end.
    """

    def __init__(
        self,
        latent_dim: int = 256,
        out_channels: int = 3,
        image_size: int = 32,
        kind: str = "resnet18",
    ):
        super().__init__()
        one_of("decoder", kind, ("resnet18", "resnet50"))
        require(
            image_size % 8 == 0,
            "the ResNet decoder doubles three times: image_size must be a multiple of 8, "
            f"got {image_size}",
        )
        block, counts = DecoderBlock, (2, 2, 2, 2)
        if kind == "resnet50":
            block, counts = DecoderBottleneck, (3, 4, 6, 3)
        self.start = image_size // 8
        self.channels = channels = 512 * block.expansion
        self.linear = nn.Linear(latent_dim, channels * 4 * 4)
        for i, (width, count, scale) in enumerate(zip((256, 128, 64, 64), counts, (2, 2, 2, 1)), 1):
            blocks = []
            for j in range(count):
                blocks.append(block(channels, width, 1 if j else scale))
                channels = width * block.expansion
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).reshape(-1, self.channels, 4, 4)
        x = F.interpolate(x, size=(self.start, self.start))
        return self.conv1(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class MnistConvDecoder(nn.Module):
    """(N, latent_dim) -> 500 -> 100 x 3 x 3 -> six transposed convolutions -> (N, C, 28, 28).

    Four of them have kernel 2 and stride 1 (3 -> 7 pixels), two kernel 2 and stride 2 (7 -> 28).
    """

    def __init__(self, latent_dim: int = 32, out_channels: int = 1):
        super().__init__()
        self.latent = nn.Linear(latent_dim, 500)
        self.enc_layer = nn.Linear(500, 900)
        layers: list[nn.Module] = []
        for stride in (1, 1, 1, 1, 2, 2):
            layers += [nn.ConvTranspose2d(100, 100, 2, stride), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(100, out_channels, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.enc_layer(self.latent(z)).reshape(-1, 100, 3, 3))
