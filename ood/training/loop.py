"""The training loop: any objective, any source of batches, resumable to the bit.

    batches.epoch(3)  ->  objective(batch) = (loss, parts)  ->  optimiser, schedule  ->  validate()  ->  best.pt, last.pt, one line

`fit` knows nothing of images or classes. What it needs of its parts:

    objective(batch) -> (loss, {name: number or 0-d tensor})    a function, or a method's `loss`
    batches          -> len(batches) and batches.epoch(number), number = 1, 2, ...; the order may depend on nothing but the seed, the
                        number and what its own state_dict() holds: then a resumed run sees the batches that it would have seen.
                        batches.counted, where there is one: how many of the last batch's items the epoch's means count (outliers
                        that come with the images do not)
    validate(epoch)  -> {name: number}, or None for a method that has nothing to select by
    pack(epoch, metrics) -> the weight file's content; `fit` puts the state of the training beside it in last.pt

The order within an epoch: before_epoch, training, validate, schedule, log line, best.pt, last.pt. A run that is killed anywhere
loses at most the epoch that it was in. Under torchrun every process calls `fit` with the same arguments: see ood/distributed.py.
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
from ood.training.batches import RESIDENT_BYTES, ImageBatches, balanced_order, mix, split  # noqa: F401  (what a training script needs, under one name)
from ood.training.runs import Run

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("plateau", "steps", "cosine", "onecycle", "constant")
PRECISIONS = ("fp32", "bf16")
CHECK_EVERY = (
    50  # batches between looks at the losses on a GPU (a look waits for the device); 1 on the CPU
)


@dataclass
class History:
    """What `fit` gives back: epochs done, the best value of the selection metric with its epoch, the metrics of the last epoch."""

    epochs: int = 0
    best: float | None = None
    best_epoch: int = 0
    metrics: dict = field(default_factory=dict)


def fit(
    objective: Callable,
    network: nn.Module,
    batches,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    run: Run,
    pack: Callable[[int, dict], dict],
    validate: Callable[[int], dict] | None = None,
    select: str | None = None,
    mode: str = "max",
    resume: bool = False,
    precision: str = "fp32",
    clip_norm: float | None = None,
    ema: float | None = None,
    before_epoch: Callable[[int], None] | None = None,
    state: dict | None = None,
    say: Callable[[str], None] = log,
    tell: Callable[[int, dict], None] | None = None,
) -> History:
    """Train `network` to the given number of epochs.

    Args:
        network: what is trained (frozen parts stay outside); its state must be `pack(...)["state_dict"]`.
        select, mode: the metric by which best.pt is chosen (strictly better, "max" or "min") and on which the plateau schedule
            looks. None: the newest epoch counts as the best.
        resume: continue from run's last.pt where there is one; rank 0 looks.
        precision: "bf16" computes the objective under autocast; weights stay float32.
        clip_norm: clip the gradient's Euclidean norm to this.
        ema: decay of an `Average` of the weights, those that the optimiser has beside the network's (a loss's centres) included. It
            is what is validated, what the weight files hold and what the network ends with.
        before_epoch: called with the epoch's number (a margin to raise, a layer to unfreeze), after a resume too.
        state: name -> object with state_dict() and load_state_dict(), saved and restored with the rest (a method's class means).
            Several processes go on with that of rank 0 after every epoch.
        tell: called with the number and the record of each epoch (TensorBoard).
    Returns: what the last epoch led to. In its records `loss` and the parts are means over the items counted (`batches`), of all
        processes, and images_per_s is their number by the seconds of training: ID images (each view of one); outliers come on top.
    Raises: RunError for a loss, weight or selection metric that is not finite, with epoch and batch; last.pt then still holds the
        epoch before. RunError when processes restore different epochs.
    """
    stateful = {"optimizer": optimizer, "schedule": schedule, **(state or {})}
    if hasattr(batches, "state_dict"):
        stateful["batches"] = batches
    average = None if ema is None else Average(network, ema, _parameters(optimizer))
    if average:
        stateful["average"] = average
    history = _resume(run, network, stateful) if resume else _begin()
    run.rewind(history.epochs)
    device = next(network.parameters()).device
    for epoch in range(history.epochs + 1, epochs + 1):
        began = time.perf_counter()
        if before_epoch:
            before_epoch(epoch)
        network.train()
        if average:
            average.swap()
        train, seen = _train_epoch(
            objective,
            network,
            batches,
            epoch,
            epochs,
            optimizer,
            schedule,
            device,
            precision,
            clip_norm,
            average,
        )
        distributed.average_buffers(network)
        if average:
            average.swap()
            distributed.average_buffers(network)
        for thing in (state or {}).values() if distributed.world() > 1 else ():
            thing.load_state_dict(distributed.from_first(thing.state_dict))
        trained = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        validated = validate(epoch) if validate else {}
        metrics = distributed.from_first(lambda: {**train, **validated})
        if select:
            _require_finite(metrics[select], select, epoch)
            schedule.observe(metrics[select])
        better = (
            select is None
            or history.best is None
            or (metrics[select] > history.best if mode == "max" else metrics[select] < history.best)
        )
        history = History(
            epoch,
            metrics.get(select) if better else history.best,
            epoch if better else history.best_epoch,
            metrics,
        )
        record = {
            "epoch": epoch,
            **metrics,
            "lr": rate,
            "best": better,
            "images_per_s": round(seen / (trained - began), 1),
            "seconds": round(time.perf_counter() - began, 3),
        }
        run.log(record)
        payload = pack(epoch, metrics)
        if better:
            run.save("best.pt", payload)
        run.save("last.pt", {**payload, "trainer": _trainer_state(history, stateful, device)})
        say(_line(record, epochs))
        if tell:
            tell(epoch, record)
    distributed.barrier()  # best.pt is there when anyone goes on to read it
    network.eval()
    return history


def _train_epoch(
    objective,
    network,
    batches,
    epoch,
    epochs,
    optimizer,
    schedule,
    device,
    precision,
    clip_norm,
    average,
) -> tuple[dict, int]:
    """One pass over the batches. Returns (mean loss and parts over the items counted, their number), of all processes."""
    means = Means(epoch, check_every=1 if device.type == "cpu" else CHECK_EVERY)
    parameters = _parameters(optimizer)
    steps, step = len(batches), distributed.Step(objective, network, optimizer)
    for number, batch in enumerate(
        progress(batches.epoch(epoch), f"epoch {epoch}/{epochs}", total=steps)
    ):
        schedule.start(epoch - 1 + number / steps)
        items = _items(batch)
        with autocast(device, precision):
            loss, parts = step(batch, items)
        means.add(loss, parts, getattr(batches, "counted", items))
        optimizer.zero_grad(set_to_none=True)
        step.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        if average:
            average.update()
    result = means.result()
    floats = [t for t in (*network.state_dict().values(), *parameters) if t.is_floating_point()]
    if not torch.stack([t.isfinite().all() for t in floats]).all():
        raise RunError(
            f"the weights are not finite after epoch {epoch}; lower the learning rate (-lr) and continue with -resume"
        )
    return result, means.items


class Means:
    """Means over the items of an epoch, kept on the device; a loss that is not finite stops the run at the next look.

    A batch weighs as much as it has items. With outliers these are its ID images: the accuracy is then that of all ID images, and the
    loss the mean over them of their batch's loss.
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
        """Means over the items of all processes; `items` counts those from now on."""
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
                    f"lower the learning rate (-lr) and continue the epochs before with -resume"
                )
            self.items += items
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + items * value
        self.waiting.clear()


class Average:
    """Exponential moving average of a network's weights and running averages, and of further parameters, after every step t = 1, 2, ...

        a <- d a + (1 - d) w,   d = min(decay, (1 + t) / (10 + t))         so that the first, random weights are soon forgotten

    `swap` exchanges the two: the network holds a where it is validated and saved, and w where it is trained. What it does not hold
    is the state here.

    Args: further: parameters that are trained beside the network's; those that are its own are counted once.
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


# ---- learning rates ----------------------------------------------------------------------------------------------------------


class Schedule:
    """Learning rates as a factor on each group's first rate, a function of the epochs done; only `plateau` remembers anything.

    Args:
        name: "plateau" (gamma after `patience` epochs in which the selection metric did not rise by 1e-4 of itself: the library's
            defaults, and the heatmap recipe), "steps" (gamma at each of `milestones`, in epochs done), "cosine" (to 0, per batch),
            "onecycle" (up from 1/25 over 30 % of the run, down to 1e-4 / 25, both along a cosine, per batch), "constant".
        epochs: length of the run; cosine and onecycle depend on it.
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
                f"schedule '{name}' is unknown{nearest(name, SCHEDULES)}; allowed: {', '.join(SCHEDULES)}"
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
        """Set the rates for the batch at `position` (in epochs: 2.5 is the middle of the third one)."""
        if self.plateau is None:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.factor(position)

    def observe(self, value: float) -> None:
        """Tell the selection metric of the epoch that just ended."""
        if self.plateau is not None:
            self.plateau.step(value)

    def factor(self, position: float) -> float:
        if self.name == "steps":
            return self.gamma ** sum(position >= m for m in self.milestones)
        t = position / self.epochs
        if self.name == "cosine":
            return _cosine(1.0, 0.0, t)
        if self.name == "onecycle":
            return (
                _cosine(1 / 25, 1.0, t / 0.3)
                if t < 0.3
                else _cosine(1.0, 1e-4 / 25, (t - 0.3) / 0.7)
            )
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
    """SGD or Adam over all parameters given (weight decay on every one of them, as all four papers have it)."""
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    raise InputError(
        f"optimizer '{name}' is unknown{nearest(name, OPTIMIZERS)}; allowed: {', '.join(OPTIMIZERS)}"
    )


# ---- classifiers -------------------------------------------------------------------------------------------------------------


def measure(
    network: nn.Module, batches: ImageBatches, *, precision: str = "fp32", epoch: int = 0
) -> dict[str, float]:
    """Mean cross-entropy and accuracy (a fraction) of a classifier in eval mode over unshuffled batches, of all processes."""
    network.eval()
    device = next(network.parameters()).device
    sums = torch.zeros(
        3, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device
    )  # loss, correct, images
    with torch.inference_mode(), autocast(device, precision):
        for images, labels in batches.epoch(epoch):
            logits = network(images).float()
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
            sums[2] += len(labels)
    loss, correct, count = distributed.total(sums).tolist()
    return {"loss": loss / count, "accuracy": correct / count}


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Let torch.compile translate `network` at its first call, in place: its names, weights and files stay as they are."""
    if device.type == "cpu" and not any(
        map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))
    ):
        raise InputError(
            "-compile on the CPU needs a C++ compiler and there is none (g++ or clang++); install one, or leave the flag out"
        )
    network.compile()
    if hasattr(network, "features"):
        network.features = torch.compile(network.features)
    return network


def autocast(device: torch.device, precision: str):
    """bf16 autocast, or nothing for fp32."""
    return (
        torch.autocast(device.type, torch.bfloat16)
        if precision == "bf16"
        else contextlib.nullcontext()
    )


# ---- state -------------------------------------------------------------------------------------------------------------------


def _begin() -> History:
    """Every process but the first gets random numbers of its own (dropout); the weights were drawn alike before."""
    if distributed.rank():
        torch.manual_seed(mix(torch.initial_seed(), distributed.rank()) % 2**63)
    return History()


def _resume(run: Run, network: nn.Module, stateful: dict) -> History:
    """Go on from last.pt in every process, or begin in every one: as rank 0 finds it. Raises RunError when they would differ."""
    if not distributed.from_first(run.last.exists):
        return _begin()
    blind = [
        rank for rank, there in enumerate(distributed.gathered(run.last.exists())) if not there
    ]
    if blind:
        raise RunError(
            f"process {blind[0]} does not see '{run.last}', which process 0 does; the run folder must lie on a disk that all machines share"
        )
    history = _restore(run, network, stateful)
    epochs = distributed.gathered(history.epochs)
    if len(set(epochs)) > 1:
        raise RunError(
            f"the processes find different epochs in '{run.last}' ({', '.join(map(str, epochs))}); the run folder must be the same one for all"
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
    """Everything as it was when last.pt was written. Raises InputError when that file is of another network or training."""
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
            f"'{run.last}' does not fit this training ({str(error).splitlines()[0]}); give the run's own settings, "
            f"or another -out_dir without -resume"
        ) from None


def random_state(device: torch.device) -> dict:
    """State of every global random generator, as tensors and numbers."""
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


def _require_finite(value: float, name: str, epoch: int) -> None:
    if not math.isfinite(value):
        raise RunError(
            f"{name} is {value} after epoch {epoch}; there is nothing to select the best weights by"
        )


def _items(batch) -> int:
    """Number of items: the length of the first tensor in a batch of any nesting."""
    if isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return _items(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(t, 1.0)))


def _line(record: dict, epochs: int) -> str:
    """epoch 3/100 loss=0.5123 valid_accuracy=0.941 lr=0.1 images_per_s=812.1 seconds=1.2 best"""
    words = [f"epoch {record['epoch']}/{epochs}"]
    words += [f"{key}={value:.5g}" for key, value in record.items() if key not in ("epoch", "best")]
    return " ".join(words + (["best"] if record["best"] else []))
