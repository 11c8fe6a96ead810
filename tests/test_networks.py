"""Networks: how the library finds them; the CIFAR ResNets of He et al."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from models import wideresnet
from models.resnet_cifar import CifarBlock, CifarResNet
from ood.data import Preprocess, load
from ood.deployment import networks

ROOT = Path(__file__).resolve().parent.parent


def test_in_the_clone_the_package_is_models():
    assert networks.package() is models
    assert networks.submodule("wideresnet") is wideresnet


def test_a_foreign_models_package_is_not_taken(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('the foreign package')")
    code = (
        "from ood.deployment import networks\n"
        "package = networks.package()\n"
        "assert package is networks.package()\n"
        "print(package.__name__, package.build('small_cnn', 3).arch['arch'],"
        " networks.submodule('wideresnet').__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{code}"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["ood.networks", "small_cnn", "ood.networks.wideresnet"]


# the CIFAR networks of He et al.


PUBLISHED = {  # file: (network, accuracy on the test set that the file records)
    "resnet20-12fca82f.th": ("resnet20", 91.78),
    "resnet56-4bfd9763.th": ("resnet56", 93.62),
}


@pytest.mark.parametrize("file", PUBLISHED)
@torch.no_grad()
def test_published_cifar_resnets_classify_real_images(file, reference, reference_data):
    arch, published = PUBLISHED[file]
    network = models.build(arch, 10).eval()
    meta = models.checkpoints.load_into(network, reference / "resnet20" / file)
    assert meta["best_prec1"] == pytest.approx(published)
    images = load("cifar10", "test", reference_data("cifar10-original") / "original", limit=200)
    preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    logits = network(preprocess(images.read(slice(None))))
    assert (logits.argmax(1) == images.labels).float().mean() > 0.87


@torch.no_grad()
def test_a_shortcut_subsamples_and_pads_with_zeros():
    block = CifarBlock(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].eq(0).all() and out[:, 6:].eq(0).all()


def test_a_wrong_depth_names_the_rule():
    with pytest.raises(models.ModelError, match="6 n \\+ 2"):
        CifarResNet(10, depth=21)
