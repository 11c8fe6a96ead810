"""From a name to an ImageSet: check the request, fetch the set if it is missing, read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TypeVar

from ood import distributed
from ood.config import InputError, nearest
from ood.data.decoding import Recipe
from ood.data.fetch import obtain
from ood.data.folders import own_path
from ood.data.images import ImageSet
from ood.data.readers import READERS, SPLITS
from ood.data.registry import DatasetInfo, info
from ood.data.registry.entry import DOWNLOAD
from ood.data.request import DamagedData, Listed, MissingData, Request

Read = TypeVar("Read")  # what a reader makes of a request


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
    antialias: bool = True,
    interpolation: str = "bilinear",
) -> ImageSet:
    """Load the images of a data set.

    Args:
        name: a registered name (`ood.data.names()`), or the path of your own data: a folder of
            images ("./photos", its sub-folders are the classes), an .npy or .npz file, a .txt list
            of 'path label' lines, a table (`ood.data.tables`), tar shards (`ood.data.shards`), or
            a set of the Hugging Face hub (`ood.data.hub`).
        split: "train", "test", or "val" where the set has one.
        data_dir: the data root.
        size: output side in pixels. The SHORTER side of every image becomes `resize` (default:
            size), then the centre is cropped. A pair `resize` (height, width) does not keep the
            aspect. None: images stay as stored, and all must have one shape.
        channels: 1 or 3; None: as stored.
        download: fetch the set if it is missing or damaged. Checksums are verified.
        limit: at most this many images, evenly spread over the set, every class kept.
        first: only the first this many images; `limit` is taken from these.
        seed: for sets made from random numbers. The split of mnist5k is fixed.
        base: for mnist_noise, the set to which the noise is added (default mnist).
        lists: for sets of OpenOOD, the lists below benchmark_imglist/ that name the images
            ("cifar100/test_tin.txt").
        antialias: filter an image before it is made smaller; see `Recipe`.
        interpolation: how images are resized: bilinear, bicubic, nearest, lanczos, box, hamming.

    Raises:
        MissingData: the set is not there, and could not be fetched if `download` was given.
        DamagedData: some of its files are missing or damaged, also after a download.
        InputError: unknown name or split, failed download, damaged image, labels that do not fit.
            Raised before any long work.
    """
    row = _checked(name, split, limit, first, base, lists)
    resize = tuple(resize) if isinstance(resize, (list, tuple)) else resize
    invert = row.options.get("invert", False)
    recipe = Recipe(
        channels,
        resize or size,
        size,
        invert,
        antialias=antialias,
        interpolation=interpolation,
    )
    recipe.check_memory()
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
            antialias=antialias,
            interpolation=interpolation,
        )
    request = Request(
        row=row,
        split=split,
        data_dir=own_path(data_dir),
        recipe=recipe,
        first=first,
        limit=limit,
        seed=seed,
        base=base,
        download=download,
        lists=tuple(lists) if lists else None,
    )
    return distributed.in_turn(lambda: read_or_fetch(request, READERS[row.reader]))


def find(
    name: str | DatasetInfo,
    split: str,
    data_dir: str | Path,
    *,
    download: bool = False,
    advice: str | None = None,
    lists: tuple[str, ...] | None = None,
) -> Listed:
    """Find the files of a set without decoding them; fetch them first if they are missing.

    Args:
        name: as for `load`, or a row of your own.
        lists: as for `load`, or their absolute paths.
        advice: what the errors tell the user to do; default: the flag and the command that fetch
            the set.

    Raises: MissingData, InputError as `load` does.
    """
    row = _checked(name, split, lists=lists)
    request = Request(
        row,
        split,
        own_path(data_dir),
        Recipe(),
        download=download,
        advice=advice,
        lists=tuple(lists) if lists else None,
        listing=True,
    )
    return distributed.in_turn(lambda: read_or_fetch(request, READERS[row.reader]))


def _checked(name, split, limit=None, first=None, base=None, lists=None) -> DatasetInfo:
    """Return the row of the set. Raises InputError for a request that makes no sense."""
    if split not in SPLITS:
        raise InputError(
            f"unknown split '{split}'{nearest(split, SPLITS)}; "
            "the splits are train and test (val for sets of OpenOOD)"
        )
    for cap in (limit, first):
        if cap is not None and (not isinstance(cap, Integral) or cap < 1):
            raise InputError(
                f"a limit of {cap} images makes no sense; it must be at least 1 and a whole number"
            )
    row = info(name if isinstance(name, DatasetInfo) else str(name))
    if split not in row.splits:
        raise InputError(
            f"data set '{row.name}' has no split '{split}', only: {', '.join(row.splits)}"
        )
    if base is not None and "base" not in row.options:
        raise InputError(
            f"'base' ({base}) has no meaning for '{row.name}'; "
            "only mnist_noise is made from another set"
        )
    if lists and row.reader != "imglist":
        raise InputError(
            f"lists of images ({lists[0]}) have no meaning for '{row.name}'; "
            "for a list of your own, give its path as the name"
        )
    return row


def read_or_fetch(request: Request, read: Callable[[Request], Read]) -> Read:
    """Read the set. If it is not whole and a download was asked for, fetch it and read again.

    No reader fetches anything: this is the only place.
    """
    try:
        return read(request)
    except (MissingData, DamagedData) as problem:
        if not request.download:
            raise
        advice = _fetch(request, again=isinstance(problem, DamagedData))
    return read(replace(request, advice=advice))


def _fetch(request: Request, again: bool) -> str:
    """Fetch a set and the sets that it needs, sizes and checksums enforced.

    A part that only a person can get does not stop the rest: what is there may be enough.

    Args:
        again: replace the files of the set, because they are damaged or not whole. Files of the
            sets that it needs are not replaced.
    Returns: what a person can do if the set still cannot be read.
    Raises: InputError when a download failed.
    """
    rows = obtain.with_needs([request.row])
    for row in rows:
        same_files = row.folders == request.row.folders
        outcome = obtain.obtain(
            row,
            request.data_dir,
            replace=again and same_files,
            split=request.split if same_files else None,
        )
        if outcome.state == "failed":
            raise InputError(
                f"could not download '{row.name}' into '{request.data_dir}': {outcome.text}"
            )
    by_hand = next((row for row in rows if row.steps or not _fetchable(row)), None)
    if by_hand is not None:
        return f"the download cannot fetch all of it; {by_hand.by_hand(request.data_dir)}"
    names = " ".join(row.name.partition(":")[0] for row in rows if row.archives)
    command = DOWNLOAD.format(name=names, flag=" -replace", data_dir=request.data_dir)
    return f"the download found nothing more to fetch; to replace what is there, use {command}"


def _fetchable(row: DatasetInfo) -> bool:
    """Whether a program can get the set, from its archives or from the sets that it needs."""
    return bool(row.needs) or any(archive.mirrors for archive in row.archives)
