"""Ensemble of self-supervised leave-out classifiers: each of five networks learns to be unsure about a fifth of the classes.

    fold f:   loss = CE(kept) + beta * max(0, margin + mean H(kept) - mean H(left out)),   H: entropy of the softmax, in nats
    score:    S(x) = sum over folds of  max p_f - H(p_f),   p_f = softmax(z_f(x_f') / T),   x_f' = x - eps * sign(gradient) per fold

S is larger for ID; `score` gives -S, like every detector here. Training of one fold: `ood.methods.leaveout_training`.

Source: Vyas et al., "Out-of-Distribution Detection Using an Ensemble of Self Supervised Leave-out Classifiers", ECCV 2018, arXiv
1809.03576, and the public repository YU1ut/Ensemble-of-Leave-out-Classifiers, which gives folds, recipe and weight files. Paper and
repository differ in the gradient of the perturbation: "gradient" names it. Differences from the repository: the softmax is taken in
float64 (scores differ in the 6th digit), gradients only flow to the image, folds are read by the order of their kept classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import distributed
from ood.config import InputError
from ood.data import Preprocess, info
from ood.data.registry import is_folder_path
from ood.detectors.inputs import perturb
from ood.methods.base import Context, Method
from ood.outputs import network_digest
from ood.runs import Run, holds_run

WORDS = {"densenet": "dense", "wrn": "wide"}  # the repository's folder names
WEIGHT_FILES = ("best.pt", "model_best.pth.tar")  # ours, the repository's


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


# ---- folds -------------------------------------------------------------------------------------------------------------------


def class_folds(num_classes: int, folds: int = 5, seed: int = 3) -> list[np.ndarray]:
    """The classes that each fold leaves out: consecutive parts of a permutation by NumPy's legacy generator."""
    if folds < 2 or num_classes % folds or num_classes // folds >= num_classes - 1:
        raise InputError(
            f"{num_classes} classes cannot be split into {folds} folds; the number of folds (2 or more) must divide it, "
            "and two classes or more must be kept"
        )
    return np.split(np.random.RandomState(seed).permutation(num_classes), folds)


def kept_classes(num_classes: int, fold: int, folds: int = 5, seed: int = 3) -> np.ndarray:
    """Classes of a fold (1-based) in the order of its network's outputs: that of the permutation, NOT sorted."""
    parts = class_folds(num_classes, folds, seed)
    if not 1 <= fold <= folds:
        raise InputError(f"fold {fold} does not exist; folds are 1 to {folds}")
    return np.concatenate(parts[: fold - 1] + parts[fold:])


def positions(num_classes: int, kept: np.ndarray) -> np.ndarray:
    """(num_classes,) output of each class, -1 for those left out."""
    table = np.full(num_classes, -1)
    table[kept] = np.arange(len(kept))
    return table


def held_out(count: int, wanted: int = 1000, seed: int = 3) -> np.ndarray:
    """Positions of a test set that serve as validation images: the first of a permutation, a tenth of the set at most."""
    return np.random.RandomState(seed).permutation(count)[: min(wanted, count // 10)]


def evaluated(
    count_id: int, count_ood: int, holdout: str, wanted: int = 1000, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the ID and of the OOD test set that count.

    'released': the positions held out of the ID set are skipped in BOTH, and the OOD set ends where the ID set does (the
    repository, which stops at a set of fewer than 10,000 images; here it is simply shorter). 'full': all rows.
    """
    if holdout == "full":
        return np.arange(count_id), np.arange(count_ood)
    rows = np.setdiff1d(np.arange(count_id), held_out(count_id, wanted, seed))
    return rows, rows[rows < count_ood]


# ---- formulas ----------------------------------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """H = -sum_c p_c log p_c of the softmax, in nats: (..., C) -> (...)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def margin_loss(
    logits_in: Tensor, labels: Tensor, logits_out: Tensor, beta: float = 0.2, margin: float = 0.4
) -> tuple[Tensor, dict]:
    """CE + beta * max(0, margin + mean H_in - mean H_out), T = 1.

    Args: logits_in (B, C), labels (B,) of kept classes; logits_out (B', C) of left-out images, from a forward pass of their own.
    Returns: the loss, and its parts: cross_entropy, entropy_in, entropy_out, hinge (before beta), accuracy.
    """
    cross_entropy = F.cross_entropy(logits_in, labels)
    entropy_in, entropy_out = entropy(logits_in).mean(), entropy(logits_out).mean()
    hinge = F.relu(margin + entropy_in - entropy_out)
    accuracy = (logits_in.argmax(1) == labels).float().mean()
    parts = {
        "cross_entropy": cross_entropy,
        "entropy_in": entropy_in,
        "entropy_out": entropy_out,
        "hinge": hinge,
        "accuracy": accuracy,
    }
    return cross_entropy + beta * hinge, {name: part.detach() for name, part in parts.items()}


def confidence(logits: Tensor) -> Tensor:
    """max p - H(p) in float64, larger = ID: (..., C) -> (...). Logits are tempered already."""
    logits = logits.double()
    return logits.softmax(-1).amax(-1) - entropy(logits)


def pass_over(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    temperature: float,
    magnitude: float,
    std: Sequence[float],
    gradient: str = "cross_entropy",
) -> tuple[Tensor, Tensor]:
    """One batch through one network, or through all folds at once: a forward, a backward and a forward pass serve everything.

    Args:
        forward: images (..., B, C, H, W) -> logits (..., B, K'); its parameters should not require gradients.
        images: normalised, without or with a leading axis of folds.
        magnitude: eps, pixel units; 0: no perturbation, and no backward pass.
        gradient: x' = x - eps * sign(g) / std with g that of 'cross_entropy': CE(z / T, argmax z), or of 'entropy': H(z / T).
    Returns: confidence of the perturbed images (..., B) float64; softmax of the unperturbed ones at T = 1 (..., B, K').
    """
    images = images.detach().requires_grad_(bool(magnitude))
    with torch.set_grad_enabled(bool(magnitude)):
        logits = forward(images)
        plain = logits.detach()
        if magnitude:
            tempered = logits / temperature
            loss = (
                entropy(tempered).sum()
                if gradient == "entropy"
                else F.cross_entropy(
                    tempered.flatten(0, -2), plain.argmax(-1).flatten(), reduction="sum"
                )
            )
            images = perturb(images, loss, magnitude, tuple(std))
            with torch.no_grad():
                logits = forward(images)
    return confidence(logits.detach() / temperature), plain.softmax(-1)


def stacked(networks: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The networks as one function (F, B, C, H, W) -> (F, B, K'): their weights are stacked and the forward pass is vectorised."""
    weights, buffers = torch.func.stack_module_state(list(networks))
    weights = {name: tensor.detach() for name, tensor in weights.items()}

    def one(weights_, buffers_, images):
        return torch.func.functional_call(networks[0], (weights_, buffers_), (images,))

    together = torch.vmap(one)
    return lambda images: together(weights, buffers, images)


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
        from ood.methods.leaveout_training import train_fold

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
        from ood import plots

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


# ---- what a config means -----------------------------------------------------------------------------------------------------


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
