"""pytorch-ood's kinds of detectors, built over our formulas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ood import detectors
from ood.compat.papers import Info
from ood.config import InputError, Range
from ood.detectors.base import Detector as Formula
from ood.detectors.base import NotFitted, chunked_score
from ood.losses.base import COUNT, also, check_range
from ood.outputs import Head, Outputs

RequiresFittingException = NotFitted


class ModelNotSetException(InputError):
    """Raised when a call needs the network, and the detector was made without one."""

    def __init__(
        self, msg: str = "this call needs the network, and the detector was made without one"
    ):
        super().__init__(msg)


class Detector:
    """Base class: fit(loader), predict(x), to(device), and hyper-parameters by pytorch-ood's names.

    Our detectors wrap a formula of `ood.detectors`. `fields` maps pytorch-ood's hyper-parameters to
    the names of that formula. A subclass of your own needs no formula. It sets `requires_fit` and
    defines predict, or only the calls on arrays (fit_features, predict_logits and so on).
    """

    requires_fit: bool = False  # an attribute of the class, as in pytorch-ood
    hyperparameter_space: dict[str, list] = {}  # values that GridSearch tries
    needs_labels: bool = False  # whether a fit on arrays needs labels
    info = Info()  # the record of the paper; None for a detector of your own
    fields: dict[str, tuple[str, Callable]] = {}
    ranges: dict[str, Range] = {}  # of hyper-parameters that are no field of the formula
    formula: Formula | None = None
    source = head = _device = None
    _fitted = None  # the shapes that a fit saw, see _shapes

    def __init__(self, formula: Formula | None = None, source=None, head=None):
        self.formula, self.source, self.head = formula, source, head
        if formula is not None and formula.requires_fit:
            self.requires_fit = True  # also where only the detector behind a shaping is fitted

    @property
    def device(self) -> torch.device | None:
        """Device of the network. For one without parameters, what `to` was given, or None."""
        for module in self._modules():
            for tensor in (*module.parameters(), *module.buffers()):
                return tensor.device
        return self._device

    def to(self, device) -> Detector:
        self._device = torch.device(device)
        for module in self._modules():
            module.to(device)
        own = {key: part for key, part in vars(self).items() if isinstance(part, Tensor)}
        for key, part in own.items():
            setattr(self, key, part.to(device))
        return self

    def _modules(self) -> Iterator[nn.Module]:
        """Modules among the attributes, in lists, and behind bound methods (model.features)."""
        for value in vars(self).values():
            for part in value if isinstance(value, (list, tuple)) else (value,):
                part = getattr(part, "__self__", part)
                if isinstance(part, nn.Module):
                    yield part

    def get_hyperparameters(self) -> dict:
        """Values of the names in `hyperparameter_space`."""
        return dict((key, getattr(self, key)) for key in self.hyperparameter_space)

    def set_hyperparameters(self, **kwargs) -> Detector:
        """Set some of the names in `hyperparameter_space`.

        Raises: ValueError for any other name. Nothing is set then.
        """
        if other := [key for key in kwargs if key not in self.hyperparameter_space]:
            raise ValueError(
                f"{self._name} has no hyper-parameter {', '.join(other)}; "
                f"it has: {', '.join(self.hyperparameter_space) or 'none'}"
            )
        for pair in kwargs.items():
            setattr(self, *pair)
        return self

    def __setattr__(self, name: str, value) -> None:
        if name in self.ranges:
            allowed = self.ranges[name]
            check_range(f"{self._name}: {name}", value, allowed, whole=allowed is COUNT)
        object.__setattr__(self, name, value)
        if name in self.fields and self.formula is not None:
            field, convert = self.fields[name]
            setattr(self.formula, field, convert(value))

    def __call__(self, *arguments, **options) -> Tensor:
        return self.predict(*arguments, **options)

    def fit(self, data_loader: Iterable) -> Detector:
        """Run the network over a loader of (images, labels), and fit to the outputs.

        A detector that needs no fit returns at once. Raises InputError for an empty loader.
        """
        if not self.requires_fit:
            return self
        collected, labels = [], []
        with torch.no_grad():
            for batch in data_loader:
                if not isinstance(batch, (list, tuple)):
                    batch = batch, torch.zeros(len(batch), dtype=torch.long)
                x, y = batch
                collected.append(self._represent(x))
                labels.append(torch.as_tensor(y).cpu())
        if not collected:
            raise InputError(f"{type(self).__name__}: the loader gave no batch to fit to")
        if isinstance(collected[0], list):
            return self._learn([torch.cat(part) for part in zip(*collected)], torch.cat(labels))
        return self._learn(torch.cat(collected), torch.cat(labels))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Scores (B,) of images, larger = OOD. Call eval() on the network first."""
        return self._judge(self._represent(x))

    def _represent(self, x: Tensor):
        """Turn images into what the calls on arrays take."""
        if self.source is None:
            raise ModelNotSetException(
                f"{type(self).__name__} was made without a network: only its calls on arrays work"
            )
        return self.source(self._here(x))

    def _here(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device)

    def _learn(self, z, labels: Tensor) -> Detector:
        """Fit to what `_represent` gives."""
        return self._fit(z, labels)

    def _judge(self, z) -> Tensor:
        """Score what `_represent` gives."""
        return self._score(z)

    def _fit(self, z, labels: Tensor | None) -> Detector:
        if labels is None and self.needs_labels:
            raise TypeError(f"{type(self).__name__} is fitted per class: it needs the labels")
        if self.requires_fit:
            self._ours().fit(self._outputs(z, labels))
            self._fitted = self._shapes(z)
        return self

    def _score(self, z) -> Tensor:
        formula = self._ours()
        self._check_shapes(z)
        outputs = self._outputs(z)
        return chunked_score(formula.to(outputs.features.device), outputs)

    def _shapes(self, z) -> list[tuple[int, ...]]:
        """Shapes of one image's arrays, which may not change between fit and score."""
        return [tuple(part.shape[1:]) for part in (z if isinstance(z, list) else [z])]

    def _check_shapes(self, z) -> None:
        """Raise InputError for arrays of other shapes than those of the fit."""
        if self._fitted is not None and self._shapes(z) != self._fitted:
            now, then = (", ".join(map(str, shapes)) for shapes in (self._shapes(z), self._fitted))
            raise InputError(
                f"{self._name}: an image has the shape {now} here, and had {then} in the fit"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _ours(self) -> Formula:
        if self.formula is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no formula: it must define how it fits and scores"
            )
        return self.formula

    def _outputs(self, z, labels: Tensor | None = None) -> Outputs:
        raise NotImplementedError


def network_as(doc: str) -> property:
    """Make a property: the network, under the name that a kind of detector has for it."""
    return property(
        lambda self: self.source, lambda self, network: setattr(self, "source", network), doc=doc
    )


class LogitsDetector(Detector):
    """A detector on logits (N, C), or on maps (N, C, H, W), which give scores (N, H, W)."""

    model = network_as("images -> logits")

    @also(y="labels")
    def fit_logits(self, logits: Tensor, labels: Tensor | None = None) -> Detector:
        """Fit to logits and labels (N,). For maps, every position has a label: (N, H, W)."""
        logits = self._here(logits).detach()
        places = check_logits(logits, self._name)
        if labels is not None and logits.dim() > 2:
            if labels.numel() != places.numel():
                raise InputError(
                    f"{self._name}: the labels have the shape {tuple(labels.shape)}; "
                    f"logits {tuple(logits.shape)} need a label per position, {tuple(places)}"
                )
            labels = labels.reshape(-1)
        return self._fit(by_position(logits), labels)

    @torch.no_grad()
    def predict_logits(self, logits: Tensor) -> Tensor:
        """Score logits (N, C): (N,), or maps of logits (N, C, H, W): (N, H, W)."""
        return pixelwise(self._score, self._here(logits), self._name)

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_logits(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_logits(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        return logits_alone(z, labels)


class FeaturesDetector(Detector):
    """A detector on pooled features (N, D). `head` gives logits where a formula needs them."""

    encoder = network_as("images -> pooled features")

    @also(z="x", features="x", labels="y")
    def fit_features(self, x: Tensor, y: Tensor | None = None) -> Detector:
        """Fit to features (N, D) and labels (N,). A trailing 1 x 1 map is dropped."""
        return self._fit(pooled_features(self._here(x).detach(), self._name), y)

    @also(z="x", features="x")
    @torch.no_grad()
    def predict_features(self, x: Tensor) -> Tensor:
        """Score features (N, D): (N,). A trailing 1 x 1 map is dropped."""
        return self._score(pooled_features(self._here(x), self._name))

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_features(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_features(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        head = _head(self.head, z, self._name)
        z = real(z)
        with torch.no_grad():
            logits = head(z) if head is not None else z.new_zeros(len(z), 0)
        return Outputs(z, logits, labels_of(labels, z), head)


class FeatureMapsDetector(Detector):
    """A detector on feature maps (N, C, H, W). `head` pools them and gives logits.

    A shaping sees each image's map as one long vector. If the head gives maps of logits
    (N, C, h, w), there is a score per position, (N, h, w).
    """

    backbone = network_as("images -> feature maps")

    @also(z="feature_maps")
    def fit_feature_maps(self, feature_maps: Tensor, y: Tensor | None = None) -> Detector:
        """Fit to feature maps (N, C, H, W) and labels (N,)."""
        return self._fit(self._here(self._checked(feature_maps)).detach(), y)

    @torch.no_grad()
    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        """Score feature maps (N, C, H, W): (N,), or a score per position that `head` gives."""
        scores = self._score(self._here(self._checked(feature_maps)))
        return scores.view(len(feature_maps), *getattr(self.formula.scorer, "_grid", ()))

    def _checked(self, maps: Tensor) -> Tensor:
        if maps.dim() < 2:
            raise InputError(
                f"{self._name}: feature maps have the shape (N, C, H, W), got {tuple(maps.shape)}"
            )
        if not torch.isfinite(maps).all():
            raise InputError(f"{self._name}: the feature maps hold NaN or infinite values")
        return maps

    def _shapes(self, z: Tensor) -> list[tuple[int, ...]]:
        """Maps of any size may follow a fit: the head pools them."""
        return []

    def _learn(self, z: Tensor, labels: Tensor) -> Detector:
        return self.fit_feature_maps(z, labels)

    def _judge(self, z: Tensor) -> Tensor:
        return self.predict_feature_maps(z)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        if self.head is None:
            raise ModelNotSetException(
                f"{type(self).__name__} was made without a head: "
                "it cannot turn feature maps into logits"
            )
        kind, shape = z.dtype if z.is_floating_point() else torch.float32, z.shape[1:]
        head = _Function(lambda flat: self.head(flat.view(-1, *shape).to(kind)))
        z = real(z.flatten(1))
        return Outputs(z, z.new_zeros(len(z), 0), labels_of(labels, z), head)


class StructuredDetector(Detector):
    """A detector on several arrays at once, such as one per layer."""

    model = network_as("the modules that give the arrays")

    def fit_structured(self, *args, **kwargs) -> Detector:
        if self.requires_fit:
            raise NotImplementedError(f"{self._name} has requires_fit, but not its own fit")
        return self

    def predict_structured(self, *args, **kwargs) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say how it scores")


class GradientDetector(Detector):
    """A detector on images, with gradients."""

    model = network_as("images -> logits")


class _Function:
    """A head that is not a linear layer. It can only be called."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def __call__(self, features: Tensor) -> Tensor:
        return self.function(features)


@dataclass(eq=False)
class _Score(Formula):
    """A function of logits (N, C, ...) that serves as the detector behind a shaping.

    It keeps the shape of one image's scores in `_grid`.
    """

    name = "function"

    def score(self, batch: Outputs) -> Tensor:
        scores = self._function(batch.logits)
        self._grid = scores.shape[1:]
        return scores


def real(z: Tensor) -> Tensor:
    """Values in float32 or float64. Halves and whole numbers become float32.

    Raises: InputError for complex numbers.
    """
    if z.is_complex():
        raise InputError(f"features and logits are real numbers, got {z.dtype}")
    return z if z.dtype in (torch.float32, torch.float64) else z.float()


def check_logits(logits: Tensor, owner: str) -> torch.Size:
    """Return the shape of the scores of logits (N, C, ...): (N, ...).

    Raises: InputError for logits without an axis of classes.
    """
    if logits.dim() < 2 or not logits.shape[1]:
        raise InputError(
            f"{owner}: logits have the shape (N, C) or (N, C, H, W), got {tuple(logits.shape)}"
        )
    return torch.Size((len(logits), *logits.shape[2:]))


def by_position(logits: Tensor) -> Tensor:
    """Turn maps (N, C, ...) into rows (M, C), one per position."""
    return logits.movedim(1, -1).flatten(0, -2)


def pixelwise(
    score: Callable[[Tensor], Tensor], logits: Tensor, owner: str = "the score"
) -> Tensor:
    """Scores (N, ...) of logits (N, C, ...), given a score of rows (M, C)."""
    places = check_logits(logits, owner)
    return score(by_position(logits)).view(places)


def pooled_features(z: Tensor, owner: str) -> Tensor:
    """Return features (N, D). A map of one position, (N, D, 1, 1), becomes (N, D).

    Raises: InputError for any other shape.
    """
    if z.dim() < 2 or any(side != 1 for side in z.shape[2:]):
        raise InputError(
            f"{owner}: features have the shape (N, D), got {tuple(z.shape)}; "
            "pool feature maps first"
        )
    return z.flatten(1)


def logits_alone(logits: Tensor, labels: Tensor | None = None) -> Outputs:
    """Outputs that hold logits (N, C) and nothing else."""
    logits = real(logits)
    return Outputs(logits.new_zeros(len(logits), 0), logits, labels_of(labels, logits), None)


def direct(name: str, logits: Tensor, **hyperparameters) -> Tensor:
    """Scores of logits by one of our formulas, with a gradient.

    It can stand behind a shaping or in a loss of your own.
    """
    formula = detectors.create(name, **hyperparameters)
    return pixelwise(lambda rows: formula.score(logits_alone(rows)), logits, name)


def shaped(name: str, detector, **hyperparameters) -> Formula:
    """Make a shaping with a given score of logits behind it.

    Args: detector: None for the energy, a name of ours, or a function of logits.
    """
    if isinstance(detector, str):
        hyperparameters["detector"] = detector
    formula = detectors.create(name, **hyperparameters)
    inner = formula.scorer
    if not inner.requires_fit:
        by_rows = functools.partial(pixelwise, LogitsDetector(inner)._score)
        formula.scorer = _Score()
        formula.scorer._function = detector if callable(detector) else by_rows
    return formula


def _head(head, z: Tensor, owner: str):
    """A head for formulas: with weight and bias if it is linear, else one to be called.

    Raises: InputError for a linear head of another width than the features `z`.
    """
    if isinstance(head, nn.Linear):
        bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
        head = Head(head.weight.detach(), bias.detach())
    if isinstance(head, Head):
        if head.weight.shape[1:] != z.shape[1:]:
            raise InputError(
                f"{owner}: the head's weight has the shape {tuple(head.weight.shape)}, "
                f"and the features have {z.shape[1]} columns"
            )
        kind = real(z)
        return Head(head.weight.to(kind), head.bias.to(kind))
    return None if head is None else _Function(lambda features: head(features.to(z.dtype)))


def labels_of(labels: Tensor | None, z: Tensor) -> Tensor:
    """Labels (N,) on the device of `z`; zeros where there are none.

    Raises: InputError for labels that are not one per row.
    """
    if labels is None:
        return torch.zeros(len(z), dtype=torch.long, device=z.device)
    if labels.shape != (len(z),):
        raise InputError(f"the labels have the shape {tuple(labels.shape)}, for {len(z)} rows")
    return labels.to(z.device).long()


def fraction(name: str, value: float) -> float:
    """Turn a fraction into our percentile. Raises ValueError for a value outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a fraction between 0 and 1 here, got {value}")
    return 100.0 * value
