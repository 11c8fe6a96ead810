"""Test one in-distribution set against one or more OOD sets, with the flags of the papers' READMEs.

Leave-out ensemble, with DenseNet, then WideResNet:

    python3 test.py --in-dataset cifar10 --out-dataset Imagenet --magnitud 0.002
    python3 test.py --in-dataset cifar10 --out-dataset LSUN_resize --magnitud 0.002 --wide

The whole table, with one pass over CIFAR-100; embedded images:

    python3 test.py -in-dataset cifar100 -out-dataset all -temperature 1000
    python3 test.py -config configs/mnist5k_small_leaveout.json -out-dataset letters patches

VMDLS:

    python3 test.py --enc_type densenet --known_dataset cifar_known \
        --unknown_dataset imagenet-resize ...

Commands with --enc_type, --known_dataset and the like are commands of VMDLS.
`python3 test.py --enc_type densenet -h` lists their flags.

The leave-out table shows FPR at 95 % TPR, detection error, AUROC and AUPR beside the numbers of the
paper and of the public repository. Writes OUT_DIR/{metrics.csv, metrics.json, report.md,
scores/*.npz, figures/*.png}.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli, files, methods, metrics_released, provenance
from ood.config import InputError, build, merge, read_json, split, to_dict
from ood.data import info, load, load_benchmark
from ood.data.registry import is_folder_path
from ood.evaluation import options, report
from ood.methods import leaveout
from ood.methods.vmdls import command as vmdls
from ood.methods.vmdls.flags import is_vmdls

ROOT = Path(__file__).resolve().parent
LINES = {
    "fpr95": "FPR at TPR 95%",
    "detection_error": "Detection error",
    "auroc": "AUROC",
    "aupr_in": "AUPR In",
    "aupr_out": "AUPR Out",
}
RELEASED = {
    "fpr95": metrics_released.fpr95_window,
    "detection_error": metrics_released.detection_error_strict,
    "auroc": metrics_released.auroc_rectangle,
    "aupr_in": metrics_released.aupr_in_rates,
    "aupr_out": metrics_released.aupr_out_rates,
}
NETWORKS = {"densenet": "DenseNet-BC-100", "wrn": "WideResNet-28-10"}

parser = cli.Parser(
    "Test the leave-out ensemble on an ID set and OOD sets.",
    "With --enc_type, --known_dataset, ...: VMDLS (its own flags, see -h after one of them).",
)
parser.flag(
    "-in-dataset",
    aliases=("in_dataset",),
    choices=("cifar10", "cifar100"),
    help="in-distribution set; default: cifar10, or the config's",
)
parser.flag(
    "-out-dataset",
    aliases=("out_dataset",),
    nargs="+",
    metavar="NAME",
    default=("Imagenet",),
    help="Imagenet, Imagenet_resize, LSUN, LSUN_resize, iSUN, Uniform, Gaussian, another "
    "registered set or a folder; all: the sets of the paper's table",
)
parser.flag(
    "-magnitude",
    aliases=("magnitud",),
    type=float,
    help="of the perturbation, in pixel units of [0, 1]; default: the config's, 0.0014",
)
parser.flag("-temperature", type=float, help="default: the config's, 1000")
parser.flag(
    "-wide", action="store_true", help="WideResNet-28-10 instead of DenseNet-BC-100", default=False
)
parser.flag(
    "-gradient",
    choices=("cross_entropy", "entropy"),
    help="of the perturbation: the repository's or the paper's; "
    "default: the config's, cross_entropy",
)
parser.flag(
    "-holdout",
    choices=("released", "full"),
    help="released: without the 1,000 positions that served for validation; "
    "default: the config's, released",
)
parser.flag(
    "-together",
    action="store_true",
    help="all folds in one vectorised pass; it needs the memory of all of them",
    default=None,
)
parser.flag(
    "-config",
    help="a config of leave-out classifiers; default: configs/<in-dataset>_<network>_leaveout.json",
)
parser.flag("-batch_size", type=int, help="images per pass; default: the config's, 100")
parser.flag("-gpu", help="number of a GPU, as in the repository: 0 means -device cuda:0")
parser.flag("-seed", type=int, help="of generated images", default=0)
options.add(parser, "limit", *options.PLACES, "download")
parser.flag(
    "-out_dir", help="folder of the results; default: ./results/leaveout_<in>_<network>_<out>"
)


def main() -> None:
    if is_vmdls(sys.argv[1:]):
        return vmdls.main(sys.argv[1:], models)
    flags = parser.parse_args()
    config, values, settings = read_config(flags)
    context = make_context(flags, config)
    device = cli.describe_device(context.device)
    cli.set_seed(flags.seed)
    cli.log(
        f"device {device} | leave-out ensemble | {settings.id_dataset} | {settings.arch} | "
        f"T {settings.temperature:g}, magnitude {settings.magnitude:g} along {settings.gradient}, "
        f"hold-out {settings.holdout}"
    )

    # The images come first, then the networks: what is missing is said before anything is computed.
    test, sets, labels = load_images(flags, values, settings)
    method = methods.get("leaveout").load(settings, context)

    # One pass per set, shared by the ensemble, its folds and its accuracy.
    scores, seconds = score(method, [test, *sets.values()])
    rows = report.result_rows(scores, test.name)
    for row in rows:
        known, novel = (scores[name][row["detector"]] for name in (test.name, row["dataset"]))
        row["released"] = {name: rule(known, novel) for name, rule in RELEASED.items()}

    paper = (values.get("paper") or {}).get("leaveout", {})
    for row in rows:
        if row["detector"] == method.name:
            cli.log(table(row, paper.get(row["dataset"]), settings))
    accuracy = method.accuracy(test)
    if accuracy is not None:
        folds = ", ".join(f"{100 * value:.2f}" for value in method.fold_accuracies(test))
        cli.log(
            f"accuracy on {test.name}: ensemble {100 * accuracy:.2f} %, single folds {folds} % "
            f"(of all classes; a fold knows {len(method.kept[0])} of {method.num_classes})"
        )
    remarks = notes(settings, sets)
    for remark in remarks:
        cli.log(f"note: {remark}")

    tested = "all" if list(flags.out_dataset) == ["all"] else "+".join(sets)
    stem = files.file_stem(f"leaveout_{test.name}_{settings.arch}_{tested}")
    out_dir = Path(flags.out_dir or Path("results") / stem)
    digests = {"networks": method.digest, test.name: test.digest}
    digests |= {name: images.digest for name, images in sets.items()}
    report.write_scores(out_dir, scores)
    figures = method.figures(out_dir, [test, *sets.values()])
    command = ["python3", *sys.argv]
    made = report.Report(
        rows,
        provenance.provenance(command, to_dict(settings), flags.seed, device, digests, seconds),
        paper={method.name: paper},
        source=values.get("source"),
        title=f"Leave-out classifiers on {test.name}",
        accuracy=accuracy,
        labels=labels,
        setting={
            "config": config,
            "temperature": settings.temperature,
            "magnitude": settings.magnitude,
            "gradient": settings.gradient,
            "hold-out": settings.holdout,
        },
        figures=tuple(figures),
        notes=tuple(remarks),
    )
    made.write(out_dir)
    cli.log(f"report: {out_dir / 'report.md'}")


def make_context(flags, config: str) -> methods.Context:
    """Return the context that the flags ask for; -gpu N is the repository's name of a device."""
    if flags.gpu is not None and flags.device:
        raise InputError("give -device or -gpu, not both")
    if flags.gpu is not None:
        flags.device = f"cuda:{flags.gpu}"
    flags.config = flags.config or f"configs/{config}"  # for messages
    return options.context(models, flags)


def score(method, sets: list) -> tuple[dict, dict]:
    """Score all sets. Return {set: {name: (N,)}} and {set, "total": seconds}."""
    scores, seconds, begun = {}, {}, time.perf_counter()
    for images in sets:
        started = time.perf_counter()
        scores[images.name] = method.scores_by_name(images)
        seconds[images.name] = time.perf_counter() - started
    return scores, {**seconds, "total": time.perf_counter() - begun}


def read_config(flags) -> tuple[str, dict, leaveout.Settings]:
    """Return the config's name, what it holds, and the method's settings with the flags in them."""
    if flags.config and (flags.in_dataset or flags.wide):
        raise InputError("give -config, or -in-dataset and -wide, not both")
    network = "wideresnet" if flags.wide else "densenet"
    published = f"{flags.in_dataset or 'cifar10'}_{network}_leaveout.json"
    config = flags.config or str(ROOT / "configs" / published)
    values = read_json(config)
    if values.get("method") != "leaveout":
        raise InputError(
            f"{config} is no config of leave-out classifiers "
            f"(method is {values.get('method')!r}, not 'leaveout')"
        )
    names = ("magnitude", "temperature", "gradient", "holdout", "together", "batch_size")
    overrides = {name: getattr(flags, name) for name in names}
    ours = split(values, leaveout.Settings, config)[1]
    settings = build(leaveout.Settings, merge(ours, overrides), config)
    leaveout.check(settings)
    if flags.limit is not None and flags.limit < 1:
        raise InputError(f"-limit is {flags.limit}; it must be at least 1")
    return Path(config).name, values, settings


def load_images(flags, values: dict, settings: leaveout.Settings):
    """Return the ID test set, {OOD set: images}, and {OOD set: how the paper prints it}.

    The positions that the hold-out skips are left out. Sets of the config's benchmark are prepared
    as it says (ODIN's crops as stored). Others are brought to the size of the ID set.
    """
    _, channels, size = leaveout.facts(settings)
    common = dict(data_dir=flags.data_dir, seed=flags.seed, download=flags.download)
    shape = dict(size=size, channels=channels)
    test = load(settings.id_dataset, "test", **shape, **common)
    suite = load_benchmark(values["benchmark"]) if values.get("benchmark") else None
    in_suite = {entry.dataset: entry for entry in suite.entries} if suite else {}
    wanted = []
    for name in flags.out_dataset:
        wanted += in_suite if name == "all" else [name]
    if not wanted:
        raise InputError("-out-dataset all needs a config with a benchmark; name the sets instead")

    def compared(images):
        """Take the rows of a set that are evaluated."""
        rows = leaveout.evaluated(
            len(test),
            len(images),
            settings.holdout,
            settings.validation_images,
            settings.split_seed,
        )
        return images.subset(rows[0 if images is test else 1]).limited(flags.limit)

    loaded = {}
    for name in wanted:
        name = name if is_folder_path(name) else info(name).name
        if name == test.name:
            raise InputError(f"-out-dataset '{name}' is the in-distribution set itself")
        if name in in_suite:
            images = suite.load_ood(in_suite[name], len(test), **common)
        else:
            images = load(name, "test", **shape, **common).as_outliers()
        loaded[images.name] = compared(images)
    labels = {entry.dataset: entry.label for entry in in_suite.values() if entry.label}
    return compared(test), loaded, labels


def table(row: dict, paper: dict | None, settings: leaveout.Settings) -> str:
    """Lay out the README's table for one OOD set, in percent.

    Its columns: the paper, the repository, ours, and ours by the repository's metric rules.
    """
    columns = {
        "paper": paper,
        "repository": settings.repository.get(row["dataset"]),
        "ours": row,
        "ours, its rules": row["released"],
    }
    network = NETWORKS.get(settings.arch, settings.arch)
    lines = [
        f"{network} | {settings.id_dataset} | {row['dataset']}: "
        f"{row['n_id']} ID, {row['n_ood']} OOD images",
        f"{'':<18}" + "".join(f"{name:>17}" for name in columns),
    ]
    for metric, title in LINES.items():
        values = [(column or {}).get(metric) for column in columns.values()]
        cells = ["–" if v is None or np.isnan(v) else f"{100 * v:.2f}%" for v in values]
        lines.append(f"{title:<18}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def notes(settings: leaveout.Settings, sets: dict) -> list[str]:
    """Return the sentences without which the numbers would mislead."""
    said = []
    validation = settings.validation_dataset and info(settings.validation_dataset).name
    if validation in sets and settings.validation_split == "test":
        said.append(
            f"{validation} picked the epoch of every network: this is no test set, "
            "its numbers are not to be reported"
        )
    elif validation in sets:
        said.append(
            f"the {settings.validation_split} part of {validation} picked the epoch of every "
            "network; these are its test images"
        )
    if settings.holdout == "full" and settings.validation_id == "test":
        said.append(
            "the ID images that picked the epoch are among those scored "
            "(-holdout released leaves them out)"
        )
    for name in sets:
        advised = settings.magnitudes.get(name)
        if advised is not None and advised != settings.magnitude:
            said.append(
                f"the repository's README advises -magnitude {advised:g} for {name}; "
                f"{settings.magnitude:g} was used"
            )
    return said


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
