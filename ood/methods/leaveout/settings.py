"""Settings of the leave-out ensemble, and what follows from them: classes, sizes, networks, folder names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from ood.config import InputError
from ood.data import Preprocess, info
from ood.data.registry import is_folder_path
from ood.methods.base import Context
from ood.methods.leaveout.formulas import kept_classes

WORDS = {"densenet": "dense", "wrn": "wide"}  # the repository's folder names


@dataclass(frozen=True)
class Settings:
    """Keys of a config; the defaults are the repository's for CIFAR-10."""

    id_dataset: str = "cifar10"  # a registered set or an image folder
    arch: str = "densenet"
    num_classes: int | None = None  # of the data set, all folds; needed for an image folder
    depth: int | None = None
    width: int | None = None
    model_args: dict = field(default_factory=dict)
    size: int | None = None  # side of the images; None: the data set's
    mean: tuple[float, ...] | None = None  # normalisation, pixel units; None: the data set's
    std: tuple[float, ...] | None = None
    folds: int = 5
    fold: int = 1  # 1-based: the one that `train` trains
    split_seed: int = (
        3  # of NumPy's old generator: permutes the classes and chooses the validation images
    )
    beta: float = 0.2
    margin: float = 0.4  # nats
    epochs: int = 100
    batch_size: int = 100  # of either stream, and of a forward pass
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "onecycle", "constant"] = "steps"
    milestones: tuple[int, ...] = (50, 75)  # epochs done when the rate falls
    gamma: float = 0.1
    augment: str = "crop_flip"
    seed: int = 0
    precision: Literal["fp32", "bf16"] = (
        "fp32"  # of training; scores are always fp32, they lie close together
    )
    validation_dataset: str | None = (
        "iSUN"  # its AUROC picks the epoch; None: the last epoch is kept
    )
    validation_split: Literal["train", "test"] = "test"
    validation_id: Literal["train", "test"] = (
        "test"  # where the ID images for it come from; 'train': they are not trained on
    )
    validation_images: int = 1000  # of each
    selection: Literal["exact", "released"] = (
        "exact"  # AUROC by rank, or by the repository's thresholds (score + 1e-4)
    )
    temperature: float = 1000.0
    magnitude: float = 0.002  # eps, pixel units
    gradient: Literal["cross_entropy", "entropy"] = (
        "cross_entropy"  # of the perturbation: the repository's, or the paper's
    )
    holdout: Literal["released", "full"] = (
        "released"  # test.py: leave out the positions that served as validation images, or not
    )
    together: bool = False  # all folds in one vectorised pass (needs the memory of all of them)
    magnitudes: dict = field(
        default_factory=dict
    )  # {OOD set: eps} that the repository's README advises
    repository: dict = field(
        default_factory=dict
    )  # {OOD set: {metric: fraction}}, the numbers of its README


def facts(settings: Settings) -> tuple[int, int, int]:
    """(number of classes, channels, side) of the ID set. Raises InputError when an image folder's are not given."""
    if is_folder_path(settings.id_dataset):
        if (
            settings.num_classes is None
            or settings.size is None
            or settings.mean is None
            or settings.std is None
        ):
            raise InputError(
                f"leaveout: for the image folder '{settings.id_dataset}' the config needs num_classes, size, mean and std"
            )
        return settings.num_classes, len(settings.mean), settings.size
    row = info(settings.id_dataset)
    return settings.num_classes or row.num_classes, row.channels, settings.size or row.size


def preprocess_of(settings: Settings) -> Preprocess:
    row = None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)
    return Preprocess(settings.mean or row.mean, settings.std or row.std)


def check(settings: Settings) -> None:
    """Raises InputError for values that make no sense, before anything is read."""
    num_classes = facts(settings)[0]
    if num_classes is None:
        raise InputError(
            f"leaveout: '{settings.id_dataset}' has no classes; leave-out classifiers need a labelled set"
        )
    kept_classes(num_classes, settings.fold, settings.folds, settings.split_seed)
    least = dict(
        epochs=1,
        batch_size=1,
        validation_images=1,
        beta=0,
        margin=0,
        magnitude=0,
        momentum=0,
        weight_decay=0,
        seed=0,
        split_seed=0,
    )
    for name, low in least.items():
        if not low <= getattr(settings, name) < float("inf"):
            raise InputError(
                f"leaveout: {name} is {getattr(settings, name)}; it must be at least {low}"
            )
    for name in ("lr", "temperature", "gamma"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise InputError(f"leaveout: {name} is {getattr(settings, name)}; it must be above 0")


def build_network(settings: Settings, context: Context) -> nn.Module:
    """A fresh network of one fold."""
    num_classes, channels, size = facts(settings)
    shape = {
        name: getattr(settings, name)
        for name in ("depth", "width")
        if getattr(settings, name) is not None
    }
    return context.networks.build(
        settings.arch,
        num_classes - num_classes // settings.folds,
        in_channels=channels,
        image_size=size,
        **shape,
        **settings.model_args,
    )


def folder_name(settings: Settings, fold: int) -> str:
    """cifar10_fold_1_dense_checkpoint, as the repository names it."""
    dataset = (
        Path(settings.id_dataset).resolve().name
        if is_folder_path(settings.id_dataset)
        else info(settings.id_dataset).name
    )
    return f"{dataset}_fold_{fold}_{WORDS.get(settings.arch, settings.arch)}_checkpoint"
