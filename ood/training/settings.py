"""Settings of a classifier's training, and what a data set or a loss changes in their defaults.

    settings = resolve({"id_dataset": "cifar10", "loss": "logitnorm"})

Precedence: what is given > the data set's recipe > the default of `Settings`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

from ood import losses
from ood.config import CROSS_ENTROPY, InputError, build, ranged, read_json, split
from ood.data import Mixing, info
from ood.data.registry import is_folder_path
from ood.data.transforms import KINDS
from ood.training import loop

HALF = dict(mean=(0.5,), std=(0.5,))  # [0, 1] -> [-1, 1], the heatmap paper's normalisation
DIGITS = "rotate_resized_crop"  # a mirrored digit is another character

# What a data set changes in the defaults of Settings.
RECIPES = {
    "mnist5k": dict(
        arch="small_cnn",
        epochs=12,
        batch_size=64,
        schedule="onecycle",
        valid_split=0.1,
        augment=DIGITS,
        **HALF,
    ),
    "mnist": dict(augment=DIGITS),
    "svhn": dict(augment="none"),
    "cifar10": dict(arch="resnet18", **HALF),
    "cifar100": dict(arch="resnet18", **HALF),
    "tinyimagenet": dict(
        arch="resnet50", epochs=200, batch_size=128, augment="resized_crop_flip", **HALF
    ),
    "imagenet": dict(
        epochs=90,
        batch_size=256,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(30, 60),
        augment="resized_crop_flip",
    ),
}
FOLDER = dict(valid_split=0.1)  # for an image folder, which is usually a small set

# Auxiliary outliers of a loss that needs some, when -ood_dataset names none: training halves.
OUTLIERS = {"mnist5k": "letters+patches"}

AUGMENTATIONS = (*KINDS, "pixmix")
# The mixing set of pixmix, when -mixing_set names none. The authors' has both kinds of pictures.
PICTURES = "fractals+feature_visualisations"
EMBEDDED_PICTURES = {"mnist5k": "patches"}

# Settings that may change when a run is continued.
FREE = ("device", "data_dir", "download", "num_workers", "tensorboard", "epochs")

# What config.json holds besides the settings.
FACTS = ("kind", "started", "in_channels", "image_size")


@dataclass(frozen=True)
class Settings:
    """All settings of a classifier's training. The defaults are the heatmap paper's for CIFAR.

    Attributes:
        id_dataset: a registered set or an image folder.
        arch: a name of models.names(), or torchvision_<name>.
        depth, width: of the networks that have them. None: the network's own default.
        model_args: further options of the network.
        num_classes: only checked against the data.
        size: side of the images in pixels. None: the data set's.
        mean, std: normalisation of pixels in [0, 1], one value or one per channel. None: the data
            set's.
        augment: how training images are changed at random.
        augment_args: of pixmix, the fields of `ood.data.Mixing`. Its base, the augmentation
            before the mixing, is the data set's usual one where it is not given.
        mixing_set: the pictures of pixmix: registered sets, folders, .npy arrays.
        valid_split: fraction of the training set held out for validation, in [0, 1).
        valid_augment: augment validation images too, as the released code does.
        loss: a name of ood.losses.names().
        loss_args: its arguments.
        ood_dataset: auxiliary outliers: registered sets, folders, .npy arrays; "letters+patches".
        ood_batch_size: outliers per step. None: as many as batch_size.
        init: weight file to begin from.
        needs_init: a recipe sets it when it continues a trained network. Random weights are then
            refused.
        weight_decay: acts on all parameters, norms and biases included.
        milestones: of schedule steps, in epochs done.
        gamma: factor of the schedules steps and plateau.
        patience: of schedule plateau, in epochs.
        clip_norm: largest norm of the gradient.
        ema: decay of a moving average of the weights, see ood.training.loop.Plan.
        sampler: "balanced" takes every class equally often.
        sync_batchnorm: under torchrun, batch statistics of all processes.
        channels_last: memory layout; "auto" means on a GPU.
        limit: at most this many images per split, evenly spread, every class kept.
        num_workers: threads that decode large images. None: one per core.
    """

    id_dataset: str = "mnist5k"
    arch: str | None = None
    depth: int | None = ranged(None, 1, 10_000)
    width: int | None = ranged(None, 1, 10_000)
    model_args: dict = field(default_factory=dict)
    num_classes: int | None = ranged(None, 2, 10**6)
    size: int | None = ranged(None, 1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    augment: Literal[AUGMENTATIONS] = "crop_flip"
    augment_args: dict | None = None
    mixing_set: str | tuple[str, ...] | None = None
    valid_split: float = ranged(0.01, 0, below=1)
    valid_augment: bool = False
    loss: str = CROSS_ENTROPY
    loss_args: dict = field(default_factory=dict)
    ood_dataset: str | tuple[str, ...] | None = None
    ood_batch_size: int | None = ranged(None, 1, 10**6)
    init: str | None = None
    needs_init: bool = False
    epochs: int = ranged(100, 1, 10**6)
    batch_size: int = ranged(200, 1, 10**6)
    optimizer: Literal[loop.OPTIMIZERS] = "sgd"
    lr: float = ranged(0.1, above=0)
    momentum: float = ranged(0.9, 0, below=1)
    nesterov: bool = False
    weight_decay: float = ranged(5e-4, 0)
    schedule: Literal[loop.SCHEDULES] = "plateau"
    milestones: tuple[int, ...] = ranged((), 0)
    gamma: float = ranged(0.1, above=0)
    patience: int = ranged(10, 0)
    clip_norm: float | None = ranged(None, above=0)
    ema: float | None = ranged(None, 0, below=1)
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    sync_batchnorm: bool = False
    compile: bool = False
    tensorboard: bool = False
    precision: Literal[loop.PRECISIONS] = "fp32"
    channels_last: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    deterministic: bool = False
    limit: int | None = ranged(None, 1)
    data_dir: str = "./datasets"
    download: bool = False
    num_workers: int | None = ranged(None, 1, 1024)
    device: str | None = None

    def shape(self) -> dict:
        """Return depth and width, where they are given."""
        given = {"depth": self.depth, "width": self.width}
        return {name: value for name, value in given.items() if value is not None}


def read_settings(path: str | Path | None) -> dict:
    """Read the settings in a JSON file.

    `dataset` stands for `id_dataset`. The config.json of a run is a config too. Keys that only
    eval_ood.py needs (benchmark, detectors, ...) are left out, so that one file serves both.
    """
    if path is None:
        return {}
    values = {key: value for key, value in read_json(path).items() if key not in FACTS}
    if "dataset" in values:
        values["id_dataset"] = values.pop("dataset")
    values = split(values, Settings, str(path))[1]
    settings = build(Settings, values, str(path))
    return {key: getattr(settings, key) for key in values}


def with_known_names(networks: ModuleType, given: dict) -> dict:
    """Check the names of network and loss, and give the data set its registered name.

    This comes before any data is read.

    Raises: InputError for an unknown data set or loss, ModelError for an unknown network.
    """
    dataset, arch = given.get("id_dataset"), given.get("arch")
    if arch is not None and not arch.startswith("torchvision_"):
        networks.options(arch)
    losses.get(given.get("loss", Settings.loss))
    if dataset is None or is_folder_path(dataset):
        return given
    return {**given, "id_dataset": info(dataset).name}


def resolve(given: dict) -> Settings:
    """Fill in the data set's recipe and the defaults, and check every value.

    Raises: InputError for an unknown key, a value out of its range, or values that do not go
        together.
    """
    dataset = given.get("id_dataset", Settings.id_dataset)
    settings = build(Settings, {**recipe_of(dataset), **given}, "settings")
    if settings.arch is None:
        raise InputError(
            f"-arch is needed for '{dataset}': the name of a network "
            "(classifier_pretraining.py -h lists them)"
        )
    if settings.valid_split == 0 and settings.schedule == "plateau":
        raise InputError(
            "-schedule plateau looks at the validation accuracy, but -valid_split is 0; "
            "hold images out or choose another schedule"
        )
    if settings.schedule == "steps" and not settings.milestones:
        raise InputError("-schedule steps needs -milestones, e.g. -milestones 50 75")
    if settings.nesterov and (settings.optimizer != "sgd" or settings.momentum == 0):
        raise InputError("-nesterov needs -optimizer sgd and a -momentum above 0")
    return with_outliers(with_pictures(settings))


def recipe_of(dataset: str) -> dict:
    """Return what a data set changes in the defaults of Settings."""
    return FOLDER if is_folder_path(dataset) else RECIPES.get(dataset, {})


def mixing(settings: Settings) -> Mixing:
    """Return the parameters of pixmix.

    Raises: InputError for an unknown one, or a value out of its range.
    """
    usual = {"base": recipe_of(settings.id_dataset).get("augment", Settings.augment)}
    return build(Mixing, {**usual, **(settings.augment_args or {})}, "augment_args of pixmix")


def with_pictures(settings: Settings) -> Settings:
    """Check the arguments of pixmix, and fill in the default mixing set.

    Raises: InputError for a bad argument, or arguments of an augmentation that takes none.
    """
    if settings.augment == "pixmix":
        mixing(settings)
        usual = EMBEDDED_PICTURES.get(settings.id_dataset, PICTURES)
        return dataclasses.replace(settings, mixing_set=settings.mixing_set or usual)
    for name in ("augment_args", "mixing_set"):
        if getattr(settings, name):
            raise InputError(
                f"-{name} belongs to -augment pixmix, but -augment is {settings.augment}"
            )
    return settings


def with_outliers(settings: Settings) -> Settings:
    """Check the loss and its arguments, and fill in the default set of auxiliary outliers.

    Raises: InputError if the loss needs outliers or trained weights and none are named, or if
        outliers are named that it does not use.
    """
    loss = losses.check(settings.loss, settings.loss_args)
    if settings.ood_dataset is None and loss.outliers == "needed":
        default = OUTLIERS.get(settings.id_dataset)
        if default is None:
            raise InputError(
                f"-loss {settings.loss} learns from outliers: name them with -ood_dataset, e.g. a "
                "folder of images, 300K_random_images.npy or a registered set "
                f"({OUTLIERS['mnist5k']} for grey images of 28x28)"
            )
        settings = dataclasses.replace(settings, ood_dataset=default)
    if settings.ood_dataset is None and settings.ood_batch_size is not None:
        raise InputError(
            f"-ood_batch_size is {settings.ood_batch_size}, but there are no outliers: "
            "name them with -ood_dataset"
        )
    if settings.ood_dataset is not None and loss.outliers == "ignored":
        users = [name for name in losses.names() if losses.get(name).outliers != "ignored"]
        raise InputError(
            f"-loss {settings.loss} does not learn from outliers; leave -ood_dataset out, "
            f"or choose one of {', '.join(users)}"
        )
    if settings.needs_init and settings.init is None:
        raise InputError(
            f"this recipe of {settings.loss} continues a trained network (needs_init): give its "
            "weights with -init FILE (ood_training.py: -weights FILE)"
        )
    if loss.pretrained and settings.init is None and "full_train_loss" not in settings.loss_args:
        raise InputError(
            f"-loss {settings.loss} continues a trained network: give its weights with -init FILE, "
            "or the cross-entropy that it is to keep within reach of with "
            "-loss_args full_train_loss=0.05"
        )
    return settings
