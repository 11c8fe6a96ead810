"""Out-of-distribution detection: data, one-pass outputs, detectors, methods, metrics and reports.

One convention everywhere: a score is larger for outliers, and an outlier's label is negative.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see models/__init__.py
