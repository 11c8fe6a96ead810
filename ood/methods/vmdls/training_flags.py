"""The flags of the VMDLS authors' main.py, as ood_training.py takes them.

    python3 ood_training.py --enc_type densenet --opt sgd --lr 1e-1 --known_dataset cifar_known ...

The defaults are those of main.py. A flag that changes nothing here is accepted and named.
"""

from __future__ import annotations

from ood import cli
from ood.config import InputError, build, nearest
from ood.data import info
from ood.methods.vmdls.flags import ALIASES, KNOWN, TRANSFORMS
from ood.methods.vmdls.settings import ENCODERS, Settings

# Flags of the same name in Settings: (name, type, default of main.py).
SAME = (
    ("latent_dim", int, 256),
    ("batch_classes", int, 10),
    ("sample_count", int, 40),
    ("lr", float, 1e-4),
    ("step_size", int, 100),
    ("step_gamma", float, 0.1),
    ("kl_coeff", float, 0.1),
    ("generation_epoch", int, 20),
    ("margin_max_distance", float, 32.0),
    ("margin_jumps", float, 1.0),
    ("margins_epoch", int, 0),
    ("lower_bound", float, 0.05),
    ("finetune_lr", float, 1e-4),
    ("batch_size", int, 256),
    ("weights", str, None),
)

# --data_transforms -> augmentation of the training images; None: by their size.
AUGMENT = {"cifar": None, "mnist": None, "cifar_test": "none", "blob": "none", "toy": "none"}

PRECISIONS = {"32": "fp32", "16": "bf16"}

# Flags that change nothing here, and why.
INERT_VALUES = {
    "unknown_dataset": "a training does not see it; test.py takes it",
    "num_workers": "images are prepared on the device",
    "input_height": "the images' own size counts",
    "cov_scaling": "main.py does not use it either",
    "recon_weight": "main.py does not use it either",
    "gen_weight": "main.py does not use it either",
}
INERT_SWITCHES = {
    "offline": "nothing is sent anywhere",
    "log_tsne": "figures/latent.png is always drawn",
}


def add_flags(parser: cli.Parser) -> None:
    """Declare the flags of main.py."""
    switch = dict(action="store_true", default=False)
    parser.flag(
        "-enc_type",
        help=f"encoder: {', '.join(ENCODERS)}, or a name of models.names()",
        default="resnet18",
    )
    parser.flag("-enc_out_dim", type=int, help="features of the encoder; only checked")
    parser.flag("-known_dataset", help=f"{', '.join(KNOWN)}, or a registered set", default="mnist")
    parser.flag("-class_num", type=int, help="K, the number of known classes", default=10)
    parser.flag(
        "-data_transforms",
        help=f"normalisation and augmentation: {', '.join(AUGMENT)}",
        default="mnist",
    )
    parser.flag("-opt", help="sgd; anything else is adam", default="sgd")
    parser.flag("-max_epochs", type=int, help="passes over the training set", default=1000)
    parser.flag("-finetune", help="train the heads alone first, with -weights FILE", **switch)
    parser.flag("-ae_features", help="the test weights its scores; kept in config.json", **switch)
    parser.flag("-checkpoint_path", help="weights of a whole VMDLS network to begin with")
    parser.flag("-gpus", help="number of a GPU: 0, means -device cuda:0; default: -device")
    parser.flag("-precision", choices=tuple(PRECISIONS), help="16 is bfloat16 here", default="32")
    for name, kind, default in SAME:
        aliases = ALIASES.get(name, ())
        parser.flag(f"-{name}", type=kind, help="as in main.py", default=default, aliases=aliases)
    for name in ("first_conv", "maxpool1"):
        parser.flag(f"-{name}", help="refused: the encoders here are for small images", **switch)
    for name, reason in INERT_VALUES.items():
        parser.flag(f"-{name}", help=f"no effect: {reason}")
    for name, reason in INERT_SWITCHES.items():
        parser.flag(f"-{name}", help=f"no effect: {reason}", **switch)


def without_effect(flags) -> list[str]:
    """Return "--flag (reason)" for each flag given that changes nothing."""
    reasons = INERT_VALUES | INERT_SWITCHES
    given = [name for name in reasons if getattr(flags, name) not in (None, False)]
    return [f"--{name} ({reasons[name]})" for name in given]


def device_of(flags) -> str | None:
    """Return the device that -device or --gpus names.

    Raises: InputError for both, or for several GPUs, which torchrun starts.
    """
    if flags.gpus is None:
        return flags.device
    if flags.device is not None:
        raise InputError("give -device or --gpus, not both")
    numbers = [word.strip() for word in flags.gpus.split(",") if word.strip()]
    if len(numbers) != 1 or not numbers[0].isdecimal():
        raise InputError(
            f"--gpus is '{flags.gpus}'; it takes the number of one GPU, e.g. 0, (for several: "
            "torchrun --nproc_per_node N ood_training.py ... without --gpus)"
        )
    return f"cuda:{numbers[0]}"


def read_settings(flags, seed: int | None) -> Settings:
    """Return the settings that the flags ask for. Raises InputError for values that do not fit."""
    known = KNOWN.get(flags.known_dataset, flags.known_dataset)
    facts = info(known)
    if facts.role != "id":
        raise InputError(
            f"--known_dataset '{flags.known_dataset}' is no labelled set"
            f"{nearest(flags.known_dataset, KNOWN)}; "
            f"allowed: {', '.join(KNOWN)} or a registered ID set"
        )
    for name in ("first_conv", "maxpool1"):
        if getattr(flags, name):
            raise InputError(
                f"--{name} asks for a network for large images; "
                "the encoders here are for small ones, leave it out"
            )
    values = {name: getattr(flags, name) for name, _, _ in SAME}
    values |= {
        "id_dataset": known,
        "arch": ENCODERS.get(flags.enc_type, flags.enc_type),
        "num_classes": flags.class_num,
        "epochs": flags.max_epochs,
        "optimizer": "sgd" if flags.opt == "sgd" else "adam",
        "finetune": flags.finetune,
        "warm_start": flags.checkpoint_path,
        "ae_features": flags.ae_features,
        "precision": PRECISIONS[flags.precision],
        **_transforms(flags.data_transforms, facts),
    }
    if seed is not None:
        values["seed"] = seed
    return build(Settings, values, "flags")


def _transforms(name: str, facts) -> dict:
    """Return mean, std (None where they are the data set's) and augmentation."""
    if name not in AUGMENT:
        raise InputError(
            f"--data_transforms '{name}' is unknown{nearest(name, AUGMENT)}; "
            f"allowed for a training: {', '.join(AUGMENT)}"
        )
    mean, std = TRANSFORMS[name] or ((0.0,) * facts.channels, (1.0,) * facts.channels)
    if len(mean) != facts.channels:
        raise InputError(
            f"--data_transforms {name} is for {len(mean)} channel(s), "
            f"{facts.name} has {facts.channels}"
        )
    own = (mean, std) == (facts.mean, facts.std)
    return {
        "mean": None if own else mean,
        "std": None if own else std,
        "augment": AUGMENT[name],
    }


def check_features(settings: Settings, flags, networks) -> None:
    """Raise InputError when --enc_out_dim is not the number of the encoder's features.

    Args: networks: the package `models`.
    """
    if flags.enc_out_dim is None:
        return
    facts, options = info(settings.id_dataset), settings.network_options()
    shape = dict(in_channels=facts.channels, image_size=facts.size)
    encoder = networks.build(settings.arch, settings.num_classes, **shape, **options)
    width = encoder.fc.in_features
    if flags.enc_out_dim != width:
        raise InputError(
            f"--enc_out_dim is {flags.enc_out_dim}, but {flags.enc_type} has {width} features; "
            f"leave the flag out or give {width}"
        )
