"""pytorch-ood's names: the same calls give the same scores on the same network."""

import pickle

import pytest
import torch
from compat_toys import sets, tensors  # noqa: F401  (sets is a fixture)
from detector_toys import network, passed  # noqa: F401  (fixtures)
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import TensorDataset

from ood import compat
from ood.config import InputError
from ood.detectors import Detector

peer = pytest.importorskip(
    "pytorch_ood.detector", reason="pytorch-ood is not installed (requirements-dev.txt)"
)


class Stage(nn.Module):
    """One of the network's stages as a module of its own."""

    def __init__(self, net, index):
        super().__init__()
        self.parts = (
            nn.Sequential(net.first, net.norm, nn.ReLU())
            if index == 0
            else nn.Sequential(net.second, nn.ReLU())
        )

    def forward(self, x):
        return self.parts(x)


def both(net):
    """Every detector of pytorch-ood: {name: (make(module), least rank correlation)}."""
    maps, head, fc = (lambda x: net.feature_maps(x)[-1]), (lambda m: net.fc(net.embed(m))), net.fc
    stages = nn.ModuleList([Stage(net, 0), Stage(net, 1)]).eval()
    return {
        "MaxSoftmax": (lambda d: d.MaxSoftmax(net, t=2.0), 1),
        "MaxLogit": (lambda d: d.MaxLogit(net), 1),
        "EnergyBased": (lambda d: d.EnergyBased(net, t=2.0), 1),
        "Entropy": (lambda d: d.Entropy(net), 1),
        "WeightedEBO": (lambda d: d.WeightedEBO(net, torch.tensor([1.0, 2, 0.5, -1, 3, 1])), 1),
        "TemperatureScaling": (lambda d: d.TemperatureScaling(net), 0.7),
        "GEN": (lambda d: d.GEN(net, gamma=0.5), 0.999),
        "KLMatching": (lambda d: d.KLMatching(net), 0.999),
        "OpenMax": (lambda d: d.OpenMax(net, alpha=3), 0.99),
        "Mahalanobis": (lambda d: d.Mahalanobis(net.features), 0.99),
        "RMD": (lambda d: d.RMD(net.features), 0.99),
        "GMM": (lambda d: d.GMM(net.features, reg=1e-2), 0.999),
        "KNN": (lambda d: d.KNN(net.features, k=9), 1),
        "NNGuide": (lambda d: d.NNGuide(net.features, fc, k=5), 0.9999),
        "fDBD": (lambda d: d.fDBD(net.features, fc), 0.9999),
        "NCI": (lambda d: d.NCI(net.features, fc, alpha=0.01), 0.9999),
        "PNML": (lambda d: d.PNML(net.features, fc), 0.99),
        "SHE": (lambda d: d.SHE(net.features, fc), 0.9999),
        "DICE": (lambda d: d.DICE(net.features, fc.weight, fc.bias, p=0.7), 0.9999),
        "ViM": (lambda d: d.ViM(net.features, 8, fc.weight, fc.bias), 0.999),
        "LTS": (lambda d: d.LTS(net.features, fc, p=0.3), 0.9999),
        "MCM": (
            lambda d: d.MCM(
                net.features, torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
            ),
            0.9999,
        ),
        "ASH": (lambda d: d.ASH(maps, head, variant="ash-b"), 0.9999),
        "SCALE": (lambda d: d.SCALE(maps, head), 0.9999),
        "ReAct": (lambda d: d.ReAct(maps, head), 0.9999),
        "VRA": (lambda d: d.VRA(maps, head, 0.05, 0.9), 0.9999),
        "RankFeat": (lambda d: d.RankFeat(maps, head), 0.999),
        "MultiMahalanobis": (lambda d: d.MultiMahalanobis(list(stages)), 0.98),
        "ODIN": (lambda d: d.ODIN(net, eps=0.01, temperature=10.0, norm_std=[0.25]), 0.999),
        "MahalanobisODIN": (lambda d: d.MahalanobisODIN(net.features, eps=0.005), 0.97),
        "GradNorm": (lambda d: d.GradNorm(net, lambda n: "fc" in n), 0.999),
        "GradUncertainty": (lambda d: d.GradUncertainty(net, lambda n: "fc" in n), 0.999),
        "MCD": (lambda d: d.MCD(net, samples=150), 0.8),
        # ours: authors' bins, ranges of the predicted class, every tenth image held out
        "NACUE": (lambda d: d.NACUE(net, [net.norm, net.second], alpha=1.0, o_star=10), None),
        "Gram": (
            lambda d: d.Gram(
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc), list(stages), 6
            ),
            0.8,
        ),
    }


NAMES = sorted(n for n in peer.__all__ if n != "odin_preprocessing")


def test_every_detector_is_compared(network):
    assert set(both(network)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_fit_and_predict_as_pytorch_ood(name, network, sets):
    loader, x, labels = sets
    make, least = both(network)[name]
    ours, theirs = make(compat), make(peer)
    before = {n: p.clone() for n, p in network.state_dict().items()}
    found = ours.to("cpu").fit(loader)(x)
    assert found.shape == (120,) and torch.isfinite(found).all() and not found.requires_grad
    assert all(torch.equal(p, before[n]) for n, p in network.state_dict().items())
    with torch.no_grad():
        fitted = theirs.to("cpu").fit(loader) if name != "NACUE" else theirs
    if least is None:
        auroc = compat.OODMetrics().update(found, labels).compute()["AUROC"]
        assert auroc > 0.6
    else:
        assert spearmanr(found, fitted.predict(x).detach())[0] >= least - 1e-4
    if name != "MCD":
        torch.testing.assert_close(
            torch.cat([ours.predict(part) for part in x.split(40)]), found, rtol=1e-3, atol=1e-4
        )


def test_array_level_calls(network, sets):
    loader, x, labels = sets
    images, y = loader.dataset.tensors
    with torch.no_grad():
        z, f, m = (network.features(images), network(images), network.feature_maps(images)[-1])
        zt, ft, mt = (network.features(x), network(x), network.feature_maps(x)[-1])
    head = lambda a: network.fc(network.embed(a))  # noqa: E731
    assert torch.equal(
        compat.KNN(None, k=5).fit_features(z, y).predict_features(zt),
        compat.KNN(network.features, k=5).fit(loader)(x),
    )
    assert torch.equal(
        compat.KLMatching(None).fit_logits(f, y).predict_logits(ft),
        compat.KLMatching(network).fit(loader)(x),
    )
    assert torch.equal(
        compat.ReAct(None, head).fit_feature_maps(m, y).predict_feature_maps(mt),
        compat.ReAct(lambda a: network.feature_maps(a)[-1], head).fit(loader)(x),
    )
    flags = torch.arange(150) % 3 == 0
    stained, marked = torch.where(flags[:, None], z * 100, z), torch.where(flags, -1, y)
    torch.testing.assert_close(
        compat.ViM(None, 5, network.fc.weight, network.fc.bias)
        .fit_features(stained, marked)
        .predict_features(zt),
        compat.ViM(None, 5, network.fc.weight, network.fc.bias)
        .fit_features(z[~flags], y[~flags])
        .predict_features(zt),
    )


def test_segmentation_logits_give_a_score_per_pixel():
    logits = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    for make in (
        lambda d: d.MaxSoftmax(None),
        lambda d: d.EnergyBased(None),
        lambda d: d.Entropy(None),
        lambda d: d.MaxLogit(None),
        lambda d: d.WeightedEBO(None, torch.ones(6)),
    ):
        torch.testing.assert_close(
            make(compat).predict_logits(logits).double(),
            make(peer).predict_logits(logits).double(),
            rtol=1e-5,
            atol=1e-6,
        )


def test_any_score_behind_a_shaping(network, sets):
    loader, x, _ = sets
    for score, ours in (
        (peer.MaxSoftmax.score, compat.MaxSoftmax.score),
        (peer.MaxLogit.score, compat.MaxLogit.score),
        (lambda f: -f.std(1), lambda f: -f.std(1)),
        (peer.MaxSoftmax.score, "msp"),
    ):
        theirs = (
            peer.DICE(network.features, network.fc.weight, network.fc.bias, p=0.5, detector=score)
            .to("cpu")
            .fit(loader)
        )
        mine = compat.DICE(
            network.features, network.fc.weight, network.fc.bias, p=0.5, detector=ours
        ).fit(loader)
        torch.testing.assert_close(
            mine(x).double(), theirs.predict(x).detach().double(), rtol=1e-4, atol=1e-4
        )


def test_hyperparameters_by_their_names(network, sets):
    detector = compat.GEN(network)
    assert detector.get_hyperparameters() == {"gamma": 0.1, "M": None}
    f = torch.randn(5, 6)
    torch.testing.assert_close(
        detector.set_hyperparameters(gamma=0.5, M=3).predict_logits(f),
        compat.GEN(None, 0.5, 3).predict_logits(f),
    )
    torch.testing.assert_close(
        compat.GEN.score(f, 0.5, M=3), compat.GEN(None, 0.5, 3).predict_logits(f)
    )
    head = nn.Linear(6, 1)
    for d in (compat, peer):
        weighted = d.WeightedEBO(None, head.weight)
        with torch.no_grad():
            head.weight.copy_(torch.rand(1, 6))  # trained further
        torch.testing.assert_close(
            weighted.predict_logits(f).float(), d.WeightedEBO.score(f, head.weight).float()
        )
    dice = compat.DICE(None, network.fc.weight, network.fc.bias, p=0.1).set_hyperparameters(p=0.9)
    assert dice.formula.percentile == 90.0
    with pytest.raises(ValueError, match="no hyper-parameter"):
        dice.set_hyperparameters(q=1)
    with pytest.raises(ValueError, match="fraction"):
        compat.DICE(None, network.fc.weight, network.fc.bias, p=65.0)
    with pytest.raises(compat.ModelNotSetException):
        compat.MaxSoftmax(None)(torch.zeros(1, 1, 12, 12))
    with pytest.raises(compat.RequiresFittingException):
        compat.KNN(None).predict_features(torch.zeros(3, 4))
    with pytest.raises(InputError, match="metric"):
        compat.KNN(None, metric="cosine")
    assert isinstance(dice.formula, Detector)
    z, y = torch.randn(30, 16), torch.arange(30) % 6
    again = pickle.loads(pickle.dumps(dice.fit_features(z, y)))
    assert torch.equal(again.predict_features(z), dice.predict_features(z)), (
        "a fitted detector can be kept"
    )


SCRIPT = """
import pytorch_ood
from torch.utils.data import ConcatDataset, DataLoader
from pytorch_ood.api import FeaturesDetector, RequiresFittingException
from pytorch_ood.detector import DICE, EnergyBased, GradNorm, KLMatching, KNN, Mahalanobis
from pytorch_ood.detector import MaxSoftmax, ReAct, SHE, ViM
from pytorch_ood.loss import OutlierExposureLoss
from pytorch_ood.metrics import AUROC, OODMetrics
from pytorch_ood.utils import TensorBuffer, ToUnknown, extract_features, fix_random_seed, is_known

fix_random_seed(123)
to_unknown, criterion = ToUnknown(), OutlierExposureLoss(alpha=0.5, reduction="sum")
train_loader = DataLoader(train_set, batch_size=50)
novel_set = [(x, to_unknown(y)) for x, y in novel_set]
test_loader = DataLoader(ConcatDataset([test_set, novel_set]), batch_size=32)

w, b = model.fc.weight, model.fc.bias
maps, head = (lambda x: model.feature_maps(x)[-1]), (lambda m: model.fc(model.embed(m)))
detectors = {
    "MSP": MaxSoftmax(model),
    "Energy": EnergyBased(model, t=1.0),
    "KLM": KLMatching(model),
    "ViM": ViM(model.features, d=8, w=w, b=b),
    "KNN": KNN(model.features, k=9),
    "Mahalanobis": pytorch_ood.detector.Mahalanobis(model.features),
    "SHE": SHE(model.features, model.fc),
    "ReAct": ReAct(maps, head),
    "DICE": DICE(model.features, w=w, b=b, p=0.7, detector=MaxSoftmax.score),
    "GradNorm": GradNorm(model, param_filter=lambda name: name == "fc.weight"),
}
try:
    detectors["KNN"].predict(torch.zeros(1, 1, 12, 12))
    raise AssertionError
except RequiresFittingException:
    pass

results = {}
for name, detector in detectors.items():
    detector.to("cpu")
    detector.fit(train_loader)
    metrics = OODMetrics(fpr_at=0.9)
    for x, y in test_loader:
        metrics.update(detector(x), y, model(x).argmax(dim=1))
    results[name] = metrics.compute()

features, labels = extract_features(train_loader, model.features, "cpu")
on_arrays = KNN(None, k=9).fit_features(features, labels=labels)
auroc, buffer = AUROC(), TensorBuffer()
for x, y in test_loader:
    with torch.no_grad():
        buffer.append("z", model.features(x)).append("logits", model(x)).append("y", y)
auroc.update(on_arrays.predict_features(z=buffer.get("z")), buffer["y"])
results["arrays"] = auroc.compute()
kinds = {name: isinstance(detector, FeaturesDetector) for name, detector in detectors.items()}
loss = round(criterion(buffer["logits"], buffer["y"]).item(), 2)
shapes = [tuple(features.shape), labels.tolist(), loss, int(is_known(buffer["y"]).sum())]
"""


def test_a_script_runs_with_the_word_replaced(network, sets):
    _, x, labels = sets
    train_set, known, novel = (
        TensorDataset(*tensors(150, 0)),
        [(image, int(y)) for image, y in zip(x[:60], labels)],
        [(image, 3) for image in x[60:]],
    )
    scopes = {}
    for library in ("pytorch_ood", "ood.compat"):
        scopes[library] = {
            "model": network,
            "train_set": train_set,
            "test_set": known,
            "novel_set": novel,
            "torch": torch,
        }
        exec(
            SCRIPT.replace("import pytorch_ood\n", f"import {library}\n").replace(
                "pytorch_ood", library
            ),
            scopes[library],
        )
    ours, theirs = scopes["ood.compat"], scopes["pytorch_ood"]
    assert (
        ours["kinds"] == theirs["kinds"]
        and ours["shapes"] == theirs["shapes"]
        and list(ours["results"]) == list(theirs["results"])
    )
    assert all(type(d).__module__.startswith("ood.compat") for d in ours["detectors"].values())
    for name, found in ours["results"].items():
        assert list(found) == list(theirs["results"][name]), "names of the metrics, in their order"
        for key, value in found.items():
            near = (
                2e-2 if key.startswith("AUPR") else 5e-3 if name in ("Mahalanobis", "KLM") else 2e-3
            )  # average precision against a trapezoid
            assert value == pytest.approx(theirs["results"][name][key], abs=near), f"{name} {key}"


def test_detectors_of_your_own(network, sets):
    loader, x, _ = sets
    sources = """
class Centre(api.FeaturesDetector):
    requires_fit = True
    hyperparameter_space = {"power": [1, 2]}

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.power, self.mean = encoder, 1, None

    def fit(self, data_loader):
        return self.fit_features(*utils.extract_features(data_loader, self.encoder, "cpu"))

    def fit_features(self, x, y):
        self.mean = x.mean(0)
        return self

    def predict(self, x):
        return self.predict_features(self.encoder(x))

    def predict_features(self, x):
        if self.mean is None:
            raise api.RequiresFittingException("fit first")
        return (x - self.mean).norm(dim=1) ** self.power

class Margin(api.LogitsDetector):
    def __init__(self, model):
        self.model = model

    def predict_logits(self, logits):
        best = logits.topk(2, dim=1).values
        return best[:, 1] - best[:, 0]

class Slope(api.GradientDetector):
    def __init__(self, model):
        self.model = model

    def predict(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            slope = torch.autograd.grad(self.model(x).logsumexp(1).sum(), x)[0]
            return -slope.flatten(1).abs().sum(1)
"""
    import pytorch_ood

    scores = []
    for library in (compat, pytorch_ood):
        scope = {"api": library.api, "utils": library.utils, "torch": torch}
        exec(sources, scope)
        with torch.no_grad():
            centre = scope["Centre"](network.features)
            with pytest.raises(library.api.RequiresFittingException):
                centre.predict(x)
            made = [
                centre.to("cpu").set_hyperparameters(power=2).fit(loader),
                scope["Margin"](network).to("cpu").fit(loader),
                scope["Slope"](network).to("cpu"),
            ]
            scores.append(torch.stack([d(x) for d in made]))
            assert (
                made[0].get_hyperparameters() == {"power": 2}
                and scope["Centre"].requires_fit
                and not scope["Margin"].requires_fit
            )
    torch.testing.assert_close(*scores)

    class Bare(compat.FeaturesDetector):
        """No formula, no predict: what is missing is said."""

        requires_fit = True

    with pytest.raises(NotImplementedError, match="Bare"):
        Bare().fit_features(x.flatten(1))


def test_gen_of_all_classes():
    f = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    for options, classes in (({}, 200), ({"gamma": 0.5}, 200), ({"M": None}, 200), ({"M": 30}, 30)):
        torch.testing.assert_close(
            compat.GEN.score(f, **options).float() / classes,
            peer.GEN.score(f, **options),
            rtol=1e-4,
            atol=1e-6,
        )
        torch.testing.assert_close(
            compat.GEN(None, **options).predict_logits(f), compat.GEN.score(f, **options)
        )


def test_segmentation_heads_give_a_score_per_pixel():
    maps, head = (
        torch.rand(4, 8, 5, 6, generator=torch.Generator().manual_seed(0)),
        nn.Conv2d(8, 7, 1),
    )
    y = torch.zeros(4, dtype=torch.long)
    detectors = {
        "ReAct": lambda d, s: d.ReAct(None, head, detector=s),
        "ASH": lambda d, s: d.ASH(None, head, detector=s),
        "SCALE": lambda d, s: d.SCALE(None, head, detector=s),
        "VRA": lambda d, s: d.VRA(None, head, detector=s),
        "RankFeat": lambda d, s: d.RankFeat(None, head, detector=s),
    }
    for name, make in detectors.items():
        for score in (None, peer.Entropy.score, lambda f: f.amax(1).mean((1, 2))):
            ours, theirs = (
                make(d, score).fit_feature_maps(maps, y).predict_feature_maps(maps)
                for d in (compat, peer)
            )
            assert ours.shape == theirs.shape, name
            torch.testing.assert_close(ours.float(), theirs.detach(), rtol=1e-3, atol=1e-3)
    react = compat.ReAct(None, head, detector="msp").fit_feature_maps(maps, y)
    assert (
        react.predict_feature_maps(maps).shape == (4, 5, 6)
        and react.predict_feature_maps(maps[:0]).shape[0] == 0
    )
    with pytest.raises(InputError, match="NaN"):
        react.predict_feature_maps(maps.clone().index_fill_(0, torch.tensor([2]), torch.nan))


def test_nacue_of_any_layers(network, sets):
    loader, x, labels = sets
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
        nn.ReLU(),
        nn.Linear(12, 6),
    ).eval()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(15):
        for images, y in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images), y).backward()
            optimiser.step()
    layers = [net[1], net[3], net[4]]
    options = dict(m_bins=[10, 20, 20], alpha=[1.0, 10.0, 10.0], o_star=[5, 10, 20])
    make = {
        "same": dict(),
        "lists": options,
        "reduced": dict(
            options, feature_reduce=lambda z: z.flatten(2).amax(2) if z.dim() > 2 else z
        ),
        "device": dict(device="cpu"),
    }
    scores = {}
    for name, chosen in make.items():
        scores[name] = compat.NACUE(net, layers, **chosen).fit(loader)(x)
        theirs = peer.NACUE(net, layers, **chosen).fit(loader).predict(x)
        assert (
            scores[name].shape == theirs.shape == (120,)
            and -3 <= scores[name].min()
            and scores[name].max() <= 0
        )
    assert torch.equal(scores["same"], scores["device"])
    assert not torch.equal(scores["lists"], scores["same"]) and not torch.equal(
        scores["lists"], scores["reduced"]
    )
    assert torch.equal(
        scores["lists"],
        sum(
            compat.NACUE(net, [layer], m, a, o).fit(loader)(x)
            for layer, m, a, o in zip(layers, *options.values())
        ),
    )
    assert torch.equal(
        compat.NACUE(net, layers).fit(images for images, _ in loader)(x), scores["same"]
    ), "a loader without labels"
    assert torch.equal(
        compat.NACUE(net, layers, m_bins=51).fit(loader)(x),
        compat.NACUE(net, layers, m_bins=50).fit(loader)(x),
    ), "bins are mirrored: an odd number is one less"
    with pytest.raises(ValueError, match="2 values for 3 layers"):
        compat.NACUE(net, layers, m_bins=[10, 20])


def test_vim_with_more_dimensions_than_features(network, sets):
    loader, x, _ = sets
    w, b = network.fc.weight, network.fc.bias
    ours, theirs = (
        d.ViM(network.features, 8, w, b).to("cpu").set_hyperparameters(d=512)
        for d in (compat, peer)
    )
    assert (
        spearmanr(ours.fit(loader)(x), theirs.fit(loader).predict(x).detach())[0] > 0.999
        and ours.d == theirs.d == 8
    )
    assert torch.isfinite(compat.ViM(network.features, 16, w, b).fit(loader)(x)).all(), "d = D"


def test_dropout_like_pytorch_ood(network, sets):
    x = sets[1]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = nn.Sequential(nn.Flatten(), nn.Linear(144, 6))
    for net, options in (
        (network, {}),
        (network, {"mode": "mean"}),
        (network, {"batch_norm": False}),
        (plain, {}),
        (plain, {"mode": "mean"}),
    ):
        found = []
        for d in (compat, peer):
            torch.manual_seed(3)
            found.append(d.MCD(net, samples=5, **options).predict(x).float())
            network.load_state_dict(before if d is peer else network.state_dict())
            assert d is peer or all(
                torch.equal(value, before[name]) for name, value in network.state_dict().items()
            )
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
    assert not network.training and not any(m.training for m in network.modules())
    torch.manual_seed(3)
    mean, variance = compat.MCD.run(network, x, 5)
    torch.manual_seed(3)
    torch.testing.assert_close(compat.MCD.run_mean(network, x, 5).amax(1), mean)
    assert variance.shape == (120,) and compat.MCD.run_mean(nn.Conv2d(1, 4, 1), x, 2).shape == (
        120,
        4,
        12,
        12,
    )


def test_parameters_and_groups_of_gradients(network, sets, monkeypatch):
    x, seen = sets[1], []
    whole = compat.GradNorm(network, lambda n: "fc" in n)(x)
    real = compat.layers.squared_gradients
    monkeypatch.setattr(
        compat.layers,
        "squared_gradients",
        lambda net, images, *rest: seen.append(len(images)) or real(net, images, *rest),
    )
    torch.testing.assert_close(
        compat.GradNorm(network, lambda n: "fc" in n, micro_batch_size=7)(x), whole
    )
    assert max(seen) == 7 and sum(seen) == 120
    for name in ("GradNorm", "GradUncertainty"):
        with pytest.raises(ValueError, match="param_filter"):
            getattr(compat, name)(network, lambda n: False)(x)


def test_fit_on_arrays_needs_labels_only_where_they_matter():
    z = torch.randn(60, 6)
    for name, arguments in {
        "Mahalanobis": (),
        "RMD": (),
        "GMM": (),
        "SHE": (nn.Linear(6, 3),),
    }.items():
        with pytest.raises(TypeError, match="labels"):
            getattr(compat, name)(None, *arguments).fit_features(z)
    for name in ("TemperatureScaling", "OpenMax"):
        with pytest.raises(TypeError, match="labels"):
            getattr(compat, name)(None).fit_logits(z)
    assert torch.equal(
        compat.KLMatching(None).fit_logits(z).predict_logits(z),
        compat.KLMatching(None).fit_logits(z, torch.zeros(60)).predict_logits(z),
    )
    assert (
        spearmanr(
            compat.KLMatching(None).fit_logits(z).predict_logits(z),
            peer.KLMatching(None).fit_logits(z).predict_logits(z),
        )[0]
        > 0.999
    )


def test_calls_with_the_arguments_of_pytorch_ood(network, sets):
    loader, x, _ = sets
    images, y = loader.dataset.tensors
    stages = nn.ModuleList([Stage(network, 0), Stage(network, 1)]).eval()
    with torch.no_grad():
        z, zt = network.features(images), network.features(x)
        maps, maps_t = (stages[0](a) for a in (images, x))
        last, last_t = stages[1](maps), stages[1](maps_t)
    for d in (compat, peer):
        assert torch.isfinite(
            d.KNN(None, k=4).fit_features(z=z, labels=y).predict_features(z=zt)
        ).all()
        assert torch.isfinite(
            d.ViM(None, 4, network.fc.weight, network.fc.bias)
            .fit_features(features=z, labels=y)
            .predict_features(x=zt)
        ).all()
        assert torch.isfinite(
            d.NNGuide(network.features, network.fc, k=4)
            .fit(loader, device="cpu")
            .predict_features(zt, batch_size=7)
        ).all()
    guide = compat.NNGuide(None, network.fc, k=4)
    assert torch.equal(
        guide.fit_features(z, y, 11).predict_features(zt, 3),
        guide.fit_features(z=z, labels=y).predict_features(zt),
    )
    assert torch.equal(
        compat.SHE(None, network.fc).fit_features(z, y, batch_size=10).predict_features(zt),
        compat.SHE(None, network.fc).fit_features(z, y).predict_features(z=zt),
    )
    torch.testing.assert_close(compat.LTS.scaling_factor(zt, 0.3), peer.LTS.scaling_factor(zt, 0.3))
    f = torch.randn(9, 6)
    torch.testing.assert_close(
        compat.TemperatureScaling.score(f, t=2.0).float(), peer.TemperatureScaling.score(f, t=2.0)
    )
    assert compat.TemperatureScaling(None).t == 1 and isinstance(
        compat.TemperatureScaling(None), compat.MaxSoftmax
    )
    ours, theirs = (d.MultiMahalanobis(list(stages)).to("cpu").fit(loader) for d in (compat, peer))
    assert (
        torch.equal(ours.predict_structured([maps_t, last_t], "cpu"), ours(x))
        and ours.n_classes == theirs.n_classes == 6
    )
    assert torch.equal(
        compat.MultiMahalanobis(list(stages))
        .fit_structured([maps, last], y)
        .predict_structured([maps_t, last_t]),
        ours(x),
    )
    assert (
        spearmanr(
            ours(x),
            theirs.predict_structured([maps_t.mean((2, 3)), last_t.mean((2, 3))], device="cpu"),
        )[0]
        > 0.98
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc)
    with torch.no_grad():
        gram = compat.Gram(head, list(stages), 6).fit_structured(head(last), [maps, last], y)
        assert torch.equal(
            gram.predict_structured(logits=head(last_t), feature_list=[maps_t, last_t]),
            compat.Gram(head, list(stages), 6).fit(loader)(x),
        )
    with pytest.raises(ValueError, match="num_classes"):
        compat.Gram(head, list(stages), 7).fit(loader)
    odin = compat.MahalanobisODIN(network.features).fit_features(z, y)
    torch.testing.assert_close(odin(x), compat.MahalanobisODIN(network.features).fit(loader)(x))
    with torch.no_grad():
        found = [
            d.ReAct(
                lambda a: network.feature_maps(a)[-1],
                lambda m: network.fc(network.embed(m)),
                threshold=0.1,
            ).to("cpu")
            for d in (compat, peer)
        ]
        torch.testing.assert_close(*(d.predict(x).float() for d in found), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            *(d.fit(loader).predict(x).float() for d in found), rtol=1e-4, atol=1e-4
        )
    assert found[0].threshold == pytest.approx(found[1].threshold)


def test_static_scores_have_a_gradient():
    for shape in ((7, 6), (2, 6, 3, 4)):
        f = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        for name, more in {
            "MaxSoftmax": (2.0,),
            "MaxLogit": (),
            "EnergyBased": (0.5,),
            "Entropy": (),
            "WeightedEBO": (torch.rand(1, 6),),
            "GEN": (0.5, 4),
        }.items():
            gradients = []
            for d in (compat, peer):
                x = f.clone().requires_grad_()
                scores = getattr(d, name).score(x, *more)
                scores.sum().backward()
                gradients.append(
                    torch.cat([scores.detach().float().flatten(), x.grad.flatten()])
                    / (4 if name == "GEN" and d is compat else 1)
                )
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
