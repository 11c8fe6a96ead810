"""Turn the metrics.json of an evaluation into a section of docs/results.md.

    python3 scripts/record_results.py results/dice_cifar10/metrics.json -name dice_cifar10 \\
        -order 100 -title "DICE on CIFAR-10" -text "What is special about the data." \\
        -command "python3 eval_ood.py -config configs/dice_cifar10.json ..."
    python3 scripts/build_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import ood

ood.catch_interrupts()  # before torch loads


from ood import cli
from ood.config import InputError, json_object
from ood.evaluation import measurements, report

parser = cli.Parser("Record an evaluation for docs/results.md.")
parser.add_argument("metrics", help="metrics.json that eval_ood.py wrote")
parser.flag("-name", help="name of the record, docs/data/NAME.json", required=True)
parser.flag("-order", type=int, help="position on the page (100-199 part 1, ...)", required=True)
parser.flag("-title", help="heading of the section", required=True)
parser.flag(
    "-command", help="command that rebuilds the numbers; default: the one recorded in metrics.json"
)
parser.flag("-text", nargs="+", metavar="PARAGRAPH", help="paragraphs before the table", default=[])


def main() -> None:
    flags = parser.parse_args()
    made = read(Path(flags.metrics))
    path = measurements.write(
        flags.name,
        page="results",
        order=flags.order,
        title=flags.title,
        tables=[as_table(made)],
        text=flags.text,
        command=flags.command or made["provenance"]["command"],
        device=made["provenance"]["device"],
        seeds=[made["provenance"]["seed"]],
    )
    cli.log(f"record: {path}")


def read(path: Path) -> dict:
    """The content of a metrics.json. Raises InputError for a file that is not one."""
    if not path.is_file():
        raise InputError(f"no file '{path}'; give the metrics.json that eval_ood.py wrote")
    made = json_object(path, "file")
    rows = made.get("rows")
    wanted = {*report.COLUMNS}
    if (
        "provenance" not in made
        or not rows
        or not all(isinstance(row, dict) and wanted <= set(row) for row in rows)
    ):
        raise InputError(f"'{path}' has no rows of results; give a metrics.json of eval_ood.py")
    return made


def as_table(made: dict) -> dict:
    """The table of a record from the content of a metrics.json."""
    rows = made["rows"]
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    names = list(dict.fromkeys(row["detector"] for row in rows))
    by = {(row["detector"], row["dataset"]): row for row in rows}
    means = {row["detector"]: row for row in report.averages(rows) if row["group"] == "all"}

    def pair(row: dict) -> str:
        return f"{100 * row['auroc']:.2f} / {100 * row['fpr95']:.2f}"

    counts = ", ".join(f"{name} {by[names[0], name]['n_ood']:,}" for name in sets)
    caption = f"AUROC / FPR95 in %, {rows[0]['n_id']:,} ID images against {counts}"
    if made.get("accuracy") is not None:
        caption += f"; accuracy {100 * made['accuracy']:.2f} %"
    body = [[name, *(pair(by[name, s]) for s in sets), pair(means[name])] for name in names]
    return {"caption": caption, "columns": ["detector", *sets, "average"], "rows": body}


if __name__ == "__main__":
    cli.run(main)
