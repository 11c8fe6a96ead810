"""Check data sets on disk: counts, damaged files, images that are in two sets.

    python3 scripts/check_data.py                              # every set found under ./datasets
    python3 scripts/check_data.py dice_cifar10 tinyimagenet32  # these; missing sets are named
    python3 scripts/check_data.py -fast                        # counts only, nothing is decoded

Counts are compared with the published ones, and every image is decoded. Images that are in an ID
set and in an OOD set, or in training and in test, are counted and shown; their decoded pixels are
compared. Exit code: 0 if nothing is wrong, 1 if something is wrong or a named set is not there, 2
if a name is unknown.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads


from ood import cli, files
from ood.config import InputError, nearest
from ood.data import benchmark_names, load_benchmark, names
from ood.data.fetch import check, inventory
from ood.data.registry.table import info, is_folder_path

SHOWN = 5  # damaged files of a split that are listed


def main() -> int:
    parser = cli.Parser(
        "Check data sets on disk: counts, damaged files, images that are in two sets."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="data sets or benchmarks; default: every set that is there",
    )
    parser.flag("-data_dir", help="the data root", default="./datasets")
    parser.flag(
        "-fast",
        action="store_true",
        help="count only; nothing is decoded, so damage and duplicates are not seen",
        default=False,
    )
    parser.flag("-json", help="also write the findings to this file")
    flags = parser.parse_args()
    data_dir = Path(flags.data_dir).expanduser()
    if not data_dir.is_dir():
        raise InputError(f"no folder '{data_dir}'; -data_dir names the data root")

    rows = (
        [info(name) for name in sets_of(flags.names)]
        if flags.names
        else [row for row in map(info, names()) if not {"folder", "package"} & set(row.options)]
    )
    reports, shared = check.check(rows, data_dir, decode=not flags.fast, progress=cli.progress)
    if not flags.names:  # nobody asked for these sets, so they may be absent
        there = {report.name for report in reports if report.state != "absent"}
        reports = [report for report in reports if report.name in there]
    if not reports:
        cli.log(
            f"nothing known is in '{data_dir}'; "
            f"`python3 scripts/download_data.py NAME -data_dir {flags.data_dir}` fetches sets"
        )
        return 1 if flags.names else 0
    show(reports, shared)
    if flags.json:
        content = {
            "sets": [dataclasses.asdict(report) for report in reports],
            "shared": [dataclasses.asdict(pair) for pair in shared],
        }
        files.write_text(flags.json, json.dumps(content, indent=1) + "\n")
    bad = [report.label for report in reports if report.state not in ("complete", "present")] + [
        f"{pair.first} / {pair.second}" for pair in shared if pair.mixes
    ]
    cli.log(
        f"{len(reports)} splits checked{' (counts only)' if flags.fast else ''}; "
        + (f"to be looked at: {', '.join(bad)}" if bad else "nothing is wrong")
    )
    return 1 if bad else 0


def show(reports: list, shared: list) -> None:
    """Print one line for each split, its damaged files, and what splits share."""
    width = max(len(report.label) for report in reports)
    for report in reports:
        numbers = f"{report.found:>9,}" + (f" of {report.published:,}" if report.published else "")
        more = (
            [f"{len(report.damaged):,} damaged"] * bool(report.damaged)
            + [f"{report.repeated:,} repeated"] * bool(report.repeated)
            + [report.problem] * bool(report.problem)
        )
        line = f"{report.label:<{width}}  {report.state:<10} {numbers:<20} {', '.join(more)}"
        cli.log(f"{line}  {report.place}".rstrip())
        for file, wrong in list(report.damaged.items())[:SHOWN]:
            cli.log(f"    damaged: {file}: {wrong}")
        if len(report.damaged) > SHOWN:
            cli.log(f"    ... and {len(report.damaged) - SHOWN:,} more (-json lists all)")
    for pair in shared:
        kind = "" if pair.mixes else " (both of one kind)"
        examples = "; ".join(f"{one} = {other}" for one, other in pair.examples[:2])
        cli.log(f"{pair.count:,} images are in {pair.first} and in {pair.second}{kind}: {examples}")


def sets_of(wanted: list[str]) -> list[str]:
    """Return the data sets behind the names; a benchmark stands for all of its sets."""
    found: list[str] = []
    for name in wanted:
        if name in benchmark_names() or name.endswith(".json"):
            found += [
                dataset
                for dataset in load_benchmark(name).datasets()
                if not is_folder_path(dataset)
            ]
        elif is_folder_path(name):
            raise InputError(
                f"'{name}' is a path; give known sets or benchmarks{nearest(name, names())}"
            )
        else:
            try:
                found.append(info(name).name)
            except InputError:
                close = nearest(name, [*names(), *benchmark_names()])
                raise InputError(f"no data set or benchmark '{name}'{close}") from None
    return [name for name in dict.fromkeys(found) if info(name).reader not in inventory.MADE]


if __name__ == "__main__":
    cli.run(main)
