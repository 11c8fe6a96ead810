"""The table of data sets as Markdown, for datasets/README.md: `python3 scripts/download_data.py -table` writes it there."""

from __future__ import annotations

from pathlib import Path

from ood.data.fetch.inventory import MADE
from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import FAMILIES

README = Path(__file__).resolve().parents[3] / "datasets" / "README.md"
BEGIN, END = (
    "<!-- table: written by `python3 scripts/download_data.py -table` -->",
    "<!-- end of table -->",
)
TITLES = (
    "In-distribution sets, and sets made here",
    "OOD sets of the CIFAR and MNIST papers, auxiliary outliers",
    "OOD sets for ImageNet, Semantic Shift Benchmark",
    "OpenOOD v1.5's copies and lists",
    "Covariate shift",
    "Anomalies",
)


def markdown() -> str:
    """Every family as a section with one table."""
    lines = [BEGIN, ""]
    for title, family in zip(TITLES, FAMILIES, strict=True):
        lines += [
            f"## {title}",
            "",
            "| name | use | layout under this folder | images | licence | archives: size, checksum |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in family.ROWS] + [""]
    return "\n".join([*lines, END])


def update(path: Path = README) -> None:
    """Replace the table in the README."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(before + markdown() + after)


def _line(row: DatasetInfo) -> str:
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    images = " / ".join(f"{split} {count:,}" for split, count in row.count.items())
    source = f"[{row.licence}]({row.source})" if row.source else row.licence
    cells = (names, row.role.upper(), row.layout, images, source, _archives(row))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _archives(row: DatasetInfo) -> str:
    if row.archives:
        return "; ".join(_archive(archive) for archive in row.archives) + (
            f"; needs {', '.join(row.needs)}" if row.needs else ""
        )
    if row.needs:
        return f"made from {', '.join(f'`{name}`' for name in row.needs)}"
    return "made here" if row.reader in MADE else row.fetch.format(data_dir="datasets")


def _archive(archive: Archive) -> str:
    size = f"{archive.bytes:,} bytes, " if archive.bytes else ""
    known = (
        f"sha256 {archive.sha256[:8]}…"
        if archive.sha256
        else f"md5 {archive.md5[:8]}…"
        if archive.md5
        else "first use"
    )
    where = (
        " (Google Drive)"
        if archive.drive and not archive.urls
        else " (by hand)"
        if archive.by_hand
        else f" ({len(archive.mirrors)} mirrors)"
        if len(archive.mirrors) > 1
        else ""
    )
    return f"{archive.name}{where}: {size}{known}"
