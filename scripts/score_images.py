"""Score your own pictures with a saved detector: a CSV line per picture, and a contact sheet.

    python3 scripts/score_images.py -detector vim.npz -input ./my_pictures -out_dir ./scored

scores.csv has the columns file, score (larger = less like the training data), p_value (conformal;
small = unlike the training data), accepted (1 or 0), predicted (the class, accepted or not),
confidence (its softmax probability), nearest and error. With -nearest 3, the column nearest holds
the three most similar training pictures as a JSON list. The rows are written one by one into a
temporary file that takes its name at the end, so folders of any size need the same memory. A
damaged picture gets its error in the CSV and the run goes on; -strict stops there instead. A file
whose name begins like a formula is written as ./NAME. The contact sheet shows the least and the
most ID-like pictures.

With a calibrated detector, the last lines say whether the pictures as a whole look like the
calibration images (-alarm). With -stream they are also judged one after the other in the order of
their names, such as frames of a camera; this finds when a change began.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import ood

ood.catch_interrupts()  # before torch loads


import models
from ood import cli
from ood.config import InputError
from ood.deployment import detector_file, pictures
from ood.deployment.drift import Martingale, batch_alarm
from ood.deployment.groups import GroupCalibration
from ood.deployment.nearest import TrainingPictures, training_pictures
from ood.evaluation import options
from ood.files import replacing

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
)  # how a cell begins that is computed when it is opened
EVERY = 20  # seconds between two progress lines where there is no terminal for a bar

parser = cli.Parser(
    "Score pictures with a saved detector.",
    "Exit code: 0 every picture is in the CSV, 2 bad input, 1 the run failed.",
)
parser.flag("-detector", help="file that scripts/fit_detector.py wrote", required=True)
parser.flag(
    "-input", help="a folder of pictures (sub-folders included), or one picture", required=True
)
parser.flag(
    "-checkpoint",
    help="weights of the network; default: the file that the detector was fitted with",
)
parser.flag(
    "-arch",
    help="the network's architecture again, where it is a file of yours (FILE.py:FUNCTION, "
    "FILE.pt2): a detector file never runs such a file by itself",
)
parser.flag(
    "-pretrained",
    action="store_true",
    help="take the published weights that the detector was fitted on, downloaded on first use",
    default=False,
)
parser.flag(
    "-out_dir",
    help="folder of scores.csv and contact_sheet.png; "
    "default: ./results/<name of the input>_scored",
)
parser.flag("-batch_size", type=int, help="pictures per forward pass", default=64)
parser.flag(
    "-sheet",
    type=int,
    help="how many of the least ID-like pictures the contact sheet shows, and how many of the most "
    "ID-like ones; 0: no sheet",
    default=24,
)
parser.flag(
    "-alarm",
    type=float,
    help="probability of a false alarm about the pictures as a whole; 0: no such test",
    default=0.01,
)
parser.flag(
    "-stream",
    action="store_true",
    help="the pictures came in the order of their names: say at which one a change is certain",
    default=False,
)
parser.flag(
    "-strict",
    action="store_true",
    help="stop at the first damaged picture instead of listing it",
    default=False,
)
parser.flag(
    "-nearest",
    type=int,
    help="name so many of the most similar training pictures for each picture; 0: none",
    default=0,
)
parser.flag(
    "-train",
    help="where -nearest looks: a folder or a data set; default: the one that the detector was "
    "fitted on",
)
options.add(parser, *options.PLACES)


@dataclass
class Tally:
    """What has been scored so far."""

    extremes: pictures.Extremes
    done: int = 0
    damaged: int = 0
    accepted: int = 0
    scores: array = field(default_factory=lambda: array("d"))
    began: float = field(default_factory=time.perf_counter)

    def add(self, row: pictures.Row) -> None:
        """Count one more row."""
        self.done += 1
        self.damaged += bool(row.error)
        self.accepted += bool(row.accepted)
        if not row.error:
            self.scores.append(row.score)
            self.extremes.add(row)

    @property
    def whole(self) -> int:
        """Pictures with a score."""
        return self.done - self.damaged


def main() -> None:
    flags = parser.parse_args()
    if flags.batch_size < 1 or flags.sheet < 0:
        raise InputError(
            "-batch_size must be at least 1 and -sheet at least 0, "
            f"got {flags.batch_size} and {flags.sheet}"
        )
    if flags.nearest < 0:
        raise InputError(f"-nearest must be at least 0, got {flags.nearest}")
    if not 0 <= flags.alarm < 1:
        raise InputError(f"-alarm is {flags.alarm:g}; it must be a fraction in [0, 1)")
    context = options.context(models, flags)
    device = context.device
    stored = detector_file.load(flags.detector)
    network = load_network(stored, flags)
    stored.check(network, f"'{flags.detector}'")
    folder, files = found(Path(flags.input))
    total = len(files) if files else sum(1 for _ in pictures.find(folder))
    if not total:
        raise InputError(f"no pictures in '{folder}' (looked for {', '.join(pictures.KNOWN)})")
    accepts = "no threshold: the file has no calibration"
    if isinstance(stored.calibration, GroupCalibration):
        accepts = f"{len(stored.calibration.parts)} thresholds, one per predicted class"
    elif stored.calibration is not None:
        accepts = f"threshold {stored.calibration.threshold:.6g}"
    said = (f"device {cli.describe_device(device)}", stored.detector.name, accepts)
    cli.log(" | ".join([*said, f"{total:,} pictures in '{folder}'"]))
    if stored.calibration:
        cli.log(f"guarantee: {stored.calibration.guarantee}")

    out_dir = Path(flags.out_dir or Path("results") / f"{Path(flags.input).resolve().stem}_scored")
    rows = pictures.score(
        folder,
        stored,
        network,
        files=files,
        device=device,
        batch_size=flags.batch_size,
        precision=stored.about.get("precision", "fp32"),
        strict=flags.strict,
        training=similar_to(stored, network, flags, context) if flags.nearest else None,
        nearest=flags.nearest,
    )
    tally = Tally(pictures.Extremes(max(1, flags.sheet)))
    write_rows(out_dir / "scores.csv", cli.progress(rows, "score", total, "pictures"), tally, total)

    seconds, share, damaged = time.perf_counter() - tally.began, "", ""
    if stored.calibration and tally.whole:
        accepted = 100 * tally.accepted / tally.whole
        share = f"; {tally.accepted:,} accepted ({accepted:.1f} %)"
    if tally.damaged:
        damaged = f"; {tally.damaged:,} damaged, see the column error"
    cli.log(f"{tally.whole:,} pictures scored in {seconds:.1f} s{share}{damaged}")
    if stored.calibration and flags.alarm and tally.whole:
        say_drift(stored.calibration, tally.scores, flags)
    cli.log(f"scores: {out_dir / 'scores.csv'}")
    if flags.sheet and tally.whole:
        least = f"Least ID-like of {tally.whole:,} pictures ({stored.detector.name})"
        parts = {least: tally.extremes.least, "Most ID-like": tally.extremes.most}
        cli.log(f"contact sheet: {pictures.sheet(parts, out_dir / 'contact_sheet.png', folder)}")


def similar_to(stored: detector_file.Stored, network, flags, context) -> TrainingPictures:
    """Where -nearest finds training pictures."""
    name = flags.train or stored.about.get("id_dataset")
    if not name:
        raise InputError(f"'{flags.detector}' does not name its training pictures; give -train")
    training = training_pictures(
        name,
        stored,
        network,
        data_dir=context.data_dir,
        device=context.device,
        batch_size=flags.batch_size,
        cache=context.cache,
        progress=cli.progress,
    )
    cli.log(f"nearest: among {len(training.names):,} training pictures of {name}")
    return training


def say_drift(calibration, scores, flags) -> None:
    """Log whether the pictures as a whole look like the calibration images."""
    if isinstance(calibration, GroupCalibration):
        calibration = calibration.everything
    found = batch_alarm(calibration, scores, flags.alarm)
    answer = "ALARM: the pictures as a whole differ" if found.raised else "no sign of a change"
    cli.log(
        f"{answer} from the {len(calibration.scores)} calibration images "
        f"(Kolmogorov-Smirnov distance {found.distance:.3f}, p = {found.p_value:.2g}); "
        f"{found.guarantee}"
    )
    if flags.stream:
        monitor = Martingale(calibration)
        monitor.update(scores)
        first = monitor.alarm(flags.alarm)
        when = "no alarm" if first is None else f"ALARM at picture {first:,}"
        cli.log(
            f"stream: {when} of {len(scores):,} (largest evidence 10^"
            f"{monitor.log_highest / math.log(10):.1f}, alarm from 10^"
            f"{-math.log10(flags.alarm):.1f}); a stream of ID images ever raises one with "
            f"probability at most {flags.alarm:g}"
        )


def write_rows(path: Path, rows, tally: Tally, total: int) -> None:
    """Write the rows as CSV while they come, and count them; the log says how far it is."""
    said = time.perf_counter()
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(pictures.Row._fields)
        for row in rows:
            writer.writerow(
                [
                    as_path(row.file),
                    *map(spelled, (row.score, row.p_value, row.accepted)),
                    as_text(row.predicted or ""),
                    spelled(row.confidence),
                    json.dumps(row.nearest, ensure_ascii=False) if row.nearest else "",
                    row.error,
                ]
            )
            tally.add(row)
            now = time.perf_counter()
            if now - said > EVERY and not sys.stderr.isatty():
                said, speed = now, tally.done / (now - tally.began)
                cli.log(f"{tally.done:,} of {total:,} pictures ({speed:.0f} a second)")


def as_path(file: str) -> str:
    """The path as text that no spreadsheet takes for a formula: `=x.png` becomes `./=x.png`."""
    return f"./{file}" if file.startswith(FORMULA) else file


def as_text(text: str) -> str:
    """The text such that no spreadsheet takes it for a formula: `=x` becomes `'=x`."""
    return f"'{text}" if text.startswith(FORMULA) else text


def spelled(value) -> str:
    """A number with all its digits, 1 or 0 for a truth value, nothing for None."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else repr(value)


def found(path: Path) -> tuple[Path, list[str] | None]:
    """(folder, None) for a folder, (its folder, [name]) for a single picture."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise InputError(f"no folder or picture '{path}'; -input takes the path of one")
    return path, None


def load_network(stored: detector_file.Stored, flags):
    """The network that the detector belongs to.

    It is built as the detector's file says, with the weights of -checkpoint or of the fit. Nothing
    is downloaded, whatever the file says.
    """
    if not stored.arch:
        raise InputError(
            f"'{flags.detector}' does not say which network it belongs to; "
            "write it with scripts/fit_detector.py"
        )
    network, published = rebuilt(stored, flags), stored.arch.get("weights")
    weights = flags.checkpoint or stored.checkpoint
    if weights is None and published:
        weights = models.downloaded(stored.arch["arch"], published)
    if weights is None:
        return headed(network, stored)
    if not flags.checkpoint and not Path(weights).is_file():
        raise InputError(
            f"the weights that '{flags.detector}' was fitted with are no longer in '{weights}'; "
            "give them with -checkpoint"
        )
    weights = Path(weights)
    models.checkpoints.load_into(network, weights / "best.pt" if weights.is_dir() else weights)
    return headed(network, stored)


def rebuilt(stored: detector_file.Stored, flags):
    """The network with fresh weights. Code that a file names runs only if -arch names it too."""
    published = stored.arch.get("pretrained") and not (flags.checkpoint or stored.checkpoint)
    if published and flags.pretrained:
        return models.build(**{k: v for k, v in stored.arch.items() if k != "hf_config"})
    if published:
        raise InputError(
            f"'{flags.detector}' was fitted on the published weights of {stored.arch['arch']}; add "
            "-pretrained to fetch them (a detector file never starts a download by itself), or "
            "give them with -checkpoint"
        )
    if not flags.arch:
        return models.rebuild(stored.arch)
    if flags.arch != stored.arch["arch"]:
        raise InputError(
            f"'{flags.detector}' belongs to {stored.arch['arch']}, not to {flags.arch} (-arch)"
        )
    return models.build(**stored.arch)


def headed(network, stored: detector_file.Stored):
    """The network with the head that the detector was fitted under."""
    if stored.head != "own":
        network = models.without_head(network)
    if isinstance(stored.head, tuple):
        network = models.with_head(network, *stored.head)
    return network.eval()


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
