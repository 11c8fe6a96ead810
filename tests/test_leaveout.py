"""Leave-out classifiers: folds, loss, score and perturbation.

They are held against the authors' numbers and against explicit loops.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import models
from ood import detectors, methods
from ood.cache import Cache
from ood.config import InputError, build
from ood.data import ArrayImages, Preprocess
from ood.methods import leaveout
from ood.methods.leaveout.settings import Settings
from ood.outputs import extract

STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


@pytest.fixture(scope="module")
def values(golden):
    return golden("leaveout")


def small(seed, num_classes=8, channels=3):
    torch.manual_seed(seed)
    network = models.build("small_cnn", num_classes, in_channels=channels, image_size=16, width=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(network.fc.weight, 0, 2)
    return network.eval()


def ensemble(**settings):
    settings = {
        "id_dataset": "cifar10",
        "arch": "small_cnn",
        "size": 16,
        "model_args": {"width": 4},
        "batch_size": 7,
        "std": STD,
        **settings,
    }
    cache = settings.pop("cache", None)
    return leaveout.LeaveOut(
        build(Settings, settings),
        [small(fold) for fold in range(5)],
        methods.Context(models, cache=cache),
    )


def pictures(count, seed=0, labels=None):
    return ArrayImages(
        np.random.RandomState(seed).randint(0, 256, (count, 3, 16, 16)).astype(np.uint8), labels
    )


# ---- folds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [10, 100])
def test_every_class_is_left_out_exactly_once(num_classes):
    kept = [leaveout.kept_classes(num_classes, fold) for fold in range(1, 6)]
    left_out = [sorted(set(range(num_classes)) - set(k.tolist())) for k in kept]
    assert sorted(sum(left_out, [])) == list(range(num_classes))
    assert all(len(set(k.tolist())) == len(k) == num_classes * 4 // 5 for k in kept)


def test_folds_are_those_of_the_paper_sheet():
    assert [part.tolist() for part in leaveout.class_folds(10)] == [
        [5, 4],
        [1, 2],
        [9, 6],
        [7, 0],
        [3, 8],
    ]
    assert leaveout.kept_classes(10, 1).tolist() == [
        1,
        2,
        9,
        6,
        7,
        0,
        3,
        8,
    ]  # the permutation's order, not sorted
    table = leaveout.positions(10, leaveout.kept_classes(10, 1))
    assert table[1] == 0 and table[8] == 7 and table[4] == table[5] == -1


def test_folds_equal_the_repository(values):
    for fold, known in values["score"]["folds"].items():
        assert leaveout.kept_classes(10, int(fold)).tolist() == known["kept_classes"]
    for fold, known in values["kept_classes_cifar100"].items():
        assert leaveout.kept_classes(100, int(fold)).tolist() == known


@pytest.mark.parametrize(
    "num_classes, fold, folds",
    [(10, 0, 5), (10, 6, 5), (10, 1, 3), (10, 1, 1), (4, 1, 2), (2, 1, 2)],
)
def test_impossible_folds_are_refused(num_classes, fold, folds):
    if (num_classes, folds) == (4, 2):
        assert len(leaveout.kept_classes(4, 1, 2)) == 2
    else:
        with pytest.raises(InputError, match="fold"):
            leaveout.kept_classes(num_classes, fold, folds)


def test_held_out_positions_are_the_repositorys():
    held = leaveout.held_out(10000)
    assert len(held) == 1000 and held[:5].tolist() == [5876, 6555, 1448, 3351, 231]
    assert np.random.RandomState(3).permutation(8925)[:5].tolist() == [8446, 3222, 1722, 1373, 2777]
    rows_id, rows_ood = leaveout.evaluated(10000, 10000, "released")
    assert (
        len(rows_id) == len(rows_ood) == 9000
        and not set(held) & set(rows_id)
        and not set(held) & set(rows_ood)
    )
    rows_id, rows_ood = leaveout.evaluated(10000, 12000, "released")
    assert rows_ood.max() <= 9999  # what lies behind the ID set's length is ignored
    assert [len(rows) for rows in leaveout.evaluated(10000, 12000, "full")] == [10000, 12000]
    assert len(leaveout.held_out(40)) == 4


# ---- loss ------------------------------------------------------------------------------------


def test_loss_equals_the_repository(values):
    known = values["loss"]
    loss, parts = leaveout.margin_loss(
        *(torch.tensor(known[k]) for k in ("logits_in", "labels", "logits_out")),
        known["beta"],
        known["margin"],
    )
    assert loss.item() == pytest.approx(known["loss"], abs=1e-5)
    for name in ("entropy_in", "entropy_out", "cross_entropy"):
        assert parts[name].item() == pytest.approx(known[name], abs=1e-5)


def explicit_loss(logits_in, labels, logits_out, beta, margin):
    def probabilities(row):
        top = max(row)
        raised = [math.exp(z - top) for z in row]
        return [r / sum(raised) for r in raised]

    def mean_entropy(rows):
        return sum(-sum(p * math.log(p) for p in probabilities(row)) for row in rows) / len(rows)

    cross = sum(
        -math.log(probabilities(row)[label]) for row, label in zip(logits_in, labels)
    ) / len(labels)
    return cross + beta * max(0.0, margin + mean_entropy(logits_in) - mean_entropy(logits_out))


@pytest.mark.parametrize("beta, margin", [(0.2, 0.4), (1.5, 0.0), (0.2, 3.0)])
def test_loss_equals_explicit_loops(beta, margin):
    generator = torch.Generator().manual_seed(1)
    inside, outside = (
        3 * torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (9, 5)
    )
    labels = torch.randint(6, (9,), generator=generator)
    loss, _ = leaveout.margin_loss(inside, labels, outside, beta, margin)
    assert loss.item() == pytest.approx(
        explicit_loss(inside.tolist(), labels.tolist(), outside.tolist(), beta, margin), rel=1e-12
    )


def test_margin_term_vanishes_with_its_gradient_when_the_margin_is_met():
    inside = (20 * torch.eye(4)).requires_grad_(True)  # sure: entropy 0
    outside = torch.zeros(4, 4, requires_grad=True)  # unsure: entropy ln 4 > 0.4
    loss, parts = leaveout.margin_loss(inside, torch.arange(4), outside)
    assert parts["hinge"].item() == 0 and loss.item() == pytest.approx(
        parts["cross_entropy"].item(), abs=0
    )
    loss.backward()
    assert not outside.grad.any()
    unmet, parts = leaveout.margin_loss(inside, torch.arange(4), 20 * torch.eye(4))
    assert parts["hinge"].item() == pytest.approx(0.4, abs=1e-4) and unmet > loss


# ---- networks and score ----------------------------------------------------------------------


def digest_of(tensor):
    return {
        "mean": tensor.mean().item(),
        "std": tensor.std().item(),
        "absmax": tensor.abs().max().item(),
        "first8": tensor.flatten()[:8].tolist(),
    }


@pytest.mark.parametrize("word", ["dense_8", "wide_8"])
def test_networks_equal_the_repository(values, golden, word):
    known = values["networks"][word]
    settings = Settings(
        arch={"dense_8": "densenet", "wide_8": "wrn"}[word],
        model_args={"dropout": 0.3} if word == "wide_8" else {},
    )
    network = golden.fill.fill(leaveout.build_network(settings, methods.Context(models)))
    state = network.state_dict()
    assert (
        len(state) == known["keys"]
        and sum(p.numel() for p in network.parameters()) == known["parameters"]
    )
    first, last = known["first_last"]
    assert [next(iter(state)), list(next(iter(state.values())).shape)] == first and [
        list(state)[-1],
        list(state["fc.bias"].shape),
    ] == last
    with torch.no_grad():
        logits = network(golden.fill.waves(2, 3, 32, 32))
    for name, value in digest_of(logits).items():
        assert value == pytest.approx(known["logits"][name], rel=1e-4, abs=1e-4)


def test_ensemble_score_equals_the_repository(values, golden):
    known = values["score"]
    networks = []
    for fold in range(1, 6):
        network = golden.fill.fill(models.build("densenet", 8), f"fold{fold}.")
        network.fc.weight.data.mul_(20)
        networks.append(network)
    settings = Settings(
        magnitude=known["magnitude"],
        temperature=known["temperature"],
        std=STD,
        mean=(0.5, 0.5, 0.5),
    )
    method = leaveout.LeaveOut(settings, networks, methods.Context(models))
    for side, start in (("in", 0), ("out", 6)):
        confidence, softmax = method.batch(golden.fill.waves(6, 3, 32, 32, start))
        for fold in range(5):
            of_fold = known["folds"][str(fold + 1)]
            assert np.abs(confidence[:, fold].numpy() - of_fold[f"score_{side}"]).max() < 1e-6
            if side == "in":
                full = np.zeros(10)
                full[of_fold["kept_classes"]] = softmax[0, fold]
                assert full == pytest.approx(
                    np.array(of_fold["softmax_first_image_T1"]), rel=2e-3, abs=1e-6
                )
        assert np.abs(confidence.sum(1).numpy() - known[f"sum_{side}"]).max() < 1e-6


def perturbed_by_hand(network, image, temperature, magnitude, std, gradient):
    """One image (C, H, W), one step at a time."""
    x = image[None].clone().requires_grad_(True)
    z = network(x)[0] / temperature
    p = torch.softmax(z, 0)
    loss = -torch.log(p[z.argmax()]) if gradient == "cross_entropy" else -(p * torch.log(p)).sum()
    loss.backward()
    moved = image.clone()
    for channel in range(3):
        sign = torch.ones_like(image[channel])
        sign[x.grad[0, channel] < 0] = -1
        moved[channel] -= magnitude * sign / std[channel]
    return moved


@pytest.mark.parametrize("gradient", ["cross_entropy", "entropy"])
@pytest.mark.parametrize("together", [False, True])
def test_score_equals_one_image_at_a_time(gradient, together):
    method = ensemble(gradient=gradient, together=together, magnitude=0.01, temperature=10.0)
    images = pictures(9)
    ours = method.score(images)
    networks = [small(fold) for fold in range(5)]
    for row, image in enumerate(method.preprocess(images.read(slice(0, 9)))):
        total = 0.0
        for network in networks:
            with torch.enable_grad():
                moved = perturbed_by_hand(network, image, 10.0, 0.01, STD, gradient)
            p = torch.softmax(network(moved[None])[0].double() / 10.0, 0).tolist()
            total += max(p) + sum(q * math.log(q) for q in p)
        assert ours[row].item() == pytest.approx(-total, abs=2e-6)


def test_paper_and_repository_perturb_differently():
    images = pictures(9)
    scores = [
        ensemble(magnitude=0.05, temperature=10.0, gradient=g).score(images)
        for g in ("cross_entropy", "entropy")
    ]
    assert (scores[0] - scores[1]).abs().max() > 1e-5


@pytest.mark.parametrize("change", [{"temperature": 5.0}, {"magnitude": 0.0}, {"magnitude": 0.05}])
def test_every_hyperparameter_changes_the_score(change):
    images, base = pictures(6), {"temperature": 10.0, "magnitude": 0.01}
    assert not torch.allclose(
        ensemble(**base).score(images), ensemble(**{**base, **change}).score(images), atol=1e-9
    )


def test_score_does_not_depend_on_batch_or_order():
    images = pictures(9)
    whole = ensemble(batch_size=9, temperature=10.0).score(images)
    assert torch.allclose(ensemble(batch_size=2, temperature=10.0).score(images), whole, atol=1e-6)
    order = np.array([3, 0, 8, 5, 1, 2, 7, 4, 6])
    assert torch.allclose(
        ensemble(temperature=10.0).score(images.subset(order)), whole[order], atol=1e-6
    )


def test_scoring_leaves_no_gradients_and_counts_passes():
    """A fold needs two forward passes and one backward pass per batch, and no weight gradients.

    Without a perturbation it needs one forward pass.
    """
    method = ensemble(batch_size=5)
    calls = []
    for network in method.networks:
        network.register_forward_hook(lambda *a: calls.append(torch.is_grad_enabled()))
    method.accuracy(pictures(5, labels=np.arange(5)))
    assert calls == [True, False] * 5
    assert all(p.grad is None for network in method.networks for p in network.parameters())
    method.score(pictures(5, labels=np.arange(5)))
    assert len(calls) == 10  # nothing is computed twice
    plain, calls = ensemble(magnitude=0.0), []
    for network in plain.networks:
        network.register_forward_hook(lambda *a: calls.append(torch.is_grad_enabled()))
    plain.score(pictures(5))
    assert calls == [False] * 5


def test_ensemble_classifies_by_the_mean_of_the_padded_softmaxes():
    labels = np.arange(9) % 10
    images, method = pictures(9, labels=labels), ensemble()
    expected = []
    for image in method.preprocess(images.read(slice(0, 9))):
        total = [0.0] * 10
        for fold, network in enumerate([small(fold) for fold in range(5)], 1):
            p = torch.softmax(network(image[None])[0], 0).tolist()
            for place, cls in enumerate(leaveout.kept_classes(10, fold).tolist()):
                total[cls] += p[place] / 5
        expected.append(max(range(10), key=total.__getitem__))
    assert method.predict(images).tolist() == expected
    assert method.accuracy(images) == pytest.approx(np.mean(np.array(expected) == labels))
    assert method.accuracy(pictures(3)) is None
    assert len(method.fold_accuracies(images)) == 5


def test_cache_serves_the_same_numbers_and_only_to_the_same_question(tmp_path):
    images, cache = pictures(6), Cache(tmp_path)
    first = ensemble(cache=cache).score(images)
    entries = len(list(tmp_path.iterdir()))
    again = ensemble(cache=cache)
    again._pass = None  # would fail if it were called
    assert torch.equal(again.score(images), first)
    for change in ({"temperature": 7.0}, {"magnitude": 0.1}, {"gradient": "entropy"}):
        ensemble(cache=cache, **change).score(images)
        entries += 1
        assert len(list(tmp_path.iterdir())) == entries


# ---- ODIN ------------------------------------------------------------------------------------


def test_odin_equals_the_authors_scores(reference, reference_data):
    """Hold our ODIN against the columns odin_* of scores.json.

    Their function adds the sign to the normalised input, and their score is larger for ID.
    """
    content = json.loads((reference / "dice" / "scores.json").read_text())
    root = reference_data("cifar10", "isun", "dtd")
    network = models.build("densenet", 10)
    models.checkpoints.load_into(
        network, reference / "dice" / "cifar10_densenet_checkpoint_100.pth.tar"
    )
    preprocess = Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    columns = {
        name: float(name.rpartition("eps")[2])
        for name in content["images"][0]
        if name.startswith("odin_")
    }
    made = {
        name: detectors.create("odin", temperature=1000.0, magnitude=eps, unit="normalised")
        for name, eps in columns.items()
    }
    assert len(made) == 2
    rows = content["images"][::4]  # 35 of the 140: every set, in a few seconds
    files = [row["file"] for row in rows]
    assert {file.split("/")[0] for file in files} >= {"cifar10"} and len(files) == 35
    pixels = np.stack([_prepared(root / file) for file in files])
    outputs = extract(
        network, ArrayImages(pixels), preprocess, batch_size=28, image_detectors=made.values()
    )
    for name, detector in made.items():
        theirs = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        assert (-detector.score(outputs) - theirs).abs().max() < 1e-5


def _prepared(file):
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, Resize

    with Image.open(file) as image:
        return np.asarray(Compose([Resize(32), CenterCrop(32)])(image.convert("RGB"))).transpose(
            2, 0, 1
        )


def test_odin_equals_one_image_at_a_time():
    network, images = small(3), pictures(6)
    preprocess = Preprocess((0.5, 0.5, 0.5), STD)
    detector = detectors.create("odin", temperature=10.0, magnitude=0.01)
    outputs = extract(network, images, preprocess, batch_size=6, image_detectors=[detector])
    for row, image in enumerate(preprocess(images.read(slice(0, 6)))):
        moved = perturbed_by_hand(network, image, 10.0, 0.01, STD, "cross_entropy")
        expected = torch.softmax(network(moved[None])[0].double() / 10, 0).max().item()
        assert detector.score(outputs)[row].item() == pytest.approx(-expected, abs=1e-6)
