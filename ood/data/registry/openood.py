"""Rows of the table: OpenOOD v1.5's copies of the sets, and the lists that name each test's images.

The lists are text files, one 'path label' a line, under benchmark_imglist/. Paths are relative to
images_classic/ or images_largescale/. The sizes of the lists are from OpenOOD's paper (arXiv
2306.09301) and repository. OpenOOD publishes no checksums.
"""

from __future__ import annotations

from ood.data.registry.entry import IMAGENET, IMAGENET_TERMS, SEE_PAGE, Archive, DatasetInfo
from ood.data.registry.id import CIFAR10_CLASSES, DIGITS

SOURCE = "https://github.com/Jingkang50/OpenOOD"
LISTS = "openood_lists"
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
OOD_SPLITS = {"test": ("",), "val": ("",)}
ID_SPLITS = {"train": ("",), "val": ("",), "test": ("",)}
# Other places of the same images: a prefix in OpenOOD's lists, and the folders below the data root
# that may hold these images too.
SAME = {
    "imagenet_1k/train/": ("ILSVRC-2012/train/", "imagenet/train/"),
    "imagenet_1k/val/": ("ILSVRC-2012/val/", "imagenet/val/", "imagenet_1k/val/"),
    "inaturalist/images/": ("ood_datasets/iNaturalist/images/", "iNaturalist/images/"),
    "texture/": ("ood_datasets/dtd/images/", "dtd/images/"),
    "ninco/": ("NINCO/NINCO_OOD_classes/",),
    "openimage_o/images/": ("ood_datasets/openimage_o/images/", "ood_datasets/openimage_o/"),
    "imagenet_r/": ("imagenet-r/",),
    "imagenet_v2/": ("imagenetv2-matched-frequency-format-val/",),
}


def _archive(family: str, folder: str, drive: str) -> Archive:
    return Archive((), f"{family}/{folder}", drive=drive, file=f"{folder}.zip")


def _copy(
    folder: str, drive: str, *, family: str = "images_classic", name: str | None = None,
    role: str = "ood", licence: str = SEE_PAGE, lists: dict | None = None,
    splits: dict | None = None, summary: str = "", **details,
) -> DatasetInfo:
    """Make the row of OpenOOD's archive of one set.

    The archive has no folder of its own; it is unpacked into images_*/<folder>/.
    """
    return DatasetInfo(
        name or f"{folder}_openood", role, "imglist", (f"{family}/{folder}",),
        splits or OOD_SPLITS, source=SOURCE, licence=licence, needs=(LISTS,),
        layout=f"{family}/{folder}/**{summary and ': ' + summary}",
        archives=(_archive(family, folder, drive),),
        options={"root": family, "lists": lists or {}}, **details,
    )


def _lists(folder: str, name: str) -> dict[str, str]:
    return {split: f"{folder}/{split}_{name}.txt" for split in ("train", "val", "test")}


CLASSIC = dict(mean=CIFAR10[0], std=CIFAR10[1])
LARGE = dict(family="images_largescale", mean=IMAGENET[0], std=IMAGENET[1], size=224, resize=256)

ROWS = (
    DatasetInfo(
        LISTS, "ood", "imglist", ("benchmark_imglist",), OOD_SPLITS,
        layout=(
            "benchmark_imglist/<benchmark>/{train,val,test}_<set>.txt: which images belong to "
            "which test"
        ),
        source=SOURCE, licence="MIT (repository)", options={"root": "", "lists": {}},
        archives=(
            Archive(
                (), "benchmark_imglist", "benchmark_imglist",
                drive="1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1", file="benchmark_imglist.zip",
            ),
        ),
    ),
    _copy(
        "cifar10", "1Co32RiiWe16lTaiOU6JMMnyUYS41IlO1", role="id", splits=ID_SPLITS,
        lists=_lists("cifar10", "cifar10"), num_classes=10, class_names=CIFAR10_CLASSES,
        summary="CIFAR-10 as PNG files", count={"train": 50_000, "val": 1000, "test": 9000},
        mean=CIFAR10[0], std=CIFAR10[1],
    ),
    _copy(
        "cifar100", "1PGKheHUsf29leJPPGuXqzLBMwl8qMF8_", role="id", splits=ID_SPLITS,
        lists=_lists("cifar100", "cifar100"), num_classes=100, summary="CIFAR-100 as PNG files",
        count={"train": 50_000, "val": 1000, "test": 9000}, mean=CIFAR100[0], std=CIFAR100[1],
    ),
    _copy(
        "tin", "1PZ-ixyx52U989IKsMA2OT-24fToTrelC",
        lists={"test": "cifar10/test_tin.txt", "val": "cifar10/val_tin.txt"},
        licence=IMAGENET_TERMS, **CLASSIC,
        summary=(
            "Tiny ImageNet; the lists leave out what shows an ID class: 7,793 for CIFAR-10, 6,526 "
            "for CIFAR-100"
        ),
    ),
    _copy(
        "mnist", "1CCHAGWqA1KJTFFswuF9cbhmB-j98Y1Sb", lists={"test": "cifar10/test_mnist.txt"},
        splits={"test": ("",)}, class_names=DIGITS, **CLASSIC,
    ),
    _copy(
        "svhn", "1DQfc11HOtB1nEwqS4pWUFp8vtQ3DczvI", lists={"test": "cifar10/test_svhn.txt"},
        splits={"test": ("",)}, count={"test": 26_032}, licence="non-commercial use, see page",
        **CLASSIC,
    ),
    _copy(
        "texture", "1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam", lists={"test": "cifar10/test_texture.txt"},
        splits={"test": ("",)}, count={"test": 5640}, licence="research purposes, see page",
        summary="Textures; 5,160 of them in ImageNet's list", **CLASSIC,
    ),
    _copy(
        "places365", "1Ec-LRSTf6u5vEctKX9vRp9OA6tqnJ0Ay",
        lists={"test": "cifar10/test_places365.txt"}, splits={"test": ("",)},
        licence="Places2 terms (non-commercial research and education)",
        summary="36,500 images; the lists leave out what shows an ID class", **CLASSIC,
    ),
    _copy(
        "cifar10c", "170DU_ficWWmbh6O2wqELxK9jxRiGhlJH", role="id",
        lists={"test": "cifar10/test_cifar10c.txt"}, splits={"test": ("",)}, num_classes=10,
        class_names=CIFAR10_CLASSES, licence="CC BY 4.0",
        summary="corrupted CIFAR-10, for full-spectrum tests", **CLASSIC,
    ),
    DatasetInfo(
        "imagenet200", "id", "imglist", ("ILSVRC-2012",), ID_SPLITS, mean=IMAGENET[0],
        std=IMAGENET[1], size=224, resize=256, num_classes=200, count={"val": 1000, "test": 9000},
        layout="the 200 classes of ImageNet-R, from imagenet, by OpenOOD's lists", source=SOURCE,
        licence=IMAGENET_TERMS, needs=("imagenet", LISTS),
        options={"root": "images_largescale", "lists": _lists("imagenet200", "imagenet200")},
    ),
    DatasetInfo(
        "imagenet1k_openood", "id", "imglist", ("ILSVRC-2012",), ID_SPLITS, mean=IMAGENET[0],
        std=IMAGENET[1], size=224, resize=256, num_classes=1000,
        count={"val": 5000, "test": 45_000},
        layout=(
            "imagenet, by OpenOOD's lists: 45,000 of the validation images for test, 5,000 for "
            "validation"
        ),
        source=SOURCE, licence=IMAGENET_TERMS, needs=("imagenet", LISTS),
        options={"root": "images_largescale", "lists": _lists("imagenet", "imagenet")},
    ),
    _copy(
        "ssb_hard", "1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE",
        lists={"test": "imagenet/test_ssb_hard.txt"}, splits={"test": ("",)},
        count={"test": 49_000}, licence=IMAGENET_TERMS,
        summary="hard classes of the Semantic Shift Benchmark", **LARGE,
    ),
    _copy(
        "ninco", "1Z82cmvIB0eghTehxOGP5VTdLt7OD3nk6", lists={"test": "imagenet/test_ninco.txt"},
        splits={"test": ("",)}, count={"test": 5879}, licence="CC BY 4.0", **LARGE,
    ),
    _copy(
        "inaturalist", "1zfLfMvoUD0CUlKNnkk7LgxZZBnTBipdj",
        lists={"test": "imagenet/test_inaturalist.txt"}, splits={"test": ("",)},
        count={"test": 10_000},
        licence="iNaturalist 2017 competition terms (non-commercial research and education)",
        **LARGE,
    ),
    _copy(
        "openimage_o", "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE",
        lists={"test": "imagenet/test_openimage_o.txt", "val": "imagenet/val_openimage_o.txt"},
        count={"test": 15_869, "val": 1763},
        licence="annotations CC BY 4.0, images CC BY 2.0 (verify individually)", **LARGE,
    ),
    _copy(
        "imagenet_v2", "1akg2IiE22HcbvTBpwXQoD7tgfPCdkoho", role="id",
        lists={"test": "imagenet/test_imagenet_v2.txt"}, splits={"test": ("",)}, num_classes=1000,
        summary="for full-spectrum tests", **LARGE,
    ),
    _copy(
        "imagenet_c", "1JeXL9YH4BO8gCJ631c5BHbaSsl-lekHt", role="id",
        lists={"test": "imagenet/test_imagenet_c.txt"}, splits={"test": ("",)}, num_classes=1000,
        licence="CC BY 4.0", summary="for full-spectrum tests", **{**LARGE, "resize": 224},
    ),
    _copy(
        "imagenet_r", "1EzjMN2gq-bVV7lg-MEAdeuBuz-7jbGYU", role="id",
        lists={"test": "imagenet/test_imagenet_r.txt"}, splits={"test": ("",)}, num_classes=1000,
        summary="for full-spectrum tests", **LARGE,
    ),
    _copy(
        "imagenet_es", "1ATz11vKmPqyzfEaEDRaPTF9TXiC244sw", role="id",
        lists={"test": "imagenet/test_imagenet_es.txt"}, splits={"test": ("",)}, num_classes=1000,
        name="imagenet_es", summary="other light and camera settings (Baek et al., CVPR 2024)",
        **LARGE,
    ),
    # --- whole archives, where the lists are not needed
    DatasetInfo(
        "places365_whole", "ood", "folder", ("images_classic/places365", "places365"),
        {"test": ("",)}, **CLASSIC, count={"test": 36_500},
        layout="images_classic/places365/<scene>/*: OpenOOD's archive without its lists",
        source=SOURCE, licence="Places2 terms (non-commercial research and education)",
        archives=(_archive("images_classic", "places365", "1Ec-LRSTf6u5vEctKX9vRp9OA6tqnJ0Ay"),),
    ),
    DatasetInfo(
        "imagenet_es_whole", "id", "folder",
        ("images_largescale/imagenet_es/es-test", "imagenet_es/es-test"), {"test": ("",)},
        mean=IMAGENET[0], std=IMAGENET[1], size=224, resize=256, num_classes=1000,
        count={"test": 64_000},
        layout=(
            "images_largescale/imagenet_es/es-test/<camera>/<light>/<setting>/<wnid>/*: OpenOOD's "
            "archive without its lists"
        ),
        source=SOURCE,
        archives=(
            _archive("images_largescale", "imagenet_es", "1ATz11vKmPqyzfEaEDRaPTF9TXiC244sw"),
        ),
        options={"only": r"(?!sampled_tin_no_resize2/).*", "wnids": True},
    ),
)
