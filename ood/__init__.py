"""Out-of-distribution detection: data, one-pass outputs, detectors, methods, metrics and reports.

One convention everywhere: a score is larger for outliers, and an outlier's label is negative.
"""
