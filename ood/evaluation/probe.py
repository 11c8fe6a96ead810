"""A linear head for a feature extractor, fitted on the ID training features.

    weight, bias = fit_head(train, num_classes)   # of `ood.outputs.extract`
    network = models.with_head(extractor, weight, bias)

The head is a multinomial logistic regression with a ridge penalty on standardised features, fitted
by L-BFGS to convergence. It is deterministic: it starts at zero and uses all images at once.

Source: linear evaluation of self-supervised features, as in Kornblith, Shlens & Le, "Do Better
    ImageNet Models Transfer Better?", CVPR 2019, arXiv 1805.08974, section 3 (L-BFGS).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ood import statistics
from ood.config import InputError
from ood.outputs import Outputs

PENALTY = 1e-3  # of the mean squared weight of standardised features, beside the mean loss
STEPS = 200  # of L-BFGS at most


def fit_head(
    train: Outputs, num_classes: int | None = None, penalty: float = PENALTY
) -> tuple[Tensor, Tensor]:
    """Fit logits = features @ weight.T + bias to the labels.

    Args:
        train: features (N, D) and labels (N,); images with negative labels are left out.
        num_classes: C; None: as many as the labels name.
        penalty: of the ridge, >= 0.

    Returns: weight (C, D) and bias (C,), float32.

    Raises: InputError for features without labels, or labels above C.
    """
    known = train.labels >= 0
    if not known.any():
        raise InputError("a linear head needs labelled ID training images; there are none")
    features, labels = train.features[known].float(), train.labels[known]
    classes = num_classes or int(labels.max()) + 1
    if int(labels.max()) >= classes:
        raise InputError(
            f"the labels go up to {int(labels.max())}, but there are {classes} classes"
        )
    if not statistics.all_finite(features):
        raise InputError("the training features are not finite; a linear head cannot be fitted")
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    x = (features - mean) / scale
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels)
        value = value + penalty * weight.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    weight, bias = weight.detach() / scale, bias.detach()
    return weight, bias - weight @ mean
