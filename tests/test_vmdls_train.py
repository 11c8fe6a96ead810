"""VMDLS training: sampler, class statistics, learning rates, finetuning, resuming, the script.

Also the training of the auto-encoder.
"""

import json

import numpy as np
import pytest
import torch

import models
from ood import methods
from ood.config import InputError, build, read_json, split
from ood.data import ArrayImages
from ood.methods.vmdls.network import ClassStatistics, LatentNetwork, LatentSchedule
from ood.methods.vmdls.training import Objective, load_encoder
from ood.training.batches import BalancedBatches, batches_per_epoch
from ood.training.loop import make_optimizer
from tests.conftest import ROOT

VMDLS = methods.get("vmdls")
SIZES = {
    "densenet": (974, 32),
    "densenet64": (1006, 64),
    "resnet18": (992, 32),
    "vgg": (1696, 32),
    "vmdls_wrn": (1792, 32),
    "mnist_conv": (832, 32),
}
CPU = torch.device("cpu")


def toy(classes=4, per_class=12, seed=0):
    """Images (N, 1, 8, 8) whose brightness is their class."""
    labels = np.repeat(np.arange(classes), per_class)
    noise = np.random.default_rng(seed).integers(0, 40, (len(labels), 1, 8, 8))
    return ArrayImages(
        (noise + labels[:, None, None, None] * 50).astype(np.uint8),
        labels,
        name="toy",
        num_classes=classes,
    )


def balanced(images, classes, samples, **options):
    return BalancedBatches(
        images,
        classes,
        samples,
        transform=lambda pixels, chance: pixels.float(),
        device=CPU,
        **options,
    )


# ---- sampler


@pytest.mark.parametrize(
    "count, batch, expected",
    [
        (50_000, 80, 624),
        (50_000, 64, 781),
        (60_000, 160, 374),
        (50_000, 400, 124),
        (50_000, 200, 249),
    ],
)
def test_batches_per_epoch(count, batch, expected):
    assert batches_per_epoch(count, batch) == expected
    assert sum((k + 1) * batch < count for k in range(count)) == expected


def test_batches_are_balanced_and_follow_from_seed_and_epoch():
    images = toy(5, 20)
    batches = balanced(images, 3, 4, seed=7)
    assert len(batches) == batches_per_epoch(100, 12)
    for pixels, labels in batches.epoch(1):
        classes, counts = labels.unique(return_counts=True)
        assert len(classes) == 3 and (counts == 4).all() and pixels.shape == (12, 1, 8, 8)
        assert torch.equal(
            pixels.flatten(1).mean(1).sub(20).div(50).round().long(), labels
        )  # the images are those of the labels
    rows = lambda number, seed=7: balanced(images, 3, 4, seed=seed).draw(number)[0].tolist()
    assert rows(1) == rows(1) != rows(2) and rows(1) != rows(1, seed=8)


def test_a_class_list_is_used_up_before_it_begins_anew():
    rows, labels = balanced(toy(2, 12), 2, 5, steps=4).draw(1)
    for c in (0, 1):
        drawn = rows[labels == c].reshape(4, 5)
        assert len(set(drawn[:2].ravel())) == 10 and len(set(drawn[2:].ravel())) == 10


@pytest.mark.parametrize(
    "classes, samples, word",
    [
        (1, 4, "batch_classes"),
        (5, 4, "batch_classes"),
        (2, 1, "sample_count"),
        (2, 13, "sample_count"),
    ],
)
def test_sampler_refuses_what_gives_no_triplet(classes, samples, word):
    with pytest.raises(InputError, match=word):
        balanced(toy(), classes, samples)


# ---- class means and Gaussians


def test_class_statistics_equal_the_definition_and_absent_classes_keep_theirs():
    statistics = ClassStatistics(3, 2, 0.1, CPU)
    g = torch.Generator().manual_seed(0)
    z, labels = torch.randn(40, 2, generator=g), torch.arange(40) % 2  # class 2 never appears
    statistics.add(z[:25], labels[:25])
    statistics.add(z[25:], labels[25:])
    assert not statistics.means.any()
    statistics.close_epoch()
    for c in (0, 1):
        assert torch.allclose(statistics.means[c], z[labels == c].mean(0), atol=1e-6)
        assert torch.allclose(
            statistics.covariances[c], torch.cov(z[labels == c].T, correction=0), atol=1e-6
        )
    assert (
        statistics.means.isfinite().all()
        and not statistics.means[2].any()
        and statistics.seen.tolist() == [True, True, False]
    )
    before = statistics.means.clone()
    statistics.add(z[labels == 1] + 5, labels[labels == 1])  # an epoch that never draws class 0
    statistics.close_epoch()
    assert (
        torch.equal(statistics.means[0], before[0]) and (statistics.means[1] > before[1] + 4).all()
    )


def test_bounds_are_quantiles_under_the_gaussians_before():
    statistics = ClassStatistics(1, 2, 0.25, CPU)
    g, labels = torch.Generator().manual_seed(1), torch.zeros(50, dtype=torch.long)
    first, second = (torch.randn(50, 2, generator=g) for _ in range(2))
    statistics.add(first, labels)
    statistics.close_epoch()
    assert statistics.bounds.item() == 0
    own = torch.distributions.MultivariateNormal(
        statistics.means[0], statistics.covariances[0]
    ).log_prob(second)
    statistics.add(second, labels)
    statistics.close_epoch()
    assert statistics.bounds.item() == pytest.approx(torch.quantile(own, 0.25).item(), rel=1e-4)


def test_a_singular_covariance_counts_as_standard_normal():
    statistics = ClassStatistics(1, 2, 0.1, CPU)
    statistics.add(torch.ones(5, 2), torch.zeros(5, dtype=torch.long))
    statistics.close_epoch()
    z = torch.tensor([[1.0, 2.0]])
    assert statistics.log_likelihood(z).item() == pytest.approx(
        torch.distributions.Normal(0, 1).log_prob(z).sum().item(), rel=1e-6
    )


# ---- objective, schedule, network


def settings(**changes):
    return VMDLS.Settings(
        **{
            "id_dataset": "mnist5k",
            "arch": "small_cnn",
            "num_classes": 10,
            "model_args": {"width": 4},
            "latent_dim": 4,
            "optimizer": "adam",
            "lr": 1e-3,
            "epochs": 2,
            "steps": 3,
            "batch_classes": 4,
            "sample_count": 3,
            "margins_epoch": 1,
            "valid_images": 50,
            "ae_features": False,
            **changes,
        }
    )


def context(tmp_path, **options):
    return methods.Context(
        models,
        data_dir=tmp_path,
        checkpoints_dir=tmp_path / "runs",
        limit=200,
        log=lambda line: None,
        **options,
    )


def network(arch="small_cnn", latent=4, classes=10, channels=1, size=28, **options):
    return LatentNetwork(
        models.build(arch, classes, in_channels=channels, image_size=size, **options), latent
    )


def test_kl_begins_at_generation_epoch_and_the_margin_at_its_own():
    s = settings(generation_epoch=2, margins_epoch=3)
    objective = Objective(network(width=4), s, 10, CPU)
    batch = torch.rand(12, 1, 28, 28), torch.arange(4).repeat_interleave(3)
    seen = []
    for epoch in range(5):
        objective.begin(epoch)
        loss, parts = objective(batch)
        assert loss.item() == pytest.approx(parts["metric"].item() + parts["kl"].item(), rel=1e-6)
        seen.append((objective.margin, parts["kl"].item() > 0))
    assert seen == [
        (0.15, False),
        (0.15, False),
        (0.15, True),
        (pytest.approx(1.15), True),
        (pytest.approx(2.15), True),
    ]
    assert sum(len(z) for z, _ in objective.classes.samples) == 60


def rates(s, epochs):
    optimizer = make_optimizer("sgd", [torch.nn.Parameter(torch.zeros(1))], s.lr)
    schedule = LatentSchedule(
        optimizer, s.epochs, s.lr, s.step_size, s.step_gamma, s.finetune_lr if s.finetune else None
    )
    found = []
    for e in range(epochs):
        schedule.start(e + 0.5)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("step, drops", [(64, [85, 149]), (100, [121, 221, 321, 421])])
def test_learning_rates_of_finetuning(step, drops):
    found = rates(
        settings(finetune=True, weights="w", finetune_lr=0.5, lr=0.01, step_size=step), 500
    )
    assert set(found[:22]) == {0.5}  # heads alone in epochs 0..21
    for k, drop in enumerate(drops):
        assert found[drop - 1] == pytest.approx(0.01 * 0.1**k) and found[drop] == pytest.approx(
            0.01 * 0.1 ** (k + 1)
        )
    assert found[22] == pytest.approx(0.01)


def test_learning_rates_without_finetuning():
    found = rates(settings(lr=0.1, step_size=100), 250)
    assert [found[e] for e in (0, 99, 100, 199, 200)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize("name", SIZES)
def test_ensemble_sizes_and_one_pass(name):
    size, latent = SIZES[name]
    arch = name.removesuffix("64")
    mnist = arch == "mnist_conv"
    options = VMDLS.Settings(arch=arch, latent_dim=latent).network_options()
    net = network(arch, latent, 10, 1 if mnist else 3, 28 if mnist else 32, **options)
    for (
        layer
    ) in net.modules():  # running statistics of an untrained network let its activations overflow
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    net.eval()
    images = torch.rand(2, 1 if mnist else 3, *(2 * (28 if mnist else 32,)))
    calls = []
    next(m for m in net.encoder.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    with torch.inference_mode():
        ensemble = net.ensemble(images)
        assert ensemble.shape == (2, size) and len(calls) == 1
        mu, std = net(images)
        taps = net.encoder.taps(images)
        tap = net.first_tap(images)
    assert torch.allclose(ensemble[:, -latent:], mu, atol=1e-4) and (std > 0).all()
    assert torch.allclose(tap, taps[0], atol=1e-4) and torch.allclose(
        ensemble[:, : tap.shape[1]], tap, atol=1e-4
    )
    assert ("encoder.fc.weight" in dict(net.named_parameters())) == (arch == "densenet")


# ---- whole trainings


def test_training_resumed_equals_training_in_one_go(tmp_path):
    whole = VMDLS.train(settings(), context(tmp_path, out_dir=tmp_path / "a"))
    VMDLS.train(settings(epochs=1), context(tmp_path, out_dir=tmp_path / "b"))
    again = VMDLS.train(settings(), context(tmp_path, out_dir=tmp_path / "b", resume=True))
    one, two = whole.load("last.pt"), again.load("last.pt")
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])
    assert torch.equal(one["class_means"], two["class_means"]) and one["class_means"].any()
    start, *records = whole.records()
    assert (
        start["event"] == "start"
        and start["digests"]["train"]
        and start["versions"]["torch"]
        and again.records()[2]["event"] == "resume"
    )
    assert (
        [r["margin"] for r in records] == pytest.approx([0.15, 1.15])
        and "valid_accuracy" not in records[0]
        and "valid_accuracy" in records[1]
    )
    assert records[1]["loss"] == pytest.approx(records[1]["metric"] + records[1]["kl"], rel=1e-5)
    for file in ("log.csv", "figures/losses.png", "figures/latent.png"):
        assert (whole.folder / file).stat().st_size > 100
    with pytest.raises(InputError, match="lr"):
        VMDLS.train(settings(lr=0.5), context(tmp_path, out_dir=tmp_path / "b", resume=True))


def test_finetuning_freezes_the_encoder_then_trains_everything(tmp_path, monkeypatch):
    torch.manual_seed(3)
    source = models.build("small_cnn", 7, in_channels=1, image_size=28, width=4)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}},
        tmp_path / "w.pth",
    )
    monkeypatch.setattr("ood.methods.vmdls.training.UNFREEZE_AFTER", 1)
    monkeypatch.setattr("ood.methods.vmdls.network.UNFREEZE_AFTER", 1)
    s = dict(
        finetune=True, weights=str(tmp_path / "w.pth"), optimizer="sgd", finetune_lr=0.01, lr=0.001
    )
    frozen = VMDLS.train(settings(epochs=2, **s), context(tmp_path, out_dir=tmp_path / "r")).load(
        "last.pt"
    )["state_dict"]
    for key, value in source.state_dict().items():
        if key.endswith(("conv.weight", "0.weight", "1.weight", "1.bias")) and not key.startswith(
            "fc."
        ):
            assert torch.equal(frozen[f"encoder.{key}"], value), key
    assert not torch.equal(
        frozen["encoder.stage1.1.running_mean"], source.state_dict()["stage1.1.running_mean"]
    )  # as released
    run = VMDLS.train(
        settings(epochs=3, **s), context(tmp_path, out_dir=tmp_path / "r", resume=True)
    )
    free = run.load("last.pt")["state_dict"]
    assert not torch.equal(free["encoder.stage1.0.weight"], frozen["encoder.stage1.0.weight"])
    assert [r["lr"] for r in run.records() if "lr" in r] == pytest.approx([0.01, 0.01, 0.001])


def test_encoder_weights_must_fit(tmp_path):
    torch.save({"state_dict": {"stage1.0.weight": torch.zeros(1)}}, tmp_path / "w.pth")
    with pytest.raises(models.CheckpointError, match="missing"):
        load_encoder(network(width=4).encoder, str(tmp_path / "w.pth"), context(tmp_path))


@pytest.mark.parametrize(
    "key, value",
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("lower_bound", 2.0),
        ("jitter", -1.0),
        ("finetune", True),
        ("steps", 0),
    ],
)
def test_settings_are_checked_before_training(key, value):
    with pytest.raises(InputError, match=key):
        VMDLS.Settings(**{key: value})


def test_the_six_published_trainings():
    wanted = {
        "vmdls_cifar10_vgg": ("vgg", 32, "adam", 1e-3, 10, 8, 8, 781),
        "vmdls_cifar10_resnet18": ("resnet18", 32, "sgd", 1e-2, 10, 10, 8, 624),
        "vmdls_cifar10_densenet": ("densenet", 32, "sgd", 0.1, 30, 10, 8, 624),
        "vmdls_mnist": ("mnist_conv", 32, "adam", 1e-4, 1, 10, 16, 374),
        "vmdls_cifar100_densenet": ("densenet", 64, "sgd", 1e-3, 40, 20, 20, 124),
        "vmdls_cifar10_wresnet": ("vmdls_wrn", 32, "sgd", 1e-3, 40, 10, 20, 249),
    }
    for name, values in wanted.items():
        path = ROOT / "configs" / f"{name}.json"
        s = build(VMDLS.Settings, split(read_json(path), VMDLS.Settings, str(path))[1], str(path))
        count = 60_000 if s.id_dataset == "mnist" else 50_000
        assert (
            s.arch,
            s.latent_dim,
            s.optimizer,
            s.lr,
            s.margins_epoch,
            s.batch_classes,
            s.sample_count,
            batches_per_epoch(count, s.batch_classes * s.sample_count),
        ) == values
        assert (
            s.finetune == ("cifar100" in name or "wresnet" in name)
            and s.kl_coeff == 0.1
            and s.generation_epoch == 0
            and s.normalise
        )


def test_script_trains_vmdls_and_autoencoder(run_script, tmp_path):
    config = {
        "method": "vmdls",
        "id_dataset": "mnist5k",
        "num_classes": 10,
        "arch": "mnist_conv",
        "latent_dim": 4,
        "optimizer": "adam",
        "lr": 1e-3,
        "batch_classes": 2,
        "sample_count": 4,
        "epochs": 1,
        "valid_images": 20,
        "detectors": [],
        "steps": 2,
    }
    (tmp_path / "v.json").write_text(json.dumps(config))
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "method": "autoencoder",
                "id_dataset": "mnist5k",
                "arch": "mnist_conv",
                "mean": [0.0],
                "std": [1.0],
                "valid_images": 20,
                "batch_size": 8,
            }
        )
    )
    common = ("-checkpoints_dir", tmp_path / "runs", "-limit", 100, "-device", "cpu")
    for name, extra in (("v", ()), ("a", ("-epochs", 1, "-steps", 2))):
        done = run_script("ood_training.py", "-config", tmp_path / f"{name}.json", *common, *extra)
        assert done.returncode == 0, done.stderr
    kinds = {
        json.loads(p.read_text())["kind"]: p.parent
        for p in (tmp_path / "runs").glob("*/config.json")
    }
    assert set(kinds) == {"vmdls", "autoencoder"}
    stored = torch.load(kinds["autoencoder"] / "best.pt", weights_only=True)
    assert stored["preprocess"]["mean"] == [0.0] and stored["metrics"]["valid_mse"] > 0
    bad = run_script("ood_training.py", "-config", tmp_path / "v.json", *common, "-num_ood", 5)
    assert bad.returncode == 2 and "num_ood" in bad.stderr
