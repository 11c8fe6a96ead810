"""pytorch-ood's base classes, for isinstance and for detectors of your own, and its exceptions."""

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

__all__ = [
    "Detector",
    "FeatureMapsDetector",
    "FeaturesDetector",
    "GradientDetector",
    "LogitsDetector",
    "ModelNotSetException",
    "RequiresFittingException",
    "StructuredDetector",
]
