"""Rows of the table: labelled sets under covariate shift (corruptions, another collection)."""

from __future__ import annotations

from ood.data.registry.entry import CIFAR, GREY, IMAGENET, Archive, DatasetInfo
from ood.data.registry.id import CIFAR10_CLASSES, DIGITS

CORRUPTIONS = (
    "brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_blur",
    "gaussian_noise", "glass_blur", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate",
    "saturate", "shot_noise", "snow", "spatter", "speckle_noise", "zoom_blur",
)
MNIST_CORRUPTIONS = (
    "brightness", "canny_edges", "dotted_line", "fog", "glass_blur", "identity", "impulse_noise",
    "motion_blur", "rotate", "scale", "shear", "shot_noise", "spatter", "stripe", "translate",
    "zigzag",
)
IMAGENET_C = {
    "noise": (
        "e80562d7f6c3f8834afb1ecf27252745", 22_565_673_785,
        ("gaussian_noise", "shot_noise", "impulse_noise"),
    ),
    "blur": (
        "2d8e81fdd8e07fef67b9334fa635e45c", 7_112_704_951,
        ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    ),
    "weather": (
        "33ffea4db4d93fe4a428c40a6ce0c25d", 12_797_438_995, ("frost", "snow", "fog", "brightness"),
    ),
    "digital": (
        "89157860d7b10d5797849337ca2e5c03", 7_757_510_705,
        ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    ),
    "extra": (
        "d492dfba5fc162d8ec2c3cd8ee672984", 15_789_490_144,
        ("speckle_noise", "spatter", "gaussian_blur", "saturate"),
    ),
}


def _zenodo(record: int, file: str, place: str, inside: str = "", **facts) -> Archive:
    return Archive(
        (
            f"https://zenodo.org/record/{record}/files/{file}",
            f"https://zenodo.org/records/{record}/files/{file}",
        ),
        place, inside, **facts,
    )


def _cifar_c(
    name: str, folder: str, record: int, md5: str, size: int | None, classes: int,
    names: tuple[str, ...] | None,
) -> DatasetInfo:
    return DatasetInfo(
        name, "id", "arrays", (folder, f"ood_datasets/{folder}"), {"test": ("",)}, *CIFAR,
        num_classes=classes, class_names=names, count={"test": 50_000 * len(CORRUPTIONS)},
        layout=(
            f"{folder}/<corruption>.npy, 5 severities x 10,000 each; `{name}:fog` or "
            f"`{name}:fog:5` for a part"
        ),
        source=f"https://zenodo.org/record/{record}", licence="CC BY 4.0",
        aliases=(folder.lower(),),
        archives=(_zenodo(record, f"{folder}.tar", folder, folder, md5=md5, bytes=size),),
        options={
            "files": {"test": ("{part}.npy", "labels.npy")}, "parts": CORRUPTIONS, "severities": 5,
        },
    )


ROWS = (
    _cifar_c(
        "cifar10c", "CIFAR-10-C", 2535967, "56bf5dcef84df0e2308c6dcbcbbd8499", 2_918_471_680, 10,
        CIFAR10_CLASSES,
    ),
    _cifar_c(
        "cifar100c", "CIFAR-100-C", 3555552, "11f0ed0f1191edbf9fa23466ae6021d3", None, 100, None,
    ),
    DatasetInfo(
        "mnistc", "id", "arrays", ("mnist_c", "ood_datasets/mnist_c"),
        {"train": ("",), "test": ("",)}, *GREY, size=28, channels=1, num_classes=10,
        class_names=DIGITS,
        count={"train": 60_000 * len(MNIST_CORRUPTIONS), "test": 10_000 * len(MNIST_CORRUPTIONS)},
        layout="mnist_c/<corruption>/{train,test}_images.npy; `mnistc:fog` for a part",
        source="https://zenodo.org/record/3239543", licence="CC BY 4.0",
        archives=(
            _zenodo(
                3239543, "mnist_c.zip", "mnist_c", "mnist_c",
                md5="4b34b33045869ee6d424616cd3a65da3",
            ),
        ),
        aliases=("mnist-c",),
        options={
            "files": {
                split: (f"{{part}}/{split}_images.npy", f"{{part}}/{split}_labels.npy")
                for split in ("train", "test")
            },
            "parts": MNIST_CORRUPTIONS,
        },
    ),
    DatasetInfo(
        "mnistc_leftovers", "id", "parts", splits={"test": ("",)}, mean=GREY[0], std=GREY[1],
        size=28, channels=1, num_classes=10, class_names=DIGITS,
        layout="mnist_c_leftovers/<corruption>/*.npy: corruptions that its authors left out",
        source="https://zenodo.org/record/3239543", licence="CC BY 4.0",
        archives=(
            _zenodo(
                3239543, "mnist_c_leftovers.zip", "mnist_c_leftovers", "mnist_c_leftovers",
                md5="c365e9c25addd5c24454b19ac7101070",
            ),
        ),
    ),
    *(
        DatasetInfo(
            f"imagenet_c_{part}", "id", "corrupted", (f"ImageNetC/{part}",), {"test": ("",)},
            *IMAGENET, size=224, num_classes=1000, count={"test": 50_000 * 5 * len(kinds)},
            layout=(
                f"ImageNetC/{part}/<corruption>/<severity>/<wnid>/*.JPEG; "
                f"`imagenet_c_{part}:{kinds[0]}:5` for a part"
            ),
            source="https://zenodo.org/record/2235448", licence="CC BY 4.0",
            archives=(_zenodo(2235448, f"{part}.tar", f"ImageNetC/{part}", md5=md5, bytes=size),),
            options={"parts": kinds, "severities": 5},
        )
        for part, (md5, size, kinds) in IMAGENET_C.items()
    ),
    DatasetInfo(
        "imagenet_v2", "id", "folder",
        (
            "imagenetv2-matched-frequency-format-val",
            "ood_datasets/imagenetv2-matched-frequency-format-val", "images_largescale/imagenet_v2",
            "imagenet_v2",
        ),
        {"test": ("",)}, *IMAGENET, size=224, resize=256, num_classes=1000, count={"test": 10_000},
        layout="imagenetv2-matched-frequency-format-val/<0..999>/*.jpeg",
        source="https://github.com/modestyachts/ImageNetV2",
        licence="MIT (repository); images: see page",
        archives=(
            Archive(
                (
                    (
                        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                        "imagenetv2-matched-frequency.tar.gz"
                    ),
                    (
                        "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                        "imagenetv2-matched-frequency.tar.gz"
                    ),
                ),
                "imagenetv2-matched-frequency-format-val",
                "imagenetv2-matched-frequency-format-val",
            ),
        ),
    ),
)
