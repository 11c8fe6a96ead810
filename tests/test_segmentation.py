"""Pixels: networks, sets of one's own, detectors on maps of logits, the scripts and the figure."""

import csv
import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from sklearn import metrics as sk
from torch import nn

import models
from models import segmentation as networks
from ood import compat, detectors
from ood.config import InputError
from ood.data import IGNORED, Preprocess, load_masked
from ood.evaluation import overlays, segmentation
from ood.metrics import Metrics

SIZES = ((20, 26), (17, 30), (20, 26), (24, 24), (20, 26))
CLASSES = ("ground", "left", "right")
PREPROCESS = Preprocess((0.5,) * 3, (0.25,) * 3)


def scene(number, height, width):
    """An image whose colours say the class, some outliers (not in image 1), an ignored border."""
    chance = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    mask[4:, :6], mask[4:, 10:14] = 1, 2
    if number != 1:
        mask[8:15, 15:21] = 254
    image = chance.normal(110, 25, (height, width, 3))
    image[mask == 1, 0] += 90
    image[mask == 2, 1] += 90
    image[mask == 254, 2] += 60
    mask[:2] = IGNORED
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "scenes"
    for split, count in (("train", 3), ("test", 5)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(number, *SIZES[number])
            mask[(mask == 254) & (split == "train")] = 0
            Image.fromarray(image).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


class Colours(nn.Module):
    """Logits of three classes from the normalised colours, the last one noisy."""

    def forward(self, images):
        red, green, blue = images.unbind(1)
        return torch.stack((0.8 - blue.abs(), 1.5 * red - 1, 1.5 * green - 1), 1)


@pytest.fixture(scope="module")
def maps():
    return segmentation.Maps(Colours(), PREPROCESS)


def made(*names):
    return {name: detectors.create(name) for name in names}


# --- a set of one's own


def test_a_folder_of_images_and_masks(folder):
    images = load_masked(str(folder))
    assert len(images) == 5 and images.class_names == CLASSES and images.name == "scenes"
    pixels, mask = images[0]
    expected, values = scene(0, *SIZES[0])
    assert torch.equal(pixels, torch.from_numpy(expected.transpose(2, 0, 1)))
    assert torch.equal(mask == -1, torch.from_numpy(values == 254)) and (mask[:2] == IGNORED).all()
    assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {-1, 0, 1, 2, IGNORED}
    assert (
        len(load_masked(str(folder), "train")) == 3 and len(load_masked(str(folder), limit=2)) == 2
    )
    assert load_masked(str(folder / "test")).class_names is None  # without sub-folders


def test_a_folder_without_masks(tmp_path):
    with pytest.raises(InputError, match="no folder .*images"):
        load_masked(str(tmp_path))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"1 images have no mask, e.g. .*masks/a.png"):
        load_masked(str(tmp_path))


# --- networks


@pytest.mark.parametrize("size", [(32, 32), (19, 35)])
def test_the_small_network_takes_any_size(size):
    network = networks.build("small_unet", 5, width=4, depth=3)
    assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


def test_torchvisions_networks_and_their_weight_files(tmp_path):
    network = networks.build("torchvision:deeplabv3_mobilenet_v3_large", 4).eval()
    with torch.inference_mode():
        found = network(torch.rand(1, 3, 48, 40))
    assert found.shape == (1, 4, 48, 40)
    state = {
        key: value + 0.5 if value.is_floating_point() else value
        for key, value in network.network.state_dict().items()
    }
    state["aux_classifier.4.bias"] = torch.zeros(4)  # as in torchvision's own files
    torch.save(state, tmp_path / "weights.pth")
    assert networks.read_arch(tmp_path / "weights.pth") is None
    networks.load_into(network, tmp_path / "weights.pth")
    assert all(torch.equal(v, state[k]) for k, v in network.network.state_dict().items())


def test_a_weight_file_of_ours_says_how_to_build_its_network(tmp_path):
    network = networks.build("small_unet", 3, width=4, depth=2).eval()
    networks.save(tmp_path / "a.pt", network, preprocess={"mean": [0.5], "std": [0.5]})
    again = networks.build(**networks.read_arch(tmp_path / "a.pt")).eval()
    facts = networks.load_into(again, tmp_path / "a.pt")
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images), again(images)) and facts["preprocess"]["mean"] == [0.5]
    other = networks.build("small_unet", 4, width=4, depth=2)
    with pytest.raises(models.CheckpointError, match="does not fit"):
        networks.load_into(other, tmp_path / "a.pt")


def test_unknown_networks():
    for arch, message in (
        ("unet", "write small_unet"),
        ("torchvision:fcn_resnet5", "did you mean 'fcn_resnet50'"),
    ):
        with pytest.raises(models.ModelError, match=message):
            networks.build(arch, 3)
    with pytest.raises(models.ModelError, match="widht"):
        networks.build("small_unet", 3, widht=4)
    with pytest.raises(models.ModelError, match="num_classes is 0"):
        networks.build("small_unet", 0)


def test_segmentation_models_pytorch():
    try:
        import segmentation_models_pytorch  # noqa: F401
    except ImportError:
        with pytest.raises(models.ModelError, match="pip install segmentation-models-pytorch"):
            networks.build("smp:Unet", 3)
    else:
        network = networks.build("smp:Unet", 3, encoder_name="resnet18").eval()
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


# --- detectors on maps


@pytest.mark.parametrize("name", ["msp", "maxlogit", "energy", "entropy", "gen"])
def test_a_map_is_scored_like_its_pixels(name):
    logits, detector = torch.randn(5, 7, 9), detectors.create(name)
    found = segmentation.score(detector, logits)
    single = segmentation.score(detector, logits[:, 2:3, 4:5])
    assert found.shape == (7, 9) and found[2, 4] == pytest.approx(single[0, 0])
    theirs = {"msp": "MaxSoftmax", "maxlogit": "MaxLogit", "energy": "EnergyBased"}.get(name)
    if theirs:
        of_maps = getattr(compat, theirs)(None).predict_logits(logits[None])
        assert np.allclose(of_maps[0].numpy(), found)


def test_detectors_that_need_more_than_logits_are_refused():
    assert {"msp", "energy", "klm", "gen"} <= set(segmentation.usable_names())
    with pytest.raises(InputError, match="'knn' needs features"):
        segmentation.usable(made("msp", "knn"))


def in_one(maps, folder, name):
    """Scores and outliers of all pixels of the test images, concatenated, and by image."""
    detector, parts = detectors.create(name), []
    for image, mask in (load_masked(str(folder))[row] for row in range(5)):
        scores = segmentation.score(detector, maps(image))
        counted = mask.numpy() != IGNORED
        parts.append((scores[counted], mask.numpy()[counted] < 0))
    return [np.concatenate(side) for side in zip(*parts)], parts


@pytest.mark.parametrize("name", ["msp", "energy"])
def test_metrics_are_scikit_learns_over_pixels_and_over_images(maps, folder, name):
    result = segmentation.evaluate(maps, load_masked(str(folder)), made("msp", "energy"))
    (scores, outlier), parts = in_one(maps, folder, name)
    rows = {(row["detector"], row["group"]): row for row in result.rows}
    whole, mean = rows[name, "pixels"], rows[name, "images"]
    assert whole["auroc"] == pytest.approx(sk.roc_auc_score(outlier, scores), abs=1e-12)
    assert whole["aupr_out"] == pytest.approx(sk.average_precision_score(outlier, scores))
    assert whole["n_ood"] == outlier.sum() and whole["n_id"] == (~outlier).sum()
    parts = [part for part in parts if part[1].any()]
    each = [sk.roc_auc_score(o, s) for s, o in parts]
    assert len(each) == mean["n_images"] == 4 and result.skipped == 1
    assert mean["auroc"] == pytest.approx(np.mean(each))
    assert mean["aupr_out"] == pytest.approx(
        np.mean([sk.average_precision_score(o, s) for s, o in parts])
    )
    assert [image["image"] for image in result.images] == [f"images/{n}.png" for n in range(5)]
    ignored = sum(2 * width for _, width in SIZES)
    assert result.pixels == {"id": whole["n_id"], "ood": whole["n_ood"], "ignored": ignored}
    assert result.exact and 0 < result.mean_iou < result.accuracy < 1


def test_counted_pixels_lie_within_the_bounds(maps, folder):
    images = load_masked(str(folder))
    exact = segmentation.evaluate(maps, images, made("energy")).rows[0]
    counted = segmentation.evaluate(maps, images, made("energy"), exact=400, bins=64)
    low, high = counted.bounds["energy"]
    assert not counted.exact and low != high
    for metric in Metrics._fields:
        assert getattr(low, metric) - 1e-12 <= exact[metric] <= getattr(high, metric) + 1e-12


def test_accuracy_and_iou_against_loops(maps, folder):
    result = segmentation.evaluate(maps, load_masked(str(folder)), made("msp"))
    true, predicted = [], []
    for image, mask in (load_masked(str(folder))[row] for row in range(5)):
        known = (mask >= 0) & (mask != IGNORED)
        true.append(mask[known])
        predicted.append(maps(image).argmax(0)[known])
    true, predicted = torch.cat(true).numpy(), torch.cat(predicted).numpy()
    assert result.accuracy == pytest.approx((true == predicted).mean())
    assert result.mean_iou == pytest.approx(sk.jaccard_score(true, predicted, average="macro"))


def test_fitted_detectors_see_the_training_pixels(maps, folder):
    train, found = load_masked(str(folder), "train"), made("klm", "temp_scaling", "msp")
    segmentation.fit(maps, train, found, pixels=10**6)
    logits, labels = [], []
    for image, mask in (train[row] for row in range(3)):
        known = mask != IGNORED
        logits.append(maps(image)[:, known].T)
        labels.append(mask[known])
    whole = segmentation._outputs(torch.cat(logits), torch.cat(labels))
    for name in ("klm", "temp_scaling"):
        direct = detectors.create(name).fit(whole)
        assert torch.allclose(direct.score(whole), found[name].score(whole))
    segmentation.fit(maps, train, found, pixels=30)  # a sample
    assert not torch.allclose(direct.score(whole), found["temp_scaling"].score(whole))
    two = segmentation.Maps(lambda_module(lambda x: Colours()(x)[:, :2]), PREPROCESS)
    with pytest.raises(InputError, match="do not hold classes of the network"):
        segmentation.fit(two, train, made("klm"))


def lambda_module(function):
    made = nn.Module()
    made.forward = function
    return made


def test_images_are_resized_for_the_network(folder):
    sizes = []

    def network(images):
        sizes.append(tuple(images.shape[2:]))
        return Colours()(images)

    maps = segmentation.Maps(lambda_module(network), PREPROCESS, size=(32, 48))
    image, mask = load_masked(str(folder))[1]
    assert maps(image).shape == (3, *mask.shape) and sizes == [(32, 48)]


def test_networks_that_give_something_else(folder):
    image, _ = load_masked(str(folder))[0]
    for function, message in (
        (lambda x: x.mean((2, 3)), "the network gave"),
        (lambda x: {"out": x}, "the network gave dict"),
        (lambda x: x * float("nan"), "NaN or infinite"),
    ):
        with pytest.raises(InputError, match=message):
            segmentation.Maps(lambda_module(function), PREPROCESS)(image)


def test_a_set_without_outliers_is_named(maps, folder):
    with pytest.raises(InputError, match="'scenes': no OOD pixels"):
        segmentation.evaluate(maps, load_masked(str(folder), "train"), made("msp"))


def test_the_figure_shows_scores_on_images(maps, folder, tmp_path):
    found = made("msp", "energy")
    result = segmentation.evaluate(maps, load_masked(str(folder)), found, shown=2)
    assert [s.name for s in result.shown] == ["images/0.png", "images/2.png"]
    path = overlays.draw(result.shown, tmp_path / "figure.png", CLASSES)
    width, height = Image.open(path).size
    assert width > 500 and height > 300
    shown = result.shown[0]
    low, high = shown.scores["energy"].min(), shown.scores["energy"].max()
    coloured = overlays.overlay(shown, "energy", low, high)
    inside = shown.mask != IGNORED
    bright = coloured.sum(2)
    rank = np.corrcoef(bright[inside], shown.scores["energy"][inside])[0, 1]
    assert rank > 0.8 and coloured.min() >= 0 and coloured.max() <= 1
    grey = coloured[~inside]
    assert np.allclose(grey[:, 0], grey[:, 2])  # ignored pixels have no colour


# --- the scripts


@pytest.fixture
def run(monkeypatch, capsys):
    """run('-limit', 3) -> (exit code, stdout, stderr) of segment_ood.py, in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["segment_ood.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / "scripts" / "segment_ood.py"), run_name="__main__")
        return exit.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """reproduce_segmentation.py at tiny size; it runs segment_ood.py twice."""
    work = tmp_path_factory.mktemp("reproduced")
    tiny = ("-seeds", 1, "-train", 6, "-test", 4, "-epochs", 1, "-width", 4)
    command = [sys.executable, str(ROOT / "scripts" / "reproduce_segmentation.py")]
    words = map(str, (*tiny, "-work_dir", work))
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return work, done.stdout


def test_the_scenes_have_masks_that_fit(reproduced):
    work, _ = reproduced
    train, outliers, test = (
        load_masked(str(work / "scenes"), split) for split in ("train", "outliers", "test")
    )
    assert [len(s) for s in (train, outliers, test)] == [6, 6, 4]
    for row in range(6):
        (image, mask), (pasted, wrong) = train[row], outliers[row]
        assert (mask >= 0).all() and (mask > 0).any()
        same = (wrong == mask) & (mask != IGNORED)  # elsewhere the scene is the same
        assert torch.equal(image[:, same], pasted[:, same]) and same.float().mean() > 0.7
    assert any((outliers[row][1] == -1).any() for row in range(6))
    assert any((test[row][1] == -1).any() for row in range(4))


def test_what_the_script_writes(reproduced):
    work, said = reproduced
    out = work / "outlier_exposure_1"
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert [(r["detector"], r["group"]) for r in rows][:2] == [("msp", "pixels"), ("msp", "images")]
    content = json.loads((out / "metrics.json").read_text())
    facts = content["datasets"]["scenes"]
    assert facts["exact"] and facts["images"] == 4 and content["provenance"]["seed"] == 0
    assert facts["bounds"]["msp"]["low"]["auroc"] == float(rows[0]["auroc"])
    assert facts["accuracy"] is not None and len(content["rows"]) == len(rows) == 8
    per_image = list(csv.DictReader((out / "per_image.csv").open()))
    assert {r["detector"] for r in per_image} == {"msp", "maxlogit", "energy", "entropy"}
    text = (out / "report.md").read_text()
    assert "The metrics are exact." in text and "![](figures/scenes.png)" in text
    assert f"{100 * float(rows[0]['auroc']):.2f}" in text
    assert (out / "figures" / "scenes.png").is_file()
    assert "outlier_exposure, all pixels" in said


def test_other_detectors_bins_and_bad_input(reproduced, run, tmp_path):
    work, _ = reproduced
    common = ("-datasets", work / "scenes", "-checkpoint", work / "cross_entropy_1.pt", "-limit", 3)
    words = ("-detectors", "klm", "gen:gamma=0.3", "-exact_pixels", 100, "-bins", 50)
    code, said, errors = run(*common, *words, "-device", "cpu", "-out_dir", tmp_path)
    assert code == 0 and "klm" in said, errors
    assert "counted in bins" in (tmp_path / "report.md").read_text()
    for words, message in (
        (("-detectors", "knn"), "needs features"),
        (("-num_classes", 4), "does not fit"),
        (("-arch", "smal_unet"), "unknown segmentation network"),
        (("-split", "val"), "no folder"),
        (("-datasets", work / "scenes", work / "scenes"), "the same name"),
        (("-datasets", "lostandfond"), "did you mean 'lostandfound'"),
    ):
        code, _, errors = run(*common, *words, "-device", "cpu", "-out_dir", tmp_path)
        assert code == 2 and message in errors and "Traceback" not in errors
