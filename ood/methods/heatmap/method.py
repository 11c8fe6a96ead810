"""Heatmaps that turn an image into the nearest ID image: weak for ID, strong for OOD.

    h(x) = decoder(features(x), one-hot of the predicted class)  in (-1, 1), as large as the image
    ID:   h + x = x
    OOD:  h + x = p, the nearest ID training image of the same predicted class
    loss  = mean over images of  sum (1 + 5 |t|) (h + x - t)^2,   t = x or p, in [-1, 1]
    score = mean over pixels of  max over channels of |h|          larger = OOD

Source: Hornauer & Belagiannis, "Heatmap-based Out-of-Distribution Detection", WACV 2023,
arXiv 2211.08115. Their classifier is frozen. Here it therefore runs once, and the decoder trains on
cached features, classes and targets. Their released code pairs OOD images with other images'
targets, and scales one row in 200. Both are switches (`pairing`, `scaling`), off by default.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ood import distributed
from ood.config import InputError
from ood.data import ImageSet, Preprocess, auxiliary
from ood.methods.base import Method
from ood.methods.heatmap.classifier import COPY, id_training_images, load_classifier
from ood.methods.heatmap.formulas import score_of, weighted_errors
from ood.methods.heatmap.settings import HALF, Settings, stored_settings
from ood.methods.heatmap.targets import Scale
from ood.methods.heatmap.training import KIND, find, train_decoder
from ood.metrics_released import fpr95_released
from ood.outputs import Outputs, extract, network_digest, weights_digest
from ood.training import loop, runs
from ood.training.context import Context

RELEASED_FILE = "model.pt"  # the authors' weights, in one of their run folders


class Heatmap(Method):
    """The trained decoder with its classifier.

    Args:
        preprocess: the normalisation of the classifier's input.
        scale: of the features that the decoder sees.
    """

    name = "heatmap"
    Settings = Settings

    def __init__(
        self,
        classifier,
        decoder,
        preprocess: Preprocess,
        settings: Settings,
        context: Context,
        scale: Scale = Scale(),
    ):
        self.settings, self.context, self.scale = settings, context, scale
        self.device, self.preprocess = context.device, preprocess
        self.classifier = classifier.to(self.device).eval()
        self.decoder = decoder.to(self.device, memory_format=torch.channels_last).eval()
        halves = (HALF,) * len(preprocess.mean)
        self.to_map = Preprocess(halves, halves)  # pixels -> [-1, 1]
        self.digest = network_digest(self.classifier)  # part of the cache's key
        self.classifier_weights = weights_digest(self.classifier)  # which classifier it is
        self._outputs: dict[str, Outputs] = {}
        self._scores: dict[str, Tensor] = {}

    @classmethod
    def train(cls, settings: Settings, context: Context) -> runs.Run:
        return train_decoder(cls, settings, context)

    # -- scores

    def score(self, images: ImageSet) -> Tensor:
        """Return the scores (N,), larger for OOD.

        With fw_layers 1 they follow from the cached outputs: no further pass of the classifier.
        """
        if images.digest not in self._scores:
            outputs = self.outputs(images)
            rows = distributed.share_of_rows(len(images), self.settings.batch_size)
            maps = self.maps(images.subset(rows), outputs[rows], rows.start)
            parts = [score_of(batch).cpu() for batch in maps]
            scores = distributed.gather_rows(torch.cat(parts) if parts else None)
            self._scores[images.digest] = scores
        return self._scores[images.digest]

    def maps(
        self, images: ImageSet, outputs: Outputs | None = None, first_row: int = 0
    ) -> Iterator[Tensor]:
        """Yield the maps (B, C, H, W), batch by batch.

        Args:
            outputs: of these images; None: compute them.
            first_row: row of the first image in the whole set, when `images` is a part of it.
        """
        outputs = outputs or self.outputs(images)
        size = self.settings.batch_size
        batches = images.batches(size) if self.settings.fw_layers > 1 else None
        for start in range(0, len(images), size):
            part = outputs[start : start + size]
            pixels = next(batches) if batches else None
            predicted = part.logits.argmax(1)
            yield self.maps_of(part.features, predicted, pixels, first_row + start)

    def maps_of(
        self, features: Tensor, predicted: Tensor, pixels: Tensor | None = None, first_row: int = 0
    ) -> Tensor:
        """Return the maps (B, C, H, W) of one batch.

        Args:
            features: (B, D); predicted: (B,) classes.
            pixels: (B, C, H, W); needed where fw_layers > 1.
            first_row: row of the first image in its set. The released scaling depends on it.
        """
        levels = [features.to(self.device)]
        with torch.no_grad(), loop.autocast(self.device, self.settings.precision):
            if self.settings.fw_layers > 1:
                stages = self.classifier.stages(self.input_of(pixels))
                levels += [stage.float() for stage in stages[::-1][: self.settings.fw_layers - 1]]
            levels = self.scale(levels, first_row)
            return self.decoder(levels[0], predicted.to(self.device), levels[1:]).float()

    def outputs(self, images: ImageSet) -> Outputs:
        """Return the classifier's features and logits. It sees every image once.

        They are kept in the context's cache, or in memory where there is none.
        """
        context = self.context
        if images.digest not in self._outputs:
            bar = context.progress and (
                lambda batches, **k: context.progress(batches, images.name, unit="images", **k)
            )
            self._outputs[images.digest] = extract(
                self.classifier,
                images,
                self.preprocess,
                device=self.device,
                batch_size=self.settings.batch_size,
                precision=self.settings.precision,
                cache=context.cache,
                digest=self.digest,
                progress=bar,
            )
        return self._outputs[images.digest]

    def accuracy(self, images: ImageSet) -> float | None:
        """Return the accuracy of the classifier, which the method does not change."""
        labels = torch.as_tensor(images.labels)
        if not (labels >= 0).any():
            return None
        return (self.outputs(images).logits.argmax(1) == labels)[labels >= 0].double().mean().item()

    def extra_metrics(self, id_images: ImageSet, ood_images: ImageSet) -> dict[str, float]:
        """Return fpr95_released, the authors' scan of 10,000 thresholds, for comparison only.

        0 may mean that the scan found no threshold.
        """
        return {"fpr95_released": fpr95_released(self.score(id_images), self.score(ood_images))}

    def figures(self, out_dir: str | Path, sets: list) -> list[tuple[Path, str]]:
        """Draw figures/heatmaps_<set>.png for every set and return [(path, caption)].

        Args:
            sets: ImageSets, or objects with an ImageSet in `images`; the ID set first.
        """
        from ood.methods.heatmap import figures

        sets = [images if isinstance(images, ImageSet) else images.images for images in sets]
        known = id_training_images(self.settings, self.context)
        return figures.draw(self, known, sets, Path(out_dir) / "figures")

    def input_of(self, pixels: Tensor) -> Tensor:
        """Return the classifier's input (B, C, H, W) for a batch of pixels."""
        return self.preprocess(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)

    def loss(self, batch) -> tuple[Tensor, dict]:
        """Return the mean weighted squared error of the batch, and the OOD images' part of it."""
        features, predicted, images, targets, maps = batch
        heatmaps = self.decoder(features, predicted, maps).float()
        errors = weighted_errors(heatmaps, self.to_map(images), self.to_map(targets))  # (B,)
        outlier = (images != targets).flatten(1).any(1)
        return errors.mean(), {"ood_part": (errors * outlier).mean().detach()}

    # -- loading

    @classmethod
    def load(
        cls, settings: Settings, context: Context, checkpoint: str | Path | None = None
    ) -> Heatmap:
        """Load the trained decoder from a run folder or a weight file (ours or the authors').

        Without `checkpoint`, take the newest finished run of exactly these settings, whatever its
        seed. Its auxiliary set may be another one, if no run used the one of these settings.

        Raises: InputError when there is none, or when decoder, classifier and settings disagree.
        """
        folder = Path(checkpoint) if checkpoint else find(settings, context)
        file = folder
        if folder.is_dir():
            files = [folder / name for name in ("best.pt", RELEASED_FILE)]
            file = next((path for path in files if path.is_file()), files[0])
        folder = file.parent
        settings = _adopt(settings, folder)
        weights = context.networks.checkpoints.read(file)
        released = weights.format != context.networks.checkpoints.OWN_FORMAT
        classifier, preprocess, source = load_classifier(settings, context, folder, released)
        decoder = context.networks.decoder_for(classifier, settings.fw_layers, **settings.decoder)
        context.networks.checkpoints.load_into(decoder, weights)
        scale = _stored_scale(weights.meta, settings, file)
        method = cls(classifier, decoder, preprocess, settings, context, scale)
        theirs = weights.meta.get("classifier_weights", method.classifier_weights)
        if theirs != method.classifier_weights:
            raise InputError(
                f"'{file}' was trained on another classifier than '{source}'; "
                f"keep its {COPY} beside it, or give that classifier"
            )
        done = weights.meta.get("epoch")
        context.log(
            f"decoder {file} | classifier {source} | pairing {settings.pairing} | epoch {done} | "
            f"auxiliary set {auxiliary.show(settings.ood_dataset)}"
        )
        if runs.Run(folder).config.get("finished") is False:
            context.log(
                f"warning: the run in '{folder}' has not finished "
                f"({done} of {settings.n_epochs} epochs)"
            )
        return method


def _adopt(settings: Settings, folder: Path) -> Settings:
    """Return the settings of the run in `folder`, checked against those asked for."""
    run = runs.Run(folder)
    if "kind" in run.config:
        KIND.own(run)
    stored = run.config or _released_config(folder)
    for key in ("id_dataset", "arch"):
        asked = getattr(settings, key)
        if stored.get(key, asked) != asked:
            raise InputError(
                f"'{folder}' was trained with {key} {stored[key]}, the config says {asked}; "
                "they must agree"
            )
    fw_layers = stored.get("fw_layers", settings.fw_layers)
    if settings.fw_layers not in (1, fw_layers):
        raise InputError(
            f"'{folder}' was trained with fw_layers {fw_layers}, now {settings.fw_layers} is asked "
            "for; leave -fw_layers out"
        )
    if "kind" in stored:
        classifier = settings.classifier or stored.get("classifier")
        return dataclasses.replace(stored_settings(stored), classifier=classifier)
    return dataclasses.replace(
        settings,
        fw_layers=fw_layers,
        pairing="released",
        scaling=settings.scaling if fw_layers == settings.fw_layers else None,
    )


def _released_config(folder: Path) -> dict:
    """Return what an authors' config.txt (a printed dict) says, or {} where there is none."""
    try:
        text = (folder / "config.txt").read_text(encoding="utf-8")
        found = ast.literal_eval(text[text.index("{") : text.rindex("}") + 1])
    except (OSError, ValueError, SyntaxError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: value for key, value in found.items() if key in ("id_dataset", "arch", "fw_layers")
    }


def _stored_scale(meta: dict, settings: Settings, file: Path) -> Scale:
    if settings.scaling == "none":
        return Scale()
    if "min" not in meta or "max" not in meta:
        raise InputError(
            f"'{file}' does not say by which min and max features are scaled; "
            'set "scaling": "none" in the config'
        )
    return Scale(settings.scaling, float(meta["min"]), float(meta["max"]), settings.batch_size)
