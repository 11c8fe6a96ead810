"""The training loop: any objective, any source of batches, resumable to the bit.

    batches.epoch(3)  ->  objective(batch) = (loss, parts)  ->  optimiser, schedule
                      ->  validate()  ->  best.pt, last.pt, one line in the log

`fit` knows nothing of images or classes. It needs these parts:

    objective(batch) -> (loss, {name: number or 0-d tensor})
        A function, or a method's `loss`.
    batches
        len(batches), and batches.epoch(number) for number = 1, 2, ... The order may depend only on
        the seed, the number and what its own state_dict() holds. A resumed run then sees the
        batches that it would have seen. `batches.counted`, where there is one, says how many
        items of the last batch the epoch's means count; outliers beside the images do not count.
    validate(epoch) -> {name: number}
        None for a method that has nothing to select by.
    pack(epoch, metrics) -> what the weight file holds
        See `runs.payload`. `fit` adds the state of the training to it for last.pt.

The order within an epoch: before_epoch, training, validate, schedule, log line, best.pt, last.pt. A
run that is killed anywhere loses at most the epoch that it was in. Under torchrun every process
calls `fit` with the same arguments, see ood/distributed.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import distributed
from ood.cli import RunError, log, progress
from ood.config import InputError, nearest
from ood.training.batches import ImageBatches, mix
from ood.training.runs import Run

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("plateau", "steps", "cosine", "onecycle", "constant")
PRECISIONS = ("fp32", "bf16")

# Batches between two looks at the losses on a GPU, because a look waits for it. The CPU looks
# at every batch.
CHECK_EVERY = 50


@dataclass
class History:
    """What `fit` gives back.

    Attributes:
        epochs: how many are done.
        best, best_epoch: the best value of the selection metric, and its epoch.
        metrics: those of the last epoch.
    """

    epochs: int = 0
    best: float | None = None
    best_epoch: int = 0
    metrics: dict = field(default_factory=dict)


@dataclass
class Plan:
    """How long and how `fit` trains.

    Attributes:
        epochs: train to this number, those before a resume included.
        optimizer, schedule: see `make_optimizer` and `Schedule`.
        select, mode: the metric that best.pt is chosen by and that the plateau schedule looks at.
            Strictly larger is better with mode "max", strictly smaller with "min". None: the
            newest epoch counts as the best.
        precision: "bf16" computes the objective under autocast; weights stay float32.
        clip_norm: clip the gradient's Euclidean norm to this.
        ema: decay of a moving average of the weights, in [0, 1), see `Average`. The average covers
            everything the optimiser trains, including a loss's centres. It is used for validation,
            it is saved in the weight files, and the network holds it when training ends.
    """

    epochs: int
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    select: str | None = None
    mode: str = "max"
    precision: str = "fp32"
    clip_norm: float | None = None
    ema: float | None = None

    def better(self, metrics: dict[str, float], than: float | None) -> bool:
        """Whether the epoch with these metrics is the best one so far, `than` the best before it.

        An epoch with a metric that is not finite never is, whatever the plan selects by.
        """
        if _not_finite(metrics):
            return False
        if self.select is None or than is None:
            return True
        value = metrics[self.select]
        return value > than if self.mode == "max" else value < than


@dataclass
class Hooks:
    """What a training does beside the steps.

    Attributes:
        validate: epoch -> metrics.
        before_epoch: called with the epoch's number (to raise a margin, to unfreeze a layer), also
            in the first epoch after a resume.
        state: name -> object with state_dict() and load_state_dict() (a method's class means). It
            is saved and restored with the rest. With several processes all go on with rank 0's
            after every epoch.
        say: takes the line of each epoch.
        tell: called with the number and the record of each epoch (TensorBoard).
    """

    validate: Callable[[int], dict] | None = None
    before_epoch: Callable[[int], None] | None = None
    state: dict = field(default_factory=dict)
    say: Callable[[str], None] = log
    tell: Callable[[int, dict], None] | None = None


def fit(
    objective: Callable,
    network: nn.Module,
    batches,
    plan: Plan,
    run: Run,
    pack: Callable[[int, dict], dict],
    hooks: Hooks | None = None,
    *,
    resume: bool = False,
) -> History:
    """Train `network` to the number of epochs that the plan says.

    Args:
        objective, batches, pack: see the module's docstring.
        network: what is trained; frozen parts stay outside. Its state must be the "state_dict" of
            what `pack` returns.
        resume: continue from the run's last.pt where there is one. Rank 0 looks.
    Returns:
        What the last epoch led to. `loss` and the parts in its records are means over the items
        counted, of all processes. images_per_s is the number of these items by the seconds of
        training. It counts ID images, and each view of one; outliers are not counted.
    Raises:
        RunError: a loss, weight or selection metric is not finite. The message names epoch and
            batch; last.pt then still holds the epoch before. Or no epoch had finite metrics only.
            Or processes restore different epochs.
    """
    hooks = hooks or Hooks()
    stateful = {"optimizer": plan.optimizer, "schedule": plan.schedule, **hooks.state}
    if hasattr(batches, "state_dict"):
        stateful["batches"] = batches
    average = None
    if plan.ema is not None:
        average = Average(network, plan.ema, _parameters(plan.optimizer))
        stateful["average"] = average
    history = _resume(run, network, stateful) if resume else _begin()
    run.rewind(history.epochs)
    device = next(network.parameters()).device
    for epoch in range(history.epochs + 1, plan.epochs + 1):
        began = time.perf_counter()
        if hooks.before_epoch:
            hooks.before_epoch(epoch)
        train, seen = _train_epoch(objective, network, batches, epoch, plan, average)
        if distributed.world() > 1:
            for thing in hooks.state.values():
                thing.load_state_dict(distributed.from_first(thing.state_dict))
        trained = time.perf_counter()
        rate = plan.optimizer.param_groups[0]["lr"]
        validated = hooks.validate(epoch) if hooks.validate else {}
        metrics = distributed.from_first(lambda: {**train, **validated})
        history, best = _judge(history, epoch, metrics, plan)
        record = {
            "epoch": epoch,
            **metrics,
            "lr": rate,
            "best": best,
            "images_per_s": round(seen / (trained - began), 1),
            "seconds": round(time.perf_counter() - began, 3),
        }
        run.log(record)
        content = pack(epoch, metrics)
        if best:
            run.save("best.pt", content)
        run.save("last.pt", {**content, "trainer": _trainer_state(history, stateful, device)})
        hooks.say(_line(record, plan.epochs))
        if hooks.tell:
            hooks.tell(epoch, record)
    distributed.barrier()  # best.pt is there when anyone goes on to read it
    if not history.best_epoch:
        raise RunError(
            f"no epoch had finite metrics, the last one neither ({_not_finite(history.metrics)}), "
            "so there are no best weights; lower the learning rate (-lr) and start a new run"
        )
    network.eval()
    return history


def _judge(history: History, epoch: int, metrics: dict, plan: Plan) -> tuple[History, bool]:
    """Return the history with this epoch, and whether it is the best. Tell the schedule."""
    value = None
    if plan.select:
        value = metrics[plan.select]
        _require_finite(value, plan.select, epoch)
        plan.schedule.observe(value)
    if plan.better(metrics, history.best):
        return History(epoch, value, epoch, metrics), True
    return History(epoch, history.best, history.best_epoch, metrics), False


def _train_epoch(
    objective, network: nn.Module, batches, epoch: int, plan: Plan, average: Average | None
) -> tuple[dict, int]:
    """Make one pass over the batches.

    Returns: mean loss and parts over the items counted, and their number, of all processes.
    """
    device = next(network.parameters()).device
    means = Means(epoch, check_every=1 if device.type == "cpu" else CHECK_EVERY)
    optimizer, parameters = plan.optimizer, _parameters(plan.optimizer)
    steps, step = len(batches), distributed.Step(objective, network, optimizer)
    network.train()
    if average:
        average.swap()
    shown = progress(batches.epoch(epoch), f"epoch {epoch}/{plan.epochs}", total=steps)
    for number, batch in enumerate(shown):
        plan.schedule.start(epoch - 1 + number / steps)
        items = _items(batch)
        with autocast(device, plan.precision):
            loss, parts = step(batch, items)
        means.add(loss, parts, getattr(batches, "counted", items))
        optimizer.zero_grad(set_to_none=True)
        step.backward()
        if plan.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
        optimizer.step()
        if average:
            average.update()
    result = means.result()
    floats = [t for t in (*network.state_dict().values(), *parameters) if t.is_floating_point()]
    if not torch.stack([t.isfinite().all() for t in floats]).all():
        raise RunError(
            f"the weights are not finite after epoch {epoch}; "
            "lower the learning rate (-lr) and continue with -resume"
        )
    distributed.average_buffers(network)
    if average:
        average.swap()
        distributed.average_buffers(network)
    return result, means.items


class Means:
    """Means over the items of an epoch. A loss that is not finite stops the run.

    The losses stay on the device until the next look. A batch weighs as much as it has items. With
    outliers the items are the ID images: the accuracy is then over all ID images, and the loss is
    the mean over them of their batch's loss.
    """

    def __init__(self, epoch: int, check_every: int = 1):
        self.epoch, self.check_every = epoch, check_every
        self.items, self.batches, self.sums = 0, 0, {}
        self.waiting: list[tuple[int, dict]] = []

    def add(self, loss: Tensor, parts: dict, items: int) -> None:
        self.waiting.append((items, {"loss": loss.detach(), **parts}))
        if len(self.waiting) >= self.check_every:
            self._look()

    def result(self) -> dict[str, float]:
        """Return the means over all processes. From now on `items` counts their items, too."""
        self._look()
        sums: dict[str, float] = {}
        self.items, theirs = 0, distributed.gathered((self.items, self.sums))
        for items, parts in theirs:
            self.items += items
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
        if not self.items:
            raise RunError(f"epoch {self.epoch} has no batches")
        return {name: value / self.items for name, value in sums.items()}

    def _look(self) -> None:
        for items, values in self.waiting:
            self.batches += 1
            values = {name: float(value) for name, value in values.items()}
            if not math.isfinite(values["loss"]):
                raise RunError(
                    f"the loss is {values['loss']} in epoch {self.epoch}, batch {self.batches}; "
                    "lower the learning rate (-lr) and continue the epochs before with -resume"
                )
            self.items += items
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + items * value
        self.waiting.clear()


class Average:
    """Exponential moving average of a network's weights and running statistics.

    After every step t = 1, 2, ...

        a <- d a + (1 - d) w,   d = min(decay, (1 + t) / (10 + t))

    The small first d lets the random weights of the beginning be forgotten soon. `swap` exchanges
    a and w: the network holds w while it is trained, and a while it is validated and saved. This
    object holds the other one.

    Args:
        decay: in [0, 1).
        further: parameters that are trained beside the network's. The network's own may be among
            them.
    """

    def __init__(self, network: nn.Module, decay: float, further: Iterable[Tensor] = ()):
        if not 0 <= decay < 1:
            raise InputError(
                f"ema is {decay}; it is a decay, from 0 (no memory) to below 1, e.g. 0.999"
            )
        self.decay, self.steps = decay, 0
        tensors = {
            id(t): t.detach()
            for t in (*network.state_dict(keep_vars=True).values(), *further)
            if t.is_floating_point()
        }
        self.held = list(tensors.values())
        self.other = [t.clone() for t in self.held]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        torch._foreach_lerp_(
            self.other, self.held, 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        )

    @torch.no_grad()
    def swap(self) -> None:
        kept = [t.clone() for t in self.held]
        torch._foreach_copy_(self.held, self.other)
        torch._foreach_copy_(self.other, kept)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "other": self.other}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for mine, stored in zip(self.other, state["other"], strict=True):
            mine.copy_(stored)


# ---- learning rates --------------------------------------------------------------------------


class Schedule:
    """Learning rates: each group's first rate times a factor that depends on the epochs done.

    Only "plateau" remembers anything. The schedules:

        plateau     times gamma after `patience` epochs in which the selection metric did not rise
                    by 1e-4 of itself (PyTorch's defaults, and the heatmap recipe)
        steps       times gamma at each of `milestones`, in epochs done
        cosine      along a cosine to 0, per batch
        onecycle    up from 1/25 over 30 % of the run, then down to 1e-4 / 25, both along a cosine,
                    per batch
        constant

    Args:
        epochs: length of the run; cosine and onecycle depend on it.
        mode: "max" or "min", whether a larger or a smaller selection metric is better.
    Raises: InputError for an unknown name.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        epochs: int,
        *,
        milestones: Iterable[float] = (),
        gamma: float = 0.1,
        patience: int = 10,
        mode: str = "max",
    ):
        if name not in SCHEDULES:
            raise InputError(
                f"schedule '{name}' is unknown{nearest(name, SCHEDULES)}; "
                f"allowed: {', '.join(SCHEDULES)}"
            )
        self.name, self.epochs, self.milestones, self.gamma = name, epochs, tuple(milestones), gamma
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.plateau = None
        if name == "plateau":
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode=mode, factor=gamma, patience=patience
            )

    def start(self, position: float) -> None:
        """Set the rates for the batch at `position`, in epochs: 2.5 is the middle of the third."""
        if self.plateau is None:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.factor(position)

    def observe(self, value: float) -> None:
        """Take the selection metric of the epoch that just ended."""
        if self.plateau is not None:
            self.plateau.step(value)

    def factor(self, position: float) -> float:
        """Return the factor at `position`, in epochs."""
        if self.name == "steps":
            return self.gamma ** sum(position >= m for m in self.milestones)
        t = position / self.epochs
        if self.name == "cosine":
            return _cosine(1.0, 0.0, t)
        if self.name == "onecycle" and t < 0.3:
            return _cosine(1 / 25, 1.0, t / 0.3)
        if self.name == "onecycle":
            return _cosine(1.0, 1e-4 / 25, (t - 0.3) / 0.7)
        return 1.0

    def state_dict(self) -> dict:
        return {"plateau": self.plateau.state_dict() if self.plateau else None}

    def load_state_dict(self, state: dict) -> None:
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])


def make_optimizer(
    name: str,
    parameters,
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Make SGD or Adam over all parameters given.

    Weight decay acts on every one of them, as in all four papers. Raises InputError for an unknown
    name.
    """
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    raise InputError(
        f"optimizer '{name}' is unknown{nearest(name, OPTIMIZERS)}; "
        f"allowed: {', '.join(OPTIMIZERS)}"
    )


# ---- classifiers -----------------------------------------------------------------------------


def measure(
    network: nn.Module, batches: ImageBatches, *, precision: str = "fp32", epoch: int = 0
) -> dict[str, float]:
    """Return mean cross-entropy and accuracy (a fraction) of a classifier, over all processes.

    Args: batches: unshuffled. The network is put into eval mode.
    """
    network.eval()
    device = next(network.parameters()).device
    exact = torch.float64 if device.type != "mps" else torch.float32
    sums = torch.zeros(3, dtype=exact, device=device)  # loss, correct, images
    with torch.inference_mode(), autocast(device, precision):
        for images, labels in batches.epoch(epoch):
            logits = network(images).float()
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
            sums[2] += len(labels)
    loss, correct, count = distributed.total(sums).tolist()
    return {"loss": loss / count, "accuracy": correct / count}


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Let torch.compile translate `network` at its first call, in place.

    Its names, weights and files stay as they are.

    Raises: InputError on a CPU without a C++ compiler.
    """
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise InputError(
            "-compile on the CPU needs a C++ compiler and there is none (g++ or clang++); "
            "install one, or leave the flag out"
        )
    network.compile()
    if hasattr(network, "features"):
        network.features = torch.compile(network.features)
    return network


def autocast(device: torch.device, precision: str):
    """Give the context for a precision: bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


# ---- state -----------------------------------------------------------------------------------


def _begin() -> History:
    """Begin a run. Every process but the first gets random numbers of its own (dropout).

    The weights were drawn before, alike in all processes.
    """
    if distributed.rank():
        torch.manual_seed(mix(torch.initial_seed(), distributed.rank()) % 2**63)
    return History()


def _resume(run: Run, network: nn.Module, stateful: dict) -> History:
    """Go on from last.pt in every process when rank 0 finds one, else begin in every process.

    Raises: RunError when the processes would differ.
    """
    if not distributed.from_first(run.last.exists):
        return _begin()
    seen = distributed.gathered(run.last.exists())
    if not all(seen):
        raise RunError(
            f"process {seen.index(False)} does not see '{run.last}', which process 0 does; "
            "the run folder must lie on a disk that all machines share"
        )
    history = _restore(run, network, stateful)
    epochs = distributed.gathered(history.epochs)
    if len(set(epochs)) > 1:
        raise RunError(
            f"the processes find different epochs in '{run.last}' "
            f"({', '.join(map(str, epochs))}); the run folder must be the same one for all"
        )
    return history


def _trainer_state(history: History, stateful: dict, device: torch.device) -> dict:
    own, *others = distributed.gathered(random_state(device))
    return {
        "epochs": history.epochs,
        "best": history.best,
        "best_epoch": history.best_epoch,
        "metrics": history.metrics,
        "parts": {name: thing.state_dict() for name, thing in stateful.items()},
        "random": own,
        "random_of_others": others,
    }


def _restore(run: Run, network: nn.Module, stateful: dict) -> History:
    """Restore everything as it was when last.pt was written.

    Raises: InputError when that file is of another network or training.
    """
    payload = run.load("last.pt")
    try:
        trainer = payload["trainer"]
        network.load_state_dict(payload["state_dict"])
        for name, thing in stateful.items():
            thing.load_state_dict(trainer["parts"][name])
        states = [trainer["random"], *trainer.get("random_of_others", ())]
        if distributed.rank() < len(states):
            set_random_state(states[distributed.rank()], next(network.parameters()).device)
        else:  # more processes than before
            torch.manual_seed(mix(torch.initial_seed(), distributed.rank(), trainer["epochs"]))
        return History(
            trainer["epochs"], trainer["best"], trainer["best_epoch"], trainer["metrics"]
        )
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"'{run.last}' does not fit this training ({str(error).splitlines()[0]}); "
            "give the run's own settings, or another -out_dir without -resume"
        ) from None


def random_state(device: torch.device) -> dict:
    """Return the state of every global random generator, as tensors and numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _not_finite(metrics: dict) -> str:
    """Name the metrics that are not finite, e.g. "valid_loss nan"; "" when all are."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return ", ".join(f"{n} {v}" for n, v in numbers.items() if not math.isfinite(v))


def _require_finite(value: float, name: str, epoch: int) -> None:
    if not math.isfinite(value):
        raise RunError(
            f"{name} is {value} after epoch {epoch}; there is nothing to select the best weights by"
        )


def _items(batch) -> int:
    """Count the items of a batch: the length of its first tensor, whatever the nesting."""
    if isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return _items(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(t, 1.0)))


def _line(record: dict, epochs: int) -> str:
    """Format a record: epoch 3/100 loss=0.5123 valid_accuracy=0.941 lr=0.1 seconds=1.2 best."""
    words = [f"epoch {record['epoch']}/{epochs}"]
    words += [f"{key}={value:.5g}" for key, value in record.items() if key not in ("epoch", "best")]
    return " ".join(words + (["best"] if record["best"] else []))
