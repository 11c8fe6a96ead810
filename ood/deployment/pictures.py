"""A user's own pictures: found folder by folder, decoded in threads, scored batch by batch.

    for row in score(folder, stored, network, device="cpu"):
        row.file, row.score, row.p_value, row.accepted, row.predicted, row.confidence, row.error
    sheet({"Least ID-like": rows}, "contact_sheet.png", folder)

Memory does not grow with the number of pictures.
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
from ood.data.decoding import Recipe, upright
from ood.data.folders import EXTENSIONS
from ood.data.images import ArrayImages, StreamedImages
from ood.deployment.detector_file import Stored
from ood.deployment.groups import judge
from ood.deployment.nearest import TrainingPictures
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.files import replacing
from ood.outputs import Outputs, extract

# Formats of pictures that data sets do not come in: Pillow reads some of them, others nowhere.
SOME = (".gif", ".apng", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".tga", ".psd", ".ico")
CONVERT = (".heic", ".heif", ".jxl", ".jxr", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf")
KNOWN = (*EXTENSIONS, *SOME, *CONVERT)
GROUP = 4096  # files that are listed at a time
CELL, CAPTION, GAP = 132, 34, 10  # of a contact sheet, pixels: side of a picture, its caption, gap
COLUMNS = 8
ACCEPTED, REJECTED = "#009E73", "#D55E00"  # frames, Okabe and Ito's green and vermilion


class Row(NamedTuple):
    """One picture.

    Attributes:
        file: its path, relative to the folder.
        score: larger = less like the training data; None for a damaged picture.
        p_value, accepted: None without a calibration, and for a damaged picture.
        predicted: name of the class that the network predicts, accepted or not; its number where
            the detector file names no classes; None from a feature extractor.
        confidence: softmax probability of that class.
        nearest: the training pictures with the most similar features, the most similar first.
        error: why the picture cannot be read, or "".
    """

    file: str
    score: float | None = None
    p_value: float | None = None
    accepted: bool | None = None
    predicted: str | None = None
    confidence: float | None = None
    nearest: tuple[str, ...] = ()
    error: str = ""


class Pictures(StreamedImages):
    """Files of any kind as images of one shape.

    What cannot be decoded is black, and `errors` {row: message} says why.
    """

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
            path = self.folder / self._paths[row]
            if path.exists() and not path.is_file():
                raise InputError(f"'{path}' is a pipe or a device, not a file")
            super()._decode_into(images, place, row)
        except InputError as error:
            convert = self._paths[row].lower().endswith(CONVERT)
            hint = ", or convert it to JPEG or PNG" if convert else ""
            images[place], self.errors[row] = 0, f"{error}{hint}"


def find(folder: Path) -> Iterator[str]:
    """Paths of all pictures below `folder`, relative to it, folder by folder in string order.

    Hidden files and folders, and links to folders, are left out. Formats that may not be readable
    here (HEIC, camera raw) are among them: their rows then say so. Of an animation the first
    picture is scored.
    """
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__MACOSX"
        )
        inside = os.path.relpath(root, folder)
        for name in sorted(files):
            if name.lower().endswith(KNOWN) and not name.startswith("."):
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
    training: TrainingPictures | None = None,
    nearest: int = 3,
) -> Iterator[Row]:
    """Score every picture in `folder`, in the order of `find`.

    Args:
        folder: of the pictures.
        stored: the detector with its recipe, normalisation and calibration.
        network: the network it was fitted on.
        files: only these, relative to `folder`; None: all that `find` gives.
        strict: raise InputError at the first damaged picture instead of yielding its error.
        training: where the nearest training pictures come from; None: they are not looked for.
        nearest: how many of them.

    Yields: a Row per picture.
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
                first = next(row for row in rows if row in pictures.errors)
                raise InputError(pictures.errors[first])
            judged = {}
            if whole:
                decoded = batch[[row - rows[0] for row in whole]].numpy()
                outputs = extract(
                    network,
                    ArrayImages(decoded, source="batch"),
                    stored.preprocess,
                    device=device,
                    batch_size=batch_size,
                    precision=precision,
                    taps="taps" in detector.needs,
                    image_detectors=beside,
                )
                found = itertools.repeat(())
                if training is not None:
                    found = training.nearest(outputs.features, nearest)
                judged = dict(zip(whole, zip(_judged(stored, outputs), found)))
            for row in rows:
                error = pictures.errors.pop(row, "")
                if error:
                    yield Row(group[row], error=error)
                else:
                    facts, similar = judged[row]
                    yield Row(group[row], *facts, similar)


def recipe_of(values: dict) -> tuple[Recipe, tuple[int, int, int]]:
    """(Recipe, shape (C, H, W)) from {"size", "resize", "channels", "interpolation"}.

    Raises: InputError where they leave the shape open.
    """
    size, resize, channels = values["size"], values["resize"], values["channels"]
    sides = (size, size) if size else resize if isinstance(resize, tuple) else None
    if sides is None or channels is None:
        raise InputError(
            f"the detector's data recipe {values} leaves the shape of an image open; "
            "fit it again on a benchmark with a size"
        )
    interpolation = values.get("interpolation", "bilinear")
    recipe = Recipe(channels, resize or size, size, upright=True, interpolation=interpolation)
    return recipe, (channels, *sides)


class Extremes:
    """Keeps the `count` least and the `count` most ID-like of the rows that it is shown."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self._least: list = []
        self._most: list = []

    def add(self, row: Row) -> None:
        """Look at one more row."""
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
    """Draw a contact sheet as a PNG file: the pictures of each part under its title.

    The frame of a picture is green if it is accepted and vermilion if not. Its name and its p-value
    (or score) are below.

    Args:
        parts: {title: rows}.
        path: of the PNG file.
        folder: where the pictures are.
    """
    bold, plain = _font(15, "DejaVuSans-Bold"), _font(11)
    height = CELL + CAPTION + GAP
    heights = [30 + -(-len(rows) // COLUMNS) * height for rows in parts.values()]
    image = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, sum(heights) + 34), "white")
    draw, top = ImageDraw.Draw(image), GAP // 2
    for (title, rows), used in zip(parts.items(), heights):
        draw.text((GAP, top + 4), title, "black", bold)
        for number, row in enumerate(rows):
            left = GAP + number % COLUMNS * (CELL + GAP)
            y = top + 28 + number // COLUMNS * height
            _place(image, folder / row.file, left, y)
            frame = (left - 2, y - 2, left + CELL + 1, y + CELL + 1)
            draw.rectangle(frame, outline=_colour(row), width=3)
            draw.text((left, y + CELL + 4), _fitted(Path(row.file).name, plain), "black", plain)
            text = f"score {row.score:.4g}" if row.p_value is None else f"p = {row.p_value:.3g}"
            draw.text((left, y + CELL + 18), text, "#555555", plain)
        top += used
    if any(row.accepted is not None for rows in parts.values() for row in rows):
        legend = ((GAP, ACCEPTED, "accepted as in-distribution"), (230, REJECTED, "rejected"))
        for left, colour, text in legend:
            draw.rectangle((left, top + 8, left + 14, top + 22), outline=colour, width=3)
            draw.text((left + 20, top + 8), text, "black", plain)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)


def _judged(stored: Stored, outputs: Outputs) -> Iterator[tuple]:
    """(score, p-value, accepted, predicted, confidence) of every image.

    What does not exist is None.
    """
    scores, predicted = chunked_score(stored.detector, outputs).tolist(), outputs.predicted
    p_values = accepted = classes = confidences = itertools.repeat(None)
    if stored.calibration is not None:
        both = judge(stored.calibration, scores, predicted.numpy())
        p_values, accepted = (values.tolist() for values in both)
    if outputs.logits.shape[1]:
        names = stored.class_names
        if len(names) != outputs.logits.shape[1]:
            names = range(outputs.logits.shape[1])
        classes = [str(names[place]) for place in predicted.tolist()]
        confidences = outputs.logits.float().softmax(1).amax(1).tolist()
    return zip(scores, p_values, accepted, classes, confidences)


def _place(image: Image.Image, file: Path, left: int, top: int) -> None:
    """Paste the picture as it is, not as the network sees it; enlarge a small one without blur."""
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * CELL, 2 * CELL))
            picture = upright(opened).convert("RGB")
    except Exception:  # it was whole when it was scored: removed since, or its disk fails
        return
    small = max(picture.size) < CELL
    filter_ = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    picture = ImageOps.contain(picture, (CELL, CELL), filter_)
    image.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))


def _colour(row: Row) -> str:
    return "#999999" if row.accepted is None else ACCEPTED if row.accepted else REJECTED


def _fitted(text: str, font) -> str:
    """The text in one line, or its two ends around a dot-dot-dot, no wider than a picture."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    keep, shown = len(text), text
    while font.getlength(shown) > CELL and keep > 2:
        keep -= 1
        shown = f"{text[: keep // 2]}…{text[len(text) - keep + keep // 2 :]}"
    return shown


def _font(size: int, name: str = "DejaVuSans"):
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def _unreadable(error: OSError):
    raise InputError(f"cannot read the folder '{error.filename}' ({error.strerror})")
