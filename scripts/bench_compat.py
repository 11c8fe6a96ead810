"""Time benchmark.evaluate with ten detectors: ood.compat's against pytorch-ood's with its cache.

    python3 scripts/bench_compat.py               # CIFAR-10, ResNet-18, six OOD sets
    python3 scripts/bench_compat.py -dataset mnist5k -ood letters uniform -arch small_resnet
    python3 scripts/bench_compat.py -record       # writes docs/data/bench_compat.json

Both sides see one network (random weights, least-squares head), the same data sets, the same
transform and the same DataLoader. Their detectors have the same settings and are fitted beforehand;
the fits are timed too. The AUROCs are compared before anything is timed. Rounds alternate and
medians are reported, because machines are noisy. The sides:

  ours                        one call with the list of all ten
  pytorch-ood, best           the same call, cache=True, one bound method for all that read
                              features: the only setting in which its cache finds them again
  pytorch-ood, as documented  the same call, each detector made with `model.features` of its own

Four detectors read logits, three features, three feature maps. -odin adds one that takes gradients,
which costs both sides several passes of its own.

Needs requirements-dev.txt.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

import models
from ood import cli
from ood.compat import detector as ours
from ood.compat.benchmark.base import SetsBenchmark
from ood.data import info, load
from ood.evaluation import measurements

OOD = ("Imagenet_resize", "iSUN", "dtd", "mnist", "tinyimagenet32", "uniform")
AIM = 8  # times as fast as pytorch-ood with its cache
SAME = 2e-3  # largest difference in AUROC of one formula in float32 and float64
# {detector: (largest difference in AUROC that the reason explains, the reason)}
EXPECTED = {"GEN": (0.02, "theirs is the mean over classes, with probabilities of at least 1e-7")}


def read_flags():
    parser = cli.Parser("Time ood.compat's benchmark.evaluate against pytorch-ood's.")
    parser.flag("-dataset", help="ID set", default="cifar10")
    parser.flag("-ood", nargs="+", help="OOD sets", default=list(OOD))
    parser.flag("-arch", help="architecture, random weights", default="resnet18")
    parser.flag("-images", type=int, help="images of each set", default=300)
    parser.flag("-rounds", type=int, help="timed rounds", default=3)
    parser.flag("-batch_size", type=int, help="images per forward pass", default=64)
    parser.flag("-workers", type=int, help="workers of the loader", default=0)
    parser.flag("-odin", action="store_true", help="also ODIN", default=False)
    measurements.add_flag(parser, seconds=True)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    from pytorch_ood import detector as theirs

    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    cli.set_seed(0)
    network = models.build(
        flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size
    )
    network.to(device).eval()
    sets = Sets(flags, facts)
    fit_head(network, DataLoader(sets.train_in, **sets.loader), device)

    made = Detectors(network, flags.odin)
    mine, best, documented = made.ten(ours), made.ten(theirs), made.ten(theirs, documented=True)
    evaluate = lambda side, detectors, **options: side().evaluate(
        detectors, loader_kwargs=sets.loader, device=str(device), **options
    )
    peer = sets.peer()
    works = {
        "ours": lambda: evaluate(sets.mine, mine),
        "pytorch-ood, best": lambda: evaluate(peer, best, cache=True),
        "pytorch-ood, as documented": lambda: evaluate(peer, documented, cache=True),
    }
    fits = {
        "ours, fit": lambda: sets.mine().fit(mine, sets.loader, device),
        "pytorch-ood, fit": lambda: fit_each(best, sets),
    }
    for fit in fits.values():
        fit()
    fit_each(documented, sets)
    agreement = compare(works["ours"](), works["pytorch-ood, best"]())

    medians = measurements.in_turns([*works.values(), *fits.values()], flags.rounds, device)
    seconds = {name: clock for name, (clock, _) in zip((*works, *fits), medians)}
    number = len(mine)
    title = (
        f"{flags.dataset} against {', '.join(flags.ood)}, {flags.arch}, {flags.images} images a "
        f"set, {number} detectors"
    )
    print(f"{title}, {cli.describe_device(device)}, medians of {flags.rounds} rounds")
    rows = []
    for name, value in seconds.items():
        base = seconds["ours, fit" if name.endswith("fit") else "ours"]
        rows.append([name, value, value / base])
        print(f"  {name:<28} {value:8.3f} s   {value / base:6.2f} x ours")
    ratios = [seconds[name] / seconds["ours"] for name in works]
    aim = (
        f"Aim: {AIM} times as fast as pytorch-ood with its cache. Here {ratios[1]:.1f} in its best "
        f"setting, {ratios[2]:.1f} as its documentation writes it."
    )
    print(aim)
    if flags.record:
        write(flags, device, title, aim, rows, agreement)


class Sets:
    """The image sets, and both libraries' benchmark over them."""

    def __init__(self, flags, facts):
        seen = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(facts.mean, facts.std)]
        )
        shape = dict(data_dir=flags.data_dir, size=facts.size, channels=facts.channels)
        read = lambda name, split: load(name, split, **shape, limit=flags.images)
        self.train_in = read(flags.dataset, "train").with_transform(seen)
        self.test_in = read(flags.dataset, "test").with_transform(seen)
        self.test_oods = [
            read(name, "test").as_outliers().with_transform(seen) for name in flags.ood
        ]
        self.ood_names = list(flags.ood)
        self.loader = {"batch_size": flags.batch_size, "num_workers": flags.workers}

    def mine(self) -> SetsBenchmark:
        """A new benchmark, which remembers nothing."""
        benchmark = SetsBenchmark()
        vars(benchmark).update(vars(self))
        return benchmark

    def peer(self):
        """The class of pytorch-ood's benchmark over the same sets."""
        from pytorch_ood.benchmark import Benchmark

        sets = self

        class Peer(Benchmark):
            ood_names = sets.ood_names

            def train_set(self):
                return sets.train_in

            def test_sets(self, known=True, unknown=True):
                return sets.mine().test_sets(known, unknown)

        return Peer


class Detectors:
    """The same detectors of either library."""

    def __init__(self, network: nn.Module, odin: bool):
        self.network, self.odin = network, odin
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc)
        self.features = network.features  # one bound method

    def last_map(self, images):
        return self.network.feature_maps(images)[-1]

    def ten(self, library, documented: bool = False) -> list:
        """Args: documented: a new bound method for each detector, as in its documentation."""
        net, head = self.network, self.head
        features = lambda: net.features if documented else self.features
        weight, bias = net.fc.weight.detach(), net.fc.bias.detach()
        made = [
            library.MaxSoftmax(net),
            library.EnergyBased(net),
            library.MaxLogit(net),
            library.GEN(net),
            library.KNN(features(), k=10),
            library.fDBD(features(), net.fc),
            library.DICE(features(), weight, bias, p=0.7),
            library.ReAct(self.last_map, head),
            library.ASH(self.last_map, head),
            library.SCALE(self.last_map, head),
        ]
        return made + ([library.ODIN(net)] if self.odin else [])


def fit_each(detectors: list, sets: Sets) -> None:
    """Fit detectors of pytorch-ood as its user does, one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for detector in detectors:
            if detector.requires_fit:
                detector.fit(DataLoader(sets.train_in, **sets.loader))


@torch.no_grad()
def fit_head(network, loader: DataLoader, device) -> None:
    """Fit the last layer by least squares, so that every class is predicted."""
    z, labels = zip(*((network.features(x.to(device)), y) for x, y in loader))
    z, labels = torch.cat(z).double(), torch.cat(labels).to(device)
    z = torch.cat([z, z.new_ones(len(z), 1)], 1)
    target = nn.functional.one_hot(labels, len(network.fc.weight)).double() * 10
    ridge = 1e-4 * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=device)
    solution = torch.linalg.solve(z.T @ z + ridge, z.T @ target).T
    network.fc.weight.copy_(solution[:, :-1])
    network.fc.bias.copy_(solution[:, -1])


def compare(mine: list[dict], theirs: list[dict]) -> list[list]:
    """Print the AUROCs of both, averaged over the OOD sets, and the largest difference of a set.

    "differs" says that the difference has no reason in EXPECTED, or is larger than it explains.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row, other in zip(mine, theirs, strict=True):
        assert (row["Dataset"], row["Detector"]) == (other["Dataset"], other["Detector"])
        pair = row["AUROC"], float(other["AUROC"])
        pairs.setdefault(row["Detector"], []).append(pair)
    rows = []
    for name, values in pairs.items():
        largest = max(abs(a - b) for a, b in values)
        bound, reason = EXPECTED.get(name, (0.0, ""))
        remark = "" if largest <= SAME else reason if largest <= bound else f"differs {reason}"
        a, b = (sum(side) / len(values) for side in zip(*values))
        print(f"  AUROC {name:<12} ours {a:.5f}   pytorch-ood {b:.5f}   {largest:.5f} {remark}")
        rows.append([name, a, b, largest, remark.strip()])
    return rows


def write(flags, device, title: str, aim: str, rows: list, agreement: list) -> None:
    options = f"-dataset {flags.dataset} -ood {' '.join(flags.ood)} -arch {flags.arch}"
    options += f" -images {flags.images} -rounds {flags.rounds}{' -odin' if flags.odin else ''}"
    measurements.write(
        "bench_compat",
        load_before=flags.load_before,
        page="benchmarks",
        order=510,
        title=f"benchmark.evaluate against pytorch-ood: {title}",
        command=f"python3 scripts/bench_compat.py {options} -record",
        device=cli.describe_device(device),
        seeds=[0],
        text=[
            "One call of `evaluate` with a list of detectors that were fitted before: four read "
            "logits, three features, three feature maps"
            + (", and ODIN takes gradients. " if flags.odin else ". ")
            + "One network (random weights, least-squares head), the same images, transform and "
            f"loader. One process, {torch.get_num_threads()} threads; medians of {flags.rounds} "
            "alternating rounds. pytorch-ood has cache=True. `best`: one bound method for all "
            "detectors of features, where its cache finds them again. `as documented`: each has a "
            "`model.features` of its own, and the cache, keyed by the object, finds nothing. The "
            "fits are one pass for all here, one pass for each there.",
            aim,
        ],
        tables=[
            {"caption": "Time", "columns": ["run", "seconds", "x ours"], "rows": rows},
            {
                "caption": "The same scores: AUROC of both, averaged over the OOD sets",
                "columns": ["detector", "ours", "pytorch-ood", "largest difference", "remark"],
                "rows": agreement,
            },
        ],
    )


if __name__ == "__main__":
    cli.run(main)
