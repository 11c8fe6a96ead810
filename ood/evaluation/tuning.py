"""Hyper-parameters by grid search on outputs that are there already.

    found = tune("ash", train, known, {"letters": outliers})         # against a validation OOD set
    found = tune("ash", train, known, made_sets, left_out=folds)     # see ood.evaluation.pseudo
    found.best                                                       # {"percentile": 80.0}
    regret(found, on_test)     # the AUROC that this choice lost against the best candidate on test

The criterion is the AUROC, averaged over kinds of outliers. OpenOOD's automatic parameter search
uses it too; it needs a validation OOD set and runs the network anew for every candidate. Here no
candidate costs a forward pass. Detectors that work on images are the exception: each candidate that
changes the pass needs one. `image_candidates` lists these for a single pass together.
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

# {name: {hyper-parameter: values}}, of which all combinations are tried, or a tuple of settings.
# Where the values are from:
#   OpenOOD v1.5's sweeps: adascale (its 36 pairs), ash and scale (percentile), fdbd, gen (7 x 6),
#       knn, mcm, nci (with pytorch-ood's 0), odin, react, relation, she (its three metrics)
#   pytorch-ood's spaces: dice, openmax (5 x 6 x 5)
#   both libraries: vim; its 8 and 1000 are ours
#   papers and authors' code: cadref, optfs (detector), ras, weiper (its three published settings),
#       gram (OpenOOD's powers and the paper's), vra (the paper's 50-70 and 80-99; for 'clip' also
#       OpenOOD's lower 1-15)
#   ours: ash's variant as a choice, combood, dice_react, energy, gmm, gradnorm, kpca, lts,
#       mds_odin, msp, nac, nac_stages, neco, nnguide, optfs (bins), pnml, residual, ssd
# Values that are not possible are left out: k above the number of training images, dim above the
# number of features, lower not below upper. So is gen's `top` above the number of classes, where
# all values give one score.
PAIRS = {"lower": tuple(float(p) for p in range(60, 100, 5)), "upper": (*FIVES, 99.0)}
SPACES: dict[str, dict[str, tuple] | tuple[dict, ...]] = {
    "adascale_a": PAIRS,
    "adascale_l": PAIRS,
    "ash": {"variant": ("s", "b", "p"), "percentile": FIVES},
    "cadref": {"detector": ("energy", "maxlogit", "msp", "gen")},
    "combood": {"k": (5, 10, 20, 50, 100)},
    "dice": {"percentile": (10.0, 30.0, 50.0, 70.0, 90.0)},
    "dice_react": {
        "percentile": (10.0, 30.0, 50.0, 70.0, 90.0),
        "clip_percentile": (85.0, 90.0, 95.0, 99.0),
    },
    "energy": {"temperature": (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)},
    "fdbd": {"normalise": ("distance", "norm")},
    "gen": {"gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "top": (10, 50, 100, 200, 500, 1000)},
    "gmm": {"reg": (1e-6, 1e-4, 1e-2, 1e-1)},
    "gradnorm": {"temperature": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)},
    "gram": {"powers": ((1, 2, 3, 4, 5), tuple(range(1, 11)))},
    "knn": {"k": (50, 100, 200, 500, 1000)},
    "kpca": {"variance": (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)},
    "lts": {"share": (0.01, 0.05, 0.1, 0.15, 0.2, 0.3)},
    "mcm": {"temperature": (0.01, 1.0, 10.0)},
    "mds_odin": {"magnitude": (0.0, 0.0005, 0.0014, 0.002, 0.005)},
    "msp": {"temperature": (0.5, 1.0, 2.0, 10.0, 100.0, 1000.0)},
    "nac": {"alpha": (1.0, 10.0, 100.0, 1000.0), "saturation": (10.0, 50.0, 200.0, 1000.0)},
    "nac_stages": {"alpha": (0.1, 1.0, 10.0, 100.0, 1000.0)},
    "nci": {"alpha": (0.0, 1e-4, 1e-3, 1e-2, 1e-1)},
    "neco": {"dim": (8, 16, 32, 64, 128, 256, 512), "max_logit": (False, True)},
    "nnguide": {"k": (1, 5, 10, 50, 100)},
    "odin": {"temperature": (1.0, 10.0, 100.0, 1000.0), "magnitude": (0.0014, 0.0028)},
    "openmax": {
        "tail": (10, 20, 30, 40, 50),
        "alpha": (1, 3, 5, 10, 15, 20),
        "euclid_weight": (0.0, 0.25, 0.5, 0.75, 1.0),
    },
    "optfs": {"detector": ("vanilla", "energy"), "bins": (20, 50, 100, 200)},
    "pnml": {"logits": ("normalised", "network")},
    "ras": {"order": ("value", "magnitude")},
    "react": {"percentile": (85.0, 90.0, 95.0, 99.0)},
    "relation": {"power": (1.0, 2.0, 4.0, 6.0, 8.0)},
    "residual": {"dim": (8, 16, 32, 64, 128, 256, 512, 1000)},
    "scale": {"percentile": FIVES},
    "she": {"metric": ("inner", "cosine", "euclidean")},
    "ssd": {"clusters": (1, 2, 5, 10)},
    "vim": {"dim": (8, 16, 32, 64, 128, 256, 512, 1000)},
    "vra": {
        "lower": (1.0, 5.0, 10.0, 15.0, 50.0, 60.0, 65.0, 70.0),
        "upper": (80.0, 85.0, 90.0, 95.0, 99.0),
    },
    "weiper": tuple(
        {"delta": delta, "lambda_1": a, "lambda_2": b, "smooth": narrow, "smooth_perturbed": wide}
        for delta, a, b, narrow, wide in (
            (1.8, 2.5, 0.1, 4, 15),
            (2.4, 0.1, 1.0, 4, 40),
            (2.4, 2.5, 0.25, 40, 15),
        )
    ),
}


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        detector: its name.
        candidates: {hyper-parameter: value} of each, the default first.
        aurocs: of each candidate, {kind of outliers: AUROC}.
    """

    detector: str
    candidates: list[dict]
    aurocs: list[dict[str, float]]

    @property
    def criterion(self) -> np.ndarray:
        """(candidates,) mean AUROC over the kinds of outliers."""
        return np.array([np.mean(list(row.values())) for row in self.aurocs])

    @property
    def chosen(self) -> int:
        """Index of the best candidate; of equal ones the first.

        So the default stays where nothing is gained.
        """
        return int(self.criterion.argmax())

    @property
    def best(self) -> dict:
        """The best candidate."""
        return self.candidates[self.chosen]


def candidates(
    name: str,
    train: Outputs,
    space: dict[str, tuple] | tuple[dict, ...] | None = None,
    fixed: dict | None = None,
    images: int | None = None,
) -> list[dict]:
    """All combinations of the search space that this training set allows.

    The detector's default comes first, where it is allowed.

    Args:
        name: of the detector.
        train: ID training outputs.
        space: {hyper-parameter: values}, or settings; None: SPACES[name].
        fixed: hyper-parameters that all candidates share.
        images: number of images of the smallest training set that candidates will be fitted to;
            None: all of `train`.

    Raises: InputError for a detector without a space, or a value that the detector refuses.
    """
    space = SPACES.get(name) if space is None else space
    if not space:
        raise InputError(
            f"detector '{name}' has no search space{nearest(name, SPACES)}; detectors with one: "
            f"{', '.join(SPACES)}; or give values, e.g. knn:k=[5,10,20]"
        )
    default = detectors.create(name, **(fixed or {})).hyperparameters()
    if isinstance(space, dict):
        grid = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    else:
        grid = list(space)
    first = {key: default[key] for key in grid[0] if key in default}
    count, dimensions, classes = (
        images or len(train),
        train.features.shape[1],
        train.logits.shape[1],
    )

    def possible(candidate: dict) -> bool:
        k, dim, top = (candidate.get(key) for key in ("k", "dim", "top"))
        return (
            (k is None or k <= count)
            and (dim is None or dim < dimensions)
            and candidate.get("lower", 0) < candidate.get("upper", 100)
            and (top is None or top <= classes or top == first["top"])
        )

    grid = [c for c in (first, *(c for c in grid if c != first)) if possible(c)]
    if not grid:
        raise InputError(
            f"detector '{name}': none of the values {space} is possible with {count} training "
            f"images of {dimensions} features"
        )
    return grid


def made(name: str, candidate: dict, fixed: dict | None = None) -> Detector:
    """The detector with the candidate's hyper-parameters; they win over `fixed`."""
    return detectors.create(name, **{**(fixed or {}), **candidate})


def image_candidates(
    name: str, grid: list[dict], train: Outputs | None, fixed: dict | None = None
) -> list[ImageDetector]:
    """The detectors whose measurements a pass must take to serve all candidates.

    Empty for a detector that sees arrays only.
    """
    several = [made(name, candidate, fixed) for candidate in grid]
    if not isinstance(several[0], ImageDetector):
        return []
    if train is not None and several[0].uses_fit:
        several = [detector.fit(train) for detector in several]
    return list({detector.key: detector for detector in several}.values())


def tune(
    name: str,
    train: Outputs,
    known: Outputs,
    outliers: dict[str, Outputs],
    *,
    grid: list[dict] | None = None,
    fixed: dict | None = None,
    left_out: list[tuple[Outputs, Outputs, Outputs]] = (),
) -> Search:
    """Measure the AUROCs of every candidate.

    Args:
        name: of the detector.
        train: ID training outputs. Statistics that candidates share are computed once.
        known: ID validation outputs.
        outliers: {kind: outputs}, real or made. "uniform" and "gaussian" count together as the one
            kind "noise".
        grid: the candidates; None: `candidates(name, train, fixed=fixed)`.
        fixed: hyper-parameters that all candidates share.
        left_out: triples of `pseudo.left_out`. Every candidate is fitted anew to each of them;
            their mean is one more kind, "left_out".

    Raises: InputError where there is nothing to tune against.
    """
    grid = candidates(name, train, fixed=fixed) if grid is None else grid
    if not outliers and not left_out:
        raise InputError("nothing to tune against: give a validation OOD set or pseudo-outliers")
    rows = []
    for candidate in grid:
        detector = made(name, candidate, fixed).fit(train)
        ranked = prepare(chunked_score(detector, known)) if outliers else None
        row = {
            kind: evaluate(ranked, chunked_score(detector, outputs)).auroc
            for kind, outputs in outliers.items()
        }
        if {"uniform", "gaussian"} <= set(row):
            row["noise"] = (row.pop("uniform") + row.pop("gaussian")) / 2
        if left_out:
            areas = [
                _auroc(made(name, candidate, fixed).fit(part), inside, outside)
                for part, inside, outside in left_out
            ]
            row["left_out"] = float(np.mean(areas))
        rows.append(row)
    return Search(name, grid, rows)


def regret(search: Search, on_test: Search) -> float:
    """The AUROC on test that the choice of `search` lost against the best candidate there."""
    return float(on_test.criterion.max() - on_test.criterion[search.chosen])


def spelled(name: str, candidate: dict) -> str:
    """'dice:percentile=70.0', as -detectors takes it."""
    values = ",".join(f"{key}={_plain(value)}" for key, value in candidate.items())
    return f"{name}:{values}" if candidate else name


def _plain(value) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_plain, value))}]"
    return {True: "true", False: "false", None: "null"}[value] if _is_word(value) else str(value)


def _is_word(value) -> bool:
    return value is None or isinstance(value, bool)


def _auroc(detector: Detector, inside: Outputs, outside: Outputs) -> float:
    return evaluate(chunked_score(detector, inside), chunked_score(detector, outside)).auroc
