"""Evaluate every registered detector, with intervals and costs, in one table.

    python3 scripts/table_detectors.py          # embedded images, networks of the seeds 1, 2, 3
    python3 scripts/table_detectors.py -config ./configs/dice_cifar10.json \\
        -weights checkpoint_100.pth.tar -datasets iSUN tinyimagenet_resize dtd \\
        -skip gradunc adascale_a adascale_l     # the DenseNet of DICE's authors

Without -weights, classifier_pretraining.py trains one network per seed; they are kept in
-checkpoints_dir. All detectors share one pass per set and network. Writes OUT_DIR/table.md and the
scores. With -record NAME the table also becomes a section of docs/results.md, after
python3 scripts/build_docs.py.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli, detectors, files, methods
from ood.evaluation import measurements, options, report, scoring, uncertainty, workbench

parser = cli.Parser(
    "A table of all detectors.", "Exit code: 0 done, 2 bad input, 1 the run failed."
)
options.add(parser, "config")
parser.flag(
    "-weights",
    nargs="+",
    metavar="FILE",
    help="weight files of that architecture, one network each; default: trained from -seeds",
)
parser.flag(
    "-seeds",
    type=int,
    nargs="+",
    metavar="SEED",
    help="seeds of the networks that are trained",
    default=[1, 2, 3],
)
parser.flag(
    "-detectors", nargs="+", metavar="NAME", help="detectors; default: every registered one"
)
parser.flag("-skip", nargs="+", metavar="NAME", help="detectors to leave out", default=[])
options.add(parser, "datasets", "benchmark", "limit", "batch_size", *options.PLACES)
parser.flag(
    "-out_dir",
    help="folder of the scores and of table.md; default: ./results/<name of the config>_detectors",
)
parser.flag(
    "-record",
    metavar="NAME",
    help="also write the record docs/data/NAME.json, for docs/results.md",
)
parser.flag(
    "-title", help="heading of the record; default: All detectors, with data set and network"
)
parser.flag("-order", type=int, help="position of the record on its page", default=500)
parser.flag("-text", nargs="+", metavar="PARAGRAPH", help="paragraphs before the table", default=[])

EXPLAINED = (
    "In brackets the 95 % interval of the average over the OOD sets: DeLong for AUROC, bootstrap "
    "for FPR95. Only the images count as random; the networks are fixed. p: paired DeLong test on "
    "the same images against the best average AUROC, not corrected for the number of detectors. "
    "Cost: seconds to fit, and milliseconds per image beyond the shared pass, on network 1. "
    "Statistics of the training set that several detectors need are charged to the first of them. "
    "Detectors marked * compute inside the pass, and that time is in their numbers; "
    f"{report.MISSING} where the cache already held it, so that nothing was measured."
)


def main() -> None:
    flags = parser.parse_args()
    overrides = workbench.flagged(flags)
    config = workbench.read_config(flags.config, overrides, find_method=methods.get)
    experiment = config.experiment
    names = [name for name in flags.detectors or detectors.names() if name not in flags.skip]
    for name in (*names, *flags.skip):
        workbench.make_detector(experiment, name)
    context = options.context(models, flags)
    weights = flags.weights or [
        measurements.network_of_seed(config, seed, context, flags.device) for seed in flags.seeds
    ]
    stem = Path(flags.config).stem
    out_dir = Path(flags.out_dir or Path("results") / f"{stem}_detectors")

    results, left_out = [], {}
    for number, file in enumerate(weights, 1):
        cli.set_seed(experiment.seed)
        own = dataclasses.replace(experiment, checkpoint=str(file))
        bench = workbench.prepare_classifier(context, dataclasses.replace(config, experiment=own))
        made = {name: workbench.make_detector(experiment, name) for name in names}
        if not flags.detectors:  # every registered one that can work with this network
            made, left_out = bench.possible(made)
        test, ood = bench.images("test"), bench.ood()
        train = bench.training_images(made)
        results.append(scoring.evaluate(bench.passes, train, test, ood, made, log=cli.log))
        report.write_scores(out_dir / f"network_{number}", results[-1].scores)
        seconds = results[-1].seconds["total"]
        cli.log(f"network {number} of {len(weights)}: {len(made)} detectors, {seconds:.1f} s")

    table = as_table(results, test, ood)
    text = [*flags.text, *paragraphs(results, experiment.arch, left_out, flags.skip)]
    shown = files.markdown_table(table["columns"], table["rows"])
    files.write_text(out_dir / "table.md", "\n\n".join([*text, table["caption"], shown]) + "\n")
    cli.log(f"table: {out_dir / 'table.md'}")
    if flags.record:
        path = measurements.write(
            flags.record,
            page="results",
            order=flags.order,
            title=flags.title or f"All detectors: {experiment.id_dataset}, {experiment.arch}",
            tables=[table],
            text=text,
            command=command(flags),
            device=cli.describe_device(context.device),
            seeds=None if flags.weights else flags.seeds,
        )
        cli.log(f"record: {path}")


def paragraphs(results: list[scoring.Result], arch: str, left_out: dict, skip: list) -> list[str]:
    """What stands before the table: networks, what was left out, the features, advice."""
    shares = (r.accuracies["classifier"] for r in results if "classifier" in r.accuracies)
    accuracies = ", ".join(f"{100 * share:.2f} %" for share in shares)
    networks = f"{len(results)} network{'s' * (len(results) > 1)} ({arch}, accuracy {accuracies})"
    first = results[0]
    return [
        f"{len(first.costs)} detectors at their defaults, sorted by average AUROC, on {networks}. "
        f"{EXPLAINED}",
        *(f"Left out: {reason}." for reason in left_out.values()),
        *([f"Left out: {', '.join(skip)}."] if skip else []),
        f"ID features of network 1: {first.diagnosis.text()}.",
        *(f"Advice: {line}." for line in first.advice),
    ]


def as_table(results: list[scoring.Result], test, ood: list[scoring.TestSet]) -> dict:
    """One row per detector with means over the networks, the best average AUROC first."""
    sets, several = [entry.name for entry in ood], len(results) > 1
    by = [{(row["detector"], row["dataset"]): row for row in r.rows} for r in results]
    pairs = {
        d: [(r.scores[test.name][d], [r.scores[s][d] for s in sets]) for r in results]
        for d in results[0].costs
    }
    areas = {d: uncertainty.networks_interval(pair) for d, pair in pairs.items()}
    order = sorted(pairs, key=lambda d: -areas[d].value)
    rows = []
    for d in order:
        # (networks, sets, 2): AUROC and FPR95
        means = np.array([[[b[d, s]["auroc"], b[d, s]["fpr95"]] for s in sets] for b in by])
        rates = [uncertainty.fpr_interval(*pair) for pair in pairs[d]]
        auroc = f"{100 * areas[d].value:.2f} {in_brackets(areas[d])}"
        fpr = f"{100 * np.mean([rate.value for rate in rates]):.2f}"
        if several:
            spread = means.mean(1).std(0, ddof=1)
            auroc, fpr = (f"{t} ± {100 * s:.2f}" for t, s in zip((auroc, fpr), spread))
        else:
            fpr += f" {in_brackets(rates[0])}"
        test_p = uncertainty.compare_networks(pairs[d], pairs[order[0]]).p_value
        cost = results[0].costs[d]
        per_set = [" / ".join(f"{100 * v:.2f}" for v in pair) for pair in means.mean(0)]
        rows.append(
            [
                d + ("*" if cost["in_pass"] else ""),
                auroc,
                fpr,
                "best" if d == order[0] else report.p_text(test_p),
                *per_set,
                *report.cost_cells(cost),
            ]
        )
    titles = [entry.label or entry.name for entry in ood]
    counts = ", ".join(f"{title} {len(e.images):,}" for title, e in zip(titles, ood))
    spread = "; ± standard deviation over networks" if several else ""
    return {
        "caption": f"AUROC and FPR95 in %, {len(test):,} ID images against {counts}; "
        f"per set AUROC / FPR95{spread}",
        "columns": ["detector", "AUROC", "FPR95", "p", *titles, "fit, s", "ms / image", "MiB"],
        "rows": rows,
    }


def in_brackets(interval: uncertainty.Interval) -> str:
    """The ends of an interval in percent."""
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def command(flags) -> str:
    """The command that rebuilds the record, without paths of this machine."""
    words = ["python3 scripts/table_detectors.py", f"-config {flags.config}"]
    if flags.weights:
        words.append(f"-weights {' '.join(Path(file).name for file in flags.weights)}")
    else:
        words.append(f"-seeds {' '.join(map(str, flags.seeds))}")
    words += [f"-benchmark {flags.benchmark}"] if flags.benchmark else []
    for name in ("detectors", "skip", "datasets"):
        if getattr(flags, name):
            words.append(f"-{name} {' '.join(getattr(flags, name))}")
    return " ".join(words + ([f"-limit {flags.limit}"] if flags.limit else []))


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
