"""All detectors of pytorch-ood, under its module's name."""
from ood.compat.arrays import (DICE, GEN, GMM, KNN, LTS, MCM, NCI, PNML, RMD, SHE, EnergyBased, Entropy, KLMatching, Mahalanobis, MaxLogit,
                               MaxSoftmax, NNGuide, OpenMax, TemperatureScaling, ViM, WeightedEBO, fDBD)
from ood.compat.layers import (ASH, MCD, NACUE, ODIN, SCALE, VRA, GradNorm, GradUncertainty, Gram, MahalanobisODIN, MultiMahalanobis, RankFeat,
                               ReAct, odin_preprocessing)

__all__ = ["ASH", "DICE", "EnergyBased", "Entropy", "GEN", "GMM", "GradNorm", "GradUncertainty", "Gram", "KLMatching", "KNN", "LTS", "MCD", "MCM",
           "Mahalanobis", "MahalanobisODIN", "MaxLogit", "MaxSoftmax", "MultiMahalanobis", "NACUE", "NCI", "NNGuide", "ODIN", "OpenMax", "PNML", "RMD",
           "RankFeat", "ReAct", "SCALE", "SHE", "TemperatureScaling", "VRA", "ViM", "WeightedEBO", "fDBD", "odin_preprocessing"]
