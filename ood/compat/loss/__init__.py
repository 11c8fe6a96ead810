"""pytorch-ood's objective functions, which `ood.losses` has under its names and arguments.

The differences that `ood.losses` lists apply here too. The mean of OutlierExposureLoss, for
example, is the paper's; balance="batch" gives pytorch-ood's. PLACES says which names
modules such as `ood.compat.loss.svdd` have; `ood.compat.places` makes them.
"""

from ood import losses
from ood.compat.papers import OfLoss
from ood.compat.places import open_places
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
losses.Loss.info = OfLoss()  # here, as records belong to pytorch-ood's interface

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

PLACES = {
    "background": "BackgroundClassLoss",
    "cac": "CACLoss",
    "center": "CenterLoss",
    "conf": "ConfidenceLoss",
    "crossentropy": "CrossEntropyLoss cross_entropy",
    "energy": "EnergyRegularizedLoss",
    "entropy": "EntropicOpenSetLoss",
    "ii": "IILoss",
    "logitnorm": "LogitNorm logit_norm_loss",
    "mchad": "CenterRegularizationLoss MCHADLoss",
    "objectosphere": "ObjectosphereLoss",
    "oe": "OutlierExposureLoss",
    "scone": "EnergyMarginLoss",
    "svdd": "DeepSADLoss DeepSVDDLoss",
    "vos": "VOSRegLoss VirtualOutlierSynthesizingRegLoss",
}
open_places(__name__, PLACES, losses)
