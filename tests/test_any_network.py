"""Any network from the shell: evaluated, fitted and scored with one spelling and no config."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import models
from ood.deployment import detector_file

CODE = """
import torch
from torch import nn

def build(num_classes=2):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, num_classes),
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Dark and light photographs of two classes, others, and a file with a network."""
    root, generator = tmp_path_factory.mktemp("anywhere"), np.random.default_rng(0)

    def picture(path, level):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.normal(level, 25, (40, 36, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    for split, count in (("train", 12), ("test", 25)):
        for name, level in (("dark", 60), ("light", 180)):
            for i in range(count):
                picture(root / "photos" / split / name / f"{i}.png", level)
    for i in range(20):
        picture(root / "other" / f"{i}.png", 240)
    entry = {
        "id_dataset": "./photos",
        "size": 32,
        "channels": 3,
        "entries": [{"dataset": "./other"}],
    }
    (root / "bench.json").write_text(json.dumps(entry))
    (root / "my_file.py").write_text(CODE)
    return root


def run(call_script, root, script, *flags, code=0):
    done = call_script(script, *flags, "-device", "cpu", cwd=root)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(call_script, root, *flags, **options):
    shown = run(
        call_script, root, "eval_ood.py", "-benchmark", "bench.json", "-no_cache", *flags, **options
    )
    return shown


def aurocs(root, folder):
    with open(root / folder / "metrics.csv", newline="") as file:
        return {r["detector"]: float(r["auroc"]) for r in csv.DictReader(file)}


def fit_and_score(call_script, root, *flags, again=()):
    """Fit a detector and score pictures with it; the rows of scores.csv."""
    run(call_script, root, "scripts/fit_detector.py", *flags, "-out", "d.npz", "-no_cache")
    where = ("-detector", "d.npz", "-input", "other", "-out_dir", "scored", "-sheet", "0")
    run(call_script, root, "scripts/score_images.py", *where, *again)
    with open(root / "scored" / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_with_a_function(root, call_script):
    arch = ("-arch", "my_file.py:build", "-dataset", "./photos", "-num_classes", "2")
    evaluate(call_script, root, *arch, "-detectors", "energy", "knn:k=3", "-out_dir", "own")
    assert set(aurocs(root, "own")) == {"energy", "knn:k=3"}
    flags = ("-arch", "my_file.py:build", "-dataset", "./photos", "-benchmark", "bench.json")
    rows = fit_and_score(
        call_script, root, *flags, "-detector", "knn:k=3", again=("-arch", "my_file.py:build")
    )
    assert len(rows) == 20 and not any(row["error"] for row in rows)
    stored = detector_file.load(root / "d.npz")
    assert stored.arch["arch"] == "my_file.py:build"
    where = ("-detector", "d.npz", "-input", "other", "-out_dir", "again")
    refused = run(call_script, root, "scripts/score_images.py", *where, code=2)
    assert "runs code; name it yourself: -arch my_file.py:build" in refused
    wrong = run(
        call_script, root, "scripts/score_images.py", *where, "-arch", "other.py:build", code=2
    )
    assert "belongs to my_file.py:build" in wrong


def test_the_weights_of_a_run_say_what_they_are(root, call_script):
    """No config repeats architecture, options, classes, size or normalisation."""
    train = ("-dataset", "./photos", "-arch", "small_resnet", "-size", "24", "-epochs", "1")
    run(call_script, root, "classifier_pretraining.py", *train, "-out_dir", "run")
    evaluate(call_script, root, "-checkpoint", "run", "-detectors", "mds", "-out_dir", "of_run")
    assert set(aurocs(root, "of_run")) == {"mds"}
    setting = json.loads((root / "of_run" / "metrics.json").read_text())
    assert "small_resnet" in json.dumps(setting) and "the flags" in json.dumps(setting)
    rows = fit_and_score(call_script, root, "-checkpoint", "run", "-detector", "mds")
    stored = detector_file.load(root / "d.npz")
    assert stored.recipe["size"] == 24 and stored.recipe["channels"] == 3 and len(rows) == 20
    none = run(call_script, root, "eval_ood.py", "-checkpoint", "run", "-out_dir", "none", code=2)
    assert "no benchmark is named for './photos'" in none
    by_file = ("-checkpoint", "run/best.pt", "-detectors", "mds", "-out_dir", "of_file")
    evaluate(call_script, root, *by_file)
    assert aurocs(root, "of_file") == aurocs(root, "of_run")


@pytest.mark.parametrize("head", ["none", "linear"])
def test_features_without_a_head_and_with_a_fitted_one(root, call_script, head):
    evaluate(
        call_script,
        root,
        "-arch",
        "my_file.py:build",
        "-head",
        head,
        "-out_dir",
        head,
        "-detectors",
        *(("knn:k=3", "mds") if head == "none" else ("energy", "vim:dim=4", "odin")),
    )
    assert len(aurocs(root, head)) > 1
    if head == "none":
        refused = evaluate(
            call_script,
            root,
            "-arch",
            "my_file.py:build",
            "-head",
            "none",
            "-detectors",
            "energy",
            code=2,
        )
        assert "-head linear" in refused
    detector = "knn:k=3" if head == "none" else "energy"
    flags = ("-arch", "my_file.py:build", "-head", head, "-benchmark", "bench.json")
    rows = fit_and_score(
        call_script, root, *flags, "-detector", detector, again=("-arch", "my_file.py:build")
    )
    assert len(rows) == 20 and all(row["score"] for row in rows)


def test_a_lightning_checkpoint(root, call_script):
    network = models.build("small_cnn", 2, image_size=32)
    state = {f"model.{k}": v for k, v in network.state_dict().items()} | {"loss.w": torch.ones(2)}
    content = {"pytorch-lightning_version": "2.6", "state_dict": state, "epoch": 3}
    torch.save(content, root / "last.ckpt")
    flags = ("-arch", "small_cnn", "-checkpoint", "last.ckpt", "-num_classes", "2")
    evaluate(call_script, root, *flags, "-detectors", "msp", "-out_dir", "lightning")
    assert set(aurocs(root, "lightning")) == {"msp"}


def test_an_exported_file(root, call_script):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    batch = {0: torch.export.Dim("batch", min=1, max=512)}
    program = torch.export.export(network, (images,), dynamic_shapes=(batch,))
    torch.export.save(program, root / "net.pt2")
    torch.jit.trace(network, images).save(str(root / "net.ts"))
    for name in ("net.pt2", "net.ts"):
        flags = ("-arch", name, "-size", "32", "-detectors", "energy", "mds", "-out_dir", name[4:])
        evaluate(call_script, root, *flags)
    assert aurocs(root, "pt2")["energy"] == pytest.approx(aurocs(root, "ts")["energy"], abs=1e-6)


def test_timm_features_of_a_transformer(root, call_script):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    torch.save(network.state_dict(), root / "vit.pt")
    arch = ("-arch", "timm:vit_tiny_patch16_224", "-size", "32", "-checkpoint", "vit.pt")
    (root / "vit.json").write_text(
        json.dumps(
            {
                "id_dataset": "./photos",
                "arch": "timm:vit_tiny_patch16_224",
                "model_args": {"depth": 1},
                "head": "none",
                "size": 32,
                "num_classes": 2,
                "benchmark": "bench.json",
            }
        )
    )
    flags = ("-config", "vit.json", *arch[4:], "-detectors", "knn:k=3", "-out_dir", "vit")
    run(call_script, root, "eval_ood.py", *flags, "-no_cache")
    assert set(aurocs(root, "vit")) == {"knn:k=3"}
    fit = ("-config", "vit.json", "-checkpoint", "vit.pt", "-detector", "knn:k=3")
    rows = fit_and_score(call_script, root, *fit)
    stored = detector_file.load(root / "d.npz")
    assert len(rows) == 20 and stored.recipe["interpolation"] == "bicubic"


def test_a_head_with_other_classes_is_refused(root, call_script):
    (root / "five.py").write_text(
        CODE.replace("num_classes=2", "classes=5").replace("num_classes)", "classes)")
    )
    said = evaluate(call_script, root, "-arch", "five.py:build", "-detectors", "msp", code=2)
    assert "has 5 classes, ./photos has 2" in said and "-head linear" in said
