"""How sure the numbers are: intervals for AUROC and FPR95, and a test between two detectors.

    auroc_interval(id_scores, ood_scores)        # Interval(value=0.93, low=0.92, high=0.94), DeLong
    fpr_interval(id_scores, [ood_a, ood_b])      # of the average over sets that share the ID images
    compare_auroc((id_a, ood_a), (id_b, ood_b))  # Comparison(difference, low, high, p_value)

Only the images of the test sets count as random. Another network of another seed may differ by
more. A score is larger for outliers. Ties count one half in the AUROC, and are accepted together at
a threshold, exactly as in `ood.metrics`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from ood.config import InputError
from ood.metrics import as_scores, smallest_count

LEVEL = 0.95
ROUNDS = 2000  # of a bootstrap: the ends of a 95 % interval rest on 50 of them each


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The difference first - second with its interval, and a two-sided p-value.

    The p-value belongs to the hypothesis that both are equal.
    """

    difference: float
    low: float
    high: float
    p_value: float


def auroc_interval(id_scores, ood_scores, level: float = LEVEL) -> Interval:
    """AUROC and its DeLong interval, in O(n log n).

    Args:
        id_scores: (N,).
        ood_scores: (M,), or a list of such arrays: then the AUROC is the unweighted mean over them.
        level: of confidence, in (0, 1).

    The normal interval is taken on the logit scale, so it stays inside [0, 1]. Where every OOD
    score is above every ID score (or below), DeLong's variance is zero. Then the bound is
    (alpha / 2)^(1 / min(N, M)): the smallest AUROC for which a perfect separation of min(N, M)
    independent pairs has probability alpha / 2.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988; the rank form of Sun & Xu, IEEE SPL
        2014; the logit scale as in Qin & Hotilovac, SMMR 2008.
    """
    return networks_interval([(id_scores, ood_scores)], level)


def networks_interval(scores: list[tuple], level: float = LEVEL) -> Interval:
    """Mean AUROC of one detector over several networks, and its DeLong interval.

    The networks are fixed; only the images are random.

    Args: scores: (id_scores, ood_scores) of each network as for `auroc_interval`. The images come
        in the same order in all of them.
    """
    alpha, (area, of_id, of_ood) = _alpha(level), _over_networks(scores)
    if area in (0.0, 1.0):
        bound = (alpha / 2) ** (1 / min(len(of_id), *map(len, of_ood)))
        return Interval(area, *((bound, 1.0) if area else (0.0, 1 - bound)))
    spread = np.sqrt(_variance(of_id, of_ood))
    if not np.isfinite(spread):  # one image says nothing about the spread
        return Interval(area, 0.0, 1.0)
    centre, width = np.log(area / (1 - area)), -ndtri(alpha / 2) * spread / (area * (1 - area))
    ends = np.clip([centre - width, centre + width], -500, 500)
    return Interval(area, *(float(1 / (1 + np.exp(-end))) for end in ends))


def fpr_interval(
    id_scores,
    ood_scores,
    level: float = LEVEL,
    tpr: float = 0.95,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Interval:
    """FPR at `tpr` (ID positive) and its bootstrap percentile interval.

    ID and OOD images are drawn separately (stratified).

    Args:
        id_scores, ood_scores, level: as for `auroc_interval`.
        rounds: bootstrap samples.
        seed: of the random numbers.

    No sample is drawn. The rank of a bootstrap sample's k-th smallest of N is
    floor(N * Beta(k, N - k + 1)), and the number of M drawn OOD scores below it is
    Binomial(M, share below). Two random numbers a round have exactly the bootstrap's distribution.
    No resampling leaves 0 or 1; there, the exact binomial bound of the OOD images is taken.
    """
    known, sets = _prepared(id_scores, ood_scores)
    alpha, generator, n = _alpha(level), np.random.default_rng(seed), len(known)
    needed = smallest_count(tpr, n)
    ranks = (n * generator.beta(needed, n - needed + 1, rounds)).astype(np.int64)
    thresholds = known[np.minimum(ranks, n - 1)]  # (rounds,)
    share = [np.searchsorted(novel, thresholds, side="right") / len(novel) for novel in sets]
    drawn = [generator.binomial(len(novel), s) / len(novel) for novel, s in zip(sets, share)]
    drawn, limit = np.mean(drawn, axis=0), known[needed - 1]
    accepted = [np.searchsorted(novel, limit, side="right") / len(novel) for novel in sets]
    value = float(np.mean(accepted))
    low, high = np.quantile(drawn, (alpha / 2, 1 - alpha / 2))
    bound = (alpha / 2) ** (1 / sum(map(len, sets)))
    high, low = max(high, 1 - bound) if value == 0 else high, min(low, bound) if value == 1 else low
    return Interval(value, float(min(low, value)), float(max(high, value)))


def compare_auroc(first, second, level: float = LEVEL) -> Comparison:
    """Whether two detectors' AUROCs differ on the same images: the paired DeLong test.

    Args: first, second: (id_scores (N,), ood_scores (M,) or a list of sets) of the two detectors,
        with the images in the same order.
    """
    return compare_networks([first], [second], level)


def compare_networks(first: list[tuple], second: list[tuple], level: float = LEVEL) -> Comparison:
    """Whether two detectors' mean AUROCs over several networks differ on the same images.

    Args: first, second: (id_scores, ood_scores) per network, of either detector.
    """
    for one, other in zip(first, second):
        _paired(one, other)
    (a, a_of_id, a_of_ood), (b, b_of_id, b_of_ood) = _over_networks(first), _over_networks(second)
    variance = _variance(a_of_id - b_of_id, [x - y for x, y in zip(a_of_ood, b_of_ood)])
    difference = a - b
    if not np.isfinite(variance):
        return Comparison(difference, -1.0, 1.0, 1.0)
    if variance <= 1e-30:  # the same ranks, or one side perfect everywhere
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
        return Comparison(difference, difference, difference, p_value)
    spread = float(np.sqrt(variance))
    width = -ndtri(_alpha(level) / 2) * spread
    low, high = float(difference - width), float(difference + width)
    return Comparison(difference, low, high, float(2 * ndtr(-abs(difference) / spread)))


def summarise(
    scores: dict[str, dict[str, np.ndarray]],
    id_name: str,
    level: float = LEVEL,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict:
    """Intervals of every detector, and the paired test against the best average AUROC.

    Args:
        scores: {data set: {detector: (N,)}} with the ID set under `id_name`, as
            `scoring.evaluate` gives them.
        level, rounds, seed: as for `auroc_interval` and `fpr_interval`.

    Returns: {"level", "rounds", "auroc", "fpr95", "best", "versus_best"}. "auroc" and "fpr95" are
        {detector: {set or "average": (low, high)}}; "best" is a detector; "versus_best" is
        {detector: {"difference", "low", "high", "p_value"}} of the average AUROC.
    """
    sets = [name for name in scores if name != id_name]
    found: dict = {"level": level, "rounds": rounds, "auroc": {}, "fpr95": {}}
    means: dict[str, float] = {}
    for detector, known in scores[id_name].items():
        columns = {name: scores[name][detector] for name in sets}
        columns |= {"average": list(columns.values())} if len(columns) > 1 else {}
        areas = {name: auroc_interval(known, values, level) for name, values in columns.items()}
        found["auroc"][detector] = {name: (i.low, i.high) for name, i in areas.items()}
        found["fpr95"][detector] = {
            name: fpr_interval(known, values, level, rounds=rounds, seed=seed)[1:]
            for name, values in columns.items()
        }
        means[detector] = areas[list(columns)[-1]].value
    found["best"] = best = max(means, key=means.__getitem__)
    pairs = {d: (scores[id_name][d], [scores[name][d] for name in sets]) for d in means}
    found["versus_best"] = {
        d: compare_auroc(pair, pairs[best], level)._asdict()
        for d, pair in pairs.items()
        if d != best
    }
    return found


def _over_networks(scores: list[tuple]) -> tuple[float, np.ndarray, list[np.ndarray]]:
    """Average what `_placements` gives over networks."""
    each = [_placements(_checked(known, "ID scores"), _sets(novel)) for known, novel in scores]
    if len({(len(of_id), *map(len, of_ood)) for _, of_id, of_ood in each}) > 1:
        raise InputError("a mean over networks needs the same images for each of them")
    areas, of_id, of_ood = zip(*each)
    return (
        float(np.mean(areas)),
        np.mean(of_id, axis=0),
        [np.mean(parts, axis=0) for parts in zip(*of_ood)],
    )


def _placements(
    rows: np.ndarray, sets: list[np.ndarray]
) -> tuple[float, np.ndarray, list[np.ndarray]]:
    """How the scores of one detector lie among each other.

    Args: rows: (N,) ID scores. sets: (M,) OOD scores of each set.
    Returns: the mean AUROC; (N,) the share of OOD scores above each ID score, averaged over the
        sets; per set, (M,) the share of ID scores below each OOD score. Orders are kept.
    """
    known, of_id, of_ood = np.sort(rows), np.zeros(len(rows)), []
    for novel in sets:
        ordered = np.sort(novel)
        at_most, less = (np.searchsorted(ordered, rows, side=side) for side in ("right", "left"))
        of_id += 1 - (at_most + less) / (2 * len(novel))
        at_most, less = (np.searchsorted(known, novel, side=side) for side in ("right", "left"))
        of_ood.append((at_most + less) / (2 * len(known)))
    return float(np.mean([part.mean() for part in of_ood])), of_id / len(sets), of_ood


def _variance(of_id: np.ndarray, of_ood: list[np.ndarray]) -> float:
    """Variance of the mean AUROC; nan where a class has one image.

    All sets share the ID images; the OOD images are each set's own.
    """
    if min(len(of_id), *map(len, of_ood)) < 2:
        return float("nan")
    return float(
        of_id.var(ddof=1) / len(of_id)
        + sum(part.var(ddof=1) / len(part) for part in of_ood) / len(of_ood) ** 2
    )


def _prepared(id_scores, ood_scores) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ID scores sorted, each OOD set sorted; float64."""
    return np.sort(_checked(id_scores, "ID scores")), [np.sort(part) for part in _sets(ood_scores)]


def _paired(first, second):
    """Check that two detectors have scores of the same images."""
    (a_id, a_ood), (b_id, b_ood) = first, second
    a, b = (_checked(a_id, "ID scores"), _sets(a_ood)), (_checked(b_id, "ID scores"), _sets(b_ood))
    if a[0].shape != b[0].shape or [len(s) for s in a[1]] != [len(s) for s in b[1]]:
        raise InputError(
            "a paired comparison needs the same images for both detectors; got "
            f"{len(a[0])} and {len(b[0])} ID scores, "
            f"{[len(s) for s in a[1]]} and {[len(s) for s in b[1]]} OOD scores"
        )


def _sets(ood_scores) -> list[np.ndarray]:
    several = isinstance(ood_scores, (list, tuple)) and len(ood_scores) and np.ndim(ood_scores[0])
    return [_checked(part, "OOD scores") for part in (ood_scores if several else [ood_scores])]


def _checked(scores, name: str) -> np.ndarray:
    values = as_scores(scores, name).astype(np.float64)
    if np.isnan(values).any():
        raise InputError(
            f"{name}: {int(np.isnan(values).sum())} of {len(values)} are NaN; "
            "a NaN cannot be ranked"
        )
    return values


def _alpha(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be a fraction between 0 and 1, such as 0.95")
    return 1 - level
