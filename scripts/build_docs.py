"""Rebuild docs/results.md and docs/benchmarks.md from the records in docs/data.

python3 scripts/build_docs.py
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from ood.evaluation import measurements

for page in measurements.build():
    print(page)
