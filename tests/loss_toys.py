"""Losses of every name on toy tensors: what forward takes, made from logits and features."""

import torch
from torch import nn
from torch.nn import functional as F

from ood import losses
from ood.losses.objective import build

ROWS, CLASSES, SIDE = 12, 4, 6
SMALL = {
    "vos": {"sample_number": 3, "sample_from": 20},
    "energy_margin": {"full_train_loss": 0.5},
    "cider": {"n_dim": 5},
    "energy_bounded": {"margin_in": -3.0, "margin_out": -1.0},
}


def make(name, classes=CLASSES, **args):
    """Make a loss in float64 for a head SIDE -> classes, and its modules, with fixed weights."""
    torch.manual_seed(3)
    fc = nn.Linear(SIDE, classes)
    loss, _ = build(name, fc, {**SMALL.get(name, {}), **args})
    modules = [nn.Linear(1, 1).double() for _ in loss.modules]
    loss.double()
    if name == "vos":  # full queues, so that there are virtual outliers
        loss.queue.normal_()
        loss.seen.fill_(3)
    return loss, modules


def labels(outliers=4, rows=ROWS, classes=CLASSES):
    y = torch.arange(rows) % classes
    y[rows - outliers :] = -1
    return y


def inputs(loss, y, classes=CLASSES, scale=1.0, seed=0):
    """Make the leading arguments of forward: float64 leaves that require gradients.

    For distances they are the features or logits, which `value` gives to loss.distance.
    """
    g = torch.Generator().manual_seed(seed)
    rows = 4 * len(y) if "rotations" in loss.inputs else len(y)
    wide = classes + ("extra class" in loss.brings)
    made = []
    for part in loss.inputs:
        if part == "confidence":
            x = torch.rand(rows, 1, generator=g, dtype=torch.float64) * 0.9 + 0.05
        else:
            width = {
                "logits": wide,
                "features": SIDE,
                "distances": SIDE if loss.space == "features" else classes,
                "projections": 5,
                "rotations": 4,
            }[part]
            x = scale * torch.randn(rows, width, generator=g, dtype=torch.float64)
            x = F.normalize(x) if part == "projections" else x
        made.append(x.requires_grad_())
    return made


def further(name, y):
    """What forward takes behind y and the modules."""
    return (0.7, torch.arange(0)) if name == "openmix" else ()


def value(name, loss, modules, given, y):
    given = [
        loss.distance(x) if part == "distances" else x
        for part, x in zip(loss.inputs, given, strict=True)
    ]
    torch.manual_seed(7)  # draws of vos, hints of confidence
    return loss(*given, y, *modules, *further(name, y))


NAMES = losses.names()
