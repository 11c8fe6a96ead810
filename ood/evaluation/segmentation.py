"""OOD detection for every pixel: a segmentation network, images with masks, detectors on logits.

    detectors = usable({"msp": create("msp"), "energy": create("energy")})
    result = evaluate(network, load_masked("lostandfound"), detectors, preprocess=preprocess)
    result.rows        # metrics over all pixels together, and averaged over the images
    result.bounds      # where the exact metrics lie, if the pixels were too many to keep

One image is in memory at a time, and the pixels' scores are bounded, see `ood.evaluation.pixels`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ood import metrics
from ood.config import InputError
from ood.data import IGNORED, MaskedImages, Preprocess
from ood.detectors import Detector, create, names
from ood.evaluation.pixels import BINS, EXACT, PixelScores
from ood.evaluation.report import result_row
from ood.metrics import Metrics
from ood.outputs import Outputs

PIXELS, IMAGES = "pixels", "images"  # groups of the rows: all pixels together, mean over images
FIT_PIXELS = 200_000  # of the training set, for detectors that are fitted


@dataclasses.dataclass
class Shown:
    """An image for a figure: pixels (3, H, W) uint8, mask, predicted classes and scores (H, W)."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    scores: dict[str, np.ndarray]


@dataclasses.dataclass
class Result:
    """What `evaluate` found on one set.

    Attributes:
        dataset: name of the set.
        rows: two for each detector, as `report.result_row` makes them: all pixels together (group
            "pixels"), and the mean over the images that have ID and OOD pixels (group "images").
        bounds: {detector: (low, high)}, Metrics between which the exact ones of all pixels lie.
        exact: whether no pixel was counted in a bin.
        images: a dict per image: name, numbers of pixels, and for each detector auroc, aupr_out,
            fpr95 and fpr95_ood_positive, where it has both kinds of pixels.
        skipped: images without ID or without OOD pixels, which the mean leaves out.
        pixels: numbers of "id", "ood" and "ignored" pixels.
        accuracy, mean_iou: of the predicted classes on ID pixels; None for masks without classes.
        shown: images for a figure.
        seconds: {"network": s, "detectors": s, "metrics": s}.
    """

    dataset: str
    rows: list[dict]
    bounds: dict[str, tuple[Metrics, Metrics]]
    exact: bool
    images: list[dict]
    skipped: int
    pixels: dict[str, int]
    accuracy: float | None
    mean_iou: float | None
    shown: list[Shown]
    seconds: dict[str, float]


def usable_names() -> list[str]:
    """List the detectors that need nothing but logits, so that they work on maps of logits."""
    return [name for name in names() if type(create(name)).needs <= {"logits"}]


def usable(detectors: dict[str, Detector]) -> dict[str, Detector]:
    """Return the detectors. Raises InputError for one that needs more than the logits."""
    for label, detector in detectors.items():
        if not detector.needs <= {"logits"}:
            more = ", ".join(sorted(detector.needs - {"logits"}))
            raise InputError(
                f"detector '{label}' needs {more}, not only the logits of a pixel; "
                f"for maps of logits there are {', '.join(usable_names())}"
            )
    return detectors


class Maps:
    """Logits of a segmentation network, image by image.

    Args:
        network: (1, 3, H, W), normalised -> (1, C, H, W).
        size: (height, width) that images are resized to for the network. The logits are brought
            back to the size of the mask, bilinearly. None: images as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        device: torch.device | str = "cpu",
        size: tuple[int, int] | None = None,
    ):
        self.network, self.preprocess = network.to(device).eval(), preprocess
        self.device, self.size = torch.device(device), size

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Return the logits (C, H, W) of an image (3, H, W) uint8, at its size, on the device.

        Raises: InputError where the network gives another shape, or NaN.
        """
        pixels = self.preprocess(image[None].to(self.device))
        if self.size and tuple(pixels.shape[2:]) != tuple(self.size):
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        logits = self.network(pixels)
        if (
            not isinstance(logits, Tensor)
            or logits.dim() != 4
            or logits.shape[2:] != pixels.shape[2:]
        ):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the network gave {shape} for images {tuple(pixels.shape)}")
        if not torch.isfinite(logits).all():
            raise InputError("the network gave logits that are NaN or infinite")
        if logits.shape[2:] != image.shape[1:]:
            logits = functional.interpolate(logits, image.shape[1:], mode="bilinear")
        return logits[0].float()


def evaluate(
    maps: Maps,
    images: MaskedImages,
    detectors: dict[str, Detector],
    *,
    exact: int = EXACT,
    bins: int = BINS,
    shown: int = 4,
    progress: Callable[..., Iterable] | None = None,
) -> Result:
    """Score every pixel of a set with all detectors, one forward pass for each image.

    Args:
        maps: gives the logits.
        images: of each an image and a mask: OOD below 0, `IGNORED` is not counted.
        detectors: {label: detector}, fitted where they need to be; see `fit`.
        exact, bins: see `PixelScores`.
        shown: at most so many images are kept for a figure, evenly spread over those with OOD.

    Raises: InputError for a set without ID or OOD pixels, and for what `Maps` does not take.
    """
    totals = {label: PixelScores(exact, bins) for label in detectors}
    pixels, seconds = (
        {"id": 0, "ood": 0, "ignored": 0},
        dict.fromkeys(("network", "detectors", "metrics"), 0.0),
    )
    found, kept, skipped = [], [], 0
    counts = Confusion() if images.class_names else None
    rows = range(len(images))
    for row in progress(rows, images.name, unit="image") if progress else rows:
        image, mask = images[row]
        clock = _Clock(seconds, maps.device)
        logits = maps(image)
        clock.stop("network")
        counted = mask != IGNORED
        outlier = (mask[counted] < 0).numpy()
        n_ood, n_id = int(outlier.sum()), int((~outlier).sum())
        for what, number in (("id", n_id), ("ood", n_ood), ("ignored", int((~counted).sum()))):
            pixels[what] += number
        scores = {label: score(detector, logits) for label, detector in detectors.items()}
        clock.stop("detectors")
        about = {"image": images.paths[row], "n_id": n_id, "n_ood": n_ood}
        for label, whole in scores.items():
            of_pixels = whole[counted.numpy()]
            totals[label].update(of_pixels, outlier)
            if n_id and n_ood:
                about[label] = metrics.evaluate(of_pixels[~outlier], of_pixels[outlier])
        clock.stop("metrics")
        skipped += not (n_id and n_ood)
        found.append(about)
        predicted = logits.argmax(0).cpu()
        if counts:
            counts.add(predicted, mask)
        if n_ood and len(kept) < shown and row >= len(kept) * len(images) // shown:
            kept.append(
                Shown(about["image"], image.numpy(), mask.numpy(), predicted.numpy(), scores)
            )
    return Result(
        dataset=images.name,
        rows=_rows(images.name, totals, found),
        bounds={label: total.bounds() for label, total in totals.items()},
        exact=all(total.is_exact for total in totals.values()),
        images=found,
        skipped=skipped,
        pixels=pixels,
        accuracy=counts.accuracy if counts else None,
        mean_iou=counts.mean_iou if counts else None,
        shown=kept,
        seconds=seconds,
    )


def fit(
    maps: Maps,
    images: MaskedImages,
    detectors: dict[str, Detector],
    *,
    pixels: int = FIT_PIXELS,
    seed: int = 0,
    progress: Callable[..., Iterable] | None = None,
) -> None:
    """Fit the detectors that need it to pixels of a training set.

    Args:
        pixels: about how many ID pixels are drawn at random, equally many of each image.

    Raises: InputError for masks whose labels are not classes of the network.
    """
    needing = [detector for detector in detectors.values() if detector.requires_fit]
    if not needing:
        return
    chance, each = torch.Generator().manual_seed(seed), max(1, -(-pixels // max(1, len(images))))
    logits, labels = [], []
    rows = range(len(images))
    for row in progress(rows, f"{images.name}, to fit", unit="image") if progress else rows:
        image, mask = images[row]
        places = ((mask >= 0) & (mask != IGNORED)).flatten().nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=chance)[:each]]
        logits.append(maps(image).flatten(1)[:, places.to(maps.device)].T)
        labels.append(mask.flatten()[places])
    train = _outputs(torch.cat(logits), torch.cat(labels).to(maps.device))
    if not len(train) or train.labels.max() >= train.logits.shape[1]:
        raise InputError(
            f"the masks of '{images.name}' ({images.split}) do not hold classes of the network "
            f"(0 to {train.logits.shape[1] - 1}), which a detector is to be fitted to"
        )
    for detector in needing:
        detector.fit(train)


def score(detector: Detector, logits: Tensor) -> np.ndarray:
    """Score a map of logits (C, H, W) by a detector of logits: (H, W)."""
    rows = _outputs(logits.flatten(1).T)
    found = torch.cat([detector.score(part).cpu() for part in rows.chunks()])
    return found.view(logits.shape[1:]).numpy()


class Confusion:
    """Counts of true and predicted classes over ID pixels."""

    def __init__(self):
        self.table = np.zeros((0, 0), np.int64)  # (true, predicted)

    def add(self, predicted: Tensor, mask: Tensor) -> None:
        known = (mask >= 0) & (mask != IGNORED)
        true, predicted = mask[known].numpy(), predicted[known].numpy()
        if not len(true):
            return
        size = max(len(self.table), int(true.max()) + 1, int(predicted.max()) + 1)
        counts = np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
        counts[: len(self.table), : len(self.table)] += self.table
        self.table = counts

    @property
    def accuracy(self) -> float:
        """Share of pixels whose predicted class is the true one; nan for none."""
        return float(np.trace(self.table) / self.table.sum()) if self.table.size else float("nan")

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur of hits / (true or predicted); nan for none."""
        hits = np.diag(self.table)
        union = self.table.sum(0) + self.table.sum(1) - hits
        return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")


def _outputs(logits: Tensor, labels: Tensor | None = None) -> Outputs:
    """Make Outputs of logits (N, C) alone."""
    if labels is None:
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return Outputs(logits.new_zeros(len(logits), 0), logits, labels, None)


def _rows(dataset: str, totals: dict[str, PixelScores], images: list[dict]) -> list[dict]:
    rows = []
    for label, total in totals.items():
        try:
            whole = total.metrics()
        except InputError as error:
            raise InputError(f"'{dataset}': {error}") from None
        rows.append(result_row(label, dataset, whole, total.n_id, total.n_ood, PIXELS))
        counted = [image for image in images if label in image]
        if counted:
            mean = Metrics(*np.mean([image[label] for image in counted], axis=0).tolist())
            n_id, n_ood = (sum(image[n] for image in counted) for n in ("n_id", "n_ood"))
            more = {"n_images": len(counted)}
            rows.append(result_row(label, dataset, mean, n_id, n_ood, IMAGES, **more))
    return rows


class _Clock:
    """Add up seconds by name."""

    def __init__(self, seconds: dict[str, float], device: torch.device):
        self.seconds, self.device, self.before = seconds, device, time.perf_counter()

    def stop(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] += now - self.before
        self.before = now
