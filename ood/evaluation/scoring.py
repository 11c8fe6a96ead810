"""Scores every detector on every set of a benchmark, with one forward pass per set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ood import distributed, metrics
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import chunked_score, size
from ood.evaluation.diagnosis import Diagnosis, advice, diagnose
from ood.outputs import Cache, Head, Outputs, extract, network_digest


@dataclass
class TestSet:
    """One OOD test set as a benchmark names it."""

    name: str  # of the data set: file names, the `dataset` column
    images: object  # ImageSet
    group: str = ""  # near, far, or nothing
    label: str = ""  # as the paper prints it


@dataclass
class Result:
    rows: list[dict]  # one per detector and OOD set, the columns of metrics.csv
    scores: dict[str, dict[str, np.ndarray]]  # {data set: {detector: (N,)}}, the ID set first
    accuracies: dict[
        str, float
    ]  # on the ID test set: of the classifier, of each method that classifies
    digests: dict[str, str]  # of the network and of each data set
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict] = field(
        default_factory=dict
    )  # {label: {"fit_seconds", "ms_per_image" beyond the shared pass, "mib" fitted, "in_pass"}};
    #                                                        of an "in_pass" detector with its part of the pass, None where a cache held it
    diagnosis: Diagnosis | None = None  # of the ID features
    advice: list[str] = field(default_factory=list)  # where a detector's assumption does not hold


def evaluate(
    network: nn.Module | None,
    train,
    test,
    ood: list[TestSet],
    detectors: dict[str, Detector],
    preprocess,
    *,
    methods: dict | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: str = "fp32",
    cache: Cache | None = None,
    progress: Callable[..., Iterable] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Result:
    """Fit the detectors on the ID training images and score the ID test images against every OOD set.

    Args:
        network: the classifier; None when there are only methods.
        train: ImageSet of ID training images; None when no detector has to be fitted.
        test: ImageSet of ID test images.
        detectors: {label: detector}; the label becomes the `detector` column.
        methods: {label: trained method}, anything with score(images) -> (N,): scored beside the detectors, in passes of their own.
        cache: of forward passes; a second run with other detectors forwards nothing.

    Of several processes each forwards its share of every set; rank 0 alone fits and scores detectors and has a complete Result.
    Raises: InputError for a detector that cannot work with this network, before the first pass.
    """
    for detector in detectors.values():
        detector.check(network)
    started, seconds, methods = time.perf_counter(), {}, methods or {}
    digests = {"network": network_digest(network)} if detectors else {}
    image_detectors = [d for d in detectors.values() if isinstance(d, ImageDetector)]
    taps = any("taps" in d.needs for d in detectors.values())

    @contextmanager
    def timed(stage: str):
        begun = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - begun

    def outputs_of(images, name: str, perturbing=()) -> Outputs:
        with timed(f"pass over {name}"):
            outputs = extract(
                network,
                images,
                preprocess,
                device=device,
                batch_size=batch_size,
                precision=precision,
                taps=taps,
                digest=digests["network"],
                image_detectors=perturbing,
                cache=cache,
                progress=progress
                and (lambda batches, **k: progress(batches, name, unit="images", **k)),
            )
        took = seconds[f"pass over {name}"]
        log(
            f"{name}: {len(images)} images in {took:.1f} s ({len(images) / max(took, 1e-9):.0f} images/s)"
        )
        return outputs

    spent: dict[str, dict[str, float | None]] = {
        label: {"fit": 0.0, "score": 0.0} for label in (*detectors, *methods)
    }

    @contextmanager
    def charged(label: str, what: str):
        begun = time.perf_counter()
        yield
        charge(label, what, time.perf_counter() - begun)

    def charge(label: str, what: str, took: float | None) -> None:
        so_far = spent[label][what]
        spent[label][what] = None if so_far is None or took is None else so_far + took

    def scores_of(images, outputs: Outputs | None) -> dict[str, np.ndarray]:
        found = {}
        for label, detector in detectors.items() if distributed.first() else ():
            if isinstance(detector, ImageDetector):
                charge(label, "score", outputs.seconds.get(detector.key))
            with charged(label, "score"):
                found[label] = chunked_score(detector, outputs).numpy()
        for label, method in methods.items():
            with timed(f"{label} on {images.name}"), charged(label, "score"):
                found[label] = method.score(images).double().cpu().numpy()
        return found

    to_fit = any(d.requires_fit for d in detectors.values())
    if detectors:
        fitting = (
            outputs_of(
                train, f"{train.name} train", [d for d in image_detectors if d.measures_train]
            )
            if to_fit
            else no_images(network)
        )
        with timed("fit"):
            for label, detector in detectors.items():
                if getattr(detector, "measures_train", False):
                    charge(label, "fit", fitting.seconds.get(detector.key))
                if distributed.first() or isinstance(
                    detector, ImageDetector
                ):  # the latter score within every process's passes
                    with charged(label, "fit"):
                        detector.fit(fitting)
    known = outputs_of(test, test.name, image_detectors) if detectors else None
    scores = {test.name: scores_of(test, known)}
    prepared = {
        label: metrics.prepare(values, f"{label} on {test.name}")
        for label, values in scores[test.name].items()
    }
    rows = []
    for entry in ood:
        scores[entry.name] = scores_of(
            entry.images,
            outputs_of(entry.images, entry.name, image_detectors) if detectors else None,
        )
        rows += [
            {
                "detector": label,
                "dataset": entry.name,
                "group": entry.group,
                "n_id": len(test),
                "n_ood": len(entry.images),
                **metrics.evaluate(prepared[label], values)._asdict(),
            }
            for label, values in scores[entry.name].items()
        ]
    rows.sort(key=lambda row: list(prepared).index(row["detector"]))
    images = len(test) + sum(len(entry.images) for entry in ood)
    costs = {
        label: {
            "fit_seconds": used["fit"],
            "ms_per_image": None if used["score"] is None else 1000 * used["score"] / images,
            "in_pass": isinstance(detectors.get(label), ImageDetector),
            "mib": size(detectors[label]) / 2**20 if label in detectors else None,
        }
        for label, used in spent.items()
    }
    found = None
    if detectors and distributed.first():
        with timed("diagnosis"):
            found = diagnose(fitting if to_fit else known)

    seconds["total"] = time.perf_counter() - started
    digests |= {images.name: images.digest for images in (test, *(e.images for e in ood))}
    if to_fit:
        digests[f"{train.name} train"] = train.digest
    accuracies = {"classifier": accuracy(known)} if detectors else {}
    accuracies |= {label: method.accuracy(test) for label, method in methods.items()}
    return Result(
        rows,
        scores,
        {k: v for k, v in accuracies.items() if v is not None},
        digests,
        seconds,
        costs,
        found,
        advice(found, detectors) if found else [],
    )


def accuracy(outputs: Outputs) -> float | None:
    """Share of labelled images whose largest logit is their label; None when there is none."""
    labelled = outputs.labels >= 0
    if not labelled.any():
        return None
    return (outputs.logits.argmax(1) == outputs.labels)[labelled].double().mean().item()


def no_images(network: nn.Module) -> Outputs:
    """Outputs of zero images: detectors that need no training set still look at the head."""
    weight, bias = network.fc.weight.detach().float().cpu(), network.fc.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float().cpu()
    return Outputs(
        weight.new_zeros(0, weight.shape[1]),
        weight.new_zeros(0, len(weight)),
        torch.zeros(0, dtype=torch.long),
        Head(weight, bias),
    )
