"""Image data sets under pytorch-ood's names; `ood.compat.dataset.base` says how they work."""

from ood.compat.dataset.img.base import ImageDatasetBase
from ood.compat.dataset.img.chars74k import Chars74k
from ood.compat.dataset.img.cifar import CIFAR10C, CIFAR100C
from ood.compat.dataset.img.fishyscapes import FishyScapes, LostAndFound
from ood.compat.dataset.img.fooling import FoolingImages
from ood.compat.dataset.img.goe import CIFAR100GAN
from ood.compat.dataset.img.imagelist import ImageListDataset
from ood.compat.dataset.img.imagenet import ImageNetA, ImageNetC, ImageNetO, ImageNetR
from ood.compat.dataset.img.imagenet200 import ImageNet200
from ood.compat.dataset.img.imagenet800 import ImageNet800
from ood.compat.dataset.img.mnistc import MNISTC
from ood.compat.dataset.img.mvtech import MVTechAD
from ood.compat.dataset.img.ninco import NINCO
from ood.compat.dataset.img.noise import GaussianNoise, UniformNoise
from ood.compat.dataset.img.odin import (
    LSUNCrop,
    LSUNResize,
    TinyImageNetCrop,
    TinyImageNetResize,
)
from ood.compat.dataset.img.openood import (
    ImageNetES,
    ImageNetV2,
    OpenImagesO,
    Places365,
    SSBHard,
    iNaturalist,
)
from ood.compat.dataset.img.pixmix import FeatureVisDataset, FractalDataset
from ood.compat.dataset.img.roadanomaly import RoadAnomaly
from ood.compat.dataset.img.smiyc import SegmentMeIfYouCan
from ood.compat.dataset.img.streethazards import StreetHazards
from ood.compat.dataset.img.sumnist import SuMNIST
from ood.compat.dataset.img.textures import Textures
from ood.compat.dataset.img.tinyimagenet import TinyImageNet
from ood.compat.dataset.img.tinyimages import TinyImages, TinyImages300k

__all__ = [
    "CIFAR100C",
    "CIFAR100GAN",
    "CIFAR10C",
    "Chars74k",
    "FeatureVisDataset",
    "FishyScapes",
    "FoolingImages",
    "FractalDataset",
    "GaussianNoise",
    "ImageDatasetBase",
    "ImageListDataset",
    "ImageNet200",
    "ImageNet800",
    "ImageNetA",
    "ImageNetC",
    "ImageNetES",
    "ImageNetO",
    "ImageNetR",
    "ImageNetV2",
    "LSUNCrop",
    "LSUNResize",
    "LostAndFound",
    "MNISTC",
    "MVTechAD",
    "NINCO",
    "OpenImagesO",
    "Places365",
    "RoadAnomaly",
    "SSBHard",
    "SegmentMeIfYouCan",
    "StreetHazards",
    "SuMNIST",
    "Textures",
    "TinyImageNet",
    "TinyImageNetCrop",
    "TinyImageNetResize",
    "TinyImages",
    "TinyImages300k",
    "UniformNoise",
    "iNaturalist",
]
