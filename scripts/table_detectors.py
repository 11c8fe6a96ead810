"""Evaluate every registered detector, with intervals and costs, and record the table for docs/results.md.

    python3 scripts/table_detectors.py                                         # embedded images, three networks trained from seeds 1, 2, 3
    python3 scripts/table_detectors.py -config ./configs/dice_cifar10.json -weights checkpoint_100.pth.tar -datasets iSUN tinyimagenet_resize dtd \
        -skip gradunc adascale_a adascale_l                                     # the DICE authors' DenseNet

Networks that are not given with -weights are trained by classifier_pretraining.py, one per seed, and kept in -checkpoints_dir. All
detectors share one pass per set and network. Then: python3 scripts/build_docs.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import models
from ood import cli, detectors, files
from ood.config import InputError
from ood.detectors.base import possible
from ood.evaluation import (
    measurements,
    report,
    scoring,
    uncertainty,
    workbench,
)
from ood.outputs import Cache

parser = cli.Parser("A table of all detectors.", "Exit code: 0 done, 2 bad input, 1 a run failed.")
parser.flag(
    "-config",
    help="JSON config: data set, architecture, benchmark",
    default="./configs/mnist5k_small_cnn.json",
)
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
    help="of the networks that are trained",
    default=[1, 2, 3],
)
parser.flag(
    "-detectors", nargs="+", metavar="NAME", help="detectors; default: every registered one"
)
parser.flag("-skip", nargs="+", metavar="NAME", help="detectors to leave out", default=[])
parser.flag(
    "-datasets",
    nargs="+",
    metavar="NAME",
    help="only these OOD sets of the benchmark; default: all",
)
parser.flag(
    "-benchmark",
    help="benchmark: a name in configs/benchmarks or a JSON file; default: the config's",
)
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag(
    "-batch_size", type=int, help="images per forward pass; default: the config's, else 256"
)
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where trained networks are kept", default="./checkpoints")
parser.flag(
    "-cache_dir", help="where outputs of forward passes are kept; default: CHECKPOINTS_DIR/.outputs"
)
parser.flag("-no_cache", action="store_true", help="keep no outputs on disk", default=False)
parser.flag(
    "-out_dir",
    help="folder of the scores and of table.md; default: ./results/<name of the config>_detectors",
)
parser.flag(
    "-record",
    metavar="NAME",
    help="of docs/data/NAME.json; default: detectors_<name of the config>; '' writes none",
)
parser.flag("-title", help="of the record; default: All detectors, with data set and network")
parser.flag("-order", type=int, help="position on the page of results", default=500)
parser.flag("-text", nargs="+", metavar="PARAGRAPH", help="paragraphs before the table", default=[])


def main() -> None:
    flags = parser.parse_args()
    experiment = workbench.read_experiment(
        flags.config, **{key: getattr(flags, key) for key in ("benchmark", "limit", "batch_size")}
    )
    names = [name for name in flags.detectors or detectors.names() if name not in flags.skip]
    for name in (*names, *flags.skip):
        detectors.create(*[detectors.parse(name)[0]], **detectors.parse(name)[1])
    device = cli.choose_device(flags.device)
    cache = (
        None
        if flags.no_cache
        else Cache(flags.cache_dir or Path(flags.checkpoints_dir) / ".outputs")
    )
    weights = (
        [Path(file) for file in flags.weights]
        if flags.weights
        else [trained(experiment, seed, flags) for seed in flags.seeds]
    )
    out_dir, results, left_out = (
        Path(flags.out_dir or Path("results") / f"{Path(flags.config).stem}_detectors"),
        [],
        {},
    )

    for number, file in enumerate(weights, 1):
        cli.set_seed(experiment.seed)
        bench = workbench.prepare(
            models,
            workbench.read_experiment(
                flags.config,
                benchmark=flags.benchmark,
                limit=flags.limit,
                batch_size=flags.batch_size,
                checkpoint=str(file),
            ),
            device=device,
            data_dir=flags.data_dir,
            checkpoints_dir=flags.checkpoints_dir,
            cache=cache,
            progress=cli.progress,
            log=cli.log,
        )
        made = {
            name: detectors.create(
                detectors.parse(name)[0],
                **{
                    **experiment.detector_args.get(detectors.parse(name)[0], {}),
                    **detectors.parse(name)[1],
                },
            )
            for name in names
        }
        if not flags.detectors:  # of all: those that can work with this network
            made, left_out = possible(made, bench.network)
            for why in left_out.values():
                cli.log(f"left out of all: {why}")
        test, ood = bench.images("test"), bench.ood(flags.datasets)
        train = bench.images("train") if any(d.requires_fit for d in made.values()) else None
        results.append(
            scoring.evaluate(
                bench.network,
                train,
                test,
                ood,
                made,
                bench.preprocess,
                device=device,
                batch_size=experiment.batch_size,
                precision=experiment.precision,
                cache=cache,
                progress=cli.progress,
                log=cli.log,
            )
        )
        report.write_scores(out_dir / f"network_{number}", results[-1].scores)
        cli.log(
            f"network {number} of {len(weights)}: {len(made)} detectors, {results[-1].seconds['total']:.1f} s"
        )

    table = as_table(results, test, ood)
    accuracies = ", ".join(
        f"{100 * r.accuracies['classifier']:.2f} %" for r in results if "classifier" in r.accuracies
    )
    networks = f"{len(results)} network{'s' * (len(results) > 1)} ({experiment.arch}, accuracy {accuracies})"
    text = [
        *flags.text,
        f"{len(table['rows'])} detectors at their defaults, sorted by average AUROC, on {networks}. {EXPLAINED}",
    ]
    text += [f"Left out: {why}." for why in left_out.values()]
    text += [f"Left out: {', '.join(flags.skip)}."] if flags.skip else []
    text += [f"ID training features of network 1: {results[0].diagnosis.text()}."] + [
        f"Advice: {line}." for line in results[0].advice
    ]
    files.write_text(
        out_dir / "table.md",
        "\n\n".join(
            [*text, table["caption"], files.markdown_table(table["columns"], table["rows"])]
        )
        + "\n",
    )
    cli.log(f"table: {out_dir / 'table.md'}")
    if flags.record != "":
        name = flags.record or f"detectors_{Path(flags.config).stem}"
        path = measurements.write(
            name,
            page="results",
            order=flags.order,
            title=flags.title or f"All detectors: {experiment.id_dataset}, {experiment.arch}",
            tables=[table],
            text=text,
            command=command(flags),
            device=cli.describe_device(device),
            seeds=None if flags.weights else flags.seeds,
        )
        cli.log(f"record: {path}")


EXPLAINED = (
    "In brackets the 95 % interval of the average over the OOD sets: DeLong for AUROC, bootstrap for FPR95, the images being random and the networks fixed. "
    "p: paired DeLong test on the same images against the best average AUROC, not corrected for the number of detectors. Cost: seconds to fit, and "
    "milliseconds per image beyond the pass that all share, on network 1; what several detectors need of the training set is charged to the first of them. "
    f"Detectors marked * compute inside the pass, and that time is in their numbers; {report.MISSING} where it was read from the cache, so that nothing was measured."
)


def as_table(results: list[scoring.Result], test, ood: list[scoring.TestSet]) -> dict:
    """One row per detector, means over networks, the best average AUROC first."""
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
        means = np.array(
            [[[b[d, s]["auroc"], b[d, s]["fpr95"]] for s in sets] for b in by]
        )  # (networks, sets, 2)
        rates = [uncertainty.fpr_interval(*pair) for pair in pairs[d]]
        cost, p = (
            results[0].costs[d],
            None
            if d == order[0]
            else uncertainty.compare_networks(pairs[d], pairs[order[0]]).p_value,
        )
        spread = means.mean(1).std(0, ddof=1) if several else (0, 0)
        auroc = (
            f"{100 * areas[d].value:.2f} [{100 * areas[d].low:.2f}, {100 * areas[d].high:.2f}]"
            + (f" ± {100 * spread[0]:.2f}" if several else "")
        )
        fpr = f"{100 * np.mean([r.value for r in rates]):.2f}" + (
            f" ± {100 * spread[1]:.2f}"
            if several
            else f" [{100 * rates[0].low:.2f}, {100 * rates[0].high:.2f}]"
        )
        rows.append(
            [
                d + ("*" if cost["in_pass"] else ""),
                auroc,
                fpr,
                "best" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}",
                *(
                    f"{100 * means[:, i, 0].mean():.2f} / {100 * means[:, i, 1].mean():.2f}"
                    for i in range(len(sets))
                ),
                *(
                    report.MISSING if cost[key] is None else f"{cost[key]:.{digits}f}"
                    for key, digits in (("fit_seconds", 3), ("ms_per_image", 4), ("mib", 3))
                ),
            ]
        )
    counts = ", ".join(f"{entry.label or entry.name} {len(entry.images):,}" for entry in ood)
    spread = "; ± standard deviation over networks" if several else ""
    return {
        "caption": f"AUROC and FPR95 in %, {len(test):,} ID images against {counts}; per set AUROC / FPR95{spread}",
        "columns": [
            "detector",
            "AUROC",
            "FPR95",
            "p",
            *(entry.label or entry.name for entry in ood),
            "fit, s",
            "ms / image",
            "MiB",
        ],
        "rows": rows,
    }


def trained(experiment, seed: int, flags) -> Path:
    """The best weights of a network trained from this seed, trained now if it is not there."""
    folder = Path(flags.checkpoints_dir) / f"table_{Path(flags.config).stem}_{seed}"
    if (
        not (folder / "best.pt").is_file()
        or (folder / "last.pt").is_file()
        and not finished(folder)
    ):
        options = [
            f"-{name}={getattr(experiment, name)}"
            for name in ("depth", "width")
            if getattr(experiment, name) is not None
        ]
        words = [
            sys.executable,
            str(ROOT / "classifier_pretraining.py"),
            "-dataset",
            experiment.id_dataset,
            "-arch",
            experiment.arch,
            *options,
            "-seed",
            str(seed),
            "-data_dir",
            flags.data_dir,
            "-out_dir",
            str(folder),
            *(["-device", flags.device] if flags.device else []),
            *(["-resume"] if folder.exists() else []),
        ]
        cli.log(f"training: seed {seed}")
        if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
            raise InputError(
                f"training the network of seed {seed} failed; give -weights, or run: python3 {' '.join(words[1:])}"
            )
    return folder / "best.pt"


def finished(folder: Path) -> bool:
    """Whether its log says that the training came to its end."""
    return '"event": "end"' in (folder / "log.jsonl").read_text()


def command(flags) -> str:
    """What rebuilds the record, without this machine's paths."""
    words = ["python3 scripts/table_detectors.py", f"-config {flags.config}"]
    words += (
        [f"-weights {' '.join(Path(w).name for w in flags.weights)}"]
        if flags.weights
        else [f"-seeds {' '.join(map(str, flags.seeds))}"]
    )
    words += [f"-benchmark {flags.benchmark}"] if flags.benchmark else []
    words += [
        f"-{name} {' '.join(getattr(flags, name))}"
        for name in ("detectors", "skip", "datasets")
        if getattr(flags, name)
    ]
    return " ".join(words + ([f"-limit {flags.limit}"] if flags.limit else []))


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
