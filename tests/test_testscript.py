"""test.py: the README's command lines, on stand-in folders with the layout of ODIN's sets."""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import models
from ood import metrics
from ood.config import InputError
from ood.data import load
from ood.methods import leaveout
from ood.methods.leaveout.settings import Settings
from ood.methods.vmdls import command

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "Imagenet": "Imagenet/test",
    "Imagenet_resize": "Imagenet_resize/Imagenet_resize",
    "LSUN": "LSUN/test",
    "LSUN_resize": "LSUN_resize/LSUN_resize",
    "iSUN": "iSUN/iSUN_patches",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
README = [
    "--in-dataset cifar10 --out-dataset Imagenet --magnitud 0.002",
    "--in-dataset cifar10 --out-dataset Imagenet_resize --magnitude 0.002 --temperature 1000",
    "--in-dataset cifar10 --out-dataset LSUN --magnitud 0.001 --wide",
    "--in-dataset cifar100 --out-dataset LSUN_resize --magnitud 0.003",
    "--in-dataset cifar100 --out-dataset Imagenet --magnitud 0.002 --wide --temperature 1000",
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("test_script", ROOT / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with datasets/ and checkpoints/.

    They hold 20 test images of CIFAR-10, OOD folders (crops of 36 x 36), and five folds of each
    network.
    """
    root = tmp_path_factory.mktemp("world")
    random = np.random.RandomState(0)

    def picture(path, side):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (side, side, 3)).astype(np.uint8)).save(path)

    for split, count in (("train", 1), ("test", 2)):
        for label in range(10):
            for number in range(count):
                picture(
                    root / "datasets" / "cifar10" / split / CLASSES[label] / f"{number}.png", 32
                )
    for name, folder in FOLDERS.items():
        for number in range(6 if name != "iSUN" else 12):
            picture(
                root / "datasets" / "ood_datasets" / folder / f"{number}.png",
                36 if name in ("Imagenet", "LSUN") else 32,
            )
    for arch in ("densenet", "wrn"):
        for fold in range(1, 6):
            torch.manual_seed(fold)
            network = models.build(
                arch,
                8,
                depth=100 if arch == "densenet" else 10,
                **({} if arch == "densenet" else {"width": 1}),
            )
            nn.init.normal_(network.fc.weight)
            target = root / "checkpoints" / leaveout.folder_name(Settings(arch=arch), fold)
            target.mkdir(parents=True)
            torch.save(
                {"epoch": 99, "state_dict": network.state_dict(), "best_prec1": np.float64(0.9)},
                target / "model_best.pth.tar",
            )
    return root


@pytest.fixture
def call(script, world, monkeypatch, capsys, tmp_path):
    """call('--wide', ...) -> lines that the script prints; the wide network is a small one here."""
    build = leaveout.build_network

    def smaller(settings, context):
        return (
            models.build("wrn", 8, depth=10, width=1)
            if settings.arch == "wrn"
            else build(settings, context)
        )

    monkeypatch.setattr(leaveout.method, "build_network", smaller)
    monkeypatch.chdir(world)

    def run(*words):
        monkeypatch.setattr(
            sys,
            "argv",
            ["test.py", *map(str, words), "-out_dir", str(tmp_path / "out"), "-device", "cpu"],
        )
        script.main()
        return capsys.readouterr().out.splitlines()

    return run


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_the_default_magnitude_is_the_repositorys(script):
    """Its parser says 0.0014; the commands of its README give one of their own."""
    for words in ([], ["-wide"], ["-in-dataset", "cifar100"], ["-in-dataset", "cifar100", "-wide"]):
        assert script.read_config(script.parser.parse_args(words))[2].magnitude == 0.0014
    assert Settings().magnitude == 0.0014


@pytest.mark.parametrize("line", README)
def test_readme_lines_mean_what_they_say(script, line):
    words = shlex.split(line)
    for variant in (words, [word.replace("--", "-") for word in words]):
        flags = script.parser.parse_args(variant)
        config, values, settings = script.read_config(flags)
        assert (
            settings.id_dataset == words[1]
            and list(flags.out_dataset) == [words[3]]
            and settings.magnitude == float(words[5])
        )
        assert (
            settings.arch == ("wrn" if "--wide" in words else "densenet")
            and settings.temperature == 1000
        )
        assert (
            config
            == f"{words[1]}_{'wideresnet' if '--wide' in words else 'densenet'}_leaveout.json"
        )


def test_first_readme_command_runs_as_written(world, run_script):
    found = run_script("test.py", *shlex.split(README[0]), cwd=world, env={"OMP_NUM_THREADS": "1"})
    assert found.returncode == 0, found.stderr
    out = next((world / "results").iterdir())
    lines = found.stdout.splitlines()
    table = {
        line[:18].strip(): line[18:].split()
        for line in lines
        if line.startswith(("FPR", "Detection", "AU"))
    }
    assert (
        table["FPR at TPR 95%"][:2] == ["1.23%", "1.48%"]
        and table["AUPR Out"][:2] == ["99.64%", "99.66%"]
        and len(table) == 5
    )
    row = rows_of(out)[0]
    skipped = sum(
        position < 6 for position in leaveout.held_out(20)
    )  # of the 2 positions held out, in the OOD set's 6 images
    assert (
        row["detector"] == "leaveout"
        and row["dataset"] == "Imagenet"
        and (row["n_id"], row["n_ood"]) == ("18", str(6 - skipped))
    )
    assert f"{100 * float(row['auroc']):.2f}%" == table["AUROC"][2]
    made = json.loads((out / "metrics.json").read_text())
    assert (
        made["provenance"]["config"]["temperature"] == 1000
        and "--magnitud" in made["provenance"]["command"]
    )
    scores = np.load(out / "scores" / "Imagenet.npz")
    assert scores["leaveout"] == pytest.approx(
        sum(scores[f"leaveout fold {f}"] for f in range(1, 6))
    )
    known = np.load(out / "scores" / "cifar10.npz")["leaveout"]
    assert metrics.evaluate(known, scores["leaveout"]).auroc == pytest.approx(float(row["auroc"]))
    assert (
        out / "figures" / "leaveout_folds.png"
    ).stat().st_size > 5000 and "Tiny-ImageNet (crop)" in (out / "report.md").read_text()


def test_all_sets_in_one_pass_over_the_id_set(call, tmp_path, monkeypatch):
    passes = []
    whole = leaveout.LeaveOut._pass
    monkeypatch.setattr(
        leaveout.LeaveOut,
        "_pass",
        lambda self, images: (passes.append(images.name), whole(self, images))[1],
    )
    lines = call(
        "--in-dataset",
        "cifar10",
        "--out-dataset",
        "all",
        "--wide",
        "-magnitude",
        "0.003",
        "-limit",
        "9",
    )
    names = ["Imagenet", "Imagenet_resize", "LSUN", "LSUN_resize", "uniform", "gaussian"]
    assert passes == ["cifar10", *names]
    rows = rows_of(tmp_path / "out")
    assert [row["dataset"] for row in rows if row["detector"] == "leaveout"] == names and len(
        rows
    ) == 36
    assert any("advises -magnitude 0.001 for LSUN;" in line for line in lines) and any(
        line.startswith("accuracy on cifar10") for line in lines
    )
    call(
        "--in-dataset",
        "cifar10",
        "--out-dataset",
        "Imagenet",
        "Gaussian",
        "--wide",
        "-magnitude",
        "0.003",
        "-limit",
        "9",
    )
    assert len(passes) == 7  # the cache serves the second run


def test_isun_says_that_it_is_no_test_set(call, tmp_path):
    lines = call("--in-dataset", "cifar10", "--out-dataset", "iSUN", "--wide")
    assert any("iSUN picked the epoch" in line and "no test set" in line for line in lines)
    assert "no test set" in (tmp_path / "out" / "report.md").read_text()
    assert not any(
        "no test set" in line
        for line in call(
            "--in-dataset", "cifar10", "--out-dataset", "Uniform", "--wide", "-limit", 5
        )
    )


def test_holdout_and_gradient_by_name(call, tmp_path):
    call("--in-dataset", "cifar10", "--out-dataset", "LSUN_resize", "--wide")
    released = rows_of(tmp_path / "out")[0]
    lines = call(
        "--in-dataset", "cifar10", "--out-dataset", "LSUN_resize", "--wide", "-holdout", "full"
    )
    full = rows_of(tmp_path / "out")[0]
    skipped = set(leaveout.held_out(20).tolist())
    assert (released["n_id"], released["n_ood"]) == (
        "18",
        str(6 - len(skipped & set(range(6)))),
    ) and (full["n_id"], full["n_ood"]) == ("20", "6")
    assert any("are among those scored" in line for line in lines)
    first = np.load(tmp_path / "out" / "scores" / "LSUN_resize.npz")["leaveout"]
    call(
        "--in-dataset",
        "cifar10",
        "--out-dataset",
        "LSUN_resize",
        "--wide",
        "-holdout",
        "full",
        "-gradient",
        "entropy",
        "-magnitude",
        "0.05",
    )
    call_scores = np.load(tmp_path / "out" / "scores" / "LSUN_resize.npz")["leaveout"]
    assert not np.array_equal(first, call_scores)


@pytest.mark.parametrize(
    "words, message",
    [
        (["-out-dataset", "Imagnet"], "did you mean"),
        (["-out-dataset", "cifar10"], "itself"),
        (["-out-dataset", "svhn"], "svhn"),
        (["-in-dataset", "cifar100"], "cifar100"),
        (["-config", "x.json", "-wide"], "not both"),
        (["-magnitude", "-1"], "magnitude"),
        (["-limit", "0"], "limit"),
    ],
)
def test_bad_input_is_one_line(call, words, message):
    with pytest.raises(InputError, match=message):
        call(*words)


def test_missing_fold_is_named_with_what_trains_it(call, world):
    with pytest.raises(InputError, match="fold 1 is missing.*cifar10_fold_1_dense_checkpoint"):
        call(
            "--in-dataset",
            "cifar10",
            "--out-dataset",
            "Uniform",
            "-checkpoints_dir",
            world / "nowhere",
        )


def test_vmdls_flags_select_vmdls(script, monkeypatch):

    calls = []
    monkeypatch.setattr(command, "main", lambda *a: calls.append(a))
    words = shlex.split(
        "--enc_type densenet --latent_dim 32 "
        "--known_dataset cifar_known --unknown_dataset imagenet-resize"
    )
    monkeypatch.setattr(sys, "argv", ["test.py", *words])
    script.main()
    assert calls == [(words, models)]
    assert script.is_vmdls(["--known_dataset=mnist"]) and not any(
        script.is_vmdls(shlex.split(line)) for line in README
    )


def test_a_limit_keeps_every_class(script):
    """Files lie class by class: the first 20 images of the test set would be of one class."""
    words = ["-config", "configs/mnist5k_small_leaveout.json", "-out-dataset", "letters"]
    flags = script.parser.parse_args([*words, "-limit", "20"])
    _, values, settings = script.read_config(flags)
    test, sets, _ = script.load_images(flags, values, settings)
    assert len(test) == len(sets["letters"]) == 20
    assert set(test.labels) == set(range(10))
    # eval_ood.py takes the same rows where the whole set is evaluated.
    whole = ["-holdout", "full", "-limit", "20"]
    flags = script.parser.parse_args([*words, *whole])
    _, values, settings = script.read_config(flags)
    test, _, _ = script.load_images(flags, values, settings)
    assert test.digest == load("mnist5k", "test", "datasets", limit=20).digest
