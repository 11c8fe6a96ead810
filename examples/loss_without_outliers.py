"""Training without outliers: a loss that shapes the space, and the score that belongs to it.

    python3 examples/loss_without_outliers.py

Class Anchor Clustering draws logits to the anchor of their class, Deep SVDD all features to one
centre. What lies far away is OOD. This should print about:

    CAC        AUROC 0.944  FPR95 0.305
    Deep SVDD  AUROC 0.897  FPR95 0.423
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli, metrics
from ood.data import load
from ood.deployment.networks import package
from ood.losses import CACLoss, DeepSVDDLoss

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
torch.manual_seed(0)

train, known = (load("mnist5k", split, limit=limit) for split in ("train", "test"))
unknown = load("letters", "test", limit=limit)


def fit(step, network):  # step(images, labels) gives a loss
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for images, labels in (b for _ in range(6) for b in DataLoader(train, 64, shuffle=True)):
        optimizer.zero_grad()
        step(images, labels).backward()
        optimizer.step()
    network.eval()


@torch.no_grad()
def over(function, images):
    return torch.cat([function(batch) for batch, _ in DataLoader(images, 256)])


def show(name, score):
    found = metrics.evaluate(over(score, known), over(score, unknown))
    print(f"{name:10} AUROC {found.auroc:.3f}  FPR95 {found.fpr95:.3f}")


network, cac = package().build("small_cnn", 10, in_channels=1), CACLoss(10, 10, 0.1)
fit(lambda images, labels: cac(cac.distance(network(images)), labels), network)
show("CAC", lambda images: cac.score(cac.distance(network(images))))

network = package().build("small_cnn", 10, in_channels=1)
centre = over(network.features, train).mean(0)  # before the training
svdd = DeepSVDDLoss(128, center=centre)
fit(lambda images, labels: svdd(network.features(images), labels), network)
show("Deep SVDD", lambda images: svdd.distance(network.features(images)))
