"""ood.compat.model: pytorch-ood's networks with the same weights, and its registry of weights."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from test_weights import publish, saved, server, state  # noqa: F401  (fixtures)

import models
from models import weights
from ood.compat import EnergyBased, OODMetrics, model
from ood.data import ArrayImages, Preprocess
from ood.deployment import networks
from ood.outputs import extract

peer = pytest.importorskip("pytorch_ood.model", reason="pytorch-ood is not installed")
KEYS = peer.list_models()

NETWORKS = {
    "WideResNet": ({"num_classes": 10, "depth": 10, "widen_factor": 1}, 32, 64),
    "ResNet18": ({"num_classes": 7}, 64, 512),
    "ResNet50": ({"num_classes": 7}, 64, 2048),
}


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    """(ours, theirs, images) of a network with the same weights."""
    arguments, size, _ = NETWORKS[request.param]
    torch.manual_seed(0)
    theirs = getattr(peer, request.param)(**arguments).eval()
    ours = getattr(model, request.param)(**arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.rand(2, 3, size, size)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_same_weights_give_the_same_outputs(pair):
    ours, theirs, images = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    same(ours(images), theirs(images))
    same(ours.features(images), theirs.features(images))
    maps = ours.feature_maps(images)
    same(maps, theirs.feature_maps(images))
    same(ours.forward_feature_maps(maps), theirs.forward_feature_maps(maps))
    listed = getattr(theirs, "feature_list", lambda x: [maps, maps.mean((2, 3), True), ours(x)])
    for our, their in zip(ours.feature_list(images), listed(images), strict=True):
        same(our, their)


@torch.no_grad()
def test_our_own_passes_take_them_too(pair):
    ours, _, images = pair
    network = models.adapt(ours, image_size=images.shape[-1])
    every = network.everything(images)
    same(every.logits, ours(images))
    same(every.features, ours.features(images))
    same(every.maps[-1], ours.feature_maps(images))


def test_training_is_the_same_and_dropout_stands_where_it_stood():
    ours, theirs = (m.WideResNet(10, 10, 1, drop_rate=0).train() for m in (model, peer))
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(4, 3, 32, 32)
    same(ours(images), theirs(images))
    same(ours.bn1.running_mean, theirs.bn1.running_mean)
    block = model.WideResNet(10, 10, 1).block1.layer[0]
    assert (block.dropout, block.position, block.drop_at_test) == (0.3, "before_conv2", False)


def test_a_pass_with_taps_takes_the_maps_of_all_images():
    network = model.WideResNet(3, depth=10, widen_factor=1).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    images = ArrayImages(pixels, np.zeros(5, np.int64), name="toy", split="test")
    outputs = extract(network, images, Preprocess((0.5,) * 3, (0.5,) * 3), taps=True)
    same(outputs.taps[0], outputs.features)


@torch.no_grad()
def test_gru():
    theirs, ours = (library.GRUClassifier(3, 20, 5).eval() for library in (peer, model))
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(0, 20, (4, 7))
    same(ours(tokens), theirs(tokens))
    same(ours.features(tokens), theirs.features(tokens))


def test_blocks_of_the_module():
    for library in (peer, model):
        place = inspect.getmodule(library.WideResNet)
        block = place.NetworkBlock(2, 4, 8, place.BasicBlock, 2, 0.1)
        assert block(torch.rand(1, 4, 8, 8)).shape == (1, 8, 4, 4)


def test_networks_can_be_pickled():
    network = model.WideResNet(3, depth=10, widen_factor=1).eval()
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images), network(images))


# the registry


@pytest.mark.parametrize("key", KEYS)
def test_every_entry_says_the_same(key):
    ours, theirs = model.get_model_info(key), peer.get_model_info(key)
    for field in ("key", "url", "sha256", "arch", "dataset", "loss", "seed", "file_name"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.arch_class == theirs.arch_class.replace("pytorch_ood", "ood.compat")
    assert {"weights": None, **ours.arch_kwargs} == {"weights": None, **theirs.arch_kwargs}
    assert dataclasses.asdict(ours.preprocessing) == dataclasses.asdict(theirs.preprocessing)
    stated = {when: ours.metrics[when] for when in theirs.metrics}
    assert stated == pytest.approx(theirs.metrics, abs=1e-4)
    assert ours.source.startswith("https://") and ours.description


@pytest.mark.parametrize(
    "part", [{}, {"arch": "wrn-40-2"}, {"dataset": "cifar100", "loss": "vos"}, {"loss": "none"}]
)
def test_lists_are_the_same(part):
    assert model.list_models(**part) == peer.list_models(**part)


def test_a_name_without_a_seed_and_names_that_are_not_there():
    assert model.get_model_info("wrn-40-2/cifar10/oe").seed is None
    for name in ("wrn-40-2/cifar10/logitnorm", "wrn-40-2/cifar10", "nothing/here"):
        for library in (peer, model):
            with pytest.raises(ValueError):
                library.get_model_info(name)
    with pytest.raises(ValueError, match="models.load"):
        model.load_model("resnet-20/cifar10/crossentropy")


@pytest.mark.parametrize("key", ["wrn-40-2/cifar10/oe", "resnet-18/imagenet200/oe/s0"])
def test_transforms_give_the_same_inputs(key):
    rng = np.random.default_rng(0)
    for shape in ((40, 30, 3), (32, 32, 3), (300, 280)):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        ours, theirs = model.load_transform(key), peer.load_transform(key)
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)
        assert pickle.loads(pickle.dumps(ours))(image).shape == theirs(image).shape


def test_transforms_take_batches_of_pixels():
    transform = model.load_transform("wrn-40-2/cifar10/oe")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(transform(pixels)[0], transform(image))
    torch.testing.assert_close(transform(pixels / 255), transform(pixels))


# loading, from a local publisher


@pytest.fixture
def hub(publish, tmp_path, monkeypatch):  # noqa: F811
    """torch.hub's folder; the entry of the README is published here, with small weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = peer.WideResNet(10, depth=10, widen_factor=1)
    name, small = "wrn-40-2/cifar10/energy/s1", {"depth": 10, "width": 1, "dropout": 0.3}
    for_cifar = {"arch": "wrn", "num_classes": 10, "options": small, "seed": "s1"}
    publish(name, body=saved(network.state_dict()), **for_cifar)
    return tmp_path / "hub" / "checkpoints", network.eval(), name


@torch.no_grad()
def test_load_model_as_in_the_readme(hub, server):  # noqa: F811
    folder, theirs, name = hub
    network = model.load_model(name)
    preprocess = model.load_transform(name)
    assert type(network) is model.WideResNet and not network.training
    assert (folder / model.get_model_info(name).file_name).is_file()
    detector, metrics = EnergyBased(network), OODMetrics()
    x, y = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, -1, -1, -1])
    x = preprocess(x)
    same(network(x), theirs(x))
    metrics.update(detector(x), y)
    assert set(metrics.compute()) >= {"AUROC", "FPR95TPR"}
    model.load_model(name)
    assert len(server.seen) == 1


@torch.no_grad()
def test_pretrained_as_in_the_older_readme(hub):
    _, theirs, name = hub
    network = model.WideResNet(
        num_classes=10, depth=10, widen_factor=1, pretrained="er-cifar10-tune"
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    same(network(images), theirs(images))
    assert repr(model.WideResNet.transform_for("er-cifar10-tune")) == repr(
        model.load_transform(name)
    )
    with pytest.raises(ValueError, match="did you mean|allowed|list_models"):
        model.WideResNet(10, pretrained="er-cifar1-tune")
    with pytest.raises(RuntimeError, match="does not fit wrn with 4 classes"):
        model.WideResNet(4, depth=10, widen_factor=1, pretrained="er-cifar10-tune")


def test_every_older_name_is_known():
    older = networks.submodule  # the networks are those of this repository
    assert older("weights") is weights
    for name in inspect.getmodule(model.WideResNet).OLDER.values():
        assert weights.find(name).arch == "wrn"
        assert model.WideResNet.norm_std_for(name) == list(weights.find(name).std)


def test_a_wrong_file_is_refused(hub, server):  # noqa: F811
    server.files["/weights.pt"] += b"!"
    with pytest.raises(RuntimeError, match="the file has the sha256"):
        model.load_model(hub[2])


def test_without_a_connection_the_error_is_pytorch_oods(hub, server):  # noqa: F811
    server.files.clear()
    with pytest.raises(RuntimeError, match="answered 404"):
        model.load_model(hub[2])
