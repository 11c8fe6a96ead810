"""Rows of the table: OOD sets for ImageNet, fine-grained sets of the Semantic Shift Benchmark."""

from __future__ import annotations

from ood.data.registry.entry import IMAGENET, IMAGENET_TERMS, Archive, DatasetInfo

HUANG = "https://github.com/deeplearning-wisc/large_scale_ood"
SSB_SPLITS = (
    "https://raw.githubusercontent.com/Visual-AI/Dissect-OOD-OSR/main/data/open_set_splits/"
)
LARGE = dict(mean=IMAGENET[0], std=IMAGENET[1], size=224, resize=256)
FINE = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=448, resize=512)
TEST = {"test": ("",)}


def _huang(name: str, md5: str, licence: str, aliases: tuple[str, ...] = ()) -> DatasetInfo:
    urls = tuple(
        f"{scheme}://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset/{name}.tar.gz"
        for scheme in ("http", "https")
    )
    return DatasetInfo(
        name, "ood", "folder", (f"ood_datasets/{name}", name), **LARGE, count={"test": 10_000},
        source=HUANG, licence=licence, layout=f"ood_datasets/{name}/[images/]*.jpg",
        aliases=aliases, archives=(Archive(urls, f"ood_datasets/{name}", name, md5=md5),),
    )


def _hendrycks(
    name: str, folder: str, md5: str, role: str, classes: int | None, count: int, summary: str,
    source: str,
) -> DatasetInfo:
    return DatasetInfo(
        name, role, "folder", (folder, f"ood_datasets/{folder}", f"images_largescale/{name}"),
        TEST, **LARGE, num_classes=classes, count={"test": count},
        layout=f"{folder}/<wnid>/*: {summary}", source=source,
        archives=(
            Archive(
                (f"https://people.eecs.berkeley.edu/~hendrycks/{folder}.tar",), folder, folder,
                md5=md5,
            ),
        ),
    )


def _ssb(
    short: str, name: str, classes: int, counts: dict[str, int], archives: tuple[Archive, ...],
    source: str, licence: str, layout: str, steps: str = "",
) -> tuple[DatasetInfo, ...]:
    """Make the three sets of a fine-grained set.

    These are its known classes (ID), its easy unknown classes, and its hard ones with the medium.
    """
    splits = Archive(
        (f"{SSB_SPLITS}{short}_osr_splits.pkl",), f"ssb_splits/{short}_osr_splits.pkl",
        unpack=False,
    )
    common = dict(**FINE, source=source, licence=licence, archives=(*archives, splits), steps=steps)
    both = {"train": ("train",), "test": ("test",)}
    return (
        DatasetInfo(
            f"ssb_{name}", "id", "fine_grained", splits=both, num_classes=classes, count=counts,
            **common,
            layout=f"{layout}; the {classes} known classes of the Semantic Shift Benchmark",
            options={"set": short, "part": "known"},
        ),
        *(
            DatasetInfo(
                f"ssb_{name}_{part}", "ood", "fine_grained", splits={"test": ("test",)}, **common,
                layout=f"{layout}; its unknown classes that are {part} to tell",
                options={"set": short, "part": part},
            )
            for part in ("easy", "hard")
        ),
    )


ROWS = (
    _huang("SUN", "8469c3ada62211477954ec1be53b12d0", "SUN397: see page"),
    _huang(
        "iNaturalist", "5be6ea8aa027d7b631916427b32cb335",
        "iNaturalist 2017 competition terms (non-commercial research and education)", ("inat",),
    ),
    _huang(
        "Places", "b5cb5eba2754ae2a28beea8718db699a",
        "Places2 terms (non-commercial research and education)",
    ),
    DatasetInfo(
        "openimage_o", "ood", "folder",
        (
            "ood_datasets/openimage_o", "images_largescale/openimage_o/images", "openimage-o",
            "OpenImagesO/images",
        ),
        TEST,
        **LARGE, count={"test": 17_632},
        layout=(
            "ood_datasets/openimage_o/**/*.jpg: OpenOOD divides them into 15,869 for test and "
            "1,763 for validation"
        ),
        source="https://github.com/haoqiwang/vim",
        licence="annotations CC BY 4.0, images CC BY 2.0 (verify individually)",
        aliases=("openimage-o", "openimages_o"),
        archives=(
            Archive(
                (
                    "https://zenodo.org/records/10540831/files/OpenImage-O.zip",
                    "https://zenodo.org/record/10540831/files/OpenImage-O.zip",
                ),
                "ood_datasets/openimage_o", md5="c0abd7cd4b6f218a7149adc718d70e6e",
            ),
        ),
    ),
    DatasetInfo(
        "ninco", "ood", "folder",
        (
            "NINCO/NINCO_OOD_classes", "ood_datasets/NINCO/NINCO_OOD_classes",
            "images_largescale/ninco",
        ),
        TEST, **LARGE, count={"test": 5879}, layout="NINCO/NINCO_OOD_classes/<class>/*",
        source="https://github.com/j-cb/NINCO", licence="CC BY 4.0",
        archives=(
            Archive(
                (
                    "https://zenodo.org/record/8013288/files/NINCO_all.tar.gz",
                    "https://zenodo.org/records/8013288/files/NINCO_all.tar.gz",
                ),
                "NINCO", "NINCO", md5="b9ffae324363cd900a81ce3c367cd834",
            ),
        ),
    ),
    DatasetInfo(
        "ssb_hard", "ood", "folder",
        ("images_largescale/ssb_hard", "ood_datasets/ssb_hard", "ssb_hard"), TEST, **LARGE,
        count={"test": 49_000},
        layout="images_largescale/ssb_hard/<wnid>/*: hard unknown classes of ImageNet-21K",
        source="https://github.com/sgvaze/SSB", licence=IMAGENET_TERMS,
        archives=(
            Archive(
                (), "images_largescale/ssb_hard", drive="1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE",
                file="ssb_hard.zip",
            ),
        ),
        aliases=("ssb-hard",),
    ),
    _hendrycks(
        "imagenet_o", "imagenet-o", "86bd7a50c1c4074fb18fc5f219d6d50b", "ood", None, 2000,
        "classes that ImageNet-1K has not", "https://github.com/hendrycks/natural-adv-examples",
    ),
    _hendrycks(
        "imagenet_a", "imagenet-a", "c3e55429088dc681f30d81f4726b6595", "id", 200, 7500,
        "natural adversarial images of 200 ImageNet classes",
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    _hendrycks(
        "imagenet_r", "imagenet-r", "a61312130a589d0ca1a8fca1f2bd3337", "id", 200, 30_000,
        "renditions of 200 ImageNet classes", "https://github.com/hendrycks/imagenet-r",
    ),
    *_ssb(
        "cub", "cub", 100, {},
        (
            Archive(
                (
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                    "http://www.vision.caltech.edu/visipedia-data/CUB-200-2011/CUB_200_2011.tgz",
                ),
                "CUB_200_2011", "CUB_200_2011", md5="97eceeb196236b17998738112f37df78",
            ),
        ),
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "non-commercial research and education, see page", "CUB_200_2011/images/<class>/*.jpg",
    ),
    *_ssb(
        "aircraft", "aircraft", 50, {},
        (
            Archive(
                (
                    (
                        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
                        "fgvc-aircraft-2013b.tar.gz"
                    ),
                ),
                "fgvc-aircraft-2013b", "fgvc-aircraft-2013b",
            ),
        ),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "non-commercial research, see page", "fgvc-aircraft-2013b/data/images/*.jpg",
    ),
    *_ssb(
        "scars", "cars", 98, {}, (), "https://github.com/sgvaze/SSB/blob/main/DATA.md", "see page",
        "stanford_cars/{cars_train,cars_test}/*.jpg, stanford_cars/devkit/*.mat",
        (
            "The first host of Stanford Cars is gone. Get it from "
            "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset (an account is "
            "needed)\n"
            "and unpack it so that {data_dir}/stanford_cars holds cars_train/*.jpg, "
            "cars_test/*.jpg, devkit/cars_train_annos.mat and\n"
            "devkit/cars_test_annos_withlabels.mat."
        ),
    ),
)
