"""Records of what a class is for: pytorch-ood's fields, which `info` of a class fills.

    EnergyBased.info.paper.title
    [name for name in detector.__all__ if Task.SEGMENTATION in getattr(detector, name).info.tasks]

Collections of tasks, roles and representations may be given as any iterable; they are frozen sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Task(str, Enum):
    """What has a label and a score: the whole input, or each pixel of it."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"


class Representation(str, Enum):
    """What a loss or a detector looks at."""

    LOGITS = "logits"
    FEATURES = "features"
    FEATURE_MAPS = "feature maps"
    LAYERS = "several layers"
    DISTANCES = "distances"
    CONFIDENCE = "confidence"
    INPUTS = "model inputs"


class Role(str, Enum):
    """What a data set serves as."""

    IN_DISTRIBUTION = "in-distribution"
    OOD_TEST = "OOD test set"
    DISTRIBUTION_SHIFT = "distribution shift"
    AUXILIARY_OUTLIERS = "auxiliary outliers"
    BENCHMARK = "benchmark"


@dataclass(frozen=True)
class Paper:
    """A publication. `venue` is short, as in "ICLR"; `code` is the authors' repository."""

    title: str
    venue: str
    year: int
    url: str
    code: str | None = None


class _Record:
    """Freezes the fields that hold several values."""

    def __post_init__(self):
        for name in {"tasks", "inputs", "roles"} & vars(self).keys():
            object.__setattr__(self, name, frozenset(getattr(self, name)))


@dataclass(frozen=True)
class DetectorInfo(_Record):
    """A detector. `paper` is None for a baseline that no paper introduced."""

    tasks: Iterable[Task]
    paper: Paper | None = None
    ai_coded: bool = False


@dataclass(frozen=True)
class LossInfo(_Record):
    """An objective function. `supervised`: it learns from outliers that the batch contains."""

    tasks: Iterable[Task]
    inputs: Iterable[Representation]
    supervised: bool
    paper: Paper | None = None
    ai_coded: bool = False


@dataclass(frozen=True)
class DatasetInfo(_Record):
    """A data set. `license` is an SPDX name or a few words; None where no statement is known."""

    task: Task
    license: str | None
    roles: Iterable[Role] = frozenset()
    paper: Paper | None = None
    homepage: str | None = None
    ai_coded: bool = False


@dataclass(frozen=True)
class BenchmarkInfo(_Record):
    """A benchmark. `paper` is the one whose protocol it follows."""

    paper: Paper
    tasks: Iterable[Task]
    ai_coded: bool = False
