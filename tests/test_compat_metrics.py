"""pytorch-ood's metrics, helpers and grid search: the same calls give the same numbers."""

import random
import warnings

import numpy as np
import pytest
import torch
from compat_toys import sets  # noqa: F401  (a fixture)
from detector_toys import network, passed  # noqa: F401  (fixtures)
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ood import compat

theirs = pytest.importorskip("pytorch_ood.metrics", reason="pytorch-ood is not installed")
helpers = pytest.importorskip("pytorch_ood.utils")
detectors = pytest.importorskip("pytorch_ood.detector")
ours = compat.metrics
BOTH = (ours, theirs)


@pytest.fixture(params=(False, True), ids=("distinct", "ties"))
def scored(request):
    """Scores (400,), labels with outliers, and predictions."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, generator=generator)
    labels = torch.randint(-1, 5, (400,), generator=generator)
    scores = scores + (labels < 0)
    predictions = torch.where(torch.rand(400, generator=generator) < 0.8, labels, 0)
    return scores.mul(3).round() if request.param else scores, labels, predictions


@pytest.mark.parametrize(
    "make",
    (
        lambda m: m.AUROC(),
        lambda m: m.AUTC(),
        lambda m: m.FPRAtTPR(),
        lambda m: m.FPRAtTPR(0.8),
        lambda m: m.FPRAtTPR(tpr=0.0),
        lambda m: m.AUROC(void_label=2),
    ),
)
def test_single_metrics(make, scored):
    """Batches of any shape, by position and by name."""
    scores, labels, _ = scored
    made = [make(m) for m in BOTH]
    for metric in made:
        metric.update(scores[:150], labels[:150])
        metric.update(scores=scores[150:].view(10, 25), labels=labels[150:].view(10, 25))
    found = [metric.compute() for metric in made]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert made[0].keys == made[1].keys == tuple(found[0])
    with pytest.raises(ValueError):
        made[0].reset().compute()


def test_collections(scored):
    scores, labels, predictions = scored
    made = [m.OODMetrics(fpr_at=0.9, void_label=3, device="cpu") for m in BOTH]
    found = [metric.update(scores, labels, predictions).compute() for metric in made]
    names = ["AUROC", "AUTC", "AUPR-IN", "AUPR-OUT", "FPR90TPR", "ACC"]
    assert list(found[0]) == list(found[1]) == names
    for key in set(names) - {"AUPR-IN", "AUPR-OUT"}:
        assert found[0][key] == pytest.approx(found[1][key], abs=1e-6)
    given = {"scores": scores, "labels": labels, "predictions": predictions}
    made = [m.MetricCollection([m.AUROC(), m.Accuracy()]) for m in BOTH]
    found = [metric.update(**given).compute() for metric in made]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


OWN = """
class Gap(metrics.BufferedMetric):
    inputs, keys, needs_id, needs_ood = ("scores", "labels"), ("GAP",), True, True

    def _compute_from(self, data):
        ood = data["labels"] < 0
        return {"GAP": data["scores"][ood].mean() - data["scores"][~ood].mean()}

class Share(metrics.StreamingMetric):
    inputs, keys = ("labels",), ("SHARE",)

    def __init__(self, **options):
        super().__init__(**options)
        self.ood = self.all = torch.tensor(0.0)

    def _update(self, inputs):
        self.ood = self.ood + (inputs["labels"] < 0).sum()
        self.all = self.all + len(inputs["labels"])

    def _compute(self):
        return {"SHARE": self.ood / self.all}

    def _reset(self):
        self.ood = self.all = torch.tensor(0.0)
"""


def test_metrics_of_your_own(scored):
    found = []
    for library in BOTH:
        scope = {"metrics": library, "torch": torch}
        exec(OWN, scope)
        gap, share = scope["Gap"], scope["Share"]
        made = [gap(), share(void_label=2), library.MetricCollection([gap(), share()])]
        images = library.PerImage(library.MetricCollection([gap(), share()]))
        for part in (slice(0, 150), slice(150, 400)):
            given = {"scores": scored[0][part], "labels": scored[1][part]}
            made[0].update(**given)
            made[1].update(given["labels"])
            made[2].update(**given)
        images.update(scores=scored[0].view(8, 50), labels=scored[1].view(8, 50))
        found.append([metric.compute() for metric in (*made, images)])
        found[-1].append(made[1].reset().update(scored[1][:10]).compute())
    for mine, peers in zip(*found):
        assert mine == pytest.approx(peers, abs=1e-5)


@pytest.mark.parametrize(
    "make",
    (
        lambda m: m.PerImage(m.AUROC()),
        lambda m: m.OODPerImageSegmentationMetrics(void_label=2),
        lambda m: m.OODSegmentationMetrics(),
    ),
)
def test_segmentation(make, scored):
    """The last image has no OOD pixels."""
    images, masks = scored[0].view(4, 10, 10), scored[1].view(4, 10, 10).clone()
    masks[3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [make(m).update(images, masks).compute() for m in BOTH]
    assert list(found[0]) == list(found[1])
    for key, value in found[0].items():
        assert value == pytest.approx(found[1][key], abs=5e-2 if "AUPR" in key else 1e-6)


def test_functions(scored):
    scores, labels, predictions = scored
    for name in ("auroc", "fpr_at_tpr", "autc", "roc_curve", "pr_curve"):
        found = [getattr(m.functional, name)(scores, labels) for m in BOTH]
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(m.functional.pr_curve(scores, labels, "id") for m in BOTH))
    found = [m.oscr_score(scores, predictions, labels) for m in BOTH]
    assert found[0] == pytest.approx(found[1])
    assert ours.calc_openness(5, 10, 7) == pytest.approx(theirs.calc_openness(5, 10, 7))


def test_calibration():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(230, generator=generator)
    correct = torch.randint(0, 2, (230,), generator=generator)
    assert ours.aurra(confidence, correct) == pytest.approx(theirs.aurra(confidence, correct))
    for p, beta in (("1", 50), ("2", 100), ("infty", 30), ("max", 30), ("2", 500)):
        found = [m.calibration_error(confidence, correct, p, beta) for m in BOTH]
        assert found[0] == pytest.approx(found[1]), p


def test_metrics_refuse_what_has_no_value():
    scores, labels = torch.rand(4), torch.tensor([0, 1, -1, -1])
    twice = lambda: compat.OODMetrics().update(scores, labels, labels).update(scores, labels)
    for wrong, message in (
        (lambda: compat.OODMetrics().update(scores, labels[:3]), "shape"),
        (lambda: compat.OODMetrics(void_label=-1), "void_label"),
        (lambda: compat.OODMetrics(fpr_at=95), "fraction"),
        (lambda: compat.OODMetrics().update(scores, labels.abs()).compute(), "OOD scores"),
        (twice, "in no update"),
        (lambda: compat.OODMetrics().update(scores * torch.nan, labels).compute(), "NaN"),
        (lambda: compat.AUPR("both"), "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.warns(UserWarning, match="AUTC"):
        assert compat.AUTC().update(torch.ones(4), labels).compute()["AUTC"] != 0.5
    with pytest.raises(TypeError):
        compat.AUROC().update(scores, labels, labels)


def test_features_of_a_loader(network, sets):
    _, x, labels = sets
    mixed = DataLoader(TensorDataset(x, labels), batch_size=25)
    for name, part in (
        ("extract_features", network.features),
        ("extract_feature_avg", lambda a: network.feature_maps(a)[-1]),
    ):
        found, wanted = (getattr(m, name)(mixed, part, "cpu") for m in (compat, helpers))
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
        assert len(found[0]) == 60
    with pytest.raises(ValueError):
        compat.extract_features([(x[60:], labels[60:])], network.features, None)


def test_labels_and_transforms():
    for known, unknown in (({2, 3, 9}, {0, 1}), ([4], [7])):
        ours, peers = (m.TargetMapping(known, unknown) for m in (compat, helpers))
        assert dict(ours.items()) == dict(peers.items())
        assert all(ours(c) == peers(torch.tensor(c)) for c in range(12))
        assert ours[4 if 4 in known else 9] >= 0
    with pytest.raises(ValueError):
        compat.TargetMapping({1}, {1})
    picture = Image.new("L", (2, 2))
    assert compat.ToRGB()(picture).mode == "RGB" and compat.ToRGB()(3) == 3
    for name in ("contains_known", "contains_unknown", "contains_known_and_unknown"):
        for case in ([1, 2], [-1, -3], [1, -1]):
            found = [bool(getattr(m, name)(torch.tensor(case))) for m in (compat, helpers)]
            assert found[0] == found[1], (name, case)


def test_seeds():
    draws = []
    for m in (compat, helpers):
        m.fix_random_seed(7)
        draws.append((torch.rand(2).tolist(), random.random(), float(np.random.rand())))
    assert draws[0] == draws[1]


def test_buffers(tmp_path):
    buffer = compat.TensorBuffer().append("a", torch.ones(2, requires_grad=True))
    buffer.append("a", torch.zeros(1))
    assert buffer["a"].tolist() == [1, 1, 0] and not buffer["a"].requires_grad
    assert "a" in buffer and "b" not in buffer and not buffer.is_empty()
    assert len(buffer.sample("a")) in (1, 2)
    buffer.save(tmp_path / "buffer.pt")
    saved = torch.load(tmp_path / "buffer.pt", weights_only=True)
    assert torch.equal(saved["a"], buffer.get("a"))
    assert buffer.clear().is_empty()
    with pytest.raises(KeyError):
        buffer.get("a")


def test_centres_distances_and_temperature(network, sets):
    images, y = sets[0].dataset.tensors
    z, near = images.flatten(1), {"rtol": 1e-3, "atol": 1e-3}
    for name, arguments in (
        ("estimate_class_centers", (z, y, 8)),
        ("pairwise_distances", (z[:9], z[9:30])),
        ("torch_get_distances", (z[:3], z)),
    ):
        found = [getattr(m, name)(*arguments) for m in (compat, helpers.utils)]
        torch.testing.assert_close(*found, **near)
    noise = torch.randn(150, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images) + 4 * noise
    found = [m.temperature_calibration(logits, y) for m in (compat, helpers.utils)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


@pytest.mark.parametrize(
    "make, space",
    (
        (lambda d, net: d.KNN(net.features, k=3), {"k": [1, 5, 40]}),
        (lambda d, net: d.GEN(net), {"gamma": [0.5, 1], "M": [2, 6]}),
        (
            lambda d, net: d.ReAct(
                lambda a: net.feature_maps(a)[-1], lambda m: net.fc(net.embed(m))
            ),
            None,
        ),
        (
            lambda d, net: d.ViM(net.features, 4, net.fc.weight, net.fc.bias),
            {"d": [2, 8, 512]},
        ),
        (
            lambda d, net: d.MultiMahalanobis(
                [
                    nn.Sequential(net.first, net.norm, nn.ReLU()),
                    nn.Sequential(net.second, nn.ReLU()),
                ]
            ),
            {"alpha": [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]},
        ),
    ),
    ids=("KNN", "GEN", "ReAct", "ViM", "layers"),
)
def test_grid_search(make, space, network, sets):
    loader, x, labels = sets
    noise = torch.randn(60, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    x = torch.cat([x[:60], x[:60] + 1.2 * noise])
    validation = DataLoader(TensorDataset(x, labels), batch_size=40)
    found = []
    for search, d in ((compat.GridSearch, compat), (helpers.GridSearch, detectors)):
        with torch.no_grad():
            detector = make(d, network)
            found.append(search(detector, loader, validation, hyperparameter_space=space))
            found[-1].run()
    mine, peers = found
    assert [r["params"] for r in mine.results_] == [r["params"] for r in peers.results_]
    scores = [[r["score"] for r in search.results_] for search in found]
    assert scores[0] == pytest.approx(scores[1], abs=3e-3) and len(set(scores[0])) > 1
    assert mine.best_score_ == pytest.approx(peers.best_score_, abs=3e-3)
    assert mine.detector.get_hyperparameters() == mine.best_params_
    score = compat.OODMetrics().update(mine.detector(x), labels).compute()["AUROC"]
    assert score == pytest.approx(mine.best_score_), "left fitted with the best"
    before = list(mine.results_)
    mine.run()
    assert mine.results_ == before, "a second run starts anew"


def test_a_search_for_the_least_and_for_nothing(network, sets):
    loader, x, labels = sets
    validation = [(x, labels)]
    options = {"metric_name": "FPR95TPR", "higher_is_better": False}
    search = compat.GridSearch(
        compat.KNN(network.features), loader, validation, {"k": [1, 40]}, **options
    )
    search.run()
    assert search.best_score_ == min(r["score"] for r in search.results_)
    with pytest.raises(ValueError, match="nothing to search"):
        compat.GridSearch(compat.MaxLogit(network), None, validation)
