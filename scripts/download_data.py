"""Fetch data sets by name, or every set of a benchmark.

    python3 scripts/download_data.py iSUN dtd                       # single sets
    python3 scripts/download_data.py dice_cifar10 openood_cifar10   # all sets of these benchmarks
    python3 scripts/download_data.py all_benchmarks -dry_run        # only say what would be fetched

Archives are verified, unpacked safely and prepared. A set is put in place whole or not at all. Run
the command again after a break: it goes on where it stopped. For sets that only a person may fetch
(ImageNet), it prints the steps, and verifies and unpacks what the person placed. Exit code: 0 if
everything is there, 1 if something could not be fetched or waits for a person, 2 if a name is
unknown.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads


from ood import cli
from ood.config import InputError, nearest
from ood.data import benchmark_names, load_benchmark, names
from ood.data.fetch import catalogue, obtain
from ood.data.fetch.connection import Patience
from ood.data.registry.table import info, is_folder_path

ALL = "all_benchmarks"
MOST = {"tries": 1000, "timeout": 3600, "hours": 24 * 90}  # largest values of these flags


def read_flags():
    parser = cli.Parser(
        "Fetch data sets: several mirrors, resumed after a break, size and checksum enforced.",
        f"Names: data sets ({', '.join(names())}), "
        f"benchmarks ({', '.join(benchmark_names())}), {ALL}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data set or benchmark")
    parser.flag("-data_dir", help="where to put the sets", default="./datasets")
    parser.flag(
        "-dry_run", action="store_true", help="only say what would be fetched", default=False
    )
    parser.flag(
        "-replace",
        action="store_true",
        help="replace sets that are there but not whole, once the new copy is whole",
        default=False,
    )
    parser.flag(
        "-keep", action="store_true", help="keep the archives in DATA_DIR/.download", default=False
    )
    parser.flag(
        "-tries",
        type=int,
        help="attempts per mirror, in a row, that get no further",
        default=Patience.tries,
    )
    parser.flag(
        "-timeout",
        type=float,
        help="seconds without a byte before an attempt counts as failed",
        default=Patience.timeout,
    )
    parser.flag(
        "-hours",
        type=float,
        help="hours after which the transfer of one file stops; the next run goes on from there",
        default=Patience.deadline / 3600,
    )
    parser.flag("-list", action="store_true", help="list the names", default=False)
    parser.flag(
        "-table",
        action="store_true",
        help="write the table of sets into datasets/README.md",
        default=False,
    )
    flags = parser.parse_args()
    for name, most in MOST.items():
        value = getattr(flags, name)
        if not 0 < value <= most:
            raise InputError(f"-{name} is {value:g}; it must be above 0 and at most {most:,}")
    return flags


def main() -> int:
    flags = read_flags()
    if flags.table:
        catalogue.update()
        return 0
    if flags.list:
        print("\n".join([*names(), *benchmark_names()]))
        return 0
    if not flags.names:
        raise InputError(
            f"which data sets? give names of sets or benchmarks, or {ALL}; "
            "-list lists them, -dry_run shows what would be fetched"
        )

    rows = obtain.with_needs(sets_of(flags.names))
    data_dir = Path(flags.data_dir).expanduser()
    if flags.dry_run:
        for row in rows:
            print("\n".join(obtain.describe(row, data_dir)))
        return 0
    patience = Patience(
        tries=flags.tries,
        timeout=flags.timeout,
        answer=max(Patience.answer, flags.timeout),
        window=max(Patience.window, flags.timeout),
        deadline=3600 * flags.hours,
    )
    outcomes = []
    for row in rows:
        outcome = obtain.obtain(
            row,
            data_dir,
            replace=flags.replace,
            keep=flags.keep,
            patience=patience,
            log=cli.log,
        )
        cli.log(f"{row.name}: {outcome.state}: {outcome.text}")
        outcomes.append(outcome)
    short = [outcome.name for outcome in outcomes if outcome.state in ("failed", "steps")]
    cli.log(
        f"{len(outcomes) - len(short)} of {len(outcomes)} sets are there"
        + (f"; not: {', '.join(short)}" if short else "")
    )
    return 1 if short else 0


def sets_of(wanted: list[str]) -> list[str]:
    """Return the data sets behind the names; a benchmark stands for all of its sets."""
    found: list[str] = []
    for name in wanted:
        if name == ALL:
            found += [
                entry
                for benchmark in benchmark_names()
                for entry in load_benchmark(benchmark).datasets()
            ]
        elif name in benchmark_names() or name.endswith(".json"):
            found += load_benchmark(name).datasets()
        elif is_folder_path(name):
            raise InputError(
                f"'{name}' is a path; only known sets and benchmarks can be fetched"
                f"{nearest(name, names())}"
            )
        else:
            try:
                found += [info(name).name, *filter(None, [info(name).options.get("base")])]
            except InputError:
                close = nearest(name, [*names(), *benchmark_names()])
                raise InputError(
                    f"no data set or benchmark '{name}'{close}; -list lists them"
                ) from None
    return list(dict.fromkeys(name for name in found if not is_folder_path(name)))


if __name__ == "__main__":
    cli.run(main)
