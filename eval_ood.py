"""Evaluate OOD detectors: extract once, score with every detector, write metrics, tables and figures.

    python3 eval_ood.py -config ./configs/dice_cifar10.json -checkpoint weights.pth.tar -device cuda:0
    python3 eval_ood.py -config ./configs/mnist5k_small_cnn.json                    # newest run of that very configuration
    python3 eval_ood.py -config ... -detectors msp energy dice:percentile=70 -datasets iSUN dtd -limit 1000

Writes OUT_DIR/{metrics.csv, metrics.json, report.md, scores/<data set>.npz, figures/*.png}; a second run with other detectors
reads the cached outputs and forwards nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import models
from ood import cli, distributed, losses, methods, provenance
from ood.config import Experiment, InputError, build, merge, read_json, split, to_dict
from ood.data import Preprocess, info, load_benchmark
from ood.detectors.base import possible
from ood.evaluation import plots, report, scoring, uncertainty, workbench
from ood.evaluation.workbench import make_detectors
from ood.outputs import Cache
from ood.training import pretraining

parser = cli.Parser(
    "Evaluate OOD detectors on a benchmark, with one forward pass per data set.",
    "Exit code: 0 everything asked for was done, 2 bad input, 1 a run failed.",
)
parser.flag(
    "-config",
    help="JSON config: data set, architecture, benchmark, detectors",
    default="./configs/mnist5k_small_cnn.json",
)
parser.flag(
    "-dataset",
    aliases=("-id_dataset",),
    help="ID set, instead of the config's and the benchmark's: a registered name or an image folder",
)
parser.flag(
    "-num_classes",
    type=int,
    help="classes of the network; default: the config's, else the data set's",
)
parser.flag(
    "-checkpoint",
    help="weight file of any known format; default: the newest run of this very configuration",
)
parser.flag("-checkpoint_name", help="run folder inside -checkpoints_dir, instead of -checkpoint")
parser.flag(
    "-detectors",
    nargs="+",
    metavar="NAME",
    help="detectors, e.g. msp energy dice:percentile=70, or all; default: the config's, and the score of the loss that the network was trained with, where it has one",
)
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
parser.flag(
    "-protocol",
    choices=("paper", "full"),
    help="'paper' keeps the paper's limits on images per OOD set, 'full' ignores them; default: the config's, else paper",
)
parser.flag(
    "-fw_layers",
    type=int,
    choices=(1, 2, 3, 4),
    help="heatmap: encoder levels that the decoder sees; default: the config's, else 1",
)
parser.flag(
    "-feature_mean",
    help=".npy file with the mean training feature for dice; default: computed from the training set",
)
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag(
    "-batch_size",
    type=int,
    help="images per forward pass (on the CPU never more than fit its caches); default: the config's, else 256",
)
parser.flag(
    "-precision", choices=("fp32", "bf16"), help="of the backbone; default: the config's, else fp32"
)
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag("-seed", type=int, help="of generated images; default: the config's, else 1")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
parser.flag(
    "-cache_dir", help="where outputs of forward passes are kept; default: CHECKPOINTS_DIR/.outputs"
)
parser.flag("-no_cache", action="store_true", help="keep no outputs on disk", default=False)
parser.flag(
    "-download",
    action="store_true",
    help="fetch missing sets first (see scripts/download_data.py)",
    default=False,
)
parser.flag("-out_dir", help="folder of the results; default: ./results/<name of the config>")


def main() -> None:
    flags = parser.parse_args()

    # What to do: the config, overridden by flags. Everything that can be wrong is looked at before the first forward pass.
    experiment, method, settings = read_config(flags)
    detectors = make_detectors(experiment)
    device = cli.choose_device(flags.device)
    cli.set_seed(experiment.seed)
    suite = load_benchmark(experiment.benchmark, experiment.protocol)
    if flags.dataset:
        suite = dataclasses.replace(suite, id_dataset=experiment.id_dataset)
    if suite.id_dataset != experiment.id_dataset:
        raise InputError(
            f"benchmark '{suite.name}' is for {suite.id_dataset}, the config's id_dataset is {experiment.id_dataset}"
        )
    chosen = suite.select(experiment.datasets)
    cli.log(
        f"device {cli.describe_device(device)} | {experiment.id_dataset} | {experiment.arch} | {suite.name} | {', '.join([*detectors, *filter(None, [method and method.name])])}"
    )
    cache = (
        None
        if flags.no_cache
        else Cache(flags.cache_dir or Path(flags.checkpoints_dir) / ".outputs")
    )

    # The network, or the trained method with its classifier.
    facts = info(experiment.id_dataset)
    num_classes = experiment.num_classes or facts.num_classes
    if num_classes is None:
        raise InputError(
            f"{flags.config}: num_classes is needed for the image folder '{experiment.id_dataset}'"
        )
    if method:
        context = methods.Context(
            models,
            device,
            flags.data_dir,
            flags.checkpoints_dir,
            download=flags.download,
            limit=experiment.limit,
            cache=cache,
            progress=cli.progress,
            log=cli.log,
        )
        weights = workbench.asked_for(experiment, flags.checkpoints_dir)
        trained = method.load(settings, context, weights)
        network, preprocess = trained.classifier, trained.preprocess
        if network is None and detectors:
            raise InputError(
                f"method '{method.name}' has no classifier for detectors ({', '.join(detectors)}); leave -detectors out"
            )
    else:
        trained, weights = None, workbench.weight_file(models, experiment, flags.checkpoints_dir)
        cli.log(f"weights: {weights or 'of the architecture'}")
        network, stored, objective = workbench.load_network(
            models,
            experiment,
            num_classes,
            suite.channels or facts.channels,
            suite.size or facts.size,
            weights,
        )
        preprocess = Preprocess(
            experiment.mean or stored.get("mean") or suite.mean or facts.mean,
            experiment.std or stored.get("std") or suite.std or facts.std,
        )
        own = None if flags.detectors else losses.own_score(network, objective)
        if own:
            detectors[own.name] = own

    if experiment.detectors == ("all",):
        detectors, left_out = possible(detectors, network)
        for why in left_out.values():
            cli.log(f"left out of all: {why}")

    # The images: every set is found, counted and, when small, decoded before the network runs.
    common = dict(
        data_dir=flags.data_dir,
        limit=experiment.limit,
        seed=experiment.seed,
        download=flags.download,
    )
    test = suite.load_id("test", **common)
    check_classes(test, num_classes)
    ood = [
        scoring.TestSet(e.dataset, suite.load_ood(e, len(test), **common), e.group or "", e.label)
        for e in chosen.entries
    ]
    train = (
        suite.load_id("train", **common)
        if any(d.requires_fit for d in detectors.values())
        else None
    )

    # One pass per set, then arrays only.
    result = scoring.evaluate(
        network,
        train,
        test,
        ood,
        detectors,
        preprocess,
        methods={trained.name: trained} if trained else {},
        device=device,
        batch_size=experiment.batch_size,
        precision=experiment.precision,
        cache=cache,
        progress=cli.progress,
        log=cli.log,
    )

    if not distributed.first():
        return
    for line in result.advice:
        cli.log(f"advice: {line}")

    # The report.
    out_dir = Path(flags.out_dir or Path("results") / Path(flags.config).stem)
    labels = {e.name: e.label for e in ood if e.label}
    figures = plots.score_histograms(
        plots.by_detector(result.scores), test.name, out_dir / "figures" / "scores.png", labels
    )
    figures += plots.roc_curves(
        plots.by_detector(result.scores), test.name, out_dir / "figures" / "roc.png", labels=labels
    )
    if hasattr(trained, "figures"):
        with distributed.solo():
            figures += trained.figures(out_dir, [test, *(e.images for e in ood)])
    report.write_scores(out_dir, result.scores)
    made = report.Report(
        result.rows,
        provenance.provenance(
            ["python3", *sys.argv],
            to_dict(experiment),
            experiment.seed,
            cli.describe_device(device),
            result.digests,
            result.seconds,
        ),
        paper=experiment.paper,
        source=experiment.source,
        title=f"OOD detection on {experiment.id_dataset}",
        accuracy=next(iter(result.accuracies.values()), None),
        setting={
            "config": flags.config,
            "network": experiment.arch,
            "weights": weights or "of the method's newest run",
            "benchmark": f"{suite.name} ({experiment.protocol} protocol)",
        },
        labels=labels,
        datasets=tuple(e.dataset for e in suite.entries),
        figures=tuple(figures),
        notes=notes(suite, result),
        uncertainty=uncertainty.summarise(result.scores, test.name),
        costs=result.costs,
    )
    made.write(out_dir)
    cli.log(made.console())
    cli.log(f"report: {out_dir / 'report.md'}")


def read_config(flags):
    """(Experiment, method class or None, its Settings or None) from the config file and the flags."""
    values = read_json(flags.config)
    if (
        "method" not in values and "ood_dataset" in values and "loss" not in values
    ):  # the heatmap authors' own files
        values["method"] = "heatmap"
    method = methods.get(values["method"]) if "method" in values else None
    for_evaluation, for_method = split(
        values, method.Settings if method else pretraining.Settings, flags.config
    )
    names = (
        "num_classes",
        "checkpoint",
        "checkpoint_name",
        "detectors",
        "datasets",
        "benchmark",
        "protocol",
        "batch_size",
        "precision",
        "limit",
        "seed",
    )
    overrides = {"id_dataset": flags.dataset, **{name: getattr(flags, name) for name in names}}
    experiment = build(Experiment, merge(for_evaluation, overrides), flags.config)
    for name in ("batch_size", "limit"):
        if getattr(experiment, name) is not None and getattr(experiment, name) < 1:
            raise InputError(f"-{name} is {getattr(experiment, name)}; it must be at least 1")
    if flags.feature_mean:
        experiment = with_feature_mean(experiment, flags.feature_mean)
    return (
        experiment,
        method,
        build(method.Settings, merge(for_method, {"fw_layers": flags.fw_layers}), flags.config)
        if method
        else None,
    )


def with_feature_mean(experiment: Experiment, file: str) -> Experiment:
    """`experiment` in which every dice detector reads its mean from `file`."""
    arguments = {name: dict(values) for name, values in experiment.detector_args.items()}
    for name in ("dice", "dice_react"):
        arguments.setdefault(name, {})["feature_mean"] = file
    return dataclasses.replace(experiment, detector_args=arguments)


def check_classes(images, num_classes: int) -> None:
    if images.num_classes is not None and images.num_classes != num_classes:
        raise InputError(
            f"{images.name} has {images.num_classes} classes, the config says num_classes {num_classes}; they must agree"
        )


def notes(suite, result) -> tuple[str, ...]:
    """Sentences below the tables: what the benchmark says of itself, and every accuracy."""
    accuracies = ", ".join(
        f"{name} {100 * value:.2f} %" for name, value in result.accuracies.items()
    )
    return tuple(
        filter(
            None,
            (
                suite.notes,
                f"Accuracy on the ID test set: {accuracies}." if len(result.accuracies) > 1 else "",
                result.diagnosis and f"ID features: {result.diagnosis.text()}.",
                *(f"Advice: {line}." for line in result.advice),
            ),
        )
    )


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
