"""Training of a fold: batches, separate passes, selection, validation images, resuming.

Also the files that the ensemble reads.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from ood import methods
from ood.config import Experiment, InputError, build, read_json, split
from ood.data import ArrayImages, load
from ood.methods import leaveout
from ood.methods.leaveout import training
from ood.methods.leaveout.images import fold_data
from ood.methods.leaveout.settings import Settings
from ood.training import batches, loop, runs

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(
    id_dataset="mnist5k",
    arch="small_cnn",
    model_args={"width": 4},
    epochs=2,
    batch_size=50,
    lr=0.05,
    schedule="steps",
    milestones=(1,),
    augment="none",
    validation_dataset="noise",
    validation_split="test",
    validation_id="train",
    validation_images=60,
)


def settings(**changes):
    return build(Settings, {**TINY, **changes})


def context(folder, **options):
    return methods.Context(models, checkpoints_dir=folder, **{"limit": 400, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs of fold 2."""
    folder = tmp_path_factory.mktemp("leaveout")
    return leaveout.LeaveOut.train(settings(fold=2), context(folder))


# ---- batches ---------------------------------------------------------------------------------


class Counting(ArrayImages):
    """Images whose pixels are their row number."""

    def __init__(self, labels):
        pixels = (
            np.arange(len(labels), dtype=np.float32)[:, None, None, None].repeat(4, 2).repeat(4, 3)
        )
        super().__init__(pixels, labels)


def paired(inside, outside, size, seed=0):
    images = Counting(np.zeros(inside + outside, dtype=int))
    common = dict(
        batch_size=size, transform=lambda pixels, generator: pixels, device=torch.device("cpu")
    )
    return batches.PairedBatches(
        loop.ImageBatches(images, indices=np.arange(inside), seed=loop.mix(seed, 0), **common),
        loop.ImageBatches(
            images, indices=np.arange(inside, inside + outside), seed=loop.mix(seed, 1), **common
        ),
    )


def test_kept_images_drive_the_epoch_and_left_out_ones_are_recycled_reshuffled():
    batches = list(paired(40, 10, 5).epoch(1))
    assert len(batches) == 8 == len(paired(40, 10, 5))
    rows = lambda images: images[:, 0, 0, 0].long().tolist()  # noqa: E731
    assert sorted(sum((rows(images) for images, _, _ in batches), [])) == list(range(40))
    turns = [rows(batches[i][2]) + rows(batches[i + 1][2]) for i in range(0, 8, 2)]
    assert all(
        sorted(turn) == list(range(40, 50)) for turn in turns
    )  # every recycling shows each left-out image once
    assert len({tuple(turn) for turn in turns}) == 4  # in another order
    again = list(paired(40, 10, 5).epoch(1))
    assert all(torch.equal(a, b) for one, other in zip(batches, again) for a, b in zip(one, other))
    assert rows(list(paired(40, 10, 5).epoch(2))[0][0]) != rows(batches[0][0])


def test_last_partial_batches_are_kept():
    sizes = [(len(images), len(outside)) for images, _, outside in paired(23, 7, 5).epoch(1)]
    assert [s for s, _ in sizes] == [5, 5, 5, 5, 3] and [s for _, s in sizes] == [5, 2, 5, 2, 5]


def test_streams_go_through_the_network_apart(monkeypatch, tmp_path):
    """A step has two forward passes in training mode, kept images first.

    One joint batch would mix the batch statistics.
    """
    passes = []

    def watched(s, c):
        network = models.build("small_cnn", 8, in_channels=1, image_size=28, width=4)
        network.register_forward_hook(
            lambda m, inputs, _: passes.append((m.training, len(inputs[0])))
        )
        return network

    monkeypatch.setattr(training, "build_network", watched)
    leaveout.LeaveOut.train(
        settings(epochs=1, validation_dataset=None), context(tmp_path, limit=200)
    )
    run = runs.Run(tmp_path / "mnist5k_fold_1_small_cnn_checkpoint")
    start = run.records()[0]
    steps = -(-start["kept_images"] // 50)
    assert len(passes) == 2 * steps and all(training for training, _ in passes)
    assert sum(size for _, size in passes[0::2]) == start["kept_images"]
    normalisation = {
        k: v for k, v in run.load("last.pt")["state_dict"].items() if "num_batches_tracked" in k
    }
    assert normalisation and all(
        v.item() == 2 * steps for v in normalisation.values()
    )  # the running averages see both streams


# ---- data ------------------------------------------------------------------------------------


def test_a_fold_trains_on_all_images_and_labels_them_by_position():
    data = fold_data(settings(fold=3, validation_dataset=None), context("", limit=None))
    kept = leaveout.kept_classes(10, 3).tolist()
    labels = data.train.labels
    assert len(data.inside) + len(data.outside) == len(data.train) == 4000
    assert set(labels[data.outside]) == set(range(10)) - set(kept)
    assert (
        all(kept[data.targets[row]] == labels[row] for row in data.inside[::50])
        and (data.targets[data.outside] == -1).all()
    )


def test_validation_images_from_the_training_set_are_not_trained_on():
    data = fold_data(settings(), context("", limit=None))
    images = load("mnist5k", "train")
    taken = set(leaveout.held_out(4000, 60).tolist())
    assert (
        len(data.valid_id) == 60
        and len(data.train) == 3940
        and len(data.valid_ood) == 60
        and data.valid_ood.name == "noise"
    )
    assert np.array_equal(
        data.train.labels, images.labels[[row for row in range(4000) if row not in taken]]
    )


def test_validation_images_from_the_test_set_are_the_held_out_positions():
    data = fold_data(
        settings(validation_id="test", validation_images=1000), context("", limit=None)
    )
    assert len(data.train) == 4000 and len(data.valid_id) == 100  # a tenth of 1,000
    test = load("mnist5k", "test")
    assert np.array_equal(data.valid_id.labels, test.labels[leaveout.held_out(1000)])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"fold": 6}, "folds are 1 to 5"),
        ({"folds": 3}, "cannot be split"),
        ({"lr": 0.0}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"validation_dataset": "nowhere"}, "unknown data set"),
        ({"num_classes": 20}, "10 classes"),
        ({"id_dataset": "letters"}, "labelled"),
        ({"id_dataset": "cifar10", "size": None}, "cifar10"),
        ({"id_dataset": "./photos"}, "num_classes"),
    ],
)
def test_bad_settings_are_one_line_before_the_first_epoch(tmp_path, change, words):
    with pytest.raises((InputError, models.ModelError), match=words):
        leaveout.LeaveOut.train(settings(**change), context(tmp_path, data_dir=tmp_path / "data"))
    assert not any(tmp_path.iterdir())


def test_missing_validation_set_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="iSUN"):
        leaveout.LeaveOut.train(
            settings(validation_dataset="iSUN", validation_split="test"),
            context(tmp_path / "runs", data_dir=tmp_path),
        )
    assert not (tmp_path / "runs").exists()


# ---- selection -------------------------------------------------------------------------------


def released_auroc(known, novel):
    """The repository's validation AUROC, threshold by threshold."""
    thresholds = sorted({0.0, 1.0} | {s + 1e-4 for s in known} | {s + 1e-4 for s in novel})
    area, before = 0.0, 1.0
    for d in thresholds:
        tpr, fpr = (sum(s >= d for s in part) / len(part) for part in (known, novel))
        area += (before - fpr) * tpr
        before = fpr
    return area + fpr * tpr


def test_selection_rules():
    generator = np.random.RandomState(0)
    known, novel = 1 - generator.beta(1, 20, 60) ** 2, 1 - generator.beta(1, 9, 50) ** 2
    assert training.selection_auroc(known, novel, "released") == pytest.approx(
        released_auroc(known, novel), abs=1e-12
    )
    pairs = np.mean([(k > n) + 0.5 * (k == n) for k in known for n in novel])
    assert training.selection_auroc(known, novel, "exact") == pytest.approx(pairs, abs=1e-12)
    assert training.selection_auroc(known, novel, "exact") != training.selection_auroc(
        known, novel, "released"
    )


def test_best_epoch_is_the_first_with_the_highest_validation_auroc(trained):
    epochs = [record for record in trained.records() if "lr" in record]
    best = max(epochs, key=lambda record: (record["valid_auroc"], -record["epoch"]))
    assert trained.load("best.pt")["epoch"] == best["epoch"] and len(epochs) == 2
    assert [record["lr"] for record in epochs] == pytest.approx(
        [0.05, 0.005]
    )  # milestone at the start of epoch 2
    assert trained.records()[-1]["event"] == "end" and training.finished(trained.folder, 2)
    assert not training.finished(trained.folder, 3)


# ---- runs ------------------------------------------------------------------------------------


def weights(run, name="last.pt"):
    return run.load(name)["state_dict"]


def test_a_resumed_fold_equals_an_undisturbed_one(trained, tmp_path, monkeypatch):
    saves = []
    save = runs.Run.save
    monkeypatch.setattr(
        runs.Run,
        "save",
        lambda self, name, payload: (
            save(self, name, payload),
            saves.append(name),
            name == "last.pt" and 1 / 0,
        ),
    )
    with pytest.raises(ZeroDivisionError):
        leaveout.LeaveOut.train(settings(fold=2), context(tmp_path))  # killed after the first epoch
    monkeypatch.undo()
    folder = tmp_path / trained.folder.name
    assert not training.finished(folder, 2)
    with pytest.raises(InputError, match="-resume"):
        leaveout.LeaveOut.train(settings(fold=2), context(tmp_path))
    run = leaveout.LeaveOut.train(settings(fold=2), context(tmp_path, resume=True))
    for name in ("last.pt", "best.pt"):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                weights(run, name).values(), weights(trained, name).values(), strict=True
            )
        )
    assert [r["epoch"] for r in run.records() if "lr" in r] == [1, 2]


def test_folds_and_seeds_train_different_networks(trained, tmp_path):
    other = leaveout.LeaveOut.train(
        settings(fold=2, seed=1, epochs=1), context(tmp_path, limit=100)
    )
    assert not torch.equal(weights(other)["fc.weight"], weights(trained)["fc.weight"])


def test_a_run_is_not_continued_with_other_settings(trained):
    for change in ({"fold": 3}, {"beta": 0.5}, {"seed": 4}, {"margin": 0.1}):
        with pytest.raises(InputError, match=next(iter(change))):
            leaveout.LeaveOut.train(
                settings(**{"fold": 2, **change}),
                context(trained.folder.parent, resume=True, out_dir=trained.folder),
            )
    assert training.continued(trained, settings(fold=2, temperature=5.0)).temperature == 5.0


# ---- what the ensemble reads -----------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, fold, name",
    [
        ("densenet", 1, "cifar10_fold_1_dense_checkpoint"),
        ("wrn", 5, "cifar10_fold_5_wide_checkpoint"),
        ("small_cnn", 2, "cifar10_fold_2_small_cnn_checkpoint"),
    ],
)
def test_folder_names_are_the_repositorys(arch, fold, name):
    assert leaveout.folder_name(Settings(arch=arch), fold) == name


def repository_files(folder, s):
    """Five weight files as the repository writes them, with a NumPy scalar inside."""
    networks = []
    for fold in range(1, 6):
        torch.manual_seed(fold)
        network = leaveout.build_network(s, methods.Context(models))
        nn.init.normal_(network.fc.weight)
        target = folder / leaveout.folder_name(s, fold)
        target.mkdir(parents=True)
        torch.save(
            {
                "epoch": 99,
                "state_dict": network.state_dict(),
                "best_prec1": np.float64(0.98),
                "opt": {},
            },
            target / "model_best.pth.tar",
        )
        networks.append(network.eval())
    return networks


def test_weight_files_of_the_repository_load(tmp_path):
    s = Settings(
        arch="densenet",
        depth=10,
        std=(0.2, 0.2, 0.2),
        mean=(0.5, 0.5, 0.5),
        magnitude=0.0,
        temperature=1.0,
    )
    networks = repository_files(tmp_path, s)
    method = leaveout.LeaveOut.load(s, methods.Context(models, checkpoints_dir=tmp_path))
    images = ArrayImages(np.random.RandomState(0).randint(0, 256, (4, 3, 32, 32)).astype(np.uint8))
    x = method.preprocess(images.read(slice(0, 4)))
    with torch.no_grad():
        expected = sum(leaveout.confidence(network(x)) for network in networks)
    assert torch.allclose(method.score(images), -expected, atol=1e-5)
    assert torch.equal(
        leaveout.LeaveOut.load(s, methods.Context(models), tmp_path).score(images),
        method.score(images),
    )


def test_a_missing_or_foreign_fold_is_named(trained, tmp_path):
    s = settings()
    with pytest.raises(InputError, match="fold 1 is missing.*train_all.py"):
        leaveout.LeaveOut.load(s, context(trained.folder.parent))
    with pytest.raises(InputError, match="'densenet'"):
        leaveout.weight_file(trained.folder, dataclasses.replace(s, arch="densenet"), 2)
    assert leaveout.weight_file(trained.folder, s, 2).name == "best.pt"


# ---- configs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*leaveout*.json")), ids=lambda p: p.stem
)
def test_configs_are_complete(path):
    values = read_json(path)
    for_evaluation, for_method = split(values, leaveout.LeaveOut.Settings, str(path))
    experiment, s = build(Experiment, for_evaluation), build(Settings, for_method)
    leaveout.check(s)
    assert (
        experiment.method == "leaveout"
        and (ROOT / "configs" / "benchmarks" / f"{experiment.benchmark}.json").is_file()
    )
    network = leaveout.build_network(s, methods.Context(models)) if s.arch != "wrn" else None
    assert network is None or network.fc.out_features == 8 * s.num_classes // 10
    if s.id_dataset.startswith("cifar"):
        assert (s.epochs, s.batch_size, s.lr, s.milestones, s.beta, s.margin, s.weight_decay) == (
            100,
            100,
            0.1,
            (50, 75),
            0.2,
            0.4,
            5e-4,
        )
        sets = {"Imagenet", "Imagenet_resize", "LSUN", "LSUN_resize"}
        assert set(s.repository) == set(s.magnitudes) == set(values["paper"]["leaveout"]) == sets
        assert all(
            set(row) == {"fpr95", "detection_error", "auroc", "aupr_in", "aupr_out"}
            for row in s.repository.values()
        )


def test_published_numbers_are_where_they_belong():
    dense = read_json(ROOT / "configs" / "cifar10_densenet_leaveout.json")
    assert dense["paper"]["leaveout"]["Imagenet"] == {
        "fpr95": 0.0123,
        "detection_error": 0.0263,
        "auroc": 0.9965,
        "aupr_in": 0.9968,
        "aupr_out": 0.9964,
    }
    wide = json.loads((ROOT / "configs" / "cifar100_wideresnet_leaveout.json").read_text())
    assert wide["repository"]["LSUN_resize"] == {
        "fpr95": 0.1516,
        "detection_error": 0.0795,
        "auroc": 0.9719,
        "aupr_in": 0.9764,
        "aupr_out": 0.9635,
    }


# ---- scripts ---------------------------------------------------------------------------------


def test_benchmark_script_compares_before_it_times(run_script):
    found = run_script(
        "scripts/bench_leaveout.py",
        "-archs",
        "small_cnn",
        "-batch_size",
        6,
        "-steps",
        1,
        "-rounds",
        1,
        "-device",
        "cpu",
    )
    assert found.returncode == 0, found.stderr
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == [
        "train small_cnn",
        "score small_cnn",
    ]


def test_reproduction_script_at_tiny_size(run_script, tmp_path):
    words = (
        "-seeds",
        0,
        "-epochs",
        1,
        "-limit",
        120,
        "-device",
        "cpu",
        "-checkpoints_dir",
        tmp_path,
    )
    found = run_script("scripts/reproduce_leaveout.py", *words, env={"OMP_NUM_THREADS": "1"})
    assert found.returncode == 0, found.stderr
    rows = [
        line.split(" | ")
        for line in found.stdout.splitlines()
        if line.startswith(("ensemble", "a single fold", "plain classifier"))
    ]
    assert [len(row) for row in rows] == [6] * 12 + [
        2
    ] * 4  # AUROC and FPR95 of six scores; accuracies
    assert all(0 <= float(value.split()[0]) <= 100 for row in rows for value in row[1:])
