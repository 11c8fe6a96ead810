"""The auto-encoder whose reconstruction error weights the VMDLS score; as a method of its own its error is the score.

Source: Dinari & Freifeld, UAI 2022, who take the CIFAR-10 auto-encoder of lightning-bolts 0.2.5 and train one for MNIST: mean squared
error, Adam at 1e-4, no augmentation, 5,000 validation images. Theirs were not at hand; the number of epochs is not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import cli
from ood.data import Preprocess, info, load
from ood.methods.base import Context, Method
from ood.methods.vmdls.settings import require
from ood.methods.vmdls.training import open_run
from ood.training import loop, runs


class AutoEncoder(Method):
    """images -> reconstruction; score = mean squared error of a normalised image, larger = OOD."""

    name = "autoencoder"

    @dataclass(frozen=True)
    class Settings:
        id_dataset: str = "mnist"
        arch: Literal["mnist_conv", "resnet18", "resnet50"] = "mnist_conv"
        latent_dim: int | None = None  # default: 32 for mnist_conv, else 256
        mean: tuple[float, ...] | None = None  # normalisation; default: the data set's
        std: tuple[float, ...] | None = None
        epochs: int = 20
        steps: int | None = None  # batches per epoch; default: every image once
        batch_size: int = 32
        lr: float = 1e-4
        valid_images: int = 5000  # taken from the training set
        precision: Literal["fp32", "bf16"] = "fp32"
        seed: int = 0

        def __post_init__(self):
            for name in ("epochs", "batch_size", "valid_images"):
                require(
                    getattr(self, name) >= 1,
                    f"{name} is {getattr(self, name)}; it must be at least 1",
                )
            require(self.lr > 0, f"lr is {self.lr}; it must be above 0")

    def __init__(self, network: nn.Module, preprocess: Preprocess, settings, context: Context):
        self.network, self.preprocess, self.settings, self.context = (
            network.to(context.device).eval(),
            preprocess,
            settings,
            context,
        )

    @classmethod
    def train(cls, settings, context: Context) -> runs.Run:
        images = load(
            settings.id_dataset,
            "train",
            context.data_dir,
            download=context.download,
            limit=context.limit,
            seed=settings.seed,
        )
        kept, held_out = loop.split(
            len(images), min(settings.valid_images / len(images), 0.5), settings.seed
        )
        preprocess = _preprocess(settings)
        cli.set_seed(settings.seed, context.deterministic)
        network = build(settings, context).to(context.device, memory_format=torch.channels_last)

        def transform(pixels: Tensor, chance) -> Tensor:
            return preprocess(pixels).contiguous(memory_format=torch.channels_last)

        batches = _Some(
            images,
            settings.batch_size,
            transform=transform,
            device=context.device,
            seed=settings.seed,
            indices=kept,
        )
        batches.steps = settings.steps
        optimizer = loop.make_optimizer("adam", network.parameters(), settings.lr)
        run = open_run(
            cls.name,
            settings,
            context,
            f"{settings.id_dataset}_{settings.arch}_autoencoder",
            {"kind": cls.name, "id_dataset": settings.id_dataset, "arch": settings.arch},
            ("epochs",),
        )

        def objective(batch) -> tuple[Tensor, dict]:
            inputs, _ = batch
            return F.mse_loss(network(inputs).float(), inputs), {}

        @torch.inference_mode()
        def validate(epoch: int) -> dict:
            network.eval()
            total = 0.0
            for pixels in images.batches(settings.batch_size, held_out):
                inputs = transform(pixels.to(context.device), None)
                with loop.autocast(context.device, settings.precision):
                    total += F.mse_loss(network(inputs).float(), inputs, reduction="sum").item()
            return {"valid_mse": total / (len(held_out) * inputs[0].numel())}

        def pack(epoch: int, metrics: dict) -> dict:
            return {
                "format": context.networks.checkpoints.OWN_FORMAT,
                "arch": network.arch,
                "state_dict": network.state_dict(),
                "epoch": epoch,
                "metrics": metrics,
                "preprocess": {
                    "mean": list(preprocess.mean),
                    "std": list(preprocess.std),
                    "size": images.shape[-1],
                },
            }

        context.begin(
            run,
            settings,
            {"train": images.digest},
            run.last.exists(),
            train_images=len(kept),
            valid_images=len(held_out),
        )
        schedule = loop.Schedule(optimizer, "constant", settings.epochs)
        with runs.board(run, context.tensorboard) as tell:
            loop.fit(
                objective,
                network,
                batches,
                epochs=settings.epochs,
                optimizer=optimizer,
                schedule=schedule,
                run=run,
                pack=pack,
                validate=validate,
                select="valid_mse",
                mode="min",
                resume=context.resume,
                precision=settings.precision,
                say=context.log,
                tell=tell,
            )
        return run

    @classmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> AutoEncoder:
        """From a weight file (ours, or one of lightning-bolts) or run folder, else the best of the newest run for id_dataset."""
        if checkpoint is None:
            command = (
                f"python3 ood_training.py -config ./configs/{settings.id_dataset}_autoencoder.json"
            )
            match = {"kind": cls.name, "id_dataset": settings.id_dataset, "arch": settings.arch}
            checkpoint = runs.find_newest(context.checkpoints_dir, match, command=command).best
        path = Path(checkpoint) / "best.pt" if Path(checkpoint).is_dir() else Path(checkpoint)
        network = build(settings, context)
        stored = context.networks.checkpoints.load_into(network, path).get("preprocess") or {}
        preprocess = Preprocess(stored["mean"], stored["std"]) if stored else _preprocess(settings)
        return cls(network, preprocess, settings, context)

    @torch.inference_mode()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Pixel batch (B, C, H, W) on the device -> its reconstruction in pixel units, float32."""
        return self.preprocess.undo(self.network(self.preprocess(pixels)))

    @torch.inference_mode()
    def score(self, images) -> Tensor:
        errors = []
        for pixels in images.batches(self.settings.batch_size):
            inputs = self.preprocess(pixels.to(self.context.device))
            errors.append((self.network(inputs) - inputs).square().flatten(1).mean(1).cpu())
        return torch.cat(errors)


class _Some(loop.ImageBatches):
    """ImageBatches of which an epoch takes the first `steps`."""

    steps: int | None = None

    def __len__(self) -> int:
        return min(super().__len__(), self.steps or super().__len__())

    def epoch(self, number: int):
        for _, batch in zip(range(len(self)), super().epoch(number)):
            yield batch


def build(settings, context: Context) -> nn.Module:
    return context.networks.build_autoencoder(settings.arch, settings.latent_dim)


def _preprocess(settings) -> Preprocess:
    facts = info(settings.id_dataset)
    return Preprocess(settings.mean or facts.mean, settings.std or facts.std)
