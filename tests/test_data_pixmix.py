"""PixMix on batches: Pillow's pixels, the formula in a loop, seeds, processes and a training."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

import models
from ood.config import InputError
from ood.data import ArrayImages, Mixing, PixMix, pixmix
from ood.data.transforms import PartGenerator
from ood.training import pretraining, runs
from ood.training.settings import read_settings, resolve

SIDE = 24
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(count, channels=3, side=SIDE, seed=0):
    """Smooth images with some noise, as uint8."""
    coarse = torch.rand(count, channels, 4, 4, generator=seeded(seed))
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    noise = torch.rand(smooth.shape, generator=seeded(seed + 1))
    return (200 * smooth + 40 * noise).to(torch.uint8)


def pictures(count=5, channels=3, side=SIDE + 3):
    return ArrayImages(pixels(count, channels, side, seed=7).numpy(), name="pictures")


def to_pil(image):
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def from_pil(image):
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def affine(image, *matrix):
    return image.transform(image.size, AFFINE, matrix, resample=BILINEAR)


# The operations of the paper in Pillow, with a level of 0.1 to 10 and a sign.
PILLOW = {
    "autocontrast": lambda i, v, s: ImageOps.autocontrast(i),
    "equalize": lambda i, v, s: ImageOps.equalize(i),
    "posterize": lambda i, v, s: ImageOps.posterize(i, 4 - int(v * 4 / 10)),
    "rotate": lambda i, v, s: i.rotate(s * int(v * 30 / 10), resample=BILINEAR),
    "solarize": lambda i, v, s: ImageOps.solarize(i, 256 - int(v * 256 / 10)),
    "shear_x": lambda i, v, s: affine(i, 1, s * v * 0.03, 0, 0, 1, 0),
    "shear_y": lambda i, v, s: affine(i, 1, 0, 0, s * v * 0.03, 1, 0),
    "translate_x": lambda i, v, s: affine(i, 1, 0, s * int(v * SIDE / 30), 0, 1, 0),
    "translate_y": lambda i, v, s: affine(i, 1, 0, 0, 0, 1, s * int(v * SIDE / 30)),
    "color": lambda i, v, s: ImageEnhance.Color(i).enhance(v * 0.18 + 0.1),
    "contrast": lambda i, v, s: ImageEnhance.Contrast(i).enhance(v * 0.18 + 0.1),
    "brightness": lambda i, v, s: ImageEnhance.Brightness(i).enhance(v * 0.18 + 0.1),
    "sharpness": lambda i, v, s: ImageEnhance.Sharpness(i).enhance(v * 0.18 + 0.1),
}
GEOMETRIC = ("rotate", "shear_x", "shear_y")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", pixmix.OPERATIONS + pixmix.COLOUR_OPERATIONS)
def test_operations_give_pillows_pixels(operation, channels):
    images = pixels(30, channels)
    images[0], images[1, ..., : SIDE // 2], images[1, ..., SIDE // 2 :] = 9, 0, 255
    level = 0.1 + 9.9 * torch.rand(30, generator=seeded(2))
    sign = torch.where(torch.rand(30, generator=seeded(3)) < 0.5, -1.0, 1.0)
    ours, name = operation(images, level, sign), operation.__name__
    theirs = [PILLOW[name](to_pil(i), float(v), float(s)) for i, v, s in zip(images, level, sign)]
    off = (ours.int() - torch.stack(list(map(from_pil, theirs))).int()).abs()
    assert ours.dtype == torch.uint8 and off.max() <= (name in GEOMETRIC)
    assert (off > 0).float().mean() < 0.01


def in_a_loop(image, found, numbers, mixing):
    """One image, as the paper's algorithm says it, with the numbers that it draws."""
    numbers, k = numbers.double().tolist(), mixing.k
    first, slots, weights = numbers[:4], numbers[4 : 8 + 4 * k], numbers[8 + 4 * k :]
    operations = pixmix.OPERATIONS + (pixmix.COLOUR_OPERATIONS if mixing.all_ops else ())

    def copy(turn):
        """The image, changed by one operation, or None."""
        whether, which, level, sign = slots[4 * turn : 4 * turn + 4]
        if whether >= mixing.probability:
            return None
        operation = operations[int(which * len(operations))].__name__
        level = 0.1 + (mixing.severity - 0.1) * level
        changed = PILLOW[operation](to_pil(image), level, -1 if sign < 0.5 else 1)
        return from_pil(changed).double().numpy() / 255

    picture = found[int(first[1] * len(found))].double().numpy() / 255
    top, left = (int(v * (picture.shape[1] - SIDE + 1)) for v in first[2:])
    picture = picture[:, top : top + SIDE, left : left + SIDE]
    plain = image.double().numpy() / 255
    mixed = plain if copy(0) is None else copy(0)
    for turn in range(1, 1 + int(first[0] * (k + 1))):
        other = picture if copy(turn) is None else copy(turn)
        product, side, u, v = weights[4 * (turn - 1) : 4 * turn]
        a, b = u ** (1 / mixing.beta), 1 - v ** (1 / mixing.beta)
        if side >= 0.5:
            a, b = 1 + (1 - a), -b
        if product < 0.5:
            mixed = (a * (2 * mixed - 1) + b * (2 * other - 1) + 1) / 2
        else:
            mixed = (2 * mixed) ** a * np.maximum(2 * other, 1e-37) ** b / 2
        mixed = np.clip(mixed, 0, 1)
    return torch.from_numpy(mixed)


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(k=2, beta=1, severity=8, all_ops=True)])
def test_a_batch_is_what_the_loop_gives(mixing):
    images, augment = pixels(60), PixMix(pictures(), mixing)
    drawn = augment.draw(60, seeded(4))
    ours, found = augment.mix(images, drawn), augment.pictures.read(slice(None))
    loop = [in_a_loop(image, found, row, mixing) for image, row in zip(images, drawn)]
    off = (ours.double() - torch.stack(loop)).abs()
    # Geometric operations may miss Pillow's pixel by 1/255; a negative power enlarges that.
    assert (off > 1e-5).double().mean() < 0.01 and (off > 0.02).double().mean() < 0.001


def test_weights_follow_the_beta_distribution():
    beta, white = 3.0, torch.ones(4000, 1, 1, 1)
    augment = PixMix(pictures(), Mixing(beta=beta))
    drawn = torch.rand(4000, 4, generator=seeded())
    drawn[:, 0], drawn[:, 1] = 0, 0  # a sum, inside: a * 1 + b * (-1), as pixels
    value = augment.step(white, 0 * white, drawn).flatten() * 2 - 1
    # E[a] = beta / (beta + 1), E[b] = 1 / (beta + 1); clipped to -1..1 nothing is lost.
    assert abs(value.mean() - (beta - 1) / (beta + 1)) < 0.02


def test_without_rounds_and_operations_an_image_stays():
    images = pixels(8)
    plain = PixMix(pictures(), Mixing(k=0, probability=0, base="none"))(images, seeded())
    assert torch.equal(plain, images / 255)
    changed = PixMix(pictures(), Mixing(k=0, probability=1, base="none"))(images, seeded())
    assert not torch.equal(changed, plain)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("floats", [False, True])
def test_range_shape_and_seed(channels, floats):
    images, augment = pixels(16, channels), PixMix(pictures(channels=channels))
    kept = images.clone()
    given = images / 255 if floats else images
    first, again, other = (augment(given, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape and first.dtype == torch.float32
    assert 0 <= first.min() and first.max() <= 1 and torch.isfinite(first).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(images, kept) and torch.equal(augment(images, seeded(1)), first)


def test_every_parameter_changes_the_result():
    images, found = pixels(40), pictures()
    usual = PixMix(found)(images, seeded())
    others = dict(k=3, beta=1.5, severity=5, all_ops=True, probability=0.2, base="flip")
    assert set(others) == {field.name for field in dataclasses.fields(Mixing)}
    for name, value in others.items():
        assert not torch.equal(PixMix(found, Mixing(**{name: value}))(images, seeded()), usual)


def test_processes_share_a_batch():
    images, augment = pixels(12), PixMix(pictures())
    whole = augment(images, PartGenerator().seed_parts(5))
    parts = []
    for rank, rows in enumerate((slice(0, 8), slice(8, 12))):
        chance = PartGenerator().seed_parts(5, rank, 2)
        chance.part = (rows.start, 12)
        parts.append(augment(images[rows], chance))
    assert torch.equal(torch.cat(parts), whole)


def test_bad_parameters_and_pictures():
    bad = dict(k=-1, beta=0, severity=0.1, probability=1.1, base="crop_filp", all_ops="yes")
    for name, value in bad.items():
        with pytest.raises(InputError, match=name):
            Mixing(**{name: value})
    for found in (pictures(side=SIDE - 1), pictures(channels=1)):
        with pytest.raises(InputError, match="cannot be mixed into images"):
            PixMix(found, Mixing(base="none"))(pixels(16), seeded())
    with pytest.raises(InputError, match="holds no picture"):
        PixMix(pictures(0))


def test_pictures_are_larger_than_the_images(tmp_path):
    np.save(tmp_path / "pictures.npy", np.zeros((3, 50, 60, 3), np.uint8))
    found = pixmix.load_pictures(str(tmp_path / "pictures.npy"), tmp_path, side=32, channels=3)
    assert found.shape == (3, 36, 36) and len(found) == 3


# --- in a training


def test_settings_of_pixmix(tmp_path):
    settings = resolve({"augment": "pixmix"})
    assert settings.mixing_set == "patches"
    assert pretraining.mixing(settings).base == "rotate_resized_crop"
    cifar = resolve({"id_dataset": "cifar10", "augment": "pixmix", "augment_args": {"k": 2}})
    assert cifar.mixing_set == "fractals+feature_visualisations"
    assert pretraining.mixing(cifar) == Mixing(k=2, base="crop_flip")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"augment": "pixmix", "mixing_set": ["letters", "patches"]}))
    assert resolve(read_settings(file)).mixing_set == ("letters", "patches")
    for given, message in (
        ({"augment": "pixmix", "augment_args": {"beat": 3}}, "beat"),
        ({"augment": "pixmix", "augment_args": {"k": 1000}}, "k"),
        ({"augment_args": {"k": 1}}, "-augment_args belongs to -augment pixmix"),
        ({"mixing_set": "patches"}, "-mixing_set belongs to -augment pixmix"),
    ):
        with pytest.raises(InputError, match=message):
            resolve(given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights after two epochs in one go, after a resumed second one, and without pixmix."""
    root = tmp_path_factory.mktemp("runs")
    np.save(root / "found.npy", pixels(9, 1, 40)[:, 0].numpy())

    def weights(name, *epochs, **more):
        given = dict(limit=40, batch_size=16, width=2, device="cpu", schedule="steps")
        given |= dict(milestones=[9], **more)
        for number in epochs:
            run = pretraining.train_classifier(
                models, {**given, "epochs": number}, out_dir=root / name, resume=number > 1
            )
        return run, run.load("last.pt")["state_dict"]

    pixmixed = dict(augment="pixmix", mixing_set=str(root / "found.npy"))
    return (
        weights("whole", 2, **pixmixed),
        weights("parts", 1, 2, **pixmixed),
        weights("plain", 2),
    )


def test_a_resumed_training_is_the_same_bit_for_bit(trained):
    (run, whole), (_, parts), (_, plain) = trained
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(whole[key], plain[key]) for key in whole)
    start = runs.Run(run.folder).records()[0]
    assert start["mixing_pictures"] == 9 and "mixing" in start["digests"]
