"""pytorch-ood's objective functions, which `ood.losses` has under its names and arguments.

The differences that `ood.losses` lists apply here too. The mean of OutlierExposureLoss, for
example, is the paper's; balance="batch" gives pytorch-ood's.
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
