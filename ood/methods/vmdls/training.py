"""Training of VMDLS, in the order that its authors' code gives an epoch.

margin -> training (loss = metric + kl_coeff * KL) -> validation with the Gaussians of the epoch
before -> new class means -> learning rate

Source: Dinari & Freifeld, UAI 2022; see ood.methods.vmdls.method.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ood import cli, distributed
from ood.config import InputError, to_dict
from ood.data import Augment, Preprocess, info, load
from ood.files import write_text
from ood.methods.vmdls.loss import FIRST_MARGIN, kl_loss, margin_at, metric_loss
from ood.methods.vmdls.network import UNFREEZE_AFTER, ClassStatistics, LatentNetwork, LatentSchedule
from ood.methods.vmdls.settings import AUGMENTATION, Settings
from ood.training import loop, runs
from ood.training.batches import BalancedBatches, mix
from ood.training.context import Context

# What may change when a run is continued.
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
    "autoencoder_mean",
    "autoencoder_std",
    "autoencoder_arch",
    "ae_input",
    "shift",
    "test_dropout",
)
# Two runs with the same values here are runs of the same configuration.
SAME = ("id_dataset", "arch", "num_classes", "latent_dim", "normalise", "model_args")
KIND = runs.Kind("vmdls", Settings, "a VMDLS network", free=FREE, same=SAME)
FIGURE_IMAGES = 2000  # of the test set, in the figure of the latent space


def train_latent(settings: Settings, context: Context) -> runs.Run:
    """Train VMDLS and return its run folder, with log.csv and figures/.

    best.pt equals last.pt, because the authors test the last epoch.

    Raises: InputError for missing images or weights, and when a run cannot be continued.
    """
    known, test = (known_images(settings, split, context) for split in ("train", "test"))
    cli.set_seed(settings.seed, context.deterministic)
    training = Training(settings, context, known, test)
    stem = f"{settings.id_dataset}_{settings.arch}_vmdls"
    with open_run(KIND, settings, context, stem) as run:
        run.begin(
            settings,
            context.device,
            {"train": known.digest},
            resumed=run.last.exists(),
            train_images=len(known),
        )
        training.fit(run)
        if distributed.first():
            with distributed.solo():
                write_log(run)
                training.draw(run)
        distributed.barrier()
    return run


class Training:
    """One training: network, batches, loss, validation and weight file."""

    def __init__(self, settings: Settings, context: Context, known, test):
        self.settings, self.context, self.known, self.test = settings, context, known, test
        self.preprocess = preprocess_of(settings)
        self.network = _begin_network(settings, context, known)
        self.objective = Objective(self.network, settings, known.num_classes, context.device)
        self.optimizer = _optimizer(settings, self.network)

    def fit(self, run: runs.Run) -> None:
        """Run the epochs."""
        s = self.settings
        schedule = LatentSchedule(
            self.optimizer,
            s.epochs,
            s.lr,
            s.step_size,
            s.step_gamma,
            s.finetune_lr if s.finetune else None,
        )
        with runs.board(run, self.context.tensorboard) as tell:
            loop.fit(
                self.objective,
                self.network,
                self.batches(),
                loop.Plan(
                    epochs=s.epochs,
                    optimizer=self.optimizer,
                    schedule=schedule,
                    precision=s.precision,
                ),
                run,
                self.pack,
                loop.Hooks(
                    validate=self.validate,
                    before_epoch=self.before_epoch,
                    state={"classes": self.objective.classes},
                    say=self.context.log,
                    tell=tell,
                ),
                resume=self.context.resume,
            )

    def batches(self) -> BalancedBatches:
        s, known = self.settings, self.known
        augment = Augment(s.augment or AUGMENTATION.get(known.shape[-1], "none"))

        def transform(pixels: Tensor, chance: torch.Generator) -> Tensor:
            augmented = augment(pixels, chance)
            return self.preprocess(augmented).contiguous(memory_format=torch.channels_last)

        return BalancedBatches(
            known,
            s.batch_classes,
            s.sample_count,
            transform=transform,
            device=self.context.device,
            seed=s.seed,
            steps=s.steps,
        )

    def before_epoch(self, epoch: int) -> None:
        """Set the margin and, when finetuning, what is trained. `epoch` is 1-based."""
        self.objective.begin(epoch - 1)
        if self.settings.finetune:
            self.network.encoder.requires_grad_(epoch - 1 > UNFREEZE_AFTER)
            if epoch - 1 == UNFREEZE_AFTER + 1:
                # The released code builds a new optimiser over all parameters.
                self.optimizer.state.clear()

    def validate(self, epoch: int) -> dict:
        s, classes = self.settings, self.objective.classes
        metrics = {"margin": self.objective.margin}
        if s.valid_images and epoch % s.validate_every == 0 and classes.seen.any():
            images, device = self.test.limited(s.valid_images), self.context.device
            metrics |= look(self.network, images, classes, self.preprocess, s, device)
        classes.close_epoch()
        return metrics

    def pack(self, epoch: int, metrics: dict) -> dict:
        """Return what the weight file holds."""
        return runs.payload(
            self.context.networks,
            self.network,
            epoch,
            metrics,
            self.preprocess,
            self.known.shape[-1],
            self.known.class_names,
            class_means=self.objective.classes.means.cpu(),
        )

    def draw(self, run: runs.Run) -> None:
        """Write the figures of the run."""
        from ood.methods.vmdls import figures

        s, images = self.settings, self.test.limited(FIGURE_IMAGES)
        device = self.context.device
        mu = latent(self.network, images, self.preprocess, device, s.batch_size, s.precision)
        folder = run.folder / "figures"
        figures.losses(run.records(), folder / "losses.png")
        means = self.objective.classes.means.cpu().numpy()
        figures.latent(means, mu.cpu().numpy(), np.asarray(images.labels), folder / "latent.png")


def _begin_network(settings: Settings, context: Context, known) -> LatentNetwork:
    """Build the network with the weights that it begins with."""
    network = build_network(settings, context, known.shape, known.num_classes)
    if settings.finetune and settings.weights:
        load_encoder(network.encoder, settings.weights, context)
    if settings.warm_start:
        context.networks.checkpoints.load_into(network, settings.warm_start)
    network = network.to(context.device, memory_format=torch.channels_last)
    return distributed.synchronise_batchnorm(network, context.device)


def _optimizer(settings: Settings, network: LatentNetwork) -> torch.optim.Optimizer:
    options = {}
    if settings.optimizer == "sgd":
        options = dict(momentum=0.9, nesterov=True, weight_decay=1e-4)
    return loop.make_optimizer(settings.optimizer, network.parameters(), settings.lr, **options)


class Objective:
    """The loss of a batch. It also collects the samples z for the class means of the epoch.

    A batch is this process's images and the labels of the whole batch. The loss compares the images
    of a batch with each other. Processes therefore exchange mu and std, and each of them computes
    the loss of the whole batch.
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
        """Set the margin of an epoch (0-based), and begin its noise."""
        s, self.epoch = self.settings, epoch
        self.noise.manual_seed(mix(s.seed, epoch, 2))
        first = s.margin_max_distance if s.warm_start else FIRST_MARGIN
        self.margin = margin_at(
            epoch, s.margins_epoch, s.margin_max_distance, s.margin_jumps, first
        )

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        both = torch.stack(self.network(images), 1)  # (this process's images, 2, D)
        mu, std = distributed.join_rows(both, len(labels)).unbind(1)  # each (B, D)
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


def known_images(settings: Settings, split: str, context: Context):
    """Return the ID images of a split.

    If num_classes = K is below the number of classes of the set, only its classes 0..K-1 are taken.

    Raises: InputError when the set is missing or has fewer than K classes.
    """
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
            f"{images.name} has {images.num_classes} classes, num_classes says "
            f"{settings.num_classes}; give at most the number of classes it has"
        )
    return images if count == images.num_classes else known_classes(images, count)


def known_classes(images, count: int):
    """Return the images of the classes 0..count-1, as a set with `count` classes."""
    part = images.subset(np.asarray(images.labels) < count)
    part.num_classes = count
    part.class_names = part.class_names and part.class_names[:count]
    return part


def preprocess_of(settings: Settings) -> Preprocess:
    """Return the normalisation: the config's, else the data set's."""
    facts = info(settings.id_dataset)
    return Preprocess(settings.mean or facts.mean, settings.std or facts.std)


def build_network(
    settings: Settings, context: Context, shape: tuple[int, int, int], num_classes: int
) -> LatentNetwork:
    """Build the network for images of a shape (C, H, W)."""
    encoder = context.networks.build(
        settings.arch,
        num_classes,
        in_channels=shape[0],
        image_size=shape[-1],
        **settings.network_options(),
    )
    return LatentNetwork(encoder, settings.latent_dim)


def load_encoder(encoder, path: str, context: Context) -> None:
    """Fill the encoder from a classifier's weight file.

    Tensors that the encoder does not have, such as the classifier's head, are left out.
    """
    checkpoint = context.networks.checkpoints.read(path)
    ours = set(encoder.state_dict())
    ours |= {key.replace("shortcut.", "downsample.") for key in ours}
    state = checkpoint.state_dict
    if checkpoint.format != "lightning":
        state = {key: value for key, value in state.items() if key in ours}
    left_out = sorted(set(checkpoint.state_dict) - set(state))
    if left_out:
        more = ", ..." if len(left_out) > 4 else ""
        context.log(f"weights: {path}, without {', '.join(left_out[:4])}{more}")
    context.networks.checkpoints.load_into(encoder, checkpoint._replace(state_dict=state))


@contextmanager
def open_run(kind: runs.Kind, settings, context: Context, stem: str) -> Iterator[runs.Run]:
    """Make a new run folder, or with context.resume take the one that exists; hold its lock.

    That is the one in out_dir, else the newest of the same configuration, finished or not.
    """
    config, root, out_dir = to_dict(settings), context.checkpoints_dir, context.out_dir
    run = kind.to_resume(config, root, out_dir) if context.resume else None
    values = kind.continued(run, config) if run else {}
    if run is None:
        run = kind.create(stem, {"method": kind.name, **config}, root=root, out_dir=out_dir)
    with run.locked():
        run.update(**values)
        yield run


@torch.inference_mode()
def latent(
    network: LatentNetwork,
    images,
    preprocess,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> Tensor:
    """Return mu (N, D) of an ImageSet, on the device."""
    network.eval()
    means = []
    for pixels in images.batches(batch_size):
        inputs = preprocess(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        with loop.autocast(device, precision):
            means.append(network(inputs)[0])
    return torch.cat(means)


def look(
    network, images, classes: ClassStatistics, preprocess, settings: Settings, device
) -> dict[str, float]:
    """Return the accuracy of the most likely class on ID images, and the share of rejections.

    An image is rejected if it falls below the bound of every class.
    """
    mu = latent(network, images, preprocess, device, settings.batch_size, settings.precision)
    scores = classes.log_likelihood(mu)  # (N, K)
    right = scores.argmax(1) == torch.as_tensor(images.labels, device=device)
    return {
        "valid_accuracy": right.double().mean().item(),
        "valid_rejected": (scores < classes.bounds).all(1).double().mean().item(),
    }


def write_log(run: runs.Run) -> None:
    """Write log.csv: the epochs of log.jsonl as a table."""
    records = [r for r in run.records() if "epoch" in r]
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(records)
    write_text(run.folder / "log.csv", text.getvalue())
