"""OpenMIBOOD: three benchmarks of medical images.

Its sets with covariate shift (`cs_id_names`) count as outliers and come first, as in pytorch-ood.
The images are prepared by the authors' scripts; the error for a missing set says how. Lists are
fetched to `<root>/imglists`. The images are in the benchmark's folder below `root` (midog, phakir,
oasis), or below `root` itself, as pytorch-ood expects them. The JSON files are
configs/benchmarks/openmibood_*.json.

Source: Gutbrod et al., "OpenMIBOOD: Open Medical Imaging Benchmarks for Out-Of-Distribution
Detection", CVPR 2025, arXiv 2503.16247.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.transforms import Compose

from ood.compat.benchmark.base import SetsBenchmark
from ood.compat.benchmark.img.sets import BenchmarkSet
from ood.compat.utils.transforms import ToRGB


class _OpenMIBOOD(SetsBenchmark):
    """Known classes against covariate shift, near and far outliers.

    Args:
        root: data root.
        transform: of the images, RGB.
        loader: function that turns a path into an image. Default: PIL, and for a volume (NIfTI) its
            central slice along the third axis, which pytorch-ood needs a loader for.
        download: fetch the lists, and those images that may be fetched, where they are missing.

    Raises: DatasetError (a RuntimeError) for a set that is missing or not whole.
    """

    json: str
    known: str
    cs_id_names: list[str]
    near_ood_names: list[str]
    far_ood_names: list[str]

    def __init__(
        self,
        root: str | Path,
        transform: Callable,
        loader: Callable[[str], Any] | None = None,
        download: bool = True,
    ):
        self.root, self.transform = root, Compose([ToRGB(), transform])
        self.loader, self.download = loader, download
        self.ood_names = [*self.cs_id_names, *self.near_ood_names, *self.far_ood_names]
        self.test_in = self._set(self.known, "test", True)
        self.test_oods = [self._set(name, "test", False) for name in self.ood_names]

    @cached_property
    def train_in(self) -> Dataset:
        return self._set(self.known, "train", True)

    def _set(self, row: str, split: str, labelled: bool) -> BenchmarkSet:
        return BenchmarkSet(
            row,
            split,
            self.root,
            self.transform,
            labelled=labelled,
            download=self.download,
            loader=self.loader,
        )


class MIDOG_OpenMIBOOD(_OpenMIBOOD):  # noqa: N801  (pytorch-ood's name)
    """Cells of MIDOG++ in three classes, 50x50, from one scanner; other scanners, other cells."""

    json, known = "openmibood_midog", "midog"
    cs_id_names = ["midog_csid_1b", "midog_csid_1c"]
    near_ood_names = [f"midog_{part}" for part in "2 3 4 5 6a 6b 7".split()]
    far_ood_names = ["midog_ccagt", "midog_fnac2019"]


class PhaKIR_OpenMIBOOD(_OpenMIBOOD):  # noqa: N801
    """Frames of gall bladder operations in seven phases; smoke, other operations, other organs."""

    json, known = "openmibood_phakir", "phakir"
    cs_id_names = ["phakir_medium_smoke", "phakir_heavy_smoke"]
    near_ood_names = ["phakir_cholec", "phakir_endovis2015", "phakir_endovis2018"]
    far_ood_names = ["phakir_kvasir", "phakir_cataracts"]


class OASIS3_OpenMIBOOD(_OpenMIBOOD):  # noqa: N801
    """T1-weighted scans of brains in two classes; other scanners and modalities, other organs."""

    json, known = "openmibood_oasis3", "oasis3"
    cs_id_names = ["oasis3_scanner", "oasis3_t2w"]
    near_ood_names = ["oasis3_atlas", "oasis3_brats", "oasis3_ct"]
    far_ood_names = ["oasis3_heart", "oasis3_chaos_inPhase"]
