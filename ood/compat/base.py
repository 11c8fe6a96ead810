"""What pytorch-ood's kinds of detectors have in common, over our formulas."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ood import detectors
from ood.config import InputError
from ood.detectors.base import Detector as Formula
from ood.detectors.base import NotFitted, chunked_score
from ood.outputs import Head, Outputs

RequiresFittingException = NotFitted


class ModelNotSetException(InputError):
    """A call that needs the network on a detector that was made without one."""


class Detector:
    """What all share: fit(loader), predict(x), a call, to(device), hyper-parameters by pytorch-ood's names.

    A subclass names in `space` the hyper-parameters that pytorch-ood searches, and in `fields` what they are called in the formula.
    """
    space: dict[str, list] = {}
    fields: dict[str, tuple[str, Callable]] = {}

    def __init__(self, formula: Formula, source=None, head=None):
        self.formula, self.source, self.head, self._device = formula, source, head, None

    @property
    def requires_fit(self) -> bool:
        return self.formula.requires_fit

    @property
    def hyperparameter_space(self) -> dict[str, list]:
        return self.space

    @property
    def device(self) -> torch.device | None:
        """Where the network is; what `to` said when it has no parameters; else None."""
        for part in (self.source, getattr(self.source, "__self__", None), self.head):
            if isinstance(part, nn.Module):
                for tensor in (*part.parameters(), *part.buffers()):
                    return tensor.device
        return self._device

    def to(self, device) -> Detector:
        self._device = torch.device(device)
        for part in (self.source, getattr(self.source, "__self__", None), self.head, *(self.source if isinstance(self.source, list) else ())):
            if isinstance(part, nn.Module):
                part.to(device)
        self.formula.to(device)
        return self

    def get_hyperparameters(self) -> dict:
        return {name: getattr(self, name) for name in self.space}

    def set_hyperparameters(self, **values) -> Detector:
        for name, value in values.items():
            if name not in self.space:
                raise ValueError(f"unknown hyper-parameter '{name}' of {type(self).__name__}; known: {', '.join(self.space)}")
            setattr(self, name, value)
        return self

    def __setattr__(self, name: str, value) -> None:
        object.__setattr__(self, name, value)
        if name in self.fields and "formula" in self.__dict__:
            field, convert = self.fields[name]
            setattr(self.formula, field, convert(value))

    def __call__(self, *arguments, **options) -> Tensor:
        return self.predict(*arguments, **options)

    def fit(self, data_loader: Iterable) -> Detector:
        """Run the network over (images, labels) and fit; a detector without anything to fit returns at once."""
        if not self.requires_fit:
            return self
        collected, labels = [], []
        with torch.no_grad():
            for x, y in data_loader:
                collected.append(self._represent(x))
                labels.append(torch.as_tensor(y))
        parts = [torch.cat(p) for p in zip(*collected)] if isinstance(collected[0], list) else torch.cat(collected)
        return self._fit(parts, torch.cat(labels))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """(B,) scores of images, larger = OOD. The network is used as it is: call eval() on it."""
        return self._score(self._represent(x))

    def _represent(self, x: Tensor):
        if self.source is None:
            raise ModelNotSetException(f"{type(self).__name__} was made without a network: only its calls on arrays work")
        return self.source(x if self.device is None else x.to(self.device))

    def _fit(self, z, labels: Tensor) -> Detector:
        self.formula.fit(self._outputs(z, labels))
        return self

    def _score(self, z) -> Tensor:
        outputs = self._outputs(z)
        return chunked_score(self.formula.to(outputs.features.device), outputs)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        raise NotImplementedError


class LogitsDetector(Detector):
    """On logits (N, C), or (N, C, H, W) maps of them, which give (N, H, W) scores."""

    def fit_logits(self, logits: Tensor, y: Tensor) -> Detector:
        return self._fit(logits.detach(), y) if self.requires_fit else self

    @torch.no_grad()
    def predict_logits(self, logits: Tensor) -> Tensor:
        if logits.dim() == 4:
            return self._score(logits.movedim(1, -1).flatten(0, 2)).view(len(logits), *logits.shape[2:])
        return self._score(logits)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return self.predict_logits(self._represent(x))

    @property
    def model(self):
        return self.source

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        return Outputs(z.new_zeros(len(z), 0), z, labels_of(labels, z), None)


class FeaturesDetector(Detector):
    """On pooled features (N, D); `head` gives logits where a formula needs them."""

    def fit_features(self, x: Tensor, y: Tensor | None = None) -> Detector:
        return self._fit(x.detach(), y) if self.requires_fit else self

    @torch.no_grad()
    def predict_features(self, x: Tensor) -> Tensor:
        return self._score(x)

    @property
    def encoder(self):
        return self.source

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        head = _head(self.head, z)
        with torch.no_grad():
            return Outputs(z, head(z) if head is not None else z.new_zeros(len(z), 0), labels_of(labels, z), head)


class FeatureMapsDetector(Detector):
    """On maps (N, C, H, W) before the pooling that `head` begins with; a shaping sees each image's map as one long vector."""

    def fit_feature_maps(self, feature_maps: Tensor, y: Tensor) -> Detector:
        return self._fit(feature_maps.detach(), y) if self.requires_fit else self

    @torch.no_grad()
    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        return self._score(feature_maps)

    @property
    def backbone(self):
        return self.source

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        if self.head is None:
            raise ModelNotSetException(f"{type(self).__name__} was made without a head: it cannot turn feature maps into logits")
        return Outputs(z.flatten(1), z.new_zeros(len(z), 0), labels_of(labels, z), _Function(lambda flat: self.head(flat.view(-1, *z.shape[1:]))))


class _Function:
    """A head that is no linear layer: it can only be called."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def __call__(self, features: Tensor) -> Tensor:
        return self.function(features)


@dataclass(eq=False)
class _Score(Formula):
    """A caller's own function of logits as the detector behind a shaping."""
    name = "function"

    def score(self, batch: Outputs) -> Tensor:
        return self._function(batch.logits)


def _head(head, z: Tensor):
    """What a formula may ask of a head: weight, bias and a call, where there are any."""
    if isinstance(head, nn.Linear):
        bias = head.bias.detach() if head.bias is not None else head.weight.new_zeros(len(head.weight))
        head = Head(head.weight.detach(), bias)
    if isinstance(head, Head):
        return Head(head.weight.to(z), head.bias.to(z))
    return None if head is None else _Function(head)


def labels_of(labels: Tensor | None, z: Tensor) -> Tensor:
    return torch.zeros(len(z), dtype=torch.long, device=z.device) if labels is None else labels.to(z.device).long()


def fraction(name: str, value: float) -> float:
    """A fraction as our percentile. Raises ValueError for a percentile."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a fraction between 0 and 1 here, got {value}")
    return 100.0 * value


def shaped(name: str, detector, **hyperparameters) -> Formula:
    """A shaping with the caller's score of logits: None for the energy, one of our names, or a function."""
    formula = detectors.create(name, **hyperparameters, **({"detector": detector} if isinstance(detector, str) else {}))
    if detector is not None and not isinstance(detector, str):
        formula.scorer = _Score()
        formula.scorer._function = detector
    return formula


def stateless(name: str, renamed: dict[str, str] | None = None):
    """A static `score(logits, ...)` for use as `detector=`."""
    def score(logits: Tensor, *arguments, **options) -> Tensor:
        values = {**dict(zip(renamed or {}, arguments)), **options}
        wrapped = LogitsDetector(detectors.create(name, **{(renamed or {})[k]: v for k, v in values.items() if v is not None}))
        return wrapped.predict_logits(logits)
    return staticmethod(score)
