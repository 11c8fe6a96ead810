"""pytorch-ood's names and calls over our detectors: change the import of a script and it runs.

    from ood.compat import EnergyBased, ViM, OODMetrics, ToUnknown      # was: pytorch_ood.detector, pytorch_ood.utils

    detector = ViM(model.features, d=64, w=model.fc.weight, b=model.fc.bias).fit(train_loader)
    scores = detector(images)                                           # larger = OOD; also predict, predict_features, fit_features

Signatures, units (percentiles are fractions here) and shapes are those of pytorch-ood 0.4.0; the formulas are those of
`ood.detectors`, with their docstrings. Where the two differ, ours holds (each docstring says how); rows with a negative label are
never fitted. AUPR is average precision here, a trapezoid there.
"""
from ood.compat.arrays import (DICE, GEN, GMM, KNN, LTS, MCM, NCI, PNML, RMD, SHE, EnergyBased, Entropy, KLMatching, Mahalanobis, MaxLogit,
                               MaxSoftmax, NNGuide, OpenMax, TemperatureScaling, ViM, WeightedEBO, fDBD)
from ood.compat.base import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector, ModelNotSetException, RequiresFittingException
from ood.compat.labels import OODMetrics, ToUnknown, is_known, is_unknown
from ood.compat.layers import (ASH, MCD, NACUE, ODIN, SCALE, VRA, GradNorm, GradUncertainty, Gram, MahalanobisODIN, MultiMahalanobis, RankFeat,
                               ReAct, odin_preprocessing)

__all__ = ["ASH", "DICE", "Detector", "EnergyBased", "Entropy", "FeatureMapsDetector", "FeaturesDetector", "GEN", "GMM", "GradNorm", "GradUncertainty",
           "Gram", "KLMatching", "KNN", "LTS", "LogitsDetector", "MCD", "MCM", "Mahalanobis", "MahalanobisODIN", "MaxLogit", "MaxSoftmax",
           "ModelNotSetException", "MultiMahalanobis", "NACUE", "NCI", "NNGuide", "ODIN", "OODMetrics", "OpenMax", "PNML", "RMD", "RankFeat", "ReAct",
           "RequiresFittingException", "SCALE", "SHE", "TemperatureScaling", "ToUnknown", "VRA", "ViM", "WeightedEBO", "fDBD", "is_known", "is_unknown",
           "odin_preprocessing"]
