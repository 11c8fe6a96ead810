"""The training pictures that are most like a picture, so that a person sees what a network sees.

    training = training_pictures("./photos", stored, network)
    training.nearest(outputs.features, 3)  # (N,) of 3 paths each, the most similar first

Two pictures are alike if the angle between their features is small, as in the detector knn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from ood.cache import Cache
from ood.config import InputError
from ood.data import load
from ood.data.images import ImageSet
from ood.deployment.detector_file import Stored
from ood.outputs import extract

LIMIT = 10_000  # training pictures that are looked at; with 2,048 features they take 80 MB


@dataclass(frozen=True)
class TrainingPictures:
    """Training pictures and their features.

    Attributes:
        images: the set.
        features: (N, D) float32, each of length 1.
    """

    images: ImageSet
    features: Tensor

    @cached_property
    def names(self) -> list[str]:
        """Path of each picture below the set's folder; 'NAME train 17' where it has no file."""
        paths = self.images.paths
        if paths is not None:
            return [str(path) for path in paths]
        return [f"{self.images.name} {self.images.split} {i}" for i in range(len(self.images))]

    @cached_property
    def places(self) -> dict[str, int]:
        """{name: row}."""
        return {name: row for row, name in enumerate(self.names)}

    def nearest(self, features: Tensor, count: int) -> list[tuple[str, ...]]:
        """Names of the `count` most similar training pictures of each row of `features` (M, D)."""
        similar = normalize(features.float(), dim=1) @ self.features.T  # (M, N)
        rows = similar.topk(min(count, len(self.names)), dim=1).indices
        return [tuple(self.names[row] for row in found) for found in rows.tolist()]

    def picture(self, name: str) -> Image.Image:
        """The training picture with this name, as the network sees it before normalisation."""
        pixels = self.images.read([self.places[name]])[0]
        if pixels.is_floating_point():
            pixels = (255 * pixels).round().clamp(0, 255).to(torch.uint8)
        array = pixels.numpy()
        return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def training_pictures(
    name: str,
    stored: Stored,
    network: nn.Module,
    *,
    data_dir: str | Path = "datasets",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    cache: Cache | None = None,
    progress=None,
    limit: int = LIMIT,
) -> TrainingPictures:
    """Compute the features of training pictures, or take them from the cache.

    Args:
        name: a data set as for `ood.data.load`; its part 'train' is read.
        stored: the detector, which knows how pictures are prepared.
        network: the network it was fitted on.
        cache: where features of former passes lie; a pass with the same network and pictures is
            not done again.
        limit: at most this many pictures, evenly spread over the set, every class kept.
    """
    images = load(name, "train", data_dir, **stored.recipe).limited(limit)
    if not len(images):
        raise InputError(f"'{name}' has no training pictures")
    outputs = extract(
        network,
        images,
        stored.preprocess,
        device=device,
        batch_size=batch_size,
        precision=stored.about.get("precision", "fp32"),
        cache=cache,
        progress=progress and (lambda batches, **k: progress(batches, "training", **k)),
    )
    return TrainingPictures(images, normalize(outputs.features.float(), dim=1))
