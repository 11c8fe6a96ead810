"""Our metrics inside torchmetrics and Lightning, with the real packages where they are there."""

import copy
import importlib
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ood.compat import metrics


def data():
    """Scores (60,), labels with outliers, predictions; the first 20 hold no outlier."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (60,), generator=generator)
    labels[:20] = labels[:20].clamp(min=0)
    scores = torch.randn(60, generator=generator) + (labels < 0)
    return scores, labels, torch.where(scores < 0.5, labels, 0)


def batches():
    return zip(*(part.split(20) for part in data()))


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


@pytest.fixture
def made(torchmetrics):
    from ood.compat.metrics.torchmetric import TorchMetric

    return TorchMetric


def test_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "ood.compat.metrics.torchmetric", raising=False)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        importlib.import_module("ood.compat.metrics.torchmetric")


def test_values_are_those_of_the_metric(made):
    plain, wrapped = metrics.OODMetrics(), made(metrics.OODMetrics())
    for scores, labels, predictions in batches():
        plain.update(scores, labels, predictions)
        wrapped.update(scores, labels=labels, predictions=predictions)
    wrapped = pickle.loads(pickle.dumps(copy.deepcopy(wrapped))).to("cpu")
    found = {name: value.item() for name, value in wrapped.compute().items()}
    assert found == pytest.approx(plain.compute(), abs=1e-6)
    wrapped.reset()
    assert not wrapped.scores
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(ValueError, match="no scores"),
    ):
        wrapped.compute()
    with pytest.raises(TypeError):
        wrapped.update(data()[0], classes=data()[1])


@pytest.mark.filterwarnings("ignore:.*images have pixels")
def test_pixels_of_each_image(made):
    maps, masks = (part.view(3, 4, 5) for part in data()[:2])
    plain, wrapped = (make(metrics.PerImage(metrics.AUROC())) for make in (lambda m: m, made))
    for metric in (plain, wrapped):
        for rows in (slice(0, 1), slice(1, 3)):
            metric.update(maps[rows], masks[rows])
    assert wrapped.compute().item() == pytest.approx(plain.compute()["AUROC"], abs=1e-6)


def test_forward_gives_the_batch(made):
    metric, results = made(metrics.AUROC()), []
    for scores, labels, _ in batches():
        results.append(metric(scores, labels))
    scores, labels, _ = data()
    assert results[0].isnan(), "the first batch holds no outlier"
    assert results[2].item() == pytest.approx(
        metrics.functional.auroc(scores[40:], labels[40:]).item()
    )
    assert metric.compute().item() == pytest.approx(metrics.functional.auroc(scores, labels).item())


def test_in_a_collection(made, torchmetrics):
    singles = {
        "auroc": metrics.AUROC(),
        "seen": metrics.AUROC(void_label=2),
        "acc": metrics.Accuracy(),
    }
    collection = torchmetrics.MetricCollection(
        {
            **{name: made(metric) for name, metric in singles.items()},
            "ood": made(metrics.OODMetrics()),
        }
    )
    for scores, labels, predictions in batches():
        collection.update(scores=scores, labels=labels, predictions=predictions)
    found, (scores, labels, predictions) = collection.compute(), data()
    for name, metric in singles.items():
        given = {"scores": scores, "labels": labels, "predictions": predictions}
        metric.update(**{key: given[key] for key in metric.inputs})
        assert found[name].item() == pytest.approx(list(metric.compute().values())[0], abs=1e-6)
    assert {"AUTC", "FPR95TPR", "ACC"} <= {name.split("_")[-1] for name in found}
    collection.reset()
    assert collection.clone(prefix="val_")


def test_processes_put_their_states_together(made):
    """What torchmetrics gathers from two processes: this one's state, and as much from another."""
    scores, labels, _ = data()
    gathered = []

    def gather(state, group=None):
        gathered.append(state)
        whole = scores if state.is_floating_point() else labels
        return [state, whole[len(state) :]]

    metric = made(metrics.AUROC(), dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(scores[:15], labels[:15])
    metric.update(scores[15:30], labels[15:30])
    assert metric.compute().item() == pytest.approx(metrics.functional.auroc(scores, labels).item())
    assert [len(state) for state in gathered] == [30, 30]
    assert sum(len(part) for part in metric.scores) == 30, "its own state is back"


def test_in_a_lightning_loop(made, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    scores, labels, predictions = data()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.plain, self.whole = metrics.OODMetrics(), made(metrics.OODMetrics())
            self.auroc, self.seen = made(metrics.AUROC()), []

        def training_step(self, batch, index):
            return self.layer(batch[0][:, None]).square().mean()

        def validation_step(self, batch, index):
            scores, labels, predictions = batch
            self.plain.update(scores, labels, predictions)
            self.whole.update(scores, labels, predictions)
            self.auroc(scores, labels)
            self.log("val/auroc", self.auroc)

        def on_validation_epoch_end(self):
            found = self.plain.compute()
            self.log_dict({f"plain/{name}": value for name, value in found.items()})
            self.log_dict({f"whole/{name}": v for name, v in self.whole.compute().items()})
            self.plain.reset()
            self.whole.reset()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    loader = DataLoader(TensorDataset(scores, labels, predictions), batch_size=20)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), loader, loader)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    expected = metrics.OODMetrics().update(scores, labels, predictions).compute()
    assert found["val/auroc"] == pytest.approx(expected["AUROC"], abs=1e-6)
    for name, value in expected.items():
        assert found[f"plain/{name}"] == found[f"whole/{name}"] == pytest.approx(value, abs=1e-6)
