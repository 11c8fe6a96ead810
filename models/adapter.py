"""Use any network as a Classifier: torchvision's, timm's, transformers', your own.

net = models.adapt(torchvision.models.resnet18(weights="DEFAULT"))
net.features(images)   # (N, 512), the input of its last linear layer

A network may end in an nn.Linear, in a 1x1 convolution of pooled maps, in the average of two linear
layers (distilled transformers) or in a cosine layer; see `heads.py`. It may return logits alone,
or in a dict, a tuple or an object with `logits`. It may be wrapped by DataParallel,
DistributedDataParallel or torch.compile. A feature extractor without a head needs `headless=True`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import heads
from .classifier import (
    COMMON,
    TORCHVISION,
    Activations,
    Classifier,
    ModelError,
    average,
    device_of,
    one_of,
    require,
)

# (channels, side) that are tried when nothing says what the network takes
PROBES = ((3, 32), (3, 224), (1, 28), (3, 64), (1, 32), (3, 28), (3, 384))
TOLERANCE = 1e-4
LOGITS = (
    "logits",
    "out",
    "output",
    "preds",
)  # where a network that returns several things has them


def _same(x: Tensor) -> Tensor:
    return x


# functions that a network may call between its last module and the pool
ACTIVATIONS = (_same, F.relu, F.hardswish, F.silu, F.gelu)


class Adapted(Classifier):
    """Another library's network; hooks catch the input of its head as the features.

    State-dict keys are the network's own behind `network.`.

    `stages` and `feature_maps` hold one map. It is the last tensor (N, C, H, W) whose mean,
    possibly after an activation, equals the features. Maps with the channels last (Swin) and
    sequences of tokens (N, T, C) whose mean equals the features count as such maps. If there is
    none, it is the last tensor at a pooling layer, and `embed` raises a ModelError. If there is
    none either (vision transformers with a class token), `stages` and `feature_maps` raise a
    ModelError.

    Attributes:
        head: dotted name of the head; "" without one.
        headless: whether it is a feature extractor: `fc` then has no outputs, logits are (N, 0).
    """

    def __init__(self, network: nn.Module, head: heads.Head, arch: dict):
        super().__init__()
        self.network, self.arch = network, arch
        self._head = head
        self._width = 0  # of the features of a network without a head
        # adapt() sets these: the map's activation before it is averaged, and where it is caught
        self._activation: Callable[[Tensor], Tensor] | None = None
        self._map_module: str | None = None
        self._map_is_input = False
        self._layout = "maps"

    @property
    def head(self) -> str:
        return self._head.names[0] if self._head.names else ""

    @property
    def headless(self) -> bool:
        return not self._head.names

    @property
    def fc(self) -> nn.Linear:
        if self.headless:
            some = next(self.network.parameters(), torch.empty(0))
            return heads.as_linear(some.new_empty(0, self._width), None)
        return self._head.linear(self.network)

    def forward(self, images: Tensor) -> Tensor:
        if self.headless:
            return self._run(images)[0]
        return logits_of(self.network(images))

    def features(self, images: Tensor) -> Tensor:
        return self._run(images)[1]

    def stages(self, images: Tensor) -> list[Tensor]:
        return [self._last_map(self._run(images)[2])]

    def finish(self, stages: list[Tensor]) -> list[Tensor]:
        return stages if self._activation is None else [self._activation(stages[-1])]

    def embed(self, last_map: Tensor) -> Tensor:
        if self._activation is None:
            raise ModelError(
                f"the features of {self._title()} are not the mean of its last feature map; "
                "use features(images)"
            )
        return average(last_map, None)

    def everything(self, images: Tensor) -> Activations:
        """Return what one pass gives; without a last map, `maps` and `stages` are empty."""
        logits, features, last = self._run(images)
        stages = [] if last is None else [last]
        maps = self.finish(stages) if stages else []
        return Activations(logits, features, maps, stages, self.pool_taps(stages, maps, features))

    def pool_taps(self, stages, maps, features) -> list[Tensor]:
        if self._activation is not None:  # the pooled map equals the features
            return [features]
        return [average(m, None) for m in maps] + [features]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (logits, features, last map or None) of one pass."""
        caught: dict[str, Tensor] = {}

        def catch(name):
            def hook(_, inputs):
                caught[name] = inputs[0]

            return hook

        def catch_input(_, inputs):
            caught["map"] = inputs[0]

        def catch_output(_, __, output):
            caught["map"] = output

        hooks = [
            self.network.get_submodule(name).register_forward_pre_hook(catch(f"head {name}"))
            for name in self._head.names
        ]
        if self._map_module is not None:
            module = self.network.get_submodule(self._map_module)
            if self._map_is_input:
                hooks.append(module.register_forward_pre_hook(catch_input))
            else:
                hooks.append(module.register_forward_hook(catch_output))
        try:
            output = self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        last = as_map(caught["map"], self._layout) if "map" in caught else None
        if self.headless:
            features = logits_of(output)
            return features.new_empty(len(features), 0), features, last
        inputs = [caught[f"head {name}"] for name in self._head.names]
        return logits_of(output), self._head.read(inputs), last

    def _last_map(self, last: Tensor | None) -> Tensor:
        if last is None:
            raise ModelError(
                f"{self._title()} has no feature map (N, C, H, W) that a hook can catch; "
                "choose detectors that need features or logits only"
            )
        return last

    def _title(self) -> str:
        return self.arch.get("network") or self.arch["arch"]


def adapt(
    network: nn.Module,
    head: str | None = None,
    *,
    in_channels: int | None = None,
    image_size: int | None = None,
    headless: bool = False,
) -> Classifier:
    """Wrap a network as a Classifier; its head is found by running it.

    Args:
        network: maps images (N, C, H, W) to logits (N, num_classes). A Classifier is returned
            unchanged.
        head: dotted name of the head, if it is another nn.Linear.
        in_channels, image_size: of the images that are tried; None: what the network says, else
            common sizes.
        headless: the network is a feature extractor: its output (N, D) is the features.

    Returns:
        A Classifier in the mode (train or eval) of `network`.

    Raises:
        ModelError: there is no head, the network accepts no image that is tried, or fc(features)
            differs from the logits.
    """
    network = unwrapped(network)
    if isinstance(network, Classifier):
        return network
    title = type(network).__name__
    if head is not None:
        linears = [n for n, module in network.named_modules() if isinstance(module, nn.Linear)]
        one_of(f"head of {title}", head, linears)
    training = network.training
    network.eval()
    try:
        images = _probe(network, title, in_channels, image_size)
        if headless:
            adapted = _headless(network, images, title)
        else:
            named = None if head is None else [heads.Head((head,))]
            adapted = _with_head(network, named, images, title)
        _find_map(adapted, images)
    finally:
        network.train(training)
    return adapted.train(training)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if hasattr(network, "_orig_mod"):
            network = network._orig_mod
        elif isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        else:
            return network


def logits_of(output) -> Tensor:
    """Return the logits in what a network returned: alone, or in a dict, a tuple or an object."""
    if isinstance(output, Tensor):
        return output
    for key in LOGITS:
        if isinstance(output, dict) and isinstance(output.get(key), Tensor):
            return output[key]
        if isinstance(getattr(output, key, None), Tensor):
            return getattr(output, key)
    parts = output.values() if isinstance(output, dict) else output
    if isinstance(parts, Iterable):
        return next(
            (part for part in parts if isinstance(part, Tensor) and part.dim() == 2), output
        )
    return output


def as_map(values: Tensor, layout: str) -> Tensor:
    """Bring what a hook caught to (N, C, H, W).

    Args: layout: "maps" (N, C, H, W), "channels_last" (N, H, W, C), or "tokens" (N, T, C), which
        become a square where their number allows one, else a column.
    """
    if layout == "channels_last":
        return values.permute(0, 3, 1, 2)
    if layout == "tokens":
        count = values.shape[1]
        side = math.isqrt(count)
        shape = (side, side) if side * side == count else (count, 1)
        return values.transpose(1, 2).unflatten(2, shape)
    return values


def _headless(network: nn.Module, images: Tensor, title: str) -> Adapted:
    """Wrap a feature extractor."""
    with torch.no_grad():
        features = logits_of(network(images))
    arch = {**_arch(title, images), "head": "", "num_classes": 0}
    adapted = Adapted(network, heads.NoHead(()), arch)
    adapted._width = features.shape[1]
    return adapted


def _with_head(
    network: nn.Module, named: list[heads.Head] | None, images: Tensor, title: str
) -> Adapted:
    """Wrap a network with the first head that gives its logits.

    Raises: ModelError, the one of the likeliest head.
    """
    problem = None
    for head in heads.candidates(network, images, title) if named is None else named:
        adapted = Adapted(network, head, _arch(title, images))
        try:
            _check(adapted, images, title)
        except ModelError as error:
            problem = problem or error
            continue
        adapted.arch.update(head=adapted.head, num_classes=adapted.fc.out_features)
        return adapted
    raise problem


def _arch(title: str, images: Tensor) -> dict:
    return {
        "arch": "adapted",
        "network": title,
        "head": "",
        "num_classes": 0,
        "in_channels": images.shape[1],
        "image_size": images.shape[2],
    }


def build_torchvision(
    arch: str, num_classes: int, in_channels: int | None, image_size: int | None, **options
) -> Classifier:
    """Build torchvision_<name>, for example torchvision_resnet50.

    Args:
        in_channels: 3, or None.
        image_size: side of the input in pixels; None: 224. Vision transformers are built for it.
        options: weights: 'DEFAULT', 'IMAGENET1K_V1', ...; torchvision downloads them on first use.
            If they have another number of classes, the head is new. Without this option all weights
            are new. It is not kept in `arch`: who builds the network again has its state dict.

    Raises:
        ModelError: unknown network or weights, torchvision is missing, or the download failed.
    """
    for key in options:
        one_of(f"option of {arch}", key, ("weights",))
    weights = options.get("weights")
    try:
        import torchvision
    except ImportError as error:
        raise ModelError(f"{arch} needs torchvision (pip install torchvision): {error}") from None
    zoo = torchvision.models
    name = arch.removeprefix(TORCHVISION)
    one_of("torchvision network", name, zoo.list_models(module=zoo))
    require(in_channels in (None, 3), f"{arch} takes 3 channels, got in_channels={in_channels}")
    size = image_size or 224
    arguments = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"init_weights": True, "aux_logits": bool(weights)}
    if weights:
        published = ["DEFAULT", *(w.name for w in zoo.get_model_weights(name))]
        one_of(f"weights of {name}", weights, published)
        arguments["weights"] = weights
    else:
        arguments["num_classes"] = num_classes
    try:
        network = zoo.get_model(name, **arguments)
    except (OSError, ValueError) as error:
        what = f" with weights={weights!r} (they are downloaded on first use)" if weights else ""
        raise ModelError(f"{arch}{what}: {error}") from None
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
    adapted = adapt(network, in_channels=3, image_size=size)
    if adapted.fc.out_features != num_classes:
        new_head(adapted, num_classes)
    adapted.arch = {"arch": arch, **dict(zip(COMMON, (num_classes, 3, size)))}
    return adapted


def new_head(adapted: Adapted, num_classes: int) -> None:
    """Give an adapted network a fresh linear head, in place.

    Raises: ModelError if its head is no nn.Linear of its own.
    """
    old = adapted.fc
    if type(adapted._head) is not heads.Head:
        raise ModelError(
            f"the head of {adapted._title()} has {old.out_features} outputs and cannot be replaced "
            f"by one with {num_classes}; use its own classes"
        )
    parent, _, child = adapted.head.rpartition(".")
    head = nn.Linear(old.in_features, num_classes, old.bias is not None)
    setattr(adapted.network.get_submodule(parent), child, head.to(old.weight.device))
    adapted.arch["num_classes"] = num_classes


def downloaded(arch: str, weights: str) -> Path:
    """Return the file in which torchvision keeps published weights, whether or not it is there.

    Args:
        arch: torchvision_<name>.
        weights: 'DEFAULT', 'IMAGENET1K_V1', ...

    Raises: ModelError for an unknown network or unknown weights.
    """
    import torchvision

    zoo, name = torchvision.models, str(arch).removeprefix(TORCHVISION)
    one_of("torchvision network", name, zoo.list_models(module=zoo))
    published = zoo.get_model_weights(name)
    one_of(f"weights of {name}", weights, ["DEFAULT", *(w.name for w in published)])
    url = urlparse(published[weights].url)
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url.path).name


# what `adapt` finds out with a probe batch


def _probe(
    network: nn.Module, title: str, in_channels: int | None, image_size: int | None
) -> Tensor:
    """Return two random images that the network accepts."""
    settings = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    said = settings.get("input_size") if isinstance(settings, dict) else None
    conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = in_channels or (said[0] if said else conv.in_channels if conv is not None else None)
    own = image_size or getattr(network, "image_size", None) or (said[-1] if said else None)
    tries = [
        (c, s)
        for c, s in ((channels or 3, own), *PROBES)
        if s and c == (channels or c) and s == (image_size or s)
    ]
    generator, error = torch.Generator().manual_seed(0), None
    for c, side in dict.fromkeys(tries or [(channels or 3, image_size or 32)]):
        images = torch.rand(2, c, side, side, generator=generator).to(device_of(network))
        try:
            with torch.no_grad():
                logits = logits_of(network(images))
        except Exception as problem:  # a network may refuse an input in any way
            error = problem
            continue
        if isinstance(logits, Tensor) and logits.ndim == 2:
            return images
        error = f"it returned {_describe(logits)} instead of logits (N, num_classes)"
    tried = ", ".join(f"{c} x {s} x {s}" for c, s in dict.fromkeys(tries))
    raise ModelError(
        f"{title} could not be run on a probe batch (tried {tried}): "
        f"{str(error).splitlines()[0][:160]}; pass in_channels and image_size"
    )


def _check(adapted: Adapted, images: Tensor, title: str) -> None:
    """Raise a ModelError unless fc(features) equals the logits."""
    try:
        with torch.no_grad():
            logits, features, _ = adapted._run(images)
            if features.ndim != 2:
                raise ModelError(
                    f"the head {adapted.head!r} of {title} is given {tuple(features.shape)} "
                    "instead of (N, D); name another head"
                )
            again = adapted.fc(features)
    except (RuntimeError, IndexError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{adapted.head!r} is no head of {title}: {reason}") from None
    if again.shape != logits.shape or not torch.allclose(
        again, logits, rtol=TOLERANCE, atol=TOLERANCE * float(logits.abs().max())
    ):
        raise ModelError(
            f"{title} does not end in its linear layer {adapted.head!r}: fc(features) differs from "
            "its output; remove what follows (softmax, scaling) or name the head"
        )


def _find_map(adapted: Adapted, images: Tensor) -> None:
    """Find the last map, as the docstring of Adapted says, and note it in `adapted`."""
    seen, features = _tensors(adapted, images)
    calls = Counter((name, is_input) for name, is_input, _ in seen)
    # where a module runs twice, a hook would keep the wrong tensor
    once = [entry for entry in reversed(seen) if calls[entry[:2]] == 1]
    tolerance = TOLERANCE * float(features.abs().max())
    for name, is_input, tensor in once:
        for layout in _layouts(tensor, features.shape[1]):
            values = as_map(tensor, layout)
            for activation in ACTIVATIONS if layout == "maps" else ACTIVATIONS[:1]:
                pooled = average(activation(values), None)
                if torch.allclose(pooled, features, rtol=TOLERANCE, atol=tolerance):
                    adapted._map_module, adapted._map_is_input = name, is_input
                    adapted._activation, adapted._layout = activation, layout
                    return
    for name, is_input, tensor in once:
        is_pool = "Pool" in type(adapted.network.get_submodule(name)).__name__
        if is_pool and tensor.dim() == 4:
            adapted._map_module, adapted._map_is_input = name, is_input
            return


def _layouts(tensor: Tensor, width: int) -> list[str]:
    """Return the layouts in which a tensor may be a map with so many channels."""
    if tensor.dim() == 3:
        return ["tokens"] if tensor.shape[2] == width else []
    return [
        layout
        for layout, channels in (("maps", tensor.shape[1]), ("channels_last", tensor.shape[3]))
        if channels == width
    ]


def _tensors(adapted: Adapted, images: Tensor) -> tuple[list[tuple[str, bool, Tensor]], Tensor]:
    """Return the maps and tokens that modules take or give, in order, and the features.

    An entry is (module name, whether it is the module's input, tensor). The images are large enough
    to keep the last map larger than 1 x 1, if the network takes such images.
    """
    seen: list[tuple[str, bool, Tensor]] = []

    def note(name, is_input, value):
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            return
        if value.ndim == 3 and value.shape[1] > 1 or value.ndim == 4 and _is_map(value):
            seen.append((name, is_input, value))

    def note_input(_, inputs, name):
        note(name, True, inputs[0] if inputs else None)

    def note_output(_, __, output, name):
        note(name, False, output)

    hooks = []
    for name, module in adapted.network.named_modules():
        if name and name not in adapted._head.names:
            hooks += [
                module.register_forward_pre_hook(partial(note_input, name=name)),
                module.register_forward_hook(partial(note_output, name=name)),
            ]
    large = F.interpolate(images, (96, 96)) if images.shape[2] < 96 else images
    try:
        with torch.no_grad():
            try:
                return seen, adapted._run(large)[1]
            except Exception:  # built for one size: keep to it
                seen.clear()
                return seen, adapted._run(images)[1]
    finally:
        for hook in hooks:
            hook.remove()


def _is_map(value: Tensor) -> bool:
    """Whether more than one place is left, whichever axis holds the channels."""
    return min(value.shape[2:]) > 1 or min(value.shape[1:3]) > 1


def _describe(value) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
