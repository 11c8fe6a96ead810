"""What the features of a network look like, and which detectors' assumptions they break.

found = diagnose(train_outputs)        # shares of negative values, norms, rank, collapse, ...
advice(found, {"ash": detector, ...})  # sentences: the detectors, what is wrong, what to do
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ood.data.images import spread
from ood.detectors import Detector
from ood.detectors.subspaces import default_dimension
from ood.outputs import Outputs
from ood.statistics import SIGNED

SAMPLE = 5000  # rows that are looked at: the shares below do not need more
NEGATIVE = SIGNED  # share of negative values above which features do not count as rectified
NORM_SPREAD = 0.3  # standard deviation / mean of the norms above which they count as uneven
ONE_NORM = 0.01  # the same, below which all features count as equally long
COLLAPSED = 0.05  # within / between class variance below which classes count as points
DEAD = 0.02  # share of constant dimensions that is worth a sentence
REMOVED = 0.5  # share of the ID energy above which ReAct's clip takes what tells classes apart
AGREEMENT = 0.5  # share of correctly classified images below which something is probably wrong

RECTIFIED = ("ash", "scale", "adascale_a", "adascale_l")
GAUSSIAN = ("mds", "rmds", "mdspp", "rmdspp", "mds_odin", "mds_ensemble", "combood", "ssd")
SUBSPACES = ("vim", "residual", "neco", "kpca")
PER_CLASS = ("she", "klm", "openmax", "caref", "cadref", "mds", "gmm")
NORM_SENSITIVE = {"mds": "mdspp", "rmds": "rmdspp"}


@dataclass(frozen=True)
class Diagnosis:
    """What (N, D) features of C classes look like; shares are fractions.

    Attributes:
        images, dimensions, classes: N, D, C.
        negative, zero: share of values below zero, and of values that are exactly zero.
        dead: share of dimensions that never change.
        norm: mean length of a feature vector.
        norm_spread: standard deviation of the lengths / their mean.
        rank: number of directions whose variance is above 1e-10 of the largest one.
        participation: (sum l)^2 / sum l^2 of the covariance's eigenvalues l, in 1..D. It says how
            many directions carry the variance.
        collapse: within-class / between-class variance (traces). Near 0 the classes are points.
            nan without labels.
        smallest_class: images of the rarest class that occurs, in the whole set; 0 without labels.
        missing: classes of the head that have no image.
        agreement: share of images whose largest logit is their label; nan without labels.
        of: what the images are, "training" or "test".
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
    of: str = "training"

    def text(self) -> str:
        """One line for a log or report."""
        parts = [
            f"{self.images:,} {self.of} images, {self.dimensions} features",
            f"{100 * self.negative:.1f} % negative",
            f"{100 * self.zero:.1f} % zero",
            f"norm {self.norm:.3g} (spread {100 * self.norm_spread:.0f} %)",
            f"rank {self.rank}",
            f"variance in about {self.participation:.1f} directions",
        ]
        if self.dead:
            parts.append(f"{100 * self.dead:.1f} % of the dimensions dead")
        if self.collapse == self.collapse:
            parts.append(f"within / between class variance {self.collapse:.3g}")
        return ", ".join(parts)


def diagnose(outputs: Outputs, of: str = "training") -> Diagnosis:
    """Look at ID outputs, if possible the ones that detectors are fitted to.

    At most SAMPLE rows are used, evenly spread, in float64.

    Args: of: what the images are, "training" or "test"; sentences about them say so.
    """
    rows = spread(len(outputs), SAMPLE)
    part = outputs[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
    features, classes = part.features.double(), part.logits.shape[1]
    n, dimensions = features.shape
    norms = features.norm(dim=1)
    centred = features - features.mean(0)
    if n < dimensions:
        variances = torch.linalg.svdvals(centred).square() / n
    else:
        variances = torch.linalg.eigvalsh(centred.T @ centred / n)
    variances, total = variances.clamp(min=0), float(centred.square().sum() / n)
    largest = features.abs().amax().clamp(min=1e-300)
    constant = centred.abs().amax(0) <= 1e-12 * largest
    present = outputs.labels[outputs.labels >= 0].bincount(minlength=classes)
    labelled = bool((part.labels >= 0).any())
    collapse, agreement = _of_classes(part, centred) if labelled else (float("nan"),) * 2
    return Diagnosis(
        len(outputs),
        dimensions,
        classes,
        float((features < 0).double().mean()),
        float((features == 0).double().mean()),
        float(constant.double().mean()),
        float(norms.mean()),
        float(norms.std(correction=0) / norms.mean().clamp(min=1e-300)),
        int((variances > 1e-10 * variances.max()).sum()) if total else 0,
        total**2 / float(variances.square().sum()) if total else 0.0,
        collapse,
        int(present[present > 0].min()) if labelled else 0,
        int((present[:classes] == 0).sum()) if labelled else 0,
        agreement,
        of,
    )


def _of_classes(part: Outputs, centred: Tensor) -> tuple[float, float]:
    """(within / between class variance, share of correctly classified images)."""
    known = part.labels >= 0
    labels, rows = part.labels[known], centred[known]
    classes = part.logits.shape[1]  # 0 of a feature extractor
    counts = labels.bincount(minlength=classes).double()
    means = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64)
    means = means.index_add_(0, labels, rows) / counts.clamp(min=1)[:, None]
    between = float((counts[:, None] * means.square()).sum() / len(rows))
    within = float((rows - means[labels]).square().sum() / len(rows))
    several = between > 0 and (counts > 0).sum() > 1
    right = (part.logits.argmax(1) == part.labels)[known] if classes else None
    agreement = float("nan") if right is None else float(right.double().mean())
    return within / between if several else float("nan"), agreement


def advice(found: Diagnosis, detectors: dict[str, Detector]) -> list[str]:
    """Sentences about assumptions that do not hold, in the order of their weight.

    Args: detectors: {label: detector} that are to be used; a sentence begins with the labels.
    """
    said: list[str] = []

    def say(names: tuple[str, ...], text: str) -> None:
        labels = [label for label, detector in detectors.items() if detector.name in names]
        if labels:
            said.append(f"{', '.join(labels)}: {text}")

    _about_signs(found, say)
    _about_counts(found, say)
    _about_geometry(found, say)
    for label, detector in detectors.items():
        said += [f"{label}: {text}" for text in _about_settings(found, detector)]
    if found.missing:
        say(PER_CLASS, f"{found.missing} of {found.classes} classes have no {found.of} image")
    if found.dead > DEAD:
        say(
            (*GAUSSIAN, "gmm"),
            f"{100 * found.dead:.0f} % of the dimensions never change. A covariance leaves them "
            "out, but an outlier may excite them; residual and vim see that",
        )
    if found.agreement < AGREEMENT:
        said.append(
            f"all detectors: only {100 * found.agreement:.0f} % of the {found.of} images are "
            "classified correctly; are these the right weights, the right normalisation and the "
            "right order of the classes?"
        )
    return said


def _about_signs(found: Diagnosis, say) -> None:
    if found.negative <= NEGATIVE:
        return
    share = f"{100 * found.negative:.0f} % of the values are negative"
    say(
        RECTIFIED,
        f"made for rectified features, but {share}, so the sums that set the scale mean little. On "
        "such networks these detectors fall below chance; fdbd, mdspp and gen do not assume it",
    )
    say(
        ("dice", "dice_react"),
        f"{share}, so contributions cancel and cutting the small ones does not remove noise "
        "(DICE fails on transformers); compare with energy",
    )
    say(
        ("react", "vra", "optfs"),
        f"clips or bins large activations, but {share}: only one tail is cut",
    )


def _about_counts(found: Diagnosis, say) -> None:
    n, d, smallest = found.images, found.dimensions, found.smallest_class
    if n < d:
        say(
            GAUSSIAN,
            f"{n:,} images for a covariance of {d} dimensions: it is singular, and directions "
            "without variance are left out; use more images",
        )
    elif n < 10 * d:
        say(
            GAUSSIAN,
            f"{n:,} images for a covariance of {d} dimensions (fewer than 10 per dimension): its "
            "small eigenvalues are guesses",
        )
    if 0 < smallest <= d:
        say(
            ("gmm",),
            f"the smallest class has {smallest} images for a covariance of {d} dimensions of its "
            "own: only the ridge `reg` makes it invertible; mds shares one covariance",
        )


def _about_geometry(found: Diagnosis, say) -> None:
    if found.norm_spread > NORM_SPREAD:
        for name, better in NORM_SENSITIVE.items():
            say(
                (name,),
                f"the lengths of the features vary by {100 * found.norm_spread:.0f} %, which no "
                f"Gaussian per class describes; {better} normalises them",
            )
    if found.norm_spread < ONE_NORM:
        say(
            ("ash", "scale", "lts"),
            "all features have one length (normalised?), so a scale from their sum says little",
        )
    if found.collapse < COLLAPSED:
        others = "vim, neco or knn look" if found.negative <= NEGATIVE else "vim or knn look"
        say(
            (*GAUSSIAN, "gmm"),
            f"the classes have collapsed to points (within / between class variance "
            f"{found.collapse:.2g}): distances within classes are noise; {others} at other "
            "directions",
        )


def _about_settings(found: Diagnosis, detector: Detector) -> list[str]:
    """Sentences about one detector's hyper-parameters, without its label."""
    n, name, said = found.images, detector.name, []
    dim = getattr(detector, "dim", None)
    if name in ("vim", "residual") and dim is not None and dim >= found.rank:
        said.append(
            f"dim={dim} keeps every direction in which the features vary (rank {found.rank}), so "
            "nothing is left as residual; choose a smaller one"
        )
    elif name in SUBSPACES and found.rank < 2:
        said.append(
            f"the features vary in {found.rank} direction(s) only: there is no subspace to leave"
        )
    elif name in ("vim", "residual", "neco") and dim is None:
        usual = default_dimension(name, found.dimensions)
        taken = getattr(detector, "dimension", usual)
        if taken < 0.9 * usual:
            said.append(
                f"{n:,} training images fill only {detector.rank} of {found.dimensions} "
                f"dimensions, so its subspace has {taken} of them instead of {usual}; fit it to "
                "more images"
            )
    if name == "neco" and detector.max_logit is False and found.negative > NEGATIVE:
        said.append(
            f"{100 * found.negative:.0f} % of the values are negative, and without the largest "
            "logit as a factor it falls below chance on such features; leave max_logit out"
        )
    removed = getattr(detector, "removed", 0.0)
    if name == "react" and removed > REMOVED:
        said.append(
            f"its clip at {detector.clip:.3g} takes {100 * removed:.0f} % of the energy of the "
            "training images, so it cuts off what tells the classes apart; take a higher "
            "percentile or a threshold"
        )
    if name in ("knn", "nnguide", "combood"):
        k = detector.k
        if k >= n * getattr(detector, "fraction", 1.0):
            said.append(
                f"k={k} neighbours of {n:,} training images are all of them; choose a smaller k"
            )
    if name == "openmax" and 0 < found.smallest_class < detector.tail:
        said.append(
            f"the smallest class has {found.smallest_class} images, fewer than "
            f"tail={detector.tail}: its Weibull is fitted to all of them"
        )
    share = getattr(detector, "not_positive", 0.0)
    if name in ("cadref", "nnguide", "neco") and share > 0:
        said.append(
            f"its formula needs a positive logit score, but that of {100 * share:.2g} % of the "
            "training images is not positive, and there it ranks the other way round. Adding a "
            "constant to all logits changes this score, but no softmax. caref, knn, and neco "
            "without max_logit do not need it"
        )
    return said
