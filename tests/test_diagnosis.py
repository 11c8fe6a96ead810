"""A diagnosis against plain NumPy; each warning where it is due, and nowhere else."""

import numpy as np
import pytest
import torch
from detector_toys import outputs

from ood import detectors
from ood.evaluation.diagnosis import advice, diagnose
from ood.outputs import Head, Outputs


def made(features, labels=None, classes=4):
    features = torch.as_tensor(features, dtype=torch.float32)
    labels = torch.arange(len(features)) % classes if labels is None else torch.as_tensor(labels)
    head = Head(torch.ones(classes, features.shape[1]), torch.zeros(classes))
    return Outputs(
        features, torch.nn.functional.one_hot(labels.clamp(min=0), classes).float(), labels, head
    )


def gaussian(n=400, d=12, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def warnings(out, *names):
    return advice(
        diagnose(out),
        {
            name: detectors.create(*[detectors.parse(name)[0]], **detectors.parse(name)[1])
            for name in names
        },
    )


def test_numbers_equal_numpy():
    x = gaussian() * np.linspace(0.1, 2, 12)
    x[:, 3] = 0.7  # dead
    x[:50, 5] = 0.0
    found = diagnose(made(x))
    x = x.astype(np.float32).astype(np.float64)
    values, labels = np.linalg.eigvalsh(np.cov(x.T, bias=True)).clip(0), np.arange(400) % 4
    norms, mean = np.linalg.norm(x, axis=1), x.mean(0)
    means = np.array([x[labels == c].mean(0) for c in range(4)])
    assert (
        found.negative == (x < 0).mean() and found.zero == (x == 0).mean() and found.dead == 1 / 12
    )
    assert found.norm == pytest.approx(norms.mean()) and found.norm_spread == pytest.approx(
        norms.std() / norms.mean()
    )
    assert found.rank == 11 and found.participation == pytest.approx(
        values.sum() ** 2 / (values**2).sum()
    )
    assert found.collapse == pytest.approx(
        ((x - means[labels]) ** 2).sum(1).mean() / ((means - mean)[labels] ** 2).sum(1).mean()
    )
    assert (
        found.images,
        found.dimensions,
        found.classes,
        found.smallest_class,
        found.missing,
        found.agreement,
    ) == (400, 12, 4, 100, 0, 1.0)
    assert "11" in found.text()


def test_fewer_images_than_dimensions_give_the_same_spectrum_rule():
    x = gaussian(8, 30)
    found = diagnose(made(x))
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float32).astype(np.float64).T, bias=True)).clip(
        0
    )
    assert found.rank == 7 and found.participation == pytest.approx(
        values.sum() ** 2 / (values**2).sum(), rel=1e-6
    )


def test_large_sets_are_sampled_evenly_and_unlabelled_ones_work():
    found = diagnose(made(gaussian(12000, 3)))
    assert (
        found.images == 12000
        and found.smallest_class == 3000
        and found.participation == pytest.approx(3, abs=0.1)
    )
    unknown = diagnose(made(gaussian(50), labels=-np.ones(50, int)))
    assert (
        np.isnan(unknown.collapse)
        and np.isnan(unknown.agreement)
        and unknown.smallest_class == 0
        and "nan" not in unknown.text()
    )
    constant = diagnose(made(np.zeros((5, 3))))
    assert constant.rank == 0 and constant.participation == 0 and constant.dead == 1


@pytest.mark.parametrize(
    "name, bad, words",
    [
        ("ash", gaussian(), "rectified"),
        ("scale", gaussian(), "rectified"),
        ("adascale_a", gaussian(), "rectified"),
        ("dice", gaussian(), "contributions cancel"),
        ("react", gaussian(), "only one tail"),
        ("mds", gaussian(8, 30), "8 images for a covariance of 30"),
        ("rmdspp", gaussian(60, 30), "guesses"),
        ("gmm", gaussian(40, 12), "smallest class has 10"),
        ("mds", gaussian() * np.linspace(0.1, 3, 400)[:, None], "mdspp normalises"),
        ("mds", np.eye(4)[np.arange(400) % 4] + 1e-3 * np.abs(gaussian(400, 4)), "collapsed"),
        ("vim:dim=12", gaussian(), "nothing is left as residual"),
        ("knn:k=400", gaussian(), "choose a smaller k"),
        ("openmax:tail=200", gaussian(), "Weibull"),
        ("ash", np.abs(gaussian()) * 0 + np.eye(12)[np.arange(400) % 12], "one length"),
    ],
)
def test_each_warning_is_given_where_it_is_due(name, bad, words):
    said = warnings(made(bad), name)
    assert any(words in line and line.startswith(name) for line in said), said


@pytest.mark.parametrize(
    "name",
    [
        "ash",
        "scale",
        "dice",
        "react",
        "mds",
        "rmds",
        "gmm",
        "vim:dim=5",
        "knn:k=10",
        "openmax",
        "she",
        "msp",
    ],
)
def test_no_warning_for_features_that_fit(name):
    assert not warnings(outputs(600, seed=1), name)


def fitted_warnings(out, name, **settings):
    """Warnings about a detector that was fitted to the outputs that the diagnosis looks at."""
    return advice(diagnose(out), {name: detectors.create(name, **settings).fit(out)})


@pytest.mark.parametrize("name", ["vim", "residual", "neco"])
def test_a_default_dimension_that_the_images_cannot_fill_is_said(name):
    few, many = (made(np.abs(gaussian(n, 60))) for n in (20, 400))
    said = [line for line in fitted_warnings(few, name) if "instead of 30" in line]
    assert len(said) == 1 and "20 training images fill only" in said[0]
    assert not any("instead of" in line for line in fitted_warnings(many, name))
    assert not any("instead of" in line for line in fitted_warnings(few, name, dim=5))


def test_neco_without_the_logit_is_advised_against_on_signed_features():
    signed, rectified = made(gaussian()), made(np.abs(gaussian()))
    assert any("below chance" in line for line in fitted_warnings(signed, "neco", max_logit=False))
    for out, settings in ((signed, {}), (rectified, {}), (rectified, {"max_logit": False})):
        assert not any("below chance" in line for line in fitted_warnings(out, "neco", **settings))


@pytest.mark.parametrize("shift, recommended", [(0.0, True), (-1.5, False)])
def test_neco_is_recommended_for_collapsed_classes_of_rectified_features_only(shift, recommended):
    points = np.eye(4)[np.arange(400) % 4] + 1e-3 * np.abs(gaussian(400, 4)) + shift
    (said,) = (line for line in warnings(made(points), "mds") if "collapsed" in line)
    assert ("neco" in said) == recommended and "knn look at other directions" in said


def test_a_clip_of_react_that_takes_most_of_the_energy_is_said():
    sparse = np.random.default_rng(0).uniform(0, 0.1, (300, 60))
    sparse[np.arange(300), np.arange(300) % 6] += 4.0  # one of 60 activations carries the class
    head = Head(torch.eye(6, 60) * 3, torch.zeros(6))
    features = torch.tensor(sparse, dtype=torch.float32)
    out = Outputs(features, head(features), torch.arange(300) % 6, head)
    (said,) = fitted_warnings(out, "react")
    assert said.startswith("react: its clip at") and "take a higher percentile" in said
    assert not fitted_warnings(out, "react", percentile=99.0)


def test_one_sentence_names_all_detectors_it_is_about_and_no_others():
    said = warnings(made(gaussian()), "msp", "ash", "scale:percentile=90", "energy")
    assert len(said) == 1 and said[0].startswith("ash, scale:percentile=90: ")


def test_wrong_weights_and_missing_classes_are_noticed():
    out = made(gaussian(100), labels=np.arange(100) % 3)
    assert any("1 of 4 classes" in line for line in warnings(out, "she"))
    shuffled = Outputs(out.features, out.logits.roll(1, 1), out.labels, out.head)
    assert any("right weights" in line for line in warnings(shuffled, "msp"))
