"""From a config to a saved detector to own pictures: what both scripts write and refuse."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import models
from ood.config import InputError
from ood.data import load
from ood.deployment import detector_file, pictures
from ood.deployment.drift import Martingale
from ood.detectors.base import chunked_score
from ood.outputs import extract


def picture(file, generator, level, side=(40, 32)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(generator.normal(level, 30, (*side, 3)), 0, 255).astype(np.uint8)).save(
        file
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Coloured squares of two classes, weights of a network for them, and pictures to score.

    The pictures are nested; one is damaged, and one is no picture.
    """
    root, generator = tmp_path_factory.mktemp("user"), np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 30)):
        for index, name in enumerate(("dark", "light")):
            for i in range(count):
                picture(root / "photos" / split / name / f"{i}.png", generator, 60 + 120 * index)
    picture(root / "odd" / "a.png", generator, 128)
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
    (root / "benchmark.json").write_text(
        json.dumps(
            {"id_dataset": "./photos", "size": 32, "channels": 3, "entries": [{"dataset": "./odd"}]}
        )
    )
    (root / "config.json").write_text(
        json.dumps(
            {
                "id_dataset": "./photos",
                "num_classes": 2,
                "arch": "small_cnn",
                "benchmark": "benchmark.json",
                "detector_args": {"knn": {"k": 3}},
            }
        )
    )
    for i in range(13):
        picture(root / "mine" / "one" / f"{i:02d}.jpg", generator, 60, (50, 70))
        picture(root / "mine" / "two" / "deep" / f"{i:02d}.png", generator, 200)
    picture(root / "mine" / 'top, with "comma".png', generator, 10)
    picture(root / "mine" / ".hidden" / "x.png", generator, 10)
    (root / "mine" / "notes.txt").write_text("no picture")
    whole = (root / "mine" / "one" / "03.jpg").read_bytes()
    (root / "mine" / "one" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "mine" / "one" / "04.jpg").write_bytes(b"")
    return root


def fit(call_script, root, *flags):
    return call_script(
        "scripts/fit_detector.py",
        "-config",
        "config.json",
        "-checkpoint",
        "weights.pt",
        "-device",
        "cpu",
        "-no_cache",
        *flags,
        cwd=root,
    )


def score(call_script, root, *flags):
    return call_script(
        "scripts/score_images.py", "-device", "cpu", "-batch_size", "7", *flags, cwd=root
    )


def rows(file):
    with open(file, newline="") as content:
        return list(csv.DictReader(content))


def test_a_folder_of_pictures_is_scored(root, call_script, monkeypatch):
    done = fit(
        call_script, root, "-detector", "knn", "-accept", "0.9", "-out", "knn.npz", "-share", "0.8"
    )
    assert done.returncode == 0, done.stderr
    assert "at least 90 %" in done.stdout and "check:" in done.stdout
    stored = detector_file.load(root / "knn.npz")
    assert stored.detector.k == 3, "the config's detector_args count"
    assert (
        stored.recipe == {"size": 32, "resize": None, "channels": 3, "interpolation": "bilinear"}
        and len(stored.calibration.scores) == 48
    )

    monkeypatch.setattr(pictures, "GROUP", 10)
    done = score(
        call_script,
        root,
        "-detector",
        "knn.npz",
        "-input",
        "mine",
        "-out_dir",
        "out",
        "-sheet",
        "6",
    )
    assert done.returncode == 0, done.stderr
    assert "27 pictures in 'mine'" in done.stdout and "2 damaged" in done.stdout
    text = (root / "out" / "scores.csv").read_text()
    assert text.splitlines()[0] == (
        "file,score,p_value,accepted,predicted,confidence,nearest,error"
    )
    found = rows(root / "out" / "scores.csv")
    expected = [
        'top, with "comma".png',
        *(f"one/{i:02d}.jpg" for i in range(13)),
        *(f"two/deep/{i:02d}.png" for i in range(13)),
    ]
    assert [r["file"] for r in found] == expected, "every picture once, folder by folder"
    damaged = [r for r in found if r["error"]]
    assert [r["file"] for r in damaged] == ["one/03.jpg", "one/04.jpg"] and all(
        r["score"] == r["p_value"] == r["accepted"] == "" for r in damaged
    )
    whole = [r for r in found if not r["error"]]
    values = np.array([float(r["score"]) for r in whole])
    assert np.allclose([float(r["p_value"]) for r in whole], stored.calibration.p_values(values))
    assert [r["accepted"] for r in whole] == [
        str(int(v <= stored.calibration.threshold)) for v in values
    ]
    assert [p.name for p in sorted((root / "out").iterdir())] == [
        "contact_sheet.png",
        "scores.csv",
    ], "no temporary file is left"
    with Image.open(root / "out" / "contact_sheet.png") as sheet:
        colours = {sheet.convert("RGB").getpixel((x, 60)) for x in range(sheet.width)}
        assert sheet.width > 1000 and sheet.height > 300 and len(colours) > 5


def test_scores_are_those_of_an_evaluation(root, call_script):
    """The same pictures through load and extract, in one batch."""
    assert fit(call_script, root, "-detector", "mds", "-out", "mds.npz").returncode == 0
    assert (
        score(
            call_script, root, "-detector", "mds.npz", "-input", "photos/test", "-out_dir", "same"
        ).returncode
        == 0
    )
    stored = detector_file.load(root / "mds.npz")
    network = models.build(**stored.arch)
    models.checkpoints.load_into(network, root / "weights.pt")
    images = load(str(root / "photos"), "test", root, size=32, channels=3)
    expected = dict(
        zip(
            images.paths,
            chunked_score(stored.detector, extract(network, images, stored.preprocess)).tolist(),
        )
    )
    found = {r["file"]: float(r["score"]) for r in rows(root / "same" / "scores.csv")}
    assert len(found) == 60 and all(
        found[name] == pytest.approx(value, rel=1e-4)
        for name, value in expected.items()
        if name in found
    )
    assert set(found) == set(expected)


def test_a_detector_whose_statistics_are_in_a_file(root, call_script):
    """dice with feature_mean needs no training set, but its mask has to be made."""
    np.save(
        root / "mean.npy",
        np.linspace(0.1, 1, models.build("small_cnn", 2, image_size=32).fc.in_features),
    )
    done = fit(
        call_script,
        root,
        "-detector",
        "dice:feature_mean=mean.npy,percentile=50",
        "-out",
        "dice.npz",
    )
    assert done.returncode == 0, done.stderr
    assert detector_file.load(root / "dice.npz").detector.mask.float().mean() == 0.5
    (root / "mean.npy").unlink()
    done = score(
        call_script, root, "-detector", "dice.npz", "-input", "mine/two", "-out_dir", "dice"
    )
    assert done.returncode == 0, done.stderr
    assert len({r["score"] for r in rows(root / "dice" / "scores.csv")}) > 1


def test_detectors_that_need_images_and_a_single_picture(root, call_script):
    done = fit(
        call_script,
        root,
        "-detector",
        "odin:magnitude=0.004",
        "-out",
        "odin.npz",
        "-share",
        "1",
        "-confidence",
        "0.8",
    )
    assert done.returncode == 0, done.stderr
    assert "with probability 0.8" in done.stdout and "check:" not in done.stdout
    done = score(
        call_script,
        root,
        "-detector",
        "odin.npz",
        "-input",
        "mine/two/deep/05.png",
        "-out_dir",
        "one",
        "-sheet",
        "0",
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(root / "one" / "scores.csv")
    assert (
        row["file"] == "05.png"
        and 0 < float(row["p_value"]) <= 1
        and not (root / "one" / "contact_sheet.png").exists()
    )


def test_folder_without_test_images_keeps_calibration_apart(root, call_script):
    config = json.loads((root / "config.json").read_text())
    (root / "flat.json").write_text(
        json.dumps({**config, "id_dataset": "./photos/train", "benchmark": "flat_benchmark.json"})
    )
    (root / "flat_benchmark.json").write_text(
        json.dumps(
            {
                "id_dataset": "./photos/train",
                "size": 32,
                "channels": 3,
                "entries": [{"dataset": "./odd"}],
            }
        )
    )
    done = call_script(
        "scripts/fit_detector.py",
        "-config",
        "flat.json",
        "-checkpoint",
        "weights.pt",
        "-detector",
        "knn",
        "-no_cache",
        "-accept",
        "0.8",
        "-out",
        "flat.npz",
        "-device",
        "cpu",
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    assert "fitted on 15 of its images, calibrated on the other 15" in done.stdout
    assert len(detector_file.load(root / "flat.npz").detector.bank) == 15


def test_strict_stops_at_a_damaged_picture_and_keeps_what_was_there(root, call_script):
    assert fit(call_script, root, "-detector", "energy", "-out", "energy.npz").returncode == 0
    (root / "strict").mkdir()
    (root / "strict" / "scores.csv").write_text("old")
    done = score(
        call_script,
        root,
        "-detector",
        "energy.npz",
        "-input",
        "mine",
        "-out_dir",
        "strict",
        "-strict",
    )
    assert (
        done.returncode == 2
        and "one/03.jpg" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
    assert (root / "strict" / "scores.csv").read_text() == "old" and len(
        list((root / "strict").iterdir())
    ) == 1


def _other_weights(root):
    torch.manual_seed(1)
    models.checkpoints.save(
        root / "other.pt", {"state_dict": models.build("small_cnn", 2, image_size=32).state_dict()}
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (("-detector", "none.npz", "-input", "mine"), "no detector file"),
        (("-detector", "weights.pt", "-input", "mine"), "not a whole detector file"),
        (("-detector", "e.npz", "-input", "nowhere"), "no folder or picture"),
        (("-detector", "e.npz", "-input", "empty"), "no pictures"),
        (("-detector", "e.npz", "-input", "mine", "-checkpoint", "other.pt"), "another network"),
        (("-detector", "e.npz", "-input", "mine", "-batch_size", "0"), "at least 1"),
        (("-input", "mine"), "-detector"),
    ],
)
def test_bad_input_is_one_line(root, call_script, flags, words):
    if not (root / "e.npz").exists():
        assert fit(call_script, root, "-detector", "energy", "-out", "e.npz").returncode == 0
        _other_weights(root)
        (root / "empty").mkdir()
    done = score(call_script, root, *flags, "-out_dir", "bad")
    assert (
        done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr
    assert not (root / "bad").exists()


def test_missing_weights_are_named(root, call_script):
    assert fit(call_script, root, "-detector", "energy", "-out", "moved.npz").returncode == 0
    (root / "weights.pt").rename(root / "elsewhere.pt")
    try:
        done = score(
            call_script, root, "-detector", "moved.npz", "-input", "mine", "-out_dir", "moved"
        )
        assert done.returncode == 2 and "give them with -checkpoint" in done.stderr
        done = score(
            call_script,
            root,
            "-detector",
            "moved.npz",
            "-input",
            "mine/two",
            "-out_dir",
            "moved",
            "-checkpoint",
            "elsewhere.pt",
        )
        assert done.returncode == 0, done.stderr
    finally:
        (root / "elsewhere.pt").rename(root / "weights.pt")


@pytest.mark.parametrize(
    "flags, words",
    [
        (("-accept", "0.99"), "at least 99 are needed"),
        (("-detector", "dropout"), "no dropout"),
        (("-share", "0"), "-share"),
        (("-detector", "knnn"), "did you mean 'knn'"),
    ],
)
def test_fit_refuses_what_cannot_be(root, call_script, flags, words):
    done = fit(call_script, root, *flags, "-out", "refused.npz")
    assert done.returncode == 2 and words in done.stderr and not (root / "refused.npz").exists()


def test_files_are_asked_for_as_they_are_needed(root, monkeypatch):
    """Of a million names only those of the current group are held."""
    monkeypatch.setattr(pictures, "GROUP", 8)
    torch.manual_seed(0)
    network = models.build("small_cnn", 2, image_size=32)
    from ood import detectors
    from ood.data import Preprocess

    stored = detector_file.Stored(
        detectors.create("energy"),
        "",
        Preprocess([0.5] * 3, [0.5] * 3),
        {"size": 32, "resize": None, "channels": 3},
    )
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield "two/deep/00.png"

    stream = pictures.score(root / "mine", stored, network, files=endless(), batch_size=4)
    taken = [next(stream) for _ in range(20)]
    assert (
        len(asked) <= 24
        and len({row.score for row in taken}) == 1
        and taken[0].p_value is None
        and taken[0].accepted is None
    )
    stream.close()


def test_recipe_without_a_shape_is_refused():
    with pytest.raises(InputError, match="leaves the shape"):
        pictures.recipe_of({"size": None, "resize": None, "channels": 3})
    assert pictures.recipe_of({"size": None, "resize": (20, 30), "channels": 1})[1] == (1, 20, 30)


def test_extremes_are_the_extremes():
    values = np.random.default_rng(0).permutation(100)
    extremes = pictures.Extremes(3)
    for v in values:
        extremes.add(pictures.Row(str(v), float(v)))
    assert [r.score for r in extremes.least] == [99, 98, 97] and [
        r.score for r in extremes.most
    ] == [0, 1, 2]


def test_pictures_are_scored_upright(tmp_path):
    """What a camera wrote on its side is turned, for the network and on the contact sheet."""
    array = np.zeros((40, 60, 3), dtype=np.uint8)
    array[:20] = 255  # the upper half is white: after a quarter clockwise, the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    recipe, shape = pictures.recipe_of({"size": 8, "resize": (8, 8), "channels": 3})
    image = pictures.Pictures(tmp_path, ["a.png"], recipe, shape).read([0])[0, 0]
    assert image[:, 5:].min() > 200 and image[:, :3].max() < 50
    sheet = Image.new("RGB", (pictures.CELL, pictures.CELL))
    pictures._place(sheet, tmp_path / "a.png", 0, 0)
    middle = pictures.CELL // 2
    assert sheet.getpixel((middle + 15, 30))[0] == 255 and sheet.getpixel((middle - 15, 30))[0] == 0


@pytest.fixture(scope="module")
def strange(root, tmp_path_factory):
    """Pictures with strange names and formats, and a detector."""
    folder, generator = tmp_path_factory.mktemp("strange"), np.random.default_rng(0)
    for name in ("line\nbreak.png", "=cmd|'calc'!A1.png", "tab\there.png", "plain.png"):
        picture(folder / name, generator, 60)
    picture(folder / "-deep" / "a.png", generator, 60)
    still = Image.fromarray(np.full((40, 40, 3), 90, np.uint8))
    still.save(folder / "anim.gif", save_all=True, append_images=[still.rotate(90)])
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    os.mkfifo(folder / "pipe.png")
    return folder


def test_strange_names_and_formats_are_all_in_the_csv(root, strange, call_script):
    assert fit(call_script, root, "-detector", "energy", "-out", "s.npz").returncode == 0
    done = score(
        call_script, root, "-detector", "s.npz", "-input", strange, "-out_dir", "s", "-sheet", "9"
    )
    assert done.returncode == 0, done.stderr
    found = {row["file"]: row for row in rows(root / "s" / "scores.csv")}
    assert set(found) == {
        "line\nbreak.png",
        "./=cmd|'calc'!A1.png",
        "tab\there.png",
        "plain.png",
        "./-deep/a.png",
        "anim.gif",
        "phone.HEIC",
        "pipe.png",
    }
    assert all((strange / name).exists() for name in found)
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert set(errors) == {"phone.HEIC", "pipe.png"}
    assert "convert it to JPEG or PNG" in errors["phone.HEIC"] and "a pipe" in errors["pipe.png"]
    assert found["anim.gif"]["score"] and (root / "s" / "contact_sheet.png").exists()


def test_a_detector_file_starts_no_download(root, call_script, monkeypatch, tmp_path):
    """Its `arch` may name published weights: only the file that torchvision keeps is taken."""
    import torchvision

    def refuse(*_, **__):
        raise AssertionError("a download was started")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert fit(call_script, root, "-detector", "energy", "-out", "w.npz").returncode == 0
    arch = {"arch": "torchvision_resnet18", "num_classes": 1000, "weights": "IMAGENET1K_V1"}
    change_meta(root / "w.npz", arch=arch, checkpoint=None)
    done = score(call_script, root, "-detector", "w.npz", "-input", "mine", "-out_dir", "w")
    assert done.returncode == 2 and "give them with -checkpoint" in done.stderr
    assert str(tmp_path) in done.stderr and not (root / "w").exists()


def change_meta(path, **changes):
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = {**json.loads(arrays.pop("meta").tobytes()), **changes}
    np.savez(path, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)


def test_thresholds_per_class_and_alarms(root, call_script):
    flags = ("-detector", "knn", "-accept", "0.8", "-out", "classes.npz", "-per_class")
    done = fit(call_script, root, *flags)
    assert done.returncode == 0, done.stderr
    stored = detector_file.load(root / "classes.npz")
    parts = stored.calibration.parts
    assert f"{len(parts)} thresholds" in done.stdout and "in each of" in done.stdout
    assert sum(len(part.scores) for part in parts.values()) <= 30 and parts
    assert "fewest in class" in done.stdout and 0 < stored.about["check"]["accepted"] <= 1

    def judged(folder, *flags):
        where = ("-detector", "classes.npz", "-input", folder, "-out_dir", "judged")
        done = score(call_script, root, *where, "-sheet", "0", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    same = judged("photos/test", "-stream")
    assert "no sign of a change" in same
    scores = [float(row["score"]) for row in rows(root / "judged" / "scores.csv")]
    monitor = Martingale(stored.calibration.everything)
    monitor.update(scores)  # sorted by class, so an alarm would be right
    first = monitor.alarm(0.01)
    assert f"stream: {'no alarm' if first is None else f'ALARM at picture {first}'}" in same
    other = judged("mine")
    assert "ALARM: the pictures as a whole differ" in other and "stream:" not in other
    assert "calibration images (" not in judged("mine", "-alarm", "0")
    network = models.rebuild(stored.arch)
    models.checkpoints.load_into(network, root / "weights.pt")
    images = load(str(root / "photos"), "test", root, size=32, channels=3)
    outputs = extract(network.eval(), images, stored.preprocess, device="cpu")
    scores = chunked_score(stored.detector, outputs).numpy()
    expected = stored.calibration.accepts(scores, outputs.logits.argmax(1).numpy())
    judged("photos/test")
    found = {row["file"]: row["accepted"] == "1" for row in rows(root / "judged" / "scores.csv")}
    assert [found[path.removeprefix("test/")] for path in images.paths] == expected.tolist()


@pytest.mark.parametrize("level", ["-1", "1", "nan"])
def test_a_level_outside_its_range_is_refused(root, call_script, level):
    done = score(call_script, root, "-detector", "x.npz", "-input", "mine", "-alarm", level)
    assert done.returncode == 2 and "-alarm" in done.stderr


def test_why_a_picture_is_judged_as_it_is(root, call_script):
    """Class by name, its confidence, and the nearest training pictures by the angle of features."""
    assert fit(call_script, root, "-detector", "energy", "-out", "why.npz").returncode == 0
    stored = detector_file.load(root / "why.npz")
    assert stored.class_names == ("dark", "light")
    flags = ("-detector", "why.npz", "-input", "mine", "-out_dir", "why", "-nearest", "2")
    done = score(call_script, root, *flags)
    assert done.returncode == 0 and "among 30 training pictures of ./photos" in done.stdout, done
    network = models.rebuild(stored.arch)
    models.checkpoints.load_into(network, root / "weights.pt")

    def features_of(images):
        return extract(network.eval(), images, stored.preprocess, device="cpu")

    train = load(str(root / "photos"), "train", root, size=32, channels=3)
    mine = load(str(root / "mine" / "two"), "test", root, size=32, channels=3)
    known, seen = features_of(train).features, features_of(mine)
    angles = torch.nn.functional.cosine_similarity(seen.features[:, None], known[None], dim=2)
    found = {row["file"]: row for row in rows(root / "why" / "scores.csv")}
    for path, expected, logits in zip(mine.paths, angles.argsort(1, descending=True), seen.logits):
        row = found[f"two/{path}"]
        assert json.loads(row["nearest"]) == [train.paths[i] for i in expected[:2].tolist()]
        assert row["predicted"] == ("dark", "light")[logits.argmax()]
        assert float(row["confidence"]) == pytest.approx(logits.softmax(0).max().item(), rel=1e-4)
    damaged = found["one/03.jpg"]
    assert (
        damaged["error"] and not damaged["predicted"] + damaged["confidence"] + damaged["nearest"]
    )
    done = score(call_script, root, *flags, "-train", "./nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr


def test_class_names_are_those_of_the_weight_file(root, call_script):
    """The order of the logits belongs to the weights; a folder with other names gives a remark."""
    content = torch.load(root / "weights.pt", weights_only=True)
    models.checkpoints.save(root / "named.pt", {**content, "class_names": ["night", "day"]})
    done = fit(call_script, root, "-checkpoint", "named.pt", "-out", "named.npz")
    assert done.returncode == 0, done.stderr
    assert "the weights know night, day; ./photos has dark, light" in done.stdout
    assert detector_file.load(root / "named.npz").class_names == ("night", "day")
