"""Text: a GRU on words, Outlier Exposure with other texts, detectors on logits and features.

    python3 examples/text.py

Which library does a docstring come from? SymPy gives auxiliary outliers, scikit-learn is OOD.
scripts/reproduce_text.py takes 20 Newsgroups. This should print, among others, about:

    baseline       MaxSoftmax AUROC 0.619
    with outliers  MaxSoftmax AUROC 0.757
"""

import random
import re
import sys
from importlib.resources import files

sys.path.append(".")  # the clone; not needed after `pip install .`

import torch
from torch.utils.data import DataLoader

from ood import cli
from ood.compat.detector import KNN, MaxSoftmax
from ood.compat.metrics import OODMetrics
from ood.compat.model import GRUClassifier
from ood.data.texts import Collate, Vocabulary, letters
from ood.losses import OutlierExposureLoss

parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="texts of each library", default=250)
limit = parser.parse_args().limit


def docstrings(module, label):
    code = (file.read_text("utf-8") for file in files(module).rglob("*.py"))
    found = (re.findall(r'"""(.{150,}?)"""', text, re.S) for text in code)
    return [(t, label) for t in random.Random(0).sample(sorted(set().union(*found)), limit)]


classes = ("numpy.lib", "torch.nn", "matplotlib", "scipy.stats")
known = sum((docstrings(name, label) for label, name in enumerate(classes)), [])
train, test = [pair for n, pair in enumerate(known) if n % 5], known[::5]
auxiliary, unknown = docstrings("sympy", -1), docstrings("sklearn", -1)
vocabulary = Vocabulary.of(letters(text) for text, _ in train)
batched = dict(batch_size=64, collate_fn=Collate(vocabulary, letters, 40))

for what, seen in (("baseline", train), ("with outliers", train + auxiliary)):
    torch.manual_seed(0)
    network, loss = GRUClassifier(4, len(vocabulary)), OutlierExposureLoss(alpha=0.5)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for tokens, labels in (b for _ in range(8) for b in DataLoader(seen, shuffle=True, **batched)):
        optimizer.zero_grad()
        loss(network(tokens), labels).backward()
        optimizer.step()
    for detector in (MaxSoftmax(network.eval()), KNN(network.features)):
        detector.fit(DataLoader(train, **batched))
        metrics, name = OODMetrics(), type(detector).__name__
        for tokens, labels in DataLoader(test + unknown, **batched):
            metrics.update(detector(tokens), labels)
        print(f"{what:14} {name:10} AUROC {metrics.compute()['AUROC']:.3f}")
