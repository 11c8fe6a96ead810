"""Fitted detectors to a file and back: every one, exactly, only for its own network."""

import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from detector_toys import Gratings, gratings, network  # noqa: F401  (a fixture)

from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.deployment import detector_file
from ood.deployment.calibration import calibrate
from ood.detectors import ImageDetector, base
from ood.detectors.base import chunked_score
from ood.outputs import extract, weights_digest

PREPROCESS, RECIPE = Preprocess((0.5,), (0.25,)), {"size": 12, "resize": None, "channels": 1}
QUICK = {
    "weiper": {"repeats": 5, "samples": 100},
    "kpca": {"kernel": "cosine-gaussian", "features": 40},
    "dropout": {"samples": 3},
    "openmax": {"tail": 5},
    "vra": {"per_feature": True},
    "react": {"detector": "klm"},
    "mds_ensemble": {"weights": [1.0, 2.0]},
}


@pytest.fixture(scope="module")
def train(network):
    every = [detectors.create(n, **QUICK.get(n, {})) for n in detectors.names()]
    measuring = [d for d in every if isinstance(d, ImageDetector) and d.measures_train]
    return extract(
        network, gratings(90, 0), PREPROCESS, taps=True, image_detectors=measuring, batch_size=90
    )


@pytest.fixture
def saved(network, train, tmp_path):
    detector = detectors.create("mds").fit(train)
    return detector, detector_file.save(
        tmp_path / "mds.npz", detector, network=network, preprocess=PREPROCESS, recipe=RECIPE
    )


@pytest.mark.parametrize("name", detectors.names())
def test_every_detector_scores_the_same_after_save_and_load(name, network, train, tmp_path):
    detector, digest = (
        detectors.create(name, **QUICK.get(name, {})).fit(train),
        weights_digest(network),
    )
    path = detector_file.save(
        tmp_path / "d.npz", detector, network=digest, preprocess=PREPROCESS, recipe=RECIPE
    )
    stored = detector_file.load(path, digest)
    assert stored.detector.hyperparameters() == detector.hyperparameters()
    images = gratings(20, 7)

    def scores(d):
        return chunked_score(
            d,
            extract(
                network,
                images,
                PREPROCESS,
                taps=True,
                image_detectors=[d] if isinstance(d, ImageDetector) else (),
            ),
        )

    assert torch.equal(scores(detector), scores(stored.detector))


def test_everything_else_comes_back(network, train, tmp_path):
    detector = detectors.create("energy")
    calibration = calibrate(chunked_score(detector, train).numpy())
    path = detector_file.save(
        tmp_path / "folder" / "e.npz",
        detector,
        network=network,
        preprocess=PREPROCESS,
        recipe={**RECIPE, "resize": (14, 16)},
        calibration=calibration,
        arch={"arch": "small_cnn"},
        checkpoint="run/best.pt",
        about={"id_dataset": "gratings"},
    )
    stored = detector_file.load(path, network)
    sides = {"size": 12, "resize": (14, 16), "channels": 1}
    assert stored.recipe == {**sides, "interpolation": "bilinear"} and stored.arch == {
        "arch": "small_cnn"
    }
    assert (
        stored.checkpoint == "run/best.pt"
        and stored.about == {"id_dataset": "gratings"}
        and repr(stored.preprocess) == repr(PREPROCESS)
    )
    assert (
        stored.calibration.threshold == calibration.threshold
        and (stored.calibration.scores == calibration.scores).all()
    )
    assert detector_file.load(path).calibration.accept == 0.95


def test_file_holds_arrays_and_json_only(saved):
    detector, path = saved
    with zipfile.ZipFile(path) as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
    with np.load(path, allow_pickle=False) as arrays:
        meta = json.loads(arrays["meta"].tobytes())
        assert np.array_equal(arrays["state/means"], detector.means.numpy())
    assert meta["detector"] == "mds" and len(meta["network"]) == 64


def test_loads_in_another_process(saved):
    detector, path = saved
    code = (
        "from ood.deployment import detector_file\n"
        f"detector = detector_file.load({str(path)!r}).detector\n"
        "print(repr(detector.means.double().sum().item()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == detector.means.double().sum().item()


def test_refused_on_another_network(saved, network):
    other = Gratings()
    other.load_state_dict(network.state_dict())
    detector_file.load(saved[1], other)  # equal weights, another object
    with torch.no_grad():
        other.fc.bias[0] += 1e-6
    with pytest.raises(InputError, match="another network"):
        detector_file.load(saved[1], other)
    detector_file.load(saved[1]).check(network)


def test_extreme_numbers_survive(network, tmp_path):
    detector = detectors.create("dice")
    detector.limit, detector.contribution_threshold = float("inf"), 0.1 + 0.2
    detector.mask = torch.ones(2, 3)
    back = detector_file.load(
        detector_file.save(
            tmp_path / "d.npz", detector, network="0", preprocess=PREPROCESS, recipe=RECIPE
        )
    ).detector
    assert back.limit == float("inf") and back.contribution_threshold == 0.1 + 0.2


def test_what_cannot_be_stored_is_a_bug_that_shows_and_leaves_the_old_file(saved):
    detector, path = saved
    before = path.read_bytes()
    detector.oddity = {"a": 1}
    with pytest.raises(TypeError, match="oddity"):
        detector_file.save(path, detector, network="0", preprocess=PREPROCESS, recipe=RECIPE)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


class RunsCode:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.file}",)


def _with_meta(path, **changes):
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = {**json.loads(arrays.pop("meta").tobytes()), **changes}
    np.savez(path, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda p: p.unlink(), "no detector file"),
        (lambda p: p.write_bytes(b""), "not a whole detector file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "not a whole detector file"),
        (
            lambda p: p.write_bytes(pickle.dumps(RunsCode(p.parent / "executed"))),
            "not a whole detector file",
        ),
        (
            lambda p: np.savez(p, meta=np.array([RunsCode(p.parent / "executed")], dtype=object)),
            "not a whole detector file",
        ),
        (lambda p: np.savez(p, other=np.zeros(3)), "not a whole detector file"),
        (lambda p: _with_meta(p, format="ood-detector-9"), "ood-detector-9"),
        (lambda p: _with_meta(p, detector="mdz"), "did you mean 'mds'"),
        (lambda p: _with_meta(p, hyperparameters={"k": 3}), "unknown key 'k'"),
        (lambda p: _with_meta(p, preprocess={"mean": [0.5]}), "lacks or distorts"),
        (lambda p: _with_meta(p, values={"nobody.x": 1}), "nobody"),
    ],
)
def test_bad_files_are_one_clear_error_and_run_nothing(saved, spoil, words):
    path = saved[1]
    spoil(path)
    with pytest.raises(InputError, match=words):
        detector_file.load(path)
    assert not (path.parent / "executed").exists()


def test_size_counts_the_learned_bytes(train):
    assert base.size(detectors.create("mds").fit(train)) == 8 * (16 + 16 * 16 + 6 * 16)
    assert base.size(detectors.create("energy")) == 0
