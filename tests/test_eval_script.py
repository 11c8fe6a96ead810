"""eval_ood.py as users run it: the files it writes; bad input ends in one line, exit code 2."""

import csv
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import models

HEADER = (
    "detector,dataset,group,n_id,n_ood,"
    "fpr95,auroc,aupr_in,aupr_out,detection_error,fpr95_ood_positive"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A user's own folder: two classes of coloured squares, and weights of a network for them."""
    root = tmp_path_factory.mktemp("user")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for index, name in enumerate(("dark", "light")):
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(
                    generator.normal(60 + 120 * index, 30, (40, 32, 3)), 0, 255
                ).astype(np.uint8)
                Image.fromarray(pixels).save(root / "photos" / split / name / f"{i}.png")
    (root / "odd").mkdir()
    for i in range(9):
        Image.fromarray(generator.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(
            root / "odd" / f"{i}.jpg"
        )
    torch.manual_seed(0)
    network = models.build("small_cnn", 2, image_size=32)
    models.checkpoints.save(
        root / "weights.pt",
        {
            "format": "ood-1",
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": 1,
            "metrics": {},
            "preprocess": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32},
        },
    )
    benchmark = {
        "id_dataset": "./photos",
        "size": 32,
        "channels": 3,
        "entries": [{"dataset": "./odd", "group": "far", "label": "Odd"}],
    }
    (root / "benchmark.json").write_text(json.dumps(benchmark))
    config = {
        "id_dataset": "./photos",
        "num_classes": 2,
        "arch": "small_cnn",
        "benchmark": "benchmark.json",
        "batch_size": 8,
        "detectors": ["msp", "energy", "odin", "react", "dice"],
        "paper": {"energy": {"Odd": {"auroc": 0.5, "fpr95": 0.9}}},
        "source": "nowhere",
    }
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def user(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "user")
    return tmp_path / "user"


def evaluate(call_script, folder, *flags):
    return call_script(
        "eval_ood.py",
        "-config",
        "config.json",
        "-checkpoint",
        "weights.pt",
        "-out_dir",
        "out",
        *flags,
        cwd=folder,
    )


def test_own_folders_from_images_to_report(user, run_script, call_script):
    done = run_script(
        "eval_ood.py",
        "-config",
        "config.json",
        "-checkpoint",
        "weights.pt",
        "-out_dir",
        "out",
        cwd=user,
    )
    assert done.returncode == 0, done.stderr
    text = (user / "out" / "metrics.csv").read_text()
    assert text.splitlines()[0] == HEADER
    rows = list(csv.DictReader(text.splitlines()))
    assert [r["detector"] for r in rows] == ["msp", "energy", "odin", "react", "dice"]
    assert {(r["n_id"], r["n_ood"], r["group"]) for r in rows} == {("16", "9", "far")}
    assert all(0 <= float(r[c]) <= 1 for r in rows for c in HEADER.split(",")[5:])
    made = json.loads((user / "out" / "metrics.json").read_text())
    assert made["provenance"]["digests"]["network"] and made["provenance"]["seconds"]["total"] > 0
    report = (user / "out" / "report.md").read_text()
    assert "Odd" in report and "nowhere" in report
    scores = list((user / "out" / "scores").glob("*.npz"))
    assert len(scores) == 2 and {len(np.load(s)["energy"]) for s in scores} == {16, 9}
    assert len(list((user / "out" / "figures").glob("*.png"))) >= 2

    again = evaluate(
        call_script, user, "--detectors", "dice:percentile=70", "maxlogit", "--limit", "5"
    )
    assert again.returncode == 0, again.stderr
    rows = list(csv.DictReader((user / "out" / "metrics.csv").read_text().splitlines()))
    assert [(r["detector"], r["n_id"], r["n_ood"]) for r in rows] == [
        ("dice:percentile=70", "5", "5"),
        ("maxlogit", "5", "5"),
    ]


class RunsCode:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def _no_checkpoint(folder):
    (folder / "weights.pt").unlink()


def _empty_checkpoint(folder):
    (folder / "weights.pt").write_bytes(b"")


def _hostile_checkpoint(folder):
    (folder / "weights.pt").write_bytes(pickle.dumps(RunsCode(folder / "executed")))


def _other_network(folder):
    network = models.build("small_cnn", 5, image_size=32)
    models.checkpoints.save(folder / "weights.pt", {"state_dict": network.state_dict()})


def _no_folder(folder):
    shutil.rmtree(folder / "odd")


def _empty_folder(folder):
    shutil.rmtree(folder / "odd")
    (folder / "odd").mkdir()


def _truncated_image(folder):
    file = folder / "odd" / "3.jpg"
    file.write_bytes(file.read_bytes()[:200])


def _class_count(folder):
    _change(folder, num_classes=3)


def _unknown_key(folder):
    _change(folder, detctors=["msp"])


def _change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    "spoil, flags, words",
    [
        (_no_folder, (), "odd"),
        (_empty_folder, (), "odd"),
        (_truncated_image, (), "3.jpg"),
        (_no_checkpoint, (), "no such file"),
        (_empty_checkpoint, (), "0 bytes"),
        (_hostile_checkpoint, (), "more than tensors"),
        (_other_network, (), "shape"),
        (_class_count, (), "classes"),
        (_unknown_key, (), "did you mean 'detectors'"),
        (None, ("-detectors", "enrgy"), "did you mean 'energy'"),
        (None, ("-detectors", "dice:percentil=3"), "did you mean 'percentile'"),
        (None, ("-datasets", "iSUN"), "no OOD set 'iSUN'"),
        (None, ("-device", "cuda:77"), "cuda:77"),
        (None, ("-limit", "0"), "at least 1"),
        (None, ("-limt", "3"), "did you mean '-limit'"),
        (None, ("-feature_mean", "none.npy"), "none.npy"),
        (None, ("-checkpoint_name", "x"), "not both"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(user, call_script, spoil, flags, words):
    if spoil:
        spoil(user)
    done = evaluate(call_script, user, *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr, done.stderr
    assert not (user / "out").exists() and not (user / "executed").exists()


def test_help_explains_every_flag(call_script):
    done = call_script("eval_ood.py", "-h")
    assert done.returncode == 0
    for flag in ("-config", "-device", "-detectors", "-limit", "-checkpoint_name"):
        assert flag in done.stdout
    assert "[default: ./datasets]" in done.stdout


def test_no_run_yet_names_the_command(user, call_script):
    done = call_script(
        "eval_ood.py", "-config", "config.json", "-checkpoints_dir", "none", cwd=user
    )
    assert (
        done.returncode == 2
        and "classifier_pretraining.py -dataset ./photos -arch small_cnn" in done.stderr
    )


def test_imagenet_path_on_a_stand_in_of_its_layout(tmp_path, call_script, monkeypatch):
    """configs/dice_imagenet.json and its benchmark, with three classes and a random ResNet-18.

    The config names torchvision's weights; with -checkpoint they are not downloaded.
    """
    from conftest import ROOT

    def refuse(*_, **__):
        raise AssertionError("a download was started")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    generator = np.random.default_rng(0)

    def picture(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(file)

    for wnid in ("n01440764", "n01443537", "n01484850"):
        picture(tmp_path / "datasets" / "ILSVRC-2012" / "train" / wnid / "a.JPEG")
        picture(tmp_path / "datasets" / "ILSVRC-2012" / "val" / wnid / "b.JPEG")
    for folder in ("dtd/images/banded", "SUN/images", "iNaturalist/images", "Places/images"):
        picture(tmp_path / "datasets" / "ood_datasets" / folder / "c.jpg")
        picture(tmp_path / "datasets" / "ood_datasets" / folder / "d.jpg")
    config = json.loads((ROOT / "configs" / "dice_imagenet.json").read_text())
    suite = json.loads((ROOT / "configs" / "benchmarks" / "dice_imagenet.json").read_text())
    (tmp_path / "suite.json").write_text(
        json.dumps({**suite, "id_dataset": "datasets/ILSVRC-2012"})
    )
    changed = {
        "id_dataset": "datasets/ILSVRC-2012",
        "benchmark": "suite.json",
        "arch": "torchvision_resnet18",
        "num_classes": 3,
    }
    assert config["model_args"] == {"weights": "IMAGENET1K_V1"}
    (tmp_path / "imagenet.json").write_text(json.dumps({**config, **changed}))
    network = models.build("torchvision_resnet18", 3)
    models.checkpoints.save(tmp_path / "w.pth", network.state_dict())
    done = call_script(
        "eval_ood.py",
        "-config",
        "imagenet.json",
        "-checkpoint",
        "w.pth",
        "-out_dir",
        "out",
        "-device",
        "cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").read_text().splitlines()))
    assert [r["dataset"] for r in rows[:4]] == ["dtd", "SUN", "iNaturalist", "Places"]
    assert {r["detector"] for r in rows} == {
        "msp",
        "maxlogit",
        "energy",
        "react",
        "dice",
        "dice_react",
    }
    assert "92.95" in (tmp_path / "out" / "report.md").read_text(), (
        "the paper's average of ReAct stands beside ours"
    )
