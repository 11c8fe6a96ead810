"""pytorch-ood's names and calls over our detectors: write ood.compat for pytorch_ood in a script and it runs.

    from ood.compat.detector import EnergyBased, ViM                    # was: pytorch_ood.detector
    from ood.compat.metrics import OODMetrics                           # was: pytorch_ood.metrics

    detector = ViM(model.features, d=64, w=model.fc.weight, b=model.fc.bias).fit(train_loader)
    scores = detector(images)                                           # larger = OOD; also predict, predict_features, fit_features

The modules are api, detector, loss, metrics, utils and, for class centres, model; every name of theirs but the losses is here too. Not
here are its data sets, benchmarks and networks (`ood.data`, configs/benchmarks and `models` take other arguments), the records of
papers and licences that its classes carry (`info` is None), modules below pytorch_ood.detector, and the base classes BufferedMetric
and StreamingMetric: a metric of your own derives from Metric.

Signatures, units (percentiles are fractions here) and shapes are those of pytorch-ood 0.4.0; the formulas are those of
`ood.detectors`, with their docstrings. Where the two differ, ours holds (each docstring says how); rows with a negative label are
never fitted. Scores are float64. AUPR is average precision here, a trapezoid there.
"""
from ood.compat import api, detector, loss, metrics, model, utils
from ood.compat.api import (Detector, FeatureMapsDetector, FeaturesDetector, GradientDetector, LogitsDetector, ModelNotSetException,
                            RequiresFittingException, StructuredDetector)
from ood.compat.detector import (ASH, DICE, GEN, GMM, KNN, LTS, MCD, MCM, NACUE, NCI, ODIN, PNML, RMD, SCALE, SHE, VRA, EnergyBased, Entropy,
                                 GradNorm, GradUncertainty, Gram, KLMatching, Mahalanobis, MahalanobisODIN, MaxLogit, MaxSoftmax, MultiMahalanobis,
                                 NNGuide, OpenMax, RankFeat, ReAct, TemperatureScaling, ViM, WeightedEBO, fDBD, odin_preprocessing)
from ood.compat.metrics import (AUPR, AUROC, AUTC, Accuracy, FPRAtTPR, Metric, MetricCollection, OODMetrics, OODPerImageSegmentationMetrics,
                                OODSegmentationMetrics, PerImage, aurra, calc_openness, calibration_error, oscr_score)
from ood.compat.utils import (GridSearch, TargetMapping, TensorBuffer, ToRGB, ToUnknown, apply_reduction, contains_known, contains_known_and_unknown,
                              contains_unknown, drop_unknown, estimate_class_centers, extract_feature_avg, extract_features, fix_random_seed,
                              is_known, is_unknown, pairwise_distances, temperature_calibration, to_np, torch_get_distances)

__all__ = ["ASH", "AUPR", "AUROC", "AUTC", "Accuracy", "DICE", "Detector", "EnergyBased", "Entropy", "FPRAtTPR", "FeatureMapsDetector",
           "FeaturesDetector", "GEN", "GMM", "GradNorm", "GradUncertainty", "GradientDetector", "Gram", "GridSearch", "KLMatching", "KNN", "LTS",
           "LogitsDetector", "MCD", "MCM", "Mahalanobis", "MahalanobisODIN", "MaxLogit", "MaxSoftmax", "Metric", "MetricCollection",
           "ModelNotSetException", "MultiMahalanobis", "NACUE", "NCI", "NNGuide", "ODIN", "OODMetrics", "OODPerImageSegmentationMetrics",
           "OODSegmentationMetrics", "OpenMax", "PNML", "PerImage", "RMD", "RankFeat", "ReAct", "RequiresFittingException", "SCALE", "SHE",
           "StructuredDetector", "TargetMapping", "TemperatureScaling", "TensorBuffer", "ToRGB", "ToUnknown", "VRA", "ViM", "WeightedEBO", "api",
           "apply_reduction", "aurra", "calc_openness", "calibration_error", "contains_known", "contains_known_and_unknown", "contains_unknown",
           "detector", "drop_unknown", "estimate_class_centers", "extract_feature_avg", "extract_features", "fDBD", "fix_random_seed", "is_known",
           "is_unknown", "loss", "metrics", "model", "odin_preprocessing", "oscr_score", "pairwise_distances", "temperature_calibration", "to_np",
           "torch_get_distances", "utils"]
