"""A guard as one graph: network, detector and threshold in a file that needs no Python of ours.

    guard.export("guard.pt2")   # torch.export; torch.export.load("guard.pt2").module()(images)
    guard.export("guard.onnx")  # ONNX; needs onnxscript, and onnxruntime to be checked

The graph takes images (N, C, H, W), float32 in the units that the guard was fitted with, for any N
from 2 on. It gives logits (N, C), score (N,) in float64 (larger = OOD), and accepted (N,), a bool.
What was written is run and compared with the guard before it takes its name.

Detectors of features and logits can be exported. Those that need gradients, feature maps or several
passes cannot; they say so.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ood.config import InputError
from ood.deployment.groups import GroupCalibration
from ood.files import replacing
from ood.outputs import Head, Outputs

SUFFIXES = (".pt2", ".onnx")
NAMES = ("logits", "score", "accepted")
TOLERANCE = 1e-4  # of a score, relative to the largest


class Graph(nn.Module):
    """Images to (logits, score, accepted), with tensor operations only."""

    def __init__(self, guard):
        super().__init__()
        network, preprocess = guard.network_, guard.preprocess_
        self.network, self.detector = network, guard.detector_
        fc = network.fc
        self.register_buffer("weight", fc.weight.detach().float())
        bias = self.weight.new_zeros(len(self.weight)) if fc.bias is None else fc.bias
        self.register_buffer("bias", bias.detach().float())
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values)
        self.register_buffer("thresholds", thresholds(guard.calibration_, len(self.weight)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.network.features((images - self.mean) / self.std).float()
        head = Head(self.weight, self.bias)
        logits = head(features)
        labels = images.new_zeros(images.shape[0], dtype=torch.long)
        score = self.detector.score(Outputs(features, logits, labels, head)).double().flatten()
        if len(self.thresholds) > 1:
            return logits, score, score <= self.thresholds[logits.argmax(1)]
        return logits, score, score <= self.thresholds


def thresholds(calibration, classes: int) -> Tensor:
    """One threshold (1,), or one for each predicted class (C,)."""
    if not isinstance(calibration, GroupCalibration):
        return torch.tensor([calibration.threshold], dtype=torch.float64)
    each = [calibration.of(group).threshold for group in range(classes)]
    return torch.tensor(each, dtype=torch.float64)


def export(guard, path: str | Path, images: Tensor) -> Path:
    """Write a fitted guard as one graph.

    Args:
        guard: fitted; see `ood.deployment.guard.Guard.export`.
        path: ends in .pt2 or .onnx.
        images: (N, C, H, W) examples, N >= 2, to trace the graph with and to check it.

    Returns: the path.

    Raises: InputError for another suffix, a missing library, or a detector or network that cannot
        be exported.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"'{path}' must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".onnx":
        for library in ("onnxscript", "onnxruntime"):
            if importlib.util.find_spec(library) is None:
                raise InputError(f"'{path}' needs {library}: pip install onnxscript onnxruntime")
    name = guard.detector_.name
    if guard.detector_.needs & {"images", "maps", "taps"}:
        raise InputError(
            f"{name} needs {', '.join(sorted(guard.detector_.needs & {'images', 'maps', 'taps'}))} "
            "of the network and cannot be exported; choose a detector of features or logits"
        )
    graph = copy.deepcopy(Graph(guard)).cpu().eval().requires_grad_(False)
    images = images.float().cpu()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = {0: torch.export.Dim.AUTO}
            program = torch.export.export(graph, (images,), dynamic_shapes=(batch,))
    except Exception as error:  # whatever the tracing of a network or a formula runs into
        raise InputError(f"{name} cannot be exported with this network: {_first(error)}") from None
    with replacing(path) as temporary:
        if path.suffix == ".pt2":
            torch.export.save(program, temporary.with_suffix(".pt2"))
            temporary.with_suffix(".pt2").replace(temporary)
        else:
            _write_onnx(program, temporary, images, name)
        run = _runner(path.suffix, temporary)
        for part in (images, images[:2]):
            try:
                found = run(part)
            except Exception as error:  # a graph that holds for one batch size only
                reason = _first(error)
                raise InputError(f"{name} cannot be exported for any batch: {reason}") from None
            _compare(found, guard(part), name)
    return path


def _write_onnx(program, file: Path, images: Tensor, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                (images,),
                str(file),
                dynamo=True,
                input_names=["images"],
                output_names=list(NAMES),
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # operations that ONNX does not know
        raise InputError(f"{name} cannot be written as ONNX: {_first(error)}") from None


def _runner(suffix: str, file: Path):
    """A function that runs what was written: images to the three outputs."""
    if suffix == ".pt2":
        copy = file.with_suffix(".check.pt2")  # torch.export asks for the suffix
        copy.write_bytes(file.read_bytes())
        try:
            module = torch.export.load(str(copy)).module()
        finally:
            copy.unlink()
        return lambda images: [value.numpy() for value in module(images)]
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(list(NAMES), {"images": images.numpy()})


def _compare(found, decision, name: str) -> None:
    """Raise InputError unless a graph gives the guard's scores and decisions."""
    scores = decision.scores.numpy()
    largest = max(1.0, float(np.abs(scores).max()))
    difference = float(np.abs(found[1] - scores).max())
    if not difference <= TOLERANCE * largest:
        raise InputError(
            f"the exported graph of {name} gives scores that differ by {difference:.2g} from the "
            "guard's; nothing was written"
        )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
