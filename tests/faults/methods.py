"""Methods: settings that mean nothing, files and runs that do not fit, command lines of test.py."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import models
from faults import Fault
from ood import methods
from ood.config import InputError, build

NAN, HUGE = float("nan"), 10**26
BASE = {"heatmap": {"id_dataset": "mnist5k"}, "leaveout": {}, "vmdls": {}, "autoencoder": {}}
SETTINGS = (  # (method, its setting, the value, words of the message)
    ("heatmap", "lr", 0, ("lr", "above 0")),
    ("heatmap", "lr", NAN, ("lr is nan",)),
    ("heatmap", "b1", 1, ("b1 is 1.0", "below 1")),
    ("heatmap", "b2", -0.1, ("b2 is -0.1", "at least 0")),
    ("heatmap", "n_epochs", 0, ("n_epochs is 0", "at least 1")),
    ("heatmap", "epochs", -2, ("epochs is -2",)),
    ("heatmap", "batch_size", HUGE, ("batch_size", "at most 1e+09")),
    ("heatmap", "num_ood", 0, ("num_ood is 0",)),
    ("heatmap", "num_classes", 0, ("num_classes is 0", "at least 2")),
    ("heatmap", "num_classes", 10**12, ("num_classes", "at most")),
    ("heatmap", "z_dim", 0, ("z_dim is 0",)),
    ("heatmap", "fw_layers", 5, ("fw_layers is 5", "at most 4")),
    ("heatmap", "pairing", "x", ("pairing", "correct, released")),
    ("heatmap", "scaling", "max", ("scaling", "none, minmax, released")),
    ("heatmap", "resizing", "x", ("resizing", "test, released")),
    ("heatmap", "std", [0.5, 0], ("std is 0.0", "above 0")),
    ("heatmap", "size", 10**9, ("size", "at most 100000")),
    ("heatmap", "resize", -1, ("resize is -1",)),
    ("heatmap", "seed", -1, ("seed is -1", "at least 0")),
    ("heatmap", "seed", HUGE, ("seed",)),
    ("heatmap", "decoder", {"blocks": 3}, ("decoder: unknown key 'blocks'", "channels")),
    ("heatmap", "decoder", {"channels": [64, 0]}, ("channels", "at least 1")),
    ("heatmap", "decoder", {"bottleneck": [1]}, ("bottleneck", "type int")),
    ("leaveout", "folds", 1, ("folds is 1", "at least 2")),
    ("leaveout", "fold", 0, ("fold is 0",)),
    ("leaveout", "beta", -1, ("beta is -1",)),
    ("leaveout", "margin", NAN, ("margin is nan",)),
    ("leaveout", "momentum", 1, ("momentum is 1.0", "below 1")),
    ("leaveout", "weight_decay", -1e-4, ("weight_decay",)),
    ("leaveout", "gamma", 0, ("gamma is 0", "above 0")),
    ("leaveout", "temperature", 0, ("temperature is 0", "above 0")),
    ("leaveout", "temperature", float("inf"), ("temperature is inf",)),
    ("leaveout", "magnitude", 2, ("magnitude is 2", "at most 1")),
    ("leaveout", "validation_images", 0, ("validation_images is 0",)),
    ("leaveout", "split_seed", -1, ("split_seed is -1",)),
    ("leaveout", "milestones", [5, -1], ("milestones is -1",)),
    ("leaveout", "augment", "flp", ("augment is 'flp'", "did you mean 'flip'")),
    ("leaveout", "gradient", "x", ("gradient", "cross_entropy, entropy")),
    ("vmdls", "latent_dim", 0, ("latent_dim is 0",)),
    ("vmdls", "num_classes", 1, ("num_classes is 1", "at least 2")),
    ("vmdls", "batch_classes", 1, ("batch_classes is 1", "at least 2")),
    ("vmdls", "sample_count", 1, ("sample_count is 1",)),
    ("vmdls", "steps", 0, ("steps is 0",)),
    ("vmdls", "prior_std", 0, ("prior_std is 0", "above 0")),
    ("vmdls", "lower_bound", 1.5, ("lower_bound is 1.5", "at most 1")),
    ("vmdls", "margin_max_distance", -1, ("margin_max_distance is -1",)),
    ("vmdls", "margin_jumps", NAN, ("margin_jumps is nan",)),
    ("vmdls", "jitter", -1e-6, ("jitter is -1e-06", "at least 0")),
    ("vmdls", "finetune", True, ("finetune needs", "-weights")),
    ("vmdls", "autoencoder_mean", [0.5], ("autoencoder_mean and autoencoder_std",)),
    ("vmdls", "test_sample_count", 0, ("test_sample_count is 0",)),
    ("vmdls", "augment", "crop", ("augment is 'crop'", "crop_flip")),
    ("autoencoder", "latent_dim", 0, ("latent_dim is 0",)),
    ("autoencoder", "lr", -1, ("lr is -1",)),
    ("autoencoder", "valid_images", 0, ("valid_images is 0",)),
    ("autoencoder", "arch", "resnet34", ("resnet34", "mnist_conv, resnet18, resnet50")),
)


def setting(method: str, name: str, value, words: tuple[str, ...]) -> list[Fault]:
    """The same fault from a config and from a call."""
    kind, given = methods.get(method).Settings, {**BASE[method], name: value}
    shown, own = f"{method} {name}={value}"[:60], dict(error=InputError)
    quoted = tuple(word.replace(f"{name} is", f"'{name}' is") for word in words)
    if name in ("decoder", "augment"):  # checked by what the settings are made of
        quoted = words
    return [
        Fault(f"config {shown}", action=lambda _: build(kind, given), words=quoted, **own),
        Fault(f"call {shown}", action=lambda _: kind(**given), words=words, **own),
    ]


def file_of(folder: Path, name: str, **values) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def released_run(folder: Path) -> None:
    """A run of the heatmap authors without their classifier."""
    file_of(folder, "c.json", id_dataset="mnist5k", ood_dataset="letters", arch="small_cnn")
    run = folder / "checkpoints" / "theirs"
    run.mkdir(parents=True)
    network = models.build("small_cnn", 10, in_channels=1, image_size=28)
    decoder = models.decoder_for(network).state_dict()
    torch.save({"min": 0.0, "max": 1.0, 149: {"generator": decoder}}, run / "model.pt")


def damaged_run(folder: Path) -> None:
    released_run(folder)
    (folder / "checkpoints" / "theirs" / "model.pt").write_bytes(b"no weights")


EVALUATE = ("-config", "{tmp}/c.json", "-checkpoints_dir", "{tmp}/checkpoints", "-device", "cpu")
OUT = ("-out_dir", "{tmp}/out")
LEAVEOUT = (
    *("-config", "configs/mnist5k_small_leaveout.json", "-out-dataset", "letters"),
    *("-device", "cpu", *OUT),
)
VMDLS = ("--enc_type", "small_cnn", "--known_dataset", "mnist5k", "-device", "cpu", *OUT)

ROWS = [
    *(fault for row in SETTINGS for fault in setting(*row)),
    Fault(
        "authors' decoder without their classifier",
        "eval_ood.py",
        (*EVALUATE, "-checkpoint_name", "theirs", *OUT),
        words=("needs their classifier", "Models/mnist5k_small_cnn.pt", "-classifier"),
        prepare=released_run,
    ),
    Fault(
        "damaged decoder",
        "eval_ood.py",
        (*EVALUATE, "-checkpoint_name", "theirs", *OUT),
        words=("model.pt",),
        prepare=damaged_run,
    ),
    Fault(
        "no decoder run yet",
        "eval_ood.py",
        (*EVALUATE, *OUT),
        words=("no run with kind=heatmap", "python3 ood_training.py -config {tmp}/c.json"[:31]),
        prepare=lambda folder: file_of(folder, "c.json", id_dataset="mnist5k", ood_dataset="x"),
    ),
    Fault(
        "classifier of a config without method",
        "eval_ood.py",
        ("-config", "configs/mnist5k_small_cnn.json", "-classifier", "x.pt", *OUT),
        words=("-classifier means nothing", "leave it out"),
    ),
    Fault(
        "decoder of a folder that holds another kind of run",
        "eval_ood.py",
        (*EVALUATE, "-checkpoint_name", "other", *OUT),
        words=("kind 'vmdls'", "not a heatmap decoder"),
        prepare=lambda folder: (
            released_run(folder),
            (folder / "checkpoints" / "other").mkdir(),
            file_of(folder / "checkpoints" / "other", "config.json", kind="vmdls"),
        ),
    ),
    *(
        Fault(f"test.py {' '.join(words)}", "test.py", (*LEAVEOUT, *words), words=said)
        for words, said in (
            (("-limit", "0"), ("-limit",)),
            (("-limit", "-3"), ("-limit",)),
            (("-magnitude", "nan"), ("'magnitude' is nan",)),
            (("-magnitude", "-1"), ("'magnitude' is -1",)),
            (("-temperature", "0"), ("'temperature' is 0",)),
            (("-batch_size", "0"), ("'batch_size' is 0",)),
            (("-gpu", "0"), ("-device or -gpu",)),
            (("-wide",), ("not both",)),
            (("-out-dataset", "mnist5k"), ("in-distribution set itself",)),
            (("-out-dataset", "lettters"), ("did you mean 'letters'",)),
            (("-checkpoints_dir", "{tmp}/none"), ("fold 1 is missing", "-fold 1 -out_dir")),
        )
    ),
    *(
        Fault(f"test.py vmdls {' '.join(words)}", "test.py", (*VMDLS, *words), words=said)
        for words, said in (
            (("--known_dataset", "letters"), ("no labelled set",)),
            (("--data_transforms", "cifar"), ("3 channel(s)", "mnist5k has 1")),
            (("--ae_transforms", "bolt"), ("did you mean 'bolts'",)),
            (("--latent_dim", "0"), ("latent_dim is 0",)),
            (("--class_num", "1"), ("num_classes is 1",)),
            (("--jitter", "nan"), ("jitter is nan",)),
            (("--limit", "0"), ("limit",)),
            (("--seed", "-1"), ("seed is -1",)),
            ((), ("no run with kind=vmdls", "ood_training.py --enc_type small_cnn --latent")),
        )
    ),
]
