"""Time our training loop against two plain ones, on CIFAR-10 stored as JPEG files.

    python3 scripts/bench_train.py -data_dir ./datasets   # 5 rounds of 2 steps of 64 images
    python3 scripts/bench_train.py -archs small_cnn -batch_size 32 -rounds 2
    python3 scripts/bench_train.py -device cuda:0 -batch_size 256 -steps 20 -peak 989

The last one adds the share of the chip's peak (dense bf16 TFLOP/s). The loops:

  plain      as the heatmap repository trains: one process loads the data, each image goes from PIL
             through crop, flip, ToTensor and Normalize, float32; the images are decoded already, as
             torchvision's CIFAR10 class has them
  reference  as torchvision's reference script: ImageFolder, a DataLoader with two workers that
             decode the JPEG files, crop, flip, PILToTensor, float, Normalize
  ours       ood.training.loop on ood.data: decoded once, cropped and flipped as uint8 batches,
             channels-last, the masks of dropout from models.dropout (the other loops: PyTorch's);
             compiled: with torch.compile

Each loop is a process of its own that waits while another one works. A round is a few steps of
each, in alternating order, so that other load on the machine hits all of them. `+ allocator`: the
same loop with the settings of ood.cli.keep_freed_memory, which our scripts make and a user's own
loop would not make. CPU seconds per image (all threads and workers) do not depend on other load.
The arithmetic of a step, forward and backward, is counted by torch.utils.flop_counter. Writes
docs/data/bench_train.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads


# name: (kind, allocator, precision, compiled)
LOOPS = {
    "plain": ("plain", False, "fp32", False),
    "plain + allocator": ("plain", True, "fp32", False),
    "reference": ("reference", False, "fp32", False),
    "reference + allocator": ("reference", True, "fp32", False),
    "ours fp32": ("ours", True, "fp32", False),
    "ours bf16": ("ours", True, "bf16", False),
    "ours bf16 compiled": ("ours", True, "bf16", True),
}
NETWORKS = {"wideresnet": "WideResNet-40-2", "resnet18": "ResNet-18"}
COLUMNS = [
    "loop",
    "images/s",
    "times plain",
    "CPU ms per image",
    "times plain (CPU)",
    "loading, % of a step",
    "page faults per image",
    "peak memory, GiB",
    "TFLOP/s",
]
SGD = dict(lr=0.1, momentum=0.9, weight_decay=5e-4)
WORKERS = 2


def read_flags():
    from ood import cli
    from ood.config import InputError
    from ood.evaluation import measurements

    parser = cli.Parser("Time our training loop against two plain ones.")
    parser.flag(
        "-archs", nargs="+", metavar="NAME", help="networks", default=["wideresnet", "resnet18"]
    )
    parser.flag(
        "-loops",
        nargs="+",
        metavar="NAME",
        help=f"some of: {', '.join(LOOPS)}",
        default=list(LOOPS),
    )
    parser.flag("-batch_size", type=int, help="images per step", default=64)
    parser.flag("-steps", type=int, help="steps per loop and round", default=2)
    parser.flag("-rounds", type=int, help="rounds, after one that warms up", default=5)
    parser.flag("-device", help="cpu, cuda:0, ...", default="cpu")
    parser.flag(
        "-peak",
        type=float,
        metavar="TFLOPS",
        help="of the chip, dense bf16: adds the share of it that a loop reaches; "
        "default: not shown",
    )
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    measurements.add_flag(parser, seconds=True)
    flags = parser.parse_args()
    for name in flags.loops:
        if name not in LOOPS:
            raise InputError(f"-loops {name} is unknown; allowed: {', '.join(LOOPS)}")
    return flags


def main() -> None:
    from ood import cli
    from ood.data import load
    from ood.evaluation import measurements

    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    device = cli.choose_device(flags.device)
    load("cifar10", "train", flags.data_dir)  # there, and decoded, before any loop begins
    tables = []
    for arch in flags.archs:
        rows = table_rows(measure(arch, flags), flags.peak)
        caption = f"{NETWORKS.get(arch, arch)}, medians of {flags.rounds} rounds"
        caption += f" of {flags.steps} steps of {flags.batch_size} images"
        columns = COLUMNS + ["% of the peak"] * bool(flags.peak)
        tables.append({"caption": caption, "columns": columns, "rows": rows})
        cli.log(caption)
        for row in rows:
            cli.log(
                f"  {row[0]:<22} {row[1]:7.1f} images/s ({row[2]:.2f}x)   "
                f"{row[3]:7.2f} CPU ms per image ({row[4]:.2f}x)   loading {row[5]:.2f} %   "
                f"{row[6]:.0f} page faults per image   {row[7]:.2f} GiB   {row[8]:.3f} TFLOP/s"
                + (f" ({row[9]:.1f} % of the peak)" if flags.peak else "")
            )
    if flags.record:
        write(flags, device, tables)


def measure(arch: str, flags) -> dict[str, dict[str, float]]:
    """Run the rounds. Returns {loop: {what a child measures: its median}}."""
    import numpy as np

    loops = {name: Child(name, arch, flags) for name in flags.loops}
    found = {name: [] for name in loops}
    for number in range(flags.rounds + 1):
        for name in list(loops) if number % 2 else list(loops)[::-1]:
            measured = loops[name].go()
            if number:  # round 0 warms up
                found[name].append(measured)
    for loop in loops.values():
        loop.end()
    return {
        name: {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        for name, rounds in found.items()
    }


def table_rows(medians: dict[str, dict[str, float]], peak: float | None) -> list[list]:
    """One row for each loop, as COLUMNS says; the ratios are to the first loop."""
    rows, first = [], next(iter(medians.values()))
    for name, median in medians.items():
        tflops = median["gflop_per_image"] * median["images_per_s"] / 1e3
        row = [
            name,
            median["images_per_s"],
            median["images_per_s"] / first["images_per_s"],
            1000 * median["cpu_s_per_image"],
            first["cpu_s_per_image"] / median["cpu_s_per_image"],
            100 * median["loading"],
            median["faults_per_image"],
            median["peak_gib"],
            tflops,
        ]
        rows.append([*row, 100 * tflops / peak] if peak else row)
    return rows


def write(flags, device, tables: list[dict]) -> None:
    from ood import cli
    from ood.evaluation import measurements

    on_cpu = device.type == "cpu"
    loops, method = (" ".join(part.split()) for part in __doc__.split("\n\n")[3:5])
    text = [
        f"{loops}. {method.split(' Writes')[0]}",
        "Read the ratios: the seconds depend on what else the machine does. Loading is the time "
        "that the step waits for its batch. The two workers of the reference loop take their time "
        "from the same two cores, which only the CPU time shows, and they read ahead while the "
        "other loops run, which flatters that loop. bf16 is autocast: weights, BatchNorm "
        "statistics and the loss stay float32. Aim: 2 times the plain loop, loading under 5 % of "
        "a step; on a GPU 10 times." + (" Not run here: a GPU." if on_cpu else ""),
    ]
    options = f" -batch_size {flags.batch_size} -steps {flags.steps} -rounds {flags.rounds}"
    if not on_cpu:
        options += f" -device {device}" + (f" -peak {flags.peak:g}" if flags.peak else "")
    measurements.write(
        "bench_train" + ("" if on_cpu else "_gpu"),
        load_before=flags.load_before,
        page="benchmarks",
        order=710 + (not on_cpu),
        tables=tables,
        text=text,
        seeds=[0],
        title="Training loop against plain loops" + ("" if on_cpu else ", on a GPU"),
        device=f"{cli.describe_device(device)}, {len(os.sched_getaffinity(0))} cores",
        command=f"python3 scripts/bench_train.py{options} -data_dir ./datasets",
    )


class Child:
    """A loop in a process of its own. It works when told, and waits otherwise."""

    def __init__(self, name: str, arch: str, flags):
        size, steps = str(flags.batch_size), str(flags.steps)
        words = ["-child", name, arch, size, steps, flags.data_dir, flags.device]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            from ood.cli import RunError

            raise RunError("a loop ended before it answered; its message is above")
        return json.loads(answer)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ---- in a child


def child(name: str, arch: str, batch_size: int, steps: int, data_dir: str, device: str) -> None:
    kind, allocator, precision, compiled = LOOPS[name]
    if allocator:
        from ood.cli import keep_freed_memory

        keep_freed_memory()
    import torch

    import models
    import models.wideresnet

    torch.manual_seed(0)
    if kind != "ours":
        models.wideresnet.drop = torch.nn.functional.dropout
    network = models.build(arch, 10, in_channels=3, image_size=32).to(device).train()
    flop = 1e-9 * flop_per_image(network, batch_size, device)
    if compiled:
        from ood.training import loop

        loop.compiled(network, torch.device(device))
    optimizer = torch.optim.SGD(network.parameters(), **SGD)
    run = {"plain": Plain, "reference": Reference, "ours": Ours}[kind](
        network, optimizer, batch_size, steps, Path(data_dir), precision, torch.device(device)
    )
    for _ in sys.stdin:  # a line is the word to go
        cpu, faults, began = cpu_seconds(), page_faults(), time.perf_counter()
        waited, loss = run.go()
        if device != "cpu":
            torch.cuda.synchronize(device)
        took, images = time.perf_counter() - began, steps * batch_size
        if not 0 < loss < 20:
            raise RuntimeError(f"{name}: the loss is {loss}")
        measured = {
            "images_per_s": images / took,
            "cpu_s_per_image": (cpu_seconds() - cpu) / images,
            "loading": waited / took,
            "faults_per_image": (page_faults() - faults) / images,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "gflop_per_image": flop,
        }
        print(json.dumps(measured), flush=True)


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def flop_per_image(network, batch_size: int, device: str) -> float:
    """Count the floating-point operations of forward and backward, per image.

    Works on a copy, so the network's gradients and running statistics stay as they are.
    """
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network)(torch.zeros(batch_size, 3, 32, 32, device=device)).sum().backward()
    return counter.get_total_flops() / batch_size


def cpu_seconds() -> float:
    """Return the CPU-seconds of this process and of its workers."""
    total, ticks = sum(os.times()[:2]), os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == os.getpid():
            total += (int(words[11]) + int(words[12])) / ticks
    return total


class Waiting:
    """An iterator that sums up how long its user waits for it."""

    def __init__(self, batches):
        self.batches, self.seconds = iter(batches), 0.0

    def __iter__(self):
        return self

    def __next__(self):
        began = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.perf_counter() - began


class Loop:
    """The usual training loop, over a DataLoader that never ends."""

    def __init__(self, network, optimizer, batch_size, steps, data_dir, precision, device):
        self.network, self.optimizer, self.steps, self.device = network, optimizer, steps, device
        self.batches = Waiting(self.endless(self.loader(batch_size, data_dir)))

    def endless(self, loader):
        while True:
            yield from loader

    def go(self) -> tuple[float, float]:
        import torch.nn.functional as F

        before = self.batches.seconds
        for _ in range(self.steps):
            images, labels = (part.to(self.device) for part in next(self.batches))
            loss = F.cross_entropy(self.network(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            value = loss.item()
        return self.batches.seconds - before, value


class Plain(Loop):
    def loader(self, batch_size, data_dir):
        import torch
        from PIL import Image
        from torchvision import transforms as T

        from ood.data import load

        images = load("cifar10", "train", data_dir)
        array, labels = images.images.transpose(0, 2, 3, 1), images.labels.tolist()
        transform = T.Compose(
            [
                T.RandomCrop(32, padding=4),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

        class Decoded(torch.utils.data.Dataset):
            def __len__(self):
                return len(labels)

            def __getitem__(self, row):
                return transform(Image.fromarray(array[row].copy())), labels[row]

        return torch.utils.data.DataLoader(Decoded(), batch_size, shuffle=True, drop_last=True)


class Reference(Loop):
    def loader(self, batch_size, data_dir):
        import torch
        from torchvision import datasets
        from torchvision.transforms import v2 as T

        transform = T.Compose(
            [
                T.RandomCrop(32, padding=4),
                T.RandomHorizontalFlip(),
                T.PILToTensor(),
                T.ToDtype(torch.float32, scale=True),
                T.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )
        return torch.utils.data.DataLoader(
            datasets.ImageFolder(data_dir / "cifar10" / "train", transform),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=WORKERS,
            persistent_workers=True,
        )


class Ours:
    """The training loop itself (ood.training.loop._train_epoch), on epochs of a few steps."""

    def __init__(self, network, optimizer, batch_size, steps, data_dir, precision, device):
        import torch
        import torch.nn.functional as F

        from ood.data import Augment, Preprocess, load
        from ood.training import loop

        torch.backends.cudnn.benchmark = device.type == "cuda"  # as train_classifier does
        preprocess, augment = Preprocess((0.5,) * 3, (0.5,) * 3), Augment("crop_flip")
        network.to(memory_format=torch.channels_last)
        batches = loop.ImageBatches(
            load("cifar10", "train", data_dir),
            batch_size,
            device=device,
            seed=0,
            transform=lambda p, g: preprocess(augment(p, g)).contiguous(
                memory_format=torch.channels_last
            ),
        )
        waiting, schedule, ours = (
            Waiting(self.endless(batches)),
            loop.Schedule(optimizer, "constant", 1),
            self,
        )

        class Few:
            def __len__(self):
                return steps

            def epoch(self, number):
                return (next(waiting) for _ in range(steps))

        def objective(batch):
            logits = network(batch[0])
            return F.cross_entropy(logits, batch[1]), {
                "accuracy": (logits.argmax(1) == batch[1]).float().mean()
            }

        self.waiting, self.number = waiting, 0
        self.epoch = lambda: loop._train_epoch(
            objective,
            network,
            Few(),
            ours.number,
            loop.Plan(1, optimizer, schedule, precision=precision),
            None,
        )

    def endless(self, batches):
        number = 0
        while True:
            number += 1
            yield from batches.epoch(number)

    def go(self) -> tuple[float, float]:
        before, self.number = self.waiting.seconds, self.number + 1
        means, _ = self.epoch()
        return self.waiting.seconds - before, means["loss"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["-child"]:
        name, arch, size, steps, folder, device = sys.argv[2:]
        child(name, arch, int(size), int(steps), folder, device)
    else:
        from ood import cli

        cli.run(main)
