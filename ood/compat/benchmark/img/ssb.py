"""The Semantic Shift Benchmark on fine-grained sets: known classes against unknown ones of a set.

The classes of "Easy" look least like the known ones (far); those of "Hard" look most like them
(near), and the set holds the medium ones too. The JSON files are configs/benchmarks/ssb_*.json.
The files of splits are pickles; only lists of numbers in them are read, nothing is executed.

Source: Wang, Vaze and Han, "Dissecting Out-of-Distribution Detection and Open-Set Recognition",
IJCV 2024, arXiv 2408.16757; splits of Vaze et al., ICLR 2022, arXiv 2110.06207.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ood.compat.benchmark.base import SetsBenchmark
from ood.compat.benchmark.img.sets import BenchmarkSet
from ood.compat.dataset.base import look
from ood.config import nearest
from ood.data.fine_grained import ssb_splits
from ood.data.registry import info

ROWS = {"cub": "ssb_cub", "aircraft": "ssb_aircraft", "scars": "ssb_cars"}


def load_ssb_splits(dataset: str, root: str) -> dict:
    """Read the classes of a set, numbers from 0; the file of splits is fetched if it is missing.

    Args: dataset: "cub", "aircraft" or "scars". root: data root.

    Returns: {"known_classes": [...], "unknown_classes": {"Easy": [...], "Medium": [...], ...}}
    Raises: ValueError for another name, DatasetError (a RuntimeError) without the file.
    """
    if dataset not in ROWS:
        raise ValueError(
            f"unknown set '{dataset}'{nearest(dataset, ROWS)}; sets: {', '.join(ROWS)}"
        )
    row = info(ROWS[dataset])
    archive = next(a for a in row.archives if a.place.startswith("ssb_splits"))
    alone = replace(
        row, name=f"{row.name}_splits", role="ood", reader="parts", archives=(archive,), steps=""
    )
    place = look(alone, "test", root, download=True)
    first = 1 if dataset == "scars" else 0
    known, unknown = ssb_splits(Path(place.folder) / archive.place, first)
    return {"known_classes": known, "unknown_classes": unknown}


class _SSB(SetsBenchmark):
    """Known classes of a fine-grained set against its unknown ones.

    Args:
        root: data root.
        transform: of the images, RGB.
        download: fetch the set and the splits where they are missing.

    Raises: DatasetError (a RuntimeError) for a set that is missing or not whole.
    """

    json: str
    ood_names = ["Easy", "Hard"]
    near_ood_names, far_ood_names = ["Hard"], ["Easy"]

    def __init__(self, root: str | Path, transform: Callable, download: bool = False):
        made = lambda row, split, labelled: BenchmarkSet(
            row, split, root, transform, labelled=labelled, download=download, mode="RGB"
        )
        self.train_in = made(self.json, "train", True)
        self.test_in = made(self.json, "test", True)
        self.test_oods = [made(f"{self.json}_{part}", "test", False) for part in ("easy", "hard")]


class CUB_SSB(_SSB):  # noqa: N801  (pytorch-ood's name)
    __doc__ = "CUB-200-2011: 100 known classes, 32 easy and 68 hard ones.\n\n" + "\n\n".join(
        _SSB.__doc__.split("\n\n")[1:]
    )
    json = "ssb_cub"


class Aircraft_SSB(_SSB):  # noqa: N801
    __doc__ = "FGVC-Aircraft: 50 known variants, 20 easy and 30 hard ones.\n\n" + "\n\n".join(
        _SSB.__doc__.split("\n\n")[1:]
    )
    json = "ssb_aircraft"


class StanfordCars_SSB(_SSB):  # noqa: N801
    """Stanford Cars: 98 known classes, 76 easy and 22 hard ones.

    The images are no longer at Stanford: the error for a missing set says where to get them.

    Args:
        root: data root.
        transform: of the images, RGB.

    Raises: DatasetError (a RuntimeError) for a set that is missing or not whole.
    """

    json = "ssb_cars"

    def __init__(self, root: str | Path, transform: Callable):
        super().__init__(root, transform)
