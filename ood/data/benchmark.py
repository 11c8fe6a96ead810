"""Benchmarks: which OOD sets an ID set is tested against, how their images are prepared, in the order of the paper. Pure data (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ood.config import InputError, build, nearest
from ood.data.images import ImageSet, JoinedImages
from ood.data.loading import load
from ood.data.registry.table import TABLE, info, is_folder_path

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "benchmarks"
PROTOCOLS = ("paper", "full")


@dataclass(frozen=True)
class Entry:
    """One OOD set of a benchmark.

    Attributes:
        dataset: name for `load` (or a path). group: "near", "far" or None. label: as the paper prints it.
        size, resize: as for `load`; a key left out in the JSON is taken from the benchmark, null means as stored.
        limit: the first so many images only. base: see `load`.
        list: for sets of OpenOOD, the list below benchmark_imglist/ that says which images.
        classes: only images of these classes (open-set splits), with their labels among themselves.
    """

    dataset: str
    group: Literal["near", "far"] | None = None
    label: str | None = None
    split: Literal["train", "test"] = "test"
    size: int | None = None
    resize: int | tuple[int, ...] | None = None
    limit: int | None = None
    base: str | None = None
    list: str | None = None
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Benchmark:
    """An ID set and its OOD sets.

    Attributes:
        size, resize, channels: of the ID images, and the default of the entries.
        mean, std: normalisation that the paper uses; None: that of the ID set.
        skip_first: this many images of every test set are left out (ODIN tunes on them).
        first_fraction: an OOD set gives its first `first_fraction * n_id` images (heatmap paper: 0.2).
        id_files: the set whose files are read instead of the ID set's (OpenOOD's copy of CIFAR-10). id_lists: its lists, by split.
        id_shifted: covariate-shifted sets that count as ID in the test (full-spectrum).
        id_classes: only these classes; the first becomes the label 0, the second 1, ... (open-set splits).
    """

    name: str
    id_dataset: str
    size: int | None = None
    resize: int | tuple[int, ...] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skip_first: int = 0
    first_fraction: float | None = None
    id_files: str | None = None
    id_lists: dict = field(default_factory=dict)
    id_shifted: tuple[Entry, ...] = field(default=())
    id_classes: tuple[int, ...] | None = None
    entries: tuple[Entry, ...] = field(default=())
    source: str = ""
    notes: str = ""

    def load_id(
        self,
        split: str = "test",
        data_dir: str | Path = "datasets",
        *,
        limit: int | None = None,
        **options,
    ) -> ImageSet:
        """The ID images, prepared as this benchmark asks; `limit` of them, evenly spread."""
        options.update(size=self.size, resize=self.resize, channels=self.channels)
        name, lists = self.id_files or self.id_dataset, self.id_lists.get(split)
        if lists:
            options.update(lists=(lists,))
        if split == "test" and self.id_shifted:
            return self._full_spectrum(
                load(name, split, data_dir, **options), data_dir, options
            ).limited(limit)
        if self.id_classes:
            return load(name, split, data_dir, **options).of_classes(self.id_classes).limited(limit)
        if split == "test" and self.skip_first:
            return self._kept(load(name, split, data_dir, **options)).limited(limit)
        return load(name, split, data_dir, limit=limit, **options)

    def load_ood(
        self,
        entry: Entry,
        n_id: int,
        data_dir: str | Path = "datasets",
        *,
        limit: int | None = None,
        **options,
    ) -> ImageSet:
        """The images of an entry with the label -1; `limit` of them, evenly spread.

        n_id: number of ID test images, for `first_fraction`.
        """
        caps = [
            entry.limit,
            None if self.first_fraction is None else max(1, int(n_id * self.first_fraction + 1e-9)),
        ]
        cap = min((c for c in caps if c is not None), default=None)
        options.update(
            size=entry.size, resize=entry.resize, channels=self.channels, base=entry.base
        )
        if entry.list:
            options.update(lists=(entry.list,))
        if entry.classes:
            whole = load(entry.dataset, entry.split, data_dir, **options).of_classes(entry.classes)
            return whole.first(cap).limited(limit).as_outliers()
        if self.skip_first:
            first = None if cap is None else self.skip_first + cap
            return (
                self._kept(load(entry.dataset, entry.split, data_dir, first=first, **options))
                .limited(limit)
                .as_outliers()
            )
        return load(
            entry.dataset, entry.split, data_dir, first=cap, limit=limit, **options
        ).as_outliers()

    def datasets(self) -> list[str]:
        """Every data set that it needs, the ID set first."""
        named = [self.id_files or self.id_dataset]
        for entry in (*self.id_shifted, *self.entries):
            base = entry.base or (
                None if is_folder_path(entry.dataset) else info(entry.dataset).options.get("base")
            )
            named += [entry.dataset, *filter(None, [base])]
        return list(dict.fromkeys(named))

    def select(self, names: Sequence[str] | None) -> Benchmark:
        """Only the entries named (by data set, alias or label, case ignored). Raises InputError for a name that is not among them."""
        if not names:
            return self
        chosen = []
        for name in names:
            matches = [entry for entry in self.entries if name.lower() in _known_as(entry)]
            exact = [entry for entry in matches if name == entry.dataset]
            if not matches:
                own = [entry.dataset for entry in self.entries]
                raise InputError(
                    f"benchmark '{self.name}' has no OOD set '{name}'{nearest(name, own)}; it has: {', '.join(own)}"
                )
            chosen += [entry for entry in exact or matches if entry not in chosen]
        return replace(self, entries=tuple(entry for entry in self.entries if entry in chosen))

    def _full_spectrum(self, clean: ImageSet, data_dir, options: dict) -> ImageSet:
        parts = [clean]
        for entry in self.id_shifted:
            lists = {"lists": (entry.list,)} if entry.list else {"lists": None}
            parts.append(
                load(
                    entry.dataset,
                    entry.split,
                    data_dir,
                    **{**options, **lists, "size": entry.size, "resize": entry.resize},
                ).first(entry.limit)
            )
        return JoinedImages(
            parts,
            name=clean.name,
            split="test",
            num_classes=clean.num_classes,
            class_names=clean.class_names,
        )

    def _kept(self, images: ImageSet) -> ImageSet:
        if len(images) <= self.skip_first:
            raise InputError(
                f"'{images.name}' has {len(images)} images, but benchmark '{self.name}' skips the first {self.skip_first}; "
                "use the protocol full"
            )
        return images.subset(slice(self.skip_first, None))


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_benchmark(name_or_path: str | Path, protocol: str = "paper") -> Benchmark:
    """A benchmark by name (configs/benchmarks/<name>.json) or by the path of a JSON file.

    protocol: "paper" as published; "full" scores every image of every set (no skip_first, no first_fraction, no limits).
    Raises InputError for an unknown benchmark, key, data set, group or protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"unknown protocol '{protocol}'{nearest(protocol, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}"
        )
    benchmark = _parsed(*_read(str(name_or_path)))
    if protocol == "full":
        entries = tuple(replace(entry, limit=None) for entry in benchmark.entries)
        benchmark = replace(benchmark, skip_first=0, first_fraction=None, entries=entries)
    return benchmark


def _read(name: str) -> tuple[str, dict]:
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        raise InputError(
            f"no benchmark '{name}'{nearest(name, benchmark_names())}; known: {', '.join(benchmark_names())}, "
            "or a path that ends in .json"
        )
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"benchmark '{path}' is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"benchmark '{path}' must hold a JSON object, not a {type(content).__name__}"
        )
    return path.stem, content


def _parsed(stem: str, content: dict) -> Benchmark:
    where = f"benchmark '{stem}'"
    rows = content.get("entries", [])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where}: 'entries' must be a list of objects, one per OOD set")
    inherited = {key: content[key] for key in ("size", "resize") if key in content}
    entries = tuple(
        build(Entry, {**inherited, **row}, f"{where}, entry {number}")
        for number, row in enumerate(rows, 1)
    )
    shifted = content.get("id_shifted", [])
    if not isinstance(shifted, list) or not all(isinstance(row, dict) for row in shifted):
        raise InputError(f"{where}: 'id_shifted' must be a list of objects, one per set")
    shifted = tuple(
        build(Entry, {**inherited, **row}, f"{where}, id_shifted {number}")
        for number, row in enumerate(shifted, 1)
    )
    benchmark = build(
        Benchmark,
        {
            "name": stem,
            **{
                key: value for key, value in content.items() if key not in ("entries", "id_shifted")
            },
        },
        where,
    )
    benchmark = replace(benchmark, id_shifted=shifted)
    for dataset in (
        benchmark.id_dataset,
        *filter(None, [benchmark.id_files]),
        *(entry.dataset for entry in (*entries, *shifted)),
    ):
        if not is_folder_path(dataset):
            info(dataset)
    labelled = [replace(entry, label=entry.label or entry.dataset) for entry in entries]
    twice = {
        entry.dataset
        for entry in entries
        if sum(other.dataset == entry.dataset for other in entries) > 1
    }
    if twice:
        raise InputError(f"{where}: the data set '{twice.pop()}' appears twice")
    return replace(benchmark, entries=tuple(labelled))


def _known_as(entry: Entry) -> set[str]:
    known = {entry.dataset, entry.label or entry.dataset}
    if entry.dataset in TABLE:
        known |= set(TABLE[entry.dataset].aliases)
    return {name.lower() for name in known}
