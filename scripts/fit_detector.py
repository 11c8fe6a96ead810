"""Fit a detector on a config's ID training set, calibrate it, and save it in one file.

    python3 scripts/fit_detector.py -detector vim -out vim.npz
    python3 scripts/score_images.py -detector vim.npz -input ./my_pictures
    python3 scripts/fit_detector.py -checkpoint checkpoints/RUN -detector knn -out knn.npz

The threshold accepts at least the share -accept of ID images. Without -confidence this holds on
average over the choice of the calibration images; with it, for that share of the choices. With
-per_class, it holds among the images of every predicted class, each with its own threshold. The
calibration images are a random share of the ID test images. The rest of them shows how many are
accepted.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np

import models
from ood import cli, files, methods, provenance
from ood.config import InputError
from ood.deployment import detector_file
from ood.deployment.calibration import calibrate, rank_of
from ood.deployment.groups import GroupCalibration, calibrate_groups
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.evaluation import described, options, scoring, workbench
from ood.evaluation.diagnosis import advice, diagnose

parser = cli.Parser(
    "Fit, calibrate and save a detector.", "Exit code: 0 done, 2 bad input, 1 the run failed."
)
options.add(parser, "config")
parser.set_defaults(config=None)  # a checkpoint may say it all
parser.flag(
    "-dataset", aliases=("-id_dataset",), help="ID set; default: the config's or the checkpoint's"
)
parser.flag("-detector", help="a detector, e.g. energy, vim, dice:percentile=70", default="energy")
options.add(parser, "checkpoint", "checkpoint_name", "benchmark")
options.add(parser, "arch", "pretrained", "head", "size")
parser.flag(
    "-accept", type=float, help="share of ID images that the threshold accepts", default=0.95
)
parser.flag(
    "-confidence",
    type=float,
    help="share of calibration sets for which -accept holds; default: -accept holds on average",
)
parser.flag(
    "-per_class",
    action="store_true",
    help="a threshold for each predicted class, so that -accept holds in every one of them",
    default=False,
)
parser.flag(
    "-share",
    type=float,
    help="share of the ID test images that calibrates; the rest checks",
    default=0.5,
)
options.add(parser, "seed", "limit", "batch_size", *options.PLACES, "download")
parser.flag("-out", help="file to write; default: ./results/<name of the config>/<detector>.npz")


def main() -> None:
    flags = parser.parse_args()
    if not 0 < flags.share <= 1:
        raise InputError(f"-share is {flags.share}; it must be a fraction in (0, 1]")
    for name in ("accept", "confidence"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < 1:
            raise InputError(f"-{name} is {value}; it must be a fraction between 0 and 1")
    overrides = workbench.flagged(flags)
    source = described.source(models, flags)
    config = workbench.read_config(source, overrides, find_method=methods.get)
    experiment = config.experiment
    detector = workbench.make_detector(experiment, flags.detector)
    context = options.context(models, flags)
    cli.set_seed(experiment.seed)
    device = cli.describe_device(context.device)
    said = (f"device {device}", experiment.id_dataset, experiment.arch, flags.detector)
    cli.log(" | ".join(said))
    bench = workbench.prepare_classifier(context, config)
    detector.check(bench.network)

    # ID images: to fit, to calibrate, to check.
    in_pass = isinstance(detector, ImageDetector)
    fits = detector.requires_fit or in_pass and detector.measures_train
    test = bench.images("test")
    held, rest = shared_out(len(test), flags.share, experiment.seed)
    rank_of(len(held), flags.accept, flags.confidence)  # before any score is computed
    train = bench.images("train") if fits else None
    if train is not None and train.digest == test.digest:
        # A folder without sub-folders train and test gives the same images for both.
        if not len(rest):
            raise InputError(
                f"'{train.name}' has no test images of its own, and -share 1 leaves none to fit "
                "on; give a smaller -share"
            )
        cli.log(
            f"'{train.name}' has no train and test sub-folders: "
            f"fitted on {len(rest)} of its images, calibrated on the other {len(held)}"
        )
        train, rest = train.subset(rest), rest[:0]

    # Fit.
    beside, taps = [detector] if in_pass else [], "taps" in detector.needs
    if fits:
        outputs = bench.outputs(train, beside if in_pass and detector.measures_train else (), taps)
        detector.fit(outputs)
        for line in advice(diagnose(outputs), {flags.detector: detector}):
            cli.log(f"advice: {line}")
    else:
        detector.fit(bench.passes.no_outputs())  # some look at the head, or read a file

    # Calibrate and check.
    outputs = bench.outputs(test, beside, taps)
    scores = chunked_score(detector, outputs).numpy()
    groups, shares = outputs.predicted.numpy(), (flags.accept, flags.confidence)
    if flags.per_class:
        if bench.network.fc.weight.shape[0] == 0:
            raise InputError("-per_class needs predicted classes; the network has no head")
        calibration = calibrate_groups(scores[held], groups[held], *shares)
        threshold = f"{len(calibration.parts)} thresholds"
    else:
        calibration = calibrate(scores[held], *shares)
        threshold = f"threshold {calibration.threshold:.6g}"
    cli.log(f"{flags.detector}: {threshold} from {len(held)} images; {calibration.guarantee}")
    about = {
        "config": config.path,
        "id_dataset": experiment.id_dataset,
        "precision": experiment.precision,
        "accuracy": scoring.accuracy(outputs),
        "class_names": bench.network.fc.weight.shape[0] and bench.class_names or None,
        "n_train": len(train) if fits else 0,
        "n_calibration": len(held),
        "digests": {"test": test.digest, **({"train": train.digest} if fits else {})},
        "versions": provenance.provenance("", {}, None, context.device, {}, {})["versions"],
    }
    if len(rest):
        about["check"] = check(calibration, scores[rest], groups[rest])

    folder = Path("results") / described.label(source, flags)
    out = Path(flags.out or folder / f"{files.file_stem(flags.detector)}.npz")
    detector_file.save(
        out,
        detector,
        network=bench.network,
        preprocess=bench.preprocess,
        recipe=bench.recipe,
        calibration=calibration,
        arch=bench.arch,
        checkpoint=bench.weights,
        about=files.plain(about),
    )
    cli.log(f"saved: {out} ({out.stat().st_size / 2**20:.2f} MiB)")


def check(calibration, scores: np.ndarray, groups: np.ndarray) -> dict:
    """Log how many of the other ID test images are accepted, and return it."""
    others = f"of the other {len(scores)} ID test images are accepted"
    if isinstance(calibration, GroupCalibration):
        accepted = float(calibration.accepts(scores, groups).mean())
        shares = calibration.shares(scores, groups)
        lowest = min(shares, key=lambda group: shares[group][1])
        count, share = shares[lowest]
        cli.log(
            f"check: {100 * accepted:.1f} % {others}; fewest in class {lowest}: "
            f"{100 * share:.1f} % of {count}"
        )
        return {"accepted": accepted, "lowest": {"class": lowest, "n": count, "accepted": share}}
    found = calibration.check(scores)
    cli.log(
        f"check: {100 * found.accepted:.1f} % {others} "
        f"(expected {100 * found.expected:.1f} %, p = {found.p_value:.3f})"
    )
    return found._asdict()


def shared_out(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the calibration images and of the others, each ascending, chosen at random."""
    order = np.random.default_rng(seed).permutation(count)
    held = round(share * count)
    return np.sort(order[:held]), np.sort(order[held:])


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
