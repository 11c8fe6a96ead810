"""Result rows to files: metrics.csv, metrics.json, report.md and the table on the console. The only place that multiplies by 100.

    report = Report(rows, provenance(command, config, seed, device, digests, seconds), paper=config.paper, title="DICE on CIFAR-10")
    report.write(out_dir)
    print(report.console())

A row is a dict with the keys COLUMNS (`result_row` makes one from `Metrics`); more keys are kept in metrics.json. Every file is written
whole or not at all.
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

from ood.files import file_stem, plain, replacing, write_text
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
- All numbers are percentages; `metrics.csv` holds the same as fractions at full precision. **Bold**: the best of our values in a column.
- A score is larger for outliers; an input is accepted as in-distribution (ID) if its score is at most the threshold. Equal scores are accepted together.
- **FPR95** (lower is better): ID is the positive class. Share of OOD inputs accepted at the first threshold that accepts at least 95 % of ID.
- **AUROC** (higher is better): probability that an OOD input scores above an ID input, ties counted half; the same for either positive class.
- **AUPR-In / AUPR-Out** (higher is better): average precision with ID / OOD as the positive class, from counts, so they depend on the ratio of ID to OOD images.
- **Detection error** (lower is better): smallest mean of the two error rates, (rejected ID + accepted OOD) / 2, over all thresholds.
- **FPR95 (OOD positive)** (lower is better): the convention of pytorch-ood and OpenOOD. Share of ID inputs flagged at the first threshold that flags at least 95 % of OOD.
- Averages are unweighted means over the OOD sets, whatever their sizes."""


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


def averages(rows: list[dict]) -> list[dict]:
    """Unweighted means over OOD sets, per detector: one row per named group, one with group "all"; `n_sets` says over how many."""
    groups = [g for g in _unique(row["group"] for row in rows) if g not in ("", "all")]
    means = []
    for detector in _unique(row["detector"] for row in rows):
        own = [row for row in rows if row["detector"] == detector]
        for group in [*groups, "all"]:
            chosen = [row for row in own if group in ("all", row["group"])]
            if chosen:
                means.append(
                    {
                        "detector": detector,
                        "dataset": AVERAGE,
                        "group": group,
                        "n_sets": len(chosen),
                        **{
                            m: math.fsum(row[m] for row in chosen) / len(chosen)
                            for m in Metrics._fields
                        },
                    }
                )
    return means


@dataclasses.dataclass
class Report:
    """One evaluation: `rows` (fractions) and where they come from."""

    rows: list[dict]
    provenance: dict
    paper: dict | None = (
        None  # {detector: {data set, its label, "average" or "average <group>": {metric: fraction}}}
    )
    source: str | None = None  # where the paper's numbers stand
    title: str = "OOD detection"
    setting: dict = dataclasses.field(default_factory=dict)  # {what: value}, shown first
    accuracy: float | None = None  # of the classifier on the ID test set, a fraction
    labels: dict = dataclasses.field(default_factory=dict)  # {data set: how the paper prints it}
    datasets: tuple[str, ...] | None = (
        None  # every OOD set of the benchmark; the paper's averages are shown only if all were evaluated
    )
    figures: tuple = ()  # paths of images, or (path, caption)
    notes: tuple[str, ...] = ()  # sentences below the tables
    uncertainty: dict | None = None  # what `uncertainty.summarise` gives
    costs: dict | None = None  # {detector: {"fit_seconds", "ms_per_image", "mib", "in_pass"}}

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
        """Write metrics.csv, metrics.json and report.md into `out_dir`. Raises RunError when the disk refuses."""
        write_text(Path(out_dir) / "metrics.csv", self.csv())
        write_text(Path(out_dir) / "metrics.json", self.json())
        write_text(Path(out_dir) / "report.md", self.markdown(out_dir))

    def csv(self) -> str:
        """Header COLUMNS, one line per row, floats with every digit (float(text) gives the same float)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(
                [repr(float(row[c])) if c in Metrics._fields else row[c] for c in COLUMNS]
            )
        return text.getvalue()

    def json(self) -> str:
        """rows, averages, accuracy, the paper's numbers and the provenance; nan is null."""
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
        }
        return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"

    def console(self, width: int = 120) -> str:
        """Aligned text: FPR95 / AUROC per detector and OOD set; for a single detector, all metrics per OOD set."""
        table = _Table(self)
        head = "% (ID positive); averages are unweighted means over the OOD sets"
        if len(table.detectors) == 1:
            lines = [["OOD set", *TITLES.values()]]
            lines += [
                [table.heading(c), *(table.ours(table.detectors[0], c, m) for m in TITLES)]
                for c in table.columns
            ]
            return f"{table.detectors[0]}, in {head}\n" + _align(lines, width)
        lines = [["detector", *(table.heading(c) for c in table.columns)]]
        lines += [
            [
                d,
                *(
                    f"{table.ours(d, c, 'fpr95')} / {table.ours(d, c, 'auroc')}"
                    for c in table.columns
                ),
            ]
            for d in table.detectors
        ]
        return f"FPR95 / AUROC in {head}\n" + _align(lines, width)

    def markdown(self, out_dir: str | Path = ".") -> str:
        """The text of report.md; links to the figures are relative to `out_dir`."""
        table = _Table(self)
        setting = {
            **self.setting,
            **(
                {}
                if self.accuracy is None
                else {"accuracy of the classifier": f"{_percent(self.accuracy)} %"}
            ),
        }
        parts = [
            f"# {self.title}",
            _bullets(f"{key}: {value}" for key, value in setting.items()),
            _provenance_line(self.provenance),
            "## Data",
            _data_table(self),
        ]
        for metric, better in (("fpr95", "lower is better"), ("auroc", "higher is better")):
            shown = f"{TITLES[metric]} in %, {better}" + (
                ", paper / ours" if table.compared(metric) else ""
            )
            parts += [f"## {shown}", table.markdown(metric)]
        over = (
            "average over the OOD sets"
            if len(table.datasets) > 1
            else table.heading(table.columns[0])
        )
        parts += [
            f"## All metrics in %, {over}",
            table.all_metrics(),
            "Per OOD set: [metrics.csv](metrics.csv).",
        ]
        parts += self._uncertainty(over) + self._costs()
        parts += [_bullets([*table.remarks(), *self.notes])]
        if self.figures:
            parts += ["## Figures", *(_image(figure, out_dir) for figure in self.figures)]
        parts += ["## How to read the numbers", LEGEND]
        if self.provenance.get("command"):
            parts += ["## Run again", f"```\n{self.provenance['command']}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _uncertainty(self, over: str) -> list[str]:
        """The section of intervals, and whether the best detector is better than the others by more than chance."""
        found = self.uncertainty
        if not found:
            return []
        body = []
        for detector in _unique(row["detector"] for row in self.rows):
            cells = [
                f"{_percent(list(found[m][detector].values())[-1][0])} – {_percent(list(found[m][detector].values())[-1][1])}"
                for m in ("auroc", "fpr95")
            ]
            versus = found["versus_best"].get(detector)
            cells += (
                ["best", MISSING]
                if versus is None
                else [
                    f"{100 * versus['difference']:.2f} ({100 * versus['low']:.2f} to {100 * versus['high']:.2f})",
                    "< 0.0001" if versus["p_value"] < 1e-4 else f"{versus['p_value']:.4f}",
                ]
            )
            body.append([detector, *cells])
        level = f"{100 * found['level']:g} %"
        text = (
            f"AUROC: DeLong; FPR95: bootstrap of {found['rounds']:,} rounds, ID and OOD images drawn separately; the ID images are shared by the OOD sets, and the "
            "intervals of an average know it. The difference to the detector with the best average AUROC is a paired DeLong test on the same images, not "
            "corrected for the number of detectors. Only the test images count as random, not the training of the network. Intervals per OOD set: "
            "[metrics.json](metrics.json)."
        )
        return [
            f"## {level} intervals, {over}",
            markdown_table(
                ["detector", "AUROC", "FPR95", f"AUROC - best ({found['best']})", "p"], body
            ),
            text,
        ]

    def _costs(self) -> list[str]:
        if not self.costs:
            return []
        body = [
            [
                name,
                *(
                    MISSING if cost.get(key) is None else f"{cost[key]:.{digits}f}"
                    for key, digits in (("fit_seconds", 3), ("ms_per_image", 4), ("mib", 3))
                ),
            ]
            for name, cost in self.costs.items()
        ]
        inside = [name for name, cost in self.costs.items() if cost.get("in_pass")]
        return [
            "## Cost",
            markdown_table(
                ["detector", "fit, s", "scoring, ms / image", "fitted state, MiB"], body
            ),
            "Beyond the forward pass, which all detectors share; a method's own passes are included. Statistics of the training set that several "
            "detectors need are computed once, by the first of them."
            + (
                f" What {', '.join(inside)} did inside the pass is included; {MISSING} where it was read from the cache, so that nothing was measured."
                if inside
                else ""
            ),
        ]


class _Table:
    """Rows as a matrix: detectors by columns, a column being (data set or "average", group)."""

    def __init__(self, report: Report):
        self.report = report
        self.detectors = _unique(row["detector"] for row in report.rows)
        self.datasets = _unique(row["dataset"] for row in report.rows)
        self.cells = {(row["detector"], row["dataset"], row["group"]): row for row in report.rows}
        groups = _unique(row["group"] for row in report.rows)
        self.columns: list[tuple[str, str]] = []
        for group in groups:
            members = [
                (name, group)
                for name in _unique(row["dataset"] for row in report.rows if row["group"] == group)
            ]
            several = len(members) > 1 and len(groups) > 1 and group not in ("", "all")
            self.columns += members + ([(AVERAGE, group)] if several else [])
        self.columns += [(AVERAGE, "all")] if len(self.datasets) > 1 else []
        sizes = {
            group: sum(1 for name, g in self.columns if name != AVERAGE and group in ("all", g))
            for group in [*groups, "all"]
        }
        for row in averages(report.rows):
            if (
                row["n_sets"] == sizes[row["group"]]
            ):  # a mean over fewer sets than its neighbours' is not comparable
                self.cells[row["detector"], AVERAGE, row["group"]] = row
        # The paper's mean is over its own list of sets. Without a list, the sets for which it gives single numbers are that list.
        names = set(self.datasets) | {report.labels.get(name) for name in self.datasets}
        wanted = report.datasets or _unique(
            n
            for numbers in (report.paper or {}).values()
            for n in numbers
            if not n.startswith(AVERAGE)
        )
        self.not_evaluated = [name for name in wanted if name not in names]

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
        """The paper's number, if it has one that may stand beside ours."""
        if column[0] == AVERAGE and self.not_evaluated:
            return None
        numbers = (self.report.paper or {}).get(detector, {})
        return (
            numbers.get(column[0] if column[0] != AVERAGE else self.heading(column))
            or numbers.get(self.heading(column))
            or {}
        ).get(metric)

    def compared(self, metric: str) -> bool:
        return any(
            self.theirs(d, c, metric) is not None for d in self.detectors for c in self.columns
        )

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
        """What a reader of paper / ours has to know: the source, the largest difference, what is not compared."""
        if not self.report.paper:
            return []
        found = [f"Paper: {self.report.source}."] if self.report.source else []
        if any(self.compared(metric) for metric in TITLES):
            found.append("A cell with a single number is ours; the paper gives none for it.")
        for metric in ("fpr95", "auroc"):
            pairs = [
                (self.value(d, c, metric) - theirs, d, c)
                for d in self.detectors
                for c in self.columns
                if (theirs := self.theirs(d, c, metric)) is not None
                and not math.isnan(self.value(d, c, metric))
            ]
            if pairs:
                gap, detector, column = max(pairs, key=lambda pair: abs(pair[0]))
                found.append(
                    f"Largest difference in {TITLES[metric]}, ours - paper: {100 * gap:+.2f} points ({detector}, {self.heading(column)})."
                )
        if self.not_evaluated and any(
            n.startswith(AVERAGE) for numbers in self.report.paper.values() for n in numbers
        ):
            found.append(
                f"The paper's averages are left out: they include sets that were not evaluated here ({', '.join(self.not_evaluated)})."
            )
        return found


def write_scores(out_dir: str | Path, scores: dict[str, dict[str, np.ndarray]]) -> list[Path]:
    """Write out_dir/scores/<data set>.npz with one array (N,) per detector, from {data set: {detector: (N,)}}."""
    paths = []
    for dataset, arrays in scores.items():
        path = Path(out_dir) / "scores" / f"{file_stem(dataset)}.npz"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: np.asarray(values) for name, values in arrays.items()})
        paths.append(path)
    return paths


def _percent(fraction: float) -> str:
    return MISSING if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _unique(items: Iterable) -> list:
    return list(dict.fromkeys(items))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(head: list[str], body: list[list[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *body]]
    lines.insert(1, [":--", *["--:"] * (len(head) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _align(lines: list[list[str]], width: int) -> str:
    """First column left, the others right-aligned; columns that do not fit into `width` go into further blocks."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    blocks, start = [], 1
    while start < len(widths):
        stop, used = start + 1, widths[0] + 2 + widths[start]
        while stop < len(widths) and used + 2 + widths[stop] <= width:
            used, stop = used + 2 + widths[stop], stop + 1
        blocks.append(
            "\n".join(
                "  ".join(
                    [
                        line[0].ljust(widths[0]),
                        *(line[i].rjust(widths[i]) for i in range(start, stop)),
                    ]
                )
                for line in lines
            )
        )
        start = stop
    return "\n\n".join(blocks)


def _data_table(report: Report) -> str:
    sets = {row["dataset"]: row for row in report.rows}
    grouped = any(row["group"] for row in report.rows)
    body = [
        [
            report.labels.get(name) or name,
            *([row["group"]] * grouped),
            f"{row['n_ood']:,}",
            f"{row['n_id']:,}",
        ]
        for name, row in sets.items()
    ]
    return markdown_table(["OOD set", *["group"] * grouped, "OOD images", "ID images"], body)


def _image(figure, out_dir: str | Path) -> str:
    path, caption = (
        figure
        if isinstance(figure, (tuple, list))
        else (figure, Path(figure).stem.replace("_", " "))
    )
    return f"![{caption}]({quote(Path(os.path.relpath(path, out_dir)).as_posix())})"


def _provenance_line(made: dict) -> str:
    """One line: when, with what, on what, how long."""
    versions, machine, git = made.get("versions", {}), made.get("machine", {}), made.get("git")
    total = made.get("seconds", {}).get("total")
    facts = [
        made.get("time"),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        git
        and f"revision {git['revision'][:10]}" + (" with local changes" if git["dirty"] else ""),
        machine
        and (
            machine.get("gpu")
            or f"{machine.get('cpu')}, {machine.get('threads')} thread{'s' * (machine.get('threads') != 1)}"
        ),
        None if made.get("seed") is None else f"seed {made['seed']}",
        None if total is None else f"{total:.1f} s",
    ]
    return " · ".join(fact for fact in facts if fact)
