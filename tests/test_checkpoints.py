"""Weight files: our format and the authors' formats come back bit for bit.

Hostile, damaged and foreign files are refused, and nothing in them runs.
"""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import models
from models.checkpoints import CheckpointError, load_into, read, save


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return models.build("small_cnn", 4, in_channels=1, image_size=28, **settings)


def same(a, b):
    a, b = (n.state_dict() if isinstance(n, nn.Module) else n for n in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# our own format


def test_round_trip(tmp_path):
    network, other = small(), small(1)
    content = {
        "format": "ood-1",
        "arch": network.arch,
        "state_dict": network.state_dict(),
        "epoch": 3,
        "metrics": {"accuracy": 0.5},
        "preprocess": {"mean": [0.5], "std": [0.5], "size": 28},
        "trainer": {"rng": torch.get_rng_state()},
    }
    save(tmp_path / "run" / "last.pt", content)
    checkpoint = read(tmp_path / "run" / "last.pt")
    assert (
        checkpoint.format == "ood-1"
        and same(checkpoint.state_dict, network)
        and checkpoint.meta["epoch"] == 3
    )
    assert not same(network, other)
    meta = load_into(other, tmp_path / "run" / "last.pt")
    assert (
        same(network, other)
        and meta["metrics"] == {"accuracy": 0.5}
        and meta["format"] == "ood-1"
        and "state_dict" not in meta
    )
    rebuilt = models.build(**checkpoint.meta["arch"])
    load_into(rebuilt, checkpoint)
    assert same(rebuilt, network) and [p.name for p in (tmp_path / "run").iterdir()] == ["last.pt"]


def test_save_is_atomic(tmp_path):
    path = tmp_path / "last.pt"
    save(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError, pickle.PicklingError)):
        save(path, {"a": torch.zeros(2), "b": lambda: None})  # cannot be pickled, fails half way
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# the authors' formats


@pytest.mark.parametrize(
    "dataset, classes, std, bias",
    [("cifar10", 10, 0.2601, [0.466, -0.490, 0.427]), ("cifar100", 100, 0.2358, None)],
)
def test_dice_files(reference, dataset, classes, std, bias):
    path = reference / "dice" / f"{dataset}_densenet_checkpoint_100.pth.tar"
    network = models.build("densenet", classes)
    assert list(read(path).state_dict) == list(network.state_dict())
    meta = load_into(network, path)
    assert meta == {"epoch": 100, "format": "state_dict"}
    assert network.fc.weight.std().item() == pytest.approx(std, abs=2e-4)
    if bias:
        assert network.fc.bias[:3].tolist() == pytest.approx(bias, abs=6e-4)
    assert network.bn1.num_batches_tracked == 78_200
    with pytest.raises(CheckpointError, match=r"of another shape \(fc.weight: file"):
        load_into(models.build("densenet", 7), path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("old_numpy", [True, False])
def test_leaveout_file(tmp_path, zipped, old_numpy):
    network, path = small(), tmp_path / "model_best.pth.tar"
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    content = {
        "epoch": 99,
        "state_dict": network.state_dict(),
        "best_prec1": np.float64(0.987),
        "opt": optimiser.state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if old_numpy:
        rewrite(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    other = small(1)
    meta = load_into(other, path)
    assert (
        same(network, other)
        and meta["epoch"] == 99
        and meta["best_prec1"] == 0.987
        and type(meta["best_prec1"]) is float
    )


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.int64(-3), np.uint8(200), np.bool_(True), np.float16(0.25)]
)
def test_numpy_scalars_become_numbers(tmp_path, value):
    torch.save({"state_dict": small().state_dict(), "best": value}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").meta["best"] == value.item()


def test_heatmap_classifier_file(tmp_path):
    for arch in ("resnet18", "wideresnet"):
        network = models.build(arch, 10, **({"width": 8} if arch == "resnet18" else {"depth": 10}))
        state = network.state_dict()
        content = {
            "net_state_dict": {k: v for k, v in state.items() if not k.startswith("fc.")},
            "cls_state_dict": {
                k.replace("fc.", "linear."): v for k, v in state.items() if k.startswith("fc.")
            },
        }
        torch.save(content, tmp_path / "cifar10.pt")
        other = models.build(**network.arch)
        assert load_into(other, tmp_path / "cifar10.pt") == {
            "format": "heatmap-classifier"
        } and same(network, other)


def test_heatmap_decoder_file(tmp_path):
    torch.manual_seed(0)
    decoders = {epoch: models.Decoder(6, 3, 4, (8, 4), image_size=8) for epoch in (9, 19, 149)}
    content = {
        "min": 0,
        "max": np.float64(3.5),
        **{epoch: {"generator": d.state_dict()} for epoch, d in decoders.items()},
    }
    torch.save(content, tmp_path / "model.pt")
    other = models.Decoder(6, 3, 4, (8, 4), image_size=8)
    meta = load_into(other, tmp_path / "model.pt")
    assert (
        same(other, decoders[149])
        and (meta["min"], meta["max"], meta["epoch"]) == (0, 3.5, 149)
        and meta["snapshots"] == [9, 19, 149]
    )
    load_into(other, tmp_path / "model.pt", snapshot=9)
    assert same(other, decoders[9])
    with pytest.raises(CheckpointError, match="no snapshot 29; it holds 9, 19, 149"):
        read(tmp_path / "model.pt", snapshot=29)


class Latent(nn.Module):
    """The trainable part of VMDLS: an encoder with two heads."""

    def __init__(self):
        super().__init__()
        self.encoder = models.build("resnet18", 3, width=4, pool="adaptive")
        self.encoder.fc = nn.Identity()
        self.fc_mu, self.fc_var = nn.Linear(32, 5), nn.Linear(32, 5)


@pytest.fixture
def lightning_file(tmp_path, monkeypatch):
    """Write a file as Lightning 1.1 does.

    Its hyper-parameters are in a dict class of its own, its callbacks keyed by class.
    """

    class AttributeDict(dict):
        __module__, __qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"

    class ModelCheckpoint:
        __module__, __qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"

    latent, ae = Latent(), models.build_autoencoder("mnist_conv")
    state = {k.replace("shortcut.", "downsample."): v for k, v in latent.state_dict().items()}
    state |= {f"ae.{k}": v for k, v in ae.state_dict().items()} | {"sift.gk": torch.ones(1, 3)}
    with monkeypatch.context() as patch:
        for cls in (AttributeDict, ModelCheckpoint):
            for i in range(1, len(cls.__module__.split(".")) + 1):
                name = ".".join(cls.__module__.split(".")[:i])
                patch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
        content = {
            "epoch": 499,
            "pytorch-lightning_version": "1.1.2",
            "state_dict": state,
            "hyper_parameters": AttributeDict(latent_dim=5),
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.7)}},
        }
        torch.save(content, tmp_path / "cifar10_resnet.ckpt")
    return tmp_path / "cifar10_resnet.ckpt", latent, ae


def test_vmdls_lightning_file(lightning_file):
    path, latent, ae = lightning_file
    assert "pytorch_lightning.utilities.parsing" not in sys.modules
    checkpoint = read(path)
    assert (
        checkpoint.format == "lightning"
        and checkpoint.meta["hyper_parameters"] == {"latent_dim": 5}
        and checkpoint.meta["epoch"] == 499
    )
    whole, auto, encoder = (
        Latent(),
        models.build_autoencoder("mnist_conv"),
        models.build("resnet18", 3, width=4, pool="adaptive"),
    )
    load_into(whole, path)
    load_into(auto, checkpoint)
    head = encoder.fc.weight.clone()
    load_into(encoder, checkpoint)
    assert (
        same(whole, latent)
        and same(auto, ae)
        and torch.equal(encoder.conv1.weight, latent.encoder.conv1.weight)
    )
    assert torch.equal(encoder.fc.weight, head), "the file has no classifier head"


def test_autoencoder_lightning_file(tmp_path):
    ae, other = (
        models.build_autoencoder("resnet18", latent_dim=8),
        models.build_autoencoder("resnet18", latent_dim=8),
    )
    state = {
        k.replace("encoder.layer2.0.shortcut.", "encoder.layer2.0.downsample."): v
        for k, v in ae.state_dict().items()
    }
    torch.save({"state_dict": state, "pytorch-lightning_version": "1.1.2"}, tmp_path / "ae.ckpt")
    load_into(other, tmp_path / "ae.ckpt")
    assert same(ae, other)


def test_bare_state_dicts(tmp_path):
    network = models.build("wrn", 10, depth=10, width=1)
    state = {
        k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")
    }  # as before PyTorch 0.4.1
    for content in (
        state,
        {f"module.{k}": v for k, v in state.items()},
        {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ):
        torch.save(content, tmp_path / "cifar10_wrn.pt")
        other = models.build(**network.arch)
        load_into(other, tmp_path / "cifar10_wrn.pt")
        assert same(network, other)


def test_foreign_networks_take_their_own_files(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(num_classes=3)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    adapted = models.build("torchvision_resnet18", 3, image_size=64)
    load_into(adapted, tmp_path / "resnet18.pth")
    assert same(adapted.network, network)


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    torch.save(small(width=16).state_dict(), tmp_path / "x.pt")
    network, before = small(1), small(1)
    with pytest.raises(
        CheckpointError,
        match=r"x.pt \(bare, .* does not fit small_cnn with 4 classes .* of another shape",
    ) as error:
        load_into(network, tmp_path / "x.pt")
    assert "\n" not in str(error.value) and same(network, before)
    with pytest.raises(
        CheckpointError, match=r"missing \(conv1.weight, .*unexpected \(stage1.0.weight"
    ):
        load_into(models.build("resnet18", 4), tmp_path / "x.pt")


# files that are refused


class Attack:
    """Unpickled, it would create the file `witness`."""

    def __init__(self, how, witness):
        self.how, self.witness = how, witness

    def __reduce__(self):
        import os

        return {
            "system": (os.system, (f"touch {self.witness}",)),
            "eval": (eval, (f"open({str(self.witness)!r}, 'w')",)),
            "open": (open, (str(self.witness), "w")),
            "partial": (__import__("functools").partial, (open, str(self.witness), "w")),
            "load": (torch.load, (str(self.witness),)),
        }[self.how]


@pytest.mark.parametrize("how", ["system", "eval", "open", "partial", "load"])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_code_is_never_run(tmp_path, how, container):
    witness, path = tmp_path / "witness", tmp_path / "evil.pt"
    content = {"state_dict": small().state_dict(), "extra": Attack(how, witness)}
    if container == "pickle":
        path.write_bytes(pickle.dumps({"extra": Attack(how, witness)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert not witness.exists() and "\n" not in str(error.value) and str(path) in str(error.value)
    if container != "pickle":
        assert "might run code" in str(error.value) or "more than tensors" in str(error.value)


def test_a_whole_network_is_refused(tmp_path):
    torch.save(small(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"models\.small\.SmallCNN.*re-save its state_dict"):
        read(tmp_path / "whole.pt")


def test_stand_ins_are_harmless(tmp_path):
    """A file may call the few allowed names with any argument.

    It gets an error or a plain value.
    """
    for arguments in (("O",), ("f8; import os",), (3,)):

        class Call:
            def __reduce__(self):
                return np.dtype, arguments

        buffer = io.BytesIO()
        try:
            torch.save({"state_dict": {"a": torch.ones(1)}, "x": Call()}, buffer)
        except Exception:
            continue
        (tmp_path / "x.pt").write_bytes(buffer.getvalue())
        with pytest.raises(CheckpointError):
            read(tmp_path / "x.pt")


def whole_file(tmp_path):
    torch.save({"state_dict": small().state_dict()}, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "name, message",
    [
        ("empty", r"empty \(0 bytes\)"),
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("text", "not a PyTorch weight file"),
        ("truncated", "truncated"),
        ("flipped", "refused|damaged|not"),
        ("half_pickle", "damaged"),
        ("html", "not a PyTorch weight file"),
        ("npz", "another kind of archive"),
        ("tensor", "found a Tensor"),
        ("list", "found a list"),
        ("config", "found a dict with keys 'lr'"),
        ("nested", "expected a state dict .* found a dict with keys 'a'"),
        ("none", "found a NoneType"),
        ("empty_dict", "no keys"),
        ("own_broken", "expected a state dict"),
    ],
)
def test_bad_files(tmp_path, name, message):
    path, data = tmp_path / f"{name}.pt", None
    if name == "empty":
        path.touch()
    elif name == "folder":
        path.mkdir()
    elif name in ("text", "html"):
        path.write_text(
            "hello, weights" if name == "text" else "<!DOCTYPE html><html>Quota exceeded</html>"
        )
    elif name == "truncated":
        path.write_bytes(whole_file(tmp_path)[:3000])
    elif name == "flipped":
        path.write_bytes(b"\0" * 64 + whole_file(tmp_path)[64:2000])
    elif name == "half_pickle":
        torch.save({"state_dict": small().state_dict()}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:1500])
    elif name == "npz":
        np.savez(tmp_path / "x.npz", a=np.ones(3))
        (tmp_path / "x.npz").rename(path)
    elif name != "missing":
        data = {
            "tensor": torch.ones(3),
            "list": [torch.ones(3)],
            "config": {"lr": 0.1},
            "nested": {"state_dict": {"a": {"b": torch.ones(1)}}},
            "none": None,
            "empty_dict": {},
            "own_broken": {"format": "ood-1", "arch": {}},
        }[name]
        torch.save(data, path)
    with pytest.raises(CheckpointError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def rewrite(path, old, new):
    """Replace bytes in the pickle of a weight file (zip or legacy)."""
    data = path.read_bytes()
    if not data.startswith(b"PK"):
        path.write_bytes(data.replace(old, new))
        return
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, content in members.items():
            target.writestr(
                name, content.replace(old, new) if name.endswith("data.pkl") else content
            )


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_kind_are_refused(tmp_path, dtype):
    """Copied into float32, complex64 would lose its imaginary part without a word."""
    network = models.build("small_cnn", 3, width=4)
    state = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()
    }
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"of another type .*file {name}, network float32"):
        load_into(network, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(tmp_path, dtype):
    network = models.build("small_cnn", 3, width=4)
    torch.save({k: v.to(dtype) for k, v in network.state_dict().items() if v.dim()}, tmp_path / "w")
    load_into(network, tmp_path / "w")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensor: tensor.to_sparse(), "fc.weight is sparse"),
        (lambda tensor: tensor.to("meta"), r"fc.weight is without values \(meta\)"),
    ],
)
def test_tensors_without_values_are_refused(tmp_path, change, words):
    state = models.build("small_cnn", 3, width=4).state_dict()
    state["fc.weight"] = change(state["fc.weight"])
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("version, refused", [("2.5.1+cu121", True), ("2.6.0", False)])
def test_a_pytorch_in_which_files_can_run_code_reads_none(tmp_path, monkeypatch, version, refused):
    save(tmp_path / "w.pt", {"fc.weight": torch.zeros(2, 2)})
    monkeypatch.setattr(torch, "__version__", version)
    if refused:
        with pytest.raises(
            CheckpointError, match=r"torch 2.5.1\+cu121 .*install torch 2.6 or newer"
        ):
            read(tmp_path / "w.pt")
    else:
        assert list(read(tmp_path / "w.pt").state_dict) == ["fc.weight"]


def test_requirements_name_the_first_pytorch_that_is_safe():
    from conftest import ROOT

    first = ".".join(map(str, models.checkpoints.SAFE))
    assert f"torch>={first}" in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
