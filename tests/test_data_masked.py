"""Images with masks: what every set gives, what its values mean, what goes wrong."""

from __future__ import annotations

import os
import pickle

import masked_toys
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ood.config import InputError
from ood.data import IGNORED, MaskedImages, load, load_masked
from ood.data.registry import masks
from ood.data.request import DamagedData, MissingData

LENGTHS = {
    ("fishyscapes", "test"): 3,
    ("lostandfound", "test"): 3,
    ("streethazards", "test"): 4,
    ("streethazards", "train"): 2,
    ("streethazards", "val"): 2,
    ("roadanomaly", "test"): 60,
    ("roadanomaly21", "test"): 10,
    ("roadobstacle21", "test"): 30,
    ("mvtec", "train"): 6,
    ("mvtec", "test"): 18,
    ("mvtec:grid", "test"): 6,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("masked")
    for make in set(masked_toys.MAKE.values()):
        make(root)
    return root


@pytest.mark.parametrize("name, split", LENGTHS)
def test_every_set_gives_images_and_masks(name, split, root):
    """Tensors of the promised kinds; ID, outliers and ignored pixels where the set has them."""
    images = load_masked(name, split, root)
    assert len(images) == LENGTHS[name, split] and images.split == split
    values = set()
    for image, mask in images:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert mask.dtype == torch.int64 and mask.shape == image.shape[1:]
        values |= set(mask.unique().tolist())
    ignores = name in ("fishyscapes", "lostandfound", "roadanomaly21", "roadobstacle21")
    assert (IGNORED in values) == ignores
    assert (-1 in values) == (split == "test")
    assert min(values) >= -1 and 0 in values or name == "streethazards"
    if name == "streethazards":
        assert values - {-1} <= set(range(len(images.class_names)))


def test_every_registered_set_is_tested():
    names = {name for name in masks.TABLE if name not in ("fishyscapes_v1", "fishyscapes_v2")}
    assert {name.partition(":")[0] for name, _ in LENGTHS} == names


def test_values_of_the_files(root):
    """A pixel's label follows from the value in the mask file, for every kind of set."""
    folder = root / "streethazards/test"
    values = np.asarray(Image.open(folder / "annotations/t5/0.png")).astype(int)
    mask = load_masked("streethazards", "test", root)[0][1].numpy()
    assert (mask == np.where(values == 14, -1, values - 1)).all()

    folder = root / "SMIYC/dataset_AnomalyTrack/labels_masks"
    values = np.asarray(Image.open(folder / "validation0000_labels_semantic.png"))
    mask = load_masked("roadanomaly21", "test", root)[0][1].numpy()
    assert (mask == np.select([values == 0, values == 255], [0, IGNORED], -1)).all()

    assert (load_masked("mvtec:bottle", "test", root)[4][1] == 0).all()  # an image of good/
    values = np.asarray(Image.open(root / "mvtech-ad/bottle/ground_truth/broken/000_mask.png"))
    broken = load_masked("mvtec:bottle", "test", root)[0]
    assert ((broken[1] == -1).numpy() == (values == 255)).all()


def test_fishyscapes_adds_its_overlay_to_the_photograph(root):
    name = "0000_frankfurt_000000_046504"
    overlay = np.load(root / f"fishyscapes-3.0.0/{name}_rgb.npz")["rgb"]
    photograph = (
        root / "cityscapes/leftImg8bit/val/frankfurt/frankfurt_000000_046504_leftImg8bit.png"
    )
    plain = np.asarray(Image.open(photograph)).astype(int)
    void = np.asarray(Image.open(root / f"fishyscapes-3.0.0/{name}_labels.png")) != 0
    image, mask = load_masked("fishyscapes", data_dir=root)[0]
    assert (image.numpy() == np.clip(plain + overlay, 0, 255).transpose(2, 0, 1)).all()
    changed = (overlay != 0).any(axis=2)
    assert ((mask == -1).numpy() == changed).all()
    assert ((mask == IGNORED).numpy() == (void & ~changed)).all()
    elsewhere = root / "cityscapes/leftImg8bit/val"
    assert load_masked("fishyscapes", data_dir=root, base=elsewhere)[0][0].equal(image)


def test_the_images_of_lost_and_found_are_an_outlier_set_too(root):
    whole = load_masked("lostandfound", data_dir=root)
    images = load("fishyscapes_lostandfound", "test", root)
    assert images.paths == whole.paths and (images.labels == -1).all()
    assert images.read([1])[0].equal(whole[1][0])


def test_limit_subset_and_digest(root):
    images = load_masked("roadanomaly", data_dir=root)
    part = load_masked("roadanomaly", data_dir=root, limit=7)
    assert len(part) == 7 and part.paths == [images.paths[i * 60 // 7] for i in range(7)]
    assert images.limited(60) is images and images.subset([3, 1]).paths == [
        images.paths[3],
        images.paths[1],
    ]
    assert part.digest != images.digest == load_masked("roadanomaly", data_dir=root).digest
    with pytest.raises(InputError, match="at least 1"):
        load_masked("roadanomaly", data_dir=root, limit=0)


@pytest.mark.parametrize("what", ["image", "mask", "photograph"])
def test_the_digest_changes_with_every_file(what, tmp_path):
    masked_toys.fishyscapes(tmp_path)
    images = load_masked("fishyscapes", data_dir=tmp_path)
    before, pairs = images.digest, images.pairs
    folder, files = {
        "image": (pairs.folder, pairs.images),
        "mask": (pairs.folder, pairs.masks),
        "photograph": (pairs.base, pairs.photographs),
    }[what]
    os.utime(folder / files[1], (1, 1))
    assert images.digest != before


def test_it_works_in_a_loader_with_workers(root):
    images = load_masked("roadobstacle21", data_dir=root, limit=4)
    (batch, labels) = next(iter(DataLoader(images, batch_size=4, num_workers=1)))
    assert batch.shape == (4, 3, *masked_toys.SHAPE) and labels.shape == (4, *masked_toys.SHAPE)
    again = pickle.loads(pickle.dumps(images))
    assert isinstance(again, MaskedImages) and again[2][1].equal(labels[2])


def test_a_set_that_is_not_there(tmp_path):
    for name in masks.TABLE:
        with pytest.raises(MissingData, match=f"'{tmp_path}.*(add -download|download_data.py)"):
            load_masked(name, data_dir=tmp_path)


def test_a_mask_that_is_not_there(tmp_path):
    masked_toys.roadanomaly(tmp_path, 2)
    place = tmp_path / "RoadAnomaly/RoadAnomaly_jpg/frames/animals01_road.labels"
    (place / "labels_semantic.png").rename(place / "elsewhere.png")
    with pytest.raises(DamagedData, match="1 of its files.*animals01_road.labels"):
        load_masked("roadanomaly", data_dir=tmp_path)


def test_files_that_do_not_fit(tmp_path):
    masked_toys.roadanomaly(tmp_path, 3)
    place = tmp_path / "RoadAnomaly/RoadAnomaly_jpg/frames"
    masked_toys.mask(place / "animals00_road.labels/labels_semantic.png", 0, (0, 1), (3, 3))
    (place / "animals01_road.labels/labels_semantic.png").write_bytes(b"nothing")
    masked_toys.picture(place / "animals02_road.labels/labels_semantic.png", 0)
    images = load_masked("roadanomaly", data_dir=tmp_path)
    for index, words in enumerate((r"uint8 \(3, 3\)", "cannot decode", r"\(6, 10, 3\)")):
        with pytest.raises(InputError, match=f"animals0{index}.*{words}|{words}.*animals0{index}"):
            images[index]


def test_names_and_splits_are_checked(tmp_path):
    with pytest.raises(InputError, match="did you mean 'roadanomaly'"):
        load_masked("roadanomlay", data_dir=tmp_path)
    with pytest.raises(InputError, match="has them for test"):
        load_masked("roadanomaly", "train", tmp_path)
    with pytest.raises(InputError, match="no part 'botle'.*did you mean 'bottle'"):
        load_masked("mvtec:botle", data_dir=tmp_path)
    with pytest.raises(InputError, match="it has no parts"):
        load_masked("roadanomaly:bottle", data_dir=tmp_path)
