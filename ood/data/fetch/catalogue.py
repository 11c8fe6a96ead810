"""Write the table of data sets into datasets/README.md, as Markdown.

`python3 scripts/download_data.py -table` calls `update`. A test holds that the README is current.
"""

from __future__ import annotations

from pathlib import Path

from ood.data.fetch.inventory import MADE
from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import FAMILIES
from ood.files import markdown_table

README = Path(__file__).resolve().parents[3] / "datasets" / "README.md"
BEGIN = "<!-- table: written by `python3 scripts/download_data.py -table` -->"
END = "<!-- end of table -->"
TITLES = (  # one for each of FAMILIES
    "In-distribution sets, and sets made here",
    "OOD sets of the CIFAR and MNIST papers, auxiliary outliers",
    "OOD sets for ImageNet, Semantic Shift Benchmark",
    "OpenOOD v1.5's copies and lists",
    "Covariate shift",
    "Anomalies",
    "OpenMIBOOD: medical images",
    "Sound",
    "Texts",
)
MANY = 8  # archives of one set that a cell lists
COLUMNS = [
    "name",
    "use",
    "layout under this folder",
    "images",
    "licence",
    "archives: size, checksum",
]


def markdown() -> str:
    """Return one section with one table for each family of data sets, between BEGIN and END."""
    lines = [BEGIN, ""]
    for title, family in zip(TITLES, FAMILIES, strict=True):
        table = markdown_table(COLUMNS, [_cells(row) for row in family.ROWS], align=False)
        lines += [f"## {title}", "", table, ""]
    return "\n".join([*lines, END])


def update(path: Path = README) -> None:
    """Replace the part of the README between BEGIN and END by `markdown()`."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(before + markdown() + after, encoding="utf-8")


def _cells(row: DatasetInfo) -> list[str]:
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    images = " / ".join(f"{split} {count:,}" for split, count in row.count.items())
    licence = f"[{row.licence}]({row.source})" if row.source else row.licence
    return [names, row.role.upper(), row.layout, images, licence, _archives(row)]


def _archives(row: DatasetInfo) -> str:
    """Say where a set comes from: its archives, other sets, this program, or a sentence."""
    if len(row.archives) > MANY:
        return f"{len(row.archives)} files, {_archive(row.archives[0])}, ..."
    if row.archives:
        needs = f"; needs {', '.join(row.needs)}" if row.needs else ""
        return "; ".join(map(_archive, row.archives)) + needs
    if row.needs and row.steps:
        return f"by hand; needs {', '.join(row.needs)}"
    if row.needs:
        return f"made from {', '.join(f'`{name}`' for name in row.needs)}"
    return "made here" if row.reader in MADE else row.fetch.format(data_dir="datasets")


def _archive(archive: Archive) -> str:
    size = f"{archive.bytes:,} bytes, " if archive.bytes else ""
    if archive.sha256:
        checksum = f"sha256 {archive.sha256[:8]}…"
    elif archive.md5:
        checksum = f"md5 {archive.md5[:8]}…"
    else:
        checksum = "first use"
    if archive.by_hand:
        where = " (by hand)"
    elif not archive.urls:
        where = " (Google Drive)"
    elif len(archive.mirrors) > 1:
        where = f" ({len(archive.mirrors)} mirrors)"
    else:
        where = ""
    return f"{archive.name}{where}: {size}{checksum}"
