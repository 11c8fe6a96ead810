"""VMDLS: Gaussians per class on a feature ensemble whose latent part two losses have shaped.

    f = (pooled taps 1, 2, 3, features, mu)                     one pass through the encoder
    LL_c = log N(f; mean_c, cov_c + jitter I)                   statistics of the training images
    score = - max_c (LL_c - m) * w,  w = reconstruction error   larger = OOD; class = argmax_c LL_c

w is the squared error between the first tap of an image and the first tap of its reconstruction by
an auto-encoder. Without an auto-encoder, w = 1.

Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for out-of-distribution
detection", UAI 2022, PMLR 180:569-578. The formulas are those of the released code. By default we
differ from it in five points; each has a switch "released":

    accumulate    sums run over all training images
    statistics    are computed in float64
    ae_input      the auto-encoder gets the input that it was trained on
    test_dropout  dropout is off
    shift         m is a bound that no input can exceed, instead of the largest value among the test
                  images of both sets
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ood.cache import cached
from ood.config import to_dict
from ood.data import Preprocess
from ood.files import file_stem
from ood.methods.base import Method
from ood.methods.vmdls.autoencoder import AutoEncoder
from ood.methods.vmdls.gaussians import STEP, Gaussians, Moments, class_moments
from ood.methods.vmdls.network import LatentNetwork
from ood.methods.vmdls.open_set import Scored, open_set
from ood.methods.vmdls.settings import Settings
from ood.methods.vmdls.training import (
    KIND,
    build_network,
    known_images,
    preprocess_of,
    train_latent,
)
from ood.outputs import network_digest
from ood.training import runs
from ood.training.context import Context

LIKELIHOOD = "vmdls likelihood"  # the label of the score without reconstruction weight
LATENT_POINTS = 2000  # per set, in the figure
JITTERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the jitter report

# Settings on which the class statistics depend.
STATISTICS = (
    "accumulate",
    "statistics",
    "test_batch_classes",
    "test_sample_count",
    "seed",
    "test_dropout",
)


@dataclass(frozen=True)
class Looked:
    """What a pass over a set gives.

    Attributes:
        ensemble: (N, F), the feature ensemble.
        likelihoods: (N, K), log-likelihoods.
        errors: (N,), reconstruction errors; None without an auto-encoder.
    """

    ensemble: Tensor
    likelihoods: Tensor
    errors: Tensor | None


class LikelihoodAlone:
    """The score of a VMDLS without its reconstruction weight, from the same pass."""

    def __init__(self, method: VMDLS):
        self.method = method

    def score(self, images) -> Tensor:
        """Return the scores (N,) in float64."""
        return self.method._combine(dataclasses.replace(self.method.look(images), errors=None))

    def accuracy(self, images) -> None:
        """Return None: the weight does not change the predicted classes."""
        return None


class VMDLS(Method):
    """The trained method.

    `score` and `accuracy` take any ImageSet. `pair` takes ID and OOD images together, which the
    released shift needs.

    Args:
        known: ImageSet of ID training images. The Gaussians are fitted to it at first use.
    """

    name = "vmdls"
    Settings = Settings

    def __init__(
        self,
        network: LatentNetwork,
        preprocess: Preprocess,
        settings,
        context: Context,
        known,
        autoencoder: AutoEncoder | None,
    ):
        self.network = network.to(context.device, memory_format=torch.channels_last).eval()
        self.preprocess, self.settings, self.context = preprocess, settings, context
        self.known, self.autoencoder = known, autoencoder
        self._moments: Moments | None = None
        self._gaussians: Gaussians | None = None
        self._looked: dict[str, Looked] = {}
        self._likelihoods: dict[str, Tensor] = {}
        # Random values must not be kept.
        self._cache = None if settings.test_dropout == "released" else context.cache
        self._digest = network_digest(self.network) if self._cache else ""

    @classmethod
    def train(cls, settings, context: Context) -> runs.Run:
        return train_latent(settings, context)

    @classmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> VMDLS:
        """Load the network from a run folder or a weight file (ours, or the authors' .ckpt).

        Without `checkpoint`, take the newest run of these settings.

        Raises: InputError when the run, the training images or the auto-encoder are missing.
        """
        known = known_images(settings, "train", context)
        if checkpoint is None:
            root, command = context.checkpoints_dir, context.training
            checkpoint = KIND.newest(to_dict(settings), root, command=command).folder
        path = Path(checkpoint) / "best.pt" if Path(checkpoint).is_dir() else Path(checkpoint)
        network = build_network(settings, context, known.shape, known.num_classes)
        stored = context.networks.checkpoints.load_into(network, path).get("preprocess") or {}
        context.log(f"weights: {path}")
        preprocess = (
            Preprocess(stored["mean"], stored["std"]) if stored else preprocess_of(settings)
        )
        autoencoder = None
        if settings.ae_features:
            arch = "mnist_conv" if known.shape == (1, 28, 28) else "resnet18"
            ae_settings = AutoEncoder.Settings(
                settings.id_dataset,
                settings.autoencoder_arch or arch,
                mean=settings.autoencoder_mean,
                std=settings.autoencoder_std,
                batch_size=settings.batch_size,
            )
            autoencoder = AutoEncoder.load(ae_settings, context, settings.autoencoder)
        return cls(network, preprocess, settings, context, known, autoencoder)

    # ---- scores

    def score(self, images) -> Tensor:
        """Return the scores (N,) in float64.

        The released shift needs both sets of a pair. Here m is always the bound.
        """
        return self._combine(self.look(images))

    def accuracy(self, images) -> float | None:
        labels = np.asarray(images.labels)
        if not (labels >= 0).any():
            return None
        return float((self.predict(images).numpy() == labels)[labels >= 0].mean())

    def predict(self, images) -> Tensor:
        """Return the most likely classes (N,), nothing rejected."""
        return self.look(images).likelihoods.argmax(1)

    def variants(self) -> dict[str, LikelihoodAlone]:
        """Return the score without the reconstruction weight, where there is a weight."""
        return {LIKELIHOOD: LikelihoodAlone(self)} if self.autoencoder else {}

    def pair(self, known, novel, weighted: bool = True) -> tuple[Scored, Scored]:
        """Return scores, classes and labels of an ID and an OOD ImageSet.

        With the released shift, m and the scale of w are those of the pair.

        Args:
            weighted: False: by the likelihood alone.
        """
        looked = [self.look(known), self.look(novel)]
        weighted = weighted and self.autoencoder is not None
        if not weighted:
            looked = [dataclasses.replace(look, errors=None) for look in looked]
        scale, m = 1.0, None
        if self.settings.shift == "released":
            m = 1 + max(look.likelihoods.max().item() for look in looked)
            if weighted:
                scale = max(look.errors.max().item() for look in looked)
        scored = [
            Scored(
                (self._combine(look, m) / scale).numpy(),
                look.likelihoods.argmax(1).numpy(),
                np.asarray(images.labels),
            )
            for look, images in zip(looked, (known, novel))
        ]
        return scored[0], dataclasses.replace(scored[1], labels=np.full(len(novel), -1))

    def extra_metrics(self, id_images, ood_images) -> dict[str, float]:
        """Return what the paper's tables need beside AUROC and FPR95, see open_set.py."""
        return open_set(*self.pair(id_images, ood_images))

    def _combine(self, looked: Looked, m: float | None = None) -> Tensor:
        m = 1 + self.gaussians.peak() if m is None else m
        distance = m - looked.likelihoods.amax(1)  # (N,) >= 1
        return (distance if looked.errors is None else distance * looked.errors).double()

    # ---- what the scores are made of

    @property
    def moments(self) -> Moments:
        """Class means and covariances of the training images."""
        if self._moments is None:
            s = self.settings
            features = self._pass(self.known, errors=False)["ensemble"]
            self._moments = class_moments(
                features,
                self.known.labels,
                dtype=torch.float32 if s.statistics == "released" else torch.float64,
                accumulate=s.accumulate,
                batch_classes=s.test_batch_classes,
                sample_count=s.test_sample_count,
                seed=s.seed,
            )
        return self._moments

    @property
    def gaussians(self) -> Gaussians:
        """The classes' Gaussians, with the jitter of the settings."""
        if self._gaussians is None:
            self._gaussians = self.moments.gaussians(self.settings.jitter)
            classes, features = self.moments.means.shape
            self.context.log(
                f"gaussians: {classes} classes x {features} features, "
                f"jitter {self._gaussians.jitter:g} "
                f"({self.settings.statistics}, accumulate {self.settings.accumulate})"
            )
        return self._gaussians

    def look(self, images) -> Looked:
        """Return the ensemble, the log-likelihoods and the errors of a set.

        A set that was seen before needs no second pass.
        """
        if images.digest not in self._looked:
            arrays = self._pass(images, errors=self.autoencoder is not None)
            ensemble = arrays["ensemble"]
            if images.digest not in self._likelihoods:
                self._likelihoods[images.digest] = self.gaussians.log_likelihood(ensemble)
            self._looked[images.digest] = Looked(
                ensemble, self._likelihoods[images.digest], arrays.get("errors")
            )
        return self._looked[images.digest]

    def vary(self, **changes) -> VMDLS:
        """Return the same network with other settings of the test (jitter, accumulate, shift, ...).

        Statistics and likelihoods are shared where the changes leave them as they are.
        """
        settings = dataclasses.replace(self.settings, **changes)
        other = VMDLS(
            self.network,
            self.preprocess,
            settings,
            self.context,
            self.known,
            self.autoencoder if settings.ae_features else None,
        )
        if all(getattr(settings, name) == getattr(self.settings, name) for name in STATISTICS):
            other._moments = self.moments
            if settings.jitter == self.settings.jitter:
                other._gaussians, other._likelihoods = self.gaussians, self._likelihoods
        return other

    def jitter_report(
        self, id_images, ood_images, jitters: tuple[float, ...] = JITTERS
    ) -> list[dict]:
        """Return the metrics of a pair for several jitters.

        Jitters that leave a covariance singular are left out.
        """
        smallest = self.moments.search() * STEP
        rows = []
        for jitter in sorted({smallest, *(j for j in jitters if j > smallest)}):
            values = self.vary(jitter=jitter).extra_metrics(id_images, ood_images)
            rows.append({"jitter": jitter, **values})
        return rows

    def figures(self, out_dir: str | Path, sets: list) -> list[Path]:
        """Draw the latent points of the ID test images with each OOD set, as PNG files.

        Args:
            sets: ImageSets, the ID set first.
        """
        from ood.methods.vmdls import figures

        width = self.network.fc_mu.out_features
        means = self.gaussians.means[:, -width:].float().numpy()
        labels = np.asarray(sets[0].labels)[:LATENT_POINTS]
        known, paths = self.look(sets[0]).ensemble[:LATENT_POINTS, -width:].numpy(), []
        for images in sets[1:]:
            paths.append(Path(out_dir) / "figures" / f"latent_{file_stem(images.name)}.png")
            novel = self.look(images).ensemble[:LATENT_POINTS, -width:].numpy()
            figures.latent(means, known, labels, paths[-1], novel)
        return paths

    # ---- the pass

    def _pass(self, images, errors: bool) -> dict[str, Tensor]:
        """Return {"ensemble": (N, F)[, "errors": (N,)]} in float32.

        They come from the cache where it has them.
        """
        device = self.context.device.type
        parts = {
            "vmdls-ensemble": (self._digest, images.digest, repr(self.preprocess), device),
        }
        if errors:
            parts["vmdls-errors"] = (
                *parts["vmdls-ensemble"],
                network_digest(self.autoencoder.network),
                repr(self.autoencoder.preprocess),
                self.settings.ae_input,
            )
        found = cached(self._cache, parts, lambda: self._compute(images, errors))
        return {name.removeprefix("vmdls-"): values for name, values in found.items()}

    def _compute(self, images, errors: bool) -> dict[str, Tensor]:
        """Forward all images."""
        size, batches = self.settings.batch_size, images.batches(self.settings.batch_size)
        if self.context.progress:
            batches = self.context.progress(
                batches,
                f"{images.name} {images.split}",
                total=-(-len(images) // size),
                unit="images",
                scale=size,
            )
        rows = [self._forward(pixels.to(self.context.device), errors) for pixels in batches]
        return {name: torch.cat([part[name] for part in rows]) for name in rows[0]}

    @torch.inference_mode()
    def _forward(self, pixels: Tensor, errors: bool) -> dict[str, Tensor]:
        """Return one batch's arrays on the CPU."""
        images = self.preprocess(pixels).contiguous(memory_format=torch.channels_last)
        ensemble = self.network.ensemble(images)
        out = {"vmdls-ensemble": ensemble.cpu()}
        if errors:
            if self.settings.ae_input == "released":
                again = self.autoencoder.network(images)
            else:
                again = self.preprocess(self.autoencoder.reconstruct(pixels))
            tap = self.network.first_tap(again.contiguous(memory_format=torch.channels_last))
            out["vmdls-errors"] = (ensemble[:, : tap.shape[1]] - tap).square().mean(1).cpu()
        return out
