"""Evaluate OOD detectors: extract once, score with every detector, write metrics and figures.

    python3 eval_ood.py                                              # embedded images, newest run
    python3 eval_ood.py -config ./configs/dice_cifar10.json -checkpoint weights.pth.tar
    python3 eval_ood.py -weights wrn-40-2/cifar10/oe -download       # published; list: all names
    python3 eval_ood.py -checkpoint checkpoints/RUN -benchmark openood_cifar10
    python3 eval_ood.py -arch timm:resnet18 -pretrained -head linear -benchmark my_benchmark.json
    python3 eval_ood.py -config ... -detectors msp energy dice:percentile=70 -datasets iSUN dtd
    python3 eval_ood.py -config ... -device cuda:0 -limit 1000       # a quick look

Writes OUT_DIR/{metrics.csv, metrics.json, report.md, scores/<data set>.npz, figures/*.png}.
The outputs of forward passes are kept: a second run with other detectors forwards nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import ood

ood.catch_interrupts()  # before torch loads

import models
from ood import cli, distributed, methods, provenance
from ood.config import to_dict
from ood.data.fetch import published as fetch
from ood.evaluation import (
    described,
    options,
    plots,
    published,
    report,
    scoring,
    uncertainty,
    workbench,
)

parser = cli.Parser(
    "Evaluate OOD detectors on a benchmark, with one forward pass per data set.",
    "Exit code: 0 everything that was asked for is done, 2 bad input, 1 the run failed.",
)
options.add(parser, "config")
parser.set_defaults(config=None)  # -weights has another default
parser.flag(
    "-dataset",
    aliases=("-id_dataset",),
    help="ID set, instead of the one of config and benchmark: a registered name or an image folder",
)
parser.flag(
    "-num_classes",
    type=int,
    help="classes of the network; default: the config's, else those of the data set",
)
options.add(parser, "weights", "checkpoint", "checkpoint_name")
options.add(parser, "arch", "pretrained", "head", "size")
parser.flag(
    "-detectors",
    nargs="+",
    metavar="NAME",
    help="detectors, e.g. msp energy dice:percentile=70, or all; default: the config's, "
    "and the score that belongs to the network's loss, if it has one",
)
options.add(parser, "datasets", "benchmark")
parser.flag(
    "-protocol",
    choices=("paper", "full"),
    help="paper: with the paper's limits on images per OOD set; full: without them; "
    "default: the config's, else paper",
)
parser.flag(
    "-fw_layers",
    type=int,
    choices=(1, 2, 3, 4),
    help="heatmap: encoder levels that the decoder sees; default: the config's, else 1",
)
parser.flag(
    "-classifier",
    help="heatmap: weight file or run folder of the classifier; default: the copy in the decoder's "
    "run folder, else the newest run of its data set and architecture, else the authors' Models/",
)
parser.flag(
    "-feature_mean",
    help=".npy file with the mean training feature, for dice; "
    "default: computed from the training set",
)
options.add(parser, "device", "batch_size")
parser.flag(
    "-precision",
    choices=("fp32", "bf16"),
    help="precision of the backbone; default: the config's, else fp32",
)
options.add(parser, "limit", "seed", *options.PLACES[1:], "download")
parser.flag("-out_dir", help="folder of the results; default: ./results/<name of the config>")


def main() -> None:
    flags = parser.parse_args()
    if flags.weights == published.LIST:
        print(listed(flags))
        return

    # What to do: the config, overridden by flags.
    source = published.config_path(models, flags)
    label = described.label(source, flags)
    config = read_config(flags, source)
    experiment = config.experiment
    detectors = workbench.make_detectors(experiment)
    context = options.context(models, flags)
    cli.set_seed(experiment.seed)
    names = [*detectors, *([config.method.name] if config.method else [])]
    device = cli.describe_device(context.device)
    said = (f"device {device}", experiment.id_dataset, experiment.arch, experiment.benchmark)
    cli.log(" | ".join([*said, ", ".join(names)]))

    # The network, or the trained method with its classifier.
    bench = workbench.prepare(context, config)
    if "detectors" not in config.given:
        detectors |= bench.own_score()
    if experiment.detectors == ("all",):
        detectors, _ = bench.possible(detectors)

    # The images: every set is found, counted and, when small, decoded before the network runs.
    test, ood = bench.images("test"), bench.ood()
    train = bench.training_images(detectors)

    # One pass per set, then arrays only.
    result = scoring.evaluate(
        bench.passes, train, test, ood, detectors, methods=bench.methods, log=cli.log
    )
    if not distributed.first():
        return
    for line in result.advice:
        cli.log(f"advice: {line}")

    # The report.
    paper, paper_sets = workbench.published(config, bench.suite)
    out_dir = Path(flags.out_dir or Path("results") / label)
    report.write_scores(out_dir, result.scores)
    made = report.Report(
        result.rows,
        provenance.provenance(
            ["python3", *sys.argv],
            to_dict(experiment),
            experiment.seed,
            device,
            result.digests,
            result.seconds,
        ),
        paper=paper,
        source=experiment.source,
        title=f"OOD detection on {experiment.id_dataset}",
        accuracy=next(iter(result.accuracies.values()), None),
        setting={
            "config": config.path,
            "network": experiment.arch,
            "weights": bench.weights or "of the method's newest run",
            "benchmark": f"{bench.suite.name} ({experiment.protocol} protocol)",
        },
        labels={entry.name: entry.label for entry in ood if entry.label},
        datasets=paper_sets,
        figures=draw(out_dir, bench, test, ood, result),
        notes=notes(bench.suite, result),
        uncertainty=uncertainty.summarise(result.scores, test.name),
        costs=result.costs,
    )
    made.write(out_dir)
    cli.log(made.console())
    cli.log(f"report: {out_dir / 'report.md'}")


def listed(flags) -> str:
    """The table of published weights."""
    rows = sorted(models.weights.TABLE.values(), key=lambda row: row.name)
    return fetch.listing(rows, published.folder(flags.checkpoints_dir))


def read_config(flags, source: str | dict) -> workbench.Config:
    """The config file with the flags in it, and the published weights that they name."""
    config = workbench.read_config(
        source,
        workbench.flagged(flags),
        find_method=methods.get,
        method_overrides={"fw_layers": flags.fw_layers, "classifier": flags.classifier},
    )
    if flags.weights:
        root = published.folder(flags.checkpoints_dir)
        config = published.use(models, flags.weights, config, root, cli.log)
    if not flags.feature_mean:
        return config
    arguments = {name: dict(args) for name, args in config.experiment.detector_args.items()}
    for name in ("dice", "dice_react"):
        arguments.setdefault(name, {})["feature_mean"] = flags.feature_mean
    experiment = dataclasses.replace(config.experiment, detector_args=arguments)
    return dataclasses.replace(config, experiment=experiment)


def draw(out_dir: Path, bench, test, ood, result: scoring.Result) -> tuple[Path, ...]:
    """Write the figures and return their paths."""
    scores, folder = plots.by_detector(result.scores), out_dir / "figures"
    labels = {entry.name: entry.label for entry in ood if entry.label}
    figures = plots.score_histograms(scores, test.name, folder / "scores.png", labels)
    figures += plots.roc_curves(scores, test.name, folder / "roc.png", labels=labels)
    if hasattr(bench.trained, "figures"):
        with distributed.solo():
            figures += bench.trained.figures(out_dir, [test, *(entry.images for entry in ood)])
    return tuple(figures)


def notes(suite, result: scoring.Result) -> tuple[str, ...]:
    """Sentences below the tables: what the benchmark says of itself, accuracies, advice."""
    found = [suite.notes] if suite.notes else []
    if len(result.accuracies) > 1:
        shares = (f"{name} {100 * share:.2f} %" for name, share in result.accuracies.items())
        found.append(f"Accuracy on the ID test set: {', '.join(shares)}.")
    if result.diagnosis:
        found.append(f"ID features: {result.diagnosis.text()}.")
    return (*found, *(f"Advice: {line}." for line in result.advice))


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
