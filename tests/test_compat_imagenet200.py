"""ImageNet-200 and ImageNet-800 against pytorch-ood's, on a little ImageNet in the real layout."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_ood.dataset import img as theirs
from pytorch_ood.dataset.img import imagenet200 as their_module

from ood.compat.dataset import img as ours
from ood.compat.dataset.img import imagenet200 as our_module
from ood.data.registry.imagenet200 import (
    imagenet200_files,
    imagenet200_wnids,
    imagenet800_wnids,
)

KNOWN, OTHERS = ("n01443537", "n01484850"), ("n01440764", "n01491361")


def resource(name):
    with open(their_module._get_resource_file(name)) as file:
        return file.read().splitlines()


def test_classes_and_lists_are_theirs():
    assert list(imagenet200_wnids()) == resource("imagenet200_classes.txt")
    assert list(imagenet800_wnids()) == resource("imagenet800_classes.txt")
    for split, count in (("val", 1000), ("test", 9000)):
        lines = [f"{name} {label}" for name, label in imagenet200_files(split)]
        assert lines == resource(f"imagenet200_{split}.txt") and len(lines) == count


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four classes with three training images each, and every validation image of two classes."""
    root = tmp_path_factory.mktemp("imagenet")
    places = [f"train/{w}/{w}_{n}.JPEG" for w in KNOWN + OTHERS for n in (10, 2, 33)]
    for split in ("val", "test"):
        places += [f"val/{KNOWN[y]}/{name}" for name, y in imagenet200_files(split) if y < 2]
    places += [f"val/{OTHERS[0]}/ILSVRC2012_val_00000001.JPEG"]
    for number, place in enumerate(places):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if number % 5 else "L", (3, 2), number).save(path)
    torch.save(({w: (w,) for w in KNOWN + OTHERS}, []), root / "meta.bin")
    return root


@pytest.fixture
def two_classes(monkeypatch, tmp_path):
    """Cut the lists of both libraries to the two classes that are there."""

    def little(name):
        lines = [line for line in resources[name] if int(line.split()[-1]) < 2]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    names = ("imagenet200_val.txt", "imagenet200_test.txt")
    resources = {name: resource(name) for name in names}
    there, whole = their_module._get_resource_file, imagenet200_files
    monkeypatch.setattr(
        their_module, "_get_resource_file", lambda n: little(n) if n in names else there(n)
    )
    monkeypatch.setattr(
        our_module,
        "imagenet200_files",
        lambda split: [pair for pair in whole(split) if pair[1] < 2],
    )


@pytest.mark.parametrize("split, count", [("train", 6), ("val", 10), ("test", 90)])
def test_imagenet200_is_theirs(split, count, root, two_classes):
    mine, other = ours.ImageNet200(root, split), theirs.ImageNet200(str(root), split)
    assert len(mine) == len(other) == count
    assert mine.samples == [(path, label) for path, label in other.samples]
    assert mine.classes == other.classes and mine.wnid_to_label == other.wnid_to_label
    assert set(mine.labels.tolist()) == {0, 1}
    for (image, label), (image_there, label_there) in zip(mine, other):
        assert image.mode == image_there.mode and np.array_equal(image, image_there)
        assert label == label_there
    changed = ours.ImageNet200(root, split, lambda image: image.size, lambda label: label + 5)
    assert changed[count - 1] == ((3, 2), 6)


def test_imagenet800_is_theirs(root):
    mine, other = ours.ImageNet800(root), theirs.ImageNet800(str(root))
    assert mine.samples == other.samples and len(mine) == 6 and mine.classes == other.classes
    assert [label for _, label in mine] == [-1] * 6 and (mine.labels == -1).all()
    assert np.array_equal(mine[3][0], other[3][0])
    assert ours.ImageNet800(root, target_transform=lambda label: label * 2)[0][1] == -2


@pytest.mark.parametrize("name", ["ImageNet200", "ImageNet800"])
def test_signatures_are_theirs(name):
    mine, other = (inspect.signature(getattr(m, name)).parameters for m in (ours, theirs))
    assert [(p.name, p.default) for p in mine.values()] == [
        (p.name, p.default) for p in other.values()
    ]


def test_images_that_are_not_there(root, tmp_path):
    for make in (ours.ImageNet800, ours.ImageNet200, lambda r: ours.ImageNet200(r, "train")):
        with pytest.raises(RuntimeError, match="register at https://www.image-net.org"):
            make(tmp_path)
    with pytest.raises(RuntimeError, match="8,910 of the 9,000 images of 'test'.*n01494475"):
        ours.ImageNet200(root)
    with pytest.raises(ValueError, match="split 'valid' is not one of train, val, test"):
        ours.ImageNet200(root, "valid")
