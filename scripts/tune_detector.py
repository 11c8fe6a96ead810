"""Choose hyper-parameters of detectors on outputs of one pass per set: against a validation OOD set, or without any OOD data.

    python3 scripts/tune_detector.py -config ./configs/mnist5k_small_cnn.json -detectors ash knn vim                    # pseudo-outliers
    python3 scripts/tune_detector.py -config ./configs/mnist5k_small_cnn.json -detectors ash knn -validation letters    # and a real set
    python3 scripts/tune_detector.py ... -detectors "knn:k=[1,5,10,20]"                                                 # own values

Pseudo-outliers are noise, jigsaws of ID images and left-out classes. A share of the ID test images validates; the rest and the benchmark's
OOD sets only say how good the choices were: the regret is the AUROC that a choice lost against the best candidate on test.
Writes OUT_DIR/tuning.json and tuning.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import models
from ood import cli, detectors, files, provenance
from ood.config import InputError
from ood.data import load
from ood.detectors import ImageDetector
from ood.evaluation import (
    measurements,
    pseudo,
    report,
    tuning,
    workbench,
)
from ood.outputs import Cache

parser = cli.Parser(
    "Choose hyper-parameters of detectors.", "Exit code: 0 done, 2 bad input, 1 a run failed."
)
parser.flag(
    "-config",
    help="JSON config: data set, architecture, benchmark",
    default="./configs/mnist5k_small_cnn.json",
)
parser.flag(
    "-detectors",
    nargs="+",
    metavar="NAME",
    help="detectors; name:key=[v1,v2] gives values of its own",
    default=["ash", "react", "dice", "knn", "vim"],
)
parser.flag(
    "-validation",
    help="a data set with OOD images to validate on (its images must not be among the test sets'); default: none",
)
parser.flag(
    "-validation_split", choices=("train", "test"), help="split of -validation", default="train"
)
parser.flag(
    "-pseudo",
    nargs="+",
    choices=pseudo.KINDS,
    metavar="KIND",
    help=f"pseudo-outliers: {', '.join(pseudo.KINDS)}; default: all of them",
)
parser.flag("-share", type=float, help="share of the ID test images that validates", default=0.2)
parser.flag(
    "-datasets",
    nargs="+",
    metavar="NAME",
    help="only these OOD sets of the benchmark; default: all",
)
parser.flag(
    "-checkpoint",
    help="weight file of any known format; default: the newest run of this very configuration",
)
parser.flag("-checkpoint_name", help="run folder inside -checkpoints_dir, instead of -checkpoint")
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag(
    "-batch_size", type=int, help="images per forward pass; default: the config's, else 256"
)
parser.flag(
    "-seed",
    type=int,
    help="of the choice of validation images and of pseudo-outliers; default: the config's, else 1",
)
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
parser.flag(
    "-cache_dir", help="where outputs of forward passes are kept; default: CHECKPOINTS_DIR/.outputs"
)
parser.flag("-no_cache", action="store_true", help="keep no outputs on disk", default=False)
parser.flag(
    "-download", action="store_true", help="fetch sets that torchvision can fetch", default=False
)
parser.flag(
    "-out_dir",
    help="folder of tuning.json and tuning.md; default: ./results/<name of the config>_tuning",
)
parser.flag("-record", metavar="NAME", help="also write docs/data/NAME.json for docs/results.md")


def main() -> None:
    flags = parser.parse_args()
    if not 0 < flags.share < 1:
        raise InputError(f"-share is {flags.share}; it must be a fraction between 0 and 1")
    asked = [read(text) for text in flags.detectors]
    experiment = workbench.read_experiment(
        flags.config,
        **{
            key: getattr(flags, key)
            for key in ("checkpoint", "checkpoint_name", "seed", "limit", "batch_size")
        },
    )
    device = cli.choose_device(flags.device)
    cli.set_seed(experiment.seed)
    cli.log(
        f"device {cli.describe_device(device)} | {experiment.id_dataset} | {experiment.arch} | {', '.join(name for name, _, _ in asked)}"
    )
    cache = (
        None
        if flags.no_cache
        else Cache(flags.cache_dir or Path(flags.checkpoints_dir) / ".outputs")
    )
    bench = workbench.prepare(
        models,
        experiment,
        device=device,
        data_dir=flags.data_dir,
        checkpoints_dir=flags.checkpoints_dir,
        cache=cache,
        download=flags.download,
        progress=cli.progress,
        log=cli.log,
    )

    for name, _, fixed in asked:
        tuning.made(name, {}, {**experiment.detector_args.get(name, {}), **fixed}).check(
            bench.network
        )

    # Image sets: training, validation (ID, pseudo-outliers, a real set), test.
    train, test, ood = bench.images("train"), bench.images("test"), bench.ood(flags.datasets)
    order = np.random.default_rng(experiment.seed).permutation(len(test))
    held = max(1, round(flags.share * len(test)))
    known, rest = test.subset(np.sort(order[:held])), test.subset(np.sort(order[held:]))
    kinds = tuple(flags.pseudo or pseudo.KINDS)
    sets = {"pseudo": pseudo.image_sets(known, kinds, experiment.seed), "validation": {}}
    if flags.validation:
        sets["validation"] = {
            flags.validation: load(
                flags.validation, flags.validation_split, **bench.sources, **bench.recipe
            ).as_outliers()
        }
    cli.log(
        f"validation: {len(known)} ID images against {', '.join([*sets['pseudo'], *(['left-out classes'] if 'left_out' in kinds else []), *sets['validation']])}; "
        f"test: {len(rest)} ID images against {', '.join(e.name for e in ood)}"
    )

    results, folds_of = [], {}
    for name, space, fixed in asked:
        probe = tuning.made(name, {}, {**experiment.detector_args.get(name, {}), **fixed})
        fixed, taps = {**experiment.detector_args.get(name, {}), **fixed}, "taps" in probe.needs
        on_images, measures = (
            isinstance(probe, ImageDetector),
            getattr(probe, "measures_train", False),
        )
        if "left_out" in kinds and not on_images and taps not in folds_of:
            folds_of[taps] = pseudo.left_out(
                bench.outputs(train, (), taps), bench.outputs(known, (), taps), seed=experiment.seed
            )
        folds = [] if on_images else folds_of.get(taps, [])
        trained = bench.outputs(train, [probe] if measures else [], taps)
        grid = tuning.candidates(
            name, trained, space, fixed, min([len(trained), *(len(part) for part, _, _ in folds)])
        )
        beside = tuning.image_candidates(name, grid, trained, fixed)
        if measures:
            trained = bench.outputs(train, beside, taps)
        passes = {
            key: bench.outputs(images, beside, taps)
            for key, images in {
                "known": known,
                "rest": rest,
                **sets["pseudo"],
                **sets["validation"],
                **{f"test {e.name}": e.images for e in ood},
            }.items()
        }
        made = {
            "pseudo": {key: passes[key] for key in sets["pseudo"]},
            "validation": {key: passes[key] for key in sets["validation"]},
        }
        on_test = tuning.tune(
            name,
            trained,
            passes["rest"],
            {e.name: passes[f"test {e.name}"] for e in ood},
            grid=grid,
            fixed=fixed,
        )
        usual = {key: probe.hyperparameters()[key] for key in grid[0]} == grid[
            0
        ]  # whether the default is possible here
        found = {"default": tuning.Search(name, grid[:1], on_test.aurocs[:1])} if usual else {}
        if made["pseudo"] or folds:
            found["pseudo"] = tuning.tune(
                name,
                trained,
                passes["known"],
                made["pseudo"],
                grid=grid,
                fixed=fixed,
                left_out=folds,
            )
        if flags.validation:
            found["validation"] = tuning.tune(
                name, trained, passes["known"], made["validation"], grid=grid, fixed=fixed
            )
        results.append(summary(name, on_test, found))
        cli.log(line(results[-1]))

    out_dir = Path(flags.out_dir or Path("results") / f"{Path(flags.config).stem}_tuning")
    table = as_table(results, flags.validation, len(rest), ood)
    text = (
        f"# Hyper-parameters for {experiment.id_dataset}\n\n"
        + files.markdown_table(table["columns"], table["rows"])
        + "\n\n"
        + table["caption"]
        + "\n"
    )
    made = provenance.provenance(
        ["python3", *sys.argv],
        vars(flags),
        experiment.seed,
        device,
        {"network": bench.digest, "test": test.digest},
        {},
    )
    files.write_text(
        out_dir / "tuning.json",
        json.dumps(files.plain({"detectors": results, "provenance": made}), indent=1) + "\n",
    )
    files.write_text(out_dir / "tuning.md", text)
    cli.log(f"written: {out_dir / 'tuning.md'}")
    if flags.record:
        words = [
            "python3 scripts/tune_detector.py",
            f"-config {flags.config}",
            f"-detectors {' '.join(flags.detectors)}",
        ]
        words += [
            f"-{name} {getattr(flags, name)}"
            for name in ("validation", "checkpoint_name")
            if getattr(flags, name)
        ]
        path = measurements.write(
            flags.record,
            page="results",
            order=520,
            title=f"Hyper-parameters without OOD data: {experiment.id_dataset}",
            tables=[table],
            command=" ".join(words),
            device=cli.describe_device(device),
            seeds=[experiment.seed],
            text=[PROTOCOL],
        )
        cli.log(f"record: {path}")


PROTOCOL = (
    "Every candidate is fitted and scored on the same cached outputs. Pseudo-outliers: uniform and Gaussian noise, 4 x 4 jigsaws of ID validation images, and "
    "classes left out of head and training set in five folds (not for detectors that work on images). Regret: AUROC on the test sets of the best candidate there, "
    "minus that of the choice, in points. One network; on another one the choices and regrets differ."
)


def read(text: str) -> tuple[str, dict | None, dict]:
    """'knn:k=[5,10],normalise=false' -> (name, space or None, fixed hyper-parameters)."""
    name, values = detectors.parse(text)
    detectors.create(
        name, **{key: value for key, value in values.items() if not isinstance(value, list)}
    )
    name = type(detectors.create(name)).name
    space = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    for key in space:
        detectors.create(name, **{key: space[key][0]})
    return (
        name,
        space or None,
        {key: value for key, value in values.items() if not isinstance(value, list)},
    )


def summary(name: str, on_test: tuning.Search, found: dict[str, tuning.Search]) -> dict:
    """Plain values of one detector: each way of choosing, what it chose, its AUROC on test and its regret."""
    best = int(on_test.criterion.argmax())
    return {
        "detector": name,
        "candidates": [
            {
                **c,
                "test": t,
                **{
                    way: s.aurocs[i]
                    for way, s in found.items()
                    if len(s.candidates) > i and way != "default"
                },
            }
            for i, (c, t) in enumerate(zip(on_test.candidates, on_test.aurocs))
        ],
        "ways": {
            way: {
                "chosen": tuning.spelled(name, s.best),
                "auroc": float(on_test.criterion[s.chosen]),
                "regret": tuning.regret(s, on_test),
            }
            for way, s in found.items()
        },
        "oracle": {
            "chosen": tuning.spelled(name, on_test.candidates[best]),
            "auroc": float(on_test.criterion[best]),
        },
    }


def line(result: dict) -> str:
    ways = "; ".join(
        f"{way}: {w['chosen']} AUROC {100 * w['auroc']:.2f} (regret {100 * w['regret']:.2f})"
        for way, w in result["ways"].items()
    )
    return f"{result['detector']}: {len(result['candidates'])} candidates; {ways}; best on test: {result['oracle']['chosen']} {100 * result['oracle']['auroc']:.2f}"


def as_table(results: list[dict], validation: str | None, count: int, ood) -> dict:
    ways = [
        ("default", "default"),
        ("pseudo", "without OOD data"),
        *([("validation", f"against {validation}")] if validation else []),
    ]
    ways = [(way, title) for way, title in ways if any(way in r["ways"] for r in results)]
    rows = []
    for r in results:
        cells = [r["detector"], str(len(r["candidates"]))]
        for way, _ in ways:
            w = r["ways"].get(way)
            cells += (
                [
                    f"{w['chosen'].partition(':')[2]}: {100 * w['auroc']:.2f}",
                    f"{100 * w['regret']:.2f}",
                ]
                if w
                else [report.MISSING] * 2
            )
        rows.append(
            [*cells, f"{r['oracle']['chosen'].partition(':')[2]}: {100 * r['oracle']['auroc']:.2f}"]
        )
    mean = ["mean", ""]
    for way, _ in ways:
        own = [r["ways"][way] for r in results if way in r["ways"]]
        mean += [
            f"{100 * np.mean([w['auroc'] for w in own]):.2f}",
            f"{100 * np.mean([w['regret'] for w in own]):.2f}",
        ]
    rows.append([*mean, f"{100 * np.mean([r['oracle']['auroc'] for r in results]):.2f}"])
    caption = f"AUROC in %, mean over {', '.join(e.label or e.name for e in ood)}, {count:,} ID test images that chose nothing; regret in points"
    return {
        "caption": caption,
        "columns": [
            "detector",
            "candidates",
            *(c for _, title in ways for c in (title, "regret")),
            "best on test",
        ],
        "rows": rows,
    }


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
