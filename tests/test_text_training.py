"""Training of text classifiers, outlier exposure, and scripts/reproduce_text.py at tiny size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import text_toys
import torch
from conftest import ROOT, THREADS

from models.gru import GRUClassifier
from ood import detectors, metrics
from ood.config import InputError
from ood.data.texts import AS_IT_IS, TokenSet
from ood.outputs import extract
from ood.training import texts as training
from ood.training.texts import Settings


def tokens(seed: int, count: int, classes: int = 3, first: int = 2) -> TokenSet:
    """Texts of 6 words; a class has 4 words of its own, from number `first` on."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    rows = first + 4 * labels[:, None] + generator.integers(0, 4, (count, 6))
    return TokenSet(rows, labels, name="toy", split="train", num_classes=classes)


KNOWN, OUTLIERS = tokens(0, 60), tokens(1, 30, first=14).as_outliers()
FEW = dict(epochs=3, batch_size=16)


def network(seed: int = 0) -> GRUClassifier:
    torch.manual_seed(seed)
    return GRUClassifier(3, 40)


def weights(file) -> dict:
    return training.read(file)["state_dict"]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Stops(GRUClassifier):
    """Raises KeyboardInterrupt at its n-th forward pass."""

    left = 0

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("exposed", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(exposed, tmp_path):
    given = dict(outliers=OUTLIERS if exposed else None, words=["a", "b"])
    settings = Settings(**FEW, exposed=exposed, seed=4)
    whole = training.train(network(), KNOWN, settings, tmp_path / "whole", **given)
    torch.manual_seed(0)
    stops = Stops(3, 40)
    stops.left = 7  # of 4 steps an epoch: in the second epoch
    with pytest.raises(KeyboardInterrupt):
        training.train(stops, KNOWN, settings, tmp_path / "broken", **given)
    resumed = network(seed=9)
    file = training.train(resumed, KNOWN, settings, tmp_path / "broken", **given)
    assert equal(weights(file), weights(whole)) and equal(resumed.state_dict(), weights(file))
    assert training.read(file)["words"] == ["a", "b"] and training.read(file)["epoch"] == 3
    events = [json.loads(line).get("event") for line in open(file.parent / "log.jsonl")]
    assert events.count("resume") == 1 and events[-1] == "end"


def test_a_run_that_is_done_is_not_repeated_and_others_are_refused(tmp_path):
    settings = Settings(**FEW)
    file = training.train(network(), KNOWN, settings, tmp_path / "run")
    before = file.stat().st_mtime_ns
    assert training.train(network(), KNOWN, settings, tmp_path / "run") == file
    assert file.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="seed"):
        training.train(network(), KNOWN, Settings(**FEW, seed=1), tmp_path / "run")
    with pytest.raises(InputError, match="data"):
        training.train(network(), KNOWN.subset(range(50)), settings, tmp_path / "run")
    with pytest.raises(InputError, match="exposed=True"):
        training.train(network(), KNOWN, settings, tmp_path / "other", outliers=OUTLIERS)
    with pytest.raises(InputError, match="exposed=True"):
        training.train(network(), KNOWN, Settings(exposed=True), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    torch.save({"format": "another"}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="no text classifier"):
        training.read(tmp_path / "x.pt")


def test_it_learns_the_classes_and_exposure_finds_outliers(tmp_path):
    """MSP hardly tells words that were never seen; with exposure to others like them it does."""
    known, novel = tokens(2, 60), tokens(3, 60, first=14).as_outliers()
    made, aurocs = network(), []
    for exposed in (False, True):
        settings = Settings(epochs=6, batch_size=16, exposed=exposed)
        outliers = OUTLIERS if exposed else None
        training.train(made, KNOWN, settings, tmp_path / str(exposed), outliers=outliers)
        outputs = extract(made, known, AS_IT_IS)
        assert (outputs.logits.argmax(1) == outputs.labels).float().mean() > 0.9
        score = detectors.create("msp").score
        aurocs.append(metrics.evaluate(score(outputs), score(extract(made, novel, AS_IT_IS))).auroc)
    assert aurocs[1] > 0.95 and aurocs[1] > aurocs[0]


def test_the_network_is_that_of_pytorch_ood():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("pytorch_ood.model").GRUClassifier(3, 40, embedding_dim=7)
    ours = GRUClassifier(3, 40, embedding_dim=7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    given = KNOWN.read(range(9))
    assert torch.equal(ours(given), theirs(given))
    assert torch.equal(ours.features(given), theirs.features(given))
    assert torch.equal(ours.fc(ours.features(given)), ours(given))


# --- the script

WORDS = "-source published -seeds 0 1 -limit 60 -words 6 -device cpu".split()


@pytest.fixture(scope="module")
def data_dir(made_once):
    def publish(folder):
        for name in ("newsgroups20", "wikitext2", "reuters8", "multi30k", "wmt16"):
            text_toys.publish(folder, name, per_class=4)

    return made_once("toy-texts", publish)


def tables(output: str) -> list[str]:
    lines = output.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("Maximum softmax")) :]


def test_script_goes_on_after_a_kill_and_gives_the_same_tables(data_dir, call_script, tmp_path):
    script = ["scripts/reproduce_text.py", *WORDS, "-epochs", 4, "-data_dir", data_dir, "-work_dir"]
    words = [sys.executable, *map(str, script), tmp_path / "killed"]
    log = tmp_path / "killed" / "published_exposed_seed0" / "log.jsonl"
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # into the fine-tuning of the first seed
            if log.exists() and "epoch 1/4" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    resumed = call_script(*script, tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    again = call_script(*script, tmp_path / "killed")
    assert "epoch" not in again.stdout  # all runs are done
    whole = call_script(*script, tmp_path / "whole")
    assert tables(resumed.stdout) == tables(whole.stdout) == tables(again.stdout)
    first = tables(whole.stdout)[2].split()
    assert first[:3] == ["news", "of", "Reuters"] and first.count("±") == 8
    assert [line.split()[0] for line in tables(whole.stdout)[-4:]] == [
        "msp",
        "energy",
        "mds",
        "knn",
    ]


def test_script_says_what_is_missing(call_script, tmp_path):
    given = ["-data_dir", tmp_path, "-work_dir", tmp_path / "work"]
    found = call_script("scripts/reproduce_text.py", "-source", "published", *given)
    assert found.returncode == 2 and "20ng-train-no-short.txt" in found.stderr
    assert not (tmp_path / "work").exists()
    assert call_script("scripts/reproduce_text.py", "-epochs", 0, *given).returncode == 2
