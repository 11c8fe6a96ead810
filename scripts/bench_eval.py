"""Time our evaluation and pytorch-ood's on the same network, images and detectors.

    python3 scripts/bench_eval.py                     # embedded MNIST digits, small_resnet
    python3 scripts/bench_eval.py -dataset cifar10 -ood iSUN -arch densenet -images 2000 -record

The 24 detectors are those that both libraries have and that need no passes of their own. Both
sides fit on the same training images and score the same test images; the fit is timed too. The
AUROCs are compared before anything is timed. Rounds alternate and medians are reported, because
machines are noisy. The sides:

  bare forward            the network over training, ID test and OOD test images, nothing else
  ours                    scoring.evaluate, without a cache from earlier runs
  pytorch-ood, cache on   Benchmark.evaluate with its in-memory cache in its best setting: one
                          bound method for all detectors
  pytorch-ood, cache off  the same without the cache (only with -uncached)
  pytorch-ood, by hand    the best its user can do: extract once, then call fit_features and
                          predict_features on the arrays

Needs requirements-dev.txt.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import models
from ood import cli, detectors
from ood.data import Preprocess, info, load
from ood.evaluation import measurements, scoring
from ood.evaluation.passes import Passes
from ood.outputs import CPU_PIXELS

OURS = (
    "msp",
    "maxlogit",
    "energy",
    "entropy",
    "temp_scaling",
    "gen:top=10",
    "klm",
    "openmax",
    "mds",
    "rmds",
    "gmm:reg=0.01",
    "knn",
    "nnguide",
    "fdbd",
    "nci:alpha=0.001",
    "pnml",
    "she",
    "dice",
    "vim:dim=32",
    "lts",
    "react",
    "ash:percentile=65",
    "scale:percentile=65",
    "vra:lower=1,upper=99,below=clip,per_feature=true",
)
# {name: (largest difference in AUROC that the reason explains, the reason)}. Any other detector may
# differ by less than SAME.
EXPECTED = {
    "temp_scaling": (0.005, "theirs stops before the optimum"),
    "openmax": (0.005, "theirs depends on the batch"),
    "mds": (0.005, "theirs adds 1e-6 to the summed covariance"),
    "rmds": (0.005, "theirs adds 1e-6 to the summed covariance"),
    "pnml": (0.03, "theirs inverts in float32"),
    "vim:dim=32": (0.005, "theirs decomposes in float32"),
}
SAME = 1e-3
AIM_PEER = 10  # times as fast as pytorch-ood with its cache
AIM_BARE = 1.25  # times the bare forward passes, at most


def read_flags():
    parser = cli.Parser("Time our evaluation against pytorch-ood's.")
    parser.flag("-dataset", help="ID set", default="mnist5k")
    parser.flag("-ood", help="OOD set", default="letters")
    parser.flag(
        "-arch", help="architecture, random weights, least-squares head", default="small_resnet"
    )
    parser.flag(
        "-images",
        type=int,
        help="images of the training set, of the ID test set and of the OOD set, each",
        default=1000,
    )
    parser.flag("-train_images", type=int, help="images of the training set; default: as -images")
    parser.flag("-rounds", type=int, help="timed rounds", default=5)
    parser.flag("-batch_size", type=int, help="images per forward pass", default=128)
    parser.flag(
        "-odin",
        action="store_true",
        help="also ODIN, which needs a backward and a second forward pass",
        default=False,
    )
    parser.flag(
        "-uncached",
        action="store_true",
        help="also time pytorch-ood without its cache",
        default=False,
    )
    measurements.add_flag(parser, seconds=True)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    flags.load_before = measurements.require_quiet(flags)
    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    cli.set_seed(0)
    network = models.build(
        flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size
    )
    network.to(device).eval()
    preprocess = Preprocess(facts.mean, facts.std)
    shape = dict(data_dir=flags.data_dir, size=facts.size, channels=facts.channels)
    train = load(flags.dataset, "train", **shape, limit=flags.train_images or flags.images)
    test = load(flags.dataset, "test", **shape, limit=flags.images)
    ood = load(flags.ood, "test", **shape, limit=flags.images)
    fit_head(network, preprocess, train, flags.batch_size, device)
    names = OURS + (("odin",) if flags.odin else ())

    def ours():
        made = {n: detectors.create(detectors.parse(n)[0], **detectors.parse(n)[1]) for n in names}
        passes = Passes(network, preprocess, device=device, batch_size=flags.batch_size)
        return scoring.evaluate(passes, train, test, [scoring.TestSet("ood", ood)], made)

    def bare():
        for images in (train, test, ood):
            size = flags.batch_size
            if device.type == "cpu":  # the batches that `extract` makes
                size = min(size, max(4, CPU_PIXELS // math.prod(images.shape[1:])))
            with torch.inference_mode():
                for batch in images.batches(size):
                    pixels = preprocess(batch.to(device))
                    network(pixels.contiguous(memory_format=torch.channels_last))

    peer = Peer(network, preprocess, train, test, ood, flags.batch_size, device, flags.odin)
    agreement = compare(ours().rows, peer.run(cached=True))
    works = {
        "bare forward": bare,
        "ours": ours,
        "pytorch-ood, cache on": lambda: peer.run(True),
        "pytorch-ood, by hand": peer.by_hand,
    }
    if flags.uncached:
        works["pytorch-ood, cache off"] = lambda: peer.run(False)
    medians = measurements.in_turns(list(works.values()), flags.rounds, device)
    seconds = {name: clock for name, (clock, _) in zip(works, medians)}

    images = f"{len(train)} + {len(test)} + {len(ood)} images"
    title = f"{flags.dataset} / {flags.ood}, {flags.arch}, {images}, {len(names)} detectors"
    where = f"{cli.describe_device(device)}, torch {torch.__version__}"
    print(f"{title}, {where}, medians of {flags.rounds} rounds")
    rows = [
        [name, value, value / seconds["bare forward"], value / seconds["ours"]]
        for name, value in seconds.items()
    ]
    for name, *values in rows:
        print("  {:<24} {:8.3f} s   {:6.2f} x bare forward   {:6.2f} x ours".format(name, *values))
    to_peer = seconds["pytorch-ood, cache on"] / seconds["ours"]
    to_bare = seconds["ours"] / seconds["bare forward"]
    aims = (
        f"Aims: {AIM_PEER} times as fast as pytorch-ood with its cache (here {to_peer:.2f}), "
        f"at most {AIM_BARE} times the bare forward passes (here {to_bare:.2f})."
    )
    print(aims)
    if flags.record:
        write(flags, device, title, aims, rows, agreement)


def write(flags, device, title: str, aims: str, rows: list, agreement: list) -> None:
    options = f"-dataset {flags.dataset} -ood {flags.ood} -arch {flags.arch}"
    options += f" -images {flags.images}"
    if flags.train_images:
        options += f" -train_images {flags.train_images}"
    options += f" -rounds {flags.rounds}{' -uncached' if flags.uncached else ''}"
    measurements.write(
        f"bench_eval_{flags.dataset}",
        load_before=flags.load_before,
        page="benchmarks",
        order=500 if flags.dataset == "mnist5k" else 501,
        title=f"Evaluation against pytorch-ood: {title}",
        command=f"python3 scripts/bench_eval.py {options} -record",
        device=cli.describe_device(device),
        seeds=[0],
        text=[
            "24 detectors that both libraries have. Both use the same network (random weights, "
            "least-squares head) and the same images; fitting is included. One process, "
            f"{torch.get_num_threads()} threads; medians of {flags.rounds} alternating rounds. "
            "`cache on`: pytorch-ood's in-memory cache in its best setting, with one bound method "
            "for all detectors; its fits and its detectors of feature maps are not cached. "
            "`by hand`: features are extracted once and passed to its array-level calls."
            + (" Not run here: a GPU." if device.type == "cpu" else ""),
            aims,
        ],
        tables=[
            {
                "caption": "Time",
                "columns": ["run", "seconds", "x bare forward", "x ours"],
                "rows": rows,
            },
            {
                "caption": "The same scores: AUROC of both",
                "columns": ["detector", "ours", "pytorch-ood", "remark"],
                "rows": agreement,
            },
        ],
    )


def fit_head(network, preprocess, train, batch_size: int, device) -> None:
    """Fit the last layer by least squares, so that every class is predicted.

    SHE and KL matching need that. The features are those of the random network.
    """
    with torch.no_grad():
        batches = (preprocess(batch.to(device)) for batch in train.batches(batch_size))
        z = torch.cat([network.features(batch) for batch in batches]).double()
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        labels = torch.as_tensor(train.labels, device=device)
        target = torch.nn.functional.one_hot(labels, len(network.fc.weight)).double() * 10
        ridge = 1e-7 * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=device)
        solution = torch.linalg.solve(z.T @ z + ridge, z.T @ target).T
        network.fc.weight.copy_(solution[:, :-1])
        network.fc.bias.copy_(solution[:, -1])


class Peer:
    """pytorch-ood's benchmark over the same images, from memory so that no decoding is timed."""

    def __init__(self, network, preprocess, train, test, ood, batch_size, device, odin):
        from pytorch_ood.benchmark import Benchmark

        def tensors(images, labels):
            pixels = torch.cat([preprocess(batch) for batch in images.batches(batch_size)])
            return TensorDataset(pixels, torch.as_tensor(np.asarray(labels)))

        train_set = tensors(train, train.labels)
        test_set = tensors(test, test.labels)
        ood_set = tensors(ood, [-1] * len(ood))
        both = torch.utils.data.ConcatDataset([test_set, ood_set])

        class Sets(Benchmark):
            ood_names = ["ood"]

            def train_set(self):
                return train_set

            def test_sets(self, known=True, unknown=True):
                return [both] if known and unknown else [test_set if known else ood_set]

        self.benchmark, self.train, self.test = Sets, train_set, both
        self.network, self.odin, self.std = network, odin, preprocess.std
        self.batch_size, self.device = batch_size, device

    def detectors(self) -> dict:
        """Return its detectors under our names, with our settings.

        One bound method serves all of them, so that its cache can hit.
        """
        from pytorch_ood import detector as d

        net, encoder = self.network, self.network.features
        weight, bias, fc = net.fc.weight.detach(), net.fc.bias.detach(), net.fc

        def backbone(x):  # pooled features as 1 x 1 maps: the published form of ReAct, ASH, SCALE
            return encoder(x)[:, :, None, None]

        head = torch.nn.Sequential(torch.nn.Flatten(), fc)
        theirs = (  # in the order of OURS
            d.MaxSoftmax(net),
            d.MaxLogit(net),
            d.EnergyBased(net),
            d.Entropy(net),
            d.TemperatureScaling(net),
            d.GEN(net, M=10),
            d.KLMatching(net),
            d.OpenMax(net),
            d.Mahalanobis(encoder),
            d.RMD(encoder),
            d.GMM(encoder, reg=0.01),
            d.KNN(encoder),
            d.NNGuide(encoder, fc),
            d.fDBD(encoder, fc),
            d.NCI(encoder, fc, alpha=0.001),
            d.PNML(encoder, fc),
            d.SHE(encoder, fc),
            d.DICE(encoder, weight, bias, p=0.9),
            d.ViM(encoder, 32, weight, bias),
            d.LTS(encoder, fc),
            d.ReAct(backbone, head),
            d.ASH(backbone, head, percentile=0.65),
            d.SCALE(backbone, head, percentile=0.65),
            d.VRA(backbone, head, 0.01, 0.99),
        )
        made = dict(zip(OURS, theirs, strict=True))
        if self.odin:
            made["odin"] = d.ODIN(net, eps=0.0014, norm_std=self.std)
        return {name: detector.to(self.device) for name, detector in made.items()}

    def run(self, cached: bool) -> dict[str, dict]:
        """Fit and evaluate through its benchmark. Returns {our name: its metrics}."""
        made, loader = self.detectors(), DataLoader(self.train, batch_size=self.batch_size)
        with torch.no_grad():
            for detector in made.values():
                if detector.requires_fit:
                    with torch.enable_grad():  # its temperature scaling differentiates
                        detector.fit(loader)
            found = self.benchmark().evaluate(
                list(made.values()),
                loader_kwargs={"batch_size": self.batch_size},
                device=self.device,
                cache=cached,
            )
        return dict(zip(made, found))

    def by_hand(self) -> None:
        """Make one pass per set, then its array-level calls and one metric per detector."""
        from pytorch_ood.metrics import OODMetrics

        train, test = self.arrays(self.train), self.arrays(self.test)
        for detector in self.detectors().values():
            kinds = ("logits", "features", "feature_maps")
            kind = next((k for k in kinds if hasattr(detector, f"predict_{k}")), None)
            if kind is None:
                continue
            if detector.requires_fit:
                getattr(detector, f"fit_{kind}")(train[kind], train["labels"])
            with torch.no_grad():
                scores = getattr(detector, f"predict_{kind}")(test[kind])
                OODMetrics().update(scores, test["labels"]).compute()

    def arrays(self, data) -> dict:
        """Return what its array-level calls take, from one pass over a set."""
        features, labels = [], []
        with torch.no_grad():
            for x, y in DataLoader(data, batch_size=self.batch_size):
                features.append(self.network.features(x.to(self.device)))
                labels.append(y)
            z = torch.cat(features)
            return {
                "logits": self.network.fc(z),
                "features": z,
                "feature_maps": z[:, :, None, None],
                "labels": torch.cat(labels),
            }


def compare(ours: list[dict], theirs: dict[str, dict]) -> list[list]:
    """Print both AUROCs, with a remark where they differ; returns [name, ours, theirs, remark].

    The remark "differs" says that the two sides do not do the same work: the difference has no
    reason in EXPECTED, or is larger than its reason explains.
    """
    rows = []
    for row in ours:
        name, auroc = row["detector"], row["auroc"]
        other = float(theirs[name]["AUROC"])
        bound, reason = EXPECTED.get(name, (0.0, ""))
        difference = abs(auroc - other)
        if difference < SAME:
            remark = ""
        elif difference <= bound:
            remark = reason
        else:
            remark = f"differs: {reason}" if reason else "differs"
        print(f"  AUROC {name[:40]:<40} ours {auroc:.5f}   pytorch-ood {other:.5f}   {remark}")
        rows.append([name, auroc, other, remark])
    return rows


if __name__ == "__main__":
    cli.run(main)
