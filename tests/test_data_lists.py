"""Image lists, arrays in files, corruptions, anomaly and fine-grained sets; their benchmarks."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ood.config import InputError
from ood.data import info, load, load_benchmark
from ood.data.registry import table


def picture(path, value, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


def values(images):
    """The grey value of every (constant) image."""
    return [int(image.reshape(-1)[0]) for batch in images.batches(3) for image in batch]


def write_list(root, name, *lines):
    path = root / "benchmark_imglist" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def openood(tmp_path):
    """OpenOOD's CIFAR-10 benchmark with a handful of images; values say which image is which."""
    classic = tmp_path / "images_classic"
    for n in range(10):
        picture(classic / f"cifar10/test/{n}.png", n)
        picture(classic / f"cifar10/train/{n}.png", 100 + n)
    for number, name in enumerate(("cifar100", "tin", "svhn", "texture", "places365")):
        for n in range(3):
            picture(classic / name / f"test/{n}.png", 150 + 10 * number + n, (40, 50))
    for n in range(3):
        picture(classic / f"mnist/{n}.png", 140 + n, (28, 28), "L")
        picture(classic / f"cifar10c/{n}.png", 220 + n)
    write_list(
        tmp_path, "cifar10/train_cifar10.txt", *(f"cifar10/train/{n}.png {n}" for n in range(10))
    )
    write_list(
        tmp_path,
        "cifar10/test_cifar10.txt",
        *(f"cifar10/test/{n}.png {n}" for n in (9, 1, 2, 0, 4, 5, 6, 7, 8)),
    )
    write_list(tmp_path, "cifar10/val_cifar10.txt", "cifar10/test/3.png 3")
    for name in ("cifar100", "svhn", "texture", "places365"):
        write_list(
            tmp_path, f"cifar10/test_{name}.txt", *(f"{name}/test/{n}.png -1" for n in range(3))
        )
    write_list(
        tmp_path,
        "cifar10/test_tin.txt",
        "# left out: 1",
        "tin/test/2.png -1",
        "",
        "tin/test/0.png -1",
    )
    write_list(tmp_path, "cifar10/test_mnist.txt", *(f"mnist/{n}.png -1" for n in range(3)))
    write_list(tmp_path, "cifar10/test_cifar10c.txt", *(f"cifar10c/{n}.png {n}" for n in range(3)))
    return tmp_path


# --- OpenOOD


def test_openood_cifar10(openood):
    benchmark = load_benchmark("openood_cifar10")
    test, train, val = (benchmark.load_id(split, openood) for split in ("test", "train", "val"))
    assert (
        values(test) == [9, 1, 2, 0, 4, 5, 6, 7, 8] == test.labels.tolist()
        and test.num_classes == 10
    )  # the list's order
    assert values(train) == [100 + n for n in range(10)] and values(val) == val.labels.tolist() == [
        3
    ]
    assert [(entry.label, entry.group) for entry in benchmark.entries] == [
        ("CIFAR-100", "near"),
        ("TIN", "near"),
        ("MNIST", "far"),
        ("SVHN", "far"),
        ("Textures", "far"),
        ("Places365", "far"),
    ]
    sets = [benchmark.load_ood(entry, len(test), openood) for entry in benchmark.entries]
    assert [values(images) for images in sets[:3]] == [[150, 151, 152], [162, 160], [140, 141, 142]]
    assert all((images.labels == -1).all() and images.shape == (3, 32, 32) for images in sets)
    assert len({images.digest for images in (test, train, val, *sets)}) == 9
    assert values(benchmark.load_id("test", openood, limit=3)) == [9, 0, 6]


def test_two_lists_of_one_folder_do_not_share_a_cache(openood):
    write_list(openood, "cifar100/test_tin.txt", "tin/test/1.png -1", "tin/test/0.png -1")
    first = load("tin_openood", "test", openood, size=32, lists=("cifar10/test_tin.txt",))
    second = load("tin_openood", "test", openood, size=32, lists=("cifar100/test_tin.txt",))
    assert (
        values(first) == [162, 160]
        and values(second) == [161, 160]
        and first.digest != second.digest
    )
    assert values(load("tin_openood", "test", openood, size=32)) == [162, 160]
    assert len(list((openood / ".decoded").glob("*.npy"))) == 2


def test_full_spectrum(openood):
    """The shifted set counts as ID: its images follow the clean ones, with their classes."""
    benchmark = load_benchmark("openood_fs_cifar10")
    test = benchmark.load_id("test", openood)
    assert values(test) == [9, 1, 2, 0, 4, 5, 6, 7, 8, 220, 221, 222] and test.labels.tolist() == [
        9,
        1,
        2,
        0,
        4,
        5,
        6,
        7,
        8,
        0,
        1,
        2,
    ]
    assert test.read([10, 0, 11]).reshape(3, -1)[:, 0].tolist() == [221, 9, 222]
    part = test.subset([11, 3, 9])
    assert values(part) == [222, 0, 220] and part.labels.tolist() == [2, 0, 0]
    clean = load_benchmark("openood_cifar10").load_id("test", openood)
    assert test.digest != clean.digest and len(benchmark.load_id("train", openood)) == 10
    assert torch.equal(torch.cat(list(test.batches(5))), test.read(slice(None)))
    assert "cifar10c_openood" in benchmark.datasets()


def test_openood_imagenet_finds_the_validation_images_of_a_user(tmp_path):
    """The lists name imagenet_1k/val/FILE; a user has ILSVRC-2012/val/<wnid>/FILE.

    Textures and iNaturalist are found where their own archives put them.
    """
    for n, wnid in ((1, "n01"), (2, "n02")):
        picture(
            tmp_path / f"ILSVRC-2012/val/{wnid}/ILSVRC2012_val_0000000{n}.JPEG", 10 * n, (60, 50)
        )
    picture(tmp_path / "ood_datasets/dtd/images/banded/banded_0002.jpg", 50, (60, 50))
    picture(tmp_path / "ood_datasets/iNaturalist/images/a.jpg", 60, (60, 50))
    write_list(
        tmp_path,
        "imagenet/test_imagenet.txt",
        "imagenet_1k/val/ILSVRC2012_val_00000002.JPEG 7",
        "imagenet_1k/val/ILSVRC2012_val_00000001.JPEG 999",
    )
    write_list(tmp_path, "imagenet/test_textures.txt", "texture/banded/banded_0002.jpg -1")
    write_list(tmp_path, "imagenet/test_inaturalist.txt", "inaturalist/images/a.jpg -1")
    benchmark = load_benchmark("openood_imagenet")
    test = benchmark.load_id("test", tmp_path)
    assert (
        test.labels.tolist() == [7, 999]
        and test.shape == (3, 224, 224)
        and test.num_classes == 1000
    )
    assert np.allclose(values(test), [20, 10], atol=1)
    entries = {entry.label: entry for entry in benchmark.entries}
    assert np.allclose(values(benchmark.load_ood(entries["Textures"], 2, tmp_path)), [50], atol=1)
    assert np.allclose(
        values(benchmark.load_ood(entries["iNaturalist"], 2, tmp_path)), [60], atol=1
    )
    write_list(
        tmp_path,
        "imagenet200/test_imagenet200.txt",
        "imagenet_1k/val/ILSVRC2012_val_00000002.JPEG 199",
    )
    assert load_benchmark("openood_imagenet200").load_id("test", tmp_path).labels.tolist() == [199]


def test_what_is_missing_is_named(openood):
    with pytest.raises(
        InputError,
        match=r"'cifar100_openood' \(test\) is not in "
        r"'.*benchmark_imglist/cifar100/test_cifar100.txt'.*download_data.py",
    ):
        load("cifar100_openood", "test", openood)
    (openood / "images_classic/tin/test/0.png").unlink()
    with pytest.raises(
        InputError,
        match=r"lacks 1 of the 2 images that .*test_tin.txt' names, e.g. 'tin/test/0.png'",
    ):
        load("tin_openood", "test", openood, size=32)
    (openood / "images_classic/tin/test/2.png").unlink()
    with pytest.raises(InputError, match=r"is not in '.*images_classic/tin/test/2.png'"):
        load("tin_openood", "test", openood, size=32)
    with pytest.raises(InputError, match="has no split 'val', only: test"):
        load("svhn_openood", "val", openood)
    with pytest.raises(InputError, match="lists of images .* have no meaning for 'iSUN'"):
        load("iSUN", "test", openood, lists=("x.txt",))


@pytest.mark.parametrize(
    "line, words",
    [
        ("tin/test/0.png", "is not 'path label'"),
        ("tin/test/0.png one", "is not 'path label'"),
        ("../../etc/passwd 0", "does not stay below"),
        ("/etc/passwd 0", "does not stay below"),
    ],
)
def test_bad_lists(openood, line, words):
    write_list(openood, "cifar10/test_tin.txt", "tin/test/2.png -1", line)
    with pytest.raises(InputError, match="line 2: .*" + words):
        load("tin_openood", "test", openood, size=32)
    write_list(openood, "cifar10/test_tin.txt", "# nothing")
    with pytest.raises(InputError, match="is empty"):
        load("tin_openood", "test", openood, size=32)


def test_label_beyond_the_classes(openood):
    write_list(openood, "cifar10/test_cifar10.txt", "cifar10/test/1.png 10")
    with pytest.raises(
        InputError, match="holds the label 10, but 'cifar10_openood' has 10 classes"
    ):
        load("cifar10_openood", "test", openood)


def test_protocol_of_the_paper():
    """Sizes that OpenOOD's paper and repository state; every benchmark has both groups."""
    for name in ("cifar10", "cifar100", "imagenet200", "imagenet"):
        benchmark, full = (
            load_benchmark(f"openood_{name}"),
            load_benchmark(f"openood_fs_{name}") if name != "cifar100" else None,
        )
        assert {entry.group for entry in benchmark.entries} == {"near", "far"} and all(
            entry.list for entry in benchmark.entries
        )
        assert full is None or full.entries == benchmark.entries and full.id_shifted
        assert benchmark.mean and (benchmark.size, benchmark.resize) in ((32, None), (224, 256))
    assert (
        info("ssb_hard_openood").count["test"] == 49_000
        and info("ninco_openood").count["test"] == 5879
        and info("openimage_o_openood").count["test"] == 15_869
    )
    shifted = {
        entry.dataset: entry.resize for entry in load_benchmark("openood_fs_imagenet").id_shifted
    }
    assert shifted == {
        "imagenet_v2_openood": 256,
        "imagenet_c_openood": 224,
        "imagenet_r_openood": 256,
    }
    assert load_benchmark("openood_imagenet").datasets()[:2] == [
        "imagenet1k_openood",
        "ssb_hard_openood",
    ]


# --- your own data


def test_own_list(tmp_path):
    for n in range(4):
        picture(tmp_path / f"my photos/{n}.png", n)
    (tmp_path / "train.txt").write_text("".join(f"my photos/{n}.png {n % 2}\n" for n in (3, 0, 1)))
    images = load(str(tmp_path / "train.txt"), "train", tmp_path / "elsewhere")
    assert (
        values(images) == [3, 0, 1]
        and images.labels.tolist() == [1, 0, 1]
        and images.num_classes == 2
        and images.split == "all"
    )
    (tmp_path / "ood.txt").write_text("my photos/2.png\nmy photos/0.png\n")
    plain = load(str(tmp_path / "ood.txt"), "test", tmp_path)
    assert (
        values(plain) == [2, 0] and plain.labels.tolist() == [-1, -1] and plain.num_classes is None
    )
    (tmp_path / "mixed.txt").write_text("my photos/2.png -1\nmy photos/0.png 1\n")
    with pytest.raises(InputError, match="mixes classes with the label -1"):
        load(str(tmp_path / "mixed.txt"), "test", tmp_path)
    with pytest.raises(InputError, match="no file .*nowhere.txt"):
        load("nowhere.txt", "test", tmp_path)
    (tmp_path / "gone.txt").write_text("gone.png 1\n")
    with pytest.raises(InputError, match="names 'gone.png', which is neither in"):
        load(str(tmp_path / "gone.txt"), "test", tmp_path)


def test_own_npz(tmp_path):
    images = np.arange(6 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(6, 8, 8, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1, 2, 0, 1]))
    loaded = load(str(tmp_path / "a.npz"), "test", tmp_path)
    assert (
        loaded.labels.tolist() == [2, 0, 1, 2, 0, 1]
        and loaded.num_classes == 3
        and loaded.split == "all"
    )
    assert np.array_equal(loaded.images, images.transpose(0, 3, 1, 2))
    np.savez(
        tmp_path / "b.npz",
        x_train=images[:4],
        y_train=np.arange(4) % 2,
        x_test=images[4:].transpose(0, 3, 1, 2),
        y_test=np.array([300, 1]),
    )
    train, test = (load(str(tmp_path / "b.npz"), split, tmp_path) for split in ("train", "test"))
    assert (
        len(train) == 4
        and test.labels.tolist() == [300, 1]
        and test.split == "test"
        and np.array_equal(test.images, images[4:].transpose(0, 3, 1, 2))
    )
    np.savez(tmp_path / "c.npz", images)
    assert load(str(tmp_path / "c.npz"), "test", tmp_path).labels.tolist() == [-1] * 6
    relabelled = {}
    for number, labels in enumerate(([0] * 6, [1] * 6)):
        np.savez(tmp_path / "d.npz", images=images, labels=np.array(labels))
        relabelled[number] = load(str(tmp_path / "d.npz"), "test", tmp_path).digest
    assert relabelled[0] != relabelled[1]


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(images=np.zeros((3, 8, 8), np.float32)), "images are uint8"),
        (dict(a=np.zeros(3), b=np.zeros(3)), "holds a, b; expected one of images"),
        (
            dict(images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(2, int)),
            "3 images and 2 labels",
        ),
        (
            dict(images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, -1, 1])),
            "mixes classes with negative labels",
        ),
        (dict(images=np.array([object()])), "is no array of images"),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path / "bad.npz"), "test", tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="is no array of images"):
        load(str(tmp_path / "bad.npz"), "test", tmp_path)


def test_own_data_in_a_benchmark(tmp_path):
    """An .npz as ID set, a folder, an .npy and a list as OOD sets."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "id.npz", images=images, labels=np.arange(6) % 3)
    np.save(tmp_path / "noise.npy", images[:4])
    for n in range(2):
        picture(tmp_path / f"photos/{n}.png", n)
    (tmp_path / "list.txt").write_text("photos/1.png -1\n")
    entries = [
        {"dataset": str(tmp_path / name), "label": name}
        for name in ("noise.npy", "photos", "list.txt")
    ]
    (tmp_path / "own.json").write_text(
        json.dumps(
            {"id_dataset": str(tmp_path / "id.npz"), "size": 8, "channels": 3, "entries": entries}
        )
    )
    benchmark = load_benchmark(tmp_path / "own.json")
    assert benchmark.load_id("test", tmp_path).num_classes == 3
    assert [len(benchmark.load_ood(entry, 6, tmp_path)) for entry in benchmark.entries] == [4, 2, 1]


# --- arrays and corruptions


def test_cifar10c(tmp_path, monkeypatch):
    folder, rng = tmp_path / "CIFAR-10-C", np.random.default_rng(0)
    folder.mkdir()
    arrays = {}
    for name in table.info("cifar10c").options["parts"]:
        arrays[name] = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", arrays[name])
    np.save(folder / "labels.npy", np.arange(10) % 10)
    fog = load("cifar10c:fog:5", "test", tmp_path)
    assert (
        fog.labels.tolist() == [8, 9]
        and np.array_equal(fog.images, arrays["fog"][8:].transpose(0, 3, 1, 2))
        and fog.name == "cifar10c:fog:5"
    )
    assert (
        len(load("cifar10c:snow", "test", tmp_path)) == 10
        and len(load("CIFAR-10-C", "test", tmp_path)) == 190
    )
    assert info("cifar10c:fog:5").count == {"test": 10_000} and info("cifar10c:fog").count == {
        "test": 50_000
    }
    for name, words in (
        ("cifar10c:fgo", r"no part 'fgo' \(did you mean 'fog'\?\)"),
        ("cifar10c:fog:6", "severities 1 to 5"),
        ("iSUN:fog", "has no parts"),
        ("mnistc:fog:1", "has no severities"),
    ):
        with pytest.raises(InputError, match=words):
            load(name, "test", tmp_path)
    (folder / "fog.npy").unlink()
    with pytest.raises(InputError, match="is incomplete or damaged: .*fog.npy' is not there"):
        load("cifar10c", "test", tmp_path)


def test_mnistc(tmp_path):
    for part in table.info("mnistc").options["parts"]:
        for split, count in (("train", 4), ("test", 2)):
            (tmp_path / "mnist_c" / part).mkdir(parents=True, exist_ok=True)
            np.save(
                tmp_path / "mnist_c" / part / f"{split}_images.npy",
                np.full((count, 28, 28, 1), count, dtype=np.uint8),
            )
            np.save(tmp_path / "mnist_c" / part / f"{split}_labels.npy", np.arange(count))
    assert (
        load("mnistc:fog", "test", tmp_path).shape == (1, 28, 28)
        and len(load("mnistc", "train", tmp_path)) == 64
    )
    np.save(tmp_path / "mnist_c" / "fog" / "test_labels.npy", np.arange(3))
    with pytest.raises(InputError, match="has 2 images, its labels are 3"):
        load("mnistc:fog", "test", tmp_path)


def test_imagenet_c(tmp_path, monkeypatch):
    import dataclasses

    monkeypatch.setitem(
        table.TABLE,
        "imagenet_c_noise",
        dataclasses.replace(info("imagenet_c_noise"), num_classes=2),
    )
    for kind in info("imagenet_c_noise").options["parts"]:
        for severity in range(1, 6):
            for label, wnid in enumerate(("n01", "n02")):
                picture(
                    tmp_path / f"ImageNetC/noise/{kind}/{severity}/{wnid}/x.JPEG",
                    10 * severity + label,
                    (24, 24),
                )
    images = load("imagenet_c_noise:shot_noise:3", "test", tmp_path, size=24)
    assert np.allclose(values(images), [30, 31], atol=1) and images.labels.tolist() == [0, 1]
    assert len(load("imagenet_c_noise", "test", tmp_path, size=24)) == 30


def test_tiny_images_and_gan_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "300K_random_images.npy", images.transpose(0, 2, 3, 1))
    auxiliary = load("tinyimages300k", "train", tmp_path)
    assert np.array_equal(auxiliary.images, images) and (auxiliary.labels == -1).all()
    (tmp_path / "ood_datasets/cifar100gan").mkdir(parents=True)
    np.savez(tmp_path / "ood_datasets/cifar100gan/samples-50.0.npz", x=images)
    assert np.array_equal(load("cifar100gan", "test", tmp_path).images, images)


# --- anomalies


def test_mvtec(tmp_path):
    for number, name in enumerate(info("mvtec").class_names):
        picture(tmp_path / f"mvtec/{name}/train/good/000.png", number)
        picture(tmp_path / f"mvtec/{name}/test/good/000.png", 100 + number)
        picture(tmp_path / f"mvtec/{name}/test/broken/000.png", 200 + number)
        picture(tmp_path / f"mvtec/{name}/ground_truth/broken/000_mask.png", 255)
    assert (
        values(load("mvtec", "train", tmp_path))
        == list(range(15))
        == load("mvtec", "train", tmp_path).labels.tolist()
    )
    assert values(load("mvtec", "test", tmp_path)) == [100 + n for n in range(15)]
    bad = load("mvtec_anomalies", "test", tmp_path)
    assert (
        values(bad) == [200 + n for n in range(15)]
        and (bad.labels == -1).all()
        and bad.original_labels.tolist() == list(range(15))
    )


def test_sumnist(tmp_path):
    (tmp_path / "sumnist").mkdir()
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1) * np.ones((4, 56, 56), np.uint8)
    digits = np.array([[5, 5, 5, 5], [1, 2, 3, 4], [9, 9, 2, 0], [0, 0, 0, 0]])
    for split in ("train", "test"):
        np.savez(tmp_path / f"sumnist/x-{split}.npz", images)
        np.savez(tmp_path / f"sumnist/y-{split}.npz", digits)
    assert values(load("sumnist", "test", tmp_path)) == [0, 2] and values(
        load("sumnist_anomalies", "test", tmp_path)
    ) == [1, 3]


def test_fishyscapes(tmp_path):
    picture(
        tmp_path / "cityscapes/leftImg8bit/val/frankfurt/frankfurt_000001_046504_leftImg8bit.png",
        250,
        (6, 4),
    )
    (tmp_path / "fishyscapes-3.0.0").mkdir()
    overlay = np.zeros((4, 6, 3), np.int32)
    overlay[0, 0], overlay[1, 1] = 20, -100
    np.savez(tmp_path / "fishyscapes-3.0.0/0000_frankfurt_000001_046504_rgb.npz", rgb=overlay)
    image = load("fishyscapes", "test", tmp_path).images[0]
    assert (
        image[:, 0, 0].tolist() == [255] * 3
        and image[:, 1, 1].tolist() == [150] * 3
        and image[:, 3, 3].tolist() == [250] * 3
    )
    (
        tmp_path / "cityscapes/leftImg8bit/val/frankfurt/frankfurt_000001_046504_leftImg8bit.png"
    ).unlink()
    with pytest.raises(InputError, match="needs '.*frankfurt_000001_046504_leftImg8bit.png'"):
        load("fishyscapes", "test", tmp_path, size=2)


def test_images_beside_masks(tmp_path):
    picture(tmp_path / "RoadAnomaly/RoadAnomaly_jpg/frames/a.jpg", 5, (6, 4))
    picture(tmp_path / "RoadAnomaly/RoadAnomaly_jpg/frames/a.labels/labels_semantic.png", 1, (6, 4))
    assert len(load("road_anomaly", "test", tmp_path)) == 1


# --- Semantic Shift Benchmark


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    rows = [(n + 1, f"{n % 4 + 1:03d}.bird/{n}.jpg", n % 4 + 1, n < 8) for n in range(12)]
    for number, path, _, _ in rows:
        picture(root / "images" / path, number, (40, 30))
    (root / "images.txt").write_text("".join(f"{n} {path}\n" for n, path, _, _ in rows))
    (root / "image_class_labels.txt").write_text(
        "".join(f"{n} {label}\n" for n, _, label, _ in rows)
    )
    (root / "train_test_split.txt").write_text(
        "".join(f"{n} {int(training)}\n" for n, _, _, training in rows)
    )
    (tmp_path / "ssb_splits").mkdir()
    with open(tmp_path / "ssb_splits/cub_osr_splits.pkl", "wb") as file:
        pickle.dump(
            {"known_classes": [2, 0], "unknown_classes": {"Easy": [1], "Medium": [3], "Hard": []}},
            file,
        )
    return tmp_path


def test_ssb_cub(cub):
    train, test = load("ssb_cub", "train", cub), load("ssb_cub", "test", cub)
    assert (
        train.labels.tolist() == [0, 1, 0, 1]
        and np.allclose(values(train), [1, 3, 5, 7], atol=2)
        and test.labels.tolist() == [0, 1]
    )
    benchmark = load_benchmark("ssb_cub")
    easy, hard = (benchmark.load_ood(entry, 2, cub) for entry in benchmark.entries)
    assert (
        (len(hard), len(easy)) == (1, 1)
        and np.allclose(values(hard) + values(easy), [12, 10], atol=2)
        and (hard.labels == -1).all()
    )
    assert [(entry.group, entry.label) for entry in benchmark.entries] == [
        ("far", "easy"),
        ("near", "hard"),
    ]


def test_ssb_aircraft_and_cars(tmp_path):
    from scipy.io import savemat

    data = tmp_path / "fgvc-aircraft-2013b/data"
    for n in range(4):
        picture(data / f"images/{n}.jpg", n, (40, 30))
        picture(tmp_path / f"stanford_cars/cars_test/{n}.jpg", n, (40, 30))
    (data / "variants.txt").write_text("B 2\nA 1\n")
    (data / "images_variant_test.txt").write_text("0 A 1\n1 B 2\n2 A 1\n3 B 2\n")
    (tmp_path / "stanford_cars/devkit").mkdir()
    annotations = np.array(
        [(f"{n}.jpg", n % 2 + 1) for n in range(4)], dtype=[("fname", "O"), ("class", "O")]
    )
    savemat(
        tmp_path / "stanford_cars/devkit/cars_test_annos_withlabels.mat",
        {"annotations": annotations},
    )
    (tmp_path / "ssb_splits").mkdir()
    for name, known, easy in (
        ("aircraft", [1], [0]),
        ("scars", [2], [1]),
    ):  # the file of the cars counts from 1
        with open(tmp_path / f"ssb_splits/{name}_osr_splits.pkl", "wb") as file:
            pickle.dump(
                {"known_classes": np.array(known), "unknown_classes": {"Easy": easy, "Hard": [5]}},
                file,
            )
    for name in ("aircraft", "cars"):
        assert np.allclose(values(load(f"ssb_{name}", "test", tmp_path)), [1, 3], atol=1)
        assert np.allclose(values(load(f"ssb_{name}_easy", "test", tmp_path)), [0, 2], atol=1)


def test_class_splits_are_never_executed(cub):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    with open(cub / "ssb_splits/cub_osr_splits.pkl", "wb") as file:
        pickle.dump({"known_classes": Evil()}, file)
    with pytest.raises(InputError, match="is no file of class splits .*which is not data"):
        load("ssb_cub", "test", cub)
