"""The flags of the leave-out repository's train.py, as ood_training.py takes them.

    python3 ood_training.py -c checkpoints/cifar10_fold_1_dense_checkpoint --fold 1
    python3 ood_training.py -c checkpoints/cifar100_fold_2_wide_checkpoint --fold 2 \
        --in-dataset cifar100 --wide

The settings are those of configs/<in-dataset>_<network>_leaveout.json, with the flags in them.
"""

from __future__ import annotations

from pathlib import Path

from ood import cli
from ood.config import InputError, build, merge, read_json, split
from ood.methods.leaveout.settings import Settings, check

DATASETS = {"cifar10": 10, "cifar100": 100}

# Flags that tell a command of train.py from others, where there is no -config.
MARKS = ("c", "checkpoint", "in-dataset", "in_dataset", "wide", "fold", "schedule", "beta")

# Flags -> settings.
OVERRIDES = {
    "fold": "fold",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "schedule": "milestones",
    "gamma": "gamma",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "beta": "beta",
    "seed": "seed",
}
INERT = {"start_epoch": "the run folder knows how far it came"}


def is_train(words: list[str]) -> bool:
    """Return whether a command has flags of train.py and no -config."""
    names = [word.lstrip("-").split("=")[0] for word in words if word.startswith("-")]
    return "config" not in names and any(name in MARKS for name in names)


def add_flags(parser: cli.Parser) -> None:
    """Declare the flags of train.py."""
    parser.flag(
        "-in-dataset",
        aliases=("in_dataset",),
        choices=tuple(DATASETS),
        help="in-distribution set",
        default="cifar10",
    )
    parser.flag("-c", aliases=("checkpoint",), help="the run folder, like -out_dir")
    parser.flag(
        "-wide",
        action="store_true",
        help="WideResNet-28-10 instead of DenseNet-BC-100",
        default=False,
    )
    parser.flag("-fold", type=int, help="which fold is left out, 1 to 5", default=1)
    parser.flag("-num-classes", aliases=("num_classes",), type=int, help="of the set; only checked")
    parser.flag("-epochs", type=int, help="passes over the training set; default: the config's")
    parser.flag(
        "-batch-size",
        aliases=("batch_size",),
        type=int,
        help="images per step and stream; default: the config's",
    )
    parser.flag("-lr", type=float, help="learning rate; default: the config's")
    parser.flag(
        "-schedule",
        type=int,
        nargs="+",
        metavar="EPOCH",
        help="epochs after which the rate is multiplied by gamma; default: the config's, 50 75",
    )
    parser.flag("-gamma", type=float, help="default: the config's, 0.1")
    parser.flag("-momentum", type=float, help="default: the config's, 0.9")
    parser.flag(
        "-weight-decay",
        aliases=("weight_decay", "wd"),
        type=float,
        help="default: the config's, 0.0005",
    )
    parser.flag("-beta", type=float, help="weight of the margin term; default: the config's, 0.2")
    parser.flag(
        "-resume",
        nargs="?",
        const="",
        type=str,
        help="continue the run in -c; train.py's checkpoint file in that folder may follow",
    )
    parser.flag("-gpu", help="number of a GPU: 0 means -device cuda:0")
    for name, reason in INERT.items():
        dashed = name.replace("_", "-")
        parser.flag(f"-{dashed}", aliases=(name,), type=int, help=f"no effect: {reason}")


def without_effect(flags) -> list[str]:
    """Return "--flag (reason)" for each flag given that changes nothing."""
    given = [name for name in INERT if getattr(flags, name) is not None]
    return [f"--{name.replace('_', '-')} ({INERT[name]})" for name in given]


def device_of(flags) -> str | None:
    """Return the device that -device or --gpu names. Raises InputError for both."""
    if flags.gpu is None:
        return flags.device
    if flags.device is not None:
        raise InputError("give -device or --gpu, not both")
    if not flags.gpu.strip().isdecimal():
        raise InputError(
            f"--gpu is '{flags.gpu}'; it takes the number of one GPU, e.g. 0 (for several: "
            "torchrun --nproc_per_node N ood_training.py ... without --gpu)"
        )
    return f"cuda:{flags.gpu.strip()}"


def folder_of(flags) -> str | None:
    """Return the run folder that -c, -out_dir or --resume FILE name.

    Raises: InputError when they name different folders, or --resume a file that is not there.
    """
    folders = [flags.c, flags.out_dir]
    if flags.resume:
        path = Path(flags.resume)
        if not path.exists():
            raise InputError(f"--resume: there is no '{flags.resume}'")
        folders.append(str(path if path.is_dir() else path.parent))
    named = [folder for folder in folders if folder]
    if any(Path(folder).resolve() != Path(named[0]).resolve() for folder in named):
        raise InputError(f"{' and '.join(named)} are different run folders; name one")
    return named[0] if named else None


def read_settings(flags, configs: Path) -> tuple[Settings, str]:
    """Return the settings that the flags ask for, and the config that they begin with.

    Args: configs: the folder of the published configs.
    Raises: InputError for values that do not fit.
    """
    count = DATASETS[flags.in_dataset]
    if flags.num_classes not in (None, count):
        raise InputError(
            f"--num-classes is {flags.num_classes}, but {flags.in_dataset} has {count} classes; "
            "leave the flag out"
        )
    network = "wideresnet" if flags.wide else "densenet"
    config = configs / f"{flags.in_dataset}_{network}_leaveout.json"
    published = split(read_json(config), Settings, str(config))[1]
    given = {setting: getattr(flags, flag) for flag, setting in OVERRIDES.items()}
    settings = build(Settings, merge(published, given), str(config))
    check(settings)
    return settings, str(config)
