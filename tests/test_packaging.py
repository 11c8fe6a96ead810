"""What pip installs: the library and its networks, usable outside the clone; the files about it."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ood

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to Python 3.10

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
YAML = ("CITATION.cff", ".github/workflows/test.yml", "environment.yml")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "ood", "models", "configs/benchmarks")

# Runs where nothing but the installed package is on the path, in an empty folder.
USE = """
import torch
from pathlib import Path

import ood, ood.compat, ood.networks as networks
from ood import losses
from ood.deployment import networks as found
from ood.compat.detector import EnergyBased, Mahalanobis
from ood.compat.benchmark import CIFAR10_OpenOOD
from ood.compat.metrics import OODMetrics
from ood.compat.model import WideResNet, list_models
from ood.data import Preprocess, load
from ood.data.benchmark import benchmark_names
from ood.detectors import create
from ood.evaluation.passes import Passes
from ood.evaluation.scoring import TestSet, evaluate

assert Path(ood.__file__).is_relative_to(TARGET), ood.__file__
assert found.package() is networks
assert "openood_cifar10" in benchmark_names() and CIFAR10_OpenOOD.json == "openood_cifar10"
assert len(list_models()) >= 60 and networks.weights.find(list_models()[0])
assert isinstance(WideResNet(10, depth=10, widen_factor=1), networks.Classifier)

try:
    load("cifar10", "test", "no_data")
except ood.config.InputError as error:
    assert str(error).count("give download=True") == 1 and "script" not in str(error), error
else:
    raise AssertionError("cifar10 is not here")

torch.manual_seed(0)
train, test = (load("mnist5k", split, limit=256) for split in ("train", "test"))
network = networks.build("small_cnn", 10, width=4, in_channels=1, image_size=28)
normal = Preprocess((0.13,), (0.31,))
labels = torch.as_tensor(train.labels)
loss, optimizer = losses.create("logitnorm"), torch.optim.Adam(network.parameters(), 0.01)
pixels = torch.cat([normal(batch) for batch in train.batches(64)])
for step in range(30):
    rows = torch.randint(len(labels), (64,))
    value = loss(network(pixels[rows]), labels[rows])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()

network.eval()
letters = load("letters", "test", limit=100)
result = evaluate(
    Passes(network, normal),
    train,
    test,
    [TestSet("letters", letters)],
    {name: create(name) for name in ("energy", "vim", "odin")},
)
assert {row["detector"] for row in result.rows} == {"energy", "vim", "odin"}

metrics = OODMetrics()
with torch.no_grad():
    fitted = Mahalanobis(network.features).fit([(pixels, labels)])
    for images, y in ((test, 1), (letters, -1)):
        x = torch.cat([normal(batch) for batch in images.batches(64)])
        assert EnergyBased(network)(x).shape == (len(images),)
        metrics.update(fitted(x), torch.full((len(images),), y))
print("AUROC", metrics.compute()["AUROC"])
"""


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this working tree, built from a copy: setuptools writes beside its sources."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed (requirements-dev.txt)")
    copy, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, copy)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def test_the_wheel_holds_every_module_and_no_top_level_but_ood(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {f"ood/{p.relative_to(ROOT / 'ood')}" for p in (ROOT / "ood").rglob("*.py")}
    wanted |= {f"ood/networks/{p.relative_to(ROOT / 'models')}" for p in sources("models", "py")}
    for folder in ("ood", "models"):
        name = {"models": "ood/networks"}.get(folder, folder)
        wanted |= {f"{name}/{p.relative_to(ROOT / folder)}" for p in sources(folder, "json")}
    wanted |= {f"ood/configs/benchmarks/{p.name}" for p in sources("configs/benchmarks", "json")}
    assert held == wanted


def sources(folder: str, ending: str) -> list[Path]:
    return list((ROOT / folder).rglob(f"*.{ending}"))


def test_pyproject_lists_every_package():
    """After a new folder with an __init__.py, add it to the list of packages in pyproject.toml."""
    found = {"ood.configs.benchmarks"}
    for folder, name in (("ood", "ood"), ("models", "ood.networks")):
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *file.parent.relative_to(ROOT / folder).parts]))
    assert PYPROJECT["tool"]["setuptools"]["packages"] == sorted(found)


def test_only_python_and_json_files_lie_in_the_packages():
    """Files of another kind would stay behind: package-data of pyproject.toml names *.json."""
    others = {
        path
        for folder in ("ood", "models", "configs/benchmarks")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix not in (".py", ".json", ".pyc")
    }
    assert not others


def test_the_installed_library_trains_fits_and_scores_outside_the_clone(installed, tmp_path):
    code = f"TARGET = {str(installed)!r}\n{USE}"
    done = run_installed(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.5


def test_every_installed_module_can_be_imported(installed, tmp_path):
    code = (
        "import importlib, pkgutil, ood\n"
        "for found in pkgutil.walk_packages(ood.__path__, 'ood.'):\n"
        "    try:\n"
        "        importlib.import_module(found.name)\n"
        "    except ImportError as error:\n"
        "        if 'pip install' not in str(error): raise\n"
        "    print(found.name)\n"
    )
    done = run_installed(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"ood.networks.wideresnet", "ood.compat.detector", "ood.config"} <= set(
        done.stdout.split()
    )


def run_installed(code: str, target: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run code in `folder` with `target` on the path, and the clone not."""
    start = f"import sys\nsys.path.insert(0, {str(target)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_requirements_and_pyproject_agree():
    assert PROJECT["dependencies"] == requirements("requirements.txt")
    assert PROJECT["optional-dependencies"]["dev"] == requirements("requirements-dev.txt")


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def test_conda_installs_the_requirements_on_a_python_that_pyproject_allows():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "- -r requirements.txt" in text
    major, minor = map(int, re.search(r"- python=(\d+)\.(\d+)", text).groups())
    assert PROJECT["requires-python"] == ">=3.10" and (major, minor) >= (3, 10)


def test_the_version_stands_in_one_place():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ood.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ood.__version__)
    tree = ast.parse((ROOT / "ood" / "__init__.py").read_text(encoding="utf-8"))
    assert ood.__version__ in [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]


def test_the_wheel_carries_version_licence_and_extras(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert f"Name: ood-reproduced\nVersion: {ood.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    for extra in ("timm", "hf", "text", "segmentation", "lightning", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_the_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert [f"\n   {number}. " in text for number in range(1, 10)] == [True] * 9
    assert "END OF TERMS AND CONDITIONS" in text
    assert "The authors of ood-reproduced" in text


def test_the_citation_names_this_repository_and_four_papers():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert set(re.findall(r"^([\w-]+):", text, re.M)) >= {
        "cff-version",
        "message",
        "title",
        "authors",
    }
    assert re.findall(
        r'name: "(.* 20\d\d)"\n    (?:start.*\n    end.*\n    )?url: ".*?([\w.]+)"', text
    ) == [
        ("ECCV 2022", "2111.09805"),
        ("WACV 2023", "2211.08115"),
        ("ECCV 2018", "1809.03576"),
        ("UAI 2022", "ScLeuUUi9gq"),
    ]
    assert text.count("given-names:") == text.count("family-names:") == 12


def test_the_workflow_runs_the_tests_on_every_python():
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert 'python-version: ["3.10", "3.11", "3.12", "3.13"]' in text
    for command in ("./scripts/test.sh", "ruff check .", "ruff format --check ."):
        assert f"- run: {command}\n" in text


@pytest.mark.parametrize("name", YAML)
def test_yaml_files_are_plain(name):
    """Every line is a key or an item, indented by twos, with its quotes and brackets closed."""
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert (len(line) - len(line.lstrip())) % 2 == 0 and "\t" not in line, line
        assert not line or re.match(r" *(- )?[\w-]+:( \S|$)| *- \S", line), line
        assert line.count('"') % 2 == 0 and line.count("[") == line.count("]"), line


@pytest.mark.parametrize("name", YAML)
def test_yaml_files_can_be_parsed(name):
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    if name == "CITATION.cff":
        people = [person for work in found["references"] for person in work["authors"]]
        assert all(person.keys() == {"family-names", "given-names"} for person in people)
    assert isinstance(found, dict)
