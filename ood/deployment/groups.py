"""A calibration per group: every predicted class, or every camera, has its own threshold.

    calibration = calibrate_groups(id_scores, groups, accept=0.95)
    calibration.p_values(scores, groups)  # (N,), each from the images of its own group
    calibration.accepts(scores, groups)   # (N,) bool
    judge(calibration, scores, groups)    # both, with or without groups

One threshold for all images accepts 95 % of ID images on average. Some classes may have 99 % of
their images accepted and others 80 %. Here each group has its own threshold, so the guarantee of
`ood.deployment.calibration` holds inside every group (Mondrian conformal prediction). A group must
follow from the image alone, as the predicted class does: the true class is not known when a new
image comes.

A group with too few calibration images has no guarantee of its own. It uses the calibration of all
images together, and `pooled` names it.

Source: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005, section 4.5
    (Mondrian conformal predictors); Vovk, "Conditional validity of inductive conformal
    predictors", ACML 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ood.config import InputError
from ood.deployment.calibration import Calibration, calibrate, needed, rank_of


@dataclass(frozen=True, eq=False)
class GroupCalibration:
    """What `calibrate_groups` gives.

    Attributes:
        everything: the calibration of all images together.
        parts: {group: its calibration}; groups with too few images are not in it.
        pooled: groups that were seen, but have too few images.
    """

    everything: Calibration
    parts: dict[int, Calibration]
    pooled: tuple[int, ...] = ()

    @property
    def accept(self) -> float:
        """The share of ID images that is accepted in every group."""
        return self.everything.accept

    def of(self, group: int) -> Calibration:
        """The calibration that an image of this group gets."""
        return self.parts.get(int(group), self.everything)

    def p_values(self, scores, groups) -> np.ndarray:
        """(N,) conformal p-values; see `Calibration.p_values`."""
        return self._each(scores, groups, Calibration.p_values, float)

    def accepts(self, scores, groups) -> np.ndarray:
        """(N,) bool; see `Calibration.accepts`."""
        return self._each(scores, groups, Calibration.accepts, bool)

    @property
    def guarantee(self) -> str:
        """One sentence for logs and reports."""
        share = f"{100 * self.accept:g} %"
        confidence = self.everything.confidence
        how = (
            f"with probability at least {share}, on average over the calibration images"
            if confidence is None
            else f"in at least {share} of cases, with probability {confidence:g} over the choice "
            "of its calibration images"
        )
        others = (
            f"; {len(self.pooled)} groups with too few images share one threshold"
            if self.pooled
            else ""
        )
        return f"in each of {len(self.parts)} groups, an ID image is accepted {how}{others}"

    def shares(self, id_scores, groups) -> dict[int, tuple[int, float]]:
        """{group: (number of new ID images, share of them that is accepted)}."""
        scores, groups = _pairs(id_scores, groups)
        accepted = self.accepts(scores, groups)
        found = {int(group): accepted[groups == group] for group in np.unique(groups)}
        return {group: (len(values), float(values.mean())) for group, values in found.items()}

    def state(self) -> dict:
        """Plain values for `ood.deployment.detector_file`: every score with its group."""
        groups = [(group, len(part.scores)) for group, part in sorted(self.parts.items())]
        scores = [self.parts[group].scores for group, _ in groups]
        return {
            **self.everything.state(),
            "group_scores": torch.from_numpy(np.concatenate([np.zeros(0), *scores])),
            "groups": [list(pair) for pair in groups],
            "pooled": list(self.pooled),
        }

    @classmethod
    def from_state(cls, state: dict) -> GroupCalibration:
        """The calibration whose `state` this is.

        Raises: InputError where the values contradict each other.
        """
        everything = Calibration.from_state(state)
        scores, parts, start = np.asarray(state["group_scores"], np.float64), {}, 0
        for group, count in state["groups"]:
            part = scores[start : start + int(count)]
            start += int(count)
            shares = (everything.accept, everything.confidence)
            rank = rank_of(len(part), *shares)
            values = dict(zip(("accept", "confidence"), shares), scores=part, rank=rank)
            parts[int(group)] = Calibration.from_state(values)
        if scores.ndim != 1 or start != len(scores):
            raise InputError(
                f"its groups count {start} calibration scores, but there are {scores.size}"
            )
        return cls(everything, parts, tuple(int(group) for group in state["pooled"]))

    def _each(self, scores, groups, call, kind) -> np.ndarray:
        """Ask every group's calibration about its own images."""
        scores, groups = _pairs(scores, groups)
        found = np.zeros(len(scores), dtype=kind)
        for group in np.unique(groups):
            rows = groups == group
            found[rows] = call(self.of(group), scores[rows])
        return found


def calibrate_groups(
    id_scores, groups, accept: float = 0.95, confidence: float | None = None
) -> GroupCalibration:
    """A threshold per group that is guaranteed to accept at least `accept` of its ID images.

    Args:
        id_scores: (n,) of held-out ID images, larger = OOD.
        groups: (n,) whole numbers, such as the predicted class of each image.
        accept, confidence: as for `ood.deployment.calibration.calibrate`. The confidence holds for
            each group on its own, not for all of them at once.

    Raises: InputError when no group has enough images; the number that is needed is named.
    """
    scores, groups = _pairs(id_scores, groups)
    everything = calibrate(scores, accept, confidence)
    least = needed(accept, confidence)
    sizes = dict(zip(*(values.tolist() for values in np.unique(groups, return_counts=True))))
    parts = {
        group: calibrate(scores[groups == group], accept, confidence)
        for group, count in sizes.items()
        if count >= least
    }
    if not parts:
        raise InputError(
            f"no group has the {least:,} calibration images that accepting {100 * accept:g} % "
            f"needs (the largest has {max(sizes.values()):,}); calibrate without groups, or with "
            "more images"
        )
    return GroupCalibration(everything, parts, tuple(sorted(sizes.keys() - parts.keys())))


def judge(
    calibration: Calibration | GroupCalibration, scores, groups
) -> tuple[np.ndarray, np.ndarray]:
    """p-values (N,) and whether each image is accepted (N,).

    Args:
        groups: (N,) of the images; a calibration without groups does not look at them.
    """
    arguments = (scores, groups) if isinstance(calibration, GroupCalibration) else (scores,)
    return calibration.p_values(*arguments), calibration.accepts(*arguments)


def restore(state: dict) -> Calibration | GroupCalibration:
    """The calibration whose `state` this is.

    Raises: InputError where the values contradict each other.
    """
    return (GroupCalibration if "groups" in state else Calibration).from_state(state)


def _pairs(scores, groups) -> tuple[np.ndarray, np.ndarray]:
    """Scores and groups as arrays of one length."""
    scores = np.asarray(scores, dtype=np.float64)
    groups = np.asarray(groups)
    if groups.dtype.kind not in "iu" and groups.size:
        raise InputError(f"groups are whole numbers, such as predicted classes, not {groups.dtype}")
    if scores.ndim != 1 or scores.shape != groups.shape:
        raise InputError(
            f"every score needs one group: got {scores.shape} scores and {groups.shape} groups"
        )
    return scores, groups.astype(np.int64)
