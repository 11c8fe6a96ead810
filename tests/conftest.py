"""Shared fixtures: where reference files lie, unpacked once per machine, and small helpers.

Reference files (the authors' weights and scores, packed real images) are not part of the repository. Set OOD_REFERENCE_DIR, or put
them in a folder `shared` beside the checkout; tests that need them say so when they skip.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is loaded: see models/__init__.py

import torch

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("OOD_REFERENCE_DIR", ROOT.parent / "shared"))


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    from ood.cli import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference files (weights, golden values)."""
    folder = REFERENCE / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference files in {folder} (set OOD_REFERENCE_DIR)")
    return folder


@pytest.fixture(scope="session")
def golden(reference):
    """golden('heatmap') -> the parsed file; golden.fill -> the module that fills a network with deterministic weights."""

    class Golden:
        fill = _module(reference / "golden" / "fill.py")

        def __call__(self, name):
            return json.loads((reference / "golden" / f"{name}.json").read_text())

    return Golden()


@pytest.fixture(scope="session")
def reference_data():
    """reference_data('isun', 'dtd') -> a data root in which those archives are unpacked (once per machine)."""
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
                    subprocess.run(
                        ["bash", str(script), str(root), name], check=True, capture_output=True
                    )
                    done.touch()
        return root

    return unpack


@pytest.fixture(scope="session")
def run_script():
    """run_script('eval_ood.py', '-h') -> CompletedProcess of the real file, in a folder of its own when `cwd` is given."""

    def run(
        script: str, *arguments, cwd: Path = ROOT, env: dict | None = None, timeout: float = 300
    ):
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "MPLBACKEND": "Agg", **(env or {})}
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def call_script(monkeypatch, capfd):
    """Like run_script, but in this process (no second start of Python and torch): the real file, run as __main__."""
    import runpy

    def call(script: str, *arguments, cwd: Path = ROOT):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([script, *arguments], code, out, err)

    return call


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
