"""Toys for the tests of detectors.

They are arrays around class centres, a tiny trained network and the images it knows.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.outputs import Head, Outputs, extract


def outputs(n, seed=0, shift=0.0, classes=6, dimension=24, rectified=True):
    """Make ID-like outputs: rectified features around class centres.

    `shift` in [0, 1] takes the centres away, so that the images belong to no class.
    """
    generator = torch.Generator().manual_seed(seed)
    if classes <= 6:
        centres = (
            torch.eye(classes).repeat_interleave(-(-dimension // classes), 1)[:, :dimension] * 4
        )
    else:
        centres = (
            torch.randn(classes, dimension, generator=torch.Generator().manual_seed(99)).relu() * 3
        )
    labels = torch.arange(n) % classes
    features = centres[labels] * (1 - shift) + torch.randn(n, dimension, generator=generator)
    features = features.relu() if rectified else features - 1
    head = Head(centres / 4, torch.linspace(-0.2, 0.2, classes))
    taps = (
        features[:, : dimension // 2] + 0.3 * torch.randn(n, dimension // 2, generator=generator),
        features,
    )
    return Outputs(features, head(features), labels, head, taps)


def auroc(known, novel):
    """Share of pairs in which the novel image has the larger score; ties count half."""
    above, equal = novel[:, None] > known, novel[:, None] == known
    return above.double().mean().item() + equal.double().mean().item() / 2


class Gratings(nn.Module):
    """The smallest classifier with features, feature_maps, embed and fc.

    It has two convolutions, dropout and a linear layer.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 16, 5, padding=2)
        self.norm, self.dropout, self.fc = nn.BatchNorm2d(8), nn.Dropout(0.3), nn.Linear(16, 6)

    def feature_maps(self, x):
        early = self.norm(self.first(x)).relu()
        return [early, self.second(early).relu()]

    def embed(self, last):
        return self.dropout(last.mean((2, 3)))

    def features(self, x):
        return self.embed(self.feature_maps(x)[-1])

    def forward(self, x):
        return self.fc(self.features(x))


def gratings(n, seed, novel=False):
    """Stripes of six periods and directions, or blurred noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 6
    y, x = np.mgrid[:12, :12]
    if novel:
        pixels = (
            generator.random((n, 12, 12)) * 0.5
            + generator.random((n, 12, 1)) * generator.random((n, 1, 12)) * 0.5
        )
    else:
        along = np.where((labels % 2)[:, None, None] == 0, x, y)
        pixels = 0.5 + 0.4 * np.sin(
            2 * np.pi * along / np.array([3, 4, 7])[labels // 2, None, None]
            + generator.uniform(0, 6, (n, 1, 1))
        )
        pixels = pixels + generator.normal(0, 0.05, pixels.shape)
    return ArrayImages(
        (pixels.clip(0, 1) * 255).astype(np.uint8)[:, None],
        labels=-np.ones(n, int) if novel else labels,
        name="novel" if novel else "id",
    )


@pytest.fixture(scope="module")
def train():
    return outputs(600, seed=1)


@pytest.fixture(scope="module")
def network():
    return copy.deepcopy(trained())


@functools.cache
def trained():
    """The toy network, trained once for all test files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny steps: threads would only wait for each other
    net, preprocess, data = Gratings(), Preprocess((0.5,), (0.25,)), gratings(120, 0)
    x, y = torch.cat([preprocess(b) for b in data.batches(120)]), torch.as_tensor(data.labels)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    torch.set_num_threads(threads)
    return net.eval()


@pytest.fixture(scope="module")
def passed(network):
    """passed(detector, images, batch_size): fit the detector on gratings and pass the images.

    Returns the outputs of the images with the detector's measurements.
    """
    training, preprocess = gratings(150, 0), Preprocess((0.5,), (0.25,))

    def run(detector, images, batch_size=50, fitted=True):
        options = dict(taps="taps" in detector.needs, batch_size=batch_size)
        if fitted:
            detector.fit(
                extract(
                    network,
                    training,
                    preprocess,
                    image_detectors=[detector] if detector.measures_train else [],
                    **options,
                )
            )
        return extract(network, images, preprocess, image_detectors=[detector], **options)

    return run
