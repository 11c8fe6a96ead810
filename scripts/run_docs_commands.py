"""Run every command that docs/ prints, each alone, in the order of the page, in a clean clone.

    python3 scripts/run_docs_commands.py -data_dir /data           # at reduced size, some minutes
    python3 scripts/run_docs_commands.py -pages docs/results.md -only tune_detector
    python3 scripts/run_docs_commands.py -list                     # only print the commands

The clone holds what is committed. It is emptied before every command, so no command may need what
another one left behind. Flags at the end of a command make it small; nothing is recorded. A command
that needs a data set or a weight file that is not at hand is skipped with that reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from ood import cli
from ood.config import InputError

PRINTED = re.compile(r"Command: `([^`]+)`|^((?:python3|\./)\S*.*)$", re.MULTILINE)
SMALL = {  # flags that make a script quick; later ones win over those in the command
    "eval_ood.py": "-limit 60",
    "scripts/table_detectors.py": "-limit 60 -seeds 1",
    "scripts/tune_detector.py": "-limit 600",
    "scripts/reproduce_heatmap.py": "-seeds 0 -epochs 1",
    "scripts/reproduce_leaveout.py": "-seeds 0 -epochs 1 -limit 60",
    "scripts/reproduce_objectives.py": "-seeds 0 -epochs 1",
    "scripts/reproduce_segmentation.py": "-seeds 0 -train 12 -test 6 -epochs 1 -width 4",
    "scripts/reproduce_text.py": "-seeds 0 -epochs 1 -limit 300",
    "scripts/reproduce_vmdls_mnist.py": "-epochs 1 -ae_epochs 1 -limit 300",
    "scripts/bench_heatmap.py": "-arch small_cnn -id_images 64 -ood_images 16",
    "scripts/bench_leaveout.py": "-archs small_cnn -steps 1 -rounds 1 -batch_size 4",
    "scripts/bench_vmdls.py": "-encoders mnist_conv -images 4 -rounds 1",
    "scripts/bench_compat.py": "-arch small_cnn -images 60 -rounds 1",
    "scripts/bench_eval.py": "-arch small_cnn -images 60 -train_images 200 -rounds 1",
    "scripts/bench_memory.py": "-images 9000 -features 96 -classes 12 -detectors energy mds",
    "scripts/bench_data.py": "-limit 200 -rounds 1",
    "scripts/bench_train.py": "-archs small_cnn -batch_size 8 -steps 1 -rounds 1",
}
FILES = ("-checkpoint", "-weights", "-feature_mean")  # flags whose values are files of the authors
NO_DATA = (
    "download_data.py",
    "-download",
    "pip install --no-deps",
)  # how the message of a missing data set goes on

parser = cli.Parser(
    "Run every command that docs/ prints, each alone, in a clean clone.",
    "Exit code: 0 no command failed, 1 one failed, 2 bad input.",
)
parser.flag("-pages", nargs="+", metavar="FILE", help="pages with commands; default: docs/*.md")
parser.flag("-only", metavar="WORD", help="only commands that contain this word")
parser.flag("-data_dir", help="root of the data sets; default: none, so what needs them is skipped")
parser.flag(
    "-weights_dir", nargs="+", metavar="DIR", help="where the authors' weight files are", default=[]
)
parser.flag("-full", action="store_true", help="run the commands as they are", default=False)
parser.flag("-list", action="store_true", help="only print the commands", default=False)
parser.flag("-timeout", type=int, help="seconds that a command may take", default=1800)


class Command(NamedTuple):
    """A command as a page prints it."""

    page: Path
    line: int
    text: str

    @property
    def script(self) -> str:
        """The script that it runs, relative to the repository."""
        words = shlex.split(self.text)
        return words[1] if words[0] == "python3" else words[0].removeprefix("./")


def main() -> int:
    flags = parser.parse_args()
    if flags.timeout < 1:
        raise InputError(f"-timeout is {flags.timeout}; it must be at least 1")
    pages = [Path(page) for page in flags.pages or sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        if not page.is_file():
            raise InputError(f"no page '{page}'")
    found = [command for page in pages for command in printed(page)]
    found = [command for command in found if flags.only is None or flags.only in command.text]
    if not found:
        raise InputError("no command is printed there")
    failed = skipped = 0
    with tempfile.TemporaryDirectory(prefix="docs-commands-") as folder:
        clone = Path(folder) / "clone"
        for command in found:
            where = f"{command.page.name}:{command.line}"
            if flags.list:
                cli.log(f"{where}: {command.text}")
                continue
            began = time.perf_counter()
            reason, code = run(command, clone, flags)
            seconds = time.perf_counter() - began
            failed, skipped = failed + (code not in (0, None)), skipped + (code is None)
            state = {0: f"ok, {seconds:.0f} s", None: "skipped"}.get(code, f"FAILED ({code})")
            cli.log(f"{where}: {state}{reason and f': {reason}'} | {command.text}")
    if not flags.list:
        cli.log(f"{len(found) - failed - skipped} ran, {skipped} skipped, {failed} failed")
    return int(failed > 0)


def printed(page: Path) -> list[Command]:
    """The commands of a page, in its order."""
    text = page.read_text("utf-8")
    return [
        Command(page, text.count("\n", 0, match.start()) + 1, match[1] or match[2])
        for match in PRINTED.finditer(text)
    ]


def small(command: Command) -> list[str]:
    """The words of the command at reduced size. Raises InputError for a script without one."""
    if command.script not in SMALL:
        raise InputError(f"'{command.script}' has no reduced size in {Path(__file__).name}")
    words = [word for word in shlex.split(command.text) if word != "-record"]
    return words + shlex.split(SMALL[command.script])


def files_of(words: list[str]) -> list[str]:
    """The values of the flags FILES."""
    found, inside = [], False
    for word in words:
        if word.startswith("-"):
            inside = word in FILES
        elif inside:
            found.append(word)
    return found


def run(command: Command, clone: Path, flags) -> tuple[str, int | None]:
    """Run a command in an empty clone; a reason and the exit code, None where it was skipped."""
    words = shlex.split(command.text) if flags.full else small(command)
    anew(clone, flags.data_dir)
    for name in files_of(words):
        source = next(
            (Path(d) / name for d in flags.weights_dir if (Path(d) / name).is_file()), None
        )
        if source is None and not (clone / name).exists():
            return f"needs the file {name} (-weights_dir)", None
        if source is not None:
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).symlink_to(source.resolve())
    words = [sys.executable if word == "python3" else word for word in words]
    words[0] = str(clone / words[0]) if words[0].startswith("./") else words[0]
    environment = {**os.environ, "PYTHON": sys.executable}
    try:
        done = subprocess.run(
            words, cwd=clone, env=environment, capture_output=True, text=True, timeout=flags.timeout
        )
    except subprocess.TimeoutExpired:
        return f"not done after {flags.timeout} s", 1
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    last = said[-1] if said else ""
    if done.returncode and any(word in last for word in NO_DATA):
        return f"needs data: {last}", None
    return (last if done.returncode else ""), done.returncode


def anew(clone: Path, data_dir: str | None) -> None:
    """Make `clone` a fresh clone of what is committed, with `data_dir` as its data root."""
    if clone.exists():
        shutil.rmtree(clone)
    quietly = ["git", "-c", "advice.detachedHead=false", "clone", "-q", "--shared"]
    subprocess.run([*quietly, str(ROOT), str(clone)], check=True)
    if data_dir:
        shutil.rmtree(clone / "datasets")
        (clone / "datasets").symlink_to(Path(data_dir).resolve())


if __name__ == "__main__":
    cli.run(main)
