"""Alarms for new data that no longer look like the calibration images.

    batch_alarm(calibration, scores)          # one batch: p-value of a two-sample test
    monitor = Martingale(calibration)         # a stream: evidence that grows image by image
    monitor.update(scores)                    # the evidence after each of these images
    monitor.alarm(0.01)                       # number of the first image with evidence >= 100

A detector judges single images. A camera that goes out of focus moves all scores a little, and no
single image is rejected. These alarms look at many images together. Both need nothing but
exchangeability of ID images, whatever the network and the detector:

- `batch_alarm` raises a false alarm for a batch of ID images with probability at most `level`.
- `Martingale` raises a false alarm anywhere in a stream of ID images, however long, with
  probability at most `level`. The order of the stream counts, so a folder that is sorted by class
  is no such stream.

The conformal p-values of one batch share the calibration images, so they are not independent. The
Kolmogorov-Smirnov test against the uniform law would raise too many false alarms unless the batch
is much smaller than the calibration set. `batch_alarm` therefore compares the two samples of
scores, which is the same test with the right law. Equal scores make it cautious.

Source: Hodges, "The significance probability of the Smirnov two-sample test", Arkiv for Matematik
    1958; Vovk, Nouretdinov & Gammerman, "Testing exchangeability on-line", ICML 2003; the betting
    strategy: Vovk et al., "Retrain or not retrain: conformal test martingales for change-point
    detection", COPA 2021, arXiv 2102.10439, algorithm 1 (Simple Jumper).
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from ood.config import InputError
from ood.deployment.calibration import Calibration

BETS = (-1.0, 0.0, 1.0)  # on small p-values, on nothing, on large p-values
JUMP = 0.01  # share of the capital that is spread anew at each image (the authors' value)
SIDES = {"shift": "two-sided", "ood": "less"}


class Alarm(NamedTuple):
    """The judgement about one batch.

    Attributes:
        raised: whether the p-value is at most the level.
        p_value: probability of so large a distance if the batch is like the calibration images.
        distance: largest gap between the two distribution functions of the scores, in [0, 1].
        level: probability of a false alarm.
    """

    raised: bool
    p_value: float
    distance: float
    level: float

    @property
    def guarantee(self) -> str:
        """One sentence for logs and reports."""
        return f"a batch of ID images raises a false alarm with probability at most {self.level:g}"


def batch_alarm(
    calibration: Calibration, scores, level: float = 0.01, looks_for: str = "shift"
) -> Alarm:
    """Test whether a batch of scores has the distribution of the calibration scores.

    Args:
        calibration: of held-out ID images, never of the batch itself.
        scores: (m,) of the batch, m >= 1.
        level: probability of a false alarm, in (0, 1).
        looks_for: "shift": any change; "ood": scores that became larger.

    Raises: InputError for an empty batch or one with NaN, a level outside (0, 1), or another word.
    """
    _check_level(level)
    if looks_for not in SIDES:
        raise InputError(f"looks_for is {looks_for!r}; allowed: {', '.join(map(repr, SIDES))}")
    scores = _scores(scores)
    if not len(scores):
        raise InputError("a batch without images cannot be tested; give at least one score")
    # 'less': the distribution function of the batch lies below, so its scores are larger
    found = ks_2samp(scores, calibration.scores, alternative=SIDES[looks_for])
    p_value = float(found.pvalue)
    return Alarm(p_value <= level, p_value, float(found.statistic), level)


class Martingale:
    """Evidence against exchangeability, image by image.

    The p-value of an image compares its score with all scores before it, the calibration images
    included; a random number breaks ties. For exchangeable images these p-values are independent
    and uniform. A gambler with capital 1 bets against that. The capital is then a martingale, and
    the probability that it ever reaches 1 / level is at most `level` (Ville's inequality).

    Args:
        calibration: the images before the stream.
        seed: of the random numbers that break ties.

    Attributes:
        seen: images of the stream so far.
        log_capital: natural logarithm of the evidence now.
        log_highest: of the highest evidence so far.
        path: (seen,) natural logarithms of the evidence after each image.
    """

    def __init__(self, calibration: Calibration, seed: int = 0):
        self._past: list[float] = calibration.scores.tolist()
        self._random = np.random.default_rng(seed)
        self._shares = np.full(len(BETS), 1 / len(BETS))  # of the capital, per bet
        self.path: list[float] = []

    @property
    def seen(self) -> int:
        return len(self.path)

    @property
    def log_capital(self) -> float:
        return self.path[-1] if self.path else 0.0

    @property
    def log_highest(self) -> float:
        return max(self.path, default=0.0)

    def update(self, scores) -> np.ndarray:
        """Take the next images of the stream into account.

        Args: scores: (m,) in the order in which the images came.

        Returns: (m,) evidence after each of them; 1 says nothing, 100 is an alarm at level 0.01.
            Values above the largest float are inf.
        """
        for score in _scores(scores).tolist():
            self._bet(self._p_value(score))
        with np.errstate(over="ignore"):
            return np.exp(np.array(self.path[len(self.path) - np.size(scores) :]))

    def alarm(self, level: float = 0.01) -> int | None:
        """Number (from 1) of the first image with evidence of at least 1 / level, or None."""
        _check_level(level)
        bound = -math.log(level)
        return next((n for n, value in enumerate(self.path, 1) if value >= bound), None)

    def _p_value(self, score: float) -> float:
        """p = (#{past > score} + u * #{past or this = score}) / (number of past + 1)."""
        left, right = bisect.bisect_left(self._past, score), bisect.bisect_right(self._past, score)
        larger, equal = len(self._past) - right, right - left + 1
        self._past.insert(right, score)
        return (larger + self._random.random() * equal) / len(self._past)

    def _bet(self, p: float) -> None:
        """One step of the Simple Jumper: spread a part of the capital anew, then bet."""
        shares = (1 - JUMP) * self._shares + JUMP / len(BETS)
        shares = shares * (1 + np.array(BETS) * (p - 0.5))
        growth = shares.sum()
        self._shares = shares / growth
        self.path.append(self.log_capital + math.log(growth))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be a fraction between 0 and 1, such as 0.01")


def _scores(scores) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise InputError(
            f"scores must be a list of numbers without NaN, got shape {values.shape} with "
            f"{int(np.isnan(values).sum())} NaN"
        )
    return values
