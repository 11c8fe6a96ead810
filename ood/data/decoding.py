"""From image files to uint8 arrays: decoded once, kept in `<data root>/.decoded`, then mapped.

Nothing is written into the folders of images, where torchvision's ImageFolder would take another
folder for another class. A cache file is named after a digest of the files (path, size,
modification time) and of the way they were decoded. It appears under its name only when it is
complete: an interrupted or failed run leaves nothing that could be taken for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from ood.cli import progress
from ood.config import InputError

VERSION = 1  # raise it when decoding changes
CACHE = ".decoded"
SAMPLED = 16  # files of a set whose content is part of the digest,
SAMPLE_BYTES = 2**20  # up to this length
CHUNK = 256  # files that one thread decodes at a time
STALE = 24 * 3600  # seconds after which an unfinished file of a killed run is removed


@dataclass(frozen=True)
class Recipe:
    """How a stored image becomes a uint8 array (C, H, W).

    Args:
        channels: 1 or 3; None keeps what is stored.
        resize: the SHORTER side becomes this many pixels (bilinear with antialiasing; the longer
            side is truncated to an integer, as torchvision does). A pair (height, width) is taken
            exactly. None leaves the size alone.
        size: side of the centre crop; None crops nothing.
        invert: 255 - value, before resizing.

    Raises: InputError for values that are not possible, or a crop that does not fit.
    """

    channels: int | None = None
    resize: int | tuple[int, int] | None = None
    size: int | None = None
    invert: bool = False

    def __post_init__(self):
        if self.channels not in (None, 1, 3):
            raise InputError(
                f"channels={self.channels} is not possible: 1 (grey), 3 (RGB) or none (as stored)"
            )
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if any(side is not None and side < 1 for side in (*sides, self.size)):
            raise InputError(f"size={self.size}, resize={self.resize} must be positive")
        if self.size and self.resize and min(sides) < self.size:
            raise InputError(
                f"resize={self.resize} is smaller than size={self.size}; the crop does not fit"
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = self.convert(image)
        if self.invert:
            image = image.point(lambda value: 255 - value)
        if self.resize:
            image = _resized(image, self.resize)
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


def is_grey(image: Image.Image) -> bool:
    """Say whether an image has no colour, from its mode alone."""
    return image.mode in ("1", "L", "LA", "I;16")


def decode(path: Path, recipe: Recipe, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Decode one file to uint8 (C, H, W).

    Args:
        shape: (C, H, W) of the first image of the set, which this one must have too.

    Raises: InputError that names a damaged file, or one of another shape.
    """
    try:
        with Image.open(path) as image:
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


def probe(folder: Path, files: Sequence[str], recipe: Recipe) -> tuple[int, int, int]:
    """Decode the first file, to know the shape (C, H, W) of the images."""
    return decode(folder / files[0], recipe).shape


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) from the header alone. Raises InputError for a damaged file."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise InputError(
            f"cannot read the image '{path}' ({_first_line(error)}); replace it or remove it"
        ) from None


def fill_from_files(
    folder: Path, files: Sequence[str], recipe: Recipe, label: str
) -> Callable[[np.ndarray], None]:
    """Make a function that decodes `files` into an array (N, C, H, W), on all cores."""

    def fill(array: np.ndarray) -> None:
        def work(start: int) -> None:
            for row in range(start, min(start + CHUNK, len(files))):
                array[row] = decode(folder / files[row], recipe, array.shape[1:])

        _in_threads(work, len(files), label)

    return fill


def fill_from_array(images: np.ndarray, recipe: Recipe, label: str) -> Callable[[np.ndarray], None]:
    """Do the same for images (N, H, W) or (N, H, W, 3) that are arrays already."""

    def fill(array: np.ndarray) -> None:
        def work(start: int) -> None:
            for row in range(start, min(start + CHUNK, len(images))):
                array[row] = recipe(Image.fromarray(images[row]))

        _in_threads(work, len(images), label)

    return fill


def digest_files(folder: Path, files: Sequence[str]) -> str:
    """Digest the relative path, size and modification time of each file, and the content of a few.

    The content tells sets apart whose files all have one size and one (reset) time, as some
    archives unpack.

    Raises: InputError for a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    root = f"{folder}{os.sep}"  # os.path.join would cost as much as the look-up itself
    sampled = set(range(0, len(files), max(1, len(files) // SAMPLED)))
    for number, file in enumerate(files):
        try:
            status = os.stat(root + file)
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


def decoded(
    data_dir: Path, slot: str, digest: str, plan: Callable[[], tuple[tuple[int, ...], Callable]]
) -> np.ndarray:
    """Open the read-only uint8 memory map for `digest`; compute it if it is not there yet.

    Args:
        data_dir: the data root. The array lies in its `.decoded`, or in a private temporary folder
            if that cannot be written.
        slot: what the array is for (folder, split, recipe). A new array of a slot replaces the old
            one, whose files have changed.
        plan: called only when the array is not there. It gives the shape, and a function that fills
            an empty array of that shape.
    """
    slot_digest = hashlib.blake2b(slot.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    name = f"{slot_digest}-{digest}.npy"
    for place in _places(data_dir):
        array = _opened(place / name)
        if array is not None:
            return array
    shape, fill = plan()
    for place in _places(data_dir):
        temporary = _reserve(place, shape)
        if temporary is None:
            continue
        try:
            array = np.lib.format.open_memmap(temporary, mode="r+")
            fill(array)
            array.flush()
            os.replace(temporary, place / name)
        finally:
            temporary.unlink(missing_ok=True)
        _remove_old(place, name)
        array.flags.writeable = False  # the map stays open under the new name
        return array
    array = np.empty(shape, dtype=np.uint8)  # no disk to write to: keep it in memory
    fill(array)
    return array


def _places(data_dir: Path) -> Iterator[Path]:
    if data_dir.is_dir():
        yield data_dir / CACHE
    yield _private_temp()


def _opened(path: Path) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.uint8 else None


def _reserve(place: Path, shape: tuple[int, ...]) -> Path | None:
    """Make an unfinished cache file with its space allocated; None where that is not possible.

    Writing a memory map on a full disk would kill the process.
    """
    temporary = place / f".{os.getpid()}-{threading.get_ident()}-{time.time_ns()}.tmp"
    try:
        place.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=tuple(shape))
        del array
        if hasattr(os, "posix_fallocate"):
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError:  # read-only, full, or no folder at all
        with contextlib.suppress(OSError):
            temporary.unlink()
        return None
    return temporary


def _remove_old(place: Path, name: str) -> None:
    """Drop arrays of the same slot, and unfinished files that a killed run left long ago."""
    for path in place.iterdir():
        try:
            if (
                path.name.startswith(name[:17])
                and path.name != name
                or path.suffix == ".tmp"
                and time.time() - path.stat().st_mtime > STALE
            ):
                path.unlink(missing_ok=True)
        except OSError:
            pass


def _private_temp() -> Path:
    """Find a folder under the system's temporary one that belongs to this user alone."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    place = Path(tempfile.gettempdir()) / f"ood-decoded-{user}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
        if stat.S_ISDIR(status.st_mode) and (user == "user" or status.st_uid == user):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="ood-decoded-"))


def _in_threads(work: Callable[[int], None], total: int, label: str) -> None:
    starts = range(0, total, CHUNK)
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for _ in progress(
            pool.map(work, starts), f"decode {label}", total=len(starts), unit="images", scale=CHUNK
        ):
            pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _resized(image: Image.Image, resize: int | tuple[int, int]) -> Image.Image:
    width, height = image.size
    if isinstance(resize, tuple):
        wanted = (resize[1], resize[0])
    elif width <= height:
        wanted = (resize, int(resize * height / width))
    else:
        wanted = (int(resize * width / height), resize)
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.BILINEAR)


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
