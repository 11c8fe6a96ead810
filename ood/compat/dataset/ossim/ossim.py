"""`OpenSetSimulation`, the interface, and `DynamicOSS`, a split drawn with a seed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from ood.data import open_set

LARGEST_SEED = 10**10


class OpenSetSimulation:
    """Classes of each role and a data set for each stage; derive your own simulation from it."""

    @property
    def unique_targets(self) -> Iterable:
        """All classes."""
        raise NotImplementedError

    @property
    def kkc(self) -> set:
        """Known known classes."""
        raise NotImplementedError

    @property
    def kuc(self) -> set:
        """Known unknown classes."""
        raise NotImplementedError

    @property
    def uuc(self) -> set:
        """Unknown unknown classes."""
        raise NotImplementedError

    def train_dataset(self, in_dist=True, out_dist=False) -> Dataset:
        """Give the items for training: ID, outliers, or both."""
        raise NotImplementedError

    def val_dataset(self, in_dist=True, out_dist=True) -> Dataset:
        """Give the items for validation."""
        raise NotImplementedError

    def test_dataset(self, in_dist=True, out_dist=True) -> Dataset:
        """Give the items for the test."""
        raise NotImplementedError


class DynamicOSS(OpenSetSimulation):
    """An open-set simulation drawn from a labelled set.

    The draw is that of pytorch-ood for the same seed and NumPy. Labels stay as they are:
    `ood.compat.utils.TargetMapping(sim.kkc, sim.kuc | sim.uuc)` makes those of the outliers
    negative.

    Args:
        dataset: has `targets` or `labels` (N,); else it is read once for the labels of its items.
        train_size, val_size: share of the items of a known class, in [0, 1]. The rest is for the
            test, whatever `test_size` says.
        kuc, uuc_val, uuc_test: number of classes that are known outliers, outliers of the
            validation, outliers of the test.
        seed: of the draw; None draws one, which is in `seed`.

    Attributes:
        indices, classes: `indices[stage][role]` are positions in the set, `classes[stage][role]`
            the classes; the stages are train, val, test, the roles kkc, kuc, uuc.
        class2idx: positions of the items of each class.

    Raises: InputError (a ValueError) for shares above 1 and for too few classes. pytorch-ood checks
        neither, and its splits are empty if `targets` is a list.
    """

    def __init__(
        self,
        dataset,
        train_size: float = 0.7,
        val_size: float = 0.2,
        test_size: float = 0.1,
        kuc: int = 0,
        uuc_val: int = 2,
        uuc_test: int = 2,
        seed=None,
    ):
        self.seed = int(np.random.randint(0, LARGEST_SEED)) if seed is None else seed
        self.r_train, self.r_val, self.r_test = train_size, val_size, test_size
        self.out_train, self.out_val, self.out_test = kuc, uuc_val, uuc_test
        self._dataset = dataset
        targets = self.get_targets(dataset)
        targets = np.asarray(targets.cpu() if isinstance(targets, torch.Tensor) else targets)
        self._unique_targets = np.unique(targets)
        self.class2idx = {label: np.flatnonzero(targets == label) for label in self.unique_targets}
        split = open_set.dynamic(
            targets,
            train=train_size,
            val=val_size,
            test=round(1 - train_size - val_size, 9),
            kuc=kuc,
            uuc_val=uuc_val,
            uuc_test=uuc_test,
            seed=self.seed,
        )
        self.indices, self.classes = {}, {}
        for stage, unknown in (("train", ()), ("val", split.uuc_val), ("test", split.uuc_test)):
            rows = {role: split.rows[stage][role].tolist() for role in ("kkc", "kuc")}
            rows["uuc"] = [row for label in unknown for row in self.class2idx[label].tolist()]
            self.indices[stage] = rows
            self.classes[stage] = {
                "kkc": list(split.kkc),
                "kuc": list(split.kuc),
                "uuc": list(unknown),
            }

    @property
    def unique_targets(self) -> np.ndarray:
        return self._unique_targets

    @property
    def kkc(self) -> set:
        return self._of_role("kkc")

    @property
    def kuc(self) -> set:
        return self._of_role("kuc")

    @property
    def uuc(self) -> set:
        return self._of_role("uuc")

    def train_dataset(self, in_dist: bool = True, out_dist: bool = True) -> Subset:
        return self._subset("train", in_dist, out_dist)

    def val_dataset(self, in_dist: bool = True, out_dist: bool = True) -> Subset:
        return self._subset("val", in_dist, out_dist)

    def test_dataset(self, in_dist: bool = True, out_dist: bool = True) -> Subset:
        return self._subset("test", in_dist, out_dist)

    @staticmethod
    def get_targets(dataset):
        """Give the label of every item, from an attribute if there is one."""
        for name in ("targets", "labels"):
            if hasattr(dataset, name):
                return getattr(dataset, name)
        return [target for _, target in dataset]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._dataset}, seed={self.seed})"

    def _of_role(self, role: str) -> set:
        return {label for classes in self.classes.values() for label in classes[role]}

    def _subset(self, stage: str, in_dist: bool, out_dist: bool) -> Subset:
        roles = ("kkc",) * in_dist + ("kuc", "uuc") * out_dist
        return Subset(self._dataset, [row for role in roles for row in self.indices[stage][role]])
