"""One reader per layout on disk: class folders, torchvision's CIFAR pickles, idx files, SVHN's .mat, Tiny ImageNet's own tree."""

from __future__ import annotations

import gzip
import os
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data import lists, rare_layouts
from ood.data.decoding import digest_files, digest_of
from ood.data.folders import Listing, joined, list_images, split_folder
from ood.data.images import ImageSet
from ood.data.registry.entry import SVHN_PER_LABEL
from ood.data.request import Listed, Request, arrays_as_set, from_arrays, from_files

IDX_UINT8 = 0x08


def read_path(request: Request) -> ImageSet:
    """Your own data by its path: a folder of images with train/test sub-folders or not, an .npy or .npz file, a .txt list of images."""
    folder = Path(request.row.name).expanduser()
    if folder.suffix.lower() in (".npy", ".npz"):
        return rare_layouts.read_own_array(request, folder)
    if folder.suffix.lower() == ".txt":
        return lists.read_own_list(request, folder)
    if not folder.is_dir():
        raise InputError(
            f"no folder '{folder}'; a data set is a folder of images, or one of the known names (written without '/')"
        )
    part, split = split_folder(folder, request.split)
    listing = list_images(part)
    if split != "all" and listing.class_names:
        _check_same_classes(folder, part, listing, "test" if split == "train" else "train")
    return from_files(
        listing, replace(request, row=replace(request.row, name=folder.resolve().name)), split
    )


def _check_same_classes(folder: Path, part: Path, listing: Listing, other_split: str) -> None:
    """Labels are positions among the class folders, so both splits must have the same ones."""
    try:
        other = split_folder(folder, other_split)[0]
        classes = list_images(other).class_names
    except InputError:
        return  # a folder with one split only is fine until the other is asked for
    odd = sorted(set(classes or listing.class_names) ^ set(listing.class_names))
    if odd:
        raise InputError(
            f"'{part}' and '{other}' must hold the same class folders; '{odd[0]}' is in one of them only"
        )


def read_folder(request: Request) -> ImageSet:
    """Image files under a known folder; OOD sets nested or not."""
    found = [place for place in request.places if place.is_dir()]
    if not found:
        raise request.missing()
    parent = request.row.options.get("join")
    if parent and found[0] != request.places[0]:  # the parts of a set, where the whole is not there
        return from_files(joined(request.data_dir / parent, found), request)
    return from_files(list_images(found[0]), request)


def read_tiny_imagenet(request: Request) -> ImageSet:
    """tiny-imagenet-200: train/<wnid>/images/*; test images from test/<wnid>/, val/<wnid>/ or val/images + val_annotations.txt."""
    root = request.places[0]
    if not (root / "train").is_dir():
        raise request.missing(root / "train")
    if request.split == "train":
        return from_files(list_images(root / "train"), request)
    wnids = sorted(
        entry.name
        for entry in os.scandir(root / "train")
        if entry.is_dir() and not entry.name.startswith(".")
    )
    for name in ("test", "val"):
        if wnids and (root / name / wnids[0]).is_dir():
            return from_files(list_images(root / name), request)
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise request.missing(root / "test" / "<wnid>", root / "val" / "<wnid>", annotations)
    return from_files(_annotated(root / "val", annotations, wnids), request)


def _annotated(folder: Path, annotations: Path, wnids: list[str]) -> Listing:
    """The official validation set: the first two columns of val_annotations.txt are file and wnid; files in string order."""
    rows = sorted(
        tuple(line.split("\t")[:2]) for line in annotations.read_text().splitlines() if line.strip()
    )
    label = {wnid: index for index, wnid in enumerate(wnids)}
    for row in rows:
        if len(row) < 2 or row[1] not in label:
            raise InputError(
                f"'{annotations}' names the class of '{row[0]}' as '{row[-1]}', which is no folder of train/"
            )
        if not (folder / "images" / row[0]).is_file():
            raise InputError(
                f"'{annotations}' names '{row[0]}', which is not in '{folder / 'images'}'"
            )
    if not rows:
        raise InputError(f"'{annotations}' is empty; unpack the archive again")
    return Listing(
        folder,
        [f"images/{file}" for file, _ in rows],
        [label[wnid] for _, wnid in rows],
        tuple(wnids),
    )


def read_cifar(request: Request) -> ImageSet:
    """torchvision's pickles (md5 verified when they are first read), or an image folder <name>/{train,test}/<class>/."""
    pickled = [
        request.data_dir / folder / request.row.options["pickles"] for folder in request.row.folders
    ]
    images = [
        request.data_dir / request.row.options.get("folder", request.row.name) / sub
        for sub in request.row.splits[request.split]
    ]
    root = next((place for place in pickled if place.is_dir()), None)
    folder = next((place for place in images if place.is_dir()), None)
    if root is None and folder is not None:
        return from_files(list_images(folder), request)
    root = root or pickled[0]
    if not root.is_dir():
        raise request.missing(*pickled, *images)
    from torchvision import (
        datasets,
    )  # here, because its import takes longer than reading an image folder's cache

    kind = getattr(datasets, request.row.torchvision)
    files = [file for file, _ in (kind.train_list if request.split == "train" else kind.test_list)]

    def produce():
        try:
            data = kind(root.parent, train=request.split == "train", download=request.download)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"'{root}' is incomplete or damaged ({_line(error)}); remove it and add -download"
            ) from None
        return data.data, np.asarray(data.targets, dtype=np.uint8)

    absent = [file for file in files if not (root / file).is_file()]
    if absent and request.download:
        produce()
    elif absent:
        raise InputError(
            f"'{root}' is incomplete: '{absent[0]}' is not there; remove the folder and add -download"
        )
    return from_arrays(request, root, files, produce)


def read_idx(request: Request) -> ImageSet:
    """MNIST's idx files, plain (memory-mapped as they are) or gzipped."""
    prefix = request.row.splits[request.split][0]
    places = list(dict.fromkeys(request.data_dir / folder for folder in request.row.folders))
    pair = _idx_pair(places, prefix)
    if pair is None:
        raise request.missing(*places)
    images, labels = _read_idx_file(pair[0], 3), _read_idx_file(pair[1], 1)
    if len(images) != len(labels):
        raise InputError(
            f"'{pair[0]}' holds {len(images)} images but '{pair[1]}' {len(labels)} labels; remove both and add -download"
        )
    if labels.max(initial=0) >= request.row.num_classes:
        raise InputError(
            f"'{pair[1]}' holds the label {labels.max()}, but '{request.row.name}' has {request.row.num_classes} classes"
        )
    files = [file.name for file in pair]
    if request.listing:
        return Listed(pair[0].parent, tuple(files), images=images, labels=labels)
    if request.recipe.keeps((1, *images.shape[1:])):  # the plain file is the array already
        source = digest_of(digest_files(pair[0].parent, files), request.row.name)
        return arrays_as_set(request, images[:, None], labels, source)
    return from_arrays(request, pair[0].parent, files, lambda: (images, labels))


def _idx_pair(places: list[Path], prefix: str) -> tuple[Path, Path] | None:
    for place in places:
        for ending in ("", ".gz"):
            for joint in ("-", "."):
                pair = tuple(
                    place / f"{prefix}-{what}{joint}idx{rank}-ubyte{ending}"
                    for what, rank in (("images", 3), ("labels", 1))
                )
                if all(file.is_file() for file in pair):
                    return pair
    return None


def _read_idx_file(path: Path, rank: int) -> np.ndarray:
    """idx: two zero bytes, type, rank, big-endian sizes, then the values."""
    again = "; remove it and add -download"
    try:
        content = (
            np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
            if path.suffix == ".gz"
            else np.memmap(path, mode="r")
        )
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"'{path}' is damaged ({_line(error)}){again}") from None
    header = 4 + 4 * rank
    if len(content) < header or tuple(content[:4]) != (0, 0, IDX_UINT8, rank):
        raise InputError(f"'{path}' is no idx file of {rank} dimension(s) of bytes{again}")
    shape = tuple(int(side) for side in content[4:header].view(">u4"))
    if len(content) != header + int(np.prod(shape)):
        raise InputError(
            f"'{path}' should have {header + int(np.prod(shape))} bytes but has {len(content)}{again}"
        )
    return content[header:].reshape(shape)


def read_svhn(request: Request) -> ImageSet:
    """{train,test}_32x32.mat; label 10 is the digit 0."""
    places = [request.data_dir / folder for folder in request.row.folders]
    file = f"{request.split}_32x32.mat"
    return _read_mat(request, places, file, lambda: _first(places, file))


def read_svhn_selected(request: Request) -> ImageSet:
    """DICE's subset: selected_test_32x32.mat, else the first 1000 images of each label of test_32x32.mat, in the file's order."""
    places = [request.data_dir / folder for folder in request.row.folders]
    return _read_mat(
        request,
        places,
        "selected_test_32x32.mat",
        lambda: _first(places, "selected_test_32x32.mat") or _first(places, "test_32x32.mat"),
    )


def _read_mat(request: Request, places: list[Path], file: str, find) -> ImageSet:
    path = find()
    if path is None:
        raise request.missing(*(place / file for place in places))
    select = request.row.reader == "svhn_selected" and not path.name.startswith("selected")

    def produce():
        images, labels = _read_mat_file(path)
        if select:
            kept = np.sort(
                np.concatenate(
                    [np.flatnonzero(labels == label)[:SVHN_PER_LABEL] for label in range(10)]
                )
            )
            images, labels = images[kept], labels[kept]
        return images, labels

    return from_arrays(request, path.parent, [path.name], produce)


def _read_mat_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        images, labels = (
            content["X"].transpose(3, 0, 1, 2),
            content["y"].reshape(-1) % 10,
        )  # (N, 32, 32, 3), (N,)
    except Exception as error:  # scipy raises many kinds on damaged files
        raise InputError(
            f"'{path}' is damaged or no SVHN file ({_line(error)}); remove it and add -download"
        ) from None
    if len(images) != len(labels) or images.dtype != np.uint8:
        raise InputError(
            f"'{path}' holds {len(images)} images of type {images.dtype} and {len(labels)} labels; expected as many bytes images"
        )
    return np.ascontiguousarray(images), labels.astype(np.uint8)


def _first(places: list[Path], file: str) -> Path | None:
    return next((place / file for place in places if (place / file).is_file()), None)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
