"""Feature extractors: which detectors work without logits, and linear heads fitted on features."""

import numpy as np
import pytest
import torch
from torch import nn

import models
import ood
from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.detectors.base import chunked_score
from ood.evaluation.probe import fit_head
from ood.evaluation.scoring import accuracy
from ood.outputs import extract

CLASSES, SIDE = 3, 16
WORKS = {"knn", "mds", "rmds", "mdspp", "rmdspp", "mds_ensemble", "gmm", "ssd", "residual"}
WORKS |= {"kpca", "combood"}


def pictures(count, seed):
    """Noise around one colour per class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = generator.normal(0.5, 0.1, (count, 3, SIDE, SIDE))
    images[np.arange(count), labels] += 0.4
    return ArrayImages(images.astype(np.float32), labels)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 10, 3, 2))
    return models.adapt(
        body.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()), headless=True, image_size=SIDE
    ).eval()


def outputs(network, images, taps=True):
    return extract(network, images, Preprocess((0.5,) * 3, (0.5,) * 3), taps=taps)


@pytest.fixture(scope="module")
def train(network):
    return outputs(network, pictures(120, 0))


def test_outputs_of_a_feature_extractor(network, train):
    assert train.logits.shape == (120, 0) and train.head.weight.shape == (0, 10)
    assert accuracy(train) is None


@pytest.mark.parametrize("name", detectors.names())
def test_features_alone_or_a_refusal(network, train, name):
    settings = {"k": 5} if name in ("knn", "combood") else {"dim": 4} if name == "residual" else {}
    detector = detectors.create(name, **settings)
    assert detector.headless == (name in WORKS)
    if not detector.headless:
        with pytest.raises(InputError, match="-head linear"):
            detector.check(network)
        return
    detector.check(network)
    detector.fit(train)
    known, far = outputs(network, pictures(30, 1)), outputs(network, noise(30))
    scores, others = chunked_score(detector, known), chunked_score(detector, far)
    assert torch.isfinite(scores).all() and others.median() > scores.median()


def noise(count):
    images = np.random.default_rng(2).uniform(0, 1, (count, 3, SIDE, SIDE))
    return ArrayImages((3 * images - 1).astype(np.float32))


def test_all_leaves_out_what_needs_logits(network):
    made = {name: detectors.create(name) for name in detectors.names()}
    kept, left = detectors.base.possible(made, network)
    assert set(kept) == WORKS and all("features and no logits" in why for why in left.values())


def test_a_linear_head_makes_it_a_classifier(network, train):
    weight, bias = fit_head(train)
    probed = models.with_head(network, weight, bias)
    again = outputs(probed, pictures(60, 3))
    assert accuracy(again) > 0.9 and again.logits.shape == (60, CLASSES)
    assert torch.allclose(again.logits, again.features @ weight.T + bias, atol=1e-4)
    every = probed.everything(pictures(4, 4).read(slice(0, 4)))
    assert torch.allclose(probed.fc(every.features), every.logits) and every.maps
    for name in ("energy", "vim", "odin", "react"):
        detectors.create(name).check(probed)
    own = models.build("small_cnn", 5, image_size=SIDE).eval()
    without = models.without_head(own)
    x = pictures(4, 5).read(slice(0, 4))
    assert without(x).shape == (4, 0) and torch.equal(without.features(x), own.features(x))
    assert models.without_head(network) is network and models.without_head(without) is without


def test_the_head_is_the_minimum_of_its_loss(train):
    linear = pytest.importorskip("sklearn.linear_model")
    penalty, n = 0.01, len(train)
    weight, bias = fit_head(train, penalty=penalty)
    x = train.features.double().numpy()
    mean, scale = x.mean(0), x.std(0)
    theirs = linear.LogisticRegression(C=1 / (penalty * n), tol=1e-8, max_iter=5000)
    theirs.fit((x - mean) / np.where(scale > 0, scale, 1), train.labels.numpy())
    expected = theirs.predict_log_proba((x - mean) / np.where(scale > 0, scale, 1))
    found = (train.features @ weight.T + bias).log_softmax(1)
    assert np.allclose(found.numpy(), expected, atol=5e-3)
    twice = fit_head(train, penalty=penalty)
    assert torch.equal(twice[0], weight) and torch.equal(twice[1], bias)


def test_a_head_needs_labels(train):
    with pytest.raises(InputError, match="needs labelled"):
        fit_head(type(train)(train.features, train.logits, train.labels - 99, train.head))
    with pytest.raises(InputError, match="go up to 2, but there are 2"):
        fit_head(train, 2)


def test_guard_on_a_feature_extractor(network):
    guard = ood.guard(network, pictures(150, 6), detector="knn:k=3", accept=0.9)
    decision = guard(pictures(50, 7))
    assert decision.accepted.float().mean() > 0.75
    assert (decision.predicted == -1).all() and decision.confidence.isnan().all()
    with pytest.raises(InputError, match="-head linear"):
        ood.guard(network, pictures(150, 6), detector="energy")
