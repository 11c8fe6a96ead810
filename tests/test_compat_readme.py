"""The two programs of pytorch-ood's README, with `ood.compat` for `pytorch_ood`.

Their text is read from the installed package. Weights and images come over HTTP from a server on
this machine, in the layout of the published files, and go through our fetching and checks. The
calls of its older README are made too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import re
import textwrap

import benchmark_toys as toys
import pytest
import torch
from download_toys import Server, make_zip
from test_data_download import publishers  # noqa: F401  (a fixture)
from torch import nn
from torchvision import transforms

from models import weights
from ood.compat.benchmark import CIFAR10_OpenOOD, ImageNet_OpenOOD
from ood.compat.detector import EnergyBased, MaxSoftmax
from ood.compat.model import WideResNet, get_model_info
from ood.compat.utils import OODMetrics
from ood.data.registry import table

pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed (requirements-dev.txt)")
SMALL_MACHINE = {".cuda()": "", "cuda:0": "cpu", '"num_workers": 12': '"num_workers": 0'}


def programs() -> list[str]:
    text = importlib.metadata.metadata("pytorch_ood").get_payload()
    blocks = re.findall(r"\.\. code-block:: python\n+((?: +\S.*\n|\s*\n)+)", text)
    return [textwrap.dedent(block) for block in blocks]


def run(program: str, **names) -> dict:
    """Run it with one word replaced. `names` stand for the lines `name = ...`."""
    program = program.replace("pytorch_ood", "ood.compat")
    for large, small in SMALL_MACHINE.items():
        program = program.replace(large, small)
    for name in names:
        program = re.sub(rf"^{name} = \.\.\..*\n", "", program, flags=re.M)
    exec(compile(program, "README", "exec"), names)
    return names


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A publisher. The programs run in an empty folder, with an empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def network(server, monkeypatch):
    """A WideResNet-40-2 with made weights; every published one of CIFAR-10 has these."""
    torch.manual_seed(0)
    made, file = WideResNet(num_classes=10).eval(), io.BytesIO()
    torch.save(made.state_dict(), file)
    server.files["/weights.pt"] = file.getvalue()
    here = weights.File(
        (f"{server.address}/weights.pt",), hashlib.sha256(file.getvalue()).hexdigest()
    )
    for name, row in list(weights.TABLE.items()):
        if name.startswith("wrn-40-2/cifar10/"):
            monkeypatch.setitem(weights.TABLE, name, dataclasses.replace(row, file=here))
    return made


@pytest.fixture
def images(server, tmp_path, monkeypatch):
    """OpenOOD's archives for CIFAR-10, in little: the lists, and a zip of each set's images."""
    source = tmp_path / "published"
    toys.openood(source / "benchmark_imglist", source, "cifar10")
    for row in list(table.TABLE.values()):
        if row.name != "openood_lists" and "openood_lists" not in row.needs:
            continue
        archives = []
        for archive in row.archives:
            folder = source / archive.name.removesuffix(".zip")
            inside = {
                f"{archive.inside}/{path.relative_to(folder)}".lstrip("/"): path.read_bytes()
                for path in folder.rglob("*.*")
            }
            file, url = tmp_path / archive.name, f"{server.address}/{archive.name}"
            make_zip(file, inside)
            server.files[f"/{archive.name}"] = file.read_bytes()
            checksum = hashlib.sha256(file.read_bytes()).hexdigest()
            changed = dict(urls=(url,), drive=None, sha256=checksum, bytes=None)
            archives.append(dataclasses.replace(archive, **changed))
        changed = dataclasses.replace(row, archives=tuple(archives), count={})
        monkeypatch.setitem(table.TABLE, row.name, changed)


def test_the_readme_has_two_programs():
    first, second = programs()
    assert "load_model(" in first and "CIFAR10_OpenOOD(" in second
    assert all(program.count("pytorch_ood") >= 3 for program in programs())


@torch.no_grad()
def test_quick_start(server, network, capsys):
    torch.manual_seed(0)
    batches = [(torch.rand(8, 3, 32, 32), torch.tensor([0, 3, 9, 1, -1, -1, -1, -1]))] * 2
    found = run(programs()[0], data_loader=batches)
    images = found["preprocess"](batches[0][0])
    torch.testing.assert_close(found["model"](images), network(images))
    expected = OODMetrics()
    for _, labels in batches:
        expected.update(-network(images).logsumexp(1), labels)
    printed = eval(capsys.readouterr().out, {"tensor": torch.tensor, "nan": float("nan")})
    assert printed == pytest.approx(
        {k: float(v) for k, v in expected.compute().items()}, nan_ok=True
    )
    assert [path for path, _ in server.seen] == ["/weights.pt"]


def test_benchmark(server, network, images, tmp_path):
    found = run(programs()[1])
    assert [(row["Dataset"], row["Detector"]) for row in found["results"]] == [
        (name, detector) for detector in ("MSP", "Energy") for name in CIFAR10_OpenOOD.ood_names
    ]
    assert all(0 <= row["AUROC"] <= 1 for row in found["results"])
    fetched = [path for path, _ in server.seen]
    sets = ("cifar10", "cifar100", "tin", "mnist", "svhn", "texture", "places365")
    wanted = ["/weights.pt", "/benchmark_imglist.zip", *(f"/{name}.zip" for name in sets)]
    assert sorted(fetched) == sorted(wanted)
    assert (tmp_path / "work/data/images_classic/tin").is_dir()
    again = run(programs()[1])  # nothing is fetched again, and the cache gives the same
    assert again["results"] == found["results"] and len(server.seen) == len(wanted)


def test_a_damaged_file_of_the_publisher_is_refused(server, network, images):
    server.files["/svhn.zip"] = server.files["/svhn.zip"][:-1] + b"?"
    with pytest.raises(RuntimeError, match="svhn.zip.*sha256"):
        run(programs()[1])


@torch.no_grad()
def test_quick_start_of_the_older_readme(server, network):
    """Up to version 0.2: the constructor loads weights, and metrics come from `utils`."""
    model = WideResNet(num_classes=10, pretrained="er-cifar10-tune").eval()
    pictures = WideResNet.transform_for("er-cifar10-tune")(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(model(pictures), network(pictures))
    metrics = OODMetrics()
    metrics.update(EnergyBased(model)(pictures), torch.tensor([1, 2, -1, -1]))
    assert metrics.compute().keys() >= {"AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR"}
    assert get_model_info("wrn-40-2/cifar10/energy/s1") and len(server.seen) == 1


def test_benchmark_of_the_older_readme(publishers, tmp_path):  # noqa: F811
    """OpenOOD's first version: its sets are fetched, ImageNet itself is the user's own."""
    validation = tmp_path / "imagenet-2012" / "val"
    for name in ("n01440764", "n01443537"):  # `publishers` has two classes of each set
        toys.picture(validation / name / "image.JPEG", 0, (8, 8))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)).eval()
    transform = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])

    benchmark = ImageNet_OpenOOD(
        root=tmp_path / "data",
        image_net_root=tmp_path / "imagenet-2012",
        transform=transform,
        version="1.0",
    )
    results = benchmark.evaluate(MaxSoftmax(model), loader_kwargs={"batch_size": 64}, device="cpu")
    names = ["ImageNetO", "OpenImagesO", "Textures", "SVHN", "MNIST"]
    assert [row["Dataset"] for row in results] == names
    assert results[0].keys() >= {"AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR"}
    assert publishers
