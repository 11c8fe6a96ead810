"""pytorch-ood's detectors of logits and of pooled features."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ood import detectors
from ood.compat.base import FeaturesDetector, LogitsDetector, fraction, shaped, stateless
from ood.config import InputError
from ood.outputs import Head


# logits
class MaxSoftmax(LogitsDetector):
    score, fields = stateless("msp", {"t": "temperature"}), {"t": ("temperature", float)}

    def __init__(self, model, t: float = 1.0):
        super().__init__(detectors.create("msp", temperature=float(t)), model)
        self.t = t


class EnergyBased(LogitsDetector):
    score, fields = stateless("energy", {"t": "temperature"}), {"t": ("temperature", float)}

    def __init__(self, model, t: float = 1.0):
        super().__init__(detectors.create("energy", temperature=float(t)), model)
        self.t = t


class MaxLogit(LogitsDetector):
    score = stateless("maxlogit")

    def __init__(self, model):
        super().__init__(detectors.create("maxlogit"), model)


class Entropy(LogitsDetector):
    score = stateless("entropy")

    def __init__(self, model):
        super().__init__(detectors.create("entropy"), model)


class WeightedEBO(LogitsDetector):
    @staticmethod
    def score(logits: Tensor, weights: Tensor) -> Tensor:
        return WeightedEBO(None, weights).predict_logits(logits)

    def __init__(self, model, weights: Tensor):
        super().__init__(detectors.create("webo", weights=[float(w) for w in weights.flatten()]), model)
        self.weights = weights


class GEN(LogitsDetector):
    space = {"gamma": [0.01, 0.1, 0.5, 1, 2, 5, 10], "M": [10, 50, 100, 200, 500, 1000]}
    fields = {"gamma": ("gamma", float), "M": ("top", lambda m: int(m or 1 << 30))}
    score = stateless("gen", {"gamma": "gamma", "M": "top"})

    def __init__(self, model, gamma: float = 0.1, M: int | None = None):
        super().__init__(detectors.create("gen"), model)
        self.gamma, self.M = gamma, M


class TemperatureScaling(LogitsDetector):
    def __init__(self, model):
        super().__init__(detectors.create("temp_scaling"), model)

    @property
    def t(self) -> Tensor:
        return torch.tensor(self.formula.temperature)


class KLMatching(LogitsDetector):
    def __init__(self, model):
        super().__init__(detectors.create("klm"), model)


class OpenMax(LogitsDetector):
    space = {"tailsize": [10, 20, 30, 40, 50], "alpha": [1, 3, 5, 10, 15, 20], "euclid_weight": [0.0, 0.25, 0.5, 0.75, 1.0]}
    fields = {"tailsize": ("tail", int), "alpha": ("alpha", int), "euclid_weight": ("euclid_weight", float)}

    def __init__(self, model, tailsize: int = 25, alpha: int = 10, euclid_weight: float = 1.0):
        super().__init__(detectors.create("openmax"), model)
        self.tailsize, self.alpha, self.euclid_weight = tailsize, alpha, euclid_weight


# pooled features
class Mahalanobis(FeaturesDetector):
    def __init__(self, encoder):
        super().__init__(detectors.create("mds"), encoder)


class RMD(FeaturesDetector):
    def __init__(self, encoder):
        super().__init__(detectors.create("rmds"), encoder)


class GMM(FeaturesDetector):
    fields = {"reg": ("reg", float)}

    def __init__(self, encoder, reg: float = 1e-6):
        super().__init__(detectors.create("gmm"), encoder)
        self.reg = reg


class KNN(FeaturesDetector):
    """Exact search in tiles; scikit-learn's speed options (algorithm, leaf_size, n_jobs) are accepted and have nothing to do."""
    space, fields = {"k": [50, 100, 200, 500, 1000]}, {"k": ("k", int), "normalize": ("normalise", bool)}

    def __init__(self, encoder, k: int = 50, normalize: bool = True, **knn_kwargs):
        if set(knn_kwargs) - {"algorithm", "leaf_size", "n_jobs"}:
            raise InputError(f"KNN: options {sorted(knn_kwargs)} are not supported; distances are Euclidean")
        super().__init__(detectors.create("knn"), encoder)
        self.k, self.normalize = k, normalize


class NNGuide(FeaturesDetector):
    fields = {"k": ("k", int)}

    def __init__(self, encoder, head, k: int = 10):
        super().__init__(detectors.create("nnguide"), encoder, head)
        self.k = k


class fDBD(FeaturesDetector):  # noqa: N801  (pytorch-ood's name)
    def __init__(self, encoder, head: nn.Linear):
        super().__init__(detectors.create("fdbd"), encoder, head)


class NCI(FeaturesDetector):
    space, fields = {"alpha": [0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0]}, {"alpha": ("alpha", float)}

    def __init__(self, encoder, head: nn.Linear, alpha: float = 0.0):
        super().__init__(detectors.create("nci"), encoder, head)
        self.alpha = alpha


class PNML(FeaturesDetector):
    fields = {"eps": ("eps", float)}

    def __init__(self, encoder, head, eps: float = 1e-12):
        super().__init__(detectors.create("pnml"), encoder, head)
        self.eps = eps


class SHE(FeaturesDetector):
    def __init__(self, encoder, head):
        super().__init__(detectors.create("she"), encoder, head)


class DICE(FeaturesDetector):
    space, fields = {"p": [0.1, 0.3, 0.5, 0.7, 0.9]}, {"p": ("percentile", lambda p: fraction("p", p))}

    def __init__(self, encoder, w: Tensor, b: Tensor, p: float, detector=None):
        super().__init__(shaped("dice", detector), encoder, Head(w.detach().float(), b.detach().float()))
        self.p = p


class ViM(FeaturesDetector):
    space, fields = {"d": [16, 32, 64, 128, 256, 512]}, {"d": ("dim", int)}

    def __init__(self, encoder, d: int, w: Tensor, b: Tensor):
        super().__init__(detectors.create("vim"), encoder, Head(w.detach().float(), b.detach().float()))
        self.d = d if d < w.shape[1] else w.shape[1] // 2


class LTS(FeaturesDetector):
    fields = {"p": ("share", lambda p: fraction("p", p) / 100)}

    def __init__(self, encoder, head, p: float = 0.05, detector=None):
        super().__init__(shaped("lts", detector), encoder, head)
        self.p = p


class MCM(FeaturesDetector):
    fields = {"temperature": ("temperature", float)}

    def __init__(self, encoder, text_embeddings: Tensor, temperature: float = 1.0):
        super().__init__(detectors.create("mcm"), encoder, Head(text_embeddings, text_embeddings.new_zeros(len(text_embeddings))))
        self.text_embeddings, self.temperature = text_embeddings, temperature
