"""Every registered detector: the contract and the properties that all must have.

Formulas are in test_detectors_formulas.py.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from detector_toys import Gratings, auroc, gratings, network, outputs, passed, train  # noqa: F401  (fixtures)

from ood import detectors, statistics
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.detectors import ImageDetector
from ood.detectors.base import NotFitted, aliases, chunked_score, possible
from ood.detectors.shaping import Shaping, contribution_mask
from ood.evaluation import scoring
from ood.evaluation.diagnosis import advice, diagnose
from ood.evaluation.passes import Passes
from ood.outputs import Head, Outputs, Pass, extract

IMAGE_DETECTORS = [
    n for n in detectors.names() if issubclass(type(detectors.create(n)), ImageDetector)
]
ARRAY_DETECTORS = [n for n in detectors.names() if n not in IMAGE_DETECTORS]
# other values of every hyper-parameter; a pair is (what both sides set, the other value)
SHAPED = {"detector": "msp"}
BANK = {"fraction": 0.4, "seed": ({"fraction": 0.4}, 7)}
ADASCALE = {
    **SHAPED,
    "lower": 50.0,
    "upper": 99.0,
    "k1": 60.0,
    "k2": 50.0,
    "weight": 500.0,
    "share": 0.6,
    "step": 3.0,
    "samples": 3,
}
OTHER = {
    "adascale_a": ADASCALE,
    "adascale_l": ADASCALE,
    "ash": {**SHAPED, "variant": "b", "percentile": 60.0},
    "cadref": {"detector": "msp"},
    "combood": {"k": 5, **BANK},
    "dice": {**SHAPED, "percentile": 30.0, "clip": 0.5, "clip_percentile": 50.0},
    "dice_react": {
        **SHAPED,
        "percentile": 30.0,
        "clip": ({"clip_percentile": None}, 0.5),
        "clip_percentile": 40.0,
    },
    "dropout": {"samples": 5, "mode": "mean", "seed": 3},
    "energy": {"temperature": 3.0},
    "fdbd": {"normalise": "norm"},
    "gen": {"gamma": 0.5, "top": 3},
    "gmm": {"reg": 0.1},
    "gradnorm": {"temperature": 3.0},
    "gradunc": {"output": "softmax", "parameters": "head"},
    "gram": {"powers": (1, 2), "by_confidence": False},
    "knn": {"k": 5, "normalise": False, **BANK},
    "kpca": {
        "kernel": "cosine-gaussian",
        "variance": 0.5,
        **{
            f: ({"kernel": "cosine-gaussian"}, v)
            for f, v in (("gamma", 0.5), ("features", 30), ("seed", 4))
        },
    },
    "lts": {**SHAPED, "share": 0.5},
    "mcm": {"temperature": 0.1},
    "mds_ensemble": {"weights": (1.0, 5.0)},
    "mds_odin": {"magnitude": 0.05, "unit": "normalised"},
    "msp": {"temperature": 3.0},
    "nac": {"bins": 20, "alpha": 1.0, "saturation": 300.0},
    "nac_stages": {"bins": 20, "alpha": 9.0, "saturation": 300.0},
    "nci": {"alpha": 0.5},
    "neco": {"dim": 3, "standardise": False, "max_logit": True},
    "nnguide": {"k": 40, **BANK},
    "odin": {"temperature": 1.0, "magnitude": 0.05, "unit": "normalised"},
    "openmax": {"tail": 5, "alpha": 2, "euclid_weight": 0.5},
    "optfs": {"detector": "energy", "bins": 10, "tail": 0.1},
    "pnml": {"logits": "network", "eps": 0.3},
    "rankfeat": SHAPED,
    "ras": {**SHAPED, "order": ({"flat": True}, "magnitude")},
    "react": {**SHAPED, "percentile": 60.0, "threshold": 0.5},
    "relation": {"power": 4.0, "threshold": 0.9, **BANK},
    "residual": {"dim": 3},
    "scale": {**SHAPED, "percentile": 50.0},
    "she": {"metric": "cosine"},
    "ssd": {"clusters": 3},
    "vim": {"dim": 3},
    "vra": {
        **SHAPED,
        "lower": 20.0,
        "upper": 70.0,
        "gamma": 0.5,
        "below": "clip",
        "per_feature": False,
    },
    "webo": {"weights": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)},
    "weiper": {
        "repeats": 7,
        "delta": 5.0,
        "bins": 30,
        "lambda_1": 0.5,
        "lambda_2": 5.0,
        "smooth": 9,
        "smooth_perturbed": 3,
        "samples": 50,
        "seed": 5,
    },
}
NO_RANKING = {
    "dropout": "one dropout layer before the head of a tiny network says little about noise"
}


# settings that are cheaper or that suit few features: nac's default steepness saturates, and
# 80 to 85 % of 16 features leave two choices
SMALL = {
    "adascale_a": {"lower": 10.0, "upper": 90.0},
    "adascale_l": {"lower": 10.0, "upper": 90.0},
    "weiper": {"repeats": 10, "samples": 200},
    "kpca": {"features": 60},
    "nac": {"alpha": 0.5, "saturation": 5.0},
    "nac_stages": {"alpha": 1.0},
    "dropout": {"samples": 8},
}


def made(name, **hyperparameters):
    return detectors.create(name, **{**SMALL.get(name, {}), **hyperparameters})


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_contract(name, train):
    detector = made(name).fit(train)
    known, novel = outputs(200, seed=2), outputs(200, seed=3, shift=0.9)
    if name in (
        "residual",
        "kpca",
    ):  # they see what leaves the span of the training features, not what is missing in it
        novel = outputs(200, seed=3, shift=0.9, rectified=False)
    scores = chunked_score(detector, known)
    assert scores.shape == (200,) and torch.isfinite(scores).all()
    assert auroc(scores, chunked_score(detector, novel)) > 0.7, "OOD must score higher"
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        chunked_score(detector, known[order]), scores[order], rtol=1e-5, atol=1e-5
    )
    pieces = torch.cat([chunked_score(detector, c) for c in known.chunks(7)])
    torch.testing.assert_close(pieces, scores, rtol=1e-5, atol=1e-5)
    again = chunked_score(made(name).fit(outputs(600, seed=1)), known)
    assert torch.equal(again, scores), "fitting twice gives the same"


@pytest.mark.parametrize("name", IMAGE_DETECTORS)
def test_contract_of_image_detectors(name, passed):
    detector, known, novel = made(name), gratings(60, 5), gratings(60, 6, novel=True)
    scores = chunked_score(detector, passed(detector, known))
    assert scores.shape == (60,) and torch.isfinite(scores).all()
    if name not in NO_RANKING:
        assert auroc(scores, chunked_score(detector, passed(detector, novel, fitted=False))) > 0.6
    again = (
        chunked_score(made(name), passed(detector, known))
        if not detector.requires_fit
        else chunked_score(detector, passed(detector, known))
    )
    assert torch.equal(again, scores), "fitting twice gives the same"
    if name != "dropout":  # its masks depend on the position in the batch
        torch.testing.assert_close(
            chunked_score(detector, passed(detector, known, batch_size=7, fitted=False)),
            scores,
            rtol=2e-4,
            atol=1e-5,
        )
        flipped = ArrayImages(
            known.images[::-1].copy(), labels=known.labels[::-1].copy(), name="flipped"
        )
        torch.testing.assert_close(
            chunked_score(detector, passed(detector, flipped, fitted=False)).flip(0),
            scores,
            rtol=2e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", detectors.names())
def test_every_hyperparameter_changes_the_score(name, train, passed):
    fields = {f.name for f in dataclasses.fields(made(name))} - {
        "feature_mean"
    }  # a file: test_stored_feature_mean
    assert fields == set(OTHER.get(name, {})), "every hyper-parameter needs another value in OTHER"
    flat = outputs(600, seed=1, rectified=False), outputs(100, seed=5, rectified=False)

    def scored(both, hyperparameters):
        detector = made(name, **{k: v for k, v in hyperparameters.items() if k != "flat"})
        if isinstance(detector, ImageDetector):
            return chunked_score(detector, passed(detector, gratings(24, 5)))
        training, known = flat if "flat" in both else (train, outputs(100, seed=5))
        return chunked_score(detector.fit(training), known)

    default = scored({}, {})
    for field, value in OTHER.get(name, {}).items():
        both, value = (
            value if isinstance(value, tuple) and isinstance(value[0], dict) else ({}, value)
        )
        assert not torch.allclose(
            scored(both, both) if both else default, scored(both, {**both, field: value}), rtol=1e-6
        ), f"{name}.{field} = {value} changes nothing"


@pytest.mark.parametrize("name", detectors.names())
def test_state_round_trip(name, train, passed):
    """A fitted detector as plain values, loaded into a new one, gives identical scores."""
    detector, known = made(name), outputs(50, seed=4)
    if isinstance(detector, ImageDetector):
        known = passed(detector, gratings(30, 5))
    else:
        detector.fit(train)
    state = detector.state()
    assert all(v is None or isinstance(v, (torch.Tensor, int, float, str)) for v in state.values())
    assert bool(state) == detector.requires_fit or name in (
        "react",
        "dice",
        "dice_react",
        "dropout",
    )
    other = detectors.create(name, **detector.hyperparameters())
    loaded = other.load_state(
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    ).to("cpu")
    assert torch.equal(chunked_score(loaded, known), chunked_score(detector, known))


@pytest.mark.parametrize("name", [n for n in ARRAY_DETECTORS if made(n).requires_fit])
def test_not_fitted_is_said(name):
    with pytest.raises(NotFitted, match="fit it"):
        chunked_score(made(name), outputs(3))


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_double_precision_is_close(name, train):
    known = outputs(60, seed=6)
    double = dataclasses.replace(
        known,
        features=known.features.double(),
        logits=known.logits.double(),
        taps=tuple(t.double() for t in known.taps),
        head=Head(known.head.weight.double(), known.head.bias.double()),
    )
    detector = made(name).fit(train)
    torch.testing.assert_close(
        chunked_score(detector, known), chunked_score(detector, double), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_nan_is_refused(name, train):
    bad = outputs(20)
    bad.features[3, 2], bad.logits[3], bad.taps[0][3, 2] = float("nan"), float("nan"), float("nan")
    detector = made(name).fit(train)
    with pytest.raises(InputError, match="NaN"):
        chunked_score(detector, bad)
    if detector.requires_fit:
        with pytest.raises(InputError, match="NaN"):
            made(name).fit(bad)


@pytest.mark.parametrize(
    "name", [n for n in IMAGE_DETECTORS if n != "dropout"]
)  # whose masks differ with the precision
def test_image_detectors_in_double_precision_are_close(name, network, passed):
    detector = made(name)
    known = passed(detector, gratings(24, 5))
    pixels = torch.cat(list(gratings(24, 5).batches(24)))

    def measured(net, dtype):
        images = Preprocess((0.5,), (0.25,))(pixels).to(dtype).requires_grad_()
        maps = net.feature_maps(images)
        z = net.embed(maps[-1])
        return detector.score_images(Pass(net, images, z, net.fc(z), (0.25,), tuple(maps))).detach()

    single, double = (
        measured(network, torch.float32),
        measured(copy.deepcopy(network).double(), torch.float64),
    )
    torch.testing.assert_close(single.double(), double.double(), rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(
        single.double(), known.scores[detector.key].double(), rtol=2e-3, atol=1e-4
    )


class Spoilt(Preprocess):
    """Makes image 3 of every batch NaN."""

    def __call__(self, pixels):
        images = super().__call__(pixels)
        images[3] = float("nan")
        return images


@pytest.mark.parametrize("name", IMAGE_DETECTORS)
def test_nan_is_refused_by_image_detectors(name, network, passed):
    detector = made(name)
    passed(detector, gratings(6, 5))
    with pytest.raises(InputError, match="NaN"):
        chunked_score(
            detector,
            extract(
                network,
                gratings(6, 5),
                Spoilt((0.5,), (0.25,)),
                image_detectors=[detector],
                taps="taps" in detector.needs,
            ),
        )


@pytest.mark.parametrize("name", IMAGE_DETECTORS)
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_image_detectors_with_one_two_and_a_thousand_classes(name, classes):
    detector, network, preprocess = made(name), Gratings(), Preprocess((0.5,), (0.25,))
    network.fc = torch.nn.Linear(16, classes)
    images = gratings(40, 5)
    images = ArrayImages(images.images, labels=images.labels % classes, name="few")
    options = dict(image_detectors=[detector], taps="taps" in detector.needs)
    detector.fit(
        extract(
            network.eval(),
            images,
            preprocess,
            **{**options, "image_detectors": [detector] if detector.measures_train else []},
        )
    )
    if name == "dropout" and classes == 1:
        with pytest.raises(
            InputError, match="all passes agree"
        ):  # the softmax of one class is 1 whatever is dropped
            extract(network, images, preprocess, **options)
        return
    scores = chunked_score(detector, extract(network, images, preprocess, **options))
    assert scores.shape == (40,) and torch.isfinite(scores).all()


def test_what_cannot_work_with_a_network_is_said_before_the_pass():
    """gmm would take 33.6 GB for 1,000 classes; there is no dropout: `all` leaves out these two."""
    network, passes = torch.nn.Module(), []
    network.fc = torch.nn.Linear(2048, 1000)
    network.features = lambda x: passes.append(1)
    images = ArrayImages(np.zeros((4, 1, 2, 2), np.uint8), labels=np.arange(4), name="x")
    for name, words in (
        ("gmm", r"1000 x 2048 x 2048 .*33.6 GB.*use mds"),
        ("dropout", "no dropout"),
    ):
        with pytest.raises(InputError, match=words):
            scoring.evaluate(
                Passes(network, Preprocess((0.5,), (0.25,))),
                images,
                images,
                [scoring.TestSet("x", images)],
                {name: made(name)},
            )
    kept, left_out = possible({name: made(name) for name in detectors.names()}, network)
    assert (
        set(left_out) == {"gmm", "dropout"}
        and list(kept) == [n for n in detectors.names() if n not in left_out]
        and not passes
    )
    assert not possible({name: made(name) for name in detectors.names()}, Gratings())[1]


def test_dropout_is_recognised_wherever_its_rate_is_kept():
    class Functional(torch.nn.Module):
        def __init__(self, **rates):
            super().__init__()
            vars(self).update(rates)

    for candidate, found in (
        (torch.nn.Dropout2d(0.2), True),
        (torch.nn.Dropout(0.0), False),
        (Functional(dropout=0.1), True),
        (Functional(drop_prob=0.1), True),
        (Functional(dropout=0.0), False),
        (Functional(p=3.0), False),
    ):
        assert (
            bool(possible({"dropout": made("dropout")}, torch.nn.Sequential(candidate))[0]) == found
        )


@pytest.mark.parametrize(
    "name, field",
    [
        ("cadref", {}),
        ("cadref", {"detector": "maxlogit"}),
        ("nnguide", {}),
        ("neco", {"max_logit": True}),
    ],
)
def test_images_whose_logit_score_is_not_positive_are_counted(name, field, train):
    """The authors' formulas multiply or divide by the logit score.

    With all biases lowered they rank the other way round.
    """
    shifts = {0.0: 0.0, -30.0: 1.0, -float(train.logits.amax(1).median()): 0.5}
    for shift, share in shifts.items():
        if share == 0.5 and field.get("detector") != "maxlogit" and name != "neco":
            continue
        low = dataclasses.replace(train, logits=train.logits + shift, memo={})
        detector = made(name, **field).fit(low)
        assert detector.not_positive == pytest.approx(share, abs=0.01)
        said = [
            line
            for line in advice(diagnose(low), {"d": detector})
            if "positive logit score" in line
        ]
        assert bool(said) == (share > 0) and all(
            f"that of {100 * detector.not_positive:.2g} %" in line for line in said
        )
    positive = made(name, **({"detector": "msp"} if name == "cadref" else {}))
    if name != "nnguide":
        assert (
            positive.fit(dataclasses.replace(train, logits=train.logits - 30, memo={})).not_positive
            == 0
        )


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_one_two_and_a_thousand_classes(name, classes):
    hyperparameters = {"weiper": {"repeats": 2, "samples": 60}, "gmm": {"reg": 1e-3}}.get(name, {})
    training, known = (
        outputs(2000 if classes == 1000 else 120, seed=1, classes=classes),
        outputs(40, seed=2, classes=classes),
    )
    scores = chunked_score(made(name, **hyperparameters).fit(training), known)
    assert scores.shape == (40,) and torch.isfinite(scores).all()


@pytest.mark.parametrize("name", [n for n in ARRAY_DETECTORS if made(n).requires_fit])
def test_rows_without_an_id_label_are_passed_over(name, train):
    stained = Outputs(
        *(
            torch.cat([a, b])
            for a, b in (
                (train.features, train.features[:50] * 9),
                (train.logits, train.logits[:50] * 9),
            )
        ),
        torch.cat([train.labels, -torch.ones(50, dtype=torch.long)]),
        train.head,
        tuple(torch.cat([t, 9 * t[:50]]) for t in train.taps),
    )
    known = outputs(40, seed=8)
    torch.testing.assert_close(
        chunked_score(made(name).fit(stained), known),
        chunked_score(made(name).fit(train), known),
        rtol=1e-6,
        atol=1e-7,
    )


def test_any_shaping_with_any_logit_score():
    shapings = [n for n in ARRAY_DETECTORS if isinstance(made(n), Shaping)]
    scorers = [n for n in detectors.names() if made(n).needs == {"logits"}]
    assert {"react", "dice", "ash", "scale", "lts", "vra", "ras", "optfs"} <= set(shapings) and len(
        scorers
    ) >= 9
    known, train = outputs(20, seed=9), outputs(120, seed=1)
    for shaping in shapings:
        for scorer in (*scorers, "gen:gamma=0.5"):
            detector = made(shaping, detector=scorer).fit(train)
            plain = detectors.create(*[detectors.parse(scorer)[0]], **detectors.parse(scorer)[1])
            logits = detector.logits(known)
            refitted = plain.fit(dataclasses.replace(train, logits=detector.logits(train), memo={}))
            torch.testing.assert_close(
                chunked_score(detector, known),
                chunked_score(refitted, dataclasses.replace(known, logits=logits)),
                rtol=1e-5,
                atol=1e-6,
            )
    with pytest.raises(InputError, match="logits alone"):
        detectors.create("react", detector="knn")


def test_aliases_of_openood():
    assert aliases() == {
        "mls": "maxlogit",
        "ebo": "energy",
        "mahalanobis": "mds",
        "mds++": "mdspp",
        "rmds++": "rmdspp",
        "mc_dropout": "dropout",
        "temperature_scaling": "temp_scaling",
    }
    assert type(detectors.create("ebo", temperature=2.0)) is type(detectors.create("energy"))
    assert detectors.parse("gram:powers=[1,2,3],x=4") == ("gram", {"powers": [1, 2, 3], "x": 4})


def test_statistics_are_shared(train, monkeypatch):
    seen = []
    monkeypatch.setattr(
        statistics,
        "vectors",
        lambda outputs, view="features", old=statistics.vectors: (
            seen.append(view) or old(outputs, view)
        ),
    )
    fresh = outputs(600, seed=1)
    for name in ("mds", "rmds", "vim", "residual", "nci", "fdbd", "neco", "dice", "she"):
        made(name).fit(fresh)
    assert len(seen) < 16, (
        "one pass for the mean, one for the second moment, one per kind of class mean "
        "(and two looks at the width)"
    )


def test_quantile_is_exact_over_chunks():
    values = torch.randn(3000, 31, generator=torch.Generator().manual_seed(0)) * 3
    values[values.abs() < 0.4] = 0
    made_ = Outputs(
        values, values[:, :2], torch.zeros(3000, dtype=torch.long), Head(values[:2], values[0, :2])
    )
    wanted = (0.0, 1e-5, 0.1, 0.5, 0.73, 0.9, 1.0)
    for q, found in zip(wanted, statistics.quantiles(made_, wanted)):
        assert (
            found
            == statistics.quantile(made_, q)
            == pytest.approx(float(np.quantile(values.double().numpy(), q)), rel=1e-12, abs=1e-12)
        )
    for q, found in zip(wanted, statistics.feature_quantiles(made_, wanted)):
        np.testing.assert_allclose(
            found, np.quantile(values.double().numpy(), q, axis=0), rtol=1e-12
        )


def test_singular_covariance_is_inverted_on_its_range():
    """Dead and duplicated features: the distance is that of the features without them."""
    full = outputs(300, seed=1)
    wide = dataclasses.replace(
        full,
        features=torch.cat([full.features, torch.zeros(300, 5), full.features[:, :3]], 1),
        memo={},
    )
    known = outputs(50, seed=2)
    widened = dataclasses.replace(
        known, features=torch.cat([known.features, torch.zeros(50, 5), known.features[:, :3]], 1)
    )
    for name in ("mds", "rmds"):
        torch.testing.assert_close(
            chunked_score(made(name).fit(wide), widened),
            chunked_score(made(name).fit(full), known),
            rtol=1e-5,
            atol=1e-6,
        )


# part one: DICE and the command line
def test_energy_of_dice_equals_the_released_broadcast(train):
    """The authors multiply (B, 1, D) by (C, D) and sum; ours is one matrix product."""
    detector = detectors.create("dice", percentile=90).fit(train)
    known = outputs(50, seed=8)
    released = (known.features[:, None, :] * (detector.mask * known.head.weight)).sum(
        2
    ) + known.head.bias
    torch.testing.assert_close(detector.score(known), -released.logsumexp(1), rtol=1e-5, atol=1e-6)


def test_percentile_zero_still_drops_the_minimum():
    weight = torch.arange(1.0, 13.0).view(3, 4)
    mask, _ = contribution_mask(weight, torch.ones(4), 0)
    assert mask.sum() == 11 and mask[0, 0] == 0


@pytest.mark.parametrize(
    "percentile, c10, kept10, c100, kept100",
    [
        (10, -0.0617806, 3078, -0.190132, 30780),
        (50, -1.50725e-06, 1710, -0.000742713, 17100),
        (70, 4.04722e-05, 1026, 0.0123792, 10260),
        (90, 0.0153672, 342, 0.165968, 3420),
        (95, 0.223994, 171, 0.31381, 1710),
        (99, 0.775373, 35, 0.734338, 342),
    ],
)
def test_dice_masks_of_the_authors_files(reference, percentile, c10, kept10, c100, kept100):
    for name, threshold, kept in (("10", c10, kept10), ("100", c100, kept100)):
        weights = torch.load(
            reference / "dice" / f"cifar{name}_densenet_checkpoint_100.pth.tar",
            weights_only=True,
            map_location="cpu",
        )
        mean = torch.from_numpy(
            np.load(reference / "dice" / f"CIFAR-{name}_densenet_feat_stat.npy")
        )
        mask, found = contribution_mask(weights["state_dict"]["fc.weight"], mean, percentile)
        assert found == pytest.approx(threshold, rel=1e-5)
        assert int(mask.sum()) == kept
        if percentile == 90:
            per_class, features = mask.sum(1), int((mask.sum(0) > 0).sum())
            assert (per_class.min(), per_class.max(), features) == (
                (26, 40, 88) if name == "10" else (22, 51, 204)
            )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: detectors.create("enrgy"), "did you mean 'energy'"),
        (lambda: detectors.create("dice", percent=3), "did you mean 'percentile'"),
        (lambda: detectors.create("odin", unit="pixels"), "did you mean 'pixel'"),
        (lambda: detectors.parse("dice:90"), "key=value"),
        (lambda: detectors.create("knn", k=700).fit(outputs(600)), "k = 700"),
        (lambda: detectors.create("vim", dim=24).fit(outputs(60)), "1 to 23"),
        (
            lambda: detectors.create("mds").fit(
                dataclasses.replace(outputs(60), labels=-torch.ones(60, dtype=torch.long))
            ),
            "no ID image",
        ),
        (
            lambda: detectors.create("cadref", detector="entropy"),
            "allowed: energy, maxlogit, msp, gen",
        ),
        (lambda: detectors.create("cadref", detector="klm"), "allowed: energy, maxlogit, msp, gen"),
        (lambda: detectors.create("nac", bins=25), "bins is 25; it must be even"),
        (lambda: detectors.create("nac_stages", bins=3), "must be even"),
        (
            lambda: detectors.create("webo", weights=[1.0]).score(outputs(3)),
            "1 weights for 6 classes",
        ),
    ],
)
def test_bad_input_is_said(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_stored_feature_mean(tmp_path, train):
    np.save(tmp_path / "mean.npy", train.features.double().mean(0).numpy())
    stored = detectors.create("dice", feature_mean=str(tmp_path / "mean.npy"))
    assert not stored.requires_fit
    known = outputs(30, seed=9)
    assert torch.equal(
        stored.fit(train[:0]).score(known), detectors.create("dice").fit(train).score(known)
    )
    np.save(tmp_path / "short.npy", np.zeros(3))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    for file, words in (
        ("short.npy", r"need \(24,\)"),
        ("object.npy", "plain .npy"),
        ("none.npy", "no feature mean"),
    ):
        with pytest.raises(InputError, match=words):
            detectors.create("dice", feature_mean=str(tmp_path / file)).fit(train)
