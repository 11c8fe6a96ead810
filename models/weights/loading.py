"""From a row to a network: fetch its file, build the architecture, load the weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import checkpoints
from ..classifier import Classifier, ModelError, require
from ..registry import build
from .row import Weights
from .table import find

ROOT = "checkpoints/published"  # where published files lie, unless the user says otherwise
# The module that fetches, from here in the clone and as the package ood.networks. It is found when
# it is needed: this package imports nothing of `ood`.
FETCHING = "ood.data.fetch.published"


class Published(NamedTuple):
    """A published network, ready to use.

    Attributes:
        network: in evaluation mode, on the CPU.
        transform: turns a PIL image into its input; None where the normalisation is not published.
        row: what is known of the weights.
    """

    network: Classifier
    transform: Callable | None
    row: Weights


def load(name: str, root: str | Path = ROOT, download: bool = True) -> Published:
    """Fetch, verify, build and load published weights of a classifier.

    Args:
        name: one of `weights.names()`.
        root: folder of the files.
        download: fetch the file if it is not there.

    Raises:
        ModelError: unknown name, or weights of a method, which eval_ood.py loads.
        CheckpointError: the file does not fit the network.
        InputError: the file is not there, and may not or cannot be fetched; the message says what
            to do.
        RuntimeError: the download failed, or the file has another checksum.
    """
    row = find(name)
    _require_classifier(row)
    try:
        fetching = importlib.import_module(FETCHING)
    except ImportError as error:
        raise ModelError(
            f"the package ood, which fetches weights, is not there ({error}); get the file from "
            f"{row.source} and call weights.build_from(row, file)"
        ) from None
    file = fetching.obtain(row, Path(root), download=download)
    transform = None if row.mean is None else row.transform()
    return Published(build_from(row, file), transform, row)


def build_from(row: Weights, file: str | Path) -> Classifier:
    """Build the network of a row and load its weights from a file, which is not verified here.

    Raises:
        ModelError: the row is not of a classifier.
        CheckpointError: the file cannot be read, or it does not fit the network.
    """
    network = fresh(row)
    checkpoints.load_into(network, file)
    return network.eval()


def fresh(row: Weights) -> Classifier:
    """Build the network of a row with fresh weights. Raises ModelError as `build_from`."""
    _require_classifier(row)
    channels = None if row.mean is None else len(row.mean)
    return build(row.arch, row.num_classes, channels, row.image_size, **row.options)


def _require_classifier(row: Weights) -> None:
    config = f" -config configs/{row.config}.json" if row.config else ""
    require(
        row.kind == "classifier",
        f"'{row.name}' is no classifier but of the kind {row.kind}; use it with "
        f"`python3 eval_ood.py{config} -weights {row.name}`",
    )
