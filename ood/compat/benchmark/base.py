"""The base of all benchmarks, and of your own: sets in, metrics out, one pass for all detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from ood.compat.benchmark.store import Store, data_digest, digest_batches
from ood.compat.metrics import OODMetrics
from ood.compat.papers import Info
from ood.compat.readings import Together, is_detector

# with these in loader_kwargs, a set cannot be read in parts
WHOLE = {"sampler", "batch_sampler", "drop_last"}
# with these, the rows of a pass are not the images of the set in their order
OTHER_ROWS = {"shuffle", "collate_fn", *WHOLE}


class Benchmark(ABC):
    """An ID set and the OOD sets that it is tested against.

    A benchmark of your own sets `ood_names` and defines `train_set` and `test_sets`. ID images have
    their class labels, OOD images labels below 0.

    Attributes:
        ood_names: name of each OOD set, in the order of `test_sets`.
        near_ood_names, far_ood_names: those of each group; empty where the authors made none.
    """

    info = Info()
    ood_names: list[str]
    near_ood_names: Sequence[str] = ()
    far_ood_names: Sequence[str] = ()

    @abstractmethod
    def train_set(self) -> Dataset:
        """Give the ID training set, to fit detectors or to train a network."""

    @abstractmethod
    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset]:
        """Give the test sets.

        Returns: with both, one set per OOD set, which begins with the ID test set. With `unknown`
            alone, the OOD sets. With `known` alone, the ID test set, once.
        Raises: ValueError with neither.
        """

    def evaluate(
        self,
        detector: Any | Sequence[Any],
        loader_kwargs: dict | None = None,
        device: str | torch.device = "cpu",
        cache: bool = False,
        cache_dir: str | None = None,
        cache_key: str | None = None,
        network: nn.Module | None = None,
        norm_std: Sequence[float] | None = None,
    ) -> list[dict]:
        """Score all test sets with one detector or several, fitted before.

        Every image is forwarded once for all detectors of the list that hold pieces of the same
        network, and the ID test images once for all OOD sets. pytorch-ood forwards the ID images
        again with every OOD set, and once more for each thing that a detector reads.

        Args:
            detector: one, or a list: of `ood.compat.detector`, of `ood.detectors`, pytorch-ood's,
                or your own, see `ood.compat.readings`. Call eval() on their network first.
            loader_kwargs: for the DataLoader, e.g. {"batch_size": 128}; without a batch size,
                images go one by one.
            device: where detectors and images are moved.
            cache: keep logits and features in this benchmark, for its next call. Networks and their
                methods are cached while they are in evaluation mode; other functions and shuffled
                loaders are not.
            cache_dir: keep them in files too.
            cache_key: a word of your own that is added to the names of the entries. It is not
                needed: they are named by the content of network and images, so that a changed
                weight, transform or image is never served from an old entry.
            network: what detectors of `ood.detectors` read, and objects that hold no network.
                Default: the one behind the other detectors.
            norm_std: std of the images' normalisation per channel, for those of `ood.detectors`
                that move pixels (odin).

        Returns: one dict per OOD set and detector, OOD sets outside: the values of `OODMetrics`
            (ACC for detectors on logits), "Dataset", and for a list "Detector", the class.
        Raises: InputError, TypeError or ValueError for what is no detector.
        """
        detectors, many = _listed(detector)
        together = Together(detectors, device=device, network=network, std=norm_std)
        if not (cache or cache_dir is not None):
            store = Store(None, None, None)
        else:
            store = Store(cache_dir, cache_key, vars(self).setdefault("_remembered", {}))
        passed: dict[int, list[_Scored]] = {}
        results = []
        for name, whole in zip(self.ood_names, self.test_sets()):
            parts = _parts(whole, loader_kwargs or {})
            for part in parts:
                if id(part) not in passed:
                    passed[id(part)] = _scored(together, part, loader_kwargs or {}, store)
            for place, one in enumerate(detectors):
                result = _metrics([passed[id(part)][place] for part in parts])
                result["Dataset"] = name
                if many:
                    result["Detector"] = type(one).__name__
                results.append(result)
        return results

    def fit(
        self,
        detector: Any | Sequence[Any],
        loader_kwargs: dict | None = None,
        device: str | torch.device = "cpu",
        network: nn.Module | None = None,
        norm_std: Sequence[float] | None = None,
    ) -> Benchmark:
        """Fit detectors to `train_set`, with one pass for all of them; arguments as in `evaluate`.

        pytorch-ood has no such call: there, each detector's own `fit(loader)` forwards the set.
        Detectors that read the images themselves are still fitted one by one.
        """
        together = Together(_listed(detector)[0], device=device, network=network, std=norm_std)
        together.fit(DataLoader(self.train_set(), **(loader_kwargs or {})))
        return self

    def averages(self, results: Sequence[dict]) -> list[dict]:
        """Average results of `evaluate` over the near and over the far OOD sets, as OpenOOD does.

        Returns: for each group and detector the mean of each value, with "Dataset" near or far.
        """
        rows = []
        for group, names in (("near", self.near_ood_names), ("far", self.far_ood_names)):
            by_place: dict[int, list[dict]] = {}
            for name in names:
                own = [row for row in results if row["Dataset"] == name]
                for place, row in enumerate(own):
                    by_place.setdefault(place, []).append(row)
            for of_one in by_place.values():
                keys = [k for k, value in of_one[0].items() if isinstance(value, float)]
                mean = {key: sum(row[key] for row in of_one) / len(of_one) for key in keys}
                words = {k: v for k, v in of_one[0].items() if k not in keys}
                rows.append({**mean, **words, "Dataset": group})
        return rows


class SetsBenchmark(Benchmark):
    """A benchmark whose sets are attributes: `train_in`, `test_in`, `test_oods` in order."""

    train_in: Dataset
    test_in: Dataset
    test_oods: list[Dataset]

    def train_set(self) -> Dataset:
        return self.train_in

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset]:
        if not known and not unknown:
            raise ValueError("at least one of known and unknown must be true")
        if not unknown:
            return [self.test_in]
        return [self.test_in + other if known else other for other in self.test_oods]


_Scored = tuple[Tensor, Tensor, Tensor | None]  # scores, labels, predictions


def _listed(detector) -> tuple[list, bool]:
    """Give the detectors as a list, and whether they came as one."""
    if not isinstance(detector, (str, bytes)) and is_detector(detector):
        return [detector], False
    if isinstance(detector, Sequence) and not isinstance(detector, (str, bytes)):
        for one in detector:
            if not is_detector(one):
                raise TypeError(f"{one!r} is no detector")
        if not detector:
            raise ValueError("give at least one detector")
        return list(detector), True
    raise TypeError(f"give a detector or a list of them, not {type(detector).__name__}")


def _parts(dataset: Dataset, loader_kwargs: dict) -> list[Dataset]:
    """Take a joined set apart, so that a part of several sets is forwarded once."""
    if isinstance(dataset, ConcatDataset) and not WHOLE & loader_kwargs.keys():
        return [part for joined in dataset.datasets for part in _parts(joined, loader_kwargs)]
    return [dataset]


def _scored(
    together: Together, dataset: Dataset, loader_kwargs: dict, store: Store
) -> list[_Scored]:
    """Score one set with all detectors."""
    loader = DataLoader(dataset, **loader_kwargs)
    have, labels, keys = {}, None, {}
    if store and not any(map(loader_kwargs.get, OTHER_ROWS)):
        data = data_digest(dataset) or digest_batches(loader)
        for function in together.functions:
            keys[function] = store.key(function, data, together.device)
            kept = store.get(keys[function])
            if kept is not None:
                have[function], labels = kept
    if have and not together.needs_pass(have):
        passed = together.passed(have, labels)
    else:
        passed = together.run(loader, have)
        for function, values in passed.arrays.items():
            if function in keys and function not in have:
                store.put(keys[function], values, passed.labels)
    found = []
    for one, scores in zip(together.readings, together.scores(passed)):
        logits = passed.arrays.get(one.function) if one.kind == "logits" else None
        found.append((scores, passed.labels, None if logits is None else logits.argmax(1)))
    return found


def _metrics(parts: list[_Scored]) -> dict:
    metrics = OODMetrics()
    for scores, labels, predictions in parts:
        metrics.update(scores, labels, predictions)
    return metrics.compute()
