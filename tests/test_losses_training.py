"""Objectives on real images: steps, batches with outliers, classifier_pretraining.py -loss."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from loss_toys import NAMES

import models
from ood import losses
from ood.config import InputError
from ood.data import ArrayImages, Preprocess, load
from ood.data.auxiliary import load_outliers
from ood.data.images import JoinedImages
from ood.training import loop, pretraining, runs
from ood.training.batches import ImageBatches, MixedBatches
from ood.training.settings import read_settings, resolve, with_known_names

CPU = torch.device("cpu")
SMALL = {"vos": {"sample_number": 5, "sample_from": 50}, "energy_margin": {"full_train_loss": 0.3}}
TINY = ("-device", "cpu", "-limit", 96, "-epochs", 2, "-batch_size", 32, "-width", 4)


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", "train")


@pytest.fixture(scope="module")
def outliers():
    return load_outliers("letters+patches", "datasets", size=28, channels=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches(images, count=32, **options):
    preprocess = Preprocess((0.5,), (0.5,))
    return ImageBatches(
        images, count, transform=lambda pixels, generator: preprocess(pixels), device=CPU, **options
    )


def objective_of(name, **args):
    torch.manual_seed(0)
    return losses.Objective(
        name,
        models.build("small_cnn", 10, in_channels=1, image_size=28, width=4),
        **{**SMALL.get(name, {}), **args},
    )


# ---- steps on real images --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_lower_the_loss(name, digits, outliers):
    """The last four of twenty steps have a lower mean loss than the first four."""
    objective = objective_of(name)
    stream = (
        MixedBatches(batches(digits), batches(outliers, 16, seed=1))
        if losses.get(name).outliers != "ignored"
        else batches(digits)
    )
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 0.01)
    before = {key: tensor.clone() for key, tensor in objective.own.state_dict().items()}
    objective.before_epoch(1, batches(digits, indices=range(64), shuffle=False))
    objective.train()
    seen = []
    for _, batch in zip(range(20), stream.epoch(1)):
        loss, parts = objective(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
        assert 0 <= parts["accuracy"] <= 1
    assert np.mean(seen[-4:]) < np.mean(seen[:4]), seen
    after = objective.own.state_dict()
    fixed = {
        "cac",
        "deep_svdd",
        "deep_sad",
    }  # the centre of the latter two moves once, in before_epoch
    assert (
        name in fixed or not after or any(not torch.equal(after[key], before[key]) for key in after)
    )
    assert not any(
        key.startswith("network") or key.endswith("loss.fc.weight") and name != "t2fnorm"
        for key in after
    )
    objective.before_epoch(2, batches(digits, indices=range(64), shuffle=False))
    twin = objective_of(name)
    twin.own.load_state_dict(after)
    assert all(torch.equal(value, after[key]) for key, value in twin.own.state_dict().items())


@pytest.mark.parametrize("name", ("t2fnorm", "mchad"))
def test_a_computed_head_decides_as_the_loss_does(name, digits):
    objective = objective_of(name)
    images, _ = next(iter(batches(digits).epoch(1)))
    objective.train()
    for _, batch in zip(range(3), batches(digits).epoch(1)):
        objective(*batch)
    torch.nn.init.normal_(next(objective.loss.parameters()))
    objective.finish_head()
    network = objective.network.eval()
    with torch.no_grad():
        features = network.features(images)
        expected = (
            objective.loss.fc(features / objective.loss.t)
            if name == "t2fnorm"
            else -objective.loss.distance(features)
        )
    assert torch.equal(network(images).argmax(1), expected.argmax(1))


def test_probe_does_not_reach_the_features(digits):
    """deep_svdd: the head learns the classes, the features only the hypersphere."""
    objective = objective_of("deep_svdd")
    batch = next(iter(batches(digits).epoch(1)))
    loss, _ = objective(*batch)
    loss.backward()
    convolution = next(objective.network.parameters())
    with_probe = convolution.grad.clone()
    assert objective.network.fc.weight.grad.abs().sum() > 0
    objective.zero_grad()
    alone = objective_of("deep_svdd")
    alone.loss(alone.network.features(batch[0]), batch[1]).backward()
    torch.testing.assert_close(with_probe, next(alone.network.parameters()).grad)


def test_center_of_deep_svdd_is_the_first_mean(digits):
    objective, other = objective_of("deep_svdd"), objective_of("deep_svdd")
    stream = batches(digits, indices=range(64), shuffle=False)
    objective.before_epoch(1, stream)
    features = torch.cat(
        [other.network.eval().features(images) for images, _ in stream.epoch(1)]
    ).mean(0)
    centre = objective.loss.center.params[0]
    near = features.abs() < 0.1
    torch.testing.assert_close(centre[~near], features[~near])
    assert (centre[near].abs() == 0.1).all() or torch.allclose(
        centre[near].abs(), torch.tensor(0.1)
    )
    objective.before_epoch(2, stream)
    assert torch.equal(centre, objective.loss.center.params[0])


def test_energy_margin_moves_its_multipliers_between_epochs(digits):
    objective = losses.Objective(
        "energy_margin", models.build("small_cnn", 10, in_channels=1, image_size=28, width=4)
    )
    stream = batches(digits, indices=range(64), shuffle=False)
    objective.before_epoch(1, stream)
    assert (
        2 < objective.loss.full_train_loss < 2.7 and objective.loss.lam == 0
    )  # an untrained network: about log 10
    objective.before_epoch(2, stream)
    assert objective.loss.lam != 0


@pytest.mark.parametrize("name", ("t2fnorm", "mchad", "center"))
def test_moving_average_holds_what_the_loss_learns_too(name, digits, tmp_path):
    """The average covers the loss's head or centres: a <- d a + (1 - d) w.

    A computed head is written from the averages. A resumed run is the run.
    """

    def training(folder, epochs, resume=False):
        objective, seen = objective_of(name), []
        learned = objective.loss.fc.weight if name == "t2fnorm" else objective.loss.centers.params

        class Watching(torch.optim.SGD):
            def step(self):
                super().step()
                seen.append(learned.detach().clone())

        seen.append(learned.detach().clone())
        optimizer = Watching([p for p in objective.parameters() if p.requires_grad], 0.01)

        def pack(epoch, metrics):
            objective.finish_head()
            return {"state_dict": objective.network.state_dict(), "objective": objective.describe()}

        run = runs.reopen(folder) if resume else runs.create("toy", {"kind": "toy"}, out_dir=folder)
        loop.fit(
            lambda batch: objective(*batch),
            objective.network,
            batches(digits, indices=range(96)),
            loop.Plan(
                epochs=epochs,
                optimizer=optimizer,
                schedule=loop.Schedule(optimizer, "constant", 2),
                ema=0.6,
            ),
            run,
            pack,
            loop.Hooks(state={"objective": objective.own}, say=lambda line: None),
            resume=resume,
        )
        average = seen[0]
        for t, weights in enumerate(seen[1:], 1):
            d = min(0.6, (1 + t) / (10 + t))
            average = d * average + (1 - d) * weights
        return run.load("last.pt"), average, objective

    file, average, objective = training(tmp_path / "straight", 2)
    state = file["objective"]["state"]
    torch.testing.assert_close(
        state["loss.fc.weight" if name == "t2fnorm" else "loss._centers._params"], average
    )
    if name != "center":
        torch.testing.assert_close(
            file["state_dict"]["fc.weight"],
            average / objective.loss.t if name == "t2fnorm" else 2 * average,
        )
    training(tmp_path / "half", 1)
    resumed, _, _ = training(tmp_path / "half", 2, resume=True)
    for part in ("state_dict", "objective"):
        first, second = (
            weights[part] if part == "state_dict" else weights[part]["state"]
            for weights in (file, resumed)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ("ish", "vos", "deep_svdd"))
def test_moving_average_counts_a_shared_head_once_and_leaves_fixed_centres(name, digits):
    """Parameters that the loss shares with the network, or does not train, are in no average twice.

    ISH and VOS have the network's head as a module of their own. The centre of deep_svdd is set
    before the first epoch and not trained.
    """
    objective = objective_of(name)
    average = loop.Average(
        objective.network, 0.5, [p for p in objective.parameters() if p.requires_grad]
    )
    assert len({t.data_ptr() for t in average.held}) == len(average.held)
    centre = getattr(objective.loss, "center", None)
    assert centre is None or centre.params.data_ptr() not in {t.data_ptr() for t in average.held}


# ---- batches with outliers -------------------------------------------------------------------


def grey(value, count, dtype=np.uint8):
    return ArrayImages(np.full((count, 1, 4, 4), value, dtype), name=f"grey{value}")


def test_joined_sets():
    joined = JoinedImages([grey(10, 3), grey(20, 2), grey(30, 4)], name="greys", split="train")
    assert len(joined) == 9 and (joined.labels == -1).all() and joined.shape == (1, 4, 4)
    rows = [8, 0, 4, 3, 0]
    assert [int(image[0, 0, 0]) for image in joined.read(rows)] == [
        30,
        10,
        20,
        20,
        10,
    ] and joined.read(rows).dtype == torch.uint8
    assert torch.equal(
        joined.subset([7, 2]).read([0, 1])[:, 0, 0, 0], torch.tensor([30, 10], dtype=torch.uint8)
    )
    mixed = JoinedImages(
        [grey(255, 1), grey(0.5, 1, np.float32)], name="floats", split="train"
    ).read([0, 1])
    assert mixed[:, 0, 0, 0].tolist() == [1.0, 0.5]
    assert (
        joined.digest
        != JoinedImages([grey(10, 3), grey(20, 2), grey(31, 4)], name="greys", split="train").digest
    )


def test_outliers_follow_the_images_of_an_epoch(digits):
    """20 ID images, 7 outliers, 3 per step: all outliers come before any comes again.

    The order follows from (seed, epoch) alone.
    """
    marked = ArrayImages(
        np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 28, 28), np.uint8),
        name="marked",
    )

    def stream():
        return MixedBatches(batches(digits, 4, indices=range(20)), batches(marked, 3, seed=5))

    steps = list(stream().epoch(1))
    assert len(steps) == len(stream()) == 5
    assert [y.tolist()[4:] for _, y in steps[:2]] == [[-1, -1, -1]] * 2 and all(
        (y[:4] >= 0).all() for _, y in steps
    )
    order = [round(float(image[0, 0, 0] * 0.5 + 0.5) * 255) for x, _ in steps for image in x[4:]]
    assert sorted(order[:7]) == list(range(7)) and len(order) == 13 and order[7:] != order[:6]
    again, other = list(stream().epoch(1)), list(stream().epoch(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(steps, again)) and not all(
        torch.equal(a, b) for (a, _), (b, _) in zip(steps, other)
    )


def test_means_of_an_epoch_are_those_of_the_id_images(digits, outliers, tmp_path):
    """Accuracy and images_per_s count ID images.

    20 ID images come in batches of 8, outliers in batches of 3, the fourth of which has one.
    """
    network = models.build("small_cnn", 10, in_channels=1, image_size=28, width=4)
    few, rows, seen = outliers.subset(range(10)), range(20), []
    stream = MixedBatches(batches(digits, 8, indices=rows), batches(few, 3, seed=5))

    def objective(batch):
        images, labels = batch
        known = labels >= 0
        right = (network(images).argmax(1) == labels) & known
        seen.append((int(right.sum()), int(known.sum()), len(labels)))
        return network(images).sum() * 0 + len(seen), {"accuracy": right.sum() / known.sum()}

    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    history = loop.fit(
        objective,
        network,
        stream,
        loop.Plan(epochs=2, optimizer=optimizer, schedule=loop.Schedule(optimizer, "constant", 2)),
        runs.create("toy", {}, out_dir=tmp_path),
        lambda epoch, metrics: {"state_dict": network.state_dict()},
        loop.Hooks(say=lambda line: None),
    )
    second = seen[3:]
    assert [known for _, known, _ in second] == [8, 8, 4]
    assert history.metrics["accuracy"] == pytest.approx(sum(right for right, _, _ in second) / 20)
    assert history.metrics["loss"] == pytest.approx((8 * 4 + 8 * 5 + 4 * 6) / 20)


def test_two_views_of_each_image():
    """CIDER: each image twice in a batch, augmented differently, from (seed, epoch) alone."""
    pixels = np.arange(5, dtype=np.float32).reshape(-1, 1, 1, 1)

    def stream(views):
        return ImageBatches(
            ArrayImages(pixels, np.arange(5)),
            3,
            transform=lambda p, g: p + 0.5 * torch.rand(p.shape, generator=g),
            device=CPU,
            seed=1,
            views=views,
        )

    steps = list(stream(losses.get("cider").views).epoch(1))
    assert (
        [len(x) for x, _ in steps] == [6, 4]
        and losses.get("cider").views == 2
        and losses.get("center").views == 1
    )
    for images, labels in steps:
        first, second = images.flatten().chunk(2)
        assert (
            torch.equal(first.long(), second.long())
            and torch.equal(torch.cat((first, second)).long(), labels)
            and not torch.equal(first, second)
        )
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(steps, stream(2).epoch(1)))
    assert [len(x) for x, _ in stream(1).epoch(1)] == [3, 2]


def test_limit_is_spread_over_the_pools(outliers):
    few = load_outliers("letters+patches", "datasets", size=28, channels=1, limit=50)
    assert len(outliers) == 8000 and few.digest == outliers.subset(range(0, 8000, 160)).digest
    with pytest.raises(InputError, match="did you mean 'letters'"):
        load_outliers("leters", "datasets", size=28, channels=1)


# ---- classifier_pretraining.py ---------------------------------------------------------------


def weights(folder, name="last.pt"):
    return runs.Run(folder).load(name)


def test_outlier_exposure_as_users_call_it_and_resumed(tmp_path, call_script):
    """A run of two epochs equals one that stopped after the first.

    The folder says what was learned from, and eval_ood.py takes the weights.
    """
    arguments = (*TINY, "-schedule", "constant", "-loss", "outlier_exposure")
    done = call_script(
        "classifier_pretraining.py",
        *arguments,
        "-checkpoints_dir",
        tmp_path / "runs",
        "-loss_args",
        "alpha=0.3",
        "-ood_batch_size",
        8,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("mnist5k_small_cnn_4_outlier_exposure_20*")
    config = runs.Run(folder).config
    assert (config["kind"], config["loss"], config["loss_args"], config["ood_dataset"]) == (
        "classifier, outlier_exposure",
        "outlier_exposure",
        {"alpha": 0.3},
        "letters+patches",
    )
    start = runs.Run(folder).records()[0]
    assert start["ood_images"] == 96 and start["digests"]["ood"] and "96 outliers" in done.stdout
    assert weights(folder)["objective"] == {
        "loss": "outlier_exposure",
        "args": {"alpha": 0.3},
        "state": {},
    }

    half = (
        *arguments,
        "-loss_args",
        "alpha=0.3",
        "-ood_batch_size",
        8,
        "-out_dir",
        tmp_path / "half",
    )
    assert call_script("classifier_pretraining.py", *half, "-epochs", 1).returncode == 0
    resumed = call_script(
        "classifier_pretraining.py", "-resume", "-epochs", 2, "-out_dir", tmp_path / "half"
    )
    assert resumed.returncode == 0 and "epoch 1/" not in resumed.stdout, resumed.stderr
    first, second = weights(folder)["state_dict"], weights(tmp_path / "half")["state_dict"]
    assert all(torch.equal(first[key], second[key]) for key in first)

    with pytest.raises(InputError):  # whoever looks for a plain classifier does not find this one
        runs.find_newest(
            tmp_path / "runs", {"kind": "classifier", "id_dataset": "mnist5k", "arch": "small_cnn"}
        )
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "id_dataset": "mnist5k",
                "arch": "small_cnn",
                "width": 4,
                "num_classes": 10,
                "benchmark": "demo",
                "detectors": ["msp", "energy"],
            }
        )
    )
    evaluated = call_script(
        "eval_ood.py",
        "-config",
        tmp_path / "c.json",
        "-checkpoint",
        folder / "best.pt",
        "-limit",
        20,
        "-device",
        "cpu",
        "-no_cache",
        "-datasets",
        "letters",
        "-out_dir",
        tmp_path / "out",
    )
    assert evaluated.returncode == 0 and (tmp_path / "out" / "metrics.csv").is_file(), (
        evaluated.stderr
    )


@pytest.mark.parametrize(
    "name, args",
    (
        ("vos", ("sample_number=4", "sample_from=30")),
        ("mchad", ("weight_center=0.01",)),
        ("confidence", ()),
        ("ii", ()),
        ("openmix", ()),
    ),
)
def test_what_a_loss_remembers_is_resumed(tmp_path, call_script, name, args):
    """Queues, centres, multipliers and random draws are as if the run had never stopped.

    The network in the file is a plain one.

    With a moving average for mchad, whose head in the file is that of the centres in the file."""
    words = (
        "-loss",
        name,
        "-lr",
        0.003,
        "-schedule",
        "constant",
        *(("-loss_args", *args) if args else ()),
        *(("-ema", 0.9) if name == "mchad" else ()),
    )
    assert (
        call_script(
            "classifier_pretraining.py", *TINY, *words, "-out_dir", tmp_path / "whole"
        ).returncode
        == 0
    )
    assert (
        call_script(
            "classifier_pretraining.py", *TINY, *words, "-epochs", 1, "-out_dir", tmp_path / "half"
        ).returncode
        == 0
    )
    done = call_script(
        "classifier_pretraining.py", *TINY, *words, "-resume", "-out_dir", tmp_path / "half"
    )
    assert done.returncode == 0, done.stderr
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert first["objective"]["state"].keys() and first["objective"]["loss"] == name
    for part in (lambda w: w["state_dict"], lambda w: w["objective"]["state"]):
        assert all(torch.equal(part(first)[key], part(second)[key]) for key in part(first))
    if name == "mchad":
        centres = first["objective"]["state"]["loss._centers._params"]
        torch.testing.assert_close(first["state_dict"]["fc.weight"], 2 * centres)
        torch.testing.assert_close(first["state_dict"]["fc.bias"], -centres.square().sum(1))
        assert (
            first["trainer"]["parts"]["average"]["other"][-1] != centres
        ).any()  # what goes on training
    network = models.build(**first["arch"])
    models.checkpoints.load_into(network, tmp_path / "whole" / "best.pt")
    assert network.fc.out_features == 10


def test_init_continues_a_trained_network(tmp_path, call_script):
    assert (
        call_script(
            "classifier_pretraining.py", *TINY, "-epochs", 1, "-out_dir", tmp_path / "plain"
        ).returncode
        == 0
    )
    init = tmp_path / "plain" / "best.pt"
    done = call_script(
        "classifier_pretraining.py",
        *TINY,
        "-epochs",
        1,
        "-lr",
        1e-12,
        "-momentum",
        0,
        "-weight_decay",
        0,
        "-loss",
        "energy_margin",
        "-init",
        init,
        "-out_dir",
        tmp_path / "on",
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        weights(tmp_path / "plain", "best.pt")["state_dict"],
        weights(tmp_path / "on", "best.pt"),
    )
    torch.testing.assert_close(after["state_dict"]["fc.weight"], before["fc.weight"])
    assert after["objective"]["state"]["loss.full_train_loss"] > 0
    wrong = call_script(
        "classifier_pretraining.py",
        *TINY,
        "-width",
        8,
        "-init",
        init,
        "-out_dir",
        tmp_path / "wrong",
    )
    assert wrong.returncode == 2 and "best.pt" in wrong.stderr and not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    "words, message",
    (
        (("-loss", "outlier_exposre"), "did you mean 'outlier_exposure'"),
        (("-loss", "outlier_exposure", "-loss_args", "alhpa=1"), "did you mean 'alpha'"),
        (("-loss", "outlier_exposure", "-loss_args", "alpha"), "-loss_args takes KEY=VALUE"),
        (("-loss", "logitnorm", "-loss_args", "t=0"), "t is 0"),
        (("-loss", "outlier_exposure", "-dataset", "cifar10"), "-ood_dataset, e.g."),
        (("-loss", "outlier_exposure", "-ood_dataset", "leters"), "did you mean 'letters'"),
        (("-ood_dataset", "letters"), "cross_entropy does not learn from outliers"),
        (("-loss", "logitnorm", "-ood_batch_size", 3), "-ood_batch_size is 3"),
        (("-loss", "outlier_exposure", "-ood_batch_size", 0), "'ood_batch_size' is 0"),
        (("-loss", "energy_margin"), "-init FILE"),
        (("-init", "nowhere.pt"), "nowhere.pt"),
    ),
)
def test_bad_input_is_one_line(tmp_path, call_script, words, message):
    result = call_script("classifier_pretraining.py", *TINY, "-out_dir", tmp_path / "run", *words)
    assert (
        result.returncode == 2
        and len(result.stderr.strip().splitlines()) == 1
        and message in result.stderr
    ), result.stderr
    assert not (tmp_path / "run").exists() and "epoch" not in result.stdout


def test_config_gives_the_same_keys(tmp_path, call_script):
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "id_dataset": "mnist5k",
                "width": 4,
                "epochs": 1,
                "limit": 64,
                "loss": "entropic_open_set",
                "ood_dataset": ["letters"],
            }
        )
    )
    done = call_script(
        "classifier_pretraining.py",
        "-config",
        tmp_path / "c.json",
        "-device",
        "cpu",
        "-out_dir",
        tmp_path / "run",
    )
    assert done.returncode == 0 and runs.Run(tmp_path / "run").config["ood_dataset"] == [
        "letters"
    ], done.stderr


@pytest.mark.parametrize(
    "name",
    ("cifar10_wrn_outlier_exposure", "cifar10_wrn_energy_bounded", "mnist5k_outlier_exposure"),
)
def test_published_configs_are_complete(name):
    """They resolve, and the loss is made with what they say.

    One continues a trained network and resolves with -init only. The data is not at hand here.
    """
    given = with_known_names(models, read_settings(ROOT / "configs" / f"{name}.json"))
    if given.get("needs_init"):
        with pytest.raises(InputError, match="-init FILE"):
            resolve(given)
        given["init"] = "best.pt"
    settings = resolve(given)
    assert losses.get(settings.loss).outliers == "needed" and settings.ood_dataset
    if settings.id_dataset == "cifar10":
        network = models.build(
            settings.arch, 10, depth=settings.depth, width=settings.width, **settings.model_args
        )
        assert (settings.batch_size, settings.ood_batch_size, settings.nesterov) == (
            128,
            256,
            True,
        ) and losses.Objective(settings.loss, network, **settings.loss_args)


def test_cider_sees_two_views_of_each_image(tmp_path, monkeypatch):
    seen, forward = [], losses.Objective.forward

    def spy(self, images, labels):
        seen.append((images, labels))
        return forward(self, images, labels)

    monkeypatch.setattr(losses.Objective, "forward", spy)
    pretraining.train_classifier(
        models,
        {"loss": "cider", "width": 4, "limit": 40, "epochs": 1, "batch_size": 12, "device": "cpu"},
        out_dir=tmp_path / "run",
    )
    assert [len(images) for images, _ in seen] == [24, 24, 24]  # 36 training images
    for images, labels in seen:
        assert torch.equal(labels[:12], labels[12:]) and not torch.equal(images[:12], images[12:])
