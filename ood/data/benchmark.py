"""Benchmarks: the OOD sets that an ID set is tested against, and how images are prepared.

A benchmark is pure data, a JSON file. Its sets come in the order of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ood.config import InputError, build, json_object, nearest
from ood.data.folders import own_path
from ood.data.images import ImageSet, JoinedImages
from ood.data.loading import load
from ood.data.registry.table import TABLE, info, is_folder_path

# pip installs the files inside the package `ood`; in the clone they lie beside it.
PLACES = [Path(__file__).resolve().parents[up] / "configs" / "benchmarks" for up in (1, 2)]
FOLDER = next(filter(Path.is_dir, PLACES), PLACES[-1])
PROTOCOLS = ("paper", "full")


@dataclass(frozen=True)
class Entry:
    """One OOD set of a benchmark.

    Attributes:
        dataset: a name for `load`, or a path.
        group: "near", "far" or None.
        label: the name that the paper prints; default: the data set's name.
        size, resize: as for `load`. A key left out in the JSON is taken from the benchmark; null
            means as stored.
        limit: only the first this many images.
        base: as for `load`.
        list: for sets of OpenOOD, the list below benchmark_imglist/ that names the images.
        classes: only images of these classes (open-set splits).
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
        skip_first: this many images at the start of every test set are left out (ODIN tunes on
            them).
        first_fraction: an OOD set gives its first `first_fraction * n_id` images (heatmap paper:
            0.2).
        id_files: a set whose files are read instead of the ID set's (OpenOOD's copy of CIFAR-10).
        id_lists: for each split, the list of OpenOOD that names the ID images.
        id_shifted: covariate-shifted sets that count as ID in the test (full-spectrum).
        id_classes: only these classes, for open-set splits. The first becomes the label 0, the
            second 1, and so on.
        interpolation: how images are resized, see `load`.
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
    interpolation: str = "bilinear"
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
        """Load the ID images, prepared as this benchmark asks.

        Args:
            limit: at most this many, evenly spread.
            options: further arguments of `load`.
        """
        options.update(size=self.size, resize=self.resize, channels=self.channels)
        options.update(interpolation=self.interpolation)
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
        """Load the images of an entry with the label -1.

        Args:
            n_id: number of ID test images, for `first_fraction`.
            limit: at most this many, evenly spread.
            options: further arguments of `load`.
        """
        caps = [] if entry.limit is None else [entry.limit]
        if self.first_fraction is not None:
            caps.append(max(1, int(n_id * self.first_fraction + 1e-9)))
        cap = min(caps, default=None)
        options.update(
            size=entry.size, resize=entry.resize, channels=self.channels, base=entry.base
        )
        options.update(interpolation=self.interpolation)
        if entry.list:
            options.update(lists=(entry.list,))
        if entry.classes:
            whole = load(entry.dataset, entry.split, data_dir, **options).of_classes(entry.classes)
            return whole.first(cap).limited(limit).as_outliers()
        if self.skip_first:
            first = None if cap is None else self.skip_first + cap
            whole = load(entry.dataset, entry.split, data_dir, first=first, **options)
            return self._kept(whole).limited(limit).as_outliers()
        return load(
            entry.dataset, entry.split, data_dir, first=cap, limit=limit, **options
        ).as_outliers()

    def prepared_as(self, recipe: dict) -> Benchmark:
        """Prepare the images as a network asks.

        An entry that is prepared in a way of its own keeps it.

        Args: recipe: size, resize, channels and interpolation, as far as they are known.
        """
        known = {name: value for name, value in recipe.items() if value is not None}
        if "size" in known:
            known.setdefault("resize", None)
        sides = {name: known[name] for name in ("size", "resize") if name in known}
        own = {"size": self.size, "resize": self.resize}

        def moved(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
            return tuple(
                replace(entry, **sides)
                if {"size": entry.size, "resize": entry.resize} == own
                else entry
                for entry in entries
            )

        shape = {n: known[n] for n in ("channels", "interpolation") if n in known}
        return replace(
            self,
            **sides,
            **shape,
            entries=moved(self.entries),
            id_shifted=moved(self.id_shifted),
        )

    def datasets(self) -> list[str]:
        """Name every data set that the benchmark needs, the ID set first."""
        named = [self.id_files or self.id_dataset]
        for entry in (*self.id_shifted, *self.entries):
            base = entry.base
            if base is None and not is_folder_path(entry.dataset):
                base = info(entry.dataset).options.get("base")
            named += [entry.dataset, *filter(None, [base])]
        return list(dict.fromkeys(named))

    def select(self, names: Sequence[str] | None) -> Benchmark:
        """Keep only the entries named, by data set, alias or label; case is ignored.

        Raises: InputError for a name that is not among them.
        """
        if not names:
            return self
        chosen = []
        for name in names:
            matches = [entry for entry in self.entries if name.lower() in _known_as(entry)]
            exact = [entry for entry in matches if name == entry.dataset]
            if not matches:
                own = [entry.dataset for entry in self.entries]
                raise InputError(
                    f"benchmark '{self.name}' has no OOD set '{name}'{nearest(name, own)}; "
                    f"it has: {', '.join(own)}"
                )
            new = [entry for entry in exact or matches if entry not in chosen]
            if not new:
                raise InputError(f"the OOD set '{name}' is named twice")
            chosen += new
        return replace(self, entries=tuple(entry for entry in self.entries if entry in chosen))

    def _full_spectrum(self, clean: ImageSet, data_dir, options: dict) -> ImageSet:
        """Put the shifted sets behind the clean one."""
        parts = [clean]
        for entry in self.id_shifted:
            lists = (entry.list,) if entry.list else None
            own = {**options, "lists": lists, "size": entry.size, "resize": entry.resize}
            shifted = load(entry.dataset, entry.split, data_dir, **own)
            parts.append(shifted.first(entry.limit))
        return JoinedImages(
            parts,
            name=clean.name,
            split="test",
            num_classes=clean.num_classes,
            class_names=clean.class_names,
        )

    def _kept(self, images: ImageSet) -> ImageSet:
        """Leave out the first `skip_first` images."""
        if len(images) <= self.skip_first:
            raise InputError(
                f"'{images.name}' has {len(images)} images, but benchmark '{self.name}' "
                f"skips the first {self.skip_first}; use the protocol full"
            )
        return images.subset(slice(self.skip_first, None))


def benchmark_names() -> list[str]:
    """List the benchmarks in configs/benchmarks."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_benchmark(name_or_path: str | Path, protocol: str = "paper") -> Benchmark:
    """Read a benchmark by name (configs/benchmarks/<name>.json) or by the path of a JSON file.

    Args:
        protocol: "paper" as published; "full" scores every image of every set (no skip_first, no
            first_fraction, no limits).

    Raises: InputError for an unknown benchmark, key, data set, group or protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"unknown protocol '{protocol}'{nearest(protocol, PROTOCOLS)}; "
            f"known: {', '.join(PROTOCOLS)}"
        )
    benchmark = _parsed(*_read(str(name_or_path)))
    if protocol == "full":
        entries = tuple(replace(entry, limit=None) for entry in benchmark.entries)
        benchmark = replace(benchmark, skip_first=0, first_fraction=None, entries=entries)
    return benchmark


def _read(name: str) -> tuple[str, dict]:
    path = own_path(name if name.endswith(".json") else FOLDER / f"{name}.json")
    if not path.is_file():
        raise InputError(
            f"no benchmark '{name}'{nearest(name, benchmark_names())}; "
            f"known: {', '.join(benchmark_names())}, or a path that ends in .json"
        )
    return path.stem, json_object(path, "benchmark")


def _parsed(stem: str, content: dict) -> Benchmark:
    """Turn the content of a JSON file into a benchmark, checked."""
    where = f"benchmark '{stem}'"
    if not content.get("entries", []):
        raise InputError(f"{where}: 'entries' must be a list of objects, one per OOD set")
    entries = _entries(content, "entries", "entry", "one per OOD set", where)
    shifted = _entries(content, "id_shifted", "id_shifted", "one per set", where)
    own = {key: value for key, value in content.items() if key not in ("entries", "id_shifted")}
    benchmark = replace(build(Benchmark, {"name": stem, **own}, where), id_shifted=shifted)
    id_sets = (benchmark.id_dataset, benchmark.id_files)
    for dataset in (*filter(None, id_sets), *(entry.dataset for entry in (*entries, *shifted))):
        if not is_folder_path(dataset):
            info(dataset)
    names = [entry.dataset for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: the data set '{twice}' appears twice")
    labelled = tuple(replace(entry, label=entry.label or entry.dataset) for entry in entries)
    return replace(benchmark, entries=labelled)


def _entries(content: dict, key: str, word: str, rule: str, where: str) -> tuple[Entry, ...]:
    """Build the entries below a key; size and resize are inherited from the benchmark."""
    rows = content.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where}: '{key}' must be a list of objects, {rule}")
    inherited = {key: content[key] for key in ("size", "resize") if key in content}
    return tuple(
        build(Entry, {**inherited, **row}, f"{where}, {word} {number}")
        for number, row in enumerate(rows, 1)
    )


def _known_as(entry: Entry) -> set[str]:
    known = {entry.dataset, entry.label or entry.dataset}
    if entry.dataset in TABLE:
        known |= set(TABLE[entry.dataset].aliases)
    return {name.lower() for name in known}
