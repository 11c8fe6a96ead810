"""Figures of VMDLS: loss and margin over the epochs, and the latent space in two dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ood.evaluation.plots import COLOURS, ID_COLOUR, STYLES
from ood.files import replacing

OUTLIERS = 2000  # shown in the latent scatter


def losses(records: list[dict], path: Path) -> None:
    """Draw the parts of the loss, the margin, and what the validation images gave, by epoch."""
    epochs = [r for r in records if "epoch" in r and "metric" in r]
    if not epochs:
        return
    number = [r["epoch"] for r in epochs]
    figure, axes = _figure(3)
    for index, name in enumerate(("metric", "kl")):
        axes[0].plot(number, [r[name] for r in epochs], color=COLOURS[index], label=name)
    axes[0].set(title="loss parts", yscale="symlog")
    axes[1].plot(number, [r["margin"] for r in epochs], color=COLOURS[2], label="M")
    axes[1].plot(
        number,
        [r["margin"] - r["metric"] for r in epochs],
        color=COLOURS[3],
        label="M - metric loss",
        linestyle=STYLES[1],
    )
    axes[1].set(title="margin")
    for index, name in enumerate(("valid_accuracy", "valid_rejected")):
        chosen = [r for r in epochs if name in r]
        axes[2].plot(
            [r["epoch"] for r in chosen],
            [r[name] for r in chosen],
            color=COLOURS[4 + index],
            label=name.removeprefix("valid_"),
        )
    axes[2].set(title="validation images", ylim=(-0.02, 1.02))
    for axis in axes:
        axis.set_xlabel("epoch", fontsize=9)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def latent(
    class_means: np.ndarray,
    mu: np.ndarray,
    labels: np.ndarray,
    path: Path,
    outliers: np.ndarray | None = None,
) -> None:
    """Draw test points and class means on the two directions in which the class means vary most.

    Args:
        class_means: (K, D); mu: (N, D), of the test images; labels: (N,).
        outliers: (M, D), mu of OOD images.
    """
    centre = class_means.mean(0)
    directions = np.linalg.svd(class_means - centre, full_matrices=False)[2][:2].T  # (D, 2)
    flat = lambda points: (points - centre) @ directions
    figure, (axis,) = _figure(1)
    if outliers is not None and len(outliers):
        points = flat(outliers[:OUTLIERS]).T
        axis.scatter(*points, s=4, color="#000000", alpha=0.25, linewidths=0, label="OOD")
    for c in range(len(class_means)):
        colour = COLOURS[c % len(COLOURS)]
        axis.scatter(*flat(mu[labels == c]).T, s=4, color=colour, alpha=0.5, linewidths=0)
        if len(class_means) <= 20:
            place = dict(xytext=(4, 4), textcoords="offset points", fontsize=8, weight="bold")
            axis.annotate(str(c), flat(class_means[c : c + 1])[0], **place)
    axis.scatter(
        *flat(class_means).T,
        s=36,
        marker="X",
        color="white",
        edgecolors=ID_COLOUR,
        linewidths=1,
        label="class means",
    )
    origin = flat(np.zeros((1, class_means.shape[1]))).T
    axis.scatter(*origin, s=40, marker="+", color=ID_COLOUR, label="origin")
    axis.legend(fontsize=8, frameon=False)
    axis.set_title("mu on the first two directions of the class means", fontsize=9)
    _save(figure, path)


def _figure(count: int) -> tuple[Figure, list]:
    figure = Figure(
        figsize=(3.6 * count + (1.2 if count == 1 else 0), 3.0 if count > 1 else 4.4),
        dpi=150,
        layout="constrained",
        facecolor="white",
    )
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
