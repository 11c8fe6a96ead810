"""The training loop and run folders on toy networks: resume, schedules, what stops a run."""

import json
import math
import os
import signal
import socket
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from ood.cli import RunError
from ood.config import InputError
from ood.training import lock, loop, runs
from ood.training.batches import balanced_order, split


class Toy(nn.Module):
    """BatchNorm (buffers) and dropout (the global generator): what a resume can forget."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.body(x.flatten(1))


class Images:
    """60 random images with labels that can be learned, as the part of an ImageSet in use."""

    def __init__(self, count=60):
        generator = np.random.RandomState(0)
        self.pixels = generator.randint(0, 256, (count, 3, 2, 2)).astype(np.uint8)
        self.labels = (self.pixels.reshape(count, -1)[:, :3].argmax(1)).astype(np.int64)

    def __len__(self):
        return len(self.labels)

    def batches(self, size, indices=None):
        indices = np.arange(len(self)) if indices is None else indices
        for start in range(0, len(indices), size):
            yield torch.from_numpy(self.pixels[indices[start : start + size]])


def noisy(pixels, generator):
    return pixels.float() / 255 + 0.1 * torch.rand(pixels.shape, generator=generator)


class Crash(Exception):
    pass


def experiment(
    folder,
    epochs,
    *,
    resume=False,
    schedule="cosine",
    optimizer="sgd",
    lr=0.1,
    crash_at=None,
    poison_at=None,
    **options,
):
    """Train the toy as a script would.

    crash_at = (epoch, batch) raises in the middle of that epoch. poison_at makes weights infinite.
    """
    torch.manual_seed(0)
    network = Toy()
    batches = loop.ImageBatches(Images(), 16, transform=noisy, device=torch.device("cpu"), seed=3)
    opt = loop.make_optimizer(optimizer, network.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    recipe = {"milestones": (2, 4), "gamma": 0.3, "patience": 0}
    calls = []

    def objective(batch):
        calls.append(1)
        if crash_at and len(calls) > (crash_at[0] - 1) * len(batches) + crash_at[1]:
            raise Crash
        images, labels = batch
        logits = network(images)
        return F.cross_entropy(logits, labels), {
            "accuracy": (logits.argmax(1) == labels).float().mean()
        }

    def poison(epoch):
        if epoch == poison_at:
            network.body[0].weight.data.fill_(math.inf)

    run = runs.reopen(folder) if resume else runs.create("toy", {"kind": "toy"}, out_dir=folder)
    clean = loop.ImageBatches(
        Images(),
        25,
        transform=lambda p, g: p.float() / 255,
        device=torch.device("cpu"),
        shuffle=False,
    )

    def pack(epoch, metrics):
        return {"state_dict": network.state_dict(), "epoch": epoch, "metrics": metrics}

    hooks = {f.name: options.pop(f.name) for f in fields(loop.Hooks) if f.name in options}
    defaults = {
        "before_epoch": poison,
        "validate": lambda epoch: {
            f"valid_{k}": v for k, v in loop.measure(network, clean).items()
        },
        "say": lambda line: None,
    }
    options = {"select": "valid_accuracy", **options}
    plan = loop.Plan(epochs, opt, loop.Schedule(opt, schedule, 6, **recipe), **options)
    history = loop.fit(
        objective,
        network,
        batches,
        plan,
        run,
        pack,
        loop.Hooks(**{**defaults, **hooks}),
        resume=resume,
    )
    return network, history, run


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ---- resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", loop.SCHEDULES)
@pytest.mark.parametrize("optimizer", loop.OPTIMIZERS)
def test_resumed_run_equals_undisturbed_run_to_the_bit(tmp_path, schedule, optimizer):
    straight, history, run = experiment(
        tmp_path / "a", 5, schedule=schedule, optimizer=optimizer, lr=0.05
    )
    with pytest.raises(Crash):
        experiment(
            tmp_path / "b", 5, schedule=schedule, optimizer=optimizer, lr=0.05, crash_at=(3, 2)
        )
    torch.manual_seed(999)  # a new process has other random numbers
    np.random.seed(999)
    resumed, again, other = experiment(
        tmp_path / "b", 5, schedule=schedule, optimizer=optimizer, lr=0.05, resume=True
    )
    assert same(straight, resumed)
    assert (
        again.metrics == history.metrics
        and again.best == history.best
        and again.best_epoch == history.best_epoch
    )
    timeless = [
        [
            {k: v for k, v in r.items() if "second" not in k and "per_s" not in k}
            for r in x.records()
        ]
        for x in (run, other)
    ]
    assert timeless[0] == timeless[1] and [r["epoch"] for r in timeless[0]] == [1, 2, 3, 4, 5]
    for name in ("last.pt", "best.pt"):
        assert all(
            torch.equal(x, y)
            for x, y in zip(
                run.load(name)["state_dict"].values(), other.load(name)["state_dict"].values()
            )
        )


def test_resume_differs_when_the_generator_is_not_restored(tmp_path, monkeypatch):
    """The test above can fail: without the global generator the dropout masks differ."""
    straight, *_ = experiment(tmp_path / "a", 4)
    experiment(tmp_path / "b", 2)
    monkeypatch.setattr(loop, "set_random_state", lambda *a: None)
    resumed, *_ = experiment(tmp_path / "b", 4, resume=True)
    assert not same(straight, resumed)


def test_resume_restores_python_and_numpy_generators():
    import random

    state = loop.random_state(torch.device("cpu"))
    first = (torch.rand(3), np.random.rand(3), random.random())
    loop.set_random_state(state, torch.device("cpu"))
    second = (torch.rand(3), np.random.rand(3), random.random())
    assert (
        torch.equal(first[0], second[0])
        and np.array_equal(first[1], second[1])
        and first[2] == second[2]
    )


def test_kill_between_best_and_last_repeats_the_epoch(tmp_path, monkeypatch):
    straight, *_ = experiment(tmp_path / "a", 3)
    save = runs.Run.save

    def dying(self, name, payload):
        if name == "last.pt" and payload["epoch"] == 3:
            raise Crash
        save(self, name, payload)

    monkeypatch.setattr(runs.Run, "save", dying)
    with pytest.raises(Crash):
        experiment(tmp_path / "b", 3)
    monkeypatch.undo()
    resumed, _, run = experiment(tmp_path / "b", 3, resume=True)
    assert same(straight, resumed) and [r["epoch"] for r in run.records()] == [1, 2, 3]


def test_state_of_a_method_and_of_the_batches_is_saved(tmp_path):
    class Margin:
        value = 0.0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    margin = Margin()

    def raise_margin(epoch):
        margin.value += 1.0

    experiment(tmp_path, 2, before_epoch=raise_margin, state={"margin": margin})
    margin.value = 50.0
    experiment(tmp_path, 3, resume=True, before_epoch=raise_margin, state={"margin": margin})
    assert margin.value == 3.0


def test_last_of_another_network_is_bad_input(tmp_path):
    experiment(tmp_path, 1)
    run = runs.Run(tmp_path)
    payload = run.load("last.pt")
    payload["state_dict"] = {"other": torch.zeros(2)}
    run.save("last.pt", payload)
    with pytest.raises(InputError, match="does not fit this training"):
        experiment(tmp_path, 2, resume=True)


def test_truncated_last_is_bad_input(tmp_path):
    experiment(tmp_path, 1)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:500])
    with pytest.raises(InputError, match="cannot read"):
        experiment(tmp_path, 2, resume=True)


# ---- the loop --------------------------------------------------------------------------------


def test_training_learns_and_best_is_the_best(tmp_path):
    _, history, run = experiment(tmp_path, 6, schedule="constant", lr=0.05)
    records = run.records()
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    accuracies = [r["valid_accuracy"] for r in records]
    assert (
        history.best == max(accuracies)
        and history.best_epoch == accuracies.index(max(accuracies)) + 1
    )
    assert run.load("best.pt")["epoch"] == history.best_epoch and run.load("last.pt")["epoch"] == 6
    assert "trainer" not in run.load("best.pt") and not list(tmp_path.glob(".*.tmp"))


def test_best_needs_a_strictly_better_metric(tmp_path):
    values = {1: 0.5, 2: 0.5, 3: 0.4, 4: 0.6}
    options = dict(validate=lambda epoch: {"score": values[epoch]}, select="score")
    _, up, run = experiment(tmp_path / "max", 4, **options)
    assert [r["best"] for r in run.records()] == [True, False, False, True] and up.best_epoch == 4
    _, down, run = experiment(tmp_path / "min", 4, mode="min", **options)
    assert [r["best"] for r in run.records()] == [True, False, True, False] and down.best_epoch == 3


@pytest.mark.parametrize("select", ("valid_accuracy", None))
def test_an_epoch_with_a_loss_that_is_not_finite_is_never_the_best(tmp_path, select):
    losses, accuracies = (math.nan, 0.5, math.inf), (0.9, 0.6, 0.95)

    def validate(epoch):
        return {"valid_loss": losses[epoch - 1], "valid_accuracy": accuracies[epoch - 1]}

    _, history, run = experiment(tmp_path, 3, validate=validate, select=select)
    assert history.best_epoch == 2 and run.load("best.pt")["epoch"] == 2
    assert [r["best"] for r in run.records()] == [False, True, False]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()  # which is not JSON


def test_a_run_without_a_finite_epoch_fails(tmp_path):
    with pytest.raises(RunError, match=r"no epoch had finite metrics.*\(valid_loss nan\)"):
        experiment(tmp_path, 2, validate=lambda epoch: {"valid_loss": math.nan}, select=None)
    assert not (tmp_path / "best.pt").exists() and (tmp_path / "last.pt").exists()


def test_without_selection_the_newest_epoch_is_the_best(tmp_path):
    network, history, run = experiment(tmp_path, 2, validate=None, select=None)
    assert history.best is None and history.best_epoch == 2 and run.load("best.pt")["epoch"] == 2


def test_epoch_means_weight_the_partial_batch(tmp_path):
    means = loop.Means(1)
    means.add(torch.tensor(1.0), {"part": 2.0}, 30)
    means.add(torch.tensor(4.0), {"part": torch.tensor(5.0)}, 10)
    assert means.result() == {"loss": 1.75, "part": 2.75} and means.items == 40


@pytest.mark.parametrize("check_every", (1, 3, 50))
def test_non_finite_loss_names_epoch_and_batch(check_every):
    means = loop.Means(7, check_every)
    with pytest.raises(RunError, match="nan in epoch 7, batch 3"):
        for value in (1.0, 2.0, math.nan, 1.0):
            means.add(torch.tensor(value), {}, 2)
        means.result()


def test_non_finite_run_keeps_the_epoch_before(tmp_path):
    experiment(tmp_path, 2, schedule="constant")
    with pytest.raises(RunError, match="nan in epoch 3, batch 1"):
        experiment(tmp_path, 4, resume=True, schedule="constant", poison_at=3)
    assert runs.Run(tmp_path).load("last.pt")["epoch"] == 2


def test_weights_that_burst_in_the_last_batch_are_not_saved(tmp_path):
    with pytest.raises(RunError, match="in epoch 1, batch|weights are not finite after epoch 1"):
        experiment(tmp_path, 1, lr=1e38)
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "best.pt").exists()


def test_what_is_learned_beside_the_network_must_be_finite_too(tmp_path):
    """A loss's centre that bursts in the last step of an epoch, where no later loss shows it."""
    network, centre = Toy(), nn.Parameter(torch.ones(3))
    batches = loop.ImageBatches(Images(), 60, transform=noisy, device=torch.device("cpu"))
    optimizer = torch.optim.SGD([*network.parameters(), centre], 1.0)
    centre.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunError, match="weights are not finite after epoch 1"):
        loop.fit(
            lambda batch: (
                F.cross_entropy(network(batch[0]), batch[1]) + centre.square().sum(),
                {},
            ),
            network,
            batches,
            loop.Plan(
                epochs=1, optimizer=optimizer, schedule=loop.Schedule(optimizer, "constant", 1)
            ),
            runs.create("toy", {}, out_dir=tmp_path),
            lambda epoch, metrics: {"state_dict": network.state_dict()},
            loop.Hooks(say=lambda line: None),
        )
    assert not (tmp_path / "last.pt").exists()


def test_non_finite_selection_metric_stops(tmp_path):
    with pytest.raises(RunError, match="score is nan after epoch 1"):
        experiment(tmp_path, 1, validate=lambda e: {"score": math.nan}, select="score")


def test_clip_norm_bounds_the_step(tmp_path):
    torch.manual_seed(0)
    start = Toy()
    moved = {}
    for clip in (None, 1e-4):
        network, *_ = experiment(
            tmp_path / str(clip), 1, schedule="constant", optimizer="sgd", clip_norm=clip
        )
        moved[clip] = sum(
            (a - b).norm() for a, b in zip(network.parameters(), start.parameters())
        ).item()
    assert moved[1e-4] < 0.1 * moved[None]


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    seen = []

    class Spy(Toy):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    network = Spy()
    batches = loop.ImageBatches(Images(), 16, transform=noisy, device=torch.device("cpu"))
    optimizer = loop.make_optimizer("sgd", network.parameters(), 0.05)
    run = runs.create("toy", {}, out_dir=tmp_path)
    loop.fit(
        lambda batch: (F.cross_entropy(network(batch[0]), batch[1]), {}),
        network,
        batches,
        loop.Plan(
            epochs=2,
            optimizer=optimizer,
            schedule=loop.Schedule(optimizer, "constant", 2),
            precision="bf16",
        ),
        run,
        lambda epoch, metrics: {
            "state_dict": network.state_dict(),
            "epoch": epoch,
            "metrics": metrics,
        },
        loop.Hooks(say=lambda line: None),
    )
    assert set(seen) == {torch.bfloat16} and all(
        p.dtype == torch.float32 for p in network.parameters()
    )


def test_one_greppable_line_per_epoch(tmp_path):
    lines = []
    experiment(tmp_path, 2, say=lines.append)
    assert len(lines) == 2 and lines[0].startswith("epoch 1/2 loss=") and lines[0].endswith(" best")
    assert " valid_accuracy=" in lines[0] and " lr=" in lines[0]


def test_ema_equals_an_explicit_average(tmp_path):
    """a <- d a + (1 - d) w after every step, d = min(decay, (1 + t) / (10 + t)); a is saved.

    The average is one of the weights and the running statistics.
    """
    seen = []

    class Watching(torch.optim.SGD):
        def step(self):
            super().step()
            seen.append([t.clone() for t in network.state_dict().values()])

    torch.manual_seed(0)
    network = Toy()
    seen.append([t.clone() for t in network.state_dict().values()])
    optimizer = Watching(network.parameters(), 0.1)
    batches = loop.ImageBatches(Images(), 16, transform=noisy, device=torch.device("cpu"))
    run = runs.create("toy", {}, out_dir=tmp_path)
    loop.fit(
        lambda batch: (F.cross_entropy(network(batch[0]), batch[1]), {}),
        network,
        batches,
        loop.Plan(
            epochs=3, optimizer=optimizer, schedule=loop.Schedule(optimizer, "constant", 3), ema=0.6
        ),
        run,
        lambda epoch, metrics: {
            "state_dict": network.state_dict(),
            "epoch": epoch,
            "metrics": metrics,
        },
        loop.Hooks(say=lambda line: None),
    )
    average = seen[0]
    for t, weights in enumerate(seen[1:], 1):
        d = min(0.6, (1 + t) / (10 + t))
        average = [
            d * a + (1 - d) * w if w.is_floating_point() else w for a, w in zip(average, weights)
        ]
    for stored in (network.state_dict(), run.load("last.pt")["state_dict"]):
        for tensor, expected in zip(stored.values(), average):
            torch.testing.assert_close(tensor, expected)
    assert not torch.equal(average[0], seen[-1][0])


def test_resume_with_ema_equals_the_undisturbed_run(tmp_path):
    straight, history, _ = experiment(tmp_path / "a", 5, ema=0.9)
    experiment(tmp_path / "b", 2, ema=0.9)
    resumed, again, _ = experiment(tmp_path / "b", 5, ema=0.9, resume=True)
    plain, *_ = experiment(tmp_path / "c", 5)
    assert (
        same(straight, resumed) and again.metrics == history.metrics and not same(straight, plain)
    )
    finished, *_ = experiment(tmp_path / "b", 5, ema=0.9, resume=True)  # nothing left to train
    assert same(finished, resumed)
    with pytest.raises(InputError, match="does not fit this training"):
        experiment(tmp_path / "c", 6, ema=0.9, resume=True)
    with pytest.raises(InputError, match="ema is 1"):
        loop.Average(straight, 1.0)


def test_tell_gets_every_record(tmp_path):
    told = {}
    _, _, run = experiment(tmp_path, 2, tell=told.__setitem__)
    assert list(told) == [1, 2] and told[2] == run.records()[-1]


def test_tensorboard_is_asked_for_in_words_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match="pip install tensorboard"):
        runs.require_tensorboard()
    with runs.board(runs.Run(tmp_path), False) as tell:
        assert tell is None


def test_tensorboard_gets_every_epoch_once(tmp_path):
    """A resumed run has each step once, with the values of the log.

    It has two epochs, and a third that was told but whose last.pt was lost.
    """
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with runs.board(runs.Run(tmp_path), True) as tell:
        experiment(tmp_path, 2, tell=tell)
    kept = (tmp_path / "last.pt").read_bytes()
    with runs.board(runs.reopen(tmp_path), True) as tell:
        experiment(tmp_path, 3, resume=True, tell=tell)
    (tmp_path / "last.pt").write_bytes(kept)
    runs.Run(tmp_path).rewind(2)
    with runs.board(runs.reopen(tmp_path), True) as tell:
        _, _, run = experiment(tmp_path, 3, resume=True, tell=tell)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "accuracy", "valid_accuracy", "lr", "images_per_s", "seconds"):
        found = events.Scalars(name)
        assert [e.step for e in found] == [1, 2, 3] and [e.value for e in found] == pytest.approx(
            [r[name] for r in run.records()], rel=1e-5
        )
    assert "best" not in events.Tags()["scalars"] and "epoch" not in events.Tags()["scalars"]


@pytest.fixture
def identity_compiler(monkeypatch):
    """torch.compile and Module.compile count and change nothing; a list of what was compiled."""
    seen = []
    monkeypatch.setenv("CXX", sys.executable)  # "a compiler is there"
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, *args, **options: seen.append(type(self).__name__)
    )
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, *args, **options: (
            seen.append(function.__name__) or (lambda *given: function(*given))
        ),
    )
    return seen


def test_compiled_network_keeps_its_names(identity_compiler):
    network = models.build("small_cnn", 3, in_channels=1, image_size=28, width=4)
    keys, images = list(network.state_dict()), torch.rand(2, 1, 28, 28)
    expected = network.eval().features(images)
    assert loop.compiled(network, torch.device("cpu")) is network and identity_compiler == [
        "SmallCNN",
        "features",
    ]
    assert list(network.state_dict()) == keys and torch.equal(network.features(images), expected)
    plain = Toy()
    assert loop.compiled(plain, torch.device("cpu")) is plain and identity_compiler[2:] == ["Toy"]


def test_compile_and_deterministic_as_users_call_them(
    tmp_path, call_script, identity_compiler, monkeypatch
):
    """The weights are those of a run without -compile, also with an average and a resume.

    -deterministic is switched on.
    """
    words = (
        "classifier_pretraining.py",
        "-device",
        "cpu",
        "-limit",
        48,
        "-batch_size",
        16,
        "-width",
        4,
        "-schedule",
        "constant",
        "-ema",
        0.9,
        "-deterministic",
    )
    monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # which -deterministic would leave behind
    try:
        assert not torch.are_deterministic_algorithms_enabled()
        assert call_script(*words, "-epochs", 2, "-out_dir", tmp_path / "plain").returncode == 0
        assert torch.are_deterministic_algorithms_enabled() and not identity_compiler
        assert (
            call_script(
                *words, "-compile", "-epochs", 1, "-out_dir", tmp_path / "compiled"
            ).returncode
            == 0
        )
        done = call_script(
            *words, "-compile", "-epochs", 2, "-resume", "-out_dir", tmp_path / "compiled"
        )
        assert done.returncode == 0 and len(identity_compiler) == 4, done.stderr
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (
        runs.Run(tmp_path / name).load("last.pt")["state_dict"] for name in ("plain", "compiled")
    )
    assert list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match="C\\+\\+ compiler"):
        loop.compiled(Toy(), torch.device("cpu"))


# ---- batches ---------------------------------------------------------------------------------


def test_every_image_once_per_epoch_in_a_new_order():
    images = Images(50)
    batches = loop.ImageBatches(
        images,
        16,
        transform=lambda p, g: p,
        device=torch.device("cpu"),
        indices=np.arange(5, 50),
        seed=1,
    )
    epochs = [[*batches.epoch(n)] for n in (1, 2, 1)]
    assert len(batches) == 3 and [len(x) for x, _ in epochs[0]] == [16, 16, 13]
    flat = [torch.cat([x.flatten(1) for x, _ in e]) for e in epochs]
    assert torch.equal(flat[0], flat[2]) and not torch.equal(flat[0], flat[1])
    rows = sorted(map(tuple, flat[0].tolist()))
    assert rows == sorted(map(tuple, images.pixels[5:].reshape(45, -1).tolist()))
    for x, labels in epochs[0]:
        assert torch.equal(x.flatten(1)[:, :3].argmax(1), labels)
    other = loop.ImageBatches(
        images,
        16,
        transform=lambda p, g: p,
        device=torch.device("cpu"),
        indices=np.arange(5, 50),
        seed=2,
    )
    assert not torch.equal(torch.cat([x.flatten(1) for x, _ in other.epoch(1)]), flat[0])


def test_augmentation_depends_on_seed_and_epoch_only():
    batches = loop.ImageBatches(
        Images(), 60, transform=noisy, device=torch.device("cpu"), shuffle=False
    )
    torch.manual_seed(1)
    first = next(batches.epoch(1))[0]
    torch.manual_seed(2)
    assert torch.equal(first, next(batches.epoch(1))[0]) and not torch.equal(
        first, next(batches.epoch(2))[0]
    )


def test_targets_replace_labels():
    batches = loop.ImageBatches(
        Images(),
        60,
        transform=noisy,
        device=torch.device("cpu"),
        shuffle=False,
        targets=np.arange(60),
    )
    assert next(batches.epoch(1))[1].tolist() == list(range(60))


def test_balanced_order_takes_classes_in_turn():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)
    order = balanced_order(labels, torch.Generator().manual_seed(0))
    assert len(order) == 60 and torch.bincount(labels[order]).tolist() == [20, 20, 20]
    assert all(sorted(labels[part].tolist()) == [0, 1, 2] for part in order.split(3))
    assert len(set(order[labels[order] == 0].tolist())) == 20  # no image twice before all came
    rare = order[labels[order] == 2].tolist()
    assert all(len(set(rare[n : n + 3])) == 3 for n in range(0, 18, 3))
    assert order.tolist() != balanced_order(labels, torch.Generator().manual_seed(1)).tolist()
    images = Images()
    images.labels = labels.numpy()
    batches = loop.ImageBatches(
        images, 6, transform=noisy, device=torch.device("cpu"), seed=2, balanced=True
    )
    assert (
        all(
            torch.bincount(labels, minlength=3).tolist() == [2, 2, 2]
            for _, labels in batches.epoch(1)
        )
        and len(batches) == 10
    )


def test_measure_equals_a_loop():
    torch.manual_seed(0)
    network, images = Toy().eval(), Images()
    batches = loop.ImageBatches(
        images, 7, transform=lambda p, g: p.float() / 255, device=torch.device("cpu"), shuffle=False
    )
    logits = network(torch.from_numpy(images.pixels).float() / 255)
    labels = torch.from_numpy(images.labels)
    measured = loop.measure(network.train(), batches)
    assert measured["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert measured["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_split_is_seeded_disjoint_and_complete():
    kept, valid = split(1000, 0.01, seed=0)
    assert (
        len(valid) == 10
        and sorted([*kept, *valid]) == list(range(1000))
        and list(valid) == sorted(valid)
    )
    assert split(1000, 0.01, 0)[1].tolist() == valid.tolist() != split(1000, 0.01, 1)[1].tolist()
    assert len(split(10, 0.01, 0)[1]) == 1 and len(split(10, 0.0, 0)[1]) == 0


# ---- schedules -------------------------------------------------------------------------------


def rates(name, epochs, steps=4, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = loop.Schedule(optimizer, name, epochs, **options)
    result = []
    for epoch in range(epochs):
        for step in range(steps):
            schedule.start(epoch + step / steps)
            result.append(optimizer.param_groups[0]["lr"])
    return result


def torch_rates(make, count):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule, result = make(optimizer), []
    for _ in range(count):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return result


def test_steps_equal_torch():
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [50, 75], 0.1), 100)
    assert rates("steps", 100, steps=1, milestones=(50, 75), gamma=0.1) == pytest.approx(theirs)


def test_cosine_equals_torch():
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40), 40)
    assert rates("cosine", 10) == pytest.approx(theirs, abs=1e-9)


def test_onecycle_follows_torch():
    """torch ends the cycle at the last step, ours at the end of the run, one step of 400 apart."""
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=401), 400
    )
    assert rates("onecycle", 100) == pytest.approx(theirs, abs=7e-4)


def test_plateau_drops_after_ten_epochs_without_progress():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = loop.Schedule(optimizer, "plateau", 30)
    seen = []
    for epoch in range(26):
        schedule.start(epoch)
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.observe(0.5)
    assert (
        seen[:12] == [0.1] * 12
        and seen[12] == pytest.approx(0.01)
        and seen[23] == pytest.approx(0.001)
    )


def test_two_groups_keep_their_ratio():
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0},
        ]
    )
    schedule = loop.Schedule(optimizer, "steps", 4, milestones=(1,), gamma=0.5)
    schedule.start(1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.5]


@pytest.mark.parametrize(
    "make",
    (
        lambda: loop.Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), "cosin", 3),
        lambda: loop.make_optimizer("sdg", [nn.Parameter(torch.zeros(1))], 0.1),
    ),
)
def test_unknown_names_suggest(make):
    with pytest.raises(InputError, match="did you mean"):
        make()


# ---- run folders -----------------------------------------------------------------------------


def finished(root, name, started, **config):
    run = runs.create("x", config, out_dir=root / name)
    run.update(started=started)
    run.save("best.pt", {"epoch": 1})
    return run


def test_find_newest_matches_fields_exactly(tmp_path):
    finished(tmp_path, "cifar100_resnet18", "2024-01-03", dataset="cifar100", arch="resnet18")
    finished(tmp_path, "zz_old", "2024-01-01", dataset="cifar10", arch="resnet18", depth=None)
    finished(tmp_path, "aa_new", "2024-01-02", dataset="cifar10", arch="resnet18")
    finished(tmp_path, "wide", "2024-01-04", dataset="cifar10", arch="wideresnet", depth=40)
    runs.create("x", {"dataset": "cifar10", "arch": "resnet18"}, out_dir=tmp_path / "unfinished")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "config.json").write_text("{not json")
    (tmp_path / "README.md").write_text("")
    found = runs.find_newest(tmp_path, {"dataset": "cifar10", "arch": "resnet18", "depth": None})
    assert found.folder.name == "aa_new"
    assert runs.find_newest(tmp_path, {"arch": "wideresnet", "depth": 40}).folder.name == "wide"


def test_find_newest_without_one_names_the_command(tmp_path):
    runs.create("x", {"dataset": "cifar10"}, out_dir=tmp_path / "unfinished")
    with pytest.raises(
        InputError,
        match=r"no run with dataset=cifar10 in .*\(1 without a best.pt yet\); "
        "train one: python3 x.py",
    ):
        runs.find_newest(tmp_path, {"dataset": "cifar10", "depth": None}, command="python3 x.py")
    with pytest.raises(InputError, match="no run"):
        runs.find_newest(tmp_path / "nowhere", {"dataset": "cifar10"})


def test_a_run_is_never_overwritten(tmp_path):
    runs.create("x", {"a": 1}, out_dir=tmp_path / "r")
    with pytest.raises(InputError, match="holds a run already; add -resume"):
        runs.create("x", {"a": 2}, out_dir=tmp_path / "r")
    assert json.loads((tmp_path / "r" / "config.json").read_text())["a"] == 1


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    folders = {runs.create("mnist5k_small_cnn", {}, root=tmp_path).folder for _ in range(3)}
    assert len(folders) == 3 and all(f.name.startswith("mnist5k_small_cnn_20") for f in folders)


def test_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the run folder"):
        runs.create("x", {}, out_dir=tmp_path / "file" / "run")
    with pytest.raises(InputError, match="cannot make the run folder"):
        runs.create("x", {}, root=tmp_path / "file")


def test_agree_refuses_another_configuration():
    stored = {"lr": 0.1, "device": "cpu", "milestones": [1, 2], "epochs": 3}
    assert runs.agree(
        stored, {"device": "cuda:0", "milestones": (1, 2), "epochs": 5}, ("device", "epochs"), "r"
    ) == {"lr": 0.1, "device": "cuda:0", "milestones": [1, 2], "epochs": 5}
    with pytest.raises(InputError, match="has lr 0.1, now lr 0.2 is asked for"):
        runs.agree(stored, {"lr": 0.2}, ("device",), "r")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = runs.create("x", {}, out_dir=tmp_path)
    run.save("last.pt", {"epoch": 1})

    def full(payload, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        run.save("last.pt", {"epoch": 2})
    assert run.load("last.pt") == {"epoch": 1} and not list(tmp_path.glob(".*"))


def test_what_a_killed_write_left_is_cleared(tmp_path):
    run = runs.create("x", {"a": 1}, out_dir=tmp_path)
    for name in (".best.pt.tmp", ".last.pt.4711.0f3a.tmp", ".best.pto.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with runs.reopen(tmp_path).locked():
        assert {path.name for path in tmp_path.glob(".*")} == {".lock", ".best.pto.tmp"}
    assert runs.Run(tmp_path).config == run.config and not (tmp_path / ".lock").exists()


def test_a_run_of_another_process_of_the_same_moment_is_not_overwritten(tmp_path, monkeypatch):
    runs.create("x", {"a": 1}, out_dir=tmp_path)
    monkeypatch.setattr(runs, "holds_run", lambda folder: False)  # it had looked before
    with pytest.raises(InputError, match="holds a run already; add -resume"):
        runs.create("x", {"a": 2}, out_dir=tmp_path)
    assert runs.Run(tmp_path).config["a"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_two_trainings_of_one_run_are_refused(tmp_path):
    run = runs.create("x", {}, out_dir=tmp_path)
    with run.locked():
        with pytest.raises(InputError, match=f"being trained by process {os.getpid()} on .* since"):
            with runs.reopen(tmp_path).locked():
                pass
        assert (tmp_path / ".lock").exists()  # the second one did not take it away
    with runs.reopen(tmp_path).locked():  # the first has ended
        pass
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    run = runs.create("x", {}, out_dir=tmp_path)
    child = os.fork()
    if not child:
        with run.locked():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == child
    with run.locked():
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "host, pid, taken",
    ((socket.gethostname(), 2**22 + 1, False), (socket.gethostname(), 1, True), ("n7", 5, True)),
)
def test_without_locks_of_the_file_system_the_owner_is_looked_up(
    tmp_path, monkeypatch, host, pid, taken
):
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / ".lock").write_text(json.dumps({"host": host, "pid": pid, "since": "1999"}))
    if taken:
        with pytest.raises(InputError, match=f"process {pid} on {host} since 1999"):
            with lock.locked(tmp_path):
                pass
    else:
        with lock.locked(tmp_path):
            pass
    assert (tmp_path / ".lock").exists() == taken


def test_log_survives_a_half_line_and_rewinds(tmp_path):
    run = runs.create("x", {}, out_dir=tmp_path)
    run.log({"event": "start"})
    for epoch in (1, 2, 3):
        run.log({"epoch": epoch})
    run.log({"event": "end"})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    assert len(run.records()) == 5
    run.rewind(2)
    run.log({"epoch": 3})
    assert run.records() == [{"event": "start"}, {"epoch": 1}, {"epoch": 2}, {"epoch": 3}]


def test_weights_that_execute_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    run = runs.create("x", {}, out_dir=tmp_path)
    torch.save({"trainer": Evil()}, run.last)
    with pytest.raises(InputError, match="cannot read"):
        run.load("last.pt")
