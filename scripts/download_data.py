"""Fetch data sets by name, or every set of a benchmark: verified, unpacked safely, prepared, and put in place at once or not at all.

    python3 scripts/download_data.py iSUN dtd                       # single sets
    python3 scripts/download_data.py dice_cifar10 openood_cifar10   # every set of these benchmarks
    python3 scripts/download_data.py all_benchmarks -dry_run        # what would be fetched: addresses, sizes, checksums, licences

Run it again after a break: it goes on where it stopped. Sets that only a person may fetch (ImageNet) print the steps, and what was placed
is verified and unpacked. Exit code: 0 everything is there, 1 something could not be had (or waits for a person), 2 a name is unknown.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from ood import cli
from ood.config import InputError, nearest
from ood.data import benchmark_names, load_benchmark, names
from ood.data.fetch import (
    catalogue,
    obtain,
)
from ood.data.fetch.download import Patience
from ood.data.registry.table import info, is_folder_path

ALL = "all_benchmarks"


def main() -> int:
    parser = cli.Parser(
        "Fetch data sets: several mirrors, resumed after a break, size and checksum enforced.",
        f"Names: data sets ({', '.join(names())}), benchmarks ({', '.join(benchmark_names())}), {ALL}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data set or benchmark")
    parser.flag("-data_dir", help="where to put them", default="./datasets")
    parser.flag(
        "-dry_run", action="store_true", help="only say what would be fetched", default=False
    )
    parser.flag(
        "-replace",
        action="store_true",
        help="replace what is there but not whole (once the new one is)",
        default=False,
    )
    parser.flag(
        "-keep", action="store_true", help="keep the archives in DATA_DIR/.download", default=False
    )
    parser.flag(
        "-tries", type=int, help="attempts per mirror without progress", default=Patience.tries
    )
    parser.flag(
        "-timeout",
        type=float,
        help="seconds without a byte before an attempt counts as failed",
        default=Patience.timeout,
    )
    parser.flag("-list", action="store_true", help="list the names", default=False)
    parser.flag(
        "-table",
        action="store_true",
        help="write the table of sets into datasets/README.md",
        default=False,
    )
    flags = parser.parse_args()

    if flags.table:
        catalogue.update()
        return 0
    if flags.list:
        print("\n".join([*names(), *benchmark_names()]))
        return 0
    if not flags.names:
        raise InputError(
            f"which data sets? give names of sets or benchmarks, or {ALL}; -list lists them, -dry_run shows what would be fetched"
        )
    for name in ("tries", "timeout"):
        if not getattr(flags, name) > 0:
            raise InputError(f"-{name} is {getattr(flags, name)}; it must be above 0")

    rows = obtain.with_needs(sets_of(flags.names))
    data_dir = Path(flags.data_dir).expanduser()
    if flags.dry_run:
        for row in rows:
            print("\n".join(obtain.describe(row, data_dir)))
        return 0
    patience = Patience(
        tries=flags.tries, timeout=flags.timeout, window=max(Patience.window, flags.timeout)
    )
    outcomes = []
    for row in rows:
        outcomes.append(
            obtain.obtain(
                row,
                data_dir,
                replace=flags.replace,
                keep=flags.keep,
                patience=patience,
                log=cli.log,
            )
        )
        cli.log(f"{row.name}: {outcomes[-1].state}: {outcomes[-1].text}")
    short = [outcome.name for outcome in outcomes if outcome.state in ("failed", "steps")]
    cli.log(
        f"{len(outcomes) - len(short)} of {len(outcomes)} sets are there"
        + (f"; not: {', '.join(short)}" if short else "")
    )
    return 1 if short else 0


def sets_of(wanted: list[str]) -> list[str]:
    """Data sets behind the names; a benchmark stands for its ID set and its OOD sets."""
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
                f"'{name}' is a path; only known sets and benchmarks can be fetched{nearest(name, names())}"
            )
        else:
            try:
                found += [info(name).name, *filter(None, [info(name).options.get("base")])]
            except InputError:
                raise InputError(
                    f"no data set or benchmark '{name}'{nearest(name, [*names(), *benchmark_names()])}; -list lists them"
                ) from None
    return list(dict.fromkeys(name for name in found if not is_folder_path(name)))


if __name__ == "__main__":
    cli.run(main)
