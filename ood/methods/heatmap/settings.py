"""Settings of the heatmap decoder: the authors' keys, then ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ood.config import InputError

HALF = 0.5  # mean and std of the paper's normalisation: maps live in [-1, 1]


FREE = ("n_epochs",)  # what may change when a run is continued


IDENTITY = (
    "id_dataset",
    "ood_dataset",
    "arch",
    "depth",
    "width",
    "model_args",
    "decoder",
    "size",
    "resize",
    "num_ood",
    "fw_layers",
    "pairing",
    "scaling",
    "n_epochs",
    "batch_size",
    "lr",
    "b1",
    "b2",
)  # what makes two runs the same configuration


@dataclass(frozen=True)
class Settings:
    """The authors' keys, then ours. Defaults are the paper's."""

    id_dataset: str
    ood_dataset: str | tuple[str, ...] = "tinyimages"  # see ood.data.auxiliary
    num_classes: int | None = None
    arch: str = "resnet18"
    depth: int | None = None
    width: int | None = None
    z_dim: int | None = None  # features of the classifier; only checked
    batch_size: int = 200
    lr: float = 2e-4
    b1: float = 0.5
    b2: float = 0.999
    n_epochs: int = 150
    num_ood: int = 10_000
    fw_layers: int = 1  # 1: pooled features; 2-4: also so many - 1 stage outputs
    pairing: Literal["correct", "released"] = "correct"
    scaling: Literal["none", "minmax", "released"] | None = (
        None  # None: none for fw_layers 1 (what released weights expect), else minmax
    )
    classifier: str | None = (
        None  # its weight file or run folder; None: the newest run of this architecture
    )
    epochs: int | None = None  # instead of n_epochs
    size: int | None = None  # side of the images; None: the data set's
    resize: int | tuple[int, ...] | None = None  # shorter side before the crop, or (height, width)
    mean: tuple[float, ...] | None = (
        None  # of the classifier's input; None: what its file says, else 0.5
    )
    std: tuple[float, ...] | None = None
    model_args: dict = field(default_factory=dict)  # further options of the architecture
    decoder: dict = field(
        default_factory=dict
    )  # bottleneck, channels; {}: the paper's, or cut to the classifier
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self):
        if self.epochs is not None:
            object.__setattr__(self, "n_epochs", self.epochs)
            object.__setattr__(self, "epochs", None)
        if self.scaling is None:
            object.__setattr__(self, "scaling", "none" if self.fw_layers == 1 else "minmax")
        if self.fw_layers not in (1, 2, 3, 4):
            raise InputError(f"fw_layers is {self.fw_layers}; it must be 1, 2, 3 or 4")
        for name, least in dict(n_epochs=1, batch_size=1, num_ood=1).items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.lr < float("inf") or not 0 <= self.b1 < 1 or not 0 <= self.b2 < 1:
            raise InputError(
                f"lr {self.lr}, b1 {self.b1}, b2 {self.b2}: lr must be above 0, b1 and b2 in [0, 1)"
            )
