"""Figures of pixels' scores: each image, what the network sees in it, and the scores on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ood import metrics
from ood.data import IGNORED
from ood.evaluation.segmentation import Shown
from ood.files import replacing

PANEL = 2.1  # inches, the width of an image
DPI = 110
SCORES = "inferno"
GROUND = 0.45  # brightness of the grey image below the scores
LEAST, MOST = 1, 99.5  # percentiles of the scores shown, where the colours end
CLASSES_NAMED = 21  # colours of classes are named up to this number, which the palette has
OUTLINE = "#00E5FF"  # of the pixels that are OOD


def draw(
    shown: Sequence[Shown], path: str | Path, class_names: Sequence[str] | None = None
) -> Path:
    """Draw one row per image: the image, the predicted classes, the scores of each detector.

    OOD pixels have an outline. Scores are coloured from dark (like ID) to bright (like OOD), over
    the image in grey. The colours of a detector end at percentiles of its scores on the images
    shown, the same for all rows. The number above a map is the AUROC of that image's pixels, in %;
    ignored pixels are grey.

    Args:
        path: of the PNG file.
        class_names: names below the figure for the colours of the classes, in their order.

    Returns: the path.
    """
    detectors = list(shown[0].scores)
    columns = ["image", "predicted classes", *detectors]
    heights = [PANEL * s.image.shape[1] / s.image.shape[2] for s in shown]
    figure = Figure(
        figsize=(PANEL * len(columns), sum(heights) + 0.25 * len(shown) + 1.1),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    axes = figure.subplots(len(shown), len(columns), squeeze=False, height_ratios=heights)
    ends = {name: _ends([s.scores[name][s.mask != IGNORED] for s in shown]) for name in detectors}
    for number, (row, one) in enumerate(zip(axes, shown)):
        row[0].imshow(one.image.transpose(1, 2, 0))
        row[1].imshow(_classes(one.predicted), interpolation="nearest")
        for axis, name in zip(row[2:], detectors):
            axis.imshow(overlay(one, name, *ends[name]))
        below = ["", "", *(f"{100 * _auroc(one, name):.1f}" for name in detectors)]
        for axis, title, value in zip(row, columns, below):
            head = f"{title}\n" if number == 0 else ""
            axis.set_title(f"{head}{value or ' '}", fontsize=8.5, pad=3)
            if (one.mask < 0).any():
                axis.contour(one.mask < 0, [0.5], colors=OUTLINE, linewidths=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
    _bar(figure, axes)
    if class_names:
        _names(figure, class_names)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def overlay(shown: Shown, detector: str, low: float, high: float) -> np.ndarray:
    """Colour the scores (H, W) over the image in grey: (H, W, 3) in 0..1."""
    grey = GROUND * shown.image.mean(0)[..., None] / 255 * np.ones(3)
    share = np.clip((shown.scores[detector] - low) / max(high - low, 1e-12), 0, 1)
    colours = colormaps[SCORES](share)[..., :3]
    alpha = (0.25 + 0.75 * share)[..., None] * (shown.mask != IGNORED)[..., None]
    return (1 - alpha) * grey + alpha * colours


def _ends(scores: list[np.ndarray]) -> tuple[float, float]:
    """Where the colours of a detector end."""
    finite = np.concatenate(scores)
    finite = finite[np.isfinite(finite)]
    return tuple(np.percentile(finite, (LEAST, MOST))) if len(finite) else (0.0, 1.0)


def _auroc(shown: Shown, detector: str) -> float:
    scores, ood = shown.scores[detector], shown.mask < 0
    known = ~ood & (shown.mask != IGNORED)
    if not (ood.any() and known.any()):
        return float("nan")
    return metrics.evaluate(scores[known], scores[ood]).auroc


def _classes(predicted: np.ndarray) -> np.ndarray:
    """Colour the classes (H, W): (H, W, 4). The first class, mostly background, is light grey."""
    palette = np.concatenate(([[0.87, 0.87, 0.87, 1.0]], colormaps["tab20"](range(20))))
    return palette[np.where(predicted == 0, 0, 1 + (predicted - 1) % 20)]


def _bar(figure: Figure, axes: np.ndarray) -> None:
    """Say what the colours of the scores mean, below the maps."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), SCORES),
        ax=axes,
        location="bottom",
        shrink=0.35,
        aspect=45,
        pad=0.02,
        anchor=(0.75, 1.0),
    )
    bar.set_ticks([0, 1], labels=["like ID", "like OOD"], fontsize=8)
    bar.set_label("score; above each map the AUROC of its pixels in %", fontsize=8)


def _names(figure: Figure, class_names: Sequence[str]) -> None:
    """List the colours of the classes below the figure."""
    shown = class_names[:CLASSES_NAMED]
    colours = _classes(np.arange(len(shown))[None])[0]
    figure.legend(
        [Patch(color=colour) for colour in colours],
        list(shown),
        loc="outside lower left",
        ncols=11,
        fontsize=8,
        frameon=False,
        handlelength=1,
        columnspacing=1,
    )
