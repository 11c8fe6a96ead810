"""Times one epoch of heatmap-decoder training, ours against a plain rendering of the released loop, in one process.

    python3 scripts/bench_heatmap.py                                     # CIFAR-10, Tiny ImageNet-32, ResNet-18, 5,000 + 1,000 images
    python3 scripts/bench_heatmap.py -dataset mnist5k -ood letters+patches -arch small_cnn -id_images 1000 -ood_images 200

The plain loop does what the released code does: in every epoch each image is turned from PIL into a normalised tensor (an ID image
twice, once as input and once as target), the frozen classifier runs on every batch, one process loads the data. Both start from the
same weights, see the same batches in the same order with the released pairing and scaling, and must reach the same losses. Steps
alternate between the two, so that other load on the machine slows both. Writes docs/data/bench_heatmap.json.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import models
from ood import cli
from ood.data import (
    Preprocess,
    auxiliary,
    info,
    load,
)
from ood.evaluation import measurements
from ood.methods import Context
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings
from ood.methods.heatmap.training import training_batches
from ood.outputs import extract
from ood.training.loop import autocast, mix

BATCH = 200
EPOCHS = 150  # of the paper, for the extrapolation
ADAM = dict(lr=2e-4, betas=(0.5, 0.999))


def main() -> None:
    parser = cli.Parser(
        "Time one epoch of decoder training against a plain rendering of the released loop."
    )
    parser.flag("-dataset", help="ID set", default="cifar10")
    parser.flag("-ood", help="auxiliary OOD set", default="tinyimagenet32")
    parser.flag("-arch", help="architecture of the classifier, random weights", default="resnet18")
    parser.flag("-id_images", type=int, help="ID training images", default=5000)
    parser.flag("-ood_images", type=int, help="auxiliary OOD images", default=1000)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    parser.flag(
        "-no_record", action="store_true", help="print only, do not write docs/data", default=False
    )
    flags = parser.parse_args()

    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    cli.set_seed(0)
    network = (
        models.build(
            flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size
        )
        .to(device)
        .eval()
    )
    preprocess = Preprocess((0.5,) * facts.channels, (0.5,) * facts.channels)
    images = load(flags.dataset, "train", flags.data_dir, size=facts.size, channels=facts.channels)
    images = images.subset(
        np.sort(np.random.RandomState(0).permutation(len(images))[: flags.id_images])
    )
    outliers = auxiliary.draw(
        flags.ood, flags.ood_images, 0, flags.data_dir, size=facts.size, channels=facts.channels
    )
    shared = dict(
        arch=flags.arch,
        batch_size=BATCH,
        num_ood=len(outliers),
        pairing="released",
        scaling="released",
    )
    context = Context(models, device, flags.data_dir)
    decoder = models.decoder_for(network)
    extract(network, images.limited(BATCH), preprocess, device=device)  # all find warm kernels

    def ours(precision: str):
        return Ours(
            copy.deepcopy(network),
            copy.deepcopy(decoder),
            preprocess,
            Settings(flags.dataset, precision=precision, **shared),
            context,
            images,
            outliers,
        )

    makers = {
        "plain": lambda: Plain(
            copy.deepcopy(network),
            copy.deepcopy(decoder).to(device),
            images,
            outliers,
            facts.num_classes,
            device,
        ),
        "ours": lambda: ours("fp32"),
        "ours, bf16": lambda: ours("bf16"),
    }
    loops, setup = {}, {}
    for name, make in makers.items():
        loops[name], setup[name] = timed(device, make)
        cli.log(
            f"before the first epoch: {name} {setup[name][0]:.1f} s, {setup[name][1]:.1f} CPU-seconds"
        )

    order = torch.randperm(
        len(images) + len(outliers), generator=torch.Generator().manual_seed(mix(0, 1))
    )
    steps = {name: loop.steps(order) for name, loop in loops.items()}
    seconds, losses = {name: [] for name in steps}, {name: [] for name in steps}
    for number in range(-(-len(order) // BATCH)):
        for name in list(steps) if number % 2 else list(steps)[::-1]:
            loss, took = timed(device, lambda: next(steps[name]))
            seconds[name].append(took)
            losses[name].append(loss)
    report(
        flags,
        device,
        len(images),
        len(outliers),
        {k: np.array(v) for k, v in seconds.items()},
        setup,
        same_work({k: np.array(v) for k, v in losses.items()}),
    )


def same_work(losses: dict) -> tuple[float, float]:
    """Relative differences of the first loss and of the epoch's mean; in between, Adam amplifies the rounding of two memory layouts.

    Raises: RunError when they are too large for that.
    """
    plain, ours = losses["plain"], losses["ours"]
    first, mean = abs(ours[0] / plain[0] - 1), abs(ours.mean() / plain.mean() - 1)
    cli.log(
        f"losses: first {plain[0]:.2f} and {ours[0]:.2f}, last {plain[-1]:.2f} and {ours[-1]:.2f}, mean {plain.mean():.2f} and {ours.mean():.2f}"
    )
    if first > 1e-3 or mean > 0.02:
        raise cli.RunError(
            f"the two loops do not do the same work: the first loss differs by {first:.1e}, the mean by {mean:.1e}"
        )
    return first, mean


def timed(device, work):
    """(result, (seconds, CPU-seconds of this process))."""
    began, busy = time.perf_counter(), time.process_time()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, (time.perf_counter() - began, time.process_time() - busy)


class Ours:
    """The method's own training step."""

    def __init__(self, network, decoder, preprocess, settings, context, images, outliers):
        self.method = Heatmap(network, decoder, preprocess, settings, context)
        self.batches = training_batches(self.method, images, outliers)
        self.optimizer = torch.optim.Adam(self.method.decoder.parameters(), **ADAM)

    def steps(self, order):
        """`order` is what epoch 1 draws by itself."""
        self.method.decoder.train()
        for batch in self.batches.epoch(1):
            with autocast(self.method.device, self.method.settings.precision):
                loss, _ = self.method.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.item()


class Plain:
    """What the released scripts do, written from their description: no cache, one image at a time."""

    def __init__(self, network, decoder, images, outliers, num_classes, device):
        self.network, self.decoder, self.device, self.num_classes = (
            network,
            decoder,
            device,
            num_classes,
        )
        self.known, self.novel = Decoded(images), Decoded(outliers)
        self.low, self.high = 0.0, 0.0
        for x in DataLoader(self.known, BATCH):  # a pass for minimum and maximum
            z = self.encode(x.to(device))[0][0]  # the first image is taken for the first level
            self.low, self.high = min(self.low, z.min().item()), max(self.high, z.max().item())
        self.prototypes = self.search()

    @torch.no_grad()
    def encode(self, x):
        z = self.network.features(x)
        return z, self.network.fc(z).argmax(1)

    def search(self) -> list[int]:
        """Class by class, one OOD image at a time, a whole sort per image; in that order."""
        (z, y), (novel, predicted) = (
            map(torch.cat, zip(*(self.encode(x.to(self.device)) for x in DataLoader(data, BATCH))))
            for data in (self.known, self.novel)
        )
        z, y, novel, predicted = (t.cpu().numpy() for t in (z, y, novel, predicted))
        found = []
        for label in range(self.num_classes):
            members = np.flatnonzero(y == label)
            members = members if len(members) else np.arange(len(y))  # the released code fails here
            for row in np.flatnonzero(predicted == label):
                found.append(
                    int(members[np.argsort(np.linalg.norm(z[members] - novel[row], axis=1))[0]])
                )
        return found

    def steps(self, order):
        optimizer = torch.optim.Adam(self.decoder.parameters(), **ADAM)
        self.decoder.train()
        for x, target in DataLoader(
            Pairs(self.known, self.novel, self.prototypes), BATCH, sampler=order.tolist()
        ):
            x, target = x.to(self.device), target.to(self.device)
            z, predicted = self.encode(x)
            z[0] = (z[0] - self.low) / (self.high - self.low)
            reconstruction = self.decoder(z, predicted) + x
            loss = ((1 + 5 * target.abs()) * (reconstruction - target) ** 2).sum((1, 2, 3)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


class Decoded(Dataset):
    """PIL image -> tensor -> normalised, on every access. From memory; the released code reads OOD images from files on top."""

    def __init__(self, images):
        from torchvision import transforms

        channels = images.shape[0]
        self.array = images.images.transpose(0, 2, 3, 1)
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5,) * channels, (0.5,) * channels)]
        )

    def __len__(self):
        return len(self.array)

    def __getitem__(self, row):
        pixels = np.ascontiguousarray(self.array[row])
        return self.transform(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


class Pairs(Dataset):
    """(image, target): an ID image is decoded once for each."""

    def __init__(self, known, novel, prototypes):
        self.known, self.novel, self.prototypes = known, novel, prototypes

    def __len__(self):
        return len(self.known) + len(self.novel)

    def __getitem__(self, row):
        if row < len(self.known):
            return self.known[row], self.known[row]
        return self.novel[row - len(self.known)], self.known[self.prototypes[row - len(self.known)]]


def report(
    flags,
    device,
    known: int,
    novel: int,
    seconds: dict,
    setup: dict,
    difference: tuple[float, float],
) -> None:
    count, names, others = known + novel, list(seconds), list(seconds)[1:]
    wall, busy = ({name: float(seconds[name][:, kind].sum()) for name in names} for kind in (0, 1))
    whole = {name: (setup[name][0] + EPOCHS * wall[name]) / 60 for name in names}

    def row(title: str, values: dict, digits: int = 1) -> list:
        return [
            title,
            *(round(values[n], digits) for n in names),
            *(round(values["plain"] / values[n], 2) for n in others),
        ]

    rows = [
        [
            "images/s in an epoch",
            *(round(count / wall[n], 1) for n in names),
            *(round(wall["plain"] / wall[n], 2) for n in others),
        ],
        row("seconds per epoch", wall),
        row("CPU-seconds per epoch", busy),
        row("CPU-seconds before the first epoch", {n: setup[n][1] for n in names}),
        row(f"minutes for {EPOCHS} epochs, extrapolated", whole, 0),
    ]
    columns = ["", *names, *(f"plain / {n}" for n in others)]
    cli.log(
        f"{flags.arch}, {known} ID + {novel} OOD images, {cli.describe_device(device)}, torch {torch.__version__}"
    )
    for cells in [columns, *rows]:
        cli.log("  " + f"{cells[0]:<40}" + "".join(f"{cell!s:>20}" for cell in cells[1:]))
    quartiles = {
        n: [
            np.quantile(seconds["plain"][:, kind] / seconds[n][:, kind], (0.5, 0.25, 0.75))
            for kind in (0, 1)
        ]
        for n in others
    }
    steps = "; ".join(
        f"{n}: {a[0]:.2f} times faster by the clock (quartiles {a[1]:.2f} to {a[2]:.2f}), {b[0]:.2f} by CPU time ({b[1]:.2f} to {b[2]:.2f})"
        for n, (a, b) in quartiles.items()
    )
    cli.log(f"  medians over the steps: {steps}")
    if flags.no_record:
        return
    text = [
        f"One epoch over {known:,} ID ({flags.dataset}) and {novel:,} auxiliary images ({flags.ood}), {flags.arch} with random weights, batches of {BATCH}. "
        '"plain" is a rendering of the released loop written from its description: the frozen classifier runs in every epoch, every image is '
        "turned from PIL into a tensor on each access (ID images twice), nothing is cached. All took the same steps: same weights, same batches, released pairing and scaling; in fp32 "
        f'our first loss differs by {difference[0]:.0e} of itself, the epoch\'s mean by {difference[1]:.0e}. "ours, bf16" is ours with `-precision bf16`.',
        f"The steps of the three alternated in one process while other jobs used the machine, so read the ratios, not the seconds. Medians over the steps, against plain: {steps}. "
        "In fp32 the decoder itself is the limit: of a plain step the classifier takes a little over half, and that is what is saved.",
    ]
    measurements.write(
        "bench_heatmap",
        page="benchmarks",
        order=200,
        title="Heatmap decoder: training",
        text=text,
        device=cli.describe_device(device),
        seeds=[0],
        tables=[{"caption": "Decoder training", "columns": columns, "rows": rows}],
        command=f"python3 scripts/bench_heatmap.py -dataset {flags.dataset} -ood {flags.ood} -arch {flags.arch} -id_images {known} -ood_images {novel} -data_dir ./datasets",
    )


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
