"""Settings of the leave-out ensemble, and what follows from them.

These are the number of classes, the size of the images, the networks and the names of run folders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from ood.config import InputError, check_settings, check_word, ranged
from ood.data import Preprocess, info
from ood.data.registry import is_folder_path
from ood.data.transforms import KINDS
from ood.methods.base import MOST, MOST_CLASSES, MOST_PIXELS, SEEDS
from ood.methods.leaveout.formulas import kept_classes
from ood.training.context import Context

WORDS = {"densenet": "dense", "wrn": "wide"}  # the repository's folder names


@dataclass(frozen=True)
class Settings:
    """The keys of a config. Defaults are the repository's for CIFAR-10.

    Attributes:
        id_dataset: a registered set or an image folder.
        num_classes: of the data set, not of a fold; needed for an image folder.
        size: side of the images in pixels. None: the data set's.
        mean, std: the normalisation, in pixel units. None: the data set's.
        fold: the fold that `train` trains, 1-based.
        split_seed: of NumPy's old generator. It permutes the classes and chooses the validation
            images.
        margin: in nats.
        batch_size: of each of the two streams, and of a forward pass.
        milestones: numbers of epochs after which the learning rate falls.
        precision: of training. Scores are always fp32, because they lie close together.
        validation_dataset: its AUROC picks the epoch. None: the last epoch is kept.
        validation_id: where the ID images for it come from. With "train" they are not trained on.
        validation_images: the number of images from each of the two sets.
        selection: the AUROC that picks the epoch. "exact": by rank; "released": by the
            repository's thresholds (score + 1e-4).
        magnitude: eps of the perturbation, in pixel units.
        gradient: of the perturbation: "cross_entropy", the repository's, or "entropy", the paper's.
        holdout: "released": test.py leaves out the positions that served as validation images.
        together: run all folds in one vectorised pass. It needs the memory of all of them.
        magnitudes: {OOD set: eps} that the repository's README advises.
        repository: {OOD set: {metric: fraction}}, the numbers of its README.

    Raises: InputError for a value out of its range.
    """

    id_dataset: str = "cifar10"
    arch: str = "densenet"
    num_classes: int | None = ranged(None, 2, MOST_CLASSES)
    depth: int | None = ranged(None, 1, MOST)
    width: int | None = ranged(None, 1, MOST)
    model_args: dict = field(default_factory=dict)
    size: int | None = ranged(None, 1, MOST_PIXELS)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    folds: int = ranged(5, 2, MOST_CLASSES)
    fold: int = ranged(1, 1, MOST)
    split_seed: int = ranged(3, *SEEDS)
    beta: float = ranged(0.2, 0)
    margin: float = ranged(0.4, 0)
    epochs: int = ranged(100, 1, MOST)
    batch_size: int = ranged(100, 1, MOST)
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = ranged(0.1, above=0)
    momentum: float = ranged(0.9, 0, below=1)
    nesterov: bool = False
    weight_decay: float = ranged(5e-4, 0)
    schedule: Literal["steps", "cosine", "onecycle", "constant"] = "steps"
    milestones: tuple[int, ...] = ranged((50, 75), 0, MOST)
    gamma: float = ranged(0.1, above=0, high=1)
    augment: str = "crop_flip"
    seed: int = ranged(0, *SEEDS)
    precision: Literal["fp32", "bf16"] = "fp32"
    validation_dataset: str | None = "iSUN"
    validation_split: Literal["train", "test"] = "test"
    validation_id: Literal["train", "test"] = "test"
    validation_images: int = ranged(1000, 1, MOST)
    selection: Literal["exact", "released"] = "exact"
    temperature: float = ranged(1000.0, above=0, high=1e6)
    magnitude: float = ranged(0.0014, 0, 1)
    gradient: Literal["cross_entropy", "entropy"] = "cross_entropy"
    holdout: Literal["released", "full"] = "released"
    together: bool = False
    magnitudes: dict = field(default_factory=dict)
    repository: dict = field(default_factory=dict)

    def __post_init__(self):
        check_settings(self)
        check_word("augment", self.augment, KINDS)


def facts(settings: Settings) -> tuple[int, int, int]:
    """Return number of classes, channels and side of the ID set.

    Raises: InputError when the config does not give those of an image folder.
    """
    if not is_folder_path(settings.id_dataset):
        row = info(settings.id_dataset)
        return settings.num_classes or row.num_classes, row.channels, settings.size or row.size
    needed = (settings.num_classes, settings.size, settings.mean, settings.std)
    if None in needed:
        raise InputError(
            f"leaveout: for the image folder '{settings.id_dataset}' the config needs num_classes, "
            "size, mean and std"
        )
    return settings.num_classes, len(settings.mean), settings.size


def preprocess_of(settings: Settings) -> Preprocess:
    """Return the normalisation: the config's, else the data set's."""
    row = None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)
    return Preprocess(settings.mean or row.mean, settings.std or row.std)


def kept_of(settings: Settings, fold: int | None = None) -> np.ndarray:
    """Return the classes that a fold (default: the settings') keeps, in output order."""
    num_classes = facts(settings)[0]
    return kept_classes(num_classes, fold or settings.fold, settings.folds, settings.split_seed)


def check(settings: Settings) -> None:
    """Raise InputError when the set has no classes, or none that the folds can leave out."""
    if facts(settings)[0] is None:
        raise InputError(
            f"leaveout: '{settings.id_dataset}' has no classes; "
            "leave-out classifiers need a labelled set"
        )
    kept_classes(facts(settings)[0], settings.fold, settings.folds, settings.split_seed)


def build_network(settings: Settings, context: Context) -> nn.Module:
    """Build a fresh network of one fold."""
    num_classes, channels, size = facts(settings)
    given = {"depth": settings.depth, "width": settings.width}
    shape = {name: value for name, value in given.items() if value is not None}
    return context.networks.build(
        settings.arch,
        num_classes - num_classes // settings.folds,
        in_channels=channels,
        image_size=size,
        **shape,
        **settings.model_args,
    )


def folder_name(settings: Settings, fold: int) -> str:
    """Return a fold's folder as the repository names it, e.g. cifar10_fold_1_dense_checkpoint."""
    if is_folder_path(settings.id_dataset):
        dataset = Path(settings.id_dataset).resolve().name
    else:
        dataset = info(settings.id_dataset).name
    return f"{dataset}_fold_{fold}_{WORDS.get(settings.arch, settings.arch)}_checkpoint"
