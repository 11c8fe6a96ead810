"""Sets in tar shards, as WebDataset writes them, read in place and in any order.

    ./shards/{split}-*.tar           # train-0000.tar, ..., test-0000.tar
    ./shards/train-{0000..0127}.tar  # WebDataset's spelling of a range

The files of one sample share their name up to the first dot: `000017.jpg` with `000017.cls` (a
whole number or a name) or `000017.json` (with `label` or `cls`). Only headers and labels are read
at the start. Images are then read at their place in the shard, so that a shuffled epoch and several
processes work as with files. Shards must not be compressed.

Source of the layout: Aizman, Maltby & Breuel, "High Performance I/O For Large Scale Deep Learning",
    IEEE Big Data 2019, arXiv 2001.01252.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import re
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data.decoding import digest_files
from ood.data.encoded import Encoded, from_encoded, named_classes
from ood.data.fetch.bounded import HEADER_BYTES, open_tar
from ood.data.folders import EXTENSIONS, SPLITS
from ood.data.images import ImageSet
from ood.data.request import Listed, Request

SUFFIX = ".tar"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
LABEL_BYTES = 2**16  # of a .cls or .json file
END_BYTES = 2 * tarfile.BLOCKSIZE
SHARDS = 100_000  # of one set
KEYS = ("label", "cls", "class", "target")  # of a .json file


@dataclass
class Shards(Encoded):
    """Images in tar files.

    Attributes:
        files: the shards.
        places: (N, 3) int64: number of the shard, offset and size of each image.
    """

    files: list[str] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    def read(self, row):
        shard, offset, size = self.places[row].tolist()
        with open(self.files[shard], "rb") as file:
            return os.pread(file.fileno(), size, offset)


def read_shards(request: Request, name: str) -> ImageSet | Listed:
    """Read the set whose shards `name` spells.

    Raises: InputError for shards that are missing, compressed or damaged.
    """
    files, split = shard_files(name, request.split)
    titles, places, labels = [], [], []
    for number, file in enumerate(files):
        for title, offset, size, label in _samples(file):
            titles.append(f"{file}/{title}")
            places.append((number, offset, size))
            labels.append(label)
    numbers, classes = named_classes(labels, f"'{name}'")
    encoded = Shards(
        name=Path(name).name,
        source=" ".join(digest_files(Path(f).parent, [Path(f).name]) for f in files),
        titles=titles,
        labels=numbers,
        class_names=classes,
        files=files,
        places=np.array(places, np.int64).reshape(-1, 3),
    )
    upright = replace(request, recipe=replace(request.recipe, upright=True))
    return from_encoded(upright, encoded, split)


def shard_files(name: str, split: str) -> tuple[list[str], str]:
    """Spell out the shards of a split, in string order; (files, split or 'all')."""
    names = [name]
    if "{split}" in name:
        names = [name.replace("{split}", word) for word in SPLITS.get(split, (split,))]
    else:
        split = "all"
    for spelled in names:
        files = list(itertools.islice(_expanded(spelled), SHARDS + 1))
        if len(files) > SHARDS:
            raise InputError(f"'{name}' spells more than {SHARDS:,} shards")
        there = [file for file in files if os.path.isfile(file)]
        absent = [file for file in files if file not in set(there)]
        if there and absent:
            raise InputError(f"{len(absent):,} shards of '{name}' are missing, e.g. '{absent[0]}'")
        if there:
            return there, split
    raise InputError(
        f"no shards '{names[0]}'; write one file, a pattern (train-*.tar), or a range "
        "(train-{0000..0127}.tar); {split} stands for train and test"
    )


def _expanded(name: str):
    """The files that a name with ranges and wildcards stands for."""
    found = RANGE.search(name)
    if found is None:
        yield from sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        spelled = str(number).zfill(len(first))
        yield from _expanded(name[: found.start()] + spelled + name[found.end() :])


def _samples(file: str):
    """Yield (name, offset, size, label) of every image of a shard, in its order."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        stream, archive = open_tar(Path(file))
        with contextlib.closing(stream.file):
            if stream.content is not stream.file:
                raise InputError(
                    f"'{file}' is compressed; write shards without compression (images are "
                    "compressed already)"
                )
            if any(_end(stream.file)):
                raise InputError(f"'{file}' is cut off: it lacks the zeros that end a tar file")
            while True:
                with stream.at_most(HEADER_BYTES, "a header"):
                    entry = archive.next()
                archive.members = []  # tarfile keeps every header otherwise
                if entry is None:
                    break
                folder, _, base = entry.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key = f"{folder}/{stem}"
                if not entry.isfile() or entry.size < 0 or not stem:
                    continue
                if base.lower().endswith(EXTENSIONS):
                    images[key] = (entry.name, entry.offset_data, entry.size)
                elif kind in ("cls", "json") and entry.size <= LABEL_BYTES:
                    content = os.pread(stream.file.fileno(), entry.size, entry.offset_data)
                    labels[key] = _label(content, kind, f"{file}/{entry.name}", labels.get(key))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"'{file}' is no whole tar file ({reason})") from None
    for key, place in images.items():
        yield *place, labels.get(key, "")


def _end(file) -> bytes:
    """The last bytes of an open file; a whole tar ends with two blocks of zeros."""
    length = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), END_BYTES, max(0, length - END_BYTES)) or b"\1"


def _label(content: bytes, kind: str, title: str, known: str | None) -> str:
    """The label in a .cls or .json file, as text; '' where a .json has none."""
    try:
        text = content.decode("utf-8")
        if kind == "cls":
            return text.strip()
        values = json.loads(text)
        keys = KEYS if isinstance(values, dict) else ()
        return next((str(values[key]) for key in keys if key in values), known or "")
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read the label '{title}' ({error})") from None
