"""Outliers made from ID data alone: noise, jigsaws, left-out classes.

They choose hyper-parameters where there is no OOD data.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch

from ood.config import InputError
from ood.data import noise
from ood.data.images import ImageSet, spread
from ood.outputs import Head, Outputs

KINDS = ("noise", "jigsaw", "left_out")
TILES = 4  # of a jigsaw, per side
FOLDS = 5  # groups of classes that are left out in turn
ROWS = 50_000  # training rows that a left-out fold keeps at most


class Jigsaw(ImageSet):
    """Each image cut into tiles x tiles pieces, in a random order of its own.

    Textures and colours are those of ID images; no ID object is left.
    """

    def __init__(self, base: ImageSet, tiles: int = TILES, seed: int = 0):
        super().__init__(
            name="jigsaw",
            split=base.split,
            labels=np.full(len(base), -1),
            shape=base.shape,
            source=f"jigsaw {tiles} {seed} {base.digest}",
            original_labels=base.labels,
        )
        self.base, self.tiles, self.seed = base, tiles, seed

    def _fetch(self, rows):
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        images, t = self.base.read(rows), self.tiles
        # What t does not divide stays at the border.
        height, width = images.shape[2] // t, images.shape[3] // t
        inner = images[:, :, : t * height, : t * width]
        count, channels = inner.shape[:2]
        tiles = inner.reshape(count, channels, t, height, t, width).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.reshape(count, t * t, channels, height, width)
        draws = (np.random.default_rng((self.seed, int(row))) for row in rows)
        orders = torch.from_numpy(np.stack([draw.permutation(t * t) for draw in draws]))
        mixed = tiles[torch.arange(count)[:, None], orders]
        mixed = mixed.reshape(count, t, t, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        images[:, :, : t * height, : t * width] = mixed.reshape(inner.shape)
        return images


def noise_images(like: ImageSet, kind: str, count: int, seed: int = 0) -> ImageSet:
    """Noise images of the shape of `like`, drawn per pixel, as in ODIN.

    Args: kind: 'uniform', U[0, 1), or 'gaussian', N(0.5, 1) clipped to [0, 1].
    """
    return noise.GeneratedImages(
        functools.partial(_noise, kind, seed, like.shape),
        f"pseudo {kind} {seed} {like.shape}",
        name=kind,
        split="test",
        labels=np.full(count, -1),
    )


def _noise(kind: str, seed: int, shape, row: int) -> np.ndarray:
    return noise.KINDS[kind](np.random.default_rng((seed, row)), shape)


def image_sets(known: ImageSet, kinds, seed: int = 0) -> dict[str, ImageSet]:
    """{name: images} of the pseudo-outliers that are images, as many as ID validation images.

    Args: kinds: names of KINDS.
    """
    made = {}
    if "noise" in kinds:
        for kind in ("uniform", "gaussian"):
            made[kind] = noise_images(known, kind, len(known), seed)
    if "jigsaw" in kinds:
        made["jigsaw"] = Jigsaw(known, seed=seed)
    return made


def left_out(
    train: Outputs, known: Outputs, folds: int = FOLDS, seed: int = 0
) -> list[tuple[Outputs, Outputs, Outputs]]:
    """Pretend that the classes of one fold after the other are unknown.

    The rows of these classes leave the training set, their logits leave the head, and their
    validation images are the outliers. The features still come from a network that was trained on
    these classes, so such outliers are nearer than real ones.

    Returns: (training outputs, ID outputs, outputs of the outliers) per fold.
    Raises: InputError with fewer than three classes; two of them must stay.
    """
    classes = known.logits.shape[1]
    if classes < 3:
        raise InputError(
            f"leaving out classes needs at least 3 of them, there are {classes}; "
            "use noise and jigsaw only"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))
    rows = spread(len(train), ROWS)
    train = train if isinstance(rows, slice) else train[torch.as_tensor(rows)]
    triples = []
    for out in order.chunk(min(folds, classes // 2)):
        keep = torch.ones(classes, dtype=torch.bool)
        keep[out] = False
        inside = [_without(outputs, keep, True) for outputs in (train, known)]
        triples.append((*inside, _without(known, keep, False)))
    return [t for t in triples if len(t[0]) and len(t[1]) and len(t[2])]


def _without(outputs: Outputs, keep: torch.Tensor, inside: bool) -> Outputs:
    """Rows of the kept classes, or of the others with the label -1.

    The head has only the kept classes.
    """
    known = outputs.labels >= 0
    member = known & (keep[outputs.labels.clamp(min=0)] == inside)
    part = outputs[member.nonzero().flatten()]
    renumbered = torch.where(keep, keep.cumsum(0) - 1, torch.tensor(-1))
    return replace(
        part,
        logits=part.logits[:, keep],
        labels=renumbered[part.labels],
        scores={},
        head=Head(outputs.head.weight[keep], outputs.head.bias[keep]),
        memo={},
    )
