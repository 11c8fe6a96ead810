"""A config made ready: its network with weights, its normalisation, its image sets, and outputs from one pass per set.

    bench = workbench.prepare(models, read_experiment(path), device=device, data_dir="./datasets")
    train, test = bench.outputs(bench.images("train")), bench.outputs(bench.images("test"))

What scripts share that work with a classifier and detectors. `networks` is the package `models`, which `ood` never imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ood import detectors, methods
from ood.config import (
    Experiment,
    InputError,
    build,
    merge,
    nearest,
    read_json,
    split,
)
from ood.data import Preprocess, info, load_benchmark
from ood.data.benchmark import Benchmark
from ood.data.images import ImageSet
from ood.detectors import Detector
from ood.evaluation.scoring import TestSet
from ood.outputs import Cache, Outputs, extract, network_digest
from ood.training import pretraining


@dataclass
class Workbench:
    experiment: Experiment
    suite: Benchmark
    network: nn.Module
    preprocess: Preprocess
    weights: Path | None  # the file; None: those that the architecture brings along
    device: torch.device
    sources: dict  # keyword arguments of `load_id` and `load_ood`: data_dir, limit, seed, download
    cache: Cache | None = None
    progress: Callable[..., Iterable] | None = None
    known: dict = field(default_factory=dict)  # sets that are loaded already
    passed: dict = field(
        default_factory=dict
    )  # outputs that are there already, with the statistics that detectors share

    @property
    def recipe(self) -> dict:
        """How any picture becomes the network's input, as `ood.data.load` takes it."""
        channels, *sides = self.images("test").shape
        return {
            "size": self.suite.size,
            "resize": self.suite.resize or (None if self.suite.size else tuple(sides)),
            "channels": channels,
        }

    @property
    def arch(self) -> dict:
        """Keyword arguments of `models.build` for this network; torchvision's own weights are named only where they are used."""
        options = {**self.network.arch, **self.experiment.model_args}
        return {
            key: value for key, value in options.items() if key != "weights" or self.weights is None
        }

    @cached_property
    def digest(self) -> str:
        """Of the network."""
        return network_digest(self.network)

    def images(self, split: str) -> ImageSet:
        """The ID images of a split, 'train' or 'test'. Raises InputError where their classes are not the network's."""
        if split not in self.known:
            images = self.suite.load_id(split, **self.sources)
            if (
                images.num_classes is not None
                and images.num_classes != self.network.fc.out_features
            ):
                raise InputError(
                    f"{images.name} has {images.num_classes} classes, the network {self.network.fc.out_features}; they must agree"
                )
            self.known[split] = images
        return self.known[split]

    def ood(self, names: Iterable[str] | None = None) -> list[TestSet]:
        """The OOD sets of the benchmark; `names`: only these."""
        count = len(self.images("test"))
        return [
            TestSet(
                e.dataset, self.suite.load_ood(e, count, **self.sources), e.group or "", e.label
            )
            for e in self.suite.select(names).entries
        ]

    def outputs(self, images: ImageSet, image_detectors=(), taps: bool = False) -> Outputs:
        """Of one pass over the images; what was run before is not run again."""
        key = (images.digest, taps)
        if key in self.passed and not image_detectors:
            return self.passed[key]
        progress = self.progress and (
            lambda batches, **k: self.progress(batches, images.name, unit="images", **k)
        )
        found = extract(
            self.network,
            images,
            self.preprocess,
            device=self.device,
            batch_size=self.experiment.batch_size,
            precision=self.experiment.precision,
            taps=taps,
            digest=self.digest,
            image_detectors=image_detectors,
            cache=self.cache,
            progress=progress,
        )
        return found if image_detectors else self.passed.setdefault(key, found)


def read_experiment(path: str | Path, **overrides) -> Experiment:
    """The part of a config that concerns a classifier and its detectors; overrides that are None are none."""
    values = read_json(path)
    method = methods.get(values["method"]) if "method" in values else None
    return build(
        Experiment,
        merge(
            split(values, method.Settings if method else pretraining.Settings, str(path))[0],
            overrides,
        ),
        str(path),
    )


def prepare(
    networks: ModuleType,
    experiment: Experiment,
    *,
    device: torch.device | str = "cpu",
    data_dir: str | Path = "./datasets",
    checkpoints_dir: str | Path = "./checkpoints",
    cache: Cache | None = None,
    download: bool = False,
    progress=None,
    log: Callable[[str], None] = lambda line: None,
) -> Workbench:
    """Raises InputError for weights, data or benchmarks that are not there or do not fit."""
    suite = load_benchmark(experiment.benchmark, experiment.protocol)
    if suite.id_dataset != experiment.id_dataset:
        raise InputError(
            f"benchmark '{suite.name}' is for {suite.id_dataset}, the config's id_dataset is {experiment.id_dataset}"
        )
    facts = info(experiment.id_dataset)
    num_classes = experiment.num_classes or facts.num_classes
    if num_classes is None:
        raise InputError(f"num_classes is needed for the image folder '{experiment.id_dataset}'")
    weights = weight_file(networks, experiment, checkpoints_dir)
    network, stored, _ = load_network(
        networks,
        experiment,
        num_classes,
        suite.channels or facts.channels,
        suite.size or facts.size,
        weights,
    )
    log(f"weights: {weights or 'of the architecture'}")
    preprocess = Preprocess(
        experiment.mean or stored.get("mean") or suite.mean or facts.mean,
        experiment.std or stored.get("std") or suite.std or facts.std,
    )
    sources = dict(
        data_dir=data_dir, limit=experiment.limit, seed=experiment.seed, download=download
    )
    return Workbench(
        experiment,
        suite,
        network,
        preprocess,
        weights,
        torch.device(device),
        sources,
        cache,
        progress,
    )


def weight_file(
    networks: ModuleType, experiment: Experiment, checkpoints_dir: str | Path
) -> Path | None:
    """What the experiment asks for, else the newest run of exactly its configuration; None where torchvision's own weights are asked for."""
    weights = asked_for(experiment, checkpoints_dir) or newest(
        networks, experiment, checkpoints_dir
    )
    return weights / "best.pt" if weights and weights.is_dir() else weights


def asked_for(experiment: Experiment, checkpoints_dir: str | Path) -> Path | None:
    """The weight file or run folder that -checkpoint or -checkpoint_name names; None when neither was given."""
    if experiment.checkpoint and experiment.checkpoint_name:
        raise InputError(
            f"give -checkpoint (a file) or -checkpoint_name (a run folder), not both: '{experiment.checkpoint}' and '{experiment.checkpoint_name}'"
        )
    if experiment.checkpoint:
        return Path(experiment.checkpoint)
    if not experiment.checkpoint_name:
        return None
    folder = Path(checkpoints_dir) / experiment.checkpoint_name
    if not folder.is_dir():
        there = sorted(
            p.name
            for p in Path(checkpoints_dir).glob("*")
            if p.is_dir() and not p.name.startswith(".")
        )
        raise InputError(
            f"no run folder '{folder}'{nearest(experiment.checkpoint_name, there)}; -checkpoint_name takes the name of a folder in '{checkpoints_dir}'"
        )
    return folder


def newest(
    networks: ModuleType, experiment: Experiment, checkpoints_dir: str | Path
) -> Path | None:
    """The newest run with exactly this data set and architecture; None where torchvision's own weights are asked for."""
    if experiment.model_args.get("weights"):
        return None
    return pretraining.newest_classifier(networks, experiment, checkpoints_dir).folder


def load_network(
    networks: ModuleType,
    experiment: Experiment,
    num_classes: int,
    channels: int,
    size: int,
    weights: Path | None,
):
    """The classifier with its weights, and what the file records of its normalisation and of its loss ({} when it records none)."""
    options = {
        name: getattr(experiment, name)
        for name in ("depth", "width")
        if getattr(experiment, name) is not None
    }
    network = networks.build(
        experiment.arch,
        num_classes,
        in_channels=channels,
        image_size=size,
        **options,
        **experiment.model_args,
    )
    if weights is None:
        return network.eval(), {}, {}
    meta = networks.checkpoints.load_into(network, weights)
    return network.eval(), meta.get("preprocess") or {}, meta.get("objective") or {}


def make_detectors(experiment: Experiment) -> dict[str, Detector]:
    """{label: detector} in the order asked for. Raises InputError for a misspelt name or hyper-parameter."""
    for name in experiment.detector_args:
        if name not in detectors.names():
            detectors.create(name)
    made = {}
    for text in detectors.names() if experiment.detectors == ("all",) else experiment.detectors:
        name, values = detectors.parse(text)
        if text in made:
            raise InputError(f"detector '{text}' is named twice")
        made[text] = detectors.create(name, **{**experiment.detector_args.get(name, {}), **values})
    if not made and not experiment.method:
        raise InputError(f"no detector is named; detectors: {', '.join(detectors.names())}")
    return made
