"""Train what a config names: a method, or a classifier with its `loss`.

The heatmap decoder, one fold of leave-out classifiers, VMDLS or its auto-encoder:

    python3 ood_training.py -config ./configs/cifar10_resnet18_ood.json -device cuda:0
    python3 ood_training.py -config ./configs/mnist5k_small_ood.json -num_ood 500 -epochs 5
    python3 ood_training.py -config ./configs/cifar10_densenet_leaveout.json -fold 1
    python3 ood_training.py -config ./configs/vmdls_mnist.json

A classifier with a loss, as classifier_pretraining.py trains it, which has more flags:

    python3 ood_training.py -config ./configs/mnist5k_outlier_exposure.json

The training commands of two papers' READMEs, with this file's name in place of theirs:

    python3 ood_training.py -c checkpoints/cifar10_fold_1_dense_checkpoint --fold 1
    python3 ood_training.py --enc_type densenet --known_dataset cifar_known --opt sgd ...

A command without -config is one of the leave-out repository's train.py if it has one of its flags
(-c, --fold, --wide, ...). It is one of the VMDLS repository's main.py if it has one of --enc_type,
--known_dataset and the like. `-h` behind such a flag lists all of them.

Writes a run folder (config.json, log.jsonl, last.pt, best.pt). -resume continues a run that was
interrupted. eval_ood.py evaluates the run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import ood

ood.catch_interrupts()  # before torch loads

import models
from ood import cli, methods
from ood.config import InputError, build, merge, read_json, split
from ood.evaluation import options
from ood.methods.leaveout import training_flags as leaveout
from ood.methods.vmdls import training_flags as vmdls
from ood.methods.vmdls.flags import is_vmdls
from ood.training import pretraining, runs
from ood.training.settings import Settings, read_settings

CONFIGS = Path(__file__).resolve().parent / "configs"
PURPOSE = "Train the OOD detection method, or the classifier with a loss, that a config names."
EXIT = "Exit code: 0 trained, 2 bad input, 1 the run failed."

# Flags that override a setting of the same name.
SETTINGS = (
    "num_ood",
    "fw_layers",
    "fold",
    "epochs",
    "batch_size",
    "lr",
    "seed",
    "precision",
    "ood_dataset",
    "steps",
    "weights",
    "pairing",
    "scaling",
    "classifier",
)

# Flags that are settings of a classifier, but belong to the context of a method.
SHARED = ("device", "data_dir", "limit", "download", "tensorboard", "deterministic")


def main() -> None:
    words = sys.argv[1:]
    if is_vmdls(words):
        train_vmdls(words)
    elif leaveout.is_train(words):
        train_fold(words)
    else:
        train_config(make_parser().parse_args())


def make_parser() -> cli.Parser:
    """Make the parser of a command with a config."""
    parser = cli.Parser(PURPOSE, EXIT)
    parser.flag(
        "-config",
        help="JSON config of a method, or of a classifier with a loss",
        default="./configs/cifar10_resnet18_ood.json",
    )
    parser.flag(
        "-num_ood",
        type=int,
        help="heatmap: auxiliary OOD images drawn from the pool; default: the config's",
    )
    parser.flag(
        "-fw_layers",
        type=int,
        choices=(1, 2, 3, 4),
        help="heatmap: encoder levels that the decoder sees; default: the config's, else 1",
    )
    parser.flag(
        "-fold",
        type=int,
        help="leave-out: which fold of classes is left out, from 1; default: the config's, else 1",
    )
    parser.flag(
        "-ood_dataset",
        help="auxiliary OOD set: a registered name, folder or .npy file; default: the config's",
    )
    parser.flag(
        "-pairing",
        choices=("correct", "released"),
        help="heatmap: which ID image an OOD image is paired with; "
        "default: the config's, else correct",
    )
    parser.flag(
        "-scaling",
        choices=("none", "minmax", "released"),
        help="heatmap: scaling of the features; "
        "default: the config's, else none for fw_layers 1, minmax for 2-4",
    )
    parser.flag(
        "-classifier",
        help="heatmap: weight file or run folder of the classifier; "
        "default: the newest run of its data set and network",
    )
    parser.flag(
        "-steps",
        type=int,
        help="vmdls, autoencoder: batches per epoch; default: the config's, else the paper's rule",
    )
    parser.flag(
        "-weights",
        help="vmdls with finetune: weight file of the encoder; "
        "losses: of the network to begin with; default: the config's",
    )
    parser.flag("-epochs", type=int, help="passes over the training set; default: the config's")
    parser.flag("-batch_size", type=int, help="images per step; default: the config's")
    parser.flag("-lr", type=float, help="learning rate; default: the config's")
    parser.flag(
        "-precision",
        choices=("fp32", "bf16"),
        help="of the networks; default: the config's, else fp32",
    )
    add_shared_flags(parser)
    parser.flag("-resume", action="store_true", help=RESUME, default=False)
    return parser


RESUME = "continue the run in the run folder, or the newest one of this configuration"


def add_shared_flags(parser: cli.Parser) -> None:
    """Declare the flags that every command of this script takes."""
    parser.flag("-seed", type=int, help="of everything random; default: the config's, else 0")
    options.add(parser, "limit", *options.PLACES, "download")
    parser.flag(
        "-out_dir",
        help="the run folder itself; default: CHECKPOINTS_DIR/<id>_<arch>..._<timestamp>",
    )
    parser.flag(
        "-tensorboard",
        action="store_true",
        help="also write events for TensorBoard into the run folder",
        default=False,
    )
    parser.flag(
        "-deterministic",
        action="store_true",
        help="deterministic kernels on a GPU too, slower",
        default=False,
    )


def train_config(flags) -> None:
    """Train what -config describes."""
    values = read_json(flags.config)
    method = None if "loss" in values else methods.get(values.get("method", "heatmap"))
    kind, name = Settings, f"loss {values.get('loss')}"
    if method:
        kind, name = method.Settings, f"method {method.name}"
    overrides = merge({name: getattr(flags, name) for name in SETTINGS})
    if method is None and flags.weights:
        overrides["init"] = overrides.pop("weights")
    for key in overrides.keys() - {f.name for f in dataclasses.fields(kind)}:
        raise InputError(f"-{key} means nothing to {name} of {flags.config}; leave it out")
    if method:
        settings = build(kind, merge(split(values, kind, flags.config)[1], overrides), flags.config)
        train(method, settings, flags, f"{name} | {flags.config}")
        return
    shared = {key: getattr(flags, key) for key in SHARED}
    pretraining.train_classifier(
        models,
        merge(read_settings(flags.config), overrides, shared),
        root=flags.checkpoints_dir,
        out_dir=flags.out_dir,
        resume=flags.resume,
    )


def train_vmdls(words: list[str]) -> None:
    """Train what a command of the VMDLS repository's main.py describes."""
    parser = cli.Parser("Train VMDLS (flags of its README, and ours).", EXIT)
    vmdls.add_flags(parser)
    add_shared_flags(parser)
    parser.flag("-resume", action="store_true", help=RESUME, default=False)
    flags = parser.parse_args(words)
    flags.device = vmdls.device_of(flags)
    settings = vmdls.read_settings(flags, flags.seed)
    vmdls.check_features(settings, flags, models)
    inert = vmdls.without_effect(flags)
    train(methods.get("vmdls"), settings, flags, "vmdls, flags of main.py", inert)


def train_fold(words: list[str]) -> None:
    """Train what a command of the leave-out repository's train.py describes."""
    parser = cli.Parser(
        "Train a fold of leave-out classifiers (flags of train.py, and ours).", EXIT
    )
    leaveout.add_flags(parser)
    add_shared_flags(parser)
    flags = parser.parse_args(words)
    flags.device, flags.out_dir = leaveout.device_of(flags), leaveout.folder_of(flags)
    flags.resume = flags.resume is not None
    settings, config = leaveout.read_settings(flags, CONFIGS)
    inert = leaveout.without_effect(flags)
    train(methods.get("leaveout"), settings, flags, f"{config}, flags of train.py", inert)


def train(method, settings, flags, what: str, inert: Sequence[str] = ()) -> None:
    """Train a method. `inert`: flags without effect, which are named in one line."""
    if flags.tensorboard:
        runs.require_tensorboard()
    context = dataclasses.replace(
        options.context(models, flags),
        out_dir=flags.out_dir,
        resume=flags.resume,
        limit=flags.limit,
        deterministic=flags.deterministic,
        tensorboard=flags.tensorboard,
    )
    cli.log(f"device {cli.describe_device(context.device)} | {what}")
    if inert:
        cli.log(f"without effect: {', '.join(inert)}")
    run = method.train(settings, context)
    cli.log(f"run: {run.folder}")


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
