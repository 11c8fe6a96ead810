"""Small stand-ins of the sets of ood.compat.benchmark, in the layout that pytorch-ood reads."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

OPENOOD = {  # {folder of lists: {list: folder of its images}}
    "cifar10": {
        "train_cifar10.txt": "cifar10/train",
        "val_cifar10.txt": "cifar10/test",
        "test_cifar10.txt": "cifar10/test",
        "val_tin.txt": "tin/val",
        "test_cifar100.txt": "cifar100/test",
        "test_tin.txt": "tin/val",
        "test_mnist.txt": "mnist/test",
        "test_svhn.txt": "svhn/test",
        "test_texture.txt": "texture/banded",
        "test_places365.txt": "places365/alley",
    },
    "imagenet": {
        "train_imagenet.txt": "imagenet_1k/train/n01",
        "val_imagenet.txt": "imagenet_1k/val",
        "test_imagenet.txt": "imagenet_1k/val",
        "val_openimage_o.txt": "openimage_o/images",
        "test_ssb_hard.txt": "ssb_hard/n02",
        "test_ninco.txt": "ninco/cat",
        "test_inaturalist.txt": "inaturalist/images",
        "test_textures.txt": "texture/banded",
        "test_openimage_o.txt": "openimage_o/images",
    },
}
OPENOOD["cifar100"] = {
    name.replace("cifar10.", "cifar100.") if "_cifar10." in name else name: folder
    for name, folder in OPENOOD["cifar10"].items()
    if name != "test_cifar100.txt"
} | {"test_cifar10.txt": "cifar10/test"}
OPENOOD["imagenet200"] = {
    name.replace("imagenet.", "imagenet200."): folder
    for name, folder in OPENOOD["imagenet"].items()
}


def picture(path: Path, seed: int, size=(32, 32), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_list(path: Path, images: Path, folder: str, count: int, label, ending=".png") -> None:
    """Write a list of `count` pictures below images/folder, and the pictures.

    Some are in two sizes, and MNIST's are grey. `label` gives the label of a number.
    """
    lines = []
    for n in range(count):
        file = f"{folder}/{path.stem}_{n}{ending}"
        mode = "L" if folder.startswith("mnist") else "RGB"
        picture(images / file, n, (32, 32 + n % 2), mode)
        lines.append(f"{file} {label(n)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def openood(lists: Path, images: Path, folder: str) -> None:
    """Write a benchmark of OpenOOD: its lists, and the images that they name."""
    for number, (name, place) in enumerate(OPENOOD[folder].items()):
        known = name.partition("_")[2] == f"{folder}.txt"
        write_list(
            lists / folder / name,
            images,
            place,
            2 + number % 3,
            (lambda n: (7 * n + 3) % 10) if known else (lambda n: -1),
            ".JPEG" if "imagenet_1k" in place else ".png",
        )


def openmibood(root: Path, bench: str, lists, images: Path) -> None:
    """Write a benchmark of OpenMIBOOD; the labels of its OOD sets are classes of their own."""
    for number, name in enumerate(lists):
        write_list(
            root / "imglists" / bench / name, images, name[:-4], 2 + number % 2, lambda n: n % 2
        )


def fine_grained(root: Path) -> None:
    """Write the Semantic Shift Benchmark: birds, aircraft, cars of eight classes each."""
    from scipy.io import savemat

    splits = {"known_classes": [5, 0, 2], "unknown_classes": {"Easy": [1, 7], "Medium": [3]}}
    splits["unknown_classes"]["Hard"] = [6]
    shifted = {
        "known_classes": [c + 1 for c in splits["known_classes"]],
        "unknown_classes": {k: [c + 1 for c in v] for k, v in splits["unknown_classes"].items()},
    }
    (root / "ssb_splits").mkdir(parents=True)
    for name, content in (("cub", splits), ("aircraft", splits), ("scars", shifted)):
        (root / f"ssb_splits/{name}_osr_splits.pkl").write_bytes(pickle.dumps(content))

    birds, rows = root / "CUB_200_2011", range(1, 33)
    path = lambda n: f"{n % 8 + 1:03d}.bird/{n}.jpg"
    for n in rows:
        picture(birds / "images" / path(n), n, (20, 24))
    table = lambda value: "".join(f"{n} {value(n)}\n" for n in rows)
    (birds / "images.txt").write_text(table(path))
    (birds / "image_class_labels.txt").write_text(table(lambda n: n % 8 + 1))
    (birds / "train_test_split.txt").write_text(table(lambda n: n // 8 % 2))

    planes = root / "fgvc-aircraft-2013b/data"
    variants = [f"Type {n}" for n in (3, 1, 2, 8, 5, 6, 7, 4)]
    for split, numbers in (("trainval", range(16)), ("test", range(16, 32))):
        for n in numbers:
            picture(planes / f"images/{n:03d}.jpg", n, (20, 24))
        lines = (f"{n:03d} {variants[n % 8]}\n" for n in numbers)
        (planes / f"images_variant_{split}.txt").write_text("".join(lines))
    (planes / "variants.txt").write_text("".join(f"{name}\n" for name in variants))

    cars = root / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    for split, file in (("train", "annos"), ("test", "annos_withlabels")):
        for n in range(16):
            picture(cars / f"cars_{split}/{n}.jpg", n, (20, 24), "L" if n == 3 else "RGB")
        rows = [(f"{n}.jpg", n % 8 + 1) for n in range(16)]
        fields = [("fname", "O"), ("class", "O")]
        content = {"annotations": np.array(rows, dtype=fields)}
        savemat(cars / f"devkit/cars_{split}_{file}.mat", content)


def odin(root: Path) -> None:
    """Write the four stored OOD sets of ODIN."""
    for folder in ("Imagenet/test", "Imagenet_resize/Imagenet_resize", "LSUN/test"):
        for n in (3, 10, 2):
            picture(root / folder / f"test_{n}.jpg", n)
    for n in (4, 1):
        picture(root / "LSUN_resize/LSUN_resize" / f"test_{n}.jpg", n)


def cifar(root: Path, kind, patch) -> None:
    """Write small files of torchvision's CIFAR-10 or CIFAR-100, and tell torchvision their sums."""
    generator, key = np.random.default_rng(0), kind.meta["key"]
    label = "labels" if key == "label_names" else "fine_labels"
    write = lambda file, content: _write(root / kind.base_folder / file, content)
    for name in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(kind, name):
            data = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
            sums.append([file, write(file, {"data": data, label: [3, 1, 9, 4, 0, 1]})])
        patch.setattr(kind, name, sums)
    names = [f"class {n:03d}" for n in range(10 if label == "labels" else 100)]
    md5 = write(kind.meta["filename"], {key: names})
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5})


def _write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()
