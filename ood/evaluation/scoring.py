"""Score every detector on every set of a benchmark, with one forward pass per set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ood import distributed
from ood.compat.readings import Together
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import chunked_score, size
from ood.evaluation import report
from ood.evaluation.diagnosis import Diagnosis, advice, diagnose
from ood.evaluation.passes import Passes
from ood.outputs import Outputs


@dataclass
class TestSet:
    """One OOD test set, as a benchmark names it.

    Attributes:
        name: of the data set, used in file names and in the column `dataset`.
        images: an ImageSet.
        group: "near", "far" or "".
        label: as the paper prints it.
    """

    name: str
    images: object
    group: str = ""
    label: str = ""


@dataclass
class Result:
    """What an evaluation found.

    Attributes:
        rows: one per detector and OOD set, with the columns of metrics.csv.
        scores: {data set: {detector: (N,)}}, the ID set first.
        accuracies: on the ID test set, as fractions: of the classifier ("classifier") and of each
            method that classifies.
        digests: {"network" or data set: hex digest}.
        seconds: {stage: seconds}.
        costs: {label: {"fit_seconds", "ms_per_image", "mib", "in_pass"}}. Milliseconds are those
            beyond the shared pass; "mib" is the size of the fitted state. A detector that works
            inside the pass ("in_pass") is charged with its part of it; None where a cache held
            its scores, so that nothing was measured.
        diagnosis: of the ID features.
        advice: sentences about detectors whose assumptions do not hold.
    """

    rows: list[dict]
    scores: dict[str, dict[str, np.ndarray]]
    accuracies: dict[str, float]
    digests: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    advice: list[str] = field(default_factory=list)


def evaluate(
    passes: Passes,
    train,
    test,
    ood: list[TestSet],
    detectors: dict[str, Detector | object] | Sequence[Detector | object],
    *,
    methods: dict | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Result:
    """Fit the detectors on ID training images and score the ID test images against every OOD set.

    Of several processes, each one forwards its share of every set. Only the first one fits and
    scores detectors, and only it gets a complete Result.

    Args:
        passes: how images become outputs.
        train: ImageSet of ID training images; None when no detector has to be fitted.
        test: ImageSet of ID test images.
        ood: the OOD sets.
        detectors: {label: detector}, or a list; the label becomes the column `detector`. Beside
            ours, it may be one of `ood.compat.detector` or an object of yours, see
            `ood.compat.readings`. What reads the logits or features of this network gets them from
            the pass. All others see the normalised images, in one more pass together.
        methods: {label: trained method}, anything with score(images) -> (N,). They are scored
            beside the detectors, in passes of their own. What extra_metrics(ID, OOD images) gives,
            where a method has it, joins the row.
        log: takes one line per pass.

    Raises: InputError for a detector that cannot work with this network, before the first pass.
    """
    methods, detectors = methods or {}, _labelled(detectors)
    ours = {label: d for label, d in detectors.items() if isinstance(d, Detector)}
    for detector in ours.values():
        detector.check(passes.network)
    work = _Work(passes, detectors, methods, log)

    # One pass per set, then arrays only.
    fitted_to = work.fit(train) if detectors else None
    known, scores = work.score(test, test.name)
    scores = {test.name: scores}
    for entry in ood:
        scores[entry.name] = work.score(entry.images, entry.name)[1]

    rows = report.result_rows(scores, test.name, {entry.name: entry.group for entry in ood})
    sets = {entry.name: entry.images for entry in ood}
    for row in rows:
        method = methods.get(row["detector"])
        if hasattr(method, "extra_metrics"):
            extra = method.extra_metrics(test, sets[row["dataset"]])
            row |= {name: value for name, value in extra.items() if name not in row}
    costs = work.costs(len(test) + sum(len(entry.images) for entry in ood))
    found = None
    if detectors and distributed.first():
        with work.timed("diagnosis"):
            found = diagnose(fitted_to) if work.fits else diagnose(known, "test")
    work.seconds["total"] = time.perf_counter() - work.began

    accuracies = {"classifier": accuracy(known)} if detectors else {}
    accuracies |= {label: method.accuracy(test) for label, method in methods.items()}
    digests = {"network": passes.digest} if detectors else {}
    digests |= {images.name: images.digest for images in (test, *(entry.images for entry in ood))}
    digests |= {f"{train.name} train": train.digest} if work.fits else {}
    return Result(
        rows,
        scores,
        {label: share for label, share in accuracies.items() if share is not None},
        digests,
        work.seconds,
        costs,
        found,
        advice(found, ours) if found else [],
    )


def accuracy(outputs: Outputs) -> float | None:
    """Share of labelled images whose largest logit is their label.

    None when no image has a label, or when the network has no classes.
    """
    labelled = outputs.labels >= 0
    if not labelled.any() or not outputs.logits.shape[1]:
        return None
    return (outputs.logits.argmax(1) == outputs.labels)[labelled].double().mean().item()


def _labelled(detectors: dict | Sequence) -> dict[str, object]:
    """Give detectors of a list their short name or class as label, numbered where it repeats."""
    if isinstance(detectors, dict):
        return detectors
    found: dict[str, object] = {}
    for one in detectors:
        word = one.name if isinstance(one, Detector) else type(one).__name__
        labels = (word, *(f"{word}-{n}" for n in range(2, len(detectors) + 2)))
        found[next(label for label in labels if label not in found)] = one
    return found


class _Work:
    """An evaluation under way: it fits, scores, and keeps account of the time."""

    def __init__(self, passes: Passes, detectors: dict, methods: dict, log):
        self.passes, self.methods, self.log = passes, methods, log
        self.detectors = {label: d for label, d in detectors.items() if isinstance(d, Detector)}
        self.others = _Others(
            passes, {label: d for label, d in detectors.items() if label not in self.detectors}
        )
        self.labels = list(detectors)
        self.in_pass = [d for d in self.detectors.values() if isinstance(d, ImageDetector)]
        self.taps = any("taps" in d.needs for d in self.detectors.values())
        self.fits = any(d.requires_fit for d in self.detectors.values()) or self.others.learn
        self.began, self.seconds = time.perf_counter(), {}
        self.spent: dict[str, dict[str, float | None]] = {
            label: {"fit": 0.0, "score": 0.0} for label in (*detectors, *methods)
        }

    def fit(self, train) -> Outputs:
        """Fit every detector; return the outputs that they were fitted to."""
        if self.fits:
            beside = [d for d in self.in_pass if d.measures_train]
            outputs = self._outputs(train, f"{train.name} train", beside)
        else:
            outputs = self.passes.no_outputs()  # some detectors look at the head, or read a file
        with self.timed("fit"):
            for label, detector in self.detectors.items():
                if getattr(detector, "measures_train", False):
                    self._charge(label, "fit", outputs.seconds.get(detector.key))
                # Detectors on images score inside the passes of every process.
                if distributed.first() or isinstance(detector, ImageDetector):
                    with self._charged(label, "fit"):
                        detector.fit(outputs)
            if self.others.learn and distributed.first():
                self.others.fit(outputs, train)
        return outputs

    def score(self, images, name: str) -> tuple[Outputs | None, dict[str, np.ndarray]]:
        """The outputs of a set (None without detectors), and its scores {label: (N,)}."""
        outputs = self._outputs(images, name, self.in_pass) if self.labels else None
        scores = {}
        for label, detector in self.detectors.items() if distributed.first() else ():
            if isinstance(detector, ImageDetector):
                self._charge(label, "score", outputs.seconds.get(detector.key))
            with self._charged(label, "score"):
                scores[label] = chunked_score(detector, outputs).numpy()
        if self.others and distributed.first():
            scores |= self.others.scores(outputs, images)
            scores = {label: scores[label] for label in self.labels}
        for label, method in self.methods.items():
            with self.timed(f"{label} on {images.name}"), self._charged(label, "score"):
                scores[label] = method.score(images).double().cpu().numpy()
        return outputs, scores

    def costs(self, images: int) -> dict[str, dict]:
        """What every detector and method took; `images`: the number that was scored."""
        found = {}
        for label, one in self.others.readings.items():
            self.spent[label] = {"fit": one.fit_seconds, "score": one.seconds}
        for label, used in self.spent.items():
            detector, scoring = self.detectors.get(label), used["score"]
            found[label] = {
                "fit_seconds": used["fit"],
                "ms_per_image": None if scoring is None else 1000 * scoring / images,
                "in_pass": isinstance(detector, ImageDetector),
                "mib": None if detector is None else size(detector) / 2**20,
            }
        return found

    @contextmanager
    def timed(self, stage: str):
        """Keep the seconds that the block takes under the name `stage`."""
        begun = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - begun

    def _outputs(self, images, name: str, beside) -> Outputs:
        stage = f"pass over {name}"
        with self.timed(stage):
            outputs = self.passes.outputs(images, beside, self.taps, name)
        took = self.seconds[stage]
        speed = len(images) / max(took, 1e-9)
        self.log(f"{name}: {len(images)} images in {took:.1f} s ({speed:.0f} images/s)")
        return outputs

    @contextmanager
    def _charged(self, label: str, what: str):
        begun = time.perf_counter()
        yield
        self._charge(label, what, time.perf_counter() - begun)

    def _charge(self, label: str, what: str, took: float | None) -> None:
        """Add `took` seconds; None, once there, stays: a part of the time is unknown."""
        so_far = self.spent[label][what]
        self.spent[label][what] = None if so_far is None or took is None else so_far + took


class _Others:
    """Detectors that are none of ours, by label: of `ood.compat.detector`, or a user's objects."""

    def __init__(self, passes: Passes, detectors: dict[str, object]):
        self.passes, self.readings = passes, {}
        if detectors:
            network, device = passes.network, passes.device
            self.together = Together(list(detectors.values()), network=network, device=device)
            self.readings = dict(zip(detectors, self.together.readings))

    def __bool__(self) -> bool:
        return bool(self.readings)

    @property
    def learn(self) -> bool:
        return any(one.learns for one in self.readings.values())

    def fit(self, outputs: Outputs, images) -> None:
        self.together.fit(_Pairs(self.passes, images), self._have(outputs), outputs.labels)

    def scores(self, outputs: Outputs, images) -> dict[str, np.ndarray]:
        """Scores {label: (N,)} of a set whose outputs are there."""
        have = self._have(outputs)
        if self.together.needs_pass(have):
            passed = self.together.run(_Pairs(self.passes, images), have)
        else:
            passed = self.together.passed(have, outputs.labels)
        found = self.together.scores(passed)
        return {label: scores.double().numpy() for label, scores in zip(self.readings, found)}

    def _have(self, outputs: Outputs) -> dict[Callable, Tensor]:
        """What the pass has given already: logits and features of the network."""
        network = self.passes.network
        given = {network: outputs.logits, network.features: outputs.features}
        return {f: values for f, values in given.items() if f in self.together.functions}


class _Pairs:
    """Normalised images and their labels, batch by batch, from the beginning every time."""

    def __init__(self, passes: Passes, images):
        self.passes, self.images = passes, images

    def __iter__(self):
        start, labels = 0, torch.as_tensor(self.images.labels)
        for batch in self.images.batches(self.passes.batch_size):
            x = self.passes.preprocess(batch.to(self.passes.device))
            yield x, labels[start : start + len(x)]
            start += len(x)
