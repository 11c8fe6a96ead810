"""Intervals, costs and advice where users read them: result, report, table of all detectors."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from detector_toys import Gratings, gratings

import models
import ood.outputs
from ood import detectors, metrics
from ood.cache import Cache
from ood.data import Preprocess
from ood.detectors import distances
from ood.evaluation import measurements, report, scoring, uncertainty
from ood.evaluation.passes import Passes


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock inside a pass is one second later, outside of it a millisecond."""
    set_clock(monkeypatch)


def set_clock(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(ood.outputs, "_now", lambda device: float(next(ticks)))
    slow = SimpleNamespace(perf_counter=lambda: next(ticks) / 1000)
    monkeypatch.setattr(scoring, "time", slow)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch)
        return evaluated()


def evaluated():
    made = {
        name: detectors.create(name, **({"k": 5} if name == "knn" else {}))
        for name in ("energy", "knn", "odin", "ash")
    }
    novel = gratings(50, 3, novel=True)
    return scoring.evaluate(
        Passes(Gratings().eval(), Preprocess((0.5,), (0.25,))),
        gratings(60, 0),
        gratings(40, 1),
        [scoring.TestSet("novel", novel), scoring.TestSet("again", gratings(30, 5, True))],
        made,
    )


def test_costs_are_measured_for_every_detector(result):
    assert list(result.costs) == ["energy", "knn", "odin", "ash"]
    assert all(
        cost["fit_seconds"] >= 0 and cost["ms_per_image"] > 0 for cost in result.costs.values()
    )
    assert result.costs["odin"]["ms_per_image"] >= 1000 * 3 / (40 + 50 + 30), "a batch, a second"
    assert result.costs["energy"]["ms_per_image"] < 1
    assert result.costs["knn"]["mib"] == 60 * 16 * 4 / 2**20 and result.costs["energy"]["mib"] == 0
    assert [label for label, cost in result.costs.items() if cost["in_pass"]] == ["odin"]
    assert sum(c["fit_seconds"] for c in result.costs.values()) <= result.seconds["fit"]


def test_cost_inside_the_pass_is_measured_and_missing_where_the_cache_had_it(tmp_path, clock):
    def run(*names):
        preprocess = Preprocess((0.5,), (0.25,))
        return scoring.evaluate(
            Passes(Gratings().eval(), preprocess, batch_size=10, cache=Cache(tmp_path)),
            gratings(60, 0),
            gratings(40, 1),
            [scoring.TestSet("novel", gratings(30, 3, novel=True))],
            {name: detectors.create(name) for name in names},
        )

    torch.manual_seed(0)
    first = run("energy", "odin").costs
    assert first["odin"]["ms_per_image"] == pytest.approx(100, abs=1), "7 batches, 70 images"
    assert first["odin"]["fit_seconds"] < 0.1
    again = run("odin", "gram")
    assert (
        again.costs["odin"]["ms_per_image"] is None
        and again.costs["gram"]["ms_per_image"] == pytest.approx(100, abs=1)
        and again.costs["gram"]["fit_seconds"] == pytest.approx(6, abs=0.1)
    )
    third = run("energy", "odin", "gram")
    assert (
        third.costs["gram"]["ms_per_image"] is None
        and third.costs["gram"]["fit_seconds"] is None
        and third.costs["energy"]["ms_per_image"] > 0
    )
    text = report.Report(third.rows, {}, costs=third.costs).markdown().split("## Cost")[1]
    assert (
        "| odin | 0.001 | – |" in text
        and "| gram | – | – |" in text
        and "What odin, gram did inside the pass is included; – where the cache already held it"
        in text
    )


def test_diagnosis_is_of_the_training_features(result):
    assert result.diagnosis.images == 60 and result.diagnosis.dimensions == 16
    assert any(line.startswith("all detectors") for line in result.advice), (
        "an untrained network classifies by chance"
    )


def test_advice_speaks_of_the_images_that_were_looked_at():
    """Energy needs no training images: only test images are there, and the advice says so."""
    found = scoring.evaluate(
        Passes(Gratings().eval(), Preprocess((0.5,), (0.25,))),
        None,
        gratings(40, 1),
        [scoring.TestSet("novel", gratings(30, 3, novel=True))],
        {"energy": detectors.create("energy")},
    )
    assert found.diagnosis.text().startswith("40 test images")
    (line,) = (line for line in found.advice if line.startswith("all detectors"))
    assert "% of the test images are classified correctly" in line and "training" not in line


def test_report_shows_intervals_and_costs_and_the_csv_stays(result):
    found = uncertainty.summarise(result.scores, "id", rounds=100)
    made = report.Report(
        result.rows, {}, uncertainty=found, costs=result.costs, notes=tuple(result.advice)
    )
    text = made.markdown()
    assert (
        "## 95 % intervals, average over the OOD sets" in text
        and "## Cost" in text
        and "What odin did inside the pass is included" in text
    )
    section = text.split("## 95 %")[1].split("## Cost")[0]
    for label in result.costs:
        assert f"| {label} |" in section
    low, high = found["auroc"]["knn"]["average"]
    assert f"{100 * low:.2f} – {100 * high:.2f}" in section
    assert made.csv().splitlines()[0] == "detector,dataset,group,n_id,n_ood," + ",".join(
        metrics.Metrics._fields
    )
    stored = json.loads(made.json())
    assert (
        stored["uncertainty"]["auroc"]["knn"]["novel"] == list(found["auroc"]["knn"]["novel"])
        and stored["costs"]["knn"]["mib"] > 0
    )
    plain = report.Report(result.rows, {}).markdown()
    assert "intervals" not in plain and "## Cost" not in plain


def test_table_of_detectors_over_two_networks(tmp_path, call_script, monkeypatch):
    monkeypatch.setattr(distances, "LARGEST", 1000)
    monkeypatch.setattr(measurements, "write", lambda *_, **__: pytest.fail("nobody asked for it"))
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = models.build("small_cnn", 10, in_channels=1, image_size=28)
        files.append(tmp_path / f"{seed}.pt")
        models.checkpoints.save(
            files[-1],
            {
                "format": "ood-1",
                "arch": network.arch,
                "state_dict": network.state_dict(),
                "epoch": 1,
                "metrics": {},
                "preprocess": {"mean": [0.5], "std": [0.5], "size": 28},
            },
        )
    done = call_script(
        "scripts/table_detectors.py",
        "-config",
        str(ROOT / "configs" / "mnist5k_small_cnn.json"),
        "-weights",
        *files,
        "-skip",
        *(n for n in detectors.names() if n not in ("msp", "mds", "odin", "dropout", "gmm")),
        "-limit",
        "60",
        "-datasets",
        "letters",
        "noise",
        "-no_cache",
        "-device",
        "cpu",
        "-out_dir",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "table.md").read_text()
    rows = {
        line.split(" | ")[0].strip("| "): line
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert set(rows) >= {"msp", "mds", "odin*"} and "energy" not in rows and "dropout*" not in rows
    assert (
        "Left out: dropout: this network has no dropout" in text
        and "left out of all: gmm needs a covariance per class" in done.stdout
        and "energy, " in text
    )
    scores = [
        np.load(tmp_path / "out" / f"network_{n}" / "scores" / f"{name}.npz")["mds"]
        for n in (1, 2)
        for name in ("mnist5k", "letters", "noise")
    ]
    mean = np.mean(
        [metrics.evaluate(scores[3 * n], scores[3 * n + i]).auroc for n in (0, 1) for i in (1, 2)]
    )
    assert f"{100 * mean:.2f} [" in rows["mds"] and "±" in rows["mds"]
    assert sum(" best " in row for row in rows.values()) == 1


def test_help_of_build_docs_builds_nothing(call_script, monkeypatch):
    monkeypatch.setattr(measurements, "build", lambda: pytest.fail("nobody asked for it"))
    done = call_script("scripts/build_docs.py", "-h")
    assert done.returncode == 0 and "Rebuild docs/results.md" in done.stdout
