"""ood.compat.networks: how the library finds the networks, in the clone and beside a namesake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
from models import wideresnet
from ood.compat import networks

ROOT = Path(__file__).resolve().parent.parent


def test_in_the_clone_the_package_is_models():
    assert networks.package() is models
    assert networks.submodule("wideresnet") is wideresnet


def test_a_foreign_models_package_is_not_taken(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('the foreign package')")
    code = (
        "from ood.compat import networks\n"
        "package = networks.package()\n"
        "assert package is networks.package()\n"
        "print(package.__name__, package.build('small_cnn', 3).arch['arch'],"
        " networks.submodule('wideresnet').__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{code}"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["ood.networks", "small_cnn", "ood.networks.wideresnet"]
