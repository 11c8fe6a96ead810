"""pytorch-ood's grid search over the hyper-parameters of a detector.

`ood.evaluation.tuning` searches on cached outputs, and does not need OOD data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ood.compat.base import Detector, FeaturesDetector, LogitsDetector
from ood.compat.metrics import OODMetrics
from ood.config import InputError

__all__ = ["GridSearch"]


class GridSearch:
    """Try all combinations of hyper-parameters, and leave the detector fitted with the best one.

    For a detector on features or logits the network runs once over each loader. For any other it
    runs once for every combination. A combination with a non-finite score is never the best; of
    equal ones the first is taken. `run` fills three attributes: results_ has the score of every
    combination, best_params_ and best_score_ belong to the best.

    Args:
        detector: what to tune.
        fit_loader: batches (images, labels) to fit on; None for a detector that needs no fit.
        val_loader: batches (images, labels) to judge on, with ID images and outliers.
        hyperparameter_space: values to try by name; None: those that the detector proposes.
        metric: has reset, update(scores=, labels=) and compute; None: OODMetrics.
        metric_name: the entry of compute() that decides.
        higher_is_better: whether that entry is maximised.
        device: where the network runs.
    Raises: InputError if there is nothing to search, if a loader to fit on is missing, if the
        metric has no such entry, or if no combination has a finite score.
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
        space = hyperparameter_space or detector.hyperparameter_space
        self.detector, self.device, self.space = detector, device, space
        if not space or not all(space.values()):
            raise InputError(
                f"GridSearch: {type(detector).__name__} has nothing to search: the values to try "
                f"are {space}; give at least one for each name in hyperparameter_space"
            )
        self.fit_loader, self.val_loader = fit_loader, val_loader
        self.metric, self.metric_name = metric or OODMetrics(), metric_name
        self.higher_is_better = higher_is_better
        self._forget()

    def _forget(self) -> None:
        self.results_: list[dict] = []
        self.best_params_: dict | None = None
        self.best_score_: float | None = None

    def run(self) -> dict:
        """Search, fit the best combination and return it."""
        detector = self.detector
        self._forget()
        if detector.requires_fit and self.fit_loader is None:
            raise InputError("GridSearch: this detector is fitted, give fit_loader")
        detector.to(self.device)
        detector.hyperparameter_space = self.space  # so that the detector accepts these names
        on_outputs = isinstance(detector, (FeaturesDetector, LogitsDetector))
        trial = _OnOutputs if on_outputs and detector.source is not None else _OnImages
        trial = trial(detector, self.fit_loader, self.val_loader)
        for values in itertools.product(*self.space.values()):
            chosen = dict(zip(self.space, values))
            trial.fit(chosen)
            self.results_.append({"params": chosen, "score": self._judge(trial.scores())})
        finite = [found for found in self.results_ if math.isfinite(found["score"])]
        if not finite:
            raise InputError("GridSearch: no combination gave a finite score")
        sign = 1 if self.higher_is_better else -1
        best = max(finite, key=lambda found: sign * found["score"])
        self.best_params_, self.best_score_ = best["params"], best["score"]
        trial.fit(self.best_params_)
        return self.best_params_

    def _judge(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Value of the metric over batches of (scores, labels); NaN if a score is not finite."""
        self.metric.reset()
        for scores, labels in batches:
            if not scores.isfinite().all():
                return math.nan
            self.metric.update(scores=scores, labels=labels)
        found = self.metric.compute()
        if (value := found.get(self.metric_name)) is None:
            raise InputError(
                f"GridSearch: the metric gives {', '.join(found)}, not {self.metric_name}"
            )
        return float(value)


class _OnImages:
    """Fits and scores a detector by running it on images."""

    def __init__(self, detector: Detector, fit_loader: Iterable | None, val_loader: Iterable):
        self.detector, self.training, self.validation = detector, fit_loader, val_loader

    def fit(self, chosen: dict) -> None:
        """Set hyper-parameters, and fit if the detector needs it."""
        self.detector.set_hyperparameters(**chosen)
        if self.detector.requires_fit:
            self._fit()

    def _fit(self) -> None:
        self.detector.fit(self.training)

    def scores(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Iterate over (scores, labels) of the validation batches."""
        for x, y in self.validation:
            yield self.detector.predict(x), y


class _OnOutputs(_OnImages):
    """Fits and scores a detector on outputs of the network, which are computed once."""

    def __init__(self, detector: Detector, fit_loader: Iterable | None, val_loader: Iterable):
        def outputs(loader: Iterable) -> list[tuple[Tensor, Tensor]]:
            with torch.no_grad():
                return [(detector._represent(x), y) for x, y in loader]

        training = outputs(fit_loader) if detector.requires_fit else None
        super().__init__(detector, training, outputs(val_loader))

    def _fit(self) -> None:
        outputs, labels = zip(*self.training)
        self.detector._learn(torch.cat(outputs), torch.cat(labels))

    def scores(self) -> Iterable[tuple[Tensor, Tensor]]:
        for outputs, y in self.validation:
            yield self.detector._judge(outputs), y
