"""Ensemble of self-supervised leave-out classifiers.

Each of five networks learns to be unsure about a fifth of the classes.

    loss of fold f:  CE(kept) + beta * max(0, margin + mean H(kept) - mean H(left out))
    score:           S(x) = sum over folds of  max p_f - H(p_f)
    with             H: entropy of the softmax, in nats
                     p_f = softmax(z_f(x_f') / T),   x_f' = x - eps * sign(gradient), per fold

S is larger for ID images. `score` returns -S, which is larger for OOD, like every detector here.

Source: Vyas et al., "Out-of-Distribution Detection Using an Ensemble of Self Supervised Leave-out
Classifiers", ECCV 2018, arXiv 1809.03576. Folds, recipe and weight files are those of the public
repository YU1ut/Ensemble-of-Leave-out-Classifiers. Paper and repository differ in the gradient of
the perturbation; the setting `gradient` chooses. We differ from the repository in three points: the
softmax is taken in float64 (scores differ in the 6th digit), gradients flow to the image only, and
the outputs of a fold are read in the order of its kept classes.
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
from ood.cache import cached
from ood.config import InputError
from ood.methods.base import Method
from ood.methods.leaveout.formulas import pass_over, stacked
from ood.methods.leaveout.settings import (
    Settings,
    build_network,
    check,
    facts,
    folder_name,
    kept_of,
    preprocess_of,
)
from ood.methods.leaveout.training import train_fold
from ood.outputs import network_digest
from ood.training.context import Context
from ood.training.runs import Run, holds_run

WEIGHT_FILES = ("best.pt", "model_best.pth.tar")  # ours, the repository's


@dataclass(frozen=True)
class FoldOutputs:
    """What F folds say of N images.

    Attributes:
        confidence: (N, F) in float64, of the perturbed images at temperature T.
        softmax: (N, F, K') of the unperturbed images at T = 1.
    """

    confidence: Tensor
    softmax: Tensor


class LeaveOut(Method):
    """The trained ensemble.

    Args:
        networks: one per fold, in the order of the folds.
    """

    name = "leaveout"
    Settings = Settings

    def __init__(self, settings: Settings, networks: Sequence[nn.Module], context: Context):
        self.settings, self.context = settings, context
        self.networks = [
            n.to(context.device, memory_format=torch.channels_last).eval().requires_grad_(False)
            for n in networks
        ]
        self.num_classes, self.preprocess = facts(settings)[0], preprocess_of(settings)
        folds = range(1, settings.folds + 1)
        self.kept = [torch.from_numpy(kept_of(settings, fold)) for fold in folds]
        self._together = stacked(self.networks) if settings.together else None
        digests = "".join(map(network_digest, self.networks))
        self.digest = hashlib.sha256(digests.encode()).hexdigest()
        self._seen: dict[str, FoldOutputs] = {}

    @classmethod
    def train(cls, settings: Settings, context: Context) -> Run:
        """Train fold `settings.fold`. The ensemble needs all folds (train_all.py)."""
        return train_fold(settings, context)

    @classmethod
    def load(
        cls, settings: Settings, context: Context, checkpoint: str | Path | None = None
    ) -> LeaveOut:
        """Load the ensemble from the folders <root>/<data set>_fold_<f>_<network>_checkpoint.

        Args:
            checkpoint: the root; None: context.checkpoints_dir.
        Raises: InputError when a fold is missing or of other settings.
        """
        check(settings)
        root = Path(checkpoint or context.checkpoints_dir)
        folds = range(1, settings.folds + 1)
        files = [
            weight_file(root / folder_name(settings, fold), settings, fold, context.training)
            for fold in folds
        ]
        networks = [build_network(settings, context) for _ in folds]
        for network, file in zip(networks, files):
            context.networks.checkpoints.load_into(network, file)
        context.log(f"weights: {len(files)} folds, {files[0].parent.name}/{files[0].name} ...")
        return cls(settings, networks, context)

    def score(self, images) -> Tensor:
        return self.fold_scores(images).sum(1)

    def fold_scores(self, images) -> Tensor:
        """Return (N, F) in float64: the score of each fold alone, larger for OOD."""
        return -self.outputs(images).confidence

    def predict(self, images) -> Tensor:
        """Return the classes (N,): the argmax of the folds' mean softmax.

        A class that a fold leaves out has probability 0 in that fold.
        """
        softmax = self.outputs(images).softmax
        total = softmax.new_zeros(len(softmax), self.num_classes)
        for fold, kept in enumerate(self.kept):
            total[:, kept] += softmax[:, fold]
        return total.argmax(1)

    def accuracy(self, images) -> float | None:
        """Return the accuracy of the ensemble as a classifier of all classes."""
        return _share(self.predict(images), images.labels)

    def fold_accuracies(self, images) -> list[float | None]:
        """Return each network's accuracy on images of ALL classes.

        A network cannot name the classes that it left out.
        """
        softmax = self.outputs(images).softmax
        return [
            _share(kept[softmax[:, fold].argmax(1)], images.labels)
            for fold, kept in enumerate(self.kept)
        ]

    def figures(self, out_dir: str | Path, sets: Sequence) -> list[tuple[Path, str]]:
        """Draw OUT_DIR/figures/leaveout_folds.png and return [(path, caption)].

        It shows the scores of the ensemble and of each fold.

        Args:
            sets: ImageSets, the ID set first.
        """
        from ood.evaluation import plots

        scores = plots.by_detector({images.name: self.scores_by_name(images) for images in sets})
        path = Path(out_dir) / "figures" / "leaveout_folds.png"
        caption = "Leave-out classifiers: scores of the ensemble and of each fold"
        return [(file, caption) for file in plots.score_histograms(scores, sets[0].name, path)]

    def scores_by_name(self, images) -> dict[str, np.ndarray]:
        """Return {"leaveout": (N,) of the ensemble, "leaveout fold 1": (N,), ...}."""
        folds = self.fold_scores(images).numpy()
        alone = {f"{self.name} fold {i + 1}": folds[:, i] for i in range(folds.shape[1])}
        return {self.name: folds.sum(1), **alone}

    def outputs(self, images) -> FoldOutputs:
        """Return what one pass over an ImageSet gives.

        It is kept in memory, and on disk in the context's cache.
        """
        if images.digest not in self._seen:
            s = self.settings
            content = (self.digest, images.digest, repr(self.preprocess), self.context.device.type)
            score = (s.temperature, s.magnitude, s.gradient, [k.tolist() for k in self.kept])
            parts = {
                "leaveout-confidence": (*content, repr(score)),
                "leaveout-softmax": (*content, repr(score[-1])),
            }
            found = cached(self.context.cache, parts, lambda: self._pass(images))
            self._seen[images.digest] = FoldOutputs(*(found[part] for part in parts))
        return self._seen[images.digest]

    def _pass(self, images) -> dict[str, Tensor]:
        """Forward the images. Every process takes its share and gets all rows."""
        s, device = self.settings, self.context.device
        mine = images.subset(distributed.share_of_rows(len(images), s.batch_size))
        batches = mine.batches(s.batch_size)
        if self.context.progress:
            batches = self.context.progress(
                batches,
                f"{images.name}, {s.folds} folds",
                total=-(-len(mine) // s.batch_size),
                unit="images",
                scale=s.batch_size,
            )
        confident, softmax = [], []
        for batch in batches:
            one, other = self.batch(self.preprocess(batch.to(device, non_blocking=True)))
            confident.append(one.cpu())
            softmax.append(other.cpu())
        return {
            name: distributed.gather_rows(torch.cat(rows) if rows else None)
            for name, rows in (("leaveout-confidence", confident), ("leaveout-softmax", softmax))
        }

    def batch(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return confidence (B, F) in float64 and softmax (B, F, K').

        Args:
            images: normalised, (B, C, H, W).
        """
        s = self.settings
        options = dict(
            temperature=s.temperature,
            magnitude=s.magnitude,
            std=self.preprocess.std,
            gradient=s.gradient,
        )
        if self._together:
            images = images.expand(s.folds, *images.shape)
            confident, softmax = pass_over(self._together, images, **options)
        else:
            images = images.contiguous(memory_format=torch.channels_last)
            folds = [pass_over(network, images, **options) for network in self.networks]
            confident, softmax = (torch.stack(values) for values in zip(*folds))
        return confident.transpose(0, 1), softmax.transpose(0, 1)


def _share(predicted: Tensor, labels) -> float | None:
    """Return the share of correct predictions among labelled images; None without any."""
    labels = torch.as_tensor(np.asarray(labels))
    known = labels >= 0
    return (predicted == labels)[known].double().mean().item() if known.any() else None


def weight_file(
    folder: Path, settings: Settings, fold: int, training: str = Context.training
) -> Path:
    """Return best.pt of our run, or the repository's model_best.pth.tar.

    Args:
        training: the command that trains a fold, for the message.
    Raises: InputError when there is none, or when it was trained with other settings.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(
            f"fold {fold} is missing: no {' or '.join(WEIGHT_FILES)} in '{folder}'; "
            f"train it: {training} -fold {fold} -out_dir {folder} (train_all.py trains all folds)"
        )
    if holds_run(folder):
        stored = Run(folder).config
        for name in ("arch", "depth", "width", "folds", "split_seed"):
            asked = getattr(settings, name)
            if stored.get(name) not in (None, asked):
                raise InputError(
                    f"'{folder}' was trained with {name} {stored[name]!r}, the config says "
                    f"{asked!r}; give the config that it was trained with, or another "
                    "-checkpoints_dir"
                )
    return file
