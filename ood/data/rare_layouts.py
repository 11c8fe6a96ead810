"""Readers of layouts that only a few sets have: arrays in files, corruptions, MVTec AD, SuMNIST, Fishyscapes, the fine-grained sets of SSB."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ood.config import InputError
from ood.data.folders import Listing, list_images
from ood.data.images import ImageSet
from ood.data.request import Request, from_arrays, from_files

CITYSCAPES = "cityscapes/leftImg8bit/val"
FINE_GRAINED = {
    "cub": ("CUB_200_2011",),
    "aircraft": ("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/fgvc-aircraft-2013b"),
    "scars": ("stanford_cars",),
}


def read_array(path: Path) -> np.ndarray:
    """Images of an .npy or .npz file as uint8 (N, H, W) or (N, H, W, 3). Of an .npz: `images`, `x` or its only array."""
    return _as_images(open_array(path, ("images", "x", "arr_0", "data")), path)


def _as_images(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if (
        array.dtype != np.uint8
        or array.ndim not in (3, 4)
        or array.shape[3:] not in ((), (3,))
        or not len(array)
    ):
        raise InputError(
            f"'{path}' holds {array.dtype} {array.shape}; images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    return array


def open_array(path: Path, keys: tuple[str, ...]) -> np.ndarray:
    """An .npy file, memory-mapped, or the first of `keys` (else the only array) of an .npz. Nothing is unpickled."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            key = next(
                (key for key in keys if key in content.files),
                content.files[0] if len(content.files) == 1 else None,
            )
            if key is None:
                raise InputError(
                    f"'{path}' holds {', '.join(content.files) or 'nothing'}; expected one of {', '.join(keys)}"
                )
            return content[key]
    except FileNotFoundError:
        raise InputError(f"no file '{path}'") from None
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        raise InputError(
            f"'{path}' is no array of images ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from None


def read_own_array(request: Request, path: Path) -> ImageSet:
    """Your own .npy (images) or .npz: `images` [and `labels`], or `x_train`, `y_train`, `x_test`, `y_test`."""
    images, labels, split = None, None, "all"
    if path.suffix.lower() == ".npz" and path.is_file():
        with _opened(path) as content:
            split = request.split if f"x_{request.split}" in content.files else "all"
            key = (
                f"y_{request.split}"
                if split != "all"
                else next((key for key in ("labels", "y", "targets") if key in content.files), None)
            )
            labels = content[key] if key and key in content.files else None
            if split != "all":
                images = _as_images(content[f"x_{request.split}"], path)
    images = read_array(path) if images is None else images
    classes, row = None, replace(request.row, name=path.stem)
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if (
            len(labels) != len(images)
            or labels.dtype.kind not in "iu"
            or labels.max(initial=0) > 65_535
        ):
            raise InputError(
                f"'{path}' holds {len(images)} images and {len(labels)} labels of type {labels.dtype}; expected one whole number per image"
            )
        labels = None if labels.max(initial=-1) < 0 else labels.astype(np.int64)
    if labels is not None:
        if labels.min() < 0:
            raise InputError(
                f"'{path}' mixes classes with negative labels; put the outliers into a file of their own"
            )
        classes = tuple(map(str, range(int(labels.max()) + 1)))
        row = replace(row, num_classes=len(classes), class_names=classes)
    made = from_arrays(
        replace(request, row=row),
        path.parent,
        [path.name],
        lambda: (images, None),
        labelled=False,
        truth=labels,
    )
    if isinstance(made, ImageSet):
        made.split = split
    return made


def _opened(path: Path):
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:
        raise InputError(
            f"'{path}' is no array of images ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from None


def read_arrays(request: Request) -> ImageSet:
    """Arrays in files that `options['files']` names: {split: (images, labels or None)}; '{part}' stands for every part, or the one asked for."""
    row, options = request.row, request.row.options
    images_file, labels_file = options["files"][request.split]
    parts = [options["part"]] if options.get("part") else list(options.get("parts", ("",)))
    folder = next(
        (
            place
            for place in request.places
            if (place / images_file.format(part=parts[0])).is_file()
        ),
        None,
    )
    if folder is None:
        raise request.missing(
            *(place / images_file.format(part=parts[0]) for place in request.places)
        )
    severity, severities = options.get("severity"), options.get("severities", 1)
    files = [images_file.format(part=part) for part in parts]
    names = [labels_file.format(part=part) for part in parts] if labels_file else []
    for file in (*files, *names):
        if not (folder / file).is_file():
            raise InputError(
                f"data set '{row.name}' is incomplete: '{folder / file}' is not there; {row.how(request.data_dir)}"
            )

    def cut(array: np.ndarray) -> np.ndarray:
        step = len(array) // severities
        return array if severity is None else array[(severity - 1) * step : severity * step]

    def produce():
        arrays = [cut(read_array(folder / file)) for file in files]
        labels = [
            cut(open_array(folder / name, ("labels", "y", "arr_0"))).reshape(-1) for name in names
        ]
        for array, label, file in zip(arrays, labels, files):
            if (
                len(array) != len(label)
                or label.min(initial=0) < 0
                or label.max(initial=0) >= row.num_classes
            ):
                raise InputError(
                    f"'{folder / file}' has {len(array)} images, its labels are {len(label)} numbers up to {label.max(initial=-1)}; expected one below {row.num_classes} each"
                )
        return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)), (
            np.concatenate(labels).astype(np.uint8) if labels else None
        )

    return from_arrays(
        request, folder, list(dict.fromkeys(files + names)), produce, labelled=bool(names)
    )


def read_corrupted(request: Request) -> ImageSet:
    """<corruption>/<severity>/<wnid>/*: the class is the folder above the file."""
    options = request.row.options
    root = next((place for place in request.places if place.is_dir()), None)
    if root is None:
        raise request.missing()
    kinds = [options["part"]] if options.get("part") else list(options["parts"])
    levels = (
        [options["severity"]]
        if options.get("severity")
        else list(range(1, options["severities"] + 1))
    )
    paths, labels, classes = [], [], None
    for kind in kinds:
        for level in levels:
            folder = root / kind / str(level)
            if not folder.is_dir():
                raise InputError(
                    f"data set '{request.row.name}' is incomplete: '{folder}' is not there; {request.row.how(request.data_dir)}"
                )
            listing = list_images(folder)
            if classes not in (None, listing.class_names):
                raise InputError(
                    f"'{folder}' has other classes than '{root / kinds[0] / str(levels[0])}'"
                )
            classes = listing.class_names
            paths += [f"{kind}/{level}/{path}" for path in listing.paths]
            labels += listing.labels or []
    if classes is None or len(classes) != request.row.num_classes:
        raise InputError(
            f"'{root}' has {len(classes or ())} classes, '{request.row.name}' {request.row.num_classes}"
        )
    return from_files(Listing(root, paths, labels, classes, final=True), request)


def read_direct(request: Request) -> ImageSet:
    """Only the images directly inside the folder (masks lie in folders beside them)."""
    folder = next((place for place in request.places if place.is_dir()), None)
    if folder is None:
        raise request.missing()
    paths = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))
    )
    if not paths:
        raise InputError(f"no images in '{folder}'")
    return from_files(Listing(folder, paths, None, None), request)


def read_mvtec(request: Request) -> ImageSet:
    """<object>/{train,test}/<good or a defect>/*.png; `good` is ID (label: the object), the rest OOD."""
    root = next((place for place in request.places if place.is_dir()), None)
    if root is None:
        raise request.missing()
    objects = sorted(
        entry.name for entry in os.scandir(root) if (Path(entry.path) / "train").is_dir()
    )
    paths, labels = [], []
    for label, name in enumerate(objects):
        for kind in sorted(
            entry.name for entry in os.scandir(root / name / request.split) if entry.is_dir()
        ):
            if (kind == "good") == request.row.options["good"]:
                files = [
                    f"{name}/{request.split}/{kind}/{path}"
                    for path in list_images(root / name / request.split / kind).paths
                ]
                paths, labels = paths + files, labels + [label] * len(files)
    if not paths:
        raise request.missing()
    if request.row.role == "id" and len(objects) != request.row.num_classes:
        raise InputError(
            f"'{root}' holds {len(objects)} objects, '{request.row.name}' has {request.row.num_classes}; {request.row.how(request.data_dir)}"
        )
    return from_files(Listing(root, paths, labels, tuple(objects), final=True), request)


def read_sumnist(request: Request) -> ImageSet:
    """x (images), y (four digits each): normal where the digits add up to 20."""
    folder = request.places[0]
    files = [f"{letter}-{request.split}.npz" for letter in "xy"]
    if not (folder / files[0]).is_file():
        raise request.missing(folder / files[0])

    def produce():
        images, digits = (
            read_array(folder / files[0]),
            open_array(folder / files[1], ("arr_0", "y")),
        )
        chosen = (digits.reshape(len(digits), -1).sum(axis=1) == 20) == request.row.options[
            "normal"
        ]
        return images[chosen], np.zeros(int(chosen.sum()), dtype=np.uint8)

    return from_arrays(request, folder, files, produce)


def read_fishyscapes(request: Request) -> ImageSet:
    """Overlays (*_rgb.npz: differences) added to Cityscapes' validation images."""
    folder, base = request.places[0], request.data_dir / CITYSCAPES
    if not folder.is_dir() or not base.is_dir():
        raise request.missing(folder, base)
    overlays = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith("_rgb.npz"))
    if not overlays:
        raise InputError(f"no overlays (*_rgb.npz) in '{folder}'")

    def produce():
        images = []
        for name in overlays:
            stem = name.split("_", 1)[1].removesuffix("_rgb.npz")
            photograph = base / stem.split("_")[0] / f"{stem}_leftImg8bit.png"
            if not photograph.is_file():
                raise InputError(
                    f"'{folder / name}' needs '{photograph}'; {request.row.how(request.data_dir)}"
                )
            plain = np.asarray(Image.open(photograph).convert("RGB")).astype(np.int64)
            images.append(
                np.clip(
                    plain + open_array(folder / name, ("rgb",)).astype(np.int64), 0, 255
                ).astype(np.uint8)
            )
        return np.stack(images), None

    return from_arrays(request, folder, overlays, produce, labelled=False)


# --- the Semantic Shift Benchmark's fine-grained sets


def read_fine_grained(request: Request) -> ImageSet:
    """The known, easy or hard (with medium) classes of CUB, FGVC-Aircraft or Stanford Cars."""
    row = request.row
    short, part = row.options["set"], row.options["part"]
    root = next(
        (
            request.data_dir / name
            for name in FINE_GRAINED[short]
            if (request.data_dir / name).is_dir()
        ),
        None,
    )
    splits = request.data_dir / "ssb_splits" / f"{short}_osr_splits.pkl"
    if root is None or not splits.is_file():
        raise request.missing(request.data_dir / FINE_GRAINED[short][0], splits)
    classes = ssb_classes(splits, first=1 if short == "scars" else 0)[part]
    try:
        files = {"cub": _cub, "aircraft": _aircraft, "scars": _cars}[short](root, request.split)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"'{root}' is incomplete or damaged ({error}); {row.how(request.data_dir)}"
        ) from None
    place = {label: number for number, label in enumerate(sorted(classes))}
    kept = [(path, place[label]) for path, label in files if label in place]
    if not kept:
        raise InputError(f"'{root}' holds no image of the classes that '{splits.name}' names")
    return from_files(
        Listing(
            root,
            [path for path, _ in kept],
            [label for _, label in kept],
            tuple(str(label) for label in sorted(classes)),
            final=True,
        ),
        request,
    )


def ssb_classes(path: Path, first: int = 0) -> dict[str, list[int]]:
    """{'known', 'easy', 'hard'}: class numbers from 0. The file is a pickle of lists of integers; anything else in it is refused."""
    try:
        with open(path, "rb") as file:
            content = _Plain(file).load()
        unknown = {
            key: [int(label) - first for label in value]
            for key, value in content["unknown_classes"].items()
        }
        known = [int(label) - first for label in content["known_classes"]]
    except Exception as error:
        raise InputError(
            f"'{path}' is no file of class splits ({error}); remove it and fetch it again"
        ) from None
    return {
        "known": known,
        "easy": unknown.get("Easy", []),
        "hard": unknown.get("Hard", []) + unknown.get("Medium", []),
    }


class _Plain(pickle.Unpickler):
    """Lists, dicts, strings and numbers only: NumPy's integers and arrays, and no other name."""

    ALLOWED = {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module, name):
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")


def _cub(root: Path, split: str) -> list[tuple[str, int]]:
    def table(name: str) -> dict[int, str]:
        return {
            int(line.split()[0]): line.split()[1]
            for line in (root / name).read_text().splitlines()
            if line.strip()
        }

    paths, labels, training = (
        table("images.txt"),
        table("image_class_labels.txt"),
        table("train_test_split.txt"),
    )
    return [
        (f"images/{paths[number]}", int(labels[number]) - 1)
        for number in sorted(paths)
        if (training[number] == "1") == (split == "train")
    ]


def _aircraft(root: Path, split: str) -> list[tuple[str, int]]:
    data = root / "data"
    variants = sorted(
        line.strip() for line in (data / "variants.txt").read_text().splitlines() if line.strip()
    )
    label = {name: number for number, name in enumerate(variants)}
    lines = (
        (data / f"images_variant_{'trainval' if split == 'train' else 'test'}.txt")
        .read_text()
        .splitlines()
    )
    return [
        (f"data/images/{line.split(maxsplit=1)[0]}.jpg", label[line.split(maxsplit=1)[1].strip()])
        for line in lines
        if line.strip()
    ]


def _cars(root: Path, split: str) -> list[tuple[str, int]]:
    from scipy.io import loadmat

    name = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    rows = loadmat(root / "devkit" / name, squeeze_me=True)["annotations"]
    return [
        (f"cars_{split}/{file}", int(label) - 1)
        for file, label in zip(rows["fname"], rows["class"])
    ]
