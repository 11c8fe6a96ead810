"""Forward passes: from image sets to outputs, always with the same network and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from ood.cache import Cache
from ood.data.images import ImageSet
from ood.detectors import ImageDetector
from ood.outputs import Head, Outputs, extract, network_digest


@dataclass
class Passes:
    """The network and everything that decides what a forward pass gives.

    Attributes:
        network: the classifier. None where there is nothing but methods.
        preprocess: pixel batch -> normalised batch, an `ood.data.Preprocess`.
        device: what to compute on.
        batch_size: images per pass; on the CPU at most as many as fit its caches.
        precision: of the backbone, 'fp32' or 'bf16'.
        cache: keeps the outputs, so that a second run forwards nothing. None: nothing is kept.
        progress: shows a bar while it iterates, as `ood.cli.progress`.
        base: passes of the same network without its head. Features come from there where they are
            enough, so that a new head costs no new pass.
    """

    network: nn.Module | None
    preprocess: object
    device: torch.device | str = "cpu"
    batch_size: int = 256
    precision: str = "fp32"
    cache: Cache | None = None
    progress: Callable[..., Iterable] | None = None
    base: Passes | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of the network, by which the cache tells networks apart."""
        return network_digest(self.network)

    def outputs(
        self,
        images: ImageSet,
        image_detectors: Iterable[ImageDetector] = (),
        taps: bool = False,
        name: str | None = None,
    ) -> Outputs:
        """Run the network once over `images`.

        Args:
            image_detectors: detectors that work inside the pass.
            taps: also keep the pooled outputs of the stages.
            name: what the progress bar says; default: the name of the data set.
        """
        image_detectors = list(image_detectors)
        if self.base is not None and not image_detectors:
            under, fc = self.base.outputs(images, (), taps, name), self.network.fc
            head = Head(fc.weight.detach().float().cpu(), fc.bias.detach().float().cpu())
            return replace(under, logits=head(under.features), head=head, memo={})
        bar = self.progress and (
            lambda batches, **k: self.progress(batches, name or images.name, unit="images", **k)
        )
        return extract(
            self.network,
            images,
            self.preprocess,
            device=self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            taps=taps,
            image_detectors=image_detectors,
            cache=self.cache,
            digest=self.digest,
            progress=bar,
        )

    def under(self, network: nn.Module) -> Passes:
        """The same passes under another head: `network` has the features of this one."""
        return replace(self, network=network, base=self)

    def no_outputs(self) -> Outputs:
        """Outputs of zero images, for detectors that fit to the head of the network alone."""
        weight, bias = self.network.fc.weight.detach().float().cpu(), self.network.fc.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float().cpu()
        classes, dimensions = weight.shape
        return Outputs(
            weight.new_zeros(0, dimensions),
            weight.new_zeros(0, classes),
            torch.zeros(0, dtype=torch.long),
            Head(weight, bias),
        )
