"""Folders of images: files, order and labels, the same as those of torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ood.config import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LONG = 80  # characters of a path that a message shows
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


class EmptyFolder(InputError):
    """A folder that should hold images holds none."""


@dataclass(frozen=True)
class Listing:
    """Files of a set.

    Attributes:
        folder, paths: files, relative to the folder.
        labels: for each file, the place of its class in `class_names`. None: a flat folder, which
            is unlabelled.
        final: the labels are those of the set already, not positions of folders.
    """

    folder: Path
    paths: list[str]
    labels: list[int] | None
    class_names: tuple[str, ...] | None
    final: bool = False

    def rows(self, rows: Sequence[int]) -> Listing:
        """Keep these rows only, in the order given."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        paths = [self.paths[row] for row in rows]
        return Listing(self.folder, paths, labels, self.class_names, self.final)


def own_path(name: str | Path) -> Path:
    """Make the path of what a user named, whether or not anything is there.

    Raises: InputError for a name that no path can have, or the home folder of nobody.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        shown = name if len(str(name)) < LONG else f"{str(name)[:LONG]}..."
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"'{shown}' is no path ({why})") from None
    return path


def list_images(folder: Path) -> Listing:
    """List all images under `folder`.

    Sub-folders are the classes, in string order. Inside a class the folders come in string order,
    and the files of each folder too ("10.png" < "2.png"). Images directly in `folder` make an
    unlabelled set. Hidden files and folders, and folders without images, are left out. Links to
    folders are followed, but a folder is entered once per class: a link that leads back adds
    nothing.

    Raises:
        EmptyFolder: there are no images.
        InputError: there are images beside class folders, or a folder cannot be read.
    """
    entries = sorted(entry.name for entry in _scan(folder))
    images = [name for name in entries if _is_image(name) and (folder / name).is_file()]
    classes = [name for name in entries if (folder / name).is_dir()]
    found = {name: _walk(folder, name) for name in classes}
    found = {name: paths for name, paths in found.items() if paths}
    if images and found:
        raise InputError(
            f"'{folder}' holds images beside folders of images "
            f"({images[0]}, {next(iter(found))}/); use class folders only, or images only"
        )
    if images:
        return Listing(folder, images, None, None)
    if not found:
        raise EmptyFolder(f"no images in '{folder}' (looked for {', '.join(EXTENSIONS)})")
    paths = [path for name in found for path in found[name]]
    labels = [label for label, name in enumerate(found) for _ in found[name]]
    return Listing(folder, paths, labels, tuple(found))


def split_folder(folder: Path, split: str) -> tuple[Path, str]:
    """Find the folder of a split; give 'all' as the split of a folder that is not divided.

    A folder is divided if every sub-folder is named train, test, val, valid or validation.

    Raises: InputError when the folder is divided but has no part for this split.
    """
    known = {name: role for role, names in SPLITS.items() for name in names}
    inside = {entry.name.lower(): entry.name for entry in _scan(folder) if _is_folder(entry)}
    if not inside or not set(inside) <= set(known):
        return folder, "all"
    for name in SPLITS[split]:
        if name in inside:
            return folder / inside[name], split
    raise InputError(
        f"'{folder}' has the sub-folder '{next(iter(inside.values()))}' but none for {split} "
        f"({' or '.join(SPLITS[split])})"
    )


def joined(root: Path, folders: list[Path]) -> Listing:
    """List several class folders as one set; class names become 'folder/class'."""
    paths, labels, names = [], [], []
    for folder in folders:
        listing = list_images(folder)
        prefix = folder.relative_to(root).as_posix()
        paths += [f"{prefix}/{path}" for path in listing.paths]
        labels += [len(names) + label for label in listing.labels or [0] * len(listing.paths)]
        names += [f"{prefix}/{name}" for name in listing.class_names or ("",)]
    return Listing(root, paths, labels, tuple(names))


def _walk(folder: Path, name: str) -> list[str]:
    """List all images below one class folder, its folders in string order.

    Links to folders are followed. No folder is entered twice, so a link that leads back, to the
    class, to the set's folder or above it, adds nothing.
    """
    seen = {_identity(place) for place in (folder, *folder.resolve().parents)}
    found: list[tuple[str, list[str]]] = []
    waiting = [name]
    while waiting:
        inside = waiting.pop()
        place = folder / inside
        if _identity(place) in seen:
            continue
        seen.add(_identity(place))
        entries = _scan(place)
        files = [e.name for e in entries if _is_image(e.name) and not _is_folder(e)]
        found.append((inside, [f"{inside}/{file}" for file in sorted(files)]))
        waiting += sorted((f"{inside}/{e.name}" for e in entries if _is_folder(e)), reverse=True)
    return [path for _, paths in sorted(found) for path in paths]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    """Say which folder this is, whatever links lead to it."""
    try:
        status = os.stat(folder)
    except OSError as error:
        _unreadable(error)
    return status.st_dev, status.st_ino


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        return [entry for entry in os.scandir(folder) if not _hidden(entry.name)]
    except OSError as error:
        _unreadable(error)


def _unreadable(error: OSError):
    raise InputError(f"cannot read the folder '{error.filename}' ({error.strerror})")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
