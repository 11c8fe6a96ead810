"""classifier_pretraining.py at tiny size: what it writes, kill and resume, bad input."""

import itertools
import json
import os
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import models
from ood import methods
from ood.config import Experiment, InputError
from ood.data import Preprocess, load
from ood.data.images import spread
from ood.evaluation import workbench
from ood.methods import heatmap
from ood.methods.heatmap.classifier import load_classifier
from ood.training import pretraining, runs
from ood.training.settings import resolve

SCRIPT = ROOT / "classifier_pretraining.py"
TINY = ("-device", "cpu", "-limit", "120", "-epochs", "2", "-batch_size", "32", "-width", "4")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def pretrain(monkeypatch, capsys):
    """pretrain('-epochs', 1) -> (exit code, stdout, stderr) of the real file.

    It runs in this process to save its imports.
    """

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["classifier_pretraining.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exit.value.code, *capsys.readouterr()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for a second one
    yield call
    torch.set_num_threads(threads)


def records(folder, kind):
    return [r for r in runs.Run(folder).records() if (r.get("event") or "epoch") == kind]


def weights(folder, name="last.pt"):
    return runs.Run(folder).load(name)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- what a run writes -----------------------------------------------------------------------


def test_files_of_a_run(tmp_path):
    """As a user calls it: both dash styles, the folder named after data set, network and time."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *TINY, "--checkpoints_dir", tmp_path, "--schedule", "cosine"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    (folder,) = tmp_path.glob("mnist5k_small_cnn_4_20*")
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.pt",
        "config.json",
        "last.pt",
        "log.jsonl",
    ]
    assert (
        done.stdout.startswith("device cpu")
        and len([x for x in done.stdout.splitlines() if x.startswith("epoch ")]) == 2
    )

    config = json.loads((folder / "config.json").read_text())
    expected = {
        "kind": "classifier",
        "id_dataset": "mnist5k",
        "arch": "small_cnn",
        "width": 4,
        "num_classes": 10,
        "schedule": "cosine",
        "epochs": 2,
    }
    assert expected.items() <= config.items() and "depth" in config
    found = runs.find_newest(
        tmp_path, {"kind": "classifier", "id_dataset": "mnist5k", "arch": "small_cnn"}
    )
    assert found.folder == folder

    (start,) = records(folder, "start")
    assert (start["train_images"], start["valid_images"], start["test_images"]) == (108, 12, 120)
    assert start["command"] and start["versions"]["torch"] and start["digests"]["train"]
    (end,) = records(folder, "end")
    for name, key in (("best.pt", "test_accuracy_best"), ("last.pt", "test_accuracy_last")):
        assert measured_again(folder / name) == pytest.approx(end[key])
    assert f"best {end['test_accuracy_best']:.2%} (epoch {end['best_epoch']})" in done.stdout


def measured_again(path):
    """Accuracy of a weight file, rebuilt from nothing but what it says about itself."""
    stored = models.checkpoints.read(path)
    assert (
        stored.format == "ood-1"
        and {"arch", "epoch", "metrics", "preprocess"} <= stored.meta.keys()
    )
    network = models.build(**stored.meta["arch"]).eval()
    models.checkpoints.load_into(network, path)
    test = load("mnist5k", "test", limit=120)
    preprocess = Preprocess(stored.meta["preprocess"]["mean"], stored.meta["preprocess"]["std"])
    with torch.inference_mode():
        predicted = network(preprocess(next(test.batches(120)))).argmax(1).numpy()
    return (predicted == test.labels).mean()


def test_a_short_run_learns(tmp_path, pretrain):
    """1,000 digits and three epochs are far from chance."""
    code, out, err = pretrain(
        "-device",
        "cpu",
        "-limit",
        800,
        "-epochs",
        3,
        "-batch_size",
        16,
        "-width",
        8,
        "-out_dir",
        tmp_path,
    )
    assert code == 0, err
    assert records(tmp_path, "end")[0]["test_accuracy_best"] > 0.6
    rates = [r["lr"] for r in records(tmp_path, "epoch")]
    assert rates[-1] < 0.01 and max(rates) > 0.01  # onecycle, the recipe of mnist5k


def test_seed_decides_everything(tmp_path, pretrain):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert pretrain(*TINY, "-epochs", 1, "-seed", seed, "-out_dir", tmp_path / name)[0] == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b")) and not same(
        weights(tmp_path / "a"), weights(tmp_path / "c")
    )


@pytest.mark.parametrize(
    "flags",
    (
        ("-valid_augment",),
        ("-augment", "none"),
        ("-optimizer", "adam"),
        ("-momentum", 0),
        ("-weight_decay", 0.1),
        ("-lr", 0.01),
        ("-nesterov",),
        ("-clip_norm", 0.01),
        ("-valid_split", 0.3),
        ("-mean", 0.1),
        ("-precision", "bf16"),
        ("-ema", 0.9),
        ("-sampler", "balanced"),
        ("-schedule", "constant"),
        ("-schedule", "steps", "-milestones", 1, "-gamma", 0.2),
    ),
)
def test_every_flag_has_an_effect(tmp_path, pretrain, flags):
    code, _, err = pretrain(*TINY, "-limit", 100, *flags, "-out_dir", tmp_path / "changed")
    assert code == 0, err
    if not (tmp_path.parent / "plain").exists():
        assert pretrain(*TINY, "-limit", 100, "-out_dir", tmp_path.parent / "plain")[0] == 0
    changed, plain = (
        records(folder, "epoch")[-1] for folder in (tmp_path / "changed", tmp_path.parent / "plain")
    )
    assert changed["valid_loss"] != plain["valid_loss"]
    if flags == ("-valid_augment",):  # it changes what is measured, not what is learned
        assert changed["loss"] == plain["loss"]


def test_json_gives_the_same_keys_and_flags_win(tmp_path, pretrain):
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "dataset": "mnist5k",
                "arch": "small_cnn",
                "width": 4,
                "epochs": 7,
                "limit": 60,
                "augment": "none",
            }
        )
    )
    assert (
        pretrain(
            "-config",
            tmp_path / "c.json",
            "-epochs",
            1,
            "-device",
            "cpu",
            "-out_dir",
            tmp_path / "run",
        )[0]
        == 0
    )
    config = runs.Run(tmp_path / "run").config
    assert (config["epochs"], config["limit"], config["augment"], config["width"]) == (
        1,
        60,
        "none",
        4,
    )
    assert (
        pretrain("-config", tmp_path / "run" / "config.json", "-out_dir", tmp_path / "again")[0]
        == 0
    )
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_recipe_of_the_heatmap_paper():
    """What the paper's code does for CIFAR and Tiny ImageNet, as resolved without flags."""
    cifar = resolve({"id_dataset": "cifar10"})
    assert (
        cifar.arch,
        cifar.epochs,
        cifar.batch_size,
        cifar.lr,
        cifar.momentum,
        cifar.weight_decay,
    ) == ("resnet18", 100, 200, 0.1, 0.9, 5e-4)
    assert (
        cifar.schedule,
        cifar.patience,
        cifar.gamma,
        cifar.valid_split,
        cifar.augment,
        cifar.mean,
    ) == ("plateau", 10, 0.1, 0.01, "crop_flip", (0.5,))
    assert not cifar.nesterov and not cifar.valid_augment
    tiny = resolve({"id_dataset": "tinyimagenet"})
    assert (tiny.arch, tiny.epochs, tiny.batch_size, tiny.augment) == (
        "resnet50",
        200,
        128,
        "resized_crop_flip",
    )


# ---- image folders ---------------------------------------------------------------------------


def image_folder(
    root, parts=("train", "test"), classes=("cat", "dog"), count=12, shape=(32, 32, 3)
):
    for part in parts:
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.RandomState(number).randint(0, 100, shape) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def test_any_image_folder(tmp_path, pretrain):
    photos = image_folder(tmp_path / "photos")
    arguments = (
        "-arch",
        "small_resnet",
        "-epochs",
        2,
        "-batch_size",
        8,
        "-device",
        "cpu",
        "-checkpoints_dir",
        tmp_path / "runs",
    )
    code, out, err = pretrain("-dataset", photos, *arguments)
    assert code == 0, err
    (folder,) = (tmp_path / "runs").glob("photos_small_resnet_20*")
    best = runs.Run(folder).load("best.pt")
    assert runs.Run(folder).config["num_classes"] == 2 and best["preprocess"]["size"] == 32
    assert best["class_names"] == sorted(p.name for p in (photos / "train").iterdir())


def test_folder_without_parts_is_tested_on_its_validation_images(tmp_path, pretrain):
    image_folder(tmp_path, parts=("photos",))
    code, out, err = pretrain(
        "-dataset",
        tmp_path / "photos",
        "-arch",
        "small_cnn",
        "-epochs",
        1,
        "-device",
        "cpu",
        "-out_dir",
        tmp_path / "run",
    )
    assert code == 0 and "has no test part" in out
    assert records(tmp_path / "run", "start")[0]["test_images"] == 2


@pytest.mark.parametrize("limit", (10, 37, 500))
def test_limit_takes_the_same_images_everywhere(limit):
    settings = resolve({"limit": limit})
    images = pretraining.load_images(settings, "train")
    same = load("mnist5k", "train", limit=limit), load("mnist5k", "train").limited(limit)
    assert {images.digest} == {part.digest for part in same} and len(images) == limit
    assert set(images.labels) == set(range(10))


def test_spread_keeps_rare_classes_and_stays_even_where_it_has_them_all():
    labels = np.repeat([0, 1, 2, -1], [50, 3, 46, 1])
    rows = spread(100, 10, labels)
    assert len(rows) == 10 and (np.diff(rows) > 0).all()
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [1, 4, 1, 4]
    assert (spread(100, 50, labels[::-1]) == spread(100, 50)).all()
    assert (spread(100, 3, labels) == spread(100, 3)).all()  # too few for four classes


def test_limit_below_the_number_of_classes_is_refused(tmp_path, pretrain):
    code, _, err = pretrain("-limit", 9, "-device", "cpu", "-out_dir", tmp_path / "run")
    assert code == 2 and "-limit is 9, but 'mnist5k' has 10 classes" in err
    assert not (tmp_path / "run").exists()


# ---- resume ----------------------------------------------------------------------------------


def half_written(payload, path):
    path.write_bytes(b"half")


# What the run dies in: (object, name of its function, what it still does before).
MOMENTS = {
    "step": (pretraining.Training, "step", None),  # within an epoch
    "log": (runs.Run, "log", None),
    "save": (torch, "save", half_written),  # of best.pt and last.pt, twice an epoch
    "replace": (os, "replace", None),  # written, but not in place yet
    "validate": (pretraining.Training, "validate", None),
}


def run_in_child(arguments, moment=None, count=0):
    """Run the script in a fork of this process, killed by SIGKILL at the count-th `moment`.

    Returns: the signal that ended it, 0 for none.
    """
    child = os.fork()
    if not child:
        try:
            if moment:
                owner, name, before = MOMENTS[moment]
                real, calls = getattr(owner, name), itertools.count(1)

                def dying(*given):
                    if next(calls) < count:
                        return real(*given)
                    if before:
                        before(*given)
                    os.kill(os.getpid(), signal.SIGKILL)

                setattr(owner, name, dying)
            sys.argv = ["classifier_pretraining.py", *map(str, arguments)]
            runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_run_that_is_killed_ends_in_the_same_weights(tmp_path, pretrain):
    """A plateau schedule, dropout and a moving average have a state of their own."""
    arguments = ("-device", "cpu", "-arch", "small_wideresnet", "-width", 1, "-limit", 60)
    arguments += ("-batch_size", 32, "-epochs", 4, "-schedule", "plateau", "-patience", 0)
    arguments += ("-model_args", "dropout=0.3", "-ema", 0.9, "-resume", "-out_dir")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    code, _, err = pretrain(*arguments, straight)
    assert code == 0, err
    moments = [("step", 1), ("save", 1), ("validate", 2), ("log", 3), ("replace", 3), ("save", 1)]
    for moment, count in moments:
        assert run_in_child((*arguments, killed), moment, count) == signal.SIGKILL, moment
    done = len(records(killed, "epoch"))
    assert done == 3 and list(killed.glob(".*"))  # something is left of the last kill
    code, out, err = pretrain(*arguments, killed)
    assert code == 0, err
    assert f"epoch {done}/4" in out and f"epoch {done - 1}/4" not in out
    for name in ("last.pt", "best.pt"):
        assert same(weights(straight, name), weights(killed, name))
    logs = [
        [
            {k: v for k, v in r.items() if k not in ("seconds", "images_per_s")}
            for r in records(folder, "epoch")
        ]
        for folder in (straight, killed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    assert records(straight, "end") == records(killed, "end")
    assert sorted(p.name for p in killed.iterdir()) == sorted(runs.FILES)


def test_resume_of_a_finished_run_repeats_its_result(tmp_path, pretrain):
    first = pretrain(*TINY, "-out_dir", tmp_path)
    again = pretrain("-resume", "-out_dir", tmp_path)
    assert (
        again[0] == 0
        and again[1].splitlines()[-2:] == first[1].splitlines()[-2:]
        and "epoch 1/" not in again[1]
    )


def test_resume_finds_the_newest_run_of_these_very_settings(tmp_path, pretrain):
    arguments = (*TINY, "-schedule", "constant", "-checkpoints_dir", tmp_path)
    assert pretrain(*arguments, "-seed", 1)[0] == pretrain(*arguments, "-seed", 2)[0] == 0
    code, out, _ = pretrain(*arguments, "-seed", 1, "-epochs", 3, "-resume")
    assert code == 0 and "epoch 3/3" in out and "epoch 2/3" not in out
    assert sorted(len(records(folder, "epoch")) for folder in tmp_path.iterdir()) == [2, 3]
    code, _, err = pretrain(*arguments, "-seed", 3, "-resume")
    assert code == 2 and "no run of these very settings" in err and len([*tmp_path.iterdir()]) == 2


def trained(root, name, started, **given):
    settings = {"id_dataset": "mnist5k", "arch": "small_cnn", **given}
    run = pretraining.kind("cross_entropy").create(
        "x", {"width": 32, "model_args": {}, **settings}, out_dir=root / name
    )
    run.update(started=started)
    network = models.build("small_cnn", 10, in_channels=1, image_size=28, width=run.config["width"])
    run.save("best.pt", runs.payload(models, network, 1, {}))


def test_evaluation_and_heatmap_find_the_same_classifier(tmp_path):
    trained(tmp_path, "plain", "2024-01-01")
    trained(tmp_path, "narrow", "2024-01-02", width=8)
    trained(tmp_path, "by_options", "2024-01-03", width=12, model_args={"width": 12})
    context = methods.Context(models, checkpoints_dir=tmp_path)
    for given, name in (({}, "plain"), ({"width": 8}, "narrow"), ({"width": 12}, "by_options")):
        wanted = dict(id_dataset="mnist5k", arch="small_cnn", **given)
        evaluated = workbench.weight_file(models, Experiment(**wanted), tmp_path)
        found = load_classifier(heatmap.Settings(**wanted), context)[2]
        assert evaluated == found == tmp_path / name / "best.pt"
    with pytest.raises(InputError, match="'by_options' has width 12 instead of 13; train one: "):
        pretraining.newest_classifier(
            models, Experiment("mnist5k", arch="small_cnn", width=13), tmp_path
        )


def test_prolonged_run_equals_a_longer_one(tmp_path, pretrain):
    for folder, epochs in (("short", 1), ("long", 2)):
        assert (
            pretrain(
                *TINY, "-schedule", "constant", "-epochs", epochs, "-out_dir", tmp_path / folder
            )[0]
            == 0
        )
    assert pretrain("-resume", "-epochs", 2, "-out_dir", tmp_path / "short")[0] == 0
    assert (
        same(weights(tmp_path / "short"), weights(tmp_path / "long"))
        and runs.Run(tmp_path / "short").config["epochs"] == 2
    )


# ---- bad input and failed runs ---------------------------------------------------------------


def assert_refused(result, *words):
    code, out, err = result
    assert (
        code == 2
        and len(err.strip().splitlines()) == 1
        and err.startswith("classifier_pretraining.py: error: ")
    ), err
    assert all(word in err for word in words), err
    assert "epoch" not in out


@pytest.mark.parametrize(
    "arguments, words",
    (
        (("-epohs", 3), ("-epohs", "did you mean '-epochs'")),
        (("-epochs", "many"), ("-epochs", "many")),
        (("-epochs", 0), ("'epochs' is 0", "at least 1")),
        (("-batch_size", 0), ("'batch_size' is 0",)),
        (("-lr", -1), ("'lr' is -1",)),
        (("-lr", "nan"), ("'lr' is nan",)),
        (("-limit", 0), ("'limit' is 0",)),
        (("-seed", -1), ("'seed' is -1",)),
        (("-valid_split", 1), ("'valid_split' is 1",)),
        (("-ema", 1), ("'ema' is 1",)),
        (("-valid_split", 0, "-schedule", "plateau"), ("plateau", "-valid_split is 0")),
        (("-schedule", "steps"), ("-milestones",)),
        (("-nesterov", "-momentum", 0), ("-nesterov",)),
        (("-mean", 0.1, 0.2), ("-mean has 2 values", "1 channel")),
        (("-dataset", "mnist5"), ("mnist5", "did you mean 'mnist5k'")),
        (("-dataset", "mnist"), ("-arch is needed",)),
        (
            ("-dataset", "cifar10", "-data_dir", "/nonexistent"),
            ("cifar10", "/nonexistent", "-download"),
        ),
        (("-dataset", "letters", "-arch", "small_cnn"), ("no labels",)),
        (("-dataset", "./nowhere", "-arch", "small_cnn"), ("nowhere",)),
        (("-arch", "smal_cnn"), ("smal_cnn", "did you mean 'small_cnn'")),
        (("-arch", "wrn"), ("wrn", "adaptive")),
        (("-depth", 5), ("depth",)),
        (("-model_args", "dropout"), ("KEY=VALUE", "'dropout'")),
        (("-model_args", "dropout=0.1"), ("dropout", "small_cnn")),
        (("-width", 0), ("width",)),
        (("-augment", "crop_flp"), ("crop_flp",)),
        (("-device", "cuda:77"), ("cuda:77",)),
        (("-config", "nowhere.json"), ("nowhere.json",)),
    ),
)
def test_bad_input_is_one_line(tmp_path, pretrain, arguments, words):
    result = pretrain(
        "-device", "cpu", "-limit", 50, "-epochs", 1, "-out_dir", tmp_path / "run", *arguments
    )
    assert_refused(result, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content, words",
    (
        ('{"epoch": 3}', ("unknown key 'epoch'", "did you mean 'epochs'")),
        ('{"epochs": "three"}', ("'epochs'", "int")),
        ('{"epochs": 3', ("not valid JSON",)),
        ('{"schedule": "cosin"}', ("cosin", "cosine")),
    ),
)
def test_bad_config_is_one_line(tmp_path, pretrain, content, words):
    (tmp_path / "c.json").write_text(content)
    assert_refused(pretrain("-config", tmp_path / "c.json", "-out_dir", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_training_set(tmp_path, pretrain):
    arguments = (
        "-arch",
        "small_cnn",
        "-epochs",
        1,
        "-device",
        "cpu",
        "-out_dir",
        tmp_path / "run",
        "-dataset",
    )
    assert_refused(
        pretrain(*arguments, image_folder(tmp_path / "one", classes=("cat",))), "one class only"
    )
    assert_refused(
        pretrain(*arguments, image_folder(tmp_path / "wide", shape=(32, 40, 3))), "40x32", "-size"
    )
    odd = image_folder(tmp_path / "odd")
    (odd / "test" / "cat").rename(odd / "test" / "cow")
    assert_refused(pretrain(*arguments, odd), "odd/test", "'cat'")
    broken = image_folder(tmp_path / "broken")
    (broken / "train" / "cat" / "3.png").write_bytes(
        (broken / "train" / "cat" / "3.png").read_bytes()[:90]
    )
    assert_refused(pretrain(*arguments, broken), "3.png")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_nor_mixed(tmp_path, pretrain):
    assert pretrain(*TINY, "-out_dir", tmp_path)[0] == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert_refused(pretrain(*TINY, "-out_dir", tmp_path), "holds a run already", "-resume")
    assert_refused(pretrain(*TINY, "-lr", 0.3, "-resume", "-out_dir", tmp_path), "lr 0.1", "lr 0.3")
    assert_refused(
        pretrain(*TINY, "-epochs", 5, "-resume", "-out_dir", tmp_path), "onecycle over 2 epochs"
    )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_resume_from_a_damaged_file_is_one_line(tmp_path, pretrain):
    assert pretrain(*TINY, "-out_dir", tmp_path)[0] == 0
    (tmp_path / "last.pt").write_bytes(b"")
    assert_refused(pretrain("-resume", "-out_dir", tmp_path), "last.pt")


def test_loss_that_is_not_finite_stops_the_run(tmp_path, pretrain):
    code, out, err = pretrain(*TINY, "-lr", 1e30, "-schedule", "constant", "-out_dir", tmp_path)
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert "in epoch 1, batch 2" in err and "-lr" in err
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "best.pt").exists()
