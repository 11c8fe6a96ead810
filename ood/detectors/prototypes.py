"""Detectors that compare a feature with its predicted class.

They look at class means, class weights or decision boundaries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ood import statistics
from ood.config import ranged
from ood.detectors.base import Detector, create, register
from ood.outputs import Outputs


@register("she")
class SHE(Detector):
    """Simplified Hopfield energy: score = -<z, S_y>, y = argmax f.

    S_y is the mean feature of the training images correctly classified as y.

    Args:
        metric: 'inner' (the paper), 'cosine' (score -cos) or 'euclidean' (score |z - S_y|), as
            OpenOOD offers.

    Source: Zhang et al., ICLR 2023 (openreview KkazG4lgKL). A class without a correct prediction
    keeps the mean of its labelled images; pytorch-ood raises an error.
    """

    metric: Literal["inner", "cosine", "euclidean"] = "inner"
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> SHE:
        self.patterns = statistics.means_of_all(train, "features", "correct")  # (C, D)
        return self

    def score(self, batch: Outputs) -> Tensor:
        z, pattern = batch.features.double(), self.patterns[batch.logits.argmax(1)]
        if self.metric == "euclidean":
            return (z - pattern).norm(dim=1)
        if self.metric == "cosine":
            z, pattern = normalize(z, dim=1), normalize(pattern, dim=1)
        return -(z * pattern).sum(1)


@register("nci")
class NCI(Detector):
    """Neural collapse inspired: score = -<w_y, z - m> / |z - m| - alpha |z|_1.

    y = argmax f; m is the mean training feature.

    Args:
        alpha: weight of the feature norm, per unit of L1 norm; 0 leaves it out. 1e-4 is OpenOOD's
            default, which searches 1e-4 to 0.1.

    Source: Liu & Qin, CVPR 2025, arXiv 2311.01479.
    """

    alpha: float = ranged(1e-4, 0)
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> NCI:
        self.mean = statistics.mean(train)
        return self

    def score(self, batch: Outputs) -> Tensor:
        z = batch.features.double()
        centred, weight = z - self.mean, batch.head.weight.double()[batch.logits.argmax(1)]
        projection = (weight * centred).sum(1) / centred.norm(dim=1).clamp(min=1e-12)
        return -projection - self.alpha * z.abs().sum(1)


@register("fdbd")
class FDBD(Detector):
    """Mean distance to the decision boundaries, relative to the distance from the mean.

    score = -mean_{c != y} |f_y - f_c| / (|w_y - w_c| |z - m|), y = argmax f; m is the mean
    training feature.

    Args:
        normalise: what the distances are divided by. 'distance' is |z - m| (the paper), 'norm' is
            |z|. OpenOOD offers both.

    Source: Liu & Qin, ICML 2024, arXiv 2312.11536. |w_y - w_c| comes from one C x C matrix of
    distances, without C x C x D numbers.
    """

    normalise: Literal["distance", "norm"] = "distance"
    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> FDBD:
        self.mean = statistics.mean(train)
        weight = train.head.weight.double()
        gaps = statistics.squared_distances(weight, weight).sqrt()
        self.gaps = gaps.fill_diagonal_(1.0)  # (C, C) |w_y - w_c|
        return self

    def score(self, batch: Outputs) -> Tensor:
        logits, z = batch.logits.double(), batch.features.double()
        largest, y = logits.max(1)
        distances = (largest[:, None] - logits) / self.gaps[y].clamp(min=1e-12)
        distance = distances.sum(1) / max(logits.shape[1] - 1, 1)
        divided_by = z - self.mean if self.normalise == "distance" else z
        return -distance / divided_by.norm(dim=1).clamp(min=1e-8)


@register("ora")
class ORA(Detector):
    """Largest angle between feature and decision boundary: score = -max_c angle(z - m, z_c - m).

    z_c = z - (f_y - f_c) / |w_y - w_c|^2 (w_y - w_c) is the nearest point where class c is as
    likely as y = argmax f. m is the mean of the class means, from where the angles are seen.

    Source: Demirel et al., NeurIPS 2025, arXiv 2410.04525, and the authors' code, which divides
    the angles by pi, as we do. All angles follow from W (z - m) and |w_y - w_c|^2, so nothing of
    size N x C x D is made.
    """

    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> ORA:
        self.mean = statistics.class_means(train).mean(0)
        weight = train.head.weight.double()
        self.squared_gaps = statistics.squared_distances(weight, weight)  # (C, C)
        return self

    def score(self, batch: Outputs) -> Tensor:
        logits, x = batch.logits.double(), batch.features.double() - self.mean
        largest, y = logits.max(1)
        projected = x @ batch.head.weight.double().T  # (N, C) w_c . (z - m)
        along = projected.gather(1, y[:, None]) - projected  # (w_y - w_c) . (z - m)
        gap = self.squared_gaps[y]
        step = (largest[:, None] - logits) / gap.clamp(min=1e-12)
        square = x.square().sum(1, keepdim=True)
        inner = square - step * along
        length_c = square - 2 * step * along + step.square() * gap  # |z_c - m|^2
        length = (square * length_c).clamp(min=1e-300).sqrt()
        angle = torch.arccos((inner / length).clamp(-1, 1)) / torch.pi
        return -angle.scatter(1, y[:, None], 0.0).amax(1)


@register("caref")
class CARef(Detector):
    """Class-aware relative feature error: score = |z - m_y|_1 / |z|_1, y = argmax f.

    m_y is the mean feature of the training images predicted as y.

    Source: Ling et al., CVPR 2025, arXiv 2503.00325, and the authors' code.
    """

    needs = frozenset({"features", "logits"})

    def fit(self, train: Outputs) -> CARef:
        self.means = statistics.means_of_all(train, "features", "predicted")  # (C, D)
        return self

    def score(self, batch: Outputs) -> Tensor:
        z = batch.features.double()
        error = z - self.means[batch.logits.argmax(1)]
        return error.abs().sum(1) / z.abs().sum(1).clamp(min=1e-12)


@register("cadref")
class CADRef(CARef):
    """Decoupled class-aware error: score = e+ / S(f) + e- / mean S.

    e+ and e- are the parts of `caref` where (z - m_y) w_y is positive and negative. S is a logit
    score, larger = ID, and mean S its mean over the training set.

    Args:
        detector: the logit score. S is its negative for 'energy' (default of the authors' code),
            'maxlogit' and 'msp'. For 'gen', S = 1 / score with M = max(10, C // 10), as in their
            code.

    Source: Ling et al., CVPR 2025, arXiv 2503.00325, and the authors' code. The formula is the
    code's; the printed equation differs. It divides by S and so assumes S > 0. That always holds
    for 'msp' and 'gen'. For 'energy' and 'maxlogit' it fails where all logits are low, and there
    the score reverses. `fit` counts such training images (`not_positive`), and
    ood.evaluation.diagnosis warns.
    """

    detector: Literal["energy", "maxlogit", "msp", "gen"] = "energy"

    def fit(self, train: Outputs) -> CADRef:
        super().fit(train)
        confidences = [self.confidence(c) for c in statistics.known(train)]
        count = statistics.count(train)
        self.mean_confidence = sum(c.sum().item() for c in confidences) / count
        self.not_positive = sum((c <= 0).sum().item() for c in confidences) / count
        return self

    def confidence(self, batch: Outputs) -> Tensor:
        """S, larger = ID, (N,)."""
        if self.detector == "gen":
            gen = create("gen", top=max(10, batch.logits.shape[1] // 10))
            return 1 / gen.score(batch).double().clamp(min=1e-12)
        return -create(self.detector).score(batch).double()

    def score(self, batch: Outputs) -> Tensor:
        z, y = batch.features.double(), batch.logits.argmax(1)
        signed = (z - self.means[y]) * batch.head.weight.double()[y].sign()
        norm = z.abs().sum(1).clamp(min=1e-12)
        above, below = (part.clamp(min=0).sum(1) / norm for part in (signed, -signed))
        return above / self.confidence(batch) + below / self.mean_confidence
