"""What all readers share: the request, its errors, and how files or arrays become a set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ood.config import InputError
from ood.data import memory
from ood.data.array_cache import kept_array
from ood.data.decoding import (
    Recipe,
    digest_files,
    digest_of,
    fill_from_array,
    fill_from_files,
    image_size,
    probe,
)
from ood.data.folders import Listing
from ood.data.images import ArrayImages, ImageSet, StreamedImages, spread
from ood.data.registry.table import DatasetInfo

STREAM_SIDE = 96  # sets with larger images are not kept decoded, but decoded at every reading
STREAM_BYTES = 16 * 1024**3  # and so are sets whose decoded array would be larger than this


class MissingData(InputError):
    """A data set (or a split of it) is not there at all."""


class DamagedData(InputError):
    """A data set is there, but some of its files are missing or damaged.

    Attributes: what: the fault alone, without advice.
    """

    def __init__(self, message: str, what: str):
        super().__init__(message)
        self.what = what


@dataclass(frozen=True)
class Request:
    """What `load` was asked for, checked.

    Attributes:
        base: the images that this set is made from.
        download: whether `load` may fetch the set. Readers never fetch.
        advice: what to do next; None: the flag and the command that fetch the set.
        lists: image lists that replace those of the row.
        listing: only find what is there, as a `Listed`; decode nothing.
    """

    row: DatasetInfo
    split: str
    data_dir: Path
    recipe: Recipe
    first: int | None = None
    limit: int | None = None
    seed: int = 0
    base: ImageSet | None = None
    download: bool = False
    advice: str | None = None
    lists: tuple[str, ...] | None = None
    listing: bool = False

    @property
    def places(self) -> list[Path]:
        """Every place where the files of this split may lie, in the order they are looked at."""
        subs = self.row.splits[self.split]
        return [
            self.data_dir / folder.replace("{split}", sub)
            for folder in self.row.folders
            for sub in (subs if "{split}" in folder else subs[:1])
        ]

    def missing(self, *places: Path) -> MissingData:
        """Make the error for a set that is not there: where it was looked for, what to do next."""
        looked = list(dict.fromkeys(str(place) for place in places or self.places))
        others = ", ".join(repr(place) for place in looked[1:])
        advice = self.advice or self.row.how(self.data_dir)
        return MissingData(
            f"data set '{self.row.name}' ({self.split}) is not in '{looked[0]}'"
            + (f" (nor in {others})" if others else "")
            + f": {advice}"
            + (f"; source: {self.row.source}" if self.row.source else "")
        )

    def damaged(self, what: str) -> DamagedData:
        """Make the error for a set that is not whole; `what` says what is wrong with which file."""
        advice = self.advice or self.row.how(self.data_dir, again=True)
        where = f"data set '{self.row.name}' ({self.split}) is incomplete or damaged"
        return DamagedData(f"{where}: {what}; {advice}", what)


@dataclass(frozen=True)
class Listed:
    """What a reader found, before anything is decoded.

    Attributes:
        folder, paths: image files, relative to the folder.
        files, images: files that hold arrays, and the images in them.
        labels: of a labelled set; -1 for outliers; None where the files do not say.
    """

    folder: Path
    files: tuple[str, ...] = ()
    paths: list[str] | None = None
    images: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images if self.paths is None else self.paths)


def from_files(listing: Listing, request: Request, split: str | None = None) -> ImageSet | Listed:
    """Make a set of listed files: decoded once where they are small, else streamed."""
    row, recipe = request.row, request.recipe
    listing = _checked(listing, row)
    if request.listing:
        labels = None if listing.labels is None else np.asarray(listing.labels)
        return Listed(listing.folder, paths=listing.paths, labels=labels)
    listing = _chosen(listing, request)
    folder, paths = listing.folder, listing.paths
    source = digest_of(digest_files(folder, paths), recipe)  # first: it refuses pipes
    shape = probe(folder, paths, recipe)
    split = split or request.split
    details = dict(
        name=row.name,
        split=split,
        source=source,
        paths=paths,
        **_labelling(row, listing, num_classes=listing.final and row.num_classes),
    )
    if max(shape[1:]) > STREAM_SIDE or len(paths) * int(np.prod(shape)) > STREAM_BYTES:
        if recipe.size is None and not isinstance(recipe.resize, tuple):
            _check_one_size(folder, paths, recipe)
        return StreamedImages(folder, replace(recipe, channels=shape[0]), shape=shape, **details)
    slot = f"{folder.resolve()} {recipe} {request.first} {request.limit}"
    if listing.final:  # several sets may lie in one folder
        slot += f" {row.name} {split} {request.lists}"
    images = kept_array(
        request.data_dir,
        slot,
        source,
        lambda: ((len(paths), *shape), fill_from_files(folder, paths, recipe, row.name)),
    )
    return ArrayImages(images, **details)


def from_arrays(
    request: Request,
    folder: Path,
    files: Sequence[str],
    produce: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    labelled: bool = True,
    truth: np.ndarray | None = None,
) -> ImageSet | Listed:
    """Make a set that is read as a whole.

    Args:
        files: the files behind it. `produce` runs only when they have changed since the last time;
            else the decoded copy is memory-mapped.
        produce: gives images (N, H, W[, 3]) uint8 and labels (N,) below 256, or None for the labels
            if not `labelled`.
        truth: labels that are at hand already (any whole numbers).
    """
    row, recipe = request.row, request.recipe
    if request.listing:
        images, labels = produce()
        truth = labels if truth is None else truth
        return Listed(folder, tuple(files), images=images, labels=truth)
    produce = functools.cache(produce)
    source = digest_of(digest_files(folder, files), recipe, row.name, request.split)
    slot = f"{folder.resolve()} {row.name} {request.split} {recipe}"

    def plan_images():
        images = produce()[0]
        shape = recipe(Image.fromarray(images[0])).shape
        return (len(images), *shape), fill_from_array(images, recipe, row.name)

    def plan_labels():
        labels = produce()[1]
        return labels.shape, lambda array: np.copyto(array, labels, casting="unsafe")

    labels = truth
    if labelled:
        stored = kept_array(request.data_dir, f"{slot} labels", f"{source}-labels", plan_labels)
        labels = stored if truth is None else truth
    images = kept_array(request.data_dir, slot, source, plan_images)
    return arrays_as_set(request, images, labels, source)


def arrays_as_set(
    request: Request, images: np.ndarray, labels: np.ndarray | None, source: str | None = None
) -> ImageSet | Listed:
    """Make a set of decoded images (N, C, H, W) and labels, cut to what the request asks for."""
    row = request.row
    if request.listing:
        return Listed(Path(), images=images, labels=labels)
    labels = None if labels is None else np.asarray(labels, dtype=np.int64)
    listing = Listing(Path(), [], labels, row.class_names)
    details = _labelling(row, listing, len(images), row.num_classes)
    made = ArrayImages(images, name=row.name, split=request.split, source=source, **details)
    return made.first(request.first).limited(request.limit)


def prepared(images: np.ndarray, recipe: Recipe, label: str) -> np.ndarray:
    """Bring images (N, H, W[, 3]) uint8 to (N, C, H, W) after the recipe, in memory."""
    stored = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if recipe.keeps(stored.shape[1:]):
        return stored
    shape = (len(images), *recipe(Image.fromarray(images[0])).shape)
    memory.check(math.prod(shape), f"{label} with images {shape[1:]}", "ask for a smaller size")
    array = np.empty(shape, dtype=np.uint8)
    fill_from_array(images, recipe, label)(array)
    return array


def _chosen(listing: Listing, request: Request) -> Listing:
    """Keep the files that `first` and `limit` of the request leave."""
    rows = range(len(listing.paths))[: request.first]
    labels = None if listing.labels is None else np.asarray(listing.labels)[: request.first]
    chosen = spread(len(rows), request.limit, labels)
    return listing.rows(rows[chosen] if isinstance(chosen, slice) else chosen.tolist())


def _labelling(
    row: DatasetInfo, listing: Listing, count: int | None = None, num_classes: int | None = None
) -> dict:
    """Give labels, original_labels, num_classes and class_names of a set.

    The labels are the truth for an ID set, and -1 for an OOD or unlabelled one.
    """
    count = len(listing.paths) if count is None else count
    truth = None if listing.labels is None else np.asarray(listing.labels, dtype=np.int64)
    if truth is None or row.role == "ood":
        return dict(labels=np.full(count, -1, dtype=np.int64), original_labels=truth)
    return dict(
        labels=truth,
        class_names=listing.class_names,
        num_classes=num_classes or len(listing.class_names),
    )


def _checked(listing: Listing, row: DatasetInfo) -> Listing:
    """Check that the class folders are those of the set, and give every file its label.

    The label is the place among the set's class names where these are known, else the place in
    string order. Raises InputError for folders that do not fit.
    """
    if row.role == "ood" or row.num_classes is None or listing.final:
        return listing
    if listing.class_names is None:
        raise InputError(
            f"'{listing.folder}' holds images without class folders; "
            f"'{row.name}' needs {row.num_classes} of them: {row.layout}"
        )
    if len(listing.class_names) != row.num_classes:
        raise InputError(
            f"'{listing.folder}' has {len(listing.class_names)} class folders with images, "
            f"but '{row.name}' has {row.num_classes} classes; "
            "for a set of your own, give its path instead of the name"
        )
    order = None
    if all(name.isdigit() and int(name) < row.num_classes for name in listing.class_names):
        order = [int(name) for name in listing.class_names]
    elif row.class_names:
        known = {name.lower(): label for label, name in enumerate(row.class_names)}
        strange = [name for name in listing.class_names if name.lower() not in known]
        if strange:
            raise InputError(
                f"'{listing.folder / strange[0]}' is no class of '{row.name}'; "
                f"its classes: {', '.join(row.class_names)}"
            )
        order = [known[name.lower()] for name in listing.class_names]
    if order is None:
        return listing
    names = row.class_names or tuple(str(label) for label in range(row.num_classes))
    return replace(listing, labels=[order[label] for label in listing.labels], class_names=names)


def _check_one_size(folder: Path, paths: Sequence[str], recipe: Recipe) -> None:
    first = image_size(folder / paths[0], recipe)
    for path in paths:
        size = image_size(folder / path, recipe)
        if size != first:
            raise InputError(
                f"'{folder / path}' is {size[0]}x{size[1]} "
                f"but '{paths[0]}' is {first[0]}x{first[1]}; "
                "give a size to which the images are resized"
            )
