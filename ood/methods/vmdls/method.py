"""VMDLS: per-class Gaussians on a feature ensemble whose latent part was shaped by a metric and a variational loss.

    f = (pooled taps 1, 2, 3, features, mu)                     one pass through the encoder
    LL_c = log N(f; mean_c, cov_c + jitter I)                   statistics of the training images
    score = - max_c (LL_c - m) * w,  w = reconstruction error   larger = OOD; class = argmax_c LL_c

w is the squared error between the first tap of an image and that of its reconstruction by an auto-encoder; without one, w = 1.

Source: Dinari & Freifeld, "Variational- and metric-based deep latent space for out-of-distribution detection", UAI 2022, PMLR
180:569-578; the formulas are those of the released code. Different from it by default, each with a switch `released`: sums over all
training images (accumulate), float64 (statistics), an auto-encoder that gets the input it was trained on (ae_input), dropout off
(test_dropout), and m: a bound that no input can exceed, instead of the largest value among the test images of both sets (shift).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ood.data import Preprocess
from ood.methods.base import Context, Method
from ood.methods.vmdls.autoencoder import AutoEncoder
from ood.methods.vmdls.gaussians import Gaussians, Moments, class_moments
from ood.methods.vmdls.network import LatentNetwork
from ood.methods.vmdls.open_set import Scored, open_set
from ood.methods.vmdls.settings import Settings
from ood.methods.vmdls.training import (
    build_network,
    known_images,
    preprocess_of,
    train_latent,
)
from ood.outputs import network_digest
from ood.training import runs

LATENT_POINTS = 2000  # per set, in the figure


@dataclass(frozen=True)
class Looked:
    """What a pass over a set gives: ensemble (N, F), log-likelihoods (N, K), reconstruction errors (N,) or None."""

    ensemble: Tensor
    likelihoods: Tensor
    errors: Tensor | None


class VMDLS(Method):
    """The trained method. `score`, `accuracy` for any ImageSet; `pair` for ID and OOD together, which the released shift needs."""

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
        """known: ImageSet of ID training images, on which the Gaussians are fitted at first use."""
        self.network = network.to(context.device, memory_format=torch.channels_last).eval()
        self.preprocess, self.settings, self.context, self.known, self.autoencoder = (
            preprocess,
            settings,
            context,
            known,
            autoencoder,
        )
        self._moments: Moments | None = None
        self._gaussians: Gaussians | None = None
        self._looked: dict[str, Looked] = {}
        self._likelihoods: dict[str, Tensor] = {}
        random = settings.test_dropout == "released"  # nothing that is random may be kept
        self._digest = None if context.cache is None or random else network_digest(self.network)

    @classmethod
    def train(cls, settings, context: Context) -> runs.Run:
        return train_latent(settings, context)

    @classmethod
    def load(cls, settings, context: Context, checkpoint: str | Path | None = None) -> VMDLS:
        """From a weight file (ours, or a Lightning .ckpt of the authors) or run folder, else the newest run of these settings."""
        known = known_images(settings, "train", context)
        if checkpoint is None:
            command = "python3 ood_training.py -config CONFIG, with the same config"
            checkpoint = runs.find_newest(
                context.checkpoints_dir, settings.identity(), command=command
            ).folder
        path = Path(checkpoint) / "best.pt" if Path(checkpoint).is_dir() else Path(checkpoint)
        network = build_network(settings, context, known.shape, known.num_classes)
        stored = context.networks.checkpoints.load_into(network, path).get("preprocess") or {}
        context.log(f"weights: {path}")
        preprocess = (
            Preprocess(stored["mean"], stored["std"]) if stored else preprocess_of(settings)
        )
        autoencoder = None
        if settings.ae_features:
            kind = settings.autoencoder_arch or (
                "mnist_conv" if known.shape == (1, 28, 28) else "resnet18"
            )
            ae_settings = AutoEncoder.Settings(
                settings.id_dataset, kind, batch_size=settings.batch_size
            )
            autoencoder = AutoEncoder.load(ae_settings, context, settings.autoencoder)
        return cls(network, preprocess, settings, context, known, autoencoder)

    # ---- scores

    def score(self, images) -> Tensor:
        """(N,) float64. The released shift needs both sets of a pair: here m is always the bound."""
        return self._combine(self.look(images))

    def accuracy(self, images) -> float | None:
        labels = np.asarray(images.labels)
        if not (labels >= 0).any():
            return None
        return float((self.predict(images).numpy() == labels)[labels >= 0].mean())

    def predict(self, images) -> Tensor:
        """(N,) the most likely class, nothing rejected."""
        return self.look(images).likelihoods.argmax(1)

    def pair(self, known, novel) -> tuple[Scored, Scored]:
        """Scores, classes and labels of an ID and an OOD ImageSet, with m and w of the pair where shift is 'released'."""
        looked = [self.look(known), self.look(novel)]
        scale, m = 1.0, None
        if self.settings.shift == "released":
            m = 1 + max(look.likelihoods.max().item() for look in looked)
            if self.autoencoder:
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
        """What the paper's tables need beside AUROC and FPR95: see `ood.methods.vmdls.open_set`."""
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
            dtype = torch.float32 if s.statistics == "released" else torch.float64
            self._moments = class_moments(
                features,
                self.known.labels,
                dtype=dtype,
                accumulate=s.accumulate,
                batch_classes=s.test_batch_classes,
                sample_count=s.test_sample_count,
                seed=s.seed,
            )
        return self._moments

    @property
    def gaussians(self) -> Gaussians:
        if self._gaussians is None:
            self._gaussians = self.moments.gaussians(self.settings.jitter)
            self.context.log(
                f"gaussians: {len(self.moments.means)} classes x {self.moments.means.shape[1]} features, jitter {self._gaussians.jitter:g} "
                f"({self.settings.statistics}, accumulate {self.settings.accumulate})"
            )
        return self._gaussians

    def look(self, images) -> Looked:
        """One pass over a set (or none, when it is known), then its log-likelihoods."""
        if images.digest not in self._looked:
            arrays = self._pass(images, errors=self.autoencoder is not None)
            if images.digest not in self._likelihoods:
                self._likelihoods[images.digest] = self.gaussians.log_likelihood(arrays["ensemble"])
            self._looked[images.digest] = Looked(
                arrays["ensemble"], self._likelihoods[images.digest], arrays.get("errors")
            )
        return self._looked[images.digest]

    def vary(self, **changes) -> VMDLS:
        """The same network with other settings of the test (jitter, accumulate, statistics, shift, ...), passes shared where possible."""
        settings = dataclasses.replace(self.settings, **changes)
        other = VMDLS(
            self.network,
            self.preprocess,
            settings,
            self.context,
            self.known,
            self.autoencoder if settings.ae_features else None,
        )
        same = (
            "accumulate",
            "statistics",
            "test_batch_classes",
            "test_sample_count",
            "seed",
            "test_dropout",
        )
        if all(getattr(settings, name) == getattr(self.settings, name) for name in same):
            other._moments = self.moments
            if settings.jitter == self.settings.jitter:
                other._gaussians, other._likelihoods = self.gaussians, self._likelihoods
        return other

    def jitter_report(
        self,
        id_images,
        ood_images,
        jitters: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    ) -> list[dict]:
        """Metrics of a pair for several jitters; those that leave a covariance singular are left out."""
        smallest = self.moments.search() * 1e-6
        rows = []
        for jitter in sorted({smallest, *(j for j in jitters if j > smallest)}):
            rows.append(
                {"jitter": jitter, **self.vary(jitter=jitter).extra_metrics(id_images, ood_images)}
            )
        return rows

    def figures(self, out_dir: str | Path, sets: list) -> list[Path]:
        """Latent scatter of the ID test images (first of `sets`) with each OOD set, as PNG files."""
        from ood.methods.vmdls import figures

        width = self.network.fc_mu.out_features
        means = self.gaussians.means[:, -width:].float().numpy()
        known, paths = self.look(sets[0]).ensemble[:LATENT_POINTS, -width:].numpy(), []
        for images in sets[1:]:
            paths.append(Path(out_dir) / "figures" / f"latent_{images.name}.png")
            novel = self.look(images).ensemble[:LATENT_POINTS, -width:].numpy()
            figures.latent(
                means, known, np.asarray(sets[0].labels)[:LATENT_POINTS], paths[-1], novel
            )
        return paths

    # ---- the pass

    def _pass(self, images, errors: bool) -> dict[str, Tensor]:
        """{"ensemble": (N, F)[, "errors": (N,)]}, float32, from the cache where it has them."""
        wanted = ["ensemble", *(["errors"] if errors else [])]
        cache, keys = self.context.cache, {}
        if self._digest is not None:
            keys = {part: self._key(images, part) for part in wanted}
            if all(part in cache.parts(keys[part]) for part in wanted):
                return {part: cache.get(keys[part], part) for part in wanted}
        arrays: dict[str, list[Tensor]] = {part: [] for part in wanted}
        batches = images.batches(self.settings.batch_size)
        if self.context.progress:
            batches = self.context.progress(
                batches,
                f"{images.name} {images.split}",
                total=-(-len(images) // self.settings.batch_size),
                unit="images",
                scale=self.settings.batch_size,
            )
        for pixels in batches:
            for part, values in self._forward(pixels.to(self.context.device), errors).items():
                arrays[part].append(values.cpu())
        result = {part: torch.cat(values) for part, values in arrays.items()}
        for part, key in keys.items():
            cache.create(key, part, tuple(result[part].shape), np.float32)[:] = result[part].numpy()
            cache.commit(key, part)
        return result

    @torch.inference_mode()
    def _forward(self, pixels: Tensor, errors: bool) -> dict[str, Tensor]:
        images = self.preprocess(pixels).contiguous(memory_format=torch.channels_last)
        out = {"ensemble": self.network.ensemble(images)}
        if errors:
            if self.settings.ae_input == "released":
                again = self.autoencoder.network(images)
            else:
                again = self.preprocess(
                    self.autoencoder.reconstruct(
                        pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels
                    )
                )
            tap = self.network.first_tap(again.contiguous(memory_format=torch.channels_last))
            out["errors"] = (out["ensemble"][:, : tap.shape[1]] - tap).square().mean(1)
        return out

    def _key(self, images, part: str) -> str:
        made = [part, self._digest, images.digest, repr(self.preprocess), self.context.device.type]
        if part == "errors":
            made += [
                network_digest(self.autoencoder.network),
                repr(self.autoencoder.preprocess),
                self.settings.ae_input,
            ]
        return hashlib.sha256("\n".join(made).encode()).hexdigest()[:32]
