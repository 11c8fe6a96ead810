"""What a config says about an evaluation, and how its detectors are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from ood import detectors
from ood.config import InputError, nearest
from ood.detectors import Detector

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


def make_detectors(experiment: Experiment) -> dict[str, Detector]:
    """{label: detector} in the order asked for. Raises InputError for a misspelt name or hyper-parameter."""
    for name in experiment.detector_args:
        if name not in detectors.names():
            detectors.create(name)
    made = {}
    for text in detectors.names() if experiment.detectors == ("all",) else experiment.detectors:
        name, values = detectors.parse(text)
        if text in made:
            raise InputError(f"detector '{text}' is named twice")
        made[text] = detectors.create(name, **{**experiment.detector_args.get(name, {}), **values})
    if not made and not experiment.method:
        raise InputError(f"no detector is named; detectors: {', '.join(detectors.names())}")
    return made


def split(values: dict, settings: type | None, where: str) -> tuple[dict, dict]:
    """A config's keys for `Experiment`, and those for the settings of a training (a method's, or ood.classifier's); a key that both know goes to both.

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
