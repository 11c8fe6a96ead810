"""Every kind of detector, by what it looks at: logits, features, shaped features, maps, gradients.

    python3 examples/detectors.py

All share one forward pass per set; those that need images or gradients run inside it. Names are
those of OpenOOD, and `detectors.names()` lists them. This should print, among others, about:

    gradients
      odin       AUROC 0.896  FPR95 0.423
      mds_odin   AUROC 0.948  FPR95 0.250  fitted
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli, detectors
from ood.data import Preprocess, load
from ood.deployment import networks
from ood.evaluation.passes import Passes
from ood.evaluation.scoring import TestSet, evaluate

KINDS = {
    "logits": ("msp", "maxlogit", "energy", "gen", "klm"),
    "features": ("mds", "rmds", "knn", "vim", "she"),
    "shaped features": ("dice", "react", "ash", "scale"),
    "maps": ("rankfeat", "gram"),
    "gradients": ("odin", "mds_odin", "gradnorm", "gradunc"),
}

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
torch.manual_seed(0)

train, test = (load("mnist5k", split, limit=limit) for split in ("train", "test"))
letters = load("letters", "test", limit=limit)

network = networks.package().build("small_cnn", 10, in_channels=1, image_size=28)
normalise = Preprocess((0.13,), (0.31,))
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for images, labels in (b for _ in range(3) for b in DataLoader(train, 64, shuffle=True)):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(normalise(images)), labels).backward()
    optimizer.step()
network.eval()

chosen = {name: detectors.create(name) for names in KINDS.values() for name in names}
passes, sets = Passes(network, normalise), [TestSet("letters", letters)]
rows = {row["detector"]: row for row in evaluate(passes, train, test, sets, chosen).rows}
for kind, names in KINDS.items():
    print(kind)
    for name in names:
        row, fits = rows[name], "fitted" if chosen[name].requires_fit else ""
        print(f"  {name:10} AUROC {row['auroc']:.3f}  FPR95 {row['fpr95']:.3f}  {fits}".rstrip())
