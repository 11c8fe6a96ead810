"""Normalisation and augmentation in batches, against torchvision and explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import functional as tvf

from ood.config import InputError
from ood.data import Augment, Preprocess
from ood.data.transforms import KINDS, crop_at, draw_boxes, random_flip, resize_boxes, rotate

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(count=8, channels=3, side=32, seed=0):
    return torch.randint(
        0, 256, (count, channels, side, side), dtype=torch.uint8, generator=seeded(seed)
    )


def to_pil(image):
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


# --- Preprocess


def test_preprocess_equals_torchvision_exactly():
    images = pixels()
    oracle = torch.stack(
        [tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])(to_pil(image)) for image in images]
    )
    assert torch.equal(Preprocess(MEAN, STD)(images), oracle)


def test_preprocess_of_floats_and_back():
    images, preprocess = torch.rand(4, 3, 5, 5, generator=seeded()) * 1.5, Preprocess(MEAN, STD)
    kept = images.clone()
    normalised = preprocess(images)
    assert torch.allclose(preprocess.undo(normalised), images, atol=1e-6) and torch.equal(
        images, kept
    )
    assert torch.allclose(preprocess(pixels()), preprocess(pixels().float() / 255))
    assert preprocess(images.double()).dtype == torch.float32


def test_preprocess_says_what_it_does():
    assert repr(Preprocess([0.5], [0.25])) == "Preprocess(mean=(0.5,), std=(0.25,))"
    for mean, std in (((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,)), ((0.5,), (float("nan"),))):
        with pytest.raises(InputError, match="std"):
            Preprocess(mean, std)
    with pytest.raises(InputError, match=r"\(8, 3, 32, 32\) do not fit a mean of 1 channel"):
        Preprocess((0.5,), (0.5,))(pixels())


# --- Augment


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_keeps_shape_and_dtype_and_follows_its_generator(kind, dtype):
    images = pixels(16).to(dtype)
    kept, augment = images.clone(), Augment(kind)
    first, again, other = (
        augment(images, seeded(1)),
        augment(images, seeded(1)),
        augment(images, seeded(2)),
    )
    assert first.shape == images.shape and first.dtype == dtype and torch.equal(images, kept)
    assert torch.equal(first, again) and torch.equal(first, other) == (kind == "none")
    assert torch.equal(first, images) == (kind == "none")


def test_augment_without_a_generator_uses_torchs():
    torch.manual_seed(3)
    first = Augment("crop_flip")(pixels())
    torch.manual_seed(3)
    assert torch.equal(first, Augment("crop_flip")(pixels()))


def test_crop_equals_a_loop():
    images = pixels(81)
    top, left = torch.arange(81) // 9, torch.arange(81) % 9  # every offset
    cropped = crop_at(images, 4, top, left)
    for image, result, y, x in zip(images, cropped, top.tolist(), left.tolist()):
        framed = torch.zeros(3, 40, 40, dtype=torch.uint8)
        framed[:, 4:36, 4:36] = image
        assert torch.equal(result, framed[:, y : y + 32, x : x + 32])


def test_every_offset_and_flip_is_reached_about_equally():
    side = 12
    image = torch.arange(1, side * side + 1, dtype=torch.float32).view(1, 1, side, side)
    outcomes = {}
    for flip in (False, True):
        for y in range(9):
            for x in range(9):
                crop = crop_at(image, 4, torch.tensor([y]), torch.tensor([x]))
                outcomes[(crop.flip(-1) if flip else crop).numpy().tobytes()] = 0
    assert len(outcomes) == 162
    for result in Augment("crop_flip")(image.expand(8100, -1, -1, -1), seeded()):
        outcomes[result.numpy().tobytes()] += 1  # a KeyError for anything else
    assert min(outcomes.values()) > 20 and max(outcomes.values()) < 90  # 50 expected each


def test_flip():
    images = pixels(1000, 1, 4)
    flipped = random_flip(images, seeded())
    changed = (flipped != images).flatten(1).any(1)
    assert 400 < changed.sum() < 600
    assert torch.equal(flipped[changed], images[changed].flip(-1)) and torch.equal(
        flipped[~changed], images[~changed]
    )


def test_resized_boxes_equal_pillow():
    images = pixels(200, 3, 64)
    boxes = draw_boxes(200, 64, 64, (0.08, 1.0), seeded())
    results = resize_boxes(images, boxes, 64)
    for image, result, (top, left, height, width) in zip(images, results, boxes.tolist()):
        oracle = tvf.resized_crop(to_pil(image), top, left, height, width, [64, 64])
        difference = result.numpy().astype(int) - np.asarray(oracle).transpose(2, 0, 1)
        assert np.abs(difference).max() <= 1  # Pillow rounds after each axis


def test_boxes_are_distributed_as_torchvisions():
    ours = draw_boxes(20_000, 64, 64, (0.08, 1.0), seeded()).double()
    torch.manual_seed(0)
    image = torch.empty(3, 64, 64)
    theirs = torch.tensor(
        [tv.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)]
    ).double()
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.5) and torch.allclose(
        ours.std(0), theirs.std(0), atol=0.5
    )
    top, left, height, width = ours.unbind(1)
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + height <= 64).all()
        and (left + width <= 64).all()
    )
    assert (
        (height * width).min() > 0.07 * 4096
        and (height / width).min() > 0.7
        and (top + height).max() == 64
        and top.min() == 0
    )


def test_box_falls_back_to_the_centre():
    boxes = draw_boxes(50, 10, 100, (0.99, 1.0), seeded())  # such a box never fits a 10 x 100 image
    assert boxes.tolist() == [[0, 43, 10, 13]] * 50
    assert list(
        tv.RandomResizedCrop.get_params(torch.empty(1, 10, 100), [0.99, 1.0], [3 / 4, 4 / 3])
    ) == [0, 43, 10, 13]


@pytest.mark.parametrize("degrees", [-10.0, -3.3, 0.0, 7.7, 90.0])
def test_rotation_equals_torchvision(degrees):
    images = pixels(4, 1, 28)
    rotated = rotate(images, torch.full((4,), degrees))
    for image, result in zip(images, rotated):
        oracle = np.asarray(tvf.rotate(to_pil(image), degrees))
        assert (
            result[0].numpy() == oracle
        ).mean() > 0.99  # a tie between two pixels may fall the other way


def test_digits_are_turned_and_scaled_a_little():
    bar = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    bar[:, :, 4:24, 13:15] = 255
    turned = Augment("rotate_resized_crop")(bar, seeded()).float()
    ink = turned.sum((1, 2, 3)) / bar[0].float().sum()
    assert 0.85 < ink.min() and ink.max() < 1.3 and len(torch.unique(ink)) > 5
    lean = (turned[:, 0, 5].argmax(1) - turned[:, 0, 22].argmax(1)).float()
    assert lean.min() < -1 and lean.max() > 1 and lean.abs().max() <= 5  # tan(10 degrees) * 17 = 3


def test_scale_and_size_change_the_result():
    images = pixels(8, 3, 32)
    assert Augment("resized_crop_flip", size=64)(images, seeded()).shape == (8, 3, 64, 64)
    wide, narrow = (
        Augment("resized_crop_flip", scale=(low, low))(images, seeded()) for low in (0.9, 0.1)
    )
    assert not torch.equal(wide, narrow)
    assert not torch.equal(
        Augment("crop_flip", padding=2)(images, seeded()),
        Augment("crop_flip", padding=4)(images, seeded()),
    )
    assert not torch.equal(
        Augment("rotate_resized_crop", degrees=1)(images, seeded()),
        Augment("rotate_resized_crop", degrees=30)(images, seeded()),
    )


def test_bad_augmentations():
    with pytest.raises(
        InputError, match=r"unknown augmentation 'crop_filp' \(did you mean 'crop_flip'\?\)"
    ):
        Augment("crop_filp")
    for scale in ((0, 1), (0.5, 0.2), (0.5, 1.5)):
        with pytest.raises(InputError, match="shares of the area"):
            Augment("resized_crop_flip", scale=scale)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no GPU: the same numbers on both devices cannot be compared",
)
@pytest.mark.parametrize("kind", KINDS)
def test_same_on_the_gpu(kind):
    images = pixels(64)
    cpu, gpu = Augment(kind)(images, seeded()), Augment(kind)(images.to("cuda"), seeded()).cpu()
    assert (cpu.int() - gpu.int()).abs().max() <= 1 and (cpu != gpu).float().mean() < 0.01
    assert torch.allclose(
        Preprocess(MEAN, STD)(images.to("cuda")).cpu(), Preprocess(MEAN, STD)(images), atol=1e-6
    )
