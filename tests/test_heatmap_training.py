"""Heatmap method, whole: training, resuming, finding runs, the authors' files, scores, pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from ood import metrics
from ood.cache import Cache
from ood.config import InputError, build
from ood.data import Preprocess, load
from ood.methods import Context
from ood.methods.heatmap.classifier import _released_places
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings
from ood.methods.heatmap.targets import nearest_id
from ood.methods.heatmap.training import _draw_outliers, find
from ood.training import runs

BASE = dict(
    id_dataset="mnist5k",
    ood_dataset="letters+patches",
    num_classes=10,
    arch="small_cnn",
    width=8,
    batch_size=50,
    lr=3e-3,
    n_epochs=6,
    num_ood=60,
)


def settings(**changes) -> Settings:
    return build(Settings, {**BASE, **changes})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small are faster on one core than on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoints folder with a classifier that is trained until its features mean something."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    network = models.build("small_cnn", 10, in_channels=1, image_size=28, width=8)
    images, preprocess = load("mnist5k", "train", "datasets", size=28), Preprocess((0.5,), (0.5,))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(2):
        for pixels, labels in zip(images.batches(100), torch.from_numpy(images.labels).split(100)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(preprocess(pixels)), labels).backward()
            optimizer.step()
    run = runs.create(
        "mnist5k_small_cnn",
        {
            "kind": "classifier",
            "id_dataset": "mnist5k",
            "arch": "small_cnn",
            "width": 8,
            "depth": None,
        },
        root=folder,
    )
    run.save(
        "best.pt",
        {
            "format": "ood-1",
            "arch": network.arch,
            "state_dict": network.state_dict(),
            "epoch": 1,
            "metrics": {},
            "preprocess": {"mean": [0.5], "std": [0.5], "size": 28},
        },
    )
    return folder


def context(root, **changes) -> Context:
    return Context(
        **{
            **dict(
                networks=models, checkpoints_dir=root, limit=300, cache=Cache(root / ".outputs")
            ),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def trained(root):
    return Heatmap.train(settings(), context(root))


@pytest.fixture(scope="module")
def method(root, trained):
    return Heatmap.load(settings(), context(root))


def test_a_run_folder_holds_what_an_evaluation_needs(trained):
    assert trained.folder.name.startswith("mnist5k_small_cnn_ood_fw1_2")
    assert {"config.json", "log.jsonl", "last.pt", "best.pt", "classifier.pt"} == {
        p.name for p in trained.folder.iterdir()
    }
    config = json.loads((trained.folder / "config.json").read_text())
    assert (
        config["kind"] == "heatmap"
        and config["finished"]
        and config["limit"] == 300
        and config["pairing"] == "correct"
    )
    losses = [record["loss"] for record in trained.records() if "loss" in record]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]


def test_it_learns_what_the_paper_says(root, method):
    """ID maps are weak, OOD maps are strong.

    An OOD image plus its map is nearer to its nearest ID image than the OOD image alone.
    """
    test = load("mnist5k", "test", "datasets", size=28).limited(200)
    patches = load("patches", "train", "datasets", size=28).limited(200)
    found = metrics.evaluate(method.score(test), method.score(patches))
    assert found.auroc > 0.9
    swapped = metrics.evaluate(-method.score(test), -method.score(patches))
    assert swapped.auroc == pytest.approx(1 - found.auroc)
    known = load("mnist5k", "train", "datasets", size=28)
    outside, inside = method.outputs(patches), method.outputs(known)
    partner = nearest_id(
        inside.features, inside.logits.argmax(1), outside.features, outside.logits.argmax(1)
    )
    x, p = method.to_map(patches.read(slice(None))), method.to_map(known.read(partner.numpy()))
    maps = torch.cat(list(method.maps(patches)))
    assert ((x + maps - p) ** 2).mean() < 0.5 * ((x - p) ** 2).mean()


def test_scores_do_not_depend_on_batch_size_or_order(root, trained, method):
    letters = load("letters", "test", "datasets", size=28).limited(70)
    other = Heatmap.load(settings(), context(root, cache=None))
    other.settings = dataclasses.replace(other.settings, batch_size=7)
    torch.testing.assert_close(other.score(letters), method.score(letters), rtol=1e-4, atol=1e-6)
    back = letters.subset(np.arange(70)[::-1])
    torch.testing.assert_close(
        method.score(back).flip(0), method.score(letters), rtol=1e-4, atol=1e-6
    )
    assert ((method.score(letters) >= 0) & (method.score(letters) < 1)).all()


def test_scoring_needs_no_further_pass_of_the_classifier(root, trained, monkeypatch):
    letters = load("letters", "test", "datasets", size=28).limited(70)
    first = Heatmap.load(settings(), context(root))
    scores = first.score(letters)
    second = Heatmap.load(settings(), context(root))
    monkeypatch.setattr(
        type(second.classifier), "features", lambda *_: pytest.fail("the classifier ran again")
    )
    assert torch.equal(second.score(letters), scores)


def test_training_is_resumed_to_the_bit(root, trained, tmp_path):
    twice = tmp_path / "run"
    Heatmap.train(settings(n_epochs=2), context(root, out_dir=twice))
    Heatmap.train(settings(), context(root, out_dir=twice, resume=True))
    ours, whole = (
        torch.load(folder / "last.pt", weights_only=True)["state_dict"]
        for folder in (twice, trained.folder)
    )
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    with pytest.raises(InputError, match="num_ood"):
        Heatmap.train(settings(num_ood=61), context(root, out_dir=twice, resume=True))
    with pytest.raises(InputError, match="already"):
        Heatmap.train(settings(), context(root, out_dir=twice))


def test_a_run_killed_before_its_classifier_was_copied_continues_with_that_classifier(
    root, trained, tmp_path
):
    """config.json is there, classifier.pt is not yet.

    The classifier is copied now. It is refused if the run began with another one.
    """
    folder = tmp_path / "run"
    run = Heatmap.train(settings(n_epochs=1), context(root, out_dir=folder))
    start = run.records()[0]
    assert (
        start["event"] == "start"
        and len(start["digests"]["classifier"]) == 64
        and start["ood_images"] > 0
        and start["versions"]["torch"]
    )
    (folder / "classifier.pt").unlink()
    again = Heatmap.train(
        settings(n_epochs=2, classifier="nowhere.pt"), context(root, out_dir=folder, resume=True)
    )
    assert (folder / "classifier.pt").is_file() and [
        r["event"] for r in again.records() if "event" in r
    ] == ["start", "resume"]
    again.update(classifier_weights="another")
    with pytest.raises(InputError, match="another classifier"):
        Heatmap.train(settings(n_epochs=3), context(root, out_dir=folder, resume=True))


def test_released_pairing_and_scaling_change_the_training(root, trained, tmp_path):
    weights = [
        torch.load(trained.folder / "best.pt", weights_only=True)["state_dict"]["fc1.weight"]
    ]
    for changes in ({"pairing": "released"}, {"scaling": "released"}, {"scaling": "minmax"}):
        run = Heatmap.train(
            settings(**changes), context(root, out_dir=tmp_path / "_".join(*changes.items()))
        )
        weights.append(torch.load(run.best, weights_only=True)["state_dict"]["fc1.weight"])
        loaded = Heatmap.load(settings(**changes), context(root), run.folder)
        assert loaded.settings == dataclasses.replace(
            settings(**changes), classifier=loaded.settings.classifier
        )
        assert loaded.scale.kind == changes.get("scaling", "none")
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_the_last_run_is_found_by_exact_configuration(root, trained, tmp_path):
    assert find(settings(), context(root)) == trained.folder
    with pytest.raises(InputError, match=r"num_ood 60 instead of 61.*-checkpoint_name"):
        find(settings(num_ood=61), context(root))
    with pytest.raises(InputError, match="fw_layers 1 instead of 2"):
        find(settings(fw_layers=2), context(root))
    with pytest.raises(
        InputError, match="limit 300 instead of None"
    ):  # a quick look is not taken for the real thing
        find(settings(), context(root, limit=None))
    with pytest.raises(InputError, match="ood_training.py"):
        find(settings(), context(tmp_path))
    with pytest.raises(
        InputError, match="classifier_pretraining.py -dataset mnist5k -arch small_cnn -width 9"
    ):
        Heatmap.train(settings(width=9), context(root))
    with pytest.raises(InputError, match="z_dim is 5"):
        Heatmap.train(settings(z_dim=5), context(root))


def test_an_unfinished_run_is_not_the_last_one(root, trained, tmp_path):
    runs.Run(trained.folder).update(finished=False)
    try:
        with pytest.raises(InputError, match="finished False instead of True"):
            find(settings(), context(root))
        lines = []
        Heatmap.load(settings(), context(root, log=lines.append), trained.folder)
        assert any("has not finished" in line for line in lines)
    finally:
        runs.Run(trained.folder).update(finished=True)


def test_a_decoder_is_not_used_with_another_classifier(root, trained, tmp_path):
    weights = torch.load(trained.best, weights_only=True)
    torch.save(weights, tmp_path / "decoder.pt")
    other = models.build("small_cnn", 10, in_channels=1, image_size=28, width=8)
    torch.save(
        {"format": "ood-1", "arch": other.arch, "state_dict": other.state_dict()},
        tmp_path / "other.pt",
    )
    with pytest.raises(InputError, match="another classifier"):
        Heatmap.load(
            settings(classifier=str(tmp_path / "other.pt")), context(root), tmp_path / "decoder.pt"
        )


THEIR_RUN = "mnist5k_small_cnn_ood_fw1_2022_07_05_07_27_20"


def authors_layout(folder, method):
    """checkpoints/<name>/{model.pt, config.txt} and Models/<stem>.pt.

    model.pt holds snapshots and NumPy scalars, Models/<stem>.pt an encoder and a head. Returns the
    run folder and the classifier's file.
    """
    state = method.decoder.state_dict()
    run = folder / "checkpoints" / THEIR_RUN
    run.mkdir(parents=True)
    (run / "config.txt").write_text(
        "{'id_dataset': 'mnist5k', 'arch': 'small_cnn', 'fw_layers': 1, 'setup': 'proto'}"
    )
    empty = {key: torch.zeros_like(value) for key, value in state.items()}
    snapshots = {9: {"generator": empty}, 149: {"generator": state}}
    torch.save({"min": 0, "max": np.float64(3.5), **snapshots}, run / "model.pt")
    network = method.classifier.state_dict()
    encoder = {key: value for key, value in network.items() if not key.startswith("fc.")}
    head = {"linear.weight": network["fc.weight"], "linear.bias": network["fc.bias"]}
    file = folder / "Models" / "mnist5k_small_cnn.pt"
    file.parent.mkdir()
    torch.save({"net_state_dict": encoder, "cls_state_dict": head}, file)
    return run, file


def test_the_authors_files_load(root, trained, method, tmp_path):
    folder, classifier = authors_layout(tmp_path, method)
    (folder / "config.txt").write_text(
        "{'id_dataset': 'mnist5k', 'arch': 'small_cnn', 'fw_layers': 1, 'setup': 'proto'}"
    )
    asked = settings(classifier=str(classifier))
    theirs = Heatmap.load(asked, context(root), folder)
    letters = load("letters", "test", "datasets", size=28).limited(20)
    torch.testing.assert_close(theirs.score(letters), method.score(letters))
    released = Heatmap.load(
        dataclasses.replace(asked, scaling="released"), context(root), folder / "model.pt"
    )
    changed = ~torch.isclose(released.score(letters), method.score(letters))
    assert released.scale.high == 3.5 and changed.nonzero().flatten().tolist() == [
        0
    ]  # only the first row of a batch of 50
    (folder / "config.txt").write_text(
        "{'id_dataset': 'mnist5k', 'arch': 'small_cnn', 'fw_layers': 2}"
    )
    with pytest.raises(InputError, match="fw_layers 2, now 3"):
        Heatmap.load(dataclasses.replace(asked, fw_layers=3), context(root), folder)


def test_the_authors_layout_needs_no_further_flag(method, tmp_path):
    """Their decoder takes their classifier, and no run of ours."""
    run, file = authors_layout(tmp_path, method)
    here = context(tmp_path / "checkpoints", limit=60)
    letters = load("letters", "test", "datasets", size=28).limited(20)
    lines = []
    theirs = Heatmap.load(settings(), context(here.checkpoints_dir, log=lines.append), run)
    torch.testing.assert_close(theirs.score(letters), method.score(letters))
    assert any(str(file) in line for line in lines)
    trained = Heatmap.train(settings(n_epochs=1, num_ood=10), here)  # on their classifier
    assert trained.config["classifier"] == str(file)
    file.unlink()
    with pytest.raises(InputError, match=r"needs their classifier.*mnist5k_small_cnn.pt.*-classif"):
        Heatmap.load(settings(), here, run)
    with pytest.raises(InputError, match=r"no run with kind=classifier.*-classifier.*Models"):
        Heatmap.train(settings(num_ood=10), here)


@pytest.mark.parametrize(
    "given, name",
    [
        ({}, "mnist5k_small_cnn.pt"),
        ({"arch": "wideresnet", "depth": 40, "width": 2}, "mnist5k_wideresnet_40_2.pt"),
        ({"arch": "wideresnet", "depth": 28, "width": 10}, "mnist5k_wideresnet.pt"),
    ],
)
def test_the_authors_name_their_classifiers(given, name):
    places = _released_places(settings(**given), context(Path("there/checkpoints"), cache=None))
    assert places == [Path("there/Models") / name, Path("Models") / name]


def test_a_run_is_found_whatever_its_auxiliary_set(root, trained, tmp_path):
    """The README's config names a withdrawn set, so runs are trained with another one."""
    asked = settings(ood_dataset="tinyimages")
    assert find(asked, context(root)) == trained.folder
    lines = []
    Heatmap.load(asked, context(root, log=lines.append))
    assert any("auxiliary set letters+patches" in line for line in lines)
    # A run with the very set goes first, even if it is older.
    shutil.copytree(trained.folder, tmp_path / "newer")
    shutil.copytree(trained.folder, tmp_path / "older")
    runs.Run(tmp_path / "older").update(ood_dataset="tinyimages", started="1999")
    assert find(asked, context(tmp_path)) == tmp_path / "older"
    assert find(settings(), context(tmp_path)) == tmp_path / "newer"


def test_released_resizing_is_a_switch(root, tmp_path):
    """Auxiliary photographs that are larger than the images come out differently."""
    pictures = tmp_path / "pictures" / "x"
    pictures.mkdir(parents=True)
    noise = np.random.RandomState(0).randint(0, 256, (4, 60, 60), dtype=np.uint8)
    for number, array in enumerate(noise):
        Image.fromarray(array).save(pictures / f"{number}.png")
    drawn = {}
    for resizing in (None, "test", "released"):
        asked = settings(ood_dataset=str(pictures.parent), num_ood=4, resizing=resizing)
        known = load("mnist5k", "test", "datasets", size=28).limited(1)
        drawn[resizing] = _draw_outliers(asked, context(root), known).images
    assert np.array_equal(drawn[None], drawn["test"])
    assert not np.array_equal(drawn["test"], drawn["released"])
    # Runs from before the switch have no such field, and were trained as by default.
    assert settings(resizing="test").config()["resizing"] is None


def test_skip_connections_train_and_score(tmp_path):
    network = models.build("small_resnet", 10, in_channels=1, image_size=32, width=4)
    torch.save(
        {"format": "ood-1", "arch": network.arch, "state_dict": network.state_dict()},
        tmp_path / "classifier.pt",
    )
    asked = settings(
        arch="small_resnet",
        width=4,
        classifier=str(tmp_path / "classifier.pt"),
        fw_layers=3,
        size=32,
        n_epochs=1,
    )
    run = Heatmap.train(asked, context(tmp_path, limit=120))
    assert "_fw3_" in run.folder.name
    loaded = Heatmap.load(
        settings(arch="small_resnet", width=4, size=32, n_epochs=1, fw_layers=3),
        context(tmp_path, limit=120),
    )
    assert loaded.scale.kind == "minmax" and loaded.scale.high > 0
    letters = load("letters", "test", "datasets", size=32).limited(30)
    scores = loaded.score(letters)
    assert scores.shape == (30,) and scores.isfinite().all() and scores.std() > 0
    flat = dataclasses.replace(loaded.settings, fw_layers=1)
    loaded.settings, loaded._scores = flat, {}
    assert not torch.allclose(loaded.score(letters), scores)  # the maps matter


def test_pictures_and_extra_metrics(method, tmp_path):
    test = load("mnist5k", "test", "datasets", size=28).limited(100)
    few = load("letters", "test", "datasets", size=28).limited(1)
    drawn = method.figures(tmp_path, [test, few])
    assert [path.name for path, _ in drawn] == ["heatmaps_mnist5k.png", "heatmaps_letters.png"]
    assert all(
        path.parent == tmp_path / "figures" and path.read_bytes()[:4] == b"\x89PNG"
        for path, _ in drawn
    )
    from matplotlib.image import imread

    assert imread(drawn[0][0]).shape[1] > imread(drawn[0][0]).shape[0] > 400
    assert method.accuracy(test) > 0.8 and method.accuracy(few) is None
    letters = load("letters", "test", "datasets", size=28).limited(100)
    extra = method.extra_metrics(test, letters)
    assert set(extra) == {"fpr95_released"} and 0 <= extra["fpr95_released"] <= 1


def test_training_script(run_script, root, tmp_path):
    config = tmp_path / "tiny_ood.json"
    groups = {
        "fundamental": {
            k: BASE[k] for k in ("id_dataset", "ood_dataset", "num_classes", "arch", "width")
        },
        "optimization": {"n_epochs": 2, "batch_size": 50},
        "advanced": {"num_ood": 60},
    }
    config.write_text(json.dumps(groups))
    common = ("-config", config, "-checkpoints_dir", root, "-limit", 200, "-device", "cpu")
    done = run_script(
        "ood_training.py", *common, "-num_ood", 30, "-epochs", 1, "-out_dir", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["num_ood"] == 30 and stored["n_epochs"] == 1 and "epoch 1/1" in done.stdout
    failed = run_script("ood_training.py", *common, "-num_ood", 9000)
    assert failed.returncode == 2 and "8000" in failed.stderr and "Traceback" not in failed.stderr


def test_the_readmes_commands_run_in_order(call_script, tmp_path):
    """Pre-train, train with another auxiliary set than the config's, evaluate; then the flags."""
    config = tmp_path / "published.json"
    values = {**BASE, "ood_dataset": "tinyimages", "n_epochs": 1, "benchmark": "demo"}
    config.write_text(json.dumps({**values, "num_ood": 20, "detectors": ["msp"]}))
    small = ("-limit", 100, "-device", "cpu", "-checkpoints_dir", tmp_path / "checkpoints")
    evaluate = ("-datasets", "letters", "-out_dir", tmp_path / "out")

    def run(script, *words):
        done = call_script(script, *words, *small)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = call_script("eval_ood.py", "-config", config, *small, *evaluate)
    assert before.returncode == 2 and "CONFIG" not in before.stderr
    assert f"train one: python3 ood_training.py -config {config}" in before.stderr
    words = ("-dataset", "mnist5k", "-arch", "small_cnn", "-width", 8)
    run("classifier_pretraining.py", *words, "-epochs", 1)
    run("ood_training.py", "-config", config, "-ood_dataset", "letters")
    said = run("eval_ood.py", "-config", config, *evaluate)
    assert "auxiliary set letters" in said
    name = next((tmp_path / "checkpoints").glob("*_ood_fw1_*")).name
    classifier = next((tmp_path / "checkpoints").glob("mnist5k_small_cnn_8_*"))
    named = ("-checkpoint_name", name, "-classifier", classifier)
    run("eval_ood.py", "-config", config, *named, *evaluate)
    wrong = ("-config", "configs/mnist5k_small_cnn.json", "-classifier", classifier)
    refused = call_script("eval_ood.py", *wrong, *small)
    assert refused.returncode == 2 and "-classifier means nothing" in refused.stderr


def test_our_steps_equal_a_plain_rendering_of_the_released_loop(run_script):
    """With the same weights, batches, pairing and scaling the script fails if losses differ."""
    done = run_script(
        "scripts/bench_heatmap.py",
        "-dataset",
        "mnist5k",
        "-ood",
        "letters+patches",
        "-arch",
        "small_cnn",
        "-id_images",
        500,
        "-ood_images",
        100,
        "-device",
        "cpu",
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout and "losses: first" in done.stdout
