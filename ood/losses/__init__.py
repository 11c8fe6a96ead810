"""Objective functions: names, arguments, defaults and labels (below 0: outliers) as in pytorch-ood.

    from ood.losses import EnergyRegularizedLoss            # was: from pytorch_ood.loss import EnergyRegularizedLoss
    loss = EnergyRegularizedLoss(alpha=0.1)(logits, y)      # the same as create("energy_bounded", alpha=0.1)

The import is all that changes, and the numbers are those of pytorch-ood 0.4.0, except where its formula is not the paper's. On purpose:

    OutlierExposureLoss         a mean over the ID rows and one over the outliers; balance="batch": pytorch-ood's one mean over all rows
    CACLoss                     distances as they are; squared=True: pytorch-ood's distances. Its sum over the classes 0..C-2 instead of all but
                                y has no switch: the losses agree for rows with y = C-1
    MCHADLoss                   no switch. The first term is not divided by C, r is squared, the third term is squared once: with radius and
                                margin at 0, weight_center=1/C gives pytorch-ood's
    CenterRegularizationLoss    no switch; pytorch-ood's is this one called with distances.square()
    RunningCenters              no switch; the same where every class is in every batch (IILoss as well)

Batches without ID rows, without outliers or with one class give finite losses here; pytorch-ood refuses them in EnergyMarginLoss and gives
1e24 in IILoss.

`Objective("outlier_exposure", network)` applies a loss to a network: classifier_pretraining.py -loss outlier_exposure.
"""

from ood.data.auxiliary import load_outliers
from ood.data.images import JoinedImages
from ood.losses.base import Loss, create, cross_entropy, get, names, register
from ood.losses.centers import (
    CACLoss,
    CenterLoss,
    CenterRegularizationLoss,
    ClassCenters,
    IILoss,
    MCHADLoss,
    RunningCenters,
)
from ood.losses.cider import CIDERLoss
from ood.losses.classification import (
    ConfidenceLoss,
    CrossEntropyLoss,
    ISHLoss,
    LogitNorm,
    T2FNormLoss,
    logit_norm_loss,
)
from ood.losses.hyperspheres import DeepSADLoss, DeepSVDDLoss
from ood.losses.margins import EnergyMarginLoss
from ood.losses.mixing import OpenMixLoss, RotationLoss
from ood.losses.objective import Objective, check
from ood.losses.outliers import (
    BackgroundClassLoss,
    EnergyRegularizedLoss,
    EntropicOpenSetLoss,
    ObjectosphereLoss,
    OutlierExposureLoss,
)
from ood.losses.scores import OwnScore, own_score
from ood.losses.virtual import VirtualOutlierSynthesizingRegLoss, VOSRegLoss
from ood.training.batches import MixedBatches

__all__ = [
    "BackgroundClassLoss",
    "CACLoss",
    "CIDERLoss",
    "CenterLoss",
    "CenterRegularizationLoss",
    "ClassCenters",
    "ConfidenceLoss",
    "CrossEntropyLoss",
    "DeepSADLoss",
    "DeepSVDDLoss",
    "EnergyMarginLoss",
    "EnergyRegularizedLoss",
    "EntropicOpenSetLoss",
    "IILoss",
    "ISHLoss",
    "JoinedImages",
    "LogitNorm",
    "Loss",
    "MCHADLoss",
    "MixedBatches",
    "Objective",
    "ObjectosphereLoss",
    "OpenMixLoss",
    "OutlierExposureLoss",
    "OwnScore",
    "RotationLoss",
    "RunningCenters",
    "T2FNormLoss",
    "VOSRegLoss",
    "VirtualOutlierSynthesizingRegLoss",
    "check",
    "create",
    "cross_entropy",
    "get",
    "load_outliers",
    "logit_norm_loss",
    "names",
    "own_score",
    "register",
]
