"""Evaluation and deployment: flags and configs that mean nothing, files that lie."""

from __future__ import annotations

import functools
import io
import json
import math
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

import models
from faults import Fault
from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.deployment import detector_file
from ood.deployment.calibration import Calibration, calibrate
from ood.evaluation import tuning, uncertainty
from ood.evaluation.report import Report, result_rows
from ood.outputs import Head, Outputs

CONFIG = "configs/mnist5k_small_cnn.json"
HEATMAP = "configs/mnist5k_small_ood.json"

# (flags of eval_ood.py, words of the message); none of them gets as far as a network
FLAGS = [
    (("-datasets", "letters", "letters"), "'letters' is named twice"),
    (("-datasets", "letters", "Letters"), "named twice"),
    (("-datasets", "iSUN"), "no OOD set 'iSUN'"),
    (("-datasets", ""), "is empty"),
    (("-out_dir", ""), "is empty"),
    (("-data_dir", ""), "is empty"),
    (("-checkpoint", ""), "is empty"),
    (("-config", ""), "is empty"),
    (("-seed", "-4"), "-seed is -4"),
    (("-seed", str(10**26)), "-seed"),
    (("-num_classes", "0"), "at least 1"),
    (("-num_classes", "-3"), "at least 1"),
    (("-num_classes", "ten"), "invalid int"),
    (("-limit", "0"), "-limit is 0"),
    (("-limit", "-1"), "at least 1"),
    (("-batch_size", "0"), "-batch_size is 0"),
    (("-precision", "fp64"), "invalid choice"),
    (("-protocol", "half"), "invalid choice"),
    (("-fw_layers", "9"), "invalid choice"),
    (("-fw_layers", "2"), "means nothing"),
    (("-classifier", "x.pt"), "means nothing"),
    (("-detectors", "enrgy"), "did you mean 'energy'"),
    (("-detectors", "energy", "energy"), "named twice"),
    (("-detectors", "energy:temperature=inf"), "temperature"),
    (("-detectors", "dice:percentile=NaN"), "percentile"),
    (("-detectors", "dice:percentile=-5"), "at least 0"),
    (("-detectors", "knn:k=0"), "at least 1"),
    (("-detectors", "knn:k"), "knn:k"),
    (("-benchmark", "demoo"), "did you mean 'demo'"),
    (("-benchmark", "openood_cifar10"), "is for cifar10"),
    (("-dataset", "nowhere"), "nowhere"),
    (("-checkpoint", "x", "-checkpoint_name", "y"), "not both"),
    (("-checkpoint_name", "y", "-checkpoints_dir", "{tmp}"), "no run folder"),
    (("-checkpoint", "{tmp}/none.pt"), "none.pt"),
    (("-checkpoints_dir", "{tmp}"), "classifier_pretraining.py -dataset mnist5k"),
]

# (what the config says instead, words of the message)
SETTINGS = [
    ({"num_classes": 0}, "at least 1"),
    ({"num_classes": 10**12}, "mnist5k has 10 classes"),
    ({"num_classes": 2.5}, "of type int"),
    ({"batch_size": "8"}, "of type int"),
    ({"batch_size": -8}, "at least 1"),
    ({"limit": 0}, "at least 1"),
    ({"seed": -4}, "seed"),
    ({"depth": 0}, "at least 1"),
    ({"detectors": "msp"}, "must be a list"),
    ({"detectors": []}, "no detector is named"),
    ({"detectors": ["msp", "msp"]}, "named twice"),
    ({"detctors": ["msp"]}, "did you mean 'detectors'"),
    ({"detector_args": {"knnn": {}}}, "did you mean 'knn'"),
    ({"detector_args": {"dice": {"percentil": 3}}}, "did you mean 'percentile'"),
    ({"detector_args": {"dice": {"percentile": 300}}}, "below 100"),
    ({"datasets": ["letters", "letters"]}, "named twice"),
    ({"method": "heatmaps"}, "did you mean 'heatmap'"),
    ({"precision": "fp64"}, "allowed: fp32, bf16"),
    ({"protocol": "half"}, "allowed: paper, full"),
    ({"std": [0]}, "above 0"),
    ({"mean": 0.5}, "must be a list"),
    ({"arch": 3}, "of type str"),
    ({"benchmark": "leaveout_cifar10"}, "is for cifar10"),
]

# (script, its flags, words of the message)
SCRIPTS = [
    ("scripts/fit_detector.py", ("-share", "0"), "-share is 0"),
    ("scripts/fit_detector.py", ("-share", "nan"), "-share is nan"),
    ("scripts/fit_detector.py", ("-accept", "1.5"), "-accept is 1.5"),
    ("scripts/fit_detector.py", ("-accept", "nan"), "-accept is nan"),
    ("scripts/fit_detector.py", ("-confidence", "0"), "-confidence is 0"),
    ("scripts/fit_detector.py", ("-detector", "knnn"), "did you mean 'knn'"),
    ("scripts/fit_detector.py", ("-detector", "knn:k=0"), "at least 1"),
    ("scripts/fit_detector.py", ("-out", ""), "is empty"),
    ("scripts/fit_detector.py", ("-seed", "-4"), "-seed is -4"),
    ("scripts/tune_detector.py", ("-share", "1"), "-share is 1"),
    ("scripts/tune_detector.py", ("-detectors", "knn:k=[0]"), "at least 1"),
    ("scripts/tune_detector.py", ("-detectors", "enrgy"), "did you mean 'energy'"),
    ("scripts/tune_detector.py", ("-pseudo", "fog"), "invalid choice"),
    ("scripts/tune_detector.py", ("-datasets", "letters", "letters"), "named twice"),
    ("scripts/table_detectors.py", ("-skip", "knnn"), "did you mean 'knn'"),
    ("scripts/table_detectors.py", ("-seeds", "one"), "invalid int"),
    ("scripts/table_detectors.py", ("-record", ""), "is empty"),
    ("scripts/table_detectors.py", ("-weights", "{tmp}/none.pt"), "none.pt"),
    ("scripts/score_images.py", ("-detector", "{tmp}/none.npz"), "no detector file"),
    ("scripts/score_images.py", ("-detector", CONFIG), "not a whole detector file"),
    ("scripts/score_images.py", ("-detector", "x", "-sheet", "-1"), "at least 0"),
    ("scripts/score_images.py", ("-detector", "x", "-batch_size", "0"), "at least 1"),
]

SIDE, CLASSES = 16, 3


@functools.cache
def _network():
    torch.manual_seed(0)
    return models.build("small_cnn", CLASSES, in_channels=1, image_size=SIDE).eval()


@functools.cache
def _outputs(count: int = 40) -> Outputs:
    """Outputs of a network with this head, without a pass."""
    weight, bias = (p.detach() for p in (_network().fc.weight, _network().fc.bias))
    features = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(0)).abs()
    labels = torch.arange(count) % CLASSES
    return Outputs(features, features @ weight.T + bias, labels, Head(weight, bias))


@functools.cache
def _file() -> bytes:
    """A detector file: mds with a calibration."""
    with tempfile.TemporaryDirectory() as folder:
        path = detector_file.save(
            Path(folder) / "mds.npz",
            detectors.create("mds").fit(_outputs()),
            network=_network(),
            preprocess=Preprocess((0.5,), (0.25,)),
            recipe={"size": SIDE, "resize": None, "channels": 1},
            calibration=calibrate(np.linspace(0, 1, 40)),
        )
        return path.read_bytes()


def _load(change, known: bool = False):
    """An action: write the file with `change(arrays, meta)`, then load it."""

    def action(folder: Path):
        with np.load(io.BytesIO(_file())) as archive:
            arrays = dict(archive)
        meta = json.loads(arrays.pop("meta").tobytes())
        change(arrays, meta)
        text = meta.pop("_text", None) or json.dumps(meta).encode()
        path = folder / "d.npz"
        np.savez(path, meta=np.frombuffer(text, np.uint8), **arrays)
        detector_file.load(path, _network() if known else None)

    return action


def _set(**changes):
    return _load(lambda arrays, meta: meta.update(changes))


def _array(name: str, value, known: bool = False):
    """Replace a part of the file; value is an array or a function of the old one."""

    def change(arrays, meta):
        arrays[name] = value(arrays[name]) if callable(value) else np.asarray(value)

    return _load(change, known)


def _calibration(**changes):
    return _load(lambda arrays, meta: meta["calibration"].update(changes))


def _header(shape: tuple, compressed: bool = False):
    """An action: a member whose header claims another shape than its bytes have."""

    def action(folder: Path):
        path = folder / "d.npz"
        how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", how) as archive, archive.open("state/x.npy", "w") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(800))
        detector_file.load(path)

    return action


def _whole(content: bytes):
    def action(folder: Path):
        (folder / "d.npz").write_bytes(content)
        detector_file.load(folder / "d.npz")

    return action


def _half(scores):
    return scores[: len(scores) // 2]


DEEP = b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DIGITS = b'{"format": ' + b"9" * 5_000 + b"}"
NOT_WHOLE = "not a whole detector file"
# (name, action, words of the message)
FILES = [
    ("empty file", _whole(b""), NOT_WHOLE),
    ("text", _whole(b"hello"), NOT_WHOLE),
    ("cut off", lambda folder: _whole(_file()[:-300])(folder), NOT_WHOLE),
    ("member of 8 TB", _header((10**12,)), "claims 8,000,000,000,000 bytes"),
    ("endless shape", _header((2**40, 2**40, 2**40)), "claims"),
    ("compressed member", _header((100,), compressed=True), "is compressed"),
    ("objects", _array("state/x", np.array(["x"], object)), NOT_WHOLE),
    ("texts", _array("state/x", np.array(["x"])), "no numbers"),
    ("complex numbers", _array("state/x", np.zeros(3, complex)), "no numbers"),
    ("unknown part", _array("other", np.zeros(3)), "unknown part 'other'"),
    ("unknown key", _set(extra=1), "unknown key 'extra'"),
    ("nested meta", _load(lambda a, m: m.update(_text=DEEP)), NOT_WHOLE),
    ("number of 5,000 digits", _load(lambda a, m: m.update(_text=DIGITS)), NOT_WHOLE),
    ("meta is a list", _load(lambda a, m: m.update(_text=b"[]")), NOT_WHOLE),
    ("meta is no JSON", _load(lambda a, m: m.update(_text=b"{")), NOT_WHOLE),
    ("other format", _set(format="ood-detector-9"), "ood-detector-9"),
    ("no format", _load(lambda a, m: m.pop("format")), "format"),
    ("no detector", _load(lambda a, m: m.pop("detector")), "detector"),
    ("unknown detector", _set(detector="mdz"), "did you mean 'mds'"),
    ("unknown hyper-parameter", _set(hyperparameters={"k": 3}), "unknown key 'k'"),
    ("detector is a list", _set(detector=["mds"]), "'detector' is a list"),
    ("checkpoint is a list", _set(checkpoint=["a"]), "'checkpoint' is a list"),
    ("arch is a text", _set(arch="resnet18"), "'arch' is a str"),
    ("values nested", _set(values={"x": {"y": 1}}), "lacks or distorts"),
    ("unknown value", _array("state/unheard_of", np.zeros(3)), "learns no 'unheard_of'"),
    ("method overwritten", _array("state/score", np.zeros(3)), "score"),
    ("value of a method", _set(values={"fit": 1}), "fit"),
    ("preprocess without std", _set(preprocess={"mean": [0.5]}), "lacks or distorts 'std'"),
    ("std 0", _set(preprocess={"mean": [0.5], "std": [0]}), "preprocess"),
    ("std NaN", _set(preprocess={"mean": [0.5], "std": [math.nan]}), "preprocess"),
    ("mean of three channels", _set(preprocess={"mean": [0.5] * 3, "std": [1]}), "preprocess"),
    ("mean a text", _set(preprocess={"mean": "a", "std": "b"}), "preprocess"),
    ("recipe empty", _set(recipe={}), "recipe"),
    ("size negative", _set(recipe={"size": -1, "resize": None, "channels": 1}), "recipe"),
    ("size 10^9", _set(recipe={"size": 10**9, "resize": None, "channels": 1}), "recipe"),
    ("size a text", _set(recipe={"size": "16", "resize": None, "channels": 1}), "recipe"),
    ("no calibration scores", _load(lambda a, m: a.pop("calibration/scores")), "calibration"),
    ("NaN calibration", _array("calibration/scores", np.full(40, np.nan)), "calibration"),
    ("unordered calibration", _array("calibration/scores", np.arange(40.0)[::-1]), "ascending"),
    ("calibration in two dimensions", _array("calibration/scores", np.zeros((40, 1))), "list"),
    ("half of the calibration", _array("calibration/scores", _half), "does not accept"),
    ("rank beyond the scores", _calibration(rank=100), "does not accept"),
    ("rank 0", _calibration(rank=0), "does not accept"),
    ("accept 1", _calibration(accept=1.0), "accept is 1"),
    ("accept NaN", _calibration(accept=math.nan), "accept is nan"),
    ("wrong shape", _array("state/means", np.zeros((2, 5)), True), "does not fit its network"),
    ("fitted values NaN", _array("state/means", lambda m: m * np.nan, True), "does not fit"),
]

ONES = np.ones(30)
# (name, action, words of the message)
CALLS = [
    ("too few to calibrate", lambda _: calibrate(ONES[:5]), "at least 19 are needed"),
    ("calibration of NaN", lambda _: calibrate(ONES * np.nan), "NaN"),
    ("calibration of nothing", lambda _: calibrate([]), ""),
    ("accept everything", lambda _: calibrate(ONES, accept=1), "accept is 1"),
    ("accept in percent", lambda _: calibrate(ONES, accept=95), "accept is 95"),
    ("no confidence", lambda _: calibrate(ONES, confidence=0), "confidence is 0"),
    (
        "sure of nearly everything",
        lambda _: calibrate(ONES, accept=1 - 1e-9, confidence=0.9),
        "are needed",
    ),
    (
        "p-values of NaN",
        lambda _: Calibration(np.sort(ONES), 29, 0.95).p_values([np.nan]),
        "NaN",
    ),
    ("interval of NaN", lambda _: uncertainty.auroc_interval([np.nan], [1.0]), "NaN"),
    ("level in percent", lambda _: uncertainty.fpr_interval(ONES, ONES, level=95), "level is 95"),
    (
        "comparison of other images",
        lambda _: uncertainty.compare_auroc((ONES, ONES), (ONES[:5], ONES)),
        "same images",
    ),
    (
        "nothing to tune against",
        lambda _: tuning.tune("react", _outputs(), _outputs(), {}),
        "nothing",
    ),
    ("no search space", lambda _: tuning.candidates("maxlogit", _outputs()), "no search space"),
    (
        "no possible value",
        lambda _: tuning.candidates("knn", _outputs(), {"k": (99,)}, {"k": 98}),
        "none of the values",
    ),
    (
        "NaN scores in a report",
        lambda _: result_rows({"id": {"a": ONES}, "x": {"a": ONES * np.nan}}, "id"),
        "a on x",
    ),
    ("a report without rows", lambda _: Report([], {}), "at least one row"),
]


def _written(values: dict):
    """A function that writes config.json with these values instead of the usual ones."""
    root = Path(__file__).resolve().parents[2]

    def prepare(folder: Path) -> None:
        usual = json.loads((root / CONFIG).read_text())
        (folder / "config.json").write_text(json.dumps({**usual, **values}))

    return prepare


def _record(text: str):
    return lambda folder: (folder / "metrics.json").write_text(text)


RECORD = ("{tmp}/metrics.json", "-name", "x", "-order", "1", "-title", "x")
OUT = {"scripts/fit_detector.py": "-out", "scripts/score_images.py": "-out_dir"}

ROWS = [
    *(
        Fault(
            f"eval_ood.py {' '.join(flags)[:60]}",
            "eval_ood.py",
            ("-config", CONFIG, "-device", "cpu", "-out_dir", "{tmp}/out", *flags),
            words=(words,),
        )
        for flags, words in FLAGS
    ),
    *(
        Fault(
            f"config with {json.dumps(values)[:60]}",
            "eval_ood.py",
            ("-config", "{tmp}/config.json", "-out_dir", "{tmp}/out", "-checkpoints_dir", "{tmp}"),
            words=(words,),
            prepare=_written(values),
        )
        for values, words in SETTINGS
    ),
    *(
        Fault(
            f"{script} {' '.join(flags)}",
            script,
            (
                *(("-config", CONFIG) if "score" not in script else ("-input", "{tmp}")),
                *(OUT.get(script, "-out_dir"), "{tmp}/out"),
                *flags,
            ),
            words=(words,),
        )
        for script, flags, words in SCRIPTS
    ),
    Fault("heatmap with fw_layers 0", "eval_ood.py", ("-config", HEATMAP, "-fw_layers", "0")),
    Fault("record of no file", "scripts/record_results.py", RECORD, words=("no file",)),
    Fault(
        "record of text",
        "scripts/record_results.py",
        RECORD,
        prepare=_record("hello"),
        words=("not valid JSON",),
    ),
    Fault(
        "record without rows",
        "scripts/record_results.py",
        RECORD,
        prepare=_record('{"rows": [{}], "provenance": {}}'),
        words=("no rows of results",),
    ),
    *(
        Fault(f"detector file: {name}", action=action, error=InputError, words=(words,))
        for name, action, words in FILES
    ),
    *(Fault(name, action=action, words=(words,)) for name, action, words in CALLS),
]
