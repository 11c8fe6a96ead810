"""What the heatmap decoder is trained on: nearest ID images, scaled features, cached batches.

Source: see ood.methods.heatmap.method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ood import distributed
from ood.training.batches import RESIDENT_BYTES, mix

CHUNK = 1024  # OOD rows compared at a time
CANDIDATES = 4  # per row; they are compared again without the rounding of the matrix product
MAP_BYTES = 2 * 2**30  # half-precision maps up to this size are kept, others computed per batch

Levels = list[Tensor]  # pooled features (B, D), then stage outputs (B, C, H, W), deepest first


# ---- the nearest ID image --------------------------------------------------------------------


def nearest_id(
    id_features: Tensor, id_predicted: Tensor, features: Tensor, predicted: Tensor
) -> Tensor:
    """Find for every OOD image the nearest ID image that is predicted as the same class.

    The distance is Euclidean, between pooled features; it costs one matrix product per class. If
    no ID image is predicted as a class, the nearest of all ID images is taken. The released code
    fails there, and also where exactly one ID image is.

    Args:
        id_features (N, D), id_predicted (N,): features and classes of the ID training images.
        features (M, D), predicted (M,): features and classes of the OOD images.
    Returns: (M,) int64, rows of ID images, in 0..N-1.
    """
    nearest = torch.empty(len(features), dtype=torch.long)
    for label in predicted.unique():
        rows = torch.nonzero(predicted == label)[:, 0]
        pool = torch.nonzero(id_predicted == label)[:, 0]
        pool = pool if len(pool) else torch.arange(len(id_features), device=pool.device)
        nearest[rows.cpu()] = pool[_closest(features[rows], id_features[pool])].cpu()
    return nearest


def _closest(queries: Tensor, keys: Tensor) -> Tensor:
    """Return (M,): the row of `keys` that is nearest to each query.

    |k|^2 - 2 q.k selects a few candidates, the exact distance picks the winner among them.
    """
    centre = keys.float().mean(0)
    keys = keys.float() - centre  # small numbers: less is lost in the product
    norms = keys.square().sum(1)
    found = []
    for part in queries.split(CHUNK):
        part = part.float() - centre
        rough = torch.addmm(norms, part, keys.T, alpha=-2)  # (B, K)
        best = rough.topk(min(CANDIDATES, len(keys)), largest=False).indices.sort(1).values
        exact = (part[:, None] - keys[best]).double().square().sum(2)  # (B, candidates)
        found.append(best.gather(1, exact.argmin(1, keepdim=True))[:, 0])
    return torch.cat(found)


def pair_as_released(nearest: Tensor, predicted: Tensor) -> Tensor:
    """Pair OOD images and targets as the released code does.

    Its list of targets is ordered by predicted class, but is read in the order of the OOD images.
    So OOD image k gets the target of another image. About one in C (the number of classes) still
    gets a target of its own class.

    Args:
        nearest, predicted: (M,) each, of the OOD images.
    Returns: (M,) rows of ID images.
    """
    return nearest[torch.argsort(predicted.cpu(), stable=True)]


# ---- scaling of features ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Scale every level to (z - low) / (high - low).

    Attributes:
        kind: "none" changes nothing. "minmax" scales all rows. "released" is minmax where there are
            several levels. With pooled features alone it scales only the rows 0, batch_size,
            2 batch_size, ...: the released code takes the first image of a batch for a list of
            levels.
        low, high: smallest and largest value of the ID training images, 0 included.
    """

    kind: str = "none"
    low: float = 0.0
    high: float = 1.0
    batch_size: int = 200

    def __call__(self, levels: Levels, first_row: int = 0) -> Levels:
        """Scale the levels of consecutive rows.

        Args:
            first_row: row of the first image in its set; 0 for a training batch.
        """
        if self.kind == "none":
            return levels
        scaled = [(level - self.low) / (self.high - self.low) for level in levels]
        if self.kind == "minmax" or len(levels) > 1:
            return scaled
        rows = torch.arange(first_row, first_row + len(levels[0]), device=levels[0].device)
        return [torch.where((rows % self.batch_size == 0)[:, None], scaled[0], levels[0])]


def fit_scale(
    kind: str, features: Tensor, maps: Callable[[], Iterator[Levels]] | None, batch_size: int
) -> Scale:
    """Fit the scale to the ID training images.

    Args:
        features: (N, D) in the order of the set.
        maps: returns an iterator over their stage outputs in batches; None: pooled features alone.
    """
    if kind == "none":
        return Scale()
    seen = features[::batch_size] if kind == "released" and maps is None else features
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    for levels in maps() if maps else ():
        low = min(low, *(float(level.min()) for level in levels))
        high = max(high, *(float(level.max()) for level in levels))
    return Scale(kind, low, high if high > low else low + 1.0, batch_size)


# ---- batches ---------------------------------------------------------------------------------


class Pixels:
    """Pixels of several image sets of one shape, addressed as one set.

    They are kept in memory where they fit (on the GPU if there is one), else read on demand.
    """

    def __init__(self, sets: Sequence, device: torch.device):
        self.sets, self.device = list(sets), device
        self.first = np.cumsum([0, *map(len, self.sets)])
        arrays = [getattr(images, "images", None) for images in self.sets]
        fits = (
            all(a is not None and a.dtype == np.uint8 for a in arrays)
            and sum(a.nbytes for a in arrays) <= RESIDENT_BYTES
        )
        self.array = (
            torch.cat([torch.from_numpy(np.array(a)) for a in arrays]).to(device) if fits else None
        )

    def __len__(self) -> int:
        return int(self.first[-1])

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (B, C, H, W) on the device: uint8 in 0..255, or float in [0, 1]."""
        if self.array is not None:
            return self.array[rows.to(self.array.device)]
        rows = rows.cpu().numpy()
        place = np.searchsorted(self.first, rows, side="right") - 1
        out = None
        for number in np.unique(place):
            here = np.flatnonzero(place == number)
            read = self.sets[number].read(rows[here] - self.first[number])
            out = torch.empty(len(rows), *read.shape[1:], dtype=read.dtype) if out is None else out
            out[torch.from_numpy(here)] = read
        return out.to(self.device)


class StageMaps:
    """Stage outputs of the frozen classifier by image number, the deepest stage first.

    They are kept in half precision where they fit into MAP_BYTES.

    Args:
        transform: pixels -> input of the network.
        count: the number of stages.
        autocast: returns the context in which the network runs.
    """

    def __init__(
        self,
        network,
        pixels: Pixels,
        transform: Callable[[Tensor], Tensor],
        count: int,
        batch_size: int,
        autocast: Callable,
    ):
        self.network, self.pixels, self.transform, self.count = network, pixels, transform, count
        self.batch_size, self.autocast = batch_size, autocast
        self.kept: Levels | None = None

    def compute(self, rows: Tensor) -> Levels:
        with torch.no_grad(), self.autocast():
            stages = self.network.stages(self.transform(self.pixels(rows)))
        return [stage.float() for stage in stages[::-1][: self.count]]

    def keep(self) -> bool:
        """Compute and keep all maps if they fit into MAP_BYTES. Return whether they do."""
        one = sum(level[0].numel() for level in self.compute(torch.arange(1)))
        if 2 * one * len(self.pixels) > MAP_BYTES:
            return False
        parts = [
            [level.half() for level in self.compute(rows)]
            for rows in torch.arange(len(self.pixels)).split(self.batch_size)
        ]
        self.kept = [torch.cat(levels) for levels in zip(*parts)]
        return True

    def __call__(self, rows: Tensor) -> Levels:
        if self.kept is None:
            return self.compute(rows)
        rows = rows.to(self.kept[0].device)
        return [level[rows].float() for level in self.kept]


class DecoderBatches:
    """Shuffled batches over the union of ID and OOD images.

    As released, the mixture of a batch is random and the last, smaller batch is kept. The order
    follows from (seed, epoch) alone. With several processes each takes its share of every step,
    see ood/distributed.py.

    Args:
        features (N + M, D), predicted (N + M,): features and classes, ID images first.
        target: (N + M,), the image whose pixels the map plus the image shall give.
    Yields: (features, predicted, images, targets, maps). Images and targets are pixels as stored,
        features and maps are scaled.
    """

    def __init__(
        self,
        features: Tensor,
        predicted: Tensor,
        target: Tensor,
        pixels: Pixels,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        scale: Scale,
        maps: StageMaps | None = None,
    ):
        home = device if features.nbytes <= RESIDENT_BYTES else torch.device("cpu")
        self.features = features.to(home)
        self.predicted, self.target = predicted.to(home), target.to(home)
        self.pixels, self.maps, self.scale = pixels, maps, scale
        self.batch_size, self.seed, self.device = batch_size, seed, device

    def __len__(self) -> int:
        return distributed.steps(len(self.features), self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Levels]]:
        chance = torch.Generator().manual_seed(mix(self.seed, number))
        order = torch.randperm(len(self.features), generator=chance).to(self.features.device)
        for span in distributed.spans(len(order), self.batch_size):
            rows = order[span.start : span.stop]
            features = self.features[rows].to(self.device)
            levels = self.scale([features, *(self.maps(rows) if self.maps else [])])
            yield (
                levels[0],
                self.predicted[rows].to(self.device),
                self.pixels(rows),
                self.pixels(self.target[rows]),
                levels[1:],
            )
