"""Losses that see ID images only.

The first is the plain cross-entropy. The others change what the softmax or the head is given, or
let the network predict a confidence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import Range
from ood.detectors.shaping import largest
from ood.losses.base import (
    ABOVE_0,
    AT_LEAST_0,
    FRACTION,
    REDUCTIONS,
    TEMPERATURE,
    Loss,
    also,
    check_range,
    cross_entropy,
    reduced,
    register,
    unit,
)


@register("cross_entropy")
class CrossEntropyLoss(Loss):
    """Cross-entropy -log softmax_y(f(x)) over the rows with y >= 0.

    forward(logits (B, C), y (B,)), or (B, C, H, W) and (B, H, W). Differs from pytorch-ood's: it
    does not warn about outliers.

    Args:
        reduction: "mean" over the ID rows (0 without any), "sum", or "none": one value per row, 0
            for outliers.
    """

    def __init__(self, reduction: str | None = "mean"):
        super().__init__()
        self.reduction = reduction

    @also(targets="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y, self.reduction)


@also(target="y")
def logit_norm_loss(
    logits: Tensor, y: Tensor, t: float = 1.0, reduction: str | None = "mean"
) -> Tensor:
    """Cross-entropy of f / (t (|f| + 1e-7)) over the rows with y >= 0; see LogitNorm."""
    check_range("logit_norm_loss: t", t, TEMPERATURE)
    check_range("logit_norm_loss: reduction", reduction, REDUCTIONS)
    known = y >= 0
    return cross_entropy(unit(logits[known], 1e-7) / t, y[known], reduction)


@register("logitnorm")
class LogitNorm(Loss):
    """Cross-entropy of normalised logits, which longer logits cannot lower.

        L = -log softmax_y( f / (t |f|) )

    Args:
        t: temperature tau. The default 1 is pytorch-ood's. With it the loss cannot fall below
            log(1 + (C - 1) / e^(C / (C - 1))). The paper's value for CIFAR-10 is 0.04, and -loss
            takes that.
        reduction: as in CrossEntropyLoss.
    Source: Wei et al., "Mitigating Neural Network Overconfidence with Logit Normalization",
        ICML 2022, arXiv 2205.09310, eq. 7. The length is |f| + 1e-7 as in the authors' code.
        Differs from pytorch-ood's: logits beyond 1e19 do not overflow.
    """

    recipe = {"t": 0.04}
    ranges = {"t": TEMPERATURE}

    def __init__(self, t: float = 1.0, reduction: str | None = "mean"):
        super().__init__()
        self.t, self.reduction = t, reduction

    @also(target="y")
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return logit_norm_loss(logits, y, self.t, self.reduction)


@register("t2fnorm")
class T2FNormLoss(Loss):
    """Cross-entropy over features that are normalised in training only.

        training: f = W h / (t |h|) + b        test: f = W h / t + b

    At test time the length of the features tells ID from OOD. The head (W, b) is kept in the loss.
    `classifier` gives (W / t, b), which the network's own head becomes.

    Args:
        n_classes: C, the number of classes.
        n_dim: D, the length of the features.
        t: temperature tau, 0.1 as in the paper and in OpenOOD.
    Source: Regmi et al., "T2FNorm: Train-time Feature Normalization for OOD Detection in Image
        Classification", CVPR Workshops 2024, arXiv 2305.17797.
    """

    inputs = ("features",)
    brings = ("head",)
    head = "computed"
    ranges = {"t": TEMPERATURE}

    def __init__(self, n_classes: int, n_dim: int, t: float = 0.1):
        super().__init__()
        self.t, self.fc = t, nn.Linear(n_dim, n_classes)

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.fc(unit(features) / self.t), y)

    def classifier(self) -> tuple[Tensor, Tensor]:
        return self.fc.weight / self.t, self.fc.bias


@register("ish")
class ISHLoss(Loss):
    """Cross-entropy that weighs images in the gradient of the head's weights.

        f = W h + b,   dL/dW = (dL/df)^T (h e^r),
        r = sum_j h_j / sum_{j in top (1 - percentile)} h_j

    The weight e^r is large where the largest entries hold little of the feature's sum. The value,
    and the gradient on h and b, are the same as for the cross-entropy.

    Args:
        fc: the network's head, (D -> C).
        percentile: share of the entries that the denominator leaves out, 0-100. The paper's value
            is 85. Of n entries, n - round(n percentile / 100) remain, as in detector scale.
        prune: also set the left-out entries of h e^r to 0. The authors' code calls this
            "minksample_expscale", and the default "expscale".
    Source: Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection
        Enhancement" (SCALE and ISH), ICLR 2024, arXiv 2310.00227. Not in pytorch-ood. The authors'
        optimiser gives the head its own weight decay; ours has one for all parameters.
    """

    inputs = ("features",)
    ranges = {"percentile": Range(0, below=100)}

    def __init__(self, fc: nn.Linear, percentile: float = 85.0, prune: bool = False):
        super().__init__()
        self.fc, self.percentile, self.prune = fc, percentile, prune

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        plain = F.linear(features, self.fc.weight.detach(), self.fc.bias)
        steered = F.linear(self.shaped(features.detach()), self.fc.weight)
        return cross_entropy(plain + (steered - steered.detach()), y)

    def shaped(self, h: Tensor) -> Tensor:
        """Compute h e^r: (B, D) -> (B, D)."""
        top, where = largest(h.abs(), self.percentile)
        total, kept = h.sum(1, keepdim=True), top.sum(1, keepdim=True)
        ratio = torch.where(kept > 0, total / kept.clamp_min(1e-12), 1.0)
        base = torch.zeros_like(h).scatter(1, where, top) if self.prune else h
        return base * ratio.clamp(max=50).exp()


@register("confidence")
class ConfidenceLoss(Loss):
    """Learn a confidence c beside the classes, by giving hints at a price.

        p' = c p + (1 - c) onehot(y),    L = mean -log p'_y + alpha * mean -log c

    Where c is low, the true label is mixed into the prediction. The score is 1 - c.

    forward(logits (B, C), confidence (B, 1) in [0, 1], y). Outliers are left out.

    Args:
        alpha: lambda, the price. The default 1 is pytorch-ood's. The paper and -loss start from 0.1
            and adapt it.
        eps: probabilities are clipped to [eps, 1].
        hints: share of the images whose label is mixed in, drawn anew for each batch. The default 1
            is pytorch-ood's. The paper's text and -loss take one half.
        budget: beta. After a training batch with mean -log c > beta, alpha is divided by 0.99, else
            by 1.01. The paper and -loss take 0.3. With None, alpha stays.
    Source: DeVries and Taylor, "Learning Confidence for Out-of-Distribution Detection in Neural
        Networks", arXiv 1802.04865, eq. 2-5. The factors are from the authors' code. Detector odin
        does the perturbation of test images.
    """

    inputs = ("logits", "confidence")
    brings = ("confidence head",)
    recipe = {"alpha": 0.1, "hints": 0.5, "budget": 0.3}
    ranges = {
        "alpha": AT_LEAST_0,
        "eps": Range(above=0, below=1),
        "hints": FRACTION,
        "budget": ABOVE_0,
    }

    def __init__(
        self,
        alpha: float = 1.0,
        eps: float = 1e-24,
        hints: float = 1.0,
        budget: float | None = None,
    ):
        super().__init__()
        self.eps, self.hints, self.budget = eps, hints, budget
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    @also(target="y")
    def forward(self, logits: Tensor, confidence: Tensor, y: Tensor) -> Tensor:
        known = y >= 0
        logits, y, c = logits[known], y[known], confidence[known].reshape(-1)
        hinted = c if self.hints == 1 else torch.where(torch.rand_like(c) < self.hints, c, 1.0)
        p = logits.softmax(1).gather(1, y[:, None])[:, 0]
        nll = reduced(-(hinted * p + (1 - hinted)).clamp(self.eps, 1).log(), "mean")
        price = reduced(-c.clamp(self.eps, 1).log(), "mean")
        # alpha is copied because the buffer changes before the backward pass
        loss = nll + self.alpha.clone() * price
        if self.training and self.budget is not None:
            self.alpha.div_(torch.where(price.detach() > self.budget, 0.99, 1.01).to(self.alpha))
        return loss
