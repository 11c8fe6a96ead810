"""pytorch-ood's base classes for detectors of your own, its exceptions, and its records."""

from ood.compat.base import (
    Detector,
    FeatureMapsDetector,
    FeaturesDetector,
    GradientDetector,
    LogitsDetector,
    ModelNotSetException,
    RequiresFittingException,
    StructuredDetector,
)
from ood.compat.records import (
    BenchmarkInfo,
    DatasetInfo,
    DetectorInfo,
    LossInfo,
    Paper,
    Representation,
    Role,
    Task,
)

__all__ = [
    "BenchmarkInfo",
    "DatasetInfo",
    "Detector",
    "DetectorInfo",
    "FeatureMapsDetector",
    "FeaturesDetector",
    "GradientDetector",
    "LogitsDetector",
    "LossInfo",
    "ModelNotSetException",
    "Paper",
    "Representation",
    "RequiresFittingException",
    "Role",
    "StructuredDetector",
    "Task",
]
