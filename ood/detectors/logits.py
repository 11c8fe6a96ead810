"""Detectors that look at the logits alone."""
from __future__ import annotations

from torch import Tensor

from ood.detectors.base import Detector, register
from ood.outputs import Outputs


@register("msp")
class MaxSoftmax(Detector):
    """Maximum softmax probability: score = -max_c softmax(z / T)_c.

    Args:
        temperature: T > 0; 1 in the paper.

    Source: Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136.
    """
    temperature: float = 1.0

    def score(self, batch: Outputs) -> Tensor:
        return -(batch.logits.double() / self.temperature).softmax(1).amax(1)


@register("maxlogit")
class MaxLogit(Detector):
    """Largest logit: score = -max_c z_c.

    Source: Hendrycks et al., ICML 2022, arXiv 1911.11132.
    """

    def score(self, batch: Outputs) -> Tensor:
        return -batch.logits.amax(1)


@register("energy")
class Energy(Detector):
    """Free energy: score = -T * logsumexp_c(z_c / T).

    Args:
        temperature: T > 0; 1 in the paper.

    Source: Liu et al., NeurIPS 2020, arXiv 2010.03759, eq. 4.
    """
    temperature: float = 1.0

    def score(self, batch: Outputs) -> Tensor:
        return energy(batch.logits, self.temperature)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T logsumexp(z / T), (N,): larger = OOD."""
    return -temperature * (logits / temperature).logsumexp(1)
