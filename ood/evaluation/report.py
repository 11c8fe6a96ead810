"""Write results: metrics.csv, metrics.json, report.md, and the table on the console.

    scores = {"cifar10": {"msp": array, ...}, "svhn": {"msp": array, ...}}
    rows = result_rows(scores, "cifar10", groups={"svhn": "near"})
    report = Report(rows, provenance(...), paper=config.paper, title="DICE on CIFAR-10")
    report.write(out_dir)
    print(report.console())

A row is a dict with the keys COLUMNS. Further keys of a row are kept in metrics.json. All numbers
are fractions; only this module multiplies by 100. Every file is written whole or not at all.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ood import metrics
from ood.files import file_stem, markdown_table, plain, replacing, write_text
from ood.metrics import Metrics

COLUMNS = ("detector", "dataset", "group", "n_id", "n_ood", *Metrics._fields)
TITLES = {
    "fpr95": "FPR95",
    "auroc": "AUROC",
    "aupr_in": "AUPR-In",
    "aupr_out": "AUPR-Out",
    "detection_error": "Detection error",
    "fpr95_ood_positive": "FPR95 (OOD positive)",
}
HIGHER_IS_BETTER = {"auroc", "aupr_in", "aupr_out"}
AVERAGE = "average"
MISSING = "–"
LEGEND = """\
- All numbers are percentages. `metrics.csv` holds them as fractions at full precision. \
**Bold**: the best of our values in a column.
- A score is larger for outliers. An input is accepted as in-distribution (ID) if its score is at \
most the threshold. Equal scores are accepted together.
- **FPR95** (lower is better): ID is the positive class. Share of OOD inputs accepted at the first \
threshold that accepts at least 95 % of ID.
- **AUROC** (higher is better): probability that an OOD input scores above an ID input; a tie \
counts one half. It is the same for either positive class.
- **AUPR-In / AUPR-Out** (higher is better): average precision with ID / OOD as the positive \
class. It is computed from counts, so it depends on the ratio of ID to OOD images.
- **Detection error** (lower is better): smallest mean of the two error rates, \
(rejected ID + accepted OOD) / 2, over all thresholds.
- **FPR95 (OOD positive)** (lower is better): the convention of pytorch-ood and OpenOOD. Share of \
ID inputs flagged at the first threshold that flags at least 95 % of OOD.
- Averages are unweighted means over the OOD sets, whatever their sizes."""
INTERVALS = (
    "AUROC: DeLong. FPR95: bootstrap of {rounds:,} rounds in which ID and OOD images are drawn "
    "separately. All OOD sets share the ID images, and the intervals of an average account for it. "
    "The difference to the detector with the best average AUROC is a paired DeLong test on the "
    "same images, not corrected for the number of detectors. Only the test images count as random, "
    "not the training of the network. Intervals per OOD set: [metrics.json](metrics.json)."
)
COSTS = (
    "These costs come on top of the forward pass, which all detectors share. The passes of a "
    "method are included. Statistics of the training set that several detectors need are computed "
    "once and counted for the first of them."
)


def result_row(
    detector: str, dataset: str, metrics: Metrics, n_id: int, n_ood: int, group: str = "", **more
) -> dict:
    """One row of the results; `more` goes to metrics.json only."""
    return {
        "detector": detector,
        "dataset": dataset,
        "group": group,
        "n_id": n_id,
        "n_ood": n_ood,
        **metrics._asdict(),
        **more,
    }


def result_rows(
    scores: dict[str, dict[str, np.ndarray]], id_name: str, groups: dict[str, str] | None = None
) -> list[dict]:
    """Evaluate every detector on every OOD set.

    Args:
        scores: {data set: {detector: (N,)}}, larger = OOD, with the ID set under `id_name`.
        groups: {OOD set: "near", "far" or ""}.

    Returns: one row per detector and OOD set, in the order of the detectors, then of the sets.
    Raises: InputError for a score that is NaN, with the names of detector and data set.
    """
    groups, rows = groups or {}, []
    for detector, known in scores[id_name].items():
        ordered = metrics.prepare(known, f"{detector} on {id_name}")
        for name in scores:
            if name == id_name:
                continue
            novel = metrics.prepare(scores[name][detector], f"{detector} on {name}")
            found = metrics.evaluate(ordered, novel)
            group = groups.get(name, "")
            rows.append(result_row(detector, name, found, len(ordered), len(novel), group))
    return rows


def averages(rows: list[dict]) -> list[dict]:
    """Average every detector's rows over the OOD sets, without weights.

    Returns: one row per detector and named group, and one with the group "all". `n_sets` is the
    number of sets in the mean.
    """
    groups = [g for g in _unique(row["group"] for row in rows) if g not in ("", "all")]
    means = []
    for detector in _unique(row["detector"] for row in rows):
        own = [row for row in rows if row["detector"] == detector]
        for group in [*groups, "all"]:
            chosen = [row for row in own if group in ("all", row["group"])]
            if not chosen:
                continue
            sums = {m: math.fsum(row[m] for row in chosen) for m in Metrics._fields}
            means.append(
                {
                    "detector": detector,
                    "dataset": AVERAGE,
                    "group": group,
                    "n_sets": len(chosen),
                    **{m: total / len(chosen) for m, total in sums.items()},
                }
            )
    return means


@dataclasses.dataclass
class Report:
    """One evaluation: its rows and where they come from.

    Attributes:
        rows: dicts with the keys COLUMNS; metrics are fractions.
        provenance: what `ood.provenance.provenance` gives.
        paper: {detector: {name: {metric: fraction}}}. A name is a data set, its label, "average" or
            "average <group>".
        source: where the paper's numbers are printed.
        title: heading of report.md.
        setting: {what: value}, shown below the heading.
        accuracy: of the classifier on the ID test set, a fraction.
        labels: {data set: how the paper prints it}.
        datasets: the OOD sets that the paper's averages are over. The averages are shown only if
            exactly these sets were evaluated.
        figures: paths of images, or (path, caption).
        notes: sentences below the tables.
        uncertainty: what `ood.evaluation.uncertainty.summarise` gives.
        costs: {detector: {"fit_seconds", "ms_per_image", "mib", "in_pass"}}.
        more: further keys of metrics.json.
    """

    rows: list[dict]
    provenance: dict
    paper: dict | None = None
    source: str | None = None
    title: str = "OOD detection"
    setting: dict = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    labels: dict = dataclasses.field(default_factory=dict)
    datasets: tuple[str, ...] | None = None
    figures: tuple = ()
    notes: tuple[str, ...] = ()
    uncertainty: dict | None = None
    costs: dict | None = None
    more: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.rows:
            raise ValueError("a report needs at least one row")
        seen = set()
        for row in self.rows:
            missing = [c for c in COLUMNS if c not in row]
            if missing:
                raise ValueError(f"a result row lacks {', '.join(missing)}: {row}")
            key = row["detector"], row["dataset"]
            if key in seen:
                raise ValueError(f"two result rows for detector '{key[0]}' on '{key[1]}'")
            seen.add(key)

    def write(self, out_dir: str | Path) -> None:
        """Write metrics.csv, metrics.json and report.md into `out_dir`.

        Raises: RunError when the disk refuses.
        """
        write_text(Path(out_dir) / "metrics.csv", self.csv())
        write_text(Path(out_dir) / "metrics.json", self.json())
        write_text(Path(out_dir) / "report.md", self.markdown(out_dir))

    def csv(self) -> str:
        """The text of metrics.csv: header COLUMNS, one line per row.

        Floats have every digit: float(text) gives the same float.
        """
        exact = {name: lambda value: repr(float(value)) for name in Metrics._fields}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([exact.get(name, lambda value: value)(row[name]) for name in COLUMNS])
        return text.getvalue()

    def json(self) -> str:
        """The text of metrics.json: rows, averages, the paper's numbers, provenance.

        nan and inf become null.
        """
        content = {
            "title": self.title,
            "setting": self.setting,
            "accuracy": self.accuracy,
            "rows": self.rows,
            "averages": averages(self.rows),
            "uncertainty": self.uncertainty,
            "costs": self.costs,
            "paper": self.paper or {},
            "source": self.source,
            "provenance": self.provenance,
            **self.more,
        }
        return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"

    def console(self, width: int = 120) -> str:
        """A table of aligned text.

        Several detectors: FPR95 / AUROC per detector and OOD set. One detector: all metrics.
        """
        table = _Table(self)
        head = "% (ID positive); averages are unweighted means over the OOD sets"
        if len(table.detectors) == 1:
            name = table.detectors[0]
            lines = [["OOD set", *TITLES.values()]]
            for column in table.columns:
                values = [table.ours(name, column, metric) for metric in TITLES]
                lines.append([table.heading(column), *values])
            return f"{name}, in {head}\n" + _align(lines, width)
        lines = [["detector", *map(table.heading, table.columns)]]
        for name in table.detectors:
            pairs = [[table.ours(name, c, m) for m in ("fpr95", "auroc")] for c in table.columns]
            lines.append([name, *(" / ".join(pair) for pair in pairs)])
        return f"FPR95 / AUROC in {head}\n" + _align(lines, width)

    def markdown(self, out_dir: str | Path = ".") -> str:
        """The text of report.md; links to the figures are relative to `out_dir`."""
        table = _Table(self)
        setting = dict(self.setting)
        if self.accuracy is not None:
            setting["accuracy of the classifier"] = f"{_percent(self.accuracy)} %"
        parts = [
            f"# {self.title}",
            _bullets(f"{key}: {value}" for key, value in setting.items()),
            _provenance_line(self.provenance),
            "## Data",
            _data_table(self),
        ]
        for metric, better in (("fpr95", "lower is better"), ("auroc", "higher is better")):
            compared = ", paper / ours" if table.compared(metric) else ""
            parts += [f"## {TITLES[metric]} in %, {better}{compared}", table.markdown(metric)]
        several = len(table.datasets) > 1
        over = "average over the OOD sets" if several else table.heading(table.columns[0])
        parts += [
            f"## All metrics in %, {over}",
            table.all_metrics(),
            "Per OOD set: [metrics.csv](metrics.csv).",
            *self._uncertainty(over),
            *self._costs(),
            _bullets([*table.remarks(), *self.notes]),
        ]
        if self.figures:
            parts += ["## Figures", *(_image(figure, out_dir) for figure in self.figures)]
        parts += ["## How to read the numbers", LEGEND]
        if self.provenance.get("command"):
            parts += ["## Run again", f"```\n{self.provenance['command']}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _uncertainty(self, over: str) -> list[str]:
        """The section of intervals, and of the tests against the detector with the best AUROC."""
        found = self.uncertainty
        if not found:
            return []
        body = []
        for detector in _unique(row["detector"] for row in self.rows):
            ends = [list(found[m][detector].values())[-1] for m in ("auroc", "fpr95")]
            cells = [f"{_percent(low)} – {_percent(high)}" for low, high in ends]
            body.append([detector, *cells, *_versus(found["versus_best"].get(detector))])
        head = ["detector", "AUROC", "FPR95", f"AUROC - best ({found['best']})", "p"]
        return [
            f"## {100 * found['level']:g} % intervals, {over}",
            markdown_table(head, body),
            INTERVALS.format(rounds=found["rounds"]),
        ]

    def _costs(self) -> list[str]:
        """The section of what each detector took beyond the shared pass."""
        if not self.costs:
            return []
        head = ["detector", "fit, s", "scoring, ms / image", "fitted state, MiB"]
        text, inside = COSTS, [name for name, cost in self.costs.items() if cost.get("in_pass")]
        if inside:
            text += (
                f" What {', '.join(inside)} did inside the pass is included; "
                f"{MISSING} where the cache already held it, so that nothing was measured."
            )
        body = [[name, *cost_cells(cost)] for name, cost in self.costs.items()]
        return ["## Cost", markdown_table(head, body), text]


class _Table:
    """Rows as a matrix: detectors by columns. A column is (data set or "average", group)."""

    def __init__(self, report: Report):
        self.report = report
        self.detectors = _unique(row["detector"] for row in report.rows)
        self.datasets = _unique(row["dataset"] for row in report.rows)
        self.cells = {(row["detector"], row["dataset"], row["group"]): row for row in report.rows}
        groups = _unique(row["group"] for row in report.rows)
        self.columns: list[tuple[str, str]] = []
        for group in groups:
            inside = (row["dataset"] for row in report.rows if row["group"] == group)
            members = [(name, group) for name in _unique(inside)]
            several = len(members) > 1 and len(groups) > 1 and group not in ("", "all")
            self.columns += members + ([(AVERAGE, group)] if several else [])
        self.columns += [(AVERAGE, "all")] if len(self.datasets) > 1 else []
        single = [group for name, group in self.columns if name != AVERAGE]
        sizes = {group: single.count(group) for group in groups} | {"all": len(single)}
        for row in averages(report.rows):
            # A mean over fewer sets than those of its neighbours cannot be compared with them.
            if row["n_sets"] == sizes[row["group"]]:
                self.cells[row["detector"], AVERAGE, row["group"]] = row
        # The paper's mean is over its own list of sets. Where no list is given, the sets for which
        # the paper gives single numbers are that list.
        names = set(self.datasets) | {report.labels.get(name) for name in self.datasets}
        wanted = report.datasets or _unique(
            name
            for numbers in (report.paper or {}).values()
            for name in numbers
            if not name.startswith(AVERAGE)
        )
        self.not_evaluated = [name for name in wanted if name not in names]
        self.not_in_paper = [
            name
            for name in self.datasets
            if wanted and not {name, report.labels.get(name)} & set(wanted)
        ]

    def heading(self, column: tuple[str, str]) -> str:
        name, group = column
        if name == AVERAGE:
            return AVERAGE if group == "all" else f"{AVERAGE} {group}"
        return self.report.labels.get(name) or name

    def value(self, detector: str, column: tuple[str, str], metric: str) -> float:
        row = self.cells.get((detector, *column))
        return float(row[metric]) if row else math.nan

    def ours(self, detector: str, column: tuple[str, str], metric: str) -> str:
        return _percent(self.value(detector, column, metric))

    def theirs(self, detector: str, column: tuple[str, str], metric: str) -> float | None:
        """The paper's number, or None if it has none that may stand beside ours."""
        if column[0] == AVERAGE and (self.not_evaluated or self.not_in_paper):
            return None
        numbers = (self.report.paper or {}).get(detector, {})
        heading = self.heading(column)
        name = heading if column[0] == AVERAGE else column[0]
        return (numbers.get(name) or numbers.get(heading) or {}).get(metric)

    def compared(self, metric: str) -> bool:
        """Whether the paper has a number of this metric for any cell."""
        pairs = [(d, c) for d in self.detectors for c in self.columns]
        return any(self.theirs(d, c, metric) is not None for d, c in pairs)

    def cell(self, detector: str, column: tuple[str, str], metric: str) -> str:
        text = self.ours(detector, column, metric)
        others = [self.value(d, column, metric) for d in self.detectors]
        others = [v for v in others if not math.isnan(v)]
        best = (max if metric in HIGHER_IS_BETTER else min)(others, default=math.nan)
        if len(set(others)) > 1 and self.value(detector, column, metric) == best:
            text = f"**{text}**"
        theirs = self.theirs(detector, column, metric)
        return text if theirs is None else f"{_percent(theirs)} / {text}"

    def markdown(self, metric: str) -> str:
        return markdown_table(
            ["detector", *(self.heading(c) for c in self.columns)],
            [[d, *(self.cell(d, c, metric) for c in self.columns)] for d in self.detectors],
        )

    def all_metrics(self) -> str:
        last = self.columns[-1]
        return markdown_table(
            ["detector", *TITLES.values()],
            [[d, *(self.cell(d, last, m) for m in TITLES)] for d in self.detectors],
        )

    def remarks(self) -> list[str]:
        """Sentences for a reader of paper / ours.

        They name the source, the largest difference, and what is not compared.
        """
        if not self.report.paper:
            return []
        found = [f"Paper: {self.report.source}."] if self.report.source else []
        if any(self.compared(metric) for metric in TITLES):
            found.append("A cell with a single number is ours; the paper gives none for it.")
        found += [self._largest_gap(metric) for metric in ("fpr95", "auroc")]
        averaged = (name for numbers in self.report.paper.values() for name in numbers)
        if any(name.startswith(AVERAGE) for name in averaged):
            found.append(self._left_out())
        return [sentence for sentence in found if sentence]

    def _left_out(self) -> str:
        """Why the paper's averages are not shown, as a sentence; "" where they are."""
        reasons = []
        if self.not_evaluated:
            sets = ", ".join(self.not_evaluated)
            reasons.append(f"they include sets that were not evaluated here ({sets})")
        if self.not_in_paper:
            reasons.append(f"they do not include {', '.join(self.not_in_paper)}")
        return f"The paper's averages are left out: {', and '.join(reasons)}." if reasons else ""

    def _largest_gap(self, metric: str) -> str:
        """The cell that differs most from the paper's, as a sentence; "" where none is compared."""
        gaps = []
        for detector in self.detectors:
            for column in self.columns:
                theirs, ours = (f(detector, column, metric) for f in (self.theirs, self.value))
                if theirs is not None and not math.isnan(ours):
                    gaps.append((ours - theirs, detector, column))
        if not gaps:
            return ""
        gap, detector, column = max(gaps, key=lambda found: abs(found[0]))
        return (
            f"Largest difference in {TITLES[metric]}, ours - paper: {100 * gap:+.2f} points "
            f"({detector}, {self.heading(column)})."
        )


def write_scores(out_dir: str | Path, scores: dict[str, dict[str, np.ndarray]]) -> list[Path]:
    """Write out_dir/scores/<data set>.npz with one array (N,) per detector; return the paths.

    Args: scores: {data set: {detector: (N,)}}.
    """
    paths = []
    for dataset, arrays in scores.items():
        path = Path(out_dir) / "scores" / f"{file_stem(dataset)}.npz"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: np.asarray(values) for name, values in arrays.items()})
        paths.append(path)
    return paths


def cost_cells(cost: dict) -> list[str]:
    """Seconds to fit, milliseconds per image and MiB as text; MISSING for what was not measured."""
    digits = {"fit_seconds": 3, "ms_per_image": 4, "mib": 3}
    return [MISSING if cost.get(k) is None else f"{cost[k]:.{n}f}" for k, n in digits.items()]


def p_text(value: float) -> str:
    """A p-value with four digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _versus(found: dict | None) -> list[str]:
    """A difference in AUROC with its interval, and its p-value; None: this detector is the best."""
    if found is None:
        return ["best", MISSING]
    difference, low, high = (f"{100 * found[k]:.2f}" for k in ("difference", "low", "high"))
    return [f"{difference} ({low} to {high})", p_text(found["p_value"])]


def _percent(fraction: float) -> str:
    return MISSING if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _unique(items: Iterable) -> list:
    return list(dict.fromkeys(items))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _align(lines: list[list[str]], width: int) -> str:
    """Align the first column to the left and the others to the right.

    Columns that do not fit into `width` characters go into further blocks.
    """
    widths = [max(map(len, column)) for column in zip(*lines)]
    blocks, start = [], 1
    while start < len(widths):
        stop, used = start + 1, widths[0] + 2 + widths[start]
        while stop < len(widths) and used + 2 + widths[stop] <= width:
            used, stop = used + 2 + widths[stop], stop + 1
        shown = range(start, stop)
        block = [
            "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in shown)])
            for line in lines
        ]
        blocks.append("\n".join(block))
        start = stop
    return "\n\n".join(blocks)


def _data_table(report: Report) -> str:
    """The OOD sets with their groups and numbers of images."""
    sets = {row["dataset"]: row for row in report.rows}
    grouped = any(row["group"] for row in report.rows)
    body = []
    for name, row in sets.items():
        group = [row["group"]] if grouped else []
        counts = [f"{row['n_ood']:,}", f"{row['n_id']:,}"]
        body.append([report.labels.get(name) or name, *group, *counts])
    return markdown_table(["OOD set", *["group"] * grouped, "OOD images", "ID images"], body)


def _image(figure, out_dir: str | Path) -> str:
    """A Markdown image; `figure` is a path or (path, caption)."""
    if not isinstance(figure, (tuple, list)):
        figure = figure, Path(figure).stem.replace("_", " ")
    path, caption = figure
    return f"![{caption}]({quote(Path(os.path.relpath(path, out_dir)).as_posix())})"


def _provenance_line(made: dict) -> str:
    """One line: when, with which versions, on what machine, how long."""
    versions, machine, git = made.get("versions", {}), made.get("machine", {}), made.get("git")
    total, facts = made.get("seconds", {}).get("total"), []
    facts += [made.get("time"), ", ".join(f"{name} {text}" for name, text in versions.items())]
    if git:
        changed = " with local changes" if git["dirty"] else ""
        facts.append(f"revision {git['revision'][:10]}{changed}")
    if machine:
        threads = machine.get("threads")
        processor = f"{machine.get('cpu')}, {threads} thread{'s' * (threads != 1)}"
        facts.append(machine.get("gpu") or processor)
    if made.get("seed") is not None:
        facts.append(f"seed {made['seed']}")
    if total is not None:
        facts.append(f"{total:.1f} s")
    return " · ".join(fact for fact in facts if fact)
