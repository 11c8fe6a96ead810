"""The Wide ResNet of `models.wideresnet` with pytorch-ood's arguments and names."""

from __future__ import annotations

from torch import Tensor, nn

from ood.compat.model import registry
from ood.compat.model.steps import Steps
from ood.deployment import networks

__all__ = ["BasicBlock", "NetworkBlock", "WideResNet"]

_ours = networks.submodule("wideresnet")
# Names of weights that pytorch-ood took before version 0.4, and their names since then.
OLDER = {
    "cifar10-pt": "wrn-40-2/cifar10/crossentropy",
    "cifar100-pt": "wrn-40-2/cifar100/crossentropy",
    "oe-cifar10-tune": "wrn-40-2/cifar10/oe",
    "oe-cifar100-tune": "wrn-40-2/cifar100/oe",
    "er-cifar10-tune": "wrn-40-2/cifar10/energy/s1",
    "er-cifar100-tune": "wrn-40-2/cifar100/energy/s1",
    "imagenet32": "wrn-40-2/imagenet32/crossentropy",
    "imagenet32-nocifar": "wrn-40-2/imagenet32-nocifar/crossentropy",
    "cifar10-pixmix": "wrn-40-4/cifar10/pixmix",
    "cifar100-pixmix": "wrn-40-4/cifar100/pixmix",
}


class BasicBlock(_ours.WRNBlock):
    """A pre-activation block of a Wide ResNet; dropout comes before its second convolution."""

    def __init__(self, in_planes, out_planes, stride, dropRate=0.0):
        super().__init__(in_planes, out_planes, stride, dropRate, "before_conv2", False)


class NetworkBlock(nn.Module):
    """`nb_layers` blocks in a row; the first one changes the width and takes the stride."""

    def __init__(self, nb_layers, in_planes, out_planes, block, stride, dropRate=0.0):
        super().__init__()
        shapes = [(in_planes, stride), *[(out_planes, 1)] * (int(nb_layers) - 1)]
        self.layer = nn.Sequential(*(block(n, out_planes, s, dropRate) for n, s in shapes))

    def forward(self, x):
        return self.layer(x)


class WideResNet(Steps, _ours.WRN):
    """Wide ResNet for images of 32 x 32 pixels; WRN-40-2 unless other arguments are given.

    `feature_maps` is the last map alone here, (N, 64 widen_factor, 8, 8). `stages` and `everything`
    of our networks are there too.

    Differs from pytorch-ood: images of another size raise a ModelError; there, an image of 64 x 64
    pixels counts as four.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.

    Args:
        num_classes: outputs of the head.
        depth: 6 n + 4; each of the three groups has n blocks.
        widen_factor: the groups have 16, 32 and 64 times as many channels.
        drop_rate: of the dropout in each block.
        in_channels: channels of the images.
        pretrained: name of published weights, as pytorch-ood took it before version 0.4 (a key of
            OLDER) or since then (see `list_models`); None: fresh weights.

    Raises: ValueError for unknown weights; RuntimeError as `load_model`, and if they do not fit.
    """

    def __init__(
        self,
        num_classes,
        depth=40,
        widen_factor=2,
        drop_rate=0.3,
        in_channels=3,
        pretrained: str | None = None,
    ):
        options = {"depth": depth, "width": widen_factor, "dropout": drop_rate}
        super().__init__(num_classes, in_channels, **options)
        self.nChannels = self.fc.in_features
        shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": 32}
        self.arch = {"arch": "wrn", **shape, **options}
        if pretrained is not None:
            registry.load_into(self, _current(pretrained))

    @staticmethod
    def transform_for(pretrained: str):
        """Return the transform from PIL images to the input of published weights.

        Raises: ValueError for unknown weights.
        """
        return registry.load_transform(_current(pretrained))

    @staticmethod
    def norm_std_for(pretrained: str) -> list[float]:
        """Return the std of that transform's normalisation, one per channel, for ODIN.

        Raises: ValueError for unknown weights.
        """
        return list(WideResNet.transform_for(pretrained).transforms[-1].std)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, C, 32, 32)."""
        return self.fc(self.features(x))

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the maps (N, D, 8, 8) after the last norm and ReLU, of images (N, C, 32, 32)."""
        return self.finish(self.stages(x))[-1]


def _current(name: str) -> str:
    """Return today's name of weights."""
    return OLDER.get(name, name)
