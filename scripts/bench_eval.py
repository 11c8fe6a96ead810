"""Times our evaluation and pytorch-ood's on the same network, images and detectors, in one process, and prints the ratios.

    python3 scripts/bench_eval.py                                           # embedded MNIST digits, small_resnet, 24 detectors
    python3 scripts/bench_eval.py -dataset cifar10 -ood iSUN -arch densenet -images 2000 -rounds 3 -record

The 24 are those that both libraries have and that need no passes of their own. Both sides fit on the same training images and score
the same test images, fit included; AUROCs are compared before anything is timed. Rounds alternate and medians are reported,
because machines are noisy:
  bare forward            the network over the training, ID test and OOD test images, nothing else
  ours                    benchmark.evaluate, no cache from earlier runs
  pytorch-ood, cache on   Benchmark.evaluate with its in-memory cache in its best setting: one bound method for all detectors
  pytorch-ood, cache off  the same without (only with -uncached)
  pytorch-ood, by hand    what its user can do at best: extract once, then call fit_features/predict_features on the arrays
Needs requirements-dev.txt.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

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
# name -> (largest difference in AUROC that the reason explains, the reason); any other detector may differ by SAME
EXPECTED = {
    "temp_scaling": (0.005, "theirs stops before the optimum"),
    "openmax": (0.005, "theirs depends on the batch"),
    "mds": (0.005, "theirs adds 1e-6 to the summed covariance"),
    "rmds": (0.005, "theirs adds 1e-6 to the summed covariance"),
    "pnml": (0.03, "theirs inverts in float32"),
    "vim:dim=32": (0.005, "theirs decomposes in float32"),
}
SAME = 1e-3
AIM_PEER, AIM_BARE = (
    10,
    1.25,
)  # times as fast as pytorch-ood with its cache; at most so many times the bare forward passes


def main() -> None:
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
    parser.flag(
        "-record",
        action="store_true",
        help="write docs/data/bench_eval_<dataset>.json",
        default=False,
    )
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
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
    preprocess = Preprocess(facts.mean, facts.std)
    common = dict(data_dir=flags.data_dir, size=facts.size, channels=facts.channels)
    train = load(flags.dataset, "train", **common, limit=flags.train_images or flags.images)
    common["limit"] = flags.images
    test, ood = load(flags.dataset, "test", **common), load(flags.ood, "test", **common)
    fit_head(network, preprocess, train, flags.batch_size, device)
    names = OURS + (("odin",) if flags.odin else ())

    def ours():
        made = {n: detectors.create(detectors.parse(n)[0], **detectors.parse(n)[1]) for n in names}
        passes = Passes(network, preprocess, device=device, batch_size=flags.batch_size)
        return scoring.evaluate(
            passes,
            train,
            test,
            [scoring.TestSet("ood", ood)],
            made,
        )

    def bare():
        for images in (train, test, ood):
            size = (
                min(flags.batch_size, max(4, CPU_PIXELS // math.prod(images.shape[1:])))
                if device.type == "cpu"
                else flags.batch_size
            )  # as `extract`
            with torch.inference_mode():
                for batch in images.batches(size):
                    network(
                        preprocess(batch.to(device)).contiguous(memory_format=torch.channels_last)
                    )
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    peer = Peer(network, preprocess, train, test, ood, flags.batch_size, device, flags.odin)
    agreement = compare(ours().rows, peer.run(cached=True))
    timed = {
        "bare forward": bare,
        "ours": ours,
        "pytorch-ood, cache on": lambda: peer.run(True),
        "pytorch-ood, by hand": peer.by_hand,
    }
    if flags.uncached:
        timed["pytorch-ood, cache off"] = lambda: peer.run(False)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(flags.rounds):
        for name, work in timed.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    title = f"{flags.dataset} / {flags.ood}, {flags.arch}, {len(train)} + {len(test)} + {len(ood)} images, {len(names)} detectors"
    print(
        f"{title}, {cli.describe_device(device)}, torch {torch.__version__}, medians of {flags.rounds} rounds"
    )
    rows = [
        [name, value, value / medians["bare forward"], value / medians["ours"]]
        for name, value in medians.items()
    ]
    for name, *values in rows:
        print("  {:<24} {:8.3f} s   {:6.2f} x bare forward   {:6.2f} x ours".format(name, *values))
    aims = (
        f"Aims: {AIM_PEER} times as fast as pytorch-ood with its cache (here {medians['pytorch-ood, cache on'] / medians['ours']:.2f}), at most {AIM_BARE} times "
        f"the bare forward passes (here {medians['ours'] / medians['bare forward']:.2f})."
    )
    print(aims)
    if flags.record:
        options = f" -dataset {flags.dataset} -ood {flags.ood} -arch {flags.arch} -images {flags.images}{f' -train_images {flags.train_images}' if flags.train_images else ''}"
        options += f" -rounds {flags.rounds}{' -uncached' if flags.uncached else ''}"
        measurements.write(
            f"bench_eval_{flags.dataset}",
            page="benchmarks",
            order=500 if flags.dataset == "mnist5k" else 501,
            title=f"Evaluation against pytorch-ood: {title}",
            command=f"python3 scripts/bench_eval.py{options} -record",
            device=cli.describe_device(device),
            seeds=[0],
            text=[
                "24 detectors that both libraries have, same network (random weights, least-squares head) and images, fitting included, one process, "
                f"{torch.get_num_threads()} threads; medians of {flags.rounds} alternating rounds. `cache on`: pytorch-ood's in-memory cache with one bound "
                "method for all detectors, its best setting; its fits and its detectors of feature maps are not cached. `by hand`: features extracted once "
                "and passed to its array-level calls."
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
    """Least-squares last layer over the random features, so that every class is predicted (SHE, KL matching need that)."""
    with torch.no_grad():
        z = torch.cat(
            [network.features(preprocess(b.to(device))) for b in train.batches(batch_size)]
        ).double()
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        target = (
            torch.nn.functional.one_hot(
                torch.as_tensor(train.labels, device=device), len(network.fc.weight)
            ).double()
            * 10
        )
        solution = torch.linalg.solve(
            z.T @ z + 1e-7 * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=device),
            z.T @ target,
        ).T
        network.fc.weight.copy_(solution[:, :-1])
        network.fc.bias.copy_(solution[:, -1])


class Peer:
    """pytorch-ood's benchmark interface over the same images, fed from memory so that no decoding is timed."""

    def __init__(self, network, preprocess, train, test, ood, batch_size, device, odin):
        from pytorch_ood.benchmark import Benchmark

        def tensors(images, labels):
            pixels = torch.cat([preprocess(b) for b in images.batches(batch_size)])
            return TensorDataset(pixels, torch.as_tensor(np.asarray(labels)))

        train_set, test_set, ood_set = (
            tensors(train, train.labels),
            tensors(test, test.labels),
            tensors(ood, [-1] * len(ood)),
        )

        class Sets(Benchmark):
            ood_names = ["ood"]

            def train_set(self):
                return train_set

            def test_sets(self, known=True, unknown=True):
                return (
                    [torch.utils.data.ConcatDataset([test_set, ood_set])]
                    if known and unknown
                    else [test_set if known else ood_set]
                )

        self.benchmark, self.train, self.network, self.odin, self.std = (
            Sets,
            train_set,
            network,
            odin,
            preprocess.std,
        )
        self.test = torch.utils.data.ConcatDataset([test_set, ood_set])
        self.batch_size, self.device = batch_size, device

    def detectors(self) -> dict:
        """Its detectors under our names, with our settings. One bound method, so that its cache can hit."""
        from pytorch_ood import detector as d

        net, encoder = self.network, self.network.features
        weight, bias, fc = net.fc.weight.detach(), net.fc.bias.detach(), net.fc

        def backbone(x):  # pooled features as 1 x 1 maps: the published form of ReAct, ASH, SCALE
            return encoder(x)[:, :, None, None]

        head = torch.nn.Sequential(torch.nn.Flatten(), fc)
        made = dict(
            zip(
                OURS,
                (
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
                ),
                strict=True,
            )
        )
        if self.odin:
            made["odin"] = d.ODIN(net, eps=0.0014, norm_std=self.std)
        return {name: detector.to(self.device) for name, detector in made.items()}

    def run(self, cached: bool) -> dict[str, dict]:
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
        """One pass per set, then its array-level calls and one metric per detector."""
        from pytorch_ood.metrics import OODMetrics

        sets = {}
        for name, data in (("train", self.train), ("test", self.test)):
            parts, labels = [], []
            with torch.no_grad():
                for x, y in DataLoader(data, batch_size=self.batch_size):
                    parts.append(self.network.features(x.to(self.device)))
                    labels.append(y)
                z = torch.cat(parts)
                sets[name] = {
                    "logits": self.network.fc(z),
                    "features": z,
                    "feature_maps": z[:, :, None, None],
                    "labels": torch.cat(labels),
                }
        for detector in self.detectors().values():
            kind = next(
                (
                    k
                    for k in ("logits", "features", "feature_maps")
                    if hasattr(detector, f"predict_{k}")
                ),
                None,
            )
            if kind is None:
                continue
            if detector.requires_fit:
                getattr(detector, f"fit_{kind}")(sets["train"][kind], sets["train"]["labels"])
            with torch.no_grad():
                OODMetrics().update(
                    getattr(detector, f"predict_{kind}")(sets["test"][kind]), sets["test"]["labels"]
                ).compute()


def compare(ours: list[dict], theirs: dict[str, dict]) -> list[list]:
    """Print both AUROCs; a difference that is not explained, or larger than its reason explains, says that the two do not do the same work."""
    rows = []
    for row in ours:
        other = float(theirs[row["detector"]]["AUROC"])
        difference, (bound, reason) = (
            abs(row["auroc"] - other),
            EXPECTED.get(row["detector"], (0.0, "")),
        )
        note = (
            ""
            if difference < SAME
            else reason
            if difference <= bound
            else f"differs: {reason}"
            if reason
            else "differs"
        )
        print(
            f"  AUROC {row['detector'][:40]:<40} ours {row['auroc']:.5f}   pytorch-ood {other:.5f}   {note}"
        )
        rows.append([row["detector"], row["auroc"], other, note])
    return rows


if __name__ == "__main__":
    main()
