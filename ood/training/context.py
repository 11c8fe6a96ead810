"""What a script hands to the code below it: folders, device, cache, progress, log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from ood.cache import Cache


@dataclass(frozen=True)
class Context:
    """Everything that a training or an evaluation needs beside its settings.

    Attributes:
        networks: the package `models`. A script hands it in, because `ood` never imports it.
        device: what to compute on.
        data_dir: root of the data sets.
        checkpoints_dir: root of the run folders.
        out_dir: run folder of a training. None: checkpoints_dir/<stem>_<timestamp>.
        resume: continue the run in `out_dir`, or the newest one of these settings.
        download: fetch data sets that are missing.
        limit: at most this many images per set. None: all.
        cache: keeps the outputs of forward passes. None: nothing is kept.
        progress: shows a bar while it iterates, as `ood.cli.progress`.
        log: takes one line of text.
        deterministic: use deterministic kernels on a GPU too, which is slower.
        tensorboard: also write TensorBoard events into the run folder.
        training: the command that trains what is missing; messages end in it.
    """

    networks: ModuleType
    device: torch.device = torch.device("cpu")
    data_dir: str | Path = "./datasets"
    checkpoints_dir: str | Path = "./checkpoints"
    out_dir: str | Path | None = None
    resume: bool = False
    download: bool = False
    limit: int | None = None
    cache: Cache | None = None
    progress: Callable[..., Iterable] | None = None
    log: Callable[[str], None] = lambda line: None
    deterministic: bool = False
    tensorboard: bool = False
    training: str = "ood_training.py with a config of these settings"
