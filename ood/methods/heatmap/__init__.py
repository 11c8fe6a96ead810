"""The heatmap decoder (WACV 2023)."""

from ood.methods.heatmap.formulas import score_of, weighted_errors
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings

__all__ = ["Heatmap", "Settings", "score_of", "weighted_errors"]
