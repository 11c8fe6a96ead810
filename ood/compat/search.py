"""pytorch-ood's grid search over a detector's hyper-parameters; `ood.evaluation.tuning` does it on cached outputs, also without OOD data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ood.compat.base import Detector, FeaturesDetector, LogitsDetector
from ood.compat.metrics import OODMetrics
from ood.config import InputError


class GridSearch:
    """Every combination of `hyperparameter_space`, judged on a validation loader of ID and OOD images; the detector is left fitted with the best.

    The network runs once where the detector works on features or logits. Afterwards: best_params_, best_score_, results_.
    """

    def __init__(
        self,
        detector: Detector,
        fit_loader: Iterable | None,
        val_loader: Iterable,
        hyperparameter_space: dict[str, list] | None = None,
        metric=None,
        metric_name: str = "AUROC",
        higher_is_better: bool = True,
        device: str = "cpu",
    ):
        self.detector, self.fit_loader, self.val_loader, self.device = (
            detector,
            fit_loader,
            val_loader,
            device,
        )
        self.space = hyperparameter_space or detector.hyperparameter_space
        if not self.space or not all(self.space.values()):
            raise InputError(
                f"GridSearch: {type(detector).__name__} has nothing to search, or an empty list of values: {self.space}; give hyperparameter_space"
            )
        self.metric, self.metric_name, self.higher_is_better = (
            metric or OODMetrics(),
            metric_name,
            higher_is_better,
        )
        self.best_params_, self.best_score_, self.results_ = None, None, []

    def run(self) -> dict:
        self.detector.to(self.device)
        self.detector.hyperparameter_space = self.space
        if self.detector.requires_fit and self.fit_loader is None:
            raise InputError("GridSearch: this detector is fitted, give fit_loader")
        train = self._representations(self.fit_loader) if self.detector.requires_fit else []
        validation = self._representations(self.val_loader)
        for values in itertools.product(*self.space.values()):
            chosen = dict(zip(self.space, values))
            score = self._score(chosen, train, validation)
            self.results_.append({"params": chosen, "score": score})
            gain = score if self.higher_is_better else -score
            if math.isfinite(score) and (
                self.best_score_ is None
                or gain > (self.best_score_ if self.higher_is_better else -self.best_score_)
            ):
                self.best_params_, self.best_score_ = chosen, score
        if self.best_params_ is None:
            raise InputError("GridSearch: no combination gave a finite score")
        self._fit(self.best_params_, train)
        return self.best_params_

    def _representations(self, loader: Iterable) -> list[tuple[Tensor, Tensor]] | Iterable:
        """[(features or logits, labels)] of all batches; the loader itself for other detectors."""
        self.cached = (
            isinstance(self.detector, (FeaturesDetector, LogitsDetector))
            and self.detector.source is not None
        )
        if not self.cached:
            return loader
        with torch.no_grad():
            return [(self.detector._represent(x), y) for x, y in loader]

    def _fit(self, chosen: dict, train) -> None:
        self.detector.set_hyperparameters(**chosen)
        if self.detector.requires_fit and self.cached:
            self.detector._learn(*(torch.cat(parts) for parts in zip(*train)))
        elif self.detector.requires_fit:
            self.detector.fit(train)

    def _score(self, chosen: dict, train, validation) -> float:
        self._fit(chosen, train)
        self.metric.reset()
        for x, y in validation:
            scores = self.detector._judge(x) if self.cached else self.detector.predict(x)
            if not torch.isfinite(scores).all():
                return math.nan
            self.metric.update(scores=scores, labels=y)
        found = self.metric.compute()
        if self.metric_name not in found:
            raise InputError(
                f"GridSearch: the metric gives {', '.join(found)}, not {self.metric_name}"
            )
        return float(found[self.metric_name])
