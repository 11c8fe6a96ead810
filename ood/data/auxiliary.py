"""Auxiliary outliers: images that a method sees in training and that belong to no class.

A pool is a registered set (its training half where there is one), a folder of images, or an .npy
array (N, H, W, 3) or (N, H, W) of uint8, such as Outlier Exposure's 300K_random_images.npy.
Several pools are joined: "letters+patches", or a list.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ood.config import InputError
from ood.data.decoding import Recipe, digest_files, digest_of
from ood.data.folders import own_path
from ood.data.images import ArrayImages, ImageSet, JoinedImages, spread
from ood.data.loading import find, load
from ood.data.registry.table import info, is_folder_path
from ood.data.request import prepared

Resizing = Literal["test", "released"]
RESIZING = ("test", "released")
# The usual substitute for the withdrawn 80 Million Tiny Images, registered as tinyimages300k.
RANDOM_IMAGES = "300K_random_images.npy"
REGISTERED_ARRAYS = {RANDOM_IMAGES: "tinyimages300k"}
ALIASES = {"300k_random_images": RANDOM_IMAGES, "tinyimages300k": RANDOM_IMAGES}


def draw(
    pools: str | tuple[str, ...],
    count: int,
    seed: int,
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    resize: int | tuple[int, ...] | None = None,
    download: bool = False,
    limit: int | None = None,
    resizing: Resizing = "test",
) -> ArrayImages:
    """Draw `count` images from the pools without replacement, with the label -1.

    All images of all pools are equally likely. They come in the order of the pools. Only what is
    drawn is kept, and seen by a network. Float images (generated noise) are rounded to uint8.

    Args:
        size: side of the images that come out.
        resize: shorter side before the crop, or (height, width); default: size.
        limit: keep at most this many of the images drawn, evenly spread.
        resizing: how images become size x size.
            "test": as those of a test set do. The shorter side becomes `resize`, antialiased; then
            the centre is cropped.
            "released": as in the heatmap authors' training code under torchvision 0.13. Tensors
            are resized to `resize` by bilinear interpolation without antialiasing, and nothing is
            cropped. Here the result is rounded to uint8, at most 0.002 in pixel units.

    Raises: InputError when there are fewer than `count` images, or they do not become square.
    """
    options = dict(size=size, channels=channels, resize=resize, resizing=resizing)
    sets = [
        open_pool(name, data_dir, download=download, **options)
        for name in split_names(pools, data_dir)
    ]
    total = sum(map(len, sets))
    if count < 1:
        raise InputError(f"num_ood is {count}; it must be at least 1")
    if count > total:
        raise InputError(
            f"num_ood is {count} but the auxiliary set {show(pools)} has {total} images; "
            f"ask for at most {total} (-num_ood)"
        )
    rows = np.sort(np.random.RandomState(seed % 2**32).permutation(total)[:count])[
        spread(count, limit)
    ]
    starts = np.cumsum([0, *map(len, sets)])
    parts = [
        images.subset(rows[(rows >= start) & (rows < end)] - start)
        for images, start, end in zip(sets, starts, starts[1:])
    ]
    parts = [part for part in parts if len(part)]
    array = np.concatenate([_as_uint8(part.read(slice(None)).numpy()) for part in parts])
    return ArrayImages(array, name=show(pools), split="train", source=_source(parts))


def load_outliers(
    pools: str | Sequence[str],
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    download: bool = False,
    limit: int | None = None,
) -> ImageSet:
    """Open all images of the pools ("letters+patches") as one set, with the label -1.

    Args:
        limit: keep at most this many images, evenly spread.
    """
    pools = pools if isinstance(pools, str) else tuple(pools)
    parts = [
        open_pool(name, data_dir, size=size, channels=channels, download=download)
        for name in split_names(pools, data_dir)
    ]
    images = parts[0]
    if len(parts) > 1:
        images = JoinedImages(parts, name=show(pools), split="train", source=_source(parts))
    return images.limited(limit)


def split_names(pools: str | tuple[str, ...], data_dir: str | Path = ".") -> list[str]:
    """Split ("letters", "patches") or "letters+patches" into names.

    A path that holds a '+' and exists stays whole.
    """
    if not isinstance(pools, str):
        return [name for pool in pools for name in split_names(pool, data_dir)]
    with contextlib.suppress(OSError):  # more names than a path can hold
        if any((root / pools).exists() for root in (Path(), own_path(data_dir))):
            return [pools]
    names = [name.strip() for name in pools.split("+")]
    if not all(names):
        raise InputError(
            f"ood_dataset '{pools}' has an empty name; join sets as in letters+patches"
        )
    return names


def show(pools: str | tuple[str, ...]) -> str:
    """Write the names as a user gives them: letters+patches."""
    return pools if isinstance(pools, str) else "+".join(pools)


def open_pool(
    name: str,
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    resize: int | Sequence[int] | None = None,
    download: bool = False,
    resizing: Resizing = "test",
) -> ImageSet:
    """Open all images of one pool.

    Args:
        size, resize, channels: as for `load`.
        download: fetch a registered set that is missing.
        resizing: as for `draw`.

    Raises: InputError for images that are not there, or do not become size x size.
    """
    data_dir = own_path(data_dir)
    file = ALIASES.get(name.lower(), name)
    resize = tuple(resize) if isinstance(resize, (list, tuple)) else resize or size
    if resizing not in RESIZING:
        raise InputError(f"unknown resizing '{resizing}'; known: {', '.join(RESIZING)}")
    released = resizing == "released"
    crop = None if released else size
    if file.endswith(".npy"):
        recipe = Recipe(channels, resize, crop, antialias=not released)
        images = _open_array(file, data_dir, recipe, download)
    else:
        split = "train" if is_folder_path(name) or "train" in info(name).splits else "test"
        options = dict(size=crop, resize=resize, channels=channels, antialias=not released)
        images = load(name, split, data_dir, download=download, **options).as_outliers()
    if released and images.shape[1:] != (size, size):
        height, width = images.shape[1:]
        raise InputError(
            f"the released resizing leaves images of '{name}' at {width}x{height}, "
            f"because it crops nothing; give resize as a pair, [{size}, {size}]"
        )
    return images


def _open_array(name: str, data_dir: Path, recipe: Recipe, download: bool) -> ArrayImages:
    """Open an .npy file by its path or inside the data root, memory-mapped."""
    places = [own_path(name), data_dir / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None and name in REGISTERED_ARRAYS:
        found = find(REGISTERED_ARRAYS[name], "train", data_dir, download=download)
        path = found.folder / name
    if path is None:
        raise InputError(
            f"no file '{places[0]}' (nor '{places[1]}'); "
            "the auxiliary set is an .npy array (N, H, W, 3) of uint8"
        )
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"'{path}' is no .npy array ({str(error).splitlines()[0]})") from None
    shape_fits = array.ndim == 3 or array.ndim == 4 and array.shape[3] in (1, 3)
    if array.dtype != np.uint8 or not shape_fits or not len(array):
        raise InputError(
            f"'{path}' holds {array.dtype} {array.shape}; "
            "expected uint8 images (N, H, W, 3), (N, H, W, 1) or (N, H, W)"
        )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    source = digest_of(digest_files(path.parent, [path.name]), recipe)
    images = prepared(array, recipe, path.name)
    return ArrayImages(images, name=path.stem, split="train", source=source)


def _source(parts: Sequence[ImageSet]) -> str:
    digests = " ".join(part.digest for part in parts)
    return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()


def _as_uint8(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
