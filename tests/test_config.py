"""Settings: JSON, flags and defaults; the layering of the package."""

import ast
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from conftest import ROOT

from ood import cli
from ood.config import InputError, build, merge, nearest, ranged, read_json
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
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        (None, "no config file"),
        ('{"epochs": ' + 100_000 * "[" + 100_000 * "]" + "}", "nested too deeply"),
        ('{"epochs": ' + 5000 * "9" + "}", "not valid JSON: Exceeds the limit"),
        ('{"lr": NaN}', "NaN is no number in JSON"),
        ('{"lr": -Infinity}', "-Infinity is no number in JSON"),
        (b'{"lr": "\xff"}', "not valid JSON: .utf-8. codec"),
    ],
)
def test_bad_files(tmp_path, content, words):
    file = tmp_path / "c.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        read_json(file)


@dataclass(frozen=True)
class Bounded:
    share: float = ranged(0.5, above=0, high=1)
    count: int = ranged(3, 1, 10)
    weights: tuple[float, ...] | None = ranged(None, 0)
    free: float = 1.0
    on: bool = False


@pytest.mark.parametrize(
    "values, words",
    [
        ({"share": 0}, "'share' is 0.0; it must be above 0 and at most 1"),
        ({"share": 1.01}, "at most 1"),
        ({"share": float("nan")}, "'share' is nan"),
        ({"share": -float("inf")}, "'share' is -inf"),
        ({"share": 10**5000}, "beyond the numbers that a float can hold"),
        ({"count": 0}, "'count' is 0; it must be at least 1 and at most 10"),
        ({"count": 10**5000}, "a number of more than 30 digits"),
        ({"count": 2.5}, "must be of type int"),
        ({"count": np.float64(2)}, "must be of type int"),
        ({"weights": [1, -1]}, "'weights' is -1.0; it must be finite and at least 0"),
        ({"free": float("inf")}, "'free' is inf; it must be finite"),
        ({"on": 1}, "must be of type bool"),
    ],
)
def test_numbers_stay_in_their_range(values, words):
    with pytest.raises(InputError) as refused:
        build(Bounded, values)
    assert words in str(refused.value)


@dataclass(frozen=True)
class Seeded:
    seed: int = 0
    split_seed: int = 0


@pytest.mark.parametrize("seed", [-4, 2**63, 10**26, 10**5000], ids=lambda n: n.bit_length())
def test_seeds_are_those_that_every_generator_takes(seed):
    assert build(Seeded, {"seed": 2**63 - 1, "split_seed": 0}).seed == 2**63 - 1
    for name in ("seed", "split_seed"):
        with pytest.raises(InputError, match=f"'{name}' is .*; it must be at least 0 and at most"):
            build(Seeded, {name: seed})
    with pytest.raises(InputError, match="-seed is .*; it must be an integer from 0 to 2"):
        cli.set_seed(seed)


def test_bounds_that_belong_to_a_range_are_taken():
    made = build(Bounded, {"share": 1, "count": np.int64(10), "weights": [0], "on": True})
    assert made == Bounded(1.0, 10, (0.0,), 1.0, True) and type(made.count) is int


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


def text_files_without_encoding(file):
    """The calls of read_text, write_text and open that leave the encoding to the system."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if name == "read_text" and not node.args:
            yield node.lineno
        elif name == "write_text" and len(node.args) == 1:
            yield node.lineno
        elif name == "open" and owner not in ("os", "Image", "tarfile", "zipfile", "gzip"):
            binary = any("b" in mode for mode in modes if isinstance(mode, str))
            variable = len(node.args) > (isinstance(function, ast.Name) and 1) and not modes
            if not binary and not variable:
                yield node.lineno


def test_text_files_are_utf_8_whatever_the_system_says():
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    files += [file for folder in ("ood", "models") for file in (ROOT / folder).rglob("*.py")]
    found = [f"{file}:{line}" for file in files for line in text_files_without_encoding(file)]
    assert len(files) > 100 and not found, found


def test_a_call_without_an_encoding_is_found(tmp_path):
    file = tmp_path / "code.py"
    lines = """
path.read_text()
path.read_text("utf-8")
path.write_text(text)
path.write_text(text, encoding="utf-8")
open(path)
open(path, "w")
open(path, "rb")
path.open()
path.open("xb")
open(path, mode)
open(path, encoding="utf-8")
os.open(path, flags)
"""
    file.write_text(lines, encoding="utf-8")
    assert list(text_files_without_encoding(file)) == [2, 4, 6, 7, 9]


@pytest.mark.parametrize(
    "script", [*sorted(f.name for f in ROOT.glob("*.py")), "scripts/score_images.py"]
)
def test_ctrl_c_while_torch_loads_is_one_line(tmp_path, script, run_script):
    for package in ("torch", "numpy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    done = run_script(script, "-h", env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_no_flag_is_guessed_from_its_beginning(capsys):
    """Despite allow_abbrev=False, argparse of Python 3.11 takes `-epoc` for `-epochs`."""
    parser = cli.Parser("Test.")
    parser.flag("-epochs", type=int, help="of the training")
    parser.flag("-margin", help="of the loss", aliases=("-margin_jump",))
    for flag in ("-epochs", "--epochs"):
        assert parser.parse_args([flag, "3"]).epochs == 3
        assert parser.parse_args([f"{flag}=3"]).epochs == 3
    assert parser.parse_args(["--margin_jump", "-0.5"]).margin == "-0.5"
    for words in (["-epoc", "3"], ["--epoc", "3"], ["-e", "3"], ["-epochs3"], ["-epoc=3"]):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(words)
        assert end.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_layout_is_complete():
    for name in (
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "pyproject.toml",
        ".github/workflows/test.yml",
        "examples/README.md",
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
