"""Where the mask of an image lies: one function for each layout on disk.

Nothing is decoded here. What the values of a mask mean is said in `masked.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ood.config import InputError
from ood.data.folders import EmptyFolder, Listing, list_images
from ood.data.images import ImageSet
from ood.data.request import Listed, Request, from_files

CITYSCAPES = "cityscapes/leftImg8bit/val"
LABELS = "_labels_semantic.png"  # SegmentMeIfYouCan
PHOTOGRAPHS = (".jpg", ".webp", ".png")


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, relative to one folder.

    Attributes:
        masks: None for an image without a mask; all of its pixels are ID.
        photographs: for images that are stored as differences, the photographs to which they are
            added, relative to `base`.
    """

    folder: Path
    images: list[str]
    masks: list[str | None]
    photographs: list[str] | None = None
    base: Path | None = None

    def rows(self, rows: Iterable[int]) -> Pairs:
        """Keep these rows only, in the order given."""
        rows = list(rows)
        photographs = self.photographs and [self.photographs[row] for row in rows]
        return replace(
            self,
            images=[self.images[row] for row in rows],
            masks=[self.masks[row] for row in rows],
            photographs=photographs,
        )


def own_folder(folder: Path, split: str) -> Pairs:
    """Find images/* and masks/<same stem>.png in the folder, or in its sub-folder `split`.

    Raises: InputError where there are no images, or an image has no mask.
    """
    top = folder / split if (folder / split).is_dir() else folder
    if not (top / "images").is_dir():
        raise InputError(f"no folder '{top / 'images'}'; masks lie beside it in '{top / 'masks'}'")
    paths = list_images(top / "images").paths
    masks = [f"masks/{Path(path).with_suffix('.png').as_posix()}" for path in paths]
    absent = [mask for mask in masks if not (top / mask).is_file()]
    if absent:
        raise InputError(f"{len(absent)} images have no mask, e.g. '{top / absent[0]}'")
    return Pairs(top, [f"images/{path}" for path in paths], masks)


def fishyscapes(request: Request, part: str | None, base: Path | None) -> Pairs:
    """Find overlays *_rgb.npz, masks *_labels.png, and Cityscapes' photographs below `base`."""
    folder, base = request.places[0], base or request.data_dir / CITYSCAPES
    if not folder.is_dir() or not base.is_dir():
        raise request.missing(folder, base)
    overlays = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith("_rgb.npz"))
    stems = [name.split("_", 1)[1].removesuffix("_rgb.npz") for name in overlays]
    photographs = [f"{stem.split('_')[0]}/{stem}_leftImg8bit.png" for stem in stems]
    masks = [name.replace("_rgb.npz", "_labels.png") for name in overlays]
    return Pairs(folder, overlays, masks, photographs, base)


def lostandfound(request: Request, part: str | None = None, base: Path | None = None) -> Pairs:
    """Find the masks NNNN_<image>_labels.png of Fishyscapes, and the images in train/ or test/."""
    folder = request.places[0]
    if not folder.is_dir():
        raise request.missing()
    images, masks = [], []
    for mask in sorted(e.name for e in os.scandir(folder) if e.name.endswith("_labels.png")):
        stem = mask.split("_", 1)[1].removesuffix("_labels.png")
        place = stem.rsplit("_", 2)[0]
        names = [
            f"lostandfound/leftImg8bit/{part}/{place}/{stem}_leftImg8bit.png"
            for part in ("train", "test")
        ]
        there = [name for name in names if (request.data_dir / name).is_file()]
        images += there[:1] or names[:1]
        masks.append(f"{folder.name}/{mask}")
    return Pairs(request.data_dir, images, masks)


def annotations(request: Request, part: str | None, base: Path | None) -> Pairs:
    """Find images/**/* and annotations/**/* of the same names."""
    folder = next((place for place in request.places if place.is_dir()), None)
    if folder is None:
        raise request.missing()
    top = folder
    while top.name != "images":
        top = top.parent
    inside = folder.relative_to(top.parent)
    try:
        paths = list_images(folder).paths
    except EmptyFolder as error:
        raise request.damaged(str(error)) from None
    images = [(inside / path).as_posix() for path in paths]
    return Pairs(top.parent, images, [f"annotations{path[len('images') :]}" for path in images])


def roadanomaly(request: Request, part: str | None, base: Path | None) -> Pairs:
    """Find frames/*.jpg and frames/<name>.labels/labels_semantic.png."""
    folder = request.places[0]
    if not folder.is_dir():
        raise request.missing()
    images = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jpg"))
    masks = [f"{name.removesuffix('.jpg')}.labels/labels_semantic.png" for name in images]
    return Pairs(folder, images, masks)


def smiyc(request: Request, part: str | None, base: Path | None) -> Pairs:
    """Find labels_masks/<name>_labels_semantic.png, and the image of each in images/."""
    folder = request.places[0].parent
    if not folder.is_dir():
        raise request.missing()
    if not (folder / "labels_masks").is_dir():
        raise request.damaged(f"'{folder / 'labels_masks'}' is not there")
    names = sorted(e.name for e in os.scandir(folder / "labels_masks") if e.name.endswith(LABELS))
    images = []
    for name in names:
        places = [f"images/{name.removesuffix(LABELS)}{ending}" for ending in PHOTOGRAPHS]
        images.append(next((p for p in places if (folder / p).is_file()), places[0]))
    return Pairs(folder, images, [f"labels_masks/{name}" for name in names])


def mvtec(request: Request, part: str | None, base: Path | None) -> Pairs:
    """Find <object>/<split>/<defect>/*.png and <object>/ground_truth/<defect>/*_mask.png.

    Images of `good` have no mask. `part` is the object; None: all of them, in string order.
    """
    root = next((place for place in request.places if place.is_dir()), None)
    if root is None:
        raise request.missing()
    objects = (
        [part] if part else [name for name in request.row.class_names if (root / name).is_dir()]
    )
    images, masks = [], []
    for name in objects:
        folder = root / name / request.split
        if not folder.is_dir():
            raise request.damaged(f"'{folder}' is not there")
        for defect in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            files = sorted(e.name for e in os.scandir(folder / defect) if e.name.endswith(".png"))
            images += [f"{name}/{request.split}/{defect}/{file}" for file in files]
            masks += [
                None
                if defect == "good"
                else f"{name}/ground_truth/{defect}/{file.removesuffix('.png')}_mask.png"
                for file in files
            ]
    return Pairs(root, images, masks)


LAYOUTS = {
    "fishyscapes": fishyscapes,
    "lostandfound": lostandfound,
    "annotations": annotations,
    "roadanomaly": roadanomaly,
    "smiyc": smiyc,
    "mvtec": mvtec,
}


def read_lostandfound(request: Request) -> ImageSet | Listed:
    """Read the images of Lost and Found that have a mask by Fishyscapes, without the masks."""
    pairs = lostandfound(request)
    absent = [name for name in pairs.images if not (pairs.folder / name).is_file()]
    if not pairs.images or absent:
        raise request.damaged(f"'{pairs.folder / (absent or ['its masks'])[0]}' is not there")
    return from_files(Listing(pairs.folder, pairs.images, None, None, final=True), request)
