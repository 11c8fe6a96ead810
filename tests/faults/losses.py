"""Losses: arguments that mean nothing, on the command line and in calls."""

from __future__ import annotations

import math

import torch
from torch import nn

from faults import Fault
from ood import losses
from ood.config import InputError

TRAIN = ("-dataset", "mnist5k", "-arch", "small_cnn", "-device", "cpu", "-out_dir", "{tmp}/out")
ARGUMENTS = (  # (loss, its argument, words of the message)
    ("outlier_exposure", "alpha=-1", ("alpha is -1", "at least 0")),
    ("outlier_exposure", "alpha=NaN", ("alpha", "finite number")),
    ("outlier_exposure", "alpha=1e300", ("alpha is 1e+300", "at most")),
    ("outlier_exposure", "alpha=" + "9" * 400, ("alpha", "more than 30 digits")),
    ("vos", "select=" + "9" * 400, ("select", "more than 30 digits")),
    ("outlier_exposure", "balance=both", ("balance", "expectation, batch")),
    ("outlier_exposure", "reduction=middle", ("reduction", "mean, sum, none")),
    ("outlier_exposure", "alhpa=1", ("no 'alhpa'", "did you mean 'alpha'")),
    ("logitnorm", "t=0", ("t is 0",)),
    ("logitnorm", "t=-0.04", ("t is -0.04",)),
    ("ish", "percentile=100", ("percentile is 100", "below 100")),
    ("ish", "prune=1", ("prune", "bool")),
    ("confidence", "hints=1.5", ("hints is 1.5", "at most 1")),
    ("confidence", "eps=0", ("eps is 0", "above 0")),
    ("confidence", "budget=0", ("budget is 0",)),
    ("vos", "sample_number=1000000000000", ("sample_number is 1000000000000", "at most 1e+06")),
    ("vos", "select=0", ("select is 0",)),
    ("vos", "sample_from=1.5", ("sample_from", "whole number")),
    ("cider", "momentum=1", ("momentum is 1", "below 1")),
    ("cider", "n_dim=0", ("n_dim",)),
    ("cac", "magnitude=0", ("magnitude is 0",)),
    ("cac", "n_classes=3", ("n_classes follows from the network",)),
    ("center", "weight=-1", ("weight is -1",)),
    ("deep_sad", "eps=0", ("eps is 0",)),
    ("deep_svdd", "center=1", ("center follows from the network",)),
    ("openmix", "alpha=0", ("alpha is 0",)),
    ("mchad", "margin=-1", ("margin is -1",)),
    ("energy_margin", "full_train_loss=-1", ("full_train_loss is -1",)),
    ("energy_margin", "false_alarm_cutoff=5", ("false_alarm_cutoff is 5", "at most 1")),
    ("energy_margin", "penalty_mult=0", ("penalty_mult is 0",)),
)


def call(name, action, *words):
    return Fault(name, action=lambda folder: action(), error=InputError, words=words)


ROWS = [
    *(
        Fault(
            f"{loss} {argument[:40]}",
            "classifier_pretraining.py",
            (*TRAIN, "-loss", loss, "-loss_args", argument),
            words=words,
        )
        for loss, argument, words in ARGUMENTS
    ),
    Fault(
        "unknown loss",
        "classifier_pretraining.py",
        (*TRAIN, "-loss", "outlier_exposre"),
        words=("outlier_exposre", "did you mean 'outlier_exposure'"),
    ),
    Fault(
        "outliers for a loss that ignores them",
        "classifier_pretraining.py",
        (*TRAIN, "-loss", "logitnorm", "-ood_dataset", "letters"),
        words=("logitnorm", "-ood_dataset"),
    ),
    call("constructor alpha", lambda: losses.EnergyRegularizedLoss(alpha=math.nan), "alpha is nan"),
    call("constructor word", lambda: losses.CACLoss(3, magnitude="big"), "magnitude is 'big'"),
    call("constructor classes", lambda: losses.CenterLoss(0, 2), "n_classes is 0"),
    call("constructor half a class", lambda: losses.IILoss(2.5, 2), "n_classes is 2.5"),
    call("centre of NaN", lambda: losses.DeepSVDDLoss(1, center=torch.tensor([math.nan])), "NaN"),
    call("centre of another shape", lambda: losses.DeepSADLoss(2, center=torch.ones(3)), "shape"),
    call("nu of 0", lambda: losses.DeepSVDDLoss(1).fit_radius(torch.ones(2, 1), 0), "nu is 0"),
    call(
        "energy margin before the first loss is known",
        lambda: losses.EnergyMarginLoss()(torch.ones(2, 2), torch.ones(2).long(), nn.Linear(1, 1)),
        "full_train_loss",
    ),
    call(
        "state of another network",
        lambda: losses.own_score(_Network(), {"loss": "confidence", "state": {}}),
        "confidence",
        "does not fit",
    ),
]


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
