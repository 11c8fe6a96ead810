"""Auxiliary outliers: images that a method sees in training and that belong to no class.

A pool is a registered set (its training half where there is one), a folder of images, or an .npy array (N, H, W, 3) or (N, H, W) of
uint8 such as Outlier Exposure's 300K_random_images.npy; several pools are joined ("letters+patches", or a list).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data.decoding import Recipe, digest_files, digest_of
from ood.data.images import ArrayImages, ImageSet, JoinedImages
from ood.data.loading import load
from ood.data.registry.table import info, is_folder_path
from ood.data.request import prepared

RANDOM_IMAGES = "300K_random_images.npy"  # the usual name of the substitute for the withdrawn 80 Million Tiny Images
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
) -> ArrayImages:
    """`count` images drawn from the pools without replacement, all images alike, in the order of the pools, labels -1.

    Only what is drawn is kept and seen by a network. Images are brought to size x size as a test set's are (shorter side to
    `resize`, antialiased, centre crop). Float images (generated noise) are rounded to uint8.

    Args:
        limit: draw at most so many.
    Raises: InputError when there are fewer than `count` images.
    """
    sets = [
        open_pool(name, data_dir, size=size, channels=channels, resize=resize, download=download)
        for name in split_names(pools, data_dir)
    ]
    total = sum(map(len, sets))
    if count < 1:
        raise InputError(f"num_ood is {count}; it must be at least 1")
    if count > total:
        raise InputError(
            f"num_ood is {count} but the auxiliary set {show(pools)} has {total} images; ask for at most {total} (-num_ood)"
        )
    rows = np.sort(np.random.RandomState(seed).permutation(total)[: min(count, limit or count)])
    first = np.cumsum([0, *map(len, sets)])
    parts = [
        (images, rows[(rows >= a) & (rows < b)] - a) for images, a, b in zip(sets, first, first[1:])
    ]
    parts = [images.subset(chosen) for images, chosen in parts if len(chosen)]
    array = np.concatenate([_as_uint8(part.read(slice(None)).numpy()) for part in parts])
    source = hashlib.blake2b(
        " ".join(part.digest for part in parts).encode(), digest_size=16
    ).hexdigest()
    return ArrayImages(array, name=show(pools), split="train", source=source)


def split_names(pools: str | tuple[str, ...], data_dir: str | Path = ".") -> list[str]:
    """("letters", "patches") or "letters+patches" -> the names; a path that holds a '+' stays whole."""
    if not isinstance(pools, str):
        return [name for pool in pools for name in split_names(pool, data_dir)]
    if any((root / pools).exists() for root in (Path(), Path(data_dir).expanduser())):
        return [pools]
    names = [name.strip() for name in pools.split("+")]
    if not all(names):
        raise InputError(
            f"ood_dataset '{pools}' has an empty name; join sets as in letters+patches"
        )
    return names


def show(pools: str | tuple[str, ...]) -> str:
    return pools if isinstance(pools, str) else "+".join(pools)


def open_pool(
    name: str,
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    resize=None,
    download: bool = False,
) -> ImageSet:
    """All images of one pool."""
    data_dir = Path(data_dir).expanduser()
    file = ALIASES.get(name.lower(), name)
    if file.endswith(".npy"):
        return _open_array(
            file,
            data_dir,
            Recipe(channels, tuple(resize) if isinstance(resize, list) else resize or size, size),
        )
    split = "train" if is_folder_path(name) or "train" in info(name).splits else "test"
    return load(
        name, split, data_dir, size=size, resize=resize, channels=channels, download=download
    ).as_outliers()


def _open_array(name: str, data_dir: Path, recipe: Recipe) -> ArrayImages:
    """An .npy file by its path or inside the data root, memory-mapped."""
    places = [Path(name).expanduser(), data_dir / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(
            f"no file '{places[0]}' (nor '{places[1]}'); the auxiliary set is an .npy array (N, H, W, 3) of uint8"
        )
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"'{path}' is no .npy array ({str(error).splitlines()[0]})") from None
    if (
        array.dtype != np.uint8
        or array.ndim not in (3, 4)
        or array.ndim == 4
        and array.shape[3] not in (1, 3)
        or not len(array)
    ):
        raise InputError(
            f"'{path}' holds {array.dtype} {array.shape}; expected uint8 images (N, H, W, 3), (N, H, W, 1) or (N, H, W)"
        )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    source = digest_of(digest_files(path.parent, [path.name]), recipe)
    return ArrayImages(
        prepared(array, recipe, path.name), name=path.stem, split="train", source=source
    )


def _as_uint8(images: np.ndarray) -> np.ndarray:
    return (
        images
        if images.dtype == np.uint8
        else np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    )


def load_outliers(
    pools: str | Sequence[str],
    data_dir: str | Path,
    *,
    size: int,
    channels: int,
    download: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """The images of all pools ("letters+patches": training halves, folders, .npy arrays), labels -1; `limit`: a seeded choice."""
    names = split_names(pools if isinstance(pools, str) else tuple(pools), data_dir)
    parts = [
        open_pool(name, data_dir, size=size, channels=channels, download=download) for name in names
    ]
    images = (
        parts[0]
        if len(parts) == 1
        else JoinedImages(
            parts,
            name=show(pools if isinstance(pools, str) else tuple(pools)),
            split="train",
        )
    )
    if limit is None or limit >= len(images):
        return images
    return images.subset(np.sort(np.random.RandomState(seed).permutation(len(images))[:limit]))
