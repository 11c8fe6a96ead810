"""Alarms over batches and streams: their rates under exchangeability, and that drift is found."""

import numpy as np
import pytest
from scipy.stats import kstest

from ood.config import InputError
from ood.deployment.calibration import calibrate
from ood.deployment.drift import BETS, JUMP, Martingale, batch_alarm


def calibration(generator, n=100):
    return calibrate(generator.normal(size=n), 0.9)


@pytest.mark.parametrize("looks_for", ["shift", "ood"])
@pytest.mark.parametrize("m", [15, 100])
def test_false_alarms_of_a_batch_keep_their_level(looks_for, m):
    generator, rounds, level = np.random.default_rng(0), 1500, 0.1
    raised = [
        batch_alarm(calibration(generator), generator.normal(size=m), level, looks_for).raised
        for _ in range(rounds)
    ]
    assert np.mean(raised) <= level + 3 * np.sqrt(level * (1 - level) / rounds)
    assert np.mean(raised) > level / 3  # and the test is not asleep


def test_the_uniform_law_would_raise_too_many_alarms():
    """The p-values of a batch share the calibration set, so `batch_alarm` compares two samples."""
    generator, level = np.random.default_rng(1), 0.05
    batches = [calibration(generator, 50).p_values(generator.normal(size=200)) for _ in range(300)]
    assert np.mean([kstest(batch, "uniform").pvalue <= level for batch in batches]) > 3 * level


def test_a_shifted_batch_is_found_and_its_direction():
    generator = np.random.default_rng(2)
    known = calibration(generator, 300)
    larger, smaller = generator.normal(1, 1, 100), generator.normal(-1, 1, 100)
    assert batch_alarm(known, larger).raised and batch_alarm(known, smaller).raised
    assert batch_alarm(known, larger, looks_for="ood").raised
    assert not batch_alarm(known, smaller, looks_for="ood").raised
    found = batch_alarm(known, larger, 0.05)
    gaps = np.abs(
        np.searchsorted(np.sort(larger), known.scores, "right") / 100 - np.arange(1, 301) / 300
    )
    assert found.distance > gaps.max() - 1e-9 and "0.05" in found.guarantee


@pytest.mark.parametrize("ties", [False, True])
def test_martingale_keeps_its_bound_over_a_whole_stream(ties):
    generator, rounds, level = np.random.default_rng(3), 300, 0.1
    alarms = 0
    for seed in range(rounds):
        scores = generator.normal(size=220)
        scores = scores.round() if ties else scores
        monitor = Martingale(calibrate(scores[:20], 0.9), seed)
        monitor.update(scores[20:])
        alarms += monitor.alarm(level) is not None
    assert alarms / rounds <= level + 3 * np.sqrt(level * (1 - level) / rounds)


def test_martingale_finds_a_change_after_it_happened():
    generator = np.random.default_rng(4)
    monitor = Martingale(calibration(generator, 200))
    monitor.update(generator.normal(size=300))
    assert monitor.alarm(0.001) is None
    evidence = monitor.update(generator.normal(2, 1, 300))
    assert 300 < monitor.alarm(0.001) < 450 and len(evidence) == 300
    assert evidence[-1] > 1000 and monitor.seen == 600
    assert monitor.log_highest >= monitor.log_capital


def test_martingale_equals_the_printed_algorithm():
    """Against a loop over the capitals C_-1, C_0, C_1 without logarithms."""
    generator = np.random.default_rng(5)
    known, stream = generator.normal(size=30), generator.normal(0.5, 1, 50)
    found = Martingale(calibrate(known, 0.9), seed=7).update(stream)
    capitals, past, random = dict.fromkeys(BETS, 1 / 3), list(known), np.random.default_rng(7)
    for score, evidence in zip(stream, found):
        equal = 1 + sum(x == score for x in past)
        p = (sum(x > score for x in past) + random.random() * equal) / (len(past) + 1)
        past.append(score)
        total = sum(capitals.values())
        capitals = {bet: (1 - JUMP) * c + JUMP / 3 * total for bet, c in capitals.items()}
        capitals = {bet: c * (1 + bet * (p - 0.5)) for bet, c in capitals.items()}
        assert evidence == pytest.approx(sum(capitals.values()))


def test_batch_by_batch_is_the_whole_stream_at_once():
    generator = np.random.default_rng(6)
    known, stream = calibration(generator), generator.normal(size=40)
    one, parts = Martingale(known), Martingale(known)
    one.update(stream)
    for part in np.split(stream, 4):
        parts.update(part)
    parts.update([])
    assert one.path == parts.path


def test_bad_input_is_refused():
    known = calibration(np.random.default_rng(7))
    for level in (0, 1, -0.1, 2):
        with pytest.raises(InputError, match="between 0 and 1"):
            batch_alarm(known, [1.0], level)
        with pytest.raises(InputError, match="between 0 and 1"):
            Martingale(known).alarm(level)
    with pytest.raises(InputError, match="'shift', 'ood'"):
        batch_alarm(known, [1.0], looks_for="up")
    with pytest.raises(InputError, match="at least one score"):
        batch_alarm(known, [])
    for scores in ([np.nan], [[1.0]]):
        with pytest.raises(InputError, match="without NaN"):
            batch_alarm(known, scores)
        with pytest.raises(InputError, match="without NaN"):
            Martingale(known).update(scores)
