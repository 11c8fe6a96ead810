"""Weight files: read the papers' and our own without running code in them; write them atomically.

| format             | from                          | content                                     |
|--------------------|-------------------------------|---------------------------------------------|
| ood-1              | our runs                      | format, arch, state_dict, epoch, metrics,   |
|                    |                               | preprocess, class_names (last.pt also:      |
|                    |                               | trainer)                                    |
| state_dict         | DICE, leave-out ensemble,     | state_dict and epoch, best_prec1, ...       |
|                    | VMDLS fine-tuning             |                                             |
| heatmap-classifier | heatmap paper                 | net_state_dict, cls_state_dict              |
| heatmap-decoder    | heatmap paper                 | min, max, and for each snapshot (9, 19, ... |
|                    |                               | 149) {generator: state dict}                |
| lightning          | VMDLS, its auto-encoders      | state_dict with encoder.*, fc_mu.*,         |
|                    |                               | fc_var.* (ae.*, sift.*)                     |
| bare               | Outlier Exposure, energy_ood, | a state dict                                |
|                    | torchvision                   |                                             |
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OWN_FORMAT = "ood-1"
EXPECTED = (
    "a weight file: a state dict, or a dict that holds one under 'state_dict', 'net_state_dict' + "
    "'cls_state_dict' (heatmap classifier) or per snapshot under 'generator' (heatmap decoder)"
)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
RENAMES = (
    ("downsample.", "shortcut."),
    ("shortcut.", "downsample."),
    ("linear.", "fc."),
    ("conv_shortcut.", "convShortcut."),
)
# In older PyTorch a file could run code despite weights_only=True (CVE-2025-32434).
SAFE = (2, 6)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, compile, Lightning
LATENT = ("fc_mu.", "fc_var.", "ae.", "sift.")  # parts of a VMDLS file beside its encoder


class CheckpointError(ValueError):
    """A weight file cannot be used; the message is one line: what was expected, what was found."""


class Checkpoint(NamedTuple):
    """The content of a weight file.

    Attributes:
        state_dict: tensors by key, on the CPU.
        format: a row of the table above.
        meta: everything else in the file.
    """

    state_dict: dict[str, Tensor]
    format: str
    meta: dict[str, Any]


def read(path: str | Path, snapshot: int | None = None) -> Checkpoint:
    """Read a weight file of any format in the table above.

    Only tensors and plain values are restored (weights_only=True). A file that asks for anything
    else is refused. NumPy scalars become Python numbers.

    Args:
        snapshot: the epoch (from 0) of a heatmap decoder file; None: the last one.

    Raises:
        CheckpointError: missing, empty, damaged or foreign file.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected {EXPECTED}; found a {type(content).__name__}")
    if content.get("format") == OWN_FORMAT:
        return Checkpoint(
            _state(path, content.get("state_dict")), OWN_FORMAT, _rest(content, "state_dict")
        )
    if "net_state_dict" in content and "cls_state_dict" in content:
        head = {
            "fc." + k.rpartition(".")[2]: v
            for k, v in _state(path, content["cls_state_dict"]).items()
        }
        return Checkpoint(
            {**_state(path, content["net_state_dict"]), **head},
            "heatmap-classifier",
            _rest(content, "net_state_dict", "cls_state_dict"),
        )
    snapshots = sorted(
        k
        for k, v in content.items()
        if isinstance(k, int) and isinstance(v, dict) and "generator" in v
    )
    if snapshots:
        if snapshot is not None and snapshot not in snapshots:
            raise CheckpointError(
                f"{path}: no snapshot {snapshot}; it holds {', '.join(map(str, snapshots))}"
            )
        chosen = snapshots[-1] if snapshot is None else snapshot
        meta = {**_rest(content, *snapshots), "epoch": chosen, "snapshots": snapshots}
        return Checkpoint(_state(path, content[chosen]["generator"]), "heatmap-decoder", meta)
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            state = _state(path, content[key])
            lightning = any(k.startswith("encoder.") for k in state) and (
                "pytorch-lightning_version" in content or any(k.startswith(LATENT) for k in state)
            )
            return Checkpoint(
                state, "lightning" if lightning else "state_dict", _rest(content, key)
            )
    if content and all(isinstance(v, Tensor) for v in content.values()):
        return Checkpoint(_state(path, content), "bare", {})
    raise CheckpointError(f"{path}: expected {EXPECTED}; found a dict with {_some(content)}")


def load_into(
    network: nn.Module, source: str | Path | Checkpoint, snapshot: int | None = None
) -> dict:
    """Load weights into a network, in place; keys of the known formats are mapped to ours.

    Prefixes that wrappers put before every key are dropped (module., _orig_mod., model., net.). Of
    a Lightning file, the keys of its `model` or `net` are enough. An encoder, an auto-encoder, or a
    module with encoder, fc_mu and fc_var takes its own part of a VMDLS file.

    Every key must fit, with two exceptions. Counters that old PyTorch did not write may be missing.
    A VMDLS file has no head `fc` for an encoder, so the head keeps its values.

    Returns:
        The rest of the file (epoch, metrics, arch, min, max, ...) with its `format`.

    Raises:
        CheckpointError: the file cannot be read, or it does not fit the network; the message names
            what is missing, unexpected or of another shape.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read(source, snapshot)
    name = "the weights" if isinstance(source, Checkpoint) else str(source)
    target = network.state_dict()
    fits = [_fit(view, target, optional) for view, optional in _views(checkpoint, target)]
    best = min(fits, key=_Fit.count)
    if best.count():
        raise CheckpointError(
            f"{name} ({checkpoint.format}, {len(checkpoint.state_dict)} tensors) does not fit "
            f"{_title(network)} ({len(target)} tensors): {best.problems()}"
        )
    network.load_state_dict({**target, **best.state})
    return {**checkpoint.meta, "format": checkpoint.format}


def save(path: str | Path, content: dict) -> None:
    """Write `content` with torch.save, whole or not at all.

    It goes to a temporary file in the same folder, is flushed to the disk and then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# reading


def _load(path: Path):
    """Load with weights_only=True; every failure becomes a CheckpointError of one line."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: {'is a folder, not a weight file' if path.is_dir() else 'no such file'}"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); copy or download it again")
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < SAFE:
        raise CheckpointError(
            f"{path}: not read, because in torch {torch.__version__} a weight file can run code "
            "(CVE-2025-32434); install torch 2.6 or newer"
        )
    try:
        with _inert_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # torch raises half a dozen types for a bad file
        raise CheckpointError(f"{path}: {_reason(path, error)}") from None


def _reason(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if code:
        return (
            f"holds the Python object {code.group(1)}, which might run code and was not loaded; "
            "expected tensors and plain values: re-save its state_dict"
        )
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"PK"):
        return (
            f"damaged, truncated or another kind of archive ({path.stat().st_size} bytes); "
            "copy or download it again"
        )
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return (
            "a pickle that is damaged, truncated or holds more than tensors and plain values; "
            "nothing in it was run: re-save its state_dict"
        )
    return f"not a PyTorch weight file (it starts with {start!r})"


class _Dtype:
    """Stands for numpy.dtype while a NumPy scalar is read."""

    NAMES = "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split()
    CODES = dict(zip(NAMES, "dfeqihbQIHB?"))  # NumPy's names: struct's codes

    def __init__(self, code, *_):
        if code not in self.CODES:
            raise ValueError(f"NumPy type {code!r}")
        self.code, self.order = self.CODES[code], "<"

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> float | int | bool:
    """Stands for NumPy's scalar constructor: the Python number in `data`."""
    return struct.unpack(dtype.order + dtype.code, data)[0]


class _Namespace:
    """Stands for argparse.Namespace: attributes without behaviour."""


class _Dict:
    """Stands for Lightning's AttributeDict: a plain dict."""

    def __new__(cls, *_):
        return {}


class _Name:
    """Stands for a Lightning callback class, which its files use as a key."""


def _inert_globals():
    """Let a file name a few harmless objects of the authors' files; it gets the stand-ins above."""
    callbacks = (
        "model_checkpoint.ModelCheckpoint",
        "early_stopping.EarlyStopping",
        "lr_monitor.LearningRateMonitor",
        "progress.ProgressBar",
        "base.Callback",
    )
    return torch.serialization.safe_globals(
        [
            (_Dtype, "numpy.dtype"),
            (_scalar, "numpy.core.multiarray.scalar"),
            (_scalar, "numpy._core.multiarray.scalar"),
            (_Namespace, "argparse.Namespace"),
            (_Dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
            *(
                (type(name, (_Name,), {}), f"pytorch_lightning.callbacks.{name}")
                for name in callbacks
            ),
        ]
    )


def _state(path: Path, state) -> dict[str, Tensor]:
    """Check a state dict and drop the data-parallel prefix of its keys."""
    if not isinstance(state, dict):
        what = f"a {type(state).__name__}"
        raise CheckpointError(f"{path}: expected a state dict (names -> tensors), found {what}")
    tensors = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not state or not tensors:
        raise CheckpointError(
            f"{path}: expected a state dict (names -> tensors), found a dict with {_some(state)}"
        )
    for key, tensor in state.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "without values (meta)" if tensor.is_meta else "quantized"
            kind = kind if tensor.layout == torch.strided else f"sparse ({tensor.layout})"
            raise CheckpointError(f"{path}: expected dense tensors, but {key} is {kind}")
    if all(k.startswith("module.") for k in state):
        state = {k[len("module.") :]: v for k, v in state.items()}
    return dict(state)


def _rest(content: dict, *used) -> dict:
    return {k: v for k, v in content.items() if k not in used and isinstance(k, str)}


# fitting


class _Fit(NamedTuple):
    state: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    types: list[str]

    def count(self) -> int:
        return sum(map(len, (self.missing, self.unexpected, self.shapes, self.types)))

    def problems(self) -> str:
        """Say what does not fit: '2 missing (a, b); 1 unexpected (c)'."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.shapes),
            ("of another type", self.types),
        )
        return "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in kinds
            if keys
        )


def _views(checkpoint: Checkpoint, target: dict):
    """Yield the ways to read a file for this network: (state dict, keys that may be missing)."""
    state = checkpoint.state_dict
    plain = _without_prefixes(state, "pytorch-lightning_version" in checkpoint.meta)
    for view in (state, plain) if plain.keys() != state.keys() else (state,):
        yield view, ()
        if any(k.startswith("network.") for k in target):
            yield {f"network.{k}": v for k, v in view.items()}, ()
    if checkpoint.format == "lightning":
        yield {k: v for k, v in state.items() if not k.startswith(LATENT[2:])}, ()
        for part, optional in (("encoder.", ("fc.",)), ("ae.", ())):
            yield {k[len(part) :]: v for k, v in state.items() if k.startswith(part)}, optional


def _without_prefixes(state: dict, lightning: bool) -> dict:
    """Drop the prefixes of wrappers, as long as every key has one.

    Args: lightning: other keys (of losses and metrics) may be left out once.
    """
    while state:
        found = [(p, [k for k in state if k.startswith(p)]) for p in PREFIXES]
        prefix, keys = max(found, key=lambda pair: len(pair[1]))
        if not keys or len(keys) < len(state) and not lightning:
            break
        lightning = lightning and len(keys) == len(state)
        state = {k.removeprefix(prefix): state[k] for k in keys}
    return state


def _fit(view: dict, target: dict, optional: tuple) -> _Fit:
    """Match the keys of a file with the keys of a network."""
    state, unexpected = {}, []
    for key, tensor in view.items():
        names = [key, *(_replace(key, old, new) for old, new in RENAMES)]
        ours = next((n for n in names if n in target), None)
        if ours is None:
            unexpected.append(key)
        else:
            state[ours] = tensor
    may_be_missing = [
        k for k in target if k.endswith("num_batches_tracked") or k.startswith(optional)
    ]
    missing = [k for k in target if k not in state and k not in may_be_missing]
    shapes = [
        f"{k}: file {tuple(v.shape)}, network {tuple(target[k].shape)}"
        for k, v in state.items()
        if v.shape != target[k].shape
    ]
    types = [
        f"{k}: file {_name(v.dtype)}, network {_name(target[k].dtype)}"
        for k, v in state.items()
        if v.is_complex() or v.is_floating_point() != target[k].is_floating_point()
    ]
    return _Fit(state, missing, unexpected, shapes, types)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _replace(key: str, old: str, new: str) -> str:
    """Replace a component of a key: layer2.0.downsample.0.weight -> layer2.0.shortcut.0.weight."""
    return ("." + key).replace("." + old, "." + new)[1:]


def _title(network: nn.Module) -> str:
    arch = getattr(network, "arch", None)
    if isinstance(arch, dict) and "arch" in arch:
        return f"{arch['arch']} with {arch['num_classes']} classes"
    return type(network).__name__


def _some(content: dict) -> str:
    keys = [repr(k) for k in list(content)[:5]]
    return f"keys {', '.join(keys)}{', ...' if len(content) > 5 else ''}" if keys else "no keys"
