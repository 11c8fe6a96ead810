"""From a score to a decision: a threshold that accepts a wanted share of ID images, and p-values.

    calibration = calibrate(id_scores, accept=0.95)  # of held-out ID images
    calibration.threshold                            # accept an image if its score is at most this
    calibration.p_values(scores)                     # (N,), small = unlike ID
    calibration.accepts(scores)                      # (N,) bool, the same as p_value > 1 - accept

Held-out images are images that neither the network nor the detector learned from. If a new ID image
and the n calibration images are exchangeable, this is guaranteed for ANY score, network and
distribution:

- An ID image is accepted with probability at least `accept`, on average over the draw of the n
  images and of the new one. Its p-value is super-uniform: P(p <= a) <= a for every a. Without ties
  the probability is exactly k / (n + 1), below accept + 1 / (n + 1).
- That is an average over calibration sets. For one calibration set, the share that is accepted is
  itself random: without ties it is Beta(k, n + 1 - k). With `confidence=0.9`, k is chosen such that
  90 % of calibration sets accept at least `accept` of all ID images.

Nothing is guaranteed about OOD images, nor about ID images that differ from the calibration set
(another camera): see `Calibration.check`.

Source: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al.,
    "Testing for outliers with conformal p-values", Annals of Statistics 2023; the Beta law: Vovk,
    "Conditional validity of inductive conformal predictors", ACML 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betainc, betaincinv, betaln, gammaln, logsumexp

from ood.config import InputError
from ood.metrics import as_scores


class Check(NamedTuple):
    """How new ID images fare under a calibration.

    Attributes:
        accepted: share of the new images that is accepted.
        expected: the share that is accepted on average.
        p_value: probability of so small a share if the images are like the calibration set.
    """

    accepted: float
    expected: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` gives.

    Attributes:
        scores: (n,) float64 of the calibration images, ascending.
        rank: how many of them lie at or below the threshold.
        accept, confidence: as given to `calibrate`.
    """

    scores: np.ndarray
    rank: int
    accept: float
    confidence: float | None = None

    @property
    def threshold(self) -> float:
        """Accept an image if its score is at most this."""
        return float(self.scores[self.rank - 1])

    def p_values(self, scores) -> np.ndarray:
        """p = (1 + #{calibration scores >= s}) / (n + 1), (N,) in [1 / (n + 1), 1]."""
        scores = _checked(scores, "scores", empty=True)
        n, below = len(self.scores), np.searchsorted(self.scores, scores, side="left")
        return (1 + n - below) / (n + 1)

    def accepts(self, scores) -> np.ndarray:
        """(N,) bool: score <= threshold.

        Without `confidence` this is the same as p_values(scores) > 1 - accept.
        """
        return _checked(scores, "scores", empty=True) <= self.threshold

    @property
    def guarantee(self) -> str:
        """One sentence for logs and reports."""
        n, low = len(self.scores), self.share_interval()[0]
        share = f"{100 * self.accept:g} %"
        if self.confidence is not None:
            return (
                f"with probability {self.confidence:g} over the choice of the {n} calibration "
                f"images, at least {share} of ID images are accepted"
            )
        return (
            f"an ID image is accepted with probability at least {share}, on average over the "
            f"choice of the {n} calibration images (for these ones the share is above "
            f"{100 * low:.1f} % with probability 0.95)"
        )

    def share_interval(self, level: float = 0.9) -> tuple[float, float]:
        """Where the share of accepted ID images lies for this calibration set.

        It lies there with probability `level`: the Beta law, equal tails.
        """
        tail, n = (1 - level) / 2, len(self.scores)
        ends = (betaincinv(self.rank, n + 1 - self.rank, q) for q in (tail, 1 - tail))
        return tuple(float(end) for end in ends)

    def check(self, id_scores) -> Check:
        """Test whether the threshold still holds for new ID images.

        This is an exact test for a share that is too small. With m new images like the calibration
        set, the number accepted is Beta-binomial(m, k, n + 1 - k), so the p-value accounts for the
        randomness of both sets. A small p-value says that the images have changed: calibrate again.
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
        """The calibration whose `state` this is.

        Raises: InputError where the values contradict each other.
        """
        scores = np.asarray(state["scores"])
        made = cls(
            scores.astype(np.float64),
            int(state["rank"]),
            float(state["accept"]),
            None if state["confidence"] is None else float(state["confidence"]),
        )
        _check_shares(made.accept, made.confidence)
        if scores.ndim != 1 or not len(scores) or np.isnan(made.scores).any():
            raise InputError("its calibration scores are no list of numbers")
        if (np.diff(made.scores) < 0).any():
            raise InputError("its calibration scores are not in ascending order")
        if made.rank != rank_of(len(scores), made.accept, made.confidence):
            raise InputError(
                f"its threshold is score {made.rank} of {len(scores)}, which does not accept "
                f"{100 * made.accept:g} % of ID images"
            )
        return made


def calibrate(id_scores, accept: float = 0.95, confidence: float | None = None) -> Calibration:
    """The smallest threshold that is guaranteed to accept at least `accept` of ID images.

    The text of the module says what is guaranteed.

    Args:
        id_scores: (n,) of held-out ID images, larger = OOD.
        accept: share in (0, 1). The threshold is the k-th smallest score with
            k = ceil(accept * (n + 1)).
        confidence: None: the share holds on average over calibration sets. In (0, 1): it holds for
            this share of them, with the smallest k such that
            P(Beta(k, n + 1 - k) >= accept) >= confidence.

    Raises:
        InputError: when n images cannot give the guarantee; the number that can is named.
            accept=0.95 needs 19 images, accept=0.99 needs 99.
    """
    scores = np.sort(_checked(id_scores, "ID scores"))
    return Calibration(scores, rank_of(len(scores), accept, confidence), accept, confidence)


def rank_of(count: int, accept: float, confidence: float | None = None) -> int:
    """The rank k of the threshold among the scores of `count` calibration images.

    Raises: InputError as `calibrate`, which a script can so learn before it computes any score.
    """
    _check_shares(accept, confidence)
    if count >= 1 and _possible(count, accept, confidence):
        return _rank(count, accept, confidence)
    confidently = "" if confidence is None else f" with confidence {confidence:g}"
    raise InputError(
        f"{count} calibration images are too few to accept {100 * accept:g} % of ID images"
        f"{confidently}; at least {needed(accept, confidence):,} are needed"
    )


def _check_shares(accept: float, confidence: float | None) -> None:
    for name, value in (("accept", accept), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise InputError(
                f"{name} is {value}; it must be a fraction between 0 and 1, such as 0.95"
            )


def needed(accept: float, confidence: float | None = None) -> int:
    """The smallest number of calibration images that can give the guarantee."""
    if confidence is None:
        first = accept / (1 - accept)
    else:
        first = math.log1p(-confidence) / math.log(accept)
    counts = range(max(1, math.floor(first) - 2), 10**18)  # rounding may shift `first` by one
    return next(n for n in counts if _possible(n, accept, confidence))


def _possible(n: int, accept: float, confidence: float | None) -> bool:
    """Whether the largest of n scores is enough as a threshold."""
    if confidence is None:
        return _rank(n, accept, None) <= n
    return 1 - betainc(n, 1, accept) >= confidence


def _rank(n: int, accept: float, confidence: float | None) -> int:
    """k, where it is possible."""
    if confidence is None:
        # The small term makes 0.95 * 20 equal 19, in floating point too.
        return max(1, math.ceil(accept * (n + 1) - 1e-9 * (n + 1)))
    ranks = np.arange(1, n + 1)
    enough = 1 - betainc(ranks, n + 1 - ranks, accept) >= confidence
    return int(ranks[enough][0])


def _checked(scores, name: str, empty: bool = False) -> np.ndarray:
    if empty and np.size(scores) == 0:
        return np.zeros(0)
    values = as_scores(scores, name).astype(np.float64)
    if np.isnan(values).any():
        raise InputError(
            f"{name}: {int(np.isnan(values).sum())} of {len(values)} are NaN; "
            "a NaN cannot be compared with a threshold"
        )
    return values
