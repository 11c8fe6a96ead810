"""Time five folds trained or scored together against one after the other.

    python3 scripts/bench_leaveout.py                  # the small networks and DenseNet-BC-100
    python3 scripts/bench_leaveout.py -archs small_cnn -rounds 9 -device cuda:0

"Together" stacks the weights of the folds and makes one vectorised pass. Both sides see the same
random images, and their losses and scores are compared before anything is timed. Rounds alternate
and medians are reported: seconds on the clock, and seconds of CPU time, which other programs on
the machine disturb less. -record writes docs/data/bench_leaveout.json, which
`python3 scripts/build_docs.py` puts into docs/benchmarks.md.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import torch

import models
from ood import cli
from ood.evaluation import measurements
from ood.methods.leaveout.formulas import margin_loss, pass_over, stacked

FOLDS, OUTPUTS = 5, 8
ARCHS = {
    "small_cnn": dict(width=16),
    "small_densenet": {},
    "small_wideresnet": {},
    "small_resnet": {},
    "densenet": {},
}
NAMED = {"small_cnn": "small_cnn, width 16", "densenet": "DenseNet-BC-100"}
RATE = 0.05


def read_flags():
    parser = cli.Parser("Time five folds together against one after the other.")
    parser.flag(
        "-archs",
        nargs="+",
        choices=tuple(ARCHS),
        metavar="NAME",
        help="networks",
        default=list(ARCHS),
    )
    parser.flag(
        "-batch_size",
        type=int,
        help="images per step and stream (a tenth for densenet)",
        default=100,
    )
    parser.flag("-steps", type=int, help="training steps per round", default=4)
    parser.flag("-rounds", type=int, help="timed rounds", default=5)
    parser.flag("-threads", type=int, help="threads of torch on the CPU", default=1)
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    measurements.add_flag(parser, seconds=True)
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    device = cli.choose_device(flags.device)
    torch.set_num_threads(flags.threads)
    tables, gains = {"train": [], "score": []}, {"train": [], "score": []}
    for arch in flags.archs:
        size, batch, steps = (1, 28, 28), flags.batch_size, flags.steps
        if arch == "densenet":
            size, batch, steps = (3, 32, 32), max(2, flags.batch_size // 10), 1
        for what, make in (("train", trainers), ("score", scorers)):
            sides = make(arch, size, batch, steps, device)
            (one, one_cpu), (all_, all_cpu) = measurements.in_turns(sides, flags.rounds, device)
            images = FOLDS * batch * steps * (2 if what == "train" else 1)
            rates = round(images / one, 1), round(images / all_, 1)
            ratios = round(one / all_, 2), round(one_cpu / all_cpu, 2)
            tables[what].append([NAMED.get(arch, arch), batch, *rates, *ratios])
            gains[what].append(one / all_)
            cli.log(
                f"{what} {arch}: one after the other {one:.3f} s ({one_cpu:.3f} CPU), "
                f"together {all_:.3f} s ({all_cpu:.3f} CPU)"
            )
    if flags.record:
        write(flags, device, tables, gains)


def write(flags, device, tables: dict, gains: dict) -> None:
    columns = [
        "network",
        "batch",
        "one after the other, images/s",
        "together, images/s",
        "gain by the clock",
        "gain by CPU time",
    ]
    verdict = {
        what: "together is faster"
        if statistics.median(ratios) > 1.05
        else "one after the other is not slower"
        for what, ratios in gains.items()
    }
    measurements.write(
        "bench_leaveout",
        load_before=flags.load_before,
        page="benchmarks",
        order=300,
        title="Leave-out classifiers: five folds together or one after the other",
        text=[
            "`together` stacks the weights of the five networks and runs one vectorised pass "
            "(`torch.func.stack_module_state`, `torch.vmap`). An image counts once per fold (and "
            "stream). A gain above 1 is in favour of `together`. Both sides were compared first: "
            "the losses of the first step agree to 1e-4, the scores to 1e-6.",
            "On this machine, by the median over the networks: training, "
            f"{verdict['train']}; scoring, {verdict['score']}. So training goes fold by fold, and "
            'scoring does so unless the config says `"together": true` (`test.py -together`). Not '
            "run here: a GPU, where the many small kernels of five separate networks may change "
            "the answer; and two processes side by side (`train_all.py -devices cpu cpu`), which "
            "says nothing on a busy machine.",
            f"{flags.threads} thread(s) on a machine with {os.cpu_count()} CPU cores that other "
            f"programs used at the same time (load average {os.getloadavg()[0]:.1f}); medians of "
            f"{flags.rounds} alternating rounds.",
        ],
        tables=[
            {
                "caption": "Training: margin loss, two forward passes, backward pass, SGD step",
                "columns": columns,
                "rows": tables["train"],
            },
            {
                "caption": "Scoring: forward, backward to the image, forward (T = 1000)",
                "columns": columns,
                "rows": tables["score"],
            },
        ],
        command=" ".join(["python3 scripts/bench_leaveout.py", *sys.argv[1:]]),
        device=cli.describe_device(device),
    )


def networks(arch: str, size: tuple, device) -> list:
    """Return one network per fold, each from a seed of its own."""
    shape = dict(in_channels=size[0], image_size=size[1])
    made = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        made.append(models.build(arch, OUTPUTS, **shape, **ARCHS[arch]).to(device))
    return made


def trainers(arch: str, size: tuple, batch: int, steps: int, device):
    """Return two functions, (one after the other, together), that take the same training steps.

    Both return the losses, (steps, F).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (steps, FOLDS, batch, *size)
    inside, outside = (torch.rand(shape, generator=generator).to(device) for _ in range(2))
    labels = torch.randint(OUTPUTS, (steps, FOLDS, batch), generator=generator).to(device)

    apart = networks(arch, size, device)
    optimizers = [torch.optim.SGD(n.parameters(), RATE, 0.9, weight_decay=5e-4) for n in apart]

    def one_after_the_other():
        losses = torch.zeros(steps, FOLDS)
        for fold, (network, optimizer) in enumerate(zip(apart, optimizers)):
            for step in range(steps):
                known, novel = network(inside[step, fold]), network(outside[step, fold])
                loss, _ = margin_loss(known, labels[step, fold], novel)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[step, fold] = loss.detach()
        return losses

    joined = networks(arch, size, device)
    weights, buffers = torch.func.stack_module_state(joined)
    optimizer = torch.optim.SGD(weights.values(), RATE, 0.9, weight_decay=5e-4)
    base = copy.deepcopy(joined[0])

    def fold_loss(weights_, buffers_, x, y, z):
        def forward(images):
            return torch.func.functional_call(base, (weights_, buffers_), (images,))

        return margin_loss(forward(x), y, forward(z))[0]

    all_losses = torch.vmap(fold_loss, randomness="different")

    def together():
        losses = torch.zeros(steps, FOLDS)
        for step in range(steps):
            loss = all_losses(weights, buffers, inside[step], labels[step], outside[step])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses[step] = loss.detach()
        return losses

    agree(arch, one_after_the_other()[0], together()[0], 1e-4)  # later steps amplify rounding
    return one_after_the_other, together


def scorers(arch: str, size: tuple, batch: int, steps: int, device):
    """Return two functions, (one after the other, together), that score the same images.

    Both return the confidences, (steps, F, B).
    """
    images = torch.rand(batch, *size, generator=torch.Generator().manual_seed(1)).to(device)
    made = [settled(n, images).eval().requires_grad_(False) for n in networks(arch, size, device)]
    options = dict(temperature=1000, magnitude=0.002, std=(0.5,) * size[0])
    joined = stacked(made)

    def one_pass_each():
        return torch.stack([pass_over(n, images, **options)[0] for n in made])

    def one_after_the_other():
        return torch.stack([one_pass_each() for _ in range(steps)])

    def together():
        per_fold = images.expand(FOLDS, *images.shape)
        return torch.stack([pass_over(joined, per_fold, **options)[0] for _ in range(steps)])

    agree(arch, one_after_the_other(), together(), 1e-6)
    return one_after_the_other, together


def settled(network, images: torch.Tensor):
    """Set the running averages of a network to those of a batch.

    Without them, an untrained DenseNet has logits near 1e5, and the two sides would differ by
    rounding alone.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    return network


def agree(arch: str, one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    """Raise RunError if the results of the two sides differ by more than `tolerance`."""
    gap = (one - other).abs().max().item()
    if gap > tolerance:
        raise cli.RunError(
            f"{arch}: together and one after the other differ by {gap:.2g}; "
            "timings would compare different work"
        )


if __name__ == "__main__":
    cli.run(main)
