"""Rebuild docs/results.md and docs/benchmarks.md from the records in docs/data.

python3 scripts/build_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from ood import cli
from ood.evaluation import measurements

parser = cli.Parser(
    "Rebuild docs/results.md and docs/benchmarks.md from the records in docs/data.",
    "Exit code: 0 done, 1 the pages cannot be written.",
)


def main() -> None:
    parser.parse_args()
    for page in measurements.build():
        cli.log(str(page))


if __name__ == "__main__":
    cli.run(main)
