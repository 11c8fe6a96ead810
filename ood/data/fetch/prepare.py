"""What has to be done to some sets after they were unpacked. STAGED works on the unpacked folder before it gets its name; AFTER makes
a set from another one that is in place. Both leave nothing under a final name that is not whole."""

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

SMALL = 32


def summary(name: str) -> str:
    return (STAGED.get(name) or AFTER[name]).__doc__.splitlines()[0]


def tiny_imagenet_val(staged: Path, archive: Archive, data_dir: Path, work: Path) -> None:
    """sorts the validation images into class folders, val/<wnid>/, by val_annotations.txt"""
    val = staged / "val"
    for line in (val / "val_annotations.txt").read_text().splitlines():
        if line.strip():
            name, wnid = line.split("\t")[:2]
            if "/" in name or "/" in wnid or wnid.startswith("."):
                raise InputError(f"'{archive.name}': val_annotations.txt holds the line '{line}'")
            (val / wnid).mkdir(exist_ok=True)
            os.replace(val / "images" / name, val / wnid / name)
    left = len(os.listdir(val / "images"))
    if left:
        raise InputError(
            f"'{archive.name}': {left} validation images have no class in val_annotations.txt"
        )
    (val / "images").rmdir()


def imagenet(staged: Path, archive: Archive, data_dir: Path, work: Path) -> Path | None:
    """unpacks the class archives of train, and sorts the validation images into classes by the development kit"""
    if archive.place.endswith("train"):
        for file in progress(sorted(staged.glob("*.tar")), "unpack classes", unit="classes"):
            unpack(file, staged / file.stem)
            file.unlink()
    elif archive.place.endswith("val"):
        kit = data_dir / Path(archive.place).parent / "devkit"
        wnids = _validation_classes(kit)
        images = sorted(path.name for path in staged.iterdir() if path.is_file())
        if len(images) != len(wnids):
            raise InputError(
                f"'{archive.name}' holds {len(images):,} images, but the development kit names the class of {len(wnids):,}"
            )
        for name, wnid in zip(images, wnids):
            (staged / wnid).mkdir(exist_ok=True)
            os.replace(staged / name, staged / wnid / name)
    return None


def unneeded(row: DatasetInfo, archive: Archive, data_dir: Path) -> bool:
    """ImageNet's development kit only sorts the validation images: no need of it where they are sorted."""
    return (
        row.prepare == "imagenet"
        and archive.place.endswith("devkit")
        and (data_dir / Path(archive.place).parent / "val").is_dir()
    )


def _validation_classes(kit: Path) -> list[str]:
    """The wnid of every validation image, in the order of their names."""
    from scipy.io import loadmat

    truth, meta = kit / "data" / "ILSVRC2012_validation_ground_truth.txt", kit / "data" / "meta.mat"
    if not truth.is_file() or not meta.is_file():
        raise InputError(
            f"the classes of ImageNet's validation images are in ILSVRC2012_devkit_t12.tar.gz, which is not unpacked in '{kit}'; put that archive there too"
        )
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    wnid = {
        int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
    }
    return [wnid[int(line)] for line in truth.read_text().split()]


def svhn_selected(data_dir: Path, work: Path, move) -> None:
    """writes selected_test_32x32.mat: the first 1,000 test images of each label, in the file's order (DICE)"""
    from scipy.io import loadmat, savemat

    folder = next(
        (
            data_dir / name
            for name in ("ood_datasets/svhn", "svhn", "SVHN")
            if (data_dir / name / "test_32x32.mat").is_file()
        ),
        None,
    )
    if folder is None or (folder / "selected_test_32x32.mat").is_file():
        return
    content = loadmat(folder / "test_32x32.mat")
    labels = content["y"].reshape(-1)
    kept = np.sort(
        np.concatenate(
            [np.flatnonzero(labels == label)[:SVHN_PER_LABEL] for label in np.unique(labels)]
        )
    )
    work.mkdir(parents=True, exist_ok=True)
    savemat(
        work / "selected.mat",
        {"X": content["X"][..., kept], "y": content["y"].reshape(-1, 1)[kept]},
    )
    move(work / "selected.mat", folder / "selected_test_32x32.mat")
    shutil.rmtree(work, ignore_errors=True)


def tinyimagenet32(data_dir: Path, work: Path, move) -> None:
    """resizes tinyimagenet to 32x32 (bilinear, antialiased; PNG, so nothing is lost) into tinyimagenet32/{train,val}/<wnid>/"""
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
            path = listing.paths[number]
            image = Image.fromarray(decode(source / split / path, recipe).transpose(1, 2, 0))
            image.save(
                work / listing.class_names[listing.labels[number]] / f"{Path(path).stem}.png"
            )

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for _ in progress(
                pool.map(convert, range(len(listing.paths))),
                f"resize {split}",
                total=len(listing.paths),
                unit="images",
            ):
                pass
        move(work, place)


STAGED = {"tiny_imagenet_val": tiny_imagenet_val, "imagenet": imagenet}
AFTER = {"svhn_selected": svhn_selected, "tinyimagenet32": tinyimagenet32}
