"""From a name to an ImageSet: check what is asked for, read it, fetch it first where it is missing."""

from __future__ import annotations

from pathlib import Path

from ood import distributed
from ood.config import InputError, nearest
from ood.data.decoding import Recipe
from ood.data.fetch import obtain
from ood.data.images import ImageSet
from ood.data.readers import READERS, SPLITS
from ood.data.registry import info
from ood.data.request import MissingData, Request


def load(
    name: str,
    split: str,
    data_dir: str | Path = "datasets",
    *,
    size: int | None = None,
    resize: int | tuple[int, int] | None = None,
    channels: int | None = None,
    download: bool = False,
    limit: int | None = None,
    first: int | None = None,
    seed: int = 0,
    base: str | None = None,
    lists: tuple[str, ...] | None = None,
) -> ImageSet:
    """The images of a data set.

    Args:
        name: a registered name (`ood.data.names()`), or your own data by its path: a folder of images ("./photos", its sub-folders are
            the classes), an .npy or .npz file, or a .txt list of 'path label' lines.
        split: "train", "test", or "val" where the set has one.
        data_dir: the data root.
        size: output side. The SHORTER side of every image becomes `resize` (default: size), then the centre is cropped; `resize` as a
            pair (height, width) does not keep the aspect. None: as stored, and all images must have one shape.
        channels: 1 or 3; None: as stored.
        download: fetch a missing set, checksums verified.
        limit: at most so many images, evenly spread over the set. first: only the first so many (of which `limit` are taken).
        seed: of sets made from random numbers. The split of mnist5k is fixed.
        base: for mnist_noise, the set to which the noise is added (default mnist).
        lists: for sets of OpenOOD, the lists below benchmark_imglist/ that say which images ("cifar100/test_tin.txt").

    Raises:
        InputError: unknown name or split, missing or empty folder, damaged image, labels that do not fit; before any long work.
    """
    if split not in SPLITS:
        raise InputError(
            f"unknown split '{split}'{nearest(split, SPLITS)}; the splits are train and test (val for sets of OpenOOD)"
        )
    for cap in (limit, first):
        if cap is not None and cap < 1:
            raise InputError(f"a limit of {cap} images makes no sense; it must be at least 1")
    row = info(str(name))
    if split not in row.splits:
        raise InputError(
            f"data set '{row.name}' has no split '{split}', only: {', '.join(row.splits)}"
        )
    if base is not None and "base" not in row.options:
        raise InputError(
            f"'base' ({base}) has no meaning for '{row.name}'; only mnist_noise is made from another set"
        )
    if lists and row.reader != "imglist":
        raise InputError(
            f"lists of images ({lists[0]}) have no meaning for '{row.name}'; for a list of your own, give its path as the name"
        )
    resize = tuple(resize) if isinstance(resize, (list, tuple)) else resize
    recipe = Recipe(channels, resize or size, size, row.options.get("invert", False))
    if "base" in row.options:  # made from another set, which is loaded like any other
        base = load(
            base or row.options["base"],
            split,
            data_dir,
            size=size,
            resize=resize,
            channels=channels,
            download=download,
            first=first,
            limit=limit,
        )
    request = Request(
        row=row,
        split=split,
        data_dir=Path(data_dir).expanduser(),
        recipe=recipe,
        first=first,
        limit=limit,
        seed=seed,
        base=base,
        download=download,
        lists=tuple(lists) if lists else None,
    )
    return distributed.in_turn(lambda: _read(request))


def _read(request: Request) -> ImageSet:
    """Read the set. If it is missing and a download was asked for, fetch it and read again."""
    read = READERS[request.row.reader]
    try:
        return read(request)
    except MissingData:
        if not request.download or not _fetched(request):
            raise
        return read(request)


def _fetched(request: Request) -> bool:
    """Fetch a set and the sets that it needs, sizes and checksums enforced.

    Returns: False when a person has to fetch it (a form, a login).
    Raises: InputError when a download failed.
    """
    for row in obtain.with_needs([request.row.name]):
        split = request.split if row.name == request.row.name else None
        outcome = obtain.obtain(row, request.data_dir, split=split)
        if outcome.state == "steps":
            return False
        if outcome.state == "failed":
            raise InputError(f"could not download '{row.name}': {outcome.text}")
    return True
