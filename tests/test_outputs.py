"""One forward pass per data set, and a cache that cannot return what belongs to another network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import models
from ood import detectors
from ood.cache import Cache
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.evaluation import scoring
from ood.evaluation.passes import Passes
from ood.outputs import Outputs, extract, network_digest

NAMES = ("msp", "maxlogit", "energy", "odin", "react", "dice")


def images(n, seed=0, name="set"):
    generator = np.random.default_rng(seed)
    return ArrayImages(
        generator.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8),
        labels=generator.integers(0, 10, n),
        name=name,
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return models.build("small_cnn", 10, in_channels=1, image_size=28).eval()


@pytest.fixture
def preprocess():
    return Preprocess((0.5,), (0.25,))


class Counter:
    """Count the images that enter a network, in every forward pass (ODIN's own too)."""

    def __init__(self, network: nn.Module):
        self.seen = 0
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(
            lambda module, inputs, output: setattr(self, "seen", self.seen + len(inputs[0]))
        )


def run(network, preprocess, names=NAMES, cache=None, **options):
    made = {n: detectors.create(n) for n in names}
    return scoring.evaluate(
        Passes(network, preprocess, batch_size=16, cache=cache, **options),
        images(60, 1, "id"),
        images(40, 2, "id"),
        [scoring.TestSet("a", images(30, 3, "a")), scoring.TestSet("b", images(20, 4, "b"))],
        made,
    )


@pytest.mark.parametrize("arch", ["small_cnn", "small_densenet", "wrn"])
def test_outputs_are_what_the_network_gives(arch, preprocess):
    torch.manual_seed(0)
    options = {"depth": 10, "width": 1, "pool": "adaptive"} if arch == "wrn" else {}
    network = models.build(arch, 10, in_channels=1, image_size=28, **options).eval()
    made = extract(network, images(37), preprocess, batch_size=8, taps=True)
    x = torch.cat([preprocess(b) for b in images(37).batches(100)])
    with torch.no_grad():
        torch.testing.assert_close(made.features, network.features(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.logits, network(x), rtol=1e-4, atol=1e-5)
        for tap, maps in zip(made.taps, network.feature_maps(x), strict=True):
            torch.testing.assert_close(tap, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.head(made.features), made.logits)


def test_six_detectors_cost_one_forward_pass_per_set(network, preprocess):
    counter = Counter(network)
    run(network, preprocess)
    odin_only = 40 + 30 + 20  # its second forward pass over the perturbed test images
    assert counter.seen == 60 + 40 + 30 + 20 + odin_only
    counter.seen = 0
    run(network, preprocess, [n for n in NAMES if n != "odin"])
    assert counter.seen == 60 + 40 + 30 + 20


def test_a_second_run_forwards_nothing(network, preprocess, tmp_path):
    cache, counter = Cache(tmp_path), Counter(network)
    first = run(network, preprocess, cache=cache)
    counter.seen = 0
    again = run(network, preprocess, ["dice", "odin", "react", "maxlogit"], cache=cache)
    assert counter.seen == 0
    for name in ("dice", "odin"):
        np.testing.assert_array_equal(again.scores["a"][name], first.scores["a"][name])


def test_two_models_of_one_class_are_not_mixed_up(preprocess, tmp_path):
    """A cache keyed by id() would serve the features of a model that is gone."""
    for seed in range(4):
        torch.manual_seed(seed)
        network = models.build("small_cnn", 10, in_channels=1, image_size=28)
        cached, plain = (run(network, preprocess, cache=cache) for cache in (Cache(tmp_path), None))
        for name in NAMES:
            np.testing.assert_allclose(cached.scores["a"][name], plain.scores["a"][name], rtol=1e-6)
        del network


def test_every_part_of_the_key_matters(network, preprocess, tmp_path):
    cache, counter = Cache(tmp_path), Counter(network)

    def forwarded(images_, preprocess_, **options):
        counter.seen = 0
        extract(network, images_, preprocess_, batch_size=16, cache=cache, **options)
        return counter.seen

    assert forwarded(images(10), preprocess) == 10
    assert forwarded(images(10), preprocess) == 0
    assert forwarded(images(10, seed=9), preprocess) == 10
    assert forwarded(images(10), Preprocess((0.5,), (0.5,))) == 10
    assert forwarded(images(10), preprocess, precision="bf16") == 10
    assert forwarded(images(10), preprocess, taps=True) == 10
    with torch.no_grad():
        network.fc.bias += 1e-3
    assert forwarded(images(10), preprocess) == 10


def test_digest_sees_weights_and_architecture():
    torch.manual_seed(0)
    made = [models.build("small_cnn", 10, in_channels=1, image_size=28) for _ in range(2)]
    assert network_digest(made[0]) != network_digest(made[1])
    made[1].load_state_dict(made[0].state_dict())
    assert network_digest(made[0]) == network_digest(made[1])
    made[1].extra = nn.ReLU()
    assert network_digest(made[0]) != network_digest(made[1])


def test_an_interrupted_pass_leaves_nothing(network, preprocess, tmp_path):
    class Breaks(ArrayImages):
        def batches(self, batch_size, indices=None):
            yield from list(super().batches(batch_size, indices))[:2]
            raise KeyboardInterrupt

    generator = np.random.default_rng(0)
    with pytest.raises(KeyboardInterrupt):
        extract(
            network,
            Breaks(generator.integers(0, 256, (50, 1, 28, 28), dtype=np.uint8)),
            preprocess,
            batch_size=16,
            cache=Cache(tmp_path),
        )
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_bf16_is_close(network, preprocess):
    exact, fast = (extract(network, images(20), preprocess, precision=p) for p in ("fp32", "bf16"))
    assert fast.logits.dtype == torch.float32
    assert 0 < (exact.logits - fast.logits).abs().max() < 0.1 * exact.logits.abs().max() + 0.05


def test_batch_size_does_not_matter(network, preprocess):
    small = run(network, preprocess)
    made = {n: detectors.create(n) for n in NAMES}
    other = scoring.evaluate(
        Passes(network, preprocess, batch_size=64),
        images(60, 1, "id"),
        images(40, 2, "id"),
        [scoring.TestSet("a", images(30, 3, "a"))],
        made,
    )
    for name in NAMES:
        np.testing.assert_allclose(
            small.scores["a"][name], other.scores["a"][name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("unit", ["pixel", "normalised"])
def test_odin_against_one_image_at_a_time(network, preprocess, unit):
    detector = detectors.create("odin", magnitude=0.01, temperature=100.0, unit=unit)
    found = extract(
        network, images(12), preprocess, batch_size=5, image_detectors=[detector]
    ).scores[detector.key]
    x = torch.cat([preprocess(b) for b in images(12).batches(100)])
    for i in range(12):
        one = x[i : i + 1].clone().requires_grad_()
        logits = network(one)
        cross_entropy(logits / 100, logits.argmax(1)).backward()
        sign = torch.where(one.grad >= 0, 1.0, -1.0)
        step = 0.01 / 0.25 if unit == "pixel" else 0.01
        with torch.no_grad():
            expected = -(network(one - step * sign).double() / 100).softmax(1).max()
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_stay_with_the_parameters(network, preprocess):
    detector = detectors.create("odin")
    extract(network, images(8), preprocess, image_detectors=[detector])
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    "values", [torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3, device="meta")]
)
def test_outputs_are_dense_tensors_with_values(values):
    with pytest.raises(InputError, match="the features are (sparse|on the meta device)"):
        Outputs(values, torch.zeros(4, 2), torch.zeros(4), None)
