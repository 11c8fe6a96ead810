"""Records of measurements: scripts write them, scripts/build_docs.py turns them into the pages of docs/.

A record is docs/data/<name>.json: what was run, on what, with which seeds, and tables of what came out. Nothing in docs/ is typed by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ood import files, provenance

FOLDER = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"results": "Results", "benchmarks": "Benchmarks"}


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
    folder: Path = FOLDER,
) -> Path:
    """Write docs/data/<name>.json.

    Args:
        page: 'results' or 'benchmarks'; `order` sorts the sections of a page (100-199 part 1, 200-299 part 2, ...).
        tables: [{"caption": str, "columns": [str, ...], "rows": [[str | number, ...], ...]}], as they are to be read (units in the column names).
        text: paragraphs before the tables: data, differences from the paper, what was not run.
        command: what rebuilds the record; default: the command line of this process.
    """
    made = provenance.provenance(
        command or " ".join(["python3", *sys.argv]), {}, None, device, {}, seconds or {}
    )
    record = {
        "page": page,
        "order": order,
        "title": title,
        "command": command or " ".join(["python3", *sys.argv]),
        "seeds": seeds,
        "text": list(text),
        "tables": tables,
        "provenance": made,
    }
    path = folder / "data" / f"{name}.json"
    files.write_text(path, json.dumps(files.plain(record), indent=1) + "\n")
    return path


def build(folder: Path = FOLDER) -> list[Path]:
    """Rebuild docs/results.md and docs/benchmarks.md from all records."""
    records = [json.loads(p.read_text()) for p in sorted((folder / "data").glob("*.json"))]
    written = []
    for page, title in PAGES.items():
        chosen = sorted((r for r in records if r["page"] == page), key=lambda r: r["order"])
        parts = [
            f"# {title}\n\nBuilt by `python3 scripts/build_docs.py` from the records in `docs/data/`, which the commands named below write.\n"
        ]
        parts += [_section(record) for record in chosen]
        files.write_text(folder / f"{page}.md", "\n".join(parts))
        written.append(folder / f"{page}.md")
    return written


def _section(record: dict) -> str:
    lines = [f"## {record['title']}", ""]
    for paragraph in record["text"]:
        lines += [paragraph, ""]
    for table in record["tables"]:
        if table.get("caption"):
            lines += [f"**{table['caption']}**", ""]
        lines += ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
        lines += [
            "| " + " | ".join(_cell(value) for value in row) + " |" for row in table["rows"]
        ] + [""]
    seeds = f" Seeds: {', '.join(map(str, record['seeds']))}." if record["seeds"] else ""
    lines += [f"Command: `{record['command']}`.{seeds} {_machine(record['provenance'])}", ""]
    return "\n".join(lines)


def _cell(value) -> str:
    return (
        "–"
        if value is None
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value).replace("|", "\\|")
    )


def _machine(made: dict) -> str:
    versions = made.get("versions", {})
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("python", "torch", "torchvision", "numpy")
        if name in versions
    )
    return f"Machine: {made.get('device')}; {named}; {str(made.get('time', made.get('date', '')))[:10]}."
