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
from ood import benchmark, cli, plots, report, runs
from ood.config import InputError, build, merge, nearest, read_json, to_dict
from ood.data import Preprocess, info, load, load_benchmark
from ood.experiment import Experiment, make_detectors
from ood.outputs import Cache

parser = cli.Parser("Evaluate OOD detectors on a benchmark, with one forward pass per data set.",
                    "Exit code: 0 everything asked for was done, 2 bad input, 1 a run failed.")
parser.flag("-config", help="JSON config: data set, architecture, benchmark, detectors", default="./configs/mnist5k_small_cnn.json")
parser.flag("-checkpoint", help="weight file of any known format; default: the newest run of this very configuration")
parser.flag("-checkpoint_name", help="run folder inside -checkpoints_dir, instead of -checkpoint")
parser.flag("-detectors", nargs="+", metavar="NAME", help="detectors, e.g. msp energy dice:percentile=70; default: the config's")
parser.flag("-datasets", nargs="+", metavar="NAME", help="only these OOD sets of the benchmark; default: all")
parser.flag("-benchmark", help="benchmark: a name in configs/benchmarks or a JSON file; default: the config's")
parser.flag("-protocol", choices=("paper", "full"), help="'paper' keeps the paper's limits on images per OOD set, 'full' ignores them; default: the config's, else paper")
parser.flag("-feature_mean", help=".npy file with the mean training feature for dice; default: computed from the training set")
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag("-batch_size", type=int, help="images per forward pass; default: the config's, else 256")
parser.flag("-precision", choices=("fp32", "bf16"), help="of the backbone; default: the config's, else fp32")
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag("-seed", type=int, help="of generated images; default: the config's, else 1")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
parser.flag("-cache_dir", help="where outputs of forward passes are kept; default: CHECKPOINTS_DIR/.outputs")
parser.flag("-no_cache", action="store_true", help="keep no outputs on disk", default=False)
parser.flag("-download", action="store_true", help="fetch sets that torchvision can fetch", default=False)
parser.flag("-out_dir", help="folder of the results; default: ./results/<name of the config>")


def main() -> None:
    flags = parser.parse_args()

    # What to do: the config, overridden by flags. Everything that can be wrong is looked at before the first forward pass.
    overrides = {name: getattr(flags, name) for name in ("checkpoint", "checkpoint_name", "detectors", "datasets", "benchmark", "protocol",
                                                         "batch_size", "precision", "limit", "seed")}
    experiment = build(Experiment, merge(read_json(flags.config), overrides), flags.config)
    if flags.feature_mean:
        experiment = with_feature_mean(experiment, flags.feature_mean)
    for name in ("batch_size", "limit"):
        if getattr(experiment, name) is not None and getattr(experiment, name) < 1:
            raise InputError(f"-{name} is {getattr(experiment, name)}; it must be at least 1")
    detectors = make_detectors(experiment)
    device = cli.choose_device(flags.device)
    cli.set_seed(experiment.seed)
    suite = load_benchmark(experiment.benchmark or "demo")
    if suite.id_dataset != experiment.id_dataset:
        raise InputError(f"benchmark '{suite.name}' is for {suite.id_dataset}, the config's id_dataset is {experiment.id_dataset}")
    entries = choose_entries(suite, experiment.datasets)
    cli.log(f"device {cli.describe_device(device)} | {experiment.id_dataset} | {experiment.arch} | {suite.name} | {', '.join(detectors)}")

    # The classifier.
    facts = info(experiment.id_dataset)
    num_classes = experiment.num_classes or facts.num_classes
    channels = suite.channels or facts.channels
    weights = find_weights(experiment, flags.checkpoints_dir)
    network, stored = load_network(experiment, num_classes, channels, suite.size or facts.size, weights)
    preprocess = Preprocess(experiment.mean or stored.get("mean") or facts.mean, experiment.std or stored.get("std") or facts.std)

    # The images: every set is found, counted and, when small, decoded before the network runs.
    common = dict(data_dir=flags.data_dir, channels=channels, limit=experiment.limit, seed=experiment.seed, download=flags.download)
    fitting = any(d.requires_fit for d in detectors.values())
    train = load(experiment.id_dataset, "train", size=suite.size, resize=suite.resize, **common) if fitting else None
    test = load(experiment.id_dataset, "test", size=suite.size, resize=suite.resize, **common)
    check_classes(test, num_classes)
    ood = [benchmark.TestSet(e.dataset, suite.load_entry(e, len(test), protocol=experiment.protocol, **common), e.group or "", e.label) for e in entries]

    # One pass per set, then arrays only.
    cache = None if flags.no_cache else Cache(flags.cache_dir or Path(flags.checkpoints_dir) / ".outputs")
    result = benchmark.evaluate(network, train, test, ood, detectors, preprocess, device=device, batch_size=experiment.batch_size,
                                precision=experiment.precision, cache=cache, progress=cli.progress, log=cli.log)

    # The report.
    out_dir = Path(flags.out_dir or Path("results") / Path(flags.config).stem)
    provenance = report.provenance(command=" ".join(["python3", *sys.argv]), config=to_dict(dataclasses.replace(experiment, checkpoint=str(weights))),
                                   seed=experiment.seed, device=cli.describe_device(device), digests=result.digests, seconds=result.seconds)
    report.write_results(out_dir, result, provenance, test=test, ood=ood, paper=experiment.paper, source=experiment.source)
    cli.log(f"report: {out_dir / 'report.md'}")


def with_feature_mean(experiment: Experiment, file: str) -> Experiment:
    """`experiment` in which every dice detector reads its mean from `file`."""
    arguments = {name: dict(values) for name, values in experiment.detector_args.items()}
    for name in ("dice", "dice_react"):
        arguments.setdefault(name, {})["feature_mean"] = file
    return dataclasses.replace(experiment, detector_args=arguments)


def choose_entries(suite, names) -> list:
    """The benchmark's entries, or those named. Raises InputError for a name that is not among them."""
    known = [e.dataset for e in suite.entries]
    for name in names or ():
        if name not in known:
            raise InputError(f"-datasets: '{name}' is not in benchmark '{suite.name}'{nearest(name, known)}; it has {', '.join(known)}")
    return [e for e in suite.entries if not names or e.dataset in names]


def find_weights(experiment: Experiment, checkpoints_dir: str) -> Path | None:
    """The weight file asked for, or best.pt of the newest run with exactly this data set and architecture; None for torchvision's own."""
    if experiment.checkpoint:
        return Path(experiment.checkpoint)
    if experiment.checkpoint_name:
        folder = Path(checkpoints_dir) / experiment.checkpoint_name
        if not (folder / "best.pt").is_file():
            runs_there = [p.parent.name for p in Path(checkpoints_dir).glob("*/best.pt")]
            raise InputError(f"no best.pt in '{folder}'{nearest(experiment.checkpoint_name, runs_there)}; -checkpoint_name takes the name of a folder in '{checkpoints_dir}'")
        return folder / "best.pt"
    if experiment.model_args.get("weights"):
        return None
    shape = {name: getattr(experiment, name) for name in ("depth", "width")}
    command = f"python3 classifier_pretraining.py -dataset {experiment.id_dataset} -arch {experiment.arch}"
    command += "".join(f" -{name} {value}" for name, value in shape.items() if value is not None)
    match = {"kind": "classifier", "id_dataset": experiment.id_dataset, "arch": experiment.arch}
    match |= {name: value for name, value in shape.items() if value is not None}
    return runs.find_newest(checkpoints_dir, match, command=command).best


def load_network(experiment: Experiment, num_classes: int, channels: int, size: int, weights: Path | None):
    """The classifier with its weights, and the normalisation that its file records ({} when it records none)."""
    options = {name: getattr(experiment, name) for name in ("depth", "width") if getattr(experiment, name) is not None}
    network = models.build(experiment.arch, num_classes, in_channels=channels, image_size=size, **options, **experiment.model_args)
    if weights is None:
        return network, {}
    meta = models.checkpoints.load_into(network, weights)
    cli.log(f"weights: {weights}")
    return network, meta.get("preprocess") or {}


def check_classes(images, num_classes: int) -> None:
    if images.num_classes is not None and images.num_classes != num_classes:
        raise InputError(f"{images.name} has {images.num_classes} classes, the config says num_classes {num_classes}; they must agree")


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
