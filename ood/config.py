"""Settings: frozen dataclasses filled from JSON, then from flags; a key that nobody knows is an error.

Precedence: flag > JSON > default of the dataclass. A JSON file may group its keys in nested objects (the layout of the heatmap
authors' files); groups named in `GROUPS` are flattened, later groups win.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GROUPS = ("fundamental", "optimization", "advanced")


class InputError(ValueError):
    """Bad input of the user: one line that says what was got, what is allowed, what to do. Scripts print it and exit with 2."""


def nearest(word: str, allowed) -> str:
    """' (did you mean 'x'?)' for the closest allowed word, or '' when none is close."""
    match = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""


def read_json(path: str | Path) -> dict:
    """The object in a JSON file, groups flattened. Raises InputError for a missing, unreadable or non-object file."""
    path = Path(path)
    if not path.is_file():
        siblings = (
            sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        )
        raise InputError(
            f"no config file '{path}'{nearest(path.name, siblings)}; the configs are in ./configs"
        )
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config '{path}' is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"config '{path}' must hold a JSON object, not a {type(content).__name__}")
    flat: dict = {}
    for key, value in content.items():
        flat.update(value if key in GROUPS and isinstance(value, dict) else {key: value})
    return flat


def build(cls, values: dict, where: str = "config"):
    """Make the frozen dataclass `cls` from a dict. Raises InputError for an unknown key or a value of the wrong type."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise InputError(
                f"{where}: unknown key '{key}'{nearest(key, fields)}; known keys: {', '.join(fields)}"
            )
    hints = typing.get_type_hints(cls)
    checked = {
        key: _convert(value, hints[key], f"{where}: '{key}'") for key, value in values.items()
    }
    missing = [
        n
        for n, f in fields.items()
        if n not in checked
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: missing key '{missing[0]}'")
    return cls(**checked)


def merge(*layers: dict) -> dict:
    """Later layers win; None in a layer means 'not given'."""
    merged: dict = {}
    for layer in layers:
        merged.update({key: value for key, value in layer.items() if value is not None})
    return merged


def to_dict(settings) -> dict:
    """A dataclass as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _convert(value, hint, where: str):
    """Check `value` against a type hint; ints pass as floats, lists as tuples, 'N/A' as None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "N/A" and type(None) in arguments:
            return None
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _convert(value, option, where)
            except InputError as error:
                problem = error
        raise problem
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} must be a list, got {value!r}")
        return tuple(_convert(v, arguments[0], where) for v in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(
                f"{where} is {value!r}{nearest(value, arguments)}; allowed: {', '.join(map(str, arguments))}"
            )
        return value
    kind = origin or hint
    if kind is typing.Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise InputError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value


CROSS_ENTROPY = "cross_entropy"


DETECTORS = ("msp", "maxlogit", "energy", "odin", "react", "dice")


@dataclass(frozen=True)
class Experiment:
    """Fields of a config for eval_ood.py. Fractions, pixel units of [0, 1]."""

    id_dataset: str  # a registered set or an image folder
    method: str | None = (
        None  # a trainable method to evaluate beside the detectors: heatmap, leaveout, vmdls
    )
    arch: str = ""  # a name of models.names()
    loss: str = CROSS_ENTROPY  # that the network was trained with: a name of ood.losses.names()
    num_classes: int | None = (
        None  # checked against the data set; needed when there is none at hand
    )
    depth: int | None = None
    width: int | None = None
    model_args: dict = field(default_factory=dict)  # further options of the architecture
    benchmark: str = "demo"  # a name in configs/benchmarks, or a JSON file
    protocol: Literal["paper", "full"] = (
        "paper"  # 'full' ignores the paper's limits on images per OOD set
    )
    detectors: tuple[str, ...] = (
        DETECTORS  # short names, or name:key=value,...; 'all' for every one
    )
    detector_args: dict = field(default_factory=dict)  # {name: {hyper-parameter: value}}
    mean: tuple[float, ...] | None = (
        None  # normalisation the network was trained with; default: the checkpoint's, else the data set's
    )
    std: tuple[float, ...] | None = None
    checkpoint: str | None = None
    checkpoint_name: str | None = None
    batch_size: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 1
    limit: int | None = None  # at most so many images per set
    datasets: tuple[str, ...] | None = None  # only these OOD sets
    paper: dict = field(
        default_factory=dict
    )  # {detector: {label of the OOD set: {"fpr95": ..., "auroc": ...}}}, the published numbers
    source: str | None = None  # where those numbers stand


def split(values: dict, settings: type | None, where: str) -> tuple[dict, dict]:
    """A config's keys for `Experiment`, and those for the settings of a training (a method's, or ood.training.pretraining's); a key that both know goes to both.

    Raises: InputError for a key that neither knows.
    """
    ours = {f.name for f in dataclasses.fields(Experiment)}
    theirs = {f.name for f in dataclasses.fields(settings)} if settings else set()
    for key in values:
        if key not in ours | theirs:
            raise InputError(
                f"{where}: unknown key '{key}'{nearest(key, ours | theirs)}; known keys: {', '.join(sorted(ours | theirs))}"
            )
    return {k: v for k, v in values.items() if k in ours}, {
        k: v for k, v in values.items() if k in theirs
    }
