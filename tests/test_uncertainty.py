"""Intervals and paired tests against loops over all pairs, resampling, simulated coverage."""

import numpy as np
import pytest

from ood.config import InputError
from ood.evaluation import uncertainty as u
from ood.metrics import evaluate


def normal(n, m, shift, seed, digits=None):
    generator = np.random.default_rng(seed)
    known, novel = generator.normal(0, 1, n), generator.normal(shift, 1.3, m)
    return (known, novel) if digits is None else (known.round(digits), novel.round(digits))


def brute_delong(known, novel, other=None):
    """AUROC(s) and their covariance by comparing every pair, as printed in the paper."""
    kernels = []
    for x, y in [(known, novel)] + ([other] if other else []):
        kernels.append((y[:, None] > x[None]) + 0.5 * (y[:, None] == x[None]))  # (M, N)
    areas = [k.mean() for k in kernels]
    rows, columns = np.array([k.mean(1) for k in kernels]), np.array([k.mean(0) for k in kernels])
    return areas, np.atleast_2d(np.cov(rows)) / len(novel) + np.atleast_2d(np.cov(columns)) / len(
        known
    )


@pytest.mark.parametrize("digits", [None, 0], ids=["distinct", "tied"])
def test_delong_equals_all_pairs(digits):
    known, novel = normal(80, 50, 1.2, 0, digits)
    (area,), covariance = brute_delong(known, novel)
    found = u.auroc_interval(known, novel)
    assert found.value == pytest.approx(area, abs=1e-12) and found.value == pytest.approx(
        evaluate(known, novel).auroc, abs=1e-12
    )
    width = 1.959963984540054 * np.sqrt(covariance[0, 0]) / (area * (1 - area))
    ends = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-width, width]))))
    assert np.allclose(found[1:], ends, atol=1e-10)


def test_paired_delong_equals_all_pairs():
    (known, novel), other = normal(60, 70, 1.0, 1, 1), normal(60, 70, 0.8, 2, 1)
    other = 0.7 * known + other[0], 0.7 * novel + other[1]
    (a, b), covariance = brute_delong(known, novel, other)
    found = u.compare_auroc((known, novel), other)
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference == pytest.approx(a - b, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * spread, abs=1e-10)
    from statistics import NormalDist

    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-abs(a - b) / spread), abs=1e-10)
    swapped = u.compare_auroc(other, (known, novel))
    assert swapped.difference == -found.difference and swapped.p_value == found.p_value


def test_pairing_matters_and_equal_scores_do_not_differ():
    known, novel = normal(300, 300, 1.0, 3)
    generator = np.random.default_rng(4)
    worse = known + generator.normal(0, 0.4, 300), novel + generator.normal(0, 0.4, 300)
    order = generator.permutation(300)
    paired, shuffled = (
        u.compare_auroc((known, novel), worse),
        u.compare_auroc((known, novel), (worse[0][order], worse[1][order])),
    )
    assert (
        paired.difference == pytest.approx(shuffled.difference)
        and paired.p_value < shuffled.p_value / 3
    )
    assert u.compare_auroc((known, novel), (np.exp(known), np.exp(novel))).p_value == 1.0, (
        "ranks are the same"
    )


def test_average_over_sets_shares_the_id_images():
    known, first = normal(50, 40, 1.0, 5)
    second = np.random.default_rng(6).normal(0.6, 1, 90)
    found = u.auroc_interval(known, [first, second])
    assert found.value == pytest.approx(
        (evaluate(known, first).auroc + evaluate(known, second).auroc) / 2
    )
    (a, b), columns = zip(
        *[(brute_delong(known, s)[0][0], (s[:, None] > known[None])) for s in (first, second)]
    )
    mean_of_id = (columns[0].mean(0) + columns[1].mean(0)) / 2
    variance = (
        mean_of_id.var(ddof=1) / 50
        + (columns[0].mean(1).var(ddof=1) / 40 + columns[1].mean(1).var(ddof=1) / 90) / 4
    )
    area = (a + b) / 2
    width = 1.959963984540054 * np.sqrt(variance) / (area * (1 - area))
    assert np.log(found.high / (1 - found.high)) - np.log(area / (1 - area)) == pytest.approx(
        width, abs=1e-9
    )
    value = u.fpr_interval(known, [first, second]).value
    assert value == pytest.approx(
        (evaluate(known, first).fpr95 + evaluate(known, second).fpr95) / 2
    )


def test_mean_over_networks_shares_all_images():
    """A bootstrap of the images, averaged over the networks, gives the same interval."""
    known, novel = normal(120, 100, 1.0, 11)
    generator = np.random.default_rng(12)
    second = known + generator.normal(0, 1, 120), novel + generator.normal(0, 1, 100)
    assert u.networks_interval([(known, novel)] * 2) == pytest.approx(
        u.auroc_interval(known, novel)
    )
    found = u.networks_interval([(known, novel), second])
    means = []
    for _ in range(1000):
        rows, others = generator.integers(0, 120, 120), generator.integers(0, 100, 100)
        means.append(
            (
                evaluate(known[rows], novel[others]).auroc
                + evaluate(second[0][rows], second[1][others]).auroc
            )
            / 2
        )
    assert found.value == pytest.approx(
        (evaluate(known, novel).auroc + evaluate(*second).auroc) / 2
    )
    assert np.allclose(found[1:], np.quantile(means, (0.025, 0.975)), atol=0.015)
    assert u.compare_networks(
        [(known, novel), second], [second, (known, novel)]
    ).difference == pytest.approx(0, abs=1e-12)


def plain_bootstrap(pairs, rounds, seed):
    """(rounds, len(pairs)) FPR95 of each (known, novel) on the same resampled rows."""
    generator, out = np.random.default_rng(seed), []
    n, m = len(pairs[0][0]), len(pairs[0][1])
    for _ in range(rounds):
        rows, others = generator.integers(0, n, n), generator.integers(0, m, m)
        out.append([evaluate(known[rows], novel[others]).fpr95 for known, novel in pairs])
    return np.array(out)


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "tied"])
def test_bootstrap_without_samples_equals_plain_bootstrap(digits):
    known, novel = normal(150, 120, 2.0, 7, digits)
    plain = np.quantile(plain_bootstrap([(known, novel)], 1500, 0)[:, 0], (0.025, 0.975))
    found = u.fpr_interval(known, novel, rounds=20000)
    assert found.value == evaluate(known, novel).fpr95
    assert np.allclose(found[1:], plain, atol=0.03), (found, plain)
    assert (
        u.fpr_interval(known, novel, seed=3)
        == u.fpr_interval(known, novel, seed=3)
        != u.fpr_interval(known, novel, seed=4)
    )


def test_coverage_of_both_intervals():
    """About 95 % of the intervals hold the truth: normal scores, whose truth is known exactly."""
    from scipy.stats import norm

    shift, sigma = 2.0, 1.3
    area, rate = norm.cdf(shift / np.sqrt(1 + sigma**2)), norm.cdf((norm.ppf(0.95) - shift) / sigma)
    held = np.zeros(2)
    for seed in range(400):
        known, novel = normal(150, 100, shift, 100 + seed)
        a, f = u.auroc_interval(known, novel), u.fpr_interval(known, novel, rounds=400)
        held += (a.low <= area <= a.high, f.low <= rate <= f.high)
    assert 0.92 <= held[0] / 400 <= 0.98, held
    assert 0.89 <= held[1] / 400 <= 0.99, held


def test_size_of_the_paired_test():
    """Two detectors that are equally good differ at p < 0.05 in about 5 % of experiments."""
    rejected = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        shared = generator.normal(0, 1, 80), generator.normal(1, 1, 80)
        one, two = ([s + generator.normal(0, 0.5, 80) for s in shared] for _ in range(2))
        rejected += u.compare_auroc(one, two).p_value < 0.05
    assert 0.02 <= rejected / 400 <= 0.085, rejected


def test_perfect_separation_and_tiny_sets_have_honest_intervals():
    found = u.auroc_interval(np.arange(20.0), np.arange(20.0) + 100)
    assert found.value == found.high == 1.0 and found.low == pytest.approx(0.025 ** (1 / 20))
    assert u.auroc_interval(np.arange(20.0) + 100, np.arange(20.0))[1:] == pytest.approx(
        (0.0, 1 - 0.025 ** (1 / 20))
    )
    assert u.auroc_interval([0.0], [0.5, -1.0]) == (0.5, 0.0, 1.0)
    perfect = u.fpr_interval(np.arange(20.0), np.arange(30.0) + 100)
    assert perfect.low == perfect.value == 0.0 and perfect.high == pytest.approx(
        1 - 0.025 ** (1 / 30)
    )
    assert u.fpr_interval(np.arange(20.0) + 100, np.arange(30.0)).low == pytest.approx(
        0.025 ** (1 / 30)
    )


def test_more_images_give_narrower_intervals_and_a_higher_level_wider_ones():
    few, many = normal(100, 100, 1.0, 0), normal(1600, 1600, 1.0, 0)

    def width(i):
        return i.high - i.low

    for interval in (u.auroc_interval, u.fpr_interval):
        assert width(interval(*few)) / width(interval(*many)) == pytest.approx(4, rel=0.4)
        assert (
            width(interval(*few, level=0.99))
            > width(interval(*few))
            > width(interval(*few, level=0.5))
        )


def test_infinite_scores_are_ranked_and_nan_is_refused():
    known, novel = np.array([0.0, 1, 2, -np.inf]), np.array([1.0, 3, np.inf])
    assert u.auroc_interval(known, novel).value == pytest.approx(evaluate(known, novel).auroc)
    for call in (u.auroc_interval, u.fpr_interval):
        with pytest.raises(InputError, match="NaN"):
            call([0.0, np.nan], [1.0])
        with pytest.raises(InputError, match="level"):
            call([0.0], [1.0], level=95)
    with pytest.raises(InputError, match="same images"):
        u.compare_auroc(([0.0, 1.0], [2.0]), ([0.0], [2.0]))


def test_summary_of_an_evaluation():
    generator = np.random.default_rng(0)
    scores = {
        "id": {"good": generator.normal(0, 1, 200), "poor": generator.normal(0, 1, 200)},
        "a": {"good": generator.normal(3, 1, 100), "poor": generator.normal(0.5, 1, 100)},
        "b": {"good": generator.normal(2, 1, 60), "poor": generator.normal(0.2, 1, 60)},
    }
    found = u.summarise(scores, "id", rounds=200)
    assert found["best"] == "good" and list(found["versus_best"]) == ["poor"]
    assert (
        found["versus_best"]["poor"]["difference"] < 0
        and found["versus_best"]["poor"]["p_value"] < 1e-4
    )
    low, high = found["auroc"]["good"]["average"]
    assert (
        low
        < (
            evaluate(scores["id"]["good"], scores["a"]["good"]).auroc
            + evaluate(scores["id"]["good"], scores["b"]["good"]).auroc
        )
        / 2
        < high
    )
    assert set(found["fpr95"]["poor"]) == {"a", "b", "average"}
    alone = u.summarise({"id": scores["id"], "a": scores["a"]}, "id", rounds=200)
    assert set(alone["auroc"]["good"]) == {"a"}
