"""Networks: the contract of every architecture, the papers' parameter counts, the authors' outputs.

Also: networks of other libraries.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.autoencoder import MnistConvDecoder, ResNetDecoder
from models.classifier import ModelError, average, parameters

LIGHT = {
    "wrn": {"depth": 10, "width": 2},
    "vmdls_wrn": {"depth": 10, "width": 2},
    "densenet": {"depth": 22},
    "wideresnet": {"depth": 16},
    "resnet18": {"width": 16},
    "resnet34": {"width": 16},
    "resnet50": {"width": 8},
    "resnet44": {"width": 4},
    "resnet56": {"width": 4},
    "resnet110": {"width": 4},
}  # same code, fewer or narrower layers


def light(arch, num_classes=5, **settings):
    torch.manual_seed(0)
    return models.build(arch, num_classes, **{**LIGHT.get(arch, {}), **settings}).eval()


def noise(network, n=3, size=None):
    size = size or network.arch["image_size"]
    return torch.rand(
        n, network.arch["in_channels"], size, size, generator=torch.Generator().manual_seed(1)
    )


# contract


@pytest.mark.parametrize("arch", models.names())
@torch.no_grad()
def test_contract(arch):
    network = light(arch)
    images = noise(network)
    logits, features, maps = network(images), network.features(images), network.feature_maps(images)
    assert (
        logits.shape == (3, 5)
        and features.shape == (3, network.fc.in_features)
        and isinstance(network.fc, nn.Linear)
    )
    assert isinstance(maps, list) and all(m.ndim == 4 and len(m) == 3 for m in maps)
    assert [m.shape[2] for m in maps] == sorted((m.shape[2] for m in maps), reverse=True)
    assert maps[-1].min() >= 0, "the last map comes after a ReLU"
    torch.testing.assert_close(network.fc(features), logits)
    torch.testing.assert_close(network.embed(maps[-1]), features)
    assert [s.shape for s in network.stages(images)] == [m.shape for m in maps]
    taps = network.taps(images)
    assert len(taps) == min(len(maps), 3) + 1 and all(t.ndim == 2 and len(t) == 3 for t in taps)
    torch.testing.assert_close(taps[-1], features)


@pytest.mark.parametrize("arch", models.names())
@torch.no_grad()
def test_one_pass_gives_everything(arch):
    network, passes = light(arch), []
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(1))
    images = noise(network)
    every = network.everything(images)
    assert len(passes) == 1
    torch.testing.assert_close(every.logits, network(images))
    torch.testing.assert_close(every.features, network.features(images))
    for name in ("feature_maps", "stages", "taps"):
        for ours, single in zip(
            getattr(every, "maps" if name == "feature_maps" else name),
            getattr(network, name)(images),
            strict=True,
        ):
            torch.testing.assert_close(ours, single)


@pytest.mark.parametrize("arch", models.names())
@torch.no_grad()
def test_rebuild_from_arch(arch):
    network = light(arch)
    again = models.build(**network.arch).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(noise(network)), network(noise(network)), rtol=0, atol=0)
    assert again.arch == network.arch


@pytest.mark.parametrize("arch", models.names())
def test_trains_and_takes_grey_images(arch):
    network = light(arch, in_channels=1).train()
    loss = F.cross_entropy(network(noise(network, 4)), torch.arange(4))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "arch", ["small_cnn", "small_resnet", "small_wideresnet", "small_densenet"]
)
@pytest.mark.parametrize("channels, size", [(1, 28), (3, 28), (1, 32), (3, 32)])
@torch.no_grad()
def test_small_networks_take_small_images(arch, channels, size):
    assert light(arch, in_channels=channels, image_size=size)(
        torch.rand(2, channels, size, size)
    ).shape == (2, 5)


def test_a_small_network_learns():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 28, 28, generator=generator) * 0.5
    for i, label in enumerate(labels):
        images[i, :, 8 * label : 8 * label + 8] += 0.5
    for arch in ("small_cnn", "small_resnet"):
        network = light(arch, 3, in_channels=1, image_size=28).train()
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(8):
            optimiser.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimiser.step()
        assert (network(images).argmax(1) == labels).float().mean() > 0.95


# the papers' numbers


@pytest.mark.parametrize(
    "arch, classes, settings, count",
    [
        ("densenet", 10, {}, 769_162),
        ("densenet", 100, {}, 800_032),
        ("densenet", 8, {}, 768_476),
        ("resnet20", 10, {}, 269_722),  # 0.27 M in table 6 of He et al.
        ("resnet32", 10, {}, 464_154),
        ("resnet44", 10, {}, 658_586),
        ("resnet56", 10, {}, 853_018),  # 0.85 M
        ("resnet110", 10, {}, 1_727_962),  # 1.7 M
        ("densenet", 80, {}, 793_172),
        ("wrn", 10, {}, 36_479_194),
        ("wrn", 100, {}, 36_536_884),
        ("wrn", 8, {}, 36_477_912),
        ("wrn", 80, {}, 36_524_064),
        ("vmdls_wrn", 10, {}, 36_472_784 + 6_410),
        ("resnet18", 10, {}, 11_168_832 + 5_130),
        ("resnet50", 200, {"image_size": 64}, 23_500_352 + 409_800),
        ("wideresnet", 10, {}, 2_245_184 + 1_290),
        ("vgg", 10, {}, 8_569_600 + 10_250),
        ("mnist_conv", 10, {}, 811_900 + 5_010),
    ],
)
def test_parameter_counts(arch, classes, settings, count):
    with torch.device("meta"):
        assert parameters(models.build(arch, classes, **settings)) == count


@pytest.mark.parametrize(
    "arch, classes, count",
    [
        ("resnet18", 10, 3_626_124),
        ("resnet18", 100, 7_262_784),
        ("wideresnet", 10, 1_231_264),
        ("wideresnet", 100, 1_242_784),
        ("resnet50", 200, 62_501_504),
    ],
)
def test_decoder_parameter_counts(arch, classes, count):
    with torch.device("meta"):
        network = models.build(arch, classes, image_size=64 if arch == "resnet50" else 32)
        assert parameters(models.decoder_for(network)) == count


def filled(golden, network, theirs=lambda key: key):
    network.load_state_dict(
        {k: golden.fill.value(theirs(k), v.shape) for k, v in network.state_dict().items()}
    )
    return network.eval()


def assert_digest(tensor, wanted):
    assert list(tensor.shape) == wanted["shape"]
    scale = wanted["absmax"]
    assert tensor.flatten()[:8].tolist() == pytest.approx(
        wanted["first8"], rel=1e-4, abs=1e-4 * scale
    )
    assert tensor.mean().item() == pytest.approx(wanted["mean"], rel=1e-4, abs=1e-5 * scale)
    assert tensor.std().item() == pytest.approx(wanted["std"], rel=1e-4)
    assert tensor.abs().max().item() == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize(
    "arch, name",
    [
        ("resnet18", "cifar10_resnet18"),
        ("resnet18", "cifar100_resnet18"),
        ("wideresnet", "cifar10_wideresnet_40_2"),
        ("resnet50", "tinyimagenet_resnet50"),
    ],
)
@torch.no_grad()
def test_heatmap_networks_and_decoders(golden, arch, name):
    wanted = golden("heatmap")[name]
    size = 64 if arch == "resnet50" else 32
    network = models.build(arch, wanted["head_keys"][0][1][0], image_size=size)
    keys = [k for k in network.state_dict() if not k.startswith("fc.")]
    assert len(keys) == wanted["encoder_keys"] and [keys[0], keys[-1]] == [
        k for k, _ in wanted["encoder_first_last"]
    ]
    every = filled(golden, network, lambda key: key.replace("fc.", "linear.")).everything(
        golden.fill.image(2, 3, size, size)
    )
    assert_digest(every.features, wanted["features"])
    assert_digest(every.logits, wanted["logits"])
    for ours, tap in zip([every.features, *every.stages[::-1]], wanted.get("taps_fw4", [])):
        assert_digest(ours, tap)
    decoder = models.decoder_for(network)
    assert [[k, list(v.shape)] for k, v in decoder.state_dict().items()] == wanted["decoder_keys"]
    filled(golden, decoder)
    for fw in (1, 2, 3, 4):
        if f"map_fw{fw}" in wanted:
            heat = decoder(every.features, every.logits.argmax(1), every.stages[::-1][: fw - 1])
            assert_digest(heat, wanted[f"map_fw{fw}"])
            assert heat.abs().amax(1).mean((1, 2)).tolist() == pytest.approx(
                wanted[f"score_fw{fw}"], rel=1e-4
            )


@pytest.mark.parametrize("arch, name", [("densenet", "dense_8"), ("wrn", "wide_8")])
@torch.no_grad()
def test_leaveout_networks(golden, arch, name):
    wanted = golden("leaveout")["networks"][name]
    network = filled(golden, models.build(arch, 8))
    keys = list(network.state_dict())
    assert len(keys) == wanted["keys"] and [keys[0], keys[-1]] == [
        k for k, _ in wanted["first_last"]
    ]
    assert_digest(network(golden.fill.waves(2, 3, 32, 32)), wanted["logits"])


@pytest.mark.parametrize(
    "arch, name",
    [
        ("densenet", "densenet"),
        ("resnet18", "resnet18"),
        ("vgg", "vgg"),
        ("vmdls_wrn", "wresnet_dropout_off"),
        ("mnist_conv", "mnist-conv"),
    ],
)
@torch.no_grad()
def test_vmdls_taps(golden, arch, name):
    wanted = golden("vmdls")["encoders"][name]
    network = filled(
        golden, models.build(arch, 10), lambda key: key.replace("shortcut.", "downsample.")
    )
    keys = [k for k in network.state_dict() if arch == "densenet" or not k.startswith("fc.")]
    assert len(keys) == wanted["keys"] and [keys[0], keys[-1]] == [
        k for k, _ in wanted["key_list_first_last"]
    ]
    taps = network.taps(
        golden.fill.image(2, network.arch["in_channels"], *2 * [network.arch["image_size"]])
    )
    for ours, tap in zip(taps, wanted["taps"], strict=True):
        assert_digest(ours, tap)


@pytest.mark.parametrize(
    "name, decoder, latent",
    [("resnet18_decoder", ResNetDecoder, 256), ("mnist_decoder", MnistConvDecoder, 32)],
)
@torch.no_grad()
def test_autoencoder_decoders(golden, name, decoder, latent):
    wanted = golden("vmdls")[name]
    network = filled(golden, decoder(latent))
    assert len(network.state_dict()) == wanted["keys"]
    assert_digest(network(golden.fill.value("z.weight", (2, latent))), wanted["out"])


@torch.no_grad()
def test_vmdls_wrn_drops_at_test_only_when_asked():
    for asked in (False, True):
        network = light("vmdls_wrn", dropout_at_test=asked)
        images = noise(network)
        assert torch.equal(network(images), network(images)) is not asked


# images of other sizes, initialisation


@pytest.mark.parametrize(
    "arch, window", [("densenet", 8), ("wrn", 8), ("wideresnet", 8), ("resnet18", 4)]
)
@torch.no_grad()
def test_36_pixels_lose_a_border(arch, window):
    network = light(arch)
    images = noise(network, size=36)
    last = network.feature_maps(images)[-1]
    assert last.shape[2:] == (window + 1, window + 1)
    torch.testing.assert_close(network.features(images), last[:, :, :window, :window].mean((2, 3)))
    adaptive = light(arch, pool="adaptive")
    adaptive.load_state_dict(network.state_dict())
    torch.testing.assert_close(adaptive.features(images), last.mean((2, 3)))
    torch.testing.assert_close(adaptive.features(noise(network)), network.features(noise(network)))
    with pytest.raises(models.ModelError, match="window"):
        network(noise(network, size=64))


def test_resnet_pools_after_the_stem_from_64_pixels():
    with torch.no_grad():
        assert [
            m.shape[2]
            for m in light("resnet18", image_size=64).feature_maps(torch.rand(1, 3, 64, 64))
        ] == [32, 16, 8, 4]


def test_initialisation():
    torch.manual_seed(0)
    conv = models.build("densenet", 10).block2.layer[3].conv2.weight  # (12, 48, 3, 3)
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 12)), rel=0.05)
    released = models.build("densenet", 10, init="released")
    assert released.block2.layer[3].conv2.weight.std().item() == pytest.approx(
        math.sqrt(2 / 16), rel=0.05
    )
    assert released.trans1.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / 16), rel=0.05)
    assert models.build("wrn", 10, depth=10, width=1).fc.bias.abs().max() == 0
    assert models.build("wideresnet", 10).bn1.momentum == 0.9
    assert models.build("resnet18", 10).conv1.weight.abs().max() <= 1 / math.sqrt(
        27
    )  # PyTorch's own: uniform


@pytest.mark.parametrize(
    "arch, option", [("densenet", "dropout"), ("wrn", "dropout"), ("wideresnet", "dropout")]
)
def test_dropout_acts_in_training_only(arch, option):
    network = light(arch, **{option: 0.5})
    images = noise(network)
    with torch.no_grad():
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))


def test_dropout_position_changes_training_only():
    outputs = {}
    for position in ("before_conv2", "before_bn2"):
        network = light("wrn", dropout=0.5, dropout_position=position)
        with torch.no_grad():
            outputs[position] = network(noise(network))
            torch.manual_seed(1)
            outputs[position + " train"] = network.train()(noise(network))
    assert torch.equal(outputs["before_conv2"], outputs["before_bn2"])
    assert not torch.equal(outputs["before_conv2 train"], outputs["before_bn2 train"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("densnet", 10), "did you mean 'densenet'"),
        (("densenet", 10, 3, 28), "too small"),
        (("resnet18", 10, 3, 16), "too small"),
        (("resnet18", 10, 3, 224), "too large"),
        (("densenet", 0), "num_classes"),
        (("densenet", "10"), "num_classes"),
        (("adapted", 3), "adapt"),
        (("small_cnn", 10, 3, 4), "at least 8"),
        (("vgg", 10, 3, 4), "at least 8"),
        (("torchvision_resnet19", 10), "did you mean 'resnet18'"),
        (("torchvision_resnet18", 10, 1), "3 channels"),
    ],
)
def test_bad_builds(arguments, message):
    with pytest.raises(models.ModelError, match=message) as error:
        models.build(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arch, options, message",
    [
        ("densenet", {"grwth": 3}, "did you mean 'growth'"),
        ("densenet", {"depth": 99}, "6 n"),
        ("wrn", {"depth": "40"}, "type int"),
        ("wrn", {"dropout": 1.5}, "dropout"),
        ("wrn", {"dropout_position": "before_bn"}, "did you mean 'before_bn2'"),
        ("resnet18", {"depth": 50}, "unknown option"),
        ("densenet", {"pool": "4x4"}, "8x8"),
        ("densenet", {"init": "fanout"}, "fan_out"),
        ("torchvision_resnet18", {"weight": "DEFAULT"}, "did you mean 'weights'"),
        ("torchvision_resnet18", {"weights": "NONE"}, "DEFAULT"),
    ],
)
def test_bad_options(arch, options, message):
    with pytest.raises(models.ModelError, match=message):
        models.build(arch, 10, **options)


def test_options_are_listed_and_kept():
    assert models.options("wrn")["width"] == 10 and models.options("small_wideresnet")["width"] == 2
    assert models.build("densenet", 4, depth=22, growth=8).arch == {
        "arch": "densenet",
        "num_classes": 4,
        "in_channels": 3,
        "image_size": 32,
        "depth": 22,
        "growth": 8,
        "reduction": 0.5,
        "dropout": 0.0,
        "pool": "8x8",
        "init": "fan_out",
    }


# decoder and auto-encoders


@pytest.mark.parametrize("arch", [a for a in models.names() if a != "resnet50"])
@torch.no_grad()
def test_a_decoder_for_every_classifier(arch):
    network = light(arch)
    size, channels = network.arch["image_size"], network.arch["in_channels"]
    decoder = models.decoder_for(network).eval()
    every = network.everything(noise(network))
    heat = decoder(every.features, every.logits.argmax(1))
    assert heat.shape == (3, channels, size, size) and heat.abs().max() <= 1
    assert not torch.equal(heat, decoder(every.features, (every.logits.argmax(1) + 1) % 5)), (
        "the class must matter"
    )
    again = models.Decoder(**decoder.arch).eval()
    again.load_state_dict(decoder.state_dict())
    assert torch.equal(again(every.features, every.logits.argmax(1)), heat)


@torch.no_grad()
def test_decoder_on_small_grey_images():
    network = light("small_wideresnet", 10, in_channels=1, image_size=28)
    decoder = models.decoder_for(network, fw_layers=4).eval()
    every = network.everything(noise(network))
    heat = [
        decoder(every.features, every.logits.argmax(1), every.stages[::-1][:n]) for n in range(4)
    ]
    assert all(h.shape == (3, 1, 28, 28) for h in heat) and not any(
        torch.equal(a, b) for a, b in zip(heat, heat[1:])
    )
    with pytest.raises(models.ModelError, match="fw_layers=1"):
        models.decoder_for(light("small_cnn", in_channels=1, image_size=28), fw_layers=2)
    with pytest.raises(models.ModelError, match="multiple"):
        models.Decoder(8, 10, channels=(8, 8, 8, 8), image_size=28)
    assert models.decoder_for(network, channels=[16, 8], bottleneck=8).arch["channels"] == [16, 8]


@pytest.mark.parametrize("kind, shape", [("resnet18", (3, 32, 32)), ("mnist_conv", (1, 28, 28))])
@torch.no_grad()
def test_autoencoders_keep_the_shape(kind, shape):
    network = models.build_autoencoder(kind).eval()
    assert network(torch.rand(2, *shape)).shape == (2, *shape)
    assert not any(k.startswith("encoder.fc.") for k in network.state_dict())
    models.build_autoencoder(**network.arch).load_state_dict(network.state_dict())


def test_autoencoder_errors():
    with torch.device("meta"):
        assert parameters(models.build_autoencoder("resnet50")) > 4e7
    with pytest.raises(models.ModelError, match="resnet18"):
        models.build_autoencoder("resnet19")
    with pytest.raises(models.ModelError, match="28 x 28"):
        models.build_autoencoder("mnist_conv", image_size=32)


# foreign networks


@pytest.mark.parametrize(
    "name, maps",
    [
        ("resnet18", "mean"),
        ("densenet121", "mean"),
        ("swin_t", "mean"),
        ("vgg11", "some"),
        ("vit_b_16", "none"),
    ],
)
def test_adapt_torchvision(name, maps):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        name, num_classes=7, **({"image_size": 32} if name.startswith("vit") else {})
    )
    adapted = models.adapt(network.train())
    assert adapted.training and network.training, "the mode is left as it was"
    adapted.eval()
    images = torch.rand(2, 3, 64 if maps == "mean" else 32, 64 if maps == "mean" else 32)
    with torch.no_grad():
        logits, features, last, _, taps = adapted.everything(images)
        torch.testing.assert_close(logits, network(images))
        torch.testing.assert_close(adapted.fc(adapted.features(images)), logits)
        torch.testing.assert_close(taps[-1], features)
        if maps == "mean":
            torch.testing.assert_close(average(last[-1], None), features)
            torch.testing.assert_close(adapted.embed(adapted.feature_maps(images)[-1]), features)
        elif maps == "some":
            assert adapted.feature_maps(images)[-1].ndim == 4
            with pytest.raises(models.ModelError, match="mean"):
                adapted.embed(last[-1])
        else:
            with pytest.raises(models.ModelError, match="no feature map"):
                adapted.feature_maps(images)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules()), (
        "no hook stays behind"
    )


def test_adapted_gradients_reach_the_images():
    adapted = models.adapt(pytest.importorskip("torchvision").models.resnet18(num_classes=3)).eval()
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    adapted(images).logsumexp(1).sum().backward()
    assert images.grad.abs().sum() > 0


def test_adapt_timm():
    timm = pytest.importorskip("timm")
    adapted = models.adapt(timm.create_model("resnet10t", num_classes=4)).eval()
    with torch.no_grad():
        every = adapted.everything(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(adapted.fc(every.features), every.logits)
    torch.testing.assert_close(average(every.maps[-1], None), every.features)


def test_adapt_own_networks():
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 4))
    adapted = models.adapt(network)
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(adapted.features(images), network[:3](images))
    assert adapted.fc is network[3] and adapted.arch["num_classes"] == 4
    unusual = nn.Sequential(nn.Flatten(), nn.Linear(2 * 17 * 17, 4))
    with pytest.raises(models.ModelError, match="pass in_channels and image_size"):
        models.adapt(unusual)
    assert models.adapt(unusual, in_channels=2, image_size=17).fc is unusual[1]
    ours = light("small_cnn")
    assert models.adapt(ours) is ours


class Reversed(nn.Module):
    """Its head is defined first and a second linear layer, in the middle, last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.middle = nn.Linear(12, 6)

    def forward(self, x):
        return self.head(self.middle(x.mean((2, 3)).repeat(1, 4)).relu())


def test_adapt_takes_the_layer_that_runs_last():
    adapted = models.adapt(Reversed())
    assert adapted.head == "head"
    assert models.adapt(Reversed(), head="head").head == "head"
    with pytest.raises(models.ModelError, match="does not end"):
        models.adapt(Reversed(), head="middle")
    with pytest.raises(models.ModelError, match="did you mean 'head'"):
        models.adapt(Reversed(), head="heads")


@pytest.mark.parametrize(
    "tail, message",
    [
        ([nn.Linear(4, 3), nn.Softmax(1)], "does not end in its linear layer"),
        ([], "no nn.Linear"),
        ([nn.Linear(4, 3), nn.Unflatten(1, (3, 1))], "instead of logits"),
        ([nn.Unflatten(1, (1, 4)), nn.Linear(4, 3), nn.Flatten()], r"\(N, D\)"),
    ],
)
def test_adapt_refuses(tail, message):
    with pytest.raises(models.ModelError, match=message) as error:
        models.adapt(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)
        )
    assert "\n" not in str(error.value)


def test_torchvision_by_name():
    pytest.importorskip("torchvision")
    network = models.build("torchvision_resnet18", 6, image_size=64).eval()
    again = models.build(**network.arch).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(noise(network)), network(noise(network)))
        assert network(noise(network)).shape == (3, 6)


def test_torchvision_weights_with_another_head(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    plain, asked = torchvision.models.get_model, []
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, weights=None, **k: asked.append(weights) or plain(name, **k),
    )
    assert models.build("torchvision_resnet18", 1000, image_size=64).fc.out_features == 1000
    network = models.build("torchvision_resnet18", 5, image_size=64, weights="IMAGENET1K_V1")
    assert (
        asked == [None, "IMAGENET1K_V1"]
        and network.fc.out_features == 5
        and "weights" not in network.arch
    )
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)


# ---- dropout


@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "sliced"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_dropout_on_the_cpu_has_the_rate_the_scale_and_the_gradient(layout, dtype):
    from models.dropout import drop

    x = torch.ones(40, 16, 16, 32, dtype=dtype)
    x = (
        {
            "contiguous": x,
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "sliced": x[:, :, ::2, 1:],
        }[layout]
        .detach()
        .requires_grad_()
    )
    torch.manual_seed(3)
    y = drop(x, 0.3, True)
    y.sum().backward()
    assert (
        y.shape == x.shape
        and y.dtype == dtype
        and set(y.detach().float().unique().tolist())
        == {0.0, torch.tensor(65536 / (65536 - 19661), dtype=dtype).item()}
    )
    kept = (y != 0).double()
    assert kept.mean().item() == pytest.approx(0.7, abs=4 * (0.21 / y.numel()) ** 0.5)
    assert torch.equal(x.grad, y.detach())  # x is 1 everywhere
    a, b = (
        kept.flatten()[:-1] - 0.7,
        kept.flatten()[1:] - 0.7,
    )  # entries from one draw are independent
    assert abs((a * b).mean().item()) < 4 * 0.21 / y.numel() ** 0.5
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.3, True), y) and not torch.equal(drop(x, 0.3, True), y)


def test_dropout_off_and_at_its_ends():
    from models.dropout import drop

    x = torch.rand(5, 7)
    assert (
        drop(x, 0.3, False) is x
        and torch.equal(drop(x, 0.0, True), x)
        and not drop(x, 1.0, True).any()
    )
    assert drop(torch.empty(0, 3), 0.5, True).shape == (0, 3)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("resnet18", 0), "positive integer, got 0"),
        (("resnet18", 10**12), "num_classes=1000000000000 would need at least"),
        (("resnet18", 10**30), "cannot be built with num_classes"),
        (("small_cnn", 10, 3, 100_000), "image_size=100000 would need at least"),
        (("vgg", 10, 3, 100_000), "image_size=100000 would need at least"),
    ],
)
def test_networks_that_no_memory_holds_are_refused(arguments, words):
    began = torch.random.get_rng_state()
    with pytest.raises(ModelError, match=words):
        models.build(*arguments)
    assert torch.equal(began, torch.random.get_rng_state())


def test_endless_networks_are_refused():
    for arch in ("wrn", "wideresnet", "densenet"):
        with pytest.raises(ModelError, match="4000 at most"):
            models.build(arch, 10, depth=6 * 10**9 + 4)
    assert models.build("small_cnn", 2000, width=4).fc.out_features == 2000
