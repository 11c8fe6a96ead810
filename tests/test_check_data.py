"""check_data.py: complete, incomplete, damaged and absent sets; images in two sets; real sets.

The real sets are laid out as downloads would be.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ood.data import info
from ood.data.fetch import check


def picture(path, seed, size=(32, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """CIFAR-10 as 10 + 10 images, 12 images of iSUN."""
    for split, first in (("train", 0), ("test", 100)):
        for number, name in enumerate(info("cifar10").class_names):
            picture(tmp_path / "cifar10" / split / name / "0.png", first + number)
    for number in range(12):
        picture(tmp_path / "ood_datasets" / "iSUN" / "iSUN_patches" / f"{number}.png", 200 + number)
    return tmp_path


def states(reports):
    return {report.label: report.state for report in reports}


def checked(root, *names, **options):
    return check.check([info(name) for name in names], root, **options)


def test_counts(root):
    reports, shared = checked(root, "cifar10", "iSUN", "LSUN", "fooling")
    assert states(reports) == {
        "cifar10 (train)": "incomplete",
        "cifar10 (test)": "incomplete",
        "iSUN (test)": "incomplete",
        "LSUN (test)": "absent",
        "fooling (test)": "absent",
    }
    assert [(report.found, report.published) for report in reports[:3]] == [
        (10, 50_000),
        (10, 10_000),
        (12, 8925),
    ]
    assert shared == []


def test_damaged_files_are_named(root):
    folder = root / "ood_datasets" / "iSUN" / "iSUN_patches"
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    (folder / "4.png").write_bytes(b"no image")
    (folder / "5.png").write_bytes(b"")
    reports, _ = checked(root, "iSUN")
    assert reports[0].state == "damaged"
    assert list(reports[0].damaged) == [f"iSUN_patches/{n}.png" for n in (3, 4, 5)]
    assert (
        checked(root, "iSUN", decode=False)[0][0].state == "incomplete"
    )  # -fast does not look inside


def test_sets_that_cannot_be_read(root):
    (root / "cifar10" / "test" / "zebra").mkdir()
    picture(root / "cifar10" / "test" / "zebra" / "0.png", 1)
    reports, _ = checked(root, "cifar10")
    assert states(reports)["cifar10 (test)"] == "damaged"
    assert "11 class folders" in reports[1].problem


def test_images_in_two_sets_are_found(root):
    """By their pixels: another name, another format, grey or colour."""
    picture(
        root / "ood_datasets" / "iSUN" / "iSUN_patches" / "copy.bmp", 100
    )  # a CIFAR-10 test image
    picture(
        root / "ood_datasets" / "iSUN" / "iSUN_patches" / "twice.png", 203
    )  # an image of its own again
    picture(root / "cifar10" / "train" / "cat" / "leak.png", 105)  # a test image in training
    reports, shared = checked(root, "cifar10", "iSUN")
    assert [(pair.first, pair.second, pair.count, pair.mixes) for pair in shared] == [
        ("cifar10 (train)", "cifar10 (test)", 1, True),
        ("cifar10 (test)", "iSUN (test)", 1, True),
    ]
    assert shared[1].examples == [("airplane/0.png", "iSUN_patches/copy.bmp")]
    assert reports[2].repeated == 1
    picture(root / "ood_datasets" / "LSUN" / "0.png", 204)
    assert [pair.mixes for pair in checked(root, "iSUN", "LSUN")[1]] == [False]  # both OOD


def test_same_pixels_of_another_shape_are_another_image(root):
    pixels = np.zeros((16, 64, 3), dtype=np.uint8)
    for number, shape in enumerate(((16, 64, 3), (64, 16, 3))):
        Image.fromarray(pixels.reshape(shape)).save(
            root / "ood_datasets" / "iSUN" / f"flat{number}.png"
        )
        (root / "ood_datasets" / "iSUN" / f"flat{number}.png").rename(
            root / "ood_datasets" / "iSUN" / "iSUN_patches" / f"flat{number}.png"
        )
    assert checked(root, "iSUN")[0][0].repeated == 0


def test_sets_that_read_the_same_files_share_nothing(root):
    assert checked(root, "cifar10", "cifar10_unknown")[1] == []


def test_arrays_and_files_are_compared(tmp_path):
    """300K random images as an array; the same pixels as a file of an image folder."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "300K_random_images.npy", images)
    (tmp_path / "cifar10" / "test" / "cat").mkdir(parents=True)
    for name in info("cifar10").class_names:
        picture(tmp_path / "cifar10" / "test" / name / "1.png", 7 + len(name))
    Image.fromarray(images[3]).save(tmp_path / "cifar10" / "test" / "cat" / "0.png")
    reports, shared = checked(tmp_path, "cifar10", "tinyimages300k")
    assert [pair.examples for pair in shared] == [[("cat/0.png", "image 3")]]
    assert states(reports)["tinyimages300k (train)"] == "incomplete"


# --- the script


def test_script(root, call_script, tmp_path):
    picture(root / "ood_datasets" / "iSUN" / "iSUN_patches" / "copy.png", 100)
    done = call_script("scripts/check_data.py", "-data_dir", root, "-json", tmp_path / "found.json")
    pair = "cifar10 (test) and in iSUN (test): airplane/0.png = iSUN_patches/copy.png"
    assert done.returncode == 1 and f"1 images are in {pair}" in done.stdout
    assert (
        "LSUN" not in done.stdout and "13 of 8,925" in done.stdout
    )  # absent sets nobody asked for are not listed
    content = json.loads((tmp_path / "found.json").read_text())
    assert {entry["name"] for entry in content["sets"]} == {"cifar10", "iSUN"}
    assert content["shared"][0]["count"] == 1
    named = call_script("scripts/check_data.py", "odin_cifar10", "-data_dir", root, "-fast")
    assert named.returncode == 1
    assert "LSUN_resize (test)" in named.stdout
    assert "absent" in named.stdout
    assert "uniform" not in named.stdout
    assert call_script("scripts/check_data.py", "iSNU", "-data_dir", root).returncode == 2
    assert call_script("scripts/check_data.py", "-data_dir", root / "nowhere").returncode == 2
    (tmp_path / "empty").mkdir()
    assert call_script("scripts/check_data.py", "-data_dir", tmp_path / "empty").returncode == 0


# --- the real sets


@pytest.mark.parametrize(
    "archive, name, found",
    [
        ("isun", "iSUN", {"test": (8925, "complete")}),
        ("imagenet-resize", "Imagenet_resize", {"test": (10_000, "complete")}),
        ("tinyimagenet32-val", "tinyimagenet32", {"test": (10_000, "complete")}),
        ("mnist", "mnist", {"train": (60_000, "complete"), "test": (10_000, "complete")}),
        ("cifar10", "cifar10", {"train": (50_000, "complete"), "test": (10_000, "complete")}),
        ("dtd", "dtd", {"test": (1200, "incomplete")}),  # ten of its 47 classes
        ("omniglot", "omniglot_background", {"test": (5840, "incomplete")}),
    ],
)
def test_real_sets_are_recognised_and_counted(reference_data, archive, name, found):
    reports, _ = checked(reference_data(archive), name, decode=False)
    for report in reports:
        if report.split in found:
            assert (report.found, report.state) == found[report.split] and report.place


def test_real_images_are_decoded_and_compared(reference_data):
    reports, shared = checked(
        reference_data("isun", "imagenet-resize", "tinyimagenet32-val"),
        "tinyimagenet32",
        "iSUN",
        "Imagenet_resize",
        splits=lambda row: ["test"],
    )
    assert states(reports) == {
        "tinyimagenet32 (test)": "complete",
        "iSUN (test)": "complete",
        "Imagenet_resize (test)": "complete",
    }
    assert [report.damaged for report in reports] == [{}] * 3
    assert [report.repeated for report in reports] == [0, 4, 2]
    assert [(pair.first, pair.second, pair.count, pair.examples) for pair in shared] == [
        (
            "tinyimagenet32 (test)",
            "Imagenet_resize (test)",
            1,
            [("n02206856/val_6382.JPEG", "test/test_9748.JPEG")],
        )
    ]
