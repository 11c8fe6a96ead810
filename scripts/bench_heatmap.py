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

import models  # noqa: E402
from ood import cli, record  # noqa: E402
from ood.data import Preprocess, info, load  # noqa: E402
from ood.methods import Context, auxiliary  # noqa: E402
from ood.methods.heatmap import Heatmap, Settings  # noqa: E402
from ood.outputs import extract  # noqa: E402
from ood.train import mix  # noqa: E402

BATCH = 200
EPOCHS = 150          # of the paper, for the extrapolation
ADAM = dict(lr=2e-4, betas=(0.5, 0.999))


def main() -> None:
    parser = cli.Parser("Time one epoch of decoder training against a plain rendering of the released loop.")
    parser.flag("-dataset", help="ID set", default="cifar10")
    parser.flag("-ood", help="auxiliary OOD set", default="tinyimagenet32")
    parser.flag("-arch", help="architecture of the classifier, random weights", default="resnet18")
    parser.flag("-id_images", type=int, help="ID training images", default=5000)
    parser.flag("-ood_images", type=int, help="auxiliary OOD images", default=1000)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    parser.flag("-no_record", action="store_true", help="print only, do not write docs/data", default=False)
    flags = parser.parse_args()

    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    cli.set_seed(0)
    network = models.build(flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size).to(device).eval()
    preprocess = Preprocess((0.5,) * facts.channels, (0.5,) * facts.channels)
    images = load(flags.dataset, "train", flags.data_dir, size=facts.size, channels=facts.channels)
    images = images.subset(np.sort(np.random.RandomState(0).permutation(len(images))[:flags.id_images]))
    outliers = auxiliary.draw(flags.ood, flags.ood_images, 0, flags.data_dir, size=facts.size, channels=facts.channels)
    settings = Settings(flags.dataset, arch=flags.arch, batch_size=BATCH, num_ood=len(outliers), pairing="released", scaling="released")
    context = Context(models, device, flags.data_dir)
    decoder = models.decoder_for(network)
    extract(network, images.limited(BATCH), preprocess, device=device)                  # both find warm kernels

    theirs, setup_theirs = timed(device, lambda: Plain(copy.deepcopy(network), copy.deepcopy(decoder).to(device), images, outliers, facts.num_classes, device))
    ours, setup_ours = timed(device, lambda: Ours(network, decoder, preprocess, settings, context, images, outliers))
    cli.log(f"before the first epoch: plain {setup_theirs:.1f} s, ours {setup_ours:.1f} s")

    order = torch.randperm(len(images) + len(outliers), generator=torch.Generator().manual_seed(mix(0, 1)))
    steps = {"plain": theirs.steps(order), "ours": ours.steps()}
    seconds, losses = {name: [] for name in steps}, {name: [] for name in steps}
    for number in range(-(-len(order) // BATCH)):
        for name in (list(steps) if number % 2 else list(steps)[::-1]):
            loss, took = timed(device, lambda: next(steps[name]))
            seconds[name].append(took)
            losses[name].append(loss)
    report(flags, device, len(images), len(outliers), {k: np.array(v) for k, v in seconds.items()}, {"plain": setup_theirs, "ours": setup_ours},
           same_work({k: np.array(v) for k, v in losses.items()}))


def same_work(losses: dict) -> tuple[float, float]:
    """Relative differences of the first loss and of the epoch's mean; in between, Adam amplifies the rounding of two memory layouts.

    Raises: RunError when they are too large for that.
    """
    plain, ours = losses["plain"], losses["ours"]
    first, mean = abs(ours[0] / plain[0] - 1), abs(ours.mean() / plain.mean() - 1)
    cli.log(f"losses: first {plain[0]:.2f} and {ours[0]:.2f}, last {plain[-1]:.2f} and {ours[-1]:.2f}, mean {plain.mean():.2f} and {ours.mean():.2f}")
    if first > 1e-3 or mean > 0.02:
        raise cli.RunError(f"the two loops do not do the same work: the first loss differs by {first:.1e}, the mean by {mean:.1e}")
    return first, mean


def timed(device, work):
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


class Ours:
    """The method's own training step."""

    def __init__(self, network, decoder, preprocess, settings, context, images, outliers):
        self.method = Heatmap(network, decoder, preprocess, settings, context)
        self.batches = self.method._batches(images, outliers)
        self.optimizer = torch.optim.Adam(self.method.decoder.parameters(), **ADAM)

    def steps(self):
        self.method.decoder.train()
        for batch in self.batches.epoch(1):
            loss, _ = self.method.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.item()


class Plain:
    """What the released scripts do, written from their description: no cache, one image at a time."""

    def __init__(self, network, decoder, images, outliers, num_classes, device):
        self.network, self.decoder, self.device, self.num_classes = network, decoder, device, num_classes
        self.known, self.novel = Decoded(images), Decoded(outliers)
        self.low, self.high = 0.0, 0.0
        for x in DataLoader(self.known, BATCH):                                        # a pass for minimum and maximum
            z = self.encode(x.to(device))[0][0]                                        # the first image is taken for the first level
            self.low, self.high = min(self.low, z.min().item()), max(self.high, z.max().item())
        self.prototypes = self.search()

    @torch.no_grad()
    def encode(self, x):
        z = self.network.features(x)
        return z, self.network.fc(z).argmax(1)

    def search(self) -> list[int]:
        """Class by class, one OOD image at a time, a whole sort per image; in that order."""
        (z, y), (novel, predicted) = (map(torch.cat, zip(*(self.encode(x.to(self.device)) for x in DataLoader(data, BATCH)))) for data in (self.known, self.novel))
        z, y, novel, predicted = (t.cpu().numpy() for t in (z, y, novel, predicted))
        found = []
        for label in range(self.num_classes):
            members = np.flatnonzero(y == label)
            members = members if len(members) else np.arange(len(y))                   # the released code fails here
            for row in np.flatnonzero(predicted == label):
                found.append(int(members[np.argsort(np.linalg.norm(z[members] - novel[row], axis=1))[0]]))
        return found

    def steps(self, order):
        optimizer = torch.optim.Adam(self.decoder.parameters(), **ADAM)
        self.decoder.train()
        for x, target in DataLoader(Pairs(self.known, self.novel, self.prototypes), BATCH, sampler=order.tolist()):
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
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * channels, (0.5,) * channels)])

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


def report(flags, device, known: int, novel: int, seconds: dict, setup: dict, difference: tuple[float, float]) -> None:
    count = known + novel
    epoch = {name: float(values.sum()) for name, values in seconds.items()}
    ratio = seconds["plain"] / seconds["ours"]
    low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
    whole = {name: setup[name] + EPOCHS * epoch[name] for name in epoch}
    rows = [["images/s in an epoch", *(round(count / epoch[n], 1) for n in ("plain", "ours")), round(epoch["plain"] / epoch["ours"], 2)],
            ["seconds per epoch", *(round(epoch[n], 1) for n in ("plain", "ours")), round(epoch["plain"] / epoch["ours"], 2)],
            ["seconds before the first epoch", *(round(setup[n], 1) for n in ("plain", "ours")), round(setup["plain"] / setup["ours"], 2)],
            [f"minutes for {EPOCHS} epochs (extrapolated)", *(round(whole[n] / 60, 1) for n in ("plain", "ours")), round(whole["plain"] / whole["ours"], 2)]]
    cli.log(f"{flags.arch}, {known} ID + {novel} OOD images, {cli.describe_device(device)}, torch {torch.__version__}")
    for row in rows:
        cli.log(f"  {row[0]:<42} plain {row[1]:>8}   ours {row[2]:>8}   {row[3]:.2f} times faster")
    cli.log(f"  step by step: median {middle:.2f} times faster (quartiles {low:.2f} to {high:.2f}); difference of the first loss {difference[0]:.1e}, of the mean {difference[1]:.1e}")
    if flags.no_record:
        return
    text = [f"One epoch over {known:,} ID ({flags.dataset}) and {novel:,} auxiliary images ({flags.ood}), {flags.arch} with random weights, batches of {BATCH}, fp32. "
            "\"Plain\" is a rendering of the released loop written from its description: the frozen classifier runs in every epoch, every image is "
            "turned from PIL into a tensor on each access (ID images twice), nothing is cached. Both took the same steps: same weights, same batches, released pairing and scaling; "
            f"the first loss differs by {difference[0]:.0e} of itself, the epoch's mean by {difference[1]:.0e}. The steps of the two alternated in one process while other jobs used the machine, so read the ratios, not the seconds: "
            f"per step the median ratio is {middle:.2f} (quartiles {low:.2f} to {high:.2f})."]
    record.write("bench_heatmap", page="benchmarks", order=200, title="Heatmap decoder: training", text=text, device=cli.describe_device(device), seeds=[0],
                 tables=[{"caption": "Decoder training", "columns": ["", "plain", "ours", "plain / ours"], "rows": rows}],
                 command=f"python3 scripts/bench_heatmap.py -dataset {flags.dataset} -ood {flags.ood} -arch {flags.arch} -id_images {known} -ood_images {novel} -data_dir ./datasets")


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
