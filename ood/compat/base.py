"""What pytorch-ood's kinds of detectors have in common, over our formulas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
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

    def __init__(
        self, msg: str = "this call needs the network, and the detector was made without one"
    ):
        super().__init__(msg)


def also(**names: str):
    """Decorator: an argument is accepted under pytorch-ood's other names too, as in also(z="x"). They stand in `.also`."""

    def decorate(method):
        @functools.wraps(method)
        def call(self, *arguments, **options):
            return method(
                self, *arguments, **{names.get(key, key): value for key, value in options.items()}
            )

        call.also = names
        return call

    return decorate


class Detector:
    """What all share: fit(loader), predict(x), a call, to(device), hyper-parameters by pytorch-ood's names.

    Ours wrap a formula of `ood.detectors`; `fields` says what pytorch-ood's hyper-parameters are called there. A subclass of your own
    needs no formula: it sets `requires_fit` and writes predict, or the calls on arrays (fit_features, predict_logits, ...) alone.
    """

    requires_fit: bool = False  # on the class, as in pytorch-ood
    hyperparameter_space: dict[str, list] = {}  # what GridSearch tries
    needs_labels: bool = False  # whether a fit on arrays is meaningless without labels
    info = None
    fields: dict[str, tuple[str, Callable]] = {}
    formula: Formula | None = None
    source = head = _device = None

    def __init__(self, formula: Formula | None = None, source=None, head=None):
        self.formula, self.source, self.head = formula, source, head
        if (
            formula is not None and formula.requires_fit and not self.requires_fit
        ):  # a shaping in front of a detector that is fitted
            self.requires_fit = True

    @property
    def device(self) -> torch.device | None:
        """Where the network is; what `to` said when it has no parameters; else None."""
        return next(
            (
                t.device
                for module in self._modules()
                for t in (*module.parameters(), *module.buffers())
            ),
            self._device,
        )

    def to(self, device) -> Detector:
        self._device = torch.device(device)
        for module in self._modules():
            module.to(device)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def _modules(self) -> Iterator[nn.Module]:
        """Modules among the attributes: as they are, in lists, or behind a bound method such as model.features."""
        for value in vars(self).values():
            for part in value if isinstance(value, (list, tuple)) else (value,):
                part = getattr(part, "__self__", part)
                if isinstance(part, nn.Module):
                    yield part

    def get_hyperparameters(self) -> dict:
        return {name: getattr(self, name) for name in self.hyperparameter_space}

    def set_hyperparameters(self, **kwargs) -> Detector:
        for name, value in kwargs.items():
            if name not in self.hyperparameter_space:
                raise ValueError(
                    f"unknown hyper-parameter '{name}' of {type(self).__name__}; known: {', '.join(self.hyperparameter_space)}"
                )
            setattr(self, name, value)
        return self

    def __setattr__(self, name: str, value) -> None:
        object.__setattr__(self, name, value)
        if name in self.fields and self.formula is not None:
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
            for batch in data_loader:
                x, y = (
                    batch
                    if isinstance(batch, (list, tuple))
                    else (batch, torch.zeros(len(batch), dtype=torch.long))
                )
                collected.append(self._represent(x))
                labels.append(torch.as_tensor(y).cpu())
        if not collected:
            raise InputError(f"{type(self).__name__}: the loader gave no batch to fit to")
        parts = (
            [torch.cat(p) for p in zip(*collected)]
            if isinstance(collected[0], list)
            else torch.cat(collected)
        )
        return self._learn(parts, torch.cat(labels))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """(B,) scores of images, larger = OOD. The network is used as it is: call eval() on it."""
        return self._judge(self._represent(x))

    def _represent(self, x: Tensor):
        """What the calls on arrays take, from images."""
        if self.source is None:
            raise ModelNotSetException(
                f"{type(self).__name__} was made without a network: only its calls on arrays work"
            )
        return self.source(self._here(x))

    def _here(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device)

    def _learn(self, z, labels: Tensor) -> Detector:
        """Fit on what `_represent` gives."""
        return self._fit(z, labels)

    def _judge(self, z) -> Tensor:
        """Scores of what `_represent` gives."""
        return self._score(z)

    def _fit(self, z, labels: Tensor | None) -> Detector:
        if labels is None and self.needs_labels:
            raise TypeError(f"{type(self).__name__} is fitted per class: it needs the labels")
        if self.requires_fit:
            self._ours().fit(self._outputs(z, labels))
        return self

    def _score(self, z) -> Tensor:
        formula, outputs = self._ours(), self._outputs(z)
        return chunked_score(formula.to(outputs.features.device), outputs)

    def _ours(self) -> Formula:
        if self.formula is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no formula: it must define how it fits and scores"
            )
        return self.formula

    def _outputs(self, z, labels: Tensor | None = None) -> Outputs:
        raise NotImplementedError


def network_as(doc: str) -> property:
    """The network under the name that a kind of detector has for it."""
    return property(
        lambda self: self.source, lambda self, network: setattr(self, "source", network), doc=doc
    )


class LogitsDetector(Detector):
    """On logits (N, C), or (N, C, H, W) maps of them, which give (N, H, W) scores."""

    model = network_as("images -> logits")

    @also(y="labels")
    def fit_logits(self, logits: Tensor, labels: Tensor | None = None) -> Detector:
        return self._fit(self._here(logits).detach(), labels)

    @torch.no_grad()
    def predict_logits(self, logits: Tensor) -> Tensor:
        return pixelwise(self._score, self._here(logits))

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_logits(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_logits(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        return Outputs(z.new_zeros(len(z), 0), z, labels_of(labels, z), None)


class FeaturesDetector(Detector):
    """On pooled features (N, D); `head` gives logits where a formula needs them."""

    encoder = network_as("images -> pooled features")

    @also(z="x", features="x", labels="y")
    def fit_features(self, x: Tensor, y: Tensor | None = None) -> Detector:
        return self._fit(self._here(x).detach(), y)

    @also(z="x", features="x")
    @torch.no_grad()
    def predict_features(self, x: Tensor) -> Tensor:
        return self._score(self._here(x))

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_features(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_features(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        head = _head(self.head, z)
        with torch.no_grad():
            return Outputs(
                z,
                head(z) if head is not None else z.new_zeros(len(z), 0),
                labels_of(labels, z),
                head,
            )


class FeatureMapsDetector(Detector):
    """On maps (N, C, H, W) before the pooling that `head` begins with; a shaping sees each image's map as one long vector.

    A head that gives a map of logits (N, C, h, w) gives a score per position, (N, h, w).
    """

    backbone = network_as("images -> feature maps")

    @also(z="feature_maps")
    def fit_feature_maps(self, feature_maps: Tensor, y: Tensor | None = None) -> Detector:
        return self._fit(self._here(feature_maps).detach(), y)

    @torch.no_grad()
    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        if not torch.isfinite(feature_maps.sum()):
            raise InputError(f"{type(self).__name__}: the feature maps hold NaN or infinite values")
        scores = self._score(self._here(feature_maps))
        return scores.view(len(feature_maps), *getattr(self.formula.scorer, "_grid", ()))

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_feature_maps(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_feature_maps(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        if self.head is None:
            raise ModelNotSetException(
                f"{type(self).__name__} was made without a head: it cannot turn feature maps into logits"
            )
        return Outputs(
            z.flatten(1),
            z.new_zeros(len(z), 0),
            labels_of(labels, z),
            _Function(lambda flat: self.head(flat.view(-1, *z.shape[1:]))),
        )


class StructuredDetector(Detector):
    """On several arrays at once, such as one per layer."""

    model = network_as("the modules that give the arrays")

    def fit_structured(self, *args, **kwargs) -> Detector:
        if self.requires_fit:
            raise NotImplementedError(f"{type(self).__name__} requires fitting and must say how")
        return self

    def predict_structured(self, *args, **kwargs) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say how it scores")


class GradientDetector(Detector):
    """On images, with gradients."""

    model = network_as("images -> logits")


class _Function:
    """A head that is no linear layer: it can only be called."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def __call__(self, features: Tensor) -> Tensor:
        return self.function(features)


@dataclass(eq=False)
class _Score(Formula):
    """A function of logits (N, C, ...) as the detector behind a shaping; it notes the shape of one image's scores."""

    name = "function"

    def score(self, batch: Outputs) -> Tensor:
        scores = self._function(batch.logits)
        self._grid = scores.shape[1:]
        return scores


def pixelwise(score: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Scores (N, ...) of logits (N, C, ...) from a score of rows (N, C)."""
    if logits.dim() <= 2:
        return score(logits)
    return score(logits.movedim(1, -1).flatten(0, -2)).view(len(logits), *logits.shape[2:])


def direct(name: str, logits: Tensor, **hyperparameters) -> Tensor:
    """Scores of logits by one of our formulas, with their gradient: to stand behind a shaping or in a loss of your own."""
    formula = detectors.create(name, **hyperparameters)
    return pixelwise(
        lambda f: formula.score(Outputs(f.new_zeros(len(f), 0), f, labels_of(None, f), None)),
        logits,
    )


def shaped(name: str, detector, **hyperparameters) -> Formula:
    """A shaping with the caller's score of logits: None for the energy, one of our names, or a function."""
    formula = detectors.create(
        name, **hyperparameters, **({"detector": detector} if isinstance(detector, str) else {})
    )
    inner = formula.scorer
    if not inner.requires_fit:
        formula.scorer = _Score()
        formula.scorer._function = (
            detector
            if callable(detector)
            else functools.partial(pixelwise, LogitsDetector(inner)._score)
        )
    return formula


def _head(head, z: Tensor):
    """What a formula may ask of a head: weight, bias and a call, where there are any."""
    if isinstance(head, nn.Linear):
        bias = (
            head.bias.detach() if head.bias is not None else head.weight.new_zeros(len(head.weight))
        )
        head = Head(head.weight.detach(), bias)
    if isinstance(head, Head):
        return Head(head.weight.to(z), head.bias.to(z))
    return None if head is None else _Function(head)


def labels_of(labels: Tensor | None, z: Tensor) -> Tensor:
    return (
        torch.zeros(len(z), dtype=torch.long, device=z.device)
        if labels is None
        else labels.to(z.device).long()
    )


def fraction(name: str, value: float) -> float:
    """A fraction as our percentile. Raises ValueError for a percentile."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a fraction between 0 and 1 here, got {value}")
    return 100.0 * value
