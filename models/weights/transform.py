"""From a picture to the input of a published network."""

from __future__ import annotations

import torch
from torch import Tensor


class ToChannels:
    """Make a PIL image RGB (3 channels) or grey (1 channel); a tensor stays as it is."""

    def __init__(self, channels: int):
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image):
        return image if isinstance(image, Tensor) else image.convert(self.mode)

    def __repr__(self) -> str:
        return f"ToChannels({self.mode})"


class ToPixels:
    """Turn a PIL image or a uint8 tensor into floats in [0, 1]; floats stay as they are."""

    def __call__(self, image) -> Tensor:
        from torchvision.transforms import functional

        if not isinstance(image, Tensor):
            return functional.to_tensor(image)
        return image if image.is_floating_point() else image.to(torch.get_default_dtype()) / 255

    def __repr__(self) -> str:
        return "ToPixels()"


def image_transform(mean, std, size, crop=None):
    """Make torchvision's transform of a PIL image: resized, cropped, in colour, normalised.

    It also takes tensors (C, H, W) and batches (N, C, H, W): uint8, or floats in [0, 1].

    Args:
        mean, std: one number per channel, for pixels in [0, 1].
        size: (height, width) to resize to, or the length of the shorter side.
        crop: (height, width) or side of the centre crop after that; None: no crop.
    """
    from torchvision import transforms

    size = size if isinstance(size, int) else list(size)
    return transforms.Compose(
        [
            transforms.Resize(size),
            *([] if crop is None else [transforms.CenterCrop(crop)]),
            ToChannels(len(mean)),
            ToPixels(),
            transforms.Normalize(list(mean), list(std)),
        ]
    )
