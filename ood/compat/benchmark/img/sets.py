"""Sets of benchmarks: registered ones, and those that lists name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ood.compat.dataset.base import RegistrySet, look
from ood.data.registry import DatasetInfo
from ood.data.volumes import central_slice, is_volume


class BenchmarkSet(RegistrySet):
    """Images and labels of a registered set.

    Args:
        row, split: as in `ood.data.load`.
        lists: files that name the images, for sets of OpenOOD and OpenMIBOOD; default: the row's.
        labelled: the labels are those of the files or lists. False: all are -1.
        loader: function that turns a path into an image. Default: PIL, and for a volume of medical
            imaging its central slice.
        mode: PIL mode that images are converted to; None: as stored.
    """

    def __init__(
        self,
        row: str | DatasetInfo,
        split: str,
        root: str | Path,
        transform: Callable | None = None,
        *,
        labelled: bool,
        download: bool = False,
        lists: Sequence[str] | None = None,
        loader: Callable[[str], Any] | None = None,
        mode: str | None = None,
    ):
        self.row, self.split, self.labelled, self.mode = row, split, labelled, mode
        self.root, self.transform, self.target_transform = root, transform, None
        self.loader = loader
        self.found = look(row, split, root, download=download, lists=lists)

    def image(self, index: int) -> Any:
        if self.found.paths is None:
            return super().image(index)
        path = self.found.folder / self.found.paths[index]
        if self.loader is not None:
            return self.loader(str(path))
        image = central_slice(path) if is_volume(path) else Image.open(path)
        return image if self.mode is None else image.convert(self.mode)
