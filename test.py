"""Test one in-distribution set against one or more OOD sets, with the flags of the papers' READMEs.

    python3 test.py --in-dataset cifar10 --out-dataset Imagenet --magnitud 0.002             # leave-out ensemble, DenseNet
    python3 test.py --in-dataset cifar10 --out-dataset LSUN_resize --magnitud 0.002 --wide
    python3 test.py -in-dataset cifar100 -out-dataset all -temperature 1000                   # the whole table, one pass over CIFAR-100
    python3 test.py -config configs/mnist5k_small_leaveout.json -out-dataset letters patches  # embedded images
    python3 test.py --enc_type densenet --known_dataset cifar_known --unknown_dataset imagenet-resize ...    # VMDLS

Commands with --enc_type, --known_dataset and the like are those of VMDLS: `python3 test.py --enc_type densenet -h` lists its flags.
Prints FPR at 95 % TPR, detection error, AUROC and AUPR beside the numbers of the paper and of the public repository; writes
OUT_DIR/{metrics.csv, metrics.json, report.md, scores/*.npz, figures/*.png}.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import models
from ood import cli, files, methods, metrics, metrics_released, provenance
from ood.config import InputError, build, merge, read_json, split, to_dict
from ood.data import info, load, load_benchmark
from ood.data.registry.table import is_folder_path
from ood.evaluation import report
from ood.methods import leaveout
from ood.outputs import Cache

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
    help="Imagenet, Imagenet_resize, LSUN, LSUN_resize, iSUN, Uniform, Gaussian, another registered set or a folder; all: those of the paper's table",
)
parser.flag(
    "-magnitude",
    aliases=("magnitud",),
    type=float,
    help="of the perturbation, pixel units of [0, 1]; default: the config's, 0.002",
)
parser.flag("-temperature", type=float, help="default: the config's, 1000")
parser.flag(
    "-wide", action="store_true", help="WideResNet-28-10 instead of DenseNet-BC-100", default=False
)
parser.flag(
    "-gradient",
    choices=("cross_entropy", "entropy"),
    help="of the perturbation: the repository's or the paper's; default: the config's, cross_entropy",
)
parser.flag(
    "-holdout",
    choices=("released", "full"),
    help="released: without the 1,000 positions that served for validation; default: the config's, released",
)
parser.flag(
    "-together",
    action="store_true",
    help="all folds in one vectorised pass; needs the memory of all",
    default=None,
)
parser.flag(
    "-config",
    help="a config of leave-out classifiers; default: configs/<in-dataset>_<network>_leaveout.json",
)
parser.flag("-batch_size", type=int, help="images per pass; default: the config's, 100")
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag("-gpu", help="number of a GPU, as in the repository: 0 is -device cuda:0")
parser.flag("-seed", type=int, help="of generated images", default=0)
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where the fold folders are", default="./checkpoints")
parser.flag(
    "-no_cache",
    action="store_true",
    help="keep no outputs of forward passes on disk",
    default=False,
)
parser.flag(
    "-download",
    action="store_true",
    help="fetch missing sets first (see scripts/download_data.py)",
    default=False,
)
parser.flag(
    "-out_dir", help="folder of the results; default: ./results/leaveout_<in>_<network>_<out>"
)


def main() -> None:
    if is_vmdls(sys.argv[1:]):
        from ood.methods.vmdls import command

        return command.main(sys.argv[1:], models)
    flags = parser.parse_args()
    config, values, settings = read_config(flags)
    if flags.gpu is not None and flags.device:
        raise InputError("give -device or -gpu, not both")
    device = cli.choose_device(flags.device or (flags.gpu and f"cuda:{flags.gpu}"))
    cli.set_seed(flags.seed)
    cli.log(
        f"device {cli.describe_device(device)} | leave-out ensemble | {settings.id_dataset} | {settings.arch} | T {settings.temperature:g}, "
        f"magnitude {settings.magnitude:g} along {settings.gradient}, hold-out {settings.holdout}"
    )

    # The images, then the networks: what is missing is said before anything is computed.
    test, sets, labels = load_images(flags, values, settings)
    context = methods.Context(
        models,
        device,
        flags.data_dir,
        flags.checkpoints_dir,
        download=flags.download,
        cache=None if flags.no_cache else Cache(Path(flags.checkpoints_dir) / ".outputs"),
        progress=cli.progress,
        log=cli.log,
    )
    method = methods.get("leaveout").load(settings, context)

    # One pass per set, shared by the ensemble, its folds and its accuracy.
    begun, scores, rows, seconds = (
        time.perf_counter(),
        {test.name: method.scores_by_name(test)},
        [],
        {},
    )
    seconds[test.name] = time.perf_counter() - begun
    for name, images in sets.items():
        started = time.perf_counter()
        scores[name] = method.scores_by_name(images)
        seconds[name] = time.perf_counter() - started
        for detector, novel in scores[name].items():
            known = scores[test.name][detector]
            released = {metric: rule(known, novel) for metric, rule in RELEASED.items()}
            rows.append(
                report.result_row(
                    detector,
                    name,
                    metrics.evaluate(known, novel),
                    len(test),
                    len(images),
                    released=released,
                )
            )
    rows.sort(key=lambda row: list(scores[test.name]).index(row["detector"]))
    seconds["total"] = time.perf_counter() - begun

    paper = (values.get("paper") or {}).get("leaveout", {})
    for row in rows:
        if row["detector"] == method.name:
            cli.log(table(row, paper.get(row["dataset"]), settings))
    accuracy = method.accuracy(test)
    if accuracy is not None:
        folds = ", ".join(f"{100 * value:.2f}" for value in method.fold_accuracies(test))
        cli.log(
            f"accuracy on {test.name}: ensemble {100 * accuracy:.2f} %, single folds {folds} % (of all classes; a fold knows "
            f"{len(method.kept[0])} of {method.num_classes})"
        )
    remarks = notes(settings, sets)
    for remark in remarks:
        cli.log(f"note: {remark}")

    tested = "all" if list(flags.out_dataset) == ["all"] else "+".join(sets)
    out_dir = Path(
        flags.out_dir
        or Path("results") / files.file_stem(f"leaveout_{test.name}_{settings.arch}_{tested}")
    )
    digests = {
        "networks": method.digest,
        test.name: test.digest,
        **{name: images.digest for name, images in sets.items()},
    }
    report.write_scores(out_dir, scores)
    figures = method.figures(out_dir, [test, *sets.values()])
    made = report.Report(
        rows,
        provenance.provenance(
            ["python3", *sys.argv],
            to_dict(settings),
            flags.seed,
            cli.describe_device(device),
            digests,
            seconds,
        ),
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


def is_vmdls(words: list[str]) -> bool:
    """Whether a command has flags that only the VMDLS README knows."""
    from ood.methods.vmdls import command

    return any(
        word.startswith("-") and word.lstrip("-").split("=")[0] in command.MARKS for word in words
    )


def read_config(flags) -> tuple[str, dict, leaveout.Settings]:
    """(its path, what it holds, the method's settings with the flags in them)."""
    if flags.config and (flags.in_dataset or flags.wide):
        raise InputError("give -config, or -in-dataset and -wide, not both")
    config = flags.config or str(
        ROOT
        / "configs"
        / f"{flags.in_dataset or 'cifar10'}_{'wideresnet' if flags.wide else 'densenet'}_leaveout.json"
    )
    values = read_json(config)
    if values.get("method") != "leaveout":
        raise InputError(
            f"{config} is no config of leave-out classifiers (method is {values.get('method')!r}, not 'leaveout')"
        )
    overrides = {
        name: getattr(flags, name)
        for name in ("magnitude", "temperature", "gradient", "holdout", "together", "batch_size")
    }
    settings = build(
        leaveout.Settings, merge(split(values, leaveout.Settings, config)[1], overrides), config
    )
    leaveout.check(settings)
    if flags.limit is not None and flags.limit < 1:
        raise InputError(f"-limit is {flags.limit}; it must be at least 1")
    return Path(config).name, values, settings


def load_images(flags, values: dict, settings: leaveout.Settings):
    """(ID test set, {OOD set: images}, {OOD set: how the paper prints it}), without the positions that the hold-out skips.

    Sets of the config's benchmark are prepared as it says (ODIN's crops as stored), others are brought to the ID set's size.
    """
    _, channels, size = leaveout.facts(settings)
    common = dict(data_dir=flags.data_dir, seed=flags.seed, download=flags.download)
    test = load(settings.id_dataset, "test", size=size, channels=channels, **common)
    suite = load_benchmark(values["benchmark"]) if values.get("benchmark") else None
    in_suite = {entry.dataset: entry for entry in suite.entries} if suite else {}
    wanted = [
        entry for name in flags.out_dataset for entry in (in_suite if name == "all" else [name])
    ]
    if not wanted:
        raise InputError("-out-dataset all needs a config with a benchmark; name the sets instead")

    def compared(images):
        """Of a set in full, the rows that count."""
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
        images = (
            suite.load_ood(in_suite[name], len(test), **common)
            if name in in_suite
            else load(name, "test", size=size, channels=channels, **common).as_outliers()
        )
        loaded[images.name] = compared(images)
    return (
        compared(test),
        loaded,
        {entry.dataset: entry.label for entry in in_suite.values() if entry.label},
    )


def table(row: dict, paper: dict | None, settings: leaveout.Settings) -> str:
    """The README's table for one OOD set: paper, repository, ours, ours by the repository's metric rules; percent."""
    columns = {
        "paper": paper,
        "repository": settings.repository.get(row["dataset"]),
        "ours": row,
        "ours, its rules": row["released"],
    }
    lines = [
        f"{NETWORKS.get(settings.arch, settings.arch)} | {settings.id_dataset} | {row['dataset']}: {row['n_id']} ID, {row['n_ood']} OOD images",
        f"{'':<18}" + "".join(f"{name:>17}" for name in columns),
    ]
    for metric, title in LINES.items():
        values = [(column or {}).get(metric) for column in columns.values()]
        lines.append(
            f"{title:<18}"
            + "".join(
                f"{'–' if v is None or np.isnan(v) else f'{100 * v:.2f}%':>17}" for v in values
            )
        )
    return "\n".join(lines)


def notes(settings: leaveout.Settings, sets: dict) -> list[str]:
    """What has to be said about the numbers."""
    said = []
    validation = settings.validation_dataset and info(settings.validation_dataset).name
    if validation in sets and settings.validation_split == "test":
        said.append(
            f"{validation} picked the epoch of every network: this is no test set, its numbers are not to be reported"
        )
    elif validation in sets:
        said.append(
            f"the {settings.validation_split} part of {validation} picked the epoch of every network; these are its test images"
        )
    if settings.holdout == "full" and settings.validation_id == "test":
        said.append(
            "the ID images that picked the epoch are among those scored (-holdout released leaves them out)"
        )
    for name in sets:
        advised = settings.magnitudes.get(name)
        if advised is not None and advised != settings.magnitude:
            said.append(
                f"the repository's README advises -magnitude {advised:g} for {name}; {settings.magnitude:g} was used"
            )
    return said


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
