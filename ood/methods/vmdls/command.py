"""The test of one ID/OOD pair, with the flags of the VMDLS authors' README.

    python3 test.py --enc_type densenet --latent_dim 32 --enc_out_dim 342 \
        --known_dataset cifar_known --unknown_dataset imagenet-resize --data_transforms cifar_test \
        --batch_size 2500 --ae_features --checkpoint_path cifar10_densenet.ckpt
    python3 test.py --enc_type mnist-conv --known_dataset mnist --unknown_dataset omniglot \
        --thresholding

Without --checkpoint_path the newest run of these settings in -checkpoints_dir is tested. Writes
OUT_DIR/{metrics.csv, metrics.json, report.md, scores/*.npz, figures/*.png}, and thresholds.csv with
--thresholding.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

from ood import cli, files, provenance
from ood.cache import Cache
from ood.config import InputError, nearest, to_dict
from ood.data import info, load
from ood.data.registry.table import is_folder_path
from ood.evaluation import plots, report
from ood.methods.vmdls.flags import (
    AE_TRANSFORMS,
    KNOWN,
    SPLITS,
    TRANSFORMS,
    make_parser,
    without_effect,
)
from ood.methods.vmdls.method import LIKELIHOOD, VMDLS
from ood.methods.vmdls.open_set import Scored, open_set, threshold_table
from ood.methods.vmdls.settings import ENCODERS, Settings
from ood.methods.vmdls.training import known_images, preprocess_of
from ood.training.context import Context

AS_STORED = ("Imagenet", "LSUN")  # ODIN's crops may be 36 x 36; the released code does not resize
FIRST = {"omniglot": 10_000}  # images that are tested, in path order


def main(argv: list[str], networks: ModuleType) -> None:
    """Run the test that `argv` (without the script's name) describes."""
    flags = make_parser().parse_args(argv)
    device = cli.choose_device(flags.device)
    cli.set_seed(flags.seed)
    cli.log(
        f"device {cli.describe_device(device)} | vmdls | "
        f"{flags.known_dataset} / {flags.unknown_dataset}"
    )
    inert = without_effect(flags, argv)
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
        training=training_command(flags),
    )
    method = VMDLS.load(settings, context, flags.checkpoint_path)
    check_features(method, flags)
    if flags.data_transforms:
        method.preprocess = preprocess_of(settings)
    known = known_images(settings, "test", context)
    novel = unknown_images(flags, known, context)

    begun = time.perf_counter()
    pairs = {method.name: method.pair(known, novel)}
    if method.autoencoder:
        pairs[LIKELIHOOD] = method.pair(known, novel, weighted=False)
    seconds = {"total": time.perf_counter() - begun}
    values = {label: open_set(*pair) for label, pair in pairs.items()}
    cli.log(
        f"{known.name} ({len(known)} images) against {flags.unknown_dataset} ({len(novel)} images)"
    )
    for line in sentences(values):
        cli.log(line)

    name = files.file_stem(flags.unknown_dataset)
    out_dir = Path(flags.out_dir or f"results/vmdls_{flags.known_dataset}_{name}")
    more = {"jitter": method.gaussians.jitter}
    if flags.thresholding:
        write_thresholds(out_dir / "thresholds.csv", threshold_table(*pairs[method.name]))
    if flags.jitter_report:
        more["jitter_report"] = method.jitter_report(known, novel)
        log_jitters(more["jitter_report"])
    write_results(out_dir, flags, method, (known, novel), pairs, values, more, seconds)
    cli.log(f"report: {out_dir / 'report.md'}")


def training_command(flags) -> str:
    """Return the command that trains such a network, with the flags of the authors' main.py."""
    names = ("enc_type", "latent_dim", "class_num", "known_dataset", "data_transforms")
    given = {name: getattr(flags, name) for name in names}
    words = [f"--{name} {value}" for name, value in given.items() if value is not None]
    return f"python3 ood_training.py {' '.join(words)}"


def read_settings(flags) -> Settings:
    """Return the settings that the flags ask for. Raises InputError for values out of range."""
    known = KNOWN.get(flags.known_dataset, flags.known_dataset)
    facts = info(known)
    if facts.role != "id":
        raise InputError(
            f"-known_dataset '{flags.known_dataset}' is no labelled set"
            f"{nearest(flags.known_dataset, KNOWN)}; "
            f"allowed: {', '.join(KNOWN)} or a registered ID set"
        )
    mean, std, ae_mean, ae_std = facts.mean, facts.std, None, None
    if flags.data_transforms:
        mean, std = _transform("data_transforms", flags, TRANSFORMS, known)
    if flags.ae_transforms:
        ae_mean, ae_std = _transform("ae_transforms", flags, AE_TRANSFORMS, known)
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
        autoencoder_mean=ae_mean,
        autoencoder_std=ae_std,
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


def _transform(flag: str, flags, table: dict, known: str) -> tuple[tuple, tuple]:
    """Return mean and std of --data_transforms or --ae_transforms."""
    name, channels = getattr(flags, flag), info(known).channels
    if name not in table:
        raise InputError(
            f"-{flag} '{name}' is unknown{nearest(name, table)}; allowed: {', '.join(table)}"
        )
    mean, std = table[name] or ((0.0,) * channels, (1.0,) * channels)
    if len(mean) != channels:
        raise InputError(f"-{flag} {name} is for {len(mean)} channel(s), {known} has {channels}")
    return mean, std


def check_features(method: VMDLS, flags) -> None:
    width = method.network.fc_mu.in_features
    if flags.enc_out_dim not in (None, width):
        raise InputError(
            f"-enc_out_dim is {flags.enc_out_dim}, but {flags.enc_type} has {width} features; "
            f"leave the flag out or give {width}"
        )


def unknown_images(flags, known, context: Context):
    """Return the OOD images.

    They are a registered set, a folder, or the classes of the known set beyond K.
    """
    common = dict(
        data_dir=flags.data_dir, channels=known.shape[0], seed=flags.seed, download=flags.download
    )
    name = flags.unknown_dataset
    if name in SPLITS:
        images = load(SPLITS[name], "test", **common)
        left = np.asarray(images.labels) >= (flags.class_num or images.num_classes)
        if not left.any():
            raise InputError(
                f"-unknown_dataset {name} stands for the classes that -class_num leaves out; "
                "it leaves out none"
            )
        return images.subset(left).as_outliers().limited(flags.limit)
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


def sentences(found: dict[str, dict[str, float]]) -> list[str]:
    """Return the metrics of a pair as lines of text, {label: metrics} with the method first."""
    values, *others = found.values()
    percent = {name: f"{100 * value:.2f} %" for name, value in values.items()}
    return [
        _curves(values),
        *(f"the likelihood alone: {_curves(alone)}" for alone in others),
        f"accuracy on known images, nothing rejected: {percent['accuracy']}",
        f"macro F1 over known classes and unknown: {percent['macro_f1']} at the threshold that "
        f"accepts 95 % of the known images ({values['threshold95']:.5g})",
        f"oracle: best macro F1 {percent['best_f1']} at {values['best_f1_threshold']:.5g}, "
        "a threshold chosen on the test images",
    ]


def _curves(values: dict[str, float]) -> str:
    percent = {name: f"{100 * value:.2f} %" for name, value in values.items()}
    return (
        f"AUROC {percent['auroc']} | FPR at 95 % TPR {percent['fpr95']} | "
        f"TNR at 95 % TPR {percent['tnr95']} | CAUROC {percent['cauroc']}"
    )


def log_jitters(rows: list[dict]) -> None:
    for row in rows:
        shown = (f"{name}={row[name]:.4f}" for name in ("auroc", "fpr95", "accuracy", "macro_f1"))
        cli.log(f"jitter={row['jitter']:g} {' '.join(shown)}")


def write_thresholds(path: Path, table: list[dict]) -> None:
    """Write the table of thresholds, and log about 20 of its lines."""
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0])
    writer.writeheader()
    writer.writerows(table)
    files.write_text(path, text.getvalue())
    for row in table[:: max(1, len(table) // 20)]:
        cli.log(" ".join(f"{name}={value:.4f}" for name, value in row.items()))
    cli.log(f"thresholds: {path}")


def write_results(
    out_dir: Path,
    flags,
    method: VMDLS,
    sets: tuple,
    pairs: dict[str, tuple[Scored, Scored]],
    values: dict[str, dict[str, float]],
    more: dict,
    seconds: dict[str, float],
) -> None:
    """Write the report, the scores and the figures.

    Args:
        sets: the ID and the OOD ImageSet.
        pairs: {label: their scores}; values: {label: metrics of the pair}.
        more: further numbers, which go into metrics.json.
    """
    known, novel = sets
    name = flags.unknown_dataset if novel.name == known.name else novel.name
    scores = {
        known.name: {label: pair[0].scores for label, pair in pairs.items()},
        name: {label: pair[1].scores for label, pair in pairs.items()},
    }
    rows = report.result_rows(scores, known.name)
    for row in rows:
        row |= {key: v for key, v in values[row["detector"]].items() if key not in row}
    report.write_scores(out_dir, scores)
    _write_pair(out_dir / "scores" / "pair.npz", *pairs[method.name])
    histograms = plots.score_histograms(
        plots.by_detector(scores), known.name, out_dir / "figures" / "scores.png"
    )
    figures = (*histograms, *method.figures(out_dir, [known, novel]))
    settings, device = method.settings, cli.describe_device(method.context.device)
    digests = {known.name: known.digest, name: novel.digest}
    made = report.Report(
        rows,
        provenance.provenance(
            ["python3", *sys.argv],
            to_dict(settings),
            flags.seed,
            device,
            digests,
            seconds,
        ),
        title=f"VMDLS on {known.name}",
        setting={
            "network": settings.arch,
            "weights": flags.checkpoint_path or "of the newest run of these settings",
            "score": "likelihood times reconstruction error"
            if method.autoencoder
            else "likelihood alone",
            "jitter": more["jitter"],
        },
        accuracy=values[method.name]["accuracy"],
        figures=figures,
        notes=tuple(f"{line}." for line in sentences(values)),
        more={
            "known": known.name,
            "unknown": flags.unknown_dataset,
            "n_id": len(known),
            "n_ood": len(novel),
            "digests": digests,
            **values[method.name],
            **more,
        },
    )
    made.write(out_dir)


def _write_pair(path: Path, known: Scored, novel: Scored) -> None:
    """Write scores of both sets, and predictions and labels of the ID images."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            known=known.scores,
            unknown=novel.scores,
            predictions=known.predictions,
            labels=known.labels,
        )
