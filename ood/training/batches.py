"""Image batches for training and measuring: their order, augmentation, and share per process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ood import distributed
from ood.config import InputError
from ood.data.transforms import PartGenerator

# Image arrays up to this size live on the GPU during training.
RESIDENT_BYTES = 4 * 2**30


class ImageBatches:
    """Labelled image batches, shuffled anew every epoch, augmented and normalised on the device.

    The last, partial batch is kept. Order and augmentation follow from (seed, epoch) alone, so
    there is no state to save.

    With N processes, one step uses N * batch_size images. They are the images that a single process
    would use with that batch size, with the same augmentation. Each process gets its share.

    Args:
        images: an ImageSet.
        batch_size: images per step and process.
        transform: (batch of pixels, torch.Generator on the device) -> network input.
        indices: the images to use. None: all.
        targets: labels by image number, when they are not the set's own (a fold's positions).
        shuffle: for training. Without it the images come in their order, and a process may get
            none of a small set.
        balanced: take every class equally often, see `balanced_order`.
        views: how often a batch holds each image, every time augmented anew. The batch is then
            (views * B, C, H, W): all first views, then all second ones.
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
        self.images, self.batch_size, self.transform = images, batch_size, transform
        self.device, self.seed, self.shuffle = device, seed, shuffle
        self.balanced, self.views = balanced, views
        self.indices = np.arange(len(images)) if indices is None else np.asarray(indices)
        self.targets = torch.as_tensor(np.asarray(images.labels if targets is None else targets))
        self.resident = on_device(images, device)

    def __len__(self) -> int:
        return distributed.steps(len(self.indices), self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W), labels (B,)) on the device, B times `views` rows."""
        spans = distributed.spans(len(self.indices), self.batch_size, train=self.shuffle)
        spans = [span for span in spans if span.stop > span.start]
        chance = PartGenerator(self.device).seed_parts(
            mix(self.seed, number, 1), distributed.rank(), distributed.world()
        )
        indices = self._order(number)
        mine = torch.cat([indices[:0], *(indices[span.start : span.stop] for span in spans)])
        sizes = [span.stop - span.start for span in spans]
        parts = zip(
            spans, self._pixels(mine, sizes), self.targets[mine].to(self.device).split(sizes)
        )
        for span, pixels, labels in parts:
            chance.part = (span.start - span.first, span.last - span.first)
            views = [self.transform(pixels, chance) for _ in range(self.views)]
            if self.views == 1:
                yield views[0], labels
            else:
                yield torch.cat(views), labels.repeat(self.views)

    def _order(self, number: int) -> Tensor:
        """Return the image numbers of an epoch, of all processes."""
        order = torch.Generator().manual_seed(mix(self.seed, number))
        indices = torch.as_tensor(self.indices)
        if self.balanced:
            return indices[balanced_order(self.targets[indices], order)]
        return indices[torch.randperm(len(indices), generator=order)] if self.shuffle else indices

    def _pixels(self, indices: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        if self.resident is not None:
            yield from (self.resident[part] for part in indices.to(self.device).split(sizes))
            return
        rows, last = indices.numpy(), sum(sizes[:-1])
        # The last batch may have taken in a remainder, see distributed.steps.
        if sizes and sizes[-1] > self.batch_size:
            read = itertools.chain(
                self.images.batches(self.batch_size, rows[:last]),
                self.images.batches(sizes[-1], rows[last:]),
            )
        else:
            read = self.images.batches(self.batch_size, rows)
        for pixels in read:
            yield pixels.to(self.device, non_blocking=True)


def balanced_order(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return positions (N,) into labels (N,) that take all K classes in turn.

    Positions are drawn in rounds of K, and each round has its own random order of the classes. An
    epoch is as long as without balance. Images of a rare class therefore come several times, all
    of them before one comes again. Of a frequent class only some come.
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
    turns = torch.rand(table.shape, generator=generator).argsort(1)
    return table.gather(1, turns).flatten()[: len(labels)]


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `count` images at random into (train, validation) image numbers, each sorted.

    Validation gets round(fraction * count) of them, but at least one; with fraction 0 none.
    """
    chosen = min(count - 1, max(1, round(fraction * count))) if fraction > 0 else 0
    order = np.random.RandomState(seed % 2**32).permutation(count)
    return np.sort(order[chosen:]), np.sort(order[:chosen])


def mix(*numbers: int) -> int:
    """Make one 63-bit seed from several numbers. Neighbouring numbers give unrelated seeds."""
    sequence = np.random.SeedSequence([n % 2**64 for n in numbers])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def on_device(images, device: torch.device) -> Tensor | None:
    """Put the whole image array on the GPU if it fits; gathering a batch there costs nothing.

    Returns: (N, C, H, W), or None on a CPU, for images that are streamed, or too many of them.
    """
    array = getattr(images, "images", None)
    if device.type != "cuda" or array is None or array.nbytes > RESIDENT_BYTES:
        return None
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


class FirstBatches:
    """The first `steps` batches of every epoch of other batches."""

    def __init__(self, batches: ImageBatches, steps: int):
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return min(len(self.batches), self.steps)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(self.batches.epoch(number), self.steps)


class MixedBatches:
    """Every ID batch with a batch of outliers behind it, which have the label -1.

    A batch is (images (B + B', C, H, W), labels (B + B',)). An epoch is one of the ID images. The
    outliers begin anew in another order when they are used up. Which ones come and how they are
    augmented follows from (seed, epoch), so there is no state to save.

    Attributes:
        counted: ID images of the last batch. An epoch's means weigh the batch by it.
    """

    counted = 0

    def __init__(self, known: ImageBatches, outliers: ImageBatches):
        self.known, self.outliers = known, outliers

    def __len__(self) -> int:
        return len(self.known)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        recycled = itertools.chain.from_iterable(
            self.outliers.epoch(mix(number, turn)) for turn in itertools.count()
        )
        for (images, labels), (others, negative) in zip(self.known.epoch(number), recycled):
            self.counted = len(labels)
            yield torch.cat((images, others)), torch.cat((labels, negative))


class PairedBatches:
    """Batches of kept classes, each with a batch of left-out classes.

    Yields (images, labels, left-out images). An epoch is one of the kept classes. The left-out ones
    begin anew with another shuffle when they are used up.

    Args: kept, left_out: batches of (images, labels).
    """

    def __init__(self, kept: ImageBatches, left_out: ImageBatches):
        self.kept, self.left_out = kept, left_out

    def __len__(self) -> int:
        return len(self.kept)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        recycled = itertools.chain.from_iterable(
            self.left_out.epoch(mix(number, turn)) for turn in itertools.count()
        )
        for (images, labels), (outside, _) in zip(self.kept.epoch(number), recycled):
            yield images, labels, outside


class BalancedBatches:
    """Batches of `batch_classes` classes with `sample_count` images each.

    Each epoch shuffles the images of every class once and takes `sample_count` of them at a time.
    When fewer remain, they are shuffled and begun anew. The classes of a batch are drawn without
    replacement. An epoch has as many batches as k >= 0 fulfil (k + 1) * B < N: 624 for 50,000
    images and B = 80.

    The loss is defined on the whole batch. Several processes therefore share a batch; it does not
    grow with their number.

    Args:
        images: an ImageSet with labels 0..K-1.
        transform: (pixels, generator) -> network input.
        steps: batches per epoch instead of the rule above.
    Raises: InputError when the images do not give such batches, or the processes cannot share them.
    """

    def __init__(
        self,
        images,
        batch_classes: int,
        sample_count: int,
        *,
        transform: Callable,
        device: torch.device,
        seed: int = 0,
        steps: int | None = None,
    ):
        self.images, self.batch_classes, self.sample_count = images, batch_classes, sample_count
        self.transform, self.device, self.seed = transform, device, seed
        self.rows = class_rows(images.labels)
        smallest = min(map(len, self.rows))
        if not 2 <= batch_classes <= len(self.rows):
            raise InputError(
                f"batch_classes is {batch_classes}; it must be from 2 to {len(self.rows)}, "
                f"the classes of {images.name}: a triplet needs two"
            )
        if not 2 <= sample_count <= smallest:
            raise InputError(
                f"sample_count is {sample_count}; it must be from 2 to {smallest}, "
                f"the images of the smallest class of {images.name}"
            )
        self.steps = steps or batches_per_epoch(len(images), batch_classes * sample_count)
        if batch_classes * sample_count % distributed.world():
            raise InputError(
                f"{distributed.world()} processes cannot share batches of {batch_classes} x "
                f"{sample_count} images out evenly; start another number of them"
            )
        if self.steps < 1:
            raise InputError(
                f"{len(images)} images give no batch of {batch_classes} x {sample_count}; "
                "lower batch_classes or sample_count"
            )
        self.resident = on_device(images, device)

    def __len__(self) -> int:
        return self.steps

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw image numbers (steps * B,) and labels of an epoch, class by class within a batch.

        They follow from (seed, number).
        """
        chance = np.random.default_rng(mix(self.seed, number))
        lists = [chance.permutation(rows) for rows in self.rows]
        used = [0] * len(lists)
        rows, labels = [], []
        for _ in range(self.steps):
            for c in chance.permutation(len(lists))[: self.batch_classes]:
                if used[c] + self.sample_count > len(lists[c]):
                    lists[c], used[c] = chance.permutation(lists[c]), 0
                rows.append(lists[c][used[c] : used[c] + self.sample_count])
                labels.append(np.full(self.sample_count, c))
                used[c] += self.sample_count
        return np.concatenate(rows), np.concatenate(labels)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (this process's images (B', C, H, W), labels of the whole batch (B,)).

        They are on the device, augmented and normalised there.
        """
        rows, labels = self.draw(number)
        size = self.batch_classes * self.sample_count
        part = size // distributed.world()
        first = distributed.rank() * part
        mine = rows.reshape(-1, size)[:, first : first + part].reshape(-1)
        chance = PartGenerator(self.device).seed_parts(
            mix(self.seed, number, 1), distributed.rank(), distributed.world()
        )
        chance.part = (first, size)
        for pixels, batch in zip(
            self._pixels(mine, part), torch.from_numpy(labels).to(self.device).split(size)
        ):
            yield self.transform(pixels, chance), batch

    def _pixels(self, rows: np.ndarray, size: int) -> Iterator[Tensor]:
        if self.resident is not None:
            for part in torch.from_numpy(rows).to(self.device).split(size):
                yield self.resident[part]
        else:
            for pixels in self.images.batches(size, rows):
                yield pixels.to(self.device, non_blocking=True)


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Count the k >= 0 with (k + 1) * batch_size < count; an exact multiple gives one less."""
    return (count - 1) // batch_size


def class_rows(labels: np.ndarray) -> list[np.ndarray]:
    """Return the row numbers of each class 0..K-1, in order.

    Raises: InputError for a class without images.
    """
    labels = np.asarray(labels)
    rows = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    for c, of_class in enumerate(rows):
        if not len(of_class):
            raise InputError(f"class {c} has no image; the labels must be 0..K-1")
    return rows
