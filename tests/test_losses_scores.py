"""What comes after a training with a loss.

One config serves ood_training.py and eval_ood.py, and a loss may bring its own score.
"""

import csv
import json

import pytest
import torch
from conftest import ROOT

import models
from ood import losses
from ood.config import InputError
from ood.losses.scores import RULES
from ood.outputs import Head, Outputs
from ood.training import runs

TINY = ("-device", "cpu", "-limit", 96, "-epochs", 2, "-batch_size", 32, "-width", 4)


def test_one_config_trains_and_evaluates(tmp_path, call_script):
    """ood_training.py and eval_ood.py read the same file.

    A plain classifier in the same folder is not taken for the run, and has no score of a loss.
    """
    config, runs_dir = tmp_path / "c.json", tmp_path / "runs"
    values = {
        "id_dataset": "mnist5k",
        "arch": "small_cnn",
        "width": 4,
        "epochs": 1,
        "limit": 96,
        "batch_size": 32,
        "ood_dataset": "letters",
        "benchmark": "demo",
        "detectors": ["msp"],
    }
    config.write_text(json.dumps({**values, "loss": "background_class"}))
    trained = call_script(
        "ood_training.py",
        "-config",
        config,
        "-lr",
        0.01,
        "-device",
        "cpu",
        "-checkpoints_dir",
        runs_dir,
    )
    assert trained.returncode == 0, trained.stderr
    (folder,) = runs_dir.iterdir()
    assert (
        runs.Run(folder).config["kind"] == "classifier, background_class"
        and runs.Run(folder).config["lr"] == 0.01
    )
    plain = call_script(
        "classifier_pretraining.py", *TINY, "-epochs", 1, "-checkpoints_dir", runs_dir
    )
    assert plain.returncode == 0, plain.stderr
    evaluate = (
        "eval_ood.py",
        "-limit",
        20,
        "-device",
        "cpu",
        "-no_cache",
        "-datasets",
        "letters",
        "-checkpoints_dir",
        runs_dir,
        "-config",
    )
    done = call_script(*evaluate, config, "-out_dir", tmp_path / "out")
    assert done.returncode == 0 and f"weights: {folder / 'best.pt'}" in done.stdout, done.stderr
    assert {row["detector"] for row in csv.DictReader(open(tmp_path / "out" / "metrics.csv"))} == {
        "msp",
        "background_class",
    }
    narrowed = call_script(
        *evaluate, config, "-detectors", "energy", "-out_dir", tmp_path / "narrow"
    )
    assert {
        row["detector"] for row in csv.DictReader(open(tmp_path / "narrow" / "metrics.csv"))
    } == {"energy"}, narrowed.stderr
    config.write_text(
        json.dumps({key: value for key, value in values.items() if key != "ood_dataset"})
    )
    done = call_script(*evaluate, config, "-out_dir", tmp_path / "plain")
    assert done.returncode == 0 and f"weights: {folder / 'best.pt'}" not in done.stdout, done.stderr
    assert {
        row["detector"] for row in csv.DictReader(open(tmp_path / "plain" / "metrics.csv"))
    } == {"msp"}


def test_a_flag_of_another_method_is_refused(tmp_path, call_script):
    result = call_script(
        "ood_training.py",
        "-config",
        ROOT / "configs" / "mnist5k_outlier_exposure.json",
        "-num_ood",
        5,
        "-out_dir",
        tmp_path / "run",
    )
    assert (
        result.returncode == 2
        and "-num_ood means nothing to loss outlier_exposure" in result.stderr
        and not (tmp_path / "run").exists()
    )
    missing = call_script(
        "eval_ood.py",
        "-config",
        ROOT / "configs" / "mnist5k_outlier_exposure.json",
        "-checkpoints_dir",
        tmp_path,
    )
    command = "classifier_pretraining.py -dataset mnist5k -arch small_cnn -loss outlier_exposure"
    assert missing.returncode == 2 and command in missing.stderr


@pytest.mark.parametrize("name", sorted(RULES))
def test_scores_of_losses_equal_their_formulas(name):
    """From the state in a weight file alone, in a network that was made anew."""
    torch.manual_seed(0)
    network = models.build("small_cnn", 3, in_channels=1, image_size=28, width=4).eval()
    args = {"magnitude": 2.0} if name == "cac" else {}
    objective = losses.Objective(name, network, **args)
    with torch.no_grad():
        for values in objective.own.state_dict().values():
            if values.is_floating_point():
                values.uniform_(0.1, 1)
    objective.finish_head()
    images = torch.rand(7, 1, 28, 28)
    with torch.no_grad():
        h = network.features(images)
        f = network.fc(h)
    stored = {
        "loss": name,
        "args": args,
        "state": {key: value.clone() for key, value in objective.own.state_dict().items()},
    }
    fresh = models.build("small_cnn", 3, in_channels=1, image_size=28, width=4)
    fresh.load_state_dict(network.state_dict())
    detector = losses.own_score(fresh, stored)
    scores = detector.score(
        Outputs(h, f, torch.zeros(7, dtype=torch.long), Head(fresh.fc.weight, fresh.fc.bias))
    )
    state = {key.rpartition("loss.")[2]: value for key, value in stored["state"].items()}
    if name == "confidence":
        expected = -torch.sigmoid(
            h @ state["heads.confidence.weight"][0] + state["heads.confidence.bias"]
        )
    elif name in ("background_class", "openmix"):
        extra = h @ state["heads.extra.weight"][0] + state["heads.extra.bias"]
        expected = extra.exp() / (f.exp().sum(1) + extra.exp())
    elif name == "objectosphere":
        expected = -torch.stack([row.softmax(0).max() * row.norm() for row in f])
    elif name.startswith("vos"):
        energy = -torch.stack(
            [(state["weights_energy.weight"][0] * row.exp()).sum().log() for row in f]
        )
        logits = (
            energy[:, None] * state["logistic_regression.weight"][:, 0]
            + state["logistic_regression.bias"]
        )
        expected = logits.softmax(1)[:, 0]
    else:
        z = f if name == "cac" else h
        centres = next(
            value for value in state.values() if value.dim() == 2 and value.shape[1] == z.shape[1]
        )
        d = torch.stack([((row - centres) ** 2).sum(1) for row in z])
        if name == "cac":
            d = d.sqrt()
            expected = torch.stack([(row * (1 - (-row).softmax(0))).min() for row in d])
        else:
            expected = d.min(1).values - (state["radius"] ** 2 if name == "deep_svdd" else 0)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.fc.weight, network.fc.weight)


def test_losses_without_a_score_and_states_that_do_not_fit():
    network = models.build("small_cnn", 3, in_channels=1, image_size=28, width=4)
    assert (
        losses.own_score(network, None) is None
        and losses.own_score(network, {"loss": "logitnorm", "state": {}}) is None
    )
    with pytest.raises(InputError, match="confidence"):
        losses.own_score(
            network,
            {
                "loss": "confidence",
                "state": {
                    "heads.confidence.weight": torch.zeros(1, 99),
                    "heads.confidence.bias": torch.zeros(1),
                },
            },
        )
    with pytest.raises(InputError, match="confidence"):
        losses.own_score(network, {"loss": "confidence", "state": {}})
