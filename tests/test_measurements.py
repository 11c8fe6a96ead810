"""Seconds are recorded on a quiet machine only, and the record says how quiet it was."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from ood.config import InputError
from ood.evaluation import measurements


@pytest.fixture
def busy(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.75 * cores, 9.0, 9.0))


def test_seconds_are_not_recorded_on_a_busy_machine(busy):
    flags = SimpleNamespace(record=True, any_load=False)
    with pytest.raises(InputError, match="per core is 0.75, above 0.5: .* add -any_load"):
        measurements.require_quiet(flags)
    for record, any_load in ((False, False), (True, True)):
        flags = SimpleNamespace(record=record, any_load=any_load)
        assert measurements.require_quiet(flags) == pytest.approx(0.75)


def test_systems_without_a_load_average(monkeypatch):
    monkeypatch.delattr(os, "getloadavg")
    assert measurements.require_quiet(SimpleNamespace(record=True, any_load=False)) is None


def test_the_record_says_the_load(busy, tmp_path):
    measurements.write(
        "x", page="benchmarks", order=1, title="X", tables=[], load_before=0.1, folder=tmp_path
    )
    record = json.loads((tmp_path / "data" / "x.json").read_text())
    assert record["load_per_core"] == {"before": 0.1, "after": pytest.approx(0.75)}
    measurements.build(tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Load average per core: 0.10 before, 0.75 after." in page


@pytest.mark.parametrize("name", ["data", "eval", "heatmap", "leaveout", "memory", "vmdls"])
def test_every_measuring_script_refuses(busy, call_script, name, monkeypatch):
    monkeypatch.setattr(measurements, "write", lambda *_, **__: pytest.fail("recorded"))
    done = call_script(f"scripts/bench_{name}.py", "-record")
    assert done.returncode == 2 and "-any_load" in done.stderr and done.stdout == ""
