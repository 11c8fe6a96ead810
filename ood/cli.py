"""What every script shares: flags, exit codes, device, seed, progress bars and log lines."""

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
from ood.config import InputError, check_seed, nearest

OTHERS_WAIT = 10.0  # seconds before a process other than the first says what went wrong
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
LOST = "another process of this job has ended or cannot be reached"


class Parser(argparse.ArgumentParser):
    """argparse with `-flag` and `--flag` alike, no guessed prefixes, and defaults in the help.

    A flag without a default is None when it is not given, so that the config's value can take its
    place. The help text then says itself what the default is.
    """

    def __init__(self, description: str, epilog: str | None = None):
        super().__init__(
            description=description, epilog=epilog, allow_abbrev=False, formatter_class=_Formatter
        )
        self._flags: set[str] = set()

    def flag(
        self, name: str, *, help: str, default=None, aliases: tuple[str, ...] = (), **options
    ) -> None:
        """Declare `-name` and `--name`, and the aliases in both styles.

        Args:
            default: returned when the flag is not given; unless None, the help shows it.
            options: of argparse's add_argument.
        """
        names = [dash + n.lstrip("-") for n in (name, *aliases) for dash in ("-", "--")]
        self._flags.update(names)
        shown = "" if default is None or "default" in help else f" [default: {default}]"
        options.setdefault("dest", name.lstrip("-").replace("-", "_"))
        one_value = options.get("action") in (None, "store", "append")
        if one_value:
            options.setdefault("type", _text)
        if one_value and not options.keys() & {"nargs", "metavar", "choices"}:
            options["metavar"] = name.lstrip("-").upper()
        text = (help + shown).replace("%", "%%")
        self.add_argument(*names, default=default, help=text, **options)

    def _get_option_tuples(self, option_string: str) -> list:
        """Take no beginning of a flag for the flag: argparse guesses those with a single dash.

        (allow_abbrev=False rules out `--epoc` for `--epochs`, but not `-epoc`.)
        """
        return []

    def error(self, message: str):
        for word in sys.argv[1:]:
            if word.startswith("-") and word.split("=")[0] not in self._flags and word in message:
                message += nearest(word, sorted(self._flags))
        self.exit(2, f"{self.prog}: error: {message}; `python3 {self.prog} -h` lists the flags\n")


def _text(value: str) -> str:
    """Refuse the empty text, which would pass for a flag that was not given."""
    if not value:
        raise argparse.ArgumentTypeError("it is empty; leave the flag out to use its default")
    return value


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=120)

    def _format_action_invocation(self, action):
        """Show the single-dash spelling only: `-config CONFIG`."""
        single = [s for s in action.option_strings if not s.startswith("--")]
        if not single:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return ", ".join(single)
        return f"{', '.join(single)} {self._format_args(action, action.dest.upper())}"


def run(
    main: Callable[[], int | None],
    bad_input: tuple[type[Exception], ...] = (),
    *,
    processes: str | None = None,
) -> None:
    """Run a script's main and exit: 0 done, 1 failed, 2 bad input, 130 interrupted.

    Bad input and failures with a known reason (RunError) print one line on stderr.

    Args:
        main: the script; returns its exit code, None for 0.
        bad_input: further exceptions that mean bad input.
        processes: "many" if torchrun may start the script in several processes. Otherwise such a
            start is bad input, and this text says what to do instead.
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
            _say_error(RunError(f"{LOST}; a training run continues with -resume"))
        else:
            traceback.print_exc()
        code = 1
    sys.exit(code)


def keep_freed_memory() -> None:
    """Let the C allocator keep freed memory for the next tensors.

    By default glibc maps every tensor above 128 KiB anew, and the kernel must clear its pages. In
    a forward pass on the CPU that can take longer than the arithmetic. glibc keeps blocks of up to
    32 MiB; larger ones get huge pages. Without glibc this has no effect.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large tensor
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 64 << 20)


class RunError(RuntimeError):
    """A run failed for a known reason (a non-finite loss, a full disk): one line, exit code 1."""


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`; None: cuda:0 where there is one, else the CPU.

    Under torchrun every process of a machine takes a GPU of its own, the first one `name`.

    Raises: InputError for a device that is not there.
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
            own = distributed.launched() == 1 or device.index == distributed.local_rank() == 0
            what = (
                f"-device '{name}'" if own else f"{device} for process {distributed.local_rank()}"
            )
            raise InputError(
                f"{what} is not here: {torch.cuda.device_count()} CUDA device(s) found; "
                "leave the flag out or use -device cpu"
            )
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"-device '{name}' is not here; use -device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"-device '{name}' is not supported; use cpu, cuda:0, cuda:1, ... or mps")
    return device


def describe_device(device: torch.device) -> str:
    """Return text such as 'cuda:0 (NVIDIA H100)' or 'cpu (2 threads)'.

    Several processes add their number: 'cpu (1 threads) x 4 processes'.
    """
    many = f" x {distributed.world()} processes" if distributed.world() > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){many}"
    if device.type == "cpu":
        return f"{device} ({torch.get_num_threads()} threads){many}"
    return str(device)


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch; `deterministic` also asks torch for deterministic kernels.

    Raises: InputError for a seed that is negative or needs more than 63 bits.
    """
    check_seed(seed, "-seed")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def log(line: str) -> None:
    """Print one line on stdout, at once; of several processes only rank 0 prints."""
    if distributed.first():
        print(line, flush=True)


def progress(
    iterable: Iterable, label: str, total: int | None = None, unit: str = "batch", scale: int = 1
) -> Iterator:
    """Iterate over `iterable` with a bar on stderr, if stderr is a terminal.

    The `progress` package draws epochs, folds and runs; tqdm draws everything else.

    Args:
        label: text before the bar.
        total: steps; None: len(iterable), where it has one.
        unit: what is counted.
        scale: units per step (a batch of 256 images: unit 'images', scale 256).
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if not sys.stderr.isatty() or not distributed.first():
        yield from iterable
    elif unit in ("epoch", "fold", "run"):
        from progress.bar import Bar

        suffix = "%(index)d/%(max)d " + unit + "s, %(eta_td)s left"
        with Bar(label, max=total or 0, suffix=suffix, file=sys.stderr) as bar:
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
    """Print an error as one line on stderr.

    An error that all processes meet is printed by rank 0: the others wait, and torchrun ends them
    when rank 0 has gone.
    """
    who = os.path.basename(sys.argv[0])
    if distributed.rank():
        time.sleep(OTHERS_WAIT)
        who += f" (process {distributed.rank()} of {distributed.world()})"
    print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
