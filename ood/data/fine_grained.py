"""Readers of the Semantic Shift Benchmark's sets: CUB, FGVC-Aircraft, Stanford Cars."""

from __future__ import annotations

import pickle
from pathlib import Path

from ood.config import InputError
from ood.data.folders import Listing
from ood.data.images import ImageSet
from ood.data.request import Request, from_files

FOLDERS = {
    "cub": ("CUB_200_2011",),
    "aircraft": ("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/fgvc-aircraft-2013b"),
    "scars": ("stanford_cars",),
}


def read_fine_grained(request: Request) -> ImageSet:
    """Read the known, the easy, or the hard and medium classes of one of the three sets."""
    row = request.row
    short, part = row.options["set"], row.options["part"]
    places = [request.data_dir / name for name in FOLDERS[short]]
    root = next((place for place in places if place.is_dir()), None)
    splits = request.data_dir / "ssb_splits" / f"{short}_osr_splits.pkl"
    if root is None or not splits.is_file():
        raise request.missing(places[0], splits)
    classes = sorted(ssb_classes(splits, first=1 if short == "scars" else 0)[part])
    try:
        files = LISTINGS[short](root, request.split)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise request.damaged(f"'{root}' ({error})") from None
    new_label = {label: number for number, label in enumerate(classes)}
    kept = [(path, new_label[label]) for path, label in files if label in new_label]
    if not kept:
        raise InputError(f"'{root}' holds no image of the classes that '{splits.name}' names")
    paths, labels = [path for path, _ in kept], [label for _, label in kept]
    return from_files(Listing(root, paths, labels, tuple(map(str, classes)), final=True), request)


def ssb_classes(path: Path, first: int = 0) -> dict[str, list[int]]:
    """Read {'known', 'easy', 'hard'}: class numbers from 0; hard includes the medium classes.

    Args: see `ssb_splits`.
    """
    known, unknown = ssb_splits(path, first)
    hard = unknown.get("Hard", []) + unknown.get("Medium", [])
    return {"known": known, "easy": unknown.get("Easy", []), "hard": hard}


def ssb_splits(path: Path, first: int = 0) -> tuple[list[int], dict[str, list[int]]]:
    """Read the known classes, and the unknown ones by difficulty; numbers from 0.

    Args:
        path: a pickle of lists of integers. Anything else in it is refused, never executed.
        first: number of the first class in the file.

    Raises: InputError for a file that holds anything else.
    """
    try:
        with open(path, "rb") as file:
            content = _Plain(file).load()
        unknown = {
            key: [int(label) - first for label in value]
            for key, value in content["unknown_classes"].items()
        }
        return [int(label) - first for label in content["known_classes"]], unknown
    except Exception as error:
        raise InputError(
            f"'{path}' is no file of class splits ({error}); remove it and fetch it again"
        ) from None


class _Plain(pickle.Unpickler):
    """Unpickle lists, dicts, strings and numbers, NumPy's integers and arrays; nothing else."""

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
        return {int(line.split()[0]): line.split()[1] for line in _lines(root / name)}

    paths, labels = table("images.txt"), table("image_class_labels.txt")
    training = table("train_test_split.txt")
    return [
        (f"images/{paths[number]}", int(labels[number]) - 1)
        for number in sorted(paths)
        if (training[number] == "1") == (split == "train")
    ]


def _aircraft(root: Path, split: str) -> list[tuple[str, int]]:
    data = root / "data"
    variants = sorted(line.strip() for line in _lines(data / "variants.txt"))
    label = {name: number for number, name in enumerate(variants)}
    part = "trainval" if split == "train" else "test"
    named = [line.split(maxsplit=1) for line in _lines(data / f"images_variant_{part}.txt")]
    return [(f"data/images/{image}.jpg", label[variant.strip()]) for image, variant in named]


def _cars(root: Path, split: str) -> list[tuple[str, int]]:
    from scipy.io import loadmat

    name = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    content = loadmat(root / "devkit" / name, squeeze_me=True)["annotations"]
    return [
        (f"cars_{split}/{file}", int(label) - 1)
        for file, label in zip(content["fname"], content["class"])
    ]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


LISTINGS = {"cub": _cub, "aircraft": _aircraft, "scars": _cars}
