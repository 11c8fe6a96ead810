"""The score that a loss brings along: what its authors reject outliers by, from what a weight file keeps beside the network.

detector = own_score(network, file["objective"])        # None where the loss has none: msp, energy and the like are for those
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ood.config import InputError
from ood.detectors.base import Detector
from ood.losses.objective import Objective
from ood.outputs import Outputs

# of the objective, features (N, D) and logits (N, C): (N,), larger = OOD
RULES = {
    "confidence": lambda o, h, f: -o.heads["confidence"](h).sigmoid()[:, 0],  # 1 - c
    "background_class": lambda o, h, f: torch.cat((f, o.heads["extra"](h)), 1).softmax(1)[
        :, -1
    ],  # p(outlier)
    "openmix": lambda o, h, f: torch.cat((f, o.heads["extra"](h)), 1).softmax(1)[:, -1],
    "cac": lambda o, h, f: o.loss.score(o.loss.distance(f)),
    "center": lambda o, h, f: o.loss.distance(h).amin(1),  # to the nearest centre
    "ii": lambda o, h, f: o.loss.distance(h).amin(1),
    "mchad": lambda o, h, f: o.loss.distance(h).amin(1),
    "deep_svdd": lambda o, h, f: o.loss.distance(h),  # to the one centre
    "deep_sad": lambda o, h, f: o.loss.distance(h),
    "objectosphere": lambda o, h, f: o.loss.score(f),
    "vos": lambda o, h, f: o.loss.logistic_regression(o.loss.energy(f)[:, None]).softmax(1)[
        :, 0
    ],  # p(outlier | energy)
    "vos_reg": lambda o, h, f: o.loss.logistic_regression(o.loss.energy(f)[:, None]).softmax(1)[
        :, 0
    ],
}


def own_score(network: nn.Module, stored: dict | None) -> Detector | None:
    """The detector of the loss that a network was trained with; None where it has none (or nothing is known of a loss).

    Args:
        network: a Classifier with its weights. stored: what the weight file holds under "objective": {"loss", "args", "state"}.
    Raises: InputError when the state does not fit the network.
    """
    if not stored or stored["loss"] not in RULES:
        return None
    objective = Objective(stored["loss"], network, **stored.get("args", {}))
    try:
        objective.own.load_state_dict(stored["state"])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"what the weight file keeps of loss '{stored['loss']}' does not fit the network: {str(error).splitlines()[0]}"
        ) from None
    objective.finish_head()
    return OwnScore(objective.eval())


@dataclasses.dataclass(eq=False, init=False)
class OwnScore(Detector):
    """Score of the loss itself, as `RULES` has it; nothing to fit, no hyper-parameters."""

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
