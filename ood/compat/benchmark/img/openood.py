"""OpenOOD v1.5: its lists say which images belong to which test.

The lists are fetched to `<root>/benchmark_imglist`, the images to `<root>/images_classic` and
`<root>/images_largescale`, as for configs/benchmarks/openood_*.json. Lists in the cache folder of
torch.hub and images directly below `root`, where pytorch-ood has put them, are found too.

Source: Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection",
DMLR 2024, arXiv 2306.09301.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms import Compose

from ood.compat.benchmark.base import SetsBenchmark
from ood.compat.benchmark.img.sets import BenchmarkSet
from ood.compat.utils.transforms import ToRGB
from ood.config import InputError
from ood.data.lists import LISTS
from ood.data.registry import info


class Part(NamedTuple):
    """An OOD set: its name in results, its row in our registry, its list in the folder of lists."""

    name: str
    row: str
    list: str


TIN = Part("TinyImageNet", "tin_openood", "test_tin.txt")
FAR = (
    Part("MNIST", "mnist_openood", "test_mnist.txt"),
    Part("SVHN", "svhn_openood", "test_svhn.txt"),
    Part("Textures", "texture_openood", "test_texture.txt"),
    Part("Places365", "places365_openood", "test_places365.txt"),
)
LARGE_NEAR = (
    Part("SSBHard", "ssb_hard_openood", "test_ssb_hard.txt"),
    Part("NINCO", "ninco_openood", "test_ninco.txt"),
)
LARGE_FAR = (
    Part("iNaturalist", "inaturalist_openood", "test_inaturalist.txt"),
    Part("Textures", "texture_openood", "test_textures.txt"),
    Part("OpenImagesO", "openimage_o_openood", "test_openimage_o.txt"),
)


def _names(parts: tuple[Part, ...]) -> list[str]:
    return [part.name for part in parts]


class _OpenOOD(SetsBenchmark):
    """Sets that the lists of one folder name.

    Attributes:
        known: row of the ID set; folder: of its lists; word: its name in theirs.
        near, far: the OOD sets.
        tuning: the OOD images that hyper-parameters are chosen with.
    """

    json: str
    known: str
    folder: str
    word: str
    near: tuple[Part, ...]
    far: tuple[Part, ...]
    tuning: Part

    def __init__(self, root: str | Path, transform: Callable, download: bool = True):
        """Find the test sets.

        Args:
            root: data root.
            transform: of the images, RGB.
            download: fetch what is missing.

        Raises: DatasetError (a RuntimeError) for a set that is missing or not whole.
        """
        self.root, self.transform = root, Compose([ToRGB(), transform])
        self.download = download
        self.test_in = self._set(self.known, "test", f"test_{self.word}.txt")
        self.test_oods = [self._set(part.row, "test", part.list) for part in self._parts]

    @property
    def _parts(self) -> tuple[Part, ...]:
        return *self.near, *self.far

    @cached_property
    def train_in(self) -> Dataset:
        return self._set(self.known, "train", f"train_{self.word}.txt")

    @cached_property
    def val_in(self) -> Dataset:
        """ID images that hyper-parameters are chosen with."""
        return self._set(self.known, "val", f"val_{self.word}.txt")

    @cached_property
    def val_ood(self) -> Dataset:
        """OOD images that hyper-parameters are chosen with; none of them is in a test set."""
        return self._set(self.tuning.row, "val", self.tuning.list)

    def validation_set(self) -> Dataset:
        """Give `val_in` and `val_ood` as one set, e.g. for the loader of a GridSearch."""
        return ConcatDataset([self.val_in, self.val_ood])

    def _set(self, row: str, split: str, file: str) -> BenchmarkSet:
        return BenchmarkSet(
            row,
            split,
            self.root,
            self.transform,
            labelled=True,
            download=self.download,
            lists=(self._list(f"{self.folder}/{file}"),),
        )

    def _list(self, file: str) -> str:
        """Find a list, ours or pytorch-ood's."""
        theirs = Path(torch.hub.get_dir()) / "openood_benchmark_imglist" / LISTS / file
        ours = Path(self.root) / LISTS / file
        return str(theirs.resolve()) if theirs.is_file() and not ours.is_file() else file


class CIFAR10_OpenOOD(_OpenOOD):  # noqa: N801  (pytorch-ood's name)
    """CIFAR-10. Near: CIFAR-100, Tiny ImageNet. Far: MNIST, SVHN, Textures, Places365."""

    json = "openood_cifar10"
    known, folder, word = "cifar10_openood", "cifar10", "cifar10"
    near = (Part("CIFAR100", "cifar100_openood", "test_cifar100.txt"), TIN)
    far, tuning = FAR, TIN._replace(list="val_tin.txt")
    near_ood_names, far_ood_names = _names(near), _names(far)
    ood_names = near_ood_names + far_ood_names


class CIFAR100_OpenOOD(_OpenOOD):  # noqa: N801
    """CIFAR-100. Near: CIFAR-10, Tiny ImageNet. Far: MNIST, SVHN, Textures, Places365."""

    json = "openood_cifar100"
    known, folder, word = "cifar100_openood", "cifar100", "cifar100"
    near = (Part("CIFAR10", "cifar10_openood", "test_cifar10.txt"), TIN)
    far, tuning = FAR, TIN._replace(list="val_tin.txt")
    near_ood_names, far_ood_names = _names(near), _names(far)
    ood_names = near_ood_names + far_ood_names


class _Large(_OpenOOD):
    """A benchmark with images of ImageNet, which nobody may hand out: they are yours.

    Near: SSB-hard, NINCO. Far: iNaturalist, Textures, OpenImage-O.
    """

    near, far = LARGE_NEAR, LARGE_FAR
    tuning = LARGE_FAR[2]._replace(list="val_openimage_o.txt")
    near_ood_names, far_ood_names = _names(near), _names(far)
    ood_names = near_ood_names + far_ood_names

    def __init__(
        self,
        root: str | Path,
        transform: Callable,
        image_net_root: str | Path | None = None,
        download: bool = True,
    ):
        """Find the test sets.

        Args:
            root: data root. ImageNet is looked for in `ILSVRC-2012`, `imagenet` and `imagenet_1k`
                below it.
            transform: of the images, RGB.
            image_net_root: another folder with `train/<wnid>` and `val`. Links to them are made
                in `<root>/imagenet_1k`. The validation images may lie in `val` itself or in class
                folders; pytorch-ood needs them in `val` itself, and links `train` only.
            download: fetch the OOD sets that are missing.

        Raises: DatasetError (a RuntimeError) for a set that is missing or not whole.
        """
        if image_net_root is not None:
            _link(Path(root) / "imagenet_1k", Path(image_net_root))
        super().__init__(root, transform, download)


class ImageNet200_OpenOOD(_Large):  # noqa: N801
    __doc__ = "200 classes of ImageNet. " + _Large.__doc__.split("\n\n")[1].strip()

    json = "openood_imagenet200"
    known, folder, word = "imagenet200", "imagenet200", "imagenet200"


class ImageNet_OpenOOD(_Large):  # noqa: N801
    """ImageNet. Near: SSB-hard, NINCO. Far: iNaturalist, Textures, OpenImage-O.

    With version="1.0", the sets of OpenOOD's first version as older releases of pytorch-ood have
    them: all 50,000 validation images against ImageNet-O, OpenImage-O, Textures, SVHN and MNIST.
    These releases take MNIST's training images; here it is the test images.
    """

    json = "openood_imagenet"
    known, folder, word = "imagenet1k_openood", "imagenet", "imagenet"

    def __init__(
        self,
        root: str | Path,
        transform: Callable,
        image_net_root: str | Path | None = None,
        download: bool = True,
        version: str = "1.5",
    ):
        if version not in ("1.0", "1.5"):
            raise InputError(f"version '{version}' of OpenOOD's benchmark; there are 1.0 and 1.5")
        self.version = version
        if version == "1.5":
            super().__init__(root, transform, image_net_root, download)
            return
        self.json, self.ood_names = "openood_v1_imagenet", list(FIRST_VERSION)
        self.near_ood_names = self.far_ood_names = ()
        self.root, self.transform = root, Compose([ToRGB(), transform])
        self.download, self.image_net_root = download, image_net_root
        self.test_in = self._imagenet("test")
        self.test_oods = [
            BenchmarkSet(row, "test", root, self.transform, labelled=False, download=download)
            for row in FIRST_VERSION.values()
        ]

    @cached_property
    def train_in(self) -> Dataset:
        if self.version == "1.0":
            return self._imagenet("train")
        return self._set(self.known, "train", f"train_{self.word}.txt")

    def validation_set(self) -> Dataset:
        if self.version == "1.0":
            raise InputError("version 1.0 has no validation set; version 1.5 has one")
        return super().validation_set()

    def _imagenet(self, split: str) -> BenchmarkSet:
        row, root = info("imagenet"), self.root
        if self.image_net_root is not None:
            row, root = replace(row, folders=("{split}",)), self.image_net_root
        return BenchmarkSet(row, split, root, self.transform, labelled=True)


# {name in results: row in our registry}
FIRST_VERSION = {
    "ImageNetO": "imagenet_o",
    "OpenImagesO": "openimage_o",
    "Textures": "dtd",
    "SVHN": "svhn",
    "MNIST": "mnist",
}
ImageNet1K_OpenOOD = ImageNet_OpenOOD


def _link(place: Path, source: Path) -> None:
    """Make `place`/train and `place`/val lead to those of `source`, unless they are there."""
    for name in ("train", "val"):
        if (source / name).is_dir() and not (place / name).exists():
            place.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to((source / name).resolve(), target_is_directory=True)
