"""Little sets with masks, in the real layouts, for our readers and pytorch-ood's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (6, 10)  # height, width
MVTEC_SHAPE = (8, 8)  # its images are square


def picture(path: Path, seed: int, shape=SHAPE, mode: str = "RGB") -> np.ndarray:
    """Write an image of noise; lossless where the format can."""
    shape = (*shape, 3) if mode == "RGB" else shape
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def mask(path: Path, seed: int, values, shape=SHAPE) -> np.ndarray:
    """Write a mask of these values, each at least once."""
    generator = np.random.default_rng(1000 + seed)
    array = generator.choice(np.array(values, dtype=np.uint8), shape)
    array.flat[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def fishyscapes(root: Path, version: str = "3.0.0") -> None:
    folder = root / f"fishyscapes-{version}"
    for number, city in enumerate(("frankfurt", "lindau", "munster")):
        stem = f"{city}_00000{number}_046504"
        picture(root / "cityscapes/leftImg8bit/val" / city / f"{stem}_leftImg8bit.png", number)
        mask(folder / f"000{number}_{stem}_labels.png", number, (0, 1, 255))
        generator = np.random.default_rng(number)
        overlay = generator.integers(-200, 200, (*SHAPE, 3))
        overlay[generator.random(SHAPE) < 0.7] = 0
        np.savez(folder / f"000{number}_{stem}_rgb.npz", rgb=overlay)


def lostandfound(root: Path) -> None:
    for number, (part, place) in enumerate(
        (("train", "04_Maurener_Weg_8"), ("test", "02_Hanns_Klemm_Str_44"), ("test", "15_Rechberg"))
    ):
        stem = f"{place}_000000_0000{number}0"
        folder = root / "lostandfound/leftImg8bit" / part / place
        picture(folder / f"{stem}_leftImg8bit.png", number)
        picture(folder / f"{place}_000001_000000_leftImg8bit.png", 50 + number)  # without a mask
        file = root / "fishyscapes_lostandfound" / f"000{number}_{stem}_labels.png"
        mask(file, number, (0, 1, 255))


def streethazards(root: Path) -> None:
    for place, values in (
        ("test/{}/t5", (1, 2, 13, 14)),
        ("test/{}/t6", (3, 8, 14)),
        ("train/{}/training/t1-3", (1, 4, 13)),
        ("train/{}/validation/t4", (2, 5, 9)),
    ):
        for number in range(2):
            folder = root / "streethazards"
            picture(folder / place.format("images") / f"{number}.png", number)
            mask(folder / place.format("annotations") / f"{number}.png", number, values)
    for name in ("test", "train"):
        (root / "streethazards" / f"streethazards_{name}.tar").touch()


def roadanomaly(root: Path, count: int = 60) -> None:
    folder = root / "RoadAnomaly/RoadAnomaly_jpg/frames"
    for number in range(count):
        picture(folder / f"animals{number:02d}_road.jpg", number)
        place = folder / f"animals{number:02d}_road.labels"
        mask(place / "labels_semantic.png", number, (0, 2))
        picture(place / "labels_semantic_color.png", number)
    (folder / "frame_list.json").write_text("[]")
    (root / "RoadAnomaly" / "RoadAnomaly_jpg.zip").touch()


def smiyc(root: Path) -> None:
    for track, names, ending in (
        ("dataset_AnomalyTrack", [f"validation{n:04d}" for n in range(10)], ".jpg"),
        ("dataset_ObstacleTrack", [f"validation_{n}" for n in range(1, 31)], ".webp"),
    ):
        folder = root / "SMIYC" / track
        for number, name in enumerate(names):
            picture(folder / "images" / f"{name}{ending}", number)
            mask(folder / "labels_masks" / f"{name}_labels_semantic.png", number, (0, 1, 255))
            picture(folder / "labels_masks" / f"{name}_labels_semantic_color.png", number)
        picture(folder / "images" / f"airplane0000{ending}", 99)  # of the test: no public mask
        (root / "SMIYC" / f"{track}.zip").touch()


def mvtec(root: Path, objects=("bottle", "grid", "zipper"), folder: str = "mvtech-ad") -> None:
    for seed, name in enumerate(objects):
        mode = "L" if name in ("grid", "screw", "zipper") else "RGB"
        place = root / folder / name
        for number, part in enumerate(("train/good", "test/good", "test/broken", "test/cut")):
            for image in range(2):
                file = f"{image:03d}"
                picture(
                    place / part / f"{file}.png",
                    100 * seed + 10 * number + image,
                    MVTEC_SHAPE,
                    mode,
                )
                if part in ("test/broken", "test/cut"):
                    truth = place / "ground_truth" / Path(part).name / f"{file}_mask.png"
                    mask(truth, seed + number + image, (0, 255), MVTEC_SHAPE)
    (root / folder / "mvtec_anomaly_detection.tar.xz").touch()


MAKE = {
    "fishyscapes": fishyscapes,
    "lostandfound": lostandfound,
    "streethazards": streethazards,
    "roadanomaly": roadanomaly,
    "roadanomaly21": smiyc,
    "roadobstacle21": smiyc,
    "mvtec": mvtec,
}
