"""torchvision's ResNet-18 and ResNet-50 with the steps that detectors ask for."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ood.compat.model.steps import Steps

__all__ = ["ResNet18", "ResNet50"]


class _ResNet(Steps, ResNet):
    """A ResNet of torchvision; its state dict has the same keys.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
    """

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the maps (N, D, H / 32, W / 32) of the last stage; D is 512 or 2048."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def embed(self, maps: Tensor) -> Tensor:
        return self.avgpool(maps).flatten(1)


class ResNet18(_ResNet):
    """ResNet-18 of torchvision.

    Args:
        num_classes: outputs of the head.
        weights: without effect; `load_model` loads weights.
        kwargs: further arguments of torchvision's ResNet.
    """

    def __init__(self, num_classes: int = 1000, weights: object | None = None, **kwargs):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, **kwargs)


class ResNet50(_ResNet):
    """ResNet-50 of torchvision. Args as for ResNet18."""

    def __init__(self, num_classes: int = 1000, weights: object | None = None, **kwargs):
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, **kwargs)
