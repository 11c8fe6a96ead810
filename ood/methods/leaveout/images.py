"""The images that a fold reads: two streams for training, two sets that pick the epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ood.config import InputError
from ood.data import ImageSet, load
from ood.methods.leaveout.formulas import held_out, positions
from ood.methods.leaveout.settings import Settings, facts, kept_of
from ood.training.context import Context


@dataclass
class FoldData:
    """The images of one fold.

    Attributes:
        train: of all classes.
        inside, outside: rows of `train` of kept and of left-out classes.
        targets: (N,) the output of each training image's class, -1 for a left-out class.
        valid_id: validation images of all classes, as in the repository; None: no selection.
        valid_ood: of another data set.
        valid_targets: as `targets`, for valid_id.
    """

    train: ImageSet
    inside: np.ndarray
    outside: np.ndarray
    targets: np.ndarray
    valid_id: ImageSet | None
    valid_ood: ImageSet | None
    valid_targets: np.ndarray | None


def fold_data(settings: Settings, context: Context) -> FoldData:
    """Find and check everything that a fold reads, before the first epoch.

    Raises: InputError when a set is missing, or leaves no images of a kind that is needed.
    """
    num_classes, channels, size = facts(settings)
    common = dict(
        data_dir=context.data_dir, channels=channels, size=size, download=context.download
    )
    images = load(settings.id_dataset, "train", **common)
    if images.num_classes != num_classes:
        raise InputError(
            f"'{settings.id_dataset}' has {images.num_classes} classes, the config says "
            f"{num_classes}; they must agree"
        )
    rows, valid_id, valid_ood = np.arange(len(images)), None, None
    if settings.validation_dataset:
        valid_id, valid_ood, taken = _validation(settings, images, common)
        if settings.validation_id == "train":
            rows = np.setdiff1d(rows, taken)
        valid_id, valid_ood = valid_id.limited(context.limit), valid_ood.limited(context.limit)
    images = images.subset(rows).limited(context.limit)
    table = positions(num_classes, kept_of(settings))
    targets = table[images.labels]
    data = FoldData(
        images,
        np.flatnonzero(targets >= 0),
        np.flatnonzero(targets < 0),
        targets,
        valid_id,
        valid_ood,
        None if valid_id is None else table[valid_id.labels],
    )
    if not len(data.inside) or not len(data.outside):
        raise InputError(
            f"fold {settings.fold}: {len(data.inside)} images of kept classes, "
            f"{len(data.outside)} of left-out ones; both are needed"
        )
    if valid_id is not None and not (data.valid_targets >= 0).any():
        raise InputError(
            f"fold {settings.fold}: none of the {len(valid_id)} validation images is of a kept "
            "class; take more of them"
        )
    return data


def _validation(settings: Settings, train: ImageSet, common: dict):
    """Return the ID and the OOD images that pick the epoch, and the positions of the ID images."""
    wanted, seed = settings.validation_images, settings.split_seed
    novel = load(settings.validation_dataset, settings.validation_split, **common)
    from_train = settings.validation_id == "train"
    known = train if from_train else load(settings.id_dataset, "test", **common)
    taken = held_out(len(known), wanted, seed)
    if not len(taken):
        raise InputError(
            f"'{settings.id_dataset}' has {len(known)} {settings.validation_id} images, too few to "
            "hold a tenth of them out; set validation_dataset to null to keep the last epoch"
        )
    return known.subset(taken), _chosen(novel, wanted, seed), taken


def _chosen(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Choose at most `count` images by the seed, because files come class by class."""
    return images.subset(
        np.sort(np.random.RandomState(seed % 2**32).permutation(len(images))[:count])
    )
