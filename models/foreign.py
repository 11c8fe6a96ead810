"""Networks of other libraries and of your own, built by one spelling.

| spelling            | network                                                               |
|---------------------|-----------------------------------------------------------------------|
| torchvision:NAME    | of torchvision; also torchvision_NAME                                 |
| timm:NAME           | of timm, such as timm:vit_small_patch16_dinov3 (pip install timm)     |
| hf:NAME             | an image classifier of transformers: a name on the hub, or a folder   |
| FILE.py:FUNCTION    | what your own function returns                                        |
| FILE.pt2            | written by torch.export.save                                          |
| FILE.ts, FILE.torchscript | written by torch.jit.save                                       |

`build` runs code that the user named: a function in a file, or an exported graph. `rebuild`, which
serves what a weight or detector file says, never does, and it downloads nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import heads
from .adapter import Adapted, adapt, build_torchvision, logits_of, new_head
from .classifier import COMMON, TORCHVISION, Activations, Classifier, ModelError, one_of, require

TIMM, HF, ZOO = "timm:", "hf:", "torchvision:"
EXPORTED, SCRIPTED = (".pt2",), (".ts", ".torchscript")
HEADS = ("own", "none")  # of the option `head`: the network's, or its features alone
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def is_foreign(arch: str) -> bool:
    """Whether a name means a network that is not one of ours."""
    return (
        arch.startswith((TIMM, HF, ZOO, TORCHVISION))
        or ".py:" in arch
        or arch.lower().endswith((*EXPORTED, *SCRIPTED))
    )


def runs_code(arch: str) -> bool:
    """Whether building it runs code of a file that the user has to name himself."""
    return ".py:" in arch or arch.lower().endswith((*EXPORTED, *SCRIPTED))


def build(
    arch: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    **options,
) -> Classifier:
    """Build the network that `arch` spells; see the table of the module.

    Args:
        num_classes: of the head; None: the network's own. Another number than its own gives it a
            fresh head.
        in_channels, image_size: None: what the network was built for.
        options: `head` ("own", or "none" for the features alone) and `pretrained` (True: the
            published weights, downloaded on first use) where they apply, `weights` of torchvision,
            and the library's own options.

    Returns: a Classifier. Its `recipe` says how its pictures are prepared, if the library knows.

    Raises: ModelError: unknown name or option, a missing library, a failed download, or a network
        that is no classifier.
    """
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for prefix, make in (
        (TIMM, _timm),
        (HF, _hf),
        (ZOO, _torchvision),
        (TORCHVISION, _torchvision),
    ):
        if arch.startswith(prefix):
            return _named(make(arch, arch.removeprefix(prefix), **shape, **options), arch, options)
    if ".py:" in arch:
        return _named(_of_file(arch, **shape, **options), arch, options)
    require(not options, f"{arch} takes no options, got {', '.join(options)}")
    return _named(_of_graph(Path(arch), image_size, in_channels, num_classes), arch, {})


def recipe(network: nn.Module) -> dict | None:
    """Return how a network's pictures are prepared, or None where nothing says so.

    The keys: mean and std (per channel), size (side of the centre crop), resize (of the shorter
    side before it), interpolation ("bilinear", "bicubic", ...), channels.
    """
    return getattr(network, "recipe", None)


def _named(network: Classifier, arch: str, options: dict) -> Classifier:
    """Note the spelling and the options that build the network again."""
    kept = {k: v for k, v in options.items() if k not in ("pretrained", "weights")}
    own = {k: v for k, v in network.arch.items() if k in (*COMMON, "hf_config")}
    network.arch = {"arch": arch, **own, **kept}
    return network


def _finished(network: nn.Module, title: str, num_classes, in_channels, size, head) -> Adapted:
    """Wrap a network, with its own head, with a fresh one, or without one."""
    one_of(f"head of {title}", head, HEADS)
    wanted = dict(in_channels=in_channels, image_size=size)
    adapted = adapt(network, headless=head == "none", **wanted)
    if num_classes not in (None, 0) and adapted.fc.out_features != num_classes:
        require(head == "own", f"{title} with head=none has no classes, got {num_classes}")
        new_head(adapted, num_classes)
    return adapted


# ---- libraries -------------------------------------------------------------------------------


def _timm(
    arch, name, num_classes, in_channels, image_size, pretrained=False, head="own", **options
) -> Adapted:
    timm = _library("timm", arch)
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        known = name.partition(".")[0]
        one_of("timm network", known, timm.list_models())
    if num_classes is not None and head == "own":
        options["num_classes"] = num_classes
    if head == "none":
        options["num_classes"] = 0
    if in_channels:
        options["in_chans"] = in_channels
    network = None
    tries = [{"img_size": image_size}, {}] if image_size else [{}]
    for size in tries:  # networks of any size do not know img_size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = timm.create_model(name, pretrained=pretrained, **size, **options)
            break
        except TypeError as error:
            if size == tries[-1]:
                raise ModelError(f"{arch}: {_first(error)}") from None
        except Exception as error:  # a failed download has many kinds
            raise ModelError(f"{arch}: {_first(error)}") from None
    config = timm.data.resolve_data_config({}, model=network)
    channels, side = in_channels or config["input_size"][0], image_size or config["input_size"][-1]
    adapted = _finished(network, arch, num_classes, channels, side, head)
    adapted.recipe = {
        "mean": tuple(config["mean"][:channels]),
        "std": tuple(config["std"][:channels]),
        "size": side,
        "resize": max(side, int(side / config["crop_pct"])),
        "interpolation": config["interpolation"],
        "channels": channels,
    }
    return adapted


def _torchvision(arch, name, num_classes, in_channels, image_size, head="own", **options):
    one_of(f"head of {arch}", head, HEADS)
    require(head == "own", f"{arch} keeps its head; write timm:{name} for one without")
    pretrained = options.pop("pretrained", False)
    if pretrained and not options.get("weights"):
        options["weights"] = "DEFAULT"
    adapted = build_torchvision(TORCHVISION + name, num_classes, in_channels, image_size, **options)
    published = _zoo_weights(name, options.get("weights"))
    if published is not None:
        preset = published.transforms()
        side = image_size or preset.crop_size[0]
        adapted.recipe = {
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
            "size": side,
            "resize": max(side, preset.resize_size[0]),
            "interpolation": preset.interpolation.value,
            "channels": 3,
        }
    return adapted


def _zoo_weights(name: str, weights: str | None):
    if not weights:
        return None
    import torchvision

    published = torchvision.models.get_model_weights(name)
    return published.DEFAULT if weights == "DEFAULT" else published[weights]


def _hf(
    arch,
    name,
    num_classes,
    in_channels,
    image_size,
    pretrained=True,
    head="own",
    hf_config=None,
    **options,
) -> Adapted:
    transformers = _library("transformers", arch)
    require(not options, f"{arch} takes no option {', '.join(options)}")
    factory = transformers.AutoModelForImageClassification
    processor = None
    try:
        if hf_config is not None:
            values = {k: v for k, v in hf_config.items() if k != "model_type"}
            config = transformers.AutoConfig.for_model(hf_config["model_type"], **values)
            model = factory.from_config(config, trust_remote_code=False)
        elif pretrained:
            model = factory.from_pretrained(name, trust_remote_code=False)
            processor = _processor(transformers, name)
        else:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            model = factory.from_config(config, trust_remote_code=False)
            processor = _processor(transformers, name)
    except Exception as error:  # the hub, the config and the weights fail in many ways
        raise ModelError(f"{arch}: {_first(error)}") from None
    side = image_size or _side(model.config)
    adapted = _finished(model, arch, num_classes, in_channels, side, head)
    adapted.arch["hf_config"] = _plain(model.config.to_dict())
    if processor is not None:
        adapted.recipe = _processed(processor, side)
    return adapted


def _processor(transformers, name: str) -> dict | None:
    """The settings of the image processor of a hub model, or None where it has none."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(name).to_dict()
    except Exception:  # many models have none
        return None


def _processed(values: dict, side: int | None) -> dict:
    """A recipe from the settings of an image processor of transformers."""
    size = values.get("crop_size") or values.get("size") or side
    wanted = values.get("size") or size
    crop, resize = (
        v.get("height") or v.get("shortest_edge") if isinstance(v, dict) else v
        for v in (size, wanted)
    )
    filters = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    crop = side or crop
    return {
        "mean": tuple(values.get("image_mean") or IMAGENET["mean"]),
        "std": tuple(values.get("image_std") or IMAGENET["std"]),
        "size": crop,
        "resize": max(crop, resize or crop),
        "interpolation": filters.get(values.get("resample", 2), "bilinear"),
        "channels": len(values.get("image_mean") or IMAGENET["mean"]),
    }


def _side(config) -> int | None:
    side = getattr(config, "image_size", None)
    side = side[0] if isinstance(side, (list, tuple)) else side
    return side if isinstance(side, int) else None


def _plain(values: dict) -> dict:
    """What JSON and a weight file can hold of a configuration; the rest are defaults."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = {str(k): v for k, v in value.items()}
            if all(isinstance(v, (str, int, float, bool, type(None))) for v in value.values()):
                kept[key] = value
        elif isinstance(value, (str, int, float, bool, type(None))):
            kept[key] = value
        elif isinstance(value, (list, tuple)):
            if all(isinstance(v, (str, int, float, bool)) for v in value):
                kept[key] = list(value)
    return kept


# ---- files of your own -----------------------------------------------------------------------


def _of_file(arch, num_classes, in_channels, image_size, head="own", **options) -> Adapted:
    """What a function of your own returns; with head="none" it need not end in a head."""
    one_of(f"head of {arch}", head, HEADS)
    file, _, function = arch.rpartition(":")
    make = _function(Path(file), function, arch)
    common = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    try:
        accepted = inspect.signature(make).parameters
        free = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        known = {k: v for k, v in common.items() if v and (free or k in accepted)}
        unknown = [k for k in options if not free and k not in accepted]
        require(not unknown, f"{arch} takes no option {', '.join(unknown)}")
        network = make(**known, **options)
    except ModelError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"{arch} raised {type(error).__name__}: {_first(error)}") from error
    require(
        isinstance(network, nn.Module),
        f"{arch} returned a {type(network).__name__}, expected a torch.nn.Module",
    )
    shape = {"in_channels": in_channels, "image_size": image_size}
    try:
        adapted = adapt(network, **shape)
    except ModelError:
        if head != "none":
            raise
        adapted = adapt(network, headless=True, **shape)
    if num_classes not in (None, 0, adapted.fc.out_features):
        raise ModelError(
            f"{arch} returned a network with {adapted.fc.out_features} classes, expected "
            f"{num_classes}; give the function an argument num_classes"
        )
    if not isinstance(adapted, Adapted):  # one of ours: it says itself how it is built
        return adapted
    adapted.recipe = getattr(network, "recipe", None)
    return adapted


def _function(file: Path, name: str, arch: str) -> Callable:
    """The function `name` of a Python file."""
    require(file.is_file(), f"no file '{file}'; -arch FILE.py:FUNCTION takes a Python file")
    require(name.isidentifier(), f"'{name}' is no name of a function ({arch})")
    title = f"_arch_{file.stem}"
    spec = importlib.util.spec_from_file_location(title, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    sys.path.insert(0, str(file.resolve().parent))  # what lies beside it can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"'{file}' raised {type(error).__name__}: {_first(error)}") from error
    finally:
        sys.path.pop(0)
    functions = [key for key, value in vars(module).items() if callable(value)]
    one_of(f"function of '{file}'", name, functions)
    return getattr(module, name)


def _of_graph(file: Path, image_size, in_channels, num_classes) -> Classifier:
    require(file.is_file(), f"no file '{file}'")
    try:
        if file.suffix.lower() in EXPORTED:
            network = Exported(torch.export.load(str(file)).module())
        else:
            network = Scripted(torch.jit.load(str(file), map_location="cpu"))
    except ModelError:
        raise
    except Exception as error:  # damaged, foreign or newer files fail in many ways
        raise ModelError(f"'{file}' cannot be loaded: {_first(error)}") from None
    size, channels = image_size or 224, in_channels or 3
    with torch.no_grad():
        try:
            logits = network(torch.rand(2, channels, size, size))
        except Exception as error:
            raise ModelError(
                f"'{file}' does not take images (2, {channels}, {size}, {size}): {_first(error)}; "
                "export it for any batch size and give its image size"
            ) from None
    require(logits.dim() == 2, f"'{file}' gives {tuple(logits.shape)}, expected logits (N, C)")
    classes = logits.shape[1]
    require(
        num_classes in (None, classes), f"'{file}' has {classes} classes, expected {num_classes}"
    )
    network.arch = dict(zip(COMMON, (classes, channels, size)))
    return network


class Scripted(Classifier):
    """A TorchScript file. Nothing inside it can be caught, so its logits stand for the features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.classes = network, 0

    @property
    def fc(self) -> nn.Linear:
        return heads.as_linear(torch.eye(self.arch["num_classes"]), None)

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images))

    def features(self, images: Tensor) -> Tensor:
        return self(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        raise ModelError(
            "a TorchScript or exported file gives no feature maps; "
            "choose detectors that need features or logits only"
        )

    def everything(self, images: Tensor) -> Activations:
        logits, features = self(images), self.features(images)
        return Activations(logits, features, [], [], [features])


class Exported(Scripted):
    """A graph of torch.export; the input of its last linear operation is the features.

    Raises: ModelError if the graph does not end in such an operation.
    """

    def __init__(self, network: nn.Module):
        super().__init__(network)
        output = next(node for node in network.graph.nodes if node.op == "output")
        logits = _first_node(output.args[0])
        require(
            str(logits.target) in ("aten.linear.default", "aten.addmm.default"),
            f"the exported graph ends in {logits.target}, not in a linear layer; "
            "export the network without softmax",
        )
        values = list(logits.args)
        if str(logits.target) == "aten.addmm.default":
            raise ModelError("the exported graph was decomposed; export it with torch.export alone")
        self.weight_name = values[1].target
        self.bias_name = values[2].target if len(values) > 2 and values[2] is not None else None
        network.graph.erase_node(output)
        network.graph.output((logits, values[0]))
        network.graph._codegen = torch.fx.graph.CodeGen()  # plain inputs, a plain tuple out
        network.recompile()

    @property
    def fc(self) -> nn.Linear:
        bias = None if self.bias_name is None else _attribute(self.network, self.bias_name)
        return heads.as_linear(_attribute(self.network, self.weight_name), bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]

    def features(self, images: Tensor) -> Tensor:
        return self.network(images)[1]

    def train(self, mode: bool = True) -> Exported:
        self.training = mode  # an exported graph has no modes and refuses to be asked
        return self


def _first_node(value):
    while isinstance(value, (tuple, list)):
        value = value[0]
    return value


def _attribute(module: nn.Module, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _library(name: str, arch: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{arch} needs {name} (pip install {name}): {_first(error)}") from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
