"""Several processes that work as one run, as torchrun starts them; in a single process every function here is the plain case.

    torchrun --nproc_per_node 4 classifier_pretraining.py -dataset cifar10 -arch resnet18        # 4 GPUs (nccl), or 4 CPU processes (gloo)

    training     world() * batch_size images per step, in the order that one process with that batch size would take them; each process
                 computes its part, and the gradient is the mean over all images of the step, also where the parts are not equally large;
                 where a loss is not a mean over images, see below
    evaluation   each process forwards its part of a set; sums and rows are gathered exactly: no image twice, none left out
    files, lines rank 0

BatchNorm: each process normalises with the statistics of its own images, as it would in a run with the smaller batch; running averages
are averaged over the processes after every epoch. `synchronise_batchnorm` makes them those of the whole step, at the price of
communication in every layer; then N processes with batches of b equal one with batches of N * b, up to rounding.

Losses: each process computes the loss of its own images, and its gradient weighs as much as it has images. That is the gradient of one
process for every loss that is a mean over images. One that averages ID images and outliers separately (outlier_exposure, energy_bounded,
energy_margin, mchad, openmix) is exact where all processes have as many images of either kind: in every step but the last one of an epoch
and the last one of a turn of the outliers, where the counts of two processes differ by at most one if they do not divide evenly. One that
relates the images of a batch to each other (ii, cider, the draws of vos, the hinge of leave-out) sees those of its process alone; VMDLS
exchanges its embeddings, so that its loss is that of one process.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ood.config import InputError

PATIENCE = timedelta(
    days=1
)  # rank 0 may fit detectors for hours; a process that dies is noticed at once, by torchrun
_alone = False
_code: int | None = None  # exit code of a process that has left the others


# ---- the processes -----------------------------------------------------------------------------------------------------------


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return (
        int(os.environ.get("WORLD_SIZE", 1))
        if {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        else 1
    )


def begin() -> None:
    """Join the other processes, if torchrun started some: gloo on the CPU, nccl on GPUs."""
    if launched() > 1 and not dist.is_initialized():
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
        atexit.register(
            _leave
        )  # registered early, so that it runs after what others have registered


def end(code: int = 0) -> None:
    """Leave the others, when all is done; the process will end with this exit code.

    It skips the end of the interpreter: DistributedDataParallel keeps gloo's threads alive after destroy_process_group, and one that
    gives back a tensor while Python is being taken down aborts the process: a finished run would count as failed.
    """
    global _code
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _code = code


def _leave() -> None:
    if _code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_code)


def world() -> int:
    return (
        dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1
    )


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() > 1 else 0


def first() -> bool:
    """Whether this process writes files and lines."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextlib.contextmanager
def solo() -> Iterator[None]:
    """Within this block the process counts as the only one: for what rank 0 does while the others do not."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        gathered(None)


def lost(error: Exception) -> bool:
    """Whether an error says that the other processes cannot be reached any more."""
    text = str(error).lower()
    return world() > 1 and (
        isinstance(error, dist.DistError)
        or isinstance(error, RuntimeError)
        and any(
            word in text
            for word in (
                "gloo",
                "nccl",
                "connection closed",
                "connection reset",
                "broken pipe",
                "socket",
            )
        )
    )


def require_one(what: str, instead: str) -> None:
    """Raises InputError under torchrun."""
    if launched() > 1:
        raise InputError(f"{what} runs in one process, torchrun started {launched()}; {instead}")


# ---- values and rows ---------------------------------------------------------------------------------------------------------


def gathered(value: Any) -> list:
    """The value of every process, by rank: plain values and tensors on the CPU."""
    if world() == 1:
        return [value]
    values: list = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` gives in rank 0, in every process; an error there is raised everywhere. It begins when all processes are here.

    Tensors (in dicts, lists and tuples) arrive on the CPU: a CUDA tensor would be made on the GPU of rank 0 by every process.
    """
    if world() == 1:
        return work()
    barrier()
    made: list = [None, None]
    if rank() == 0:
        try:
            made[0] = _on_cpu(work())
        except Exception as error:  # the others wait for an answer
            made[1] = error
    dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    if made[1] is not None:
        raise made[1]
    return made[0]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def in_turn(work: Callable[[], Any]) -> Any:
    """`work` in the first process of each machine, then in the others, which find on disk what it left there."""
    if world() > 1 and local_rank():
        barrier()
    made = work()
    if world() > 1 and not local_rank():
        barrier()
    return made


def total(numbers: Tensor) -> Tensor:
    """Sums over the processes, element by element."""
    if world() > 1:
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers


def gather_rows(rows: Tensor | None) -> Tensor:
    """The rows of all processes on the CPU, in the order of the ranks; their numbers may differ. None: this process has none."""
    if world() == 1:
        return rows
    rows = None if rows is None else rows.detach().cpu().contiguous()
    kinds = gathered(None if rows is None else (tuple(rows.shape), rows.dtype))
    parts = []
    for source, kind in enumerate(kinds):
        if kind is not None and 0 not in kind[0]:
            part = rows.clone() if source == rank() else torch.empty(kind[0], dtype=kind[1])
            dist.broadcast(part.view(-1).view(torch.uint8), source)
            parts.append(part)
    return torch.cat(parts) if parts else rows


def join_rows(rows: Tensor, count: int) -> Tensor:
    """(count, ...): the rows of all processes, (count / world(), ...) from each, in the order of the ranks; gradients flow back to each."""
    if world() == 1:
        return rows
    before = rank() * len(rows)
    padding = [0, 0] * (rows.dim() - 1) + [before, count - before - len(rows)]
    return _Sum.apply(nn.functional.pad(rows, padding))


def share_of_rows(count: int, batch_size: int = 1) -> slice:
    """The rows of 0..count-1 that this process evaluates: consecutive whole batches, so that each batch is one that a single process
    would have. With fewer batches than processes the last ranks get none."""
    batches = -(-count // batch_size)
    least, more = divmod(batches, world())
    begin_, end_ = (r * least + min(r, more) for r in (rank(), rank() + 1))
    return slice(min(count, begin_ * batch_size), min(count, end_ * batch_size))


# ---- training ----------------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """One step of an epoch: all its images are first..last, those of this process start..stop (positions in the epoch's order)."""

    first: int
    start: int
    stop: int
    last: int


def steps(count: int, batch_size: int) -> int:
    """Steps per epoch: world() * batch_size images each, the last one smaller. Fewer images than processes join the step before."""
    whole, rest = divmod(count, world() * batch_size)
    return max(1, whole + (rest >= world() or rest > 0 and not whole))


def spans(count: int, batch_size: int, *, train: bool = True) -> list[Span]:
    """The steps of an epoch over `count` images. Raises InputError when training images are fewer than the processes."""
    if train and count < world():
        raise InputError(f"{count} training image(s) for {world()} processes; start fewer of them")
    size, number = world() * batch_size, steps(count, batch_size)
    edges = [*range(0, number * size, size)][:number] + [count]
    made = []
    for begin_, end_ in zip(edges, edges[1:]):
        least, more = divmod(end_ - begin_, world())
        start, stop = (begin_ + r * least + min(r, more) for r in (rank(), rank() + 1))
        made.append(Span(begin_, start, stop, end_))
    return made


class Replica(nn.Module):
    """An objective as a module that DistributedDataParallel can wrap.

    The objective may call the network as it likes (several times, only its features): what counts is that all of it happens within
    one forward pass of the wrapper. Parameters of the optimiser that are not the network's (a loss's centres) are averaged too.
    """

    def __init__(self, objective: Callable, network: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.network = network
        known = set(map(id, network.parameters()))
        self.further = nn.ParameterList(
            [p for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
        )
        self.call = [
            objective
        ]  # in a list: an objective that is a module would register the network twice
        self.parts: dict = {}

    def forward(self, batch) -> Tensor:
        loss, self.parts = self.call[0](batch)
        return loss


class Step:
    """A training step of one epoch: step(batch, items) -> (loss, parts) of this process's images, then step.backward().

    In one process plain. In several the gradients become their mean over all images of the step: after the first step by summing them
    here, which shows whether the objective leaves parameters unused, from the second one by DDP, which overlaps that with the backward
    pass. Weights are made alike at that point.
    """

    def __init__(self, objective: Callable, network: nn.Module, optimizer: torch.optim.Optimizer):
        self.objective, self.device = objective, next(network.parameters()).device
        self.replica = Replica(objective, network, optimizer) if world() > 1 else None
        self.wrapped: nn.Module | None = None

    def __call__(self, batch, items: int) -> tuple[Tensor, dict]:
        if self.wrapped is None:
            self.loss, parts = self.objective(batch)
        else:
            self.loss, parts = self.wrapped(batch), self.replica.parts
        if self.replica is not None:
            count = torch.full((), float(items), dtype=torch.float64, device=self.device)
            self.weight = count * world() / total(count)  # DDP divides by the number of processes
        return self.loss.detach(), parts

    def backward(self) -> None:
        if self.replica is None:
            self.loss.backward()
            return
        (self.loss * self.weight.to(self.loss.dtype)).backward()
        if self.wrapped is None:
            self._first()

    def _first(self) -> None:
        parameters = [p for p in self.replica.parameters() if p.requires_grad]
        used = [any(flags) for flags in zip(*gathered([p.grad is not None for p in parameters]))]
        for parameter, of_any in zip(parameters, used):
            if of_any:
                parameter.grad = (
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(world())
        wrapper = nn.parallel.DistributedDataParallel
        own = (
            "forward_sync_buffers"
            if "forward_sync_buffers" in inspect.signature(wrapper).parameters
            else "broadcast_buffers"
        )
        self.wrapped = wrapper(self.replica, find_unused_parameters=not all(used), **{own: False})


def average_buffers(network: nn.Module) -> None:
    """Running averages become their mean over the processes, counts those of rank 0."""
    if world() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world())
            else:
                dist.broadcast(buffer, 0)


# ---- BatchNorm ---------------------------------------------------------------------------------------------------------------


def synchronise_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm see the images of all processes: torch's SyncBatchNorm on a GPU, the class below elsewhere."""
    if world() == 1:
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.__class__ = SynchronisedBatchNorm
    return network


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """y = (x - m) / sqrt(v + eps) * weight + bias; m, v: mean and variance over the images and positions of all processes.

    torch's own class refuses tensors on the CPU. Mean first, then squares of what is centred: two sums over the processes.
    """

    def _check_input_dim(self, images: Tensor) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(images)
        over, shape = [d for d in range(images.dim()) if d != 1], [1, -1] + [1] * (images.dim() - 2)
        x = images.float() if images.dtype in (torch.half, torch.bfloat16) else images
        count = total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _Sum.apply(x.sum(over)) / count  # (C,)
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = (
                    1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                )
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y).to(
            images.dtype
        )


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        return total(values.contiguous())

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())
