"""What the features of a network look like, and which detectors' assumptions they break.

found = diagnose(train_outputs)             # numbers, from a sample of the rows: share of negative values, norms, rank, collapse
advice(found, {"ash": detector, ...})       # sentences, each naming the detectors it is about and what to use instead
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ood.data.images import spread
from ood.detectors import Detector
from ood.outputs import Outputs

SAMPLE = 5000  # rows that are looked at: the shares below do not need more
NEGATIVE = 0.01  # share of negative values above which features do not count as rectified
NORM_SPREAD = 0.3  # standard deviation / mean of the norms above which they count as uneven
COLLAPSED = 0.05  # within / between class variance below which the classes have collapsed to points
DEAD = 0.02  # share of constant dimensions that is worth a sentence

RECTIFIED = ("ash", "scale", "adascale_a", "adascale_l")
GAUSSIAN = ("mds", "rmds", "mdspp", "rmdspp", "mds_odin", "mds_ensemble", "combood", "ssd")
NORM_SENSITIVE = {"mds": "mdspp", "rmds": "rmdspp"}


@dataclass(frozen=True)
class Diagnosis:
    """Of (N, D) features of C classes; shares are fractions.

    negative, zero       share of values below zero, and exactly zero
    dead                 share of dimensions that never change
    norm, norm_spread    mean length of a feature vector, and standard deviation / mean of the lengths
    rank                 dimensions with variance above 1e-10 of the largest eigenvalue
    participation        (sum l)^2 / sum l^2 of the covariance's eigenvalues l: how many directions carry the variance, 1..D
    collapse             within-class / between-class variance (traces); towards 0 the classes collapse to points; nan without labels
    smallest_class       images of the rarest class that occurs, in the whole set; 0 without labels
    missing              classes of the head without any image; agreement: share of images whose largest logit is their label (nan)
    """

    images: int
    dimensions: int
    classes: int
    negative: float
    zero: float
    dead: float
    norm: float
    norm_spread: float
    rank: int
    participation: float
    collapse: float
    smallest_class: int
    missing: int
    agreement: float

    def text(self) -> str:
        """One line for a log or report."""
        parts = [
            f"{self.images:,} images, {self.dimensions} features",
            f"{100 * self.negative:.1f} % negative",
            f"{100 * self.zero:.1f} % zero",
            f"norm {self.norm:.3g} (spread {100 * self.norm_spread:.0f} %)",
            f"rank {self.rank}",
            f"variance in about {self.participation:.1f} directions",
        ]
        parts += [f"{100 * self.dead:.1f} % of the dimensions dead"] if self.dead else []
        parts += (
            [f"within / between class variance {self.collapse:.3g}"]
            if self.collapse == self.collapse
            else []
        )
        return ", ".join(parts)


def diagnose(outputs: Outputs) -> Diagnosis:
    """Look at ID outputs, best those that detectors are fitted to; at most SAMPLE rows, evenly spread, in float64."""
    rows = spread(len(outputs), SAMPLE)
    part = outputs[torch.as_tensor(rows) if not isinstance(rows, slice) else rows]
    features, labels = part.features.double(), part.labels
    n, dimensions = features.shape
    norms = features.norm(dim=1)
    centred = features - features.mean(0)
    values = (
        torch.linalg.svdvals(centred).square() / n
        if n < dimensions
        else torch.linalg.eigvalsh(centred.T @ centred / n)
    )
    values, total = values.clamp(min=0), float(centred.square().sum() / n)
    known = labels >= 0
    present = outputs.labels[outputs.labels >= 0].bincount(minlength=part.logits.shape[1])
    collapse = agreement = float("nan")
    if known.any():
        counts = labels[known].bincount(minlength=len(present)).double()
        means = (
            torch.zeros(len(present), dimensions, dtype=torch.float64).index_add_(
                0, labels[known], centred[known]
            )
            / counts.clamp(min=1)[:, None]
        )
        between = float((counts[:, None] * means.square()).sum() / known.sum())
        within = float((centred[known] - means[labels[known]]).square().sum() / known.sum())
        collapse = within / between if between > 0 and (counts > 0).sum() > 1 else float("nan")
        agreement = float((part.logits.argmax(1) == labels)[known].double().mean())
    return Diagnosis(
        len(outputs),
        dimensions,
        part.logits.shape[1],
        float((features < 0).double().mean()),
        float((features == 0).double().mean()),
        float(
            (centred.abs().amax(0) <= 1e-12 * features.abs().amax().clamp(min=1e-300))
            .double()
            .mean()
        ),
        float(norms.mean()),
        float(norms.std(correction=0) / norms.mean().clamp(min=1e-300)),
        int((values > 1e-10 * values.max()).sum()) if total else 0,
        total**2 / float(values.square().sum()) if total else 0.0,
        collapse,
        int(present[present > 0].min()) if known.any() else 0,
        int((present[: part.logits.shape[1]] == 0).sum()) if known.any() else 0,
        agreement,
    )


def advice(found: Diagnosis, detectors: dict[str, Detector]) -> list[str]:
    """Sentences about assumptions that do not hold, in the order of their weight. Args: detectors: {label: detector} that are to be used."""

    def those(*names: str) -> list[str]:
        return [label for label, detector in detectors.items() if detector.name in names]

    said = []

    def say(labels: list[str], text: str) -> None:
        if labels:
            said.append(f"{', '.join(labels)}: {text}")

    n, d = found.images, found.dimensions
    if found.negative > NEGATIVE:
        say(
            those(*RECTIFIED),
            f"made for rectified features, but {100 * found.negative:.0f} % of the values are negative: the sums that set the scale mean "
            "little (on such networks they fall below chance); fdbd, mdspp or gen do not assume it",
        )
        say(
            those("dice", "dice_react"),
            f"{100 * found.negative:.0f} % of the values are negative, so contributions cancel and cutting the small ones does not "
            "remove noise (DICE fails on transformers); compare with energy",
        )
        say(
            those("react", "vra", "optfs"),
            f"clips or bins large activations, but {100 * found.negative:.0f} % of the values are negative: only one tail is cut",
        )
    if n < d:
        say(
            those(*GAUSSIAN),
            f"{n:,} images for a covariance of {d} dimensions: it is singular, directions without variance are left out; use more images",
        )
    elif n < 10 * d:
        say(
            those(*GAUSSIAN),
            f"{n:,} images for a covariance of {d} dimensions (fewer than 10 per dimension): its small eigenvalues are guesses",
        )
    if found.smallest_class and found.smallest_class <= d:
        say(
            those("gmm"),
            f"the smallest class has {found.smallest_class} images for a covariance of {d} dimensions of its own: only the ridge `reg` makes it "
            "invertible; mds shares one covariance",
        )
    if found.norm_spread > NORM_SPREAD:
        for name, better in NORM_SENSITIVE.items():
            say(
                those(name),
                f"the lengths of the features vary by {100 * found.norm_spread:.0f} %, which no Gaussian per class describes; {better} normalises them",
            )
    if found.norm_spread < 0.01:
        say(
            those("ash", "scale", "lts"),
            "all features have one length (normalised?), so a scale from their sum says little",
        )
    if found.collapse < COLLAPSED:
        say(
            those(*GAUSSIAN, "gmm"),
            f"the classes have collapsed to points (within / between class variance {found.collapse:.2g}): distances within classes are noise; "
            "vim, neco or knn look at other directions",
        )
    for label in those("vim", "residual", "neco", "kpca"):
        dim = getattr(detectors[label], "dim", None)
        if dim is not None and dim >= found.rank and detectors[label].name in ("vim", "residual"):
            say(
                [label],
                f"dim={dim} keeps every direction in which the features vary (rank {found.rank}), so nothing is left as residual; choose a smaller one",
            )
        elif found.rank < 2:
            say(
                [label],
                f"the features vary in {found.rank} direction(s) only: there is no subspace to leave",
            )
    for label in those("knn", "nnguide", "combood"):
        k = detectors[label].k
        if k >= n * getattr(detectors[label], "fraction", 1.0):
            say(
                [label],
                f"k={k} neighbours of {n:,} training images are all of them; choose a smaller k",
            )
    for label in those("openmax"):
        if 0 < found.smallest_class < detectors[label].tail:
            say(
                [label],
                f"the smallest class has {found.smallest_class} images, fewer than tail={detectors[label].tail}: its Weibull is fitted to all of them",
            )
    for label in those("cadref", "nnguide", "neco"):
        share = getattr(detectors[label], "not_positive", 0.0)
        if share > 0:
            say(
                [label],
                f"its formula takes a positive logit score for granted, but that of {100 * share:.2g} % of the training images is not (adding a constant to all "
                "logits changes that, and no softmax): there it ranks the other way round; caref, knn, or neco without max_logit do not assume it",
            )
    if found.missing:
        say(
            those("she", "klm", "openmax", "caref", "cadref", "mds", "gmm"),
            f"{found.missing} of {found.classes} classes have no training image",
        )
    if found.dead > DEAD:
        say(
            those(*GAUSSIAN, "gmm"),
            f"{100 * found.dead:.0f} % of the dimensions never change; a covariance leaves them out, an outlier may excite them "
            "(residual and vim see that)",
        )
    if found.agreement < 0.5:
        say(
            ["all detectors"],
            f"only {100 * found.agreement:.0f} % of the training images are classified correctly; are these the right weights, "
            "the right normalisation and the right order of the classes?",
        )
    return said


def as_dict(found: Diagnosis) -> dict:
    """Plain values, for metrics.json."""
    return dataclasses.asdict(found)
