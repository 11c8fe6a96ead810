"""Faults at the root: configs, weight files, networks, the cache, what torchrun sets."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import models
from faults import Fault
from models.checkpoints import CheckpointError, read
from ood import cli, distributed, metrics
from ood.cache import Cache, content_key
from ood.config import InputError
from ood.outputs import Outputs

CONFIG = {"id_dataset": "mnist5k", "arch": "small_cnn", "num_classes": 10, "benchmark": "demo"}
OPTIONS = ("-device", "cpu", "-limit", "10", "-out_dir", "{tmp}/out", "-cache_dir", "{tmp}/cache")
ROOT_SCRIPTS = ("classifier_pretraining.py", "ood_training.py", "eval_ood.py", "train_all.py")


# ---- configs


def config(content: str | bytes):
    """Lay c.json with this content."""

    def prepare(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "c.json").write_bytes(data)

    return prepare


def bad_config(name: str, content: str | bytes, *words: str) -> list[Fault]:
    """The same file for the three scripts that read a config."""
    scripts = ("eval_ood.py", "ood_training.py", "classifier_pretraining.py")
    arguments = ("-config", "{tmp}/c.json", "-out_dir", "{tmp}/out")
    return [
        Fault(f"{name} ({s})", s, arguments, words=("c.json", *words), prepare=config(content))
        for s in scripts
    ]


def setting(name: str, words: tuple[str, ...], **values) -> Fault:
    """A config for eval_ood.py with these values."""
    content = json.dumps({**CONFIG, **values})
    arguments = ("-config", "{tmp}/c.json", "-checkpoint", "{tmp}/w.pt", *OPTIONS)

    def prepare(folder: Path) -> None:
        config(content)(folder)
        lay_weights(folder)

    return Fault(name, "eval_ood.py", arguments, words=words, prepare=prepare)


CONFIGS = [
    *bad_config("nested 100,000 deep", '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", "too deeply"),
    *bad_config("integer of 5,000 digits", '{"seed": ' + "7" * 5000 + "}", "not valid JSON"),
    *bad_config("NaN", '{"lr": NaN}', "NaN is no number in JSON"),
    *bad_config("not UTF-8", b'{"arch": "\xff\xfe"}', "not valid JSON", "utf-8"),
    *bad_config("cut off", '{"arch": "small', "not valid JSON"),
    *bad_config("a list", "[]", "must hold a JSON object"),
    setting("negative seed in a config", ("'seed' is -4",), seed=-4),
    setting("huge seed in a config", ("'seed' is", "at most"), seed=2**63),
    setting("0 classes in a config", ("'num_classes' is 0; it must be",), num_classes=0),
    setting("10^12 classes in a config", ("10000000000", "num_classes"), num_classes=10**12),
    setting("10^30 classes in a config", ("num_classes",), num_classes=10**30),
    setting("endless depth", ("4000 at most",), arch="densenet", depth=6 * 10**9 + 4),
    setting("endless width", ("small_cnn", "width=1000000000"), width=10**9),
]


# ---- flags


FLAGS = [
    *(Fault(f"-epoc is no flag of {s}", s, ("-epoc", "3"), words=("-epoc",)) for s in ROOT_SCRIPTS),
    *(Fault(f"-limi is no flag of {s}", s, ("-limi=3",), words=("-limi",)) for s in ROOT_SCRIPTS),
    *(
        Fault(f"-seed {seed[:8]} ({s})", s, ("-seed", seed, *more), words=("seed", "is"))
        for seed in ("-4", str(10**26))
        for s, more in (
            ("classifier_pretraining.py", ("-out_dir", "{tmp}/out")),
            ("eval_ood.py", OPTIONS),
        )
    ),
    Fault(
        "a cache folder that is a file",
        "eval_ood.py",
        (*OPTIONS[:-1], "{tmp}/c.json"),
        words=("cache", "c.json' is a file"),
        prepare=config("{}"),
    ),
    Fault(
        "images of 100,000 pixels a side",
        "classifier_pretraining.py",
        ("-size", "100000", "-limit", "10", "-out_dir", "{tmp}/out"),
        words=("100000", "memory"),
    ),
]


# ---- weight files


def lay_weights(folder: Path, change=lambda state: state) -> None:
    network = models.build("small_cnn", 10, in_channels=1, image_size=28)
    torch.save(change(network.state_dict()), folder / "w.pt")


def retyped(dtype):
    def change(state):
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}

    return change


def head(change):
    return lambda state: {**state, "fc.weight": change(state["fc.weight"])}


def weights(name: str, words: tuple[str, ...], change) -> Fault:
    """A weight file for eval_ood.py, changed."""
    arguments = ("-checkpoint", "{tmp}/w.pt", *OPTIONS)
    return Fault(
        name,
        "eval_ood.py",
        arguments,
        words=("w.pt", *words),
        prepare=lambda folder: lay_weights(folder, change),
    )


def damaged(name: str, words: tuple[str, ...], damage) -> Fault:
    """A weight file whose bytes are changed."""

    def action(folder: Path) -> None:
        lay_weights(folder)
        damage(folder / "w.pt")
        read(folder / "w.pt")

    return Fault(name, action=action, error=CheckpointError, words=("w.pt", *words))


class Gadget:
    """Would run a command if a file with it were unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


WEIGHTS = [
    weights("int64 weights", ("another type", "file int64, network float32"), retyped(torch.int64)),
    weights("complex64 weights", ("another type", "complex64"), retyped(torch.complex64)),
    weights("bool weights", ("another type", "bool"), retyped(torch.bool)),
    weights("sparse weights", ("fc.weight is sparse",), head(torch.Tensor.to_sparse)),
    weights("meta weights", ("fc.weight is without values",), head(lambda w: w.to("meta"))),
    weights("weights of another shape", ("another shape", "fc.weight"), head(lambda w: w[:, :3])),
    weights("no tensors", ("state dict",), lambda state: {"state_dict": {}}),
    weights("a number", ("found a int",), lambda state: 3),
    weights("a list of tensors", ("found a list",), lambda state: list(state.values())),
    weights("numbers for tensors", ("expected",), lambda state: dict.fromkeys(state, 1.0)),
    weights("code in a weight file", ("might run code",), lambda state: {"x": Gadget()}),
    damaged("empty weight file", ("empty",), lambda file: file.write_bytes(b"")),
    damaged("truncated weight file", ("damaged",), lambda file: os.truncate(file, 3000)),
    damaged("text as weights", ("not a PyTorch",), lambda file: file.write_bytes(b"weights")),
    damaged(
        "folder as weights",
        ("is a folder",),
        lambda file: (file.unlink(), file.mkdir(parents=True)),
    ),
    damaged("weights that are gone", ("no such file",), Path.unlink),
]


# ---- functions


def fault(name: str, action, *words: str, error=InputError) -> Fault:
    return Fault(name, action=lambda folder: action(), error=error, words=words)


def launched(**changes: str):
    """Join the processes of an environment that torchrun would not make."""
    usual = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")

    def action() -> None:
        with mock.patch.dict(os.environ, {**usual, **changes}):
            distributed.begin()

    return action


def as_outputs(features, logits=None):
    logits = torch.zeros(4, 2) if logits is None else logits
    return lambda: Outputs(features, logits, torch.zeros(4), None)


class NoHead(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3))).softmax(1)


def build(arch: str, classes=10, **options):
    return lambda: models.build(arch, classes, **options)


MODEL = models.ModelError
FUNCTIONS = [
    *(
        fault(f"{name}={value[:9]}", launched(**{name: value}), f"{name} is", "torchrun")
        for name, value in (
            ("WORLD_SIZE", "abc"),
            ("WORLD_SIZE", "-2"),
            ("WORLD_SIZE", "1e400"),
            ("MASTER_PORT", "notaport"),
            ("MASTER_PORT", "70000"),
            ("RANK", "5"),
            ("RANK", ""),
            ("LOCAL_RANK", "x"),
        )
    ),
    fault("sparse features", as_outputs(torch.zeros(4, 3).to_sparse()), "features", "sparse"),
    fault("meta features", as_outputs(torch.zeros(4, 3, device="meta")), "features", "meta"),
    fault(
        "meta logits",
        as_outputs(torch.zeros(4, 3), torch.zeros(4, 2, device="meta")),
        "logits",
        "meta",
    ),
    fault("key of a tensor", lambda: content_key(torch.ones(3)), "text", error=TypeError),
    fault("seed below zero", lambda: cli.set_seed(-1), "-seed is -1"),
    fault("seed of 88 bits", lambda: cli.set_seed(10**26), "-seed is", "2^63"),
    fault("unknown device", lambda: cli.choose_device("gpu"), "'gpu' is no device"),
    fault("device that is not here", lambda: cli.choose_device("cuda:77"), "cuda:77"),
    fault("unsupported device", lambda: cli.choose_device("xla"), "not supported"),
    fault("0 classes", build("resnet18", 0), "positive integer, got 0", error=MODEL),
    fault("10^12 classes", build("resnet18", 10**12), "GB of memory", error=MODEL),
    fault("True classes", build("resnet18", True), "positive integer", error=MODEL),
    fault("10^30 classes", build("vgg", 10**30), "cannot be built", error=MODEL),
    fault("huge images", build("vgg", image_size=10**5), "GB of memory", error=MODEL),
    fault("tiny images", build("vgg", image_size=4), "8 x 8", error=MODEL),
    fault("unknown network", build("resnet19"), "did you mean", error=MODEL),
    fault("unknown option", build("wrn", dept=10), "did you mean 'depth'", error=MODEL),
    fault("option of another type", build("wrn", depth="10"), "type int", error=MODEL),
    fault("dropout of everything", build("wrn", dropout=1.0), "dropout in [0, 1)", error=MODEL),
    fault("depth between", build("densenet", depth=99), "6 n + 4", error=MODEL),
    fault("network without a head", lambda: models.adapt(NoHead()), "nn.Linear", error=MODEL),
    fault("network with a softmax", lambda: models.adapt(Softmax()), "softmax", error=MODEL),
    fault("NaN scores", lambda: metrics.evaluate([0.0, float("nan")], [1.0]), "1 of 2 are NaN"),
    fault("no scores", lambda: metrics.evaluate([], [1.0]), "there are none"),
    fault("scores of two columns", lambda: metrics.evaluate([[0.0]], [1.0]), "shape (N,)"),
    fault("complex scores", lambda: metrics.evaluate([1j], [1.0]), "real numbers"),
    fault("text as scores", lambda: metrics.evaluate(["a"], [1.0]), "real numbers"),
    fault("meta scores", lambda: metrics.evaluate(torch.zeros(3, device="meta"), [1.0]), "meta"),
    fault("sparse scores", lambda: metrics.evaluate(torch.ones(3).to_sparse(), [1.0]), "sparse"),
    fault("tpr of 95", lambda: metrics.evaluate([0.0], [1.0], 95), "fraction in (0, 1]"),
    Fault(
        "cache folder below a file",
        action=lambda folder: Cache(folder / "c.json" / "cache"),
        error=InputError,
        words=("c.json' is a file",),
        prepare=config("{}"),
    ),
    Fault(
        "8 EB claimed by a cached array",
        action=lambda folder: huge_array(folder),
        error=cli.RunError,
        words=("x.npy", "cannot be read"),
    ),
]


def huge_array(folder: Path) -> None:
    """Open a part whose header claims far more values than the file has."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846975,), }"
    header += b" " * (117 - len(header)) + b"\n"
    (folder / "key").mkdir()
    (folder / "key" / "x.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100)
    )
    cache = Cache(folder, log=lambda line: None)
    file = folder / "key" / "x.npy"
    kept = file.read_bytes()
    assert cache.sound("key", ["x"]) == set() and not file.exists()  # it has no checksum
    file.write_bytes(kept)
    cache.get("key", "x")


ROWS = [*CONFIGS, *FLAGS, *WEIGHTS, *FUNCTIONS]
