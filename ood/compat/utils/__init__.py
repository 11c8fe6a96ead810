"""pytorch-ood's helpers: labels, transforms, seeds, features, buffers and grid search."""

from ood.compat.metrics import OODMetrics
from ood.compat.utils.hpo import GridSearch
from ood.compat.utils.transforms import TargetMapping, ToRGB, ToUnknown
from ood.compat.utils.utils import (
    TensorBuffer,
    apply_reduction,
    contains_known,
    contains_known_and_unknown,
    contains_unknown,
    drop_unknown,
    estimate_class_centers,
    evaluate_energy_logistic_loss,
    extract_feature_avg,
    extract_features,
    fix_random_seed,
    is_known,
    is_unknown,
    pairwise_distances,
    temperature_calibration,
    to_np,
    torch_get_distances,
)

__all__ = [
    "GridSearch",
    "OODMetrics",
    "TargetMapping",
    "TensorBuffer",
    "ToRGB",
    "ToUnknown",
    "apply_reduction",
    "contains_known",
    "contains_known_and_unknown",
    "contains_unknown",
    "drop_unknown",
    "estimate_class_centers",
    "evaluate_energy_logistic_loss",
    "extract_feature_avg",
    "extract_features",
    "fix_random_seed",
    "is_known",
    "is_unknown",
    "pairwise_distances",
    "temperature_calibration",
    "to_np",
    "torch_get_distances",
]
