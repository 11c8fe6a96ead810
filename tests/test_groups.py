"""Calibration per group: the guarantee inside every group, and what happens to small groups."""

import json

import numpy as np
import pytest

from ood.config import InputError
from ood.deployment.calibration import calibrate
from ood.deployment.groups import GroupCalibration, calibrate_groups


def two_groups(generator, n):
    """Scores of group 1 are larger: one threshold would reject mostly images of it."""
    groups = generator.integers(0, 2, n)
    return generator.normal(size=n) + 3 * groups, groups


def test_every_group_keeps_its_share_where_one_threshold_does_not():
    generator = np.random.default_rng(0)
    calibration = calibrate_groups(*two_groups(generator, 4000), accept=0.9)
    scores, groups = two_groups(generator, 20000)
    accepted, pooled = calibration.accepts(scores, groups), calibrate(scores, 0.9).accepts(scores)
    for group in (0, 1):
        assert accepted[groups == group].mean() == pytest.approx(0.9, abs=0.03)
    assert pooled[groups == 0].mean() > 0.97 and pooled[groups == 1].mean() < 0.84


def test_p_values_inside_a_group_are_super_uniform():
    generator, p_values = np.random.default_rng(1), []
    for _ in range(1500):
        scores, groups = two_groups(generator, 41)
        groups[:3] = (0, 1, 1)  # the last image is new; both groups are there
        found = calibrate_groups(scores[:-1], groups[:-1], accept=0.1)
        p_values += found.p_values(scores[-1:], groups[-1:]).tolist()
    for a in (0.1, 0.3, 0.6):
        assert np.mean(np.array(p_values) <= a) <= a + 3 * np.sqrt(a * (1 - a) / 1500)


def test_values_are_those_of_each_groups_own_calibration():
    generator = np.random.default_rng(2)
    scores, groups = two_groups(generator, 100)
    calibration = calibrate_groups(scores, groups, accept=0.9)
    new, where = two_groups(generator, 30)
    for group in (0, 1):
        own, rows = calibrate(scores[groups == group], 0.9), where == group
        assert (calibration.p_values(new, where)[rows] == own.p_values(new[rows])).all()
        assert (calibration.accepts(new, where)[rows] == own.accepts(new[rows])).all()


def test_small_and_unseen_groups_use_all_images():
    scores, groups = np.arange(100.0), np.array([0] * 60 + [1] * 35 + [2] * 5)
    calibration = calibrate_groups(scores, groups)
    assert calibration.pooled == (2,) and set(calibration.parts) == {0, 1}
    assert calibration.of(2) is calibration.everything is calibration.of(77)
    assert "2 groups" in calibration.guarantee and "1 groups with too few" in calibration.guarantee


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_state_survives_json(confidence):
    scores, groups = two_groups(np.random.default_rng(3), 300)
    groups[:4] = 5
    calibration = calibrate_groups(scores, groups, 0.9, confidence)
    state = calibration.state()
    arrays = {key: state.pop(key).numpy() for key in ("scores", "group_scores")}
    again = GroupCalibration.from_state({**json.loads(json.dumps(state)), **arrays})
    new, where = two_groups(np.random.default_rng(4), 50)
    assert (again.p_values(new, where) == calibration.p_values(new, where)).all()
    assert again.pooled == calibration.pooled == (5,) and again.guarantee == calibration.guarantee
    for broken in ({"groups": [[0, 7]]}, {"groups": [[0, 10**6]]}):
        with pytest.raises(InputError):
            GroupCalibration.from_state({**state, **arrays, **broken})


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="no group has the 19"):
        calibrate_groups(np.arange(40.0), np.arange(40))
    with pytest.raises(InputError, match="one group"):
        calibrate_groups(np.arange(40.0), np.zeros(39, int))
    with pytest.raises(InputError, match="whole numbers"):
        calibrate_groups(np.arange(40.0), np.zeros(40))
    with pytest.raises(InputError, match="NaN"):
        calibrate_groups(np.full(40, np.nan), np.zeros(40, int))
