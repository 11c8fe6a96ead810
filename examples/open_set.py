"""An open-set simulation: some digits are never shown in training and must be rejected in the test.

    python3 examples/open_set.py

`DynamicOSS` draws known and unknown classes with a seed, as in pytorch-ood. `TargetMapping` numbers
the known ones 0..C-1 and gives the others negative labels. `ood.data.open_set` has the fixed splits
of the literature. This should print about:

    unknown [2, 4, 6, 7]: OpenMax  AUROC 0.858
    unknown [2, 4, 6, 7]: ViM      AUROC 0.834
    ...
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli
from ood.compat.dataset.ossim import DynamicOSS
from ood.compat.detector import OpenMax, ViM
from ood.compat.metrics import OODMetrics
from ood.compat.utils import TargetMapping
from ood.data import load
from ood.deployment import networks

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
parser.flag("-seeds", type=int, help="number of draws", default=3)
flags = parser.parse_args()

digits = load("mnist5k", "train", limit=flags.limit)
for seed in range(flags.seeds):
    torch.manual_seed(seed)
    split = DynamicOSS(digits, train_size=0.7, val_size=0.1, uuc_val=0, uuc_test=4, seed=seed)
    new_label = TargetMapping(split.kkc, split.uuc)

    def batches(part, **options):
        for images, labels in DataLoader(part, 64, **options):
            yield images, torch.tensor([new_label(int(label)) for label in labels])

    train = split.train_dataset(out_dist=False)
    network = networks.package().build("small_cnn", len(split.kkc), in_channels=1, image_size=28)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(3):
        for images, labels in batches(train, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    network.eval()

    for detector in (OpenMax(network), ViM(network.features, 16, *network.fc.parameters())):
        detector.fit(list(batches(train)))
        metrics = OODMetrics()
        for images, labels in batches(split.test_dataset()):
            metrics.update(detector(images), labels)
        name, auroc = type(detector).__name__, metrics.compute()["AUROC"]
        print(f"unknown {sorted(map(int, split.uuc))}: {name:8} AUROC {auroc:.3f}")
