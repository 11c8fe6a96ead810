"""Shared fixtures: where reference files lie, unpacked once per machine, and small helpers.

Reference files (the authors' weights and scores, packed real images) are not part of the
repository. Set OOD_REFERENCE_DIR, or put them in a folder `shared` beside the checkout. Tests that
need them say so when they skip.

The suite runs in one process or in several (pytest-xdist, see scripts/test.sh). With several, every
process has its own session fixtures; what should be made only once goes through `made_once`.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is loaded: see models/__init__.py

import torch

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("OOD_REFERENCE_DIR", ROOT.parent / "shared"))
WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes
THREADS = 1 if WORKER else min(2, os.cpu_count() or 1)

# These files take longest, so several processes begin with them.
SLOWEST = (
    "test_pretraining",
    "test_distributed",
    "test_heatmap_training",
    "test_leaveout_training",
    "test_detectors_scripts",
    "test_vmdls_train",
    "test_testscript",
    "test_data",
    "test_losses_training",
    "test_data_open_set",
)


def pytest_collection_modifyitems(items):
    """Put the slowest files first, if several processes share the suite."""
    if WORKER:
        places = {name: place for place, name in enumerate(SLOWEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(SLOWEST)))


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    from ood.cli import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Fill a folder once per test run, however many processes it has.

    made_once(name, make) calls make(folder) in the first process that asks, and returns the folder.
    The tests must not write into it.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if WORKER else base) / "made-once"

    def folder_of(name: str, make) -> Path:
        folder, done = root / name, root / f"{name}.done"
        root.mkdir(exist_ok=True)
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def digits_run(made_once) -> Path:
    """A run folder of the real script: small_cnn of width 4 on 400 embedded digits, two epochs.

    Copy it (shutil.copytree) before anything is written into it.
    """

    def train(folder: Path):
        given = "-arch small_cnn -width 4 -epochs 2 -limit 400 -batch_size 32 -schedule constant"
        words = [*given.split(), "-device", "cpu", "-out_dir", str(folder / "run")]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            assert _run_as_main("classifier_pretraining.py", words, patch) == 0

    return made_once("digits-run", train) / "run"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference files (weights, golden values)."""
    folder = REFERENCE / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference files in {folder} (set OOD_REFERENCE_DIR)")
    return folder


@pytest.fixture(scope="session")
def golden(reference):
    """Read golden values: golden('heatmap') is the parsed file.

    golden.fill is the module that fills a network with deterministic weights.
    """

    class Golden:
        fill = _module(reference / "golden" / "fill.py")

        def __call__(self, name):
            text = (reference / "golden" / f"{name}.json").read_text(encoding="utf-8")
            return json.loads(text)

    return Golden()


@pytest.fixture(scope="session")
def reference_data():
    """Unpack archives of real images, once per machine.

    reference_data('isun', 'dtd') returns a data root that holds them.
    """
    script = REFERENCE / "data" / "unpack.sh"

    def unpack(*names: str) -> Path:
        if not script.is_file():
            pytest.skip(f"no packed images in {script.parent} (set OOD_REFERENCE_DIR)")
        root = Path(tempfile.gettempdir()) / f"ood-reference-data-{os.getuid()}"
        root.mkdir(exist_ok=True)
        with open(root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in names:
                done = root / f".{name}.done"
                if not done.exists():
                    command = ["bash", str(script), str(root), name]
                    subprocess.run(command, check=True, capture_output=True)
                    done.touch()
        return root

    return unpack


@pytest.fixture(scope="session")
def run_script():
    """Run a script of the repository in a process of its own, for example ('eval_ood.py', '-h')."""

    def run(
        script: str, *arguments, cwd: Path = ROOT, env: dict | None = None, timeout: float = 300
    ):
        own = {"OMP_NUM_THREADS": str(THREADS), "MPLBACKEND": "Agg", **(env or {})}
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def call_script(monkeypatch, capfd):
    """Like run_script, but within this process: Python and torch do not start again."""

    def call(script: str, *arguments, cwd: Path = ROOT):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = _run_as_main(script, arguments, monkeypatch)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([script, *arguments], code, out, err)

    return call


def _run_as_main(script: str, arguments, patch: pytest.MonkeyPatch) -> int:
    """Run a script of the repository as __main__ in this process and return its exit code."""
    patch.setattr(sys, "argv", [script, *map(str, arguments)])
    patch.setattr(sys, "path", [str(ROOT), *sys.path])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
