"""Fit a detector on a config's ID training set, calibrate it on held-out ID images and save it in one file.

    python3 scripts/fit_detector.py -config ./configs/mnist5k_small_cnn.json -detector vim -out vim.npz
    python3 scripts/score_images.py -detector vim.npz -input ./my_pictures

The threshold accepts at least -accept of ID images: on average over the choice of the calibration images, or with -confidence for that
share of choices. Calibration images are a seeded share of the ID test set; the rest of it shows how many are accepted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import models
from ood import cli, detectors, files, provenance
from ood.config import InputError
from ood.deployment import detector_file
from ood.deployment.calibration import calibrate
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.evaluation import (
    scoring,
    workbench,
)
from ood.evaluation.diagnosis import advice, diagnose
from ood.outputs import Cache

parser = cli.Parser(
    "Fit, calibrate and save a detector.", "Exit code: 0 done, 2 bad input, 1 a run failed."
)
parser.flag(
    "-config",
    help="JSON config: data set, architecture, benchmark",
    default="./configs/mnist5k_small_cnn.json",
)
parser.flag("-detector", help="a detector, e.g. energy, vim, dice:percentile=70", default="energy")
parser.flag(
    "-checkpoint",
    help="weight file of any known format; default: the newest run of this very configuration",
)
parser.flag("-checkpoint_name", help="run folder inside -checkpoints_dir, instead of -checkpoint")
parser.flag(
    "-accept", type=float, help="share of ID images that the threshold accepts", default=0.95
)
parser.flag(
    "-confidence",
    type=float,
    help="share of calibration sets for which -accept holds; default: it holds on average over them",
)
parser.flag(
    "-share",
    type=float,
    help="share of the ID test images that calibrate; the rest checks",
    default=0.5,
)
parser.flag(
    "-seed", type=int, help="of the choice of calibration images; default: the config's, else 1"
)
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag(
    "-batch_size", type=int, help="images per forward pass; default: the config's, else 256"
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
parser.flag("-out", help="file to write; default: ./results/<name of the config>/<detector>.npz")


def main() -> None:
    flags = parser.parse_args()
    if not 0 < flags.share <= 1:
        raise InputError(f"-share is {flags.share}; it must be a fraction in (0, 1]")
    name, hyperparameters = detectors.parse(flags.detector)
    experiment = workbench.read_experiment(
        flags.config,
        **{
            key: getattr(flags, key)
            for key in ("checkpoint", "checkpoint_name", "seed", "limit", "batch_size")
        },
    )
    detector = detectors.create(
        name, **{**experiment.detector_args.get(name, {}), **hyperparameters}
    )
    device = cli.choose_device(flags.device)
    cli.set_seed(experiment.seed)
    cli.log(
        f"device {cli.describe_device(device)} | {experiment.id_dataset} | {experiment.arch} | {flags.detector}"
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

    detector.check(bench.network)

    # ID images: to fit, to calibrate, to check.
    images_of_detector = isinstance(detector, ImageDetector)
    to_fit = detector.requires_fit or images_of_detector and detector.measures_train
    test = bench.images("test")
    order = np.random.default_rng(experiment.seed).permutation(len(test))
    held, rest = (
        np.sort(order[: round(flags.share * len(test))]),
        np.sort(order[round(flags.share * len(test)) :]),
    )
    train = bench.images("train") if to_fit else None
    if (
        train is not None and train.digest == test.digest
    ):  # a folder without train and test sub-folders
        if not len(rest):
            raise InputError(
                f"'{train.name}' has no test images of its own, and -share 1 leaves none to fit on; give a smaller -share"
            )
        cli.log(
            f"'{train.name}' has no train and test sub-folders: fitted on {len(rest)} of its images, calibrated on the other {len(held)}"
        )
        train, rest = train.subset(rest), rest[:0]

    # Fit, calibrate, check.
    needs = dict(taps="taps" in detector.needs)
    beside = [detector] if images_of_detector else []
    if to_fit:
        outputs = bench.outputs(
            train, beside if images_of_detector and detector.measures_train else (), **needs
        )
        detector.fit(outputs)
        for line in advice(diagnose(outputs), {flags.detector: detector}):
            cli.log(f"advice: {line}")
    else:
        detector.fit(scoring.no_images(bench.network))  # some look at the head, or read a file
    outputs = bench.outputs(test, beside, **needs)
    scores = chunked_score(detector, outputs).numpy()
    calibration = calibrate(scores[held], flags.accept, flags.confidence)
    cli.log(
        f"{flags.detector}: threshold {calibration.threshold:.6g} from {len(held)} images; {calibration.guarantee}"
    )
    about = {
        "config": flags.config,
        "id_dataset": experiment.id_dataset,
        "precision": experiment.precision,
        "accuracy": scoring.accuracy(outputs),
        "n_train": len(train) if to_fit else 0,
        "n_calibration": len(held),
        "digests": {"test": test.digest, **({"train": train.digest} if to_fit else {})},
        "versions": provenance.provenance("", {}, None, device, {}, {})["versions"],
    }
    if len(rest):
        check = calibration.check(scores[rest])
        about["check"] = check._asdict()
        cli.log(
            f"check: {100 * check.accepted:.1f} % of the other {len(rest)} ID test images are accepted (expected {100 * check.expected:.1f} %, p = {check.p_value:.3f})"
        )
    out = Path(
        flags.out
        or Path("results") / Path(flags.config).stem / f"{files.file_stem(flags.detector)}.npz"
    )
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


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
