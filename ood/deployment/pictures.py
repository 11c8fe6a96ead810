"""A user's own pictures: found folder by folder, decoded ahead in threads, scored batch by batch; memory does not grow with their number.

for row in score(folder, stored, network, device="cpu"):
    row.file, row.score, row.p_value, row.accepted, row.error
sheet(rows, "contact_sheet.png", folder, "Least ID-like ...")
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ood.config import InputError
from ood.data.decoding import Recipe
from ood.data.folders import EXTENSIONS
from ood.data.images import ArrayImages, StreamedImages
from ood.deployment.detector_file import Stored
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.files import replacing
from ood.outputs import extract

GROUP = 4096  # files that are listed at a time
CELL, CAPTION, GAP = (
    132,
    34,
    10,
)  # pixels of a contact sheet: side of a picture, height of its caption, space between
COLUMNS = 8
ACCEPTED, REJECTED = "#009E73", "#D55E00"  # frames, Okabe and Ito's green and vermilion


class Row(NamedTuple):
    """One picture; of a damaged one only `file` and `error`."""

    file: str  # relative to the folder
    score: float | None = None
    p_value: float | None = None  # None without a calibration
    accepted: bool | None = None
    error: str = ""


class Pictures(StreamedImages):
    """Files of any kind as images of one shape; what cannot be decoded is black and noted in `errors` {row: message}."""

    def __init__(
        self,
        folder: Path,
        files: list[str],
        recipe: Recipe,
        shape: tuple[int, int, int],
        workers: int | None = None,
    ):
        super().__init__(
            folder,
            recipe,
            workers=workers,
            name=folder.name,
            split="all",
            labels=np.full(len(files), -1),
            shape=shape,
            source=str(folder),
            paths=files,
        )
        self.errors: dict[int, str] = {}

    def _decode_into(self, images, place, row):
        try:
            super()._decode_into(images, place, row)
        except InputError as error:
            images[place], self.errors[row] = 0, str(error)


def find(folder: Path) -> Iterator[str]:
    """Paths of all pictures below `folder`, relative to it, folder by folder in string order; hidden ones and links to folders are left out."""
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__MACOSX"
        )
        inside = os.path.relpath(root, folder)
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}".replace(os.sep, "/")


def score(
    folder: str | Path,
    stored: Stored,
    network: torch.nn.Module,
    *,
    files: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    precision: str = "fp32",
    strict: bool = False,
) -> Iterator[Row]:
    """A Row for every picture in `folder`, in the order of `find` (or for `files`, relative to it).

    Args: strict: raise InputError at the first damaged picture instead of giving a Row with its error.
    """
    folder, detector = Path(folder), stored.detector
    recipe, shape = recipe_of(stored.recipe)
    beside = [detector] if isinstance(detector, ImageDetector) else []
    files = iter(find(folder) if files is None else files)
    while group := list(itertools.islice(files, GROUP)):
        pictures, start = Pictures(folder, group, recipe, shape), 0
        for batch in pictures.batches(batch_size):
            rows = range(start, start + len(batch))
            start += len(batch)
            whole = [row for row in rows if row not in pictures.errors]
            if strict and len(whole) < len(batch):
                raise InputError(
                    next(pictures.errors[row] for row in rows if row in pictures.errors)
                )
            scores = {}
            if whole:
                images = ArrayImages(
                    batch[[row - rows[0] for row in whole]].numpy(), source="batch"
                )
                outputs = extract(
                    network,
                    images,
                    stored.preprocess,
                    device=device,
                    batch_size=batch_size,
                    precision=precision,
                    taps="taps" in detector.needs,
                    image_detectors=beside,
                )
                scores = dict(zip(whole, chunked_score(detector, outputs).tolist()))
            for row in rows:
                yield _row(group[row], scores.get(row), stored, pictures.errors.pop(row, ""))


def recipe_of(values: dict) -> tuple[Recipe, tuple[int, int, int]]:
    """(Recipe, shape (C, H, W)) from {"size", "resize", "channels"}. Raises InputError where they leave the shape open."""
    size, resize, channels = values["size"], values["resize"], values["channels"]
    sides = (size, size) if size else resize if isinstance(resize, tuple) else None
    if sides is None or channels is None:
        raise InputError(
            f"the detector's data recipe {values} leaves the shape of an image open; fit it again on a benchmark with a size"
        )
    return Recipe(channels, resize or size, size), (channels, *sides)


class Extremes:
    """The `count` least and most ID-like of the rows it is shown; keeps only those."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self._least: list = []
        self._most: list = []

    def add(self, row: Row) -> None:
        self.seen += 1
        for heap, sign in ((self._least, 1), (self._most, -1)):
            heapq.heappush(heap, (sign * row.score, -self.seen, row))
            if len(heap) > self.count:
                heapq.heappop(heap)

    @property
    def least(self) -> list[Row]:
        """Highest score first."""
        return [row for *_, row in sorted(self._least, reverse=True)]

    @property
    def most(self) -> list[Row]:
        """Lowest score first."""
        return [row for *_, row in sorted(self._most, reverse=True)]


def sheet(parts: dict[str, list[Row]], path: str | Path, folder: Path) -> Path:
    """A PNG with the pictures of each part under its title: a frame in green for accepted, vermilion for rejected, the p-value below."""
    bold, plain = _font(15, "DejaVuSans-Bold"), _font(11)
    heights = [30 + -(-len(rows) // COLUMNS) * (CELL + CAPTION + GAP) for rows in parts.values()]
    image = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, sum(heights) + 34), "white")
    draw, top = ImageDraw.Draw(image), GAP // 2
    for (title, rows), height in zip(parts.items(), heights):
        draw.text((GAP, top + 4), title, "black", bold)
        for number, row in enumerate(rows):
            left, y = (
                GAP + number % COLUMNS * (CELL + GAP),
                top + 28 + number // COLUMNS * (CELL + CAPTION + GAP),
            )
            _place(image, folder / row.file, left, y)
            draw.rectangle(
                (left - 2, y - 2, left + CELL + 1, y + CELL + 1), outline=_colour(row), width=3
            )
            draw.text((left, y + CELL + 4), _fitted(Path(row.file).name, plain), "black", plain)
            draw.text(
                (left, y + CELL + 18),
                f"score {row.score:.4g}" if row.p_value is None else f"p = {row.p_value:.3g}",
                "#555555",
                plain,
            )
        top += height
    if any(row.accepted is not None for rows in parts.values() for row in rows):
        for left, colour, text in (
            (GAP, ACCEPTED, "accepted as in-distribution"),
            (230, REJECTED, "rejected"),
        ):
            draw.rectangle((left, top + 8, left + 14, top + 22), outline=colour, width=3)
            draw.text((left + 20, top + 8), text, "black", plain)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)


def _row(file: str, value: float | None, stored: Stored, error: str) -> Row:
    if value is None:
        return Row(file, error=error)
    if stored.calibration is None:
        return Row(file, value)
    return Row(
        file,
        value,
        float(stored.calibration.p_values([value])[0]),
        bool(stored.calibration.accepts([value])[0]),
    )


def _place(image: Image.Image, file: Path, left: int, top: int) -> None:
    """The picture as it is (not as the network sees it), in a square; small ones enlarged without blur."""
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * CELL, 2 * CELL))
            picture = opened.convert("RGB")
    except Exception:  # it was whole when it was scored: removed since, or on a disk that fails
        return
    small = max(picture.size) < CELL
    picture = ImageOps.contain(
        picture, (CELL, CELL), Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    )
    image.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))


def _colour(row: Row) -> str:
    return "#999999" if row.accepted is None else ACCEPTED if row.accepted else REJECTED


def _fitted(text: str, font) -> str:
    """The text, or its ends around a dot-dot-dot, no wider than a picture."""
    keep = len(text)
    while (
        font.getlength(
            shown := text
            if keep == len(text)
            else f"{text[: keep // 2]}…{text[len(text) - keep + keep // 2 :]}"
        )
        > CELL
        and keep > 2
    ):
        keep -= 1
    return shown


def _font(size: int, name: str = "DejaVuSans"):
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size
    )


def _unreadable(error: OSError):
    raise InputError(f"cannot read the folder '{error.filename}' ({error.strerror})")
