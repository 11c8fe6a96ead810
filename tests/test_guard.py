"""ood.guard: a network, a detector and a threshold behind one call, for every kind of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ood
from ood.config import InputError
from ood.data import load
from ood.data.images import ArrayImages
from ood.deployment.calibration import calibrate
from ood.deployment.guard import as_images
from ood.detectors import create

ROOT = Path(__file__).resolve().parent.parent


class Small(nn.Module):
    """Two linear layers over pixels, as a user's own network."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12), nn.ReLU())
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Small().eval()


def pictures(count, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 8, 8, generator=generator) + shift
    return images, torch.arange(count) % 3


@pytest.mark.parametrize("detector", ["vim:dim=4", "knn:k=3", "energy", "mds", "odin"])
def test_five_lines(network, detector):
    guard = ood.guard(network, *pictures_of(300), detector=detector, accept=0.9)
    known, _ = pictures(400, seed=1)
    decision = guard(known)
    assert len(decision) == 400 and decision.accepted.dtype == torch.bool
    assert decision.accepted.float().mean() == pytest.approx(0.9, abs=0.08)
    assert (decision.predicted == network(known).argmax(1)).all()
    assert torch.allclose(decision.confidence, network(known).softmax(1).max(1).values)
    assert (decision.accepted == (decision.p_values > 0.1 + 1e-9)).all()
    assert "at least 90 %" in guard.guarantee


def pictures_of(count, **options):
    return (pictures(count, **options)[0],)


def test_far_images_are_rejected(network):
    guard = ood.guard(network, *pictures_of(300), detector="mds")
    far, _ = pictures(50, seed=2, shift=4.0)
    assert not guard(far).accepted.any() and (guard.predict(far) == -1).all()
    known = guard.predict(pictures(50, seed=3)[0])
    assert set(known.tolist()) <= {-1, 0, 1, 2} and (known >= 0).mean() > 0.8


def test_every_kind_of_images_gives_the_same_decisions(network):
    images, labels = pictures(120)
    kinds = [
        (images, labels),
        (images.numpy(), labels.numpy()),
        (TensorDataset(images, labels),),
        (DataLoader(TensorDataset(images, labels), batch_size=17),),
        (ArrayImages(images.numpy(), labels.numpy()),),
    ]
    new = pictures(20, seed=4)[0]
    expected = None
    for train, *rest in kinds:
        guard = ood.Guard(network, "mds").fit(train, *rest)
        assert guard.detector_.means.shape[0] == 3, "the labels arrived"
        scores = guard(new).scores
        expected = scores if expected is None else expected
        assert torch.allclose(scores, expected, atol=1e-5)
    only_images = DataLoader(torch.utils.data.Subset(new, range(20)), batch_size=6)
    assert torch.allclose(guard(only_images).scores, expected, atol=1e-5)
    assert torch.allclose(guard(load_as_set(new)).scores, expected, atol=1e-5)


def load_as_set(images):
    return ArrayImages(images.numpy())


def test_uint8_and_normalisation(network):
    images = (pictures(120)[0] * 255).to(torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    guard = ood.guard(network, images, detector="energy", mean=mean, std=std)
    x = images.float().div(255).sub(torch.tensor(mean).view(3, 1, 1)).div(0.2)
    assert torch.allclose(guard(images).scores, -network(x).logsumexp(1).double(), atol=1e-4)
    with pytest.raises(InputError, match="both mean and std"):
        ood.guard(network, images, mean=mean)


def test_calibration_images_are_what_calibrates(network):
    train, held = pictures(90)[0], pictures(60, seed=5)[0]
    guard = ood.guard(network, train, detector="energy", calibration_images=held, accept=0.8)
    own = calibrate(-network(held).logsumexp(1).detach().double().numpy(), 0.8)
    assert guard.calibration_.threshold == pytest.approx(own.threshold, rel=1e-6)
    per_class = ood.guard(network, train, detector="energy", per_class=True, accept=0.5)
    assert per_class.calibration_.parts and "in each of" in per_class.guarantee


@pytest.mark.parametrize("per_class", [False, True])
def test_saved_and_loaded_again(network, tmp_path, per_class):
    images = pictures(200)[0]
    guard = ood.guard(network, images, detector="knn:k=2", accept=0.5, per_class=per_class)
    path = guard.save(tmp_path / "guard.npz")
    again = ood.Guard.load(path, network)
    new = pictures(30, seed=6)[0]
    for name in ("scores", "p_values", "accepted", "predicted"):
        assert torch.equal(getattr(guard(new), name), getattr(again(new), name)), name
    torch.manual_seed(1)
    with pytest.raises(InputError, match="another network"):
        ood.Guard.load(path, Small())


def test_scikit_learn_habits(network):
    base = pytest.importorskip("sklearn.base")
    guard = ood.Guard(network, detector="energy", accept=0.8)
    twin = base.clone(guard)
    assert twin is not guard and twin.get_params()["detector"] == "energy" and twin.accept == 0.8
    assert not hasattr(twin, "calibration_")
    twin.set_params(detector="maxlogit").fit(pictures(60)[0])
    new = pictures(10, seed=7)[0]
    assert np.allclose(twin.decision_function(new), -network(new).max(1).values.detach(), atol=1e-5)
    with pytest.raises(InputError, match="no 'treshold'"):
        guard.set_params(treshold=1)


def test_a_detector_object_stays_as_it_is(network):
    mine = create("knn", k=2)
    guard = ood.guard(network, pictures(100)[0], detector=mine)
    assert guard.detector_ is not mine and guard.detector_.k == 2 and not mine.state()


def test_bad_input_is_refused(network):
    with pytest.raises(InputError, match="call fit first"):
        ood.Guard(network)(pictures(3)[0])
    with pytest.raises(InputError, match="too few"):
        ood.guard(network, pictures(20)[0], detector="energy")
    for share in (0, 1, 1.5):
        with pytest.raises(InputError, match="share"):
            ood.guard(network, pictures(99)[0], share=share)
    for images in ("photos", [1, 2], iter([])):
        with pytest.raises(InputError, match="images must be"):
            as_images(images)
    with pytest.raises(InputError, match="no images"):
        as_images(torch.zeros(0, 3, 8, 8))
    with pytest.raises(InputError, match="ToTensor"):
        as_images(TensorDataset(torch.zeros(4)))
    with pytest.raises(InputError, match="its own"):
        as_images(TensorDataset(pictures(3)[0]), labels=[0, 1, 2])
    with pytest.raises(InputError, match="unknown detector 'vimm'"):
        ood.guard(network, pictures(99)[0], detector="vimm")
    with pytest.raises(AttributeError, match="no attribute 'gaurd'"):
        ood.gaurd  # noqa: B018


def test_importing_ood_loads_no_torch():
    code = "import sys, ood; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_on_real_digits():
    """The guard of a small network trained on digits accepts fewer letters and photographs."""
    digits, letters = load("mnist5k", "train").limited(600), load("letters", "test").limited(200)
    photographs = load("patches", "test").limited(100)
    images, labels = digits.read(slice(0, 600)).float() / 255, torch.tensor(digits.labels)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(600).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    held = load("mnist5k", "test").limited(200)
    guard = ood.guard(network, digits, detector="mds", calibration_images=held)
    for others in (letters, photographs):
        assert guard(others).accepted.float().mean() < 0.85
    assert guard(held).accepted.float().mean() >= 0.95
