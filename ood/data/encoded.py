"""Sets whose images lie encoded (JPEG, PNG, ...) inside other files: tar shards, tables, a hub.

A reader makes an `Encoded`; `from_encoded` turns it into a set like any other. Small images are
decoded once and memory-mapped, large ones are decoded whenever they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data.array_cache import kept_array
from ood.data.decoding import Recipe, decode, digest_of, fill_by
from ood.data.images import ArrayImages, ImageSet, StreamedImages
from ood.data.request import STREAM_BYTES, STREAM_SIDE, Listed, Request


@dataclass
class Encoded:
    """N encoded images. A subclass says how to `read` one.

    Attributes:
        name: of the set.
        source: digest of everything the images and labels depend on.
        titles: (N,) what messages call each image.
        labels: (N,) whole numbers; None for an unlabelled set.
        class_names: of a labelled set.
    """

    name: str
    source: str
    titles: Sequence[str]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.titles)

    def read(self, row: int) -> bytes:
        """Read the bytes of one image. Threads call this at the same time."""
        raise NotImplementedError

    def decode(self, row: int, recipe: Recipe, shape=None) -> np.ndarray:
        """Decode one image to uint8 (C, H, W). Raises InputError that names a damaged one."""
        return decode(Path(self.titles[row]), recipe, shape, content=self.read(row))


class EncodedImages(StreamedImages):
    """Images of an `Encoded`, decoded whenever they are read."""

    def __init__(self, encoded: Encoded, recipe: Recipe, **details):
        super().__init__(Path(), recipe, **details)
        self.encoded = encoded

    def _decode_into(self, images, place, row):
        images[place] = self.encoded.decode(row, self.recipe, self.shape)


def from_encoded(request: Request, encoded: Encoded, split: str = "all") -> ImageSet | Listed:
    """Make the set that the request asks for."""
    labels = encoded.labels
    if request.listing:
        return Listed(Path(), paths=list(encoded.titles), labels=labels)
    if not len(encoded):
        raise InputError(f"'{encoded.name}' holds no images")
    shape = encoded.decode(0, request.recipe).shape
    recipe = replace(request.recipe, channels=shape[0])
    source = digest_of(encoded.source, recipe, split)
    details = dict(
        name=encoded.name,
        split=split,
        source=source,
        paths=encoded.titles,
        labels=np.full(len(encoded), -1) if labels is None else labels,
        num_classes=None if encoded.class_names is None else len(encoded.class_names),
        class_names=encoded.class_names,
    )
    large = max(shape[1:]) > STREAM_SIDE or len(encoded) * int(np.prod(shape)) > STREAM_BYTES
    few = request.limit is not None or request.first is not None
    if large or few:  # of a few images, not all have to be decoded
        made = EncodedImages(encoded, recipe, shape=shape, **details)
    else:
        fill = fill_by(
            lambda row: encoded.decode(row, recipe, shape), len(encoded), f"'{encoded.name}'"
        )
        images = kept_array(
            request.data_dir,
            f"{encoded.name} {split} {recipe}",
            source,
            lambda: ((len(encoded), *shape), fill),
        )
        made = ArrayImages(images, **details)
    return made.first(request.first).limited(request.limit)


def named_classes(labels: Sequence, what: str) -> tuple[np.ndarray | None, tuple | None]:
    """Bring labels of any kind to numbers, and name the classes.

    Whole numbers stay as they are, and their classes are called "0", "1", ... Names are numbered in
    string order. The label -1 (or an empty one) everywhere makes an unlabelled set.

    Args:
        labels: whole numbers, or texts, one per image.
        what: how messages call their file.

    Raises: InputError for labels that are partly missing.
    """
    texts = ["" if label is None else str(label).strip() for label in labels]
    missing = sum(text in ("", "-1") for text in texts)
    if missing == len(texts):
        return None, None
    if missing:
        raise InputError(
            f"{what}: {missing:,} of {len(texts):,} images have no class (or -1); put the outliers "
            "into a file of their own"
        )
    if all(text.isdigit() for text in texts):
        numbers = np.array([int(text) for text in texts], dtype=np.int64)
        return numbers, tuple(map(str, range(int(numbers.max()) + 1)))
    names = sorted(set(texts))
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[text] for text in texts], dtype=np.int64), tuple(names)
