"""The ensemble of leave-out classifiers (Vyas et al., ECCV 2018). `LeaveOut` is its face.

settings: the keys of a config; formulas: folds, loss, score; images: what a fold reads; training:
one fold; method: the trained ensemble.
"""

from ood.methods.leaveout.formulas import (
    class_folds,
    confidence,
    entropy,
    evaluated,
    held_out,
    kept_classes,
    margin_loss,
    pass_over,
    positions,
    stacked,
)
from ood.methods.leaveout.method import WEIGHT_FILES, FoldOutputs, LeaveOut, weight_file
from ood.methods.leaveout.settings import Settings, build_network, check, facts, folder_name

__all__ = [
    "WEIGHT_FILES",
    "FoldOutputs",
    "LeaveOut",
    "Settings",
    "build_network",
    "check",
    "class_folds",
    "confidence",
    "entropy",
    "evaluated",
    "facts",
    "folder_name",
    "held_out",
    "kept_classes",
    "margin_loss",
    "pass_over",
    "positions",
    "stacked",
    "weight_file",
]
