"""Readers of the common layouts: class folders, CIFAR's pickles, idx files, SVHN's .mat, and more.

Each reader serves one layout on disk. The layouts of anomaly sets are in `anomalies.py`, those of
the Semantic Shift Benchmark in `fine_grained.py`, arrays in files in `array_files.py`.
"""

from __future__ import annotations

import gzip
import math
import os
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data import array_files, hub, lists, shards, tables
from ood.data.decoding import digest_files, digest_of
from ood.data.folders import EmptyFolder, Listing, joined, list_images, own_path, split_folder
from ood.data.images import ImageSet
from ood.data.registry.entry import SVHN_PER_LABEL
from ood.data.registry.imagenet import imagenet_wnids
from ood.data.request import Listed, Request, arrays_as_set, from_arrays, from_files

IDX_UINT8 = 0x08
DIRECT_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def read_path(request: Request) -> ImageSet:
    """Read your own data by its path.

    A path is a folder of images (with train/test sub-folders or not), an .npy or .npz file, a .txt
    list or a table of images, tar shards, or a set of the Hugging Face hub (hf:NAME). Image files
    are turned as their EXIF orientation says.
    """
    if request.row.name.startswith(hub.PREFIX):
        return hub.read_hub(request, request.row.name)
    folder = own_path(request.row.name)
    if folder.suffix.lower() == shards.SUFFIX:
        return shards.read_shards(request, str(folder))
    if folder.suffix.lower() in (".npy", ".npz"):
        return array_files.read_own_array(request, folder)
    request = replace(request, recipe=replace(request.recipe, upright=True))
    if folder.suffix.lower() == ".txt":
        return lists.read_own_list(request, folder)
    if folder.suffix.lower() in tables.SUFFIXES:
        return tables.read_table(request, folder)
    if not folder.is_dir():
        raise InputError(
            f"no folder '{folder}'; a data set is a folder of images, "
            "or one of the known names (written without '/')"
        )
    part, split = split_folder(folder, request.split)
    listing = list_images(part)
    if split != "all" and listing.class_names:
        _check_same_classes(folder, part, listing, "test" if split == "train" else "train")
    row = replace(request.row, name=folder.resolve().name)
    return from_files(listing, replace(request, row=row), split)


def _check_same_classes(folder: Path, part: Path, listing: Listing, other_split: str) -> None:
    """Check that both splits have the same class folders: labels are positions among them."""
    try:
        other = split_folder(folder, other_split)[0]
        classes = list_images(other).class_names
    except InputError:
        return  # a folder with one split only is fine until the other is asked for
    odd = sorted(set(classes or listing.class_names) ^ set(listing.class_names))
    if odd:
        raise InputError(
            f"'{part}' and '{other}' must hold the same class folders; "
            f"'{odd[0]}' is in one of them only"
        )


def read_folder(request: Request) -> ImageSet:
    """Read image files under a known folder; OOD sets may be nested or not.

    Of the row's options, `only` is a pattern that the paths of its images match, and `wnids` says
    that the folder above each image names its class of ImageNet.
    """
    options = request.row.options
    found = [place for place in request.places if place.is_dir()]
    if not found:
        raise request.missing()
    try:
        if (
            options.get("join") and found[0] != request.places[0]
        ):  # parts of a set whose whole is not there
            listing = joined(request.data_dir / options["join"], found)
        else:
            listing = list_images(found[0])
    except EmptyFolder as error:
        raise request.damaged(str(error)) from None
    if "only" in options:
        fits = re.compile(options["only"]).fullmatch
        listing = listing.rows([row for row, path in enumerate(listing.paths) if fits(path)])
        if not listing.paths:
            raise request.damaged(f"no images like {options['only']} in '{listing.folder}'")
    if options.get("wnids"):
        listing = _imagenet_classes(listing, request)
    return from_files(listing, request)


def _imagenet_classes(listing: Listing, request: Request) -> Listing:
    """Label every image by the folder above it, a class of ImageNet."""
    label = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    classes = [path.split("/")[-2] for path in listing.paths]
    strange = sorted(set(classes) - set(label))
    if strange:
        raise request.damaged(f"'{strange[0]}' in '{listing.folder}' is no class of ImageNet")
    labels = [label[wnid] for wnid in classes]
    return replace(listing, labels=labels, class_names=tuple(label), final=True)


def read_direct(request: Request) -> ImageSet:
    """Read only the images directly inside the folder (masks lie in folders beside them)."""
    folder = next((place for place in request.places if place.is_dir()), None)
    if folder is None:
        raise request.missing()
    paths = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.lower().endswith(DIRECT_EXTENSIONS)
    )
    if not paths:
        raise request.damaged(f"no images in '{folder}'")
    return from_files(Listing(folder, paths, None, None), request)


def read_corrupted(request: Request) -> ImageSet:
    """Read <corruption>/<severity>/<wnid>/*; the class is the folder above the file."""
    options = request.row.options
    root = next((place for place in request.places if place.is_dir()), None)
    if root is None:
        raise request.missing()
    kinds = [options["part"]] if options.get("part") else list(options["parts"])
    levels = list(range(1, options["severities"] + 1))
    if options.get("severity"):
        levels = [options["severity"]]
    paths, labels, classes = [], [], None
    for kind in kinds:
        for level in levels:
            folder = root / kind / str(level)
            if not folder.is_dir():
                raise request.damaged(f"'{folder}' is not there")
            listing = list_images(folder)
            if classes not in (None, listing.class_names):
                first = root / kinds[0] / str(levels[0])
                raise InputError(f"'{folder}' has other classes than '{first}'")
            classes = listing.class_names
            paths += [f"{kind}/{level}/{path}" for path in listing.paths]
            labels += listing.labels or []
    if classes is None or len(classes) != request.row.num_classes:
        raise InputError(
            f"'{root}' has {len(classes or ())} classes, "
            f"'{request.row.name}' {request.row.num_classes}"
        )
    return from_files(Listing(root, paths, labels, classes, final=True), request)


def read_parts(request: Request) -> Listed:
    """Find the parts of a set that holds no images, or not only: the places of its archives.

    `Listed.paths` are these places, in the order of the row. Raises InputError if images are asked
    for.
    """
    if not request.listing:
        raise InputError(f"data set '{request.row.name}' cannot be read as images")
    wanted = [a for a in request.row.archives if a.split in (None, request.split)]
    absent = [a for a in wanted if not (request.data_dir / a.place).exists()]
    if absent:
        raise request.missing(*(request.data_dir / archive.place for archive in absent))
    return Listed(request.data_dir, paths=[archive.place for archive in wanted])


def read_tiny_imagenet(request: Request) -> ImageSet:
    """Read tiny-imagenet-200: train/<wnid>/images/*, and one of three places for the test images.

    These are test/<wnid>/, val/<wnid>/, and val/images with val_annotations.txt.
    """
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
        raise request.damaged(
            f"test images are in none of '{root / 'test' / '<wnid>'}', "
            f"'{root / 'val' / '<wnid>'}', '{annotations}'"
        )
    return from_files(_annotated(request, root / "val", annotations, wnids), request)


def _annotated(request: Request, folder: Path, annotations: Path, wnids: list[str]) -> Listing:
    """List the official validation set, files in string order.

    The first two columns of val_annotations.txt are the file and its wnid.
    """
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise request.damaged(f"'{annotations}' cannot be read ({error})") from None
    pairs = sorted(tuple(line.split("\t")[:2]) for line in lines if line.strip())
    label = {wnid: index for index, wnid in enumerate(wnids)}
    for pair in pairs:
        if len(pair) < 2 or pair[1] not in label:
            raise request.damaged(
                f"'{annotations}' names the class of '{pair[0]}' as '{pair[-1]}', "
                "which is no folder of train/"
            )
        if not (folder / "images" / pair[0]).is_file():
            raise request.damaged(
                f"'{annotations}' names '{pair[0]}', which is not in '{folder / 'images'}'"
            )
    if not pairs:
        raise request.damaged(f"'{annotations}' is empty")
    paths = [f"images/{file}" for file, _ in pairs]
    return Listing(folder, paths, [label[wnid] for _, wnid in pairs], tuple(wnids))


def read_cifar(request: Request) -> ImageSet:
    """Read torchvision's pickles, or an image folder <name>/{train,test}/<class>/.

    The md5 of each pickle is verified when it is first read.
    """
    row, data_dir = request.row, request.data_dir
    pickled = [data_dir / folder / row.options["pickles"] for folder in row.folders]
    folder_name = row.options.get("folder", row.name)
    images = [data_dir / folder_name / sub for sub in row.splits[request.split]]
    root = next((place for place in pickled if place.is_dir()), None)
    folder = next((place for place in images if place.is_dir()), None)
    if root is None and folder is not None:
        return from_files(list_images(folder), request)
    root = root or pickled[0]
    if not root.is_dir():
        raise request.missing(*pickled, *images)
    # Here, because this import takes longer than reading an image folder's cache.
    from torchvision import datasets

    kind = getattr(datasets, row.torchvision)
    files = [file for file, _ in (kind.train_list if request.split == "train" else kind.test_list)]
    absent = [file for file in files if not (root / file).is_file()]
    if absent:
        raise request.damaged(f"'{absent[0]}' is not there in '{root}'")

    def produce():
        try:
            data = kind(root.parent, train=request.split == "train", download=False)
        except RuntimeError:  # torchvision's answer to a wrong checksum
            raise request.damaged(f"a checksum differs in '{root}'") from None
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise request.damaged(f"a file in '{root}' cannot be read ({_line(error)})") from None
        return data.data, np.asarray(data.targets, dtype=np.uint8)

    return from_arrays(request, root, files, produce)


def read_idx(request: Request) -> ImageSet:
    """Read MNIST's idx files, plain (memory-mapped as they are) or gzipped."""
    row = request.row
    places = list(dict.fromkeys(request.data_dir / folder for folder in row.folders))
    pair = _idx_pair(places, row.splits[request.split][0])
    if pair is None:
        raise request.missing(*places)
    images, labels = _read_idx_file(request, pair[0], 3), _read_idx_file(request, pair[1], 1)
    if len(images) != len(labels):
        raise request.damaged(
            f"'{pair[0]}' holds {len(images)} images but '{pair[1]}' {len(labels)} labels"
        )
    if labels.max(initial=0) >= row.num_classes:
        raise InputError(
            f"'{pair[1]}' holds the label {labels.max()}, "
            f"but '{row.name}' has {row.num_classes} classes"
        )
    files = [file.name for file in pair]
    if request.listing:
        return Listed(pair[0].parent, tuple(files), images=images, labels=labels)
    if request.recipe.keeps((1, *images.shape[1:])):  # the plain file is the array already
        source = digest_of(digest_files(pair[0].parent, files), row.name)
        return arrays_as_set(request, images[:, None], labels, source)
    return from_arrays(request, pair[0].parent, files, lambda: (images, labels))


def _idx_pair(places: list[Path], prefix: str) -> tuple[Path, Path] | None:
    """Find the files of images and labels, in any of their spellings."""
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


def _read_idx_file(request: Request, path: Path, rank: int) -> np.ndarray:
    """Read an idx file: two zero bytes, type, rank, big-endian sizes, then the values."""
    try:
        if path.suffix == ".gz":
            content = np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
        else:
            content = np.memmap(path, mode="r")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise request.damaged(f"'{path}' is damaged ({_line(error)})") from None
    header = 4 + 4 * rank
    if len(content) < header or tuple(content[:4]) != (0, 0, IDX_UINT8, rank):
        raise request.damaged(f"'{path}' is no idx file of {rank} dimension(s) of bytes")
    shape = tuple(int(side) for side in content[4:header].view(">u4"))
    wanted = header + math.prod(shape)
    if len(content) != wanted:
        raise request.damaged(f"'{path}' should have {wanted} bytes but has {len(content)}")
    return content[header:].reshape(shape)


def read_svhn(request: Request) -> ImageSet:
    """Read {train,test}_32x32.mat; label 10 is the digit 0."""
    return _read_mat(request, (f"{request.split}_32x32.mat",))


def read_svhn_selected(request: Request) -> ImageSet:
    """Read DICE's subset: selected_test_32x32.mat, or the images it is made of.

    These are the first 1000 images of each label of test_32x32.mat, in the file's order.
    """
    return _read_mat(request, ("selected_test_32x32.mat", "test_32x32.mat"))


def _read_mat(request: Request, files: tuple[str, ...]) -> ImageSet:
    places = [request.data_dir / folder for folder in request.row.folders]
    candidates = [place / file for file in files for place in places]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise request.missing(*candidates[: len(places)])
    select = request.row.reader == "svhn_selected" and not path.name.startswith("selected")

    def produce():
        images, labels = _read_mat_file(request, path)
        if select:
            firsts = [np.flatnonzero(labels == label)[:SVHN_PER_LABEL] for label in range(10)]
            kept = np.sort(np.concatenate(firsts))
            images, labels = images[kept], labels[kept]
        return images, labels

    return from_arrays(request, path.parent, [path.name], produce)


def _read_mat_file(request: Request, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, 32, 32, 3) and labels (N,)."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        images = content["X"].transpose(3, 0, 1, 2)
        labels = content["y"].reshape(-1) % 10
    except Exception as error:  # scipy raises many kinds on damaged files
        raise request.damaged(f"'{path}' is damaged or no SVHN file ({_line(error)})") from None
    if len(images) != len(labels) or images.dtype != np.uint8:
        raise request.damaged(
            f"'{path}' holds {len(images)} images of type {images.dtype} and {len(labels)} labels; "
            "expected uint8 images and as many labels"
        )
    return np.ascontiguousarray(images), labels.astype(np.uint8)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
