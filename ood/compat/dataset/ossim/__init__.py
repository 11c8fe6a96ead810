"""Open-set simulations: some classes of a labelled set play the outliers.

The classes are divided into

- KKC, known known classes: ID, seen in training;
- KUC, known unknown classes: outliers that one may train on;
- UUC, unknown unknown classes: outliers that are seen in validation or test only.

Source: Bendale and Boult, CVPR 2016, arXiv 1511.06233. `ood.data.open_set` makes the splits, and
also holds the fixed ones of the literature.
"""

from ood.compat.dataset.ossim.ossim import DynamicOSS, OpenSetSimulation

__all__ = ["DynamicOSS", "OpenSetSimulation"]
