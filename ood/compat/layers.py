"""pytorch-ood's detectors of feature maps, of several layers, of gradients and of repeated passes."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ood import detectors
from ood.compat.base import Detector, FeatureMapsDetector, FeaturesDetector, ModelNotSetException, fraction, labels_of, shaped
from ood.config import InputError
from ood.detectors.base import chunked_score
from ood.detectors.gradients import squared_gradients
from ood.detectors.inputs import perturb
from ood.detectors.maps import gram_rows, remove_rank1
from ood.outputs import Outputs, Pass


# feature maps
class ASH(FeatureMapsDetector):
    space = {"percentile": [0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]}
    fields = {"percentile": ("percentile", lambda p: fraction("percentile", p))}

    def __init__(self, backbone, head, variant: str = "ash-s", percentile: float = 0.65, detector=None):
        super().__init__(shaped("ash", detector, variant=variant.removeprefix("ash-")), backbone, head)
        self.percentile = percentile


class SCALE(FeatureMapsDetector):
    space, fields = ASH.space, ASH.fields

    def __init__(self, backbone, head, percentile: float = 0.65, detector=None):
        super().__init__(shaped("scale", detector), backbone, head)
        self.percentile = percentile


class ReAct(FeatureMapsDetector):
    space = {"percentile": [0.85, 0.9, 0.95, 0.99]}
    fields = {**ASH.fields, "threshold": ("threshold", lambda t: t)}

    def __init__(self, backbone, head, threshold: float | None = None, percentile: float = 0.9, detector=None):
        super().__init__(shaped("react", detector), backbone, head)
        self.percentile, self.threshold = percentile, threshold


class VRA(FeatureMapsDetector):
    """Clips every position of the map to its own quantiles, as pytorch-ood does; the paper's form is our `vra`."""
    space = {"upper_percentile": [0.85, 0.9, 0.95, 0.99], "lower_percentile": [0.01, 0.05, 0.1, 0.15]}
    fields = {f"{side}_percentile": (side, lambda p: fraction("percentile", p)) for side in ("lower", "upper")}

    def __init__(self, backbone, head, lower_percentile: float = 0.01, upper_percentile: float = 0.99, detector=None):
        super().__init__(shaped("vra", detector, below="clip", per_feature=True), backbone, head)
        self.lower_percentile, self.upper_percentile = lower_percentile, upper_percentile
        if lower_percentile > upper_percentile:
            raise ValueError(f"lower_percentile ({lower_percentile}) must not exceed upper_percentile ({upper_percentile})")


class RankFeat(FeatureMapsDetector):
    def __init__(self, backbone, head, detector=None):
        super().__init__(shaped("rankfeat", detector), backbone, head)

    def _outputs(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        with torch.no_grad():
            logits = self.head(remove_rank1(z.detach().float()))
        return Outputs(z.new_zeros(len(z), 0), logits, labels_of(labels, z), None, scores={self.formula.key: logits})


# several layers
class MultiMahalanobis(Detector):
    """`model`: modules that follow one another; each one's output, averaged over its map, is a stage."""

    def __init__(self, model: list[nn.Module], alpha: list[float] | None = None):
        super().__init__(detectors.create("mds_ensemble", weights=alpha), list(model))

    def fit_structured(self, zs: list[Tensor], y: Tensor) -> MultiMahalanobis:
        return self._fit(zs, y)

    @torch.no_grad()
    def predict_structured(self, zs: list[Tensor]) -> Tensor:
        return self._score(zs)

    def _represent(self, x: Tensor) -> list[Tensor]:
        x, stages = x if self._device is None else x.to(self._device), []
        for module in self.source:
            x = module(x)
            stages.append(x.flatten(2).mean(2) if x.dim() > 2 else x)
        return stages

    def _outputs(self, z: list[Tensor], labels: Tensor | None = None) -> Outputs:
        return Outputs(z[-1], z[-1].new_zeros(len(z[-1]), 0), labels_of(labels, z[-1]), None, taps=tuple(z))


class Gram(Detector):
    """`feature_layers` follow one another, `head` gives logits of the last one's output. Ranges are those of the predicted class."""

    def __init__(self, head, feature_layers: list[nn.Module], num_classes: int, num_poles_list: list[int] | None = None):
        powers = tuple(num_poles_list or range(1, len(feature_layers) + 1))
        super().__init__(detectors.create("gram", powers=powers), list(feature_layers), head)
        self.num_classes = num_classes

    def _represent(self, x: Tensor) -> list[Tensor]:
        x, maps = x if self._device is None else x.to(self._device), []
        for module in self.source:
            x = module(x)
            maps.append(x)
        return self._measure(self.head(x), maps)

    def _measure(self, logits: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """[logits, the maps' widths as empty arrays and their Gram rows]: what fit and score need."""
        rows = torch.cat([gram_rows(m.detach().float(), p) for m in maps for p in self.formula.powers], 1)
        return [logits, rows, *(m.new_zeros(len(m), m.shape[1]) for m in maps)]

    @torch.no_grad()
    def predict_structured(self, logits: Tensor, feature_list: list[Tensor]) -> Tensor:
        return self._score(self._measure(logits, feature_list))

    def _outputs(self, z: list[Tensor], labels: Tensor | None = None) -> Outputs:
        logits, rows, *widths = z
        return Outputs(rows, logits, labels_of(labels, logits), None, taps=tuple(widths), scores={self.formula.key: rows})


class NACUE(Detector):
    """`layers`: modules of `model` whose outputs are covered. One steepness, number of bins and saturation for all of them."""

    def __init__(self, model: nn.Module, layers: list[nn.Module], m_bins: int = 50, alpha: float = 100.0, o_star: int = 50):
        super().__init__(detectors.create("nac_stages", bins=m_bins, alpha=float(alpha), saturation=float(o_star)), model)
        self.layers = list(layers)

    def _represent(self, x: Tensor) -> list[Tensor]:
        if self.source is None:
            raise ModelNotSetException("NACUE was made without a network")
        maps: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda module, inputs, output: maps.append(output)) for layer in self.layers]
        try:
            with torch.enable_grad():
                logits = self.source((x if self.device is None else x.to(self.device)).detach().requires_grad_())
                states = self.formula.score_images(Pass(self.source, x, logits, logits, (1.0,), tuple(maps)))
        finally:
            for hook in hooks:
                hook.remove()
        return [states, *(m.new_zeros(len(m), m.shape[1]) for m in maps)]

    def _outputs(self, z: list[Tensor], labels: Tensor | None = None) -> Outputs:
        states, *widths = z
        return Outputs(states, states.new_zeros(len(states), 0), labels_of(labels, states), None, taps=tuple(widths), scores={self.formula.key: states})


# gradients and repeated passes
def odin_preprocessing(model, x: Tensor, y: Tensor | None = None, criterion: Callable | None = None, eps: float = 0.0014,
                       temperature: float = 1000.0, norm_std: list[float] | None = None) -> Tensor:
    """x - eps * sign(gradient of criterion(model(x) / T, y)) / norm_std; a zero gradient counts as +1, as in the authors' code."""
    if model is None:
        raise ModelNotSetException("ODIN needs a network")
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        logits = model(x) / temperature
        loss = (criterion or cross_entropy)(logits, logits.detach().argmax(1) if y is None else y)
    return perturb(x, loss, eps, tuple(norm_std or (1.0,) * x.shape[1]))


class _Direct(Detector):
    """A detector that does its work on the images themselves: it has nothing to fit."""

    def _images(self, x: Tensor) -> Tensor:
        if self.source is None:
            raise ModelNotSetException(f"{type(self).__name__} needs a network")
        return x if self.device is None else x.to(self.device)


class ODIN(_Direct):
    space = {"temperature": [1, 10, 100, 1000], "eps": [0.0014, 0.0028]}

    def __init__(self, model, criterion: Callable | None = None, eps: float = 0.0014, temperature: float = 1000.0, norm_std: list[float] | None = None):
        super().__init__(detectors.create("msp"), model)
        self.criterion, self.eps, self.temperature, self.norm_std = criterion, eps, temperature, norm_std

    def predict(self, x: Tensor) -> Tensor:
        moved = odin_preprocessing(self.source, self._images(x), None, self.criterion, self.eps, self.temperature, self.norm_std)
        with torch.no_grad():
            logits = self.source(moved) / self.temperature
        return chunked_score(self.formula, Outputs(logits.new_zeros(len(logits), 0), logits, labels_of(None, logits), None))


class MahalanobisODIN(FeaturesDetector):
    def __init__(self, encoder, eps: float = 0.002, norm_std: list[float] | None = None):
        super().__init__(detectors.create("mds_odin", magnitude=eps), encoder)
        self.eps, self.norm_std = eps, norm_std

    def predict(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = (x if self.device is None else x.to(self.device)).detach().clone().requires_grad_()
            features = self.source(x)
            std = tuple(self.norm_std or (1.0,) * x.shape[1])
            return self.formula.score_images(Pass(_Encoder(self.source), x, features, features, std)).detach()

    def _score(self, z: Tensor) -> Tensor:
        raise InputError("MahalanobisODIN perturbs images: call predict")


class _Encoder:
    """Something whose `features` is an encoder."""

    def __init__(self, encoder: Callable[[Tensor], Tensor]):
        self.features = encoder


class GradNorm(_Direct):
    """Over all parameters that `param_filter` chooses (the paper: the last weight, our `gradnorm` in closed form)."""

    def __init__(self, model: nn.Module, param_filter: Callable[[str], bool] | None = None, micro_batch_size: int = 32, temperature: float = 1.0):
        super().__init__(detectors.create("gradnorm", temperature=temperature), model)
        self.param_filter, self.temperature = param_filter or (lambda name: True), temperature

    def predict(self, x: Tensor) -> Tensor:
        loss = lambda logits: -(logits / self.temperature).log_softmax(1).mean()        # noqa: E731
        return -squared_gradients(self.source, self._images(x), loss, 1, self.param_filter)


class GradUncertainty(_Direct):
    """The softmax form with pytorch-ood's sign; the paper's is our `gradunc`."""

    def __init__(self, model: nn.Module, param_filter: Callable[[str], bool] | None = None):
        super().__init__(detectors.create("gradunc", output="softmax"), model)
        self.param_filter = param_filter or (lambda name: True)

    def predict(self, x: Tensor) -> Tensor:
        return -squared_gradients(self.source, self._images(x), self.formula.loss, 2, self.param_filter)


class MCD(_Direct):
    def __init__(self, model: nn.Module, samples: int = 30, mode: str = "var", batch_norm: bool = True):
        if not batch_norm:
            raise InputError("MCD: batch_norm=False lets every pass change the network's statistics; here they stay fixed")
        super().__init__(detectors.create("dropout", samples=samples, mode=mode), model)

    def predict(self, x: Tensor) -> Tensor:
        x = self._images(x)
        return self.formula.score_images(Pass(self.source, x, x, x, (1.0,)))
