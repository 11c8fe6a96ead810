"""The training loop: any objective, any source of batches, resumable to the bit.

    batches.epoch(3)  ->  objective(batch) = (loss, parts)  ->  optimiser, schedule  ->  validate()  ->  best.pt, last.pt, one line

`fit` knows nothing of images or classes. What it needs of its parts:

    objective(batch) -> (loss, {name: number or 0-d tensor})    a function, or a method's `loss`
    batches          -> len(batches) and batches.epoch(number), number = 1, 2, ...; the order may depend on nothing but the seed, the
                        number and what its own state_dict() holds: then a resumed run sees the batches that it would have seen
    validate(epoch)  -> {name: number}, or None for a method that has nothing to select by
    pack(epoch, metrics) -> the weight file's content; `fit` puts the state of the training beside it in last.pt

The order within an epoch: before_epoch, training, validate, schedule, log line, best.pt, last.pt. A run that is killed anywhere
loses at most the epoch that it was in.
"""
from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.cli import RunError, log, progress
from ood.config import InputError, nearest
from ood.runs import Run

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("plateau", "steps", "cosine", "onecycle", "constant")
PRECISIONS = ("fp32", "bf16")
RESIDENT_BYTES = 4 * 2**30      # image arrays up to this size live on the GPU during training
CHECK_EVERY = 50                # batches between looks at the losses on a GPU (a look waits for the device); 1 on the CPU


@dataclass
class History:
    """What `fit` gives back: epochs done, the best value of the selection metric with its epoch, the metrics of the last epoch."""
    epochs: int = 0
    best: float | None = None
    best_epoch: int = 0
    metrics: dict = field(default_factory=dict)


def fit(objective: Callable, network: nn.Module, batches, *, epochs: int, optimizer: torch.optim.Optimizer, schedule: Schedule,
        run: Run, pack: Callable[[int, dict], dict], validate: Callable[[int], dict] | None = None, select: str | None = None,
        mode: str = "max", resume: bool = False, precision: str = "fp32", clip_norm: float | None = None,
        before_epoch: Callable[[int], None] | None = None, state: dict | None = None, say: Callable[[str], None] = log) -> History:
    """Train `network` to the given number of epochs.

    Args:
        network: what is trained (frozen parts stay outside); its state must be `pack(...)["state_dict"]`.
        select, mode: the metric by which best.pt is chosen (strictly better, "max" or "min") and on which the plateau schedule
            looks. None: the newest epoch counts as the best.
        resume: continue from run's last.pt where there is one.
        precision: "bf16" computes the objective under autocast; weights stay float32.
        clip_norm: clip the gradient's Euclidean norm to this.
        before_epoch: called with the epoch's number (a margin to raise, a layer to unfreeze), after a resume too.
        state: name -> object with state_dict() and load_state_dict(), saved and restored with the rest (a method's class means).
    Raises: RunError for a loss, weight or selection metric that is not finite, with epoch and batch; last.pt then still holds the
        epoch before.
    """
    stateful = {"optimizer": optimizer, "schedule": schedule, **(state or {})}
    if hasattr(batches, "state_dict"):
        stateful["batches"] = batches
    history = _restore(run, network, stateful) if resume and run.last.exists() else History()
    run.rewind(history.epochs)
    device = next(network.parameters()).device
    for epoch in range(history.epochs + 1, epochs + 1):
        began = time.perf_counter()
        if before_epoch:
            before_epoch(epoch)
        network.train()
        train, seen = _train_epoch(objective, network, batches, epoch, epochs, optimizer, schedule, device, precision, clip_norm)
        trained = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        metrics = {**train, **(validate(epoch) if validate else {})}
        if select:
            _require_finite(metrics[select], select, epoch)
            schedule.observe(metrics[select])
        better = select is None or history.best is None or \
            (metrics[select] > history.best if mode == "max" else metrics[select] < history.best)
        history = History(epoch, metrics.get(select) if better else history.best, epoch if better else history.best_epoch, metrics)
        record = {"epoch": epoch, **metrics, "lr": rate, "best": better, "images_per_s": round(seen / (trained - began), 1),
                  "seconds": round(time.perf_counter() - began, 3)}
        run.log(record)
        payload = pack(epoch, metrics)
        if better:
            run.save("best.pt", payload)
        run.save("last.pt", {**payload, "trainer": _trainer_state(history, stateful, device)})
        say(_line(record, epochs))
    network.eval()
    return history


def _train_epoch(objective, network, batches, epoch, epochs, optimizer, schedule, device, precision, clip_norm) -> tuple[dict, int]:
    """One pass over the batches. Returns (mean loss and parts over all items, number of items)."""
    means = Means(epoch, check_every=1 if device.type == "cpu" else CHECK_EVERY)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    steps = len(batches)
    for step, batch in enumerate(progress(batches.epoch(epoch), f"epoch {epoch}/{epochs}", total=steps)):
        schedule.start(epoch - 1 + step / steps)
        with autocast(device, precision):
            loss, parts = objective(batch)
        means.add(loss, parts, _items(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
    result = means.result()
    floats = [t for t in network.state_dict().values() if t.is_floating_point()]
    if not torch.stack([t.isfinite().all() for t in floats]).all():
        raise RunError(f"the weights are not finite after epoch {epoch}; lower the learning rate (-lr) and continue with -resume")
    return result, means.items


class Means:
    """Means over the items of an epoch, kept on the device; a loss that is not finite stops the run at the next look."""

    def __init__(self, epoch: int, check_every: int = 1):
        self.epoch, self.check_every = epoch, check_every
        self.items, self.batches, self.sums = 0, 0, {}
        self.waiting: list[tuple[int, dict]] = []

    def add(self, loss: Tensor, parts: dict, items: int) -> None:
        self.waiting.append((items, {"loss": loss.detach(), **parts}))
        if len(self.waiting) >= self.check_every:
            self._look()

    def result(self) -> dict[str, float]:
        self._look()
        if not self.items:
            raise RunError(f"epoch {self.epoch} has no batches")
        return {name: total / self.items for name, total in self.sums.items()}

    def _look(self) -> None:
        for items, values in self.waiting:
            self.batches += 1
            values = {name: float(value) for name, value in values.items()}
            if not math.isfinite(values["loss"]):
                raise RunError(f"the loss is {values['loss']} in epoch {self.epoch}, batch {self.batches}; "
                               f"lower the learning rate (-lr) and continue the epochs before with -resume")
            self.items += items
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + items * value
        self.waiting.clear()


# ---- learning rates ----------------------------------------------------------------------------------------------------------

class Schedule:
    """Learning rates as a factor on each group's first rate, a function of the epochs done; only `plateau` remembers anything.

    Args:
        name: "plateau" (gamma after `patience` epochs in which the selection metric did not rise by 1e-4 of itself: the library's
            defaults, and the heatmap recipe), "steps" (gamma at each of `milestones`, in epochs done), "cosine" (to 0, per batch),
            "onecycle" (up from 1/25 over 30 % of the run, down to 1e-4 / 25, both along a cosine, per batch), "constant".
        epochs: length of the run; cosine and onecycle depend on it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str, epochs: int, *, milestones: Iterable[float] = (),
                 gamma: float = 0.1, patience: int = 10, mode: str = "max"):
        if name not in SCHEDULES:
            raise InputError(f"schedule '{name}' is unknown{nearest(name, SCHEDULES)}; allowed: {', '.join(SCHEDULES)}")
        self.name, self.epochs, self.milestones, self.gamma = name, epochs, tuple(milestones), gamma
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.plateau = None
        if name == "plateau":
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=gamma, patience=patience)

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
            return _cosine(1 / 25, 1.0, t / 0.3) if t < 0.3 else _cosine(1.0, 1e-4 / 25, (t - 0.3) / 0.7)
        return 1.0

    def state_dict(self) -> dict:
        return {"plateau": self.plateau.state_dict() if self.plateau else None}

    def load_state_dict(self, state: dict) -> None:
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])


def make_optimizer(name: str, parameters, lr: float, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0,
                   betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Optimizer:
    """SGD or Adam over all parameters given (weight decay on every one of them, as all four papers have it)."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    raise InputError(f"optimizer '{name}' is unknown{nearest(name, OPTIMIZERS)}; allowed: {', '.join(OPTIMIZERS)}")


# ---- batches of labelled images ----------------------------------------------------------------------------------------------

class ImageBatches:
    """Labelled image batches: shuffled anew every epoch, augmented and normalised on the device, last partial batch kept.

    Order and augmentation follow from (seed, epoch) alone, so there is no state to save.

    Args:
        images: an ImageSet; `indices` chooses among its images (default: all).
        transform: (batch of pixels, torch.Generator on the device) -> network input.
        targets: labels by image number, when they are not the set's own (a fold's positions).
    """

    def __init__(self, images, batch_size: int, *, transform: Callable, device: torch.device, seed: int = 0, indices=None,
                 targets=None, shuffle: bool = True):
        self.images, self.batch_size, self.transform, self.device = images, batch_size, transform, device
        self.seed, self.shuffle = seed, shuffle
        self.indices = np.arange(len(images)) if indices is None else np.asarray(indices)
        self.targets = torch.as_tensor(np.asarray(images.labels if targets is None else targets))
        self.resident = _on_device(images, device)

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, C, H, W), labels (B,)) on the device."""
        order = torch.Generator().manual_seed(mix(self.seed, number))
        chance = torch.Generator(self.device).manual_seed(mix(self.seed, number, 1))
        indices = torch.as_tensor(self.indices)
        if self.shuffle:
            indices = indices[torch.randperm(len(indices), generator=order)]
        labels = self.targets[indices].to(self.device)
        for start, pixels in zip(range(0, len(indices), self.batch_size), self._pixels(indices)):
            yield self.transform(pixels, chance), labels[start:start + self.batch_size]

    def _pixels(self, indices: Tensor) -> Iterator[Tensor]:
        if self.resident is None:
            for pixels in self.images.batches(self.batch_size, indices.numpy()):
                yield pixels.to(self.device, non_blocking=True)
        else:
            for part in indices.to(self.device).split(self.batch_size):
                yield self.resident[part]


def measure(network: nn.Module, batches: ImageBatches, *, precision: str = "fp32", epoch: int = 0) -> dict[str, float]:
    """Mean cross-entropy and accuracy (a fraction) of a classifier in eval mode over unshuffled batches."""
    network.eval()
    device = next(network.parameters()).device
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.long, device=device)
    count = 0
    with torch.inference_mode(), autocast(device, precision):
        for images, labels in batches.epoch(epoch):
            logits = network(images).float()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
    return {"loss": loss.item() / count, "accuracy": correct.item() / count}


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) image numbers, each sorted; round(fraction * count) of them, at least one, validate. 0: none do."""
    chosen = min(count - 1, max(1, round(fraction * count))) if fraction > 0 else 0
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[chosen:]), np.sort(order[:chosen])


def autocast(device: torch.device, precision: str):
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _on_device(images, device: torch.device) -> Tensor | None:
    """The whole image array on the GPU when it fits: gathering a batch there costs nothing."""
    array = getattr(images, "images", None)
    if device.type != "cuda" or array is None or array.nbytes > RESIDENT_BYTES:
        return None
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


# ---- state -------------------------------------------------------------------------------------------------------------------

def _trainer_state(history: History, stateful: dict, device: torch.device) -> dict:
    return {"epochs": history.epochs, "best": history.best, "best_epoch": history.best_epoch, "metrics": history.metrics,
            "parts": {name: thing.state_dict() for name, thing in stateful.items()}, "random": random_state(device)}


def _restore(run: Run, network: nn.Module, stateful: dict) -> History:
    """Everything as it was when last.pt was written. Raises InputError when that file is of another network or training."""
    payload = run.load("last.pt")
    try:
        trainer = payload["trainer"]
        network.load_state_dict(payload["state_dict"])
        for name, thing in stateful.items():
            thing.load_state_dict(trainer["parts"][name])
        set_random_state(trainer["random"], next(network.parameters()).device)
        return History(trainer["epochs"], trainer["best"], trainer["best_epoch"], trainer["metrics"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"'{run.last}' does not fit this training ({str(error).splitlines()[0]}); give the run's own settings, "
                         f"or another -out_dir without -resume") from None


def random_state(device: torch.device) -> dict:
    """State of every global random generator, as tensors and numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss), "python": random.getstate()}


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _require_finite(value: float, name: str, epoch: int) -> None:
    if not math.isfinite(value):
        raise RunError(f"{name} is {value} after epoch {epoch}; there is nothing to select the best weights by")


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
