"""Score your own pictures with a saved detector: a CSV line per picture, and a contact sheet of the least and the most ID-like.

    python3 scripts/score_images.py -detector vim.npz -input ./my_pictures -out_dir ./scored

scores.csv: file, score (larger = less like the training data), p_value (of the picture being ID; conformal), accepted (1 or 0), error. It is
written row by row into a temporary file that takes its name at the end, so folders of any size need the same memory. A damaged picture
gets its error in the CSV and the run goes on; -strict stops there instead.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import models
from ood import cli
from ood.config import InputError
from ood.deployment import (
    detector_file,
    pictures,
)
from ood.files import replacing

EVERY = 20  # seconds between two progress lines where there is no terminal for a bar

parser = cli.Parser(
    "Score pictures with a saved detector.",
    "Exit code: 0 every picture is in the CSV, 2 bad input, 1 a run failed.",
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
    "-out_dir",
    help="folder of scores.csv and contact_sheet.png; default: ./results/<name of the input>_scored",
)
parser.flag("-batch_size", type=int, help="pictures per forward pass", default=64)
parser.flag(
    "-sheet", type=int, help="pictures of either kind on the contact sheet; 0: no sheet", default=24
)
parser.flag(
    "-strict",
    action="store_true",
    help="stop at the first damaged picture instead of listing it",
    default=False,
)
parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")


def main() -> None:
    flags = parser.parse_args()
    if flags.batch_size < 1 or flags.sheet < 0:
        raise InputError(
            f"-batch_size must be at least 1 and -sheet at least 0, got {flags.batch_size} and {flags.sheet}"
        )
    device = cli.choose_device(flags.device)
    stored = detector_file.load(flags.detector)
    network = load_network(stored, flags)
    stored.check(network, f"'{flags.detector}'")
    folder, files = found(Path(flags.input))
    total = len(files) if files else sum(1 for _ in pictures.find(folder))
    if not total:
        raise InputError(f"no pictures in '{folder}' (looked for {', '.join(pictures.EXTENSIONS)})")
    accepts = (
        "no threshold: the file has no calibration"
        if stored.calibration is None
        else f"threshold {stored.calibration.threshold:.6g}"
    )
    cli.log(
        f"device {cli.describe_device(device)} | {stored.detector.name} | {accepts} | {total:,} pictures in '{folder}'"
    )
    if stored.calibration:
        cli.log(f"guarantee: {stored.calibration.guarantee}")

    out_dir = Path(flags.out_dir or Path("results") / f"{Path(flags.input).resolve().stem}_scored")
    extremes, damaged, accepted, done, began, said = (
        pictures.Extremes(max(1, flags.sheet)),
        0,
        0,
        0,
        time.perf_counter(),
        time.perf_counter(),
    )
    rows = pictures.score(
        folder,
        stored,
        network,
        files=files,
        device=device,
        batch_size=flags.batch_size,
        precision=stored.about.get("precision", "fp32"),
        strict=flags.strict,
    )
    with (
        replacing(out_dir / "scores.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(pictures.Row._fields)
        for row in cli.progress(rows, "score", total=total, unit="pictures"):
            writer.writerow(
                [
                    row.file,
                    *(
                        "" if v is None else int(v) if isinstance(v, bool) else repr(v)
                        for v in row[1:4]
                    ),
                    row.error,
                ]
            )
            done, damaged, accepted = (
                done + 1,
                damaged + bool(row.error),
                accepted + bool(row.accepted),
            )
            if not row.error:
                extremes.add(row)
            if time.perf_counter() - said > EVERY and not sys.stderr.isatty():
                said = time.perf_counter()
                cli.log(f"{done:,} of {total:,} pictures ({done / (said - began):.0f} a second)")
    seconds = time.perf_counter() - began
    whole = done - damaged
    share = (
        f"; {accepted:,} accepted ({100 * accepted / whole:.1f} %)"
        if stored.calibration and whole
        else ""
    )
    cli.log(
        f"{whole:,} pictures scored in {seconds:.1f} s{share}"
        + (f"; {damaged:,} damaged, see the column error" if damaged else "")
    )
    cli.log(f"scores: {out_dir / 'scores.csv'}")
    if flags.sheet and whole:
        parts = {
            f"Least ID-like of {whole:,} pictures ({stored.detector.name})": extremes.least,
            "Most ID-like": extremes.most,
        }
        cli.log(f"contact sheet: {pictures.sheet(parts, out_dir / 'contact_sheet.png', folder)}")


def found(path: Path) -> tuple[Path, list[str] | None]:
    """(folder, None) for a folder, (its folder, [name]) for a single picture."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise InputError(f"no folder or picture '{path}'; -input takes the path of one")
    return path, None


def load_network(stored: detector_file.Stored, flags):
    """The network that the detector belongs to: built as its file says, with the weights of -checkpoint or of the fit."""
    if not stored.arch:
        raise InputError(
            f"'{flags.detector}' does not say which network it belongs to; write it with scripts/fit_detector.py"
        )
    network = models.build(**stored.arch)
    weights = flags.checkpoint or stored.checkpoint
    if weights is None:
        return network.eval()
    if not flags.checkpoint and not Path(weights).is_file():
        raise InputError(
            f"the weights that '{flags.detector}' was fitted with are no longer in '{weights}'; give them with -checkpoint"
        )
    weights = Path(weights)
    models.checkpoints.load_into(network, weights / "best.pt" if weights.is_dir() else weights)
    return network.eval()


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
