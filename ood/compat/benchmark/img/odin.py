"""The OOD sets of ODIN, as pytorch-ood replicates them, against CIFAR-10 and CIFAR-100.

The JSON files are configs/benchmarks/odin_six_cifar10.json and odin_six_cifar100.json. The paper's
own protocol, with iSUN and without the authors' hold-out, is odin_cifar10.json and
odin_cifar100.json.

Source: Liang, Li and Srikant, "Enhancing the reliability of out-of-distribution image detection in
neural networks", ICLR 2018, arXiv 1706.02690.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ood.compat.benchmark.base import SetsBenchmark
from ood.compat.benchmark.img.sets import BenchmarkSet
from ood.compat.dataset.img.noise import GaussianNoise, UniformNoise
from ood.compat.dataset.img.odin import (
    LSUNCrop,
    LSUNResize,
    TinyImageNetCrop,
    TinyImageNetResize,
)

NOISE = 1000  # images of each kind
STORED = (TinyImageNetCrop, TinyImageNetResize, LSUNResize, LSUNCrop)


class _ODIN(SetsBenchmark):
    """Crops and resized images of Tiny ImageNet and LSUN, and 1,000 images each of two noises.

    All sets are fetched where they are missing.

    Args:
        root: data root.
        transform: of the images, PIL images of 32x32.
    """

    json: str
    known: str
    seed = 0

    def __init__(self, root: str | Path, transform: Callable):
        self.transform = transform
        known = dict(transform=transform, labelled=True, download=True)
        self.train_in = BenchmarkSet(self.known, "train", root, **known)
        self.test_in = BenchmarkSet(self.known, "test", root, **known)
        noise = dict(size=(32, 32, 3), transform=transform, seed=self.seed)
        self.test_oods = [
            *(made(root, transform=transform, download=True) for made in STORED),
            *(made(NOISE, **noise) for made in (UniformNoise, GaussianNoise)),
        ]


class CIFAR10_ODIN(_ODIN):  # noqa: N801  (pytorch-ood's name)
    __doc__ = _ODIN.__doc__
    known, seed, json = "cifar10", 123, "odin_six_cifar10"
    ood_names = [*(made.__name__ for made in STORED), "UniformNoise", "GaussianNoise"]


class CIFAR100_ODIN(_ODIN):  # noqa: N801
    """As CIFAR10_ODIN. pytorch-ood draws other noise in every run; here it is always the same."""

    known, json = "cifar100", "odin_six_cifar100"
    ood_names = [*(made.__name__ for made in STORED), "Uniform", "Gaussian"]
