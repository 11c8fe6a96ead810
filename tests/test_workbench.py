"""A config made ready: what flags and files may say, and whose numbers may stand beside ours."""

import json

import pytest
from conftest import ROOT

import models
from ood.config import InputError
from ood.data import load_benchmark
from ood.evaluation import workbench

DICE = ROOT / "configs" / "dice_cifar10.json"


def published(**flags):
    config = workbench.read_config(DICE, flags)
    suite = load_benchmark(config.experiment.benchmark, config.experiment.protocol)
    paper, sets = workbench.published(config, suite)
    return set(paper.get("energy", {})), sets


def test_the_papers_numbers_stand_beside_the_same_sets_only():
    own, sets = published()
    assert "average" in own and len(own) == 7 and len(sets) == 6
    assert published(benchmark="dice_cifar10") == (own, sets)
    assert published(benchmark="openood_cifar10")[0] == set(), "other sets"
    assert published(benchmark="odin_cifar10")[0] == set(), "other ID images"


def test_a_benchmark_that_shares_sets_keeps_their_numbers_without_the_average(tmp_path):
    suite = json.loads((ROOT / "configs/benchmarks/dice_cifar10.json").read_text())
    suite["entries"] = suite["entries"][:2] + [{**suite["entries"][2], "limit": 100}]
    (tmp_path / "some.json").write_text(json.dumps(suite))
    found, _ = published(benchmark=str(tmp_path / "some.json"))
    assert len(found) == 2 and "average" not in found


def test_numbers_of_a_benchmark_that_is_not_there_are_left_out(tmp_path):
    values = {**json.loads(DICE.read_text()), "benchmark": "gone.json"}
    (tmp_path / "c.json").write_text(json.dumps(values))
    config = workbench.read_config(tmp_path / "c.json", {"benchmark": "dice_cifar10"})
    assert workbench.published(config, load_benchmark("dice_cifar10")) == ({}, ())
    with pytest.raises(InputError, match="gone"):
        load_benchmark(config.benchmark)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/benchmarks").glob("openood_*.json")))
def test_every_benchmark_of_openood_has_a_config(file):
    config = workbench.read_config(ROOT / "configs" / file.name)
    suite = load_benchmark(config.experiment.benchmark)
    assert suite.name == file.stem and suite.id_dataset == config.experiment.id_dataset
    assert config.method is None and workbench.make_detectors(config.experiment)


@pytest.mark.parametrize(
    "name, how",
    [
        ("mnist5k_small_ood", "give it with -classifier, or use a config without a method"),
        ("mnist5k_vmdls", "use a config without a method"),
    ],
)
def test_weights_of_a_classifier_for_a_method_are_named(name, how, tmp_path, call_script):
    """Before: no run with kind=classifier."""
    network = models.build("small_cnn", 10, in_channels=1, image_size=28)
    models.checkpoints.save(tmp_path / "w.pt", {"state_dict": network.state_dict()})
    done = call_script(
        "eval_ood.py",
        *("-config", ROOT / "configs" / f"{name}.json", "-checkpoint", "w.pt"),
        *("-device", "cpu", "-checkpoints_dir", "none", "-out_dir", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "'w.pt' holds a classifier (small_cnn), not the weights of method" in done.stderr
    assert how in done.stderr
