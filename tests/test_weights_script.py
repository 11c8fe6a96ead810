"""eval_ood.py -weights: published weights from a local publisher, and the config that fits."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import _run_as_main
from test_weights import ROOT, publish, server, state  # noqa: F401  (fixtures)

import models
from models import weights
from models.weights import File
from ood.evaluation import published, workbench
from ood.methods import get

DIGITS = {
    "num_classes": 10,
    "mean": (0.5,),
    "std": (0.25,),
    "size": (28, 28),
    "config": "mnist5k_small_cnn",
}


@pytest.fixture
def evaluate(monkeypatch, tmp_path, capsys):
    """Run eval_ood.py: evaluate(words) -> (exit code, what it printed on both streams)."""

    def run(*words):
        monkeypatch.chdir(ROOT)
        places = ["-checkpoints_dir", str(tmp_path), "-out_dir", str(tmp_path / "out")]
        code = _run_as_main("eval_ood.py", [*words, "-device", "cpu", *places], monkeypatch)
        streams = capsys.readouterr()
        return code, streams.out + streams.err

    return run


@pytest.fixture
def digits(publish, digits_run, server, tmp_path):  # noqa: F811
    """The digits' classifier, published under a name, with a mean feature beside it."""
    np.save(tmp_path / "mean.npy", np.ones(16))
    server.files["/mean.npy"] = (tmp_path / "mean.npy").read_bytes()
    mean = File((f"{server.address}/mean.npy",))
    return publish(body=(digits_run / "best.pt").read_bytes(), feature_mean=mean, **DIGITS)


def test_weights_bring_their_config_network_normalisation_and_mean(digits, evaluate, tmp_path):
    code, text = evaluate("-weights", digits.name, "-limit", "40", "-detectors", "msp", "dice")
    assert code == 0, text
    assert f"published weights: {digits.name}" in text
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    used = made["provenance"]["config"] if "provenance" in made else made["config"]
    assert used["arch"] == "small_cnn" and used["model_args"] == {"width": 4}
    assert used["mean"] == [0.5] and used["std"] == [0.25]
    place = tmp_path / "published" / digits.name
    assert used["checkpoint"] == str(place / "weights.pt")
    assert used["detector_args"]["dice"] == {"feature_mean": str(place / "mean.npy")}
    assert {row["detector"] for row in made["rows"]} == {"msp", "dice"}


def test_a_wrong_checksum_ends_with_one_line_and_code_1(publish, evaluate):  # noqa: F811
    row = publish(sha256="0" * 64, **DIGITS)
    code, text = evaluate("-weights", row.name)
    assert code == 1 and "instead of 000" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["wrn-40-2/cifar10/eo"], "did you mean 'wrn-40-2/cifar10/oe'"),
        (["heatmap/cifar10/resnet18"], "open the page, download model.pt"),
        (["autoencoder/mnist/vmdls"], "no config here tests"),
        (["wrn-40-2/cifar10/oe", "-checkpoint", "x.pt"], "give -weights, or -checkpoint"),
        (
            ["wrn-40-2/cifar10/oe", "-config", "configs/openood_cifar100.json"],
            "leave -config out to use configs/openood_cifar10.json",
        ),
        (
            ["heatmap/cifar10/resnet18", "-config", "configs/openood_cifar10.json"],
            "tests a classifier; use -config ./configs/cifar10_resnet18_ood.json",
        ),
        (
            ["wrn-40-2/cifar10/oe", "-config", "configs/cifar10_densenet_leaveout.json"],
            "is a classifier, and configs/cifar10_densenet_leaveout.json tests the method leaveout",
        ),
    ],
)
def test_bad_input_is_one_line(evaluate, words, message):
    code, text = evaluate("-weights", *words)
    assert code == 2 and message in text.splitlines()[-1], text


def test_list_prints_every_name(evaluate):
    code, text = evaluate("-weights", "list")
    assert code == 0 and all(name in text for name in weights.names())


# weights of methods


def used(name, tmp_path, config=None):
    """The config with published weights in it."""
    path = ROOT / "configs" / f"{config or weights.find(name).config}.json"
    read = workbench.read_config(path, find_method=get)
    return published.use(models, name, read, tmp_path, lambda line: None)


def test_a_decoder_brings_its_classifier(publish, tmp_path, monkeypatch):  # noqa: F811
    name = "heatmap/cifar10/resnet18"
    for row in (weights.find(name), weights.find(weights.find(name).needs["classifier"])):
        publish(row.name, **{f.name: getattr(row, f.name) for f in kept(row)})
    config = used(name, tmp_path)
    assert config.experiment.checkpoint == str(tmp_path / name / "weights.pt")
    assert config.settings.classifier.endswith("resnet18/cifar10/crossentropy/heatmap/weights.pt")


def kept(row):
    """The fields of a row that a published copy of it keeps."""
    return [f for f in dataclasses.fields(row) if f.name not in ("name", "file", "source")]


def test_a_classifier_serves_a_method_that_takes_one(publish, tmp_path):  # noqa: F811
    row = weights.find("resnet18/cifar10/crossentropy/heatmap")
    publish(row.name, **{f.name: getattr(row, f.name) for f in kept(row)})
    config = used(row.name, tmp_path, "cifar10_resnet18_ood")
    assert config.settings.classifier == str(tmp_path / row.name / "weights.pt")
    assert config.experiment.checkpoint is None


def test_an_ensemble_is_the_folder_of_its_folds(publish, server, tmp_path):  # noqa: F811
    row = weights.find("leaveout/cifar10/wrn")
    for fold in range(1, 6):
        (tmp_path / "made" / "checkpoints" / f"cifar10_fold_{fold}_wide_checkpoint").mkdir(
            parents=True
        )
        (tmp_path / "made/checkpoints" / f"cifar10_fold_{fold}_wide_checkpoint/log.txt").touch()
    packed = shutil.make_archive(tmp_path / "packed", "gztar", tmp_path / "made")
    server.files["/wide.tar.gz"] = open(packed, "rb").read()
    file = dataclasses.replace(row.file, urls=(f"{server.address}/wide.tar.gz",))
    publish(row.name, file=file, **{f.name: getattr(row, f.name) for f in kept(row)})
    folder = tmp_path / "leaveout/cifar10_wide/checkpoints"
    assert used(row.name, tmp_path).experiment.checkpoint == str(folder)
