"""Settings: frozen dataclasses filled from JSON, then from flags. An unknown key is an error.

A flag wins over JSON, and JSON wins over the default of the dataclass. A JSON file may group its
keys in nested objects, as the heatmap authors' files do: the groups in `GROUPS` are flattened, and
later groups win.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GROUPS = ("fundamental", "optimization", "advanced")
CROSS_ENTROPY = "cross_entropy"
DETECTORS = ("msp", "maxlogit", "energy", "odin", "react", "dice")


class InputError(ValueError):
    """Bad input of the user; scripts print the message and exit with code 2.

    The message is one line: what was given, what is allowed, what to do.
    """


def nearest(word: str, allowed) -> str:
    """Return " (did you mean 'x'?)" for the closest allowed word, or "" when none is close."""
    match = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""


def read_json(path: str | Path) -> dict:
    """Read the object in a JSON file and flatten its groups.

    Raises: InputError for a file that is missing, unreadable or no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        siblings = (
            sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        )
        raise InputError(
            f"no config file '{path}'{nearest(path.name, siblings)}; the configs are in ./configs"
        )
    flat: dict = {}
    for key, value in json_object(path, "config").items():
        flat.update(value if key in GROUPS and isinstance(value, dict) else {key: value})
    return flat


def json_object(path: Path, what: str) -> dict:
    """Return the object in a JSON file that is there.

    Args: what: the file is, as the message begins: "config".

    Raises: InputError if the file cannot be read or holds anything else. Besides malformed text
        that is: lists, NaN and Infinity, a number of thousands of digits, endless nesting.
    """

    def refuse(constant: str):
        raise ValueError(f"{constant} is no number in JSON")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise InputError(f"{what} '{path}' is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # malformed, not UTF-8, or more digits than Python converts
        raise InputError(f"{what} '{path}' is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{what} '{path}' must hold a JSON object, not a {type(content).__name__}")
    return content


def build(cls, values: dict, where: str = "config"):
    """Make the frozen dataclass `cls` from a dict.

    Args:
        values: what is given, by field name. Integers pass as floats, lists as tuples, and the text
            'N/A' as None where a field may be None.
        where: how messages begin, for example the file's name.

    Raises: InputError for an unknown or missing key, for a value of the wrong type, and for a
        number outside its `Range` or not finite.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise InputError(
                f"{where}: unknown key '{key}'{nearest(key, fields)}; "
                f"known keys: {', '.join(fields)}"
            )
    checked = {
        key: check_setting(cls, key, value, f"{where}: '{key}'") for key, value in values.items()
    }
    unset = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is unset and f.default_factory is unset]
    for name in required:
        if name not in checked:
            raise InputError(f"{where}: missing key '{name}'")
    return cls(**checked)


def merge(*layers: dict) -> dict:
    """Join dicts: later ones win, and None means 'not given'."""
    merged: dict = {}
    for layer in layers:
        merged.update({key: value for key, value in layer.items() if value is not None})
    return merged


def to_dict(settings) -> dict:
    """Return a dataclass as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may take; they are always finite.

    Attributes:
        low, high: the smallest and the largest number that is allowed.
        above, below: bounds that are not allowed themselves.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value) -> bool:
        return (
            -math.inf < value < math.inf  # false for NaN
            and (self.low is None or self.low <= value)
            and (self.high is None or value <= self.high)
            and (self.above is None or self.above < value)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {
            "at least": self.low,
            "above": self.above,
            "at most": self.high,
            "below": self.below,
        }
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(words if len(words) == 2 else ["finite", *words])


SEEDS = Range(0, 2**63 - 1)  # of every field that is called seed, or something_seed


def ranged(default, low=None, high=None, *, above=None, below=None):
    """Declare a dataclass field whose numbers must lie in a `Range`.

    It holds for every number of a tuple, and None passes where the type allows it:

        percentile: float = ranged(90.0, 0, 100)
        temperature: float = ranged(1.0, above=0)
    """
    return field(default=default, metadata={"range": Range(low, high, above, below)})


def check_setting(cls, name: str, value, where: str):
    """Return `value` in the type of the field `name` of the dataclass `cls`.

    Raises: InputError for a wrong type, for a number outside the field's `Range`, and for one that
        is not finite.
    """
    hint, allowed = _declared(cls)[name]
    value = _convert(value, hint, where)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            if number not in allowed:
                raise InputError(f"{where} is {_shown(number)}; it must be {allowed}")
    return value


def _shown(number) -> str:
    large = isinstance(number, int) and number.bit_length() > 100
    return "a number of more than 30 digits" if large else repr(number)


def check_word(name: str, value: str, allowed) -> None:
    """Raise InputError for a text that is not one of the words that are `allowed`."""
    if value not in allowed:
        words = ", ".join(allowed)
        raise InputError(f"{name} is '{value}'{nearest(value, allowed)}; allowed: {words}")


def check_settings(settings) -> None:
    """Check every field of a frozen dataclass, and bring it to its type. For `__post_init__`.

    Raises: InputError for a field of a wrong type or out of its range.
    """
    for f in dataclasses.fields(settings):
        value = check_setting(type(settings), f.name, getattr(settings, f.name), f.name)
        object.__setattr__(settings, f.name, value)


@functools.cache
def _declared(cls) -> dict[str, tuple[object, Range]]:
    """{field: (type, range)} of a dataclass."""
    hints = typing.get_type_hints(cls)
    found = {}
    for f in dataclasses.fields(cls):
        usual = SEEDS if f.name == "seed" or f.name.endswith("_seed") else Range()
        found[f.name] = (hints[f.name], f.metadata.get("range", usual))
    return found


def check_seed(seed: int, what: str = "-seed") -> None:
    """Raise InputError for a seed that not every generator takes."""
    if seed not in SEEDS:
        raise InputError(f"{what} is {_shown(seed)}; it must be an integer from 0 to 2^63 - 1")


def _convert(value, hint, where: str):
    """Return `value` as its type hint asks for it. Raises InputError where it does not fit."""
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
            allowed = ", ".join(map(str, arguments))
            raise InputError(f"{where} is {value!r}{nearest(value, arguments)}; allowed: {allowed}")
        return value
    kind = origin or hint
    if kind is typing.Any:
        return value
    if kind in (int, float) and not isinstance(value, bool):
        number = numbers.Integral if kind is int else numbers.Real  # NumPy's numbers too
        if isinstance(value, number):
            return _number(kind, value, where)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise InputError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value


def _number(kind: type, value, where: str):
    try:
        return kind(value)
    except OverflowError:  # an integer of hundreds of digits
        raise InputError(f"{where} is beyond the numbers that a float can hold") from None


@dataclass(frozen=True)
class Experiment:
    """What eval_ood.py reads from a config.

    Attributes:
        id_dataset: a registered data set or an image folder.
        method: a trainable method to evaluate beside the detectors: heatmap, leaveout or vmdls.
        arch: an architecture, one of models.names().
        loss: the loss that the network was trained with, one of ood.losses.names().
        num_classes: checked against the data set; needed when the data set is not at hand.
        depth, width: of the architecture; None: its default.
        model_args: further options of the architecture.
        head: 'own', 'none' (features without logits), or 'linear' (a head that is fitted on the
            features of the ID training images).
        size: side of the images in pixels; None: the network's, else the benchmark's.
        benchmark: a name in configs/benchmarks, or a JSON file.
        protocol: 'paper', or 'full': ignore the paper's limits on images per OOD set.
        detectors: short names, or name:key=value,...; 'all' stands for every detector.
        detector_args: {name: {hyper-parameter: value}}.
        mean, std: the normalisation that the network was trained with, in pixel units of [0, 1];
            None: the checkpoint's, else the data set's.
        checkpoint: a weight file.
        checkpoint_name: a run folder, by its name.
        batch_size: images per forward pass.
        precision: 'fp32', or 'bf16' for autocast.
        seed: of everything random.
        limit: at most so many images per set.
        datasets: only these OOD sets.
        paper: the published numbers, {detector: {label of the OOD set: {"fpr95": ..., "auroc":
            ...}}}, fractions.
        source: where those numbers stand.
    """

    id_dataset: str
    method: str | None = None
    arch: str = ""
    loss: str = CROSS_ENTROPY
    num_classes: int | None = ranged(None, 1)
    depth: int | None = ranged(None, 1)
    width: int | None = ranged(None, 1)
    model_args: dict = field(default_factory=dict)
    head: Literal["own", "none", "linear"] = "own"
    size: int | None = ranged(None, 1)
    benchmark: str = "demo"
    protocol: Literal["paper", "full"] = "paper"
    detectors: tuple[str, ...] = DETECTORS
    detector_args: dict = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = ranged(None, above=0)
    checkpoint: str | None = None
    checkpoint_name: str | None = None
    batch_size: int = ranged(256, 1)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 1
    limit: int | None = ranged(None, 1)
    datasets: tuple[str, ...] | None = None
    paper: dict = field(default_factory=dict)
    source: str | None = None


def split(values: dict, settings: type | None, where: str) -> tuple[dict, dict]:
    """Split a config into the keys for `Experiment` and the keys for the settings of a training.

    A key that both know goes to both.

    Args:
        settings: the settings class of a method or of ood.training.pretraining; None: there is no
            training.

    Raises: InputError for a key that neither knows.
    """
    evaluation = {f.name for f in dataclasses.fields(Experiment)}
    training = {f.name for f in dataclasses.fields(settings)} if settings else set()
    known = evaluation | training
    for key in values:
        if key not in known:
            raise InputError(
                f"{where}: unknown key '{key}'{nearest(key, known)}; "
                f"known keys: {', '.join(sorted(known))}"
            )
    return tuple({k: v for k, v in values.items() if k in keys} for keys in (evaluation, training))
