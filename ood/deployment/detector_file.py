"""A fitted detector in one file: arrays and a JSON text in a .npz archive.

    save("vim.npz", detector, network=network, preprocess=preprocess, recipe=recipe,
         calibration=calibration)
    stored = load("vim.npz", network=network, device="cuda:0")
    stored.detector.score(outputs), stored.calibration.p_values(scores)

The archive holds `meta` (UTF-8 JSON as uint8), `state/<key>` for every tensor that `Detector.state`
gives, and `calibration/scores`. It can be read without this repository, and nothing in it executes.
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
from ood.deployment.calibration import Calibration
from ood.detectors import Detector
from ood.files import replacing
from ood.outputs import weights_digest

FORMAT = "ood-detector-2"
FIRST_FORMAT = "ood-detector-1"  # its digest also covered source code, so it cannot be checked
RECIPE = ("size", "resize", "channels")  # of `ood.data.load`: how a picture becomes an input


@dataclass
class Stored:
    """What a file holds.

    Attributes:
        detector: ready to score.
        network: `weights_digest` of the network it was fitted on; None in old files.
        preprocess: normalisation of the network's input.
        recipe: {"size", "resize", "channels"} as for `ood.data.load`.
        calibration: threshold and p-values, if the detector was calibrated.
        arch: keyword arguments that build the network.
        checkpoint: where its weights were when the detector was fitted.
        about: free plain values: config, versions, accuracy, ...
    """

    detector: Detector
    network: str | None
    preprocess: Preprocess
    recipe: dict
    calibration: Calibration | None = None
    arch: dict = field(default_factory=dict)
    checkpoint: str | None = None
    about: dict = field(default_factory=dict)

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


def save(
    path: str | Path,
    detector: Detector,
    *,
    network: nn.Module | str,
    preprocess: Preprocess,
    recipe: dict,
    calibration: Calibration | None = None,
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
        recipe: {"size", "resize", "channels"} as for `ood.data.load`.
        calibration: see `ood.deployment.calibration`.
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
        "recipe": {key: recipe.get(key) for key in RECIPE},
        "calibration": None,
        "about": about or {},
    }
    if calibration is not None:
        state = calibration.state()
        arrays["calibration/scores"] = state.pop("scores").numpy()
        meta["calibration"] = state
    text = json.dumps(meta, allow_nan=False).encode()
    path = Path(path)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, meta=np.frombuffer(text, dtype=np.uint8), **arrays)
    return path


def load(
    path: str | Path, network: nn.Module | str | None = None, device: torch.device | str = "cpu"
) -> Stored:
    """Read what `save` wrote.

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
        state |= {
            key.removeprefix("state/"): torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith("state/")
        }
        detector.load_state(state).to(device)
        calibration = meta["calibration"] and Calibration.from_state(
            {**meta["calibration"], "scores": arrays["calibration/scores"]}
        )
        stored = Stored(
            detector,
            meta["network"] if meta["format"] == FORMAT else None,
            Preprocess(**meta["preprocess"]),
            _recipe(meta["recipe"]),
            calibration or None,
            meta["arch"],
            meta["checkpoint"],
            meta["about"],
        )
    except InputError as error:
        raise InputError(f"detector file '{path}': {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"detector file '{path}' lacks or distorts {error}; "
            "write it again with scripts/fit_detector.py"
        ) from None
    if network is not None:
        stored.check(network, f"'{path}'")
    return stored


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    if not path.is_file():
        raise InputError(f"no detector file '{path}'; scripts/fit_detector.py writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta.get("format") not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"'{path}' is not a whole detector file ({reason}); "
            "write it again with scripts/fit_detector.py"
        ) from None
    return meta, arrays


def _recipe(values: dict) -> dict:
    """Make tuples of lists again: JSON has none, but `resize` may be (height, width)."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


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
