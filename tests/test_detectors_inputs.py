"""What detectors refuse and must take: ranges, half precision, few images, signed features."""

import dataclasses
import math
import typing

import numpy as np
import pytest
import torch
from detector_toys import auroc, gratings, network, outputs, passed, train  # noqa: F401  (fixtures)

from ood import detectors, statistics
from ood.config import InputError, Range
from ood.data import Preprocess
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import NotFitted, chunked_score
from ood.detectors.shaping import Shaping
from ood.evaluation import scoring
from ood.evaluation.passes import Passes
from ood.outputs import Head, Outputs

FIELDS = [(n, f.name) for n in detectors.names() for f in dataclasses.fields(detectors.create(n))]
ARRAY_DETECTORS = [
    n for n in detectors.names() if not isinstance(detectors.create(n), ImageDetector)
]
# fields where 0 is a setting, and what it means
ZERO = {
    ("adascale_a", "lower"): "the percentile of an image may be as low as 0: nothing is left out",
    ("adascale_l", "lower"): "as for adascale_a",
    ("adascale_a", "weight"): "the changes of the features do not count",
    ("adascale_l", "weight"): "as for adascale_a",
    ("ash", "percentile"): "nothing is pruned",
    ("dice", "percentile"): "only the least contribution is cut off",
    ("dice_react", "percentile"): "as for dice",
    ("gmm", "reg"): "no ridge",
    ("mds_ensemble", "weights"): "a stage does not count",
    ("mds_odin", "magnitude"): "no perturbation",
    ("nci", "alpha"): "the feature norm does not count",
    ("odin", "magnitude"): "no perturbation",
    ("openmax", "euclid_weight"): "cosine distances alone",
    ("optfs", "tail"): "the bins reach from the least to the largest training feature",
    ("relation", "threshold"): "every relation is an edge",
    ("scale", "percentile"): "nothing is left out of the denominator",
    ("vra", "lower"): "nothing is set to zero",
    ("vra", "gamma"): "VRA, not VRA+",
    ("webo", "weights"): "a class does not count",
    ("weiper", "delta"): "the copies of the weights are not moved",
    ("weiper", "lambda_1"): "the perturbed logits do not count",
    ("weiper", "lambda_2"): "the confidence does not count",
    **{(n, f): "a seed" for n, f in FIELDS if f == "seed"},
}
NEGATIVE = {
    ("mds_ensemble", "weights"): "a regression over the stages may give negative weights",
    ("webo", "weights"): "relu makes them 0, as in VOS",
}
NONE = {  # what leaving a field out means
    ("dice", "clip"): "no clipping",
    ("dice", "clip_percentile"): "no clipping",
    ("dice", "feature_mean"): "the mean is fitted",
    ("dice_react", "clip"): "clip_percentile counts",
    ("dice_react", "clip_percentile"): "clip counts",
    ("dice_react", "feature_mean"): "the mean is fitted",
    ("mds_ensemble", "weights"): "ones",
    ("neco", "dim"): "a default that suits the features",
    ("neco", "max_logit"): "chosen by the features' signs",
    ("react", "threshold"): "percentile counts",
    ("residual", "dim"): "the authors' rule",
    ("vim", "dim"): "the authors' rule",
    ("webo", "weights"): "ones",
}


def kinds(name, field):
    """The types that a field takes, None left out."""
    hint = typing.get_type_hints(type(detectors.create(name)))[field]
    if typing.get_origin(hint) is typing.Literal:
        return {"choice"}
    hints = set(typing.get_args(hint)) - {type(None)} if typing.get_args(hint) else {hint}
    return {typing.get_origin(h) or h for h in hints}


def bad_values(name, field):
    """Values that a field must refuse, unless a table above says why it takes them."""
    kind = kinds(name, field)
    one, shaped = "x", lambda value: value
    if tuple in kind or ... in kind:
        shaped = lambda value: [1, value]
        yield from ("x", 1.0, [1, None], [[1]], [True])
    elif kind & {int, float}:
        yield from ("x", [1], True)
    if ... in kind or tuple in kind or kind & {int, float}:
        yield from map(shaped, (math.nan, math.inf, -math.inf, 10**5000))
        yield from () if (name, field) in NEGATIVE else map(shaped, (-1, -1e-9))
        yield from () if (name, field) in ZERO else (shaped(0),)
        yield from (shaped(2.5),) if kind == {int} else ()
    if bool in kind:
        yield from (1, "true", math.nan)
    if "choice" in kind or str in kind:
        yield from (3, [one], math.nan)
    if "choice" in kind or field == "detector":
        yield one
    yield from () if (name, field) in NONE else (None,)


@pytest.mark.parametrize("name, field", FIELDS, ids=[f"{n}-{f}" for n, f in FIELDS])
def test_every_hyperparameter_refuses_what_means_nothing(name, field):
    for value in bad_values(name, field):
        with pytest.raises(InputError) as refused:
            detectors.create(name, **{field: value})
        message = str(refused.value)
        assert field in message and "\n" not in message and len(message) < 600
    made = detectors.create(name)
    for value in list(bad_values(name, field))[:3]:
        with pytest.raises(InputError):
            setattr(made, field, value)  # a later change is checked too
    assert made.hyperparameters() == detectors.create(name).hyperparameters()


def test_every_number_has_a_range_of_its_own():
    for name, field in FIELDS:
        found = {f.name: f for f in dataclasses.fields(detectors.create(name))}[field]
        if kinds(name, field) & {int, float} and (name, field) not in NEGATIVE:
            allowed = found.metadata.get("range", Range())
            assert allowed.low is not None or allowed.above is not None, (name, field)
    assert {*ZERO, *NEGATIVE, *NONE} <= set(FIELDS), "the tables name fields that exist"


@pytest.mark.parametrize("name, field", list(ZERO), ids=[f"{n}-{f}" for n, f in ZERO])
def test_zero_is_taken_where_it_means_something(name, field, train, passed):
    value = {"webo": [0, 1, 1, 1, 1, 1], "mds_ensemble": [0, 1]}.get(name, 0)
    few = {"weiper": {"repeats": 3, "samples": 50}, "dropout": {"samples": 3}}.get(name, {})
    detector = detectors.create(name, **{**few, field: value})
    if isinstance(detector, ImageDetector):
        known = passed(detector, gratings(12, 5))
    else:
        known = outputs(30, seed=2)
        detector.fit(train)
    scores = chunked_score(detector, known)
    assert torch.isfinite(scores).all() and len(scores.unique()) > 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: detectors.create("vra", lower=80, upper=20), "rise from lower to upper"),
        (lambda: detectors.create("adascale_l", lower=90), "rise from lower to upper"),
        (lambda: detectors.create("dice", percentile=100), "below 100"),
        (lambda: detectors.create("gram", powers=[]), "powers is empty"),
        (lambda: detectors.create("ssd", clusters=61).fit(outputs(60)), "61 clusters.*60 images"),
        (lambda: detectors.create("react", detector="energy:temperature=-1"), "above 0"),
        (lambda: detectors.create("vim", dim=20).fit(outputs(12)), "span only 1[0-9] dimensions"),
    ],
)
def test_bad_combinations_are_said(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_numbers_of_numpy_are_numbers():
    made = detectors.create("knn", k=np.int64(5), fraction=np.float32(0.5))
    assert type(made.k) is int and type(made.fraction) is float


# a detector of one's own
@dataclasses.dataclass(eq=False)
class Centre(Detector):
    """Distance to the mean training feature."""

    power: float = 1.0
    name = "centre"
    needs = frozenset({"features"})

    def fit(self, train):
        self.centre, self.images = statistics.mean(train), len(train)
        return self

    def score(self, batch):
        return (batch.features - self.centre).norm(dim=1) ** self.power


def test_a_detector_of_ones_own_sees_the_training_set(network):
    """`fit` alone is enough: nothing else says that the training set has to be read."""
    assert Centre().requires_fit and not detectors.create("energy").requires_fit
    with pytest.raises(NotFitted):
        chunked_score(Centre(), outputs(3))
    detector, novel = Centre(), [scoring.TestSet("novel", gratings(30, 6, novel=True))]
    passes = Passes(network, Preprocess((0.5,), (0.25,)))
    scoring.evaluate(passes, gratings(60, 0), gratings(30, 5), novel, {"centre": detector})
    assert detector.images == 60 and torch.isfinite(detector.centre).all()


def test_a_shaping_of_ones_own_that_learns_is_fitted():
    @dataclasses.dataclass(eq=False)
    class Above(Shaping):
        name = "above"

        def learn(self, train):
            self.mean = statistics.mean(train).float()

        def shape(self, features):
            return (features - self.mean).clamp(min=0)

    assert Above().requires_fit and not detectors.create("ash").requires_fit
    assert not detectors.create("react", threshold=1.0).requires_fit


def test_a_hyperparameter_of_ones_own_must_be_finite():
    with pytest.raises(InputError, match="'power' is nan; it must be finite"):
        Centre(power=math.nan)


# what a file of a fitted detector may hold
@pytest.mark.parametrize(
    "state", [{"score": 1.0}, {"k": 3}, {"_made": 1.0}, {"name": "x"}, {"fit.0": 1.0}, {"": 1.0}]
)
def test_a_state_cannot_replace_methods_or_hyperparameters(state):
    with pytest.raises(InputError, match="learns no"):
        detectors.create("knn").load_state(state)


def test_what_was_saved_before_a_field_existed_keeps_its_meaning():
    old = {"powers": [1, 2, 3, 4, 5]}
    assert detectors.restore("gram", old).by_confidence is False
    assert detectors.restore("gram", {**old, "by_confidence": True}).by_confidence is True
    assert detectors.create("gram").by_confidence is True


# half precision
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_half_precision_scores_as_the_same_values_in_single(name, dtype):
    """The sum of all values overflows float16, which once read as a value that is not finite."""

    def made(n, seed, half):
        whole = outputs(n, seed)
        parts = {
            "features": (whole.features * 40).to(dtype),
            "logits": (whole.logits * 40).to(dtype),
            "head": Head(whole.head.weight.to(dtype), whole.head.bias.to(dtype)),
            "taps": tuple(tap.to(dtype) for tap in whole.taps),
        }
        if not half:
            parts |= {part: parts[part].float() for part in ("features", "logits")}
            parts["head"] = Head(parts["head"].weight.float(), parts["head"].bias.float())
            parts["taps"] = tuple(tap.float() for tap in parts["taps"])
        return dataclasses.replace(whole, memo={}, **parts)

    few = {"weiper": {"repeats": 5, "samples": 60}, "kpca": {"features": 60}}.get(name, {})
    half, single = (
        chunked_score(
            detectors.create(name, **few).fit(made(300, 1, precision)), made(30, 2, precision)
        )
        for precision in (True, False)
    )
    assert torch.equal(half, single)


def test_one_value_that_is_not_finite_is_found_in_half_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        large = torch.full((300, 30), 60000.0, dtype=dtype)
        assert statistics.all_finite(large)
        for value in (math.inf, -math.inf, math.nan):
            spoilt = large.clone()
            spoilt[7, 3] = value
            assert not statistics.all_finite(spoilt)


# few images
def photographs(n, seed, dimension=400, novel=False):
    """Features in a few directions plus noise in all; `novel` ones have the noise alone."""
    directions = torch.randn(20, dimension, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 20, generator=generator) @ directions * (0.0 if novel else 1.0)
    noise = torch.randn(n, dimension, generator=generator) * (3.0 if novel else 1.0)
    features = (signal + noise).relu()
    head = Head(directions[:6] / 50, torch.zeros(6))
    return Outputs(features, head(features), torch.arange(n) % 6, head)


@pytest.mark.parametrize("name", ["vim", "residual", "neco", "kpca"])
def test_fewer_images_than_the_default_dimension(name):
    """90 photographs and 400 features: 200 principal directions would leave nothing outside."""
    train, known, novel = photographs(90, 1), photographs(60, 2), photographs(60, 3, novel=True)
    detector = detectors.create(name).fit(train)
    scores = chunked_score(detector, known)
    assert scores.abs().max() < 1e4, "the residual of the training images is no rounding error"
    assert auroc(scores, chunked_score(detector, novel)) > 0.8
    if name != "kpca":
        assert detector.rank in (89, 90) and detector.dimension <= 45
    if name in ("vim", "residual"):
        training = chunked_score(detectors.create("residual").fit(train), train)
        assert (
            training.mean()
            > 0.05 * chunked_score(detectors.create("residual").fit(train), known).mean()
        )


@pytest.mark.parametrize(
    "features, rank, dimension",
    [
        (2048, 2048, 1000),
        (2048, 2040, 1000),  # a few dead features change nothing
        (2048, 1200, 512),
        (2048, 300, 150),
        (768, 768, 512),
        (342, 340, 171),
        (342, 60, 30),
        (24, 1, 1),
    ],
)
def test_the_default_dimension_follows_the_rank(features, rank, dimension):
    from ood.detectors.subspaces import principal

    assert principal(None, features, rank, "vim") == dimension


@pytest.mark.parametrize("kernel", ["cosine", "cosine-gaussian"])
@pytest.mark.parametrize("images", [2, 5])
def test_kernel_pca_of_very_few_images_leaves_something_outside(kernel, images):
    made = detectors.create("kpca", kernel=kernel, features=40, variance=1.0)
    scores = chunked_score(made.fit(outputs(images, seed=1)), outputs(20, seed=2))
    assert made.kept.shape[1] < images and (scores > 1e-6).all()


# sparse features
def test_react_measures_how_much_of_the_id_energy_its_clip_takes():
    """Nearly all activations are close to zero, and the few that carry the class are cut off."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(300, 60, generator=generator) * 0.1
    features[torch.arange(300), torch.arange(300) % 6] += 4.0  # one of 60 carries the class
    head = Head(torch.eye(6, 60) * 3, torch.zeros(6))
    train = Outputs(features, head(features), torch.arange(300) % 6, head)
    high, low = (detectors.create("react", percentile=p).fit(train) for p in (99.0, 90.0))
    for detector in (high, low):
        kept = head(features.clamp(max=detector.clip)).logsumexp(1).mean()
        expected = 1 - kept / train.logits.logsumexp(1).mean()
        assert detector.removed == pytest.approx(expected.item(), rel=1e-4)
    assert high.removed < 0.1 < 0.8 < low.removed
    fixed = detectors.create("react", threshold=low.clip)
    assert fixed.fit(train).removed == pytest.approx(low.removed)
    assert "removed" not in detectors.create("react", threshold=1.0).fit(train[:0]).state()


# signed features
def layer_norm(n, seed, novel=False):
    """Features behind a LayerNorm, two thirds negative; novel ones lie between two classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 48, generator=torch.Generator().manual_seed(9)).relu() * 2
    labels = torch.arange(n) % 6
    noise = torch.randn(n, 48, generator=generator)
    between = (centres[labels] + centres[labels - 1]) / 2
    features = between + 0.05 * noise if novel else centres[labels] + 0.3 * noise
    features = torch.nn.functional.layer_norm(features, (48,))
    head = Head(torch.nn.functional.layer_norm(centres, (48,)) / 7, torch.zeros(6))
    return Outputs(features, head(features), labels, head)


def test_neco_multiplies_by_the_largest_logit_on_signed_features(train):
    """Without the factor it falls below chance there, as the authors use it for ResNet only."""
    known, novel = layer_norm(200, 2), layer_norm(200, 3, novel=True)
    training = layer_norm(600, 1)
    assert (training.features < 0).float().mean() > 0.5

    def area(**settings):
        detector = detectors.create("neco", dim=5, **settings).fit(training)
        return auroc(chunked_score(detector, known), chunked_score(detector, novel))

    assert area() == area(max_logit=True) > 0.9
    assert area(max_logit=False) < 0.5
    assert detectors.create("neco").fit(training).multiplies
    assert not detectors.create("neco").fit(train).multiplies, "rectified: as for ResNet"
    assert statistics.signed(training) and not statistics.signed(train)
