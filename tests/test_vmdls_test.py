"""VMDLS test stage: Gaussians, jitter, accumulation, scores, metrics, the README's commands."""

import json
import math

import numpy as np
import pytest
import torch

import models
from ood import methods, metrics
from ood.config import InputError
from ood.data import load
from ood.evaluation import report, workbench
from ood.methods.vmdls import command as readme_test
from ood.methods.vmdls.autoencoder import AutoEncoder
from ood.methods.vmdls.gaussians import STEP, class_moments, jitter_steps, released_rows
from ood.methods.vmdls.network import LatentNetwork
from ood.methods.vmdls.open_set import Scored, f1_curve, open_set, threshold_table
from ood.methods.vmdls.training import preprocess_of
from ood.training.batches import class_rows

VMDLS = methods.get("vmdls")


def features(classes=3, each=40, size=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = np.arange(classes * each) % classes
    return torch.randn(len(labels), size, generator=g) @ torch.randn(
        size, size, generator=g
    ) + 3 * torch.from_numpy(labels)[:, None], labels


# ---- Gaussians


def test_moments_and_likelihoods_equal_the_definition():
    f, labels = features()
    moments = class_moments(f, labels)
    gaussians = moments.gaussians(0.01)
    for c in range(3):
        own = f[labels == c].double()
        assert torch.allclose(moments.means[c], own.mean(0), atol=1e-10)
        assert torch.allclose(moments.covariances[c], torch.cov(own.T, correction=0), atol=1e-10)
        oracle = torch.distributions.MultivariateNormal(
            own.mean(0), torch.cov(own.T, correction=0) + 0.01 * torch.eye(5)
        ).log_prob(f.double())
        assert torch.allclose(gaussians.log_likelihood(f)[:, c], oracle, atol=1e-8)
    assert gaussians.log_likelihood(torch.cat([f, moments.means])).max() <= gaussians.peak() + 1e-9
    assert gaussians.log_likelihood(moments.means).max().item() == pytest.approx(gaussians.peak())


def test_likelihoods_do_not_depend_on_chunks_or_order(monkeypatch):
    f, labels = features()
    gaussians = class_moments(f, labels).gaussians()
    whole, order = (
        gaussians.log_likelihood(f),
        torch.randperm(len(f), generator=torch.Generator().manual_seed(0)),
    )
    monkeypatch.setattr("ood.methods.vmdls.gaussians.ROWS", 7)
    assert torch.allclose(gaussians.log_likelihood(f), whole)
    assert torch.allclose(gaussians.log_likelihood(f[order]), whole[order])
    assert torch.allclose(
        class_moments(f, labels).means, class_moments(f[order], labels[order.numpy()]).means
    )


def counted_up(covariances):
    """The released search: one step of 1e-6 after the other."""
    steps = 0
    for covariance in covariances:
        while torch.linalg.cholesky_ex(
            covariance + steps * STEP * torch.eye(len(covariance), dtype=covariance.dtype)
        ).info:
            steps += 1
    return steps + 2


@pytest.mark.parametrize("border", [0.0, 1.5, 63.5, 64.5, 700.5])
def test_bisection_finds_the_released_jitter(border):
    """Smallest eigenvalues of -border * 1e-6: exact borders, no round-off near them."""
    covariances = torch.stack(
        [
            torch.diag(torch.tensor([1.0, 0.5, low], dtype=torch.float64))
            for low in (1e-3, -border * STEP / 3, -border * STEP)
        ]
    )
    assert (
        jitter_steps(covariances)
        == counted_up(covariances)
        == math.ceil(border) + 2 + (border == 0)
    )


def test_jitter_in_float32_exceeds_that_in_float64():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(400, 30, generator=g) * 10
    f = torch.cat(
        [f, f @ torch.randn(30, 30, generator=g)], 1
    )  # rank 30 of 60, as mu repeats the features
    labels = np.arange(400) % 2
    low, high = class_moments(f, labels), class_moments(f, labels, dtype=torch.float32)
    assert high.search() > 10 * low.search()
    assert high.search() == counted_up(high.covariances)  # although the border is ragged
    with pytest.raises(InputError, match="jitter"):
        high.gaussians(0.0)


@pytest.mark.parametrize(
    "name, classes, each, batch, samples, batches, twice",
    [
        ("VGG", 10, 5000, 1, 2500, 19, range(9)),
        ("WideResNet", 10, 5000, 2, 2500, 9, range(8)),
        ("CIFAR-100", 100, 500, 10, 450, 11, range(10)),
        ("MNIST", 10, 6000, 1, 4996, 12, (0, 1)),
        ("DenseNet", 10, 5000, 1, 4996, 10, ()),
    ],
)
def test_released_coverage_of_the_published_commands(
    name, classes, each, batch, samples, batches, twice
):
    last, counts = released_rows(class_rows(np.repeat(np.arange(classes), each)), batch, samples)
    assert [n // samples for n in counts] == [2 if c in twice else 1 for c in range(classes)]
    assert sum(counts) == batches * batch * samples and all(len(rows) == samples for rows in last)


def test_released_accumulation_halves_the_mean_of_a_class_met_twice():
    f, labels = features(2, 40)
    labels = np.sort(labels)
    fixed, released = (
        class_moments(f, labels),
        class_moments(f, labels, accumulate="released", batch_classes=1, sample_count=20),
    )
    last = f[20:40].double()  # 3 batches: class 0, class 1, class 0
    assert released.counts.tolist() == [40, 20]
    assert torch.allclose(released.means[0], last.mean(0) / 2)
    halved = torch.cov(last.T, correction=0) / 2 + torch.outer(last.mean(0), last.mean(0)) / 4
    assert torch.allclose(released.covariances[0], halved)
    assert torch.allclose(released.means[1], f[40:60].double().mean(0))
    assert torch.allclose(fixed.means[0], f[:40].double().mean(0))


@pytest.mark.parametrize(
    "batch, samples, word", [(1, 50, "smallest"), (3, 10, "classes"), (1, 40, "never meets")]
)
def test_released_accumulation_refuses_what_it_cannot_count(batch, samples, word):
    with pytest.raises(InputError, match=word):
        released_rows(class_rows(np.repeat([0, 1], 40)), batch, samples)


# ---- metrics


def scored_pair(seed=0, n=60, classes=4, ties=False):
    g = np.random.default_rng(seed)

    def make(count, centre, known):
        scores = g.normal(centre, 1, count)
        labels = g.integers(0, classes, count)
        predictions = np.where(g.random(count) < 0.8, labels, g.integers(0, classes, count))
        return Scored(
            np.round(scores) if ties else scores,
            predictions,
            labels if known else np.full(count, -1),
        )

    return make(n, 0, True), make(n + 7, 1.5, False)


@pytest.mark.parametrize("ties", [False, True])
def test_f1_curve_equals_scikit_learn_at_every_threshold(ties):
    sklearn = pytest.importorskip("sklearn.metrics")
    known, novel = scored_pair(ties=ties)
    thresholds, values = f1_curve(known, novel)
    scores = np.concatenate((known.scores, novel.scores))
    assert np.array_equal(thresholds, np.unique(scores))
    for t, value in zip(thresholds, values):
        predictions = np.where(
            scores > t, -1, np.concatenate((known.predictions, novel.predictions))
        )
        assert value == pytest.approx(
            sklearn.f1_score(
                np.concatenate((known.labels, novel.labels)), predictions, average="macro"
            ),
            abs=1e-12,
        )
        assert value == pytest.approx(
            metrics.open_set_f1(
                known.predictions, known.labels, known.scores, novel.predictions, novel.scores, t
            ),
            abs=1e-12,
        )


def test_open_set_numbers():
    sklearn = pytest.importorskip("sklearn.metrics")
    known, novel = scored_pair(3, 400)
    values = open_set(known, novel)
    both = np.concatenate((known.scores, novel.scores))
    assert values["auroc"] == pytest.approx(
        sklearn.roc_auc_score([0] * 400 + [1] * 407, both), abs=1e-12
    )
    fpr, tpr, _ = sklearn.roc_curve([1] * 400 + [0] * 407, -both, drop_intermediate=False)
    assert (
        values["fpr95"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
        and values["tnr95"] == 1 - values["fpr95"]
    )
    assert values["accuracy"] == (known.predictions == known.labels).mean()
    assert (
        (known.scores <= values["threshold95"]).mean()
        >= 0.95
        > (known.scores < values["threshold95"]).mean()
    )
    assert values["best_f1"] >= values["macro_f1"]
    right = known.predictions == known.labels  # the released rectangles, on a fine grid
    grid = np.sort(both)[::-1]
    share = lambda s, t: (s <= t).mean()
    area, before = 0.0, 1.0
    for t in grid:
        area, before = (
            area + (before - share(novel.scores, t)) * share(known.scores[right], t),
            share(novel.scores, t),
        )
    assert values["cauroc"] == pytest.approx(area, abs=2e-2)


def test_perfect_and_rejecting_classifiers():
    labels = np.arange(6) % 3
    known, novel = (
        Scored(np.zeros(6), labels, labels),
        Scored(np.ones(5), np.zeros(5, int), np.full(5, -1)),
    )
    values = open_set(known, novel)
    assert (
        values["auroc"] == values["best_f1"] == values["macro_f1"] == values["cauroc"] == 1
        and values["fpr95"] == 0
    )
    wrong = open_set(Scored(np.zeros(6), (labels + 1) % 3, labels), novel)
    assert wrong["accuracy"] == 0 and math.isnan(wrong["cauroc"]) and wrong["auroc"] == 1


def test_threshold_table_reads_off_the_95_percent_row():
    known, novel = scored_pair(1, 200)
    table = threshold_table(known, novel, rows=1000)
    row = next(r for r in table if r["tpr"] >= 0.95)
    values = open_set(known, novel)
    assert (
        row["threshold"] == values["threshold95"]
        and row["fpr"] == values["fpr95"]
        and row["macro_f1"] == pytest.approx(values["macro_f1"])
    )
    assert table[-1]["tpr"] == table[-1]["fpr"] == 1


# ---- the method


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network trained for seconds on mnist5k, an auto-encoder with random weights, the sets."""
    folder = tmp_path_factory.mktemp("vmdls")
    context = methods.Context(
        models, data_dir=folder, checkpoints_dir=folder / "runs", limit=500, log=lambda line: None
    )
    settings = VMDLS.Settings(
        id_dataset="mnist5k",
        arch="small_cnn",
        num_classes=10,
        model_args={"width": 8},
        latent_dim=4,
        optimizer="adam",
        lr=3e-3,
        epochs=3,
        steps=10,
        batch_classes=10,
        sample_count=8,
        margins_epoch=0,
        valid_images=0,
        ae_features=False,
    )
    run = VMDLS.train(settings, context)
    torch.manual_seed(0)
    autoencoder = models.build_autoencoder("mnist_conv")
    torch.save(
        {
            "format": "ood-1",
            "arch": autoencoder.arch,
            "state_dict": autoencoder.state_dict(),
            "preprocess": {"mean": [0.0], "std": [1.0], "size": 28},
        },
        folder / "ae.pt",
    )
    known, novel = (
        load("mnist5k", "test", limit=100),
        load("noise", "test", size=28, channels=1, limit=60),
    )
    return settings, context, run, folder, known, novel


def loaded(trained, **changes):
    import dataclasses

    settings, context, run, *_ = trained
    return VMDLS.load(dataclasses.replace(settings, **changes), context, run.folder)


def test_scores_follow_the_formula(trained):
    *_, folder, known, novel = trained
    method = loaded(trained, ae_features=True, autoencoder=str(folder / "ae.pt"))
    looked = method.look(known)
    pixels = next(known.batches(100))
    net, pre = method.network, method.preprocess
    with torch.inference_mode():
        ensemble = net.ensemble(pre(pixels))
        again = pre(
            method.autoencoder.network(pixels / 255)
        )  # trained on [0, 1]: its mean is 0, its std 1
        errors = (net.encoder.taps(pre(pixels))[0] - net.encoder.taps(again)[0]).square().mean(1)
    assert torch.allclose(looked.ensemble, ensemble, atol=1e-4) and torch.allclose(
        looked.errors, errors, rtol=1e-3
    )
    likelihoods = method.gaussians.log_likelihood(looked.ensemble)
    wanted = -((likelihoods - 1 - method.gaussians.peak()) * looked.errors[:, None]).amax(1)
    assert (
        torch.allclose(method.score(known), wanted.double(), rtol=1e-9)
        and (method.score(known) > 0).all()
    )
    assert (
        method.accuracy(known) == (likelihoods.argmax(1).numpy() == known.labels).mean()
        and method.accuracy(novel) is None
    )


def test_the_toy_outliers_rank_above_the_known_images(trained):
    *_, known, novel = trained
    values = loaded(trained, jitter=1e-2).extra_metrics(
        known, novel
    )  # 50 images a class, 92 features
    assert (
        values["auroc"] > 0.9
        and values["accuracy"] > 0.6
        and 0 <= values["macro_f1"] <= values["best_f1"] <= 1
    )


@pytest.mark.parametrize(
    "change",
    [
        {"jitter": 1e-2},
        {"accumulate": "released", "test_sample_count": 20},
        {"statistics": "released"},
        {"ae_features": True},
        {"ae_features": True, "ae_input": "released"},
    ],
    ids=lambda c: " ".join(map(str, c.values())),
)
def test_every_switch_changes_the_scores(trained, change):
    *_, folder, known, _ = trained
    base = loaded(
        trained,
        **(
            {"ae_features": True, "autoencoder": str(folder / "ae.pt")}
            if "ae_input" in change
            else {}
        ),
    )
    if "ae_features" in change:
        change = {**change, "autoencoder": str(folder / "ae.pt")}
    assert not torch.allclose(loaded(trained, **change).score(known), base.score(known), rtol=1e-9)


def test_released_shift_is_of_the_pair(trained):
    *_, known, novel = trained
    method = loaded(trained, shift="released")
    scored = method.pair(known, novel)
    m = 1 + max(method.look(known).likelihoods.max(), method.look(novel).likelihoods.max())
    assert scored[0].scores == pytest.approx(
        (m - method.look(known).likelihoods.amax(1)).numpy()
    ) and min(s.scores.min() for s in scored) == pytest.approx(1)


def test_jitter_report_and_figures(trained, tmp_path):
    *_, known, novel = trained
    method = loaded(trained)
    rows = method.jitter_report(known, novel, (1e-5, 1e-1))
    assert (
        [r["jitter"] for r in rows] == sorted(r["jitter"] for r in rows)
        and len(rows) == 3
        and len({r["auroc"] for r in rows} | {r["accuracy"] for r in rows}) > 2
    )
    assert rows[0]["jitter"] == method.moments.search() * STEP
    assert all(p.stat().st_size > 1000 for p in method.figures(tmp_path, [known, novel]))


def test_cached_passes_give_the_same_scores(trained, tmp_path):
    import dataclasses

    from ood.cache import Cache

    settings, context, run, _, known, _ = trained
    cached = dataclasses.replace(context, cache=Cache(tmp_path))
    first = VMDLS.load(settings, cached, run.folder).score(known)
    again = VMDLS.load(settings, cached, run.folder)
    again._forward = None  # nothing may be forwarded
    assert torch.equal(again.score(known), first) and torch.equal(
        first, loaded(trained).score(known)
    )


def test_released_dropout_makes_scores_random():
    s = VMDLS.Settings(
        arch="vmdls_wrn", test_dropout="released", model_args={"depth": 10, "width": 2}
    )
    x = torch.rand(2, 3, 32, 32)
    for settings, equal in (
        (s, False),
        (VMDLS.Settings(arch="vmdls_wrn", model_args={"depth": 10, "width": 2}), True),
    ):
        net = LatentNetwork(models.build("vmdls_wrn", 10, **settings.network_options()), 4).eval()
        assert torch.equal(net.ensemble(x), net.ensemble(x)) == equal


def test_the_authors_checkpoint_file(trained, tmp_path):
    """A Lightning file with what theirs hold, and without class means.

    Theirs hold the encoder, the heads, the CIFAR auto-encoder and SIFT buffers.
    """
    torch.manual_seed(1)
    source = LatentNetwork(models.build("mnist_conv", 10), 32)
    state = {**source.state_dict(), "ae.fc.weight": torch.zeros(2, 2), "sift.gk": torch.zeros(3)}
    torch.save(
        {
            "state_dict": state,
            "pytorch-lightning_version": "1.1.2",
            "epoch": 99,
            "hyper_parameters": {"enc_type": "mnist-conv"},
        },
        tmp_path / "cnn_mnist.ckpt",
    )
    _, context, *_ = trained
    settings = VMDLS.Settings(
        id_dataset="mnist5k", arch="mnist_conv", num_classes=10, ae_features=False
    )
    method = VMDLS.load(settings, context, tmp_path / "cnn_mnist.ckpt")
    assert all(
        torch.equal(v, source.state_dict()[k]) for k, v in method.network.state_dict().items()
    )
    assert repr(method.preprocess) == repr(preprocess_of(settings))
    with pytest.raises(models.CheckpointError):
        VMDLS.load(
            VMDLS.Settings(
                id_dataset="mnist5k", arch="small_cnn", num_classes=10, ae_features=False
            ),
            context,
            tmp_path / "cnn_mnist.ckpt",
        )


# ---- the auto-encoder's normalisation


def autoencoder_files(folder, arch="mnist_conv", mean=(0.5,), std=(0.5,)):
    """The same random weights as a file of ours and as a Lightning file, without normalisation."""
    torch.manual_seed(2)
    network = models.build_autoencoder(arch)
    ours = {"format": "ood-1", "arch": network.arch, "state_dict": network.state_dict()}
    preprocess = {"mean": list(mean), "std": list(std), "size": 28}
    torch.save({**ours, "preprocess": preprocess}, folder / "ours.pt")
    lightning = {"state_dict": network.state_dict(), "pytorch-lightning_version": "1.1.2"}
    torch.save({**lightning, "epoch": 96, "hyper_parameters": {}}, folder / "theirs.ckpt")
    return str(folder / "ours.pt"), str(folder / "theirs.ckpt")


def test_the_file_format_of_the_auto_encoder_changes_no_score(trained, tmp_path):
    *_, known, _ = trained
    ours, theirs = (
        loaded(trained, ae_features=True, autoencoder=file).score(known)
        for file in autoencoder_files(tmp_path)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "dataset, arch, named, mean, said",
    [
        ("mnist5k", "mnist_conv", {}, (0.5,), "of mnist5k, because its file stores none"),
        ("mnist5k", "mnist_conv", {"mean": (0.0,), "std": (1.0,)}, (0.0,), "as named"),
        ("cifar10", "resnet18", {}, (125.3 / 255, 123 / 255, 113.9 / 255), "lightning-bolts'"),
        ("cifar100", "resnet18", {}, (125.3 / 255, 123 / 255, 113.9 / 255), "lightning-bolts'"),
    ],
)
def test_a_file_without_a_normalisation_says_which_was_taken(
    tmp_path, dataset, arch, named, mean, said
):
    _, file = autoencoder_files(tmp_path, arch)
    lines = []
    settings = AutoEncoder.Settings(dataset, arch, **named)
    method = AutoEncoder.load(settings, methods.Context(models, log=lines.append), file)
    assert method.preprocess.mean == pytest.approx(mean) and said in lines[0]


def test_a_stored_normalisation_wins_over_a_named_one(tmp_path):
    file, _ = autoencoder_files(tmp_path, mean=(0.25,), std=(0.75,))
    lines = []
    settings = AutoEncoder.Settings("mnist5k", mean=(0.0,), std=(1.0,))
    method = AutoEncoder.load(settings, methods.Context(models, log=lines.append), file)
    assert method.preprocess.mean == (0.25,) and "as its file says" in lines[0]


def test_the_likelihood_alone_stands_beside_the_weighted_score(trained, tmp_path):
    *_, known, novel = trained
    alone = loaded(trained)
    weighted = loaded(trained, ae_features=True, autoencoder=autoencoder_files(tmp_path)[0])
    assert alone.variants() == {}
    bench = workbench.Workbench(None, None, None, 10, None, trained=weighted)
    assert list(bench.methods) == ["vmdls", "vmdls likelihood"]  # what eval_ood.py reports
    assert torch.equal(weighted.variants()["vmdls likelihood"].score(known), alone.score(known))
    for shift in ("peak", "released"):
        ours = loaded(trained, shift=shift).pair(known, novel)
        changes = {"ae_features": True, "autoencoder": str(tmp_path / "ours.pt"), "shift": shift}
        theirs = loaded(trained, **changes).pair(known, novel, weighted=False)
        assert all(np.array_equal(a.scores, b.scores) for a, b in zip(ours, theirs))


def test_the_readmes_command_reports_both_scores(trained, narrow, tmp_path, capsys):
    _, theirs = autoencoder_files(tmp_path)
    words = ("--unknown_dataset", "noise", "--ae_features", "--ae_checkpoint", theirs)
    wanted = ["vmdls", "vmdls likelihood"]
    out = str(tmp_path / "out")
    readme_test.main(command(trained, *words, "--out_dir", out, "--ae_transforms", "toy"), narrow)
    said = capsys.readouterr().out
    assert "the likelihood alone: AUROC" in said and "input (x - 0) / 1, as named" in said
    lines = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == wanted
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["provenance"]["config"]["ae_input"] == "released"  # as the authors' script
    assert all("cauroc" in row for row in written["rows"])


def test_a_missing_run_is_named(trained, tmp_path):
    _, context, *_ = trained
    with pytest.raises(InputError, match="ood_training.py"):
        VMDLS.load(
            VMDLS.Settings(
                id_dataset="mnist5k", arch="mnist_conv", num_classes=10, ae_features=False
            ),
            context,
        )
    with pytest.raises(InputError, match="autoencoder"):
        AutoEncoder.load(AutoEncoder.Settings("mnist5k"), context)


# ---- the README's commands


def command(trained, *words):
    settings, context, run, folder, *_ = trained
    return [
        "--enc_type",
        "small_cnn",
        "--latent_dim",
        "4",
        "--enc_out_dim",
        "32",
        "--known_dataset",
        "mnist5k",
        "--checkpoint_path",
        str(run.folder),
        "--data_dir",
        str(folder),
        "--checkpoints_dir",
        str(folder / "runs"),
        "--limit",
        "120",
        "--device",
        "cpu",
        *words,
    ]


@pytest.fixture
def narrow(monkeypatch):
    """The networks package, with small_cnn at the width of the fixture."""

    class Networks:
        checkpoints, build_autoencoder = models.checkpoints, staticmethod(models.build_autoencoder)
        build = staticmethod(lambda arch, *a, **k: models.build(arch, *a, **{**k, "width": 8}))

    return Networks


def test_readme_test_command(trained, narrow, tmp_path, capsys):
    words = [
        "--unknown_dataset",
        "noise",
        "--data_transforms",
        "blob",
        "--gpus",
        "0,",
        "--max_epochs",
        "500",
        "--kl_coeff",
        "0.1",
        "--margin_jump",
        "1",
        "--generation_epoch",
        "151",
        "--lower_bound",
        "0.05",
        "--step_size",
        "75",
        "--margin_max_distance",
        "32",
        "--lr",
        "0.1",
        "--margins_epoch",
        "10",
        "--batch_classes",
        "1",
        "--sample_count",
        "4996",
        "--batch_size",
        "2500",
        "--class_num",
        "10",
        "--input_height",
        "28",
        "--offline",
        "--thresholding",
        "--jitter_report",
        "--out_dir",
        str(tmp_path),
    ]
    readme_test.main(command(trained, *words), narrow)
    said = capsys.readouterr().out
    inert = next(line for line in said.splitlines() if line.startswith("no effect"))
    for name in ("margin_jumps", "lower_bound", "sample_count", "gpus", "offline"):
        assert f"--{name}" in inert
    assert (
        "--batch_size" not in inert and "AUROC" in said and "macro F1" in said and "jitter=" in said
    )
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {
        "auroc",
        "fpr95",
        "tnr95",
        "cauroc",
        "accuracy",
        "macro_f1",
        "best_f1",
        "jitter",
        "digests",
    } <= set(written)
    assert (
        (tmp_path / "thresholds.csv").read_text().startswith("threshold,tpr,fpr,macro_f1,accuracy")
    )
    scores = np.load(tmp_path / "scores" / "pair.npz")
    assert metrics.evaluate(scores["known"], scores["unknown"]).auroc == pytest.approx(
        written["auroc"]
    )
    assert (tmp_path / "figures" / "scores.png").exists()
    # The same report as every other script's.
    line = (tmp_path / "metrics.csv").read_text().splitlines()
    assert line[0] == ",".join(report.COLUMNS) and line[1].startswith("vmdls,noise,,120,120,")
    assert float(line[1].split(",")[report.COLUMNS.index("auroc")]) == written["auroc"]
    assert written["rows"][0]["fpr95"] == written["fpr95"] and written["provenance"]["versions"]
    assert "macro F1" in (tmp_path / "report.md").read_text()
    assert np.array_equal(np.load(tmp_path / "scores" / "noise.npz")["vmdls"], scores["unknown"])


@pytest.mark.parametrize(
    "words, word",
    [
        (("--enc_out_dim", "77"), "enc_out_dim"),
        (("--known_dataset", "noise"), "known_dataset"),
        (("--data_transforms", "cifar"), "channel"),
        (("--data_transforms", "cifr"), "cifar"),
        (("--unknown_dataset", "noize"), "noise"),
        (("--jitter", "-1"), "jitter"),
    ],
)
def test_bad_input_is_one_line(trained, narrow, words, word):
    with pytest.raises(InputError, match=word):
        readme_test.main(command(trained, *words), narrow)


def test_prefixes_are_not_guessed(trained, narrow, capsys):
    for words in (("--enc_typ", "vgg"), ("--margins_ep", "1")):
        with pytest.raises(SystemExit) as stopped:
            readme_test.main(command(trained, *words), narrow)
        assert stopped.value.code == 2
    assert "enc_typ" in capsys.readouterr().err


def test_class_splits(trained, narrow):
    """--class_num 6: the first six classes are known; *_unknown are the others."""
    settings, context, *_ = trained
    import dataclasses

    from ood.methods.vmdls.training import known_images

    part = known_images(dataclasses.replace(settings, num_classes=6), "test", context)
    assert part.num_classes == 6 and set(np.unique(part.labels)) == set(range(6))
    with pytest.raises(InputError, match="num_classes"):
        known_images(dataclasses.replace(settings, num_classes=11), "test", context)
