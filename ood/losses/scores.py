"""The score that belongs to a loss: what its authors reject outliers by.

    detector = own_score(network, file["objective"])

It is computed from what the weight file keeps beside the network. A loss without such a score gives
None: use msp, energy or another detector there.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ood.config import InputError
from ood.detectors.base import Detector
from ood.losses.objective import Objective
from ood.outputs import Outputs


def _low_confidence(o: Objective, h: Tensor, f: Tensor) -> Tensor:
    """-c, which orders images as 1 - c does."""
    return -o.heads["confidence"](h).sigmoid()[:, 0]


def _extra_class(o: Objective, h: Tensor, f: Tensor) -> Tensor:
    """Probability of the extra class."""
    return torch.cat((f, o.heads["extra"](h)), 1).softmax(1)[:, -1]


def _nearest_centre(o: Objective, h: Tensor, f: Tensor) -> Tensor:
    """Squared distance to the nearest centre."""
    return o.loss.distance(h).amin(1)


def _outlier_given_energy(o: Objective, h: Tensor, f: Tensor) -> Tensor:
    """Probability of an outlier, given the weighted energy."""
    return o.loss.logistic_regression(o.loss.energy(f)[:, None]).softmax(1)[:, 0]


# Each rule takes the objective, features h (N, D) and logits f (N, C). It gives scores (N,), larger
# = OOD.
RULES = {
    "confidence": _low_confidence,
    "background_class": _extra_class,
    "openmix": _extra_class,
    "cac": lambda o, h, f: o.loss.score(o.loss.distance(f)),
    "center": _nearest_centre,
    "ii": _nearest_centre,
    "mchad": _nearest_centre,
    "deep_svdd": lambda o, h, f: o.loss.distance(h),
    "deep_sad": lambda o, h, f: o.loss.distance(h),
    "objectosphere": lambda o, h, f: o.loss.score(f),
    "vos": _outlier_given_energy,
    "vos_reg": _outlier_given_energy,
}


def own_score(network: nn.Module, stored: dict | None) -> Detector | None:
    """Make the detector of the loss that a network was trained with.

    Args:
        network: a Classifier with its weights.
        stored: what the weight file holds under "objective": {"loss", "args", "state"}.
    Returns: None if the loss has no score, or if the file names no loss.
    Raises: InputError when the state does not fit the network.
    """
    if not stored or stored["loss"] not in RULES:
        return None
    objective = Objective(stored["loss"], network, **stored.get("args", {}))
    try:
        objective.own.load_state_dict(stored["state"])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"what the weight file keeps of loss '{stored['loss']}' does not fit the network: "
            f"{str(error).splitlines()[0]}"
        ) from None
    objective.finish_head()
    return OwnScore(objective.eval())


@dataclasses.dataclass(eq=False, init=False)
class OwnScore(Detector):
    """The score of a loss, as `RULES` defines it. It has nothing to fit and no hyper-parameters."""

    needs = frozenset({"logits", "features"})

    def __init__(self, objective: Objective):
        self.name, self._objective = objective.loss.name, objective

    @torch.no_grad()
    def score(self, batch: Outputs) -> Tensor:
        weights = next(iter(self._objective.own.state_dict().values()), torch.zeros(0))
        features, logits = (
            values.to(weights.device, torch.float32) for values in (batch.features, batch.logits)
        )
        return RULES[self.name](self._objective, features, logits)
