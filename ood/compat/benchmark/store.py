"""What a benchmark remembers of its forward passes: a cache named by content.

An entry is named by the weights, structure and source of the network, and by the images as it saw
them: the files behind a set and its transform, or, where these cannot be described, the pixels of
every batch. A name that the user gives is added to that, and replaces nothing.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ood.cache import Cache, content_key
from ood.compat.dataset.base import RegistrySet
from ood.compat.readings import LastMap
from ood.compat.sharing import changes_in_training
from ood.data.images import ImageSet
from ood.outputs import network_digest

# where classes of transforms may come from, whose pickles say all that they do
KNOWN = ("torch", "torchvision", "ood", "PIL", "numpy", "builtins", "collections", "functools")
DRAWS = ("Random", "Jitter", "Augment", "AugMix", "MixUp", "CutMix", "Dropout", "Erasing", "PixMix")
# attributes of a RegistrySet that its digest covers, or that say only where it lies
UNSAID = ("found", "root", "files", "labels")


class Store:
    """Arrays (N, D) of functions of images, in memory and on disk.

    Args:
        folder: where to keep them too; None: in memory only.
        name: part of every key.
        memory: where they are kept in memory; None: nowhere.
    """

    def __init__(self, folder: str | Path | None, name: str | None, memory: dict | None):
        self.disk = None if folder is None else Cache(folder)
        self.name, self.memory = name or "", memory
        self._weights: dict[Callable, str | None] = {}

    def __bool__(self) -> bool:
        return self.disk is not None or self.memory is not None

    def key(self, function: Callable, data: str, device: torch.device) -> str | None:
        """Name the array that a function gives for a set; None for a function without a digest."""
        if function not in self._weights:
            self._weights[function] = function_digest(function)
        weights = self._weights[function]
        return weights and content_key(weights, data, device.type, self.name)

    def get(self, key: str | None) -> tuple[Tensor, Tensor] | None:
        """Give (array, labels), or None."""
        if key is None:
            return None
        if self.memory is not None and key in self.memory:
            return self.memory[key]
        if self.disk is not None and len(self.disk.sound(key, PARTS)) == len(PARTS):
            found = tuple(self.disk.get(key, part) for part in PARTS)
            if self.memory is not None:
                self.memory[key] = found
            return found
        return None

    def put(self, key: str | None, values: Tensor, labels: Tensor) -> None:
        """Keep an array and the labels of its rows."""
        if key is None:
            return
        if self.memory is not None:
            self.memory[key] = values, labels
        if self.disk is not None:
            for part, tensor in zip(PARTS, (values, labels)):
                self.disk.put(key, part, tensor.contiguous())


PARTS = ("values", "labels")


def function_digest(function: Callable) -> str | None:
    """Digest of everything that a function of images depends on; None where that is not known.

    It is known for networks and their methods, unless they are in training mode, have hooks, or
    carry a method of their own in place of their class's.
    """
    what, owner = "", function
    if isinstance(function, LastMap):
        what, owner = "last map", function.network
    elif hasattr(function, "__func__"):
        what, owner = function.__func__.__qualname__, function.__self__
    if not isinstance(owner, nn.Module):
        return None
    for module in owner.modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        replaced = any(callable(v) and hasattr(type(module), k) for k, v in vars(module).items())
        if hooks or replaced or changes_in_training(module):
            return None
    return f"{what} {network_digest(owner)}"


def data_digest(dataset: Dataset) -> str | None:
    """Digest of the items of a data set, without reading them; None where that is not possible."""
    if isinstance(dataset, ConcatDataset):
        parts = [data_digest(part) for part in dataset.datasets]
        return None if None in parts else " + ".join(parts)
    if isinstance(dataset, Subset):
        whole = data_digest(dataset.dataset)
        return (
            whole and f"{whole} {hashlib.sha256(repr(list(dataset.indices)).encode()).hexdigest()}"
        )
    if isinstance(dataset, TensorDataset):
        return digest_batches([dataset.tensors])
    if isinstance(dataset, ImageSet):
        settings = {"transform": dataset.transform}
    elif isinstance(dataset, RegistrySet):
        settings = {k: v for k, v in vars(dataset).items() if k not in UNSAID}
    else:
        return None
    described = _described((type(dataset), settings))
    return described and f"{dataset.digest} {described}"


def digest_batches(batches: Iterable) -> str:
    """Digest of all values of batches of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for tensor in batch:
            tensor = torch.as_tensor(tensor).detach().cpu().contiguous()
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _described(thing) -> str | None:
    """Digest of an object whose pickle says all that it does, and that draws nothing at random."""
    content = io.BytesIO()
    try:
        _Describer(content).dump(thing)
    except Exception:  # objects raise many kinds when they cannot be pickled
        return None
    versions = f"{torch.__version__} {torchvision.__version__}".encode()
    return hashlib.sha256(versions + content.getvalue()).hexdigest()


class _Describer(pickle.Pickler):
    """Pickles objects of known libraries only."""

    def reducer_override(self, thing):
        kind = thing if isinstance(thing, type) or hasattr(thing, "__qualname__") else type(thing)
        known = str(getattr(kind, "__module__", "")).split(".")[0] in KNOWN
        if not known or any(word in kind.__qualname__ for word in DRAWS):
            raise pickle.PicklingError(f"{kind} is not known to do the same each time")
        return NotImplemented
