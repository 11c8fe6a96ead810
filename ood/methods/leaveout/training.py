"""Training of one fold of the leave-out ensemble: two streams of images, the margin loss, the epoch picked on a validation set.

Source: see ood.methods.leaveout.method. As in the repository the two batches of a step go through the network in separate forward passes, so
that the batch statistics of left-out images never mix with those of kept ones, while the running averages see both in turn.
Different from the repository: runs are seeded and resume exactly; iSUN's images are only read, never trained on.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ood import cli, distributed, metrics, metrics_released
from ood.config import InputError, build, to_dict
from ood.data import Augment, load
from ood.methods.base import Context
from ood.methods.leaveout.formulas import held_out, kept_classes, margin_loss, positions
from ood.methods.leaveout.settings import (
    Settings,
    build_network,
    check,
    facts,
    folder_name,
    preprocess_of,
)
from ood.training import loop as training
from ood.training import runs
from ood.training.batches import PairedBatches
from ood.training.loop import ImageBatches, mix

FREE = (
    "epochs",
    "temperature",
    "magnitude",
    "gradient",
    "holdout",
    "together",
    "magnitudes",
    "repository",
)  # may change on the way
FIXED_LENGTH = ("cosine", "onecycle")


@dataclass
class FoldData:
    """Images of one fold."""

    train: object  # ImageSet, all classes
    inside: np.ndarray  # rows of kept classes
    outside: np.ndarray  # rows of left-out classes
    targets: np.ndarray  # (N,) output of each image's class, -1 for left-out ones
    valid_id: object | None  # ImageSet, all classes as in the repository
    valid_ood: object | None
    valid_targets: np.ndarray | None


def train_fold(settings: Settings, context: Context) -> runs.Run:
    """Train fold `settings.fold` into its run folder (context.out_dir, else checkpoints_dir/<data set>_fold_<f>_<network>_checkpoint)."""
    check(settings)
    folder = Path(
        context.out_dir or Path(context.checkpoints_dir) / folder_name(settings, settings.fold)
    )
    resumed = runs.reopen(folder) if context.resume and runs.holds_run(folder) else None
    if resumed:
        settings = continued(resumed, settings)
    elif runs.holds_run(folder):
        raise InputError(
            f"'{folder}' holds a run already; add -resume to continue it, or give another -out_dir"
        )
    cli.set_seed(mix(settings.seed, settings.fold) % 2**32, context.deterministic)
    data = fold_data(settings, context)
    network = build_network(settings, context).to(context.device, memory_format=torch.channels_last)
    preprocess, augment, device = preprocess_of(settings), Augment(settings.augment), context.device

    def as_is(pixels, generator):
        return preprocess(pixels).contiguous(memory_format=torch.channels_last)

    def augmented(pixels, generator):
        return as_is(augment(pixels, generator), generator)

    common = dict(
        batch_size=settings.batch_size, device=device, targets=data.targets, transform=augmented
    )
    batches = PairedBatches(
        ImageBatches(
            data.train, indices=data.inside, seed=mix(settings.seed, settings.fold, 0), **common
        ),
        ImageBatches(
            data.train, indices=data.outside, seed=mix(settings.seed, settings.fold, 1), **common
        ),
    )

    def objective(batch):
        images, labels, outside = batch  # (B, C, H, W), (B,), (B', C, H, W)
        return margin_loss(
            network(images).float(),
            labels,
            network(outside).float(),
            settings.beta,
            settings.margin,
        )

    def validate(epoch):
        known = softmax(network, data.valid_id, as_is, settings.batch_size, device)  # (N, K')
        novel = softmax(network, data.valid_ood, as_is, settings.batch_size, device)
        kept = data.valid_targets >= 0
        correct = known.argmax(1)[kept] == data.valid_targets[kept]
        return {
            "valid_auroc": selection_auroc(known.max(1), novel.max(1), settings.selection),
            "valid_accuracy": float(correct.mean()),
        }

    def pack(epoch, measured):
        return {
            "format": context.networks.checkpoints.OWN_FORMAT,
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": epoch,
            "metrics": measured,
            "fold": settings.fold,
            "kept_classes": kept_of(settings).tolist(),
            "preprocess": {
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
                "size": data.train.shape[-1],
            },
        }

    optimizer = training.make_optimizer(
        settings.optimizer,
        network.parameters(),
        settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    schedule = training.Schedule(
        optimizer,
        settings.schedule,
        settings.epochs,
        milestones=settings.milestones,
        gamma=settings.gamma,
    )
    run = resumed or runs.create(
        folder.name,
        {"kind": "leaveout", **to_dict(settings), "limit": context.limit},
        out_dir=folder,
    )
    run.update(**{name: to_dict(settings)[name] for name in FREE})
    selecting = data.valid_ood is not None
    sizes = {
        "kept_images": len(data.inside),
        "left_out_images": len(data.outside),
        "valid_images": len(data.valid_id) if selecting else 0,
    }
    context.begin(run, settings, {"train": data.train.digest}, bool(resumed), **sizes)
    context.log(
        f"fold {settings.fold} of {settings.folds} | {len(data.inside)} images of {len(kept_of(settings))} classes, {len(data.outside)} "
        f"left out | run folder {folder}"
    )
    began = time.perf_counter()
    with runs.board(run, context.tensorboard) as tell:
        history = training.fit(
            objective,
            network,
            batches,
            epochs=settings.epochs,
            optimizer=optimizer,
            schedule=schedule,
            run=run,
            pack=pack,
            validate=validate if selecting else None,
            select="valid_auroc" if selecting else None,
            resume=bool(resumed),
            precision=settings.precision,
            say=context.log,
            tell=tell,
        )
    run.log(
        {
            "event": "end",
            "epoch": history.epochs,
            "best_epoch": history.best_epoch,
            "valid_auroc": history.best,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )
    return run


def finished(folder: str | Path, epochs: int) -> bool:
    """Whether the run in a folder was trained for so many epochs, to its end."""
    run = runs.Run(folder)
    ends = [record for record in run.records() if record.get("event") == "end"]
    return run.best.is_file() and bool(ends) and ends[-1].get("epoch", 0) >= epochs


def kept_of(settings: Settings) -> np.ndarray:
    return kept_classes(facts(settings)[0], settings.fold, settings.folds, settings.split_seed)


def fold_data(settings: Settings, context: Context) -> FoldData:
    """Everything that a fold reads, found and checked before the first epoch."""
    num_classes, channels, size = facts(settings)
    common = dict(
        data_dir=context.data_dir, channels=channels, size=size, download=context.download
    )
    images = load(settings.id_dataset, "train", **common)
    if images.num_classes != num_classes:
        raise InputError(
            f"'{settings.id_dataset}' has {images.num_classes} classes, the config says {num_classes}; they must agree"
        )
    valid_id = valid_ood = None
    rows = np.arange(len(images))
    if settings.validation_dataset:
        valid_ood = _chosen(
            load(settings.validation_dataset, settings.validation_split, **common),
            settings.validation_images,
            settings.split_seed,
        )
        source = (
            images
            if settings.validation_id == "train"
            else load(settings.id_dataset, "test", **common)
        )
        taken = held_out(len(source), settings.validation_images, settings.split_seed)
        if not len(taken):
            raise InputError(
                f"'{settings.id_dataset}' has {len(source)} {settings.validation_id} images, too few to hold a tenth of them out; "
                "set validation_dataset to null to keep the last epoch"
            )
        valid_id = source.subset(taken)
        if settings.validation_id == "train":
            rows = np.setdiff1d(rows, taken)
        valid_id, valid_ood = (
            _chosen(part, context.limit, settings.seed) for part in (valid_id, valid_ood)
        )
    images = _chosen(images.subset(rows), context.limit, settings.seed)
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
            f"fold {settings.fold}: {len(data.inside)} images of kept classes, {len(data.outside)} of left-out ones; both are needed"
        )
    if valid_id is not None and not (data.valid_targets >= 0).any():
        raise InputError(
            f"fold {settings.fold}: none of the {len(valid_id)} validation images is of a kept class; take more of them"
        )
    return data


def softmax(network, images, transform, batch_size: int, device) -> np.ndarray:
    """(N, K') softmax at T = 1 in eval mode, unperturbed: what an epoch is picked by."""
    network.eval()
    mine = images.subset(distributed.share_of_rows(len(images), batch_size))
    with torch.inference_mode():
        parts = [
            network(transform(batch.to(device), None)).double().softmax(1).cpu()
            for batch in mine.batches(batch_size)
        ]
    return distributed.gather_rows(torch.cat(parts) if parts else None).numpy()


def selection_auroc(known: np.ndarray, novel: np.ndarray, rule: str) -> float:
    """AUROC of confidences (larger = ID). 'released': thresholds 0, 1 and every score + 1e-4, by rectangles; slightly pessimistic."""
    if rule == "exact":
        return metrics.evaluate(-known, -novel).auroc
    thresholds = np.unique(np.concatenate(([0.0, 1.0], known + 1e-4, novel + 1e-4)))
    return metrics_released.auroc_rectangle(-known, -novel, thresholds, strict=False)


def continued(run: runs.Run, settings: Settings) -> Settings:
    """The stored settings of a run with what may change taken from `settings`. Raises InputError when they contradict each other."""
    if run.config.get("kind") != "leaveout":
        raise InputError(
            f"'{run.folder}' holds a run of kind '{run.config.get('kind')}', not of leave-out classifiers"
        )
    known = {f.name for f in dataclasses.fields(Settings)}
    stored = {name: value for name, value in run.config.items() if name in known}
    if settings.schedule in FIXED_LENGTH and settings.epochs != stored.get("epochs"):
        raise InputError(
            f"the run in '{run.folder}' follows schedule {settings.schedule} over {stored.get('epochs')} epochs; {settings.epochs} "
            "epochs would be another schedule: start a new run"
        )
    return build(
        Settings,
        runs.agree(stored, to_dict(settings), FREE, run.folder),
        str(run.folder / "config.json"),
    )


def _chosen(images, count: int | None, seed: int):
    """A seeded choice of at most so many images, in their order (files are ordered by class)."""
    if count is None or count >= len(images):
        return images
    return images.subset(np.sort(np.random.RandomState(seed).permutation(len(images))[:count]))
