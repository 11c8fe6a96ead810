"""Choose hyper-parameters of detectors, with or without OOD data, from one pass per data set.

    python3 scripts/tune_detector.py -detectors ash knn vim                  # pseudo-outliers
    python3 scripts/tune_detector.py -detectors ash knn -validation letters  # and a real set
    python3 scripts/tune_detector.py -detectors "knn:k=[1,5,10,20]"          # own values

Pseudo-outliers are noise, jigsaws of ID images, and classes that are left out. A share of the ID
test images validates. The other ID test images and the OOD sets of the benchmark choose nothing;
they show how good the choices were. The regret of a choice is the AUROC that it lost against the
best candidate on these test sets. Writes OUT_DIR/tuning.json and tuning.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli, detectors, files, methods, provenance
from ood.config import InputError
from ood.data import load
from ood.data.images import ImageSet
from ood.detectors import ImageDetector
from ood.evaluation import measurements, options, pseudo, report, tuning, workbench

parser = cli.Parser(
    "Choose hyper-parameters of detectors.", "Exit code: 0 done, 2 bad input, 1 the run failed."
)
options.add(parser, "config")
parser.flag(
    "-detectors",
    nargs="+",
    metavar="NAME",
    help="detectors; name:key=[v1,v2] tries these values only",
    default=["ash", "react", "dice", "knn", "vim"],
)
parser.flag(
    "-validation",
    help="a data set of OOD images to validate on; its images must not be among the test sets'; "
    "default: none",
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
options.add(parser, "datasets", "checkpoint", "checkpoint_name")
parser.flag(
    "-network_seed",
    type=int,
    help="a network trained from this seed, instead of -checkpoint; it is trained where it is not "
    "there yet, as scripts/table_detectors.py does",
)
options.add(parser, "limit", "batch_size", "seed")
options.add(parser, *options.PLACES, "download")
parser.flag(
    "-out_dir",
    help="folder of tuning.json and tuning.md; default: ./results/<name of the config>_tuning",
)
parser.flag("-record", metavar="NAME", help="also write docs/data/NAME.json for docs/results.md")

PROTOCOL = (
    "Every candidate is fitted and scored on the same cached outputs. Pseudo-outliers: uniform and "
    "Gaussian noise, 4 x 4 jigsaws of ID validation images, and classes left out of head and "
    "training set in five folds (not for detectors that work on images). Regret: AUROC on the test "
    "sets of the best candidate there, minus the AUROC of the choice, in points. One network; on "
    "another one the choices and regrets differ."
)


@dataclass
class Sets:
    """The image sets of a search.

    Attributes:
        train: ID images that detectors are fitted to.
        known, rest: ID test images that validate, and the others, which only test.
        pseudo, validation: {name: OOD images to choose by}: made ones, a real set.
        ood: the OOD sets of the benchmark, which only test.
        left_out: whether left-out classes are among the pseudo-outliers.
        folds: {taps: what `pseudo.left_out` gives}, filled when a detector needs them.
    """

    train: ImageSet
    known: ImageSet
    rest: ImageSet
    pseudo: dict[str, ImageSet]
    validation: dict[str, ImageSet]
    ood: list
    left_out: bool
    folds: dict = field(default_factory=dict)


def main() -> None:
    flags = parser.parse_args()
    if not 0 < flags.share < 1:
        raise InputError(f"-share is {flags.share}; it must be a fraction between 0 and 1")
    asked = [read(text) for text in flags.detectors]
    overrides = workbench.flagged(flags)
    config = workbench.read_config(flags.config, overrides, find_method=methods.get)
    experiment = config.experiment
    context = options.context(models, flags)
    cli.set_seed(experiment.seed)
    device = cli.describe_device(context.device)
    names = ", ".join(name for name, _, _ in asked)
    cli.log(f"device {device} | {experiment.id_dataset} | {experiment.arch} | {names}")
    if flags.network_seed is not None:
        config = of_seed(config, flags, context)
    bench = workbench.prepare_classifier(context, config)
    asked = [
        (name, space, {**experiment.detector_args.get(name, {}), **fixed})
        for name, space, fixed in asked
    ]
    for name, _, fixed in asked:
        tuning.made(name, {}, fixed).check(bench.network)

    sets = load_sets(bench, flags)
    results = []
    for name, space, fixed in asked:
        results.append(search(bench, sets, name, space, fixed))
        cli.log(line(results[-1]))

    out_dir = Path(flags.out_dir or Path("results") / f"{Path(flags.config).stem}_tuning")
    table = as_table(results, flags.validation, len(sets.rest), sets.ood)
    text = [
        f"# Hyper-parameters for {experiment.id_dataset}",
        files.markdown_table(table["columns"], table["rows"]),
        table["caption"],
    ]
    made = provenance.provenance(
        ["python3", *sys.argv],
        vars(flags),
        experiment.seed,
        context.device,
        {"network": bench.digest, "test": bench.images("test").digest},
        {},
    )
    content = files.plain({"detectors": results, "provenance": made})
    files.write_text(out_dir / "tuning.json", json.dumps(content, indent=1) + "\n")
    files.write_text(out_dir / "tuning.md", "\n\n".join(text) + "\n")
    cli.log(f"written: {out_dir / 'tuning.md'}")
    if flags.record:
        path = measurements.write(
            flags.record,
            page="results",
            order=520,
            title=f"Hyper-parameters without OOD data: {experiment.id_dataset}",
            tables=[table],
            command=command(flags),
            device=device,
            seeds=[experiment.seed],
            text=[PROTOCOL],
        )
        cli.log(f"record: {path}")


def of_seed(config: workbench.Config, flags, context) -> workbench.Config:
    """The config with the weights of the network that was trained from -network_seed."""
    if config.experiment.checkpoint or config.experiment.checkpoint_name:
        raise InputError("give -network_seed, -checkpoint or -checkpoint_name, only one of them")
    file = measurements.network_of_seed(config, flags.network_seed, context, flags.device)
    experiment = dataclasses.replace(config.experiment, checkpoint=str(file))
    return dataclasses.replace(config, experiment=experiment)


def load_sets(bench: workbench.Workbench, flags) -> Sets:
    """Load every image set: for training, validation (ID, pseudo-outliers, a real set) and test."""
    seed = bench.experiment.seed
    train, test, ood = bench.images("train"), bench.images("test"), bench.ood()
    order = np.random.default_rng(seed).permutation(len(test))
    held = max(1, round(flags.share * len(test)))
    known, rest = test.subset(np.sort(order[:held])), test.subset(np.sort(order[held:]))
    kinds = tuple(flags.pseudo or pseudo.KINDS)
    made, validation = pseudo.image_sets(known, kinds, seed), {}
    if flags.validation:
        images = load(flags.validation, flags.validation_split, **bench.reading, **bench.recipe)
        validation[flags.validation] = images.as_outliers()
    left_out = "left_out" in kinds
    against = [*made, *(["left-out classes"] if left_out else []), *validation]
    cli.log(
        f"validation: {len(known)} ID images against {', '.join(against)}; "
        f"test: {len(rest)} ID images against {', '.join(entry.name for entry in ood)}"
    )
    return Sets(train, known, rest, made, validation, ood, left_out)


def search(bench, sets: Sets, name: str, space, fixed: dict) -> dict:
    """Try all candidates of one detector; the summary of every way of choosing."""
    probe = tuning.made(name, {}, fixed)
    taps, on_images = "taps" in probe.needs, isinstance(probe, ImageDetector)
    measures = getattr(probe, "measures_train", False)
    folds = left_out_folds(bench, sets, taps) if sets.left_out and not on_images else []

    # The candidates, and one pass per set that serves them all.
    trained = bench.outputs(sets.train, [probe] if measures else [], taps)
    smallest = min([len(trained), *(len(part) for part, _, _ in folds)])
    grid = tuning.candidates(name, trained, space, fixed, smallest)
    beside = tuning.image_candidates(name, grid, trained, fixed)
    if measures:
        trained = bench.outputs(sets.train, beside, taps)

    def passes(images: dict) -> dict:
        return {key: bench.outputs(part, beside, taps) for key, part in images.items()}

    known, rest = (bench.outputs(images, beside, taps) for images in (sets.known, sets.rest))
    made, validation = passes(sets.pseudo), passes(sets.validation)
    test = passes({entry.name: entry.images for entry in sets.ood})

    # Every candidate on the test sets, then the choice of each way.
    on_test = tuning.tune(name, trained, rest, test, grid=grid, fixed=fixed)
    found, usual = {}, probe.hyperparameters()
    if {key: usual[key] for key in grid[0]} == grid[0]:  # the default is possible here
        found["default"] = tuning.Search(name, grid[:1], on_test.aurocs[:1])
    if made or folds:
        found["pseudo"] = tuning.tune(
            name, trained, known, made, grid=grid, fixed=fixed, left_out=folds
        )
    if validation:
        found["validation"] = tuning.tune(name, trained, known, validation, grid=grid, fixed=fixed)
    return summary(name, on_test, found)


def left_out_folds(bench, sets: Sets, taps: bool) -> list:
    """What `pseudo.left_out` gives, computed once per kind of outputs."""
    if taps not in sets.folds:
        trained, known = (bench.outputs(part, (), taps) for part in (sets.train, sets.known))
        sets.folds[taps] = pseudo.left_out(trained, known, seed=bench.experiment.seed)
    return sets.folds[taps]


def command(flags) -> str:
    """The command that rebuilds the record."""
    words = [
        "python3 scripts/tune_detector.py",
        f"-config {flags.config}",
        f"-detectors {' '.join(flags.detectors)}",
    ]
    for name in ("validation", "network_seed", "checkpoint_name"):
        if getattr(flags, name) is not None:
            words.append(f"-{name} {getattr(flags, name)}")
    return " ".join(words)


def read(text: str) -> tuple[str, dict | None, dict]:
    """'knn:k=[5,10],normalise=false' -> (name, space or None, fixed hyper-parameters)."""
    name, values = detectors.parse(text)
    space = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    fixed = {key: value for key, value in values.items() if key not in space}
    detectors.create(name, **fixed)
    for key in space:
        detectors.create(name, **{key: space[key][0]})
    return type(detectors.create(name)).name, space or None, fixed


def summary(name: str, on_test: tuning.Search, found: dict[str, tuning.Search]) -> dict:
    """One detector as plain values: what each way chose, its AUROC on test and its regret."""
    best, candidates = int(on_test.criterion.argmax()), []
    for i, (candidate, aurocs) in enumerate(zip(on_test.candidates, on_test.aurocs)):
        searched = {
            way: search.aurocs[i]
            for way, search in found.items()
            if way != "default" and len(search.candidates) > i
        }
        candidates.append({**candidate, "test": aurocs, **searched})
    ways = {
        way: {
            "chosen": tuning.spelled(name, search.best),
            "auroc": float(on_test.criterion[search.chosen]),
            "regret": tuning.regret(search, on_test),
        }
        for way, search in found.items()
    }
    oracle = {
        "chosen": tuning.spelled(name, on_test.candidates[best]),
        "auroc": float(on_test.criterion[best]),
    }
    return {"detector": name, "candidates": candidates, "ways": ways, "oracle": oracle}


def line(result: dict) -> str:
    """One line for the log."""
    ways = "; ".join(
        f"{way}: {w['chosen']} AUROC {100 * w['auroc']:.2f} (regret {100 * w['regret']:.2f})"
        for way, w in result["ways"].items()
    )
    best = f"{result['oracle']['chosen']} {100 * result['oracle']['auroc']:.2f}"
    count = len(result["candidates"])
    return f"{result['detector']}: {count} candidates; {ways}; best on test: {best}"


def as_table(results: list[dict], validation: str | None, count: int, ood) -> dict:
    """The table of a record: a row per detector, two columns per way of choosing, the means."""
    ways = {"default": "default", "pseudo": "without OOD data"}
    ways |= {"validation": f"against {validation}"} if validation else {}
    ways = {way: title for way, title in ways.items() if any(way in r["ways"] for r in results)}

    def chosen(found: dict) -> str:
        return f"{found['chosen'].partition(':')[2]}: {100 * found['auroc']:.2f}"

    def mean(values) -> str:
        return f"{100 * np.mean(list(values)):.2f}"

    rows = []
    for result in results:
        cells = [result["detector"], str(len(result["candidates"]))]
        for way in ways:
            found = result["ways"].get(way)
            cells += (
                [chosen(found), f"{100 * found['regret']:.2f}"] if found else [report.MISSING] * 2
            )
        rows.append([*cells, chosen(result["oracle"])])
    last = ["mean", ""]
    for way in ways:
        own = [result["ways"][way] for result in results if way in result["ways"]]
        last += [mean(found[key] for found in own) for key in ("auroc", "regret")]
    rows.append([*last, mean(result["oracle"]["auroc"] for result in results)])
    sets = ", ".join(entry.label or entry.name for entry in ood)
    caption = (
        f"AUROC in %, mean over {sets}, {count:,} ID test images that chose nothing; "
        "regret in points"
    )
    titles = [text for title in ways.values() for text in (title, "regret")]
    columns = ["detector", "candidates", *titles, "best on test"]
    return {"caption": caption, "columns": columns, "rows": rows}


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
