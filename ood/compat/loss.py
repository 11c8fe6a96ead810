"""pytorch-ood's objective functions: those of `ood.losses`, which have its names and arguments.

Where their docstrings name a difference, it is here too: the mean of OutlierExposureLoss is the paper's (balance="batch" is pytorch-ood's).
"""

from ood.losses import (
    BackgroundClassLoss,
    CACLoss,
    CenterLoss,
    ConfidenceLoss,
    CrossEntropyLoss,
    DeepSADLoss,
    DeepSVDDLoss,
    EnergyMarginLoss,
    EnergyRegularizedLoss,
    EntropicOpenSetLoss,
    IILoss,
    LogitNorm,
    MCHADLoss,
    ObjectosphereLoss,
    OutlierExposureLoss,
    VirtualOutlierSynthesizingRegLoss,
    VOSRegLoss,
    logit_norm_loss,
)

SSDeepSVDDLoss = DeepSADLoss  # its name before 0.4

__all__ = [
    "BackgroundClassLoss",
    "CACLoss",
    "CenterLoss",
    "ConfidenceLoss",
    "CrossEntropyLoss",
    "DeepSADLoss",
    "DeepSVDDLoss",
    "EnergyMarginLoss",
    "EnergyRegularizedLoss",
    "EntropicOpenSetLoss",
    "IILoss",
    "LogitNorm",
    "MCHADLoss",
    "ObjectosphereLoss",
    "OutlierExposureLoss",
    "SSDeepSVDDLoss",
    "VOSRegLoss",
    "VirtualOutlierSynthesizingRegLoss",
    "logit_norm_loss",
]
