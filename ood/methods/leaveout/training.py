"""Training of one fold of the leave-out ensemble.

Two streams of images feed the margin loss, and a validation set picks the epoch.

Source: see ood.methods.leaveout.method. As in the repository, the two batches of a step go through
the network in separate forward passes. The batch statistics of left-out images therefore never mix
with those of kept images, while the running averages see both in turn. We differ from the
repository in two points: runs are seeded and resume exactly, and iSUN's images only pick the epoch,
they are never trained on.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ood import cli, distributed, metrics, metrics_released
from ood.config import InputError, build, to_dict
from ood.data import Augment
from ood.methods.leaveout.formulas import margin_loss
from ood.methods.leaveout.images import FoldData, fold_data
from ood.methods.leaveout.settings import (
    Settings,
    build_network,
    check,
    folder_name,
    kept_of,
    preprocess_of,
)
from ood.training import loop, runs
from ood.training.batches import ImageBatches, PairedBatches, mix
from ood.training.context import Context

# What may change when a run is continued.
FREE = (
    "epochs",
    "temperature",
    "magnitude",
    "gradient",
    "holdout",
    "together",
    "magnitudes",
    "repository",
)
KIND = runs.Kind("leaveout", Settings, "a fold of leave-out classifiers", free=FREE)


def train_fold(settings: Settings, context: Context) -> runs.Run:
    """Train fold `settings.fold` and return its run folder.

    The folder is context.out_dir, else checkpoints_dir/<data set>_fold_<f>_<network>_checkpoint.

    Raises: InputError for settings that make no sense, for missing images, and when the folder
        holds a run but context.resume is not set.
    """
    check(settings)
    folder = Path(context.out_dir or _default_folder(settings, context))
    resumed = None
    if context.resume:
        resumed = KIND.to_resume(to_dict(settings), context.checkpoints_dir, folder)
    if resumed:
        settings = continued(resumed, settings)
    elif runs.holds_run(folder):
        raise InputError(
            f"'{folder}' holds a run already; add -resume to continue it, or give another -out_dir"
        )
    cli.set_seed(mix(settings.seed, settings.fold) % 2**32, context.deterministic)
    fold = Fold(settings, context, fold_data(settings, context))
    run = resumed or KIND.create(
        folder.name, {**to_dict(settings), "limit": context.limit}, out_dir=folder
    )
    with run.locked():
        run.update(**{name: to_dict(settings)[name] for name in FREE})
        fold.begin(run, bool(resumed))
        began = time.perf_counter()
        history = fold.fit(run, bool(resumed))
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


def _default_folder(settings: Settings, context: Context) -> Path:
    return Path(context.checkpoints_dir) / folder_name(settings, settings.fold)


class Fold:
    """One fold in training: its network, batches, loss, validation and weight file."""

    def __init__(self, settings: Settings, context: Context, data: FoldData):
        self.settings, self.context, self.data = settings, context, data
        network = build_network(settings, context)
        self.network = network.to(context.device, memory_format=torch.channels_last)
        self.preprocess, self.augment = preprocess_of(settings), Augment(settings.augment)
        self.selecting = data.valid_ood is not None

    def begin(self, run: runs.Run, resumed: bool) -> None:
        """Log what is needed to repeat the run."""
        data, settings = self.data, self.settings
        sizes = {
            "kept_images": len(data.inside),
            "left_out_images": len(data.outside),
            "valid_images": len(data.valid_id) if self.selecting else 0,
        }
        digests = {"train": data.train.digest}
        run.begin(settings, self.context.device, digests, resumed=resumed, **sizes)
        self.context.log(
            f"fold {settings.fold} of {settings.folds} | {len(data.inside)} images of "
            f"{len(kept_of(settings))} classes, {len(data.outside)} left out | "
            f"run folder {run.folder}"
        )

    def fit(self, run: runs.Run, resumed: bool) -> loop.History:
        """Run the epochs."""
        s = self.settings
        optimizer = loop.make_optimizer(
            s.optimizer,
            self.network.parameters(),
            s.lr,
            momentum=s.momentum,
            nesterov=s.nesterov,
            weight_decay=s.weight_decay,
        )
        schedule = loop.Schedule(
            optimizer, s.schedule, s.epochs, milestones=s.milestones, gamma=s.gamma
        )
        with runs.board(run, self.context.tensorboard) as tell:
            return loop.fit(
                self.loss,
                self.network,
                self.batches(),
                loop.Plan(
                    epochs=s.epochs,
                    optimizer=optimizer,
                    schedule=schedule,
                    select="valid_auroc" if self.selecting else None,
                    precision=s.precision,
                ),
                run,
                self.pack,
                loop.Hooks(
                    validate=self.validate if self.selecting else None,
                    say=self.context.log,
                    tell=tell,
                ),
                resume=resumed,
            )

    def batches(self) -> PairedBatches:
        """Return the two streams of a step: images of kept and of left-out classes."""
        s, data = self.settings, self.data
        streams = [
            ImageBatches(
                data.train,
                indices=rows,
                seed=mix(s.seed, s.fold, number),
                batch_size=s.batch_size,
                device=self.context.device,
                targets=data.targets,
                transform=self._augmented,
            )
            for number, rows in enumerate((data.inside, data.outside))
        ]
        return PairedBatches(*streams)

    def _as_is(self, pixels: Tensor, chance) -> Tensor:
        return self.preprocess(pixels).contiguous(memory_format=torch.channels_last)

    def _augmented(self, pixels: Tensor, chance) -> Tensor:
        return self._as_is(self.augment(pixels, chance), chance)

    def loss(self, batch) -> tuple[Tensor, dict]:
        """Return the margin loss of (images (B, C, H, W), labels (B,), left-out (B', C, H, W))."""
        images, labels, outside = batch
        return margin_loss(
            self.network(images).float(),
            labels,
            self.network(outside).float(),
            self.settings.beta,
            self.settings.margin,
        )

    def validate(self, epoch: int) -> dict[str, float]:
        s, data, device = self.settings, self.data, self.context.device
        known, novel = (
            softmax(self.network, images, self._as_is, s.batch_size, device)  # (N, K')
            for images in (data.valid_id, data.valid_ood)
        )
        kept = data.valid_targets >= 0
        correct = known.argmax(1)[kept] == data.valid_targets[kept]
        return {
            "valid_auroc": selection_auroc(known.max(1), novel.max(1), s.selection),
            "valid_accuracy": float(correct.mean()),
        }

    def pack(self, epoch: int, measured: dict) -> dict:
        """Return what a weight file of this fold holds."""
        kept, names = kept_of(self.settings).tolist(), self.data.train.class_names
        return runs.payload(
            self.context.networks,
            self.network,
            epoch,
            measured,
            self.preprocess,
            self.data.train.shape[-1],
            names and [names[place] for place in kept],
            fold=self.settings.fold,
            kept_classes=kept,
        )


def finished(folder: str | Path, epochs: int) -> bool:
    """Return whether the run in a folder was trained to its end, for at least so many epochs."""
    run = runs.Run(folder)
    ends = [record for record in run.records() if record.get("event") == "end"]
    return run.best.is_file() and bool(ends) and ends[-1].get("epoch", 0) >= epochs


def softmax(network, images, transform, batch_size: int, device) -> np.ndarray:
    """Return the softmax (N, K') at T = 1 in eval mode, unperturbed. It picks the epoch."""
    network.eval()
    mine = images.subset(distributed.share_of_rows(len(images), batch_size))
    with torch.inference_mode():
        parts = [
            network(transform(batch.to(device), None)).double().softmax(1).cpu()
            for batch in mine.batches(batch_size)
        ]
    return distributed.gather_rows(torch.cat(parts) if parts else None).numpy()


def selection_auroc(known: np.ndarray, novel: np.ndarray, rule: str) -> float:
    """Return the AUROC of confidences (larger = ID).

    Args:
        rule: "exact": by rank. "released": by rectangles over the thresholds 0, 1 and every score
            plus 1e-4, which is slightly pessimistic.
    """
    if rule == "exact":
        return metrics.evaluate(-known, -novel).auroc
    thresholds = np.unique(np.concatenate(([0.0, 1.0], known + 1e-4, novel + 1e-4)))
    return metrics_released.auroc_rectangle(-known, -novel, thresholds, strict=False)


def continued(run: runs.Run, settings: Settings) -> Settings:
    """Return the stored settings of a run, with what may change taken from `settings`.

    Raises: InputError when they contradict each other.
    """
    values = KIND.continued(run, to_dict(settings))
    return build(Settings, values, str(run.folder / "config.json"))
