"""Networks of other libraries and of one's own: heads, spellings, recipes, what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.adapter import as_map, logits_of, unwrapped
from models.classifier import average

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import torch
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))

def build(num_classes=4, deep=False):
    return Net(num_classes)

def features():
    return Net(4).body.append(nn.Flatten())

def broken():
    raise OSError("disk on fire")

def nothing():
    return 3
"""


@pytest.fixture
def own_file(tmp_path):
    (tmp_path / "my_file.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    return tmp_path / "my_file.py"


def images(count=3, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def proven(adapted, x, maps=True):
    """The contract of every classifier."""
    adapted = adapted.eval()
    with torch.no_grad():
        every = adapted.everything(x)
        torch.testing.assert_close(adapted.fc(every.features), every.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapted(x), every.logits)
        torch.testing.assert_close(adapted.features(x), every.features)
        if maps:
            torch.testing.assert_close(
                average(adapted.feature_maps(x)[-1], None), every.features, rtol=1e-4, atol=1e-4
            )
    return every


class Body(nn.Module):
    """A trunk with a tail that the tests choose."""

    def __init__(self, *tail, wrap=lambda x: x):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 8, 3, 2))
        self.tail, self.wrap = nn.Sequential(*tail), wrap

    def forward(self, x):
        return self.wrap(self.tail(self.trunk(x)))


POOL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


class CosineLayer(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        scale = self.log_scale.exp()
        return scale * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class Distilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = Body(*POOL)
        self.head, self.head_dist = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        z = self.trunk(x)
        return (self.head(z) + self.head_dist(z.relu())) / 2


@pytest.mark.parametrize(
    "network, classes, maps",
    [
        (Body(*POOL, nn.Linear(8, 4)), 4, True),
        (Body(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.Flatten()), 4, True),
        (Body(nn.Conv2d(8, 4, 1), *POOL), 4, True),
        (Body(*POOL, CosineLayer(8, 4)), 4, False),
        (Distilled(), 4, False),
    ],
    ids=["linear", "conv", "conv then pool", "cosine", "distilled"],
)
def test_every_kind_of_head_is_read_as_a_linear_layer(network, classes, maps):
    adapted = models.adapt(network, image_size=32)
    every = proven(adapted, images(), maps)
    assert every.logits.shape == (3, classes) == (3, adapted.arch["num_classes"])
    assert adapted.fc.weight.shape == (classes, every.features.shape[1])


def test_a_head_that_learns_stays_equal():
    """The linear view of a cosine head is computed from the parameters at every use."""
    adapted = models.adapt(Body(*POOL, CosineLayer(8, 4)), image_size=32)
    with torch.no_grad():
        layer = adapted.network.tail[2]
        layer.weight.add_(1), layer.log_scale.fill_(0.5)
    proven(adapted, images(), maps=False)


@pytest.mark.parametrize(
    "tail, words",
    [
        ((nn.Conv2d(8, 4, 1), nn.ReLU(), *POOL), "does not end in its linear layer"),
        ((*POOL, nn.Linear(8, 4), nn.Softmax(1)), "does not end in its linear layer"),
        ((*POOL,), "no nn.Linear"),
    ],
    ids=["relu after the head", "softmax", "no head"],
)
def test_what_is_no_linear_head_is_refused(tail, words):
    with pytest.raises(models.ModelError, match=words):
        models.adapt(Body(*tail), image_size=32)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"logits": x, "loss": x.sum()},
        lambda x: {"aux": x.sum(), "out": x},
        lambda x: (x, [1]),
        lambda x: [x],
        lambda x: type("Output", (), {"logits": x})(),
        lambda x: {"prediction": x},
    ],
    ids=["dict", "out", "tuple", "list", "object", "another name"],
)
def test_logits_are_found_in_what_a_network_returns(wrap):
    network = Body(*POOL, nn.Linear(8, 4), wrap=wrap)
    proven(models.adapt(network, image_size=32), images())
    assert logits_of(network(images())).shape == (3, 4)


def test_wrapped_networks():
    network = Body(*POOL, nn.Linear(8, 4)).eval()
    for wrapped in (
        nn.DataParallel(network),
        torch.compile(network),
        torch.compile(nn.DataParallel(network)),
    ):
        assert unwrapped(wrapped) is network
        proven(models.adapt(wrapped, image_size=32), images())


class ChannelsLast(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.trunk, self.last, self.tokens = Body(), nn.Identity(), tokens
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        z = self.trunk(x).permute(0, 2, 3, 1)
        z = self.last(z.flatten(1, 2) if self.tokens else z)
        return self.head(z.mean(1) if self.tokens else z.mean((1, 2)))


@pytest.mark.parametrize("tokens", [True, False])
def test_maps_with_the_channels_last_and_tokens_become_maps(tokens):
    every = proven(models.adapt(ChannelsLast(tokens), image_size=32), images())
    assert every.maps[-1].shape == (3, 8, 7, 7)
    assert as_map(torch.zeros(2, 6, 5), "tokens").shape == (2, 5, 6, 1)


def test_a_feature_extractor_has_features_and_no_logits():
    network = models.adapt(Body(*POOL), headless=True, image_size=32).eval()
    every = network.everything(images())
    assert network.headless and network.fc.weight.shape == (0, 8)
    assert every.logits.shape == (3, 0) == network(images()).shape
    assert torch.equal(every.features, network.network(images()))
    assert average(every.maps[-1], None).allclose(every.features, atol=1e-5)


# ---- spellings


def test_own_function(own_file, monkeypatch):
    arch = f"{own_file}:build"
    network = models.build(arch, 5, image_size=32, deep=True)
    proven(network, images())
    assert network.arch == {
        "arch": arch,
        "num_classes": 5,
        "in_channels": 3,
        "image_size": 32,
        "deep": True,
    }
    assert models.build(arch).arch["num_classes"] == 4
    assert models.build(f"{own_file}:features", head="none").headless
    with pytest.raises(models.ModelError, match="runs code; name it yourself: -arch"):
        models.rebuild(network.arch)
    again = models.build(**network.arch)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images()), network(images()))


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("broken", {}, "raised OSError: disk on fire"),
        ("nothing", {}, "returned a int"),
        ("biuld", {}, "did you mean 'build'"),
        ("build", {"depth": 3}, "takes no option depth"),
        ("features", {}, "no nn.Linear"),
        ("build", {"head": "linear"}, "unknown head"),
    ],
)
def test_own_function_that_fails(own_file, name, options, words):
    with pytest.raises(models.ModelError, match=words) as error:
        models.build(f"{own_file}:{name}", image_size=32, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(models.ModelError, match="no file"):
        models.build("nowhere.py:build")


def test_a_weight_file_never_runs_a_function_that_it_names(own_file, tmp_path):
    marker = tmp_path / "ran"
    own_file.write_text(f"open({str(marker)!r}, 'w')\ndef build(): pass\n")
    with pytest.raises(models.ModelError, match="runs code"):
        models.rebuild({"arch": f"{own_file}:build", "num_classes": 3})
    assert not marker.exists()


def test_exported_graph(tmp_path):
    network = Body(*POOL, nn.Linear(8, 4)).eval()
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(network, (images(),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    adapted = models.build(str(tmp_path / "net.pt2"), image_size=32).eval()
    every = proven(adapted, images(5), maps=False)
    assert torch.allclose(every.logits, network(images(5)), atol=1e-6)
    assert torch.allclose(
        every.features, nn.Sequential(*network.tail[:2])(network.trunk(images(5)))
    )
    with pytest.raises(models.ModelError, match="no feature maps"):
        adapted.feature_maps(images())
    with pytest.raises(models.ModelError, match="has 4 classes, expected 7"):
        models.build(str(tmp_path / "net.pt2"), 7, image_size=32)
    softmax = torch.export.export(nn.Sequential(network, nn.Softmax(1)), (images(),))
    torch.export.save(softmax, tmp_path / "softmax.pt2")
    with pytest.raises(models.ModelError, match="not in a linear layer"):
        models.build(str(tmp_path / "softmax.pt2"), image_size=32)


def test_torchscript(tmp_path):
    network = Body(*POOL, nn.Linear(8, 4)).eval()
    torch.jit.trace(network, images()).save(str(tmp_path / "net.ts"))
    adapted = models.build(str(tmp_path / "net.ts"), image_size=32).eval()
    every = proven(adapted, images(5), maps=False)
    assert torch.equal(every.logits, network(images(5))) and torch.equal(
        every.features, every.logits
    )
    (tmp_path / "bad.ts").write_bytes(b"no graph")
    with pytest.raises(models.ModelError, match="cannot be loaded"):
        models.build(str(tmp_path / "bad.ts"))


def test_torchvision_by_both_spellings():
    new, old = (models.build(f"torchvision{c}resnet18", 6, image_size=64) for c in ":_")
    assert new.arch["arch"] == "torchvision:resnet18" and old.arch["arch"] == "torchvision_resnet18"
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.eval()(images(2, 64)), old.eval()(images(2, 64)))
    assert models.rebuild(new.arch).arch == new.arch
    with pytest.raises(models.ModelError, match="did you mean 'resnet18'"):
        models.build("torchvision:resnet81", 6)


def test_torchvision_recipe_of_the_weights(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    plain = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, weights=None, **k: plain(name, **k)
    )
    network = models.build("torchvision:resnet50", 1000, weights="IMAGENET1K_V2")
    assert models.recipe(network) == {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "size": 224,
        "resize": 232,
        "interpolation": "bilinear",
        "channels": 3,
    }
    assert models.recipe(models.build("small_cnn", 3)) is None


@pytest.mark.parametrize(
    "name, head",
    [
        ("resnet10t", "Head"),
        ("levit_128s", "Averaged"),
        ("repvgg_a0", "Head"),
        ("mixer_s32_224", "Head"),
    ],
)
def test_timm(name, head):
    pytest.importorskip("timm")
    network = models.build(f"timm:{name}", 5)
    assert type(network._head).__name__ == head and network.arch["num_classes"] == 5
    proven(network, images(1, network.arch["image_size"]), maps=name != "levit_128s")
    assert models.rebuild(network.arch).state_dict().keys() == network.state_dict().keys()
    recipe = models.recipe(network)
    assert recipe["size"] == network.arch["image_size"] <= recipe["resize"]
    assert recipe["interpolation"] in ("bilinear", "bicubic") and len(recipe["mean"]) == 3


def test_timm_options_and_errors():
    pytest.importorskip("timm")
    small = models.build("timm:vit_tiny_patch16_224", 3, image_size=64, in_channels=1, depth=2)
    assert small.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 3) and len(small.recipe["mean"]) == 1
    none = models.build("timm:vit_tiny_patch16_224", head="none", image_size=64, depth=1)
    assert none.headless and none.features(images(1, 64)).shape == (1, 192)
    with pytest.raises(models.ModelError, match="did you mean 'resnet10t'"):
        models.build("timm:resnet10tt", 3)
    with pytest.raises(models.ModelError, match="widht"):
        models.build("timm:resnet10t", 3, widht=3)


def test_transformers_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    network = models.build(f"hf:{tmp_path}")
    proven(network, images(), maps=False)
    with torch.no_grad():
        assert torch.allclose(network(images()), model(images()).logits)
    assert network.recipe["mean"] == (0.5, 0.5, 0.5) and network.recipe["size"] == 32
    arch = json.loads(json.dumps(network.arch))
    (tmp_path / "config.json").unlink()  # a stored network needs neither folder nor hub
    again = models.rebuild(arch)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), network(images()))
    assert models.build(**{**arch, "num_classes": 3}).fc.out_features == 3
    with pytest.raises(models.ModelError, match="hold the configuration"):
        models.rebuild({k: v for k, v in arch.items() if k != "hf_config"})


@pytest.mark.parametrize("arch", ["timm:resnet18", "hf:google/vit"])
def test_a_missing_library_is_named(arch):
    code = (
        "import sys; sys.modules['timm'] = sys.modules['transformers'] = None\n"
        f"import models\ntry: models.build({arch!r}, 3)\n"
        "except models.ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "pip install" in done.stdout, done.stderr


# ---- prefixes of weight files


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "module.module.", "net._orig_mod."])
def test_prefixes_of_wrapped_weights_are_dropped(tmp_path, prefix):
    network = models.build("small_cnn", 3)
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "wrapped.pt")
    again = models.build("small_cnn", 3)
    models.checkpoints.load_into(again, tmp_path / "wrapped.pt")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters()))


def test_a_lightning_file_may_hold_more_than_the_network(tmp_path):
    network = models.build("small_cnn", 3)
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": state}, tmp_path / "x.ckpt")
    again = models.build("small_cnn", 3)
    models.checkpoints.load_into(again, tmp_path / "x.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters()))
    torch.save({"state_dict": {**state, "model.extra": torch.ones(1)}}, tmp_path / "y.pt")
    with pytest.raises(models.CheckpointError, match="unexpected"):
        models.checkpoints.load_into(again, tmp_path / "y.pt")
