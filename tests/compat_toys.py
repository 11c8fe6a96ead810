"""Images for the tests of ood.compat: gratings of the toy network's classes, and of others."""

import pytest
import torch
from detector_toys import gratings
from torch.utils.data import DataLoader, TensorDataset

from ood.data import Preprocess


def tensors(n, seed, novel=False):
    """Normalised images (n, 1, 12, 12) and their labels (n,)."""
    images, preprocess = gratings(n, seed, novel), Preprocess((0.5,), (0.25,))
    pixels = torch.cat([preprocess(batch) for batch in images.batches(500)])
    return pixels, torch.as_tensor(images.labels)


@pytest.fixture(scope="module")
def sets():
    """A loader of 150 training images, 60 ID + 60 OOD images, and the labels of these."""
    known, novel = tensors(60, 5), tensors(60, 6, novel=True)
    x, labels = (torch.cat(parts) for parts in zip(known, novel))
    return DataLoader(TensorDataset(*tensors(150, 0)), batch_size=50), x, labels
