"""Compare the heatmap decoder with MSP on the embedded benchmark, over several seeds.

    python3 scripts/reproduce_heatmap.py                     # seeds 0 1 2, 5 min. on two idle cores
    python3 scripts/reproduce_heatmap.py -seeds 0 -epochs 3  # a quick look

For each seed, trains a classifier on 4,000 MNIST digits (the default recipe of
classifier_pretraining.py), then one decoder for each pairing, correct and released
(configs/mnist5k_small_ood.json). Each is scored on letters, patches and noise that neither saw;
MSP is that of the same classifier. Runs are kept in -work_dir and are continued there. -record
writes docs/data/heatmap_mnist5k.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli, metrics
from ood.cache import Cache
from ood.config import build, merge, read_json
from ood.data import info, load_benchmark
from ood.evaluation import measurements
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings
from ood.training.context import Context

CONFIG = ROOT / "configs" / "mnist5k_small_ood.json"
COLUMNS = {"msp": "MSP", "correct": "heatmap", "released": "heatmap, released pairing"}


def read_flags():
    parser = cli.Parser(
        "Heatmap decoder against MSP on the embedded benchmark, over several seeds."
    )
    parser.flag(
        "-seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="of classifier and decoder",
        default=[0, 1, 2],
    )
    parser.flag("-epochs", type=int, help="of the decoder; default: the config's")
    parser.flag("-work_dir", help="where runs are kept", default="./checkpoints/reproduce_heatmap")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    measurements.add_flag(parser)
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    device, work = cli.choose_device(flags.device), Path(flags.work_dir)
    known_keys = Settings.__dataclass_fields__
    config = {key: value for key, value in read_json(CONFIG).items() if key in known_keys}
    values = merge(config, {"epochs": flags.epochs})
    suite = load_benchmark("demo")
    test = suite.load_id("test")
    sets = {entry.label: suite.load_ood(entry, len(test)) for entry in suite.entries}
    # {column: {set: [Metrics, one per seed]}}
    found = {name: {label: [] for label in sets} for name in COLUMNS}
    accuracies = []
    for seed in flags.seeds:
        classifier = work / f"classifier_seed{seed}"
        measurements.run_script(
            "classifier_pretraining.py",
            dataset="mnist5k",
            seed=seed,
            out_dir=classifier,
            resume=True,
            device=device,
        )
        for pairing in ("correct", "released"):
            changes = {"seed": seed, "pairing": pairing, "classifier": str(classifier)}
            settings = build(Settings, {**values, **changes})
            context = Context(
                models,
                device,
                out_dir=work / f"decoder_seed{seed}_{pairing}",
                resume=True,
                cache=Cache(work / ".outputs"),
                log=cli.log,
            )
            method = Heatmap.load(settings, context, Heatmap.train(settings, context).folder)
            known = metrics.prepare(method.score(test))
            for label, images in sets.items():
                found[pairing][label].append(metrics.evaluate(known, method.score(images)))
        known = msp(method, test)
        for label, images in sets.items():
            found["msp"][label].append(metrics.evaluate(known, msp(method, images)))
        accuracies.append(method.accuracy(test))
        for label in sets:
            aurocs = " ".join(f"{name} {found[name][label][-1].auroc:.4f}" for name in COLUMNS)
            cli.log(f"seed {seed}: {label} {aurocs}")
    sizes = {label: len(images) for label, images in sets.items()}
    report(flags, settings, device, len(test), sizes, found, accuracies)


def msp(method, images):
    """Score with the softmax maximum of the method's classifier, negated: larger for outliers."""
    return -method.outputs(images).logits.softmax(1).amax(1)


def report(
    flags, settings: Settings, device, n_id: int, sizes: dict, found: dict, accuracies: list
) -> None:
    """Print the tables, and write the record on request. `sizes`: images of each OOD set."""

    def table(metric: str, title: str) -> dict:
        rows = []
        for label, size in sizes.items():
            values = ([getattr(m, metric) for m in found[name][label]] for name in COLUMNS)
            rows.append([f"{label} ({size:,})", *map(measurements.spread, values)])
        averages = []
        for name in COLUMNS:
            by_set = [[getattr(m, metric) for m in found[name][label]] for label in sizes]
            averages.append(measurements.spread(np.mean(by_set, axis=0)))
        rows.append(["average", *averages])
        return {"caption": title, "columns": ["OOD set (images)", *COLUMNS.values()], "rows": rows}

    tables = [
        table("auroc", "AUROC in %, mean ± standard deviation over the seeds, higher is better"),
        table("fpr95", "FPR95 in %, lower is better"),
    ]
    digits = info(settings.id_dataset).count["train"]
    text = [
        f"ID: {n_id:,} MNIST test digits; OOD sets as named. Classifier: {settings.arch}, "
        f"{digits:,} digits, accuracy {measurements.spread(accuracies)} %. Decoder: cut to the "
        f"classifier's stages, {settings.n_epochs} epochs on the {digits:,} digits and "
        f"{settings.num_ood:,} auxiliary images (training halves of letters and patches: other "
        "fonts, another photograph). The noise sets resemble nothing in the auxiliary set. MSP is "
        "that of the same classifiers, which the decoder leaves as they are, and has seen no "
        "outliers.",
        "Released pairing: the authors' code gives an auxiliary image the nearest ID image of "
        "another auxiliary image. Correct pairing, the default, is what the paper describes. This "
        "is our embedded benchmark, not one of the paper's; the paper's CIFAR and Tiny ImageNet "
        "settings need a GPU and were not run here.",
    ]
    seeds = "" if flags.seeds == [0, 1, 2] else f" -seeds {' '.join(map(str, flags.seeds))}"
    if flags.record:
        measurements.write(
            "heatmap_mnist5k",
            page="results",
            order=200,
            title="Heatmap decoder on the embedded images",
            text=text,
            tables=tables,
            seeds=flags.seeds,
            device=cli.describe_device(device),
            command=f"python3 scripts/reproduce_heatmap.py{seeds}",
        )
    measurements.print_tables(tables)


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
