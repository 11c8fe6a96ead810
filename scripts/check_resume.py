"""Kill a training run with SIGKILL at random moments, continue it each time, and compare its weights with those of an undisturbed run.

    python3 scripts/check_resume.py                        # 10 kills, every other one while a checkpoint is being written
    python3 scripts/check_resume.py -processes 2           # under torchrun; one process of the job is killed

The run has everything that a resume can forget: dropout, augmentation, momentum, a plateau schedule, a moving average of the weights,
BatchNorm. Exit code 0 only if every weight of last.pt and best.pt is equal to the bit. Writes docs/data/check_resume.json.
"""
from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from ood import cli, record, runs  # noqa: E402

RECIPE = ("-device", "cpu", "-arch", "small_wideresnet", "-model_args", "dropout=0.3", "-limit", "400", "-batch_size", "32", "-schedule", "plateau",
          "-patience", "0", "-ema", "0.9", "-epochs", "20", "-resume")
WRITING = (".last.pt.tmp", ".best.pt.tmp")


def main() -> int:
    parser = cli.Parser("Kill a run at random moments and compare its end with that of an undisturbed one.")
    parser.flag("-kills", type=int, help="how many", default=10)
    parser.flag("-processes", type=int, help="of the run; more than one: under torchrun", default=1)
    parser.flag("-seed", type=int, help="of the moments", default=0)
    parser.flag("-no_record", action="store_true", help="print only, do not write docs/data", default=False)
    flags = parser.parse_args()
    chance, folder = random.Random(flags.seed), Path(tempfile.mkdtemp(prefix="check_resume_"))
    began = time.perf_counter()
    if start(folder / "straight", flags.processes).wait():
        raise cli.RunError("the undisturbed run failed")
    epochs = [r for r in runs.Run(folder / "straight").records() if "seconds" in r]
    seconds = sorted(r["seconds"] for r in epochs)[len(epochs) // 2]
    cli.log(f"undisturbed: {len(epochs)} epochs, {seconds:.2f} s each")

    rows = []
    while len(rows) < flags.kills:
        moment = kill(folder / "killed", flags.processes, len(rows) % 2 == 1, chance, seconds)
        done = runs.Run(folder / "killed").load("last.pt")["epoch"] if (folder / "killed" / "last.pt").exists() else 0
        if moment is None:
            raise cli.RunError(f"the run ended before kill {len(rows) + 1}; give it more epochs")
        rows.append([len(rows) + 1, moment, done])
        cli.log(f"kill {len(rows)}: {moment}, after epoch {done}")
    if start(folder / "killed", flags.processes).wait():
        raise cli.RunError("the resumed run failed")
    different = [f"{name} {key}" for name in ("last.pt", "best.pt") for key, tensor in state(folder / "straight", name).items()
                 if not torch.equal(tensor, state(folder / "killed", name)[key])]
    count = len(state(folder / "straight", "last.pt"))
    cli.log(f"{count} tensors in last.pt and best.pt: {'all equal to the bit' if not different else 'different: ' + ', '.join(different[:5])}")
    shutil.rmtree(folder)
    if not flags.no_record and not different:
        name = "check_resume" if flags.processes == 1 else f"check_resume_{flags.processes}"
        text = [f"One run of {len(epochs)} epochs (small_wideresnet with dropout and BatchNorm on 400 embedded digits, augmentation, SGD with momentum, plateau schedule, "
                f"moving average of the weights; {flags.processes} process{'es under torchrun, one of which is killed' if flags.processes > 1 else ''}) was killed with SIGKILL "
                f"at {flags.kills} moments and continued with -resume each time. All {count} tensors of last.pt and of best.pt equal those of an undisturbed run to the bit."]
        record.write(name, page="benchmarks", order=720 + flags.processes, title="Resume after a kill" + (f", {flags.processes} processes" if flags.processes > 1 else ""),
                     text=text, tables=[{"caption": "", "columns": ["kill", "moment", "whole epochs on disk"], "rows": rows}], seeds=[flags.seed], device="cpu (2 cores)",
                     seconds={"total": time.perf_counter() - began}, command=f"python3 scripts/check_resume.py -kills {flags.kills} -processes {flags.processes} -seed {flags.seed}")
    return 1 if different else 0


def start(folder: Path, processes: int, **options) -> subprocess.Popen:
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "classifier_pretraining.py"), *RECIPE, "-out_dir", str(folder)], cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options})


def kill(folder: Path, processes: int, writing: bool, chance: random.Random, seconds: float) -> str | None:
    """Begin or continue the run and kill it. Returns when that was, None if it ended before."""
    job = start(folder, processes, stdout=subprocess.PIPE, text=True)
    for line in job.stdout:
        if "run folder" in line:
            break
    if writing:
        files = [folder / name for name in WRITING]
        while not any(file.exists() for file in files) and job.poll() is None:
            pass
        time.sleep(chance.choice((0.0, 0.0, 0.002)))
    else:
        time.sleep(2 * seconds * chance.random())
    if job.poll() is not None:
        return None
    file = next((name[1:-4] for name in WRITING if (folder / name).exists()), None)
    os.kill(chance.choice(workers(job)) if processes > 1 else job.pid, signal.SIGKILL)
    job.stdout.close()
    job.wait()
    left = next((name[1:-4] for name in WRITING if (folder / name).exists()), None)
    return f"while {left or file} was written" if left or file else "between checkpoints"


def workers(job: subprocess.Popen) -> list[int]:
    """Process ids of a torchrun's processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == job.pid:
                found.append(int(stat.parent.name))
        except OSError:
            pass
    return sorted(found)


if __name__ == "__main__":
    cli.run(main)
