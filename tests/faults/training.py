"""Trainings that cannot be: settings out of range, flags of the READMEs that clash, broken runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from faults import Fault
from ood.cli import RunError
from ood.config import InputError
from ood.training import batches, lock, loop, runs
from ood.training.settings import resolve

CLASSIFIER = ("-device", "cpu", "-limit", "50", "-epochs", "1", "-out_dir", "{tmp}/out")
RUN = ("-device", "cpu", "-resume", "-out_dir", "{tmp}/run")  # a folder that `prepare` fills
KEPT = ("**/*.tmp", "out", "run/last.pt", "run/best.pt")


def refused(*flags, words):
    return Fault(
        f"classifier {' '.join(map(str, flags))}"[:60],
        "classifier_pretraining.py",
        (*CLASSIFIER, *flags),
        words=words,
    )


def setting(key, value, *words):
    """A setting of a classifier that resolve() must refuse."""
    shown = repr(value) if len(repr(value)) < 20 else f"{repr(value)[:8]}..."
    return Fault(
        f"setting {key}={shown}",
        action=lambda tmp: resolve({key: value}),
        error=InputError,
        words=(f"'{key}'", *words),
    )


def run_folder(config: dict | str | None = None, **files: bytes):
    """Lay the folder of a run, {tmp}/run."""

    def prepare(tmp: Path):
        folder = tmp / "run"
        folder.mkdir()
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (folder / "config.json").write_text(text)
        for name, content in files.items():
            (folder / f"{name}.pt").write_bytes(content)

    return prepare


SAVED = {
    "kind": "classifier",
    "id_dataset": "mnist5k",
    "arch": "small_cnn",
    "width": 4,
    "epochs": 1,
    "limit": 50,
    "batch_size": 64,
    "schedule": "onecycle",
    "valid_split": 0.1,
}


def broken(name, prepare, *flags, words, script="classifier_pretraining.py", left=KEPT):
    return Fault(
        name, script, (*RUN, *flags), words=words, prepare=prepare, left_behind=left, exit_code=2
    )


def a_config(content):
    """Lay {tmp}/c.json."""

    def prepare(tmp: Path):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp / "c.json").write_text(text)

    return prepare


def of_config(name, content, words):
    return Fault(
        f"config {name}",
        "classifier_pretraining.py",
        ("-config", "{tmp}/c.json", *CLASSIFIER),
        words=words,
        prepare=a_config(content),
    )


def held(tmp: Path):
    """The lock of a file system without locks, by an owner that nobody can look up."""
    owner = {"host": "another-host", "pid": 7, "since": "1999-01-01T00:00:00"}
    (tmp / lock.NAME).write_text(json.dumps(owner))
    kept, lock.fcntl = lock.fcntl, None
    try:
        with lock.locked(tmp):
            pass
    finally:
        lock.fcntl = kept


def own(tmp: Path):
    run = runs.create("x", {}, out_dir=tmp / "run")
    with run.locked(), run.locked():
        pass


def foreign(tmp: Path):
    """Lay a run whose last.pt is of another network."""
    run_folder(SAVED)(tmp)
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp / "run" / "last.pt")


FOLD = ("--fold", "1", "-device", "cpu", "-c", "{tmp}/out")
MAIN = ("--enc_type", "small_cnn", "--known_dataset", "mnist5k", "-device", "cpu")
MAIN += ("-out_dir", "{tmp}/out", "--max_epochs", "1", "-limit", "40")


def of_readme(common, *flags, words):
    name = "train.py" if common is FOLD else "main.py"
    return Fault(
        f"{name} {' '.join(flags)}"[:60], "ood_training.py", (*common, *flags), words=words
    )


ROWS = [
    # Settings, one beyond each bound.
    setting("epochs", 0, "at least 1"),
    setting("epochs", -3, "at least 1"),
    setting("epochs", 10**12, "at most"),
    setting("epochs", 2.5, "int"),
    setting("epochs", True, "int"),
    setting("batch_size", 0, "at least 1"),
    setting("batch_size", 10**15, "at most"),
    setting("ood_batch_size", 0, "at least 1"),
    setting("lr", 0, "above 0"),
    setting("lr", float("nan"), "nan"),
    setting("lr", float("inf"), "inf"),
    setting("momentum", 1, "below 1"),
    setting("momentum", -0.1, "at least 0"),
    setting("weight_decay", -1e-9, "at least 0"),
    setting("gamma", 0, "above 0"),
    setting("gamma", float("nan"), "nan"),
    setting("patience", -1, "at least 0"),
    setting("clip_norm", 0, "above 0"),
    setting("ema", 1, "below 1"),
    setting("ema", -0.1, "at least 0"),
    setting("valid_split", 1, "below 1"),
    setting("valid_split", -0.1, "at least 0"),
    setting("milestones", [3, -1], "at least 0"),
    setting("milestones", 3, "list"),
    setting("seed", -1, "at least 0"),
    setting("seed", 10**26, "at most"),
    setting("seed", "one", "int"),
    setting("num_classes", 0, "at least 2"),
    setting("num_classes", 10**12, "at most"),
    setting("size", 0, "at least 1"),
    setting("width", 0, "at least 1"),
    setting("depth", -2, "at least 1"),
    setting("limit", 0, "at least 1"),
    setting("num_workers", 0, "at least 1"),
    setting("num_workers", 10**9, "at most"),
    setting("std", [0.0], "above 0"),
    setting("mean", [float("nan")], "nan"),
    setting("schedule", "cosin", "cosine"),
    setting("precision", "fp16", "bf16"),
    setting("epoch", 3, "did you mean 'epochs'"),
    # The same from a command line, and what only the data or the network can refuse.
    refused("-seed", 10**26, words=("seed",)),
    refused("-epochs", 0, words=("epochs", "at least 1")),
    refused("-limit", 9, words=("-limit is 9", "10 classes", "-limit 10")),
    refused("-loss", "cross_entropi", words=("did you mean 'cross_entropy'",)),
    refused("-loss", "logitnorm", "-loss_args", "t=nan", words=("t",)),
    refused("-init", "{tmp}/none.pt", words=("none.pt",)),
    refused("-ood_dataset", "letters", words=("does not learn from outliers",)),
    refused("-loss", "outlier_exposure", "-ood_dataset", "leters", words=("'letters'",)),
    refused("-ood_batch_size", 8, words=("no outliers",)),
    refused("-schedule", "steps", words=("-milestones",)),
    refused("-nesterov", "-momentum", 0, words=("-nesterov",)),
    refused("-width", 100_000, words=("width",)),
    Fault(
        "classifier into a folder that is a file",
        "classifier_pretraining.py",
        (*CLASSIFIER[:-1], "{tmp}/file/run"),
        words=("cannot make the run folder", "-out_dir"),
        prepare=lambda tmp: (tmp / "file").write_text(""),
    ),
    Fault(
        "classifier with an empty -out_dir",
        "classifier_pretraining.py",
        (*CLASSIFIER[:-1], ""),
        words=("-out_dir",),
    ),
    Fault(
        "run folders in a file",
        "classifier_pretraining.py",
        (*CLASSIFIER[:-2], "-checkpoints_dir", "{tmp}/file"),
        words=("cannot make the run folder",),
        prepare=lambda tmp: (tmp / "file").write_text(""),
    ),
    of_config("that is a list", [1], ("JSON object",)),
    of_config("cut off", '{"epochs": 3', ("not valid JSON",)),
    of_config("with a misspelt key", {"epoch": 3}, ("did you mean 'epochs'",)),
    of_config("with text for a number", {"epochs": "3"}, ("'epochs'", "int")),
    of_config("with classes that the set has not", {"num_classes": 7}, ("10 classes", "7")),
    # Runs that cannot be continued.
    Fault(
        "a second run in a folder",
        "classifier_pretraining.py",
        ("-device", "cpu", "-limit", "50", "-epochs", "1", "-out_dir", "{tmp}/run"),
        words=("holds a run already", "-resume"),
        prepare=run_folder(SAVED),
        left_behind=KEPT,
    ),
    broken("a run of another kind", run_folder({"kind": "vmdls"}), words=("kind 'vmdls'",)),
    broken(
        "a run without config.json",
        run_folder(last=b"x"),
        words=("no readable config.json",),
        left=(),
    ),
    broken("a run with half a config.json", run_folder('{"kind": "cl'), words=("config.json",)),
    broken(
        "another learning rate",
        run_folder({**SAVED, "lr": 0.1}),
        "-lr",
        "0.2",
        words=("lr 0.1", "0.2"),
    ),
    broken(
        "another length of a cosine",
        run_folder(SAVED),
        "-epochs",
        "3",
        words=("onecycle", "another schedule"),
    ),
    broken(
        "half a last.pt",
        run_folder(SAVED, last=b"PK\x03\x04half"),
        words=("last.pt", "delete that file"),
        left=("**/*.tmp", "run/best.pt"),
    ),
    broken("a last.pt of another network", foreign, words=("does not fit",), left=("**/*.tmp",)),
    Fault(
        "no run of these settings to resume",
        "classifier_pretraining.py",
        ("-resume", "-checkpoints_dir", "{tmp}"),
        words=("no run of these very settings", "-out_dir"),
    ),
    Fault(
        "a run that this process trains",
        action=own,
        error=InputError,
        words=(f"process {os.getpid()}",),
        left_behind=("run/.lock",),
    ),
    Fault(
        "a run that another host trains",
        action=held,
        error=InputError,
        words=("process 7 on another-host", "delete"),
        left_behind=(),
    ),
    # The loop.
    Fault(
        "an unknown schedule",
        action=lambda tmp: loop.Schedule(None, "cosin", 3),
        error=InputError,
        words=("did you mean 'cosine'",),
    ),
    Fault(
        "an unknown optimiser",
        action=lambda tmp: loop.make_optimizer("sgdd", [], 0.1),
        error=InputError,
        words=("did you mean 'sgd'",),
    ),
    Fault(
        "a class without images",
        action=lambda tmp: batches.class_rows([0, 2]),
        error=InputError,
        words=("class 1",),
    ),
    Fault(
        "a loss that is not finite",
        action=lambda tmp: loop.Means(3).add(torch.tensor(float("nan")), {}, 4),
        error=RunError,
        words=("nan", "epoch 3", "batch 1", "-lr"),
    ),
    # The READMEs' commands.
    of_readme(FOLD, "--fold", "6", words=("fold", "6")),
    of_readme(FOLD, "--num-classes", "7", words=("--num-classes is 7", "10 classes")),
    of_readme(FOLD, "--gpu", "0", words=("not both",)),
    of_readme(FOLD, "-out_dir", "{tmp}/other", words=("different run folders",)),
    of_readme(FOLD, "--resume", "{tmp}/none.tar", words=("none.tar",)),
    of_readme(FOLD, "--epochs", "0", words=("epochs", "at least 1")),
    of_readme(FOLD, "--in-dataset", "cifar11", words=("cifar11",)),
    of_readme(FOLD, "-data_dir", "{tmp}/none", words=("cifar10", "-download")),
    of_readme(MAIN, "--gpus", "0,", words=("not both",)),
    of_readme(MAIN, "--first_conv", words=("--first_conv",)),
    of_readme(MAIN, "--data_transforms", "mnits", words=("did you mean 'mnist'",)),
    of_readme(MAIN, "--data_transforms", "cifar", words=("3 channel(s)", "has 1")),
    of_readme(MAIN, "--enc_out_dim", "7", words=("--enc_out_dim is 7",)),
    of_readme(MAIN, "--class_num", "11", words=("10 classes", "11")),
    of_readme(MAIN, "--class_num", "1", words=("num_classes",)),
    of_readme(MAIN, "--known_dataset", "letters", words=("no labelled set",)),
    of_readme(MAIN, "--finetune", words=("-weights",)),
    of_readme(MAIN, "--lr", "-1", words=("lr",)),
    Fault(
        "a flag that means nothing to the config",
        "ood_training.py",
        ("-config", "configs/mnist5k_small_ood.json", "-fold", "1", "-out_dir", "{tmp}/out"),
        words=("-fold means nothing",),
    ),
    # All folds.
    Fault(
        "a fold that is not there",
        "train_all.py",
        (
            "-config",
            "configs/mnist5k_small_leaveout.json",
            "-folds",
            "9",
            "-dry_run",
            "-checkpoints_dir",
            "{tmp}",
        ),
        words=("fold", "9"),
    ),
    Fault(
        "a fold twice",
        "train_all.py",
        (
            "-config",
            "configs/mnist5k_small_leaveout.json",
            "-folds",
            "1",
            "1",
            "-dry_run",
            "-checkpoints_dir",
            "{tmp}",
        ),
        words=("twice",),
    ),
    Fault(
        "a config of another method",
        "train_all.py",
        ("-config", "configs/mnist5k_small_ood.json", "-dry_run"),
        words=("leave-out",),
    ),
    Fault(
        "a config and a network",
        "train_all.py",
        ("-config", "configs/mnist5k_small_leaveout.json", "-arch", "densenet", "-dry_run"),
        words=("not both",),
    ),
    Fault(
        "devices named twice",
        "train_all.py",
        ("-gpu", "0", "-devices", "cpu", "-dry_run"),
        words=("not both",),
    ),
]
