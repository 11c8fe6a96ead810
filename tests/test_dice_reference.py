"""Our DICE path on the DICE authors' weights gives what their code gave, image by image."""

import json

import numpy as np
import pytest
import torch

import models
from ood import detectors
from ood.data import Preprocess, load
from ood.outputs import extract

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def scored(reference, reference_data, tmp_path_factory):
    rows = json.loads((reference / "dice" / "scores.json").read_text())["images"]
    data = reference_data("cifar10", "isun", "dtd")
    folder = tmp_path_factory.mktemp("named")
    for number, row in enumerate(rows):
        (folder / f"{number:04d}_{row['file'].rsplit('/', 1)[-1]}").symlink_to(data / row["file"])
    images = load(str(folder), "test", size=32, channels=3)
    network = models.build("densenet", 10)
    models.checkpoints.load_into(
        network, reference / "dice" / "cifar10_densenet_checkpoint_100.pth.tar"
    )
    odin = {
        eps: detectors.create("odin", magnitude=eps, unit="normalised") for eps in (0.0014, 0.004)
    }
    outputs = extract(
        network, images, Preprocess(MEAN, STD), batch_size=70, image_detectors=odin.values()
    )
    return rows, outputs, odin, str(reference / "dice" / "CIFAR-10_densenet_feat_stat.npy")


def column(rows, name):
    return torch.tensor([row[name] for row in rows], dtype=torch.float64)


def test_logits_msp_and_energy(scored):
    rows, outputs, _, _ = scored
    torch.testing.assert_close(outputs.logits.double(), column(rows, "logits"), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        -detectors.create("msp").score(outputs), column(rows, "msp"), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        -detectors.create("energy").score(outputs).double(),
        column(rows, "energy"),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("percentile", [50, 90])
def test_dice(scored, percentile):
    rows, outputs, _, mean = scored
    detector = detectors.create("dice", percentile=percentile, feature_mean=mean).fit(outputs)
    torch.testing.assert_close(
        -detector.score(outputs).double(),
        column(rows, f"energy_dice_p{percentile}"),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("magnitude", [0.0014, 0.004])
def test_odin(scored, magnitude):
    rows, outputs, odin, _ = scored
    difference = (
        -odin[magnitude].score(outputs) - column(rows, f"odin_T1000_eps{magnitude}")
    ).abs()
    assert np.quantile(difference.numpy(), 1.0) < 1e-5
