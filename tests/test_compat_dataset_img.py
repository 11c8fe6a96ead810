"""Image sets of `ood.compat.dataset.img`: pytorch-ood's signatures, layouts, order and labels.

Every set is compared with pytorch-ood's own class on a small copy of the real layout, made here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from download_toys import Server, make_tar, make_zip, pictures
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from ood.compat.dataset import img
from ood.compat.dataset.base import DatasetError, MissingFile
from ood.compat.dataset.img import openood
from ood.data.registry import table
from ood.data.registry.imagenet import imagenet_wnids, openimage_o_files

SIDE = 6
CLASSES = 11  # of the labelled sets of class folders: "10" comes before "2"

# --- small copies of the layouts that pytorch-ood unpacks, below `root`

WNIDS = [f"n{number:08}" for number in range(CLASSES)]
ES = "imagenet_es/es-test"
FILES = {
    "LSUNCrop": [f"LSUN/test/{name}.png" for name in ("0", "1", "10", "2")],
    "LSUNResize": [f"LSUN_resize/LSUN_resize/{name}.png" for name in ("0", "10", "2")],
    "TinyImageNetCrop": ["Imagenet/test/0.png", "Imagenet/test/1.png"],
    "TinyImageNetResize": ["Imagenet_resize/Imagenet_resize/0.png"],
    "Textures": [
        f"dtd/images/{name}.jpg" for name in ("banded/b_1", "banded/b_0", "zig/.a", "zig/z")
    ],
    "FoolingImages": [
        f"10-runs-x-1000-cppns/run_{run}/{name}"
        for run in range(10)
        for name in ("map_gen_5000/b.png", "map_gen_5000/a.png", "map_gen_10/a.png", "fitness.txt")
    ],
    "Chars74k": [
        f"chars74k/English/Img/GoodImg/Bmp/Sample{name}.png"
        for name in ("001/img001-00002", "001/img001-00001", "003/img003-00001", "062/img062-00001")
    ],
    "NINCO": [f"NINCO/NINCO_OOD_classes/{name}.jpg" for name in ("b/1", "b/0", "a/2")],
    "iNaturalist": [f"iNaturalist/images/{name}.jpg" for name in ("c", "a", "b")],
    "Places365": [f"places365/{name}.jpg" for name in ("zoo/1", "airfield/1", "airfield/0")],
    "SSBHard": [f"ssb_hard/{name}.JPEG" for name in ("n02/n02_1", "n01/n01_2", "n01/n01_1")],
    "ImageNetV2": [f"imagenet_v2/{label}/{name}.jpeg" for label in range(CLASSES) for name in "ba"],
    "ImageNetES": [
        f"{ES}/{camera}/l1/param_1/{wnid}/0.JPEG"
        for camera in ("auto_exposure", "param_control", "sampled_tin_no_resize2")
        for wnid in ("n02699494", "n01629819")
    ],
    "ImageNetA": [f"imagenet-a/{wnid}/{name}.jpg" for wnid in WNIDS for name in "10"],
    "ImageNetO": [f"imagenet-o/{wnid}/{name}.JPEG" for wnid in WNIDS[:3] for name in "10"],
    "ImageNetR": [f"imagenet-r/{wnid}/{name}.jpg" for wnid in WNIDS for name in "10"],
    "FractalDataset": ["fractals_and_fvis/fractals/images/b.jpg"],
    "FeatureVisDataset": [
        f"fractals_and_fvis/first_layers_resized256_onevis/images/{name}.jpg" for name in "ba"
    ],
    "TinyImageNet": [
        *(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in "10"),
        *(f"tiny-imagenet-200/val/images/val_{number}.JPEG" for number in range(CLASSES)),
        *(f"tiny-imagenet-200/test/images/test_{number}.JPEG" for number in range(11)),
    ],
}
CORRUPTIONS = img.CIFAR10C.subsets
DIGIT_CORRUPTIONS = img.MNISTC.subsets


def pixels(*shape: int) -> np.ndarray:
    seed = sum(shape) + len(shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(name: str) -> dict[str, np.ndarray]:
    """{path: array} of the sets that are kept in arrays."""
    if name in ("CIFAR10C", "CIFAR100C"):
        folder = "CIFAR-10-C" if name == "CIFAR10C" else "CIFAR-100-C"
        images = {
            f"{folder}/{part}.npy": pixels(5 + number, 4, 4, 3)[-5:]
            for number, part in enumerate(CORRUPTIONS)
        }
        return {**images, f"{folder}/labels.npy": np.arange(5, dtype=np.uint8)}
    if name == "MNISTC":
        found = {}
        for number, part in enumerate(DIGIT_CORRUPTIONS):
            for split, top in (("train", "mnist_c"), ("test", "mnist_c")):
                found[f"{top}/{part}/{split}_images.npy"] = pixels(number + 3, 28, 28, 1)[-3:]
                found[f"{top}/{part}/{split}_labels.npy"] = np.arange(3) + (split == "test")
            place = f"mnist_c_leftovers/{part}/leftovers"
            found[f"{place}_images.npy"] = pixels(2, 28, 28, 1)
            found[f"{place}_labels.npy"] = np.arange(2)
        return found
    if name == "CIFAR100GAN":
        return {
            f"samples-{sigma}.npz": pixels(n, 3, 8, 8) for sigma, n in (("50.0", 4), ("2.0", 3))
        }
    if name == "TinyImages300k":
        return {"300K_random_images.npy": pixels(4, 8, 8, 3)}
    if name == "SuMNIST":
        boxes = np.random.default_rng(0).integers(0, 56, (2, 4, 4))
        digits = np.array([[5, 5, 5, 5], [1, 2, 3, 4]], dtype=np.uint8)
        return {
            f"sumnist/{letter}-{split}.npz": array[:: 1 if split == "train" else -1]
            for split in ("train", "test")
            for letter, array in (("x", pixels(2, 56, 56)), ("y", digits), ("b", boxes))
        }
    return {}


ARRAYS = ("CIFAR10C", "CIFAR100C", "MNISTC", "CIFAR100GAN", "TinyImages300k", "SuMNIST")


def make(root: Path, name: str) -> Path:
    """Make the small copy of one set."""
    for number, file in enumerate(FILES.get(name, ())):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
            continue
        shape = (SIDE, SIDE) if number % 5 == 4 else (SIDE, SIDE, 3)  # some are grey
        Image.fromarray((pixels(*shape) // 2 + number).astype(np.uint8)).save(path)
    for file, array in arrays(name).items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        key = "x" if name == "CIFAR100GAN" else "arr_0"
        np.savez(path, **{key: array}) if path.suffix == ".npz" else np.save(path, array)
    if name == "TinyImageNet":
        lines = (f"val_{n}.JPEG\t{WNIDS[-1 - n]}\t0\t0\t62\t62\n" for n in reversed(range(CLASSES)))
        (root / "tiny-imagenet-200/val/val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture(autouse=True)
def few_classes(monkeypatch):
    """The sets of class folders have 11 classes instead of hundreds."""
    for name in ("imagenet_a", "imagenet_r", "imagenet_v2", "tinyimagenet", "imagenet_c_noise"):
        row = dataclasses.replace(table.TABLE[name], num_classes=CLASSES)
        monkeypatch.setitem(table.TABLE, name, row)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """copies(name): the root of the small copy of a set."""
    roots = {}

    def copy(name: str) -> Path:
        if name not in roots:
            roots[name] = make(tmp_path_factory.mktemp(name), name)
        return roots[name]

    return copy


@pytest.fixture
def peer(monkeypatch):
    """pytorch_ood.dataset.img; the checksums of archives, which are not there, do not matter."""
    theirs = pytest.importorskip("pytorch_ood.dataset.img", reason="pytorch-ood is not installed")
    for kind in vars(theirs).values():
        if inspect.isclass(kind) and "_check_integrity" in vars(kind):
            monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    bases = ("base.ImageDatasetBase", "openood.OpenOOD", "pixmix.PixMixExampleDatasets")
    for module, _, name in (base.partition(".") for base in bases):
        kind = getattr(importlib.import_module(f"pytorch_ood.dataset.img.{module}"), name)
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    return theirs


# --- the same as there

CALLS = [(name, {}) for name in FILES if name != "TinyImageNet"]
CALLS += [("TinyImageNet", {"subset": subset}) for subset in ("train", "val", "test")]
CALLS += [(name, {"subset": part}) for name in ARRAYS[:2] for part in ("all", "fog", "zoom_blur")]
CALLS += [
    ("MNISTC", {"subset": subset, "split": split})
    for subset, split in (("all", "train"), ("fog", "test"), ("zigzag", "leftovers"))
]
CALLS += [("CIFAR100GAN", {}), ("CIFAR100GAN", {"sigma": 2.0}), ("TinyImages300k", {})]


@pytest.mark.parametrize("name, given", CALLS, ids=lambda value: str(value) if value else "-")
def test_items_are_those_of_pytorch_ood(name, given, copies, peer):
    root = str(copies(name))
    ours, theirs = getattr(img, name)(root, **given), getattr(peer, name)(root, **given)
    assert len(ours) == len(theirs) > 0
    for (image, label), (their_image, their_label) in zip(
        ours, (theirs[i] for i in range(len(ours)))
    ):
        assert isinstance(image, Image.Image) and image.mode == their_image.mode
        assert np.array_equal(image, their_image) and label == their_label
    labels = [label for _, label in ours]
    assert all(type(label) is int for label in labels) and labels == ours.labels.tolist()


def hundred_more(label: int) -> int:
    return label + 100


@pytest.mark.parametrize("name", [name for name, given in CALLS if not given])
def test_transforms_and_pickles(name, copies):
    made = getattr(img, name)(copies(name), np.asarray, hundred_more)
    image, label = pickle.loads(pickle.dumps(made))[0]
    assert isinstance(image, np.ndarray) and label == made.labels[0] + 100


def test_sumnist(copies, peer):
    for train in (True, False):
        ours, theirs = (kind(copies("SuMNIST"), train) for kind in (img.SuMNIST, peer.SuMNIST))
        assert len(ours) == len(theirs) == 2
        for index in range(2):
            (image, target), (their_image, their_target) = ours[index], theirs[index]
            assert torch.equal(image, their_image) and image.shape == (3, 56, 56)
            assert list(target) == list(their_target)
            for key, value in target.items():
                assert value.dtype == their_target[key].dtype and torch.equal(
                    value, their_target[key]
                ), key
        assert [int(target["anomaly"]) for _, target in (ours[0], ours[1])] == (
            [0, -1] if train else [-1, 0]
        )
    doubled = img.SuMNIST(copies("SuMNIST"), transforms=lambda image, target: (image * 2, "t"))
    assert doubled[0][1] == "t" and torch.equal(
        doubled[0][0], img.SuMNIST(copies("SuMNIST"))[0][0] * 2
    )


def test_openimage_o(tmp_path, peer, monkeypatch):
    names = {split: openimage_o_files(split)[:4] for split in ("test", "val")}
    monkeypatch.setattr(openood, "openimage_o_files", names.get)
    for number, name in enumerate(names["test"] + names["val"][:3]):
        path = tmp_path / "OpenImagesO/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(SIDE, SIDE + number, 3)).save(path)
    ours, theirs = img.OpenImagesO(tmp_path), peer.OpenImagesO(tmp_path)
    assert ours.files == theirs.files[:4] and ours[1][1] == theirs[1][1] == -1
    assert np.array_equal(ours[3][0], theirs[3][0])
    with pytest.raises(RuntimeError, match=f"lacks 1 of the 4 .*val.*{names['val'][3]}"):
        img.OpenImagesO(tmp_path, "val")
    with pytest.raises(ValueError, match="unknown subset 'vall'.*did you mean 'val'"):
        img.OpenImagesO(tmp_path, "vall")


def test_lists_of_names_are_those_of_pytorch_ood(peer):
    resources = Path(inspect.getfile(peer)).parent / "resources"
    for split in ("test", "val"):
        wanted = json.loads((resources / f"{split}_openimage_o.json").read_text())
        assert openimage_o_files(split) == wanted
    labels = json.loads((resources / "imagenet_es.json").read_text())
    assert {wnid: imagenet_wnids().index(wnid) for wnid in labels} == labels


def test_imagenet_c(tmp_path):
    """pytorch-ood lists the folders of the corruptions and fails to open them as images."""
    wnids, kinds = WNIDS, ("gaussian_noise", "shot_noise", "impulse_noise")
    for kind in kinds:
        for severity in "12345":
            for wnid in wnids:
                path = tmp_path / "ImageNetC/noise" / kind / severity / wnid / "0.JPEG"
                path.parent.mkdir(parents=True)
                path.write_bytes(b"")
    Image.new("RGB", (2, 2), (9, 9, 9)).save(path)
    images = img.ImageNetC(tmp_path, "noise")
    assert len(images) == 3 * 5 * CLASSES
    assert images.labels.tolist() == list(range(CLASSES)) * 15
    assert images.files[-1].endswith("impulse_noise/5/n00000010/0.JPEG")
    assert images[len(images) - 1][1] == CLASSES - 1
    with pytest.raises(ValueError, match="unknown subset 'nois'.*did you mean 'noise'"):
        img.ImageNetC(tmp_path, "nois")


@pytest.mark.parametrize("exclude", [True, False])
def test_tiny_images(exclude, tmp_path):
    """With NumPy 2.3, which cannot read binary strings, pytorch-ood's loop never ends."""
    file, index = tmp_path / "tiny_images.bin", tmp_path / "cifar.txt"
    stored = pixels(6, 3, 32, 32)  # colour, column, row
    stored.tofile(file)
    index.write_text("2\n5\n")
    wanted = stored.transpose(0, 3, 2, 1)
    images = img.TinyImages(str(file), str(index), exclude_cifar=exclude)
    assert len(images) == len(list(images)) == 6
    which = [(wanted == image).all(axis=(1, 2, 3)).nonzero()[0].tolist() for image, _ in images]
    for place in (0, 2, 3, 5) if exclude else range(6):
        assert which[place] == [place] and images[place][1] == -1
    if exclude:
        assert {*which[1], *which[4]} <= {0, 2, 3, 5}
        assert np.array_equal(images[1][0], images[1][0])
    assert np.array_equal(images[6][0], images[0][0])  # indices begin again
    assert pickle.loads(pickle.dumps(images))[3][0].shape == (32, 32, 3)
    with pytest.raises(FileNotFoundError, match="no file .*nowhere.*withdrawn"):
        img.TinyImages(tmp_path / "nowhere", index)


def test_lists(tmp_path, peer):
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels(SIDE, SIDE, 3)).save(tmp_path / name)
    file = tmp_path / "list.txt"
    file.write_text("# a comment\nb.png 3\n\nno-label.png\na.png\t-1\n")
    ours, theirs = (
        kind(str(tmp_path), str(file)) for kind in (img.ImageListDataset, peer.ImageListDataset)
    )
    assert ours.files == theirs.files and ours.labels == theirs.labels == [3, -1]
    assert np.array_equal(ours[0][0], theirs[0][0])
    assert img.ImageListDataset(tmp_path, file, len, str, loader=str)[1] == (
        len(ours.files[1]),
        "-1",
    )
    for root, path in ((tmp_path / "x", file), (tmp_path, tmp_path / "x")):
        with pytest.raises(RuntimeError, match="x"):
            img.ImageListDataset(root, path)
    file.write_text("a b.png 3\nc.png three\n")
    with pytest.raises(RuntimeError, match="line 2: 'c.png three'"):
        img.ImageListDataset(tmp_path, file)


def test_noise(peer):
    """The same distributions; the draws differ, and do not depend on what was drawn before."""
    for name in ("GaussianNoise", "UniformNoise"):
        ours, theirs = (getattr(kind, name)(40, (32, 32, 3), seed=1) for kind in (img, peer))
        one, other = (
            np.stack([np.asarray(made[i][0]) for i in range(40)]) for made in (ours, theirs)
        )
        assert one.shape == other.shape and one.dtype == other.dtype
        shares = [
            np.bincount(values.ravel(), minlength=256) / values.size for values in (one, other)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 2e-3  # 122,880 values
        assert shares[0][255] == shares[1][255] == 0 or name == "GaussianNoise"
        again = getattr(img, name)(40, (32, 32, 3), seed=1)
        assert np.array_equal(again[7][0], one[7]) and not np.array_equal(one[7], one[8])
        assert not np.array_equal(
            getattr(img, name)(1, seed=2)[0][0], getattr(img, name)(1, seed=3)[0][0]
        )
        unseeded = [getattr(img, name)(1, (4, 4, 1)) for _ in range(2)]
        assert not np.array_equal(unseeded[0][0][0], unseeded[1][0][0])
        assert unseeded[0][0][0].mode == "L" and unseeded[0][0][1] == -1
        assert len(list(unseeded[0])) == 1
        with pytest.raises(ValueError, match="length"):
            getattr(img, name)(1.5)
    wide = img.GaussianNoise(1, (64, 64, 3), loc=50, scale=0, seed=0)
    assert (np.asarray(wide[0][0]) == 50).all()


def modules():
    theirs = pytest.importorskip("pytorch_ood.dataset.img", reason="pytorch-ood is not installed")
    names = [name for name in theirs.__all__ if hasattr(img, name)]
    return [(getattr(theirs, name).__module__.rsplit(".", 1)[1], name) for name in names] + [
        ("base", "ImageDatasetBase"),
        ("noise", "NoiseDataset"),
        ("openood", "OpenOOD"),
        ("pixmix", "PixMixExampleDatasets"),
    ]


@pytest.mark.parametrize("module, name", modules())
def test_signatures(module, name):
    theirs = getattr(importlib.import_module(f"pytorch_ood.dataset.img.{module}"), name)
    ours = getattr(importlib.import_module(f"ood.compat.dataset.img.{module}"), name)
    assert getattr(img, name, ours) is ours
    wanted, got = (list(inspect.signature(kind).parameters.values()) for kind in (theirs, ours))
    assert [(p.name, p.kind, p.default) for p in got] == [
        (p.name, p.kind, p.default) for p in wanted
    ]
    for attribute in ("subsets", "splits", "subset_list"):
        assert getattr(ours, attribute, None) == getattr(theirs, attribute, None)


# --- what is not there, and how it gets there

WORDS = {
    "CIFAR10C": ("fog",),
    "CIFAR100C": ("fog",),
    "MNISTC": ("fog", "test"),
    "ImageNetC": ("blur",),
}
ON_DISK = [*FILES, *ARRAYS, "OpenImagesO", "ImageNetC"]


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_set_says_where_and_what_to_do(name, tmp_path):
    with pytest.raises(
        RuntimeError, match=rf"is not in '{tmp_path}/.*give download=True"
    ) as caught:
        getattr(img, name)(tmp_path, *WORDS.get(name, ()))
    assert isinstance(caught.value, DatasetError) and "\n" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (
        name in ("CIFAR100GAN", "TinyImages300k")
    )


def test_wrong_choices(copies):
    for call in (
        lambda: img.CIFAR10C(copies("CIFAR10C"), "frog"),
        lambda: img.MNISTC(copies("MNISTC"), "fog", "val"),
        lambda: img.MNISTC(copies("MNISTC"), "frog", "test"),
        lambda: img.TinyImageNet(copies("TinyImageNet"), "valid"),
        lambda: img.pixmix.PixMixExampleDatasets(copies("FractalDataset"), "fractal"),
    ):
        with pytest.raises(ValueError, match="unknown (subset|split).*; known: "):
            call()
    with pytest.raises(KeyError):
        img.CIFAR100GAN(copies("CIFAR100GAN"), sigma=3.0)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def publish(server, monkeypatch, name: str, packed: dict[str, bytes], md5: bool = True, **changes):
    """Let the archives of a row come from the server: {name of an archive: its bytes}."""
    row, archives = table.TABLE[name], []
    for archive in row.archives:
        body = packed[archive.name]
        server.files[f"/{archive.name}"] = body
        archives.append(
            dataclasses.replace(
                archive,
                urls=(f"{server.address}/gone/{archive.name}", f"{server.address}/{archive.name}"),
                file=archive.name,
                drive=None,
                bytes=None,
                md5=hashlib.md5(body).hexdigest() if md5 else "0" * 32,
            )
        )
    changed = dataclasses.replace(row, archives=tuple(archives), count={}, **changes)
    monkeypatch.setitem(table.TABLE, name, changed)


def test_an_archive_is_fetched_once_and_verified(server, monkeypatch, tmp_path):
    make_tar(tmp_path / "a", {f"LSUN/test/{n}.png": body for n, body in enumerate(pictures(3))})
    body = (tmp_path / "a").read_bytes()
    publish(server, monkeypatch, "LSUN", {"LSUN.tar.gz": body})
    server.faults["/LSUN.tar.gz"] = ["cut"]  # the first answer breaks off half-way
    images = img.LSUNCrop(str(tmp_path / "root"), download=True)
    assert len(images) == 3 and images[2][1] == -1 and images[2][0].size == (8, 8)
    requests = [span for path, span in server.seen if path == "/LSUN.tar.gz"]
    assert requests == [None, f"bytes={len(body) // 2}-"]  # continued, from the second mirror
    assert len(img.LSUNCrop(str(tmp_path / "root"), download=True)) == 3
    images.download()
    assert len(server.seen) == 3  # nothing was asked for again
    publish(server, monkeypatch, "LSUN", {"LSUN.tar.gz": body}, md5=False)
    with pytest.raises(RuntimeError, match="could not download 'LSUN'.*md5"):
        img.LSUNCrop(str(tmp_path / "other"), download=True)


def test_loose_files_are_fetched(server, monkeypatch, tmp_path):
    made = make(tmp_path / "made", "SuMNIST")
    files = {Path(file).name: (made / file).read_bytes() for file in arrays("SuMNIST")}
    publish(server, monkeypatch, "sumnist", files)
    assert len(img.SuMNIST(tmp_path / "root", train=False, download=True)) == 2
    gone = tmp_path / "root/sumnist/b-test.npz"
    gone.unlink()
    with pytest.raises(RuntimeError, match=f"is not in '{gone}': give download=True"):
        img.SuMNIST(tmp_path / "root")
    held = img.SuMNIST(tmp_path / "root", download=True)
    gone.unlink()
    held.download()
    assert gone.is_file() and len(held) == 2
    gan = make(tmp_path / "made", "CIFAR100GAN") / "samples-2.0.npz"
    publish(server, monkeypatch, "cifar100gan2", {gan.name: gan.read_bytes()})
    assert len(img.CIFAR100GAN(tmp_path / "root", download=True, sigma=2.0)) == 3


def test_tiny_imagenet_is_fetched_and_keeps_its_order(server, monkeypatch, tmp_path):
    """Our download sorts the validation images into classes; the order stays the file's."""
    made = make(tmp_path, "TinyImageNet")
    before = [np.asarray(image) for image, _ in img.TinyImageNet(tmp_path, "val")]
    make_zip(
        tmp_path / "t.zip",
        {
            path.relative_to(made).as_posix(): path.read_bytes()
            for path in (made / "tiny-imagenet-200").rglob("*")
            if path.is_file()
        },
    )
    body = (tmp_path / "t.zip").read_bytes()
    publish(server, monkeypatch, "tinyimagenet", {"tiny-imagenet-200.zip": body})
    fetched = img.TinyImageNet(tmp_path / "root", "val", True)
    assert not (tmp_path / "root/tiny-imagenet-200/val/images").exists()
    assert all(np.array_equal(image, wanted) for (image, _), wanted in zip(fetched, before))
    assert fetched.labels.tolist() == list(range(CLASSES))
    assert len(img.TinyImageNet(tmp_path / "root", "test")) == 11
    (tmp_path / "root/tiny-imagenet-200/val" / WNIDS[3] / "val_7.JPEG").unlink()
    with pytest.raises(RuntimeError, match="val_7.JPEG' is not there"):
        img.TinyImageNet(tmp_path / "root", "val")


def test_an_archive_of_openood_is_fetched(server, monkeypatch, tmp_path):
    make_zip(tmp_path / "p.zip", {f"zoo/{n}.jpg": body for n, body in enumerate(pictures(2))})
    body = (tmp_path / "p.zip").read_bytes()
    publish(server, monkeypatch, "places365_whole", {"places365.zip": body})
    images = img.Places365(tmp_path / "root", download=True)
    assert images.files[1] == str(tmp_path / "root/images_classic/places365/zoo/1.jpg")


def test_a_set_of_your_own_by_class_attributes(server, tmp_path):
    make_tar(tmp_path / "own", {f"own/pics/{n}.png": body for n, body in enumerate(pictures(2))})
    body = (tmp_path / "own").read_bytes()
    server.files["/own.tar.gz"] = body

    class Own(img.ImageDatasetBase):
        base_folder, filename, url = "own/pics", "own.tar.gz", f"{server.address}/own.tar.gz"
        md5hash = hashlib.md5(body).hexdigest()

    assert len(Own(tmp_path / "root", download=True)) == 2
    with pytest.raises(RuntimeError, match="'Own'.*is not in"):
        Own(tmp_path / "other")


# --- in use


def test_a_mapped_file_is_not_sent_to_workers(copies, tmp_path):
    made = img.CIFAR10C(make(tmp_path, "CIFAR10C"), "fog")
    sent = pickle.dumps(made)
    assert pickle.loads(sent)[4][1] == 4
    (tmp_path / "CIFAR-10-C/fog.npy").unlink()
    with pytest.raises(RuntimeError, match="fog.npy"):
        pickle.loads(sent)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((4, 4))))


def test_loader_with_two_workers(copies):
    joined = ConcatDataset(
        [
            img.LSUNCrop(copies("LSUNCrop"), tensor),
            img.CIFAR10C(copies("CIFAR10C"), "fog", tensor),
            img.TinyImages300k(copies("TinyImages300k"), tensor),
            img.GaussianNoise(4, (8, 8, 3), tensor, seed=3),
        ]
    )
    loader = DataLoader(joined, batch_size=4, num_workers=2)
    images, labels = (torch.cat(parts) for parts in zip(*loader))
    assert labels.tolist() == [-1] * 4 + list(range(5)) + [-1] * 8
    assert torch.equal(images, torch.stack([image for image, _ in joined]))


def test_auxiliary_outliers_begin_again(copies):
    for made in (
        img.TinyImages300k(copies("TinyImages300k")),
        img.CIFAR100GAN(copies("CIFAR100GAN")),
    ):
        assert np.array_equal(made[5][0], made[1][0]) and len(list(made)) == len(made) == 4
    assert issubclass(MissingFile, FileNotFoundError)
