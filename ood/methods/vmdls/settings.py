"""Settings of VMDLS: a config's keys, with the published values in configs/vmdls_*.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ood.config import InputError
from ood.methods.vmdls.loss import PRIOR_STD, TRIPLET_MARGIN

ENCODERS = {
    "densenet": "densenet",
    "resnet18": "resnet18",
    "vgg": "vgg",
    "wresnet": "vmdls_wrn",
    "mnist-conv": "mnist_conv",
}  # --enc_type
OPTIONS = {
    "densenet": {"init": "released"},
    "resnet18": {"pool": "adaptive"},
}  # of the architectures, as VMDLS has them
AUGMENTATION = {28: "rotate_resized_crop", 32: "crop_flip"}  # by image side: MNIST, CIFAR


@dataclass(frozen=True)
class Settings:
    """One training and its test. Epochs are counted from 0, as in the published commands."""

    id_dataset: str = "mnist"
    arch: str = "mnist_conv"  # encoder: densenet, resnet18, vgg, vmdls_wrn, mnist_conv, or any other name of models.names()
    num_classes: int | None = None  # K; fewer than the set has: only its first K classes are known
    model_args: dict = field(default_factory=dict)
    mean: tuple[float, ...] | None = None  # normalisation; default: the data set's
    std: tuple[float, ...] | None = None
    latent_dim: int = 32  # D
    # training
    epochs: int = 500
    steps: int | None = None  # batches per epoch; default: the released rule, (k + 1) * B < N
    batch_classes: int = 10  # B_c
    sample_count: int = 8  # B_s
    optimizer: Literal["sgd", "adam"] = (
        "sgd"  # sgd: momentum 0.9, Nesterov, weight decay 1e-4; adam: no weight decay
    )
    lr: float = 0.01
    step_size: int = 100  # epochs between drops of the learning rate
    step_gamma: float = 0.1
    kl_coeff: float = 0.1
    generation_epoch: int = 0  # first epoch with the KL term
    margins_epoch: int = 10  # first epoch of the margin's ramp
    margin_max_distance: float = 32.0  # M_d
    margin_jumps: float = 1.0  # of M, per epoch
    triplet_margin: float = TRIPLET_MARGIN
    prior_std: float = PRIOR_STD
    normalise: bool = True  # metric loss on z / |z|, as released; False: on plain z
    augment: str | None = None  # kind of ood.data.Augment; default: by image side
    finetune: bool = False  # heads alone in epochs 0..21 at finetune_lr, then everything at lr
    weights: str | None = None  # of the encoder to finetune
    finetune_lr: float = 0.01
    warm_start: str | None = (
        None  # weights of a whole VMDLS network to begin with; M is then at its end from the start
    )
    lower_bound: float = (
        0.05  # quantile of the training log-likelihoods below which validation images are rejected
    )
    validate_every: int = 1
    valid_images: int = 2000  # of the test set; looked at for the log, nothing is chosen by it
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    # test
    batch_size: int = 256
    accumulate: Literal["all", "released"] = (
        "all"  # released: class sums are those of a class's last batch, counts are of all batches
    )
    test_batch_classes: int = 1  # batches of the released accumulation: classes and images of each
    test_sample_count: int = 4996
    statistics: Literal["float64", "released"] = "float64"  # released: float32
    jitter: float | None = (
        None  # added to every covariance's diagonal; default: the smallest multiple of 1e-6 that works + 2e-6
    )
    ae_features: bool = True  # weight scores with the reconstruction error
    autoencoder: str | None = (
        None  # its weight file or run folder; default: the newest run for id_dataset
    )
    autoencoder_arch: str | None = None  # mnist_conv, resnet18 or resnet50; default: by the images
    ae_input: Literal["own", "released"] = (
        "own"  # released: normalised as the encoder's input, whatever the auto-encoder was trained on
    )
    shift: Literal["peak", "released"] = (
        "peak"  # m of (LL - m): a bound on LL; released: 1 + the largest LL of both test sets (a pair only)
    )
    test_dropout: Literal["off", "released"] = (
        "off"  # released: the WideResNet's dropout stays on, scores are random
    )

    def __post_init__(self):
        for name in ("epochs", "latent_dim", "step_size", "batch_size", "validate_every"):
            require(
                getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1"
            )
        for name in ("lr", "finetune_lr", "step_gamma", "prior_std"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        for name in (
            "kl_coeff",
            "triplet_margin",
            "margin_jumps",
            "generation_epoch",
            "margins_epoch",
            "valid_images",
        ):
            require(
                getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be 0 or more"
            )
        require(
            self.steps is None or self.steps >= 1, f"steps is {self.steps}; it must be at least 1"
        )
        require(
            self.num_classes is None or self.num_classes >= 2,
            f"num_classes is {self.num_classes}; a triplet needs two classes",
        )
        require(
            0 <= self.lower_bound <= 1, f"lower_bound is {self.lower_bound}; it is a quantile, 0..1"
        )
        require(
            self.jitter is None or self.jitter >= 0,
            f"jitter is {self.jitter}; it is added to a variance: 0 or more",
        )
        require(
            not (self.finetune and not (self.weights or self.warm_start)),
            "finetune needs the encoder's weights: give -weights FILE",
        )

    def network_options(self) -> dict:
        """Options of the encoder's architecture."""
        options = {**OPTIONS.get(self.arch, {}), **self.model_args}
        if self.arch == "vmdls_wrn" and self.test_dropout == "released":
            options["dropout_at_test"] = True
        return options

    def identity(self) -> dict:
        """The fields by which a trained run is found."""
        names = ("id_dataset", "arch", "num_classes", "latent_dim", "normalise", "model_args")
        return {"kind": "vmdls", **{name: getattr(self, name) for name in names}}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
