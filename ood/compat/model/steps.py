"""What a network with one feature map gives to detectors, step by step."""

from __future__ import annotations

from torch import Tensor, nn


class Steps:
    """Mixin of pytorch-ood's names for the steps from images to logits.

    A class defines `feature_maps` (one tensor, after the last activation), `embed` and `fc`.
    """

    fc: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        """Return the features (N, D), the input of `fc`."""
        return self.embed(self.feature_maps(x))

    def forward_feature_maps(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of feature maps (N, D, H', W')."""
        return self.fc(self.embed(x))

    def feature_list(self, x: Tensor) -> list[Tensor]:
        """Return maps (N, D, H', W'), features (N, D, 1, 1) and logits (N, num_classes)."""
        maps = self.feature_maps(x)
        features = self.embed(maps)
        return [maps, features[:, :, None, None], self.fc(features)]
