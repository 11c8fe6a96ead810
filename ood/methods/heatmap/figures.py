"""Pictures of heatmaps: image, nearest ID image, heatmap, overlay, score; the images of a set with the highest and the lowest scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ood.data.transforms import to_pixels
from ood.files import file_stem, replacing
from ood.methods.heatmap.targets import nearest_id

EACH = 6  # images per end of the ranking
ROWS = ("image", "nearest ID", "heatmap", "overlay")
CELL, GAP = 0.92, 0.30  # inches: side of a picture, space between the two groups
LEFT, RIGHT, TOP, BOTTOM = 0.95, 0.85, 0.62, 0.34
ALPHA = (0.35, 0.75)  # opacity of the overlay where the map is 0 and where it is largest
DPI = 160
INK, SOFT = "#222222", "#666666"


def draw(method, known, sets: list, folder: str | Path) -> list[tuple[Path, str]]:
    """One file per set; all share one colour scale, so that a map of an ID image looks as weak as it is.

    Args:
        method: a trained `ood.methods.heatmap.method.Heatmap`; known: ImageSet of ID training images; sets: ImageSets, the ID set first.
    Returns: [(path, caption)].
    """
    training = method.outputs(known)
    panels = [examples(method, training, known, images) for images in sets]
    top = float(np.quantile(np.concatenate([p["magnitude"].ravel() for p in panels]), 0.995))
    written = []
    for images, panel in zip(sets, panels):
        path = Path(folder) / f"heatmaps_{file_stem(images.name)}.png"
        title = f"{images.name} ({'ID' if images.num_classes else 'OOD'}): {len(images):,} images, mean score {panel['mean']:.3f}"
        save(panel, path, title, max(top, 1e-6))
        written.append((path, f"Heatmaps, {title}: the lowest and the highest scores"))
    return written


def examples(method, training, known, images) -> dict:
    """Arrays of the examples of one set, lowest scores first: image and nearest (K, H, W[, 3]) in [0, 1], magnitude (K, H, W), score (K,)."""
    scores = method.score(images)
    order = torch.argsort(scores, stable=True)
    each = min(EACH, len(order) // 2)
    rows = torch.cat([order[:each], order[-each:]]) if each else order
    outputs = method.outputs(images)
    features, predicted = outputs.features[rows], outputs.logits[rows].argmax(1)
    pixels = images.read(rows.numpy())
    maps = torch.cat(
        [
            method.maps_of(features[i : i + 1], predicted[i : i + 1], pixels[i : i + 1], int(row))
            for i, row in enumerate(rows)
        ]
    )
    partner = nearest_id(training.features, training.logits.argmax(1), features, predicted)
    nearest = torch.cat([known.read([int(row)]) for row in partner])
    return {
        "image": _picture(pixels),
        "nearest": _picture(nearest),
        "magnitude": maps.abs().amax(1).cpu().numpy(),
        "score": scores[rows].numpy(),
        "mean": float(scores.mean()),
    }


def save(panel: dict, path: Path, title: str, top: float) -> None:
    """Write one figure; `top` is the magnitude shown as the hottest colour."""
    count = len(panel["score"])
    half = count // 2
    width, height = LEFT + count * CELL + GAP + RIGHT, TOP + len(ROWS) * CELL + BOTTOM
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    hot = colormaps["jet"](np.clip(panel["magnitude"] / top, 0, 1))[..., :3]  # (K, H, W, 3)
    strength = ALPHA[0] + (ALPHA[1] - ALPHA[0]) * np.clip(panel["magnitude"] / top, 0, 1)[..., None]
    grey = panel["image"] if panel["image"].ndim == 4 else panel["image"][..., None].repeat(3, -1)
    shown = (
        panel["image"],
        panel["nearest"],
        hot,
        np.clip((1 - strength) * grey + strength * hot, 0, 1),
    )

    def left(column: int) -> float:
        return LEFT + column * CELL + (GAP if column >= half else 0)

    for row, (label, pictures) in enumerate(zip(ROWS, shown)):
        y = height - TOP - (row + 1) * CELL
        figure.text(
            (LEFT - 0.1) / width,
            (y + CELL / 2) / height,
            label,
            ha="right",
            va="center",
            fontsize=10,
            color=INK,
        )
        for column, picture in enumerate(pictures):
            axis = figure.add_axes(
                [
                    (left(column) + 0.03) / width,
                    (y + 0.03) / height,
                    (CELL - 0.06) / width,
                    (CELL - 0.06) / height,
                ]
            )
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_linewidth(0.4)
                spine.set_color("#BBBBBB")
    for column, score in enumerate(panel["score"]):
        figure.text(
            (left(column) + CELL / 2) / width,
            (BOTTOM - 0.08) / height,
            f"{score:.3f}",
            ha="center",
            va="top",
            fontsize=9.5,
            color=INK,
        )
    figure.text(
        (LEFT - 0.1) / width,
        (BOTTOM - 0.08) / height,
        "score",
        ha="right",
        va="top",
        fontsize=10,
        color=INK,
    )
    for text, first, last in (("lowest scores", 0, half - 1), ("highest scores", half, count - 1)):
        if half:
            centre = (left(first) + left(last) + CELL) / 2
            figure.text(
                centre / width,
                (height - TOP + 0.07) / height,
                text,
                ha="center",
                va="bottom",
                fontsize=10,
                color=SOFT,
            )
    figure.text(
        (LEFT + 0.03) / width,
        (height - 0.12) / height,
        title.replace("$", r"\$"),
        ha="left",
        va="top",
        fontsize=11,
        color=INK,
    )
    bar = figure.add_axes(
        [
            (left(count - 1) + CELL + 0.14) / width,
            (BOTTOM + CELL * 0.5) / height,
            0.13 / width,
            3 * CELL / height,
        ]
    )
    colours = figure.colorbar(ScalarMappable(Normalize(0, top), "jet"), cax=bar)
    colours.outline.set_linewidth(0.4)
    colours.ax.tick_params(labelsize=8, width=0.4, length=2)
    colours.set_label("max over channels of |h|", fontsize=8.5, color=SOFT)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _picture(pixels: Tensor) -> np.ndarray:
    """(K, C, H, W) pixels -> (K, H, W) or (K, H, W, 3) in [0, 1]."""
    array = to_pixels(pixels).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return array[..., 0] if array.shape[-1] == 1 else array
