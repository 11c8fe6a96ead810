"""Sets as torch's data sets: pairs, transforms, loaders with workers, pickles."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from ood.data import ArrayImages, StreamedImages, load
from ood.data.images import JoinedImages

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (10, 3, 4, 5), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two classes of three pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    for label in "ab":
        (root / label).mkdir()
        for number in range(3):
            picture = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / label / f"{number}.png")
    return root


def made(**options):
    return ArrayImages(PIXELS, np.arange(10) % 3, name="made", num_classes=3, **options)


def test_a_pair_is_pixel_units_and_a_label():
    image, label = made()[4]
    assert torch.equal(image, torch.from_numpy(PIXELS[4]) / 255) and label == 1
    assert type(label) is int and image.dtype == torch.float32
    assert torch.equal(made()[-1][0], made()[9][0])


def test_pairs_end_where_the_set_ends():
    assert len(list(made())) == 10
    with pytest.raises(IndexError, match="image 10 of 10"):
        made()[10]
    with pytest.raises(TypeError):
        made()["4"]


def test_a_transform_gets_a_picture_and_leaves_digest_and_batches():
    images = made()
    changed = images.with_transform(lambda picture: (picture.mode, picture.size))
    assert changed[2][0] == ("RGB", (5, 4)) and images.transform is None
    assert changed.digest == images.digest
    assert torch.equal(next(changed.batches(10)), torch.from_numpy(PIXELS))
    grey = ArrayImages(PIXELS[:, :1]).with_transform(transforms.ToTensor())
    assert torch.equal(grey[0][0], torch.from_numpy(PIXELS[0, :1]) / 255)


def test_floats_are_rounded_to_bytes_for_a_transform():
    floats = ArrayImages(np.full((1, 1, 2, 2), 0.5004, np.float32))
    assert torch.allclose(floats[0][0], torch.tensor(0.5004))
    assert np.asarray(floats.with_transform(lambda p: p)[0][0]).tolist() == [[128, 128]] * 2


def test_parts_and_sums():
    outliers = made().subset([7, 3]).as_outliers()
    both = made() + outliers
    assert len(both) == 12 and both[10][1] == -1
    assert torch.equal(both[10][0], made()[7][0])
    assert torch.equal(Subset(made(), [5])[0][0], made()[5][0])
    joined = JoinedImages([made(), outliers], name="both", split="test")
    assert torch.equal(joined[11][0], made()[3][0])


def test_workers_give_the_same_pairs():
    images = load("mnist5k", "test").first(20)
    loader = DataLoader(images, 6, num_workers=1)
    batches = list(loader)
    assert torch.equal(torch.cat([x for x, _ in batches]), images.read(range(20)).float() / 255)
    assert torch.cat([y for _, y in batches]).tolist() == images.labels.tolist()


@pytest.mark.parametrize("name", ["uniform", "gaussian", "letters", "mnist5k"])
def test_pickles_give_the_same_set(name):
    images = load(name, "test", size=28).subset([3, 1])
    again = pickle.loads(pickle.dumps(images))
    assert again.digest == images.digest and torch.equal(again[0][0], images[0][0])


def test_pickles_of_pictures_in_files(folder):
    images = load(str(folder), "test", size=256)
    assert isinstance(images, StreamedImages)
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again.read(range(6)), images.read(range(6)))
    assert torch.equal(again[5][0], images.read([5])[0] / 255)


def test_a_memory_map_is_pickled_as_its_file(tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((5000, 3, 8, 8), np.uint8))
    mapped = ArrayImages(np.load(tmp_path / "many.npy", mmap_mode="r"), source="many")
    content = pickle.dumps(mapped)
    assert len(content) < 100_000
    again = pickle.loads(content)
    assert isinstance(again._array, np.memmap) and torch.equal(again[17][0], mapped[17][0])
    assert copy.copy(mapped)._array is mapped._array


def test_the_decoded_copy_of_a_set_is_pickled_as_its_file(folder):
    first = load(str(folder), "test", folder.parent, size=32)
    later = load(str(folder), "test", folder.parent, size=32)
    for images in (first, later):  # decoded just now, and found decoded
        assert b".decoded" in pickle.dumps(images)


def test_a_part_of_a_memory_map_is_pickled_with_its_pixels(tmp_path):
    np.save(tmp_path / "few.npy", PIXELS)
    mapped = np.load(tmp_path / "few.npy", mmap_mode="r")
    images = ArrayImages(mapped[4:])
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[0][0], torch.from_numpy(PIXELS[4]) / 255)
