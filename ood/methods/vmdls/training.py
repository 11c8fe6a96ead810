"""Training of VMDLS in the order of epochs of its authors' code.

margin -> training (loss = metric + kl_coeff * KL) -> validation with the Gaussians of the epoch before -> new class means -> learning rate
"""

from __future__ import annotations

import csv
import io

import numpy as np
import torch
from torch import Tensor

from ood import cli, distributed
from ood.config import InputError, to_dict
from ood.data import Augment, Preprocess, info, load
from ood.files import replacing
from ood.methods.vmdls.loss import FIRST_MARGIN, kl_loss, margin_at, metric_loss
from ood.methods.vmdls.network import UNFREEZE_AFTER, ClassStatistics, LatentNetwork, LatentSchedule
from ood.methods.vmdls.settings import AUGMENTATION, Settings
from ood.training import loop, runs
from ood.training.batches import BalancedBatches

FREE = (
    "epochs",
    "batch_size",
    "accumulate",
    "test_batch_classes",
    "test_sample_count",
    "statistics",
    "jitter",
    "ae_features",
    "autoencoder",
    "autoencoder_arch",
    "ae_input",
    "shift",
    "test_dropout",
)  # what may differ when a run is continued


def train_latent(settings: Settings, context) -> runs.Run:
    """Train and return the run folder: best.pt equals last.pt (the authors test the last epoch), log.csv, figures/."""
    known, test = known_images(settings, "train", context), known_images(settings, "test", context)
    preprocess = preprocess_of(settings)
    cli.set_seed(settings.seed, context.deterministic)
    network = build_network(settings, context, known.shape, known.num_classes)
    if settings.finetune and settings.weights:
        load_encoder(network.encoder, settings.weights, context)
    if settings.warm_start:
        context.networks.checkpoints.load_into(network, settings.warm_start)
    network = distributed.synchronise_batchnorm(
        network.to(context.device, memory_format=torch.channels_last), context.device
    )
    augment = Augment(settings.augment or AUGMENTATION.get(known.shape[-1], "none"))

    def transform(pixels: Tensor, chance: torch.Generator) -> Tensor:
        return preprocess(augment(pixels, chance)).contiguous(memory_format=torch.channels_last)

    batches = BalancedBatches(
        known,
        settings.batch_classes,
        settings.sample_count,
        transform=transform,
        device=context.device,
        seed=settings.seed,
        steps=settings.steps,
    )
    if settings.optimizer == "sgd":
        optimizer = loop.make_optimizer(
            "sgd", network.parameters(), settings.lr, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
    else:
        optimizer = loop.make_optimizer("adam", network.parameters(), settings.lr)
    schedule = LatentSchedule(
        optimizer,
        settings.epochs,
        settings.lr,
        settings.step_size,
        settings.step_gamma,
        settings.finetune_lr if settings.finetune else None,
    )
    objective = Objective(network, settings, known.num_classes, context.device)
    run = open_run(
        "vmdls",
        settings,
        context,
        f"{settings.id_dataset}_{settings.arch}_vmdls",
        settings.identity(),
        FREE,
    )

    def before_epoch(epoch: int) -> None:
        objective.begin(epoch - 1)
        if settings.finetune:
            network.encoder.requires_grad_(epoch - 1 > UNFREEZE_AFTER)
            if epoch - 1 == UNFREEZE_AFTER + 1:
                optimizer.state.clear()  # the released code builds a new optimiser over all parameters

    def validate(epoch: int) -> dict:
        metrics = {"margin": objective.margin}
        if (
            settings.valid_images
            and epoch % settings.validate_every == 0
            and objective.classes.seen.any()
        ):
            metrics |= look(
                network,
                test.limited(settings.valid_images),
                objective.classes,
                preprocess,
                settings,
                context.device,
            )
        objective.classes.close_epoch()
        return metrics

    def pack(epoch: int, metrics: dict) -> dict:
        return {
            "format": context.networks.checkpoints.OWN_FORMAT,
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": epoch,
            "metrics": metrics,
            "class_means": objective.classes.means.cpu(),
            "preprocess": {
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
                "size": known.shape[-1],
            },
        }

    context.begin(
        run, settings, {"train": known.digest}, run.last.exists(), train_images=len(known)
    )
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
            resume=context.resume,
            precision=settings.precision,
            before_epoch=before_epoch,
            state={"classes": objective.classes},
            say=context.log,
            tell=tell,
        )
    if distributed.first():
        with distributed.solo():
            write_log(run)
            write_figures(
                run,
                network,
                objective.classes.means,
                test.limited(2000),
                preprocess,
                settings,
                context.device,
            )
    distributed.barrier()
    return run


class Objective:
    """(this process's images, labels of the whole batch) -> loss of the whole batch, and the samples z for the class means of the epoch.

    The loss compares the images of a batch with each other: processes exchange mu and std, and each computes all of it.
    """

    def __init__(
        self, network: LatentNetwork, settings: Settings, num_classes: int, device: torch.device
    ):
        self.network, self.settings = network, settings
        self.classes = ClassStatistics(
            num_classes, settings.latent_dim, settings.lower_bound, device
        )
        self.epoch, self.margin, self.noise = 0, 0.0, torch.Generator(device)

    def begin(self, epoch: int) -> None:
        """Set the margin of a 0-based epoch, and begin its noise."""
        s = self.settings
        self.noise.manual_seed(loop.mix(s.seed, epoch, 2))
        first = s.margin_max_distance if s.warm_start else FIRST_MARGIN
        self.epoch, self.margin = (
            epoch,
            margin_at(epoch, s.margins_epoch, s.margin_max_distance, s.margin_jumps, first),
        )

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        mu, std = distributed.join_rows(torch.stack(self.network(images), 1), len(labels)).unbind(
            1
        )  # each (B, D)
        z = mu + std * torch.randn(std.shape, generator=self.noise, device=std.device)
        with torch.autocast(images.device.type, enabled=False):
            metric = metric_loss(
                z,
                labels,
                self.margin,
                triplet_margin=self.settings.triplet_margin,
                normalise=self.settings.normalise,
            )
            kl = metric.new_zeros(())
            if self.epoch >= self.settings.generation_epoch:
                kl = self.settings.kl_coeff * kl_loss(
                    z, mu, std, labels, self.classes.means, self.settings.prior_std
                )
        self.classes.add(z, labels)
        return metric + kl, {"metric": metric.detach(), "kl": kl.detach()}


def known_images(settings: Settings, split: str, context):
    """The ID images of a split; with num_classes = K below the set's own number only its classes 0..K-1."""
    images = load(
        settings.id_dataset,
        split,
        context.data_dir,
        download=context.download,
        limit=context.limit,
        seed=settings.seed,
    )
    count = settings.num_classes or images.num_classes
    if count is None or images.num_classes is None or count > images.num_classes:
        raise InputError(
            f"{images.name} has {images.num_classes} classes, num_classes says {settings.num_classes}; give a number it has"
        )
    return images if count == images.num_classes else known_classes(images, count)


def known_classes(images, count: int):
    """The images of classes 0..count-1, as a set with `count` classes."""
    part = images.subset(np.asarray(images.labels) < count)
    part.num_classes = count
    part.class_names = part.class_names and part.class_names[:count]
    return part


def preprocess_of(settings: Settings) -> Preprocess:
    facts = info(settings.id_dataset)
    return Preprocess(settings.mean or facts.mean, settings.std or facts.std)


def build_network(
    settings: Settings, context, shape: tuple[int, int, int], num_classes: int
) -> LatentNetwork:
    encoder = context.networks.build(
        settings.arch,
        num_classes,
        in_channels=shape[0],
        image_size=shape[-1],
        **settings.network_options(),
    )
    return LatentNetwork(encoder, settings.latent_dim)


def load_encoder(encoder, path: str, context) -> None:
    """Fill the encoder from a classifier's weight file; tensors that the encoder does not have (its classifier) are left out."""
    checkpoint = context.networks.checkpoints.read(path)
    ours = set(encoder.state_dict())
    ours |= {key.replace("shortcut.", "downsample.") for key in ours}
    state = checkpoint.state_dict
    if checkpoint.format != "lightning":
        state = {key: value for key, value in state.items() if key in ours}
    left_out = sorted(set(checkpoint.state_dict) - set(state))
    if left_out:
        context.log(
            f"weights: {path}, without {', '.join(left_out[:4])}{', ...' if len(left_out) > 4 else ''}"
        )
    context.networks.checkpoints.load_into(encoder, checkpoint._replace(state_dict=state))


def open_run(
    kind: str, settings, context, stem: str, match: dict, free: tuple[str, ...]
) -> runs.Run:
    """A new run folder, or with context.resume the one in out_dir, else the newest unfinished or finished one of `match`."""
    config = {"kind": kind, "method": kind, **to_dict(settings)}
    if context.resume and (context.out_dir is None or runs.holds_run(context.out_dir)):
        run = (
            runs.reopen(context.out_dir)
            if context.out_dir
            else runs.find_newest(context.checkpoints_dir, match, file="last.pt")
        )
        run.update(**runs.agree(run.config, config, free, run.folder))
        return run
    return runs.create(stem, config, root=context.checkpoints_dir, out_dir=context.out_dir)


@torch.inference_mode()
def latent(
    network: LatentNetwork,
    images,
    preprocess,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> Tensor:
    """mu (N, D) of an ImageSet, on the device."""
    network.eval()
    means = []
    for pixels in images.batches(batch_size):
        with loop.autocast(device, precision):
            means.append(
                network(
                    preprocess(pixels.to(device)).contiguous(memory_format=torch.channels_last)
                )[0]
            )
    return torch.cat(means)


def look(
    network, images, classes: ClassStatistics, preprocess, settings: Settings, device
) -> dict[str, float]:
    """Accuracy of the most likely class on ID images, and the share that falls below every class's bound."""
    scores = classes.log_likelihood(
        latent(network, images, preprocess, device, settings.batch_size, settings.precision)
    )  # (N, K)
    right = scores.argmax(1) == torch.as_tensor(images.labels, device=device)
    return {
        "valid_accuracy": right.double().mean().item(),
        "valid_rejected": (scores < classes.bounds).all(1).double().mean().item(),
    }


def write_log(run: runs.Run) -> None:
    """log.csv: the epochs of log.jsonl as a table."""
    records = [r for r in run.records() if "epoch" in r]
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(records)
    with replacing(run.folder / "log.csv") as temporary:
        temporary.write_text(text.getvalue())


def write_figures(
    run, network, class_means: Tensor, images, preprocess, settings: Settings, device
) -> None:
    from ood.methods.vmdls import figures

    mu = (
        latent(network, images, preprocess, device, settings.batch_size, settings.precision)
        .cpu()
        .numpy()
    )
    figures.losses(run.records(), run.folder / "figures" / "losses.png")
    figures.latent(
        class_means.cpu().numpy(),
        mu,
        np.asarray(images.labels),
        run.folder / "figures" / "latent.png",
    )
