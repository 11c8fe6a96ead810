"""Grid search on cached outputs, pseudo-outliers made from ID data, and the script."""

import json

import numpy as np
import pytest
import torch
from detector_toys import Gratings, gratings, outputs

import models
from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.detectors.base import chunked_score
from ood.evaluation import pseudo, tuning
from ood.metrics import evaluate
from ood.outputs import extract


@pytest.mark.parametrize("name", tuning.SPACES)
def test_every_space_is_one_that_its_detector_takes(name):
    default, space = detectors.create(name).hyperparameters(), tuning.SPACES[name]
    fields = set(space) if isinstance(space, dict) else set(space[0])
    assert fields <= set(default) and (
        isinstance(space, dict) or all(set(setting) == fields for setting in space)
    )
    grid = tuning.candidates(name, outputs(600))
    assert grid[0] == {key: default[key] for key in grid[0]} and set(grid[0]) == fields, (
        "the default comes first"
    )
    assert len(grid) > 1 and all(grid.count(c) == 1 for c in grid)
    texts = [tuning.spelled(name, candidate) for candidate in grid]
    assert [
        detectors.create(*[detectors.parse(t)[0]], **detectors.parse(t)[1]).hyperparameters()
        for t in texts
    ] == [{**default, **c} for c in grid]
    for candidate in grid:
        tuning.made(name, candidate)


def test_every_detector_with_something_to_choose_has_a_space():
    """Numbers of passes, weights of layers, seeds and the score behind a shaping need no search."""
    free = {
        n
        for n in detectors.names()
        if set(detectors.create(n).hyperparameters())
        - {"detector", "seed", "fraction", "weights", "samples", "mode"}
    }
    assert free - set(tuning.SPACES) == {"gradunc"}


def test_spaces_are_those_of_their_sources():
    """OpenOOD v1.5's configs, pytorch-ood's hyperparameter_space, WeiPer's README."""
    big = outputs(1200, classes=1000, dimension=24)
    count = {name: len(tuning.candidates(name, big)) for name in tuning.SPACES}
    assert {
        name: count[name]
        for name in (
            "gen",
            "adascale_a",
            "adascale_l",
            "openmax",
            "weiper",
            "mcm",
            "nci",
            "relation",
            "odin",
            "react",
            "gram",
            "cadref",
            "ras",
        )
    } == {
        "gen": 7 * 6,
        "adascale_a": 36,
        "adascale_l": 36,
        "openmax": 5 * 6 * 5,
        "weiper": 3,
        "mcm": 3,
        "nci": 5,
        "relation": 5,
        "odin": 8,
        "react": 4,
        "gram": 2,
        "cadref": 4,
        "ras": 2,
    }
    assert all(c["lower"] < c["upper"] for c in tuning.candidates("adascale_a", big))
    assert {c["top"] for c in tuning.candidates("gen", big)} == {10, 50, 100, 200, 500, 1000}
    few = tuning.candidates("gen", outputs(60))
    assert {c["top"] for c in few} == {100} and {c["gamma"] for c in few} == {
        0.01,
        0.1,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
    }, "M above 6 classes: the default says all"
    known = outputs(40, seed=2)
    for candidate in [*few, {"gamma": 10.0, "top": 1000}]:
        assert torch.isfinite(chunked_score(tuning.made("gen", candidate), known)).all()
    found = tuning.tune(
        "weiper",
        outputs(90, seed=1),
        known,
        {"novel": outputs(40, seed=3, shift=0.9)},
        fixed={"repeats": 3, "samples": 50},
    )
    assert len(found.aurocs) == 3 and found.candidates[1] == {
        "delta": 2.4,
        "lambda_1": 0.1,
        "lambda_2": 1.0,
        "smooth": 4,
        "smooth_perturbed": 40,
    }


def test_impossible_candidates_are_left_out_and_bad_ones_refused():
    train = outputs(120)
    assert [c["k"] for c in tuning.candidates("knn", train)] == [50, 100]
    assert all(c["dim"] is None or c["dim"] < 24 for c in tuning.candidates("vim", train))
    assert tuning.candidates("knn", train, {"k": (3, 7)}) == [{"k": 50}, {"k": 3}, {"k": 7}]
    assert tuning.candidates("knn", train, {"k": (3,)}, {"k": 3}) == [{"k": 3}]
    assert tuning.candidates("knn", train, {"k": (3, 60)}, images=45) == [{"k": 3}]
    with pytest.raises(InputError, match="45 training images"):
        tuning.candidates("knn", train, images=45)
    with pytest.raises(InputError, match="no search space"):
        tuning.candidates("maxlogit", train)
    with pytest.raises(InputError, match="nothing to tune against"):
        tuning.tune("knn", train, train, {})


def test_search_equals_one_detector_at_a_time():
    train, known, novel = outputs(300, seed=1), outputs(80, seed=2), outputs(90, seed=3, shift=0.7)
    found = tuning.tune(
        "knn",
        train,
        known,
        {"novel": novel},
        grid=[{"k": 50}, {"k": 5}, {"k": 1}],
        fixed={"normalise": False},
    )
    for candidate, row in zip(found.candidates, found.aurocs):
        detector = detectors.create("knn", normalise=False, **candidate).fit(train)
        assert row == {
            "novel": evaluate(chunked_score(detector, known), chunked_score(detector, novel)).auroc
        }
    assert found.best == found.candidates[int(np.argmax(found.criterion))]


def test_noise_counts_once_ties_keep_the_default_and_regret():
    made = tuning.Search("x", [{"a": 0}, {"a": 1}, {"a": 2}], [{"n": 0.9}, {"n": 0.9}, {"n": 0.1}])
    assert made.best == {"a": 0}
    on_test = tuning.Search(
        "x", made.candidates, [{"t": 0.5, "u": 0.7}, {"t": 0.9, "u": 0.9}, {"t": 0.8, "u": 0.8}]
    )
    assert (
        tuning.regret(made, on_test) == pytest.approx(0.3) and tuning.regret(on_test, on_test) == 0
    )
    known, novel = outputs(60, seed=2), outputs(60, seed=3, shift=0.9)
    found = tuning.tune(
        "energy", known, known, {"uniform": novel, "gaussian": known, "jigsaw": novel}, grid=[{}]
    )
    assert set(found.aurocs[0]) == {"noise", "jigsaw"} and found.aurocs[0][
        "noise"
    ] == pytest.approx((found.aurocs[0]["jigsaw"] + 0.5) / 2)


def test_left_out_classes_leave_head_and_training_set():
    train, known = outputs(240, seed=1), outputs(120, seed=2)
    folds = pseudo.left_out(train, known, folds=3, seed=0)
    assert len(folds) == 3
    gone = []
    for part, inside, outside in folds:
        assert part.logits.shape[1] == inside.logits.shape[1] == 4 and len(part.head.bias) == 4
        assert (
            len(part) == 160
            and len(inside) == 80
            and len(outside) == 40
            and (outside.labels == -1).all()
        )
        assert sorted(part.labels.unique().tolist()) == [0, 1, 2, 3]
        assert torch.allclose(
            inside.head(inside.features), inside.logits, atol=1e-5
        ) and torch.allclose(outside.head(outside.features), outside.logits, atol=1e-5)
        own = detectors.create("mds").fit(part)
        assert evaluate(chunked_score(own, inside), chunked_score(own, outside)).auroc > 0.9
        gone += (
            known.labels[(known.features[:, None] == outside.features[None]).all(2).any(1)]
            .unique()
            .tolist()
        )
    assert sorted(gone) == list(range(6)), "every class is left out once"
    with pytest.raises(InputError, match="at least 3"):
        pseudo.left_out(outputs(20, classes=2), outputs(20, classes=2))


def test_jigsaw_moves_tiles_and_keeps_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 14, 12), dtype=np.uint8)
    base = ArrayImages(pixels, labels=np.arange(5))
    made = pseudo.Jigsaw(base, tiles=4, seed=1)
    images = torch.cat(list(made.batches(2))).numpy()
    assert (
        images.shape == pixels.shape
        and (made.labels == -1).all()
        and not np.array_equal(images, pixels)
    )
    assert np.array_equal(images[:, :, 12:], pixels[:, :, 12:]), "what the tiles do not cover stays"
    for before, after in zip(pixels, images):

        def tiles(image):
            return sorted(
                image[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].tobytes()
                for i in range(4)
                for j in range(4)
            )

        assert tiles(before) == tiles(after)
    assert np.array_equal(images[3], made.read([3])[0].numpy()), (
        "an image does not depend on its batch"
    )
    assert (
        np.array_equal(images, pseudo.Jigsaw(base, seed=1).read(slice(0, 5)).numpy())
        and made.digest != pseudo.Jigsaw(base, seed=2).digest
    )
    assert np.array_equal(base.read(slice(0, 5)).numpy(), pixels), "the base is untouched"
    assert len({tuple(np.argsort(images[i].ravel())[:9]) for i in range(5)}) == 5


def test_image_sets_fit_the_images_they_are_made_for():
    sets = pseudo.image_sets(gratings(20, 0), pseudo.KINDS, seed=3)
    assert set(sets) == {"uniform", "gaussian", "jigsaw"} and all(
        len(s) == 20 and s.shape == (1, 12, 12) for s in sets.values()
    )
    assert not torch.equal(sets["uniform"].read([0]), sets["uniform"].read([1]))
    assert set(pseudo.image_sets(gratings(20, 0), ("left_out",))) == set()


def test_image_detectors_share_one_pass():
    grid, network, preprocess = (
        [{"magnitude": 0.0}, {"magnitude": 0.004}, {"magnitude": 0.01}],
        Gratings().eval(),
        Preprocess((0.5,), (0.25,)),
    )
    several = tuning.image_candidates("odin", grid, None, {"temperature": 10.0})
    assert len(several) == 3 and not tuning.image_candidates("knn", [{"k": 3}], None)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    known, novel = (
        extract(
            network, gratings(30, seed, novel), preprocess, image_detectors=several, batch_size=30
        )
        for seed, novel in ((0, False), (1, True))
    )
    found = tuning.tune(
        "odin", known, known, {"novel": novel}, grid=grid, fixed={"temperature": 10.0}
    )
    assert len(found.aurocs) == 3 and len({row["novel"] for row in found.aurocs}) > 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = models.build("small_cnn", 10, in_channels=1, image_size=28)
    file = tmp_path_factory.mktemp("weights") / "w.pt"
    models.checkpoints.save(
        file,
        {
            "format": "ood-1",
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": 1,
            "metrics": {},
            "preprocess": {"mean": [0.5], "std": [0.5], "size": 28},
        },
    )
    return file


def test_script_tunes_with_and_without_ood_data(weights, tmp_path, call_script, monkeypatch):
    from conftest import ROOT

    import ood.outputs

    passes = []
    forward = ood.outputs.Forward.__call__
    monkeypatch.setattr(
        ood.outputs.Forward,
        "__call__",
        lambda self, batch: passes.append(len(batch)) or forward(self, batch),
    )
    done = call_script(
        "scripts/tune_detector.py",
        "-config",
        str(ROOT / "configs" / "mnist5k_small_cnn.json"),
        "-checkpoint",
        weights,
        "-detectors",
        "react",
        "knn:k=[3,9],normalise=false",
        "-validation",
        "letters",
        "-limit",
        "60",
        "-no_cache",
        "-device",
        "cpu",
        "-out_dir",
        "out",
        "-datasets",
        "letters",
        "noise",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sum(passes) == 60 + (12 + 48) + 3 * 12 + 60 + 2 * 60, (
        "every image once: train, ID validation and test, pseudo sets, validation set, test sets"
    )
    found = json.loads((tmp_path / "out" / "tuning.json").read_text())["detectors"]
    assert [d["detector"] for d in found] == ["react", "knn"]
    for entry in found:
        assert set(entry["ways"]) == {"pseudo", "validation"} | (
            {"default"} if entry["detector"] == "react" else set()
        )
        assert all(
            0 <= way["regret"] <= 1 and way["auroc"] <= entry["oracle"]["auroc"]
            for way in entry["ways"].values()
        )
        assert set(entry["candidates"][0]["pseudo"]) == {"noise", "jigsaw", "left_out"} and set(
            entry["candidates"][0]["test"]
        ) == {"letters", "noise"}
    assert [c["k"] for c in found[1]["candidates"]] == [3, 9], (
        "the default of 50 neighbours is too many when classes are left out"
    )
    text = (tmp_path / "out" / "tuning.md").read_text()
    assert "without OOD data" in text and "against letters" in text and text.count("| knn |") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (("-detectors", "maxlogit"), "no search space"),
        (("-detectors", "knnn"), "did you mean 'knn'"),
        (("-detectors", "knn:kk=[1,2]"), "did you mean 'k'"),
        (("-share", "1"), "-share"),
        (("-detectors", "dropout:samples=[2,3]"), "no dropout"),
        (("-validation", "lettters"), "lettters"),
        (("-pseudo", "fog"), "fog"),
    ],
)
def test_script_refuses_in_one_line(weights, tmp_path, call_script, flags, words):
    from conftest import ROOT

    done = call_script(
        "scripts/tune_detector.py",
        "-config",
        str(ROOT / "configs" / "mnist5k_small_cnn.json"),
        "-checkpoint",
        weights,
        "-limit",
        "60",
        "-no_cache",
        "-device",
        "cpu",
        "-out_dir",
        "out",
        *flags,
        cwd=tmp_path,
    )
    assert (
        done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr
    assert not (tmp_path / "out").exists()
