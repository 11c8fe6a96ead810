"""Image lists: text files with one 'path label' a line (OpenOOD's format; -1 is an outlier), of known sets or of your own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ood.config import InputError
from ood.data.folders import EXTENSIONS, Listing
from ood.data.images import ImageSet
from ood.data.registry.openood import SAME
from ood.data.request import Request, from_files

LISTS = "benchmark_imglist"


def read_lists(request: Request) -> ImageSet:
    """A set of OpenOOD: the images that its lists name (`request.lists`, else those of the row), wherever they lie under the data root."""
    row = request.row
    files = request.lists or tuple(filter(None, [row.options["lists"].get(request.split)]))
    if not files:
        raise InputError(
            f"data set '{row.name}' has no list of images for '{request.split}'; it has: {', '.join(row.options['lists']) or 'none'}"
        )
    paths, labels = [], []
    for file in files:
        path = request.data_dir / LISTS / file
        if not path.is_file():
            raise request.missing(path)
        more = read_list(path)
        paths, labels = paths + more[0], labels + more[1]
    found = [_place(request.data_dir, row.options["root"], path) for path in paths]
    absent = [path for path, place in zip(paths, found) if place is None]
    if len(absent) == len(paths):
        raise request.missing(request.data_dir / row.options["root"] / paths[0])
    if absent:
        raise InputError(
            f"data set '{row.name}' lacks {len(absent):,} of the {len(paths):,} images that '{LISTS}/{files[0]}' names, e.g. '{absent[0]}'; "
            f"{row.how(request.data_dir)}"
        )
    classes = row.class_names or (
        tuple(map(str, range(row.num_classes))) if row.num_classes else None
    )
    if row.role == "id" and classes and not -1 <= min(labels) <= max(labels) < len(classes):
        raise InputError(
            f"'{LISTS}/{files[0]}' holds the label {max(labels)}, but '{row.name}' has {len(classes)} classes"
        )
    return from_files(
        Listing(request.data_dir, found, labels, classes, final=True), replace(request, lists=files)
    )


def read_own_list(request: Request, file: Path) -> ImageSet:
    """A list of your own: paths relative to its folder or to the data root; without labels, or with -1 only, an unlabelled set."""
    if not file.is_file():
        raise InputError(
            f"no file '{file}'; a list of images is a text file with one 'path label' a line"
        )
    paths, labels = read_list(file, labelled=False)
    roots = [
        file.parent,
        request.data_dir,
        request.data_dir / "images_classic",
        request.data_dir / "images_largescale",
    ]
    root = next((root for root in roots if (root / paths[0]).is_file()), None)
    if root is None:
        raise InputError(
            f"'{file}' names '{paths[0]}', which is neither in '{file.parent}' nor in '{request.data_dir}'"
        )
    names = None
    if labels and max(labels) >= 0:
        if min(labels) < 0:
            raise InputError(
                f"'{file}' mixes classes with the label -1; put the outliers into a list of their own"
            )
        names = tuple(map(str, range(max(labels) + 1)))
    row = replace(request.row, name=file.stem, role="id")
    listing = Listing(root, paths, labels if names else None, names, final=names is not None)
    return from_files(listing, replace(request, row=row, lists=(str(file.resolve()),)), "all")


def read_list(path: Path, labelled: bool = True) -> tuple[list[str], list[int]]:
    """(paths, labels) of an image list; labels are -1 where there are none and `labelled` is false. Empty lines and '# ...' are skipped."""
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
        if not name and not labelled or not labelled and line.lower().endswith(EXTENSIONS):
            name, label = line, "-1"
        try:
            labels.append(int(label))
        except ValueError:
            raise InputError(f"'{path}', line {number}: '{line}' is not 'path label'") from None
        if (
            not name
            or os.path.isabs(name)
            and labelled
            or ".." in name.replace("\\", "/").split("/")
        ):
            raise InputError(
                f"'{path}', line {number}: the path '{name}' does not stay below its folder"
            )
        paths.append(name.strip())
    if not paths:
        raise InputError(f"the list of images '{path}' is empty")
    return paths, labels


def _place(data_dir: Path, root: str, path: str) -> str | None:
    """Where the image of a list lies, relative to the data root; None where it does not."""
    for top in dict.fromkeys((root, "images_classic", "images_largescale")):
        if os.path.isfile(data_dir / top / path):
            return f"{top}/{path}"
    for prefix, others in SAME.items():
        if path.startswith(prefix):
            rest = path[len(prefix) :]
            for other in others:
                if os.path.isfile(data_dir / other / rest):
                    return other + rest
                sorted_in = (
                    _sorted_in(data_dir / other).get(rest.rsplit("/", 1)[-1])
                    if prefix == "imagenet_1k/val/"
                    else None
                )
                if sorted_in:
                    return f"{other}{sorted_in}/{rest}"
    return None


_SORTED: dict[Path, dict[str, str]] = {}


def _sorted_in(folder: Path) -> dict[str, str]:
    """{file: class folder} of ImageNet's validation images where they are sorted into classes; listed once per folder."""
    if folder not in _SORTED:
        _SORTED[folder] = {
            entry.name: place.name
            for place in (os.scandir(folder) if folder.is_dir() else ())
            if place.is_dir()
            for entry in os.scandir(place.path)
        }
    return _SORTED[folder]
