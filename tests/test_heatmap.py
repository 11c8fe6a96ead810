"""Heatmap method, its parts: score, loss, scaling, batches, auxiliary outliers.

The decoders are held against golden values of the authors' code, the nearest ID images against
loops.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
from ood import metrics
from ood.config import InputError, build, read_json
from ood.data import ArrayImages, Preprocess, auxiliary, load
from ood.methods import Context, get
from ood.methods.heatmap.formulas import score_of, weighted_errors
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings
from ood.methods.heatmap.targets import (
    DecoderBatches,
    Pixels,
    Scale,
    StageMaps,
    fit_scale,
    nearest_id,
    pair_as_released,
)
from tests.conftest import ROOT

CONFIGS = {
    "cifar10_resnet18": 3_626_124,
    "cifar100_resnet18": 7_262_784,
    "cifar10_wideresnet_40x2": 1_231_264,
    "cifar100_wideresnet_40x2": 1_242_784,
    "tinyimagenet_resnet50": 62_501_504,
}


def classifier_of(settings, golden=None):
    facts = {"depth": settings.depth, "width": settings.width}
    network = models.build(
        settings.arch,
        settings.num_classes,
        image_size=64 if settings.arch == "resnet50" else 32,
        **{k: v for k, v in facts.items() if v is not None},
    )
    if golden:  # deterministic weights under the authors' key names
        filled = {
            key: golden.fill.value(key.replace("fc.", "linear."), tensor.shape)
            for key, tensor in network.state_dict().items()
        }
        network.load_state_dict(filled)
    return network.eval()


def settings_of(name):
    values = read_json(ROOT / "configs" / f"{name}_ood.json")
    known = {f for f in Settings.__dataclass_fields__}
    return build(Settings, {k: v for k, v in values.items() if k in known})


# ---- golden values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, fw_layers",
    [
        *(("cifar10_resnet18", n) for n in (1, 2, 3, 4)),
        *(("cifar10_wideresnet_40x2", n) for n in (1, 2, 3, 4)),
        ("cifar100_resnet18", 1),
    ],
)
def test_maps_and_scores_equal_the_authors(golden, name, fw_layers):
    settings = build(
        Settings, {**vars(settings_of(name)), "fw_layers": fw_layers, "scaling": "none"}
    )
    expected = golden("heatmap")[name.replace("40x2", "40_2")]
    classifier = classifier_of(settings, golden)
    decoder = golden.fill.fill(models.decoder_for(classifier, fw_layers))
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3)
    method = Heatmap(classifier, decoder, preprocess, settings, Context(models))
    pixels = preprocess.undo(golden.fill.image(2, 3, 32, 32))
    with torch.no_grad():
        features = classifier.features(preprocess(pixels))
    predicted = classifier.fc(features).argmax(1)
    assert predicted.tolist() == expected["predicted"]
    maps = method.maps_of(features, predicted, pixels)
    digest = expected[f"map_fw{fw_layers}"]
    assert list(maps.shape) == digest["shape"]
    torch.testing.assert_close(
        maps.flatten()[:8], torch.tensor(digest["first8"]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        [maps.mean(), maps.std(), maps.abs().max()],
        [digest["mean"], digest["std"], digest["absmax"]],
        rtol=1e-3,
    )
    torch.testing.assert_close(
        score_of(maps), torch.tensor(expected[f"score_fw{fw_layers}"]), rtol=1e-4, atol=0
    )


def test_loss_equals_the_authors(golden):
    expected = golden("heatmap")["loss"]
    h = torch.tanh(9 * golden.fill.value("h.weight", (4, 3, 8, 8)))
    x = golden.fill.image(4, 3, 8, 8)
    targets = torch.cat([x[:2], torch.sin(3 * x)[2:]])
    torch.testing.assert_close(
        weighted_errors(h, x, targets), torch.tensor(expected["per_sample"]), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("name, parameters", CONFIGS.items())
def test_the_five_configs_build_the_published_decoders(name, parameters):
    settings = settings_of(name)
    size = 64 if name.startswith("tiny") else 32
    with torch.device("meta"):
        classifier = models.build(
            settings.arch,
            settings.num_classes,
            image_size=size,
            **({"depth": 40, "width": 2} if "wide" in name else {}),
        )
        decoder = models.decoder_for(classifier)
    assert sum(p.numel() for p in decoder.parameters()) == parameters
    assert classifier.fc.in_features == settings.z_dim
    assert (settings.batch_size, settings.lr, settings.b1, settings.b2, settings.n_epochs) == (
        200,
        2e-4,
        0.5,
        0.999,
        150,
    )
    assert (
        settings.num_ood == (20_000 if name.startswith("tiny") else 10_000)
        and settings.fw_layers == 1
    )
    assert settings.pairing == "correct" and settings.scaling == "none"


# ---- score and loss --------------------------------------------------------------------------


def test_score_of_zero_and_constant_maps():
    maps = torch.stack(
        [torch.zeros(3, 8, 8), torch.full((3, 8, 8), -0.25), torch.full((3, 8, 8), 0.5)]
    )
    assert score_of(maps).tolist() == [0.0, 0.25, 0.5]
    one_channel = torch.zeros(1, 3, 2, 2)
    one_channel[
        0, 1, 0, 0
    ] = -0.8  # the largest magnitude of any channel counts, then the mean over four pixels
    assert score_of(one_channel).item() == pytest.approx(0.2)


def test_loss_is_zero_for_an_empty_map_on_id_and_the_weighted_difference_on_ood():
    x, p = torch.rand(2, 5, 3, 4, 4) * 2 - 1
    none = torch.zeros_like(x)
    assert weighted_errors(none, x, x).abs().max() == 0
    torch.testing.assert_close(
        weighted_errors(none, x, p), ((1 + 5 * p.abs()) * (x - p) ** 2).sum((1, 2, 3))
    )
    assert weighted_errors(p - x, x, p).abs().max() < 1e-9


def test_chance_level_at_the_papers_ratio():
    generator = torch.Generator().manual_seed(0)
    found = metrics.evaluate(
        torch.rand(10_000, generator=generator), torch.rand(2_000, generator=generator)
    )
    assert found.auroc == pytest.approx(0.5, abs=0.02) and found.fpr95 == pytest.approx(
        0.95, abs=0.02
    )
    assert found.aupr_in == pytest.approx(5 / 6, abs=0.01) and found.aupr_out == pytest.approx(
        1 / 6, abs=0.01
    )


# ---- the nearest ID image --------------------------------------------------------------------


def case(seed=0, n=120, m=50, d=7, classes=6):
    """Class 1 has no ID image, class 2 exactly one, class 3 no OOD image."""
    generator = torch.Generator().manual_seed(seed)
    id_predicted = torch.randint(3, classes, (n,), generator=generator)
    id_predicted[:20], id_predicted[20] = 0, 2
    predicted = torch.tensor([0, 1, 2, 4, 5])[torch.randint(5, (m,), generator=generator)]
    return (
        torch.randn(n, d, generator=generator) + 3,
        id_predicted,
        torch.randn(m, d, generator=generator) + 3,
        predicted,
    )


def by_loops(id_features, id_predicted, features, predicted):
    found = []
    for row, label in zip(features.double(), predicted):
        allowed = [i for i in range(len(id_features)) if id_predicted[i] == label] or range(
            len(id_features)
        )
        found.append(
            min(allowed, key=lambda i: float((id_features[i].double() - row).square().sum()))
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_every_ood_image_gets_its_nearest_id_image_of_the_same_class(seed):
    arrays = case(seed)
    assert (
        set(arrays[3].tolist()) >= {0, 1, 2}
        and (arrays[1] == 1).sum() == 0
        and (arrays[1] == 2).sum() == 1
    )
    assert nearest_id(*arrays).tolist() == by_loops(*arrays)


def test_nearest_survives_features_far_from_the_origin():
    """The matrix product alone would lose the differences (0.01 beside 1000)."""
    generator = torch.Generator().manual_seed(1)
    keys = 1000 + 0.01 * torch.randn(300, 16, generator=generator)
    queries = keys[::7] + 1e-4 * torch.randn(43, 16, generator=generator)
    zeros = torch.zeros(300, dtype=torch.long)
    assert nearest_id(keys, zeros, queries, zeros[:43]).tolist() == by_loops(
        keys, zeros, queries, zeros[:43]
    )


def test_nearest_does_not_depend_on_the_chunk(monkeypatch):
    arrays = case()
    whole = nearest_id(*arrays)
    monkeypatch.setattr("ood.methods.heatmap.targets.CHUNK", 3)
    assert torch.equal(nearest_id(*arrays), whole)


def test_released_pairing_is_the_class_by_class_list_read_in_image_order():
    arrays = case()
    correct, predicted = nearest_id(*arrays), arrays[3]
    as_listed = [
        int(correct[k])
        for label in range(6)
        for k in range(len(predicted))
        if predicted[k] == label
    ]
    released = pair_as_released(correct, predicted)
    assert released.tolist() == as_listed
    assert sorted(released.tolist()) == sorted(correct.tolist()) and not torch.equal(
        released, correct
    )
    one_class = torch.zeros_like(predicted)
    assert torch.equal(
        pair_as_released(correct, one_class), correct
    )  # with one class there is nothing to mix up


# ---- scaling ---------------------------------------------------------------------------------


def test_scaling_none_all_rows_or_the_first_of_each_batch():
    features = torch.arange(30.0).reshape(10, 3) - 4
    assert fit_scale("none", features, None, 4)([features])[0] is features
    minmax = fit_scale("minmax", features, None, 4)
    assert (minmax.low, minmax.high) == (-4, 25)
    torch.testing.assert_close(minmax([features])[0], (features + 4) / 29)
    released = fit_scale("released", features, None, 4)  # looks at the rows 0, 4, 8 only
    assert (released.low, released.high) == (-4, 22)
    scaled = released([features])[0]
    changed = (scaled != features).any(1)
    assert changed.tolist() == [i % 4 == 0 for i in range(10)]
    torch.testing.assert_close(
        torch.cat([released([features[i : i + 1]], i)[0] for i in range(10)]), scaled
    )


def test_scaling_starts_from_zero_and_covers_all_levels():
    features = torch.full((6, 3), 2.0)
    maps = [torch.full((6, 2, 4, 4), 5.0), torch.full((6, 2, 8, 8), 3.0)]
    scale = fit_scale(
        "released", features, lambda: iter([maps]), 200
    )  # with several levels the released code scales them all
    assert (scale.low, scale.high) == (0, 5)
    assert [float(level.mean()) for level in scale([features, *maps])] == pytest.approx(
        [0.4, 1.0, 0.6]
    )


# ---- batches ---------------------------------------------------------------------------------


def array_images(count, seed=0, channels=3, side=8):
    return ArrayImages(
        np.random.RandomState(seed).randint(0, 256, (count, channels, side, side), dtype=np.uint8)
    )


def test_an_epoch_shows_every_image_once_with_its_own_target():
    known, novel = array_images(7), array_images(4, seed=1)
    partner = torch.tensor([3, 3, 0, 6])
    features = torch.arange(11.0)[:, None]
    pixels = Pixels([known, novel], torch.device("cpu"))
    batches = DecoderBatches(
        features,
        torch.arange(11) % 3,
        torch.cat([torch.arange(7), partner]),
        pixels,
        batch_size=4,
        seed=0,
        device=torch.device("cpu"),
        scale=Scale(),
    )
    everything = np.concatenate([known.images, novel.images])
    seen = []
    for z, predicted, images, targets, maps in batches.epoch(1):
        for i, row in enumerate(z[:, 0].long().tolist()):
            seen.append(row)
            assert predicted[i] == row % 3 and maps == []
            assert np.array_equal(images[i], everything[row])
            assert np.array_equal(targets[i], everything[row if row < 7 else partner[row - 7]])
    assert sorted(seen) == list(range(11)) and len(batches) == 3
    orders = [torch.cat([b[0] for b in batches.epoch(e)])[:, 0].tolist() for e in (1, 1, 2)]
    assert orders[0] == seen == orders[1] and orders[2] != seen


def test_pixels_read_on_demand_equal_pixels_in_memory(monkeypatch):
    sets, rows = [array_images(9), array_images(5, seed=1)], torch.tensor([13, 0, 8, 9, 0])
    resident = Pixels(sets, torch.device("cpu"))
    monkeypatch.setattr("ood.methods.heatmap.targets.RESIDENT_BYTES", 10)
    streamed = Pixels(sets, torch.device("cpu"))
    assert resident.array is not None and streamed.array is None
    assert torch.equal(resident(rows), streamed(rows))


def test_kept_stage_maps_equal_computed_ones_up_to_half_precision(monkeypatch):
    network = models.build("small_resnet", 4, image_size=32, width=4).eval()
    pixels = Pixels([array_images(6, side=32)], torch.device("cpu"))
    maps = StageMaps(network, pixels, Preprocess((0.5,) * 3, (0.5,) * 3), 2, 4, torch.enable_grad)
    computed = maps(torch.tensor([5, 1]))
    assert [m.shape[1] for m in computed] == [32, 16] and maps.keep()
    for fresh, kept in zip(computed, maps(torch.tensor([5, 1]))):
        torch.testing.assert_close(kept, fresh, rtol=2e-3, atol=1e-3)
    monkeypatch.setattr("ood.methods.heatmap.targets.MAP_BYTES", 10)
    assert not StageMaps(
        network, pixels, Preprocess((0.5,) * 3, (0.5,) * 3), 2, 4, torch.enable_grad
    ).keep()


# ---- auxiliary outliers ----------------------------------------------------------------------


def test_outliers_from_two_embedded_sets():
    drawn = auxiliary.draw("letters+patches", 60, 0, "datasets", size=28, channels=1)
    assert len(drawn) == 60 and drawn.shape == (1, 28, 28) and (drawn.labels < 0).all()
    parts = [
        load(name, "train", "datasets", size=28, channels=1) for name in ("letters", "patches")
    ]
    pool = {image.tobytes() for part in parts for image in part.images}
    assert all(image.tobytes() in pool for image in drawn.images)
    assert len({image.tobytes() for image in drawn.images}) == 60
    again, other = (
        auxiliary.draw(("letters", "patches"), 60, seed, "datasets", size=28, channels=1)
        for seed in (0, 1)
    )
    assert (
        again.digest == drawn.digest
        and np.array_equal(again.images, drawn.images)
        and other.digest != drawn.digest
    )
    with pytest.raises(InputError, match="has 8000 images"):
        auxiliary.draw("letters+patches", 8001, 0, "datasets", size=28, channels=1)


def test_outliers_from_an_array_and_from_a_folder(tmp_path):
    from PIL import Image

    array = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "300K_random_images.npy", array)
    drawn = auxiliary.draw("300K_random_images.npy", 5, 3, tmp_path, size=32, channels=3)
    rows = np.sort(np.random.RandomState(3).permutation(20)[:5])
    assert np.array_equal(drawn.images, array[rows].transpose(0, 3, 1, 2))
    assert auxiliary.draw(
        str(tmp_path / "300K_random_images.npy"), 5, 3, ".", size=28, channels=1
    ).shape == (1, 28, 28)
    (tmp_path / "a+b").mkdir()
    for i in range(3):
        Image.fromarray(array[i]).save(tmp_path / "a+b" / f"{i}.png")
    assert np.array_equal(
        auxiliary.draw(str(tmp_path / "a+b"), 3, 0, ".", size=32, channels=3).images,
        array[:3].transpose(0, 3, 1, 2),
    )
    np.save(tmp_path / "floats.npy", np.zeros((4, 8, 8, 3)))
    with pytest.raises(InputError, match="expected uint8"):
        auxiliary.draw(str(tmp_path / "floats.npy"), 2, 0, ".", size=8, channels=3)
    with pytest.raises(InputError, match="no file"):
        auxiliary.draw("absent.npy", 2, 0, tmp_path, size=8, channels=3)


def test_settings_name_their_mistakes():
    assert get("heatmap") is Heatmap
    for values, message in (
        ({"fw_layers": 5}, "fw_layers"),
        ({"pairing": "releasd"}, "did you mean 'released'"),
        ({"lr": 0.0}, "lr"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"zdim": 1}, "did you mean 'z_dim'"),
    ):
        with pytest.raises(InputError, match=message):
            build(Settings, {"id_dataset": "mnist5k", **values})
    assert (
        build(Settings, {"id_dataset": "cifar10", "fw_layers": 3, "epochs": 7}).scaling == "minmax"
    )
    assert build(Settings, {"id_dataset": "cifar10", "n_epochs": 9, "epochs": 7}).n_epochs == 7
