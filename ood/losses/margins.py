"""WOODS and SCONE: push outliers out, under constraints on false alarms and on the classification loss (augmented Lagrangian)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.losses.base import Loss, cross_entropy, energy, mean_where, register, require


@register("energy_margin")
class EnergyMarginLoss(Loss):
    """Few outliers on the ID side of a learned energy threshold, subject to few ID images on the other and to a good classifier.

        min  w L_out + psi(L_in - alpha; lam, beta) + psi(CE - tau L_0; lam2, beta2)
        L_in = E_in sigmoid(phi(S)),   L_out = E_out sigmoid(-phi(S - eta)),   S = logsumexp(f)
        psi(c; lam, beta) = lam c + beta/2 c^2  if beta c + lam >= 0,  else -lam^2 / (2 beta)

    forward(logits (B, C), y, phi), phi: (N, 1) -> (N, 1). Where a batch has no ID (or no outlier) rows their terms are those of 0
    (pytorch-ood refuses such a batch). Multipliers move by `update_hyperparameters`, or by themselves between epochs in training.
    Args (defaults of the authors' code, as in pytorch-ood):
        full_train_loss: L_0, the cross-entropy of the trained network that is continued; None: measured by `epoch_begins` before the
            first epoch; without that forward raises InputError.
        eta: 1, SCONE's margin; 0 is WOODS. false_alarm_cutoff: alpha, 0.05. ce_tol: tau, 2. out_constraint_weight: w.
        in_constraint_weight, ce_constraint_weight: first beta, beta2; penalty_mult: their factor while a constraint is violated by
            more than constraint_tol. lr_lam: step of the multipliers.
    Source: Katz-Samuels et al., "Training OOD Detectors in their Natural Habitats" (WOODS), ICML 2022, arXiv 2202.03299, and Bai et al., "Feed
        Two Birds with One Scone" (SCONE), ICML 2023, arXiv 2306.09158. Wild data there are a mixture of ID and OOD; any set serves.
    """

    outliers = "needed"
    modules = ("logistic_regression",)
    brings = ("logistic regression", "multipliers")
    pretrained = True

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
        require(
            full_train_loss is None or full_train_loss > 0,
            f"energy_margin: full_train_loss is {full_train_loss}; it must be above 0",
        )
        require(
            0 <= false_alarm_cutoff <= 1,
            f"energy_margin: false_alarm_cutoff is {false_alarm_cutoff}; it is a fraction",
        )
        require(
            in_constraint_weight > 0 and ce_constraint_weight > 0,
            "energy_margin: in_constraint_weight and ce_constraint_weight must be above 0",
        )
        self.eta, self.false_alarm_cutoff, self.ce_tol, self.out_constraint_weight = (
            eta,
            false_alarm_cutoff,
            ce_tol,
            out_constraint_weight,
        )
        self.lr_lam, self.penalty_mult, self.constraint_tol = lr_lam, penalty_mult, constraint_tol
        first = dict(
            full_train_loss=math.nan if full_train_loss is None else full_train_loss,
            lam=0,
            lam2=0,
            in_constraint_weight=in_constraint_weight,
            ce_constraint_weight=ce_constraint_weight,
        )
        for name, value in first.items():
            self.register_buffer(name, torch.tensor(float(value)))
        self._known = (
            full_train_loss is not None
        )  # beside the buffer: forward must not wait for the device

    def forward(
        self, logits: Tensor, y: Tensor, logistic_regression: Callable[[Tensor], Tensor]
    ) -> Tensor:
        require(
            self._known,
            "energy_margin: the cross-entropy of the trained network is not known yet; give it as full_train_loss, "
            "or let epoch_begins measure it before the first epoch",
        )
        score, known = -energy(logits), y >= 0
        alarms = mean_where(torch.sigmoid(_apply(logistic_regression, score)), known)
        missed = mean_where(torch.sigmoid(-_apply(logistic_regression, score - self.eta)), ~known)
        limits = self._violations(alarms, cross_entropy(logits, y))
        # the multipliers change between a forward and a backward pass only if somebody calls for it: copies are cheap
        return (
            self.out_constraint_weight * missed
            + _penalty(limits[0], self.lam.clone(), self.in_constraint_weight.clone())
            + _penalty(limits[1], self.lam2.clone(), self.ce_constraint_weight.clone())
        )

    def epoch_begins(self, epoch: int, outputs: Callable, *modules: nn.Module) -> None:
        """Epoch 1: measure L_0 if it was not given. Later: move the multipliers by what the last epoch led to."""
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
        """Move the multipliers by the constraints' violations over a loader of ID data; puts the model into eval mode."""
        model.eval()
        device = self.lam.device
        self._move(
            *_averages(
                ((model(x.to(device)), y.to(device)) for x, y in train_loader_in),
                logistic_regression,
            )
        )

    def _violations(self, alarms, losses) -> tuple:
        return alarms - self.false_alarm_cutoff, losses - self.ce_tol * self.full_train_loss

    def _move(self, alarms: float, losses: float) -> None:
        found = self._violations(alarms, losses)
        for violation, lam, beta in zip(
            found, (self.lam, self.lam2), (self.in_constraint_weight, self.ce_constraint_weight)
        ):
            lam.add_(self.lr_lam * torch.where(beta * violation + lam >= 0, violation, -lam / beta))
            beta.mul_(self.penalty_mult if violation > self.constraint_tol else 1.0)


def _penalty(violation: Tensor, lam: Tensor, beta: Tensor) -> Tensor:
    """psi of the augmented Lagrangian."""
    return torch.where(
        beta * violation + lam >= 0,
        lam * violation + beta / 2 * violation.square(),
        -lam.square() / (2 * beta),
    )


def _apply(logistic_regression: Callable[[Tensor], Tensor], score: Tensor) -> Tensor:
    return logistic_regression(score[:, None])[:, 0]


def _averages(
    batches: Iterable[tuple[Tensor, Tensor]], logistic_regression: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """(mean sigmoid(phi(S)), mean cross-entropy) over all ID rows."""
    alarms = losses = count = 0.0
    for logits, y in batches:
        known = y >= 0
        alarms += torch.sigmoid(_apply(logistic_regression, -energy(logits[known]))).sum().item()
        losses += F.cross_entropy(logits[known], y[known], reduction="sum").item()
        count += int(known.sum())
    return alarms / max(count, 1), losses / max(count, 1)
