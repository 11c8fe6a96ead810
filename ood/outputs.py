"""One forward pass per data set: pooled features, logits and labels as arrays, kept in a cache.

Detectors see `Outputs`, never a loader or a device, so thirty of them cost one pass. A detector
that needs the images themselves (ODIN's perturbation) runs inside that same pass.

The cache key is a digest of everything that the arrays depend on: the weights, the source of the
architecture, the data set's files and decoding, the normalisation, the precision and the kind of
device. So the cache cannot return the features of another network.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ood import distributed
from ood.cache import Cache, Writer, content_key, require_seen
from ood.config import InputError

CHUNK = 65536  # at most so many rows at a time for a detector: bounds memory, not results
CHUNK_VALUES = 1 << 23  # and so many values: 2,048 features give chunks of 4,096 rows
PRECISIONS = ("fp32", "bf16")
CPU_PIXELS = 40_000  # per forward pass on the CPU (39 images of 32 x 32); more leaves its caches


@dataclass(frozen=True)
class Head:
    """The last linear layer: logits = features @ weight.T + bias. weight (C, D), bias (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight, self.bias)


@dataclass(frozen=True)
class Outputs:
    """What one pass gives for N images.

    The arrays may be memory-mapped: use `chunks` to go through all rows.

    Attributes:
        features: (N, D) pooled penultimate features.
        logits: (N, C).
        labels: (N,) int64, negative for OOD.
        head: the last linear layer.
        taps: pooled stage outputs, each (N, C_k); empty unless asked for.
        scores: what image detectors gave, by their key, each (N,) or (N, K).
        seconds: how long each image detector took inside the pass; empty for cached scores.
        memo: statistics that detectors share, see ood.statistics.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    head: Head
    taps: tuple[Tensor, ...] = ()
    scores: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    memo: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        """Raise InputError for sparse tensors and for those of the meta device."""
        for what, values in (("features", self.features), ("logits", self.logits)):
            if values.is_meta or values.layout != torch.strided:
                kind = "on the meta device" if values.is_meta else f"sparse ({values.layout})"
                raise InputError(f"the {what} are {kind}: detectors need dense tensors with values")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> Tensor:
        """The class with the largest logit (N,); -1 from a feature extractor, which has none."""
        if not self.logits.shape[1]:
            return torch.full((len(self),), -1)
        return self.logits.argmax(1)

    def __getitem__(self, rows: slice | Tensor) -> Outputs:
        return replace(
            self,
            features=self.features[rows],
            logits=self.logits[rows],
            labels=self.labels[rows],
            taps=tuple(t[rows] for t in self.taps),
            scores={k: v[rows] for k, v in self.scores.items()},
            memo={},
        )

    def chunks(self, size: int | None = None) -> Iterator[Outputs]:
        """Yield Outputs of at most `size` successive rows; default: as many as bound the memory."""
        arrays = (self.features, self.logits, *self.taps, *self.scores.values())
        widest = max([1, *(t.shape[1] for t in arrays if t.dim() == 2)])
        size = size or max(1, min(CHUNK, CHUNK_VALUES // widest))
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass(frozen=True)
class Pass:
    """One batch on its way through the network, for detectors that need the images themselves.

    Attributes:
        network: the classifier.
        images: (B, C, H, W), normalised; they carry gradients.
        features: (B, D), attached to the graph of the images.
        logits: (B, C), attached likewise.
        std: of the normalisation, per channel; one pixel unit is 1 / std.
        maps: feature maps (B, C, H, W), earliest first; empty unless a detector needs 'maps'.
    """

    network: nn.Module
    images: Tensor
    features: Tensor
    logits: Tensor
    std: tuple[float, ...]
    maps: tuple[Tensor, ...] = ()


def network_digest(network: nn.Module) -> str:
    """sha256 over the weights, the printed structure and the source of the network's classes.

    It is part of the cache's key: a change in the code of a network leads to a new pass.
    """
    digest = hashlib.sha256(weights_digest(network).encode())
    for cls in sorted(
        {type(m) for m in network.modules()}, key=lambda c: (c.__module__, c.__qualname__)
    ):
        digest.update(f"{cls.__module__}.{cls.__qualname__}".encode())
        if not cls.__module__.startswith("torch."):
            try:
                digest.update(inspect.getsource(cls).encode())
            except (OSError, TypeError):  # a class typed in at a prompt has no source
                pass
    return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """sha256 over the printed structure and every tensor of the state dict.

    Unlike `network_digest` it stays the same when only the source code changes.
    """
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def extract(
    network: nn.Module,
    images,
    preprocess: Callable[[Tensor], Tensor],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: str = "fp32",
    taps: bool = False,
    image_detectors: Iterable = (),
    cache: Cache | None = None,
    digest: str | None = None,
    progress: Callable[..., Iterable] | None = None,
) -> Outputs:
    """Run `network` once over `images` and return its Outputs; cached parts are not computed again.

    Args:
        network: a classifier with features(x) -> (N, D) and fc (nn.Linear); `taps` and detectors
            that need 'maps' also call feature_maps(x) and embed. One map may come without a list,
            as pytorch-ood's networks give it.
        images: an ImageSet: len, labels, digest, batches(batch_size) -> pixels (B, C, H, W).
        preprocess: pixel batch -> normalised float batch, with `mean` and `std`; its repr is part
            of the cache key.
        batch_size: images per forward pass. On the CPU the pass takes at most CPU_PIXELS pixels
            (and at least 4 images).
        precision: 'fp32', or 'bf16': autocast of the backbone. The head and all statistics stay
            in float32.
        taps: also return the global average of every stage's feature map.
        image_detectors: detectors with score_images(Pass) -> (B,) and a `key`; they run within
            the pass.
        cache: where to keep the arrays; None keeps them in memory.
        digest: `network_digest(network)`, if already known (it reads all weights).
        progress: wraps the batches, for example ood.cli.progress.

    Under torchrun each process runs its share of the batches and returns the whole; `seconds` are
    then sums over the processes.

    Raises:
        ValueError: unknown precision.
        InputError: a process does not see the cache's folder.
        RuntimeError: fewer or more images came out of the pass than the set has.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is '{precision}'; allowed: {', '.join(PRECISIONS)}")
    device = torch.device(device)
    if device.type == "cpu":
        batch_size = min(batch_size, max(4, CPU_PIXELS // math.prod(images.shape[1:])))
    network = network.to(device, memory_format=torch.channels_last).eval()
    head = Head(network.fc.weight.detach().float(), _bias(network.fc))
    detectors = {d.key: d for d in image_detectors}

    key = ""
    if cache:
        weights = digest or network_digest(network)
        key = content_key(weights, images.digest, repr(preprocess), precision, device.type)
    wanted = {"features", "logits"} | {f"score-{k}" for k in detectors}
    held = distributed.from_first(lambda: _held(cache, key, wanted, taps)) if cache else set()
    missing = wanted - held | ({"taps"} if taps and "tap0" not in held else set())
    arrays: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    if missing:
        todo = {k: d for k, d in detectors.items() if f"score-{k}" in missing}
        forward = Forward(network, preprocess, device, precision, "taps" in missing, todo)
        arrays = _pass(forward, images, batch_size, missing, cache, key, progress)
        seconds = forward.total_seconds()
    if cache:
        names = {name for name in cache.parts(key) if taps and name.startswith("tap")} | wanted
        arrays = {name: cache.get(key, name) for name in names}
    tap_names = [name for name in arrays if name.startswith("tap")] if taps else []
    return Outputs(
        arrays["features"],
        arrays["logits"],
        torch.as_tensor(images.labels),
        Head(head.weight.cpu(), head.bias.cpu()),
        tuple(arrays[name] for name in sorted(tap_names, key=lambda name: int(name[3:]))),
        {k: arrays[f"score-{k}"] for k in detectors},
        seconds,
    )


def _pass(
    forward: Forward,
    images,
    batch_size: int,
    missing: set[str],
    cache: Cache | None,
    key: str,
    progress: Callable[..., Iterable] | None,
) -> dict[str, Tensor]:
    """Forward all images and return the missing parts; empty where the cache has got them."""
    alone = distributed.world() == 1
    mine = images if alone else images.subset(distributed.share_of_rows(len(images), batch_size))
    parts = _Parts(missing, len(mine), cache if alone else None, key)
    batches = mine.batches(batch_size)
    if progress:
        batches = progress(batches, total=-(-len(mine) // batch_size), scale=batch_size)
    try:
        for batch in batches:
            for name, values in forward(batch).items():
                parts.add(name, values)
        arrays = parts.finish()
    except BaseException:
        parts.discard()
        raise
    return arrays if alone else _of_all(arrays, len(images), cache, key)


@dataclass
class Forward:
    """The forward pass of one batch: everything that is asked for, by the name of its part.

    Image detectors take their gradients from the same pass. `seconds` sums up their times.
    """

    network: nn.Module
    preprocess: Callable[[Tensor], Tensor]
    device: torch.device
    precision: str
    taps: bool
    detectors: dict
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        perturb = any(getattr(d, "needs_gradient", True) for d in self.detectors.values())
        frozen = [p for p in self.network.parameters() if p.requires_grad] if perturb else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            with torch.enable_grad() if perturb else torch.inference_mode():
                return self._outputs(batch, perturb)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _outputs(self, batch: Tensor, perturb: bool) -> dict[str, Tensor]:
        network, device = self.network, self.device
        x = self.preprocess(batch.to(device, non_blocking=True))
        if x.dim() == 4:  # images (B, C, H, W); texts are (B, L)
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_(perturb)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mapped = self.taps or any("maps" in d.needs for d in self.detectors.values())
            maps = network.feature_maps(x) if mapped else []
            maps = [maps] if isinstance(maps, Tensor) else maps
            features = network.embed(maps[-1]) if mapped else network.features(x)  # (B, D)
        features = features.float()
        weight, bias = network.fc.weight.float(), _bias(network.fc)
        logits = nn.functional.linear(features, weight, bias)  # (B, C)
        out = {"features": features.detach(), "logits": logits.detach()}
        if self.taps:
            out |= {f"tap{i}": m.detach().float().flatten(2).mean(2) for i, m in enumerate(maps)}
        for name, detector in self.detectors.items():
            began = _now(device)
            batch_pass = Pass(network, x, features, logits, tuple(self.preprocess.std), tuple(maps))
            out[f"score-{name}"] = detector.score_images(batch_pass).detach()
            self.seconds[name] = self.seconds.get(name, 0.0) + _now(device) - began
        return out

    def total_seconds(self) -> dict[str, float]:
        """The times of the detectors, summed over the processes."""
        of_each = distributed.gathered(self.seconds)
        return {name: sum(own.get(name, 0.0) for own in of_each) for name in self.detectors}


def _now(device: torch.device) -> float:
    """Return the clock's seconds, after a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _InMemory:
    """An array that grows in memory, as ood.cache.Writer's grows on disk."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype):
        self.name, self.array, self.rows = name, np.empty(shape, dtype), 0

    def add(self, rows: np.ndarray) -> None:
        self.array[self.rows : self.rows + len(rows)] = rows
        self.rows += len(rows)

    def commit(self) -> None:
        if self.rows != len(self.array):
            raise RuntimeError(
                f"{self.rows} of {len(self.array)} images came out of the pass ({self.name})"
            )

    def close(self) -> None:
        pass


class _Parts:
    """Arrays that grow batch by batch, on disk when there is a cache, else in memory."""

    def __init__(self, missing: set[str], length: int, cache: Cache | None, key: str):
        self.missing, self.length, self.cache, self.key = missing, length, cache, key
        self.growing: dict[str, _InMemory | Writer] = {}

    def add(self, name: str, values: Tensor) -> None:
        if name not in self.missing and not (name.startswith("tap") and "taps" in self.missing):
            return
        rows = values.cpu().numpy()
        if name not in self.growing:
            shape = (self.length, *rows.shape[1:])
            if self.cache:
                self.growing[name] = self.cache.writer(self.key, name, shape, rows.dtype)
            else:
                self.growing[name] = _InMemory(name, shape, rows.dtype)
        self.growing[name].add(rows)

    def finish(self) -> dict[str, Tensor]:
        """Return the arrays; with a cache they lie there and the result is empty.

        The first tap comes last: where it is, all taps are.
        """
        for part in reversed(self.growing.values()):
            part.commit()
        if self.cache:
            return {}
        return {name: torch.from_numpy(part.array) for name, part in self.growing.items()}

    def discard(self) -> None:
        for part in self.growing.values():
            part.close()


def _of_all(
    arrays: dict[str, Tensor], length: int, cache: Cache | None, key: str
) -> dict[str, Tensor]:
    """Join the rows of all processes.

    With a cache, rank 0 writes the rows, everyone reads them from there, and the result is empty.
    """
    names = distributed.gathered(list(arrays))[0]  # rank 0 has rows, if there are any
    whole = {}
    for name in reversed(names):  # the first tap last, as in _Parts
        rows = distributed.gather_rows(arrays.pop(name, None))
        if len(rows) != length:
            raise RuntimeError(f"{len(rows)} of {length} images came out of the pass ({name})")
        if cache:
            distributed.from_first(partial(cache.put, key, name, rows))
        else:
            whole[name] = rows
    if cache:
        require_seen(cache, dict.fromkeys(names, key))
    return whole


def _held(cache: Cache, key: str, wanted: set[str], taps: bool) -> set[str]:
    """Return the parts of an entry that are sound: those of `wanted`, and the taps if all are."""
    held = cache.sound(key, wanted)
    if taps:
        there = {part for part in cache.parts(key) if part.startswith("tap")}
        sound = cache.sound(key, there)
        if sound and sound == there == {f"tap{i}" for i in range(len(there))}:
            return held | sound
        cache.remove(key, "tap0")  # without it no later run takes the others for all of them
    return held


def _bias(fc: nn.Linear) -> Tensor:
    return (
        fc.bias.detach().float()
        if fc.bias is not None
        else fc.weight.new_zeros(len(fc.weight)).float()
    )
