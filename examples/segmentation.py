"""Segmentation: scores of pixels, and their metrics in bounded memory.

    python3 examples/segmentation.py

Scenes are digits on a dark ground; the classes are the ground and the digits. Test scenes also hold
letters, whose pixels are OOD. For sets with masks see scripts/segment_ood.py. This should print:

    MaxSoftmax   AUROC 0.980  FPR95 0.020  AP 0.445
    MaxLogit     AUROC 0.978  FPR95 0.024  AP 0.425
    EnergyBased  AUROC 0.974  FPR95 0.047  AP 0.360
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch

from ood import cli
from ood.compat.detector import EnergyBased, MaxLogit, MaxSoftmax
from ood.data import load
from ood.deployment import networks
from ood.evaluation.pixels import PixelScores

parser = cli.Parser(__doc__)
parser.flag("-scenes", type=int, help="training scenes", default=600)
count = parser.parse_args().scenes
torch.manual_seed(0)


def scenes(count, sets):
    """Images (count, 1, 64, 64) with a character of each set, and masks (count, 64, 64)."""
    images, masks = torch.zeros(count, 1, 64, 64), torch.zeros(count, 64, 64).long()
    for image, mask in zip(images, masks):
        for characters in sets:
            pixels, label = characters[int(torch.randint(len(characters), ()))]
            top, left = torch.randint(64 - 28, (2,)).tolist()
            part = slice(top, top + 28), slice(left, left + 28)
            image[0][part] = image[0][part].maximum(pixels[0])
            mask[part][pixels[0] > 0.3] = label + 1 if label >= 0 else -1
    return images, masks


digits, others = load("mnist5k", "train"), load("mnist5k", "test")
images, masks = scenes(count, [digits, digits, digits])
network = networks.submodule("segmentation").build("small_unet", 11, in_channels=1, width=8)
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for rows in (rows for _ in range(8) for rows in torch.randperm(count).split(16)):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(images[rows]), masks[rows]).backward()
    optimizer.step()
network.eval()

images, masks = scenes(50, [others, others, load("letters", "test")])
for detector in (MaxSoftmax(network), MaxLogit(network), EnergyBased(network)):
    pixels = PixelScores()  # exact up to a number of pixels, counted in bins from there on
    for image, mask in zip(images.split(10), masks.split(10)):
        pixels.update(detector(image), mask < 0)
    found, name = pixels.metrics(), type(detector).__name__
    print(f"{name:12} AUROC {found.auroc:.3f}  FPR95 {found.fpr95:.3f}  AP {found.aupr_out:.3f}")
