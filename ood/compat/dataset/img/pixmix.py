"""The mixing sets of PixMix.

Source: Hendrycks et al., "PixMix: dreamlike pictures comprehensively improve safety measures", CVPR
2022, arXiv 2112.05135.
"""

from __future__ import annotations

from ood.compat.dataset.base import RegistrySet, check_choice

ROWS = {"fractals": "fractals", "features": "feature_visualisations"}


class PixMixExampleDatasets(RegistrySet):
    """Both mixing sets, by name. Labels are -1.

    Args:
        subset: "fractals" or "features".

    Raises: ValueError for another subset. DatasetError if the set is missing.
    """

    def __init__(self, root, subset, transform=None, target_transform=None, download=False):
        check_choice("subset", subset, list(ROWS))
        self.row = ROWS[subset]
        super().__init__(root, transform, target_transform, download)


class FeatureVisDataset(PixMixExampleDatasets):
    """Images that excite the first layers of networks. Labels are -1."""

    def __init__(self, root, transform=None, target_transform=None, download=False):
        super().__init__(root, "features", transform, target_transform, download)


class FractalDataset(PixMixExampleDatasets):
    """Images of fractals. Labels are -1."""

    def __init__(self, root, transform=None, target_transform=None, download=False):
        super().__init__(root, "fractals", transform, target_transform, download)
