"""Guards as graphs of torch.export and ONNX: equal to the guard, for every detector of arrays."""

import pytest
import torch
from torch import nn

import ood
from ood.config import InputError

CANNOT = {"relation", "weiper"}  # their tiles depend on the number of images


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
    ).eval()


def images(count, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def guard_of(network, detector, **options):
    return ood.guard(network, images(300), detector=detector, accept=0.9, **options)


# one of every family; each export takes about a second
ARRAYS = """energy openmax klm gradnorm mds gmm knn nnguide relation vim neco pnml dice ash vra nac
weiper""".split()


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_detector_as_torch_export(network, name, tmp_path):
    guard = guard_of(network, name)
    if name in CANNOT:
        with pytest.raises(InputError, match=f"{name} cannot be exported for any batch"):
            guard.export(tmp_path / "guard.pt2", images(4, 1))
        assert not list(tmp_path.iterdir())
        return
    path = guard.export(tmp_path / "guard.pt2", images(4, 1))
    module, new = torch.export.load(path).module(), images(23, 2)
    logits, score, accepted = module(new)
    decision = guard(new)
    assert torch.allclose(score, decision.scores, rtol=1e-5, atol=1e-5)
    assert (accepted == decision.accepted).all() and torch.equal(
        logits.argmax(1), decision.predicted
    )
    assert [p.name for p in tmp_path.iterdir()] == ["guard.pt2"]


def test_thresholds_per_class_and_normalisation(network, tmp_path):
    new = (images(30, 3) * 255).to(torch.uint8)
    guard = ood.guard(
        network,
        (images(300) * 255).to(torch.uint8),
        detector="energy",
        accept=0.5,
        per_class=True,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    module = torch.export.load(guard.export(tmp_path / "g.pt2", new)).module()
    decision = guard(new)
    _, score, accepted = module(new.float() / 255)
    assert torch.allclose(score, decision.scores, atol=1e-5)
    assert (accepted == decision.accepted).all()


@pytest.mark.parametrize("name", ["energy", "vim:dim=4", "knn:k=3", "mds", "dice"])
def test_onnx(network, name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    guard = guard_of(network, name)
    path, new = guard.export(tmp_path / "guard.onnx", images(4, 1)), images(23, 2)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, score, accepted = session.run(None, {"images": new.numpy()})
    decision = guard(new)
    assert torch.allclose(torch.from_numpy(score), decision.scores, rtol=1e-4, atol=1e-4)
    assert (torch.from_numpy(accepted) == decision.accepted).all()
    assert [p.name for p in tmp_path.iterdir()] == ["guard.onnx"]


def test_what_cannot_be_exported_says_so(network, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="must end in .pt2 or .onnx"):
        guard_of(network, "energy").export(tmp_path / "guard.bin", images(4))
    with pytest.raises(InputError, match="odin needs images"):
        guard_of(network, "odin").export(tmp_path / "guard.pt2", images(4))
    with pytest.raises(InputError, match="at least two"):
        guard_of(network, "energy").export(tmp_path / "guard.pt2", images(1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnxscript"):
        guard_of(network, "energy").export(tmp_path / "guard.onnx", images(4))
    assert not list(tmp_path.iterdir())


def test_a_detector_that_measures_after_it_was_fitted(network):
    guard = guard_of(network, "mds_odin")
    assert guard(images(40, 4)).accepted.float().mean() > 0.7
