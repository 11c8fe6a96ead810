"""Times our evaluation and pytorch-ood's on the same network, images and detectors, in one process, and prints the ratios.

    python3 scripts/bench_eval.py                                           # embedded MNIST digits, small_resnet
    python3 scripts/bench_eval.py -dataset cifar10 -ood iSUN -arch densenet -images 2000 -rounds 3

Both sides fit on the same training images and score the same test images; scores are compared before anything is timed. Rounds
alternate (bare forward, ours, theirs cached, theirs uncached) and medians are reported, because machines are noisy.
Needs requirements-dev.txt.
"""
from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import models  # noqa: E402
from ood import benchmark, cli, detectors  # noqa: E402
from ood.data import Preprocess, info, load  # noqa: E402

OURS = ("msp", "maxlogit", "energy", "react", "dice:percentile=90", "dice:percentile=70")


def main() -> None:
    parser = cli.Parser("Time our evaluation against pytorch-ood's.")
    parser.flag("-dataset", help="ID set", default="mnist5k")
    parser.flag("-ood", help="OOD set", default="letters")
    parser.flag("-arch", help="architecture, random weights", default="small_resnet")
    parser.flag("-images", type=int, help="images of the training set, of the ID test set and of the OOD set, each", default=1000)
    parser.flag("-rounds", type=int, help="timed rounds", default=5)
    parser.flag("-batch_size", type=int, help="images per forward pass", default=128)
    parser.flag("-odin", action="store_true", help="also ODIN, which needs a backward and a second forward pass", default=False)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    flags = parser.parse_args()

    device, facts = cli.choose_device(flags.device), info(flags.dataset)
    cli.set_seed(0)
    network = models.build(flags.arch, facts.num_classes, in_channels=facts.channels, image_size=facts.size).to(device).eval()
    preprocess = Preprocess(facts.mean, facts.std)
    common = dict(data_dir=flags.data_dir, size=facts.size, channels=facts.channels, limit=flags.images)
    train, test, ood = load(flags.dataset, "train", **common), load(flags.dataset, "test", **common), load(flags.ood, "test", **common)
    names = OURS + (("odin",) if flags.odin else ())

    def ours():
        made = {n: detectors.create(detectors.parse(n)[0], **detectors.parse(n)[1]) for n in names}
        return benchmark.evaluate(network, train, test, [benchmark.TestSet("ood", ood)], made, preprocess, device=device, batch_size=flags.batch_size)

    def bare():
        for images in (train, test, ood):
            with torch.inference_mode():
                for batch in images.batches(flags.batch_size):
                    network(preprocess(batch.to(device)).contiguous(memory_format=torch.channels_last))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    peer = Peer(network, preprocess, train, test, ood, flags.batch_size, device, flags.odin)
    compare(ours().rows, peer.run(cached=True))
    timed = {"bare forward": bare, "ours": ours, "pytorch-ood, cache on": lambda: peer.run(True), "pytorch-ood, cache off": lambda: peer.run(False)}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(flags.rounds):
        for name, work in timed.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{flags.dataset} / {flags.ood}, {flags.arch}, {len(train)} + {len(test)} + {len(ood)} images, {len(names)} detectors, "
          f"{cli.describe_device(device)}, torch {torch.__version__}, medians of {flags.rounds} rounds")
    for name, value in medians.items():
        print(f"  {name:<24} {value:8.3f} s   {value / medians['bare forward']:6.2f} x bare forward   {value / medians['ours']:6.2f} x ours")


class Peer:
    """pytorch-ood's benchmark interface over the same images, fed from memory so that no decoding is timed."""

    def __init__(self, network, preprocess, train, test, ood, batch_size, device, odin):
        from pytorch_ood.benchmark import Benchmark

        def tensors(images, labels):
            pixels = torch.cat([preprocess(b) for b in images.batches(batch_size)])
            return TensorDataset(pixels, torch.as_tensor(np.asarray(labels)))

        train_set, test_set, ood_set = tensors(train, train.labels), tensors(test, test.labels), tensors(ood, [-1] * len(ood))

        class Sets(Benchmark):
            ood_names = ["ood"]

            def train_set(self):
                return train_set

            def test_sets(self, known=True, unknown=True):
                return [torch.utils.data.ConcatDataset([test_set, ood_set])] if known and unknown else [test_set if known else ood_set]

        self.benchmark, self.train, self.network, self.odin, self.std = Sets, train_set, network, odin, preprocess.std
        self.batch_size, self.device = batch_size, device

    def run(self, cached: bool) -> dict[str, dict]:
        from pytorch_ood import detector as d
        net, encoder = self.network, self.network.features          # one bound method, so that its cache can hit
        weight, bias = net.fc.weight.detach(), net.fc.bias.detach()
        made = {"msp": d.MaxSoftmax(net), "maxlogit": d.MaxLogit(net), "energy": d.EnergyBased(net),
                "react": d.ReAct(encoder, net.fc, percentile=0.9), "dice:percentile=90": d.DICE(encoder, weight, bias, p=0.9),
                "dice:percentile=70": d.DICE(encoder, weight, bias, p=0.7)}
        if self.odin:
            made["odin"] = d.ODIN(net, eps=0.0014, norm_std=self.std)
        loader = DataLoader(self.train, batch_size=self.batch_size)
        with torch.no_grad():
            for detector in made.values():
                if detector.requires_fit:
                    detector.fit(loader)
        found = self.benchmark().evaluate(list(made.values()), loader_kwargs={"batch_size": self.batch_size}, device=self.device, cache=cached)
        return dict(zip(made, found))


def compare(ours: list[dict], theirs: dict[str, dict]) -> None:
    """Print both AUROCs; a difference above 1e-3 says that the two do not do the same work."""
    for row in ours:
        other = float(theirs[row["detector"]]["AUROC"])
        note = "" if abs(row["auroc"] - other) < 1e-3 else "   differs"
        print(f"  AUROC {row['detector']:<22} ours {row['auroc']:.5f}   pytorch-ood {other:.5f}{note}")


if __name__ == "__main__":
    main()
