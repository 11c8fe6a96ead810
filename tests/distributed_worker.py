"""The cases that tests/test_distributed.py runs in one process and in two.

Two processes: torchrun --nproc_per_node 2 distributed_worker.py OUT
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import models
from ood import distributed, losses
from ood.cache import Cache
from ood.cli import RunError
from ood.config import InputError
from ood.data import ArrayImages, Augment, Preprocess
from ood.losses.objective import build
from ood.methods import Context, leaveout
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings as HeatmapSettings
from ood.methods.leaveout.training import train_fold
from ood.methods.vmdls.method import VMDLS
from ood.outputs import extract
from ood.training import loop, runs
from ood.training.batches import MixedBatches

CPU = torch.device("cpu")
STEP = 16  # images of a step: 16 in one process, 2 x 8 in two


def toy_images(count: int, side: int = 8, seed: int = 0) -> ArrayImages:
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 3, side, side)).astype(np.uint8)
    return ArrayImages(pixels, np.arange(count) % 3, name="toy", split="train", num_classes=3)


class Net(nn.Module):
    """A network in float64: only the order of sums may differ, and 1e-10 would be a mistake.

    `unused` gets no gradient.
    """

    def __init__(self, norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.drop, self.fc, self.unused = nn.Dropout(dropout), nn.Linear(6, 3), nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.norm(self.conv(x.double()))).mean((2, 3))))


def training(
    folder: Path,
    *,
    norm=False,
    sync=True,
    dropout=0.0,
    epochs=3,
    resume=False,
    count=53,
    clip=0.5,
    ema=0.9,
    crash_after=None,
):
    """Train with everything at once.

    Augmentation, momentum, a cosine, clipping, a moving average, an uneven last step
    (53 = 3 * 16 + 5), validation on 7 images.
    """
    torch.manual_seed(0)
    network = Net(norm, dropout)
    if sync:
        distributed.synchronise_batchnorm(network, CPU)
    augment, preprocess = Augment("crop_flip", padding=2), Preprocess((0.5,) * 3, (0.5,) * 3)
    size = STEP // distributed.world()
    batches = loop.ImageBatches(
        toy_images(count),
        size,
        transform=lambda p, g: preprocess(augment(p, g)),
        device=CPU,
        seed=5,
    )
    held_out = loop.ImageBatches(
        toy_images(7, seed=1), size, transform=lambda p, g: preprocess(p), device=CPU, shuffle=False
    )
    optimizer = loop.make_optimizer(
        "sgd", network.parameters(), 0.2, momentum=0.9, weight_decay=1e-3
    )
    run = runs.reopen(folder) if resume else runs.create("toy", {"kind": "toy"}, out_dir=folder)

    def objective(batch):
        images, labels = batch
        logits = network(images)
        return F.cross_entropy(logits, labels), {
            "accuracy": (logits.argmax(1) == labels).double().mean()
        }

    def crash(epoch):
        if epoch == crash_after:
            raise KeyboardInterrupt

    try:
        loop.fit(
            objective,
            network,
            batches,
            loop.Plan(
                epochs=epochs,
                optimizer=optimizer,
                schedule=loop.Schedule(optimizer, "cosine", 3),
                select="valid_loss",
                mode="min",
                clip_norm=clip,
                ema=ema,
            ),
            run,
            lambda epoch, metrics: {
                "state_dict": network.state_dict(),
                "epoch": epoch,
                "metrics": metrics,
            },
            loop.Hooks(
                validate=lambda epoch: {
                    f"valid_{k}": v for k, v in loop.measure(network, held_out).items()
                },
                before_epoch=crash,
                say=lambda line: None,
            ),
            resume=resume,
        )
    except KeyboardInterrupt:
        distributed.barrier()
    records = [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in run.records()
    ]
    return {"weights": {k: v.clone() for k, v in network.state_dict().items()}, "records": records}


def with_loss(folder: Path, name: str, count: int):
    """Train small_cnn with an Objective, synchronised BatchNorm and a moving average.

    A loss that needs outliers gets 8 of 20 (8, 8, 4) with the 16 images of a step.
    """
    torch.manual_seed(0)
    network = models.build("small_cnn", 3, in_channels=3, image_size=32, width=4)
    objective = losses.Objective(name, network).double()
    distributed.synchronise_batchnorm(network, CPU)
    augment, preprocess = Augment("crop_flip"), Preprocess((0.5,) * 3, (0.5,) * 3)
    common = dict(transform=lambda p, g: preprocess(augment(p, g)).double(), device=CPU)
    batches = loop.ImageBatches(
        toy_images(count, 32), STEP // distributed.world(), seed=5, **common
    )
    if losses.get(name).outliers == "needed":
        outliers = ArrayImages(toy_images(20, 32, seed=2).images, name="outliers")
        batches = MixedBatches(
            batches, loop.ImageBatches(outliers, 8 // distributed.world(), seed=6, **common)
        )
    optimizer = loop.make_optimizer(
        "sgd", [p for p in objective.parameters() if p.requires_grad], 0.1, momentum=0.9
    )
    run = runs.create("toy", {"kind": "toy"}, out_dir=folder)
    loop.fit(
        lambda batch: objective(*batch),
        network,
        batches,
        loop.Plan(
            epochs=3, optimizer=optimizer, schedule=loop.Schedule(optimizer, "cosine", 3), ema=0.9
        ),
        run,
        lambda epoch, metrics: {"state_dict": network.state_dict()},
        loop.Hooks(state={"objective": objective.own}, say=lambda line: None),
    )
    return {
        "weights": {
            k: v.clone() for k, v in {**network.state_dict(), **objective.own.state_dict()}.items()
        },
        "records": [
            {k: v for k, v in r.items() if k not in ("seconds", "images_per_s")}
            for r in run.records()
        ],
    }


def queues(folder: Path):
    """VOS: the features of two steps, the first 9 of 14 in rank 0; an outlier among them."""
    torch.manual_seed(0)
    loss, _ = build("vos", nn.Linear(4, 3), {"sample_number": 5, "sample_from": 10})
    for step in range(2):
        rows = torch.randn(14, 4, generator=torch.Generator().manual_seed(step))
        mine = (
            {0: slice(0, 9), 1: slice(9, 14)}[distributed.rank()]
            if distributed.world() > 1
            else slice(None)
        )
        y = torch.tensor([0, 1, 0, 0, 0, 2, -1, 1, 0, 0, 0, 1, 2, 2])
        loss(loss.fc(rows[mine]), rows[mine], y[mine])
    return {"queue": loss.queue, "seen": loss.seen}


def disagree(folder: Path):
    """Return what is said when rank 1 resumes from a folder of its own.

    First it holds no last.pt, then the last.pt of another epoch.
    """
    training(folder / "0", epochs=2)
    distributed.barrier()
    mine, said = folder / str(distributed.rank()), []
    if distributed.rank():
        mine.mkdir()
        shutil.copy(folder / "0" / "config.json", mine)
    for epochs in (None, 1):
        if distributed.rank() and epochs:
            payload = runs.Run(folder / "0").load("last.pt")
            payload["trainer"]["epochs"] = epochs
            torch.save(payload, mine / "last.pt")
        try:
            training(mine, resume=True)
            said.append("")
        except RunError as error:
            said.append(str(error))
        distributed.barrier()
    return said


def resumed(folder: Path):
    """Dropout draws from a generator of each process; interrupted after two epochs."""
    straight = training(folder / "straight", dropout=0.5, norm=True, sync=False)
    training(folder / "broken", dropout=0.5, norm=True, sync=False, crash_after=3)
    torch.manual_seed(123)
    return {
        "straight": straight,
        "resumed": training(folder / "broken", dropout=0.5, norm=True, sync=False, resume=True),
    }


def seen(folder: Path, count: int, size: int, **options):
    """The numbers of the images that this process gets in an epoch, step by step."""
    pixels = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    batches = loop.ImageBatches(
        ArrayImages(pixels, np.arange(count)),
        size,
        transform=lambda p, g: p,
        device=CPU,
        seed=1,
        **options,
    )
    steps = [
        labels.tolist()
        for images, labels in batches.epoch(2)
        if torch.equal(images.flatten().long(), labels)
    ]
    return {"steps": steps, "length": len(batches)}


def flip_a_bit(folder: Path):
    for file in folder.rglob("features.npy"):
        with open(file, "r+b") as handle:  # in place: others may have it mapped
            handle.seek(-200, os.SEEK_END)
            byte = handle.read(1)[0]
            handle.seek(-200, os.SEEK_END)
            handle.write(bytes([byte ^ 1]))


def outputs(folder: Path, cached: bool):
    """Features and logits of 70 images in 5 batches, of 10 in one (a process has none then)."""
    torch.manual_seed(0)
    network = models.build("small_cnn", 3, in_channels=3, image_size=32, width=4)
    cache, found = Cache(folder / "cache") if cached else None, {}
    for count in (70, 10):
        for turn in range(2 if cached else 1):
            if turn:  # every process gets sound features after a bit has flipped
                distributed.barrier()  # everyone has read what is there
                distributed.in_turn(lambda: distributed.first() and flip_a_bit(folder))
                distributed.barrier()
            made = extract(
                network,
                toy_images(count, 32),
                Preprocess((0.5,) * 3, (0.5,) * 3),
                batch_size=16,
                cache=cache,
                taps=True,
            )
        found[count] = [
            made.features.clone(),
            made.logits.clone(),
            made.labels,
            *map(torch.clone, made.taps),
        ]
    return found


def heatmap(folder: Path):
    """Train a decoder on digits, then score."""
    torch.manual_seed(0)
    classifier = models.build("small_cnn", 10, in_channels=1, image_size=28, width=4)
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "format": "ood-1",
                "arch": classifier.arch,
                "state_dict": classifier.state_dict(),
                "epoch": 1,
                "metrics": {},
                "preprocess": {},
            },
            folder / "c.pt",
        )
    distributed.barrier()
    settings = HeatmapSettings(
        "mnist5k",
        ood_dataset="letters",
        arch="small_cnn",
        batch_size=40 // distributed.world(),
        num_ood=20,
        n_epochs=2,
        classifier=str(folder / "c.pt"),
    )
    context = Context(models, CPU, out_dir=folder / "run", limit=60)
    run = Heatmap.train(settings, context)
    distributed.barrier()
    digits = ArrayImages(
        np.random.RandomState(0).randint(0, 256, (90, 1, 28, 28)).astype(np.uint8),
        np.arange(90) % 10,
        name="digits",
    )
    method = Heatmap.load(settings, context, run.folder)
    return {
        "records": [r for r in run.records() if "loss" in r],
        "weights": method.decoder.state_dict(),
        "scores": method.score(digits),
    }


def leave_out(folder: Path):
    """One fold on digits: two streams, two forward passes a step, selection on a validation set."""
    settings = leaveout.Settings(
        "mnist5k",
        arch="small_cnn",
        width=4,
        folds=5,
        epochs=2,
        batch_size=24 // distributed.world(),
        validation_dataset="letters",
        validation_images=30,
        milestones=(1,),
    )
    run = train_fold(settings, Context(models, CPU, out_dir=folder / "fold", limit=100))
    return {
        "records": [r for r in run.records() if "valid_auroc" in r and "loss" in r],
        "weights": run.load("last.pt")["state_dict"],
    }


def vmdls(folder: Path):
    """Share out batches of 5 x 4 digits and exchange their embeddings.

    This is float32, so rounding shows.
    """
    settings = VMDLS.Settings(
        id_dataset="mnist5k",
        arch="small_cnn",
        model_args={"width": 4},
        latent_dim=6,
        epochs=2,
        steps=4,
        batch_classes=5,
        sample_count=4,
        optimizer="adam",
        lr=1e-3,
        margins_epoch=1,
        valid_images=40,
    )
    run = VMDLS.train(settings, Context(models, CPU, out_dir=folder / "vmdls", limit=200))
    return {
        "records": [r for r in run.records() if "loss" in r],
        "weights": run.load("last.pt")["state_dict"],
        "means": run.load("last.pt")["class_means"],
        "files": sorted(p.name for p in run.folder.iterdir()),
    }


def talk(folder: Path):
    """Values, rows and errors that cross over."""

    def refuse():
        raise InputError("no such thing")

    try:
        distributed.from_first(refuse)
        said = ""
    except InputError as error:
        said = str(error)
    rank = distributed.rank()
    rows = torch.arange(6).view(3, 2)[: 3 - rank] + 10 * rank
    empty = None if rank == 0 else torch.ones(2, 1, dtype=torch.bool)
    with distributed.solo():
        alone = (distributed.world(), distributed.gathered(rank))
    return {
        "said": said,
        "rows": distributed.gather_rows(rows),
        "of_one": distributed.gather_rows(empty),
        "who": distributed.gathered(rank),
        "first": distributed.from_first(lambda: rank),
        "alone": alone,
        "total": distributed.total(torch.tensor([1.0, rank])),
        "turn": distributed.in_turn(lambda: rank),
    }


CASES = {
    "plain": lambda folder: training(folder),
    "batchnorm": lambda folder: training(folder, norm=True, clip=None, ema=None),
    "outlier_exposure": lambda folder: with_loss(folder, "outlier_exposure", 48),
    "center": lambda folder: with_loss(folder, "center", 53),
    "queues": queues,
    "disagree": disagree,
    "resumed": resumed,
    "talk": talk,
    "heatmap": heatmap,
    "leaveout": leave_out,
    "vmdls": vmdls,
    "outputs": lambda folder: outputs(folder, False),
    "cached": lambda folder: outputs(folder, True),
    "remainder": lambda folder: seen(folder, 33, 8),
    "uneven": lambda folder: seen(folder, 37, 8),
    "few": lambda folder: seen(folder, 3, 8),
    "one": lambda folder: seen(folder, 1, 8, shuffle=False),
    "in_order": lambda folder: seen(folder, 20, 4, shuffle=False),
}


def main(out: Path) -> None:
    distributed.begin()
    torch.save(
        {name: case(out / name) for name, case in CASES.items()},
        out / f"rank{distributed.rank()}.pt",
    )
    distributed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
