"""Train leave-out classifiers: every fold of every network on every data set.

    python3 train_all.py                # the paper's 20 models:
                                        # 5 folds x {densenet, wideresnet} x {cifar10, cifar100}
    python3 train_all.py -dry_run       # print the commands and what is done already
    python3 train_all.py -in_dataset cifar10 -arch densenet -devices cuda:0 cuda:1
    python3 train_all.py -config configs/mnist5k_small_leaveout.json
                                        # five folds on embedded images, CPU

Each model goes to checkpoints/<data set>_fold_<f>_<network>_checkpoint. Finished models are
skipped, interrupted ones are resumed. A model that fails does not stop the rest; it is named at the
end. With one device the folds are trained in this process, one after the other. With several, each
device takes the next fold as soon as it is free (`-devices cpu cpu`: two at a time on a CPU).
"""

from __future__ import annotations

import dataclasses
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import ood

ood.catch_interrupts()  # before torch loads

import torch

import models
from ood import cli, methods
from ood.config import InputError, build, merge, read_json, split
from ood.methods import leaveout
from ood.methods.leaveout import training
from ood.training import runs

ROOT = Path(__file__).resolve().parent
DATASETS = ("cifar10", "cifar100")
NETWORKS = ("densenet", "wideresnet")
OVERRIDES = ("epochs", "batch_size", "lr", "seed", "precision")
# Flags that ood_training.py gets, too.
PASSED_ON = (*OVERRIDES, "limit", "data_dir", "checkpoints_dir", "download")

parser = cli.Parser(
    "Train every fold of the leave-out classifiers.",
    "Exit code: 0 all trained or finished before, 1 one failed, 2 bad input.",
)
parser.flag(
    "-in_dataset",
    nargs="+",
    choices=DATASETS,
    aliases=("in-dataset",),
    metavar="NAME",
    help="in-distribution sets; default: cifar10 cifar100",
)
parser.flag(
    "-arch",
    nargs="+",
    choices=NETWORKS,
    metavar="NAME",
    help="networks; default: densenet wideresnet",
)
parser.flag(
    "-config", nargs="+", metavar="FILE", help="these configs instead of -in_dataset and -arch"
)
parser.flag("-folds", nargs="+", type=int, metavar="F", help="1-based; default: all")
parser.flag(
    "-devices",
    nargs="+",
    metavar="DEVICE",
    aliases=("device",),
    help="one or more, e.g. cuda:0 cuda:1; default: cuda:0 where there is one, else cpu",
)
parser.flag(
    "-gpu", help="numbers of GPUs with commas, as in the repository: 0,1 is -devices cuda:0 cuda:1"
)
parser.flag("-epochs", type=int, help="default: the config's")
parser.flag("-batch_size", type=int, help="images per step and stream; default: the config's")
parser.flag("-lr", type=float, help="learning rate; default: the config's")
parser.flag(
    "-seed", type=int, help="of everything random but the folds; default: the config's, else 0"
)
parser.flag("-precision", choices=("fp32", "bf16"), help="default: the config's, else fp32")
parser.flag("-limit", type=int, help="at most so many images per set (a quick look); default: all")
parser.flag("-data_dir", help="root of the data sets", default="./datasets")
parser.flag("-checkpoints_dir", help="where the run folders are", default="./checkpoints")
parser.flag(
    "-download",
    action="store_true",
    help="fetch missing sets first (see scripts/download_data.py)",
    default=False,
)
parser.flag(
    "-dry_run", action="store_true", help="print the commands and train nothing", default=False
)


@dataclass(frozen=True, eq=False)
class Job:
    """One model."""

    config: str
    settings: leaveout.Settings
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name.removesuffix("_checkpoint")  # cifar10_fold_1_dense


def main() -> int:
    flags = parser.parse_args()
    wanted = wanted_devices(flags)
    devices = [] if flags.dry_run else [cli.choose_device(name) for name in wanted]
    jobs = list_jobs(flags)
    states, failed = {}, {}
    for job in jobs:
        try:
            states[job] = state_of(job)
        except InputError as error:
            states[job] = failed[job] = str(error)
        if flags.dry_run:
            cli.log(f"{shlex.join(command(job, flags, wanted[0]))}   # {states[job]}")
        elif states[job] == "finished":
            cli.log(f"{job.name}: finished, skipped")
    if flags.dry_run:
        return 1 if failed else 0
    todo = [job for job in jobs if states[job] in ("new", "begun")]
    skipped = sum(state == "finished" for state in states.values())
    cli.log(f"{len(todo)} of {len(jobs)} models to train on {', '.join(map(str, devices))}")

    begun = time.perf_counter()
    train = train_here if len(devices) == 1 else train_apart
    ended = cli.progress(train(todo, devices, flags), "folds", total=len(todo), unit="fold")
    for number, (job, problem) in enumerate(ended, 1):
        how = f"failed: {problem}" if problem else f"trained, {job.folder}"
        cli.log(f"[{number}/{len(todo)}] {job.name}: {how}")
        if problem:
            failed[job] = problem

    trained = sum(job not in failed for job in todo)
    cli.log(
        f"{len(jobs)} models: {trained} trained in {time.perf_counter() - begun:.0f} s, "
        f"{skipped} finished before, {len(failed)} failed"
    )
    for job, problem in failed.items():
        print(f"train_all.py: failed: {job.name}: {problem}", file=sys.stderr)
    return 1 if failed else 0


def list_jobs(flags) -> list[Job]:
    """List the models: networks x data sets x folds, or the folds of the configs.

    Every config is read and checked before anything is trained.
    """
    if flags.config and (flags.in_dataset or flags.arch):
        raise InputError("give -config, or -in_dataset and -arch, not both")
    configs = flags.config or [
        os.path.relpath(ROOT / "configs" / f"{dataset}_{arch}_leaveout.json")
        for arch in flags.arch or NETWORKS
        for dataset in flags.in_dataset or DATASETS
    ]
    jobs = []
    for config in configs:
        values = read_json(config)
        if values.get("method") != "leaveout":
            raise InputError(
                f"{config} is no config of leave-out classifiers "
                f"(method is {values.get('method')!r}, not 'leaveout')"
            )
        overrides = {name: getattr(flags, name) for name in OVERRIDES}
        settings = build(
            leaveout.Settings, merge(split(values, leaveout.Settings, config)[1], overrides), config
        )
        for fold in flags.folds or range(1, settings.folds + 1):
            one = dataclasses.replace(settings, fold=fold)
            leaveout.check(one)
            jobs.append(
                Job(config, one, Path(flags.checkpoints_dir) / leaveout.folder_name(one, fold))
            )
    twice = {job.folder for job in jobs if sum(other.folder == job.folder for other in jobs) > 1}
    if twice:
        raise InputError(
            f"two models would go to '{sorted(twice)[0]}': a fold or config is named twice"
        )
    return jobs


def state_of(job: Job) -> str:
    """Return 'finished', 'begun' or 'new'. Raises InputError for a folder of other settings."""
    if runs.holds_run(job.folder):
        training.continued(runs.Run(job.folder), job.settings)
        return "finished" if training.finished(job.folder, job.settings.epochs) else "begun"
    return "finished" if (job.folder / leaveout.WEIGHT_FILES[1]).is_file() else "new"


def command(job: Job, flags, device: str | None) -> list[str]:
    """Return the command that trains this one model."""
    words = [
        "python3",
        os.path.relpath(ROOT / "ood_training.py"),
        "-config",
        job.config,
        "-fold",
        str(job.settings.fold),
        "-out_dir",
        str(job.folder),
        "-resume",
    ]
    for name in PASSED_ON:
        value = getattr(flags, name)
        if value is not None and value is not False and value != parser.get_default(name):
            words += [f"-{name}"] if value is True else [f"-{name}", str(value)]
    return words + (["-device", device] if device else [])


def train_here(jobs: list[Job], devices: list[torch.device], flags):
    """Train one after the other in this process. Yields (job, what went wrong or None)."""
    for job in jobs:
        context = methods.Context(
            models,
            device=devices[0],
            data_dir=flags.data_dir,
            checkpoints_dir=flags.checkpoints_dir,
            out_dir=job.folder,
            resume=True,
            download=flags.download,
            limit=flags.limit,
            progress=cli.progress,
            log=cli.log,
        )
        problem = None
        try:
            methods.get("leaveout").train(job.settings, context)
        except (InputError, cli.RunError, models.ModelError, models.CheckpointError) as error:
            problem = " ".join(str(error).split())
        except Exception as error:  # a bug or a full GPU: the other folds may still be trained
            traceback.print_exc()
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield job, problem


def train_apart(jobs: list[Job], devices: list[torch.device], flags):
    """Give each device the next model when it is free, in a process of its own.

    Yields: (job, what went wrong or None) as they end.
    """
    waiting, done = queue.Queue(), queue.Queue()
    for job in jobs:
        waiting.put(job)
    on_cpu = sum(device.type == "cpu" for device in devices)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if on_cpu:
        # Threads that spin while they wait would take the cores from each other.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // on_cpu)))
    running: set[subprocess.Popen] = set()

    def work(device: str) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((job, run_command(job, device)))

    def run_command(job: Job, device: str) -> str | None:
        words = [sys.executable, *command(job, flags, device)[1:]]
        last = ""
        try:
            with subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            ) as process:
                running.add(process)
                for line in process.stdout:
                    last = line.strip() or last
                    cli.log(f"{device} {job.name} | {line.rstrip()}")
                running.discard(process)
            return f"exit code {process.returncode}: {last}" if process.returncode else None
        except OSError as error:
            return str(error)

    threads = [
        threading.Thread(target=work, args=(str(device),), daemon=True) for device in devices
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            yield done.get()
    finally:
        waiting.queue.clear()  # interrupted: the runs continue next time
        for process in list(running):
            process.terminate()


def wanted_devices(flags) -> list[str | None]:
    if flags.gpu is not None and flags.devices:
        raise InputError("give -devices or -gpu, not both")
    if flags.gpu is not None:
        return [f"cuda:{number.strip()}" for number in flags.gpu.split(",")]
    return flags.devices or [None]


if __name__ == "__main__":
    cli.run(
        main,
        (models.ModelError, models.CheckpointError),
        processes="give it -devices, one fold each; "
        "for one fold on several: torchrun ... ood_training.py -fold F",
    )
