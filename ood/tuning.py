"""Hyper-parameters by grid search on outputs that are there already: no candidate costs a forward pass.

    found = tune("ash", train, known, {"letters": outliers})                # against a validation OOD set
    found = tune("ash", train, known, pseudo_sets, left_out=folds)          # without any OOD data, see ood.pseudo
    found.best                                                             # {"percentile": 80.0}
    regret(found, on_test)                                                  # what that choice lost against the best candidate on test

The criterion is the AUROC, averaged over kinds of outliers, as in OpenOOD's automatic parameter search, which uses a validation OOD set
and runs the network anew for every candidate. Detectors that work on images are the exception: every candidate of theirs that changes
the pass needs one; `image_candidates` lists those for a single pass together.
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ood import detectors
from ood.config import InputError, nearest
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import chunked_score
from ood.metrics import evaluate, prepare
from ood.outputs import Outputs

FIVES = tuple(float(p) for p in range(65, 100, 5))

# name -> {hyper-parameter: values}. OpenOOD v1.5's sweeps where it has one (react, ash, scale, vra 4 x 4, knn, nci, relation, fdbd, odin, gen 7 x 6,
# adascale); pytorch-ood's spaces for dice, openmax and vim; the papers' ranges for the others. A value that cannot be (k above the number of training
# images, dim above the number of features) is left out.
SPACES: dict[str, dict[str, tuple]] = {
    "adascale_a": {"lower": (60.0, 70.0, 80.0, 85.0), "upper": (85.0, 90.0, 95.0, 99.0)},
    "adascale_l": {"lower": (60.0, 70.0, 80.0, 85.0), "upper": (85.0, 90.0, 95.0, 99.0)},
    "ash": {"variant": ("s", "b", "p"), "percentile": FIVES},
    "combood": {"k": (5, 10, 20, 50, 100)},
    "dice": {"percentile": (10.0, 30.0, 50.0, 70.0, 90.0)},
    "dice_react": {"percentile": (10.0, 30.0, 50.0, 70.0, 90.0), "clip_percentile": (85.0, 90.0, 95.0, 99.0)},
    "energy": {"temperature": (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)},
    "fdbd": {"normalise": ("distance", "norm")},
    "gen": {"gamma": (0.01, 0.05, 0.1, 0.2, 0.5, 0.7, 0.9), "top": (5, 10, 50, 100, 200, 500)},
    "gmm": {"reg": (1e-6, 1e-4, 1e-2, 1e-1)},
    "knn": {"k": (50, 100, 200, 500, 1000)},
    "kpca": {"variance": (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)},
    "lts": {"share": (0.01, 0.05, 0.1, 0.15, 0.2, 0.3)},
    "mds_odin": {"magnitude": (0.0, 0.0005, 0.0014, 0.002, 0.005)},
    "msp": {"temperature": (0.5, 1.0, 2.0, 10.0, 100.0, 1000.0)},
    "nac": {"alpha": (1.0, 10.0, 100.0, 1000.0), "saturation": (10.0, 50.0, 200.0, 1000.0)},
    "nci": {"alpha": (0.0, 1e-4, 1e-3, 1e-2, 1e-1)},
    "neco": {"dim": (8, 16, 32, 64, 128, 256, 512), "max_logit": (False, True)},
    "nnguide": {"k": (1, 5, 10, 50, 100)},
    "odin": {"temperature": (1.0, 10.0, 100.0, 1000.0), "magnitude": (0.0014, 0.0028)},
    "openmax": {"tail": (10, 25, 50), "alpha": (1, 5, 10, 20), "euclid_weight": (0.0, 0.5, 1.0)},
    "optfs": {"bins": (20, 50, 100, 200)},
    "react": {"percentile": (85.0, 90.0, 95.0, 99.0)},
    "relation": {"power": (1.0, 2.0, 4.0, 6.0, 8.0)},
    "residual": {"dim": (8, 16, 32, 64, 128, 256, 512, 1000)},
    "scale": {"percentile": FIVES},
    "she": {"metric": ("inner", "cosine", "euclidean")},
    "ssd": {"clusters": (1, 2, 5, 10)},
    "vim": {"dim": (8, 16, 32, 64, 128, 256, 512, 1000)},
    "vra": {"lower": (50.0, 60.0, 65.0, 70.0), "upper": (80.0, 90.0, 95.0, 99.0)},
}


@dataclass(frozen=True)
class Search:
    """`candidates` as {hyper-parameter: value}, the default first; `aurocs`[i] = {kind of outliers: AUROC}; `criterion` their means."""
    detector: str
    candidates: list[dict]
    aurocs: list[dict[str, float]]

    @property
    def criterion(self) -> np.ndarray:
        """(candidates,) mean AUROC over the kinds of outliers."""
        return np.array([np.mean(list(row.values())) for row in self.aurocs])

    @property
    def chosen(self) -> int:
        """The best candidate; of equal ones the first, so the default stays where nothing is gained."""
        return int(self.criterion.argmax())

    @property
    def best(self) -> dict:
        return self.candidates[self.chosen]


def candidates(name: str, train: Outputs, space: dict[str, tuple] | None = None, fixed: dict | None = None, images: int | None = None) -> list[dict]:
    """All combinations of the search space that this training set allows, the detector's default first (where it is allowed).

    Args: space: {hyper-parameter: values}; None: SPACES[name]. fixed: hyper-parameters that all candidates share. images: of the
        smallest training set that candidates will be fitted to; None: all of `train`.
    Raises: InputError for a detector without a space, or a value that the detector refuses.
    """
    space = SPACES.get(name) if space is None else space
    if not space:
        raise InputError(f"detector '{name}' has no search space{nearest(name, SPACES)}; detectors with one: {', '.join(SPACES)}; "
                         "or give values, e.g. knn:k=[5,10,20]")
    default = detectors.create(name, **(fixed or {})).hyperparameters()
    grid = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    first = {key: default[key] for key in space if key in default}
    limits = {"k": images or len(train), "dim": train.features.shape[1] - 1}
    grid = [c for c in (first, *(c for c in grid if c != first))
            if all(c.get(key) is None or c[key] <= limit for key, limit in limits.items()) and c.get("lower", 0) <= c.get("upper", 100)]
    if not grid:
        raise InputError(f"detector '{name}': none of the values {space} is possible with {images or len(train)} training images of {train.features.shape[1]} features")
    return grid


def made(name: str, candidate: dict, fixed: dict | None = None) -> Detector:
    return detectors.create(name, **{**(fixed or {}), **candidate})


def image_candidates(name: str, grid: list[dict], train: Outputs | None, fixed: dict | None = None) -> list[ImageDetector]:
    """The detectors whose measurements a pass must take for all candidates; empty for detectors that see arrays only."""
    several = [made(name, candidate, fixed) for candidate in grid]
    if not isinstance(several[0], ImageDetector):
        return []
    if train is not None and several[0].uses_fit:
        several = [detector.fit(train) for detector in several]
    return list({detector.key: detector for detector in several}.values())


def tune(name: str, train: Outputs, known: Outputs, outliers: dict[str, Outputs], *, grid: list[dict] | None = None, fixed: dict | None = None,
         left_out: list[tuple[Outputs, Outputs, Outputs]] = ()) -> Search:
    """AUROCs of every candidate.

    Args:
        train: ID training outputs; statistics that candidates share are computed once (Outputs.memo).
        known: ID validation outputs. outliers: {kind: outputs}, real or made; those named uniform and gaussian count together as one kind.
        left_out: triples of `ood.pseudo.left_out`: their mean is one more kind, 'left_out'. Each is fitted anew.
    """
    grid = candidates(name, train, fixed=fixed) if grid is None else grid
    if not outliers and not left_out:
        raise InputError("nothing to tune against: give a validation OOD set or pseudo-outliers")
    rows = []
    for candidate in grid:
        detector = made(name, candidate, fixed).fit(train)
        ranked = prepare(chunked_score(detector, known))
        row = {kind: evaluate(ranked, chunked_score(detector, outputs)).auroc for kind, outputs in outliers.items()} if outliers else {}
        if {"uniform", "gaussian"} <= set(row):
            row["noise"] = (row.pop("uniform") + row.pop("gaussian")) / 2
        if left_out:
            row["left_out"] = float(np.mean([_auroc(made(name, candidate, fixed).fit(part), inside, outside) for part, inside, outside in left_out]))
        rows.append(row)
    return Search(name, grid, rows)


def regret(search: Search, on_test: Search) -> float:
    """AUROC on test of the best candidate there, minus that of the candidate that `search` chose: 0 is a perfect choice."""
    return float(on_test.criterion.max() - on_test.criterion[search.chosen])


def spelled(name: str, candidate: dict) -> str:
    """'dice:percentile=70.0', as -detectors takes it."""
    return name + (":" if candidate else "") + ",".join(f"{key}={_plain(value)}" for key, value in candidate.items())


def _plain(value) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if isinstance(value, (bool, type(None))) else str(value)


def _auroc(detector: Detector, inside: Outputs, outside: Outputs) -> float:
    return evaluate(chunked_score(detector, inside), chunked_score(detector, outside)).auroc
