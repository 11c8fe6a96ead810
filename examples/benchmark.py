"""A benchmark: one pass per data set for all detectors, near and far outliers, intervals.

    python3 examples/benchmark.py

Another benchmark is read by its name, such as "openood_cifar10". Passes(..., cache=Cache("folder"))
keeps the outputs for the next run. This should print about (AUROC in %, 95 % interval):

    msp       near 84.9 (83.1 to 86.5)   far 30.2 (29.6 to 30.8)
    energy    near 90.0 (88.6 to 91.3)   far 13.5 (12.6 to 14.4)
    ...
    mds       near 94.8 (93.7 to 95.6)   far 100.0 (99.6 to 100.0)
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli
from ood.data import Preprocess, load_benchmark
from ood.deployment import networks
from ood.detectors import create
from ood.evaluation.passes import Passes
from ood.evaluation.scoring import TestSet, evaluate
from ood.evaluation.uncertainty import auroc_interval

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
torch.manual_seed(0)

suite = load_benchmark("demo")
train, test = (suite.load_id(split, limit=limit) for split in ("train", "test"))
sets = [
    TestSet(entry.dataset, suite.load_ood(entry, len(test), limit=limit), entry.group)
    for entry in suite.entries
]

network = networks.package().build("small_cnn", 10, in_channels=1, image_size=28)
normalise = Preprocess((0.13,), (0.31,))
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for images, labels in (b for _ in range(3) for b in DataLoader(train, 64, shuffle=True)):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(normalise(images)), labels).backward()
    optimizer.step()
network.eval()

detectors = {name: create(name) for name in ("msp", "energy", "knn", "vim", "mds", "react")}
result = evaluate(Passes(network, normalise), train, test, sets, detectors)
known, *unknown = result.scores.values()
for name in detectors:
    line = name.ljust(8)
    for group in ("near", "far"):
        scores = [s[name] for s, entry in zip(unknown, sets) if entry.group == group]
        found = auroc_interval(known[name], scores)
        line += f"{group:>6} {100 * found[0]:.1f} ({100 * found[1]:.1f} to {100 * found[2]:.1f})"
    print(line)
