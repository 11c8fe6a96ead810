"""Rows of the table: the OOD sets of the CIFAR and MNIST papers, and auxiliary outliers."""

from __future__ import annotations

from ood.data.registry.entry import CIFAR, GREY, HALF, Archive, DatasetInfo
from ood.data.registry.id import SVHN_FOLDERS, SVHN_TERMS, SVHN_TEST

ODIN = "https://github.com/facebookresearch/odin"
PIXMIX = "https://github.com/andyzoujm/pixmix"
OMNIGLOT = (
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    "https://github.com/brendenlake/omniglot/raw/master/python/",
)


def _odin(
    name: str, key: str, file: str, md5: str, count: int, summary: str, aliases: tuple[str, ...],
    size: int | None = None,
) -> DatasetInfo:
    urls = (
        f"https://www.dropbox.com/s/{key}/{file}?dl=1",
        f"https://www.dropbox.com/s/raw/{key}/{file}",
    )
    return DatasetInfo(
        name, "ood", "folder", (f"ood_datasets/{name}", name), mean=CIFAR[0], std=CIFAR[1],
        count={"test": count}, source=ODIN,
        layout=f"ood_datasets/{name}/[one level/]*.(png|jpeg): {summary}", aliases=aliases,
        archives=(Archive(urls, f"ood_datasets/{name}", name, md5=md5, bytes=size),),
    )


def _omniglot(part: str, md5: str) -> Archive:
    return Archive(
        tuple(f"{mirror}{part}.zip" for mirror in OMNIGLOT), f"omniglot-py/{part}", part, md5=md5,
    )


def _npz(name: str, file: str, md5: str, count: int, summary: str) -> DatasetInfo:
    return DatasetInfo(
        name, "ood", "arrays", (f"ood_datasets/{name}", ""), {"test": ("",)}, *HALF,
        count={"test": count}, layout=f"ood_datasets/{name}/{file}: {summary}",
        source="https://github.com/kkirchheim/mlsw2022-goe", licence="MIT",
        archives=(
            Archive(
                (f"https://files.kondas.de/goe-data/{file}",), f"ood_datasets/{name}/{file}",
                md5=md5, unpack=False,
            ),
        ),
        options={"files": {"test": (file, None)}},
    )


def _pixmix(name: str, folder: str, summary: str) -> DatasetInfo:
    return DatasetInfo(
        name, "ood", "folder", (f"fractals_and_fvis/{folder}",), {"train": ("",), "test": ("",)},
        *HALF, size=32, layout=f"fractals_and_fvis/{folder}*: {summary}, mixing set of PixMix",
        source=PIXMIX,
        archives=(
            Archive(
                (), "fractals_and_fvis", "fractals_and_fvis",
                md5="3619fb7e2c76130749d97913fdd3ab27", drive="1qC2gIUx9ARU7zhgI4IwGD3YcFhm8J4cA",
                file="fractals_and_fvis.tar",
            ),
        ),
    )


ROWS = (
    _odin(
        "Imagenet", "avgm2u562itwpkl", "Imagenet.tar.gz", "7c0827e4246c3718a5ee076e999e52e5",
        10_000, "Tiny-ImageNet, crops", ("imagenet-crop", "tinyimagenet-crop"),
    ),
    _odin(
        "Imagenet_resize", "kp3my3412u5k9rl", "Imagenet_resize.tar.gz",
        "0f9ff11d45babf2eff5fe12281d1ac31", 10_000, "Tiny-ImageNet at 32x32",
        ("imagenet-resize", "tinyimagenet-resize"),
    ),
    _odin(
        "LSUN", "fhtsw1m3qxlwj6h", "LSUN.tar.gz", "458a0a0ab8e5f1cb4516d7400568e460", 10_000,
        "LSUN, crops", ("lsun-crop", "lsun-c"),
    ),
    _odin(
        "LSUN_resize", "moqh2wh8696c3yl", "LSUN_resize.tar.gz", "278b7b31c8cb7e804a1465a8ce03a2dc",
        10_000, "LSUN at 32x32", ("lsun-resize", "lsun-r"),
    ),
    _odin(
        "iSUN", "ssz7qxfqae0cca5", "iSUN.tar.gz", "be77b0f2c26fda898afac5f99645ee70", 8925,
        "iSUN at 32x32", (), 4_085_055,
    ),
    DatasetInfo(
        "svhn_selected", "ood", "svhn_selected", SVHN_FOLDERS, {"test": ("",)}, mean=CIFAR[0],
        std=CIFAR[1], count={"test": 10_000},
        layout=(
            "ood_datasets/svhn/selected_test_32x32.mat, or test_32x32.mat, of which the first "
            "1,000 of each label are taken"
        ),
        source="http://ufldl.stanford.edu/housenumbers/", licence=SVHN_TERMS,
        archives=(SVHN_TEST,), prepare="svhn_selected",
    ),
    DatasetInfo(
        "dtd", "ood", "folder",
        (
            "ood_datasets/dtd/images", "ood_datasets/dtd/dtd/images",
            "ood_datasets/Textures/dtd/images", "Textures/dtd/images", "dtd/images",
            "dtd/dtd/images",
        ),
        mean=CIFAR[0], std=CIFAR[1], count={"test": 5640},
        layout="ood_datasets/dtd/images/<class>/*.jpg",
        source="https://www.robots.ox.ac.uk/~vgg/data/dtd/", licence="research purposes, see page",
        aliases=("textures",),
        archives=(
            Archive(
                (
                    "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                    "https://thor.robots.ox.ac.uk/dtd/dtd-r1.0.1.tar.gz",
                ),
                "ood_datasets/dtd", "dtd", md5="fff73e5086ae6bdbea199a49dfb8a4c1",
                bytes=625_239_812,
            ),
        ),
    ),
    DatasetInfo(
        "places365", "ood", "folder",
        ("ood_datasets/places365", "places365", "Places365", "ood_datasets/Places365"),
        mean=CIFAR[0], std=CIFAR[1], count={"test": 10_000},
        layout=(
            "ood_datasets/places365/test_subset/*.jpg: 10,000 test images; the papers do not say "
            "which, here a seeded choice"
        ),
        source="http://places2.csail.mit.edu/download.html",
        licence="Places2 terms (non-commercial research and education)",
        archives=(
            Archive(
                ("http://data.csail.mit.edu/places/places365/test_256.tar",),
                "ood_datasets/places365/test_subset", "test_256",
                md5="f532f6ad7b582262a2ec8009075e186b", choose=10_000,
            ),
        ),
    ),
    DatasetInfo(
        "omniglot", "ood", "folder", ("omniglot-py/images_evaluation",), {"test": ("",)}, *GREY,
        size=28, channels=1, count={"test": 13_180},
        layout=(
            "omniglot-py/images_evaluation/<alphabet>/<character>/*.png; inverted: white on black"
        ),
        source="https://github.com/brendenlake/omniglot", licence="MIT",
        archives=(_omniglot("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811"),),
        options={"invert": True},
    ),
    DatasetInfo(
        "omniglot_background", "ood", "folder",
        (
            "omniglot-py/images_background", "omniglot-py/images_background_small1",
            "omniglot-py/images_background_small2",
        ),
        mean=GREY[0], std=GREY[1], size=28, channels=1, count={"test": 19_280},
        layout="omniglot-py/images_background[_small1,_small2]/<alphabet>/<character>/*.png",
        source="https://github.com/brendenlake/omniglot", licence="MIT",
        archives=(_omniglot("images_background", "68d2efa1b9178cc56df9314c21c6e718"),),
        options={"invert": True, "join": "omniglot-py"},
    ),
    DatasetInfo(
        "chars74k", "ood", "folder",
        ("chars74k/English/Img/GoodImg/Bmp", "ood_datasets/chars74k/English/Img/GoodImg/Bmp"),
        {"test": ("",)}, *HALF, count={"test": 7705},
        layout="chars74k/English/Img/GoodImg/Bmp/Sample0NN/*.png: characters in natural images",
        source="https://info-ee.surrey.ac.uk/CVSSP/demos/chars74k/",
        licence="no explicit licence; cite the paper, see page",
        archives=(
            Archive(
                (
                    "https://info-ee.surrey.ac.uk/CVSSP/demos/chars74k/EnglishImg.tgz",
                    "http://www.ee.surrey.ac.uk/CVSSP/demos/chars74k/EnglishImg.tgz",
                ),
                "chars74k/English", "English", md5="85d157e0c58f998e1cda8def62bcda0d",
            ),
        ),
    ),
    DatasetInfo(
        "fooling", "ood", "folder", ("10-runs-x-1000-cppns", "ood_datasets/10-runs-x-1000-cppns"),
        {"test": ("",)}, *HALF,
        layout=(
            "10-runs-x-1000-cppns/run_N/map_gen_5000/*.png: images that fool networks (Nguyen et "
            "al., CVPR 2015)"
        ),
        source="https://anhnguyen.me/project/fooling/",
        archives=(
            Archive(
                ("https://s.anhnguyen.me/10_runs_x_1000_cppns.tar.gz",), "10-runs-x-1000-cppns",
                "10-runs-x-1000-cppns", md5="0910d63973b1512770f37bebdbb53e37",
            ),
        ),
        aliases=("fooling_images",), options={"only": r"run_\d/map_gen_5000/.*\.png"},
    ),
    _npz(
        "cifar100gan", "samples-50.0.npz", "95f1365e4c6e188595bb8476d43a82d9", 50_000,
        "images of a GAN trained on CIFAR-100, sigma 50",
    ),
    _npz(
        "cifar100gan2", "samples-2.0.npz", "f130876edbbc13ab2bdc6f7caaa1180d", 50_000,
        "the same, sigma 2",
    ),
    # --- auxiliary outliers
    DatasetInfo(
        "tinyimages300k", "ood", "arrays", ("", "ood_datasets"), {"train": ("",), "test": ("",)},
        *HALF, count={"train": 300_000},
        layout="300K_random_images.npy: 300,000 cleaned images of 80 Million Tiny Images",
        source="https://github.com/hendrycks/outlier-exposure",
        licence="80 Million Tiny Images is withdrawn by its authors; see page",
        archives=(
            Archive(
                ("https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy",),
                "300K_random_images.npy", md5="64ca64357de98351f28454274a112dc3", unpack=False,
            ),
        ),
        options={
            "files": {
                "train": ("300K_random_images.npy", None),
                "test": ("300K_random_images.npy", None),
            },
        },
    ),
    DatasetInfo(
        "tinyimages", "ood", "folder", ("TinyImages-100000", "ood_datasets/TinyImages-100000"),
        layout="TinyImages-100000/<one level>/*: auxiliary outliers of the heatmap paper",
        licence="withdrawn by its authors",
        fetch=(
            "80 Million Tiny Images is withdrawn; use -ood_dataset tinyimagenet32, or any folder "
            "of 32x32 images by its path"
        ),
    ),
    _pixmix("fractals", "fractals/images/", "fractals"),
    _pixmix(
        "feature_visualisations", "first_layers_resized256_onevis/images/",
        "feature visualisations",
    ),
)
