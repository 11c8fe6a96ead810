"""Detectors against pytorch-ood on the same arrays, and against explicit loops.

The loops take one image and one class at a time.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from detector_toys import gratings, network, outputs, passed  # noqa: F401  (fixtures)
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy, cross_entropy, normalize

from ood import detectors, statistics
from ood.data import Preprocess
from ood.detectors.base import chunked_score
from ood.detectors.gradients import bin_edges, squared_gradients
from ood.detectors.maps import gram_rows, positions, remove_rank1
from ood.outputs import extract

peer = pytest.importorskip(
    "pytorch_ood.detector", reason="pytorch-ood is not installed (requirements-dev.txt)"
)


@pytest.fixture(scope="module")
def arrays():
    """(train, test): a training set and 60 ID + 60 OOD images."""
    known, novel = outputs(60, seed=2), outputs(60, seed=3, shift=0.9)
    both = dataclasses.replace(
        known,
        **{
            f: torch.cat([getattr(known, f), getattr(novel, f)])
            for f in ("features", "logits", "labels")
        },
        taps=tuple(torch.cat(t) for t in zip(known.taps, novel.taps)),
    )
    return outputs(600, seed=1), both


def score(name, arrays, **hyperparameters):
    train, test = arrays
    return chunked_score(detectors.create(name, **hyperparameters).fit(train), test)


def head_of(outputs_):
    layer = nn.Linear(*outputs_.head.weight.shape[::-1])
    layer.weight.data, layer.bias.data = outputs_.head.weight, outputs_.head.bias
    return layer.requires_grad_(False)


def flat_head(outputs_):
    """The head behind 1 x 1 maps: so that detectors of feature maps see pooled features."""
    return nn.Sequential(nn.Flatten(), head_of(outputs_))


LOGITS = [
    ("msp", {"temperature": 2.0}, lambda: peer.MaxSoftmax(None, t=2.0)),
    ("maxlogit", {}, lambda: peer.MaxLogit(None)),
    ("energy", {"temperature": 2.0}, lambda: peer.EnergyBased(None, t=2.0)),
    ("entropy", {}, lambda: peer.Entropy(None)),
    ("klm", {}, lambda: peer.KLMatching(None)),
    (
        "webo",
        {"weights": (1.0, 0.5, 2.0, -1.0, 3.0, 1.0)},
        lambda: peer.WeightedEBO(None, torch.tensor([1, 0.5, 2, -1, 3, 1])),
    ),
]


@pytest.mark.parametrize("name, ours, theirs", LOGITS, ids=[n for n, *_ in LOGITS])
def test_logits_equal_pytorch_ood(name, ours, theirs, arrays):
    train, test = arrays
    other = theirs()
    if other.requires_fit:
        other.fit_logits(train.logits, train.labels)
    torch.testing.assert_close(
        score(name, arrays, **ours),
        other.predict_logits(test.logits).double(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_gen_is_the_papers_sum_where_pytorch_ood_takes_the_mean(arrays):
    mild = (
        arrays[0],
        dataclasses.replace(arrays[1], logits=arrays[1].logits / 10),
    )  # they clamp p to 1e-7
    for top in (3, 6):
        theirs = peer.GEN(None, gamma=0.3, M=top).predict_logits(mild[1].logits).double()
        torch.testing.assert_close(
            score("gen", mild, gamma=0.3, top=top), theirs * top, rtol=1e-5, atol=1e-6
        )
    confident = torch.tensor([[40.0, 20.0, 0.0], [40.0, 5.0, 0.0]])  # all but one p below 1e-7
    ours, theirs = (
        detectors.create("gen").score(dataclasses.replace(mild[1], logits=confident)),
        peer.GEN(None).predict_logits(confident),
    )
    assert ours[0] > ours[1] and theirs[0] == theirs[1], "their clamp makes these images equal"
    p = arrays[1].logits[0].double().softmax(0).sort(descending=True).values[:3]
    assert score("gen", arrays, gamma=0.3, top=3)[0].item() == pytest.approx(
        sum((float(v) * (1 - float(v))) ** 0.3 for v in p), rel=1e-9
    )


def test_temperature_reaches_the_optimum_that_pytorch_ood_stops_short_of(arrays):
    train, _ = arrays
    noisy = dataclasses.replace(
        train,
        labels=torch.where(torch.arange(600) % 5 == 0, (train.labels + 1) % 6, train.labels),
        memo={},
    )
    ours = detectors.create("temp_scaling").fit(noisy)
    theirs = peer.TemperatureScaling(None).fit_logits(noisy.logits, noisy.labels)
    loss = lambda t: cross_entropy(noisy.logits.double() / t, noisy.labels).item()  # noqa: E731
    assert loss(ours.temperature) <= loss(theirs.t.item()) + 1e-12
    assert loss(ours.temperature) <= min(loss(ours.temperature * f) for f in (0.999, 1.001))
    np.testing.assert_allclose(
        chunked_score(ours, noisy), -(noisy.logits.double() / ours.temperature).softmax(1).amax(1)
    )


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_openmax_equals_pytorch_ood_where_a_batch_holds_every_class(weight, arrays):
    """pytorch-ood counts a class only if some image of the batch is predicted as it.

    Ours does not look at the batch.
    """
    train, test = arrays
    assert len(test.logits.argmax(1).unique()) == 6
    theirs = peer.OpenMax(None, tailsize=20, alpha=4, euclid_weight=weight).fit_logits(
        train.logits, train.labels
    )
    found, expected = (
        score("openmax", arrays, tail=20, alpha=4, euclid_weight=weight),
        theirs.predict_logits(test.logits),
    )
    torch.testing.assert_close(
        found, expected, rtol=0, atol=2e-2 if weight else 0.15
    )  # scipy's simplex search stops early
    assert spearmanr(found, expected)[0] > 0.999
    fitted = detectors.create("openmax", tail=20, alpha=4, euclid_weight=weight).fit(train)
    for label, model in theirs._openmax.distributions.items():
        tail = (
            fitted.distances(train.logits.double())[train.labels == label, label].topk(20).values
            - fitted.least[label]
        )
        y = (tail + 10000).log()
        likelihood = lambda k, log_scale: (
            (math.log(k) + k * (y - log_scale) - (k * (y - log_scale)).exp()).sum().item()
        )  # noqa: E731
        assert (
            likelihood(fitted.shape[label].item(), fitted.scale[label].item())
            >= likelihood(model.c, math.log(model.scale)) - 1e-6
        )
    one_class = test[(test.logits.argmax(1) == 0).nonzero().flatten()]
    detector = detectors.create("openmax", tail=20, alpha=4, euclid_weight=weight).fit(train)
    torch.testing.assert_close(
        chunked_score(detector, one_class), found[test.logits.argmax(1) == 0]
    )


def test_openmax_is_fitted_to_correctly_classified_images(arrays):
    """A wrongly labelled image changes nothing, and a class without a correct one takes all."""
    train, test = arrays
    labels = torch.where(torch.arange(600) % 5 == 0, (train.labels + 1) % 6, train.labels)
    labels[train.labels == 3] = 2  # now no image of class 3 and 4 * 20 wrong ones of class 2
    labels[(train.labels == 4) & (torch.arange(600) % 4 == 0)] = 3
    noisy = dataclasses.replace(train, labels=labels, memo={})
    right = train.logits.argmax(1) == labels
    detector = detectors.create("openmax").fit(noisy)
    for c in range(6):
        used = (labels == c) & (right if (right & (labels == c)).any() else True)
        centre = train.logits[used].double().mean(0)
        torch.testing.assert_close(detector.centres[c], centre)
        distances = (train.logits[used].double() - centre).norm(dim=1)
        least = distances.sort().values[-20:][0] if used.sum() >= 20 else distances.min()
        assert detector.least[c].item() == pytest.approx(least.item(), rel=1e-9)
    assert not (right & (labels == 3)).any() and (labels == 3).any()
    kept = noisy[(right | (labels == 3)).nonzero().flatten()]
    torch.testing.assert_close(
        chunked_score(detector, test), chunked_score(detectors.create("openmax").fit(kept), test)
    )


FEATURES = [
    ("mds", {}, lambda o: peer.Mahalanobis(None), "rank"),
    ("rmds", {}, lambda o: peer.RMD(None), "rank"),
    ("gmm", {}, lambda o: peer.GMM(None), "equal"),
    ("knn", {"k": 7}, lambda o: peer.KNN(None, k=7), "equal"),
    ("knn", {"k": 7, "normalise": False}, lambda o: peer.KNN(None, k=7, normalize=False), "equal"),
    ("nnguide", {"k": 9}, lambda o: peer.NNGuide(None, head_of(o), k=9), "equal"),
    ("fdbd", {}, lambda o: peer.fDBD(None, head_of(o)), "equal"),
    ("nci", {"alpha": 0.01}, lambda o: peer.NCI(None, head_of(o), alpha=0.01), "equal"),
    ("pnml", {}, lambda o: peer.PNML(None, head_of(o)), "equal"),
    ("she", {}, lambda o: peer.SHE(None, head_of(o)), "equal"),
    ("vim", {"dim": 10}, lambda o: peer.ViM(None, 10, o.head.weight, o.head.bias), "equal"),
    (
        "dice",
        {"percentile": 70.0},
        lambda o: peer.DICE(None, o.head.weight, o.head.bias, p=0.7),
        "equal",
    ),
    ("lts", {"share": 0.2}, lambda o: peer.LTS(None, head_of(o), p=0.2), "equal"),
    (
        "mcm",
        {"temperature": 0.1},
        lambda o: peer.MCM(None, o.head.weight, temperature=0.1),
        "equal",
    ),
]


@pytest.mark.parametrize("name, ours, theirs, how", FEATURES, ids=[n for n, *_ in FEATURES])
def test_features_equal_pytorch_ood(name, ours, theirs, how, arrays):
    train, test = arrays
    other = theirs(train)
    if other.requires_fit:
        other.fit_features(train.features, train.labels)
    found, expected = score(name, arrays, **ours), other.predict_features(test.features).double()
    assert spearmanr(found, expected)[0] > 1 - 1e-6
    if how == "equal":
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


SHAPES = [
    ("react", {"percentile": 80.0}, lambda h: peer.ReAct(None, h, percentile=0.8)),
    ("scale", {"percentile": 70.0}, lambda h: peer.SCALE(None, h, percentile=0.7)),
    *(
        (
            f"ash-{v}",
            {"percentile": 70.0, "variant": v},
            lambda h, v=v: peer.ASH(None, h, variant=f"ash-{v}", percentile=0.7),
        )
        for v in "sbp"
    ),
    (
        "vra",
        {"lower": 20.0, "upper": 90.0, "below": "clip", "per_feature": True},
        lambda h: peer.VRA(None, h, lower_percentile=0.2, upper_percentile=0.9),
    ),
    (
        "react",
        {"percentile": 80.0, "detector": "msp"},
        lambda h: peer.ReAct(None, h, percentile=0.8, detector=peer.MaxSoftmax.score),
    ),
]


@pytest.mark.parametrize("name, ours, theirs", SHAPES, ids=[n for n, *_ in SHAPES])
def test_shaping_equals_pytorch_ood_on_1x1_maps(name, ours, theirs, arrays):
    train, test = arrays
    other = theirs(flat_head(train))
    if other.requires_fit:
        other.fit_feature_maps(train.features[:, :, None, None], train.labels)
    torch.testing.assert_close(
        score(name.split("-")[0], arrays, **ours),
        other.predict_feature_maps(test.features[:, :, None, None]).double(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_vra_of_the_paper_zeroes_below(arrays):
    """The paper sets to zero what lies below, and VRA+ lifts what lies between.

    Both libraries clip to [low, high].
    """
    train, test = arrays
    low, high = np.quantile(train.features.double(), (0.5, 0.9))
    pooled = score("vra", arrays, lower=50.0, upper=90.0, gamma=0.3, per_feature=False)
    for i, found in enumerate(pooled):
        v = torch.tensor(
            [0.0 if h < low else high if h > high else h + 0.3 for h in test.features[i].tolist()]
        )
        assert found.item() == pytest.approx(-test.head(v.float()).logsumexp(0).item(), rel=1e-5)


def test_vra_by_default_takes_each_features_own_percentiles(arrays):
    """The authors' command for CIFAR-10: the 60th and the 90th percentile of every feature."""
    train, test = arrays
    low, high = np.quantile(train.features.double(), (0.6, 0.9), axis=0)
    for i, found in enumerate(score("vra", arrays)):
        h = test.features[i].double().numpy()
        v = torch.from_numpy(np.where(h < low, 0.0, np.minimum(h, high)))
        assert found.item() == pytest.approx(-test.head(v.float()).logsumexp(0).item(), rel=1e-5)


def test_gradnorm_in_closed_form_is_the_gradient_of_the_last_weight(arrays):
    _, test = arrays
    expected = (
        peer.GradNorm(head_of(test), param_filter=lambda n: n == "weight", temperature=2.0)
        .to("cpu")
        .predict(test.features)
    )
    torch.testing.assert_close(
        score("gradnorm", arrays, temperature=2.0), expected.double(), rtol=1e-4, atol=1e-5
    )


def test_mahalanobis_one_image_at_a_time(arrays):
    train, test = arrays
    for view, names in (("features", ("mds", "rmds")), ("unit", ("mdspp", "rmdspp"))):
        x, z = (
            normalize(o.features.double(), dim=1) if view == "unit" else o.features.double()
            for o in (train, test)
        )
        means = [x[train.labels == c].mean(0) for c in range(6)]
        within = sum(
            (x[train.labels == c] - means[c]).T @ (x[train.labels == c] - means[c])
            for c in range(6)
        ) / len(x)
        total = torch.cov(x.T, correction=0)
        tied, background = (torch.linalg.inv(m) for m in (within, total))
        nearest = torch.stack([min(((v - m) @ tied @ (v - m)) for m in means) for v in z])
        torch.testing.assert_close(score(names[0], arrays), nearest, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            score(names[1], arrays),
            nearest - torch.stack([(v - x.mean(0)) @ background @ (v - x.mean(0)) for v in z]),
            rtol=1e-4,
            atol=1e-4,
        )


def test_mds_ensemble_is_a_weighted_sum_over_stages(arrays):
    train, test = arrays
    per_stage = [
        chunked_score(
            detectors.create("mds").fit(dataclasses.replace(train, features=t, memo={})),
            dataclasses.replace(test, features=v),
        )
        for t, v in zip(train.taps, test.taps)
    ]
    torch.testing.assert_close(
        score("mds_ensemble", arrays, weights=[0.5, 2.0]), 0.5 * per_stage[0] + 2 * per_stage[1]
    )
    theirs = peer.MultiMahalanobis([nn.Identity()] * 2)
    theirs.fit_structured(list(train.taps), train.labels)
    assert (
        spearmanr(score("mds_ensemble", arrays), theirs.predict_structured(list(test.taps)))[0]
        > 1 - 1e-6
    )


def test_residual_neco_and_kernel_pca_by_singular_vectors(arrays):
    train, test = arrays
    x, z = train.features.double(), test.features.double()
    o = -torch.linalg.pinv(train.head.weight.double()) @ train.head.bias.double()
    right = torch.linalg.svd(x - o, full_matrices=False)[2][:5]
    torch.testing.assert_close(
        score("residual", arrays, dim=5),
        (z - o - (z - o) @ right.T @ right).norm(dim=1),
        rtol=1e-6,
        atol=1e-6,
    )
    mean, deviation = x.mean(0), x.std(0, correction=0)
    s, t = (x - mean) / deviation, (z - mean) / deviation
    right = torch.linalg.svd(s, full_matrices=False)[2][:5]
    share = (t @ right.T).norm(dim=1) / t.norm(dim=1)
    torch.testing.assert_close(score("neco", arrays, dim=5), -share, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        score("neco", arrays, dim=5, max_logit=True),
        -share * test.logits.double().amax(1),
        rtol=1e-6,
        atol=1e-6,
    )
    right = torch.linalg.svd(x - mean, full_matrices=False)[2][
        :5
    ]  # the authors' PCA of raw features
    share = ((z - mean) @ right.T).norm(dim=1) / z.norm(dim=1)
    raw = score("neco", arrays, dim=5, standardise=False)
    torch.testing.assert_close(raw, -share, rtol=1e-6, atol=1e-6)
    u, v = normalize(x, dim=1), normalize(z, dim=1)
    left, values, right = torch.linalg.svd(u - u.mean(0), full_matrices=False)
    q = next(i for i in range(1, 24) if values[:i].square().sum() / values.square().sum() >= 0.85)
    rest = v - u.mean(0) - (v - u.mean(0)) @ right[:q].T @ right[:q]
    torch.testing.assert_close(score("kpca", arrays), rest.norm(dim=1), rtol=1e-6, atol=1e-6)


def test_random_fourier_features_approach_the_gaussian_kernel(arrays):
    detector = detectors.create("kpca", kernel="cosine-gaussian", gamma=2.0, features=700).fit(
        arrays[0]
    )
    phi, u = detector.mapped(arrays[1]), normalize(arrays[1].features.double(), dim=1)
    np.testing.assert_allclose(phi @ phi.T, torch.exp(-2.0 * torch.cdist(u, u).square()), atol=0.2)


def test_boundaries_one_class_at_a_time(arrays):
    train, test = arrays
    weight, mean, class_mean = (
        train.head.weight.double(),
        train.features.double().mean(0),
        statistics.class_means(train).mean(0),
    )
    by_boundary, by_angle = [], []
    for z, f in zip(test.features.double(), test.logits.double()):
        y, distances, angles = int(f.argmax()), [], []
        for c in set(range(6)) - {y}:
            w = weight[y] - weight[c]
            on_boundary = z - (f[y] - f[c]) / (w @ w) * w
            distances.append((z - on_boundary).norm() / (z - mean).norm())
            a, b = z - class_mean, on_boundary - class_mean
            angles.append(torch.arccos(((a @ b) / a.norm() / b.norm()).clamp(-1, 1)) / math.pi)
        by_boundary.append(-sum(distances) / 5)
        by_angle.append(-max(angles))
    torch.testing.assert_close(
        score("fdbd", arrays), torch.stack(by_boundary), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(score("ora", arrays), torch.stack(by_angle), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("confidence", ["energy", "maxlogit", "msp", "gen"])
def test_cadref_one_image_at_a_time(confidence, arrays):
    train, test = arrays
    predicted = train.logits.argmax(1)
    means = [train.features[predicted == c].double().mean(0) for c in range(6)]

    def s(logits):
        p = logits.double().softmax(0)
        return {
            "energy": logits.double().logsumexp(0),
            "maxlogit": logits.double().max(),
            "msp": p.max(),
            "gen": 1 / ((p * (1 - p)) ** 0.1).sum(),
        }[confidence]  # M = max(10, C // 10): all six

    average = torch.stack([s(f) for f in train.logits]).mean()
    relative, decoupled = [], []
    for z, f in zip(test.features.double(), test.logits):
        y = int(f.argmax())
        error = z - means[y]
        along = error * torch.sign(test.head.weight[y].double())
        relative.append(error.abs().sum() / z.abs().sum())
        decoupled.append(
            along[along > 0].sum() / z.abs().sum() / s(f)
            - along[along < 0].sum() / z.abs().sum() / average
        )
    torch.testing.assert_close(score("caref", arrays), torch.stack(relative), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        score("cadref", arrays, detector=confidence), torch.stack(decoupled), rtol=1e-6, atol=1e-7
    )


def test_cadref_with_gen_takes_the_largest_tenth_of_the_classes():
    """M = max(10, C // 10), the authors' code."""
    for classes, largest in ((30, 10), (300, 30)):
        logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(0)).double()
        p = logits.softmax(1).sort(1, descending=True).values[:, :largest]
        confidence = detectors.create("cadref", detector="gen").confidence(
            dataclasses.replace(outputs(5), logits=logits)
        )
        torch.testing.assert_close(confidence, 1 / (p * (1 - p)).pow(0.1).sum(1))


def test_neighbours_one_pair_at_a_time(arrays, monkeypatch):
    from ood.detectors import neighbours

    monkeypatch.setattr(neighbours, "TILE", 1500)  # several tiles
    monkeypatch.setattr(
        neighbours,
        "tiles",
        lambda rows, bank, t=37: (
            (slice(i, i + t), slice(j, j + t)) for i in range(0, rows, t) for j in range(0, bank, t)
        ),
    )
    train, test = arrays[0], arrays[1][::5]
    arrays = train, test
    u, bank = normalize(test.features.double(), dim=1), normalize(train.features.double(), dim=1)
    p, q = test.logits.double().softmax(1), train.logits.double().softmax(1)
    knn, relation, comb = [], [], []
    mean, inverse = (
        train.features.double().mean(0),
        torch.linalg.inv(torch.cov(train.features.double().T, correction=0)),
    )
    for i in range(len(u)):
        distances = torch.stack([(u[i] - b).norm() for b in bank]).sort().values
        knn.append(distances[6])
        edges = [max(0.0, float(u[i] @ bank[j])) * float(p[i] @ q[j]) for j in range(len(bank))]
        relation.append(-sum(e**2 for e in edges if e > 0.1))
        d = test.features[i].double() - mean
        comb.append(24 * math.log(distances[6] ** 2) + d @ inverse @ d)
    torch.testing.assert_close(score("knn", arrays, k=7), torch.stack(knn), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        score("relation", arrays, power=2.0, threshold=0.1),
        torch.tensor(relation, dtype=torch.float64),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(
        score("combood", arrays, k=7), torch.stack(comb), rtol=1e-5, atol=1e-4
    )


def test_ssd_with_one_cluster_is_mahalanobis_without_labels_and_clusters_split_the_rows(arrays):
    train, test = arrays
    unlabelled = dataclasses.replace(train, labels=torch.zeros_like(train.labels), memo={})
    torch.testing.assert_close(
        score("ssd", arrays), chunked_score(detectors.create("mdspp").fit(unlabelled), test)
    )
    detector = detectors.create("ssd", clusters=6).fit(train)
    centres = (
        normalize(torch.stack(detector.means), dim=1)
        @ normalize(train.head.weight.double(), dim=1).T
    )
    assert sorted(centres.argmax(1).tolist()) == list(range(6)), (
        "the six classes of the toy are found"
    )


def test_ras_and_optfs_one_image_at_a_time(arrays):
    train, test = arrays
    profile = train.features.double().sort(1).values.mean(0)
    for i, found in enumerate(score("ras", arrays)):
        shifted = torch.zeros(24, dtype=torch.float64)
        for rank, j in enumerate(test.features[i].argsort(stable=True).tolist()):
            shifted[j] = profile[rank]
        assert found.item() == pytest.approx(
            -test.head(shifted.float()).logsumexp(0).item(), rel=1e-5
        )
    x = train.features.double().numpy()
    left, right = np.quantile(x, (0.01, 0.99))
    width = (right - left) / 20
    contribution = train.head.weight[train.logits.argmax(1)].double().numpy() * x
    gain = np.array(
        [
            (contribution * ((x >= left + i * width) & (x < left + (i + 1) * width))).sum()
            for i in range(20)
        ]
    )
    theta = gain / np.linalg.norm(gain) * 1000
    z = test.features.double().numpy()
    shaped = sum(
        theta[i] * z * ((z >= left + i * width) & (z < left + (i + 1) * width)) for i in range(20)
    )
    shaped, predicted = torch.from_numpy(shaped), test.logits.argmax(1)
    expected = -(shaped @ test.head.weight.double().T + test.head.bias).logsumexp(1)
    torch.testing.assert_close(
        score("optfs", arrays, detector="energy", bins=20, tail=0.01),
        expected,
        rtol=1e-5,
        atol=1e-3,
    )
    vanilla = -torch.stack(
        [test.head.weight[y].double() @ row for y, row in zip(predicted, shaped)]
    )
    torch.testing.assert_close(
        score("optfs", arrays, bins=20, tail=0.01), vanilla, rtol=1e-5, atol=1e-3
    )
    biased = dataclasses.replace(test, head=dataclasses.replace(test.head, bias=test.head.bias + 5))
    torch.testing.assert_close(
        score("optfs", (train, biased), bins=20, tail=0.01), vanilla, rtol=1e-5, atol=1e-3
    )  # no bias, the class of the logits


def test_ras_ranks_equal_activations_in_the_order_of_the_features(arrays):
    """On rectified features the two orders differ in exact zeros alone."""
    train, _ = arrays
    z = torch.tensor([[0.0, 3.0, 0.0, 1.0, 1.0] + [0.0] * 19] * 2)
    value, magnitude = (
        detectors.create("ras", order=order).fit(train) for order in ("value", "magnitude")
    )
    profile = value.profile.float()
    assert torch.equal(value.profile, magnitude.profile)
    zeros, ones = [0, 2, *range(5, 24)], [3, 4]
    for row, other in zip(value.shape(z), magnitude.shape(z)):
        assert (
            torch.equal(row[zeros], profile[:21])
            and torch.equal(row[ones], profile[21:23])
            and row[1] == profile[23]
        )
        assert torch.equal(other[[1, 3, 4]], row[[1, 3, 4]]) and not other[zeros].any()


def test_weiper_one_image_at_a_time(arrays):
    train, test = arrays
    detector = detectors.create(
        "weiper", repeats=4, bins=20, smooth=3, smooth_perturbed=4, samples=10000
    ).fit(train)
    stacked = detector.perturbed(train.head)
    step = stacked.view(4, 6, 24) - train.head.weight
    torch.testing.assert_close(step.norm(dim=2), 1.8 * train.head.weight.norm(dim=1).expand(4, 6))

    def values(o):
        return o.features.double().numpy(), (
            o.features.double() @ stacked.double().T + train.head.bias.repeat(4)
        ).numpy()

    def averaged(q, width):
        padded = np.pad(q, ((width - 1) // 2, width - 1 - (width - 1) // 2), mode="edge")
        return np.array([padded[i : i + width].mean() for i in range(len(q))])

    training, tested = values(train), values(test)
    for row in (0, 7, 90):
        expected = 0.0
        for known, v, width, epsilon, weight in zip(
            training, tested, (3, 4), (0.01, 0.025), (1.0, 2.5)
        ):
            edges = (known.min(), known.max())
            p = np.mean([np.histogram(k, 20, edges)[0] / len(k) for k in known], axis=0) + epsilon
            q = averaged(np.histogram(v[row], 20, edges)[0] / v.shape[1], width) + epsilon
            p, q = p / p.sum(), q / q.sum()
            expected += weight * ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum())
        confidence = np.mean(
            [torch.from_numpy(part).softmax(0).max() for part in tested[1][row].reshape(4, 6)]
        )
        assert chunked_score(detector, test)[row].item() == pytest.approx(
            expected - 0.1 * confidence, rel=2e-2
        )  # a value on an edge may fall either way


def test_nac_one_neuron_at_a_time(arrays):
    train, test = arrays
    detector = detectors.create("nac", bins=10, alpha=0.3, saturation=40.0).fit(train)
    # the authors' M = 50: 25 thresholds up to 1/2, their mirror images, and one beyond every state
    theirs = np.log(np.linspace(1, 1000**0.5, 25)) / np.log(1000)
    theirs = [*theirs[1:-1], *(1 - theirs)[::-1][:-1]]
    np.testing.assert_allclose(bin_edges(detectors.create("nac").bins), theirs, rtol=1e-12)
    edges = [0, *bin_edges(10).tolist(), 1]
    assert len(edges) == 11 and edges == sorted(edges) and edges[5] == 0.5

    def states(o):
        z = o.features.double().clone().requires_grad_()
        logits = z @ o.head.weight.double().T + o.head.bias
        divergence = -logits.log_softmax(1).mean(1)  # KL(uniform || p) up to a constant
        return (0.3 * z * torch.autograd.grad(divergence.sum(), z)[0]).sigmoid().detach()

    counts = np.stack([np.histogram(column, edges)[0] for column in states(train).T.numpy()])
    cells = np.stack([np.digitize(column, edges[1:-1]) for column in states(test).T.numpy()])
    expected = -np.mean([np.minimum(counts[d][cells[d]] / 40, 1) for d in range(24)], axis=0)
    np.testing.assert_allclose(chunked_score(detector, test), expected, rtol=1e-9)


# detectors that need images
def batches(images):
    return torch.cat([Preprocess((0.5,), (0.25,))(b) for b in images.batches(100)])


def test_rank1_removal_equals_the_singular_value_decomposition(network, passed):
    for shape in ((3, 5, 4, 4), (3, 30, 2, 3)):
        maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        u, s, v = torch.linalg.svd(maps.flatten(2), full_matrices=False)
        torch.testing.assert_close(
            remove_rank1(maps).flatten(2),
            (u[:, :, 1:] * s[:, None, 1:]) @ v[:, 1:],
            rtol=1e-3,
            atol=1e-4,
        )
    theirs = peer.RankFeat(
        lambda x: network.feature_maps(x)[-1], lambda m: network.fc(network.embed(m))
    )
    detector = detectors.create("rankfeat")
    torch.testing.assert_close(
        chunked_score(detector, passed(detector, gratings(20, 3))),
        theirs.predict(batches(gratings(20, 3))).detach().double(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_mahalanobis_odin_equals_pytorch_ood(network, passed):
    detector, x = detectors.create("mds_odin", magnitude=0.01), batches(gratings(20, 3))
    found = chunked_score(detector, passed(detector, gratings(20, 3)))
    theirs = peer.MahalanobisODIN(network.features, eps=0.01, norm_std=[0.25])
    with torch.no_grad():
        theirs.fit_features(
            network.features(batches(gratings(150, 0))), torch.as_tensor(gratings(150, 0).labels)
        )
    assert spearmanr(found, theirs.predict(x))[0] > 0.995, (
        "they add 1e-6 to the diagonal of the summed covariance"
    )


def test_gradient_uncertainty_equals_pytorch_ood_and_its_closed_form(network, passed):
    x, images = batches(gratings(6, 3)), gratings(6, 3)
    theirs = peer.GradUncertainty(network).to("cpu").predict(x)
    found = {
        k: chunked_score(d, passed(d, images))
        for k, d in {
            "softmax": detectors.create("gradunc", output="softmax"),
            "sigmoid": detectors.create("gradunc"),
            "head": detectors.create("gradunc", parameters="head"),
        }.items()
    }
    torch.testing.assert_close(found["softmax"], theirs.double(), rtol=2e-3, atol=1e-5)
    for i in range(6):
        network.zero_grad()
        logits = network(x[i : i + 1])
        binary_cross_entropy(logits.sigmoid(), torch.ones_like(logits), reduction="sum").backward()
        assert found["sigmoid"][i].item() == pytest.approx(
            sum(p.grad.square().sum().item() for p in network.parameters()), rel=1e-3
        )
        assert found["head"][i].item() == pytest.approx(
            sum(p.grad.square().sum().item() for p in network.fc.parameters()), rel=1e-3
        )
    network.zero_grad()
    ones = squared_gradients(network, x, lambda f: -f.log_softmax(1).mean(), power=1)
    torch.testing.assert_close(
        -ones, peer.GradNorm(network).to("cpu").predict(x), rtol=1e-3, atol=1e-5
    )


def test_dropout_is_the_variance_over_passes(network, passed):
    images, x = gratings(12, 3), batches(gratings(12, 3))
    var, mean = (detectors.create("dropout", samples=7, mode=m, seed=5) for m in ("var", "mean"))
    found = [chunked_score(d, passed(d, images)) for d in (var, mean)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        network.dropout.training = True
        network(x)  # the pass that the moments are taken around
        p = torch.stack([network(x).double().softmax(1) for _ in range(7)])
        network.dropout.training = False
    torch.testing.assert_close(found[0], p.var(0).mean(1), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[1], -p.mean(0).amax(1), rtol=1e-4, atol=1e-7)
    assert not any(m.training for m in network.modules())


@pytest.mark.parametrize("by_confidence", [True, False])
def test_gram_one_class_at_a_time(by_confidence, network, passed):
    detector = detectors.create("gram", powers=[1, 3], by_confidence=by_confidence)
    training, images = gratings(150, 0), gratings(15, 3)
    found = chunked_score(detector, passed(detector, images))
    with torch.no_grad():
        maps, tested = (
            [m.double() for m in network.feature_maps(batches(i))] for i in (training, images)
        )
        logits = [network(batches(i)).double() for i in (training, images)]
        y, predicted = (f.argmax(1) for f in logits)
        confidences = [
            f.softmax(1).amax(1) if by_confidence else f.new_ones(len(f)) for f in logits
        ]

    def rows(m, p):
        f = m.flatten(2) ** p
        total = (f @ f.mT).sum(2)
        return total.sign() * total.abs() ** (1 / p)

    torch.testing.assert_close(
        gram_rows(maps[0].float(), 3).double(), rows(maps[0], 3), rtol=1e-3, atol=1e-3
    )
    held, seen = torch.zeros(150, dtype=torch.bool), {}
    for i, c in enumerate(y.tolist()):  # every tenth image of its predicted class
        held[i] = (seen.get(c, 0) + c) % 10 == 9
        seen[c] = seen.get(c, 0) + 1
    expected = torch.zeros(15, dtype=torch.float64)
    for m, t in zip(maps, tested):
        deviation = {
            "held": torch.zeros(int(held.sum()), dtype=torch.float64),
            "test": torch.zeros(15, dtype=torch.float64),
        }
        for p in (1, 3):
            g = rows(m, p)
            for name, values, classes, confidence in (
                ("held", g[held], y[held], confidences[0][held]),
                ("test", rows(t, p), predicted, confidences[1]),
            ):
                for i, (v, c) in enumerate(zip(values, classes)):
                    low, high = g[~held & (y == c)].amin(0), g[~held & (y == c)].amax(0)
                    outside = (low - v).clamp(min=0) / (low + 1e-6).abs()
                    outside = outside + (v - high).clamp(min=0) / (high + 1e-6).abs()
                    deviation[name][i] += outside.sum() / confidence[i]
        expected += deviation["test"] / (
            deviation["held"].mean() if deviation["held"].mean() > 0 else 1
        )
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)


def test_gram_holds_out_a_tenth_of_every_class_however_the_classes_are_ordered(network):
    """With ten classes in turn, every tenth image is always of one class."""
    seen = torch.zeros(10, dtype=torch.long)
    for start in (0, 70):
        classes = torch.arange(start, start + 70) % 10
        found = positions(classes, seen)
        assert found.tolist() == [(start + i) // 10 for i in range(70)]
        seen += classes.bincount(minlength=10)

    generator = torch.Generator().manual_seed(0)
    levels, y = torch.tensor([1.0, 20.0]), torch.arange(2000) % 10  # class 9 varies by itself
    rows = torch.randn(2000, 200, generator=generator) * levels[(y == 9).long()][:, None] + 50
    made = outputs(2000)
    logits = torch.nn.functional.one_hot(y, 10).float() * 9
    expected = []
    for order in (torch.arange(2000), torch.randperm(2000, generator=generator)):
        detector = detectors.create("gram", powers=[1])
        train = dataclasses.replace(
            made,
            logits=logits[order],
            labels=y[order],
            taps=(rows[order],),
            scores={detector.key: rows[order]},
        )
        expected.append(detector.fit(train).expected.item())
    assert 0.5 < expected[0] / expected[1] < 2, "one class does not set the scale of all"


@pytest.mark.parametrize("name", ["adascale_a", "adascale_l"])
def test_adascale_one_image_at_a_time(name, network, passed):
    detector = detectors.create(name, k1=50.0, k2=20.0, lower=30.0, upper=80.0)
    known = passed(detector, gratings(10, 3))

    def q(image):
        image = image[None].clone().requires_grad_()
        z = network.features(image)
        network.fc(z).max().backward()
        flat = image.grad.flatten()
        least = flat.abs().argsort()[: int(0.05 * len(flat))]
        change = torch.zeros_like(flat)
        change[least] = 0.5 * flat[least].sign()
        with torch.no_grad():
            moved = network.features(image + change.view_as(image))[0]
        order = z[0].argsort(descending=True)
        return (
            moved.clamp(min=0)[order[:8]].sum() + 10 * (z[0] - moved).abs()[order[:3]].sum()
        ).item()

    reference = np.sort([q(x) for x in batches(gratings(150, 0))])
    found = chunked_score(detector, known)
    for i, x in enumerate(batches(gratings(10, 3))):
        percentile = 30 + (1 - np.searchsorted(reference, q(x), side="right") / 150) * 50
        z = known.features[i].double()
        kept = z.clamp(min=0).sort(descending=True).values[: 16 - round(16 * percentile / 100)]
        r = z.clamp(min=0).sum() / kept.sum()
        logits = (
            known.head((z * r.exp()).float()) if name == "adascale_a" else known.logits[i] * r**2
        )
        assert found[i].item() == pytest.approx(
            -logits.double().logsumexp(0).item(), rel=0.05
        )  # q of a tie in float32 moves F by 1/150


def test_nac_stages_equals_nac_on_the_last_stage(network, passed):
    detector, images = detectors.create("nac_stages", alpha=1.0), gratings(10, 3)
    known = passed(detector, images)
    last = detector.states(known)[:, -16:]
    torch.testing.assert_close(
        last.double(), detectors.create("nac").states(known), rtol=1e-3, atol=1e-5
    )


def test_measurements_serve_other_hyperparameters_without_a_pass(network):
    """The name of the measurements leaves out what a search varies.

    That is percentiles, weights and the score behind a shaping.
    """
    for name, changed in (
        ("adascale_a", {"lower": 60.0, "weight": 3.0, "detector": "msp"}),
        ("rankfeat", {"detector": "msp"}),
        ("nac_stages", {"alpha": 3.0}),
    ):
        assert detectors.create(name).key == detectors.create(name, **changed).key
    assert detectors.create("adascale_a").key != detectors.create("adascale_a", step=1.0).key
    detector, preprocess = detectors.create("mds_odin"), Preprocess((0.5,), (0.25,))
    keys = set()
    for seed in (0, 1):
        detector.fit(extract(network, gratings(60, seed), preprocess))
        keys.add(detector.key)
    assert len(keys) == 2, "scores that depend on the fit carry its digest"


def test_functional_call_leaves_the_network_alone(network):
    network.zero_grad()
    before = {n: p.clone() for n, p in network.named_parameters()}
    squared_gradients(network, batches(gratings(3, 1)), lambda f: f.logsumexp(1).sum())
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in network.named_parameters())
    assert functional_call(network, before, (batches(gratings(3, 1)),)).shape == (3, 6)
