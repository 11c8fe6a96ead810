"""Objects of COCO pasted into scenes as synthetic outliers, and COCO's annotations."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ood.compat.dataset.base import MissingFile, look
from ood.config import InputError, nearest
from ood.data.registry import Archive, DatasetInfo

__all__ = [
    "COCO",
    "InsertCOCO",
    "create_mask_from_segmentation",
    "generate_masks",
    "read_coco_annotations",
    "rle_decode",
]

HOST = "images.cocodataset.org"
OBJECTS = DatasetInfo(
    "COCO 2017 train",
    "ood",
    "parts",
    archives=tuple(
        Archive(
            (f"https://s3.amazonaws.com/{HOST}/{path}", f"http://{HOST}/{path}"),
            place,
            place,
            md5=md5,
            sha256=sha256,
            bytes=size,
        )
        for place, path, size, md5, sha256 in (
            (
                "train2017",
                "zips/train2017.zip",
                19_336_861_798,
                "cced6f7f71b7629ddf16f17bbcfab6b2",
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            (
                "annotations",
                "annotations/annotations_trainval2017.zip",
                252_907_541,
                "f4bbac642086de4f52a3fdda2de5fa2c",
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
        )
    ),
)
# Classes of COCO that are no outliers in a set of scenes.
EXCLUDED = {
    "bddAnomaly": ("train", "bicycle", "motorcycle"),
    "Streethazards": (
        "traffic light",
        "stop sign",
        "vase",
        "refrigerator",
        "sink",
        "toaster",
        "oven",
        "dining table",
        "chair",
        "tennis racket",
    ),
}
SCALES = (20, 50)  # per cent of the object's size in COCO, before `upscale`
MARGIN = 10  # pixels between an object and the border of the scene
ATTEMPTS = 100  # to find an object that is not too small to be seen


class Refused(InputError, AssertionError):
    """A parameter out of its range; pytorch-ood raises AssertionError."""


class COCO:
    """COCO's annotations, without pycocotools.

    Args:
        annotation_file: a JSON file such as instances_train2017.json; None: no annotations.

    Attributes:
        dataset: the content of the file.
        anns, imgs, cats: annotations, images and categories by id.
        imgToAnns: annotations of each image. catToImgs: images of each category, one entry for
            each annotation.
    """

    def __init__(self, annotation_file=None):
        self.annotation_file = annotation_file
        self.dataset = read_coco_annotations(annotation_file) if annotation_file else {}
        self.createIndex()

    def createIndex(self) -> None:
        """Sort the annotations by image and category."""
        anns, imgs, cats = (
            {row["id"]: row for row in self.dataset.get(part, ())}
            for part in ("annotations", "images", "categories")
        )
        self.anns, self.imgs, self.cats = anns, imgs, cats
        self.imgToAnns, self.catToImgs = defaultdict(list), defaultdict(list)
        for annotation in anns.values():
            self.imgToAnns[annotation["image_id"]].append(annotation)
            self.catToImgs[annotation["category_id"]].append(annotation["image_id"])

    def getAnnIds(self, imgIds=(), catIds=(), areaRng=()) -> list[int]:
        """Return ids of the annotations of these images.

        Args:
            imgIds: ids of images, or one. None of them: no annotation, as in pytorch-ood.
            catIds: only these categories; none: all.
            areaRng: only areas from areaRng[0] to areaRng[1].
        """
        wanted = set(_several(catIds))
        low, high = areaRng or (-np.inf, np.inf)
        return [
            annotation["id"]
            for image in _several(imgIds)
            for annotation in self.imgToAnns.get(image, ())
            if (not wanted or annotation["category_id"] in wanted)
            and low <= annotation.get("area", 0) <= high
        ]

    def getCatIds(self, catNms=(), supNms=(), catIds=()) -> list[int]:
        """Return ids of the categories with these names, super-categories and ids.

        A condition that is not given does not count: without any, these are all categories.
        """
        conditions = (("name", catNms), ("supercategory", supNms), ("id", catIds))
        conditions = [(key, set(_several(some))) for key, some in conditions if some]
        return [
            number
            for number, category in self.cats.items()
            if all(category[key] in some for key, some in conditions)
        ]

    def getImgIds(self, imgIds=(), catIds=()) -> list[int]:
        """Return ids of the images among `imgIds` (none: all) that show any of the categories."""
        images, categories = _several(imgIds), _several(catIds)
        found = set(images) if images else set(self.imgs)
        if categories:
            found &= {image for c in categories for image in self.catToImgs.get(c, ())}
        return sorted(found)

    def loadAnns(self, ids=()) -> list[dict]:
        """Return the annotations with these ids, or this id."""
        return [self.anns[number] for number in _several(ids)]

    def loadImgs(self, ids=()) -> list[dict]:
        """Return what the file says of the images with these ids, or this id."""
        return [self.imgs[number] for number in _several(ids)]

    def annToMask(self, ann: dict, img_size: Sequence[int]) -> np.ndarray:
        """Draw the mask of an annotation, uint8 (H, W), 1 inside. img_size: (H, W)."""
        return create_mask_from_segmentation(ann["segmentation"], tuple(img_size)[::-1])


class InsertCOCO:
    """Paste objects of COCO into a scene, and mark their pixels in its mask as OOD.

    An object is cut out along its outline, made smaller, turned, perhaps mirrored, and pasted at a
    random place. Call with a PIL image and its mask (H, W); returns both. Where nothing is pasted
    they are those that were given. Else they are copies, and the mask is an int64 tensor.

    Args:
        coco_dir: the folder with train2017 and annotations/instances_train2017.json.
        p: probability that a scene gets objects, in [0, 1].
        n: objects that it gets then.
        exclude_classes: names of classes; images that show one of them are not used. Or
            "bddAnomaly", "Streethazards": the classes that these sets know.
        annotation_per_image: so many annotations of the image are one object, the first ones.
        ood_mask_value: of the pixels of an object in the mask.
        upscale: factor of an object's size, which is 20 % to 50 % of its size in COCO.
        year: of COCO; 2017.
        min_img_size: smallest side of the images used.
        download: fetch train2017 (18 GB) and the annotations. Sizes and checksums are enforced.

    Raises:
        Refused: p, n or year out of range (InputError and AssertionError).
        InputError: unknown classes, or no image that can be used.
        MissingFile: COCO is not there (FileNotFoundError).

    Source: Chan, Rottmann and Gottschalk, ICCV 2021, arXiv 2012.06575. pytorch-ood keeps labels as
        int8, so that 255 becomes -1, which is OOD; without exclude_classes it leaves out every
        image with an annotation; it marks pixels that an object hardly covers, here those that it
        covers half or more; and an object that is too large for a scene is made to fit here.
    """

    _class_exclusion = EXCLUDED

    def __init__(
        self,
        coco_dir: str,
        p: float = 0.1,
        n: int = 1,
        exclude_classes: list[str] | str = None,
        annotation_per_image: int = 1,
        ood_mask_value: int = -1,
        upscale: float = 1.4150357439499515,
        year: int = 2017,
        min_img_size: int = 480,
        download: bool = False,
    ):
        if not (n > 0 and 0 <= p <= 1 and year == 2017 and annotation_per_image > 0):
            raise Refused(
                f"n is {n}, p {p}, year {year}, annotation_per_image {annotation_per_image}; "
                "n and annotation_per_image must be above 0, p in [0, 1], year 2017"
            )
        if not 0 < upscale < np.inf:
            raise Refused(f"upscale is {upscale}; it must be above 0")
        self.coco_dir, self.year = coco_dir, year
        self.ood_rate, self.ood_per_image = p, n
        self.annotation_per_coco_image = annotation_per_image
        self.ood_mask_value, self.upscale, self.min_size_of_img = (
            ood_mask_value,
            upscale,
            min_img_size,
        )
        if isinstance(exclude_classes, str):
            if exclude_classes not in EXCLUDED:
                raise InputError(
                    f"no classes are known for '{exclude_classes}'"
                    f"{nearest(exclude_classes, EXCLUDED)}; known: {', '.join(EXCLUDED)}"
                )
            exclude_classes = EXCLUDED[exclude_classes]
        self.exclude_classes = list(exclude_classes or ())
        if download:
            self.download()
        look(OBJECTS, "train", coco_dir, error=MissingFile)
        self.images_dir = str(Path(coco_dir) / f"train{year}")
        annotations = Path(coco_dir) / "annotations" / f"instances_train{year}.json"
        if not annotations.is_file():
            raise MissingFile(f"no file '{annotations}'; give download=True to fetch it")
        self.tools = COCO(annotations)
        self.usable_image_ids = self._usable()

    def __call__(self, img: Image.Image, target: Tensor) -> tuple[Image.Image, Tensor]:
        if torch.rand(()) >= self.ood_rate:
            return img, target
        img, mask = img.copy(), torch.tensor(np.asarray(target), dtype=torch.int64)
        if tuple(mask.shape) != img.size[::-1]:
            raise InputError(f"a mask {tuple(mask.shape)} for an image {img.size[::-1]}")
        for _ in range(self.ood_per_image):
            self._paste(img, mask)
        return img, mask

    def download(self) -> None:
        """Fetch what is missing of the images and the annotations. Raises MissingFile."""
        look(OBJECTS, "train", self.coco_dir, download=True, error=MissingFile)

    def _usable(self) -> list[int]:
        """Return ids of the images that are there, large enough and show an allowed object."""
        names = [category["name"] for category in self.tools.cats.values()]
        for name in self.exclude_classes:
            if name not in names:
                raise InputError(f"COCO has no class '{name}'{nearest(name, names)}")
        excluded = set()
        if self.exclude_classes:
            kinds = self.tools.getCatIds(catNms=self.exclude_classes)
            excluded = set(self.tools.getImgIds(catIds=kinds)) if kinds else set()
        stems = (Path(name).stem for name in os.listdir(self.images_dir))
        there = {int(stem) for stem in stems if stem.isdecimal()}
        usable = [
            number
            for number, image in self.tools.imgs.items()
            if number in there - excluded
            and self.tools.imgToAnns.get(number)
            and min(image["height"], image["width"]) >= self.min_size_of_img
        ]
        if not usable:
            raise InputError(
                f"no image in '{self.images_dir}' has an object and {self.min_size_of_img} pixels "
                "on its shorter side; lower min_img_size, or exclude fewer classes"
            )
        return sorted(usable)

    def _paste(self, img: Image.Image, mask: Tensor) -> None:
        """Paste one object into the image and the mask, in place."""
        thing = self._fitting(self._thing(), img.size)
        left, top = (
            _between(min(MARGIN, room // 2), room - min(MARGIN, room // 2))
            for room in (there - here for there, here in zip(img.size, thing.size))
        )
        img.paste(thing, (left, top), thing)
        covered = torch.from_numpy(np.array(thing.getchannel("A")) >= 128)
        height, width = covered.shape
        mask[top : top + height, left : left + width][covered] = self.ood_mask_value

    def _thing(self) -> Image.Image:
        """Draw an object at random: RGBA, made smaller, turned and cut to its outline."""
        low, high = (int(share * self.upscale) for share in SCALES)
        for _ in range(ATTEMPTS):
            chosen = _between(0, len(self.usable_image_ids) - 1)
            thing = self._cut_out(self.usable_image_ids[chosen])
            scale = _between(low, high) / 100
            size = [max(1, int(side * scale)) for side in thing.size]
            thing = thing.resize(size).rotate(_between(0, 359), expand=True)
            if _between(0, 1):
                thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            thing = _cropped(thing)
            if thing is not None:
                return thing
        raise InputError(f"{ATTEMPTS} objects in turn were too small to be seen; raise upscale")

    def _cut_out(self, number: int) -> Image.Image:
        """Return an image of COCO as RGBA, transparent outside its first annotations."""
        about = self.tools.imgs[number]
        size = (about["height"], about["width"])
        chosen = self.tools.imgToAnns[number][: self.annotation_per_coco_image]
        inside = np.max([self.tools.annToMask(annotation, size) for annotation in chosen], axis=0)
        photograph = Image.open(Path(self.images_dir) / f"{number:012d}.jpg").convert("RGB")
        if photograph.size != size[::-1]:
            raise InputError(
                f"image {number} of COCO has the size {photograph.size}, its annotations say "
                f"{size[::-1]}"
            )
        return Image.fromarray(np.dstack((np.asarray(photograph), 255 * inside)))

    @staticmethod
    def _fitting(thing: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Make an object smaller that is larger than the scene."""
        scale = min([1.0, *(there / here for here, there in zip(thing.size, size))])
        if scale == 1:
            return thing
        smaller = [max(1, int(side * scale)) for side in thing.size]
        return thing.resize(smaller)


def read_coco_annotations(annotations_file) -> dict:
    """Read a JSON file of annotations."""
    return json.loads(Path(annotations_file).read_text("utf-8"))


def rle_decode(rle: dict, img_shape: Sequence[int]) -> np.ndarray:
    """Decode run lengths, uint8 (H, W): {"counts": [outside, inside, ...], "size": [H, W]}.

    Runs go down the columns, as COCO defines them; pytorch-ood reads them along the rows, and takes
    all runs but the first for inside.

    Raises: InputError (a ValueError) for another size, or runs that do not fill it.
    """
    height, width = img_shape
    counts = rle["counts"]
    if list(rle.get("size") or ()) != [height, width]:
        raise InputError(f"run lengths of size {rle.get('size')} for an image {height, width}")
    if isinstance(counts, (str, bytes)):
        raise InputError("compressed run lengths cannot be read; COCO's instances have lists")
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise InputError(f"run lengths of {sum(counts)} pixels for {height} x {width}")
    values = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
    return np.ascontiguousarray(values.reshape(width, height).T)


def create_mask_from_segmentation(segmentation, image_size: Sequence[int]) -> np.ndarray:
    """Draw polygons, or decode run lengths: uint8 (H, W), 1 inside.

    Args:
        segmentation: [[x, y, x, y, ...], ...], or run lengths as for `rle_decode`.
        image_size: (width, height).

    Raises: InputError (a ValueError) for anything else.
    """
    width, height = image_size
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return rle_decode(segmentation, (height, width))
    if not isinstance(segmentation, (list, tuple)):
        raise InputError(f"a segmentation is polygons or run lengths, got {segmentation!r:.80}")
    mask = Image.new("L", (width, height))
    drawing = ImageDraw.Draw(mask)
    for polygon in segmentation:
        numbers = isinstance(polygon, (list, tuple)) and all(
            isinstance(value, (int, float)) for value in polygon
        )
        if not numbers or len(polygon) < 4 or len(polygon) % 2:
            raise InputError(f"a polygon is a list [x, y, x, y, ...], got {polygon!r:.80}")
        drawing.polygon([int(value) for value in polygon], fill=1, outline=1)
    return np.array(mask)


def generate_masks(coco_data: dict, image_id: int) -> list[np.ndarray]:
    """Return the mask (H, W) of every annotation of an image, given the content of the file."""
    about = next((image for image in coco_data["images"] if image["id"] == image_id), None)
    if about is None:
        raise InputError(f"the annotations know no image {image_id}")
    size = (about["width"], about["height"])
    return [
        create_mask_from_segmentation(annotation["segmentation"], size)
        for annotation in coco_data["annotations"]
        if annotation["image_id"] == image_id
    ]


def _several(some) -> list:
    """Return a list of what is given; one number or name is a list of one."""
    return list(some) if isinstance(some, Iterable) and not isinstance(some, str) else [some]


def _between(low: int, high: int) -> int:
    """Draw a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


def _cropped(thing: Image.Image) -> Image.Image | None:
    """Cut an RGBA image to what can be seen; None if that is nothing."""
    seen = np.array(thing.getchannel("A")) >= 128
    if not seen.any():
        return None
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return thing.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
