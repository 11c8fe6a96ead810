"""pytorch-ood's registry of weights, over our table of published weights.

Names, addresses and checksums are those of pytorch-ood 0.4.0 (`list_models`); our table, `models.
weights`, has more. Files lie where pytorch-ood keeps them, in torch.hub's folder and under the same
names, so that what either library has downloaded serves both. Every file is verified each time it
is loaded, and restored with weights_only=True.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ood.config import InputError
from ood.data.fetch import published
from ood.deployment import networks

__all__ = [
    "ImagePreprocessing",
    "ModelEntry",
    "Preprocessing",
    "get_model_info",
    "list_models",
    "load_model",
    "load_transform",
]

StateDictTransform = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CLASSES = {  # our architecture: the class here, and its names for the options
    "wrn": ("ood.compat.model.WideResNet", {"width": "widen_factor", "dropout": "drop_rate"}),
    "torchvision_resnet18": ("ood.compat.model.ResNet18", {}),
    "torchvision_resnet50": ("ood.compat.model.ResNet50", {}),
}


class Preprocessing(ABC):
    """How the input of a network is prepared."""

    @abstractmethod
    def build(self) -> Callable:
        """Make the transform of a raw input."""


@dataclass(frozen=True)
class ImagePreprocessing(Preprocessing):
    """How images are prepared: resized, cropped if asked for, RGB, normalised.

    Attributes:
        mean, std: one number per channel, for pixels in [0, 1].
        size: (height, width) that an image is resized to.
        crop_size: (height, width) of the centre crop after that; None: no crop.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] = (32, 32)
    crop_size: tuple[int, int] | None = None

    def build(self) -> Callable:
        """Make the transform. It takes PIL images, and tensors or batches of pixels too."""
        make = networks.submodule("weights.transform").image_transform
        return make(self.mean, self.std, self.size, self.crop_size)


@dataclass(frozen=True)
class ModelEntry:
    """What is known of one network.

    Attributes:
        key: its name, <arch>/<dataset>/<loss>, and the seed where that is known.
        arch_class, arch_kwargs: the class of the network, and its arguments.
        url, sha256: of the state dict; a checksum may be cut off.
        arch, dataset, loss, seed: the parts of the name.
        state_dict_transform: what is done to the state dict before it is loaded.
        preprocessing: of the input; None: not known.
        metrics: "final_accuracy" and "best_accuracy" on the test set, fractions.
        source: the page of the paper, else the one where the weights are published.
        description: one sentence.
    """

    key: str
    arch_class: str
    arch_kwargs: dict
    url: str
    sha256: str
    arch: str | None = None
    dataset: str | None = None
    loss: str | None = None
    seed: str | None = None
    state_dict_transform: StateDictTransform | None = None
    preprocessing: Preprocessing | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    source: str | None = None
    description: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file in torch.hub's folder; it holds the beginning of the checksum."""
        return f"{self.key.replace('/', '-')}-{self.sha256[:16]}.pt"


def list_models(
    arch: str | None = None, dataset: str | None = None, loss: str | None = None
) -> list[str]:
    """Return the sorted names of all networks, or of those with this architecture, set or loss."""
    asked = {"arch": arch, "dataset": dataset, "loss": loss}
    return sorted(
        key
        for key, entry in _entries().items()
        if all(value in (None, getattr(entry, part)) for part, value in asked.items())
    )


def get_model_info(identifier: str) -> ModelEntry:
    """Return what is known of a network.

    A name without a seed will do where only one network's name begins so.

    Raises: ValueError for an unknown name, and for one that several names begin with.
    """
    entries = _entries()
    if identifier in entries:
        return entries[identifier]
    longer = [key for key in entries if key.startswith(f"{identifier}/")]
    if len(longer) == 1:
        return entries[longer[0]]
    if longer:
        raise ValueError(f"'{identifier}' may be each of: {', '.join(sorted(longer))}")
    try:
        networks.submodule("weights").find(identifier)
    except ValueError as error:
        raise ValueError(f"{error}; list_models() lists the names") from None
    raise ValueError(
        f"'{identifier}' is not in pytorch-ood's registry; "
        f"models.load('{identifier}') loads it as a network of our own"
    )


def load_model(identifier: str, map_location: str = "cpu") -> nn.Module:
    """Fetch a network if need be, verify its file and load it.

    Args:
        identifier: a name, as for `get_model_info`.
        map_location: the device of the network.

    Returns: a network of the class that its entry names, in evaluation mode.

    Raises:
        ValueError: as `get_model_info`.
        RuntimeError: the download failed, the file has another checksum, or it does not fit.
    """
    entry = get_model_info(identifier)
    module, _, name = entry.arch_class.rpartition(".")
    network = getattr(importlib.import_module(module), name)(**entry.arch_kwargs)
    load_into(network, entry.key)
    return network.to(map_location).eval()


def load_transform(identifier: str) -> Callable:
    """Return the transform from PIL images to the input of a network.

    Raises: ValueError as `get_model_info`, and where the normalisation is not known.
    """
    return _row(identifier).transform()


def load_into(network: nn.Module, identifier: str) -> None:
    """Load published weights into a network. Raises as `load_model`."""
    row = _row(identifier)
    place = _entry(row).file_name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    checkpoints = networks.submodule("checkpoints")
    try:
        file = published.obtain(row, folder, place=place)
        checkpoints.load_into(network, file)
    except (InputError, checkpoints.CheckpointError) as error:
        raise RuntimeError(str(error)) from None


def _row(identifier: str):
    """Return the row of our table, whether or not pytorch-ood has it too."""
    table = networks.submodule("weights").TABLE
    return table.get(identifier) or table[get_model_info(identifier).key]


def _entries() -> dict[str, ModelEntry]:
    """Return {name: entry} of what pytorch-ood has."""
    rows = networks.submodule("weights.pytorch_ood").ROWS
    table = networks.submodule("weights").TABLE
    return {row.name: _entry(table[row.name]) for row in rows}


def _entry(row) -> ModelEntry:
    """Describe a row as pytorch-ood does."""
    arch, dataset, loss = row.name.split("/")[:3]
    kind, words = CLASSES[row.arch]
    options = {words.get(key, key): value for key, value in row.options.items()}
    if kind.endswith("ResNet18"):
        options["weights"] = None
    crop = None if row.crop is None else (row.crop, row.crop)
    return ModelEntry(
        row.name,
        kind,
        {"num_classes": row.num_classes, **options},
        row.file.urls[0],
        row.file.sha256 or "",
        arch,
        dataset,
        loss,
        row.seed,
        preprocessing=None
        if row.mean is None
        else ImagePreprocessing(row.mean, row.std, row.size, crop),
        metrics={
            f"{when}_accuracy": row.accuracy[when]
            for when in ("final", "best")
            if when in row.accuracy
        },
        source=row.paper or row.source,
        description=f"{arch} trained on {dataset} with {loss}"
        + (f": {row.notes}" if row.notes else ""),
    )
