"""Post-hoc detectors: one family a file, each detector a formula over arrays.

`create('dice', percentile=90)` makes a detector from its short name.
"""

from ood.detectors import (  # noqa: F401
    distances,
    gradients,
    histograms,
    inputs,
    logits,
    maps,
    neighbours,
    prototypes,
    shaping,
    subspaces,
)
from ood.detectors.base import Detector, ImageDetector, create, names, parse, restore

__all__ = ["Detector", "ImageDetector", "create", "names", "parse", "restore"]
