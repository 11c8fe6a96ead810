"""Outliers made from ID data alone, to choose hyper-parameters when there is no OOD data: noise, jigsaws, left-out classes."""

from __future__ import annotations

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
    """Each image cut into TILES x TILES tiles, in a random order of its own: ID textures and colours, no ID object."""

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
        height, width = (
            images.shape[2] // t,
            images.shape[3] // t,
        )  # what t does not divide stays at the border
        inner = images[:, :, : t * height, : t * width]
        count, channels = inner.shape[:2]
        tiles = (
            inner.reshape(count, channels, t, height, t, width)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(count, t * t, channels, height, width)
        )
        orders = torch.from_numpy(
            np.stack(
                [np.random.default_rng((self.seed, int(row))).permutation(t * t) for row in rows]
            )
        )
        mixed = tiles[torch.arange(count)[:, None], orders].reshape(
            count, t, t, channels, height, width
        )
        images[:, :, : t * height, : t * width] = mixed.permute(0, 3, 1, 4, 2, 5).reshape(
            inner.shape
        )
        return images


def noise_images(like: ImageSet, kind: str, count: int, seed: int = 0) -> ImageSet:
    """`count` images of the shape of `like`: 'uniform' U[0, 1) or 'gaussian' N(0.5, 1) clipped, per pixel (as ODIN's)."""
    draw = noise.KINDS[kind]
    return noise.GeneratedImages(
        lambda row: draw(np.random.default_rng((seed, row)), like.shape),
        f"pseudo {kind} {seed} {like.shape}",
        name=kind,
        split="test",
        labels=np.full(count, -1),
    )


def image_sets(known: ImageSet, kinds, seed: int = 0) -> dict[str, ImageSet]:
    """The pseudo-outliers that are images, made for (or of) the ID validation images."""
    made = {}
    if "noise" in kinds:
        made |= {
            kind: noise_images(known, kind, len(known), seed) for kind in ("uniform", "gaussian")
        }
    if "jigsaw" in kinds:
        made["jigsaw"] = Jigsaw(known, seed=seed)
    return made


def left_out(
    train: Outputs, known: Outputs, folds: int = FOLDS, seed: int = 0
) -> list[tuple[Outputs, Outputs, Outputs]]:
    """[(training outputs, ID outputs, outliers)] in which the classes of one fold are unknown: their rows leave the training set, their
    logits leave the head, and their validation images are the outliers. The features still come from a network that was trained on
    them, so these outliers are nearer than real ones.

    Raises: InputError with fewer than three classes, of which two must stay.
    """
    classes = known.logits.shape[1]
    if classes < 3:
        raise InputError(
            f"leaving out classes needs at least 3 of them, there are {classes}; use noise and jigsaw only"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))
    rows = spread(len(train), ROWS)
    train = train if isinstance(rows, slice) else train[torch.as_tensor(rows)]
    triples = []
    for out in order.chunk(min(folds, classes // 2)):
        keep = torch.ones(classes, dtype=torch.bool)
        keep[out] = False
        triples.append(
            (_without(train, keep, True), _without(known, keep, True), _without(known, keep, False))
        )
    return [t for t in triples if len(t[0]) and len(t[1]) and len(t[2])]


def _without(outputs: Outputs, keep: torch.Tensor, inside: bool) -> Outputs:
    """Rows of the kept classes (or of the others, then with the label -1), with a head of the kept classes only."""
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
