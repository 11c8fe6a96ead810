"""Ensemble of self-supervised leave-out classifiers: each of five networks learns to be unsure about a fifth of the classes.

    fold f:   loss = CE(kept) + beta * max(0, margin + mean H(kept) - mean H(left out)),   H: entropy of the softmax, in nats
    score:    S(x) = sum over folds of  max p_f - H(p_f),   p_f = softmax(z_f(x_f') / T),   x_f' = x - eps * sign(gradient) per fold

S is larger for ID; `score` gives -S, like every detector here. Training of one fold: `ood.methods.leaveout.training`.

Source: Vyas et al., "Out-of-Distribution Detection Using an Ensemble of Self Supervised Leave-out Classifiers", ECCV 2018, arXiv
1809.03576, and the public repository YU1ut/Ensemble-of-Leave-out-Classifiers, which gives folds, recipe and weight files. Paper and
repository differ in the gradient of the perturbation: "gradient" names it. Differences from the repository: the softmax is taken in
float64 (scores differ in the 6th digit), gradients only flow to the image, folds are read by the order of their kept classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ood import distributed
from ood.config import InputError
from ood.methods.base import Context, Method
from ood.methods.leaveout.formulas import kept_classes, pass_over, stacked
from ood.methods.leaveout.settings import (
    Settings,
    build_network,
    check,
    facts,
    folder_name,
    preprocess_of,
)
from ood.outputs import network_digest
from ood.training.runs import Run, holds_run

WEIGHT_FILES = ("best.pt", "model_best.pth.tar")  # ours, the repository's


# ---- the method --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoldOutputs:
    """Of N images: confidence (N, F) float64 and softmax (N, F, K'), T = 1 and unperturbed, of every fold."""

    confidence: Tensor
    softmax: Tensor


class LeaveOut(Method):
    """The trained ensemble."""

    name = "leaveout"
    Settings = Settings

    def __init__(self, settings: Settings, networks: Sequence[nn.Module], context: Context):
        self.settings, self.context = settings, context
        self.networks = [
            n.to(context.device, memory_format=torch.channels_last).eval().requires_grad_(False)
            for n in networks
        ]
        self.num_classes, self.preprocess = facts(settings)[0], preprocess_of(settings)
        self.kept = [
            torch.from_numpy(
                kept_classes(self.num_classes, fold, settings.folds, settings.split_seed)
            )
            for fold in range(1, settings.folds + 1)
        ]
        self._together = stacked(self.networks) if settings.together else None
        self.digest = hashlib.sha256(
            "".join(map(network_digest, self.networks)).encode()
        ).hexdigest()
        self._seen: dict[str, FoldOutputs] = {}

    @classmethod
    def train(cls, settings: Settings, context: Context) -> Run:
        """Train fold `settings.fold`; the ensemble needs all of them (train_all.py)."""
        from ood.methods.leaveout.training import train_fold

        return train_fold(settings, context)

    @classmethod
    def load(
        cls, settings: Settings, context: Context, checkpoint: str | Path | None = None
    ) -> LeaveOut:
        """The ensemble from the folders `<checkpoint or context.checkpoints_dir>/<data set>_fold_<f>_<network>_checkpoint`."""
        check(settings)
        root = Path(checkpoint or context.checkpoints_dir)
        folds = range(1, settings.folds + 1)
        files = [weight_file(root / folder_name(settings, fold), settings, fold) for fold in folds]
        networks = [build_network(settings, context) for _ in folds]
        for network, file in zip(networks, files):
            context.networks.checkpoints.load_into(network, file)
        context.log(f"weights: {len(files)} folds, {files[0].parent.name}/{files[0].name} ...")
        return cls(settings, networks, context)

    def score(self, images) -> Tensor:
        return self.fold_scores(images).sum(1)

    def fold_scores(self, images) -> Tensor:
        """(N, F) float64: the score of each fold alone, larger = OOD."""
        return -self.outputs(images).confidence

    def predict(self, images) -> Tensor:
        """(N,) classes: argmax of the mean over folds of the softmax, 0 for what a fold leaves out."""
        softmax = self.outputs(images).softmax
        total = softmax.new_zeros(len(softmax), self.num_classes)
        for fold, kept in enumerate(self.kept):
            total[:, kept] += softmax[:, fold]
        return total.argmax(1)

    def accuracy(self, images) -> float | None:
        """Of the ensemble as a classifier of all classes; None without labels."""
        return _share(self.predict(images), images.labels)

    def fold_accuracies(self, images) -> list[float | None]:
        """Of each network alone on the images of ALL classes: it cannot name those that it left out."""
        softmax = self.outputs(images).softmax
        return [
            _share(kept[softmax[:, fold].argmax(1)], images.labels)
            for fold, kept in enumerate(self.kept)
        ]

    def figures(self, out_dir: str | Path, sets: Sequence) -> list[tuple[Path, str]]:
        """OUT_DIR/figures/leaveout_folds.png: scores of the ensemble and of each fold; sets: ImageSets, the ID set first."""
        from ood.evaluation import plots

        scores = plots.by_detector({images.name: self.scores_by_name(images) for images in sets})
        files = plots.score_histograms(
            scores, sets[0].name, Path(out_dir) / "figures" / "leaveout_folds.png"
        )
        return [
            (file, "Leave-out classifiers: scores of the ensemble and of each fold")
            for file in files
        ]

    def scores_by_name(self, images) -> dict[str, np.ndarray]:
        """{"leaveout": ensemble, "leaveout fold 1": (N,), ...}."""
        folds = self.fold_scores(images).numpy()
        return {
            self.name: folds.sum(1),
            **{
                f"{self.name} fold {fold}": folds[:, fold - 1]
                for fold in range(1, folds.shape[1] + 1)
            },
        }

    def outputs(self, images) -> FoldOutputs:
        """Everything that one pass over an ImageSet gives; kept in memory, and on disk in the context's cache."""
        if images.digest not in self._seen:
            self._seen[images.digest] = self._cached(images)
        return self._seen[images.digest]

    def _cached(self, images) -> FoldOutputs:
        cache, s = self.context.cache, self.settings
        if cache is None:
            return self._pass(images)
        score = (s.temperature, s.magnitude, s.gradient, [k.tolist() for k in self.kept])
        key = hashlib.sha256(
            repr(
                (self.digest, images.digest, self.preprocess, score, self.context.device.type)
            ).encode()
        ).hexdigest()[:32]
        names = ("leaveout-confidence", "leaveout-softmax")
        if not set(names) <= distributed.from_first(lambda: cache.parts(key)):
            made = self._pass(images)
            for name, values in (
                zip(names, (made.confidence, made.softmax)) if distributed.first() else ()
            ):
                cache.create(key, name, tuple(values.shape), values.numpy().dtype)[:] = (
                    values.numpy()
                )
                cache.commit(key, name)
            distributed.barrier()
        return FoldOutputs(*(cache.get(key, name) for name in names))

    def _pass(self, images) -> FoldOutputs:
        s, device = self.settings, self.context.device
        mine = images.subset(distributed.share_of_rows(len(images), s.batch_size))
        batches = mine.batches(s.batch_size)
        if self.context.progress:
            total = -(-len(mine) // s.batch_size)
            batches = self.context.progress(
                batches,
                f"{images.name}, {s.folds} folds",
                total=total,
                unit="images",
                scale=s.batch_size,
            )
        parts = [
            self.batch(self.preprocess(batch.to(device, non_blocking=True))) for batch in batches
        ]
        confident, softmax = zip(*parts) if parts else ((), ())
        return FoldOutputs(
            *(
                distributed.gather_rows(torch.cat([v.cpu() for v in values]) if values else None)
                for values in (confident, softmax)
            )
        )

    def batch(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) -> confidence (B, F) float64, softmax (B, F, K')."""
        s = self.settings
        options = dict(
            temperature=s.temperature,
            magnitude=s.magnitude,
            std=self.preprocess.std,
            gradient=s.gradient,
        )
        if self._together:
            confident, softmax = pass_over(
                self._together, images.expand(s.folds, *images.shape), **options
            )
        else:
            images = images.contiguous(memory_format=torch.channels_last)
            folds = [pass_over(network, images, **options) for network in self.networks]
            confident, softmax = (torch.stack(values) for values in zip(*folds))
        return confident.transpose(0, 1), softmax.transpose(0, 1)


def _share(predicted: Tensor, labels) -> float | None:
    labels = torch.as_tensor(np.asarray(labels))
    known = labels >= 0
    return (predicted == labels)[known].double().mean().item() if known.any() else None


def weight_file(folder: Path, settings: Settings, fold: int) -> Path:
    """best.pt of our run, or the repository's model_best.pth.tar. Raises InputError when there is none, or it is of other settings."""
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(
            f"fold {fold} is missing: no {' or '.join(WEIGHT_FILES)} in '{folder}'; train it: python3 ood_training.py -config "
            f"CONFIG -fold {fold} -out_dir {folder}, or all folds: python3 train_all.py -config CONFIG"
        )
    if holds_run(folder):
        stored = Run(folder).config
        for name in ("arch", "depth", "width", "folds", "split_seed"):
            if stored.get(name) not in (None, getattr(settings, name)):
                raise InputError(
                    f"'{folder}' was trained with {name} {stored[name]!r}, the config says {getattr(settings, name)!r}; "
                    "give the config that it was trained with, or another -checkpoints_dir"
                )
    return file
