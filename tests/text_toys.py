"""Little sets of texts in the layouts of the published files."""

from __future__ import annotations

import random
from pathlib import Path

from ood.data.registry import info

WORDS = (
    "the orbit of a shuttle engine launch rocket don t against pitcher league goal skate penguin "
    "cipher key wiretap escrow dealer wheel brake oil"
).split()


def text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))


def publish(root: Path, name: str, per_class: int = 2) -> None:
    """Write the files of all splits of a set below `root`, as its row says where."""
    row = info(name)
    form, files = row.options["form"], row.options["files"]
    for split, file in files.items():
        path = root / row.folders[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines(row, form, random.Random(f"{name} {split}"), per_class)))


def lines(row, form: str, generator: random.Random, per_class: int) -> list[str]:
    if form == "lines":
        head = ["\n", " = Heading = \n"] if row.name.startswith("wikitext") else []
        return head + [f"{text(generator, 5)} .  Then {text(generator, 4)} . \n" for _ in range(7)]
    digits = [str(label) for label in range(row.num_classes)]
    classes = digits if form == "digit" else row.class_names
    between = "\t" if form == "named" else " "
    written = [
        f"{name}{between}{text(generator, generator.randint(3, 12))} \n"
        for name in classes
        for _ in range(per_class)
    ]
    generator.shuffle(written)
    return written


def table(path: Path, column: str, texts: list[str], labels: list[str] | None = None) -> None:
    """Write a table of Orange: three lines of headings, an empty one, then the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [f"Category\t{column}", "d\tstring", "class\t", ""]
    rows = [f"{label}\t{text}" for label, text in zip(labels or ["x"] * len(texts), texts)]
    path.write_text("\n".join([*head, *rows, ""]))
