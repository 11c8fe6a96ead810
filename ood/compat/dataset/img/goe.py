"""Images of a generator, for outlier exposure.

Source: Kirchheim and Ortmeier, "On outlier exposure with generative models", NeurIPS ML Safety
Workshop 2022.
"""

from __future__ import annotations

from ood.compat.dataset.base import EndlessSet

ROWS = {50.0: "cifar100gan", 2.0: "cifar100gan2"}


class CIFAR100GAN(EndlessSet):
    """50,000 images of 32x32 that a BigGAN for CIFAR-100 makes from unlikely latents.

    Labels are -1.

    Args:
        sigma: width of the latent samples, 50.0 or 2.0.

    Raises: KeyError for another sigma. FileNotFoundError (a DatasetError) if the set is missing.
    """

    def __init__(self, root, transform=None, target_transform=None, download=False, sigma=50.0):
        self.row = ROWS[sigma]
        super().__init__(root, transform, target_transform, download)
