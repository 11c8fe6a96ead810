"""A fitted detector in one file: arrays and a JSON text in a .npz archive.

    save("vim.npz", detector, network=network, preprocess=preprocess, recipe=recipe,
         calibration=calibration)
    stored = load("vim.npz", network=network, device="cuda:0")
    stored.detector.score(outputs), stored.calibration.p_values(scores)

The archive holds `meta` (UTF-8 JSON as uint8), `state/<key>` for every tensor that `Detector.state`
gives, and the scores of the calibration images. It can be read without this repository, and nothing
in it executes.

Arrays are stored from the CPU and go to the device that is asked for. The weights of the network
are not in it: `network` in `meta` is the network's digest (`ood.outputs.weights_digest`: structure
and every weight).
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.data.decoding import INTERPOLATIONS
from ood.data.images import ArrayImages
from ood.deployment.calibration import Calibration
from ood.deployment.groups import GroupCalibration, restore
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import chunked_score
from ood.files import replacing
from ood.outputs import extract, weights_digest

FORMAT = "ood-detector-2"
FIRST_FORMAT = "ood-detector-1"  # its digest also covered source code, so it cannot be checked
# of `ood.data.load`: how a picture becomes an input
RECIPE = ("size", "resize", "channels", "interpolation")
LATER = {"interpolation": "bilinear"}  # what older files do not say
SCORES = {"scores", "group_scores"}  # arrays of a calibration
LINEAR = "linear"  # the kind of head that a file holds
LARGEST_SIDE = 10_000  # of an image, pixels
META: dict[str, type | tuple] = {  # the keys of the JSON text
    "format": str,
    "detector": str,
    "hyperparameters": dict,
    "values": dict,
    "network": str,
    "arch": dict,
    "checkpoint": (str, type(None)),
    "preprocess": dict,
    "recipe": dict,
    "calibration": (dict, type(None)),
    "about": dict,
    "head": str,
}
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
AGAIN = "write it again with scripts/fit_detector.py"


@dataclass
class Stored:
    """What a file holds.

    Attributes:
        detector: ready to score.
        network: `weights_digest` of the network it was fitted on; None in old files.
        preprocess: normalisation of the network's input.
        recipe: {"size", "resize", "channels", "interpolation"} as for `ood.data.load`.
        calibration: threshold and p-values, if the detector was calibrated.
        arch: keyword arguments that build the network.
        head: "own"; "none" where the network was used without its head; or the head that was
            fitted on its features, weight (C, D) and bias (C,).
        checkpoint: where its weights were when the detector was fitted.
        about: free plain values: config, versions, accuracy, class_names, ...
    """

    detector: Detector
    network: str | None
    preprocess: Preprocess
    recipe: dict
    calibration: Calibration | GroupCalibration | None = None
    arch: dict = field(default_factory=dict)
    checkpoint: str | None = None
    about: dict = field(default_factory=dict)
    head: str | tuple[Tensor, Tensor] = "own"

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the logits mean, in their order; empty where the file does not say."""
        names = self.about.get("class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return ()
        return tuple(names)

    def check(self, network: nn.Module | str, where: str = "the detector") -> None:
        """Raise InputError when `network` is not the one that the detector was fitted on.

        Files of the first format hold no digest that can be compared: they only give a warning.

        Args:
            network: the network, or its `weights_digest`.
            where: how messages name the detector.
        """
        if self.network is None:
            warnings.warn(
                f"{where} was written by an older version, so its network cannot be checked; "
                "fit it again with scripts/fit_detector.py to have it checked",
                stacklevel=2,
            )
            return
        digest = network if isinstance(network, str) else weights_digest(network)
        if digest != self.network:
            raise InputError(
                f"{where} ('{self.detector.name}') was fitted on another network: its digest is "
                f"{self.network[:12]}, the digest of this network is {digest[:12]}; give the "
                "weights it was fitted on, or fit it again"
            )
        if isinstance(network, nn.Module):
            self._try_out(network, where)

    def _try_out(self, network: nn.Module, where: str) -> None:
        """Score two grey images: what was fitted must fit the network's outputs."""
        shape = self._shape(network)
        held = self.detector.state().values()
        if shape is None or any(isinstance(x, Tensor) and x.device.type != "cpu" for x in held):
            return
        images = ArrayImages(np.full((2, *shape), 0.5, np.float32), source="grey")
        beside = [self.detector] if isinstance(self.detector, ImageDetector) else []
        device = next(network.parameters()).device
        try:
            outputs = extract(
                network,
                images,
                self.preprocess,
                device=device,
                taps="taps" in self.detector.needs,
                image_detectors=beside,
            )
            scores = chunked_score(self.detector, outputs)
            if scores.shape != (2,) or scores.isnan().any():
                raise ValueError(f"it gives the scores {scores.tolist()} to two grey images")
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where} ('{self.detector.name}') does not fit its network: {_first_line(error)}; "
                f"{AGAIN}"
            ) from None

    def _shape(self, network: nn.Module) -> tuple[int, int, int] | None:
        """(C, H, W) of the network's input; None where neither recipe nor network tells."""
        size, resize, channels = (self.recipe[key] for key in ("size", "resize", "channels"))
        sides = (size, size) if size else resize
        if channels and isinstance(sides, tuple):
            return (channels, *sides)
        arch = getattr(network, "arch", {})
        channels, side = arch.get("in_channels"), arch.get("image_size")
        return (channels, side, side) if channels and side else None


def save(
    path: str | Path,
    detector: Detector,
    *,
    network: nn.Module | str,
    preprocess: Preprocess,
    recipe: dict,
    calibration: Calibration | GroupCalibration | None = None,
    arch: dict | None = None,
    checkpoint: str | Path | None = None,
    about: dict | None = None,
) -> Path:
    """Write `detector` and all that is needed to score a picture with it, whole or not at all.

    Args:
        path: of the .npz file.
        detector: fitted.
        network: the classifier whose outputs it was fitted on, or its `weights_digest`.
        preprocess: normalisation of the network's input.
        recipe: {"size", "resize", "channels", "interpolation"} as for `ood.data.load`.
        calibration: see `ood.deployment.calibration` and `ood.deployment.groups`.
        arch: keyword arguments that build the network; None: what `network.arch` says.
        checkpoint: the file of its weights.
        about: free plain values.

    Returns: the path.
    """
    arrays, values = {}, {}
    for key, value in detector.state().items():
        if isinstance(value, Tensor):
            arrays[f"state/{key}"] = value.detach().cpu().contiguous().numpy()
        else:
            values[key] = _spelled(value, f"'{key}' of detector '{detector.name}'")
    meta = {
        "format": FORMAT,
        "detector": detector.name,
        "hyperparameters": detector.hyperparameters(),
        "values": values,
        "network": network if isinstance(network, str) else weights_digest(network),
        "arch": arch or dict(getattr(network, "arch", {})),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "preprocess": {"mean": preprocess.mean, "std": preprocess.std},
        "recipe": {key: recipe.get(key) or LATER.get(key) for key in RECIPE},
        "calibration": None,
        "about": about or {},
        "head": getattr(network, "head_kind", "own"),
    }
    if meta["head"] == LINEAR:
        arrays["head/weight"] = network.fc.weight.detach().cpu().numpy()
        arrays["head/bias"] = network.fc.bias.detach().cpu().numpy()
    if calibration is not None:
        state = calibration.state()
        for key in SCORES & state.keys():
            arrays[f"calibration/{key}"] = state.pop(key).numpy()
        meta["calibration"] = state
    text = json.dumps(meta, allow_nan=False).encode()
    path = Path(path)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, meta=np.frombuffer(text, dtype=np.uint8), **arrays)
    return path


def load(
    path: str | Path, network: nn.Module | str | None = None, device: torch.device | str = "cpu"
) -> Stored:
    """Read what `save` wrote. Nothing in the file is executed or downloaded.

    Args:
        network: the network that the detector will be used with; it is checked. None: the caller
            checks it with `Stored.check`.
        device: where the detector scores.

    Raises: InputError for a missing, damaged or foreign file, an unknown detector, or another
        network.
    """
    meta, arrays = _read(Path(path))
    try:
        detector = detectors.restore(meta["detector"], meta["hyperparameters"])
        state = {key: _meant(value) for key, value in meta["values"].items()}
        for key, value in arrays.items():
            if key.startswith("state/"):
                state[key.removeprefix("state/")] = torch.from_numpy(value)
        detector.load_state(state)
        calibration = None
        if meta["calibration"] is not None:
            wanted = SCORES if "groups" in meta["calibration"] else {"scores"}
            scores = {key: arrays[f"calibration/{key}"] for key in wanted}
            calibration = restore({**meta["calibration"], **scores})
        stored = Stored(
            detector,
            meta["network"] if meta["format"] == FORMAT else None,
            Preprocess(**_normalisation(meta["preprocess"])),
            _recipe(meta["recipe"]),
            calibration,
            meta["arch"],
            meta["checkpoint"],
            meta["about"],
            _head(meta.get("head", "own"), arrays),
        )
    except InputError as error:
        raise InputError(f"detector file '{path}': {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(
            f"detector file '{path}' lacks or distorts {_first_line(error)}; {AGAIN}"
        ) from None
    if network is not None:
        stored.check(network, f"'{path}'")
    detector.to(device)
    return stored


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON text and the arrays of an archive, with what they claim about themselves checked."""
    if not path.is_file():
        raise InputError(f"no detector file '{path}'; scripts/fit_detector.py writes one")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.infolist():
                arrays[member.filename.removesuffix(".npy")] = _array(archive, member)
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta.get("format") not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        for key in arrays:
            known = {f"calibration/{name}" for name in SCORES} | {"head/weight", "head/bias"}
            if not key.startswith("state/") and key not in known:
                raise ValueError(f"unknown part '{key}'")
        for key, value in meta.items():
            if key not in META:
                raise ValueError(f"unknown key '{key}'")
            if not isinstance(value, META[key]):
                raise ValueError(f"'{key}' is a {type(value).__name__}")
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        MemoryError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = _first_line(error)
        raise InputError(f"'{path}' is not a whole detector file ({reason}); {AGAIN}") from None
    return meta, arrays


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array. No memory is taken before its header agrees with the bytes that are there."""
    name = member.filename
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"'{name}' is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"'{name}' has version {version} of the .npy format")
        shape, fortran, dtype = HEADERS[version](file)
        if dtype.kind not in "fiub":
            raise ValueError(f"'{name}' holds {dtype}, no numbers")
        wanted, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if wanted != there:
            raise ValueError(f"'{name}' claims {wanted:,} bytes and has {there:,}")
        values = np.frombuffer(bytearray(file.read()), dtype)  # writable
    values = values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _head(kind: str, arrays: dict) -> str | tuple[Tensor, Tensor]:
    """The head of the network, checked."""
    if kind in ("own", "none"):
        return kind
    if kind != LINEAR:
        raise InputError(f"its head is '{kind}'; allowed: own, none, {LINEAR}")
    weight, bias = arrays["head/weight"], arrays["head/bias"]
    fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and weight.dtype.kind == "f"
    if not fits or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(f"its head has a weight {weight.shape} and a bias {bias.shape}")
    return torch.from_numpy(weight), torch.from_numpy(bias)


def _normalisation(values: dict) -> dict:
    """Mean and standard deviation, checked: as many numbers as channels, std above 0."""
    mean, std = values["mean"], values["std"]
    numbers = [x for part in (mean, std) for x in part]
    if len(mean) != len(std) or not all(isinstance(x, (int, float)) for x in numbers):
        raise InputError(f"preprocess has mean {mean} and std {std}")
    if not all(map(math.isfinite, numbers)) or min(std) <= 0:
        raise InputError(f"preprocess has mean {mean} and std {std}")
    return {"mean": tuple(mean), "std": tuple(std)}


def _recipe(values: dict) -> dict:
    """The recipe, checked; lists become tuples again: `resize` may be (height, width)."""
    made = {key: tuple(v) if isinstance(v, list) else v for key, v in {**LATER, **values}.items()}
    sided = [v for key, v in made.items() if key != "interpolation"]
    sides = [side for v in sided for side in (v if isinstance(v, tuple) else (v,))]
    whole = all(s is None or type(s) is int and 0 < s <= LARGEST_SIDE for s in sides)
    if set(made) != set(RECIPE) or not whole:
        raise InputError(f"its recipe is {made}; sides are whole numbers up to {LARGEST_SIDE}")
    if made["interpolation"] not in INTERPOLATIONS:
        raise InputError(f"its recipe has the interpolation {made['interpolation']!r}")
    return made


def _spelled(value, what: str):
    """A number or text in strict JSON, which has no infinity and no nan."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{what} is a {type(value).__name__}; a fitted detector may hold tensors, numbers, texts, "
        "lists of them and detectors"
    )


def _meant(value):
    """What `_spelled` was given."""
    return float(value["float"]) if isinstance(value, dict) else value
