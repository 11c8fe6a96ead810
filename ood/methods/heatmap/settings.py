"""Settings of the heatmap decoder: the authors' keys, then ours."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ood.config import build, check_settings, ranged, to_dict
from ood.data import info
from ood.data.registry import is_folder_path
from ood.methods.base import MOST, MOST_CLASSES, MOST_PIXELS, SEEDS

HALF = 0.5  # mean and std of the paper's normalisation: maps live in [-1, 1]

# What may change when a run is continued.
FREE = ("n_epochs", "classifier", "precision")

# Two runs with the same values here are runs of the same configuration.
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
    "resizing",
    "scaling",
    "n_epochs",
    "batch_size",
    "lr",
    "b1",
    "b2",
)


@dataclass(frozen=True)
class DecoderOptions:
    """The keys of the setting `decoder`. None: the paper's, cut to fit the classifier.

    Attributes:
        bottleneck: channels after the linear layer; channels: of each block.
        first_skip: the block after which the deepest map is added.
    """

    bottleneck: int | None = ranged(None, 1, 10**5)
    channels: tuple[int, ...] | None = ranged(None, 1, 10**5)
    first_skip: int | None = ranged(None, 1, 100)


@dataclass(frozen=True)
class Settings:
    """The keys of a config. Defaults are the paper's.

    Attributes:
        ood_dataset: auxiliary outliers, see ood.data.auxiliary.
        z_dim: features of the classifier; it is only checked.
        fw_layers: levels that the decoder sees. 1: pooled features; 2 to 4: also the outputs of
            the 1 to 3 deepest stages.
        pairing: "correct": each OOD image goes with its own target; "released": as the authors'
            code pairs them.
        resizing: of the auxiliary images. None or "test": as those of a test set; "released": as
            the authors' training code resizes them, see ood.data.auxiliary.draw.
        scaling: of features. None: "none" for fw_layers 1, because released weights expect it,
            else "minmax".
        classifier: its weight file or run folder. None: the newest run of this architecture.
        epochs: another name of n_epochs. It wins where both are given.
        size: side of the images in pixels. None: the data set's.
        resize: shorter side before the crop, or (height, width).
        mean, std: of the classifier's input. None: what its file says, else 0.5.
        model_args: further options of the architecture.
        decoder: its size, see DecoderOptions.

    Raises: InputError for a value out of its range.
    """

    id_dataset: str
    ood_dataset: str | tuple[str, ...] = "tinyimages"
    num_classes: int | None = ranged(None, 2, MOST_CLASSES)
    arch: str = "resnet18"
    depth: int | None = ranged(None, 1, MOST)
    width: int | None = ranged(None, 1, MOST)
    z_dim: int | None = ranged(None, 1, MOST)
    batch_size: int = ranged(200, 1, MOST)
    lr: float = ranged(2e-4, above=0)
    b1: float = ranged(0.5, 0, below=1)
    b2: float = ranged(0.999, 0, below=1)
    n_epochs: int = ranged(150, 1, MOST)
    num_ood: int = ranged(10_000, 1, MOST)
    fw_layers: int = ranged(1, 1, 4)
    pairing: Literal["correct", "released"] = "correct"
    resizing: Literal["test", "released"] | None = None
    scaling: Literal["none", "minmax", "released"] | None = None
    classifier: str | None = None
    epochs: int | None = ranged(None, 1, MOST)
    size: int | None = ranged(None, 1, MOST_PIXELS)
    resize: int | tuple[int, ...] | None = ranged(None, 1, MOST_PIXELS)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    model_args: dict = field(default_factory=dict)
    decoder: dict = field(default_factory=dict)
    seed: int = ranged(0, *SEEDS)
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self):
        check_settings(self)
        build(DecoderOptions, self.decoder, "decoder")
        if self.epochs is not None:
            object.__setattr__(self, "n_epochs", self.epochs)
            object.__setattr__(self, "epochs", None)
        if self.resizing == "test":  # runs from before this setting have none
            object.__setattr__(self, "resizing", None)
        if self.scaling is None:
            object.__setattr__(self, "scaling", "none" if self.fw_layers == 1 else "minmax")

    def config(self) -> dict:
        """Return the settings as a run's config.json holds them."""
        return {key: value for key, value in to_dict(self).items() if key != "epochs"}

    def shape(self) -> dict:
        """Return depth and width of the classifier, where the config gives them."""
        given = {"depth": self.depth, "width": self.width}
        return {name: value for name, value in given.items() if value is not None}

    def facts(self):
        """Return the registry's entry of the ID set, or None for an image folder."""
        return None if is_folder_path(self.id_dataset) else info(self.id_dataset)

    def dataset_name(self) -> str:
        """Return the ID set's name as a part of file names."""
        folder = is_folder_path(self.id_dataset)
        return Path(self.id_dataset).resolve().name if folder else self.id_dataset

    def stem(self) -> str:
        """Return the first part of a run folder's name, as the authors name it."""
        return f"{self.dataset_name()}_{self.arch}_ood_fw{self.fw_layers}"


def stored_settings(config: dict) -> Settings:
    """Return the settings that a run's config.json holds."""
    names = [f.name for f in dataclasses.fields(Settings)]
    return build(Settings, {name: config[name] for name in names if name in config}, "config.json")
