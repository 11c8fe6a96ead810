"""What every script shares: flags in both dash styles, exit codes, device, seed, progress bars and log lines."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from ood import distributed
from ood.config import InputError, nearest

OTHERS_WAIT = 10.0  # seconds before a process other than the first says what went wrong
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


class Parser(argparse.ArgumentParser):
    """argparse where `-flag` and `--flag` are the same, prefixes are never guessed and `-h` shows every default.

    Every flag defaults to None ('not given'), so that a value of the config file can stand behind it; `default` is the text
    that the help shows.
    """

    def __init__(self, description: str, epilog: str | None = None):
        super().__init__(
            description=description, epilog=epilog, allow_abbrev=False, formatter_class=_Formatter
        )
        self._flags: set[str] = set()

    def flag(
        self, name: str, *, help: str, default=None, aliases: tuple[str, ...] = (), **options
    ) -> None:
        """Declare `-name` and `--name` (and aliases in both styles). `default` is shown and returned when it is not None."""
        names = [dash + n.lstrip("-") for n in (name, *aliases) for dash in ("-", "--")]
        self._flags.update(names)
        shown = "" if default is None or "default" in help else f" [default: {default}]"
        options.setdefault("dest", name.lstrip("-").replace("-", "_"))
        if options.get("action") in (None, "store", "append") and not options.keys() & {
            "nargs",
            "metavar",
            "choices",
        }:
            options["metavar"] = name.lstrip("-").upper()
        self.add_argument(
            *names, default=default, help=(help + shown).replace("%", "%%"), **options
        )

    def error(self, message: str):
        for word in sys.argv[1:]:
            if word.startswith("-") and word.split("=")[0] not in self._flags and word in message:
                message += nearest(word, sorted(self._flags))
        self.exit(2, f"{self.prog}: error: {message}; `python3 {self.prog} -h` lists the flags\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=120)

    def _format_action_invocation(self, action):
        """Only the single-dash spelling: `-config CONFIG` instead of both."""
        single = [s for s in action.option_strings if not s.startswith("--")]
        if not single:
            return super()._format_action_invocation(action)
        value = (
            ""
            if action.nargs == 0
            else " " + self._format_args(action, action.metavar or action.dest.upper())
        )
        return ", ".join(single) + value


def run(
    main: Callable[[], int | None],
    bad_input: tuple[type[Exception], ...] = (),
    *,
    processes: str | None = None,
) -> None:
    """Run a script's main and exit: 0 done, 1 failed, 2 bad input (one line on stderr), 130 interrupted.

    Args:
        processes: "many" for a script that torchrun may start several times; of any other such a start is bad input, and the text
            given here says what to do instead.
    """
    keep_freed_memory()
    try:
        if processes == "many":
            distributed.begin()
        else:
            distributed.require_one(
                os.path.basename(sys.argv[0]), processes or "start it with python3"
            )
        code = main() or 0
        sys.stdout.flush()
        distributed.end(code)
    except (InputError, *bad_input) as error:
        _say_error(error)
        code = 2
    except RunError as error:
        _say_error(error)
        code = 1
    except KeyboardInterrupt:
        print("interrupted; a training run continues with -resume", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if distributed.lost(error):
            _say_error(
                RunError(
                    "another process of this job has ended or cannot be reached; a training run continues with -resume"
                )
            )
        else:
            traceback.print_exc()
        code = 1
    sys.exit(code)


def keep_freed_memory() -> None:
    """Let the C allocator reuse freed tensors instead of handing their pages back and faulting them in again.

    On glibc every tensor above 128 KiB is a fresh mapping whose pages the kernel must clear; in a forward pass on the CPU that can
    take longer than the arithmetic. Huge pages serve what is larger than the 32 MiB that glibc lets us keep. No effect elsewhere.
    """
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # read by torch at its first large allocation
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 64 << 20)


class RunError(RuntimeError):
    """A run that failed for a reason we can name (a non-finite loss, a full disk): one line, exit code 1."""


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or cuda:0 where there is one, else the CPU. Raises InputError for a device that is not there.

    Under torchrun the processes of a machine take as many GPUs, from that one on.
    """
    if name is None:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"-device '{name}' is no device; use cpu, cuda:0, cuda:1, ... or mps"
        ) from None
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + distributed.local_rank())
        if device.index >= torch.cuda.device_count():
            what = (
                f"-device '{name}'"
                if device.index == distributed.local_rank() == 0 or distributed.launched() == 1
                else f"{device} for process {distributed.local_rank()}"
            )
            raise InputError(
                f"{what} is not here: {torch.cuda.device_count()} CUDA device(s) found; leave the flag out or use -device cpu"
            )
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"-device '{name}' is not here; use -device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"-device '{name}' is not supported; use cpu, cuda:0, cuda:1, ... or mps")
    return device


def describe_device(device: torch.device) -> str:
    """'cuda:0 (NVIDIA H100)' or 'cpu (2 threads)'; of several processes the first one's, 'cpu (1 threads) x 4 processes'."""
    many = f" x {distributed.world()} processes" if distributed.world() > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){many}"
    return (
        f"{device} ({torch.get_num_threads()} threads){many}"
        if device.type == "cpu"
        else str(device)
    )


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch; `deterministic` also asks torch for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def log(line: str) -> None:
    """One greppable line on stdout, at once; of several processes rank 0 speaks."""
    if distributed.first():
        print(line, flush=True)


def progress(
    iterable: Iterable, label: str, total: int | None = None, unit: str = "batch", scale: int = 1
) -> Iterator:
    """Iterate with a bar on stderr, only on a terminal: the `progress` package for epochs and folds, tqdm for everything else.

    `scale` is how many units one step stands for (a batch of 256 images: unit 'images', scale 256).
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if not sys.stderr.isatty() or not distributed.first():
        yield from iterable
    elif unit in ("epoch", "fold", "run"):
        from progress.bar import Bar

        with Bar(
            label,
            max=total or 0,
            suffix="%(index)d/%(max)d " + unit + "s, %(eta_td)s left",
            file=sys.stderr,
        ) as bar:
            for item in iterable:
                yield item
                bar.next()
    else:
        from tqdm import tqdm

        with tqdm(
            total=None if total is None else total * scale,
            desc=label,
            unit=f" {unit}",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
        ) as bar:
            for item in iterable:
                yield item
                bar.update(scale if bar.total is None else min(scale, bar.total - bar.n))


def _say_error(error: Exception) -> None:
    """One line. What all processes find is said by rank 0: the others give it time, and torchrun ends them when it has gone."""
    who = os.path.basename(sys.argv[0])
    if distributed.rank():
        time.sleep(OTHERS_WAIT)
        who += f" (process {distributed.rank()} of {distributed.world()})"
    print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
