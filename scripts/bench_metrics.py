"""Time `ood.metrics.evaluate` against scikit-learn's calls for the same five metrics.

    python3 scripts/bench_metrics.py              # 5 million ID + 5 million OOD scores, float32
    python3 scripts/bench_metrics.py -scores 1000000 -rounds 5 -dtype float64

scikit-learn's side is what its users write: roc_curve once for FPR95 and the detection error,
roc_auc_score, and average_precision_score with either class as positive. Rounds alternate between
the two, because machines are noisy. The values are compared before the ratio of the medians is
printed. `-tied` rounds the scores to three decimals. Needs requirements-dev.txt.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

from ood import cli, metrics


def main() -> None:
    parser = cli.Parser("Time our metrics against scikit-learn's.")
    parser.flag("-scores", type=int, help="ID and OOD scores together", default=10_000_000)
    parser.flag("-rounds", type=int, help="timed rounds", default=3)
    parser.flag("-dtype", choices=("float32", "float64"), help="of the scores", default="float32")
    parser.flag(
        "-tied", action="store_true", help="round the scores to three decimals", default=False
    )
    flags = parser.parse_args()

    random = np.random.default_rng(0)
    known = random.normal(0.0, 1.0, flags.scores // 2).astype(flags.dtype)
    novel = random.normal(1.0, 1.2, flags.scores - flags.scores // 2).astype(flags.dtype)
    if flags.tied:
        known, novel = known.round(3), novel.round(3)

    values, seconds = {}, {"ours": [], "scikit-learn": []}
    for round_number in range(flags.rounds):
        for name, call in (("ours", ours), ("scikit-learn", theirs)):
            begun = time.perf_counter()
            values[name] = call(known, novel)
            seconds[name].append(time.perf_counter() - begun)
            cli.log(f"round {round_number + 1}: {name} {seconds[name][-1]:.3f} s")

    gap = max(abs(a - b) for a, b in zip(values["ours"], values["scikit-learn"]))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    cli.log(
        f"{flags.scores:,} {flags.dtype} scores, median of {flags.rounds}: "
        f"ours {median['ours']:.3f} s (six metrics), "
        f"scikit-learn {median['scikit-learn']:.3f} s (five); "
        f"{median['scikit-learn'] / median['ours']:.1f} times faster; "
        f"largest difference {gap:.1e}"
    )
    if gap > 1e-12:
        raise cli.RunError(f"the values differ by {gap:.1e}, more than 1e-12")


def ours(known: np.ndarray, novel: np.ndarray) -> tuple[float, ...]:
    return metrics.evaluate(known, novel)[:5]


def theirs(known: np.ndarray, novel: np.ndarray) -> tuple[float, ...]:
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    scores = np.concatenate((known, novel))
    is_id = np.repeat(np.array([1, 0]), (known.size, novel.size))
    fpr, tpr, _ = roc_curve(is_id, -scores, drop_intermediate=False)
    return (
        fpr[np.argmax(tpr >= 0.95)],
        roc_auc_score(is_id, -scores),
        average_precision_score(is_id, -scores),
        average_precision_score(1 - is_id, scores),
        np.min(1 - tpr + fpr) / 2,
    )


if __name__ == "__main__":
    cli.run(main)
