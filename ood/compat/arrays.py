"""pytorch-ood's detectors on logits and on pooled features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ood import detectors
from ood.compat.base import (
    Detector,
    FeaturesDetector,
    LogitsDetector,
    direct,
    fraction,
    labels_of,
    shaped,
)
from ood.config import InputError
from ood.losses.base import also
from ood.outputs import Head, Outputs


# logits
class MaxSoftmax(LogitsDetector):
    fields = {"t": ("temperature", float)}

    @staticmethod
    def score(logits: Tensor, t: float = 1.0) -> Tensor:
        return direct("msp", logits, temperature=float(t))

    def __init__(self, model, t: float = 1.0):
        super().__init__(detectors.create("msp"), model)
        self.t = t


class EnergyBased(LogitsDetector):
    fields = {"t": ("temperature", float)}

    @staticmethod
    def score(logits: Tensor, t: float = 1.0) -> Tensor:
        return direct("energy", logits, temperature=float(t))

    def __init__(self, model, t: float = 1.0):
        super().__init__(detectors.create("energy"), model)
        self.t = t


class MaxLogit(LogitsDetector):
    @staticmethod
    def score(logits: Tensor) -> Tensor:
        return direct("maxlogit", logits)

    def __init__(self, model):
        super().__init__(detectors.create("maxlogit"), model)


class Entropy(LogitsDetector):
    @staticmethod
    def score(logits: Tensor) -> Tensor:
        return direct("entropy", logits)

    def __init__(self, model):
        super().__init__(detectors.create("entropy"), model)


class WeightedEBO(LogitsDetector):
    """Energy with a weight per class. The weights count as they are at the time of scoring."""

    @staticmethod
    def score(logits: Tensor, weights: Tensor) -> Tensor:
        return direct("webo", logits, weights=tuple(weights.flatten().tolist()))

    def __init__(self, model, weights: Tensor):
        super().__init__(detectors.create("webo", weights=(1.0,)), model)
        self.weights = weights

    def _score(self, z: Tensor) -> Tensor:
        self.formula.weights = tuple(self.weights.flatten().tolist())
        return super()._score(z)


class GEN(LogitsDetector):
    """Generalised entropy, summed over the M largest classes as in the paper.

    With M None it sums over all classes. pytorch-ood takes the mean over the classes, with
    probabilities of at least 1e-7.
    """

    hyperparameter_space = {
        "gamma": [0.01, 0.1, 0.5, 1, 2, 5, 10],
        "M": [10, 50, 100, 200, 500, 1000],
    }
    fields = {"gamma": ("gamma", float), "M": ("top", lambda m: int(m or 1 << 30))}

    @staticmethod
    def score(logits: Tensor, gamma: float = 0.1, M: int | None = None) -> Tensor:
        return direct("gen", logits, gamma=float(gamma), top=int(M or 1 << 30))

    def __init__(self, model, gamma: float = 0.1, M: int | None = None):
        super().__init__(detectors.create("gen"), model)
        self.gamma, self.M = gamma, M


class TemperatureScaling(MaxSoftmax):
    """Softmax at the temperature with the least cross-entropy; pytorch-ood's LBFGS stops early."""

    requires_fit = needs_labels = True

    def __init__(self, model):
        LogitsDetector.__init__(self, detectors.create("temp_scaling"), model)

    @property
    def t(self) -> Tensor:
        return torch.tensor(vars(self.formula).get("temperature", 1.0))


class KLMatching(LogitsDetector):
    requires_fit = True

    def __init__(self, model):
        super().__init__(detectors.create("klm"), model)


class OpenMax(LogitsDetector):
    """Fitted to correctly classified images, as in the paper; pytorch-ood takes all images."""

    requires_fit = needs_labels = True
    hyperparameter_space = {
        "tailsize": [10, 20, 30, 40, 50],
        "alpha": [1, 3, 5, 10, 15, 20],
        "euclid_weight": [0.0, 0.25, 0.5, 0.75, 1.0],
    }
    fields = {
        "tailsize": ("tail", int),
        "alpha": ("alpha", int),
        "euclid_weight": ("euclid_weight", float),
    }

    def __init__(self, model, tailsize: int = 25, alpha: int = 10, euclid_weight: float = 1.0):
        super().__init__(detectors.create("openmax"), model)
        self.tailsize, self.alpha, self.euclid_weight = tailsize, alpha, euclid_weight


# pooled features
class Mahalanobis(FeaturesDetector):
    requires_fit = needs_labels = True

    def __init__(self, encoder):
        super().__init__(detectors.create("mds"), encoder)

    @property
    def n_classes(self) -> int:
        return len(self.formula.means)


class RMD(Mahalanobis):
    def __init__(self, encoder):
        FeaturesDetector.__init__(self, detectors.create("rmds"), encoder)


class GMM(FeaturesDetector):
    requires_fit = needs_labels = True
    fields = {"reg": ("reg", float)}

    def __init__(self, encoder, reg: float = 1e-6):
        super().__init__(detectors.create("gmm"), encoder)
        self.reg = reg


class KNN(FeaturesDetector):
    """Distance to the k-th nearest training feature, by an exact search in tiles.

    scikit-learn's options for speed (algorithm, leaf_size, n_jobs) are accepted without effect.
    """

    requires_fit = True
    hyperparameter_space = {"k": [50, 100, 200, 500, 1000]}
    fields = {"k": ("k", int), "normalize": ("normalise", bool)}

    def __init__(self, encoder, k: int = 50, normalize: bool = True, **knn_kwargs):
        if set(knn_kwargs) - {"algorithm", "leaf_size", "n_jobs"}:
            raise InputError(
                f"KNN: options {sorted(knn_kwargs)} are not supported; distances are Euclidean"
            )
        super().__init__(detectors.create("knn"), encoder)
        self.k, self.normalize = k, normalize


class _InBatches(FeaturesDetector):
    """Accepts pytorch-ood's `batch_size` in calls on arrays, without effect.

    Memory is bounded without it.
    """

    @also(z="x", labels="y")
    def fit_features(
        self, x: Tensor, y: Tensor | None = None, batch_size: int | None = None
    ) -> Detector:
        return super().fit_features(x, y)

    @also(z="x")
    def predict_features(self, x: Tensor, batch_size: int | None = None) -> Tensor:
        return super().predict_features(x)


class NNGuide(_InBatches):
    requires_fit, fields = True, {"k": ("k", int)}

    def __init__(self, encoder, head, k: int = 10):
        super().__init__(detectors.create("nnguide"), encoder, head)
        self.k = k

    def fit(self, data_loader: Iterable, device=None) -> Detector:
        if device is not None:
            self.to(device)
        return super().fit(data_loader)


class fDBD(FeaturesDetector):  # noqa: N801  (pytorch-ood's name)
    requires_fit = True

    def __init__(self, encoder, head: nn.Linear):
        super().__init__(detectors.create("fdbd"), encoder, head)


class NCI(FeaturesDetector):
    requires_fit = True
    hyperparameter_space = {"alpha": [0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0]}
    fields = {"alpha": ("alpha", float)}

    def __init__(self, encoder, head: nn.Linear, alpha: float = 0.0):
        super().__init__(detectors.create("nci"), encoder, head)
        self.alpha = alpha


class PNML(FeaturesDetector):
    requires_fit, fields = True, {"eps": ("eps", float)}

    def __init__(self, encoder, head, eps: float = 1e-12):
        super().__init__(detectors.create("pnml"), encoder, head)
        self.eps = eps


class SHE(_InBatches):
    requires_fit = needs_labels = True

    def __init__(self, encoder, head):
        super().__init__(detectors.create("she"), encoder, head)


class DICE(FeaturesDetector):
    requires_fit = True
    hyperparameter_space = {"p": [0.1, 0.3, 0.5, 0.7, 0.9]}
    fields = {"p": ("percentile", lambda p: fraction("p", p))}

    def __init__(self, encoder, w: Tensor, b: Tensor, p: float, detector=None):
        head = Head(w.detach().float(), b.detach().float())
        super().__init__(shaped("dice", detector), encoder, head)
        self.p = p


class ViM(FeaturesDetector):
    """Virtual logit from the part of the features outside a subspace of d dimensions.

    A subspace of D dimensions leaves nothing outside. With d >= D, fit takes D // 2 instead.
    pytorch-ood does so for d > D only.
    """

    requires_fit = True
    hyperparameter_space, fields = {"d": [16, 32, 64, 128, 256, 512]}, {"d": ("dim", int)}

    def __init__(self, encoder, d: int, w: Tensor, b: Tensor):
        head = Head(w.detach().float(), b.detach().float())
        super().__init__(detectors.create("vim"), encoder, head)
        self.d = d

    def _fit(self, z: Tensor, labels: Tensor | None) -> Detector:
        if self.d >= z.shape[1]:
            self.d = z.shape[1] // 2
        return super()._fit(z, labels)


class LTS(FeaturesDetector):
    fields = {"p": ("share", lambda p: fraction("p", p) / 100)}

    @staticmethod
    def scaling_factor(z: Tensor, p: float) -> Tensor:
        """Factor S on the logits: features (N, D) -> (N,)."""
        if z.dim() != 2:
            raise ValueError(f"features must have shape (N, D), got {tuple(z.shape)}")
        ones = lambda features: torch.ones_like(features[:, :1])
        batch = Outputs(z, z.new_zeros(len(z), 0), labels_of(None, z), ones)
        return detectors.create("lts", share=fraction("p", p) / 100).logits(batch)[:, 0]

    def __init__(self, encoder, head, p: float = 0.05, detector=None):
        super().__init__(shaped("lts", detector), encoder, head)
        self.p = p


class MCM(FeaturesDetector):
    fields = {"temperature": ("temperature", float)}

    def __init__(self, encoder, text_embeddings: Tensor, temperature: float = 1.0):
        head = Head(text_embeddings, text_embeddings.new_zeros(len(text_embeddings)))
        super().__init__(detectors.create("mcm"), encoder, head)
        self.text_embeddings, self.temperature = text_embeddings, temperature
