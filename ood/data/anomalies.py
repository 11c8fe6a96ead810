"""Readers of anomaly sets: MVTec AD, SuMNIST, and Fishyscapes over Cityscapes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ood.config import InputError
from ood.data.array_files import open_array, read_array
from ood.data.folders import Listing, list_images
from ood.data.images import ImageSet
from ood.data.mask_layouts import CITYSCAPES
from ood.data.request import Request, from_arrays, from_files

NORMAL_SUM = 20  # of the four digits of a normal SuMNIST image


def read_mvtec(request: Request) -> ImageSet:
    """Read <object>/{train,test}/<good or a defect>/*.png.

    `good` images are ID, and their label is the object; the other images are OOD.
    """
    row, split = request.row, request.split
    root = next((place for place in request.places if place.is_dir()), None)
    if root is None:
        raise request.missing()
    objects = sorted(
        entry.name for entry in os.scandir(root) if (Path(entry.path) / "train").is_dir()
    )
    paths, labels = [], []
    for label, name in enumerate(objects):
        folder = root / name / split
        for kind in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            if (kind == "good") == row.options["good"]:
                files = list_images(folder / kind).paths
                paths += [f"{name}/{split}/{kind}/{path}" for path in files]
                labels += [label] * len(files)
    if not paths:
        raise request.missing()
    if row.role == "id" and len(objects) != row.num_classes:
        raise request.damaged(
            f"'{root}' holds {len(objects)} objects, '{row.name}' has {row.num_classes}"
        )
    return from_files(Listing(root, paths, labels, tuple(objects), final=True), request)


def read_sumnist(request: Request) -> ImageSet:
    """Read x (images) and y (four digits each): normal where the digits add up to 20."""
    folder = request.places[0]
    files = [f"{letter}-{request.split}.npz" for letter in "xy"]
    if not (folder / files[0]).is_file():
        raise request.missing(folder / files[0])

    def produce():
        images = read_array(folder / files[0])
        digits = open_array(folder / files[1], ("arr_0", "y"))
        normal = digits.reshape(len(digits), -1).sum(axis=1) == NORMAL_SUM
        chosen = normal == request.row.options["normal"]
        return images[chosen], np.zeros(int(chosen.sum()), dtype=np.uint8)

    return from_arrays(request, folder, files, produce)


def read_fishyscapes(request: Request) -> ImageSet:
    """Read overlays (*_rgb.npz: differences), added to Cityscapes' validation images."""
    folder, base = request.places[0], request.data_dir / CITYSCAPES
    if not folder.is_dir() or not base.is_dir():
        raise request.missing(folder, base)
    overlays = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith("_rgb.npz"))
    if not overlays:
        raise request.damaged(f"no overlays (*_rgb.npz) in '{folder}'")

    def produce():
        images = []
        for name in overlays:
            stem = name.split("_", 1)[1].removesuffix("_rgb.npz")
            photograph = base / stem.split("_")[0] / f"{stem}_leftImg8bit.png"
            if not photograph.is_file():
                raise InputError(
                    f"'{folder / name}' needs '{photograph}'; "
                    f"{request.row.by_hand(request.data_dir)}"
                )
            plain = np.asarray(Image.open(photograph).convert("RGB")).astype(np.int64)
            overlay = open_array(folder / name, ("rgb",)).astype(np.int64)
            images.append(np.clip(plain + overlay, 0, 255).astype(np.uint8))
        return np.stack(images), None

    return from_arrays(request, folder, overlays, produce, labelled=False)
