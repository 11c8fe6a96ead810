"""The heatmap decoder (Hornauer & Belagiannis, WACV 2023). `Heatmap` is its face.

settings: the keys of a config; formulas: score and loss of a map; targets: what the decoder is
trained on; classifier: the network below it; training: one run; method: the trained decoder;
figures: pictures of maps.
"""

from ood.methods.heatmap.formulas import score_of, weighted_errors
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings

__all__ = ["Heatmap", "Settings", "score_of", "weighted_errors"]
