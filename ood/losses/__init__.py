"""Objective functions: names, arguments and labels (below 0: outliers) as in pytorch-ood, so that the import is all that changes.

    from ood.losses import OutlierExposureLoss          # was: from pytorch_ood.loss import OutlierExposureLoss
    loss = OutlierExposureLoss(alpha=0.5)(logits, y)    # the same as create("outlier_exposure", alpha=0.5)

`Objective("outlier_exposure", network)` applies a loss to a network: classifier_pretraining.py -loss outlier_exposure.
"""
from ood.losses.base import Loss, create, cross_entropy, get, names, register
from ood.losses.batches import JoinedImages, MixedBatches, load_outliers
from ood.losses.centers import CACLoss, CenterLoss, CenterRegularizationLoss, ClassCenters, IILoss, MCHADLoss, RunningCenters
from ood.losses.classification import ConfidenceLoss, CrossEntropyLoss, ISHLoss, LogitNorm, T2FNormLoss, logit_norm_loss
from ood.losses.hyperspheres import DeepSADLoss, DeepSVDDLoss
from ood.losses.margins import EnergyMarginLoss
from ood.losses.mixing import OpenMixLoss, RotationLoss
from ood.losses.objective import Objective, check
from ood.losses.outliers import BackgroundClassLoss, EnergyRegularizedLoss, EntropicOpenSetLoss, ObjectosphereLoss, OutlierExposureLoss
from ood.losses.prototypes import CIDERLoss
from ood.losses.scores import OwnScore, own_score
from ood.losses.virtual import VirtualOutlierSynthesizingRegLoss, VOSRegLoss

__all__ = ["BackgroundClassLoss", "CACLoss", "CIDERLoss", "CenterLoss", "CenterRegularizationLoss", "ClassCenters", "ConfidenceLoss", "CrossEntropyLoss",
           "DeepSADLoss", "DeepSVDDLoss", "EnergyMarginLoss", "EnergyRegularizedLoss", "EntropicOpenSetLoss", "IILoss", "ISHLoss", "JoinedImages", "LogitNorm",
           "Loss", "MCHADLoss", "MixedBatches", "Objective", "ObjectosphereLoss", "OpenMixLoss", "OutlierExposureLoss", "OwnScore", "RotationLoss", "RunningCenters",
           "T2FNormLoss", "VOSRegLoss", "VirtualOutlierSynthesizingRegLoss", "check", "create", "cross_entropy", "get", "load_outliers", "logit_norm_loss",
           "names", "own_score", "register"]
