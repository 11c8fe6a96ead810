"""Open-set splits: equal to pytorch-ood's for one seed; classes and rows are partitioned."""

from __future__ import annotations

import numpy as np
import pytest

from ood.config import InputError
from ood.data import ArrayImages, load_benchmark, open_set

LABELS = np.random.default_rng(0).integers(0, 10, 500)


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(kuc=2, uuc_val=1, uuc_test=3),
        dict(kuc=1, uuc_val=0, uuc_test=4, train=0.5, val=0.25, test=0.25),
    ],
)
def test_equals_pytorch_ood(seed, options):
    """Oracle: DynamicOSS of pytorch-ood."""
    reference = pytest.importorskip("pytorch_ood.dataset.ossim").DynamicOSS
    names = {"train": "train_size", "val": "val_size", "test": "test_size"}

    class Labelled:
        targets = LABELS

        def __len__(self):
            return len(LABELS)

    theirs = reference(
        Labelled(), **{names.get(key, key): value for key, value in options.items()}, seed=seed
    )
    ours = open_set.dynamic(LABELS, seed=seed, **options)
    assert (
        set(ours.kkc) == theirs.kkc and set(ours.kuc) == theirs.kuc and set(ours.uuc) == theirs.uuc
    )
    for stage in open_set.STAGES:
        for role in open_set.ROLES:
            assert ours.rows[stage][role].tolist() == sorted(theirs.indices[stage][role]), (
                stage,
                role,
            )


def test_every_row_is_used_once():
    split = open_set.dynamic(LABELS, kuc=2, uuc_val=1, uuc_test=2, seed=3)
    rows = np.concatenate(
        [split.rows[stage][role] for stage in open_set.STAGES for role in open_set.ROLES]
    )
    assert (
        sorted(rows) == list(range(500))
        and len(split.kkc) == 5
        and not len(split.rows["train"]["uuc"])
    )
    assert len({*split.kkc, *split.kuc, *split.uuc}) == 10
    assert 0 < split.openness() < 1
    other = open_set.dynamic(LABELS, kuc=2, uuc_val=1, uuc_test=2, seed=4)
    assert set(other.kkc) != set(split.kkc)


def test_images_of_a_stage():
    images = ArrayImages(
        np.arange(500 * 12, dtype=np.uint32).astype(np.uint8).reshape(500, 3, 2, 2),
        LABELS,
        num_classes=10,
    )
    split = open_set.dynamic(LABELS, seed=1)
    known, unknown = split.take(images, "test")
    assert (
        known.num_classes == 6
        and set(known.labels) <= set(range(6))
        and (unknown.labels == -1).all()
    )
    for row, label in zip(split.rows["test"]["kkc"], known.labels):
        assert split.kkc[label] == LABELS[row]
    assert np.array_equal(known.images, images.images[split.rows["test"]["kkc"]])
    assert set(unknown.original_labels) == set(split.uuc_test)
    assert (
        split.take(images, "train")[1] is None and split.take(images, "val", known=False)[0] is None
    )
    with pytest.raises(InputError, match=r"unknown stage 'tset' \(did you mean 'test'\?\)"):
        split.take(images, "tset")


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(train=0.9), "must add up to 1"),
        (dict(uuc_val=5, uuc_test=5), "must stay known"),
        (dict(kuc=-1), "must stay known"),
    ],
)
def test_impossible_splits(options, words):
    with pytest.raises(InputError, match=words):
        open_set.dynamic(LABELS, **options)


def test_fixed_splits():
    for name, classes in (("cifar10", 10), ("tinyimagenet", 200)):
        assert len(open_set.SPLITS[name]) == 5
        for known in open_set.SPLITS[name]:
            assert (
                len(set(known)) == len(known) == {10: 6, 200: 20}[classes] and max(known) < classes
            )
    assert [len(set(open_set.CIFAR_PLUS[count])) for count in (10, 50)] == [10, 50]
    split = open_set.fixed(LABELS, open_set.SPLITS["cifar10"][0])
    assert (
        split.uuc_test == (3, 6, 7, 8)
        and len(split.rows["test"]["kkc"]) + len(split.rows["test"]["uuc"]) == 500
    )
    with pytest.raises(InputError, match="must be different"):
        open_set.fixed(LABELS, [1, 1])
    for trial, known in enumerate(open_set.SPLITS["cifar10"], 1):
        benchmark = load_benchmark(f"osr_cifar10_{trial}")
        assert benchmark.id_classes == known and sorted(
            known + benchmark.entries[0].classes
        ) == list(range(10))


def test_classes_of_a_benchmark(reference_data):
    root = reference_data("cifar10")
    benchmark = load_benchmark("osr_cifar10_1")
    test = benchmark.load_id("test", root)
    ood = benchmark.load_ood(benchmark.entries[0], len(test), root)
    assert (len(test), test.num_classes, len(ood)) == (6000, 6, 4000) and test.class_names == (
        "airplane",
        "automobile",
        "bird",
        "deer",
        "dog",
        "truck",
    )
    assert set(test.labels) == set(range(6)) and (ood.labels == -1).all()
    assert len(benchmark.load_id("train", root, limit=50)) == 50
