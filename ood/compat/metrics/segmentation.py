"""Metrics of pixels: of all pixels at once, or of each image and then averaged."""

from __future__ import annotations

import warnings

from torch import Tensor

from ood.compat.metrics.base import Metric, MetricCollection, StreamingMetric, leave_entries_to
from ood.compat.metrics.ood import of_scores
from ood.config import InputError

__all__ = ["OODPerImageSegmentationMetrics", "OODSegmentationMetrics", "PerImage"]


class OODSegmentationMetrics(MetricCollection):
    """The metrics of OODMetrics, without ACC. All pixels count alike, whatever their image."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(of_scores(fpr_at), device=device, void_label=void_label)

    def update(self, scores: Tensor, labels: Tensor) -> OODSegmentationMetrics:
        return super().update(scores=scores, labels=labels)


class PerImage(StreamingMetric):
    """A metric of the pixels of each image, averaged over images, which are the first axis.

    Images where the metric has no value are skipped, with a warning. They have no ID pixels, no
    OOD pixels, or void pixels only.

    Attributes: skipped: how many images were skipped so far.
    Raises: InputError for a metric that takes no labels, is per image itself, or has a device or a
        void_label of its own.
    """

    single = False

    def __init__(self, metric: Metric, *, device=None, void_label: int | None = None):
        if isinstance(metric, PerImage) or "labels" not in metric.inputs:
            raise InputError(f"PerImage takes a metric of pixels with labels, not {metric._name}")
        leave_entries_to("PerImage", metric)
        super().__init__(device=device, void_label=void_label)
        self.metric, self.inputs, self.optional = metric, metric.inputs, metric.optional
        self._reset()

    @property
    def keys(self) -> tuple[str, ...]:
        return self.metric.keys

    def _reset(self) -> None:
        self.found: list[dict[str, float]] = []  # results of the images that count
        self.skipped = 0

    def update(self, *args: Tensor, **kwargs: Tensor) -> PerImage:
        batch = self._match(*args, **kwargs)
        if not batch["labels"].dim():
            raise InputError(f"{self._name}.update: there is no axis of images")
        for row in range(len(batch["labels"])):
            image = self._entries({name: value[row] for name, value in batch.items()})
            if self._has_value(image["labels"]):
                self.found.append(self.metric.reset().update(**image).compute())
            else:
                self.skipped += 1
        return self

    def _has_value(self, labels: Tensor) -> bool:
        """Whether the metric has a value for an image with these labels (N,)."""
        ood = int((labels < 0).sum())
        enough_ood = ood > 0 or not self.metric.needs_ood
        enough_id = ood < len(labels) or not self.metric.needs_id
        return len(labels) > 0 and enough_ood and enough_id

    def _compute(self) -> dict:
        if not self.found:
            raise InputError(
                f"{self._name}: no image has both ID and OOD pixels; {self.skipped} were skipped"
            )
        if self.skipped:
            warnings.warn(
                f"{self._name}: {self.skipped} of {self.skipped + len(self.found)} images have "
                "pixels of one kind only and do not count",
                stacklevel=3,
            )
        names = self.found[0]
        return {name: sum(f[name] for f in self.found) / len(self.found) for name in names}


class OODPerImageSegmentationMetrics(PerImage):
    """OODSegmentationMetrics of every image, averaged over the images."""

    def __init__(self, *, fpr_at: float = 0.95, device=None, void_label: int | None = None):
        super().__init__(MetricCollection(of_scores(fpr_at)), device=device, void_label=void_label)

    def update(self, scores: Tensor, labels: Tensor) -> OODPerImageSegmentationMetrics:
        return super().update(scores, labels)
