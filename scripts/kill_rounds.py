"""Kill trainings, evaluations and downloads at random moments, and check what the next run makes.

    python3 scripts/kill_rounds.py           # 20 trainings, 10 evaluations, 10 downloads
    python3 scripts/kill_rounds.py -trainings 3 -evaluations 2 -downloads 2 -seed 7

Each round starts the real script on embedded images, sends it SIGKILL at a random moment, and runs
it again to its end. Then three things must hold:

    training     best.pt, last.pt and the log are those of a run that nobody killed, bit for bit
    evaluation   metrics.csv and all scores are, from the cache that the killed run left
    download     all unpacked files are

and no file may be left that the undisturbed run did not leave, too. Prints a line per round. Exit
code: 0 all rounds held, 1 one did not, 2 bad input.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import torch

from ood import cli
from ood.config import InputError

TRAINING = ("-device", "cpu", "-arch", "small_wideresnet", "-width", "1", "-limit", "400")
TRAINING += ("-epochs", "8", "-batch_size", "32", "-model_args", "dropout=0.3", "-ema", "0.9")
TRAINING += ("-schedule", "plateau", "-patience", "1", "-resume")
EVALUATION = ("-device", "cpu", "-limit", "600", "-detectors", "msp", "energy", "knn", "odin")

# Fetches and unpacks one archive, as scripts/download_data.py does for a registered set.
DOWNLOAD = """
import sys
from pathlib import Path
from ood.data.fetch import obtain
from ood.data.registry import Archive, DatasetInfo
url, sha256, size, folder = sys.argv[1:]
archive = Archive((url,), "toy", inside="toy", sha256=sha256, bytes=int(size))
row = DatasetInfo("toy", "ood", "folder", ("toy",), {"test": ("",)}, archives=(archive,))
print("begun", flush=True)
outcome = obtain.obtain(row, Path(folder))
sys.exit(0 if outcome.state in ("there", "done") else print(outcome))
"""

parser = cli.Parser("Kill runs at random moments and check what the next run makes.")
parser.flag("-trainings", type=int, help="rounds of training", default=20)
parser.flag("-evaluations", type=int, help="rounds of evaluation, with a cache", default=10)
parser.flag("-downloads", type=int, help="rounds of download", default=10)
parser.flag("-seed", type=int, help="of the moments", default=0)
parser.flag("-work_dir", help="keep everything here; default: a temporary folder, removed")


@dataclass
class Kind:
    """One kind of round.

    Attributes:
        command: folder -> the command that works in this folder.
        line: how the line of its output begins after which the kills may come.
        content: folder -> {name: digest} of what must be bit-identical.
    """

    name: str
    command: Callable[[Path], list[str]]
    line: str
    content: Callable[[Path], dict[str, str]]


def main() -> int:
    flags = parser.parse_args()
    counts = (flags.trainings, flags.evaluations, flags.downloads)
    if min(counts) < 0:
        raise InputError("a number of rounds is negative")
    chance = random.Random(flags.seed)
    with tempfile.TemporaryDirectory(prefix="kill_rounds_") as temporary, Server() as url:
        work = Path(flags.work_dir or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        failed = {}
        if flags.evaluations:
            train_classifier(work / "classifier")
        for kind, count in zip(kinds(work, url), counts):
            if count:
                failed[kind.name] = rounds(kind, count, work / kind.name, chance)
    cli.log(json.dumps({"rounds": sum(counts), "failed": failed}))
    return 1 if any(failed.values()) else 0


def train_classifier(folder: Path) -> None:
    """Train the network that the evaluations look at, unless it is there."""
    if not (folder / "best.pt").is_file():
        flags = ("-device", "cpu", "-limit", "600", "-epochs", "2", "-out_dir", str(folder))
        finish([sys.executable, "classifier_pretraining.py", *flags])


def kinds(work: Path, url: str) -> Iterable[Kind]:
    """Yield the three kinds. The second evaluates the network in work/classifier."""
    python = [sys.executable]

    def training(folder: Path) -> list[str]:
        return [*python, "classifier_pretraining.py", *TRAINING, "-out_dir", str(folder)]

    yield Kind("training", training, "360 training", trained)

    def evaluation(folder: Path) -> list[str]:
        weights = f"{work}/classifier/best.pt"
        config = ("-config", "configs/mnist5k_small_cnn.json", "-checkpoint", weights)
        places = ("-cache_dir", f"{folder}/cache", "-out_dir", f"{folder}/results")
        return [*python, "eval_ood.py", *config, *EVALUATION, *places]

    yield Kind("evaluation", evaluation, "device", evaluated)

    def download(folder: Path) -> list[str]:
        return [*python, "-c", DOWNLOAD, url, Server.sha256, str(len(Server.archive)), str(folder)]

    yield Kind("download", download, "begun", files)


def rounds(kind: Kind, count: int, folder: Path, chance: random.Random) -> int:
    """Do the rounds of one kind. Returns how many failed."""
    straight = folder / "straight"
    begun = time.monotonic()
    span = finish(kind.command(straight), kind.line)
    wanted, names = kind.content(straight), listed(straight)
    cli.log(
        f"{kind.name}: undisturbed in {time.monotonic() - begun:.1f} s, {span:.1f} s of it open"
    )
    failed = number = 0
    while number < count:
        killed = folder / f"round_{number + 1}"
        moment = chance.uniform(0, span)
        if not kill(kind.command(killed), kind.line, moment):
            span *= 0.8  # it ended before: the machine has become faster
            remove(killed)
            continue
        number += 1
        left = len(listed(killed) - names)
        finish(kind.command(killed))
        same, more = kind.content(killed) == wanted, sorted(listed(killed) - names)
        failed += not same or bool(more)
        verdict = "bit-identical" if same else "DIFFERENT"
        cli.log(
            f"{kind.name} {number}/{count}: killed after {moment:.2f} s, {left} half-made files; "
            f"then {verdict}, {len(more)} left over{': ' + ', '.join(more[:3]) if more else ''}"
        )
        if same and not more:
            remove(killed)
    return failed


def finish(command: list[str], line: str | None = None) -> float:
    """Run a command to its end. Returns the seconds from the line on. Raises RunError."""
    output, since = [], time.monotonic()
    with start(command) as process:
        for text in process.stdout:
            output.append(text)
            if line and text.startswith(line):
                since, line = time.monotonic(), None
    if process.returncode:
        raise cli.RunError(f"{' '.join(command[:3])} failed: {''.join(output[-3:]).strip()}")
    return time.monotonic() - since


def kill(command: list[str], line: str, moment: float) -> bool:
    """Kill a command so many seconds after the line. Returns False if it had ended before."""
    with start(command) as process:
        for text in process.stdout:
            if text.startswith(line):
                break
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    return process.returncode == -signal.SIGKILL


def start(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def trained(folder: Path) -> dict[str, str]:
    """Digest the weights, the state of the training, and the log without its times."""
    found = {}
    for name in ("best.pt", "last.pt"):
        content = torch.load(folder / name, map_location="cpu", weights_only=True)
        found[name] = digest(repr(sorted(flat(content))).encode())
    times = ("seconds", "images_per_s")
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(text) for text in lines]
    epochs = [{k: v for k, v in r.items() if k not in times} for r in records if "epoch" in r]
    return {**found, "log.jsonl": digest(json.dumps(epochs).encode())}


def flat(value, name: str = "") -> Iterable[tuple[str, str]]:
    """Yield (name, text or digest) of everything in a nested content."""
    if isinstance(value, torch.Tensor):
        yield name, digest(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(entry, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from flat(entry, f"{name}/{number}")
    else:
        yield name, repr(value)


def evaluated(folder: Path) -> dict[str, str]:
    """Digest metrics.csv, and every score: an .npz file holds the time it was written at."""
    import numpy as np

    found = {"metrics.csv": digest((folder / "results" / "metrics.csv").read_bytes())}
    for path in (folder / "results" / "scores").glob("*.npz"):
        with np.load(path) as scores:
            found |= {f"{path.name}/{key}": digest(scores[key].tobytes()) for key in scores}
    return found


def files(folder: Path) -> dict[str, str]:
    """Digest every image."""
    paths = sorted(folder.glob("toy/**/*"))
    return {str(p.relative_to(folder)): digest(p.read_bytes()) for p in paths if p.is_file()}


def listed(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remove(folder: Path) -> None:
    """Remove a folder of this script's own."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    if folder.is_dir():
        folder.rmdir()


def make_archive() -> bytes:
    """Make a .tar.gz of 400 files of random bytes, always the same."""
    chance, stream = random.Random(1), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for number in range(400):
            member = tarfile.TarInfo(f"toy/{number % 4}/{number:03d}.png")
            member.size = 20_000
            archive.addfile(member, io.BytesIO(chance.randbytes(member.size)))
    return stream.getvalue()


class Server:
    """A slow HTTP server on this machine that gives one archive, with ranges. A context manager."""

    archive = make_archive()
    sha256 = digest(archive)

    def __enter__(self) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.close_connection = True
                first = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
                body = Server.archive[first:]
                self.send_response(206 if first else 200)
                if first:
                    last = len(Server.archive) - 1
                    self.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
                self.send_header("ETag", f'"{Server.sha256[:8]}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                for at in range(0, len(body), 2**18):
                    try:
                        self.wfile.write(body[at : at + 2**18])
                    except OSError:  # the other side was killed
                        return
                    time.sleep(0.05)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/toy.tar.gz"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    cli.run(main)
