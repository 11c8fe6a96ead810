"""Figures of an evaluation as PNG files: score histograms and ROC curves.

Scores come as {detector: {data set: (N,)}}, larger = OOD; `by_detector` makes that of
{data set: {detector: (N,)}}. The colours are those of Okabe and Ito, which people with any colour
vision can tell apart. Line styles tell sets apart when the colours are used up. No display is
needed, and no state of pyplot is touched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ood.files import replacing
from ood.metrics import evaluate, prepare, roc_curve, threshold_at_tpr

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))
ID_COLOUR = "#4D4D4D"
PER_FILE = 12  # panels, and ROC curves in one panel
PANEL = (3.5, 2.5)  # inches
DPI = 160
BINS = 60
FAR = 3  # how many times the width of ID the histogram reaches beyond ID
CURVE_POINTS = 1500  # more are not visible


def by_detector(scores: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """{data set: {detector: (N,)}} -> {detector: {data set: (N,)}}, orders kept."""
    detectors = dict.fromkeys(detector for arrays in scores.values() for detector in arrays)
    return {
        d: {name: arrays[d] for name, arrays in scores.items() if d in arrays} for d in detectors
    }


def score_histograms(
    scores: dict, id_name: str, path: str | Path, labels: dict | None = None
) -> list[Path]:
    """One panel per detector: how the scores of every set are distributed.

    The ID scores are filled, every OOD set is a line, and a dashed line marks the threshold that
    accepts 95 % of ID. Scores outside the shown range (extreme outliers, inf) are counted in the
    outermost bins.

    Args:
        id_name: the key of the ID set in each inner dict.
        path: of the PNG file.
        labels: {data set: how to print it}.

    Returns: the files written: `path`, or path_1, path_2, ... for more than PER_FILE detectors.
    """
    labels = labels or {}
    sets = _ood_names(scores, id_name)
    pages = _chunks(list(scores), PER_FILE)
    paths = _page_paths(path, len(pages))
    for page, target in zip(pages, paths):
        figure, axes = _panels(len(page))
        handles: dict[str, object] = {}
        for axis, detector in zip(axes, page):
            arrays = {
                name: np.asarray(values, dtype=np.float64)
                for name, values in scores[detector].items()
            }
            edges = np.linspace(*_shown_range(arrays, id_name), BINS + 1)
            heights = {name: _shares(values, edges) for name, values in arrays.items()}
            known = f"{_text(labels, id_name)} (ID)"
            handles[known] = axis.stairs(
                heights[id_name], edges, fill=True, color=ID_COLOUR, alpha=0.35, linewidth=0
            )
            axis.stairs(heights[id_name], edges, color=ID_COLOUR, linewidth=0.9)
            for index, name in enumerate(sets):
                if name in heights:
                    handles[_text(labels, name)] = axis.stairs(
                        heights[name],
                        edges,
                        linewidth=1.3 if len(sets) <= 6 else 0.9,
                        **_line(index),
                    )
            threshold = np.clip(threshold_at_tpr(arrays[id_name]), edges[0], edges[-1])
            handles["accepts 95 % of ID"] = axis.axvline(
                threshold, color="black", linewidth=0.9, linestyle=(0, (3, 2))
            )
            axis.set_xlim(edges[0], edges[-1])
            _limit_height(axis, list(heights.values()))
            axis.set_title(_escaped(detector), fontsize=10)
            axis.xaxis.set_major_locator(MaxNLocator(5))
        _label_outer(axes, "score (larger = OOD)", "share of images per bin")
        _save(figure, target, handles)
    return paths


def roc_curves(
    scores: dict, id_name: str, path: str | Path, by: str = "dataset", labels: dict | None = None
) -> list[Path]:
    """ROC curves with ID positive.

    by="dataset" draws a panel per OOD set with a curve per detector, by="detector" the other way
    round. Neighbours differ in style too, so that curves on top of each other stay visible. A
    single panel prints each AUROC (a fraction) in its legend. The dashed line marks TPR = 95 %,
    where FPR95 is read.

    Args and Returns: as `score_histograms`. More than PER_FILE panels, or curves in a panel, go
        into further files.
    """
    if by not in ("dataset", "detector"):
        raise ValueError(f"by is {by!r}; it must be 'dataset' or 'detector'")
    labels = labels or {}
    known = {detector: prepare(arrays[id_name]) for detector, arrays in scores.items()}
    sets, detectors = _ood_names(scores, id_name), list(scores)
    panels, curves = (sets, detectors) if by == "dataset" else (detectors, sets)
    pages = [(p, c) for p in _chunks(panels, PER_FILE) for c in _chunks(curves, PER_FILE)]
    paths = _page_paths(path, len(pages))
    for (panel_names, curve_names), target in zip(pages, paths):
        figure, axes = _panels(len(panel_names), square=True)
        handles: dict[str, object] = {}
        for axis, panel in zip(axes, panel_names):
            axis.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
            handles["TPR = 95 %"] = axis.axhline(
                0.95, color="black", linewidth=0.8, linestyle=(0, (3, 2))
            )
            for index, curve in enumerate(curve_names):
                detector, dataset = (curve, panel) if by == "dataset" else (panel, curve)
                if dataset not in scores[detector]:
                    continue
                novel = prepare(scores[detector][dataset], f"{detector} on {dataset}")
                text = _text(labels, curve)
                if len(panels) == 1:
                    text += f" (AUROC {evaluate(known[detector], novel).auroc:.4f})"
                (handles[text],) = axis.plot(
                    *_thinned(*roc_curve(known[detector], novel)),
                    linewidth=1.5,
                    **_line(index, mixed=True),
                )
            axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
            axis.set_title(_text(labels, panel), fontsize=10)
        handles["TPR = 95 %"] = handles.pop("TPR = 95 %")  # last in the legend
        _label_outer(axes, "FPR: share of OOD accepted", "TPR: share of ID accepted")
        _save(figure, target, handles)
    return paths


def _ood_names(scores: dict, id_name: str) -> list[str]:
    for detector, arrays in scores.items():
        if id_name not in arrays:
            raise ValueError(
                f"no ID scores '{id_name}' for detector '{detector}'; there are {', '.join(arrays)}"
            )
    return list(
        dict.fromkeys(name for arrays in scores.values() for name in arrays if name != id_name)
    )


def _shown_range(arrays: dict[str, np.ndarray], id_name: str) -> tuple[float, float]:
    """The ends of the axis of scores: no outlier and no far set may squeeze the others into a bin.

    All scores are shown, except those far outside the central 99 % of their set, and those more
    than FAR times the width of ID away from ID.
    """
    ranges = {}
    for name, values in arrays.items():
        finite = values[np.isfinite(values)]
        if finite.size:
            first, last = np.quantile(finite, (0.005, 0.995))
            reach = (last - first) / 4
            ranges[name] = max(finite.min(), first - reach), min(finite.max(), last + reach)
    if not ranges:
        return -0.5, 0.5
    low, high = min(r[0] for r in ranges.values()), max(r[1] for r in ranges.values())
    first, last = ranges.get(id_name, (0.0, 0.0))
    if last > first:
        low, high = max(low, first - FAR * (last - first)), min(high, last + FAR * (last - first))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all equal, or equal up to rounding
        middle, half = (low + high) / 2, max(abs(low), abs(high), 1.0) / 2
        return middle - half, middle + half
    margin = 0.02 * (high - low)
    return low - margin, high + margin


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    return counts / len(values)


def _limit_height(axis, heights: list[np.ndarray]) -> None:
    """Cut a lone spike (softmax scores that are all about 1), and say so in the panel.

    Otherwise the other bins would not be visible.
    """
    everything = np.sort(np.concatenate(heights))
    top, usual = everything[-1], np.quantile(everything[everything > 0], 0.97)
    cut = top > 4 * usual
    axis.set_ylim(0, 2 * usual if cut else 1.06 * top)
    if cut:
        spike = max(heights, key=np.max).argmax() / BINS
        x, align = (0.97, "right") if spike < 0.5 else (0.03, "left")
        axis.annotate(
            f"cut: reaches {top:.2f}",
            (x, 0.97),
            xycoords="axes fraction",
            ha=align,
            va="top",
            fontsize=7,
            color=ID_COLOUR,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )


def _thinned(fpr: np.ndarray, tpr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points, evenly spread along the curve."""
    if fpr.size <= CURVE_POINTS:
        return fpr, tpr
    keep = np.unique(
        np.searchsorted(fpr + tpr, np.linspace(0, 2, CURVE_POINTS)).clip(max=fpr.size - 1)
    )
    return fpr[keep], tpr[keep]


def _line(index: int, mixed: bool = False) -> dict:
    """Colour and style of a line, 18 pairs.

    Args: mixed: the style changes with every line, and broken lines lie above whole ones.
    """
    round_ = index // len(COLOURS)
    style = (index + round_ if mixed else round_) % len(STYLES)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[style],
        "zorder": 2 + 0.1 * style,
    }


def _chunks(names: list, size: int) -> list[list]:
    """Equal pages: 13 names become 7 and 6, not 12 and 1."""
    pages = max(1, -(-len(names) // size))
    return [list(part) for part in np.array_split(np.array(names, dtype=object), pages)]


def _page_paths(path: str | Path, pages: int) -> list[Path]:
    path = Path(path)
    if pages == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{n}{path.suffix}") for n in range(1, pages + 1)]


def _panels(count: int, square: bool = False) -> tuple[Figure, list]:
    columns = min(count, 2 if count == 4 else 3 if count in (5, 6, 9) else 4 if count > 3 else 3)
    rows = -(-count // columns)
    width, height = (3.2, 3.3) if square else PANEL
    if count == 1:
        width, height = 1.6 * width, 1.5 * height
    figure = Figure(
        figsize=(columns * width + 0.2, rows * height),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _label_outer(axes: list, x: str, y: str) -> None:
    """Label the axes at the left and at the bottom of the grid only.

    A panel above an empty place counts as bottom.
    """
    columns = axes[0].get_subplotspec().get_gridspec().ncols
    for index, axis in enumerate(axes):
        axis.set_ylabel(y if index % columns == 0 else "", fontsize=9)
        axis.set_xlabel(x if index + columns >= len(axes) else "", fontsize=9)


def _save(figure: Figure, path: Path, handles: dict) -> None:
    """Add the legend in a strip below the panels, as wide as fits; write the file atomically."""
    width, height = figure.get_size_inches()
    columns = int(np.clip(width / (0.5 + 0.065 * max(map(len, handles))), 1, len(handles)))
    figure.set_size_inches(width, height + 0.1 + 0.18 * -(-len(handles) // columns))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _text(labels: dict, name: str) -> str:
    return _escaped(labels.get(name) or name)


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")
