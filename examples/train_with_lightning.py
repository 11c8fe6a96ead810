"""Lightning: training, fitting and OOD metrics in one module.

    python3 examples/train_with_lightning.py     # after pip install lightning

The detector is fitted when the test begins. This should end with a table that holds about:

    AUROC            0.945
    FPR95TPR         0.265
"""

import sys

sys.path.append(".")  # the clone; not needed after `pip install .`

import lightning
import torch
from torch.utils.data import ConcatDataset, DataLoader

from ood import cli
from ood.compat.detector import Mahalanobis
from ood.compat.metrics import OODMetrics
from ood.data import load
from ood.deployment.networks import package


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = package().build("small_cnn", 10, in_channels=1, image_size=28)
        self.metrics = OODMetrics()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def train_dataloader(self):
        return DataLoader(train, 64, shuffle=True)

    def on_test_start(self):
        self.detector = Mahalanobis(self.network.features).fit(self.train_dataloader())

    def test_step(self, batch, _):
        self.metrics.update(self.detector(batch[0]), batch[1])

    def on_test_epoch_end(self):
        self.log_dict(self.metrics.compute())


parser = cli.Parser(__doc__)
parser.flag("-limit", type=int, help="images per set; default: all")
limit = parser.parse_args().limit
lightning.seed_everything(0, verbose=False)

train, known = (load("mnist5k", split, limit=limit) for split in ("train", "test"))
test = ConcatDataset([known, load("letters", "test", limit=limit)])
trainer = lightning.Trainer(max_epochs=3, logger=False, enable_checkpointing=False)
trainer.fit(module := Digits())
trainer.test(module, DataLoader(test, 256))
