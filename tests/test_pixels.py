"""Metrics of pixels in bounded memory: exact ones, histograms and their bounds."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from ood import metrics
from ood.config import InputError
from ood.evaluation.pixels import PixelScores
from ood.metrics import Metrics


def pixels(count, seed=0, share=0.1, kind="normal"):
    """Scores (count,) and whether each is an outlier's."""
    chance = np.random.default_rng(seed)
    outlier = chance.random(count) < share
    scores = chance.normal(size=count) + 1.5 * outlier
    if kind == "confident":  # like msp: nearly all at -1, a few spread out
        scores = -1 / (1 + np.exp(-8 + 3 * scores))
    elif kind == "ties":
        scores = np.round(scores, 1)
    return scores, outlier


def added(parts, **options):
    made = PixelScores(**options)
    for scores, outlier in parts:
        made.update(scores, outlier)
    return made


def test_exact_metrics_are_scikit_learns_on_all_pixels():
    parts = [pixels(500, seed) for seed in range(4)]
    maps = [(torch.tensor(s).view(20, 25), torch.tensor(o).view(20, 25)) for s, o in parts]
    made = added(maps, exact=2000)
    scores, outlier = (np.concatenate(side) for side in zip(*parts))
    found = made.metrics()
    assert made.is_exact and (made.n_id, made.n_ood) == ((~outlier).sum(), outlier.sum())
    assert found.auroc == pytest.approx(sk.roc_auc_score(outlier, scores), abs=1e-12)
    assert found.aupr_out == pytest.approx(sk.average_precision_score(outlier, scores), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(outlier, scores, drop_intermediate=False)
    assert found.fpr95_ood_positive == fpr[np.argmax(tpr >= 0.95)]
    assert made.bounds() == (found, found)
    assert found == metrics.evaluate(scores[~outlier], scores[outlier])


@pytest.mark.parametrize("kind", ["normal", "confident", "ties"])
@pytest.mark.parametrize("bins", [16, 256, 4096])
def test_bounds_hold_the_exact_values(kind, bins):
    parts = [pixels(3000, seed, kind=kind) for seed in range(6)]
    made = added(parts, exact=2500, bins=bins)
    scores, outlier = (np.concatenate(side) for side in zip(*parts))
    exact = metrics.evaluate(scores[~outlier], scores[outlier])
    (low, high), found = made.bounds(), made.metrics()
    assert not made.is_exact
    for name in Metrics._fields:
        values = [getattr(m, name) for m in (low, exact, high)]
        assert values[0] - 1e-12 <= values[1] <= values[2] + 1e-12, (name, values)
        assert getattr(low, name) - 1e-12 <= getattr(found, name) <= getattr(high, name) + 1e-12
    width = max(b - a for a, b in zip(low, high))
    assert width < {16: 0.5, 256: 0.05, 4096: 0.02}[bins]


def test_bounds_are_narrow_with_the_usual_bins():
    parts = [pixels(100_000, seed, share=0.02, kind="confident") for seed in range(4)]
    low, high = added(parts, exact=100_000).bounds()
    assert max(b - a for a, b in zip(low, high)) < 1e-3


def test_bounds_hold_where_later_images_are_unlike_the_first_ones():
    first = (np.linspace(-2, -1, 3000), np.zeros(3000, bool))  # no outlier among them
    later = [pixels(3000, seed, share=0.3) for seed in range(3)]
    parts = [first, *later]
    made = added(parts, exact=2000)
    scores, outlier = (np.concatenate(side) for side in zip(*parts))
    exact, (low, high) = metrics.evaluate(scores[~outlier], scores[outlier]), made.bounds()
    assert all(a - 1e-12 <= v <= b + 1e-12 for a, v, b in zip(low, exact, high))
    assert high.auroc - low.auroc < 0.01


def test_random_small_cases_lie_within_their_bounds():
    for seed in range(150):
        chance = np.random.default_rng(seed)
        scores = chance.choice([-np.inf, -1, -0.5, 0, 0.1, 0.11, 2, np.inf, 1e300], 60)
        scores = scores + chance.integers(0, 2) * chance.normal(size=60)
        outlier = chance.random(60) < chance.uniform(0.1, 0.9)
        outlier[:2] = False, True
        made = added([(scores, outlier)], exact=5, bins=int(chance.integers(2, 12)))
        exact, (low, high) = metrics.evaluate(scores[~outlier], scores[outlier]), made.bounds()
        assert all(a - 1e-12 <= v <= b + 1e-12 for a, v, b in zip(low, exact, high)), seed


def test_memory_does_not_grow_with_the_pixels():
    made, sizes = PixelScores(exact=10_000, bins=512), []
    for seed in range(40):  # a stream of 2,000,000 pixels
        made.update(*pixels(50_000, seed))
        sizes.append(made.nbytes)
    assert max(sizes) < 100_000 and sizes[0] == sizes[-1]
    assert made.n_id + made.n_ood == 2_000_000


def test_the_order_of_later_images_does_not_matter():
    first, *rest = [pixels(1000, seed) for seed in range(4)]
    one, other = (added([first, *p], exact=500) for p in (rest, rest[::-1]))
    assert one.metrics() == other.metrics()


def test_bad_scores():
    with pytest.raises(InputError, match="NaN"):
        PixelScores().update([0.0, float("nan")], [True, False])
    with pytest.raises(InputError, match="3 scores for 2 pixels"):
        PixelScores().update([0.0, 1.0, 2.0], [True, False])
    with pytest.raises(InputError, match="no OOD pixels"):
        added([([0.0, 1.0], [False, False])]).metrics()
    with pytest.raises(InputError, match="no ID pixels"):
        added([([0.0, 1.0], [True, True])], exact=1).metrics()
    with pytest.raises(InputError, match="at least 1 and 2"):
        PixelScores(exact=0)
