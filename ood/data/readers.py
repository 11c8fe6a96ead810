"""Which function reads which layout, and what is there of a set, found without decoding it."""

from __future__ import annotations

from pathlib import Path

from ood.data import (
    anomalies,
    array_files,
    embedded,
    fine_grained,
    layouts,
    lists,
    mask_layouts,
    noise,
    text_files,
)
from ood.data.decoding import Recipe
from ood.data.folders import own_path
from ood.data.registry import DatasetInfo, info
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
    "arrays": array_files.read_arrays,
    "corrupted": layouts.read_corrupted,
    "direct": layouts.read_direct,
    "mvtec": anomalies.read_mvtec,
    "sumnist": anomalies.read_sumnist,
    "fishyscapes": anomalies.read_fishyscapes,
    "lostandfound": mask_layouts.read_lostandfound,
    "fine_grained": fine_grained.read_fine_grained,
    "texts": text_files.read_texts,
    "parts": layouts.read_parts,
}


def listed(
    name: str | DatasetInfo,
    split: str,
    data_dir: str | Path = "datasets",
    lists: tuple[str, ...] | None = None,
) -> Listed:
    """Find what is there of a set; nothing is decoded, nothing is fetched.

    Raises:
        MissingData: nothing is there.
        DamagedData: something is there, but it is not whole.
        InputError: something else is wrong with it.
    """
    row = info(name)
    return READERS[row.reader](
        Request(row, split, own_path(data_dir), Recipe(), lists=lists, listing=True)
    )
