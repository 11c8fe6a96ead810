"""Thresholds and conformal p-values: their guarantees by exact laws and by simulation."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, betabinom

from ood.config import InputError
from ood.deployment.calibration import Calibration, calibrate, needed


def test_rank_and_threshold_by_hand():
    scores = np.random.default_rng(0).permutation(
        np.arange(1.0, 100)
    )  # n = 99: k = ceil(0.95 * 100) = 95
    calibration = calibrate(scores)
    assert calibration.rank == 95 and calibration.threshold == 95.0
    assert calibrate(scores, accept=0.9).threshold == 90.0 and calibrate(scores[:19]).rank == 19


def test_p_values_by_hand():
    calibration = calibrate([1.0, 2, 2, 3], accept=0.5)
    assert np.allclose(
        calibration.p_values([0.5, 1, 1.5, 2, 2.5, 3, 9, np.inf, -np.inf]),
        np.array([5, 5, 4, 4, 2, 2, 1, 1, 5]) / 5,
    )
    assert (
        calibration.p_values(torch.tensor([2.0])).tolist() == [0.8]
        and len(calibration.p_values([])) == 0
    )


@pytest.mark.parametrize("n", [19, 20, 57, 99, 100, 1000])
@pytest.mark.parametrize("accept", [0.5, 0.9, 0.95])
def test_accepted_means_p_above_one_minus_accept(n, accept):
    scores = np.random.default_rng(n).normal(size=n).round(1)  # with ties
    calibration, new = calibrate(scores, accept), np.linspace(-4, 4, 400).round(2)
    assert (calibration.accepts(new) == (calibration.p_values(new) > 1 - accept + 1e-9)).all()


def test_probability_of_acceptance_is_the_exact_expectation():
    """Without ties it is k / (n + 1): at least `accept`, and less than 1 / (n + 1) more."""
    generator, n, rounds = np.random.default_rng(1), 57, 40000
    accepted = 0
    draws = np.sort(generator.normal(size=(rounds, n)), 1)
    k = calibrate(draws[0]).rank
    assert k == np.ceil(0.95 * (n + 1))
    accepted = (generator.normal(size=rounds) <= draws[:, k - 1]).mean()
    assert 0.95 <= k / (n + 1) < 0.95 + 1 / (n + 1)
    assert accepted == pytest.approx(k / (n + 1), abs=4 * np.sqrt(0.05 / rounds))


def test_share_accepted_by_one_calibration_set_follows_the_beta_law():
    generator, n, rounds = np.random.default_rng(2), 40, 3000
    shares = np.array(
        [calibrate(generator.random(n), accept=0.8).threshold for _ in range(rounds)]
    )  # uniform scores: share = threshold
    law = beta(33, 8)
    assert calibrate(np.arange(n), accept=0.8).rank == 33
    assert shares.mean() == pytest.approx(
        law.mean(), abs=4 * law.std() / np.sqrt(rounds)
    ) and shares.std() == pytest.approx(law.std(), rel=0.06)
    low, high = calibrate(np.arange(n), accept=0.8).share_interval(0.9)
    assert (low, high) == pytest.approx(law.interval(0.9)) and (
        (shares >= low) & (shares <= high)
    ).mean() == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_are_super_uniform(ties):
    """P(p <= a) <= a for every a, and exactly floor(a (n + 1)) / (n + 1) without ties."""
    generator, n, rounds = np.random.default_rng(3), 23, 30000
    draws, new = generator.normal(size=(rounds, n)), generator.normal(size=rounds)
    if ties:
        draws, new = draws.round(), new.round()
    p = np.array([Calibration(np.sort(d), 1, 0.5).p_values([s])[0] for d, s in zip(draws, new)])
    for a in (0.02, 1 / 24, 0.05, 0.1, 0.3, 0.5, 0.9):
        share, noise = (p <= a + 1e-12).mean(), 4 * np.sqrt(a * (1 - a) / rounds)
        assert share <= a + noise
        if not ties:
            assert share == pytest.approx(np.floor(a * 24 + 1e-9) / 24, abs=noise + 1e-9)


def test_confidence_holds_for_that_share_of_calibration_sets():
    generator, rounds = np.random.default_rng(4), 2000
    shares = np.array(
        [
            calibrate(generator.random(200), accept=0.9, confidence=0.95).threshold
            for _ in range(rounds)
        ]
    )
    calibration = calibrate(np.arange(200), accept=0.9, confidence=0.95)
    k = calibration.rank
    assert beta(k, 201 - k).sf(0.9) >= 0.95 > beta(k - 1, 202 - k).sf(0.9), (
        "the smallest rank that will do"
    )
    assert (shares >= 0.9).mean() >= 0.95 - 4 * np.sqrt(0.05 / rounds)
    assert (
        "0.95 over the choice" in calibration.guarantee
        and "on average" in calibrate(np.arange(200)).guarantee
    )


def test_too_few_images_are_refused_with_the_number_that_is_needed():
    assert needed(0.95) == 19 and needed(0.99) == 99 and needed(0.5) == 1
    assert needed(0.95, 0.9) == 45  # 0.95^45 < 0.1 <= 0.95^44
    with pytest.raises(InputError, match="at least 19 are needed"):
        calibrate(np.arange(18))
    calibrate(np.arange(45), confidence=0.9)
    with pytest.raises(InputError, match="at least 45 are needed"):
        calibrate(np.arange(44), confidence=0.9)


def test_check_is_an_exact_test_for_changed_images():
    generator = np.random.default_rng(5)
    calibration = calibrate(generator.normal(size=99))
    new = generator.normal(size=200)
    found = calibration.check(new)
    assert found.accepted == (new <= calibration.threshold).mean() and found.expected == 0.95
    assert found.p_value == pytest.approx(
        betabinom(200, 95, 5).cdf(int((new <= calibration.threshold).sum())), rel=1e-9
    )
    assert calibration.check(new + 1.0).p_value < 0.01
    refused = 0
    for _ in range(1000):
        refused += (
            calibrate(generator.normal(size=99)).check(generator.normal(size=150)).p_value <= 0.1
        )
    assert refused / 1000 <= 0.1 + 4 * np.sqrt(0.09 / 1000)


@pytest.mark.parametrize(
    "values, words", [([], "there are none"), ([1.0, np.nan], "NaN"), ([[1.0]], "shape")]
)
def test_bad_scores_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        calibrate(values)


@pytest.mark.parametrize(
    "settings", [{"accept": 1.0}, {"accept": 95}, {"accept": 0.9, "confidence": 1.0}]
)
def test_bad_shares_are_refused(settings):
    with pytest.raises(InputError, match="fraction between 0 and 1"):
        calibrate(np.arange(100), **settings)


def test_state_gives_the_same_decisions():
    calibration = calibrate(np.random.default_rng(6).normal(size=50), accept=0.8, confidence=0.9)
    again, new = Calibration.from_state(calibration.state()), np.linspace(-3, 3, 50)
    assert (
        again.p_values(new) == calibration.p_values(new)
    ).all() and again.threshold == calibration.threshold
    assert again.guarantee == calibration.guarantee
