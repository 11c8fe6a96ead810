"""Our evaluation takes detectors of ood.compat and objects of a user beside our own."""

from __future__ import annotations

import pytest
import torch
from detector_toys import gratings, network  # noqa: F401  (a fixture)
from torch import nn

from ood import detectors as formulas
from ood.compat import detector as compat
from ood.config import InputError
from ood.data import Preprocess
from ood.evaluation import scoring
from ood.evaluation.passes import Passes

PREPROCESS = Preprocess((0.5,), (0.25,))


class Distance:
    def fit_features(self, z):
        self.mean = z.mean(0)

    def predict_features(self, z):
        return (z - self.mean).norm(dim=1)


class Contrast:
    """Reads the normalised images themselves, and learns from a loader."""

    def fit(self, loader):
        self.labels = torch.cat([y for _, y in loader])

    def predict(self, x):
        return -x.flatten(1).std(1)


def evaluate(net, detectors):
    passes = Passes(net, PREPROCESS, batch_size=40)
    train, known = gratings(120, 0), gratings(60, 5)
    novel = scoring.TestSet("novel", gratings(50, 6, novel=True))
    return scoring.evaluate(passes, train, known, [novel], detectors)


def test_detectors_of_every_kind_in_one_list(network):  # noqa: F811
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc)
    maps = lambda x: network.feature_maps(x)[-1]
    contrast = Contrast()
    found = evaluate(
        network,
        {
            "ours": formulas.create("knn", k=5),
            "theirs": compat.KNN(network.features, k=5),
            "energy": compat.EnergyBased(network),
            "our energy": formulas.create("energy"),
            "distance": Distance(),
            "contrast": contrast,
            "clipped": compat.ReAct(maps, head),
            "odin": compat.ODIN(network, norm_std=PREPROCESS.std),
            "our odin": formulas.create("odin"),
        },
    )
    auroc = {row["detector"]: row["auroc"] for row in found.rows}
    assert list(auroc) == list(found.costs) == list(found.scores["novel"])
    assert auroc["ours"] == pytest.approx(auroc["theirs"])
    assert auroc["energy"] == pytest.approx(auroc["our energy"])
    assert auroc["odin"] == pytest.approx(auroc["our odin"], abs=1e-3)
    assert {len(scores) for scores in found.scores["novel"].values()} == {50}
    assert len(contrast.labels) == 120
    x = torch.cat([PREPROCESS(batch) for batch in gratings(50, 6, novel=True).batches(50)])
    assert found.scores["novel"]["contrast"] == pytest.approx(contrast.predict(x).numpy())
    assert found.costs["theirs"]["fit_seconds"] > 0 and found.costs["theirs"]["mib"] is None
    assert found.accuracies["classifier"] > 0.5


def test_arrays_of_the_pass_serve_detectors_of_this_network(network):  # noqa: F811
    """What reads logits or features adds no pass."""
    count = lambda module, inputs: seen.append(len(inputs[0]))
    hook, seen = network.first.register_forward_pre_hook(count), []
    try:
        evaluate(network, {"a": compat.EnergyBased(network), "b": Distance()})
        assert sum(seen) == 120 + 60 + 50
        seen.clear()
        evaluate(network, {"a": compat.EnergyBased(lambda x: network(x) * 2)})
        assert sum(seen) == 2 * (60 + 50)
    finally:
        hook.remove()


def test_a_detector_of_another_network_reads_that_one(network):  # noqa: F811
    other = lambda x: -network(x)
    rows = evaluate(network, {"a": compat.MaxLogit(network), "b": compat.MaxLogit(other)}).rows
    assert rows[0]["auroc"] != rows[1]["auroc"]


def test_a_list_gets_labels(network):  # noqa: F811
    detectors = [formulas.create("energy"), compat.EnergyBased(network), Contrast(), Contrast()]
    found = evaluate(network, detectors)
    assert list(found.scores["novel"]) == ["energy", "EnergyBased", "Contrast", "Contrast-2"]


def test_what_is_no_detector_is_refused(network):  # noqa: F811
    with pytest.raises(InputError, match="str is no detector"):
        evaluate(network, {"a": "energy"})
