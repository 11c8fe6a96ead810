"""Objective functions: names, arguments, defaults and labels (below 0: outliers) as in pytorch-ood.

    from ood.losses import EnergyRegularizedLoss  # was: from pytorch_ood.loss import ...

    loss = EnergyRegularizedLoss(alpha=0.1)(logits, y)
    loss = create("energy_bounded", alpha=0.1)(logits, y)  # the same by name

Only the import changes. The numbers are those of pytorch-ood 0.4.0, except where its formula is not
the paper's. These losses differ on purpose:

    OutlierExposureLoss       Ours is a mean over the ID rows and a mean over the outliers.
                              pytorch-ood takes one mean over all rows: balance="batch".
    CACLoss                   Ours takes plain distances, pytorch-ood squared ones: squared=True.
                              pytorch-ood also sums over the classes 0..C-2 instead of all but y.
                              That has no switch here: the losses agree for rows with y = C-1.
    MCHADLoss                 No switch. Ours does not divide the first term by C, compares with
                              r^2, and squares once in the third term. With radius and margin at 0,
                              weight_center=1/C gives pytorch-ood's number.
    CenterRegularizationLoss  No switch. pytorch-ood's number is ours for distances.square().
    RunningCenters            No switch. The two agree where every class is in every batch.
                              The same holds for IILoss, which contains it.

A batch without ID rows, without outliers or with one class gives a finite loss here. pytorch-ood
refuses such a batch in EnergyMarginLoss and gives 1e24 in IILoss.

`Objective("outlier_exposure", network)` applies a loss to a network, as
`classifier_pretraining.py -loss outlier_exposure` does.
"""

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
    "LogitNorm",
    "Loss",
    "MCHADLoss",
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
    "logit_norm_loss",
    "names",
    "own_score",
    "register",
]
