"""Rows of the table: anomaly detection and anomaly segmentation.

`load` reads the images, for tests of whole images. `load_masked` reads them with their masks, as
`masks.py` beside this file says.
"""

from __future__ import annotations

from ood.data.registry.entry import GREY, HALF, IMAGENET, Archive, DatasetInfo

TEST = {"test": ("",)}
STREET = dict(mean=IMAGENET[0], std=IMAGENET[1], size=224, resize=256)
MVTEC_CLASSES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill",
    "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)
MVTEC = Archive(
    (
        "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f282/download/"
        "420938113-1629952094/mvtec_anomaly_detection.tar.xz",
        "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
        "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
    ),
    "mvtec", sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    bytes=5_264_982_680,
)
SUMNIST = tuple(
    Archive((f"https://files.kondas.de/sumnist/{file}",), f"sumnist/{file}", md5=md5, unpack=False)
    for file, md5 in (
        ("x-train.npz", "c087f1c74a6f7ffcad9956be6f99cf10"),
        ("y-train.npz", "c6c94eb5ed7ebbe1c466abb14712e807"),
        ("b-train.npz", "44b6208a8675df1a78c981b5ad8c4e50"),
        ("x-test.npz", "7db6727ec075cca1bb4dd0881087ac57"),
        ("y-test.npz", "7239555b3d809657c06fbbc8da6f3e5e"),
        ("b-test.npz", "85a544301eff979e252b8946e31fd795"),
    )
)
HAZARDS = {
    "test": Archive(
        ("https://people.eecs.berkeley.edu/~hendrycks/streethazards_test.tar",),
        "streethazards/test", "test", md5="8c547c1346b00c21b2483887110bfea7",
    ),
    "train": Archive(
        ("https://people.eecs.berkeley.edu/~hendrycks/streethazards_train.tar",),
        "streethazards/train", "train", md5="cd2d1a8649848afb85b5059d227d2090",
    ),
}


def _fishyscapes(version: int, md5: str) -> DatasetInfo:
    name = "fishyscapes" if version == 3 else f"fishyscapes_v{version}"
    folder = f"fishyscapes-{version}.0.0"
    return DatasetInfo(
        name, "ood", "fishyscapes", (folder,), TEST, **STREET,
        layout=(
            f"{folder}/*_rgb.npz: Fishyscapes Static, validation, version {version}.0.0; overlays "
            "that are added to Cityscapes' validation images"
        ),
        source="https://fishyscapes.com/", licence="see page; Cityscapes: a form",
        steps=(
            "Fishyscapes Static is laid over Cityscapes: get leftImg8bit_trainvaltest.zip from "
            "https://www.cityscapes-dataset.com (registration)\n"
            "and unpack it so that {data_dir}/cityscapes/leftImg8bit/val/<city>/*.png is there."
        ),
        archives=(
            Archive(
                (f"http://robotics.ethz.ch/~asl-datasets/Fishyscapes/fs_val_v{version}.zip",),
                folder, md5=md5,
            ),
        ),
    )


ROWS = (
    DatasetInfo(
        "mvtec", "id", "mvtec", ("mvtec", "ood_datasets/mvtec", "mvtech-ad"),
        {"train": ("train",), "test": ("test",)}, **STREET, num_classes=15,
        class_names=MVTEC_CLASSES, count={"train": 3629, "test": 467},
        layout="mvtec/<object>/{train,test}/good/*.png: what is as it should be",
        source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0", archives=(MVTEC,), options={"good": True},
        aliases=("mvtec_ad", "mvtec-ad"),
    ),
    DatasetInfo(
        "mvtec_anomalies", "ood", "mvtec", ("mvtec", "ood_datasets/mvtec", "mvtech-ad"),
        {"test": ("test",)}, **STREET, count={"test": 1258},
        layout="mvtec/<object>/test/<defect>/*.png",
        source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0", archives=(MVTEC,), options={"good": False},
    ),
    DatasetInfo(
        "sumnist", "id", "sumnist", ("sumnist",), {"train": ("train",), "test": ("test",)}, *GREY,
        size=28, channels=1, num_classes=1, class_names=("sum 20",),
        count={"train": 60_000, "test": 8500},
        layout="sumnist/{x,y,b}-{train,test}.npz: four digits whose sum is 20",
        source="https://github.com/kkirchheim/sumnist", licence="MIT", archives=SUMNIST,
        options={"normal": True},
    ),
    DatasetInfo(
        "sumnist_anomalies", "ood", "sumnist", ("sumnist",), {"test": ("test",)}, *GREY, size=28,
        channels=1, count={"test": 1500},
        layout="sumnist/{x,y,b}-test.npz: four digits of another sum",
        source="https://github.com/kkirchheim/sumnist", licence="MIT", archives=SUMNIST,
        options={"normal": False},
    ),
    DatasetInfo(
        "streethazards", "ood", "folder", ("streethazards/test/images",), TEST, **STREET,
        count={"test": 1500},
        layout="streethazards/test/images/**: every test image holds an anomaly",
        source="https://github.com/hendrycks/anomaly-seg", licence="MIT (repository), see page",
        archives=(HAZARDS["test"],),
    ),
    DatasetInfo(
        "streethazards_normal", "ood", "folder", ("streethazards/train/images/{split}",),
        {"train": ("training",), "test": ("validation",)}, **STREET,
        count={"train": 5125, "test": 1031},
        layout="streethazards/train/images/{training,validation}/**: no anomalies",
        source="https://github.com/hendrycks/anomaly-seg", licence="MIT (repository), see page",
        archives=(HAZARDS["train"],),
    ),
    DatasetInfo(
        "roadanomaly", "ood", "direct", ("RoadAnomaly/RoadAnomaly_jpg/frames",), TEST, **STREET,
        count={"test": 60}, layout="RoadAnomaly/RoadAnomaly_jpg/frames/*.jpg",
        source="https://www.epfl.ch/labs/cvlab/data/road-anomaly/",
        licence="research use only (images are not owned by the authors)",
        archives=(
            Archive(
                ("https://datasets-cvlab.epfl.ch/2019-road-anomaly/RoadAnomaly_jpg.zip",),
                "RoadAnomaly/RoadAnomaly_jpg", "RoadAnomaly_jpg",
                md5="87a0908e5c72827824693913cf2e4fb0",
            ),
        ),
        aliases=("road_anomaly",),
    ),
    DatasetInfo(
        "roadanomaly21", "ood", "direct", ("SMIYC/dataset_AnomalyTrack/images",), TEST, **STREET,
        layout=(
            "SMIYC/dataset_AnomalyTrack/images/*: SegmentMeIfYouCan, 10 of them with public masks"
        ),
        source="https://segmentmeifyoucan.com/datasets",
        licence="CC BY, CC BY-SA or public domain, by image",
        archives=(
            Archive(
                ("https://zenodo.org/record/5270237/files/dataset_AnomalyTrack.zip",),
                "SMIYC/dataset_AnomalyTrack", "dataset_AnomalyTrack",
                md5="231bf79ed58924bcd33d9cbe22e61076",
            ),
        ),
        aliases=("segmentmeifyoucan", "smiyc"),
    ),
    DatasetInfo(
        "roadobstacle21", "ood", "direct", ("SMIYC/dataset_ObstacleTrack/images",), TEST, **STREET,
        layout=(
            "SMIYC/dataset_ObstacleTrack/images/*: SegmentMeIfYouCan, 30 of them with public masks"
        ),
        source="https://segmentmeifyoucan.com/datasets", licence="CC BY 4.0",
        archives=(
            Archive(
                ("https://zenodo.org/record/5281633/files/dataset_ObstacleTrack.zip",),
                "SMIYC/dataset_ObstacleTrack", "dataset_ObstacleTrack",
                md5="895fb36d18765482cc291f69e63d6da6",
            ),
        ),
    ),
    _fishyscapes(3, "0dc11db9e57088c5bb18de4c55a53f3a"),
    _fishyscapes(2, "5088c63497927200d935c41d54b1cb23"),
    _fishyscapes(1, "79fb134419c83f2f20b575955efa9d20"),
    DatasetInfo(
        "lostandfound", "ood", "folder", ("lostandfound/leftImg8bit/test",), TEST, *HALF, size=224,
        resize=256,
        layout="lostandfound/leftImg8bit/{train,test}/<place>/*.png",
        source="http://wwwlehre.dhbw-stuttgart.de/~sgehrig/lostAndFoundDataset/index.html",
        licence="Daimler AG non-commercial licence",
        archives=(
            Archive(
                ("http://wwwlehre.dhbw-stuttgart.de/~sgehrig/lostAndFoundDataset/leftImg8bit.zip",),
                "lostandfound/leftImg8bit", "leftImg8bit", md5="08eaa79ce05126f6bd22a3ca563746d0",
            ),
        ),
    ),
    DatasetInfo(
        "fishyscapes_lostandfound", "ood", "lostandfound", ("fishyscapes_lostandfound",), TEST,
        **STREET, count={"test": 100}, needs=("lostandfound",),
        layout=(
            "fishyscapes_lostandfound/*_labels.png: Fishyscapes' masks for 100 images of "
            "lostandfound"
        ),
        source="https://fishyscapes.com/",
        licence="masks CC BY 4.0; images: Daimler AG non-commercial licence",
        archives=(
            Archive(
                ("http://robotics.ethz.ch/~asl-datasets/Fishyscapes/fishyscapes_lostandfound.zip",),
                "fishyscapes_lostandfound", md5="0d3bf7c0ec38bd50b84f3d8aaa4b2e26",
            ),
        ),
    ),
)
