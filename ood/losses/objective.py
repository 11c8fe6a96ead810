"""A loss applied to a network: what the training loop calls with a batch, and all that is learned or remembered beside the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import InputError
from ood.losses.base import Loss, check_arguments, create, get, parameters, unit

PROJECTION = 128  # side of CIDER's projection, if the loss does not say
HALF = (torch.bfloat16, torch.float16)


class Objective(nn.Module):
    """objective(images, labels) -> (loss, {"accuracy": of the ID images}).

    Args:
        name: of a loss. args: its arguments, over `recipe` and the constructor's defaults; `weight` of a loss that is added to a
            cross-entropy.
        network: a Classifier: called, or asked for features(images), and its head `fc`.

    Its parameters are the network's and its own. `own` has the state_dict() of the latter alone. Where the loss has no use for
    the head, `finish_head` writes what decides as the loss does into it; call it before a validation.
    """

    def __init__(self, name: str, network: nn.Module, **args):
        super().__init__()
        self.network, self.args = network, args
        num_classes, dim = network.fc.out_features, network.fc.in_features
        self.loss, self.weight = build(name, network.fc, args)
        heads = {
            "confidence": lambda: nn.Linear(dim, 1),
            "rotations": lambda: nn.Linear(dim, 4),
            "projections": lambda: nn.Sequential(
                nn.Linear(dim, dim),
                nn.ReLU(),
                nn.Linear(dim, self.loss.prototypes.shape[1]),
            ),
        }
        self.heads = nn.ModuleDict(
            {part: make() for part, make in heads.items() if part in self.loss.inputs}
        )
        if "extra class" in self.loss.brings:
            self.heads["extra"] = nn.Linear(dim, 1)
        self.passed = nn.ModuleDict({module: nn.Linear(1, 1) for module in self.loss.modules})
        self.num_classes = num_classes
        if self.loss.head == "computed":
            network.fc.requires_grad_(False)
        self.own = _Own(self)
        self.finish_head()

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels, further = self.loss.stage(images, labels)
        if self.loss.inputs == ("logits",) and "extra" not in self.heads:
            features, logits = None, self.network(images)
        else:
            features = self.network.features(images)
            logits = (
                None
                if self.loss.head == "computed"
                else self.network.fc(features if self.loss.head != "probe" else features.detach())
            )
        with torch.autocast(images.device.type, enabled=False):
            features, logits = _full(features), _full(logits)
            given = [self._input(part, features, logits) for part in self.loss.inputs]
            loss = self.loss(*given, labels, *self.passed.values(), *further)
            known = labels >= 0
            plain = (F.linear(features, *self.loss.classifier()) if logits is None else logits)[
                : len(labels), : self.num_classes
            ]
            if self.loss.head in ("joint", "probe"):
                targets = torch.where(known, labels, -100)
                loss = self.weight * loss + F.cross_entropy(
                    plain, targets, reduction="sum", ignore_index=-100
                ) / known.sum().clamp_min(1)
        accuracy = ((plain.argmax(1) == labels) & known).sum() / known.sum().clamp_min(1)
        return loss, {"accuracy": accuracy}

    def before_epoch(self, epoch: int, batches: Iterable) -> None:
        """Let the loss look at the training images: `batches.epoch(number)` gives (images, labels), not augmented."""
        self.loss.train()

        def outputs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            self.network.eval()
            for images, labels in batches.epoch(epoch):
                features = _full(self.network.features(images))
                yield features, self.network.fc(features), labels

        with torch.no_grad():
            self.loss.epoch_begins(epoch, outputs, *self.passed.values())

    @torch.no_grad()
    def finish_head(self) -> None:
        """Write the head that decides as the loss does into network.fc, where the loss trains none."""
        if self.loss.head == "computed":
            weight, bias = self.loss.classifier()
            self.network.fc.weight.copy_(weight)
            self.network.fc.bias.copy_(bias)

    def describe(self) -> dict:
        """What a weight file holds under "objective"."""
        return {"loss": self.loss.name, "args": self.args, "state": self.own.state_dict()}

    def _input(self, part: str, features: Tensor | None, logits: Tensor | None) -> Tensor:
        if part == "logits":
            return (
                torch.cat((logits, self.heads["extra"](features)), 1)
                if "extra" in self.heads
                else logits
            )
        if part == "features":
            return features
        if part == "distances":
            return self.loss.distance(features if self.loss.space == "features" else logits)
        made = self.heads[part](features)
        return (
            made.sigmoid()
            if part == "confidence"
            else unit(made)
            if part == "projections"
            else made
        )


class _Own:
    """State of an objective without its network's."""

    def __init__(self, objective: Objective):
        self._objective = (objective,)  # a tuple: no module of a module

    def state_dict(self) -> dict[str, Tensor]:
        (objective,) = self._objective
        theirs = {id(t) for t in objective.network.state_dict(keep_vars=True).values()}
        return {
            key: t.detach()
            for key, t in objective.state_dict(keep_vars=True).items()
            if id(t) not in theirs
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        (objective,) = self._objective
        mine = self.state_dict()
        if mine.keys() != state.keys():
            raise ValueError(
                f"the loss keeps {', '.join(sorted(mine)) or 'nothing'}, the file {', '.join(sorted(state)) or 'nothing'}"
            )
        objective.load_state_dict(state, strict=False)


def build(name: str, fc: nn.Linear, args: dict) -> tuple[Loss, float]:
    """The loss for a head (D -> C), and its weight beside a cross-entropy. Raises InputError for arguments that are not its own."""
    cls, args = get(name), dict(args)
    supplied = {
        key: value
        for key, value in _supplied(fc).items()
        if key in parameters(name) and parameters(name)[key].default is parameters(name)[key].empty
    }
    for key in args:
        if key in supplied or key == "center":
            raise InputError(f"loss '{name}': {key} follows from the network; leave it out")
    check_arguments(name, args, also=("weight",) if cls.head == "joint" else ())
    weight = float(args.pop("weight", cls.weight)) if cls.head == "joint" else 1.0
    return create(name, **{**{k: v() for k, v in supplied.items()}, **cls.recipe, **args}), weight


def check(name: str, args: dict) -> type[Loss]:
    """The class of a loss, its arguments tried on a toy. Raises InputError, before anything is loaded."""
    build(name, nn.Linear(2, 2), args)
    return get(name)


def _supplied(fc: nn.Linear) -> dict:
    """Constructor arguments that follow from the network, as functions."""

    def energy_weights() -> nn.Linear:
        layer = nn.Linear(fc.out_features, 1)
        nn.init.uniform_(layer.weight)
        return layer

    return {
        "n_classes": lambda: fc.out_features,
        "n_dim": lambda: fc.in_features,
        "n_embedding": lambda: fc.in_features,
        "fc": lambda: fc,
        "logistic_regression": lambda: nn.Linear(1, 2),
        "weights_energy": energy_weights,
    }


def _full(values: Tensor | None) -> Tensor | None:
    return values.float() if values is not None and values.dtype in HALF else values
