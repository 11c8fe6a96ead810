"""Write what `ood.evaluation.segmentation` found: metrics.csv, metrics.json, per_image.csv, report.

All numbers are fractions; only report.md and the console show percentages.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ood.evaluation.report import COLUMNS, TITLES
from ood.evaluation.segmentation import IMAGES, PIXELS, Result
from ood.files import markdown_table, plain, write_text
from ood.metrics import Metrics

# What the papers on anomaly segmentation print: their AP is AUPR-Out, their FPR95 has OOD positive.
FIRST = ("auroc", "aupr_out", "fpr95_ood_positive", "fpr95")
HEADS = {"aupr_out": "AP (AUPR-Out)"}
OF_IMAGE = ("auroc", "aupr_out", "fpr95_ood_positive", "fpr95")
LEGEND = """\
- All numbers are percentages. [metrics.csv](metrics.csv) holds them as fractions, with the other \
metrics; [per_image.csv](per_image.csv) holds those of each image.
- A score is larger for outliers. **AUROC**, **AP** (average precision with OOD as the positive \
class): higher is better. **FPR95 (OOD positive)**, lower is better: share of ID pixels flagged at \
the first threshold that flags at least 95 % of the OOD pixels, as papers on anomaly segmentation \
print it. **FPR95**: share of OOD pixels accepted at the first threshold that accepts at least \
95 % of the ID pixels.
- **All pixels**: the pixels of all images together. **Mean over images**: the metric of each \
image that has ID and OOD pixels, averaged. AP depends on the ratio of ID to OOD pixels.
- Ignored pixels do not count."""


@dataclasses.dataclass
class Report:
    """One evaluation of a segmentation network.

    Attributes:
        results: one per set.
        provenance: what `ood.provenance.provenance` gives.
        setting: {what: value}, shown below the heading.
        figures: paths of images.
        notes: sentences below the tables.
    """

    results: Sequence[Result]
    provenance: dict
    title: str = "OOD detection for pixels"
    setting: dict = dataclasses.field(default_factory=dict)
    figures: Sequence[Path] = ()
    notes: Sequence[str] = ()

    @property
    def rows(self) -> list[dict]:
        return [row for result in self.results for row in result.rows]

    def write(self, out_dir: str | Path) -> None:
        """Write all files into `out_dir`. Raises RunError when the disk refuses."""
        folder = Path(out_dir)
        write_text(folder / "metrics.csv", _csv(COLUMNS, self.rows))
        write_text(folder / "metrics.json", self.json())
        write_text(folder / "per_image.csv", self.per_image())
        write_text(folder / "report.md", self.markdown(folder))

    def json(self) -> str:
        """The text of metrics.json: rows, bounds of the exact metrics, facts of each set."""
        facts = {
            result.dataset: {
                "pixels": result.pixels,
                "images": len(result.images),
                "images_skipped": result.skipped,
                "exact": result.exact,
                "accuracy": result.accuracy,
                "mean_iou": result.mean_iou,
                "seconds": result.seconds,
                "bounds": {
                    name: {"low": low._asdict(), "high": high._asdict()}
                    for name, (low, high) in result.bounds.items()
                },
            }
            for result in self.results
        }
        content = {
            "title": self.title,
            "setting": self.setting,
            "rows": self.rows,
            "datasets": facts,
            "provenance": self.provenance,
        }
        return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"

    def per_image(self) -> str:
        """The text of per_image.csv: a line per set, image and detector."""
        rows = []
        for result in self.results:
            for image in result.images:
                about = {key: image[key] for key in ("image", "n_id", "n_ood")}
                for name, found in image.items():
                    if isinstance(found, Metrics):
                        some = {metric: getattr(found, metric) for metric in OF_IMAGE}
                        rows.append({"dataset": result.dataset, **about, "detector": name, **some})
        return _csv(("dataset", "image", "detector", "n_id", "n_ood", *OF_IMAGE), rows)

    def console(self) -> str:
        """The table of all pixels, as aligned text."""
        lines = []
        for result in self.results:
            body = _body(result, PIXELS)
            lines.append(f"{result.dataset}, all pixels, in %")
            columns = [["detector", *map(_head, FIRST)], *body]
            widths = [max(map(len, column)) for column in zip(*columns)]
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths)) for row in columns]
        return "\n".join(lines)

    def markdown(self, out_dir: Path) -> str:
        """The text of report.md; links to the figures are relative to `out_dir`."""
        made = self.provenance
        parts = [
            f"# {self.title}",
            "\n".join(f"- {key}: {value}" for key, value in self.setting.items()),
        ]
        head = ["detector", *map(_head, FIRST)]
        for result in self.results:
            parts += [f"## {result.dataset}", _facts(result)]
            parts += ["**All pixels, in %**", markdown_table(head, _body(result, PIXELS))]
            if _body(result, IMAGES):
                parts += ["**Mean over images, in %**", markdown_table(head, _body(result, IMAGES))]
        if self.figures:
            parts.append("## Figures")
            parts += [f"![]({os.path.relpath(path, out_dir)})" for path in self.figures]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        parts += ["## How to read the numbers", LEGEND]
        if made.get("command"):
            parts += ["## Run again", f"```\n{made['command']}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"


def _head(metric: str) -> str:
    return HEADS.get(metric, TITLES[metric])


def _body(result: Result, group: str) -> list[list[str]]:
    """Rows of a table: detector, then the metrics of FIRST in per cent."""
    chosen = [row for row in result.rows if row["group"] == group]
    return [[row["detector"], *(f"{100 * row[m]:.2f}" for m in FIRST)] for row in chosen]


def _facts(result: Result) -> str:
    """Sentences on a set: its pixels, the network on its classes, how exact the metrics are."""
    pixels = result.pixels
    said = [
        f"{len(result.images):,} images; {pixels['id']:,} ID, {pixels['ood']:,} OOD and "
        f"{pixels['ignored']:,} ignored pixels."
    ]
    if result.skipped:
        said.append(
            f"{result.skipped:,} images have no ID or no OOD pixels; the mean leaves them out."
        )
    if result.accuracy is not None:
        said.append(
            f"Predicted classes on ID pixels: accuracy {100 * result.accuracy:.2f} %, mean IoU "
            f"{100 * result.mean_iou:.2f} %."
        )
    if result.exact:
        said.append("The metrics are exact.")
    else:
        widest = {
            metric: max(
                getattr(high, metric) - getattr(low, metric) for low, high in result.bounds.values()
            )
            for metric in FIRST
        }
        bounds = ", ".join(f"{_head(m)} {100 * width:.2g}" for m, width in widest.items())
        said.append(
            "The pixels were counted in bins. The exact metrics of all pixels lie in ranges of at "
            f"most this width, in percentage points: {bounds} (metrics.json has the ranges)."
        )
    return " ".join(said)


def _csv(columns: Sequence[str], rows: list[dict]) -> str:
    """CSV text in which floats have every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row[name] for name in columns)
        writer.writerow([repr(float(v)) if isinstance(v, float) else v for v in values])
    return text.getvalue()
