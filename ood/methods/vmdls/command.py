"""The test of one ID/OOD pair, with the flags of the VMDLS authors' README.

    python3 test.py --enc_type densenet --latent_dim 32 --enc_out_dim 342 --known_dataset cifar_known --unknown_dataset imagenet-resize \
        --data_transforms cifar_test --batch_size 2500 --ae_features --checkpoint_path cifar10_densenet.ckpt --data_dir ./datasets
    python3 test.py --enc_type mnist-conv --known_dataset mnist --unknown_dataset omniglot --thresholding

Without --checkpoint_path the newest run of these settings in -checkpoints_dir is tested.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from ood import cli, files
from ood.config import InputError, nearest
from ood.data import info, load
from ood.data.registry.table import is_folder_path
from ood.evaluation import plots
from ood.methods.base import Context
from ood.methods.vmdls.method import VMDLS
from ood.methods.vmdls.open_set import open_set, threshold_table
from ood.methods.vmdls.settings import ENCODERS, Settings
from ood.methods.vmdls.training import known_images, preprocess_of
from ood.outputs import Cache

KNOWN = {"mnist": "mnist", "cifar_known": "cifar10", "cifar100_known": "cifar100"}
SPLITS = {
    "cifar_unknown": "cifar10",
    "cifar100_unknown": "cifar100",
}  # the classes that K leaves out
FEATURES = {"densenet": 342, "resnet18": 512, "vgg": 1024, "wresnet": 640, "mnist-conv": 500}
AS_STORED = ("Imagenet", "LSUN")  # ODIN's crops may be 36 x 36; the released code does not resize
FIRST = {"omniglot": 10_000}  # images, in path order
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TRANSFORMS = {
    "cifar": CIFAR,
    "cifar_test": CIFAR,
    "mnist": ((0.5,), (0.5,)),
    "blob": ((0.5,), (0.5,)),
    "toy": None,
    "emnist": ((0.1307,), (0.3081,)),
}

# Of the README's commands: they steer the training, the authors' logger or their trainer, and change no test result.
INERT_VALUES = (
    "generation_epoch",
    "lower_bound",
    "step_size",
    "step_gamma",
    "margin_max_distance",
    "margin_jumps",
    "margins_epoch",
    "lr",
    "kl_coeff",
    "max_epochs",
    "gpus",
    "num_workers",
    "opt",
    "input_height",
    "precision",
    "cov_scaling",
    "recon_weight",
    "gen_weight",
    "finetune_lr",
    "weights",
)
INERT_SWITCHES = ("offline", "finetune", "log_tsne", "first_conv", "maxpool1")
ALIASES = {
    "margin_jumps": ("margin_jump",),
    "margins_epoch": ("margin_epochs",),
}  # spellings of the README that its parser only guesses
MARKS = (
    "enc_type",
    "known_dataset",
    "unknown_dataset",
    "latent_dim",
    "ae_features",
)  # flags by which these commands are told from others


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "Test VMDLS on one pair of data sets (flags of its README).",
        "Accepted without effect: " + ", ".join(INERT_VALUES + INERT_SWITCHES) + ".",
    )
    parser.flag(
        "-enc_type",
        help=f"encoder: {', '.join(ENCODERS)}, or a name of models.names()",
        default="resnet18",
    )
    parser.flag("-latent_dim", type=int, help="dimension of mu", default=32)
    parser.flag("-enc_out_dim", type=int, help="features of the encoder; checked")
    parser.flag(
        "-class_num", type=int, help="K, the number of known classes; default: all of the set"
    )
    parser.flag(
        "-known_dataset", help=f"{', '.join(KNOWN)}, or a registered ID set", default="mnist"
    )
    parser.flag(
        "-unknown_dataset",
        help=f"a registered set, a folder, or {', '.join(SPLITS)}",
        default="omniglot",
    )
    parser.flag(
        "-data_transforms",
        help=f"whose normalisation is used: {', '.join(TRANSFORMS)}; default: the checkpoint's or the data set's",
    )
    parser.flag(
        "-checkpoint_path",
        help="weight file: .ckpt of the authors, or of a run folder; default: the newest run of these settings",
    )
    parser.flag("-batch_size", type=int, help="images per pass", default=256)
    parser.flag(
        "-batch_classes",
        type=int,
        help="classes per batch of the released accumulation; no effect without -accumulate released",
        default=1,
    )
    parser.flag(
        "-sample_count",
        type=int,
        help="images per class in it; no effect without -accumulate released",
        default=4996,
    )
    parser.flag(
        "-ae_features",
        action="store_true",
        help="weight the scores with the reconstruction error",
        default=False,
    )
    parser.flag(
        "-ae_checkpoint",
        help="weights of the auto-encoder; default: the newest run of method autoencoder for the known set",
    )
    parser.flag(
        "-thresholding",
        action="store_true",
        help="print and write the table of thresholds",
        default=False,
    )
    parser.flag(
        "-accumulate",
        choices=("all", "released"),
        help="class statistics from all training images, or as the released sampler",
        default="all",
    )
    parser.flag(
        "-statistics", choices=("float64", "released"), help="released: float32", default="float64"
    )
    parser.flag(
        "-jitter",
        type=float,
        help="added to the covariances' diagonals; default: searched in steps of 1e-6",
    )
    parser.flag(
        "-jitter_report",
        action="store_true",
        help="also print how the metrics move with the jitter",
        default=False,
    )
    parser.flag(
        "-ae_input",
        choices=("own", "released"),
        help="normalisation of the auto-encoder's input",
        default="own",
    )
    parser.flag(
        "-shift",
        choices=("peak", "released"),
        help="released: from the largest likelihood among the test images",
        default="peak",
    )
    parser.flag("-dropout", choices=("off", "released"), help="wresnet at test", default="off")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
    parser.flag(
        "-limit", type=int, help="at most so many images per set (a quick look); default: all"
    )
    parser.flag("-seed", type=int, help="of generated images and of the reshuffle", default=0)
    parser.flag(
        "-download",
        action="store_true",
        help="fetch missing sets first (see scripts/download_data.py)",
        default=False,
    )
    parser.flag(
        "-out_dir", help="folder of the results; default: ./results/vmdls_<known>_<unknown>"
    )
    for name in INERT_VALUES:
        parser.flag(f"-{name}", help="no effect on a test", aliases=ALIASES.get(name, ()))
    for name in INERT_SWITCHES:
        parser.flag(f"-{name}", action="store_true", help="no effect on a test")
    return parser


def main(argv: list[str], networks: ModuleType) -> None:
    """Run the test that `argv` (without the script's name) describes."""
    flags = make_parser().parse_args(argv)
    inert = [
        name for name in INERT_VALUES + INERT_SWITCHES if getattr(flags, name) not in (None, False)
    ]
    if flags.accumulate == "all":
        given = {word.lstrip("-").split("=")[0] for word in argv if word.startswith("-")}
        inert += [name for name in ("batch_classes", "sample_count") if name in given]
    device = cli.choose_device(flags.device)
    cli.set_seed(flags.seed)
    cli.log(
        f"device {cli.describe_device(device)} | vmdls | {flags.known_dataset} / {flags.unknown_dataset}"
    )
    if inert:
        cli.log(f"no effect on this test: {', '.join('--' + name for name in inert)}")
    settings = read_settings(flags)
    context = Context(
        networks,
        device,
        flags.data_dir,
        flags.checkpoints_dir,
        download=flags.download,
        limit=flags.limit,
        cache=Cache(Path(flags.checkpoints_dir) / ".outputs"),
        progress=cli.progress,
        log=cli.log,
    )
    method = VMDLS.load(settings, context, flags.checkpoint_path)
    check_features(method, flags)
    if flags.data_transforms:
        method.preprocess = preprocess_of(settings)
    known = known_images(settings, "test", context)
    novel = unknown_images(flags, known, context)

    scored = method.pair(known, novel)
    values = open_set(*scored)
    cli.log(
        f"{known.name} ({len(known)} images) against {flags.unknown_dataset} ({len(novel)} images)"
    )
    for line in sentences(values):
        cli.log(line)
    out_dir = Path(
        flags.out_dir
        or f"results/vmdls_{flags.known_dataset}_{flags.unknown_dataset.strip('./').replace('/', '_')}"
    )
    if flags.thresholding:
        table = threshold_table(*scored)
        write_table(out_dir / "thresholds.csv", table)
        for row in table[:: max(1, len(table) // 20)]:
            cli.log(" ".join(f"{name}={value:.4f}" for name, value in row.items()))
        cli.log(f"thresholds: {out_dir / 'thresholds.csv'}")
    extra = {}
    if flags.jitter_report:
        extra["jitter_report"] = method.jitter_report(known, novel)
        for row in extra["jitter_report"]:
            cli.log(
                f"jitter={row['jitter']:g} "
                + " ".join(
                    f"{name}={row[name]:.4f}" for name in ("auroc", "fpr95", "accuracy", "macro_f1")
                )
            )
    write_results(out_dir, flags, settings, scored, values, extra, method, known, novel, device)
    cli.log(f"results: {out_dir / 'metrics.json'}")


def read_settings(flags) -> Settings:
    known = KNOWN.get(flags.known_dataset, flags.known_dataset)
    facts = info(known)
    if facts.role != "id":
        raise InputError(
            f"-known_dataset '{flags.known_dataset}' is no labelled set{nearest(flags.known_dataset, KNOWN)}; allowed: {', '.join(KNOWN)} or a registered ID set"
        )
    mean, std = facts.mean, facts.std
    if flags.data_transforms:
        if flags.data_transforms not in TRANSFORMS:
            raise InputError(
                f"-data_transforms '{flags.data_transforms}' is unknown{nearest(flags.data_transforms, TRANSFORMS)}; allowed: {', '.join(TRANSFORMS)}"
            )
        mean, std = TRANSFORMS[flags.data_transforms] or (
            (0.0,) * facts.channels,
            (1.0,) * facts.channels,
        )
        if len(mean) != facts.channels:
            raise InputError(
                f"-data_transforms {flags.data_transforms} is for {len(mean)} channel(s), {known} has {facts.channels}"
            )
    return Settings(
        id_dataset=known,
        arch=ENCODERS.get(flags.enc_type, flags.enc_type),
        num_classes=flags.class_num or facts.num_classes,
        mean=mean,
        std=std,
        latent_dim=flags.latent_dim,
        batch_size=flags.batch_size,
        ae_features=flags.ae_features,
        autoencoder=flags.ae_checkpoint,
        accumulate=flags.accumulate,
        test_batch_classes=flags.batch_classes,
        test_sample_count=flags.sample_count,
        statistics=flags.statistics,
        jitter=flags.jitter,
        ae_input=flags.ae_input,
        shift=flags.shift,
        test_dropout=flags.dropout,
        seed=flags.seed,
    )


def check_features(method: VMDLS, flags) -> None:
    width = method.network.fc_mu.in_features
    if flags.enc_out_dim not in (None, width):
        raise InputError(
            f"-enc_out_dim is {flags.enc_out_dim}, but {flags.enc_type} has {width} features; leave the flag out or give {width}"
        )


def unknown_images(flags, known, context):
    """The OOD images: of a registered set or a folder, or the classes of the known set beyond K."""
    common = dict(
        data_dir=flags.data_dir, channels=known.shape[0], seed=flags.seed, download=flags.download
    )
    if flags.unknown_dataset in SPLITS:
        images = load(SPLITS[flags.unknown_dataset], "test", **common)
        left = np.asarray(images.labels) >= (flags.class_num or images.num_classes)
        if not left.any():
            raise InputError(
                f"-unknown_dataset {flags.unknown_dataset} are the classes that -class_num leaves out; it leaves out none"
            )
        return images.subset(left).as_outliers().limited(flags.limit)
    name = flags.unknown_dataset
    as_stored = not is_folder_path(name) and info(name).name in AS_STORED
    images = load(
        name,
        "test",
        size=None if as_stored else known.shape[-1],
        first=FIRST.get(name),
        limit=flags.limit,
        **common,
    )
    return images.as_outliers()


def sentences(values: dict[str, float]) -> list[str]:
    percent = {name: f"{100 * value:.2f} %" for name, value in values.items()}
    return [
        f"AUROC {percent['auroc']} | FPR at 95 % TPR {percent['fpr95']} | TNR at 95 % TPR {percent['tnr95']} | CAUROC {percent['cauroc']}",
        f"accuracy on known images, nothing rejected: {percent['accuracy']}",
        f"macro F1 over known classes and unknown: {percent['macro_f1']} at the threshold that accepts 95 % of the known images ({values['threshold95']:.5g})",
        f"oracle: best macro F1 {percent['best_f1']} at {values['best_f1_threshold']:.5g}, a threshold chosen on the test images",
    ]


def write_table(path: Path, table: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0])
    writer.writeheader()
    writer.writerows(table)
    with files.replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def write_results(
    out_dir: Path, flags, settings, scored, values, extra, method, known, novel, device
) -> None:
    """metrics.json, scores/pair.npz, figures/: histogram of the scores, latent scatter."""
    name = flags.unknown_dataset.strip("./").replace("/", "_")
    with files.replacing(out_dir / "metrics.json") as temporary:
        content = {
            "known": known.name,
            "unknown": flags.unknown_dataset,
            "n_id": len(known),
            "n_ood": len(novel),
            **values,
            **extra,
            "jitter": method.gaussians.jitter,
            "command": " ".join(["python3", *sys.argv]),
            "device": cli.describe_device(device),
            "settings": dataclasses.asdict(settings),
            "digests": {known.name: known.digest, name: novel.digest},
        }
        temporary.write_text(json.dumps(files.plain(content), indent=1) + "\n")
    with files.replacing(out_dir / "scores" / "pair.npz") as temporary:
        with open(temporary, "wb") as file:
            np.savez(
                file,
                known=scored[0].scores,
                unknown=scored[1].scores,
                predictions=scored[0].predictions,
                labels=scored[0].labels,
            )
    plots.score_histograms(
        {"vmdls": {known.name: scored[0].scores, name: scored[1].scores}},
        known.name,
        out_dir / "figures" / "scores.png",
    )
    method.figures(out_dir, [known, novel])
