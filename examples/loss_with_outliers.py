"""Training with outliers: the network sees images of no class, with labels below 0.

    python3 examples/loss_with_outliers.py

The auxiliary outliers are letters, in other fonts than those of the test. On them, Outlier Exposure
asks for flat predictions, the energy-bounded loss for a high energy. This should print about:

    CrossEntropyLoss, MaxSoftmax         AUROC 0.863  FPR95 0.623
    CrossEntropyLoss, EnergyBased        AUROC 0.908  FPR95 0.482
    OutlierExposureLoss, MaxSoftmax      AUROC 0.974  FPR95 0.156
    OutlierExposureLoss, EnergyBased     AUROC 0.984  FPR95 0.058
    EnergyRegularizedLoss, MaxSoftmax    AUROC 0.896  FPR95 0.541
    EnergyRegularizedLoss, EnergyBased   AUROC 0.997  FPR95 0.012
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import ConcatDataset, DataLoader

from ood import cli, metrics
from ood.compat.detector import EnergyBased, MaxSoftmax
from ood.data import load
from ood.deployment import networks
from ood.losses import CrossEntropyLoss, EnergyRegularizedLoss, OutlierExposureLoss

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit

train, known = (load("mnist5k", split, limit=limit) for split in ("train", "test"))
auxiliary, unknown = (load("letters", split, limit=limit) for split in ("train", "test"))
seen = ConcatDataset([train, auxiliary])


def trained(loss):
    """Train a network on digits and auxiliary outliers; cross-entropy ignores the outliers."""
    torch.manual_seed(0)
    network = networks.package().build("small_cnn", 10, in_channels=1, image_size=28)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for images, labels in (b for _ in range(3) for b in DataLoader(seen, 128, shuffle=True)):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def scores(detector, images):
    return torch.cat([detector(batch) for batch, _ in DataLoader(images, 256)])


for loss in (CrossEntropyLoss(), OutlierExposureLoss(alpha=0.5), EnergyRegularizedLoss(alpha=0.1)):
    network = trained(loss)
    for detector in (MaxSoftmax(network), EnergyBased(network)):
        found = metrics.evaluate(scores(detector, known), scores(detector, unknown))
        name = f"{type(loss).__name__}, {type(detector).__name__}"
        print(f"{name:36} AUROC {found.auroc:.3f}  FPR95 {found.fpr95:.3f}")
