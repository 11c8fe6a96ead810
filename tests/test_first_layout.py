"""Runs and a detector file that the first layout of this repository wrote: they still load.

tests/first_layout holds tiny trained networks (one or two epochs on a few hundred digits) and the
metrics.csv that eval_ood.py of that time wrote for each of them with -limit 100.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "first_layout"


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of the old checkpoints, to be read and continued."""
    shutil.copytree(FOLDER, tmp_path / "old")
    return tmp_path / "old"


def table(path: Path) -> dict[tuple, list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("fpr95", "auroc", "aupr_in", "aupr_out", "detection_error")
    return {(row["detector"], row["dataset"]): [float(row[name]) for name in names] for row in rows}


@pytest.mark.parametrize("name", ["classifier", "heatmap", "leaveout", "vmdls"])
def test_old_runs_give_the_same_table(old, tmp_path, call_script, name):
    done = call_script(
        "eval_ood.py",
        *("-config", old / "configs" / f"{name}.json", "-checkpoints_dir", old),
        *("-limit", 100, "-no_cache", "-device", "cpu", "-out_dir", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    before, now = table(FOLDER / "expected" / f"{name}.csv"), table(tmp_path / "out/metrics.csv")
    assert before.keys() == now.keys()
    for key, values in before.items():
        # two images of 100 may change places where another machine rounds differently
        assert now[key] == pytest.approx(values, abs=0.0201), key


def test_old_run_continues(old, tmp_path, call_script):
    """The run was trained to its end; -resume finds that, measures the test set and is done."""
    done = call_script(
        "classifier_pretraining.py",
        *("-dataset", "mnist5k", "-arch", "small_cnn", "-width", 2, "-epochs", 2, "-limit", 400),
        *("-device", "cpu", "-out_dir", old / "classifier", "-resume"),
    )
    assert done.returncode == 0, done.stderr
    lines = (old / "classifier" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [r for r in map(json.loads, lines) if r.get("event") == "end"]
    assert [end["epoch"] for end in ends][-1] == 2
    assert "epoch 1/2" not in done.stdout


def test_old_detector_file_scores_pictures(old, tmp_path, call_script):
    """Its digest covered source code and cannot be compared any more, which a warning says."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    with pytest.warns(UserWarning, match="written by an older version"):
        done = call_script(
            "scripts/score_images.py",
            *("-detector", old / "vim.npz", "-checkpoint", old / "classifier" / "best.pt"),
            *("-input", tmp_path / "pictures", "-out_dir", tmp_path / "out", "-device", "cpu"),
        )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "scores.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3
