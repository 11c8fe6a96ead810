"""Networks that classify every pixel: torchvision's, segmentation-models-pytorch's, a small one.

network = build("small_unet", num_classes=11, width=16)
network = build("torchvision:deeplabv3_resnet50", num_classes=19)
network = build("smp:Unet", num_classes=19, encoder_name="resnet34")
logits = network(images)                    # (N, 3, H, W) -> (N, num_classes, H, W)
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import checkpoints
from .classifier import ModelError

SMALL, TORCHVISION, SMP = "small_unet", "torchvision:", "smp:"
AUXILIARY = "aux_classifier."  # of torchvision's weight files: a second head for training alone


class Segmenter(nn.Module):
    """A network of any library that gives the logits of every pixel, at the size of the images.

    Attributes:
        network: the network itself. It gives logits (N, C, h, w), or a dict with them as "out";
            they are enlarged bilinearly where h, w is smaller than the image.
        arch: how to build it again, as keyword arguments of `build`.
    """

    def __init__(self, network: nn.Module, arch: dict):
        super().__init__()
        self.network, self.arch = network, arch

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        logits = found["out"] if isinstance(found, dict) else found
        if logits.shape[2:] == images.shape[2:]:
            return logits
        return functional.interpolate(logits, images.shape[2:], mode="bilinear")


class SmallUNet(nn.Module):
    """A U-Net for small images on a CPU: encoder, decoder, skip connections, batch norm.

    Args:
        width: channels at full resolution; each of the `depth` levels below has twice as many.

    Source: Ronneberger, Fischer & Brox, MICCAI 2015, arXiv 1505.04597, with padding.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16, depth: int = 3):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([in_channels, *widths], widths)
        )
        self.up = nn.ModuleList(
            _block(below + here, here) for here, below in zip(widths[-2::-1], widths[:0:-1])
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = images, []
        for block in self.down:
            x = block(functional.max_pool2d(x, 2, ceil_mode=True) if skips else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1]):
            x = block(torch.cat((skip, functional.interpolate(x, skip.shape[2:])), 1))
        return self.head(x)


def build(arch: str, num_classes: int, **options) -> Segmenter:
    """Build a segmentation network with random weights.

    Args:
        arch: "small_unet", "torchvision:NAME" (fcn_*, deeplabv3_*, lraspp_*), or "smp:NAME" (Unet,
            FPN, ... of segmentation-models-pytorch).
        options: of the network: width, depth; aux_loss; encoder_name, in_channels; ...

    Raises: ModelError for an unknown name or option, or a library that is not installed.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; it must be at least 1")
    kind = arch.partition(":")[0] + ":"
    try:
        if arch == SMALL:
            network = SmallUNet(num_classes, **options)
        elif kind == TORCHVISION:
            network = _torchvision(arch.removeprefix(TORCHVISION), num_classes, options)
        elif kind == SMP:
            network = _smp(arch.removeprefix(SMP), num_classes, options)
        else:
            raise ModelError(
                f"unknown segmentation network '{arch}': write {SMALL}, {TORCHVISION}NAME "
                f"(e.g. {TORCHVISION}fcn_resnet50) or {SMP}NAME (e.g. {SMP}Unet)"
            )
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{arch} cannot be built with {options}: {error}") from None
    return Segmenter(network, {"arch": arch, "num_classes": num_classes, **options})


def read_arch(path: str | Path) -> dict | None:
    """Return the keyword arguments of `build` that a weight file of ours holds; None for others."""
    meta = checkpoints.read(path).meta
    arch = meta.get("segmenter")
    return arch if isinstance(arch, dict) else None


def load_into(network: Segmenter, path: str | Path) -> dict:
    """Load a weight file: ours, or a state dict of the library's network; returns its other parts.

    The auxiliary head of torchvision's files is left out where the network has none.

    Raises: CheckpointError for a file that cannot be read or does not fit.
    """
    read = checkpoints.read(path)
    if not any(key.startswith(AUXILIARY) for key in network.network.state_dict()):
        kept = {k: v for k, v in read.state_dict.items() if not k.startswith(AUXILIARY)}
        read = read._replace(state_dict=kept)
    return checkpoints.load_into(network.network, read)


def save(path: str | Path, network: Segmenter, **more) -> None:
    """Write a weight file that says how to build the network again.

    Args: more: further entries, such as preprocess={"mean": [...], "std": [...]}.
    """
    state = {key: tensor.cpu() for key, tensor in network.network.state_dict().items()}
    content = {"format": checkpoints.OWN_FORMAT, "state_dict": state, "segmenter": network.arch}
    checkpoints.save(path, {**content, **more})


def _torchvision(name: str, num_classes: int, options: dict) -> nn.Module:
    from torchvision.models import segmentation

    known = [
        key
        for key, function in vars(segmentation).items()
        if inspect.isfunction(function) and key.partition("_")[0] in ("fcn", "deeplabv3", "lraspp")
    ]
    if name not in known:
        raise ModelError(
            f"torchvision has no segmentation network '{name}'{_hint(name, known)}; "
            f"known: {', '.join(known)}"
        )
    function = getattr(segmentation, name)
    return function(weights=None, weights_backbone=None, num_classes=num_classes, **options)


def _smp(name: str, num_classes: int, options: dict) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise ModelError(
            f"{SMP}{name} needs segmentation-models-pytorch: "
            "pip install segmentation-models-pytorch"
        ) from None
    options = {"encoder_weights": None, **options}
    return smp.create_model(name, classes=num_classes, **options)


def _hint(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _block(before: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch norm and ReLU."""
    layers = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
