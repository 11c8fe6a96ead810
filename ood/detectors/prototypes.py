"""Detectors that compare a feature with the class it is predicted as: class means, class weights, decision boundaries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ood import statistics
from ood.detectors.base import Detector, create, register
from ood.outputs import Outputs


@register("she")
class SHE(Detector):
    """Simplified Hopfield energy: score = -<z, S_y>, S_y the mean feature of training images correctly classified as y = argmax f.

    Args:
        metric: 'inner' (the paper), 'cosine' or 'euclidean' (-distance), as OpenOOD offers.

    Source: Zhang et al., ICLR 2023 (openreview KkazG4lgKL). A class without a correct prediction keeps the mean of its
    labelled images (pytorch-ood stops there).
    """

    metric: Literal["inner", "cosine", "euclidean"] = "inner"
    needs = frozenset({"features", "logits"})
    requires_fit = True

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
    """Neural collapse inspired: score = -<w_y, z - m> / |z - m| - alpha |z|_1, y = argmax f, m the mean training feature.

    Args:
        alpha: weight of the feature norm, per unit of L1 norm; 1e-4 is OpenOOD's default, 1e-4 to 0.1 its search; 0 leaves it out.

    Source: Liu & Qin, CVPR 2025, arXiv 2311.01479.
    """

    alpha: float = 1e-4
    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> NCI:
        self.mean = statistics.mean(train)
        return self

    def score(self, batch: Outputs) -> Tensor:
        z = batch.features.double()
        centred = z - self.mean
        projection = (batch.head.weight.double()[batch.logits.argmax(1)] * centred).sum(
            1
        ) / centred.norm(dim=1).clamp(min=1e-12)
        return -projection - self.alpha * z.abs().sum(1)


@register("fdbd")
class FDBD(Detector):
    """Mean distance to the decision boundaries: score = -mean_{c != y} |f_y - f_c| / (|w_y - w_c| |z - m|), y = argmax f.

    Args:
        normalise: what the distances are divided by: 'distance', |z - m| to the mean training feature (the paper), or 'norm', |z|
            (OpenOOD offers both).

    Source: Liu & Qin, ICML 2024, arXiv 2312.11536. |w_y - w_c| comes from one C x C matrix of distances, not C x C x D.
    """

    normalise: Literal["distance", "norm"] = "distance"
    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> FDBD:
        self.mean = statistics.mean(train)
        weight = train.head.weight.double()
        self.gaps = (
            statistics.squared_distances(weight, weight).sqrt().fill_diagonal_(1.0)
        )  # (C, C) |w_y - w_c|
        return self

    def score(self, batch: Outputs) -> Tensor:
        logits, z = batch.logits.double(), batch.features.double()
        largest, y = logits.max(1)
        distance = ((largest[:, None] - logits) / self.gaps[y].clamp(min=1e-12)).sum(1) / max(
            logits.shape[1] - 1, 1
        )
        return -distance / (z - self.mean if self.normalise == "distance" else z).norm(dim=1).clamp(
            min=1e-8
        )


@register("ora")
class ORA(Detector):
    """Largest angle, seen from the mean, between a feature and its projection on a decision boundary: score = -max_c angle(z - m, z_c - m).

    z_c = z - (f_y - f_c) / |w_y - w_c|^2 (w_y - w_c) is the nearest point where class c is as likely as y = argmax f.

    Source: Demirel et al., NeurIPS 2025, arXiv 2410.04525, and the authors' code: m is the mean of the class means, angles are
    divided by pi. All angles follow from W (z - m) and |w_y - w_c|^2, so that nothing of size N x C x D is made.
    """

    needs = frozenset({"features", "logits"})
    requires_fit = True

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
        length = (
            (square * (square - 2 * step * along + step.square() * gap)).clamp(min=1e-300).sqrt()
        )
        angle = torch.arccos((inner / length).clamp(-1, 1)) / torch.pi
        return -angle.scatter(1, y[:, None], 0.0).amax(1)


@register("caref")
class CARef(Detector):
    """Class-aware relative feature error: score = |z - m_y|_1 / |z|_1, m_y the mean feature of training images predicted as y.

    Source: Ling et al., CVPR 2025, arXiv 2503.00325, and the authors' code.
    """

    needs = frozenset({"features", "logits"})
    requires_fit = True

    def fit(self, train: Outputs) -> CARef:
        self.means = statistics.means_of_all(train, "features", "predicted")  # (C, D)
        return self

    def score(self, batch: Outputs) -> Tensor:
        z = batch.features.double()
        return (z - self.means[batch.logits.argmax(1)]).abs().sum(1) / z.abs().sum(1).clamp(
            min=1e-12
        )


@register("cadref")
class CADRef(CARef):
    """Decoupled class-aware error: score = e+ / S(f) + e- / mean S, e+- the parts of `caref` where (z - m_y) w_y is positive, negative.

    Args:
        detector: the logit score whose negative is S (larger = ID): 'energy' (default of the authors' code), 'maxlogit', 'msp',
            or 'gen', there S = 1 / score with M = max(10, C // 10), as theirs.

    Source: Ling et al., CVPR 2025, arXiv 2503.00325, and the authors' code, whose formula this is (the printed equation differs).
    It divides by S and so takes S > 0 for granted, which 'msp' and 'gen' always are; 'energy' and 'maxlogit' are not where all
    logits are low, and there the score reverses. `fit` counts such training images (`not_positive`), ood.evaluation.diagnosis warns.
    """

    detector: Literal["energy", "maxlogit", "msp", "gen"] = "energy"

    def fit(self, train: Outputs) -> CADRef:
        super().fit(train)
        confidences = [self.confidence(c) for c in statistics.known(train)]
        self.mean_confidence = sum(c.sum().item() for c in confidences) / statistics.count(train)
        self.not_positive = sum((c <= 0).sum().item() for c in confidences) / statistics.count(
            train
        )
        return self

    def confidence(self, batch: Outputs) -> Tensor:
        """S, larger = ID, (N,)."""
        if self.detector == "gen":
            return 1 / create("gen", top=max(10, batch.logits.shape[1] // 10)).score(
                batch
            ).double().clamp(min=1e-12)
        return -create(self.detector).score(batch).double()

    def score(self, batch: Outputs) -> Tensor:
        z, y = batch.features.double(), batch.logits.argmax(1)
        signed = (z - self.means[y]) * batch.head.weight.double()[y].sign()
        norm = z.abs().sum(1).clamp(min=1e-12)
        return (
            signed.clamp(min=0).sum(1) / norm / self.confidence(batch)
            + (-signed).clamp(min=0).sum(1) / norm / self.mean_confidence
        )
