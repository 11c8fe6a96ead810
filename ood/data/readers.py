"""Which function reads which layout, and what is there of a set without decoding it."""

from __future__ import annotations

from pathlib import Path

from ood.data import embedded, layouts, lists, noise, rare_layouts
from ood.data.decoding import Recipe
from ood.data.registry import info
from ood.data.request import Listed, Request

SPLITS = ("train", "test", "val")  # val: only where a benchmark has one (OpenOOD)
READERS = {
    "path": layouts.read_path,
    "folder": layouts.read_folder,
    "tiny_imagenet": layouts.read_tiny_imagenet,
    "cifar": layouts.read_cifar,
    "idx": layouts.read_idx,
    "svhn": layouts.read_svhn,
    "svhn_selected": layouts.read_svhn_selected,
    "mnist5k": embedded.read_mnist5k,
    "letters": embedded.read_letters,
    "patches": embedded.read_patches,
    "noise": noise.read_noise,
    "image_noise": noise.read_image_noise,
    "imglist": lists.read_lists,
    "arrays": rare_layouts.read_arrays,
    "corrupted": rare_layouts.read_corrupted,
    "direct": rare_layouts.read_direct,
    "mvtec": rare_layouts.read_mvtec,
    "sumnist": rare_layouts.read_sumnist,
    "fishyscapes": rare_layouts.read_fishyscapes,
    "fine_grained": rare_layouts.read_fine_grained,
}


def listed(
    name: str, split: str, data_dir: str | Path = "datasets", lists: tuple[str, ...] | None = None
) -> Listed:
    """What is there of a set, nothing decoded. Raises MissingData where nothing is, InputError where something is wrong with it."""
    row = info(str(name))
    return READERS[row.reader](
        Request(row, split, Path(data_dir).expanduser(), Recipe(), lists=lists, listing=True)
    )
