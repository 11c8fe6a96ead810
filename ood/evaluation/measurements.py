"""Records of measurements: scripts write them, scripts/build_docs.py turns them into docs/.

A record is docs/data/<name>.json. It says what was run, on what machine and with which seeds, and
holds the tables that came out. Nothing in docs/results.md and docs/benchmarks.md is typed by hand.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ood import files, provenance
from ood.cli import RunError, log
from ood.config import InputError

FOLDER = Path(__file__).resolve().parents[2] / "docs"
BUILT = (
    "Built by `python3 scripts/build_docs.py` from the records in `docs/data/`, "
    "which the commands named below write when they are given `-record`."
)
PAGES = {"results": "Results", "benchmarks": "Benchmarks"}
QUIET = 0.5  # largest load average per core at which seconds are recorded


def add_flag(parser, *, seconds: bool = False) -> None:
    """Declare -record: a script changes files of docs/ only when it is asked to.

    Args:
        seconds: the script records seconds, which other programs disturb; declares -any_load too,
            for `require_quiet`.
    """
    parser.flag(
        "-record",
        action="store_true",
        help="also write the numbers into docs/data, for the pages of docs/",
        default=False,
    )
    if seconds:
        parser.flag(
            "-any_load",
            action="store_true",
            help=f"record although the load average per core is above {QUIET}",
            default=False,
        )


def load_per_core() -> float | None:
    """Return the load average of the last minute per core; None where the system has none."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    try:
        return os.getloadavg()[0] / cores
    except (AttributeError, OSError):
        return None


def require_quiet(flags) -> float | None:
    """Return the load average per core before a measurement, for `write`.

    Raises InputError if the measurement is to be recorded while other programs are at work, and
    -any_load was not given.
    """
    load = load_per_core()
    if flags.record and not flags.any_load and load is not None and load > QUIET:
        raise InputError(
            f"the load average per core is {load:.2f}, above {QUIET}: other programs would be "
            "measured too; wait until they are done, or add -any_load"
        )
    return load


def write(
    name: str,
    *,
    page: str,
    order: int,
    title: str,
    tables: list[dict],
    text: list[str] = (),
    command: str | None = None,
    device: str = "cpu",
    seeds: list[int] | None = None,
    seconds: dict | None = None,
    load_before: float | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Write docs/data/<name>.json and return its path.

    Args:
        page: 'results' or 'benchmarks'.
        order: position of the section on its page (100-199 part 1, 200-299 part 2, ...).
        title: heading of the section.
        tables: [{"caption": str, "columns": [str, ...], "rows": [[str | number, ...], ...]}].
            Units belong in the names of the columns.
        text: paragraphs before the tables: data, differences from the paper, what was not run.
        command: what rebuilds the record; default: the command line of this process.
        device: what it ran on, as text.
        seeds: of the runs.
        seconds: {stage: seconds}.
        load_before: what `require_quiet` returned; the load average after is added to it.
        folder: the folder of the pages.
    """
    command = command or " ".join(["python3", *sys.argv])
    made = provenance.provenance(command, {}, None, device, {}, seconds or {})
    record = {
        "page": page,
        "order": order,
        "title": title,
        "command": command,
        "seeds": seeds,
        "text": list(text),
        "tables": tables,
        "provenance": made,
    }
    if load_before is not None:
        record["load_per_core"] = {"before": load_before, "after": load_per_core()}
    path = folder / "data" / f"{name}.json"
    files.write_text(path, json.dumps(files.plain(record), indent=1) + "\n")
    return path


def build(folder: Path = FOLDER) -> list[Path]:
    """Rebuild docs/results.md and docs/benchmarks.md from all records; return their paths."""
    records = [json.loads(p.read_text("utf-8")) for p in sorted((folder / "data").glob("*.json"))]
    written = []
    for page, title in PAGES.items():
        chosen = sorted((r for r in records if r["page"] == page), key=lambda r: r["order"])
        parts = [f"# {title}\n\n{BUILT}\n", *map(_section, chosen)]
        files.write_text(folder / f"{page}.md", "\n".join(parts))
        written.append(folder / f"{page}.md")
    return written


def _section(record: dict) -> str:
    """A record as Markdown: heading, paragraphs, tables, command and machine."""
    lines = [f"## {record['title']}", ""]
    for paragraph in record["text"]:
        lines += [paragraph, ""]
    for table in record["tables"]:
        if table.get("caption"):
            lines += [f"**{table['caption']}**", ""]
        body = [[_text(value) for value in row] for row in table["rows"]]
        lines += [files.markdown_table(table["columns"], body, align=False), ""]
    seeds = f" Seeds: {', '.join(map(str, record['seeds']))}." if record["seeds"] else ""
    machine = _machine(record["provenance"]) + _load(record.get("load_per_core"))
    lines += [f"Command: `{record['command']}`.{seeds} {machine}", ""]
    return "\n".join(lines)


def _text(value) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine(made: dict) -> str:
    """One sentence: device, versions, date."""
    versions, shown = made.get("versions", {}), ("python", "torch", "torchvision", "numpy")
    named = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    date = str(made.get("time", made.get("date", "")))[:10]
    return f"Machine: {made.get('device')}; {named}; {date}."


def _load(load: dict | None) -> str:
    if not load:
        return ""
    return f" Load average per core: {load['before']:.2f} before, {load['after']:.2f} after."


def timed(work: Callable, device: torch.device) -> tuple[object, tuple[float, float]]:
    """Call `work()`. Returns (its result, (seconds on the clock, CPU-seconds of this process))."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, (time.perf_counter() - clock, time.process_time() - cpu)


def in_turns(
    works: Sequence[Callable], rounds: int, device: torch.device, warm_up: int = 0
) -> list[tuple[float, float]]:
    """Time several pieces of work in alternation, so that other load on the machine hits all.

    Args:
        rounds: how often each of them is timed.
        warm_up: rounds before these that do not count.

    Returns:
        For each work, the medians over the rounds of (seconds on the clock, CPU-seconds).
    """
    found = [[] for _ in works]
    for number in range(-warm_up, rounds):
        for work, seconds in zip(works, found):
            _, took = timed(work, device)
            if number >= 0:
                seconds.append(took)
    return [tuple(statistics.median(column) for column in zip(*seconds)) for seconds in found]


def spread(fractions: Sequence[float]) -> str:
    """Format mean ± sample standard deviation in percent; the mean alone of a single value."""
    fractions = [float(value) for value in fractions]
    deviation = f" ± {100 * statistics.stdev(fractions):.2f}" if len(fractions) > 1 else ""
    return f"{100 * statistics.fmean(fractions):.2f}{deviation}"


def run_script(name: str, **flags: object) -> None:
    """Run one of the repository's scripts in a process of its own; its output is shown.

    Args:
        flags: `-flag value` of the script. True stands for a flag without a value; a list for
            several values; None leaves the flag out.

    Raises:
        RunError: the script ended with an exit code other than 0.
    """
    words = []
    for flag, value in flags.items():
        if value is True:
            words.append(f"-{flag}")
        elif value is not None:
            many = value if isinstance(value, (list, tuple)) else [value]
            words += [f"-{flag}", *map(str, many)]
    done = subprocess.run([sys.executable, str(FOLDER.parent / name), *words])
    if done.returncode:
        raise RunError(f"{name} {' '.join(words)} ended with exit code {done.returncode}")


def network_of_seed(config, seed: int, context, device: str | None = None) -> Path:
    """The best weights of the network of a config, trained from a seed.

    It is trained where it is not there yet. Records name such networks by their seed, so that
    their commands work in any order.

    Args:
        config: a `workbench.Config`.
        context: a `Context`; the network is kept in its checkpoints_dir.
        device: of the training, as -device takes it.

    Raises: RunError: the training failed.
    """
    experiment = config.experiment
    folder = Path(context.checkpoints_dir) / f"table_{Path(config.path).stem}_{seed}"
    begun = (folder / "last.pt").is_file()
    if (folder / "best.pt").is_file() and not (begun and not _finished(folder)):
        return folder / "best.pt"
    log(f"training: seed {seed}")
    run_script(
        "classifier_pretraining.py",
        dataset=experiment.id_dataset,
        arch=experiment.arch,
        depth=experiment.depth,
        width=experiment.width,
        seed=seed,
        data_dir=context.data_dir,
        out_dir=folder,
        device=device,
        resume=True if folder.exists() else None,
    )
    return folder / "best.pt"


def _finished(folder: Path) -> bool:
    """Whether the log of a run says that its training came to its end."""
    return '"event": "end"' in (folder / "log.jsonl").read_text("utf-8")


def print_tables(tables: Sequence[dict]) -> None:
    """Print the tables of a record, column by column."""
    for table in tables:
        log(table["caption"])
        for row in [table["columns"], *table["rows"]]:
            log("  " + "  ".join(f"{cell!s:<28}" for cell in row))
