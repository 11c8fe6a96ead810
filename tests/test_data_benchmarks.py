"""Benchmarks are pure data: every file parses, names known sets, keeps its paper's order.

Protocols and limits do what they say.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ood.config import InputError
from ood.data import benchmark_names, info, load_benchmark, names

ORDER = {
    "dice_cifar10": ["svhn_selected", "LSUN", "LSUN_resize", "iSUN", "dtd", "places365"],
    "dice_imagenet": ["dtd", "SUN", "iNaturalist", "Places"],
    "odin_cifar10": [
        "Imagenet",
        "Imagenet_resize",
        "LSUN",
        "LSUN_resize",
        "iSUN",
        "uniform",
        "gaussian",
    ],
    "heatmap_cifar10": ["iSUN", "dtd", "svhn", "places365", "LSUN", "LSUN_resize"],
    "heatmap_tinyimagenet": ["dtd", "iNaturalist", "SUN"],
    "vmdls_cifar10": ["Imagenet", "Imagenet_resize", "LSUN", "LSUN_resize"],
    "vmdls_mnist": ["omniglot", "mnist_noise", "noise"],
    "demo": ["letters", "patches", "mnist_noise", "noise"],
}
ORDER |= {
    name.replace("cifar10", "cifar100"): order
    for name, order in ORDER.items()
    if name.endswith("cifar10")
}


@pytest.fixture
def data_dir(tmp_path):
    """CIFAR-10 as ten images, three OOD sets of images in other shapes."""
    generator = np.random.default_rng(0)

    def write(path, height, width):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)

    for name in info("cifar10").class_names:
        write(tmp_path / "cifar10" / "test" / name / "0.png", 32, 32)
    for number in range(12):
        write(tmp_path / "ood_datasets" / "Imagenet" / "test" / f"{number}.png", 36, 36)
        write(tmp_path / "ood_datasets" / "iSUN" / f"{number}.png", 32, 32)
        write(
            tmp_path / "ood_datasets" / "dtd" / "images" / "banded" / f"{number}.png",
            50 + number,
            60,
        )
    return tmp_path


def write_benchmark(tmp_path, **changes):
    content = {
        "id_dataset": "cifar10",
        "size": 32,
        "channels": 3,
        "entries": [{"dataset": "iSUN"}, {"dataset": "dtd"}],
        **changes,
    }
    (tmp_path / "own.json").write_text(
        json.dumps({key: value for key, value in content.items() if value != "absent"})
    )
    return tmp_path / "own.json"


@pytest.mark.parametrize("name", benchmark_names())
def test_every_benchmark(name):
    benchmark = load_benchmark(name)
    assert benchmark.name == name and benchmark.id_dataset in names("id")
    assert [entry.dataset for entry in benchmark.entries] == ORDER.get(
        name, [entry.dataset for entry in benchmark.entries]
    )
    for entry in benchmark.entries:
        assert (
            entry.dataset in names()
            and entry.label
            and entry.group in ("near", "far", None)
            and entry.split in info(entry.dataset).splits
        )
    labels = [entry.label for entry in benchmark.entries]
    assert (
        len(labels) == len(set(labels))
        and benchmark.notes
        and (benchmark.source or name == "demo" or "docs/" in benchmark.notes)
    )
    assert benchmark.mean is None or len(benchmark.mean) == len(benchmark.std) == benchmark.channels


def test_no_benchmark_is_missing():
    assert set(ORDER) <= set(benchmark_names())


def test_the_papers_numbers():
    dice, odin, heatmap = (
        load_benchmark(f"{name}_cifar10") for name in ("dice", "odin", "heatmap")
    )
    assert (dice.size, [entry.size for entry in dice.entries]) == (32, [32] * 6)
    assert (odin.size, odin.skip_first, {entry.size for entry in odin.entries}) == (
        None,
        1000,
        {None},
    )
    assert np.allclose(odin.mean, np.array([125.3, 123.0, 113.9]) / 255) and np.allclose(
        odin.std, np.array([63.0, 62.1, 66.7]) / 255
    )
    assert heatmap.first_fraction == 0.2 and heatmap.mean == heatmap.std == (0.5, 0.5, 0.5)
    assert {entry.label: entry.size for entry in heatmap.entries} == {
        "isun": None,
        "textures": 32,
        "svhn": None,
        "places365": 32,
        "lsun-c": 32,
        "lsun-r": None,
    }
    tiny = load_benchmark("heatmap_tinyimagenet")
    assert tiny.resize == (64, 64) and {entry.resize for entry in tiny.entries} == {(64, 64)}
    imagenet = load_benchmark("dice_imagenet")
    assert {(entry.size, entry.resize) for entry in imagenet.entries} == {(224, 256)}
    assert load_benchmark("vmdls_mnist").entries[0].limit == 10_000


def test_demo_needs_no_files(tmp_path):
    demo = load_benchmark("demo")
    test = demo.load_id("test", tmp_path)
    assert len(test) == 1000 and len(demo.load_id("train", tmp_path)) == 4000
    assert [entry.group for entry in demo.entries] == ["near", "far", "far", "far"]
    for entry in demo.entries:
        images = demo.load_ood(entry, len(test), tmp_path)
        assert len(images) == 1000 and images.shape == test.shape and (images.labels == -1).all()
        assert len(demo.load_ood(entry, 50, tmp_path, limit=50)) == 50


def test_size_is_inherited_and_null_means_as_stored(tmp_path, data_dir):
    file = write_benchmark(
        tmp_path,
        entries=[
            {"dataset": "dtd"},
            {"dataset": "Imagenet", "size": None},
            {"dataset": "iSUN", "size": 20, "resize": 30},
        ],
    )
    benchmark = load_benchmark(file)
    shapes = [benchmark.load_ood(entry, 10, data_dir).shape for entry in benchmark.entries]
    assert shapes == [(3, 32, 32), (3, 36, 36), (3, 20, 20)]


def test_first_fraction_takes_the_first(tmp_path, data_dir):
    file = write_benchmark(tmp_path, first_fraction=0.2)
    paper, full = load_benchmark(file), load_benchmark(file, protocol="full")
    isun = paper.entries[0]
    whole = full.load_ood(isun, 10, data_dir)
    assert len(whole) == 12 and full.first_fraction is None
    first = paper.load_ood(isun, len(paper.load_id("test", data_dir)), data_dir)
    assert first.paths == whole.paths[:2] == ["0.png", "1.png"]
    assert (
        len(paper.load_ood(isun, 1, data_dir)) == 1
        and len(paper.load_ood(isun, 10_000, data_dir)) == 12
    )


def test_skip_first_leaves_out_the_hold_out(tmp_path, data_dir):
    paper = load_benchmark(write_benchmark(tmp_path, skip_first=3))
    full = load_benchmark(tmp_path / "own.json", protocol="full")
    for load in (
        lambda b: b.load_id("test", data_dir),
        lambda b: b.load_ood(b.entries[0], 10, data_dir),
    ):
        kept, whole = load(paper), load(full)
        assert kept.paths == whole.paths[3:] and torch.equal(next(kept.batches(1)), whole.read([3]))
    assert len(paper.load_id("test", data_dir, limit=4)) == 4
    with pytest.raises(InputError, match="12 images, but benchmark 'own' skips the first 12"):
        broken = load_benchmark(write_benchmark(tmp_path, skip_first=12))
        broken.load_ood(broken.entries[0], 10, data_dir)


def test_labelled_sets_become_outliers(tmp_path, data_dir):
    (data_dir / "cifar10" / "train").mkdir()
    benchmark = load_benchmark(
        write_benchmark(tmp_path, id_dataset="mnist5k", entries=[{"dataset": "cifar10"}])
    )
    ood = benchmark.load_ood(benchmark.entries[0], 10, data_dir)
    assert (ood.labels == -1).all() and ood.original_labels.tolist() == list(range(10))


def test_own_folders(tmp_path, data_dir):
    benchmark = load_benchmark(
        write_benchmark(
            tmp_path,
            entries=[{"dataset": f"{data_dir}/ood_datasets/iSUN", "label": "mine", "group": "far"}],
        )
    )
    assert len(benchmark.load_ood(benchmark.entries[0], 10, data_dir, limit=5)) == 5


def test_select():
    benchmark = load_benchmark("heatmap_cifar10")
    assert benchmark.select(None) is benchmark
    chosen = benchmark.select(["lsun-r", "TEXTURES", "iSUN"])
    assert [entry.dataset for entry in chosen.entries] == [
        "iSUN",
        "dtd",
        "LSUN_resize",
    ]  # the benchmark's order
    assert [entry.dataset for entry in load_benchmark("dice_cifar10").select(["svhn"]).entries] == [
        "svhn_selected"
    ]
    with pytest.raises(
        InputError, match=r"has no OOD set 'iSNU' \(did you mean 'iSUN'\?\); it has: iSUN, dtd"
    ):
        benchmark.select(["iSNU"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"entries": [{"dataset": "iSNU"}]}, r"unknown data set 'iSNU' \(did you mean 'iSUN'\?\)"),
        ({"id_dataset": "cifar11"}, "unknown data set 'cifar11'.*did you mean 'cifar1"),
        (
            {"entries": [{"dataset": "iSUN", "gruop": "far"}]},
            r"entry 1: unknown key 'gruop' \(did you mean 'group'\?\)",
        ),
        ({"entries": [{"dataset": "iSUN", "group": "middle"}]}, "allowed: near, far"),
        (
            {"frist_fraction": 0.2},
            r"unknown key 'frist_fraction' \(did you mean 'first_fraction'\?\)",
        ),
        ({"entries": []}, "'entries' must be a list"),
        ({"entries": ["iSUN"]}, "'entries' must be a list of objects"),
        ({"entries": [{"dataset": "iSUN"}, {"dataset": "iSUN"}]}, "'iSUN' appears twice"),
        ({"entries": [{"group": "far"}]}, "missing key 'dataset'"),
        ({"id_dataset": "absent"}, "missing key 'id_dataset'"),
        ({"size": "32"}, "'size' must be of type int"),
    ],
)
def test_bad_benchmarks(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load_benchmark(write_benchmark(tmp_path, **changes))


def test_benchmark_that_cannot_be_read(tmp_path):
    with pytest.raises(
        InputError,
        match=r"no benchmark 'dice_cifar1' \(did you mean 'dice_cifar10+'\?\); known: .*vmdls_m",
    ):
        load_benchmark("dice_cifar1")
    with pytest.raises(InputError, match="no benchmark '.*nowhere.json'"):
        load_benchmark(tmp_path / "nowhere.json")
    for text, words in (("{", "not valid JSON"), ("[]", "must hold a JSON object, not a list")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=words):
            load_benchmark(tmp_path / "bad.json")
    with pytest.raises(InputError, match="unknown protocol 'papr'"):
        load_benchmark("demo", protocol="papr")
