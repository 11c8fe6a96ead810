"""Metrics: against scikit-learn and explicit loops, properties, edges, released rules."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from ood import metrics, metrics_released
from ood.config import InputError
from ood.metrics import evaluate, prepare

RANDOM = np.random.default_rng(7)


def oracle(known, novel, tpr=0.95):
    """What a user of scikit-learn writes, in the order of Metrics."""
    is_id = np.concatenate((np.ones(len(known)), np.zeros(len(novel))))
    scores = np.concatenate((known, novel)).astype(np.float64)
    fpr, hit, _ = sk.roc_curve(is_id, -scores, drop_intermediate=False)
    flagged, caught, _ = sk.roc_curve(1 - is_id, scores, drop_intermediate=False)
    return (
        fpr[np.argmax(hit >= tpr)],
        sk.roc_auc_score(is_id, -scores),
        sk.average_precision_score(is_id, -scores),
        sk.average_precision_score(1 - is_id, scores),
        np.min(1 - hit + fpr) / 2,
        flagged[np.argmax(caught >= tpr)],
    )


def tied_scores(largest=2000):
    """Two sets of random size with heavy ties; every third pair in float32."""
    sizes, levels = RANDOM.integers(1, largest, 2), RANDOM.integers(1, 60)
    known = RANDOM.integers(0, levels, sizes[0]) / 7
    novel = RANDOM.integers(0, levels, sizes[1]) / 7 + RANDOM.choice([0, 1 / 7, 0.3, -0.2])
    return (
        (known.astype(np.float32), novel.astype(np.float32))
        if RANDOM.random() < 0.3
        else (known, novel)
    )


@pytest.mark.parametrize("largest", [4, 25, 2000])
def test_equal_to_scikit_learn_with_ties(largest):
    for _ in range(120):
        known, novel = tied_scores(largest)
        tpr = RANDOM.choice([0.95, 0.5, 1.0, 0.123])
        np.testing.assert_allclose(
            evaluate(known, novel, tpr), oracle(known, novel, tpr), rtol=0, atol=1e-12
        )


def test_equal_to_scikit_learn_without_ties():
    known, novel = RANDOM.normal(size=20_000), RANDOM.normal(1, 2, size=7_001)
    np.testing.assert_allclose(evaluate(known, novel), oracle(known, novel), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 100, 400])
def test_operating_point_is_the_first_with_enough_id(n):
    """20 * 0.95 is 19 in decimal, but not in every binary rounding."""
    known, novel = np.arange(n), np.arange(n) + 0.5
    needed = next(k for k in range(1, n + 1) if k / n >= 0.95)
    assert evaluate(known, novel).fpr95 == (needed - 1) / n
    assert evaluate(known, novel).fpr95_ood_positive == (needed - 1) / n
    assert metrics.threshold_at_tpr(known) == needed - 1


def test_hand_computed():
    found = evaluate([1, 2, 3, 4], [3, 4, 5])
    assert found.auroc == (3 + 3 + 2.5 + 1.5) / 12  # pairs won by each ID score, ties half
    assert found.fpr95 == 2 / 3  # all four ID are needed: accepted up to 4
    assert found.fpr95_ood_positive == 2 / 4  # all three OOD are needed: flagged from 3
    assert (
        found.detection_error == (2 / 4 + 0) / 2
    )  # accepted up to 2; up to 3 it is (1/4 + 1/3) / 2
    assert found.aupr_in == pytest.approx((1 + 1 + 3 / 4 + 4 / 6) / 4)
    assert found.aupr_out == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_fpr95_conventions_differ_and_the_second_is_pytorch_oods():
    from pytorch_ood.metrics import OODMetrics

    for known, novel in [
        (RANDOM.normal(size=900), RANDOM.normal(1.2, 2, size=400)),
        (RANDOM.normal(size=30), RANDOM.normal(size=7)),
        tied_scores(),
        tied_scores(),
        tied_scores(30),
    ]:
        theirs = OODMetrics()
        theirs.update(
            torch.from_numpy(np.concatenate((known, novel))),
            torch.cat((torch.zeros(len(known)), -torch.ones(len(novel)))),
        )
        theirs, ours = theirs.compute(), evaluate(known, novel)
        assert ours.fpr95_ood_positive == pytest.approx(theirs["FPR95TPR"], abs=1e-6)
        assert ours.auroc == pytest.approx(theirs["AUROC"], abs=1e-6)
    wide = evaluate(RANDOM.normal(size=2000), RANDOM.normal(1.5, 3, size=2000))
    assert abs(wide.fpr95 - wide.fpr95_ood_positive) > 0.05


def test_order_and_monotone_transforms_do_not_matter():
    for _ in range(20):
        known, novel = (
            np.rint(scores * 70).astype(float) for scores in tied_scores(500)
        )  # whole numbers: no transform merges two of them
        expected = evaluate(known, novel)
        assert evaluate(RANDOM.permutation(known), RANDOM.permutation(novel)) == expected
        for transform in (lambda s: np.exp(s / 100), lambda s: 3 * s - 1000, lambda s: s**3 + s):
            assert evaluate(transform(known), transform(novel)) == expected


def test_negated_scores_with_swapped_roles():
    """Swap ID and OOD and negate the scores: AUPR and FPR95 swap their two kinds.

    Nothing else changes.
    """
    for _ in range(20):
        known, novel = tied_scores(500)
        one, two = evaluate(known, novel), evaluate(-novel, -known)
        swapped = two._replace(
            fpr95=two.fpr95_ood_positive,
            fpr95_ood_positive=two.fpr95,
            aupr_in=two.aupr_out,
            aupr_out=two.aupr_in,
        )
        np.testing.assert_allclose(one, swapped, rtol=0, atol=1e-12)
        assert evaluate(-known, -novel).auroc == pytest.approx(1 - one.auroc, abs=1e-12)


def test_sorted_once_used_often():
    known = RANDOM.normal(size=1000).round(1)
    ready = prepare(known)
    assert len(ready) == 1000 and prepare(ready) is ready
    for novel in (RANDOM.normal(size=300).round(1), RANDOM.normal(2, 1, size=10)):
        assert evaluate(ready, novel) == evaluate(known, novel) == evaluate(ready, prepare(novel))


def test_kinds_of_input_agree():
    known, novel = RANDOM.integers(0, 50, 300), RANDOM.integers(20, 70, 200)
    expected = evaluate(known, novel)
    for convert in (
        list,
        torch.from_numpy,
        lambda a: torch.from_numpy(a).float().requires_grad_(),
        lambda a: torch.from_numpy(a).half(),
        lambda a: torch.from_numpy(a).bfloat16(),
        lambda a: a.astype(np.float16),
        lambda a: np.stack((a, a), 1)[:, 0],
    ):
        assert evaluate(convert(known), convert(novel)) == expected
    assert evaluate(known.astype(np.float32), novel.astype(np.float64)) == expected


def test_input_is_left_alone():
    known, novel = RANDOM.normal(size=50), RANDOM.normal(size=50)
    copies = known.copy(), novel.copy()
    evaluate(known, novel)
    assert (known == copies[0]).all() and (novel == copies[1]).all()


def test_edges():
    assert evaluate([0.0] * 9, [0.0] * 4) == (1.0, 0.5, 9 / 13, 4 / 13, 0.5, 1.0)
    assert evaluate([1.0], [2.0]) == (0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    assert evaluate([2.0], [1.0])[:2] == (1.0, 0.0)
    infinite = evaluate([-np.inf, 0, np.inf], [np.inf, 1, 2])
    assert infinite == evaluate([-9, 0, 9], [9, 1, 2])
    assert evaluate([0.0, -0.0], [0.0]).auroc == 0.5


@pytest.mark.parametrize(
    "known, novel, said",
    [
        ([1.0, np.nan], [1.0], "ID scores: 1 of 2 are NaN"),
        ([1.0], torch.tensor([float("nan")] * 3), "OOD scores: 3 of 3"),
        ([], [1.0], "there are none"),
        ([1.0], np.zeros(0), "OOD scores: there are none"),
        ([[1.0]], [1.0], "shape"),
        (["a"], [1.0], "real numbers"),
        ([1j], [1.0], "real numbers"),
    ],
)
def test_bad_scores_are_refused(known, novel, said):
    with pytest.raises(InputError, match=said):
        evaluate(known, novel)


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, 95, float("nan")])
def test_bad_tpr_is_refused(tpr):
    with pytest.raises(InputError, match="tpr"):
        evaluate([1.0], [2.0], tpr)


def test_roc_curve_keeps_the_area_and_only_corners():
    for _ in range(40):
        known, novel = tied_scores(300)
        fpr, tpr = metrics.roc_curve(known, novel)
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
        assert sk.auc(fpr, tpr) == pytest.approx(evaluate(known, novel).auroc, abs=1e-12)
        turn = np.diff(fpr)[1:] * np.diff(tpr)[:-1] - np.diff(fpr)[:-1] * np.diff(tpr)[1:]
        assert (np.abs(turn) > 1e-12).all(), "a point inside a straight line"
    fpr, tpr = metrics.roc_curve(np.arange(1000), np.arange(1000, 1500))
    assert fpr.tolist() == [0, 0, 1] and tpr.tolist() == [0, 1, 1]


def test_classification_metrics_equal_scikit_learn():
    labels, predictions = RANDOM.integers(0, 8, 300), RANDOM.integers(2, 10, 300)
    assert metrics.macro_f1(predictions, labels) == pytest.approx(
        sk.f1_score(labels, predictions, average="macro", zero_division=0), abs=1e-12
    )
    assert metrics.accuracy(predictions, labels) == sk.accuracy_score(labels, predictions)
    logits = torch.randn(300, 10)
    assert metrics.accuracy(logits, torch.from_numpy(labels)) == sk.accuracy_score(
        labels, logits.argmax(1)
    )
    with pytest.raises(InputError):
        metrics.accuracy([1, 2], [1])


def test_open_set_f1_assigns_the_rejected_to_the_extra_class():
    known, novel = RANDOM.normal(size=200), torch.from_numpy(RANDOM.normal(2, 1, size=100))
    labels, guesses, novel_guesses = (
        RANDOM.integers(0, 5, 200),
        RANDOM.integers(0, 5, 200),
        RANDOM.integers(0, 5, 100),
    )
    threshold = metrics.threshold_at_tpr(known)
    truth = np.concatenate((labels, np.full(100, 5)))
    decided = np.where(
        np.concatenate((known, novel)) <= threshold, np.concatenate((guesses, novel_guesses)), 5
    )
    assert metrics.open_set_f1(
        guesses, labels, known, novel_guesses, novel, threshold
    ) == pytest.approx(sk.f1_score(truth, decided, average="macro"))


def test_cauroc_counts_correct_id_only():
    known, novel, correct = (
        RANDOM.normal(size=200).round(1),
        RANDOM.normal(1, 1, size=90).round(1),
        RANDOM.random(200) < 0.7,
    )
    thresholds = np.unique(np.concatenate((known, novel)))
    tpr = [0.0] + [(correct & (known <= t)).sum() / correct.sum() for t in thresholds]
    fpr = [0.0] + [(novel <= t).mean() for t in thresholds]
    assert metrics.cauroc(known, novel, correct) == pytest.approx(sk.auc(fpr, tpr), abs=1e-12)
    assert math.isnan(metrics.cauroc(known, novel, np.zeros(200, dtype=bool)))
    with pytest.raises(InputError):
        metrics.cauroc(known, novel, correct[:-1])


def loops(known, novel, thresholds, descending, strict):
    """Write out the threshold loops of ODIN and leave-out.

    Returns: FPR95, AUROC, AUPR-In, AUPR-Out, detection error.
    """
    x, y = -np.asarray(known, dtype=float), -np.asarray(novel, dtype=float)
    window = [np.mean(y > d) for d in thresholds if 0.9495 <= np.mean(x >= d) <= 0.9505]
    points = [(np.mean(y > d) if strict else np.mean(y >= d), np.mean(x >= d)) for d in thresholds]
    rates_in = [(np.mean(x >= d), np.mean(y >= d)) for d in thresholds]
    rates_out = [(np.mean(y < d), np.mean(x < d)) for d in descending]

    def area(points):
        total, before = 0.0, 1.0
        for width, height in points:
            total, before = total + (before - width) * height, width
        return total + width * height

    precision_in, precision_out = (
        [(t, t / (t + f)) for t, f in rates if t + f > 0] for rates in (rates_in, rates_out)
    )
    error = min((np.mean(x < d) + np.mean(y > d)) / 2 for d in thresholds)
    return [
        np.mean(window) if window else np.nan,
        area(points),
        area(precision_in),
        area(precision_out),
        error,
    ]


def released_values(known, novel, thresholds=None, descending=None, strict=True):
    return [
        metrics_released.fpr95_window(known, novel, thresholds),
        metrics_released.auroc_rectangle(known, novel, thresholds, strict),
        metrics_released.aupr_in_rates(known, novel, thresholds),
        metrics_released.aupr_out_rates(known, novel, descending),
        metrics_released.detection_error_strict(known, novel, thresholds),
    ]


def test_leaveout_rules_equal_their_loops():
    for _ in range(12):
        known, novel = (
            tied_scores(300)
            if RANDOM.random() < 0.5
            else (RANDOM.normal(size=400), RANDOM.normal(1, 1, size=150))
        )
        ascending = np.unique(-np.concatenate((known, novel)).astype(float))
        np.testing.assert_allclose(
            released_values(known, novel),
            loops(known, novel, ascending, ascending[::-1], True),
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("strict", [True, False])
def test_odin_rules_equal_their_loops(strict):
    known, novel = -RANDOM.beta(8, 1, 400), -RANDOM.beta(3, 1, 250)
    up, down = np.linspace(0.1, 1, 401)[:-1], np.linspace(0.1, 1, 401)[:0:-1]
    np.testing.assert_allclose(
        released_values(known, novel, up, down, strict),
        loops(known, novel, up, down, strict),
        rtol=0,
        atol=1e-12,
    )


def test_heatmap_scan_and_its_silent_zero():
    for _ in range(5):
        known, novel = RANDOM.normal(size=3000), RANDOM.normal(1, 1, size=600)
        top = max(known.max(), novel.max())
        x, y = top - known, top - novel
        both = np.concatenate((x, y))
        steps = np.arange(both.min(), both.max(), (both.max() - both.min()) / 10000)
        found = (np.mean(y >= d) for d in steps if 0.9495 <= np.mean(x >= d) <= 0.9505)
        assert metrics_released.fpr95_released(known, novel) == next(found, 0.0)
    squeezed = np.concatenate((RANDOM.normal(0, 1e-9, 900), [0.9]))
    overlapping = np.concatenate((RANDOM.normal(0, 1e-9, 90), [0.95] * 110))
    assert (
        metrics_released.fpr95_released(squeezed, overlapping) == 0.0
        and evaluate(squeezed, overlapping).fpr95 > 0.3
    )


def test_rules_that_divided_by_zero_give_nan():
    assert math.isnan(metrics_released.fpr95_window([1.0, 2.0], [3.0]))
    assert math.isnan(metrics_released.fpr95_released([1.0, 1.0], [1.0]))
    assert math.isnan(metrics_released.fpr95_released([1.0, np.inf], [1.0]))
    assert math.isnan(metrics_released.aupr_in_rates([-0.2], [-0.3], thresholds=[0.5, 0.6]))
    assert math.isnan(metrics_released.aupr_out_rates([-0.9], [-0.8], thresholds=[0.5, 0.6]))


def test_every_set_is_sorted_once(monkeypatch):
    """A prepared ID set is not sorted again: n OOD sets cost n + 1 sorts."""
    sorts, plain = [], np.sort
    monkeypatch.setattr(np, "sort", lambda *a, **k: sorts.append(1) or plain(*a, **k))
    known = prepare(RANDOM.normal(size=50))
    for _ in range(3):
        evaluate(known, RANDOM.normal(1, 1, size=50))
    assert len(sorts) == 4
