"""WOODS and SCONE: push outliers out, under constraints on false alarms and on the classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.losses.base import (
    ABOVE_0,
    AT_LEAST_0,
    FRACTION,
    NUMBER,
    Loss,
    also,
    cross_entropy,
    energy,
    mean_where,
    register,
    require,
)


@register("energy_margin")
class EnergyMarginLoss(Loss):
    """Minimise missed outliers, under two constraints: few false alarms and a good classifier.

        min  w L_out + psi(L_in - alpha; lam, beta) + psi(CE - tau L_0; lam2, beta2)
        L_in = E_in sigmoid(phi(S)),   L_out = E_out sigmoid(-phi(S - eta)),   S = logsumexp(f)
        psi(c; lam, beta) = lam c + beta/2 c^2  if beta c + lam >= 0,  else -lam^2 / (2 beta)

    phi is a learned threshold on the energy, and psi is the penalty of an augmented Lagrangian. The
    multipliers lam move by `update_hyperparameters`. In classifier_pretraining.py they move between
    epochs.

    forward(logits (B, C), y, phi), phi: (N, 1) -> (N, 1). In a batch without ID rows, L_in and CE
    are 0; without outliers, L_out is 0. pytorch-ood refuses such a batch.

    Args: (the defaults are the authors', as in pytorch-ood)
        full_train_loss: L_0, the cross-entropy of the trained network that is continued. With None,
            `epoch_begins` measures it before the first epoch.
        eta: SCONE's margin, 1. With 0 the loss is WOODS.
        false_alarm_cutoff: alpha, 0.05.
        in_constraint_weight: initial beta.
        ce_tol: tau, 2.
        ce_constraint_weight: initial beta2.
        out_constraint_weight: w.
        lr_lam: step of the multipliers.
        penalty_mult: factor on beta (or beta2) while its constraint is violated.
        constraint_tol: a violation up to this size does not count.
    Raises: InputError in forward, while L_0 is neither given nor measured.
    Source: Katz-Samuels et al., "Training OOD Detectors in their Natural Habitats" (WOODS), ICML
        2022, arXiv 2202.03299, and Bai et al., "Feed Two Birds with One Scone" (SCONE), ICML 2023,
        arXiv 2306.09158. Their wild data is a mixture of ID and OOD images. Here any set serves.
    """

    outliers = "needed"
    modules = ("logistic_regression",)
    brings = ("logistic regression", "multipliers")
    pretrained = True
    ranges = {
        "full_train_loss": AT_LEAST_0,
        "eta": NUMBER,
        "false_alarm_cutoff": FRACTION,
        "in_constraint_weight": ABOVE_0,
        "ce_tol": AT_LEAST_0,
        "ce_constraint_weight": ABOVE_0,
        "out_constraint_weight": AT_LEAST_0,
        "lr_lam": AT_LEAST_0,
        "penalty_mult": ABOVE_0,
        "constraint_tol": NUMBER,
    }

    def __init__(
        self,
        full_train_loss: float | None = None,
        eta: float = 1.0,
        false_alarm_cutoff: float = 0.05,
        in_constraint_weight: float = 1.0,
        ce_tol: float = 2.0,
        ce_constraint_weight: float = 1.0,
        out_constraint_weight: float = 1.0,
        lr_lam: float = 1.0,
        penalty_mult: float = 1.5,
        constraint_tol: float = 0.0,
    ):
        super().__init__()
        self.eta, self.false_alarm_cutoff = eta, false_alarm_cutoff
        self.ce_tol, self.out_constraint_weight = ce_tol, out_constraint_weight
        self.lr_lam, self.penalty_mult, self.constraint_tol = lr_lam, penalty_mult, constraint_tol
        first = {
            "full_train_loss": math.nan if full_train_loss is None else full_train_loss,
            "lam": 0,
            "lam2": 0,
            "in_constraint_weight": in_constraint_weight,
            "ce_constraint_weight": ce_constraint_weight,
        }
        for name, value in first.items():
            self.register_buffer(name, torch.tensor(float(value)))
        # Beside the buffer, so that forward does not wait for the device to ask whether it is NaN.
        self._known = full_train_loss is not None

    @also(targets="y")
    def forward(
        self, logits: Tensor, y: Tensor, logistic_regression: Callable[[Tensor], Tensor]
    ) -> Tensor:
        require(
            self._known,
            "energy_margin: the cross-entropy of the trained network is not known yet; "
            "give it as full_train_loss, or let epoch_begins measure it before the first epoch",
        )
        score, known = -energy(logits), y >= 0
        alarms = mean_where(torch.sigmoid(_apply(logistic_regression, score)), known)
        missed = mean_where(torch.sigmoid(-_apply(logistic_regression, score - self.eta)), ~known)
        limits = self._violations(alarms, cross_entropy(logits, y))
        # Copies, in case somebody moves the multipliers between this pass and the backward pass.
        return (
            self.out_constraint_weight * missed
            + _penalty(limits[0], self.lam.clone(), self.in_constraint_weight.clone())
            + _penalty(limits[1], self.lam2.clone(), self.ce_constraint_weight.clone())
        )

    def epoch_begins(self, epoch: int, outputs: Callable, *modules: nn.Module) -> None:
        """Measure L_0 before epoch 1, unless given. Move the multipliers before later epochs."""
        if epoch == 1 and self._known:
            return
        alarms, losses = _averages(((logits, y) for _, logits, y in outputs()), modules[0])
        if epoch == 1:
            self.full_train_loss.fill_(losses)
            self._known = True
        else:
            self._move(alarms, losses)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._known = not self.full_train_loss.isnan().item()

    @torch.no_grad()
    def update_hyperparameters(
        self, model: nn.Module, train_loader_in: Iterable, logistic_regression: nn.Module
    ) -> None:
        """Move the multipliers by how far the constraints are violated over a loader of ID data.

        The model is put into eval mode.
        """
        model.eval()
        device = self.lam.device
        outputs = ((model(x.to(device)), y.to(device)) for x, y in train_loader_in)
        self._move(*_averages(outputs, logistic_regression))

    def _violations(self, alarms, losses) -> tuple:
        return alarms - self.false_alarm_cutoff, losses - self.ce_tol * self.full_train_loss

    def _move(self, alarms: float, losses: float) -> None:
        multipliers = (self.lam, self.lam2)
        weights = (self.in_constraint_weight, self.ce_constraint_weight)
        for violation, lam, beta in zip(self._violations(alarms, losses), multipliers, weights):
            lam.add_(self.lr_lam * torch.where(beta * violation + lam >= 0, violation, -lam / beta))
            beta.mul_(self.penalty_mult if violation > self.constraint_tol else 1.0)


def _penalty(violation: Tensor, lam: Tensor, beta: Tensor) -> Tensor:
    """Penalty psi of the augmented Lagrangian."""
    active = lam * violation + beta / 2 * violation.square()
    return torch.where(beta * violation + lam >= 0, active, -lam.square() / (2 * beta))


def _apply(logistic_regression: Callable[[Tensor], Tensor], score: Tensor) -> Tensor:
    return logistic_regression(score[:, None])[:, 0]


def _averages(
    batches: Iterable[tuple[Tensor, Tensor]], logistic_regression: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Average over all ID rows: (mean sigmoid(phi(S)), mean cross-entropy)."""
    alarms = losses = count = 0.0
    for logits, y in batches:
        known = y >= 0
        alarms += torch.sigmoid(_apply(logistic_regression, -energy(logits[known]))).sum().item()
        losses += F.cross_entropy(logits[known], y[known], reduction="sum").item()
        count += int(known.sum())
    return alarms / max(count, 1), losses / max(count, 1)
