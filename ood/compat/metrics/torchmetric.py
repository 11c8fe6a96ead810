"""A metric of ours as one of torchmetrics, for its collections and for Lightning's `self.log`.

    ood = TorchMetric(OODMetrics())
    ood.update(scores, labels)
    ood.compute()  # {name: tensor}

    torchmetrics.MetricCollection({"ood": ood, "acc": MulticlassAccuracy(10)})
    self.log("val/auroc", self.auroc)  # in a LightningModule, for self.auroc = TorchMetric(AUROC())
    self.log_dict(self.ood.compute())  # for a metric of several names, at the end of the epoch

What torchmetrics does with its own metrics works: forward, reset, to(device), clone, a state in
checkpoints (persistent), and processes that put their states together before they compute. A
Lightning loop needs none of this on one process: OODMetrics itself has update, compute and reset.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor

from ood.compat.metrics.base import Metric
from ood.config import InputError

try:
    import torchmetrics
    from torchmetrics.utilities import dim_zero_cat
except ImportError:
    raise ImportError(
        "TorchMetric needs the package torchmetrics: pip install torchmetrics"
    ) from None

__all__ = ["TorchMetric"]


class TorchMetric(torchmetrics.Metric):
    """Keeps the inputs of a metric as states of torchmetrics, and computes from all of them.

    compute gives {name: tensor}, or a tensor for a metric of one name. So does forward, for its
    batch alone; it is NaN for a batch where the metric has no value, such as one without outliers.

    Args:
        metric: a metric of `ood.compat.metrics`. Its `device` has no effect: the states are on the
            device of this module. PerImage needs images of one size.
        options: those of torchmetrics.Metric, such as dist_sync_on_step.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, metric: Metric, **options):
        super().__init__(**options)
        self.metric, self._forwarding = metric, False
        for name in metric.inputs:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._update_signature = inspect.signature(metric.update)

    def update(self, *args: Tensor, **kwargs: Tensor) -> None:
        """Take what the metric's update takes. Raises: TypeError and InputError as it does."""
        for name, value in self.metric._match(*args, **kwargs).items():
            getattr(self, name).append(value.to(self.device))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor] | Tensor:
        """Add a batch, and compute from it alone."""
        self._forwarding = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._forwarding = False

    def compute(self) -> dict[str, Tensor] | Tensor:
        try:
            found = self._values()
        except InputError:
            if not self._forwarding:
                raise
            found = dict.fromkeys(self.metric.keys, math.nan)
        found = {name: torch.tensor(value, device=self.device) for name, value in found.items()}
        return found if len(self.metric.keys) > 1 else found[self.metric.keys[0]]

    def _values(self) -> dict[str, float]:
        states = {name: getattr(self, name) for name in self.metric.inputs}
        inputs = {name: dim_zero_cat(state) for name, state in states.items() if len(state)}
        self.metric.reset()
        try:
            return self.metric.update(**inputs).compute() if inputs else self.metric.compute()
        finally:
            self.metric.reset()  # the states are here, once
