"""PixMix: training images mixed with fractals and other pictures, on whole batches.

pictures = load_pictures("fractals+feature_visualisations", "./datasets", side=32, channels=3)
augment = PixMix(pictures, Mixing(k=4, beta=3))
images = augment(images, generator)     # uint8 in, float32 in pixel units out
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ood.config import InputError, check_settings, check_word, ranged
from ood.data import auxiliary, transforms
from ood.data.images import ImageSet
from ood.data.transforms import KINDS, Augment

ENLARGED = 9 / 8  # side of a picture before its random crop: 36 pixels for images of 32
LEAST_LEVEL = 0.1  # of an operation; the largest is the severity
TINY = 1e-37  # the base of a negative power, as in the authors' code
ROUNDING = 1e-3  # keeps whole numbers that float32 misses by a little
LUMA = (19595, 38470, 7471)  # Pillow's grey value, in shares of 2^16


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The parameters of PixMix.

    Attributes:
        k: largest number of rounds. Each image gets 0 to k rounds, all equally likely.
        beta: of the Beta distributions that the weights follow. A larger one keeps more of the
            image. The authors take 3 for CIFAR and 4 for ImageNet.
        severity: largest strength of an operation, in (0.1, 10]. 3 for CIFAR, 1 for ImageNet.
        all_ops: also change colour, contrast, brightness and sharpness. Some benchmarks of
            corruptions test just these, so the authors leave them out for CIFAR.
        probability: of an operation instead of the plain image at the start, and of a changed
            copy of the image instead of a picture in every round.
        base: the usual augmentation, done before the mixing; a kind of `Augment`.

    Raises: InputError for a value out of its range.
    """

    k: int = ranged(4, 0, 100)
    beta: float = ranged(3.0, above=0, high=1e6)
    severity: float = ranged(3.0, above=LEAST_LEVEL, high=10)
    all_ops: bool = False
    probability: float = ranged(0.5, 0, 1)
    base: str = "crop_flip"

    def __post_init__(self):
        check_settings(self)
        check_word("base", self.base, KINDS)


class PixMix:
    """Mix each image of a batch with changed copies of itself and with pictures.

    An image begins plain, or changed by one operation. Each round mixes it with a changed copy of
    the image or with the image's picture, by a weighted sum or a weighted product, and clips the
    result to [0, 1]. All random numbers are uniform and come from the generator, so the result
    follows from its seed.

    Args:
        pictures: an ImageSet of pictures of the images' shape or larger, see `load_pictures`. Each
            image draws one of them, and a crop of it at random.

    Call with images (B, C, H, W), uint8 or float in pixel units, and a generator. Returns float32
    in pixel units (0..1), on the device of the images.

    Source: Hendrycks et al., CVPR 2022, arXiv 2112.05135, and the authors' code. They change one
    image at a time with Pillow; operations here give Pillow's pixels, geometric ones within 1/255.
    """

    def __init__(self, pictures: ImageSet, mixing: Mixing | None = None):
        if not len(pictures):
            raise InputError(f"the mixing set '{pictures.name}' holds no picture")
        self.pictures, self.mixing = pictures, mixing or Mixing()
        self.base = Augment(self.mixing.base)
        self.operations = OPERATIONS + (COLOUR_OPERATIONS if self.mixing.all_ops else ())

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        images = as_bytes(self.base(images, generator))
        draw = self.draw(len(images), generator).to(images.device)
        return self.mix(images, draw)

    def __repr__(self) -> str:
        return f"PixMix({self.pictures!r}, {self.mixing})"

    @property
    def numbers(self) -> int:
        """Uniform numbers that one image takes."""
        return 8 + 8 * self.mixing.k

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the numbers (count, numbers), uniform in [0, 1).

        Columns: the number of rounds; picture, top and left of its crop; then for the start and
        each round whether an operation is applied, which, its level, its sign; then for each round
        sum or product, the side of the weights, and the two weights.
        """
        return transforms.uniform((count, self.numbers), 0, 1, generator)

    def mix(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Mix uint8 images (B, C, H, W) as the numbers `drawn` (B, numbers) say."""
        k, count = self.mixing.k, len(images)
        first, slots = drawn[:, :4], drawn[:, 4 : 8 + 4 * k].reshape(count, k + 1, 4)
        rounds = _index(first[:, 0], k + 1)
        weights = drawn[:, 8 + 4 * k :].reshape(count, k, 4)
        active = torch.arange(k + 1, device=images.device) <= rounds[:, None]  # (B, k + 1)
        changed = slots[..., 0] < self.mixing.probability
        copies, place = self._copies(images, slots, active & changed)
        mixed = transforms.to_pixels(images.clone())
        start = changed[:, 0]
        mixed[start] = transforms.to_pixels(copies[place[start, 0]])
        pictures, seat = self._pictures(images, first, (active & ~changed)[:, 1:].any(1))
        for turn in range(1, k + 1):
            rows = active[:, turn].nonzero()[:, 0]
            if not len(rows):
                break
            other, own = torch.empty_like(mixed[rows]), changed[rows, turn]
            other[own] = transforms.to_pixels(copies[place[rows[own], turn]])
            other[~own] = pictures[seat[rows[~own]]]
            mixed[rows] = self.step(mixed[rows], other, weights[rows, turn - 1])
        return mixed

    def step(self, images: Tensor, others: Tensor, drawn: Tensor) -> Tensor:
        """One round: the sum or the product of images and others (B, C, H, W), clipped.

        Args: drawn: (B, 4) uniform numbers: sum or product, side, and the two weights.
        """
        product, *others_drawn = (column.view(-1, 1, 1, 1) for column in drawn.unbind(1))
        a, b = weights(self.mixing.beta, *others_drawn)
        mixed = torch.where(
            product < 0.5, summed(images, others, a, b), multiplied(images, others, a, b)
        )
        return mixed.clamp_(0, 1)

    def _copies(self, images: Tensor, slots: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the operations of the slots that are wanted (B, k + 1).

        Returns: the changed images (M, C, H, W) uint8, and where each slot's lies (B, k + 1).
        """
        rows, turns = wanted.nonzero(as_tuple=True)
        place = torch.zeros(wanted.shape, dtype=torch.long, device=images.device)
        place[rows, turns] = torch.arange(len(rows), device=images.device)
        _, which, level, sign = slots[rows, turns].unbind(1)
        which = _index(which, len(self.operations))
        level = LEAST_LEVEL + (self.mixing.severity - LEAST_LEVEL) * level
        sign = torch.where(sign < 0.5, -1.0, 1.0)
        copies = images[rows]
        for number, operation in enumerate(self.operations):
            part = (which == number).nonzero()[:, 0]
            if len(part):
                copies[part] = operation(copies[part], level[part], sign[part])
        return copies, place

    def _pictures(self, images: Tensor, first: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Read the pictures of the images that use one.

        Returns: the pictures (M, C, H, W), and where each image's lies (B,).
        """
        rows = used.nonzero()[:, 0]
        seat = used.cumsum(0) - 1
        if not len(rows):
            return images[:0].float(), seat
        chosen = _index(first[rows, 1], len(self.pictures))
        found = self.pictures.read(chosen.cpu().numpy()).to(images.device)
        shape = tuple(images.shape[1:])
        spare = [there - here for there, here in zip(found.shape[2:], shape[1:])]
        if found.shape[1] != shape[0] or min(spare) < 0:
            raise InputError(
                f"pictures {tuple(found.shape[1:])} of '{self.pictures.name}' cannot be mixed into "
                f"images {shape}: give them the same channels, and at least the same size"
            )
        top, left = (_index(first[rows, 2 + axis], room + 1) for axis, room in enumerate(spare))
        windows = found.unfold(2, shape[1], 1).unfold(3, shape[2], 1)
        cut = windows[torch.arange(len(rows), device=images.device), :, top, left]
        return transforms.to_pixels(cut), seat


def weights(beta: float, side: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Turn three uniform numbers into the weights of image and other picture.

    Half of the weights lie inside, a ~ Beta(beta, 1) and b ~ Beta(1, beta). The other half lie
    outside, a ~ 1 + Beta(1, beta) and b ~ -Beta(1, beta).
    """
    near_one, near_zero = first.pow(1 / beta), 1 - second.pow(1 / beta)
    inside = side < 0.5
    return torch.where(inside, near_one, 2 - near_one), torch.where(inside, near_zero, -near_zero)


def summed(images: Tensor, others: Tensor, a, b) -> Tensor:
    """Return the sum a x + b y of values in [-1, 1], in pixel units again."""
    return (a * (2 * images - 1) + b * (2 * others - 1) + 1) / 2


def multiplied(images: Tensor, others: Tensor, a, b) -> Tensor:
    """Return the product x^a y^b of values in [0, 2], in pixel units again."""
    return (2 * images) ** a * (2 * others).clamp(min=TINY) ** b / 2


def load_pictures(
    names: str | Sequence[str],
    data_dir: str | Path,
    *,
    side: int,
    channels: int,
    download: bool = False,
    limit: int | None = None,
) -> ImageSet:
    """Open a mixing set for images of `side` pixels: its pictures are an eighth larger.

    Args:
        names: registered sets ("fractals+feature_visualisations"), folders, .npy arrays, as for
            `auxiliary.load_outliers`.
    """
    size = math.ceil(side * ENLARGED)
    options = dict(size=size, channels=channels, download=download, limit=limit)
    return auxiliary.load_outliers(names, data_dir, **options)


def as_bytes(images: Tensor) -> Tensor:
    """Bring images in pixel units to uint8; uint8 stays as it is."""
    if images.dtype == torch.uint8:
        return images
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)


# ---- operations: uint8 (B, C, H, W), level (B,) in [0.1, severity], sign (B,) -> uint8 ---------


def autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Stretch every channel to the range 0..255."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    full = torch.full_like(low, 255, dtype=torch.float64)
    scale = full / (high.double() - low).clamp(min=1)
    stretched = (images * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Make the histogram of every channel as flat as possible."""
    values = images.flatten(2).long()  # (B, C, P)
    counts = torch.zeros((*images.shape[:2], 256), dtype=torch.long, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255  # pixels per grey value; 0: too few to be moved
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, values).to(torch.uint8).view_as(images)


def posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep the 4 highest bits, or fewer: 4 - level * 0.4."""
    bits = 4 - _whole(level, 4)
    mask = (256 - 2 ** (8 - bits)).to(torch.uint8)
    return images & _aligned(mask)


def solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Invert values from 256 - level * 25.6 on."""
    return torch.where(images >= _aligned(256 - _whole(level, 256)), 255 - images, images)


def rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Rotate about the centre by level * 3 degrees, to either side."""
    angle = torch.deg2rad(sign * _whole(level, 30))
    cos, sin = angle.cos(), angle.sin()
    x, y = images.shape[3] / 2, images.shape[2] / 2
    return _affine(images, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift each row by level * 0.03 times its number, to either side."""
    return _affine(images, 1, sign * level * 0.03, 0, 0, 1, 0)


def shear_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift each column by level * 0.03 times its number, to either side."""
    return _affine(images, 1, 0, 0, sign * level * 0.03, 1, 0)


def translate_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift by level / 30 of the width, in whole pixels, to either side."""
    return _affine(images, 1, 0, sign * _whole(level, images.shape[3] / 3), 0, 1, 0)


def translate_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift by level / 30 of the height, in whole pixels, to either side."""
    return _affine(images, 1, 0, 0, 0, 1, sign * _whole(level, images.shape[2] / 3))


def color(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(_grey(images), images, level)


def contrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Blend with the mean grey value."""
    mean = (_grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, images, level)


def brightness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(torch.zeros_like(images), images, level)


def sharpness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Blend with the image smoothed over 3 x 3 pixels; the border stays."""
    kernel = torch.ones(1, 1, 3, 3, device=images.device)
    kernel[..., 1, 1] = 5
    smooth, flat = images.clone(), images.flatten(0, 1)[:, None].float()
    inner = functional.conv2d(flat, kernel / 13).add_(0.5).clamp_(0, 255)
    smooth[..., 1:-1, 1:-1] = inner.to(torch.uint8).view_as(smooth[..., 1:-1, 1:-1])
    return _blend(smooth, images, level)


Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    equalize,
    posterize,
    rotate,
    solarize,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
COLOUR_OPERATIONS: tuple[Operation, ...] = (color, contrast, brightness, sharpness)


def _index(drawn: Tensor, count: int) -> Tensor:
    """Turn uniform numbers in [0, 1) into whole numbers 0..count - 1."""
    return (drawn.double() * count).long()


def _whole(level: Tensor, most: float) -> Tensor:
    """Scale a level of 0..10 to 0..most, and cut off the fraction."""
    return (level * most / 10).long()


def _aligned(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _blend(degenerate: Tensor, images: Tensor, level: Tensor) -> Tensor:
    """Weigh the image by 0.1 + level * 0.18; above 1 it moves away from `degenerate`."""
    factor = _aligned(0.1 + level * 0.18)
    return (degenerate + factor * (images.float() - degenerate)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Grey values (B, 1, H, W), float32 whole numbers."""
    if images.shape[1] != 3:
        return images.float().mean(1, keepdim=True).round_()
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return (((images * weights).sum(1, keepdim=True) + 2**15) >> 16).float()


def _affine(images: Tensor, a, b, c, d, e, f) -> Tensor:
    """Take pixel (x, y) from (a x + b y + c, d x + e y + f), bilinearly; black outside.

    Coordinates are those of the pixels' centres, 0.5 for the first. Each coefficient is a number
    or (B,).
    """
    height, width = images.shape[2:]
    rows = [torch.as_tensor(v, device=images.device).view(-1, 1, 1) for v in (a, b, c, d, e, f)]
    a, b, c, d, e, f = (row.float() for row in rows)
    x = (torch.arange(width, device=images.device) + 0.5).view(1, 1, -1)
    y = (torch.arange(height, device=images.device) + 0.5).view(1, -1, 1)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    from_x, from_y = (v.expand(len(images), height, width) for v in (from_x, from_y))
    grid = torch.stack((2 * from_x / width - 1, 2 * from_y / height - 1), -1)
    found = functional.grid_sample(images.float(), grid, "bilinear", "border", align_corners=False)
    found = (found + ROUNDING).floor_()  # Pillow cuts fractions off
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return (found * inside[:, None]).to(torch.uint8)
