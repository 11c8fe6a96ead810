"""Settings of VMDLS: the keys of a config. The published values are in configs/vmdls_*.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ood.config import InputError, check_settings, check_word, ranged
from ood.data.transforms import KINDS
from ood.methods.base import MOST, MOST_CLASSES, SEEDS
from ood.methods.vmdls.loss import PRIOR_STD, TRIPLET_MARGIN

# The authors' --enc_type -> our architecture.
ENCODERS = {
    "densenet": "densenet",
    "resnet18": "resnet18",
    "vgg": "vgg",
    "wresnet": "vmdls_wrn",
    "mnist-conv": "mnist_conv",
}

# Options that the architectures have in VMDLS.
OPTIONS = {"densenet": {"init": "released"}, "resnet18": {"pool": "adaptive"}}

AUGMENTATION = {28: "rotate_resized_crop", 32: "crop_flip"}  # by image side: MNIST, CIFAR


@dataclass(frozen=True)
class Settings:
    """One training and its test. Epochs are counted from 0, as in the published commands.

    Attributes:
        arch: the encoder: densenet, resnet18, vgg, vmdls_wrn, mnist_conv, or any other name of
            models.names().
        num_classes: K. If the set has more classes, only its first K are known.
        mean, std: the normalisation, in pixel units. None: the data set's.
        latent_dim: D.

    Attributes of the training:
        steps: batches per epoch. None: the released rule, (k + 1) * B < N.
        batch_classes, sample_count: B_c classes in a batch, B_s images of each.
        optimizer: sgd has momentum 0.9, Nesterov and weight decay 1e-4; adam has no weight decay.
        step_size: epochs between drops of the learning rate; step_gamma: the factor of a drop.
        generation_epoch: first epoch with the KL term, which kl_coeff multiplies.
        margins_epoch: first epoch of the ramp of the margin M.
        margin_max_distance: M_d, where the ramp ends; margin_jumps: what it adds per epoch.
        normalise: metric loss on z / |z|, as released. False: on plain z.
        augment: a kind of ood.data.Augment. None: by image side.
        finetune: train the heads alone in the epochs 0 to 21 at finetune_lr, then everything at lr.
        weights: of the encoder to finetune.
        warm_start: weights of a whole VMDLS network to begin with. M then has its final value from
            the start.
        lower_bound: quantile of the training log-likelihoods. Validation images below it are
            rejected.
        valid_images: images of the test set that the log looks at. Nothing is chosen by them.

    Attributes of the test:
        accumulate: "released": class sums are those of a class's last batch, counts are of all.
        test_batch_classes, test_sample_count: classes, and images of each, in a batch of the
            released accumulation.
        statistics: precision of the Gaussians. "released": float32.
        jitter: added to the diagonal of every covariance. None: the smallest multiple of 1e-6 that
            works, plus 2e-6.
        ae_features: weight the scores with the reconstruction error.
        autoencoder: its weight file or run folder. None: the newest run for id_dataset.
        autoencoder_mean, autoencoder_std: the normalisation that it was trained with, where its
            file stores none (a Lightning file). None: see AutoEncoder.load.
        autoencoder_arch: mnist_conv, resnet18 or resnet50. None: by the shape of the images.
        ae_input: "own": the auto-encoder's input is normalised as in its training. "released": as
            the encoder's input.
        shift: m of (LL - m). "peak": a bound on LL. "released": 1 + the largest LL of both test
            sets, which exists for a pair of sets only.
        test_dropout: "released": the WideResNet's dropout stays on, and scores are random.

    Raises: InputError for a value out of its range.
    """

    id_dataset: str = "mnist"
    arch: str = "mnist_conv"
    num_classes: int | None = ranged(None, 2, MOST_CLASSES)
    model_args: dict = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    latent_dim: int = ranged(32, 1, MOST_CLASSES)
    # training
    epochs: int = ranged(500, 1, MOST)
    steps: int | None = ranged(None, 1, MOST)
    batch_classes: int = ranged(10, 2, MOST)
    sample_count: int = ranged(8, 2, MOST)
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = ranged(0.01, above=0)
    step_size: int = ranged(100, 1, MOST)
    step_gamma: float = ranged(0.1, above=0, high=1)
    kl_coeff: float = ranged(0.1, 0)
    generation_epoch: int = ranged(0, 0, MOST)
    margins_epoch: int = ranged(10, 0, MOST)
    margin_max_distance: float = ranged(32.0, 0)
    margin_jumps: float = ranged(1.0, 0)
    triplet_margin: float = ranged(TRIPLET_MARGIN, 0)
    prior_std: float = ranged(PRIOR_STD, above=0)
    normalise: bool = True
    augment: str | None = None
    finetune: bool = False
    weights: str | None = None
    finetune_lr: float = ranged(0.01, above=0)
    warm_start: str | None = None
    lower_bound: float = ranged(0.05, 0, 1)
    validate_every: int = ranged(1, 1, MOST)
    valid_images: int = ranged(2000, 0, MOST)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = ranged(0, *SEEDS)
    # test
    batch_size: int = ranged(256, 1, MOST)
    accumulate: Literal["all", "released"] = "all"
    test_batch_classes: int = ranged(1, 1, MOST)
    test_sample_count: int = ranged(4996, 1, MOST)
    statistics: Literal["float64", "released"] = "float64"
    jitter: float | None = ranged(None, 0)
    ae_features: bool = True
    autoencoder: str | None = None
    autoencoder_mean: tuple[float, ...] | None = None
    autoencoder_std: tuple[float, ...] | None = ranged(None, above=0)
    autoencoder_arch: str | None = None
    ae_input: Literal["own", "released"] = "own"
    shift: Literal["peak", "released"] = "peak"
    test_dropout: Literal["off", "released"] = "off"

    def __post_init__(self):
        check_settings(self)
        if self.augment is not None:
            check_word("augment", self.augment, KINDS)
        require(
            (self.autoencoder_mean is None) == (self.autoencoder_std is None),
            "give autoencoder_mean and autoencoder_std, or neither",
        )
        require(
            not (self.finetune and not (self.weights or self.warm_start)),
            "finetune needs the encoder's weights: give -weights FILE",
        )

    def network_options(self) -> dict:
        """Return the options of the encoder's architecture."""
        options = {**OPTIONS.get(self.arch, {}), **self.model_args}
        if self.arch == "vmdls_wrn" and self.test_dropout == "released":
            options["dropout_at_test"] = True
        return options


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
