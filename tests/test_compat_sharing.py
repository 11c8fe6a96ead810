"""Functions of the same images: what is read from one run, what needs a run of its own."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ood.compat.sharing import Shared

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """In-place activations, operations without modules, one module called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 4)
        self.runs = 0

    def feature_map(self, x):
        self.runs += 1
        x = self.relu(self.first(x))
        return functional.relu(self.relu(self.second(x)) + x)

    def features(self, x):
        return functional.adaptive_avg_pool2d(self.feature_map(x), 1).flatten(1)

    def forward(self, x):
        return self.fc(self.drop(self.features(x)))


@pytest.fixture
def net():
    return Net().eval()


def check(functions, passes, images=IMAGES):
    """All functions give what they give alone, with so many runs per batch."""
    shared = Shared(functions)
    for batch in (images[:3], images[3:], images):
        found = shared(batch)
        with torch.no_grad():
            for function, values in zip(functions, found, strict=True):
                alone = function(batch)
                assert values.shape == alone.shape
                assert torch.allclose(values, alone, atol=1e-6)
    assert shared.passes == passes
    return shared


def test_the_pieces_of_a_network_are_read_from_one_run(net):
    shared = check(
        [net, net.features, net.features, lambda x: net.features(x)[:, :, None, None]], 1
    )
    net.runs = 0
    shared(IMAGES)
    assert net.runs == 1


def test_cheap_operations_behind_a_module_are_done_again(net):
    check([net, lambda x: functional.relu(net.features(x)).clamp(max=0.1)], 1)


def test_a_clipping_that_the_first_images_do_not_reach_is_seen(net):
    images = torch.cat([IMAGES[:3] * 1e-3, IMAGES * 100])
    check([net, lambda x: net.features(x.clamp(-1, 1))], 2, images)
    check([net.features, lambda x: net.features(x).clamp(max=1)], 1, images)


def test_another_network_of_equal_weights_runs_by_itself(net):
    check([net, Net().eval().features], 2)


def test_a_network_in_training_mode_is_run_for_each(net):
    net.train()
    shared = Shared([net, net.features])
    shared(IMAGES)
    assert shared.passes == 2


def test_noise_is_not_shared(net):
    noisy = lambda x: net.features(x + torch.rand_like(x))
    shared = Shared([noisy, net, lambda x: noisy(x) + 0])
    shared(IMAGES)
    assert shared.passes == 3


def test_lists_run_by_themselves(net):
    stages = lambda x: [net.feature_map(x)]
    logits, maps, features = Shared([net, stages, net.features])(IMAGES)
    assert isinstance(maps, list) and torch.equal(features, net.features(IMAGES))


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_networks_of_torchvision_taken_apart(arch):
    whole = torchvision.models.get_model(arch).eval()
    if arch == "resnet18":
        parts = [*whole.children()]
        check([whole, nn.Sequential(*parts[:-2]), nn.Sequential(*parts[:-1], nn.Flatten())], 1)
    else:
        check([whole, whole.features], 1)
