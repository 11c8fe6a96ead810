"""Batches of pixels on any device: normalisation, and the augmentations of the four papers.

All random numbers come from a torch.Generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ood.config import InputError, nearest

ATTEMPTS = 10  # torchvision's RandomResizedCrop tries as often before it takes the centre
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
KINDS = ("none", "flip", "crop_flip", "resized_crop_flip", "rotate_resized_crop")


class Preprocess:
    """Normalise images: (images - mean) / std per channel, float32.

    Args:
        mean, std: C values each, in pixel units (0..1).

    Call with uint8 (B, C, H, W) 0..255, or floats in pixel units. The result is bit for bit that of
    torchvision's ToTensor and Normalize.

    Raises: InputError for lengths that differ, a std that is not positive, or other channels.
    """

    def __init__(self, mean, std):
        self.mean, self.std = _numbers("mean", mean), _numbers("std", std)
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                "mean and std must have one value per channel each, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if any(not s > 0 for s in self.std):
            raise InputError(f"std must be positive, got {self.std}")
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = self._constants(images)
        return to_pixels(images).sub(mean).div_(std)

    def undo(self, images: Tensor) -> Tensor:
        """Bring normalised images back to pixel units."""
        mean, std = self._constants(images)
        return images * std + mean

    def __repr__(self) -> str:
        return f"Preprocess(mean={self.mean}, std={self.std})"

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise InputError(
                f"images of shape {tuple(images.shape)} do not fit "
                f"a mean of {len(self.mean)} channel(s)"
            )
        if images.device not in self._on:
            self._on[images.device] = tuple(
                torch.tensor(v, device=images.device).view(1, -1, 1, 1)
                for v in (self.mean, self.std)
            )
        return self._on[images.device]


def _numbers(name: str, values) -> tuple[float, ...]:
    """Bring values to floats. Raises InputError for what is no sequence of finite numbers."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if isinstance(values, str) or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} must be one number per channel, got {values!r}")
    return numbers


def to_pixels(images: Tensor) -> Tensor:
    """Bring uint8 0..255 to float32 0..1; floats stay as they are (as float32)."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


class Augment:
    """Change the images of a batch at random, each in its own way. Apply before `Preprocess`.

    The dtype stays, and so does the shape, but for `size`.

    Args:
        kind: one of
            "none";
            "flip": left-right, p=0.5;
            "crop_flip": a crop of the original size after `padding` zeros on each side, then a flip
            (CIFAR);
            "resized_crop_flip": a crop of a share `scale` of the area, aspect 3/4..4/3, bilinearly
            resized to `size`, then a flip (Tiny ImageNet at 64 px). There is no antialiasing, so it
            is exact only where a crop is not larger than `size`;
            "rotate_resized_crop": a rotation within +-`degrees` (nearest pixel, 0 outside), then
            such a crop without a flip (VMDLS, MNIST: 10 degrees, scale 0.95..1).
        size: output side of the resized crops; default: the side of the input.
        padding: zeros on each side, for "crop_flip".
        scale: (low, high) share of the area; default: 0.08..1, or 0.95..1 with a rotation.
        degrees: largest rotation.

    Call with images (B, C, H, W), uint8 or float, and a generator, on the CPU or on the images'
    device (default: torch's own). Numbers are drawn on the generator's device, so a CPU generator
    gives the same augmentation on every device.

    Raises: InputError for an unknown kind, or a scale that is no range of shares.
    """

    def __init__(
        self,
        kind: str = "crop_flip",
        *,
        size: int | None = None,
        padding: int = 4,
        scale: tuple[float, float] | None = None,
        degrees: float = 10.0,
    ):
        if kind not in KINDS:
            raise InputError(
                f"unknown augmentation '{kind}'{nearest(kind, KINDS)}; known: {', '.join(KINDS)}"
            )
        self.kind, self.size, self.padding, self.degrees = kind, size, padding, degrees
        self.scale = tuple(scale or ((0.95, 1.0) if kind == "rotate_resized_crop" else (0.08, 1.0)))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(
                f"scale {self.scale} must be two shares of the area, 0 < low <= high <= 1"
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.kind == "crop_flip":
            images = random_crop(images, self.padding, generator)
        elif self.kind == "resized_crop_flip":
            images = random_resized_crop(
                images, self.size or images.shape[-1], self.scale, generator
            )
        elif self.kind == "rotate_resized_crop":
            images = rotate(images, uniform(len(images), -self.degrees, self.degrees, generator))
            images = random_resized_crop(
                images, self.size or images.shape[-1], self.scale, generator
            )
        return random_flip(images, generator) if self.kind.endswith("flip") else images

    def __repr__(self) -> str:
        return (
            f"Augment({self.kind!r}, size={self.size}, padding={self.padding}, "
            f"scale={self.scale}, degrees={self.degrees})"
        )


class PartGenerator(torch.Generator):
    """Random numbers for one part of a batch that several processes share.

    The functions of this module draw for the whole batch and keep the rows of their part. So the
    processes together augment as a single one would. Code that draws from the generator itself gets
    other numbers in every process.

    Attributes:
        part: (first image of the part, images of the whole batch).
        shared: the stream that is the same in all processes; None for a single process.
    """

    part: tuple[int, int] | None = None
    shared: torch.Generator | None = None

    def seed_parts(self, seed: int, rank: int = 0, processes: int = 1) -> PartGenerator:
        """Start the streams anew for one of several processes; gives the generator itself."""
        self.manual_seed(seed if processes == 1 else seed + 1 + rank)
        self.shared = None if processes == 1 else torch.Generator(self.device).manual_seed(seed)
        return self


def random_crop(images: Tensor, padding: int, generator: torch.Generator | None = None) -> Tensor:
    """Crop each image at its own offset inside a frame of zeros.

    Offsets are uniform in 0..2*padding on both axes.
    """
    count, _, height, width = images.shape
    offsets = _drawn(
        lambda n, g: torch.randint(2 * padding + 1, (2, n), generator=g, device=_device(g)),
        count,
        generator,
        dim=1,
    ).to(images.device)
    return crop_at(images, padding, *offsets)


def crop_at(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Crop to the original size at (top, left) of the padded images.

    Args:
        top, left: (B,), in 0..2*padding.
    """
    height, width = images.shape[-2:]
    framed = functional.pad(images, (padding,) * 4)
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flip left-right with probability 1/2."""
    flipped = uniform(len(images), 0, 1, generator).to(images.device) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def random_resized_crop(
    images: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator | None = None
) -> Tensor:
    """Cut a random box out of each image and resize it to size x size, bilinearly.

    A box has a share `scale` of the area and an aspect of 3/4..4/3.
    """
    boxes = draw_boxes(len(images), *images.shape[-2:], scale, generator)
    return resize_boxes(images, boxes.to(images.device), size)


def draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw boxes (count, 4): integers top, left, height, width.

    They are distributed as in torchvision's RandomResizedCrop: ten attempts, then the centre.
    """
    area = height * width * uniform((count, ATTEMPTS), *scale, generator)
    aspect = torch.exp(uniform((count, ATTEMPTS), *LOG_RATIO, generator))
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    chosen = fits.int().argmax(1, keepdim=True)  # the first attempt that fits
    w, h = w.gather(1, chosen).squeeze(1), h.gather(1, chosen).squeeze(1)
    top = (uniform(count, 0, 1, generator) * (height - h + 1)).floor()
    left = (uniform(count, 0, 1, generator) * (width - w + 1)).floor()
    none = ~fits.any(1)
    centre_w, centre_h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    centre = torch.tensor(
        [(height - centre_h) // 2, (width - centre_w) // 2, centre_h, centre_w],
        dtype=w.dtype,
        device=w.device,
    )
    return torch.where(none[:, None], centre, torch.stack((top, left, h, w), 1)).long()


def resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize one box of each image to size x size, bilinearly; no pixel outside it leaks in.

    Args:
        boxes: (B, 4), top, left, height, width.
    """
    top, left, height, width = boxes.to(torch.float32).unbind(1)
    # Centres of the output pixels, as a share of the box.
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    y = top[:, None] + _clamped(steps * height[:, None] - 0.5, height)  # (B, size), in input pixels
    x = left[:, None] + _clamped(steps * width[:, None] - 0.5, width)
    grid = torch.stack((x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), -1)
    return _sample(images, grid, "bilinear")


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre by degrees (B,).

    Each pixel is the nearest one; there are zeros outside (torchvision's default).
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.to(images.device))[:, None, None]
    y = torch.arange(height, device=images.device)[None, :, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device)[None, None, :] - (width - 1) / 2
    source_x = torch.cos(angle) * x - torch.sin(angle) * y + (width - 1) / 2
    source_y = torch.sin(angle) * x + torch.cos(angle) * y + (height - 1) / 2
    return _sample(images, torch.stack((source_x, source_y), -1), "nearest")


def _sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Sample images at grid (B, H', W', 2) of pixel coordinates (x, y); the dtype stays."""
    sides = torch.tensor([images.shape[-1], images.shape[-2]], device=images.device)
    values = functional.grid_sample(
        images.float(), (2 * grid + 1) / sides - 1, mode, "zeros", align_corners=False
    )
    if images.dtype == torch.uint8:
        return values.round_().clamp_(0, 255).to(torch.uint8)
    return values.to(images.dtype)


def _clamped(position: Tensor, side: Tensor) -> Tensor:
    return torch.minimum(position.clamp(min=0), side[:, None] - 1)


def uniform(shape, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Draw uniform numbers for a batch: (count,) or (count, ...), with the part's rows alone."""
    count, *rest = (shape,) if isinstance(shape, int) else shape
    return low + (high - low) * _drawn(
        lambda n, g: torch.rand(n, *rest, generator=g, device=_device(g)), count, generator
    )


def _drawn(
    draw: Callable[[int, torch.Generator | None], Tensor],
    count: int,
    generator: torch.Generator | None,
    dim: int = 0,
) -> Tensor:
    """Draw random numbers for `count` images along `dim`.

    A PartGenerator draws for the whole batch, and keeps the numbers of its part.
    """
    shared = getattr(generator, "shared", None)
    if shared is None:
        return draw(count, generator)
    start, whole = generator.part
    return draw(whole, shared).narrow(dim, start, count)


def _device(generator: torch.Generator | None):
    return generator.device if generator is not None else "cpu"
