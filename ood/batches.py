"""Labelled image batches for training and for measuring: order, augmentation, and the part of each process in a distributed run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ood import distributed
from ood.data.transforms import PartGenerator

RESIDENT_BYTES = 4 * 2**30  # image arrays up to this size live on the GPU during training


class ImageBatches:
    """Labelled image batches: shuffled anew every epoch, augmented and normalised on the device, last partial batch kept.

    Order and augmentation follow from (seed, epoch) alone, so there is no state to save. With N processes a step takes N * batch_size
    images: the batch of one process with that batch size, of which each gets its part, augmented as it would be there.

    Args:
        images: an ImageSet; `indices` chooses among its images (default: all).
        batch_size: images per step and process.
        transform: (batch of pixels, torch.Generator on the device) -> network input.
        targets: labels by image number, when they are not the set's own (a fold's positions).
        shuffle: for training; without it the images come in their order, and a process may get none of a small set.
        balanced: every class equally often, see `balanced_order`.
        views: how often a batch has each image, every time augmented anew: (views * B, C, H, W), all first views, then all second ones.
    """

    def __init__(
        self,
        images,
        batch_size: int,
        *,
        transform: Callable,
        device: torch.device,
        seed: int = 0,
        indices=None,
        targets=None,
        shuffle: bool = True,
        balanced: bool = False,
        views: int = 1,
    ):
        self.images, self.batch_size, self.transform, self.device = (
            images,
            batch_size,
            transform,
            device,
        )
        self.seed, self.shuffle, self.balanced, self.views = seed, shuffle, balanced, views
        self.indices = np.arange(len(images)) if indices is None else np.asarray(indices)
        self.targets = torch.as_tensor(np.asarray(images.labels if targets is None else targets))
        self.resident = on_device(images, device)

    def __len__(self) -> int:
        return distributed.steps(len(self.indices), self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, C, H, W), labels (B,)) on the device; `views` times as many rows."""
        spans = distributed.spans(len(self.indices), self.batch_size, train=self.shuffle)
        spans = [span for span in spans if span.stop > span.start]
        chance = PartGenerator(self.device).seed_parts(
            mix(self.seed, number, 1), distributed.rank(), distributed.world()
        )
        indices = self._order(number)
        mine = (
            torch.cat([indices[span.start : span.stop] for span in spans]) if spans else indices[:0]
        )
        sizes = [span.stop - span.start for span in spans]
        parts = zip(
            spans, self._pixels(mine, sizes), self.targets[mine].to(self.device).split(sizes)
        )
        for span, pixels, labels in parts:
            chance.part = (span.start - span.first, span.last - span.first)
            if self.views == 1:
                yield self.transform(pixels, chance), labels
            else:
                yield (
                    torch.cat([self.transform(pixels, chance) for _ in range(self.views)]),
                    labels.repeat(self.views),
                )

    def _order(self, number: int) -> Tensor:
        """The image numbers of an epoch, of all processes."""
        order, indices = (
            torch.Generator().manual_seed(mix(self.seed, number)),
            torch.as_tensor(self.indices),
        )
        if self.balanced:
            return indices[balanced_order(self.targets[indices], order)]
        return indices[torch.randperm(len(indices), generator=order)] if self.shuffle else indices

    def _pixels(self, indices: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        if self.resident is not None:
            yield from (self.resident[part] for part in indices.to(self.device).split(sizes))
            return
        rows, last = indices.numpy(), sum(sizes[:-1])
        if sizes and sizes[-1] > self.batch_size:  # it took in a remainder, see distributed.steps
            read = itertools.chain(
                self.images.batches(self.batch_size, rows[:last]),
                self.images.batches(sizes[-1], rows[last:]),
            )
        else:
            read = self.images.batches(self.batch_size, rows)
        for pixels in read:
            yield pixels.to(self.device, non_blocking=True)


def balanced_order(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Positions (N,) into labels (N,) that take all classes in turn, in an order drawn anew for each round.

    Every K consecutive positions hold each of the K classes once. An epoch is as long as without balance: images of a rare class
    come several times (all of them before one comes again), of a frequent class only some.
    """
    classes = labels.unique()
    rounds = -(-len(labels) // len(classes))
    columns = []
    for label in classes:
        rows = torch.nonzero(labels == label)[:, 0]
        turns = [
            rows[torch.randperm(len(rows), generator=generator)]
            for _ in range(-(-rounds // len(rows)))
        ]
        columns.append(torch.cat(turns)[:rounds])
    table = torch.stack(columns, 1)  # (rounds, K)
    return table.gather(1, torch.rand(table.shape, generator=generator).argsort(1)).flatten()[
        : len(labels)
    ]


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) image numbers, each sorted; round(fraction * count) of them, at least one, validate. 0: none do."""
    chosen = min(count - 1, max(1, round(fraction * count))) if fraction > 0 else 0
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[chosen:]), np.sort(order[:chosen])


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers; neighbouring numbers give unrelated seeds."""
    return int(
        np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def on_device(images, device: torch.device) -> Tensor | None:
    """The whole image array on the GPU when it fits: gathering a batch there costs nothing."""
    array = getattr(images, "images", None)
    if device.type != "cuda" or array is None or array.nbytes > RESIDENT_BYTES:
        return None
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
