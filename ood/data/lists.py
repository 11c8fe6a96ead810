"""Image lists: text files with one 'path label' a line, of known sets or of your own.

The format is OpenOOD's; the label -1 means an outlier.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ood.config import InputError
from ood.data.folders import EXTENSIONS, Listing
from ood.data.images import ImageSet
from ood.data.registry.openood import SAME
from ood.data.request import Request, from_files

LISTS = "benchmark_imglist"
FAMILIES = ("images_classic", "images_largescale")  # OpenOOD's folders of images
DIRECTLY = "."  # or below the data root itself, where pytorch-ood unpacks them


def read_lists(request: Request) -> ImageSet:
    """Read a set of OpenOOD: the images that its lists name, wherever they lie in the data root.

    The lists are `request.lists`, else those of the row.
    """
    row = request.row
    files = request.lists or tuple(filter(None, [row.options["lists"].get(request.split)]))
    if not files:
        known = ", ".join(row.options["lists"]) or "none"
        raise InputError(
            f"data set '{row.name}' has no list of images for '{request.split}'; it has: {known}"
        )
    paths, labels = [], []
    for file in files:
        path = request.data_dir / _folder(request) / file
        if not path.is_file():
            raise request.missing(path)
        more = read_list(path)
        paths, labels = paths + more[0], labels + more[1]
    found = _found(request, paths, files[0])
    classes = row.class_names
    if classes is None and row.num_classes:
        classes = tuple(map(str, range(row.num_classes)))
    if row.role == "id" and classes and not -1 <= min(labels) <= max(labels) < len(classes):
        raise InputError(
            f"'{_folder(request)}/{files[0]}' holds the label {max(labels)}, "
            f"but '{row.name}' has {len(classes)} classes"
        )
    listing = Listing(request.data_dir, found, labels, classes, final=True)
    return from_files(listing, replace(request, lists=files))


def _found(request: Request, paths: Sequence[str], file: str) -> list[str]:
    """Find every image of a list below the data root. Raises MissingData, DamagedData."""
    root = request.row.options["root"]
    found = [_place(request.data_dir, root, path) for path in paths]
    absent = [path for path, place in zip(paths, found) if place is None]
    if len(absent) == len(paths):
        raise request.missing(request.data_dir / root / paths[0])
    if absent:
        raise request.damaged(
            f"it lacks {len(absent):,} of the {len(paths):,} images "
            f"that '{_folder(request)}/{file}' names, e.g. '{absent[0]}'"
        )
    return found


def _folder(request: Request) -> str:
    """Name the folder of the lists below the data root."""
    return request.row.options.get("lists in", LISTS)


def read_own_list(request: Request, file: Path) -> ImageSet:
    """Read a list of your own; its paths are relative to its folder or to the data root.

    A list without labels, or with the label -1 only, makes an unlabelled set.
    """
    if not file.is_file():
        raise InputError(
            f"no file '{file}'; a list of images is a text file with one 'path label' a line"
        )
    paths, labels = read_list(file, labelled=False)
    roots = [file.parent, request.data_dir, *(request.data_dir / name for name in FAMILIES)]
    root = next((root for root in roots if (root / paths[0]).is_file()), None)
    if root is None:
        raise InputError(
            f"'{file}' names '{paths[0]}', "
            f"which is neither in '{file.parent}' nor in '{request.data_dir}'"
        )
    names = None
    if labels and max(labels) >= 0:
        if min(labels) < 0:
            raise InputError(
                f"'{file}' mixes classes with the label -1; "
                "put the outliers into a list of their own"
            )
        names = tuple(map(str, range(max(labels) + 1)))
    row = replace(request.row, name=file.stem, role="id")
    listing = Listing(root, paths, labels if names else None, names, final=names is not None)
    return from_files(listing, replace(request, row=row, lists=(str(file.resolve()),)), "all")


def read_list(path: Path, labelled: bool = True) -> tuple[list[str], list[int]]:
    """Read (paths, labels) of an image list; empty lines and '# ...' are skipped.

    Args:
        labelled: every line must have a label. False: the label is -1 where a line has none.
    """
    paths, labels = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list of images '{path}' ({error})") from None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, label = line.rpartition(" ")
        if not labelled and (not name or line.lower().endswith(EXTENSIONS)):
            name, label = line, "-1"
        try:
            labels.append(int(label))
        except ValueError:
            raise InputError(f"'{path}', line {number}: '{line}' is not 'path label'") from None
        climbs = ".." in name.replace("\\", "/").split("/")
        if not name or climbs or labelled and os.path.isabs(name):
            raise InputError(
                f"'{path}', line {number}: the path '{name}' does not stay below its folder"
            )
        paths.append(name.strip())
    if not paths:
        raise InputError(f"the list of images '{path}' is empty")
    return paths, labels


def _place(data_dir: Path, root: str, path: str) -> str | None:
    """Find where the image of a list lies, relative to the data root; None where it does not."""
    for top in dict.fromkeys((root, *FAMILIES, DIRECTLY)):
        if os.path.isfile(data_dir / top / path):
            return f"{top}/{path}"
    for prefix, others in SAME.items():
        if not path.startswith(prefix):
            continue
        rest = path[len(prefix) :]
        for other in others:
            if os.path.isfile(data_dir / other / rest):
                return other + rest
            if prefix == "imagenet_1k/val/":
                wnid = _sorted_in(data_dir / other).get(rest.rsplit("/", 1)[-1])
                if wnid:
                    return f"{other}{wnid}/{rest}"
    return None


_SORTED: dict[Path, dict[str, str]] = {}


def _sorted_in(folder: Path) -> dict[str, str]:
    """Give {file: class folder} of ImageNet's validation images that are sorted into classes.

    A folder is listed once. One that is empty or not there may be filled later.
    """
    if not _SORTED.get(folder):
        _SORTED[folder] = {
            entry.name: place.name
            for place in (os.scandir(folder) if folder.is_dir() else ())
            if place.is_dir()
            for entry in os.scandir(place.path)
        }
    return _SORTED[folder]
