"""Train what a config names: heatmap decoder, one fold of leave-out classifiers, VMDLS encoder, or a classifier with its `loss`.

    python3 ood_training.py -config ./configs/cifar10_resnet18_ood.json -device cuda:0
    python3 ood_training.py -config ./configs/cifar10_densenet_leaveout.json -fold 1
    python3 ood_training.py -config ./configs/mnist5k_small_ood.json -num_ood 500 -epochs 5
    python3 ood_training.py -config ./configs/mnist5k_outlier_exposure.json         # as classifier_pretraining.py, which has more flags

Writes a run folder (config.json, log.jsonl, last.pt, best.pt); -resume continues one that was interrupted. eval_ood.py evaluates it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ood

ood.catch_interrupts()  # before torch loads

import models
from ood import cli, methods
from ood.cache import Cache
from ood.config import InputError, build, merge, read_json, split
from ood.training import pretraining, runs
from ood.training.settings import Settings, read_settings

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

parser = cli.Parser(
    "Train the OOD detection method, or the classifier with a loss, that a config names.",
    "Exit code: 0 trained, 2 bad input, 1 the run failed.",
)
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
    help="leave-out: which fold of classes is left out, 1-based; default: the config's, else 1",
)
parser.flag(
    "-ood_dataset",
    help="auxiliary OOD set: a registered name, folder or .npy file; default: the config's",
)
parser.flag(
    "-pairing",
    choices=("correct", "released"),
    help="heatmap: which ID image an OOD image is paired with; default: the config's, else correct",
)
parser.flag(
    "-scaling",
    choices=("none", "minmax", "released"),
    help="heatmap: of features; default: the config's, else none for fw_layers 1, minmax for 2-4",
)
parser.flag(
    "-classifier",
    help="heatmap: weight file or run folder of the classifier; default: the newest run of its data set and architecture",
)
parser.flag(
    "-steps",
    type=int,
    help="vmdls, autoencoder: batches per epoch; default: the config's, else the paper's rule",
)
parser.flag(
    "-weights",
    help="vmdls with finetune: weight file of the encoder; losses: of the network to begin from; default: the config's",
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
parser.flag("-epochs", type=int, help="passes over the training set; default: the config's")
parser.flag("-batch_size", type=int, help="images per step; default: the config's")
parser.flag("-lr", type=float, help="learning rate; default: the config's")
parser.flag("-seed", type=int, help="of everything random; default: the config's, else 0")
parser.flag(
    "-precision", choices=("fp32", "bf16"), help="of the networks; default: the config's, else fp32"
)
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
parser.flag(
    "-out_dir", help="the run folder itself; default: CHECKPOINTS_DIR/<id>_<arch>..._<timestamp>"
)
parser.flag(
    "-resume",
    action="store_true",
    help="continue the run in -out_dir, or the newest one of this configuration",
    default=False,
)
parser.flag(
    "-download",
    action="store_true",
    help="fetch missing sets first (see scripts/download_data.py)",
    default=False,
)


def main() -> None:
    flags = parser.parse_args()
    values = read_json(flags.config)
    method = None if "loss" in values else methods.get(values.get("method", "heatmap"))
    kind, name = (
        (method.Settings, f"method {method.name}")
        if method
        else (Settings, f"loss {values['loss']}")
    )
    overrides = {
        name: getattr(flags, name) for name in SETTINGS if getattr(flags, name) is not None
    }
    if method is None and flags.weights:
        overrides["init"] = overrides.pop("weights")
    for key in overrides.keys() - {f.name for f in dataclasses.fields(kind)}:
        raise InputError(f"-{key} means nothing to {name} of {flags.config}; leave it out")
    if method is None:
        given = merge(
            read_settings(flags.config),
            {
                **overrides,
                **{
                    key: getattr(flags, key)
                    for key in (
                        "device",
                        "data_dir",
                        "limit",
                        "download",
                        "tensorboard",
                        "deterministic",
                    )
                },
            },
        )
        pretraining.train_classifier(
            models, given, root=flags.checkpoints_dir, out_dir=flags.out_dir, resume=flags.resume
        )
        return
    settings = build(kind, merge(split(values, kind, flags.config)[1], overrides), flags.config)
    if flags.tensorboard:
        runs.require_tensorboard()
    device = cli.choose_device(flags.device)
    cli.log(f"device {cli.describe_device(device)} | {name} | {flags.config}")
    context = methods.Context(
        models,
        device,
        flags.data_dir,
        flags.checkpoints_dir,
        flags.out_dir,
        flags.resume,
        flags.download,
        flags.limit,
        Cache(Path(flags.checkpoints_dir) / ".outputs"),
        cli.progress,
        cli.log,
        flags.deterministic,
        flags.tensorboard,
    )
    run = method.train(settings, context)
    cli.log(f"run: {run.folder}")


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
