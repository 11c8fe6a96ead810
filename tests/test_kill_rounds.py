"""scripts/kill_rounds.py: what it counts as a failure, on commands that fail as told."""

from __future__ import annotations

import importlib.util
import random
import sys

import pytest
from conftest import ROOT

# Writes half a file, waits where it is to be killed, and ends as told when it is run again.
COMMAND = """
import pathlib, sys, time
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
again = folder.is_dir()
folder.mkdir(parents=True, exist_ok=True)
(folder / "half").write_text("1")
print("begun", flush=True)
if folder.name.startswith("round") and not again:
    time.sleep(60)
(folder / "result").write_text("other" if again and how == "different" else "same")
if how != "left over" or not again:
    (folder / "half").unlink()
"""


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "kill_rounds.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("how, failed", (("well", 0), ("different", 2), ("left over", 2)))
def test_rounds_that_do_not_hold_are_counted(script, tmp_path, capsys, how, failed):
    kind = script.Kind(
        "toy",
        lambda folder: [sys.executable, "-S", "-c", COMMAND, str(folder), how],
        "begun",
        lambda folder: {"result": (folder / "result").read_text()},
    )
    assert script.rounds(kind, 2, tmp_path, random.Random(0)) == failed
    out = capsys.readouterr().out
    assert "toy 2/2: killed after" in out and "1 half-made files" in out
    assert ("DIFFERENT" in out) == (how == "different")
    assert ("1 left over: half" in out) == (how == "left over")


def test_a_command_that_fails_is_named(script):
    with pytest.raises(script.cli.RunError, match="failed: no such thing"):
        script.finish([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
