"""Apply a loss to a network.

An Objective is what the training loop calls with a batch. It also holds everything that is learned
or remembered beside the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.config import InputError
from ood.losses.base import Loss, check_arguments, create, get, parameters, unit

HALF = (torch.bfloat16, torch.float16)


class Objective(nn.Module):
    """A loss with its network: objective(images, labels) -> (loss, {"accuracy": of the ID images}).

    Its parameters are the network's and the loss's own. `own.state_dict()` has the latter alone.
    Where the loss does not train the network's head, `finish_head` writes a head that decides as
    the loss does. Call it before a validation.

    Args:
        name: name of a loss.
        network: a Classifier. It is called, or asked for features(images) and its head `fc`.
        args: arguments of the loss. They override `recipe` and the constructor's defaults. A loss
            that is added to a cross-entropy also takes `weight`.
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
        features, logits = self._outputs(images)
        with torch.autocast(images.device.type, enabled=False):
            features, logits = _full(features), _full(logits)
            given = [self._input(part, features, logits) for part in self.loss.inputs]
            loss = self.loss(*given, labels, *self.passed.values(), *further)
            known = labels >= 0
            plain = F.linear(features, *self.loss.classifier()) if logits is None else logits
            plain = plain[: len(labels), : self.num_classes]
            if self.loss.head in ("joint", "probe"):
                targets = torch.where(known, labels, -100)
                loss = self.weight * loss + F.cross_entropy(
                    plain, targets, reduction="sum", ignore_index=-100
                ) / known.sum().clamp_min(1)
        accuracy = ((plain.argmax(1) == labels) & known).sum() / known.sum().clamp_min(1)
        return loss, {"accuracy": accuracy}

    def before_epoch(self, epoch: int, batches: Iterable) -> None:
        """Let the loss look at the training images.

        Args: batches: batches.epoch(number) gives (images, labels), not augmented.
        """
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
        """Write the head that the loss computes into network.fc, where `head` is "computed"."""
        if self.loss.head == "computed":
            weight, bias = self.loss.classifier()
            self.network.fc.weight.copy_(weight)
            self.network.fc.bias.copy_(bias)

    def describe(self) -> dict:
        """Return what a weight file holds under "objective"."""
        return {"loss": self.loss.name, "args": self.args, "state": self.own.state_dict()}

    def _outputs(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Features (B, D) and logits (B, C) of images. Either is None where the loss needs none."""
        if self.loss.inputs == ("logits",) and "extra" not in self.heads:
            return None, self.network(images)
        features = self.network.features(images)
        if self.loss.head == "computed":
            return features, None
        seen = features.detach() if self.loss.head == "probe" else features
        return features, self.network.fc(seen)

    def _input(self, part: str, features: Tensor | None, logits: Tensor | None) -> Tensor:
        """One of the loss's `inputs`, from features and logits."""
        if part == "logits" and "extra" in self.heads:
            return torch.cat((logits, self.heads["extra"](features)), 1)
        if part == "logits":
            return logits
        if part == "features":
            return features
        if part == "distances":
            return self.loss.distance(features if self.loss.space == "features" else logits)
        made = self.heads[part](features)
        if part == "confidence":
            return made.sigmoid()
        return unit(made) if part == "projections" else made


class _Own:
    """The state of an objective without its network's."""

    def __init__(self, objective: Objective):
        self._objective = (objective,)  # in a tuple, so that torch registers no module twice

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
            ours, theirs = (", ".join(sorted(keys)) or "nothing" for keys in (mine, state))
            raise ValueError(f"the loss keeps {ours}, the file {theirs}")
        objective.load_state_dict(state, strict=False)


def build(name: str, fc: nn.Linear, args: dict) -> tuple[Loss, float]:
    """Make the loss for a head (D -> C). Returns it and its weight beside a cross-entropy.

    Raises: InputError for arguments that the loss does not take, or that follow from the network.
    """
    cls, args = get(name), dict(args)
    needed = [key for key, p in parameters(name).items() if p.default is p.empty]
    supplied = {key: make for key, make in _supplied(fc).items() if key in needed}
    for key in args:
        if key in supplied or key == "center":
            raise InputError(f"loss '{name}': {key} follows from the network; leave it out")
    check_arguments(name, args, beside=("weight",) if cls.head == "joint" else ())
    weight = float(args.pop("weight", cls.weight)) if cls.head == "joint" else 1.0
    made = {key: make() for key, make in supplied.items()}
    return create(name, **{**made, **cls.recipe, **args}), weight


def check(name: str, args: dict) -> type[Loss]:
    """Try the arguments of a loss on a toy head, before anything is loaded. Returns its class.

    Raises: InputError.
    """
    build(name, nn.Linear(2, 2), args)
    return get(name)


def _supplied(fc: nn.Linear) -> dict:
    """Constructor arguments that follow from the network: functions that make them."""

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
