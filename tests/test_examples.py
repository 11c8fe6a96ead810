"""examples/: every program runs at a tiny size, is short, and says what it should print."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "examples"
LINES = 60
# Arguments of a tiny run, and what its output must hold.
RUNS = {
    "own_loop": (["-limit", 100], r"EnergyBased .*\nKNN .*\nViM +AUROC \d\.\d{3}"),
    "benchmark": (["-limit", 100], r"mds +near .* far \d+\.\d \(\d+\.\d to \d+\.\d\)"),
    "detectors": (["-limit", 100], r"gradients\n  odin .*\n  mds_odin .*fitted\n"),
    "loss_with_outliers": (["-limit", 100], r"EnergyRegularizedLoss, EnergyBased +AUROC \d\.\d{3}"),
    "loss_without_outliers": (["-limit", 100], r"CAC +AUROC .*\nDeep SVDD +AUROC \d\.\d{3}"),
    "search": (["-limit", 100], r"knn +default .*\n +chosen without OOD data \d\.\d{3}"),
    "open_set": (["-limit", 300, "-seeds", 1], r"(unknown \[\d, \d, \d, \d\]: \w+ +AUROC .*\n){2}"),
    "segmentation": (["-scenes", 16], r"EnergyBased +AUROC \d\.\d{3} .* AP \d\.\d{3}"),
    "text": (
        ["-limit", 40],
        r"baseline +MaxSoftmax .*\n(.*\n)?with outliers +MaxSoftmax +AUROC \d",
    ),
    "train_with_lightning": (["-limit", 100], r"AUROC +\d\.\d+ *\n(.*\n)*? *FPR95TPR +\d"),
}
NEEDS = {"train_with_lightning": "lightning"}


@pytest.fixture
def run_example(call_script):
    """Run examples/<name>.py in this process, small as in RUNS; return what it printed."""

    def run(name: str, *more) -> str:
        needed = NEEDS.get(name)
        if needed and importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed (pip install .[{needed}])")
        done = call_script(f"examples/{name}.py", *RUNS[name][0], *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, run_example):
    assert re.search(RUNS[name][1], run_example(name))


def test_every_example_is_run_and_listed():
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == RUNS.keys()
    listed = re.findall(r"\]\((\w+)\.py\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(files)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_short_and_says_what_it_prints(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= LINES
    assert f"\n    python3 examples/{name}.py" in doc
    said = doc.partition("This should ")[2].partition(":\n\n")[2]
    assert re.search(RUNS[name][1], re.sub(r"^    ", "", said, flags=re.M) + "\n"), said


def test_it_runs_in_the_clone_without_installation():
    """In a process of its own, which finds `ood` in the folder where it is started."""
    done = subprocess.run(
        [sys.executable, FOLDER / "own_loop.py", "-h"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "-limit" in done.stdout, done.stderr
