"""Run several functions of the same images with one forward pass, where they share a network.

    shared = Shared([network, network.features, maps_of_layer4])
    logits, features, maps = shared(images)  # the network ran once; the rest was read on the way

Which function computes what another one computes on its way is not guessed from equal values: a
clipping that no image reaches would look like none. The first images are traced operation by
operation. Every value gets a number that stands for the whole computation behind it: the operation
and the numbers of what went in. A function is read from another one's run only if the number of its
result stands at the input or output of a module there, or a few cheap operations behind one. The
trace takes two images, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

PROBE = 2  # images that are traced
# operations whose result holds the same values in the same order
SAME_VALUES = {
    f"aten::{name}"
    for name in ("view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "detach", "clone")
}


# operations on one tensor that are done again on what was read, where a result lies behind them
AGAIN = {
    f"aten::{name}"
    for name in (
        "relu relu_ clamp clamp_ clamp_min clamp_max hardtanh silu gelu tanh sigmoid "
        "mean _adaptive_avg_pool2d avg_pool2d"
    ).split()
}
TAIL = 4  # of such operations in a row, at most


class Place(NamedTuple):
    """A tensor that goes into a module or comes out of it.

    Attributes:
        call: which call of the module it is in a run, from 0.
        side: "in" or "out".
        overwritten: a later operation writes into it, so that it has to be copied.
    """

    module: nn.Module
    call: int
    side: str
    overwritten: bool = False


class Shared:
    """Functions of images (B, ...), run together.

    Args: functions: networks, their methods, or any callables that give a tensor (B, ...).
    """

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]]):
        self.functions = list(functions)
        self.same = {}  # place of each function -> place of the first one that is equal to it
        for number, function in enumerate(self.functions):
            first = next(n for n, other in enumerate(self.functions) if other == function)
            self.same[number] = first
        self._plan: list[tuple[int, dict[int, _Read]]] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute what each function gives for the images."""
        if self._plan is None:
            self._plan = self._planned(images[:PROBE])
        found: dict[int, Tensor] = {}
        for root, read in self._plan:
            with _caught({way.place for way in read.values() if way.place}) as caught:
                found[root] = self.functions[root](images)
            for number, way in read.items():
                found[number] = way.values(caught[way.place] if way.place else found[root])
        return [found[first] for first in self.same.values()]

    @property
    def passes(self) -> int | None:
        """How many functions are run for a batch; None before the first one."""
        return None if self._plan is None else len(self._plan)

    def _planned(self, images: Tensor) -> list[tuple[int, dict[int, _Read]]]:
        """Say which functions are run, and where in their runs the others are read."""
        distinct = sorted(set(self.same.values()))
        modules = _modules(self.functions)
        if len(distinct) == 1 or any(map(changes_in_training, modules)):
            return [(number, {}) for number in distinct]
        runs, numbers = {}, _Numbers()
        for number in distinct:
            # what cannot be traced (compiled code, a result that is no tensor) runs by itself
            with suppress(Exception):
                runs[number] = _trace(self.functions[number], images, modules, numbers)
        plan, left = [(number, {}) for number in distinct if number not in runs], set(runs)
        while left:  # the run that passes by the most results comes first
            reads = {root: runs[root].reads(runs, left - {root}, numbers) for root in left}
            root = max(sorted(left), key=lambda n: len(reads[n]))
            plan.append((root, reads[root]))
            left -= {root, *reads[root]}
        return plan


class _Read(NamedTuple):
    """How the result of a function is found in another one's run."""

    place: Place | None  # None: the result of that run
    shape: tuple[int, ...]  # of one image's result
    tail: tuple[tuple[Callable, tuple[int, ...]], ...] = ()  # operations, and shapes they work on

    def values(self, tensor: Tensor) -> Tensor:
        for operation, shape in self.tail:
            tensor = operation(tensor.reshape(-1, *shape))
        return tensor.reshape(-1, *self.shape)


class _Run(NamedTuple):
    """What the trace of one function found."""

    result: int  # number of the result
    shape: tuple[int, ...]  # of one image's result
    places: dict[int, Place]  # number of a value -> where it can be read

    def reads(self, runs: dict[int, _Run], others: set[int], numbers: _Numbers) -> dict[int, _Read]:
        """Say how the results of the others are found in this run."""
        found = {}
        for other in sorted(others):
            wanted, tail = runs[other].result, []
            while wanted != self.result and wanted not in self.places and len(tail) < TAIL:
                if wanted not in numbers.made_by:
                    break
                operation, shape, wanted = numbers.made_by[wanted]
                tail.insert(0, (operation, shape))
            if wanted == self.result or wanted in self.places:
                place = None if wanted == self.result else self.places[wanted]
                found[other] = _Read(place, runs[other].shape, tuple(tail))
        return found


class _Numbers(TorchDispatchMode):
    """Give every tensor a number that stands for the computation behind its values."""

    def __init__(self):
        super().__init__()
        self.known: dict[tuple, int] = {}
        self.fresh = itertools.count()
        # number -> an operation that can be done again, the shape it works on, and on which number
        self.made_by: dict[int, tuple[Callable, tuple[int, ...], int]] = {}
        self.held: dict[tuple, tuple[int, int, Tensor]] = {}  # place in memory -> number, writes
        self.writes: dict[int, int] = {}  # address of a storage -> how often it was written to

    def number(self, tensor: Tensor) -> int:
        """Number of a tensor's present values; a new one if they were written to behind a view."""
        held = self.held.get(_location(tensor))
        if held is None or held[1] != self._written(tensor):
            return self._set(tensor, next(self.fresh))
        return held[0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves, form = tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (
            func,
            str(form),
            *(
                (self.number(leaf), tuple(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf)
                for leaf in leaves
            ),
        )
        if torch.Tag.nondeterministic_seeded in func.tags:
            key = (next(self.fresh),)
        same = self.number(tensors[0]) if func._schema.name in SAME_VALUES else None
        again = None
        if func._schema.name in AGAIN and len(tensors) == 1 and args[0] is tensors[0]:
            call = partial(_again, func, args[1:], kwargs or {})
            again = call, tuple(tensors[0].shape[1:]), self.number(tensors[0])
        results = func(*args, **(kwargs or {}))
        for tensor in self._changed(func, args, kwargs or {}):
            address = tensor.untyped_storage().data_ptr()
            self.writes[address] = self.writes.get(address, 0) + 1
        outputs = [leaf for leaf in tree_flatten(results)[0] if isinstance(leaf, Tensor)]
        for place, tensor in enumerate(outputs):
            number = self._of(*key, place) if same is None else same
            self._set(tensor, number)
            if again is not None:
                self.made_by.setdefault(number, again)
        return results

    def _of(self, *key) -> int:
        if key not in self.known:
            self.known[key] = next(self.fresh)
        return self.known[key]

    def _set(self, tensor: Tensor, number: int) -> int:
        """Note a number, and keep the tensor, so that nothing else takes its place in memory."""
        self.held[_location(tensor)] = number, self._written(tensor), tensor
        return number

    def _written(self, tensor: Tensor) -> int:
        return self.writes.get(tensor.untyped_storage().data_ptr(), 0)

    @staticmethod
    def _changed(func, args, kwargs) -> Iterator[Tensor]:
        """Tensors that an operation writes to."""
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                yield from (t for t in tree_flatten(value)[0] if isinstance(t, Tensor))


def _again(operation: Callable, args: tuple, kwargs: dict, tensor: Tensor) -> Tensor:
    """Do a traced operation on other images. The tensor is kept as it is."""
    return operation(tensor.clone() if operation._schema.is_mutable else tensor, *args, **kwargs)


def _location(tensor: Tensor) -> tuple:
    """Say where in memory a tensor lies. Two tensors of one location hold the same values."""
    address = tensor.untyped_storage().data_ptr()
    return address, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _trace(
    function: Callable, images: Tensor, modules: Sequence[nn.Module], numbers: _Numbers
) -> _Run:
    passed: list[tuple[Place, Tensor, int]] = []
    keep = lambda place, tensor: passed.append((place, tensor, numbers.number(tensor)))
    with numbers, _hooked(modules, keep):
        result = function(images)
    places: dict[int, Place] = {}
    for place, tensor, number in passed:
        if numbers.number(tensor) != number:
            place = place._replace(overwritten=True)
        if number not in places or places[number].overwritten:
            places[number] = place
    return _Run(numbers.number(result), tuple(result.shape[1:]), places)


@contextmanager
def _caught(places: set[Place]) -> Iterator[dict[Place, Tensor]]:
    """Catch the tensors at these places while the block runs."""
    caught: dict[Place, Tensor] = {}

    def keep(place: Place, tensor: Tensor) -> None:
        if place in places:
            caught[place] = tensor
        elif place._replace(overwritten=True) in places:
            caught[place._replace(overwritten=True)] = tensor.clone()

    with _hooked({place.module for place in places}, keep):
        yield caught


@contextmanager
def _hooked(modules, keep: Callable[[Place, Tensor], None]) -> Iterator[None]:
    """Show `keep` every tensor that goes into one of the modules, or comes out."""
    calls: dict[nn.Module, int] = {}
    hooks = []

    def before(module, inputs):
        calls[module] = calls.get(module, -1) + 1
        if inputs and isinstance(inputs[0], Tensor):
            keep(Place(module, calls[module], "in"), inputs[0])

    def after(module, inputs, output):
        if isinstance(output, Tensor):
            keep(Place(module, calls[module], "out"), output)

    try:
        for module in modules:
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def changes_in_training(module: nn.Module) -> bool:
    """Tell whether a module is in training mode and gives something else then."""
    kinds = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
    return module.training and isinstance(module, kinds)


def _modules(functions) -> list[nn.Module]:
    """All modules behind networks and their methods, each once."""
    found: dict[nn.Module, None] = {}
    for function in functions:
        owner = getattr(function, "__self__", function)
        if isinstance(owner, nn.Module):
            found |= dict.fromkeys(owner.modules())
    return list(found)
