"""pytorch-ood's metrics, over `ood.metrics`.

    metrics = OODMetrics()
    metrics.update(scores, labels)  # batch by batch
    metrics.compute()  # {name: fraction}

OOD has labels below 0 and is the positive class. AUPR is average precision, as everywhere here;
pytorch-ood joins the points of its curve by straight lines. The papers' FPR95, the share of OOD
accepted with 95 % of ID, is `ood.metrics.evaluate(...).fpr95`. For collections of torchmetrics and
Lightning's `self.log`, see `ood.compat.metrics.torchmetric`.
"""

from ood.compat.metrics import functional
from ood.compat.metrics.base import BufferedMetric, Metric, MetricCollection, StreamingMetric
from ood.compat.metrics.functional import aurra, calc_openness, calibration_error, oscr_score
from ood.compat.metrics.ood import AUPR, AUROC, AUTC, Accuracy, FPRAtTPR, OODMetrics
from ood.compat.metrics.segmentation import (
    OODPerImageSegmentationMetrics,
    OODSegmentationMetrics,
    PerImage,
)

__all__ = [
    "AUPR",
    "AUROC",
    "AUTC",
    "Accuracy",
    "BufferedMetric",
    "FPRAtTPR",
    "Metric",
    "MetricCollection",
    "OODMetrics",
    "OODPerImageSegmentationMetrics",
    "OODSegmentationMetrics",
    "PerImage",
    "StreamingMetric",
    "aurra",
    "calc_openness",
    "calibration_error",
    "functional",
    "oscr_score",
]
