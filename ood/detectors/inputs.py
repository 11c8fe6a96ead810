"""Detectors that perturb the image along a gradient: they run inside the pass over a data set."""
from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ood.detectors.base import ImageDetector, register
from ood.outputs import Pass


@register("odin")
class ODIN(ImageDetector):
    """Temperature and input perturbation: x' = x - eps * sign(grad CE(z / T, argmax z)), score = -max softmax(z(x') / T).

    Args:
        temperature: T, 1000 in the paper.
        magnitude: eps, in pixel units of [0, 1]; 0.0014 is the paper's value for CIFAR-10, 0.002 for CIFAR-100.
        unit: 'pixel' divides the step by the normalisation's std, so that eps is a step in raw pixels (the authors' code);
            'normalised' adds it to the normalised image as it is (the copy in the DICE authors' repository).

    Source: Liang, Li & Srikant, ICLR 2018, arXiv 1706.02690, and the authors' code: a zero gradient counts as +1, the
    perturbed image is not clipped, softmax in float64 because scores lie close together at T = 1000.
    """
    temperature: float = 1000.0
    magnitude: float = 0.0014
    unit: Literal["pixel", "normalised"] = "pixel"

    def score_images(self, batch: Pass) -> Tensor:
        logits = batch.logits
        if self.magnitude:
            loss = cross_entropy(logits / self.temperature, logits.detach().argmax(1), reduction="sum")
            std = batch.std if self.unit == "pixel" else (1.0,) * len(batch.std)
            with torch.no_grad():
                logits = batch.network(perturb(batch.images, loss, self.magnitude, std))
        return -(logits.double() / self.temperature).softmax(1).amax(1)


def perturb(images: Tensor, loss: Tensor, magnitude: float, std: tuple[float, ...]) -> Tensor:
    """images - magnitude * sign(d loss / d images) / std per channel, a zero gradient counting as +1; detached, the graph is kept."""
    gradient, = torch.autograd.grad(loss, images, retain_graph=True)
    step = magnitude / torch.tensor(std, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    return (images - step * torch.where(gradient >= 0, 1.0, -1.0)).detach()
