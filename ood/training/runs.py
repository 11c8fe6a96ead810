"""Run folders and the life of a run: begin it, continue it, find it again, say what its files hold.

A folder holds config.json, log.jsonl, last.pt and best.pt. Every file is written whole or not at
all. The folder is `checkpoints/<stem>_<timestamp>`, or what -out_dir names. It holds a run as soon
as one of these files is there. A run is never overwritten: `create` refuses, `reopen` continues.
With several processes only rank 0 writes.

What can be trained declares a `Kind`: its name, its settings, which of them may change on the way,
which of them make two runs the same. The rest is common to all:

    KIND = runs.Kind("heatmap", Settings, what="a heatmap decoder", free=("n_epochs",),
                     same=IDENTITY, length="n_epochs")

    run = KIND.to_resume(config, root, out_dir)     # -resume: the run to continue, or None
    if run:
        settings = build(Settings, KIND.continued(run, config))
    else:
        run = KIND.create(stem, config, root=root, out_dir=out_dir)
    with run.locked():
        run.begin(settings, device, {"train": images.digest}, resumed=..., train_images=len(images))
        ...
        run.save("best.pt", payload(networks, network, epoch, metrics, preprocess, size))
        ...
    KIND.newest(config, root).best                  # how an evaluation finds it

`config` is the settings as plain JSON values (`ood.config.to_dict`). A run is found by the exact
values of its configuration, never by parts of its name: a name with 'cifar10' in it may be one
with 'cifar100' in it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ood import distributed, provenance
from ood.cli import RunError
from ood.config import InputError, to_dict
from ood.data import Preprocess
from ood.files import plain, remove_left_over, replacing
from ood.training import lock

FILES = ("config.json", "log.jsonl", "last.pt", "best.pt")

# Schedules whose rates depend on the number of epochs from the first epoch on.
FIXED_LENGTH = ("cosine", "onecycle")


# ---- one folder ------------------------------------------------------------------------------


class Run:
    """One run folder. `config` is what config.json holds."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last.pt", self.folder / "best.pt"
        self.config: dict = _read_config(self.folder) or {}

    def save(self, name: str, payload: dict) -> None:
        """Write `payload` (tensors, numbers, strings, containers of them) with torch.save."""
        if not distributed.first():
            return
        with replacing(self.folder / name) as temporary:
            try:
                torch.save(payload, temporary)
            except RuntimeError as error:  # how torch.save reports a full disk
                raise OSError(str(error)) from error

    def load(self, name: str) -> dict:
        """Read a file of `save` on the CPU, without executing anything in it.

        Raises: InputError when the file is not whole.
        """
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
                f"cannot read '{path}' ({reason}); "
                "delete that file and run again with -resume to start it anew"
            ) from None

    def log(self, record: dict) -> None:
        """Append one JSON line to log.jsonl, in the order of the keys given; NaN becomes null."""
        if distributed.first():
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(record)) + "\n")

    def records(self) -> list[dict]:
        """Read the lines of log.jsonl; skip a half-written one (of a run that was killed)."""
        try:
            lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        return [record for record in map(_parse, lines) if record is not None]

    def rewind(self, epoch: int) -> None:
        """Cut the log after `epoch`: what a killed run logged after its last.pt comes again."""
        if not distributed.first():
            return
        kept = [r for r in self.records() if r.get("epoch", 0) <= epoch and r.get("event") != "end"]
        with replacing(self.folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")

    def update(self, **values) -> None:
        """Change values in config.json (e.g. the number of epochs of a run that is prolonged)."""
        self.config = {**self.config, **values}
        if not distributed.first():
            return
        with replacing(self.folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def locked(self):
        """Hold the run's lock, as a training must from its first line in the log to its last.

        Of several processes rank 0 holds it. What a killed process left half-written is removed.

        Raises: InputError when another training holds the lock.
        """
        with ExitStack() as stack:
            distributed.from_first(lambda: stack.enter_context(lock.locked(self.folder)))
            if distributed.first():
                for name in FILES:
                    remove_left_over(self.folder / name)
            yield

    def begin(
        self, settings, device: torch.device, digests: dict, *, resumed: bool, **sizes: int
    ) -> None:
        """Log what is needed to repeat the run.

        This is the command, settings, versions, machine, digests of the data, and `sizes`, the
        numbers of images.
        """
        facts = provenance.provenance(
            sys.argv, to_dict(settings), settings.seed, device, digests, {}
        )
        self.log({"event": "resume" if resumed else "start", **sizes, **facts})


def payload(
    networks: ModuleType,
    network: nn.Module,
    epoch: int,
    metrics: dict,
    preprocess: Preprocess | None = None,
    size: int | None = None,
    class_names: Sequence[str] | None = None,
    **more,
) -> dict:
    """Return what a weight file of ours holds, in the format that models/checkpoints.py reads.

    Args:
        networks: the package `models`, which names the format.
        network: its `arch` says how to build it again.
        preprocess, size: normalisation and image side that it was trained with.
        class_names: what its logits mean, in their order; None where the data set names no classes.
        more: further entries of this kind of run (a fold, a loss's centres, ...).
    """
    held = {
        "format": networks.checkpoints.OWN_FORMAT,
        "arch": network.arch,
        "state_dict": network.state_dict(),
        "epoch": epoch,
        "metrics": metrics,
    }
    if preprocess is not None:
        mean, std = list(preprocess.mean), list(preprocess.std)
        held["preprocess"] = {"mean": mean, "std": std, "size": size}
    if class_names is not None:
        held["class_names"] = [str(name) for name in class_names]
    return {**held, **more}


# ---- the life of a run -----------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a thing that can be trained declares, so that its runs are continued and found again.

    Args:
        name: `kind` in config.json.
        settings: the dataclass of its settings.
        what: with its article, for messages: "a classifier".
        free: settings that may change when a run is continued.
        same: settings that make two runs the same configuration; None: all that are not free.
        length: the setting that holds the number of epochs.
    """

    name: str
    settings: type
    what: str
    free: tuple[str, ...]
    same: tuple[str, ...] | None = None
    length: str = "epochs"

    def match(self, config: dict, **more) -> dict:
        """Return the fields of `config` by which a run is found, with `more` beside them."""
        fields = self.same
        if fields is None:
            fields = [f.name for f in dataclasses.fields(self.settings) if f.name not in self.free]
        found = {name: config[name] for name in fields if name in config}
        return {"kind": self.name, **found, **more}

    def create(
        self,
        stem: str,
        config: dict,
        *,
        root: str | Path = "checkpoints",
        out_dir: str | Path | None = None,
    ) -> Run:
        """Make a new run folder, see `create`; its config.json is `config` with the kind."""
        return create(stem, {"kind": self.name, **config}, root=root, out_dir=out_dir)

    def newest(
        self,
        config: dict,
        root: str | Path,
        *,
        file: str = "best.pt",
        command: str | None = None,
        **more,
    ) -> Run:
        """Find the newest run below `root` of exactly this configuration, see `find_newest`.

        Args: more: further fields that must fit, e.g. finished=True.
        """
        return find_newest(root, self.match(config, **more), file=file, command=command)

    def to_resume(
        self, config: dict, root: str | Path, out_dir: str | Path | None = None, **more
    ) -> Run | None:
        """Find the run that -resume continues.

        With `out_dir` it is the run in that folder, or None when there is none yet: then one
        command line both begins a run and continues it. Else it is the newest run below `root` of
        exactly this configuration (and of `more`), however far it came.

        Raises: InputError when there is no such run, or the folder holds another kind of run.
        """
        _require_name(out_dir)
        if out_dir is None:
            match = self.match(config, **more)
            found, _, near = _search(root, match, "config.json")
            if found is None:
                raise InputError(
                    f"no run of these very settings in '{root}' to resume{near}; "
                    "name its folder with -out_dir, or leave -resume out"
                )
            return reopen(found)
        if not holds_run(out_dir):
            return None
        return self.own(reopen(out_dir))

    def own(self, run: Run) -> Run:
        """Return `run`. Raises InputError when it is of another kind."""
        if run.config.get("kind") != self.name:
            raise InputError(
                f"'{run.folder}' holds a run of kind '{run.config.get('kind')}', not {self.what}"
            )
        return run

    def continued(self, run: Run, given: dict) -> dict:
        """Return the settings of `run`, with those that may change taken from `given`.

        Args: given: all settings, or only those that were asked for.
        Raises: InputError when `given` contradicts the run in a setting that may not change, or
            changes the length of a run whose learning rates depend on it.
        """
        names = {f.name for f in dataclasses.fields(self.settings)}
        stored = {name: value for name, value in self.own(run).config.items() if name in names}
        values = agree(stored, given, self.free, run.folder)
        before, now = stored.get(self.length), values.get(self.length)
        if values.get("schedule") in FIXED_LENGTH and before != now:
            raise InputError(
                f"the run in '{run.folder}' follows schedule {values['schedule']} over {before} "
                f"epochs; -epochs {now} would be another schedule: start a new run"
            )
        return values


def holds_run(folder: str | Path) -> bool:
    return any((Path(folder) / name).exists() for name in FILES)


def create(
    stem: str, config: dict, *, root: str | Path = "checkpoints", out_dir: str | Path | None = None
) -> Run:
    """Make the folder of a new run and write its config.json.

    Args:
        stem: first part of the folder's name, `<id>_<arch>...`; the time follows.
        config: the resolved configuration, plain JSON values. Its `kind` says what was trained.
            `started` is added to it: by that the newest run is found.
        out_dir: the folder itself, instead of root/stem_time.
    Raises: InputError when the folder holds a run already or cannot be made.
    """

    def make() -> tuple[Path, dict]:
        now = datetime.now()
        _require_name(out_dir)
        held = (
            f"'{out_dir}' holds a run already; add -resume to continue it, or give another -out_dir"
        )
        if out_dir is not None and holds_run(out_dir):
            raise InputError(held)
        try:
            if out_dir is not None:
                folder = Path(out_dir)
                folder.mkdir(parents=True, exist_ok=True)
            else:
                folder = _unused(Path(root) / f"{stem}_{now:%Y_%m_%d_%H_%M_%S}")
            run = Run(folder)
            run.config = {**config, "started": now.isoformat()}
            with replacing(folder / "config.json", new=True) as temporary:
                temporary.write_text(json.dumps(run.config, indent=2) + "\n", encoding="utf-8")
        except FileExistsError:
            raise InputError(held) from None
        except (OSError, RunError) as error:
            raise InputError(
                f"cannot make the run folder '{out_dir or root}': {error}; give another -out_dir"
            ) from None
        return folder, run.config

    # The other processes take config.json from rank 0: they may not see its disk.
    folder, stored = distributed.from_first(make)
    run = Run(folder)
    run.config = stored
    return run


def reopen(out_dir: str | Path) -> Run:
    """Open the run in a folder to continue it. Raises InputError without a readable config.json."""
    run = Run(out_dir)
    if not run.config:
        raise InputError(
            f"'{out_dir}' holds files of a run but no readable config.json; give another -out_dir"
        )
    return run


def agree(stored: dict, given: dict, free: tuple[str, ...], where: str | Path) -> dict:
    """Return the stored configuration, with what may change (`free`) taken from `given`.

    Raises: InputError when `given` contradicts the stored run in anything else. The weights of
        such a run would belong to neither configuration.
    """
    for key, value in given.items():
        if key not in free and key in stored and _plain(value) != stored[key]:
            raise InputError(
                f"the run in '{where}' has {key} {stored[key]!r}, now {key} {value!r} is asked for;"
                f" leave -{key} out to continue it, or leave -resume out to start a new run"
            )
    return {**stored, **{key: value for key, value in given.items() if key in free}}


def find_newest(
    root: str | Path,
    match: dict,
    *,
    file: str = "best.pt",
    command: str | None = None,
    view: Callable[[dict], dict] = dict,
) -> Run:
    """Find the newest run below `root` whose config.json has exactly the values of `match`.

    Args:
        match: field -> value; None also fits a field that the run's configuration does not have.
        file: what the run must hold.
        command: what trains such a run; ends the message when there is none.
        view: config.json -> the values to compare, where they are not simply its own.
    Raises: InputError when no run fits. The message names the run that comes nearest.
    """
    found, unfinished, near = _search(root, match, file, view)
    if found is None:
        fields = ", ".join(f"{key}={value}" for key, value in match.items() if value is not None)
        also = f" ({unfinished} without a {file} yet)" if unfinished else ""
        how = f"; train one: {command}" if command else ""
        raise InputError(f"no run with {fields} in '{root}'{also}{near}{how}")
    return Run(found)


def _search(
    root: str | Path, match: dict, file: str, view: Callable[[dict], dict] = dict
) -> tuple[Path | None, int, str]:
    """Return the newest fitting folder, how many lack `file`, and words about the nearest run."""
    wanted = _plain(match)
    fitting, unfinished, near = [], 0, []
    for folder in sorted(Path(root).iterdir()) if Path(root).is_dir() else []:
        config = _read_config(folder)
        if not config:
            continue
        config = view(config)
        differs = [key for key, value in wanted.items() if config.get(key) != value]
        started = str(config.get("started", ""))
        if not (folder / file).is_file():
            unfinished += not differs
        elif not differs:
            fitting.append((started, folder))
        elif len(differs) <= 3 and config.get("kind") == wanted.get("kind"):
            has = (f"{key} {config.get(key)} instead of {wanted[key]}" for key in differs)
            near.append((-len(differs), started, f"; '{folder.name}' has {', '.join(has)}"))
    return max(fitting)[1] if fitting else None, unfinished, max(near)[2] if near else ""


# ---- TensorBoard -----------------------------------------------------------------------------


def require_tensorboard() -> None:
    """Raise InputError when TensorBoard is not installed. Call it before a run folder is made."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "-tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None


@contextmanager
def board(run: Run, wanted: bool):
    """Give a function (epoch, record) that writes TensorBoard events, or None if not `wanted`.

    The events are the record's numbers. They go into run.folder/tensorboard.
    """
    if not wanted or not distributed.first():
        yield None
        return
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    done = max((r.get("epoch", 0) for r in run.records()), default=0) if run.last.exists() else 0
    with SummaryWriter(str(run.folder / "tensorboard"), purge_step=done + 1) as writer:

        def tell(epoch: int, record: dict) -> None:
            for name, value in record.items():
                if name not in ("epoch", "best"):
                    writer.add_scalar(name, value, epoch)

        yield tell


# ---- private ---------------------------------------------------------------------------------


def _require_name(out_dir: str | Path | None) -> None:
    if out_dir is not None and not str(out_dir).strip():
        raise InputError("-out_dir is empty; give the name of a folder, or leave it out")


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


def _read_config(folder: Path) -> dict | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _plain(value):
    """Return `value` as JSON gives it back (tuples become lists)."""
    return json.loads(json.dumps(value))
