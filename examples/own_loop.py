"""Your own loop: any torch network, any DataLoader, scores of images and metrics over batches.

    python3 examples/own_loop.py

A detector wants the logits, the features or the last layer of the network; hand them over. Scores
are larger for outliers, labels below 0 mark them. This should print about:

    EnergyBased  AUROC 0.865  FPR95TPR 0.426
    KNN          AUROC 0.930  FPR95TPR 0.277
    ViM          AUROC 0.938  FPR95TPR 0.276
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from ood import cli
from ood.compat.detector import KNN, EnergyBased, ViM
from ood.compat.metrics import OODMetrics
from ood.data import load

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
torch.manual_seed(0)

train = load("mnist5k", "train", limit=limit)  # 4,000 digits, inside a package; no download
known = load("mnist5k", "test", limit=limit)  # 1,000 other digits, labels 0..9
unknown = load("letters", "test", limit=limit)  # letters, labels -1
loader = DataLoader(train, 64, shuffle=True)
features = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
)
head = nn.Linear(128, 10)
model = nn.Sequential(features, head)

optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(5):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
model.eval()

for detector in (EnergyBased(model), KNN(features), ViM(features, 32, head.weight, head.bias)):
    detector.fit(loader)  # does nothing for EnergyBased
    metrics = OODMetrics()
    for images, labels in DataLoader(ConcatDataset([known, unknown]), 256):
        metrics.update(detector(images), labels)
    found, name = metrics.compute(), type(detector).__name__
    print(f"{name:12} AUROC {found['AUROC']:.3f}  FPR95TPR {found['FPR95TPR']:.3f}")
