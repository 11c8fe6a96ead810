"""Benchmarks of images. Each is also in a module of pytorch-ood's name (PLACES)."""

from ood.compat.benchmark.img import odin, openood
from ood.compat.benchmark.img.odin import CIFAR10_ODIN, CIFAR100_ODIN
from ood.compat.benchmark.img.openmibood import (
    MIDOG_OpenMIBOOD,
    OASIS3_OpenMIBOOD,
    PhaKIR_OpenMIBOOD,
)
from ood.compat.benchmark.img.openood import (
    CIFAR10_OpenOOD,
    CIFAR100_OpenOOD,
    ImageNet1K_OpenOOD,
    ImageNet200_OpenOOD,
    ImageNet_OpenOOD,
)
from ood.compat.benchmark.img.ssb import CUB_SSB, Aircraft_SSB, StanfordCars_SSB
from ood.compat.places import open_places

__all__ = [
    "Aircraft_SSB",
    "CIFAR100_ODIN",
    "CIFAR100_OpenOOD",
    "CIFAR10_ODIN",
    "CIFAR10_OpenOOD",
    "CUB_SSB",
    "ImageNet1K_OpenOOD",
    "ImageNet200_OpenOOD",
    "ImageNet_OpenOOD",
    "MIDOG_OpenMIBOOD",
    "OASIS3_OpenMIBOOD",
    "PhaKIR_OpenMIBOOD",
    "StanfordCars_SSB",
]

PLACES = {
    "cifar10": "CIFAR10_ODIN",
    "cifar100": "CIFAR100_ODIN",
    "imagenet": "ImageNet_OpenOOD ImageNet1K_OpenOOD ImageNet200_OpenOOD",
}
open_places(__name__, PLACES, odin, openood)
