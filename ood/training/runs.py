"""Run folders: one folder per training run with config.json, log.jsonl, last.pt and best.pt, every file written atomically.

A folder is `checkpoints/<stem>_<timestamp>` or what -out_dir names. It holds a run as soon as it has a config.json, and a run is
never overwritten: `create` refuses, `reopen` continues. `find_newest` finds a run by the exact values of its configuration, never
by parts of its name (a name with 'cifar10' in it is also one with 'cifar100' in it). Of several processes only rank 0 writes.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from ood import distributed
from ood.cli import RunError
from ood.config import InputError

FILES = ("config.json", "log.jsonl", "last.pt", "best.pt")


class Run:
    """One run folder. `config` is what config.json holds."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last.pt", self.folder / "best.pt"
        self.config: dict = _read_config(self.folder) or {}

    def save(self, name: str, payload: dict) -> None:
        """Write `payload` (tensors, numbers, strings, containers of them) with torch.save, whole or not at all."""
        if not distributed.first():
            return
        with _replacing(self.folder / name) as temporary:
            torch.save(payload, temporary)

    def load(self, name: str) -> dict:
        """Read a file of `save` on the CPU, without executing anything in it. Raises InputError when it is not whole."""
        path = self.folder / name
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            OSError,
            EOFError,
            RuntimeError,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
            pickle.UnpicklingError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"cannot read '{path}' ({reason}); delete that file and run again with -resume to start it anew"
            ) from None

    def log(self, record: dict) -> None:
        """Append one JSON line to log.jsonl, in the order of the keys given."""
        if distributed.first():
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict]:
        """The lines of log.jsonl; a half-written last line (a killed run) is left out."""
        try:
            lines = (self.folder / "log.jsonl").read_text().splitlines()
        except OSError:
            return []
        return [record for record in map(_parse, lines) if record is not None]

    def rewind(self, epoch: int) -> None:
        """Keep the log up to `epoch`: what a killed run wrote after its last.pt will be written again."""
        if not distributed.first():
            return
        kept = [r for r in self.records() if r.get("epoch", 0) <= epoch and r.get("event") != "end"]
        with _replacing(self.folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))

    def update(self, **values) -> None:
        """Change values in config.json (the number of epochs of a run that is prolonged)."""
        self.config = {**self.config, **values}
        if not distributed.first():
            return
        with _replacing(self.folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.config, indent=2) + "\n")


def require_tensorboard() -> None:
    """Raises InputError when TensorBoard is not installed; to be called before a run folder is made."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "-tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None


@contextmanager
def board(run: Run, wanted: bool):
    """A function (epoch, record) that writes the record's numbers as TensorBoard events into run.folder/tensorboard, or None."""
    if not wanted or not distributed.first():
        yield None
        return
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    done = max((r.get("epoch", 0) for r in run.records()), default=0) if run.last.exists() else 0
    with SummaryWriter(str(run.folder / "tensorboard"), purge_step=done + 1) as writer:
        yield (
            lambda epoch, record: (
                [
                    writer.add_scalar(name, value, epoch)
                    for name, value in record.items()
                    if name not in ("epoch", "best")
                ]
                and None
            )
        )


def holds_run(folder: str | Path) -> bool:
    return any((Path(folder) / name).exists() for name in FILES)


def create(
    stem: str, config: dict, *, root: str | Path = "checkpoints", out_dir: str | Path | None = None
) -> Run:
    """Make the folder of a new run and write its config.json (plus `started`, by which the newest run is found).

    Args:
        stem: first part of the folder's name, `<id>_<arch>...`; the time follows.
        config: the resolved configuration, plain JSON values. Its `kind` ("classifier", "heatmap", ...) says what was trained.
        out_dir: the folder itself, instead of root/stem_time.
    Raises: InputError when the folder holds a run already or cannot be made.
    """

    def make() -> tuple[Path, dict]:
        now = datetime.now()
        if out_dir is not None and holds_run(out_dir):
            raise InputError(
                f"'{out_dir}' holds a run already; add -resume to continue it, or give another -out_dir"
            )
        try:
            if out_dir is not None:
                folder = Path(out_dir)
                folder.mkdir(parents=True, exist_ok=True)
            else:
                folder = _unused(Path(root) / f"{stem}_{now:%Y_%m_%d_%H_%M_%S}")
            run = Run(folder)
            run.update(**config, started=now.isoformat())
        except (OSError, RunError) as error:
            raise InputError(
                f"cannot make the run folder '{out_dir or root}': {error}; give another -out_dir"
            ) from None
        return folder, run.config

    folder, stored = distributed.from_first(
        make
    )  # a folder on another machine's disk would have no config.json
    run = Run(folder)
    run.config = stored
    return run


def reopen(out_dir: str | Path) -> Run:
    """The run in a folder, to be continued. Raises InputError when its config.json is not readable."""
    run = Run(out_dir)
    for name in FILES if distributed.first() else ():
        _temporary(run.folder / name).unlink(
            missing_ok=True
        )  # left by a run that was killed while it wrote
    if not run.config:
        raise InputError(
            f"'{out_dir}' holds files of a run but no readable config.json; give another -out_dir"
        )
    return run


def agree(stored: dict, given: dict, free: tuple[str, ...], where: str | Path) -> dict:
    """The stored configuration, with what may change on the way (`free`) taken from `given`.

    Raises: InputError when `given` contradicts the stored run in anything else: its weights would be of neither configuration.
    """
    for key, value in given.items():
        if key not in free and key in stored and _plain(value) != stored[key]:
            raise InputError(
                f"the run in '{where}' has {key} {stored[key]!r}, now {key} {value!r} is asked for; "
                f"leave -{key} out to continue it, or leave -resume out to start a new run"
            )
    return {**stored, **{key: value for key, value in given.items() if key in free}}


def find_newest(
    root: str | Path, match: dict, *, file: str = "best.pt", command: str | None = None
) -> Run:
    """The newest run below `root` whose config.json has exactly the values of `match` and which holds `file`.

    Args:
        match: field -> value; None also fits a field that the run's configuration does not have.
        command: what trains such a run; ends the message when there is none.
    Raises: InputError when no run fits.
    """
    wanted = _plain(match)
    fitting, unfinished = [], 0
    for folder in sorted(Path(root).iterdir()) if Path(root).is_dir() else []:
        config = _read_config(folder)
        if config and all(config.get(key) == value for key, value in wanted.items()):
            if (folder / file).is_file():
                fitting.append((str(config.get("started", "")), folder))
            else:
                unfinished += 1
    if not fitting:
        fields = ", ".join(f"{key}={value}" for key, value in wanted.items() if value is not None)
        also = f" ({unfinished} without a {file} yet)" if unfinished else ""
        how = f"; train one: {command}" if command else ""
        raise InputError(f"no run with {fields} in '{root}'{also}{how}")
    return Run(max(fitting)[1])


def _unused(path: Path) -> Path:
    """Make `path`, or `path_2`, ... when another run began in the same second."""
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            if not candidate.is_dir():
                raise
    raise FileExistsError(f"{path} to {path}_999 are taken")


@contextmanager
def _replacing(path: Path):
    """A temporary file in the same folder that takes the place of `path` when the block ends well."""
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write '{path}': {error}; what was there before is untouched"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _read_config(folder: Path) -> dict | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _plain(value):
    """As JSON gives it back (tuples become lists)."""
    return json.loads(json.dumps(value))
