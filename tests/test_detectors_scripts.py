"""The benchmarks of the detectors, at tiny size: they run, compare and say what they measured."""

import csv
import importlib.util
import re

import torch
from conftest import ROOT

import models
import ood.outputs
from ood import detectors
from ood.detectors import distances


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_leaves_out_what_cannot_work_and_an_explicit_one_is_refused(
    tmp_path, call_script, monkeypatch
):
    """eval_ood.py on a network without dropout, and with room for no covariance per class."""
    torch.manual_seed(0)
    network = models.build("small_cnn", 10, in_channels=1, image_size=28)
    models.checkpoints.save(
        tmp_path / "w.pt",
        {
            "format": "ood-1",
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": 1,
            "metrics": {},
            "preprocess": {"mean": [0.5], "std": [0.5], "size": 28},
        },
    )
    monkeypatch.setattr(distances, "LARGEST", 1000)
    monkeypatch.setattr(detectors, "names", lambda: ["dropout", "energy", "gmm", "mds"])
    passes, forward = [], ood.outputs.Forward.__call__
    monkeypatch.setattr(
        ood.outputs.Forward,
        "__call__",
        lambda self, batch: passes.append(1) or forward(self, batch),
    )

    def evaluate(*names):
        return call_script(
            "eval_ood.py",
            "-config",
            str(ROOT / "configs" / "mnist5k_small_cnn.json"),
            "-checkpoint",
            "w.pt",
            "-detectors",
            *names,
            "-datasets",
            "letters",
            "-limit",
            "60",
            "-no_cache",
            "-device",
            "cpu",
            "-out_dir",
            "out",
            cwd=tmp_path,
        )

    for name, words in (("gmm", "use mds"), ("dropout", "no dropout")):
        done = evaluate("energy", name)
        assert (
            done.returncode == 2
            and words in done.stderr
            and not passes
            and not (tmp_path / "out").exists()
        )
    done = evaluate("all")
    assert done.returncode == 0, done.stderr
    assert (
        "left out of all: gmm needs a covariance per class, 10 x" in done.stdout
        and "left out of all: dropout: this network has no dropout" in done.stdout
    )
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        assert [row["detector"] for row in csv.DictReader(file)] == ["energy", "mds"]


def test_bench_memory_fits_every_detector_in_chunks(run_script, tmp_path):
    done = run_script(
        "scripts/bench_memory.py",
        "-images",
        9000,
        "-features",
        96,
        "-classes",
        12,
        "-folder",
        tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(\w+) +fit .* peak +(\d+) MiB", done.stdout, re.M))
    assert {
        "mds",
        "rmds",
        "vim",
        "dice",
        "react",
        "she",
        "neco",
        "pnml",
        "knn",
        "gmm",
        "openmax",
        "optfs",
    } <= set(rows)
    assert not list(tmp_path.iterdir()), "the arrays are removed"


def test_fitting_does_not_hold_the_rows(run_script, tmp_path):
    """One detector per kind of statistic is fitted on 280,000 rows, 4,096 at a time.

    One copy of all features would be 103 MiB.
    """
    names = (
        "cadref",
        "dice_react",
        "gmm",
        "klm",
        "mdspp",
        "neco",
        "openmax",
        "pnml",
        "ras",
        "rmds",
        "she",
        "vim",
    )
    done = run_script(
        "scripts/bench_memory.py",
        "-images",
        280_000,
        "-features",
        96,
        "-classes",
        12,
        "-rows",
        4096,
        "-folder",
        tmp_path,
        "-detectors",
        *names,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    before = int(re.search(r"this process holds (\d+) MiB", done.stdout)[1])
    peaks = {
        name: int(peak) - before
        for name, peak in re.findall(r"^(\w+) +fit .* peak +(\d+) MiB", done.stdout, re.M)
    }
    assert set(peaks) == set(names) and max(peaks.values()) < 80, peaks


def test_bench_eval_gives_the_same_scores_as_pytorch_ood(run_script, tmp_path):
    import pytest

    pytest.importorskip("pytorch_ood")
    done = run_script(
        "scripts/bench_eval.py",
        "-images",
        120,
        "-train_images",
        600,
        "-rounds",
        1,
        "-data_dir",
        tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    compared = re.findall(
        r"^  AUROC (\S+) +ours ([\d.]+) +pytorch-ood ([\d.]+) *(.*)$", done.stdout, re.M
    )
    assert len(compared) == 24
    bounds = {name: bound for name, (bound, _) in load_script("bench_eval").EXPECTED.items()}
    apart = {name: abs(float(ours) - float(theirs)) for name, ours, theirs, _ in compared}
    # the bounds are for 1,000 images: twice as much for 120
    assert all(apart[name] < max(1e-3, 2 * bounds.get(name, 0.0)) for name in apart), apart
    times = (
        r"600 \+ 120 \+ 120 images, 24 detectors.*\n  bare forward.*\n  ours.*\n"
        r"  pytorch-ood, cache on.*\n  pytorch-ood, by hand"
    )
    aims = (
        r"Aims: 10 times as fast as pytorch-ood with its cache \(here [\d.]+\), "
        r"at most 1.25 times the bare forward passes \(here [\d.]+\)"
    )
    assert re.search(times, done.stdout) and re.search(aims, done.stdout)


def test_bench_eval_excuses_no_difference_without_a_bound(capsys):
    bench = load_script("bench_eval")
    assert set(bench.EXPECTED) <= set(bench.OURS) and all(
        0 < bound <= (0.03 if name == "pnml" else 0.005)
        for name, (bound, _) in bench.EXPECTED.items()
    )
    ours = [
        {"detector": name, "auroc": 0.9} for name in ("msp", "mds", "rmds", "pnml", "pnml", "knn")
    ]
    notes = [
        bench.compare([row], {row["detector"]: {"AUROC": 0.9 - change}})[0][3]
        for row, change in zip(ours, (0.002, 0.004, -0.006, 0.02, 0.04, 0.0005))
    ]
    reason = {name: text for name, (_, text) in bench.EXPECTED.items()}
    assert notes == [
        "differs",
        reason["mds"],
        f"differs: {reason['rmds']}",
        reason["pnml"],
        f"differs: {reason['pnml']}",
        "",
    ]
    assert capsys.readouterr().out.count("differs") == 3


def test_bench_compat_compares_ten_detectors_with_pytorch_ood(run_script, tmp_path):
    import pytest

    pytest.importorskip("pytorch_ood")
    small = "-dataset mnist5k -ood uniform gaussian -arch small_cnn -images 60 -rounds 1".split()
    done = run_script("scripts/bench_compat.py", *small, "-data_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    apart = re.findall(r"^  AUROC (\S+) .* pytorch-ood [\d.]+ +([\d.]+) *$", done.stdout, re.M)
    assert len(apart) == 10 and max(float(largest) for _, largest in apart) <= 2e-3
    assert re.search(r"Here [\d.]+ in its best setting, [\d.]+ as its documentation", done.stdout)
