"""pytorch-ood's detectors on feature maps, several layers, gradients and repeated passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ood import detectors
from ood.compat.base import (
    Detector,
    FeatureMapsDetector,
    FeaturesDetector,
    GradientDetector,
    ModelNotSetException,
    StructuredDetector,
    fraction,
    labels_of,
    logits_alone,
    network_as,
    pixelwise,
    pooled_features,
    real,
    shaped,
)
from ood.config import InputError
from ood.detectors.base import chunked_score
from ood.detectors.gradients import NAC, squared_gradients
from ood.detectors.inputs import perturb
from ood.detectors.maps import gram_rows, remove_rank1
from ood.losses.base import AT_LEAST_0, COUNT, TEMPERATURE, also
from ood.outputs import Outputs, Pass


# feature maps
def ash_b(x: Tensor, percentile: float = 0.65) -> Tensor:
    """Prune maps (B, C, H, W), and give what is left one value per image. The sum stays."""
    return _shape_maps("ash", x, percentile, variant="b")


def ash_p(x: Tensor, percentile: float = 0.65) -> Tensor:
    """Set all but the largest activations of each image's maps (B, C, H, W) to 0."""
    return _shape_maps("ash", x, percentile, variant="p")


def ash_s(x: Tensor, percentile: float = 0.65) -> Tensor:
    """Prune maps (B, C, H, W), and scale them by exp(sum before / sum after)."""
    return _shape_maps("ash", x, percentile, variant="s")


def scale(x: Tensor, percentile: float = 0.65) -> Tensor:
    """Scale maps (B, C, H, W) as ash_s does, without pruning them."""
    return _shape_maps("scale", x, percentile)


def _shape_maps(name: str, x: Tensor, percentile: float, **settings) -> Tensor:
    formula = detectors.create(name, percentile=fraction("percentile", percentile), **settings)
    return formula.shape(x.flatten(1)).view_as(x)


class ASH(FeatureMapsDetector):
    variants = {"ash-p": ash_p, "ash-b": ash_b, "ash-s": ash_s}
    hyperparameter_space = {"percentile": [0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]}
    fields = {"percentile": ("percentile", lambda p: fraction("percentile", p))}

    def __init__(
        self, backbone, head, variant: str = "ash-s", percentile: float = 0.65, detector=None
    ):
        formula = shaped("ash", detector, variant=variant.removeprefix("ash-"))
        super().__init__(formula, backbone, head)
        self.percentile = percentile


class SCALE(FeatureMapsDetector):
    hyperparameter_space, fields = ASH.hyperparameter_space, ASH.fields

    def __init__(self, backbone, head, percentile: float = 0.65, detector=None):
        super().__init__(shaped("scale", detector), backbone, head)
        self.percentile = percentile


class ReAct(FeatureMapsDetector):
    """Clips activations at a threshold, which is given or found by a fit.

    A fit replaces a given threshold by the percentile of the training set's activations.
    """

    requires_fit = True
    hyperparameter_space = {"percentile": [0.85, 0.9, 0.95, 0.99]}
    fields = {**ASH.fields, "threshold": ("threshold", lambda t: t)}

    def __init__(
        self, backbone, head, threshold: float | None = None, percentile: float = 0.9, detector=None
    ):
        super().__init__(shaped("react", detector), backbone, head)
        self.percentile, self.threshold = percentile, threshold

    def _fit(self, z: Tensor, labels: Tensor | None) -> Detector:
        self.threshold = None
        super()._fit(z, labels)
        self.threshold = float(self.formula.clip)
        return self


class VRA(FeatureMapsDetector):
    """Clips every position of the map to its own quantiles, as pytorch-ood does.

    The paper's form is our detector `vra`.
    """

    requires_fit = True
    hyperparameter_space = {
        "upper_percentile": [0.85, 0.9, 0.95, 0.99],
        "lower_percentile": [0.01, 0.05, 0.1, 0.15],
    }
    fields = {
        f"{side}_percentile": (side, lambda p: fraction("percentile", p))
        for side in ("lower", "upper")
    }

    _shapes = Detector._shapes  # a quantile belongs to a position

    def __init__(
        self,
        backbone,
        head,
        lower_percentile: float = 0.01,
        upper_percentile: float = 0.99,
        detector=None,
    ):
        super().__init__(shaped("vra", detector, below="clip", per_feature=True), backbone, head)
        self.lower_percentile, self.upper_percentile = lower_percentile, upper_percentile
        if lower_percentile > upper_percentile:
            raise ValueError(
                f"lower_percentile is {lower_percentile}, upper_percentile is {upper_percentile}; "
                "the lower one must not exceed the upper one"
            )


class RankFeat(FeatureMapsDetector):
    def __init__(self, backbone, head, detector=None):
        super().__init__(shaped("rankfeat", detector), backbone, head)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        if z.dim() < 3:
            raise InputError(
                f"RankFeat: feature maps have the shape (N, C, H, W), got {tuple(z.shape)}"
            )
        kind = z.dtype if z.is_floating_point() else torch.float32
        with torch.no_grad():
            logits = real(self.head(remove_rank1(real(z.detach())).to(kind)))
        scores = {self.formula.key: logits}
        return Outputs(z.new_zeros(len(z), 0), logits, labels_of(labels, z), None, scores=scores)


# several layers
class MultiMahalanobis(StructuredDetector):
    """Mahalanobis distances at several stages of a network.

    `model` is a list of modules that follow one another. A stage is the output of a module,
    averaged over its map.
    """

    requires_fit = needs_labels = True
    fields = {"alpha": ("weights", tuple)}

    def __init__(self, model: list[nn.Module], alpha: list[float] | None = None):
        if not len(model):
            raise ValueError("MultiMahalanobis: there are no modules")
        super().__init__(detectors.create("mds_ensemble"), list(model))
        self.alpha = list(alpha or [1.0] * len(model))

    @property
    def n_classes(self) -> int:
        return len(self.formula.means[0])

    def fit_structured(self, zs: list[Tensor], y: Tensor) -> MultiMahalanobis:
        return self._fit([_pooled(self._here(z)) for z in zs], y)

    @torch.no_grad()
    def predict_structured(self, zs: list[Tensor], device=None) -> Tensor:
        return self._score([_pooled(self._here(z) if device is None else z.to(device)) for z in zs])

    def _represent(self, x: Tensor) -> list[Tensor]:
        x, stages = self._here(x), []
        for module in self.source:
            x = module(x)
            stages.append(_pooled(x))
        return stages

    def _outputs(self, z: list[Tensor], labels: Tensor | None = None) -> Outputs:
        taps = tuple(real(part) for part in z)
        logits = taps[-1].new_zeros(len(taps[-1]), 0)
        return Outputs(taps[-1], logits, labels_of(labels, logits), None, taps=taps)


def _pooled(z: Tensor) -> Tensor:
    """Average over positions: (N, C, ...) -> (N, C). Raises InputError for fewer axes."""
    if z.dim() < 2:
        raise InputError(f"a stage has the shape (N, C) or (N, C, H, W), got {tuple(z.shape)}")
    return z.flatten(2).mean(2) if z.dim() > 2 else z


class Gram(StructuredDetector):
    """Deviations of Gram matrices from the ranges seen for the predicted class.

    `feature_layers` are modules that follow one another. `head` turns the last one's output into
    logits.
    """

    requires_fit = True

    def __init__(
        self,
        head,
        feature_layers: list[nn.Module],
        num_classes: int,
        num_poles_list: list[int] | None = None,
    ):
        powers = tuple(num_poles_list or range(1, len(feature_layers) + 1))
        super().__init__(detectors.create("gram", powers=powers), list(feature_layers), head)
        self.num_classes = num_classes

    def _represent(self, x: Tensor) -> list[Tensor]:
        x, maps = self._here(x), []
        for module in self.source:
            x = module(x)
            maps.append(x)
        return self._measure(self.head(x), maps)

    def _measure(self, logits: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Give what fit and score need: logits, Gram rows, and an array as wide as each map."""
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise InputError(
                f"Gram: num_classes is {self.num_classes}, the logits have the shape "
                f"{tuple(logits.shape)}"
            )
        rows = [_gram_rows(m.detach(), p) for m in maps for p in self.formula.powers]
        widths = (m.new_zeros(len(m), m.shape[1]) for m in maps)
        return [real(logits), torch.cat(rows, 1), *widths]

    def fit_structured(
        self, logits: Tensor, feature_list: list[Tensor], y: Tensor | None = None
    ) -> Gram:
        return self._fit(
            self._measure(self._here(logits), [self._here(f) for f in feature_list]), y
        )

    @torch.no_grad()
    def predict_structured(self, logits: Tensor, feature_list: list[Tensor]) -> Tensor:
        return self._score(self._measure(self._here(logits), [self._here(f) for f in feature_list]))

    def _outputs(self, z: list[Tensor], labels: Tensor | None = None) -> Outputs:
        logits, rows, *widths = z
        kept = {"taps": tuple(widths), "scores": {self.formula.key: rows}}
        return Outputs(rows, logits, labels_of(labels, logits), None, **kept)


def _gram_rows(z: Tensor, power: int) -> Tensor:
    """Gram rows of maps (N, C, ...). Features (N, C) count as maps of one position."""
    return gram_rows(real(z) if z.dim() > 2 else real(z)[:, :, None], power)


class _Coverage(NAC):
    """NAC of one layer. Its states z dKL/dz take the place of features."""

    needs = frozenset({"features"})

    def states(self, batch: Outputs) -> Tensor:
        return batch.features


class NACUE(GradientDetector):
    """Neuron activation coverage, added up over `layers`, which are modules of `model`.

    m_bins, alpha and o_star are one value, or one per layer. A map (B, C, H, W) is averaged to z
    and then multiplied with dKL/dz. Bins are narrow around 1/2, so an odd m_bins loses one. Both
    are as in the authors' code. pytorch-ood multiplies first, and its bins are narrow at the ends.
    `feature_reduce` turns the product of an output and its gradient into (B, N). Without it, the
    product is flattened.
    """

    requires_fit = True

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Module],
        m_bins: int | list[int] = 50,
        alpha: float | list[float] = 100.0,
        o_star: int | list[int] = 50,
        feature_reduce: Callable[[Tensor], Tensor] | None = None,
        device=None,
    ):
        super().__init__(None, model)
        self.layers, self.feature_reduce = list(layers), feature_reduce
        self.m_bins, self.alpha = self._per_layer(m_bins), self._per_layer(alpha)
        self.o_star = self._per_layer(o_star)
        self.coverages = [
            _Coverage(int(m) // 2 * 2, float(a), float(o))
            for m, a, o in zip(self.m_bins, self.alpha, self.o_star)
        ]
        if device is not None:
            self.to(device)

    def _per_layer(self, values) -> list:
        values = list(values) if isinstance(values, (list, tuple)) else [values] * len(self.layers)
        if len(values) != len(self.layers):
            raise InputError(
                f"NACUE: {len(values)} values for {len(self.layers)} layers; "
                "give one, or one per layer"
            )
        return values

    def _represent(self, x: Tensor) -> list[Tensor]:
        """Compute z dKL/dz of every layer, (B, N_l)."""
        if self.source is None:
            raise ModelNotSetException("NACUE was made without a network")
        outputs: dict[int, Tensor] = {}
        hooks = []
        for i, layer in enumerate(self.layers):
            keep = lambda module, inputs, output, i=i: outputs.update({i: output})
            hooks.append(layer.register_forward_hook(keep))
        try:
            with torch.enable_grad():
                x = self._here(x).detach()
                logits = self.source(x.requires_grad_() if x.is_floating_point() else x)
                z = [outputs[i] for i in range(len(self.layers))]
                gradients = torch.autograd.grad(-logits.log_softmax(1).mean(1).sum(), z)
        finally:
            for hook in hooks:
                hook.remove()
        return [self._reduce(a.detach(), g) for a, g in zip(z, gradients)]

    def _reduce(self, z: Tensor, gradient: Tensor) -> Tensor:
        """States (B, N) of an output and its gradient."""
        if self.feature_reduce is not None:
            return self.feature_reduce(z * gradient)
        if z.dim() == 4:
            return _pooled(z) * gradient.flatten(2).sum(2)
        return (z * gradient).flatten(1)

    def _fit(self, z: list[Tensor], labels: Tensor | None) -> NACUE:
        for coverage, states in zip(self.coverages, z):
            coverage.fit(self._outputs(states, labels))
        self._fitted = self._shapes(z)
        return self

    def _score(self, z: list[Tensor]) -> Tensor:
        self._check_shapes(z)
        return sum(
            chunked_score(coverage.to(states.device), self._outputs(states))
            for coverage, states in zip(self.coverages, z)
        )

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        z = real(z)
        return Outputs(z, z.new_zeros(len(z), 0), labels_of(labels, z), None)


# gradients and repeated passes
def odin_preprocessing(
    model,
    x: Tensor,
    y: Tensor | None = None,
    criterion: Callable | None = None,
    eps: float = 0.0014,
    temperature: float = 1000.0,
    norm_std: list[float] | None = None,
) -> Tensor:
    """Move images: x - eps * sign(d criterion(model(x) / T, y) / dx) / norm_std.

    A zero gradient counts as +1, as in the authors' code.
    """
    if model is None:
        raise ModelNotSetException("ODIN needs a network")
    std = _std(norm_std, x, "ODIN")
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = model(leaf) / temperature
        loss = (criterion or cross_entropy)(logits, logits.detach().argmax(1) if y is None else y)
    return perturb(leaf, loss, eps, std)


def _std(norm_std: list[float] | None, x: Tensor, owner: str) -> tuple[float, ...]:
    """The normalisation's std, one value per channel. Raises InputError for another number."""
    if x.dim() < 2 or not x.is_floating_point():
        raise InputError(
            f"{owner}: inputs are floating-point numbers of the shape (N, C, ...), "
            f"got {tuple(x.shape)} {x.dtype}"
        )
    if norm_std is not None and len(norm_std) not in (1, x.shape[1]):
        raise InputError(f"{owner}: norm_std has {len(norm_std)} values for {x.shape[1]} channels")
    return (1.0,) if norm_std is None else tuple(norm_std)


class _Direct(GradientDetector):
    """A detector that works on the images themselves and has nothing to fit."""

    def fit(self, data_loader=None, **kwargs) -> Detector:
        return self

    def _images(self, x: Tensor) -> Tensor:
        if self.source is None:
            raise ModelNotSetException(f"{type(self).__name__} needs a network")
        return self._here(x)


class ODIN(_Direct):
    hyperparameter_space = {"temperature": [1, 10, 100, 1000], "eps": [0.0014, 0.0028]}
    ranges = {"temperature": TEMPERATURE, "eps": AT_LEAST_0}

    def __init__(
        self,
        model,
        criterion: Callable | None = None,
        eps: float = 0.0014,
        temperature: float = 1000.0,
        norm_std: list[float] | None = None,
    ):
        super().__init__(detectors.create("msp"), model)
        self.criterion, self.eps = criterion, eps
        self.temperature, self.norm_std = temperature, norm_std

    def predict(self, x: Tensor) -> Tensor:
        settings = (self.criterion, self.eps, self.temperature, self.norm_std)
        moved = odin_preprocessing(self.source, self._images(x), None, *settings)
        with torch.no_grad():
            logits = self.source(moved) / self.temperature
        score = lambda rows: chunked_score(self.formula, logits_alone(rows))
        return pixelwise(score, logits, "ODIN")


class MahalanobisODIN(GradientDetector):
    requires_fit = needs_labels = True
    fields = {"eps": ("magnitude", float)}
    ranges = {"eps": AT_LEAST_0}
    encoder = network_as("images -> pooled features")

    def __init__(self, encoder, eps: float = 0.002, norm_std: list[float] | None = None):
        super().__init__(detectors.create("mds_odin", magnitude=eps), encoder)
        self.eps, self.norm_std = eps, norm_std

    @also(labels="y")
    def fit_features(self, z: Tensor, y: Tensor) -> Detector:
        """Fit to features (N, D) and labels (N,)."""
        return self._fit(pooled_features(z.detach(), self._name), y)

    def predict(self, x: Tensor) -> Tensor:
        if self.source is None:
            raise ModelNotSetException("MahalanobisODIN needs a network")
        std = _std(self.norm_std, x, self._name)
        with torch.inference_mode(False), torch.enable_grad():
            x = self._here(x).detach().clone().requires_grad_()
            encoder = _Encoder(self._represent)
            features = encoder.features(x)
            self._check_shapes(features)
            images = Pass(encoder, x, features, features, std)
            return self.formula.score_images(images).detach()

    def _represent(self, x: Tensor) -> Tensor:
        return pooled_features(super()._represent(x), self._name)

    _outputs = FeaturesDetector._outputs


class _Encoder:
    """An encoder as the method `features` of an object."""

    def __init__(self, encoder: Callable[[Tensor], Tensor]):
        self.features = encoder


class _OverParameters(_Direct):
    """A detector on the gradients of the parameters that `param_filter` chooses."""

    def __init__(self, formula, model: nn.Module, param_filter: Callable[[str], bool] | None):
        super().__init__(formula, model)
        self.param_filter = param_filter or (lambda name: True)

    def _gradients(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], power: int, group: int
    ) -> Tensor:
        """Sum |gradient|^power over the chosen parameters, (B,), for `group` images at a time."""
        x = self._images(x)
        names = [name for name, _ in self.source.named_parameters()]
        if not any(map(self.param_filter, names)):
            raise InputError(
                f"{type(self).__name__}: param_filter chooses none of the network's parameters: "
                f"{', '.join(names[:5])}, ..."
            )
        sums = [
            squared_gradients(self.source, part, loss, power, self.param_filter)
            for part in x.split(group)
        ]
        return torch.cat(sums)


class GradNorm(_OverParameters):
    """Norm of the gradient over all parameters that `param_filter` chooses.

    The paper takes the last weight. Our detector `gradnorm` has that in closed form.
    """

    ranges = {"micro_batch_size": COUNT, "temperature": TEMPERATURE}

    def __init__(
        self,
        model: nn.Module,
        param_filter: Callable[[str], bool] | None = None,
        micro_batch_size: int = 32,
        temperature: float = 1.0,
    ):
        super().__init__(detectors.create("gradnorm", temperature=temperature), model, param_filter)
        self.micro_batch_size, self.temperature = micro_batch_size, temperature

    def predict(self, x: Tensor) -> Tensor:
        loss = lambda logits: -(logits / self.temperature).log_softmax(1).mean()
        return -self._gradients(x, loss, 1, self.micro_batch_size)


class GradUncertainty(_OverParameters):
    """The softmax form with pytorch-ood's sign. The paper's form is our detector `gradunc`."""

    def __init__(self, model: nn.Module, param_filter: Callable[[str], bool] | None = None):
        super().__init__(detectors.create("gradunc", output="softmax"), model, param_filter)

    def predict(self, x: Tensor) -> Tensor:
        return -self._gradients(x, self.formula.loss, 2, max(1, len(x)))


class MCD(Detector):
    """Monte Carlo dropout: our `dropout`, with masks from torch's global generator.

    With batch_norm=True, batch norm keeps to its running statistics. With batch_norm=False it uses
    those of the batch in every pass. The network and its running statistics are afterwards what
    they were before; pytorch-ood leaves them changed. Without dropout layers all passes agree, and
    the variance is 0 for every image.
    """

    ranges = {"n_samples": COUNT}
    model = network_as("images -> logits")

    def __init__(
        self, model: nn.Module, samples: int = 30, mode: str = "var", batch_norm: bool = True
    ):
        super().__init__(detectors.create("dropout", samples=samples, mode=mode), model)
        self.n_samples, self.mode, self.batch_norm = samples, mode, batch_norm

    def fit(self, data_loader=None, **kwargs) -> MCD:
        return self

    def predict(self, x: Tensor) -> Tensor:
        x = self._here(x)
        if self.mode == "var":
            return self.run(self.source, x, self.n_samples, self.batch_norm)[1]
        return -self.run_mean(self.source, x, self.n_samples, self.batch_norm).amax(1)

    @staticmethod
    @torch.no_grad()
    def run(
        model: nn.Module, x: Tensor, samples: int, batch_norm: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Maximum of the mean softmax, and its variance averaged over the classes.

        Returns: (B,) each, or (B, H, W) each where the network gives maps of logits.
        """
        mean = spread = 0.0
        for n, p in enumerate(_softmaxes(model, x, samples, batch_norm), 1):
            change = p - mean
            mean = mean + change / n
            spread = spread + change * (p - mean)
        return mean.amax(1), spread.mean(1) / max(1, samples - 1)

    @staticmethod
    @torch.no_grad()
    def run_mean(model: nn.Module, x: Tensor, samples: int, batch_norm: bool = True) -> Tensor:
        """Mean softmax over the passes, (B, C) or (B, C, H, W)."""
        return sum(_softmaxes(model, x, samples, batch_norm)) / samples


def _softmaxes(model: nn.Module, x: Tensor, samples: int, batch_norm: bool) -> Iterator[Tensor]:
    """Softmax of `samples` passes in training mode. Restores modes and running statistics."""
    if model is None:
        raise ModelNotSetException("MCD needs a network")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    changed = []
    if not model.training:
        still = norms if batch_norm else []
        changed = [m for m in model.modules() if not m.training and m not in still]
    kept = {tensor: tensor.clone() for m in norms for tensor in m.buffers()}
    for module in changed:
        module.training = True
    try:
        for _ in range(samples):
            yield model(x).double().softmax(1)
    finally:
        for module in changed:
            module.training = False
        for tensor, before in kept.items():
            tensor.copy_(before)
