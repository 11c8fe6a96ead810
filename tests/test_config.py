"""Settings: JSON, flags and defaults; the layering of the package."""

import ast
import json
from dataclasses import dataclass
from typing import Literal

import pytest
from conftest import ROOT

from ood.config import InputError, build, merge, nearest, read_json
from ood.evaluation.workbench import make_detectors, read_config


@dataclass(frozen=True)
class Settings:
    epochs: int
    lr: float = 0.1
    depth: int | None = None
    mean: tuple[float, ...] = (0.5,)
    pairing: Literal["correct", "released"] = "correct"


def test_values_are_checked_and_converted():
    made = build(Settings, {"epochs": 3, "lr": 1, "depth": "N/A", "mean": [1, 2]})
    assert made == Settings(3, 1.0, None, (1.0, 2.0))
    assert isinstance(made.lr, float) and isinstance(made.mean[0], float)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"epochs": 3, "learning": 1}, "unknown key 'learning'"),
        ({"epochs": 3, "epoch": 1}, "did you mean 'epochs'"),
        ({"epochs": "3"}, "must be of type int"),
        ({"epochs": True}, "must be of type int"),
        ({"epochs": 3, "pairing": "release"}, "did you mean 'released'"),
        ({"epochs": 3, "mean": 1.0}, "must be a list"),
        ({}, "missing key 'epochs'"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(InputError, match=words):
        build(Settings, values)


def test_flags_win_over_json_and_groups_are_flattened(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(
        json.dumps(
            {"fundamental": {"epochs": 3, "lr": 0.5}, "optimization": {"lr": 0.2}, "depth": 4}
        )
    )
    values = read_json(file)
    assert values == {"epochs": 3, "lr": 0.2, "depth": 4}
    assert build(Settings, merge(values, {"lr": 0.3, "depth": None})) == Settings(3, 0.3, 4)


@pytest.mark.parametrize(
    "content, words",
    [("{", "not valid JSON"), ("[1]", "must hold a JSON object"), (None, "no config file")],
)
def test_bad_files(tmp_path, content, words):
    file = tmp_path / "c.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_json(file)


def test_nearest():
    assert nearest("enrgy", ["energy", "msp"]) == " (did you mean 'energy'?)"
    assert nearest("qqq", ["energy", "msp"]) == ""


def test_every_evaluation_config_is_valid():
    from ood.data import load_benchmark

    found = 0
    for file in sorted((ROOT / "configs").glob("*.json")):
        values = read_json(file)
        if "benchmark" in values and "method" not in values:
            experiment = read_config(file).experiment
            assert make_detectors(experiment)
            assert load_benchmark(experiment.benchmark).id_dataset == experiment.id_dataset
            found += 1
    assert found >= 4


def _imports(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                names = []
            for name in names:
                yield file, name


def test_models_and_ood_never_import_each_other_and_nobody_imports_a_script():
    scripts = {f.stem for f in ROOT.glob("*.py")}
    for folder, other in (("models", "ood"), ("ood", "models")):
        for file, name in _imports(folder):
            assert name.split(".")[0] != other, f"{file} imports {name}"
            assert name.split(".")[0] not in scripts - {"test"}, f"{file} imports the script {name}"


def test_layout_is_complete():
    for name in (
        "README.md",
        "environment.yml",
        "requirements.txt",
        "requirements-dev.txt",
        "classifier_pretraining.py",
        "eval_ood.py",
        "demo.sh",
        "demo-cifar.sh",
        "demo-imagenet.sh",
        "configs",
        "models",
        "datasets/README.md",
        "checkpoints/README.md",
        "scripts/test.sh",
        ".ci/run",
    ):
        assert (ROOT / name).exists(), name
