"""Benchmarks: one pass for all detectors, pytorch-ood's results, a cache of content."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from ood import detectors as formulas
from ood.compat import detector as ours
from ood.compat.benchmark.base import Benchmark, SetsBenchmark
from ood.config import InputError

LOADER = {"batch_size": 16}


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 4)
        self.images = 0  # how many were forwarded

    def maps(self, x):
        self.images += len(x)
        return self.norm(self.conv(x)).relu()

    def feature_maps(self, x):
        return [self.maps(x)]

    def features(self, x):
        return self.pool(self.maps(x)).flatten(1)

    def forward(self, x):
        return self.fc(self.features(x))


def images(count, shift, outliers, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator) + shift
    labels = torch.full((count,), -1) if outliers else torch.arange(count) % 4
    return TensorDataset(x, labels)


TRAIN, KNOWN = images(64, 0, False, 0), images(40, 0, False, 1)
NEAR, FAR = images(30, 0.2, True, 2), images(20, 1, True, 3)


class Made(SetsBenchmark):
    ood_names, near_ood_names, far_ood_names = ["near", "far"], ["near"], ["far"]

    def __init__(self):
        self.train_in, self.test_in, self.test_oods = TRAIN, KNOWN, [NEAR, FAR]


def ten(library, net):
    """Ten detectors of a library: four on logits, three on features, two on maps, one on images."""
    encoder, backbone = net.features, net.maps
    head = nn.Sequential(net.pool, nn.Flatten(), net.fc)
    weight, bias = net.fc.weight.detach(), net.fc.bias.detach()
    return [
        library.MaxSoftmax(net),
        library.EnergyBased(net),
        library.MaxLogit(net),
        library.Entropy(net),
        library.KNN(encoder, k=5),
        library.fDBD(encoder, net.fc),
        library.DICE(encoder, weight, bias, p=0.7),
        library.ASH(backbone, head),
        library.SCALE(backbone, head),
        library.ODIN(net),
    ]


class Distance:
    """A detector of one's own that learns from features."""

    def fit_features(self, z):
        self.mean = z.mean(0)

    def predict_features(self, z):
        return (z - self.mean).norm(dim=1)


class Brightness:
    def predict(self, x):
        return x.mean((1, 2, 3))


@pytest.fixture
def net():
    return Net().eval()


def test_same_results_as_pytorch_ood(net):
    theirs, benchmarks = pytest.importorskip("pytorch_ood.detector"), Made()
    from pytorch_ood.benchmark import Benchmark as TheirBenchmark

    class Theirs(TheirBenchmark):
        ood_names, train_set, test_sets = Made.ood_names, Made.train_set, Made.test_sets
        train_in, test_in, test_oods = TRAIN, KNOWN, [NEAR, FAR]

    mine, other = ten(ours, net), ten(theirs, net)
    benchmarks.fit(mine, LOADER)
    for detector in other:
        if detector.requires_fit:
            detector.fit(DataLoader(TRAIN, **LOADER))
    found = benchmarks.evaluate(mine, LOADER)
    expected = Theirs().evaluate(other, LOADER)
    assert len(found) == len(expected) == 20
    for row, peer in zip(found, expected):
        assert row.keys() == peer.keys()
        assert (row["Dataset"], row["Detector"]) == (peer["Dataset"], peer["Detector"])
        for key in ("AUROC", "FPR95TPR", *({"ACC"} & row.keys())):
            assert row[key] == pytest.approx(float(peer[key]), abs=2e-3), (row["Detector"], key)
    # their detectors in our benchmark, and one alone
    again = Made().evaluate(other, LOADER)
    assert [r["AUROC"] for r in again] == pytest.approx([float(r["AUROC"]) for r in expected])
    alone = Made().evaluate(mine[0], LOADER)
    assert alone == [{k: v for k, v in r.items() if k != "Detector"} for r in found[::10]]


def test_every_image_is_forwarded_once_for_all_detectors(net):
    benchmark, own = Made(), [Distance(), Brightness(), formulas.create("vim", dim=4)]
    many = ten(ours, net)[:-1] + own
    benchmark.fit(many, LOADER)
    assert net.images == 64
    net.images = 0
    benchmark.evaluate(many, LOADER)
    assert 90 < net.images <= 90 + 6  # two images are traced for each of three functions


def test_detectors_of_all_kinds_in_one_list(net):
    kinds = [ours.KNN(net.features, k=3), formulas.create("knn", k=3), Distance(), Brightness()]
    rows = Made().fit(kinds, LOADER).evaluate(kinds, LOADER)
    assert [row["Detector"] for row in rows[:4]] == ["KNN", "KNN", "Distance", "Brightness"]
    assert rows[0]["AUROC"] == pytest.approx(rows[1]["AUROC"])
    expected = Brightness().predict(torch.cat([KNOWN.tensors[0], FAR.tensors[0]]))
    assert rows[7]["AUROC"] == pytest.approx(
        (expected[40:, None] > expected[None, :40]).double().mean().item()
    )


def test_detectors_that_move_pixels_or_read_stages(net):
    net.embed = lambda z: net.pool(z).flatten(1)
    made = [formulas.create("odin"), formulas.create("gram"), formulas.create("energy")]
    rows = (
        Made()
        .fit(made, LOADER, network=net, norm_std=(1, 1, 1))
        .evaluate(made, LOADER, network=net, norm_std=(1, 1, 1))
    )
    peer = Made().evaluate([ours.ODIN(net), ours.EnergyBased(net)], LOADER)
    assert rows[0]["AUROC"] == pytest.approx(peer[0]["AUROC"])
    assert rows[2]["AUROC"] == pytest.approx(peer[1]["AUROC"])
    with pytest.raises(InputError, match="odin moves pixels: give norm_std="):
        Made().evaluate(made[0], LOADER, network=net)


def test_ours_need_a_network():
    with pytest.raises(InputError, match="give network="):
        Made().evaluate(formulas.create("energy"), LOADER)
    with pytest.raises(InputError, match="holds no network: give network="):
        Made().evaluate(Distance(), LOADER)


def test_what_is_no_detector_is_refused(net):
    with pytest.raises(TypeError, match="is no detector"):
        Made().evaluate([ours.MaxSoftmax(net), 3])
    with pytest.raises(TypeError, match="give a detector or a list"):
        Made().evaluate("energy")
    with pytest.raises(ValueError, match="at least one detector"):
        Made().evaluate([])


def test_near_and_far_averages(net):
    benchmark = Made()
    benchmark.near_ood_names, benchmark.far_ood_names = ["near", "far"], []
    rows = benchmark.evaluate([ours.MaxSoftmax(net), ours.EnergyBased(net)], LOADER)
    mean = benchmark.averages(rows)
    assert [(row["Dataset"], row["Detector"]) for row in mean] == [
        ("near", "MaxSoftmax"),
        ("near", "EnergyBased"),
    ]
    assert mean[1]["AUROC"] == pytest.approx((rows[1]["AUROC"] + rows[3]["AUROC"]) / 2)
    assert benchmark.averages(benchmark.evaluate(ours.MaxSoftmax(net), LOADER))[0].keys() == (
        rows[0].keys() - {"Detector"}
    )


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_cache_forwards_nothing_twice_and_never_lies(net, where, tmp_path):
    benchmark, folder = Made(), tmp_path / "cache"
    options = {"cache": True} if where == "memory" else {"cache_dir": folder, "cache_key": "net"}

    def run(network):
        detectors = [ours.EnergyBased(network), ours.SHE(network.features, network.fc)]
        z = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
        detectors[1].fit_features(z, torch.arange(64) % 4)
        network.images = 0
        target = benchmark if where == "memory" else Made()
        return target.evaluate(detectors, LOADER, **options), network.images

    first, forwarded = run(net)
    assert forwarded >= 90
    assert run(net) == (first, 0)
    with torch.no_grad():
        net.fc.weight[0] += 1  # one weight of the same object
    changed, forwarded = run(net)
    assert forwarded >= 90
    assert changed[0]["AUROC"] != first[0]["AUROC"]
    assert run(net) == (changed, 0)
    net.conv.forward = lambda x: nn.Conv2d.forward(net.conv, x) * 2
    assert run(net)[1] >= 90  # what replaces a method is in no digest
    del net.conv.forward
    net.conv.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert run(net)[1] >= 90  # what a hook does is in no digest


def test_the_cache_sees_the_images(net):
    class Changing(SetsBenchmark):
        ood_names = ["far"]

        def __init__(self):
            self.test_in, self.test_oods = KNOWN, [Subset(FAR, range(20))]

    benchmark, detector = Changing(), ours.EnergyBased(net)
    one = benchmark.evaluate(detector, LOADER, cache=True)
    benchmark.test_oods = [Subset(FAR, range(1, 20))]
    assert benchmark.evaluate(detector, LOADER, cache=True) != one
    lazy = ConcatDataset([[(x + 1, int(y)) for x, y in FAR]])  # its items can only be read
    benchmark.test_oods = [lazy]
    bright = benchmark.evaluate(detector, LOADER, cache=True)
    assert bright != one
    net.images = 0
    assert benchmark.evaluate(detector, LOADER, cache=True) == bright and net.images == 0


def test_networks_in_training_mode_and_shuffled_sets_are_not_cached(net):
    benchmark, detector = Made(), ours.EnergyBased(net)
    plain = benchmark.evaluate(detector, LOADER)
    shuffled = {**LOADER, "shuffle": True}
    assert benchmark.evaluate(detector, shuffled, cache=True)[1]["AUROC"] == pytest.approx(
        plain[1]["AUROC"]
    )
    net.train()
    benchmark.evaluate(detector, LOADER, cache=True)
    assert benchmark._remembered == {}


def test_a_subclass_that_predicts_its_own_way(net):
    class Inverted(ours.EnergyBased):
        def predict(self, x):
            return -super().predict(x)

    plain, inverted = Made().evaluate([ours.EnergyBased(net), Inverted(net)], LOADER)[:2]
    assert inverted["AUROC"] == pytest.approx(1 - plain["AUROC"])


def test_a_benchmark_needs_its_sets():
    with pytest.raises(TypeError, match="abstract"):
        Benchmark()
    with pytest.raises(ValueError, match="at least one of known and unknown"):
        Made().test_sets(False, False)
