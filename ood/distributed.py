"""Several processes that torchrun starts work as one run; a single process is the plain case.

    torchrun --nproc_per_node 4 classifier_pretraining.py -dataset cifar10 -arch resnet18
    # 4 GPUs (nccl), or 4 CPU processes (gloo)

    training     A step uses world() * batch_size images, in the order of a single process with
                 that batch size. Each process computes its part. The gradient is the mean over all
                 images of the step, even if the parts differ in size (other losses: see below).
    evaluation   Each process forwards its part of a set. Sums and rows are gathered exactly: no
                 image counts twice, none is left out.
    files, lines Rank 0 writes them.

BatchNorm: each process normalises with the statistics of its own images, as in a run with the
smaller batch. The running averages are averaged over the processes after every epoch.
`synchronise_batchnorm` normalises with the statistics of the whole step instead; every layer then
communicates. With it, N processes with batches of b equal one process with batches of N * b, up to
rounding.

Losses: each process computes the loss of its own images. Its gradient is weighted by its number of
images. For every loss that is a mean over images, this is the gradient of a single process.
- Some losses average ID images and outliers separately: outlier_exposure, energy_bounded,
  energy_margin, mchad, openmix. They are exact where all processes have equally many images of
  either kind. That holds in every step except the last of an epoch and the last of a turn of the
  outliers; there the counts of two processes may differ by one.
- Some losses relate the images of a batch to each other: ii, cider, the draws of vos, the hinge of
  leave-out. They see the images of their own process only.
- VMDLS exchanges its embeddings, so its loss is the loss of a single process.
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

# rank 0 may fit detectors for hours; torchrun notices at once when a process dies
PATIENCE = timedelta(days=1)
CONNECTION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
_alone = False
_code: int | None = None  # exit code of a process that has left the others


# ---- the processes


def launched() -> int:
    """Return how many processes torchrun started; 1 without torchrun.

    Raises: InputError if WORLD_SIZE is no positive integer.
    """
    by_torchrun = {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return _from_environment("WORLD_SIZE", 1, lowest=1) if by_torchrun else 1


def _from_environment(name: str, default: int, lowest: int = 0, highest: int = 1 << 20) -> int:
    """Return an integer that torchrun has set. Raises InputError if it is none in that range."""
    text = os.environ.get(name, str(default))
    if text.strip().isdecimal() and len(text) < 20 and lowest <= int(text) <= highest:
        return int(text)
    raise InputError(
        f"the environment variable {name} is '{text}', not an integer from {lowest} to {highest}; "
        "start the processes with torchrun, which sets it, or unset it (and RANK, WORLD_SIZE, "
        "MASTER_ADDR, MASTER_PORT) for a single process"
    )


def begin() -> None:
    """Join the other processes, if torchrun started any: gloo on the CPU, nccl on GPUs.

    Raises: InputError if what torchrun sets in the environment is missing or makes no sense.
    """
    if launched() > 1 and not dist.is_initialized():
        _from_environment("MASTER_PORT", 0, highest=65535)
        _from_environment("RANK", 0, highest=launched() - 1)
        local_rank()
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InputError(
                f"cannot join the other processes at {place} (MASTER_ADDR, MASTER_PORT): "
                f"{str(error).splitlines()[0]}"
            ) from error
        atexit.register(_leave)  # registered early: it runs after what is registered later


def end(code: int = 0) -> None:
    """Leave the other processes when all is done; this process will end with the exit code `code`.

    The process skips the end of the interpreter. DistributedDataParallel keeps gloo's threads alive
    after destroy_process_group. A thread that frees a tensor while Python shuts down aborts the
    process, and a finished run would count as failed.
    """
    global _code
    if joined():
        _code = code
        # Wait for the others: a process that leaves first takes away what their leaving needs. If
        # one has gone all the same, there is nothing left to take leave of.
        with contextlib.suppress(RuntimeError):
            barrier()
            dist.destroy_process_group()


def _leave() -> None:
    if _code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_code)


def joined() -> bool:
    """Tell whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Return the number of processes of this run; 1 within `solo`."""
    return dist.get_world_size() if joined() and not _alone else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return _from_environment("LOCAL_RANK", 0) if launched() > 1 else 0


def first() -> bool:
    """Tell whether this process writes files and lines."""
    return not joined() or dist.get_rank() == 0


@contextlib.contextmanager
def solo() -> Iterator[None]:
    """Let this process count as the only one: for work that rank 0 does alone."""
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
    """Tell whether an error means that the other processes cannot be reached any more."""
    if world() == 1:
        return False
    text = str(error).lower()
    broken = isinstance(error, RuntimeError) and any(word in text for word in CONNECTION)
    return broken or isinstance(error, dist.DistError)


def require_one(what: str, instead: str) -> None:
    """Raise InputError if torchrun started several processes.

    Args: what: runs in one process only. instead: what the user can do.
    """
    if launched() > 1:
        raise InputError(f"{what} runs in one process, torchrun started {launched()}; {instead}")


# ---- values and rows


def gathered(value: Any) -> list:
    """Return the values of all processes, by rank: plain values, and tensors on the CPU."""
    if world() == 1:
        return [value]
    values: list = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], Any]) -> Any:
    """Run `work` in rank 0 and return its result in every process.

    It begins when all processes are here. An error in rank 0 is raised in every process.

    Tensors (in dicts, lists and tuples) arrive on the CPU. Otherwise every process would put a CUDA
    tensor on the GPU of rank 0.
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
    """Run `work` in the first process of each machine, then in the others.

    The others find on disk what the first one left there.
    """
    if world() > 1 and local_rank():
        barrier()
    made = work()
    if world() > 1 and not local_rank():
        barrier()
    return made


def total(numbers: Tensor) -> Tensor:
    """Sum a tensor over the processes, element by element."""
    if world() > 1:
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers


def gather_rows(rows: Tensor | None) -> Tensor:
    """Join the rows of all processes, (n, ...) each, on the CPU, in the order of the ranks.

    The processes may have different numbers of rows; None means no rows.
    """
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
    """Join the rows of all processes to (count, ...); gradients flow back to each process.

    Args: rows: (count / world(), ...), joined in the order of the ranks.
    """
    if world() == 1:
        return rows
    before = rank() * len(rows)
    padding = [0, 0] * (rows.dim() - 1) + [before, count - before - len(rows)]
    return _Sum.apply(nn.functional.pad(rows, padding))


def share_of_rows(count: int, batch_size: int = 1) -> slice:
    """Return the rows of 0..count-1 that this process evaluates.

    They are consecutive whole batches: each batch is one that a single process would have. With
    fewer batches than processes, the last ranks get none.
    """
    batches = -(-count // batch_size)
    least, more = divmod(batches, world())
    begin_, end_ = (r * least + min(r, more) for r in (rank(), rank() + 1))
    return slice(min(count, begin_ * batch_size), min(count, end_ * batch_size))


# ---- training


class Span(NamedTuple):
    """One step of an epoch, in positions of the epoch's order.

    The step has the images first..last; this process has start..stop of them.
    """

    first: int
    start: int
    stop: int
    last: int


def steps(count: int, batch_size: int) -> int:
    """Return the number of steps per epoch, with world() * batch_size images each.

    The last step has the rest. A rest with fewer images than processes joins the step before.
    """
    whole, rest = divmod(count, world() * batch_size)
    return max(1, whole + (rest >= world() or rest > 0 and not whole))


def spans(count: int, batch_size: int, *, train: bool = True) -> list[Span]:
    """Return the steps of an epoch over `count` images.

    Raises: InputError if there are fewer training images than processes.
    """
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

    The objective may call the network as it likes (several times, or only its features), as long
    as it does so within one forward pass of the wrapper. The optimiser's other parameters (a loss's
    centres) are averaged too.
    """

    def __init__(self, objective: Callable, network: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.network = network
        known = set(map(id, network.parameters()))
        optimised = [p for group in optimizer.param_groups for p in group["params"]]
        self.further = nn.ParameterList([p for p in optimised if id(p) not in known])
        # in a list: an objective that is a module would register the network twice
        self.call = [objective]
        self.parts: dict = {}

    def forward(self, batch) -> Tensor:
        loss, self.parts = self.call[0](batch)
        return loss


class Step:
    """The training step of one epoch: step(batch, items), then step.backward().

    step(batch, items) returns (loss, parts) of this process's images.

    With several processes the gradients become their mean over all images of the step. In the first
    step they are summed here, which shows whether the objective leaves parameters unused. From the
    second step on, DDP sums them while the backward pass runs. DDP also makes the weights of all
    processes equal when it begins.
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
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(world())
        wrapper = nn.parallel.DistributedDataParallel
        newer, older = "forward_sync_buffers", "broadcast_buffers"  # names of one option in torch
        option = newer if newer in inspect.signature(wrapper).parameters else older
        self.wrapped = wrapper(
            self.replica, find_unused_parameters=not all(used), **{option: False}
        )


def average_buffers(network: nn.Module) -> None:
    """Average the running averages over the processes; counts become those of rank 0."""
    if world() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world())
            else:
                dist.broadcast(buffer, 0)


# ---- BatchNorm


def synchronise_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm see the images of all processes, and return the network.

    A GPU gets torch's SyncBatchNorm, any other device `SynchronisedBatchNorm`.
    """
    if world() == 1:
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.__class__ = SynchronisedBatchNorm
    return network


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """y = (x - m) / sqrt(v + eps) * weight + bias, with the images of all processes.

    m and v are mean and variance over the images and positions of all processes. Two sums over the
    processes are needed: the mean, then the squares of the centred values. torch's own class
    refuses tensors on the CPU.
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
                share = self.momentum
                if share is None:  # a plain average over all batches
                    share = 1 / self.num_batches_tracked.item()
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(images.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        return total(values.contiguous())

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())
