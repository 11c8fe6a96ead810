"""What the heatmap decoder is trained on: nearest ID images, scaled features, cached batches. See ood/methods/heatmap/method.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ood import distributed
from ood.training.batches import RESIDENT_BYTES, mix

CHUNK = 1024  # OOD rows compared at a time
CANDIDATES = 4  # per row, compared again without the rounding of the matrix product
MAP_BYTES = (
    2 * 2**30
)  # feature maps are kept (in half precision) up to this size, else computed anew for every batch

Levels = list[Tensor]  # pooled features (B, D), then stage outputs (B, C, H, W), the deepest first


# ---- the nearest ID image ----------------------------------------------------------------------------------------------------


def nearest_id(
    id_features: Tensor, id_predicted: Tensor, features: Tensor, predicted: Tensor
) -> Tensor:
    """For every row of `features`, the number of the nearest ID image that is predicted as the same class.

    Euclidean distance of pooled features; one matrix product per class. For a class into which no ID image falls, the nearest of
    all ID images (the released code fails there, and where there is exactly one).

    Args:
        id_features (N, D), id_predicted (N,): of the ID training images; features (M, D), predicted (M,): of the OOD images.
    Returns: (M,) int64 in 0..N-1.
    """
    nearest = torch.empty(len(features), dtype=torch.long)
    for label in predicted.unique():
        rows = torch.nonzero(predicted == label)[:, 0]
        pool = torch.nonzero(id_predicted == label)[:, 0]
        pool = pool if len(pool) else torch.arange(len(id_features), device=pool.device)
        nearest[rows.cpu()] = pool[_closest(features[rows], id_features[pool])].cpu()
    return nearest


def _closest(queries: Tensor, keys: Tensor) -> Tensor:
    """(M,) row of `keys` nearest to each query: candidates by |k|^2 - 2 q.k, the winner among them by the exact distance."""
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
    """The released code's pairing: its list of targets is ordered by predicted class, then read in the order of the OOD images.

    So OOD image k gets the target of another one; about one in C even has the same class. nearest, predicted (M,) -> (M,).
    """
    return nearest[torch.argsort(predicted.cpu(), stable=True)]


# ---- scaling of features -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """(z - low) / (high - low) of every level.

    Attributes:
        kind: "none"; "minmax", all rows; "released", with pooled features alone only rows 0, batch_size, 2 batch_size, ... (the
            released code takes the first image of a batch for a list of levels), with several levels as minmax.
        low, high: over the ID training images, and 0.
    """

    kind: str = "none"
    low: float = 0.0
    high: float = 1.0
    batch_size: int = 200

    def __call__(self, levels: Levels, first_row: int = 0) -> Levels:
        """levels of the rows first_row, first_row + 1, ... of a set, or of a training batch (first_row 0)."""
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
    """The scale of ID training images.

    Args:
        features: (N, D) in the order of the set; maps: an iterator over their stage outputs in batches, None for pooled features alone.
    """
    if kind == "none":
        return Scale()
    seen = features[::batch_size] if kind == "released" and maps is None else features
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    for levels in maps() if maps else ():
        low = min(low, *(float(level.min()) for level in levels))
        high = max(high, *(float(level.max()) for level in levels))
    return Scale(kind, low, high if high > low else low + 1.0, batch_size)


# ---- batches -----------------------------------------------------------------------------------------------------------------


class Pixels:
    """Rows of several image sets of one shape as one set: in memory where they fit (on the GPU if there is one), else read when asked."""

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
        """(B, C, H, W), uint8 0..255 or float in pixel units, on the device."""
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
    """Stage outputs of the frozen classifier, the deepest first, by image number: kept in half precision where they fit.

    Args:
        pixels: `Pixels`; transform: pixels -> network input; count: how many stages.
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
        """Compute all maps once, if MAP_BYTES hold them."""
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
    """Shuffled batches over the union of ID and OOD images; composition random, last batch kept, as released.

    The order follows from (seed, epoch) alone. Of several processes each takes its part of every step, see ood/distributed.py.

    Args:
        features (N + M, D), predicted (N + M,): cached, ID first; target (N + M,): the image whose pixels map + image shall give.
    Yields: (features, predicted, images, targets, maps): images and targets as stored, features and maps scaled.
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
        self.features, self.predicted, self.target = (
            features.to(home),
            predicted.to(home),
            target.to(home),
        )
        self.pixels, self.batch_size, self.seed, self.device, self.scale, self.maps = (
            pixels,
            batch_size,
            seed,
            device,
            scale,
            maps,
        )

    def __len__(self) -> int:
        return distributed.steps(len(self.features), self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Levels]]:
        order = torch.randperm(
            len(self.features), generator=torch.Generator().manual_seed(mix(self.seed, number))
        )
        order = order.to(self.features.device)
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
