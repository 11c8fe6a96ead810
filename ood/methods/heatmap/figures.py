"""Pictures of heatmaps: the images of a set with the lowest and the highest scores.

A column shows one image: image, nearest ID image, heatmap, overlay and score.
"""

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
    """Draw one file per set.

    All share one colour scale, so that a weak map of an ID image also looks weak.

    Args:
        method: a trained `ood.methods.heatmap.Heatmap`.
        known: ImageSet of ID training images.
        sets: ImageSets, the ID set first.
    Returns: [(path, caption)].
    """
    training = method.outputs(known)
    panels = [examples(method, training, known, images) for images in sets]
    top = float(np.quantile(np.concatenate([p["magnitude"].ravel() for p in panels]), 0.995))
    written = []
    for images, panel in zip(sets, panels):
        path = Path(folder) / f"heatmaps_{file_stem(images.name)}.png"
        kind = "ID" if images.num_classes else "OOD"
        title = f"{images.name} ({kind}): {len(images):,} images, mean score {panel['mean']:.3f}"
        save(panel, path, title, max(top, 1e-6))
        written.append((path, f"Heatmaps, {title}: the lowest and the highest scores"))
    return written


def examples(method, training, known, images) -> dict:
    """Return the arrays of K examples of one set, lowest scores first.

    Args:
        training: Outputs of `known`, the ID training images.
    Returns: image and nearest (K, H, W[, 3]) in [0, 1], magnitude (K, H, W), score (K,), and mean,
        the mean score of the set.
    """
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
    """Write one figure.

    Args:
        panel: what `examples` returns.
        top: the magnitude that the hottest colour shows.
    """
    sheet = _Sheet(len(panel["score"]))
    strength = np.clip(panel["magnitude"] / top, 0, 1)  # (K, H, W)
    hot = colormaps["jet"](strength)[..., :3]  # (K, H, W, 3)
    opacity = ALPHA[0] + (ALPHA[1] - ALPHA[0]) * strength[..., None]
    image = panel["image"] if panel["image"].ndim == 4 else panel["image"][..., None].repeat(3, -1)
    overlay = np.clip((1 - opacity) * image + opacity * hot, 0, 1)

    for row, pictures in enumerate((panel["image"], panel["nearest"], hot, overlay)):
        bottom = sheet.height - TOP - (row + 1) * CELL
        sheet.text(LEFT - 0.1, bottom + CELL / 2, ROWS[row], "right", "center", 10)
        for column, picture in enumerate(pictures):
            sheet.picture(column, bottom, picture)
    for column, score in enumerate(panel["score"]):
        sheet.text(sheet.left(column) + CELL / 2, BOTTOM - 0.08, f"{score:.3f}", size=9.5)
    sheet.text(LEFT - 0.1, BOTTOM - 0.08, "score", "right", size=10)
    ends = ("lowest scores", 0, sheet.half - 1), ("highest scores", sheet.half, sheet.count - 1)
    for text, first, last in ends if sheet.half else ():
        centre = (sheet.left(first) + sheet.left(last) + CELL) / 2
        sheet.text(centre, sheet.height - TOP + 0.07, text, vertical="bottom", color=SOFT)
    sheet.text(LEFT + 0.03, sheet.height - 0.12, title.replace("$", r"\$"), "left", size=11)
    sheet.colour_bar(top)
    with replacing(path) as temporary:
        sheet.figure.savefig(temporary, format="png")


class _Sheet:
    """A figure of `count` columns in two groups, measured in inches from its lower left corner."""

    def __init__(self, count: int):
        self.count, self.half = count, count // 2
        self.width = LEFT + count * CELL + GAP + RIGHT
        self.height = TOP + len(ROWS) * CELL + BOTTOM
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")

    def left(self, column: int) -> float:
        """Return the left edge of a column."""
        return LEFT + column * CELL + (GAP if column >= self.half else 0)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        horizontal: str = "center",
        vertical: str = "top",
        size: float = 10,
        color: str = INK,
    ) -> None:
        place = dict(ha=horizontal, va=vertical, fontsize=size, color=color)
        self.figure.text(x / self.width, y / self.height, text, **place)

    def axes(self, x: float, y: float, width: float, height: float):
        return self.figure.add_axes(
            [x / self.width, y / self.height, width / self.width, height / self.height]
        )

    def picture(self, column: int, bottom: float, picture: np.ndarray) -> None:
        axis = self.axes(self.left(column) + 0.03, bottom + 0.03, CELL - 0.06, CELL - 0.06)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_linewidth(0.4)
            spine.set_color("#BBBBBB")

    def colour_bar(self, top: float) -> None:
        right = self.left(self.count - 1) + CELL
        bar = self.axes(right + 0.14, BOTTOM + CELL * 0.5, 0.13, 3 * CELL)
        colours = self.figure.colorbar(ScalarMappable(Normalize(0, top), "jet"), cax=bar)
        colours.outline.set_linewidth(0.4)
        colours.ax.tick_params(labelsize=8, width=0.4, length=2)
        colours.set_label("max over channels of |h|", fontsize=8.5, color=SOFT)


def _picture(pixels: Tensor) -> np.ndarray:
    """(K, C, H, W) pixels -> (K, H, W) or (K, H, W, 3) in [0, 1]."""
    array = to_pixels(pixels).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return array[..., 0] if array.shape[-1] == 1 else array
