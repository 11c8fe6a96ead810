"""Hyper-parameters of detectors, chosen without any OOD data and, beside it, on a validation set.

    python3 examples/search.py

Pseudo-outliers are noise and jigsaws of ID images. All candidates see the same outputs, so a search
costs no further pass. AUROCs are of the test images, which choose nothing. This should print about:

    knn    default 0.961, best 0.961 ({'k': 50})
           chosen without OOD data 0.961 ({'k': 50})
           chosen with letters     0.961 ({'k': 50})
    ...
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli
from ood.data import Preprocess, load
from ood.deployment import networks
from ood.evaluation.passes import Passes
from ood.evaluation.pseudo import image_sets
from ood.evaluation.tuning import tune

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
torch.manual_seed(0)

train, test = (load("mnist5k", split, limit=limit) for split in ("train", "test"))
validation, known = test.subset(slice(0, len(test) // 2)), test.subset(slice(len(test) // 2, None))

network = networks.package().build("small_cnn", 10, in_channels=1, image_size=28)
normalise = Preprocess((0.13,), (0.31,))
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for images, labels in (b for _ in range(3) for b in DataLoader(train, 64, shuffle=True)):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(normalise(images)), labels).backward()
    optimizer.step()
network.eval()

outputs = Passes(network, normalise).outputs
fitted_to, inside = outputs(train), outputs(validation)
made = image_sets(validation, ("noise", "jigsaw"))
pseudo = {kind: outputs(images) for kind, images in made.items()}
real = {"letters in other fonts": outputs(load("letters", "train", limit=limit))}
truth = {"letters": outputs(load("letters", "test", limit=limit))}

for name in ("knn", "vim", "react", "dice"):
    on_test = tune(name, fitted_to, outputs(known), truth)
    aurocs = on_test.criterion
    print(f"{name:6} default {aurocs[0]:.3f}, best {aurocs.max():.3f} ({on_test.best})")
    for kind, outliers in (("without OOD data", pseudo), ("with letters", real)):
        found = tune(name, fitted_to, inside, outliers)
        print(f"       chosen {kind:16} {aurocs[found.chosen]:.3f} ({found.best})")
