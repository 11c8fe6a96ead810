"""The table 'To add something' of docs/architecture.md: what it names suffices."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

DETECTOR = '''

@register("toy_norm")
class ToyNorm(Detector):
    """Distance of the features' length from the training set's mean length."""

    scale: float = 1.0

    def fit(self, train):
        self.length = train.features.norm(dim=1).mean()
        return self

    def score(self, batch):
        return self.scale * (batch.features.norm(dim=1) - self.length).abs()
'''
LOSS = '''

@register("toy_smooth")
class ToySmooth(Loss):
    """Cross-entropy with smoothed labels."""

    def __init__(self, amount: float = 0.1):
        super().__init__()
        self.amount = amount

    def forward(self, logits, y):
        return F.cross_entropy(logits, y, label_smoothing=self.amount)
'''
ROW = """    DatasetInfo("toy_squares", "ood", "folder", ("toy_squares",), size=28, channels=1),
"""
NETWORK = '''"""A toy network: one convolution."""

from __future__ import annotations

from torch import nn

from .classifier import Classifier
from .registry import register


@register("toy_net")
class ToyNet(Classifier):
    window = None

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 32):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 5, stride=4)
        self.fc = nn.Linear(8, num_classes)

    def stages(self, images):
        return [self.conv(images).relu()]
'''
METHOD = '''"""A toy method: mean brightness."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ood.methods.base import Method


@dataclass(frozen=True)
class Settings:
    id_dataset: str = "mnist5k"
    gain: float = 1.0


class Brightness(Method):
    name = "brightness"
    Settings = Settings

    def __init__(self, settings):
        self.settings = settings

    @classmethod
    def train(cls, settings, context):
        raise NotImplementedError

    @classmethod
    def load(cls, settings, context, checkpoint=None):
        return cls(settings)

    def score(self, images):
        parts = [batch.float().mean((1, 2, 3)) for batch in images.batches(100)]
        return self.settings.gain * torch.cat(parts)
'''
BENCHMARK = {
    "id_dataset": "mnist5k",
    "size": 28,
    "channels": 1,
    "entries": [{"dataset": "toy_squares", "group": "far", "label": "squares"}],
}


def rows() -> dict[str, list[str]]:
    """{what is added: the places that the page names, as patterns}."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## To add something")[1]
    found = {}
    for what, touch in re.findall(r"^\| (a [a-z ]+) \| (.+) \|$", table, re.M):
        found[what] = re.findall(r"`([\w/<>.]+\.(?:py|json))`", touch)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code in a folder of its own, with one toy of every kind added where the page says."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("models", "ood", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    append(root / "ood/detectors/distances.py", DETECTOR)
    append(root / "ood/losses/classification.py", LOSS)
    insert(root / "ood/data/registry/classic.py", r"^ROWS\b.*\($", ROW)
    (root / "models/toy.py").write_text(NETWORK, encoding="utf-8")
    append(root / "models/__init__.py", "from . import toy  # noqa: E402, F401\n")
    (root / "ood/methods/brightness.py").write_text(METHOD, encoding="utf-8")
    insert(
        root / "ood/methods/base.py",
        r"^MODULES = \{$",
        '    "brightness": "ood.methods.brightness",\n',
    )
    path = root / "configs/benchmarks/toy_benchmark.json"
    path.write_text(json.dumps(BENCHMARK), encoding="utf-8")

    root.joinpath("touched.json").write_text(
        json.dumps(
            sorted(
                str(path.relative_to(root))
                for path in root.rglob("*")
                if path.is_file() and before.get(path) != path.read_bytes()
            )
        )
    )
    return root


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def insert(path: Path, after: str, text: str) -> None:
    """Insert behind the line that matches."""
    content = path.read_text(encoding="utf-8")
    match = re.search(after, content, re.M)
    assert match, f"{path} has no line {after}"
    path.write_text(content[: match.end() + 1] + text + content[match.end() + 1 :], "utf-8")


def test_only_the_named_places_are_touched(copy):
    patterns = {
        re.compile(re.sub(r"<\w+>", r"\\w+", place.replace(".", r"\."))): what
        for what, places in rows().items()
        for place in places
    }
    assert len(rows()) == 7
    touched = json.loads((copy / "touched.json").read_text())
    assert len(touched) == 8
    for path in touched:
        assert any(pattern.fullmatch(path) for pattern in patterns), path


def test_the_additions_work_in_the_scripts(copy, tmp_path):
    """A toy network trained with a toy loss; toy detector and method score a toy data set."""
    (tmp_path / "data" / "toy_squares").mkdir(parents=True)
    for number in range(4):
        pixels = np.full((28, 28), 60 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "toy_squares" / f"{number}.png")
    common = ["-data_dir", "data", "-device", "cpu", "-limit", "100"]

    def run(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        done = subprocess.run(
            [sys.executable, str(copy / words[0]), *words[1:], *common],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    run(
        "classifier_pretraining.py",
        *("-dataset", "mnist5k", "-arch", "toy_net", "-loss", "toy_smooth", "-epochs", "1"),
        *("-out_dir", "run"),
    )
    config = {
        "id_dataset": "mnist5k",
        "num_classes": 10,
        "arch": "toy_net",
        "benchmark": "toy_benchmark",
        "detectors": ["toy_norm"],
    }
    (tmp_path / "detector.json").write_text(json.dumps(config))
    (tmp_path / "method.json").write_text(
        json.dumps(
            {
                "method": "brightness",
                "id_dataset": "mnist5k",
                "benchmark": "toy_benchmark",
                "detectors": [],
            }
        )
    )
    run(
        "eval_ood.py",
        *("-config", "detector.json", "-checkpoint", "run/best.pt", "-out_dir", "results"),
    )
    table = (tmp_path / "results" / "metrics.csv").read_text()
    assert "toy_norm,toy_squares,far,100,4" in table
    run("eval_ood.py", "-config", "method.json", "-out_dir", "by_method")
    assert "brightness,toy_squares" in (tmp_path / "by_method" / "metrics.csv").read_text()
