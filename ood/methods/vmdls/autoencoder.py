"""The auto-encoder whose reconstruction error weights the VMDLS score.

As a method of its own, its reconstruction error is the score.

Source: Dinari & Freifeld, UAI 2022. They take the CIFAR-10 auto-encoder of lightning-bolts 0.2.5,
and train one for MNIST: mean squared error, Adam at 1e-4, no augmentation, 5,000 validation images.
Their files were not at hand. The number of epochs is not published. A Lightning file, such as
theirs, does not store the normalisation that it was trained with; see `AutoEncoder.load`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import cli
from ood.config import check_settings, ranged, to_dict
from ood.data import ImageSet, Preprocess, info, load
from ood.methods.base import MOST, MOST_CLASSES, SEEDS, Method
from ood.methods.vmdls.training import open_run
from ood.training import loop, runs
from ood.training.batches import FirstBatches, ImageBatches, split
from ood.training.context import Context

# Mean and std by which lightning-bolts normalises CIFAR-10, and its auto-encoder's images.
BOLTS = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)
BOLTS_SETS = ("cifar10", "cifar100")  # the authors feed both with CIFAR-10's constants


@dataclass(frozen=True)
class Settings:
    """The keys of a config.

    Attributes:
        latent_dim: None: 32 for mnist_conv, else 256.
        mean, std: the normalisation, in pixel units. None: the data set's.
        steps: batches per epoch. None: every image once.
        valid_images: the number of images taken from the training set.

    Raises: InputError for a value out of its range.
    """

    id_dataset: str = "mnist"
    arch: Literal["mnist_conv", "resnet18", "resnet50"] = "mnist_conv"
    latent_dim: int | None = ranged(None, 1, MOST_CLASSES)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    epochs: int = ranged(20, 1, MOST)
    steps: int | None = ranged(None, 1, MOST)
    batch_size: int = ranged(32, 1, MOST)
    lr: float = ranged(1e-4, above=0)
    valid_images: int = ranged(5000, 1, MOST)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = ranged(0, *SEEDS)

    def __post_init__(self):
        check_settings(self)


KIND = runs.Kind(
    "autoencoder", Settings, "an auto-encoder", free=("epochs",), same=("id_dataset", "arch")
)


class AutoEncoder(Method):
    """Reconstructs images. Its score is the mean squared error of the normalised image."""

    name = "autoencoder"
    Settings = Settings

    def __init__(self, network: nn.Module, preprocess: Preprocess, settings, context: Context):
        self.network = network.to(context.device).eval()
        self.preprocess, self.settings, self.context = preprocess, settings, context

    @classmethod
    def train(cls, settings, context: Context) -> runs.Run:
        return train_autoencoder(settings, context)

    @classmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> AutoEncoder:
        """Load the auto-encoder from a run folder or a weight file (ours or lightning-bolts').

        Without `checkpoint`, take the best epoch of the newest run for id_dataset.

        The normalisation is the one that the file stores. A file without one, such as a Lightning
        file, gets the mean and std of the settings, else lightning-bolts' for CIFAR, else the data
        set's. The log says which was taken.

        Raises: InputError when there is no such run.
        """
        if checkpoint is None:
            root, command = context.checkpoints_dir, _training_command(settings)
            checkpoint = KIND.newest(to_dict(settings), root, command=command).best
        path = Path(checkpoint) / "best.pt" if Path(checkpoint).is_dir() else Path(checkpoint)
        network = build(settings, context)
        stored = context.networks.checkpoints.load_into(network, path).get("preprocess")
        preprocess, source = _normalisation(settings, stored)
        mean, std = (
            ", ".join(f"{v:.4g}" for v in values) for values in (preprocess.mean, preprocess.std)
        )
        context.log(f"auto-encoder {path} | input (x - {mean}) / {std}, {source}")
        return cls(network, preprocess, settings, context)

    @torch.inference_mode()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Return the reconstruction of pixels (B, C, H, W), in pixel units, float32."""
        return self.preprocess.undo(self.network(self.preprocess(pixels)))

    @torch.inference_mode()
    def score(self, images) -> Tensor:
        errors = []
        for pixels in images.batches(self.settings.batch_size):
            inputs = self.preprocess(pixels.to(self.context.device))
            errors.append((self.network(inputs) - inputs).square().flatten(1).mean(1).cpu())
        return torch.cat(errors)


def _training_command(settings: Settings) -> str:
    """Return what trains an auto-encoder for a data set, for messages."""
    config = Path("configs") / f"{settings.id_dataset}_autoencoder.json"
    if config.is_file():
        return f"python3 ood_training.py -config {config}"
    return (
        "ood_training.py with a config that has the method autoencoder and the "
        f"id_dataset {settings.id_dataset}"
    )


def train_autoencoder(settings: Settings, context: Context) -> runs.Run:
    """Train an auto-encoder and return its run folder. best.pt has the lowest validation error."""
    images = load(
        settings.id_dataset,
        "train",
        context.data_dir,
        download=context.download,
        limit=context.limit,
        seed=settings.seed,
    )
    cli.set_seed(settings.seed, context.deterministic)
    training = _Training(settings, context, images)
    stem = f"{settings.id_dataset}_{settings.arch}_autoencoder"
    with open_run(KIND, settings, context, stem) as run:
        run.begin(
            settings,
            context.device,
            {"train": images.digest},
            resumed=run.last.exists(),
            train_images=len(training.kept),
            valid_images=len(training.held_out),
        )
        training.fit(run)
    return run


class _Training:
    """One training: network, batches, loss, validation and weight file."""

    def __init__(self, settings: Settings, context: Context, images: ImageSet):
        self.settings, self.context, self.images = settings, context, images
        share = min(settings.valid_images / len(images), 0.5)
        self.kept, self.held_out = split(len(images), share, settings.seed)
        self.preprocess = _preprocess(settings)
        network = build(settings, context)
        self.network = network.to(context.device, memory_format=torch.channels_last)

    def fit(self, run: runs.Run) -> None:
        s = self.settings
        batches = ImageBatches(
            self.images,
            s.batch_size,
            transform=self.transform,
            device=self.context.device,
            seed=s.seed,
            indices=self.kept,
        )
        if s.steps:
            batches = FirstBatches(batches, s.steps)
        optimizer = loop.make_optimizer("adam", self.network.parameters(), s.lr)
        with runs.board(run, self.context.tensorboard) as tell:
            loop.fit(
                self.loss,
                self.network,
                batches,
                loop.Plan(
                    epochs=s.epochs,
                    optimizer=optimizer,
                    schedule=loop.Schedule(optimizer, "constant", s.epochs),
                    select="valid_mse",
                    mode="min",
                    precision=s.precision,
                ),
                run,
                self.pack,
                loop.Hooks(validate=self.validate, say=self.context.log, tell=tell),
                resume=self.context.resume,
            )

    def transform(self, pixels: Tensor, chance) -> Tensor:
        return self.preprocess(pixels).contiguous(memory_format=torch.channels_last)

    def loss(self, batch) -> tuple[Tensor, dict]:
        inputs, _ = batch
        return F.mse_loss(self.network(inputs).float(), inputs), {}

    @torch.inference_mode()
    def validate(self, epoch: int) -> dict:
        self.network.eval()
        device, total = self.context.device, 0.0
        for pixels in self.images.batches(self.settings.batch_size, self.held_out):
            inputs = self.transform(pixels.to(device), None)
            with loop.autocast(device, self.settings.precision):
                again = self.network(inputs).float()
                total += F.mse_loss(again, inputs, reduction="sum").item()
        return {"valid_mse": total / (len(self.held_out) * inputs[0].numel())}

    def pack(self, epoch: int, metrics: dict) -> dict:
        """Return what the weight file holds."""
        networks, size = self.context.networks, self.images.shape[-1]
        return runs.payload(networks, self.network, epoch, metrics, self.preprocess, size)


def build(settings: Settings, context: Context) -> nn.Module:
    """Build a fresh auto-encoder."""
    return context.networks.build_autoencoder(settings.arch, settings.latent_dim)


def _normalisation(settings: Settings, stored: dict | None) -> tuple[Preprocess, str]:
    """Return the normalisation of a trained auto-encoder, and where it comes from."""
    if stored:
        return Preprocess(stored["mean"], stored["std"]), "as its file says"
    if settings.mean and settings.std:
        return Preprocess(settings.mean, settings.std), "as named; its file stores none"
    if settings.id_dataset in BOLTS_SETS:
        return Preprocess(*BOLTS), "lightning-bolts' for CIFAR, because its file stores none"
    where = f"of {settings.id_dataset}, because its file stores none; name another if it had one"
    return _preprocess(settings), where


def _preprocess(settings: Settings) -> Preprocess:
    """Return the normalisation of a training: the config's, else the data set's."""
    facts = info(settings.id_dataset)
    return Preprocess(settings.mean or facts.mean, settings.std or facts.std)
