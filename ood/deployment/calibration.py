"""From a score to a decision: a threshold that accepts a wanted share of ID images, and conformal p-values.

    calibration = calibrate(id_scores, accept=0.95)     # of held-out ID images: not those that the network or the detector learned from
    calibration.threshold                               # accept an image if its score is at most this
    calibration.p_values(scores)                        # (N,), small = unlike ID
    calibration.accepts(scores)                         # (N,) bool; the same as p_value > 1 - accept

What is guaranteed, for ANY score, network and distribution, if a new ID image and the n calibration images are exchangeable:

- an ID image is accepted with probability at least `accept` (on average over the draw of the n images and of the new one), and its
  p-value is super-uniform: P(p <= a) <= a for every a. Without ties the probability is exactly k / (n + 1), below accept + 1 / (n + 1).
- this holds on average over calibration sets. For one calibration set the share that is accepted is itself random: without ties it
  is Beta(k, n + 1 - k). With `confidence=0.9` k is chosen such that 90 % of calibration sets accept at least `accept` of all ID images.

Nothing is guaranteed about OOD images, nor about ID images that differ from the calibration set (another camera): see `check`.

Source: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al., "Testing for outliers with conformal
p-values", Annals of Statistics 2023; the Beta law: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betainc, betaincinv, betaln, gammaln, logsumexp

from ood.config import InputError
from ood.metrics import _as_array


class Check(NamedTuple):
    """`accepted`: share of new ID images; `expected`: on average; `p_value`: of seeing so few if they were like the calibration set."""

    accepted: float
    expected: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores (n,) of the calibration images, ascending, float64, and the number `rank` of them that lie at or below the threshold.

    accept, confidence: as given to `calibrate`.
    """

    scores: np.ndarray
    rank: int
    accept: float
    confidence: float | None = None

    @property
    def threshold(self) -> float:
        return float(self.scores[self.rank - 1])

    def p_values(self, scores) -> np.ndarray:
        """p = (1 + #{calibration scores >= s}) / (n + 1), (N,) in [1 / (n + 1), 1]."""
        scores = _checked(scores, "scores", empty=True)
        return (1 + len(self.scores) - np.searchsorted(self.scores, scores, side="left")) / (
            len(self.scores) + 1
        )

    def accepts(self, scores) -> np.ndarray:
        """(N,) bool: score <= threshold. Without `confidence` the same as p_values(scores) > 1 - accept."""
        return _checked(scores, "scores", empty=True) <= self.threshold

    @property
    def guarantee(self) -> str:
        """One sentence for logs and reports."""
        n, low = len(self.scores), self.share_interval()[0]
        if self.confidence is not None:
            return (
                f"with probability {self.confidence:g} over the choice of the {n} calibration images, at least {100 * self.accept:g} % "
                "of ID images are accepted"
            )
        return (
            f"an ID image is accepted with probability at least {100 * self.accept:g} %, on average over the choice of the {n} "
            f"calibration images (for these ones the share is above {100 * low:.1f} % with probability 0.95)"
        )

    def share_interval(self, level: float = 0.9) -> tuple[float, float]:
        """Where the share of accepted ID images lies for this calibration set, with probability `level`: the Beta law, equal tails."""
        tail = (1 - level) / 2
        return tuple(
            float(betaincinv(self.rank, len(self.scores) + 1 - self.rank, q))
            for q in (tail, 1 - tail)
        )

    def check(self, id_scores) -> Check:
        """Whether the threshold still holds for new ID images: an exact test for a share that is too small.

        With m new images like the calibration set, the number accepted is Beta-binomial(m, k, n + 1 - k), so the p-value accounts
        for the randomness of both sets. A small one says that the images have changed: calibrate again.
        """
        accepted = self.accepts(_checked(id_scores, "scores of new ID images"))
        k, n, m, count = self.rank, len(self.scores), len(accepted), int(accepted.sum())
        i = np.arange(count + 1)
        logs = (
            gammaln(m + 1)
            - gammaln(i + 1)
            - gammaln(m - i + 1)
            + betaln(i + k, m - i + n + 1 - k)
            - betaln(k, n + 1 - k)
        )
        return Check(count / m, k / (n + 1), float(min(1.0, math.exp(logsumexp(logs)))))

    def state(self) -> dict:
        """Plain values for `ood.deployment.detector_file`."""
        return {
            "scores": torch.from_numpy(self.scores.copy()),
            "rank": self.rank,
            "accept": self.accept,
            "confidence": self.confidence,
        }

    @classmethod
    def from_state(cls, state: dict) -> Calibration:
        return cls(
            np.asarray(state["scores"], dtype=np.float64),
            int(state["rank"]),
            float(state["accept"]),
            state["confidence"],
        )


def calibrate(id_scores, accept: float = 0.95, confidence: float | None = None) -> Calibration:
    """The smallest threshold with the guarantee that at least `accept` of ID images are accepted (see the module's text).

    Args:
        id_scores: (n,) of held-out ID images, larger = OOD.
        accept: share in (0, 1). The threshold is the k-th smallest score, k = ceil(accept * (n + 1)).
        confidence: None: the share holds on average over calibration sets; in (0, 1): it holds for this share of them, with the
            smallest k such that P(Beta(k, n + 1 - k) >= accept) >= confidence.

    Raises:
        InputError: when n images cannot give the guarantee: the number that can is named. accept=0.95 needs 19, accept=0.99 needs 99.
    """
    scores = np.sort(_checked(id_scores, "ID scores"))
    for name, value in (("accept", accept), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise InputError(
                f"{name} is {value}; it must be a fraction between 0 and 1, such as 0.95"
            )
    rank = _rank(len(scores), accept, confidence)
    if rank is None:
        raise InputError(
            f"{len(scores)} calibration images are too few to accept {100 * accept:g} % of ID images"
            f"{'' if confidence is None else f' with confidence {confidence:g}'}; at least {needed(accept, confidence)} are needed"
        )
    return Calibration(scores, rank, accept, confidence)


def needed(accept: float, confidence: float | None = None) -> int:
    """The smallest number of calibration images that can give the guarantee."""
    if confidence is None:
        return next(
            n
            for n in range(max(1, math.floor(accept / (1 - accept)) - 2), 10**12)
            if _rank(n, accept, None)
        )
    return next(
        n
        for n in range(max(1, math.floor(math.log1p(-confidence) / math.log(accept)) - 2), 10**12)
        if _rank(n, accept, confidence)
    )


def _rank(n: int, accept: float, confidence: float | None) -> int | None:
    """k, or None where even the largest score is not enough."""
    if confidence is None:
        rank = max(
            1, math.ceil(accept * (n + 1) - 1e-9 * (n + 1))
        )  # 0.95 * 20 is 19, also in floating point
        return rank if rank <= n else None
    ranks = np.arange(1, n + 1)
    enough = 1 - betainc(ranks, n + 1 - ranks, accept) >= confidence
    return int(ranks[enough][0]) if enough.any() else None


def _checked(scores, name: str, empty: bool = False) -> np.ndarray:
    if empty and np.size(scores) == 0:
        return np.zeros(0)
    values = _as_array(scores, name).astype(np.float64)
    if np.isnan(values).any():
        raise InputError(
            f"{name}: {int(np.isnan(values).sum())} of {len(values)} are NaN; a NaN cannot be compared with a threshold"
        )
    return values
