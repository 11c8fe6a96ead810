"""From image files to uint8 arrays: how a file is decoded, and what tells two sets apart.

Nothing is written into the folders of images, where torchvision's ImageFolder would take another
folder for another class. What was decoded is kept by `array_cache`, under a digest of the files
(path, size, modification time) and of the way they were decoded.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from ood.cli import progress
from ood.config import InputError, nearest
from ood.data import memory, volumes

INTERPOLATIONS = {  # Pillow's filters, all of them antialiased
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
VERSION = 1  # raise it when decoding changes
SAMPLED = 16  # files of a set whose content is part of the digest,
SAMPLE_BYTES = 2**20  # up to this length
ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CHUNK = 256  # files that one thread decodes at a time
THREADS = min(16, os.cpu_count() or 1)
PILLOW_BYTES = 4  # of a pixel while Pillow works on it


@dataclass(frozen=True)
class Recipe:
    """How a stored image becomes a uint8 array (C, H, W).

    Args:
        channels: 1 or 3; None keeps what is stored.
        resize: the SHORTER side becomes this many pixels (with antialiasing; the longer side is
            truncated to an integer, as torchvision does). A pair (height, width) is taken
            exactly. None leaves the size alone.
        size: side of the centre crop; None crops nothing.
        invert: 255 - value, before resizing.
        upright: turn the image as its EXIF orientation says, before anything else. This is for
            pictures of your own, from a camera; published sets are read as their papers did.
        antialias: filter the image before it is made smaller. False: plain bilinear interpolation,
            as torchvision resized tensors before its version 0.17.
        interpolation: the filter, a key of INTERPOLATIONS.

    Raises: InputError for values that are not possible, or a crop that does not fit.
    """

    channels: int | None = None
    resize: int | tuple[int, int] | None = None
    size: int | None = None
    invert: bool = False
    upright: bool = False
    antialias: bool = True
    interpolation: str = "bilinear"

    def __post_init__(self):
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation is '{self.interpolation}'"
                f"{nearest(self.interpolation, INTERPOLATIONS)}; allowed: "
                f"{', '.join(INTERPOLATIONS)}"
            )
        if not self.antialias and self.interpolation != "bilinear":
            raise InputError(f"antialias=False resizes bilinearly, not {self.interpolation}")
        if self.channels not in (None, 1, 3):
            raise InputError(
                f"channels={self.channels} is not possible: 1 (grey), 3 (RGB) or none (as stored)"
            )
        pair = isinstance(self.resize, tuple)
        sides = self.resize if pair else (self.resize,)
        whole = [side is None or _is_whole(side) for side in (*sides, self.size)]
        if not all(whole) or pair and (len(sides) != 2 or None in sides):
            raise InputError(
                f"size={self.size!r}, resize={self.resize!r}: a size is one whole number, "
                "resize is one or two (height, width)"
            )
        if any(side is not None and side < 1 for side in (*sides, self.size)):
            raise InputError(f"size={self.size}, resize={self.resize} must be positive")
        if self.size and self.resize and min(sides) < self.size:
            raise InputError(
                f"resize={self.resize} is smaller than size={self.size}; the crop does not fit"
            )

    def check_memory(self) -> None:
        """Raise InputError if images of this size are too large for the memory of the machine."""
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        height, width = (max(side or 0, self.size or 0) for side in sides)
        memory.check(
            height * width * PILLOW_BYTES * THREADS,
            f"decoding images to {width}x{height} pixels ({THREADS} at a time)",
            "ask for a smaller size",
        )

    def __repr__(self) -> str:
        """Write the recipe as digests hold it: later settings only where they are used.

        So what was computed before these settings existed keeps its digest.
        """
        used = [
            f"{name}={getattr(self, name)}" for name in ("channels", "resize", "size", "invert")
        ]
        if self.upright:
            used.append("upright=True")
        if not self.antialias:
            used.append("antialias=False")
        if self.interpolation != "bilinear":
            used.append(f"interpolation={self.interpolation}")
        return f"Recipe({', '.join(used)})"

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.upright:
            image = upright(image)
        image = self.convert(image)
        if self.invert:
            image = image.point(lambda value: 255 - value)
        if self.resize:
            image = _resized(image, self.resize, self.antialias, self.interpolation)
        if self.size:
            image = _cropped(image, self.size)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def keeps(self, shape: tuple[int, int, int]) -> bool:
        """Say whether images of this shape (C, H, W) come out as they are."""
        channels, height, width = shape
        resized = self.resize not in (None, (height, width), min(height, width))
        cropped = self.size is not None and not self.size == height == width
        converted = self.channels not in (None, channels)
        return not (resized or cropped or converted or self.invert)

    def convert(self, image: Image.Image) -> Image.Image:
        """Bring an image to 8 bits and to the channels asked for. Raises ValueError for 32 bits."""
        if image.mode in ("I", "F"):
            raise ValueError(f"32-bit images (mode {image.mode}) are not supported")
        if image.mode.startswith("I;16"):  # Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        mode = {1: "L", 3: "RGB"}[self.channels or (1 if is_grey(image) else 3)]
        return image if image.mode == mode else image.convert(mode)


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; without one it comes back as it is."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1..8; 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds on damaged EXIF data; the pixels may be whole
        return 1


def is_grey(image: Image.Image) -> bool:
    """Say whether an image has no colour, from its mode alone."""
    return image.mode in ("1", "L", "LA", "I;16")


def decode(
    path: Path,
    recipe: Recipe,
    shape: tuple[int, int, int] | None = None,
    content: bytes | None = None,
) -> np.ndarray:
    """Decode one file to uint8 (C, H, W).

    Args:
        shape: (C, H, W) of the first image of the set, which this one must have too.
        content: the bytes of the file, where it lies inside another one; `path` is then its name.

    Raises: InputError that names a damaged file, or one of another shape.
    """
    try:
        with open_image(path) if content is None else Image.open(io.BytesIO(content)) as image:
            if recipe.channels is None and shape:
                if shape[0] == 1 and not is_grey(image):
                    raise InputError(
                        f"'{path}' is in colour but the first image of the set is grey; "
                        "ask for channels=3 (or 1)"
                    )
                recipe = replace(recipe, channels=shape[0])
            array = recipe(image)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors on damaged files
        raise InputError(
            f"cannot decode the image '{path}' ({_first_line(error)}); replace it or remove it"
        ) from None
    if shape and array.shape != shape:
        raise InputError(
            f"'{path}' is {_size(array.shape)} but the first image of the set is {_size(shape)}; "
            "give a size to which the images are resized"
        )
    return array


def open_image(path: Path) -> Image.Image:
    """Open an image file; a volume of medical imaging gives its central slice."""
    return volumes.central_slice(path) if volumes.is_volume(path) else Image.open(path)


def probe(folder: Path, files: Sequence[str], recipe: Recipe) -> tuple[int, int, int]:
    """Decode the first file, to know the shape (C, H, W) of the images."""
    return decode(folder / files[0], recipe).shape


def image_size(path: Path, recipe: Recipe) -> tuple[int, int]:
    """Read (width, height) from the header alone. Raises InputError for a damaged file."""
    try:
        with open_image(path) as image:
            in_header = image.format != "PNG" or "exif" in image.info  # else PNG decodes the pixels
            on_its_side = recipe.upright and in_header and _orientation(image) in range(5, 9)
            return image.size[::-1] if on_its_side else image.size
    except Exception as error:
        raise InputError(
            f"cannot read the image '{path}' ({_first_line(error)}); replace it or remove it"
        ) from None


def fill_from_files(
    folder: Path, files: Sequence[str], recipe: Recipe, label: str
) -> Callable[[np.ndarray], None]:
    """Make a function that decodes `files` into an array (N, C, H, W), on all cores."""

    def fill(array: np.ndarray) -> None:
        shape = array.shape[1:]
        fill_by(lambda row: decode(folder / files[row], recipe, shape), len(files), label)(array)

    return fill


def fill_from_array(images: np.ndarray, recipe: Recipe, label: str) -> Callable[[np.ndarray], None]:
    """Do the same for images (N, H, W) or (N, H, W, 3) that are arrays already."""
    return fill_by(lambda row: recipe(Image.fromarray(images[row])), len(images), label)


def fill_by(
    make: Callable[[int], np.ndarray], count: int, label: str
) -> Callable[[np.ndarray], None]:
    """Make a function that fills an array (count, C, H, W) with make(row), on all cores."""

    def fill(array: np.ndarray) -> None:
        def work(start: int) -> None:
            for row in range(start, min(start + CHUNK, count)):
                array[row] = make(row)

        _in_threads(work, count, label)

    return fill


def digest_files(folder: Path, files: Sequence[str]) -> str:
    """Digest the relative path, size and modification time of each file, and the content of a few.

    The content tells sets apart whose files all have one size and one (reset) time, as some
    archives unpack.

    Raises: InputError for a file that cannot be read, or is a pipe or a device.
    """
    digest = hashlib.blake2b(digest_size=16)
    root = f"{folder}{os.sep}"  # os.path.join would cost as much as the look-up itself
    sampled = set(range(0, len(files), max(1, len(files) // SAMPLED)))
    for number, file in enumerate(files):
        try:
            status = os.stat(root + file)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise InputError(f"'{folder / file}' is no regular file; remove it")
            facts = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(facts.encode(errors="surrogateescape"))
            if number in sampled:
                with open(root + file, "rb") as content:
                    digest.update(content.read(SAMPLE_BYTES))
        except OSError as error:
            raise InputError(
                f"cannot read '{folder / file}' ({error.strerror}); replace it or remove it"
            ) from None
    return digest.hexdigest()


def digest_of(*parts) -> str:
    """Digest the repr of the parts, and what else decides how images are decoded."""
    text = repr((VERSION, PIL.__version__, *parts))
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _in_threads(work: Callable[[int], None], total: int, label: str) -> None:
    starts = range(0, total, CHUNK)
    pool = ThreadPoolExecutor(THREADS)
    try:
        for _ in progress(
            pool.map(work, starts), f"decode {label}", total=len(starts), unit="images", scale=CHUNK
        ):
            pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _resized(
    image: Image.Image,
    resize: int | tuple[int, int],
    antialias: bool = True,
    interpolation: str = "bilinear",
) -> Image.Image:
    width, height = image.size
    if isinstance(resize, tuple):
        wanted = (resize[1], resize[0])
    elif width <= height:
        wanted = (resize, int(resize * height / width))
    else:
        wanted = (int(resize * width / height), resize)
    if wanted == image.size:
        return image
    if antialias:
        return image.resize(wanted, INTERPOLATIONS[interpolation])
    return _interpolated(image, wanted)


def _interpolated(image: Image.Image, wanted: tuple[int, int]) -> Image.Image:
    """Resize to (width, height) by bilinear interpolation without a filter.

    The output pixel i lies at (i + 0.5) * in / out - 0.5 of the input, kept inside the image.
    Values are rounded to whole numbers.
    """
    pixels = np.asarray(image, dtype=np.float32)
    for axis, length in ((0, wanted[1]), (1, wanted[0])):
        before = pixels.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * (before / length) - 0.5, 0, before - 1)
        low = position.astype(np.int64)
        share = (position - low).astype(np.float32).reshape(-1, *(1,) * (pixels.ndim - 1 - axis))
        first = pixels.take(low, axis)
        second = pixels.take(np.minimum(low + 1, before - 1), axis)
        pixels = first + share * (second - first)
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _cropped(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width < size or height < size:
        raise ValueError(f"{width}x{height} is smaller than the crop of {size}")
    if (width, height) == (size, size):
        return image
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}x{shape[1]} with {shape[0]} channel(s)"
