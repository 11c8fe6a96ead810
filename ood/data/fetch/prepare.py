"""Steps that some sets need after their archives are unpacked.

STAGED steps work on the unpacked folder before it gets its final name. AFTER steps make a set from
another set that is already in place. Both put only whole things under a final name.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ood.cli import progress
from ood.config import InputError
from ood.data.decoding import Recipe, decode
from ood.data.fetch.unpack import unpack
from ood.data.folders import list_images
from ood.data.registry.entry import SVHN_PER_LABEL, Archive, DatasetInfo

SMALL = 32  # pixels of a side of tinyimagenet32


def summary(name: str) -> str:
    """Say what a step does: the first line of its docstring, for `download_data.py -dry_run`."""
    return (STAGED.get(name) or AFTER[name]).__doc__.splitlines()[0]


def tiny_imagenet_val(staged: Path, archive: Archive, data_dir: Path, work: Path) -> None:
    """sorts the validation images into class folders, val/<wnid>/, by val_annotations.txt"""
    val = staged / "val"
    for line in (val / "val_annotations.txt").read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, wnid = line.split("\t")[:2]
            if "/" in name or "/" in wnid or wnid.startswith("."):
                raise InputError(f"'{archive.name}': val_annotations.txt holds the line '{line}'")
            (val / wnid).mkdir(exist_ok=True)
            os.replace(val / "images" / name, val / wnid / name)
    left = len(os.listdir(val / "images"))
    if left:
        raise InputError(
            f"'{archive.name}': val_annotations.txt names no class for {left} validation images"
        )
    (val / "images").rmdir()


def imagenet(staged: Path, archive: Archive, data_dir: Path, work: Path) -> None:
    """unpacks train's class archives; sorts validation images into classes by the devkit"""
    if archive.place.endswith("train"):
        for file in progress(sorted(staged.glob("*.tar")), "unpack classes", unit="classes"):
            unpack(file, staged / file.stem)
            file.unlink()
    elif archive.place.endswith("val"):
        wnids = _validation_classes(data_dir / Path(archive.place).parent / "devkit")
        images = sorted(path.name for path in staged.iterdir() if path.is_file())
        if len(images) != len(wnids):
            raise InputError(
                f"'{archive.name}' holds {len(images):,} images, "
                f"but the development kit names the classes of {len(wnids):,}"
            )
        for name, wnid in zip(images, wnids):
            (staged / wnid).mkdir(exist_ok=True)
            os.replace(staged / name, staged / wnid / name)


def unneeded(row: DatasetInfo, archive: Archive, data_dir: Path) -> bool:
    """True for ImageNet's development kit if the validation images are sorted already."""
    return (
        row.prepare == "imagenet"
        and archive.place.endswith("devkit")
        and (data_dir / Path(archive.place).parent / "val").is_dir()
    )


def _validation_classes(kit: Path) -> list[str]:
    """Return the wnid of every validation image, in the order of the images' names."""
    from scipy.io import loadmat

    truth = kit / "data" / "ILSVRC2012_validation_ground_truth.txt"
    meta = kit / "data" / "meta.mat"
    if not truth.is_file() or not meta.is_file():
        raise InputError(
            "the classes of ImageNet's validation images are in ILSVRC2012_devkit_t12.tar.gz, "
            f"which is not unpacked in '{kit}'; put that archive there too"
        )
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    numbered = zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
    wnid = {int(number): str(name) for number, name in numbered}
    return [wnid[int(line)] for line in truth.read_text(encoding="utf-8").split()]


def svhn_selected(data_dir: Path, work: Path, move) -> None:
    """writes selected_test_32x32.mat: the first 1,000 test images of each label (DICE)"""
    from scipy.io import loadmat, savemat

    places = [data_dir / name for name in ("ood_datasets/svhn", "svhn", "SVHN")]
    folder = next((place for place in places if (place / "test_32x32.mat").is_file()), None)
    if folder is None or (folder / "selected_test_32x32.mat").is_file():
        return
    content = loadmat(folder / "test_32x32.mat")
    labels = content["y"].reshape(-1)
    first = [np.flatnonzero(labels == label)[:SVHN_PER_LABEL] for label in np.unique(labels)]
    kept = np.sort(np.concatenate(first))  # in the order of the file
    work.mkdir(parents=True, exist_ok=True)
    selected = {"X": content["X"][..., kept], "y": content["y"].reshape(-1, 1)[kept]}
    savemat(work / "selected.mat", selected)
    move(work / "selected.mat", folder / "selected_test_32x32.mat")
    shutil.rmtree(work, ignore_errors=True)


def tinyimagenet32(data_dir: Path, work: Path, move) -> None:
    """resizes tinyimagenet to 32x32 (bilinear, antialiased) as PNG, into tinyimagenet32/<split>/"""
    source = data_dir / "tiny-imagenet-200"
    for split in ("train", "val"):
        place = data_dir / "tinyimagenet32" / split
        if place.is_dir() and any(place.iterdir()):
            continue
        shutil.rmtree(work, ignore_errors=True)
        listing, recipe = list_images(source / split), Recipe(3, SMALL, SMALL)
        for name in listing.class_names or ():
            (work / name).mkdir(parents=True)

        def convert(number: int) -> None:
            path, label = listing.paths[number], listing.labels[number]
            image = Image.fromarray(decode(source / split / path, recipe).transpose(1, 2, 0))
            image.save(work / listing.class_names[label] / f"{Path(path).stem}.png")

        count = len(listing.paths)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            resized = pool.map(convert, range(count))
            for _ in progress(resized, f"resize {split}", total=count, unit="images"):
                pass
        move(work, place)


STAGED = {"tiny_imagenet_val": tiny_imagenet_val, "imagenet": imagenet}
AFTER = {"svhn_selected": svhn_selected, "tinyimagenet32": tinyimagenet32}
