"""Time one epoch of heatmap-decoder training: ours against a plain form of the released loop.

    python3 scripts/bench_heatmap.py            # CIFAR-10, ResNet-18, 5,000 + 1,000 images
    python3 scripts/bench_heatmap.py -dataset mnist5k -ood letters+patches -arch small_cnn

The plain loop does what the released code does. In every epoch, each image is turned from PIL into
a normalised tensor (an ID image twice: as input and as target), the frozen classifier runs on every
batch, and one process loads the data. Both loops start from the same weights, see the same batches
in the same order with the released pairing and scaling, and must reach the same losses. Steps
alternate between the loops in one process, so that other load on the machine slows both. -record
writes docs/data/bench_heatmap.json.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import models
from ood import cli
from ood.data import Preprocess, auxiliary, info, load
from ood.evaluation import measurements
from ood.methods.heatmap.method import Heatmap
from ood.methods.heatmap.settings import Settings
from ood.methods.heatmap.training import training_batches
from ood.outputs import extract
from ood.training.context import Context
from ood.training.loop import autocast, mix

BATCH = 200
EPOCHS = 150  # in the paper; times are extrapolated to them
ADAM = dict(lr=2e-4, betas=(0.5, 0.999))


def read_flags():
    parser = cli.Parser(
        "Time one epoch of decoder training against a plain form of the released loop."
    )
    parser.flag("-dataset", help="ID set", default="cifar10")
    parser.flag("-ood", help="auxiliary OOD set", default="tinyimagenet32")
    parser.flag("-arch", help="architecture of the classifier, random weights", default="resnet18")
    parser.flag("-id_images", type=int, help="ID training images", default=5000)
    parser.flag("-ood_images", type=int, help="auxiliary OOD images", default=1000)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    measurements.add_flag(parser, seconds=True)
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    shape = dict(size=facts.size, channels=facts.channels)
    cli.set_seed(0)
    network = models.build(
        flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size
    )
    network.to(device).eval()
    preprocess = Preprocess((0.5,) * facts.channels, (0.5,) * facts.channels)
    images = load(flags.dataset, "train", flags.data_dir, **shape)
    chosen = np.random.RandomState(0).permutation(len(images))[: flags.id_images]
    images = images.subset(np.sort(chosen))
    outliers = auxiliary.draw(flags.ood, flags.ood_images, 0, flags.data_dir, **shape)
    context = Context(models, device, flags.data_dir)
    decoder = models.decoder_for(network)
    extract(network, images.limited(BATCH), preprocess, device=device)  # all find warm kernels

    def plain():
        pair = copy.deepcopy(network), copy.deepcopy(decoder).to(device)
        return Plain(*pair, images, outliers, facts.num_classes, device)

    def ours(precision: str):
        settings = Settings(
            flags.dataset,
            arch=flags.arch,
            batch_size=BATCH,
            num_ood=len(outliers),
            pairing="released",
            scaling="released",
            precision=precision,
        )
        pair = copy.deepcopy(network), copy.deepcopy(decoder)
        return Ours(*pair, preprocess, settings, context, images, outliers)

    makers = {"plain": plain, "ours": lambda: ours("fp32"), "ours, bf16": lambda: ours("bf16")}
    loops, setup = {}, {}
    for name, make in makers.items():
        loops[name], setup[name] = measurements.timed(make, device)
        clock, cpu = setup[name]
        cli.log(f"before the first epoch: {name} {clock:.1f} s, {cpu:.1f} CPU-seconds")

    chance = torch.Generator().manual_seed(mix(0, 1))
    order = torch.randperm(len(images) + len(outliers), generator=chance)
    steps = {name: loop.steps(order) for name, loop in loops.items()}
    seconds, losses = {name: [] for name in steps}, {name: [] for name in steps}
    for number in range(-(-len(order) // BATCH)):
        for name in list(steps) if number % 2 else list(steps)[::-1]:
            loss, took = measurements.timed(lambda: next(steps[name]), device)
            seconds[name].append(took)
            losses[name].append(loss)
    seconds = {name: np.array(took) for name, took in seconds.items()}
    difference = same_work(np.array(losses["plain"]), np.array(losses["ours"]))
    report(flags, device, (len(images), len(outliers)), seconds, setup, difference)


def same_work(plain: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """Return the relative differences of the first losses and of the epoch's mean losses.

    In between, Adam amplifies the rounding of two memory layouts. Raises RunError if a difference
    is too large for that.
    """
    first, mean = abs(ours[0] / plain[0] - 1), abs(ours.mean() / plain.mean() - 1)
    cli.log(
        f"losses: first {plain[0]:.2f} and {ours[0]:.2f}, last {plain[-1]:.2f} and {ours[-1]:.2f}, "
        f"mean {plain.mean():.2f} and {ours.mean():.2f}"
    )
    if first > 1e-3 or mean > 0.02:
        raise cli.RunError(
            "the two loops do not do the same work: "
            f"the first loss differs by {first:.1e}, the mean by {mean:.1e}"
        )
    return first, mean


class Ours:
    """The method's own training step."""

    def __init__(self, network, decoder, preprocess, settings, context, images, outliers):
        self.method = Heatmap(network, decoder, preprocess, settings, context)
        self.batches = training_batches(self.method, images, outliers)
        self.optimizer = torch.optim.Adam(self.method.decoder.parameters(), **ADAM)

    def steps(self, order):
        """Yield the loss of each step. `order` is not used: epoch 1 draws the same order."""
        self.method.decoder.train()
        for batch in self.batches.epoch(1):
            with autocast(self.method.device, self.method.settings.precision):
                loss, _ = self.method.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.item()


class Plain:
    """The released loop, written from its description: no cache, one image at a time."""

    def __init__(self, network, decoder, images, outliers, num_classes, device):
        self.network, self.decoder = network, decoder
        self.device, self.num_classes = device, num_classes
        self.known, self.novel = Decoded(images), Decoded(outliers)
        self.low, self.high = 0.0, 0.0
        for x in DataLoader(self.known, BATCH):  # a pass for the minimum and maximum
            z = self.encode(x.to(device))[0][0]  # the first image is taken for the first level
            self.low, self.high = min(self.low, z.min().item()), max(self.high, z.max().item())
        self.prototypes = self.search()

    @torch.no_grad()
    def encode(self, x):
        z = self.network.features(x)
        return z, self.network.fc(z).argmax(1)

    def search(self) -> list[int]:
        """Find the prototypes class by class, one OOD image at a time, with a sort per image."""
        (z, y), (novel, predicted) = (self.encode_all(data) for data in (self.known, self.novel))
        found = []
        for label in range(self.num_classes):
            members = np.flatnonzero(y == label)
            members = members if len(members) else np.arange(len(y))  # the released code fails here
            for row in np.flatnonzero(predicted == label):
                distances = np.linalg.norm(z[members] - novel[row], axis=1)
                found.append(int(members[np.argsort(distances)[0]]))
        return found

    def encode_all(self, data) -> tuple[np.ndarray, np.ndarray]:
        batches = [self.encode(x.to(self.device)) for x in DataLoader(data, BATCH)]
        z, y = map(torch.cat, zip(*batches))
        return z.cpu().numpy(), y.cpu().numpy()

    def steps(self, order):
        optimizer = torch.optim.Adam(self.decoder.parameters(), **ADAM)
        self.decoder.train()
        pairs = Pairs(self.known, self.novel, self.prototypes)
        for x, target in DataLoader(pairs, BATCH, sampler=order.tolist()):
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
    """PIL image -> tensor -> normalised, on every access.

    The images come from memory; the released code also reads OOD images from files.
    """

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
    """Pairs (image, target). An ID image is decoded twice, once for each place."""

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
    sizes: tuple[int, int],
    seconds: dict[str, np.ndarray],
    setup: dict[str, tuple[float, float]],
    difference: tuple[float, float],
) -> None:
    """Print the times, and write the record where it is asked for.

    Args:
        sizes: (ID images, auxiliary images) of an epoch.
        seconds: {loop: (steps, 2)}, clock and CPU time of every step.
        setup: {loop: (clock, CPU)} before the first epoch.
        difference: what `same_work` returned.
    """
    count, names, others = sum(sizes), list(seconds), list(seconds)[1:]
    wall, busy = ({name: float(seconds[name][:, kind].sum()) for name in names} for kind in (0, 1))
    rate = {name: count / wall[name] for name in names}
    whole = {name: (setup[name][0] + EPOCHS * wall[name]) / 60 for name in names}

    def row(title: str, values: dict, digits: int = 1, ratios: dict | None = None) -> list:
        ratios = ratios or values
        return [
            title,
            *(round(values[name], digits) for name in names),
            *(round(ratios["plain"] / ratios[name], 2) for name in others),
        ]

    rows = [
        row("images/s in an epoch", rate, ratios=wall),
        row("seconds per epoch", wall),
        row("CPU-seconds per epoch", busy),
        row("CPU-seconds before the first epoch", {name: setup[name][1] for name in names}),
        row(f"minutes for {EPOCHS} epochs, extrapolated", whole, 0),
    ]
    columns = ["", *names, *(f"plain / {name}" for name in others)]
    known, novel = sizes
    where = f"{cli.describe_device(device)}, torch {torch.__version__}"
    cli.log(f"{flags.arch}, {known} ID + {novel} OOD images, {where}")
    for cells in [columns, *rows]:
        cli.log("  " + f"{cells[0]:<40}" + "".join(f"{cell!s:>20}" for cell in cells[1:]))
    steps = "; ".join(faster(name, seconds["plain"] / seconds[name]) for name in others)
    cli.log(f"  medians over the steps: {steps}")
    if not flags.record:
        return
    text = [
        f"One epoch over {known:,} ID ({flags.dataset}) and {novel:,} auxiliary images "
        f"({flags.ood}), {flags.arch} with random weights, batches of {BATCH}. "
        '"plain" is written from the description of the released loop: the frozen classifier runs '
        "in every epoch, every image is turned from PIL into a tensor on each access (ID images "
        "twice), nothing is cached. All loops took the same steps: same weights, same batches, "
        f"released pairing and scaling; in fp32 our first loss differs by {difference[0]:.0e} of "
        f"itself, the epoch's mean by {difference[1]:.0e}. "
        '"ours, bf16" is ours with `-precision bf16`.',
        "The steps of the three loops alternated in one process while other jobs used the machine, "
        f"so read the ratios, not the seconds. Medians over the steps, against plain: {steps}. In "
        "fp32 the decoder itself is the limit: the classifier takes a little over half of a plain "
        "step, and that half is what is saved.",
    ]
    measurements.write(
        "bench_heatmap",
        load_before=flags.load_before,
        page="benchmarks",
        order=200,
        title="Heatmap decoder: training",
        text=text,
        device=cli.describe_device(device),
        seeds=[0],
        tables=[{"caption": "Decoder training", "columns": columns, "rows": rows}],
        command=f"python3 scripts/bench_heatmap.py -dataset {flags.dataset} -ood {flags.ood} "
        f"-arch {flags.arch} -id_images {known} -ood_images {novel} -data_dir ./datasets",
    )


def faster(name: str, ratios: np.ndarray) -> str:
    """Say how many times faster the steps were; ratios: (steps, 2), by the clock and CPU time."""
    clock, cpu = (np.quantile(ratios[:, kind], (0.5, 0.25, 0.75)) for kind in (0, 1))
    return (
        f"{name}: {clock[0]:.2f} times faster by the clock "
        f"(quartiles {clock[1]:.2f} to {clock[2]:.2f}), "
        f"{cpu[0]:.2f} by CPU time ({cpu[1]:.2f} to {cpu[2]:.2f})"
    )


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
