"""Published weights: the rows, and `models.load` against a local publisher."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from pathlib import Path

import pytest
import torch
from download_toys import Server, make_zip
from PIL import Image

import models
from models import weights
from models.weights import File, Weights
from ood.config import InputError
from ood.data.fetch import published
from ood.data.fetch.archives import ObtainError
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fault

ROOT = Path(__file__).resolve().parent.parent
ROWS = weights.TABLE.values()
CLASSIFIERS = [row for row in ROWS if row.kind == "classifier"]
SMALL = dict(arch="small_cnn", num_classes=3, dataset="mnist5k", options={"width": 4})
NORMAL = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
QUICK = Patience(tries=2, pause=0.01, timeout=2)


# rows


def test_no_name_and_no_place_is_there_twice():
    assert len(weights.TABLE) == sum(len(family.ROWS) for family in weights.table.FAMILIES)
    places = [row.place() for row in ROWS if not row.file.folder]
    assert len(set(places)) == len(places)
    urls = [url for row in ROWS for url in row.file.urls]
    assert len(set(urls)) == len(urls)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_well_formed(row):
    for file in filter(None, (row.file, row.feature_mean)):
        assert file.name and "/" not in file.name
        assert all(re.match("https://[a-z0-9.-]+/", url) for url in file.urls)
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", file.sha256)
        prefix = re.search(r"-([0-9a-f]{8})\.(?:pth|th|pt)$", file.name)
        assert prefix is None or file.sha256.startswith(prefix[1])
        assert bool(file.folder) == bool(file.inside)
    assert row.source.startswith("https://") and row.licence
    assert ("{place}" in row.steps) == row.file.by_hand
    assert all(0.5 < share < 1 for share in row.accuracy.values())
    assert (row.mean is None) == (row.std is None)
    assert row.mean is None or all(0 <= m <= 1 < 1 / s for m, s in zip(row.mean, row.std))
    assert all(other in weights.TABLE for other in row.needs.values())
    config = row.tested_by
    assert not config or (ROOT / "configs" / f"{config}.json").is_file()


def shape(row):
    """What makes the network of a row; many rows share it."""
    return row.arch, row.num_classes, tuple(row.options.items()), row.image_size, row.mean is None


@pytest.mark.parametrize(
    "row", {shape(row): row for row in CLASSIFIERS}.values(), ids=lambda row: row.name
)
def test_every_architecture_builds(row):
    with torch.device("cpu" if row.arch.startswith("torchvision_") else "meta"):
        network = weights.fresh(row)
    assert network.fc.out_features == row.num_classes
    assert row.arch in ("adapted", network.arch["arch"])


def test_the_files_at_hand_are_those_of_the_rows(reference):
    """The DICE authors' and two of the CIFAR ResNets: size, checksum, keys and head."""
    dice, hundred = (f"densenet-100-12/cifar{n}/crossentropy/dice" for n in (10, 100))
    for name, path in (
        (dice, "dice/cifar10_densenet_checkpoint_100.pth.tar"),
        (hundred, "dice/cifar100_densenet_checkpoint_100.pth.tar"),
        ("resnet-20/cifar10/crossentropy", "resnet20/resnet20-12fca82f.th"),
        ("resnet-56/cifar10/crossentropy", "resnet20/resnet56-4bfd9763.th"),
    ):
        row, file = weights.find(name), reference / path
        check(row.file, file)
        assert weights.build_from(row, file).fc.out_features == row.num_classes
    for name, path in (
        (dice, "CIFAR-10_densenet"),
        (hundred, "CIFAR-100_densenet"),
        ("resnet-50/imagenet1k/crossentropy/v1", "imagenet_resnet50"),
    ):
        check(weights.find(name).feature_mean, reference / "dice" / f"{path}_feat_stat.npy")


def check(file, path):
    assert fault(path, file.bytes, file.md5, file.sha256)[0] is None


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(models.ModelError, match="did you mean 'wrn-40-2/cifar10/oe'"):
        weights.find("wrn-40-2/cifar10/eo")


# fetching


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def state():
    """A network's state dict, and the bytes of a file that holds it."""
    torch.manual_seed(0)
    network = models.build("small_cnn", 3, 3, 32, width=4)
    return network.state_dict(), saved(network.state_dict())


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture
def publish(server, state, monkeypatch):
    """Publish a row: publish(name, sha256=..., body=..., **details)."""

    def make(name="small/mnist5k/test", *, body=state[1], sha256=..., **details):
        server.files["/weights.pt"] = body
        sha256 = hashlib.sha256(body).hexdigest() if sha256 is ... else sha256
        file = details.pop("file", File((f"{server.address}/weights.pt",), sha256))
        row = Weights(name, file=file, source=server.address, **{**SMALL, **NORMAL, **details})
        monkeypatch.setitem(weights.TABLE, name, row)
        return row

    monkeypatch.setattr(published, "PATIENCE", QUICK)
    monkeypatch.setitem(published.obtain.__kwdefaults__, "patience", QUICK)
    return make


def test_load_fetches_verifies_builds_and_gives_the_transform(publish, server, state, tmp_path):
    row = publish()
    network, transform, found = models.load(row.name, tmp_path)
    assert found is row and not network.training
    assert all(torch.equal(value, state[0][key]) for key, value in network.state_dict().items())
    image = Image.new("L", (40, 30), 255)
    torch.testing.assert_close(transform(image), torch.full((3, 32, 32), 2.0))
    models.load(row.name, tmp_path)
    assert server.seen == [("/weights.pt", None)], "the second call fetches nothing"
    assert (tmp_path / row.name / "weights.pt").is_file() and not list(tmp_path.glob("*/*/*/.*"))


@pytest.mark.parametrize("sha256", ["0" * 64, "00000000"])
def test_a_wrong_checksum_is_refused(publish, tmp_path, sha256):
    row = publish(sha256=sha256)
    with pytest.raises(DownloadError, match=f"instead of {sha256}"):
        models.load(row.name, tmp_path)
    assert not (tmp_path / row.name).exists()


def test_a_file_that_was_changed_in_place_is_refused(publish, tmp_path):
    row = publish()
    models.load(row.name, tmp_path)
    file = tmp_path / row.place()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ObtainError, match="remove it and run this again"):
        models.load(row.name, tmp_path)


def test_without_a_published_checksum_the_first_one_is_enforced(publish, server, state, tmp_path):
    row = publish(sha256=None)
    models.load(row.name, tmp_path)
    (tmp_path / row.place()).unlink()
    server.files["/weights.pt"] = saved({**state[0], "more": torch.zeros(1)})
    with pytest.raises(DownloadError, match="if its publisher has changed it, remove the entry"):
        models.load(row.name, tmp_path)


def test_a_broken_transfer_goes_on_where_it_stopped(publish, server, tmp_path):
    row = publish()
    server.faults["/weights.pt"] = ["cut"]
    models.load(row.name, tmp_path)
    assert [span is not None for _, span in server.seen] == [False, True]


def test_the_second_mirror_serves_when_the_first_fails(publish, server, state, tmp_path):
    digest = hashlib.sha256(state[1]).hexdigest()
    urls = (f"{server.address}/gone.pt", f"{server.address}/weights.pt")
    row = publish(file=File(urls, digest))
    models.load(row.name, tmp_path)
    assert [path for path, _ in server.seen] == ["/gone.pt", "/weights.pt"]


def test_weights_of_another_architecture_do_not_fit(publish, tmp_path):
    row = publish(num_classes=4)
    with pytest.raises(models.CheckpointError, match="fc.weight: file .3, .* network .4, "):
        models.load(row.name, tmp_path)


def test_a_file_with_code_in_it_is_not_run(publish, tmp_path):
    row = publish(body=saved({"state_dict": Path("x")}))
    with pytest.raises(models.CheckpointError, match="might run code"):
        models.load(row.name, tmp_path)


def test_without_download_the_message_says_where_it_belongs(publish, server, tmp_path):
    row = publish()
    with pytest.raises(InputError, match="allow its download, or get it from"):
        models.load(row.name, tmp_path, download=False)
    assert not server.seen


def test_what_a_person_must_fetch_prints_its_steps(publish, state, tmp_path):
    digest = hashlib.sha256(state[1]).hexdigest()
    row = publish(
        file=File(sha256=digest, file="weights.pt"), steps="open the page, save it as '{place}'"
    )
    place = tmp_path / row.name / "weights.pt"
    with pytest.raises(InputError, match=f"open the page, save it as '{place}'"):
        models.load(row.name, tmp_path)
    place.parent.mkdir(parents=True)
    place.write_bytes(state[1])
    models.load(row.name, tmp_path)
    place.unlink()
    (tmp_path / "weights.pt").write_bytes(state[1])  # at the root will do too
    models.load(row.name, tmp_path)


def test_a_file_of_the_same_name_is_not_taken_for_it(publish, state, tmp_path):
    row = publish(file=File(file="weights.pt"), steps="save it as '{place}'")
    (tmp_path / "weights.pt").write_bytes(state[1])  # of which network, nobody can tell
    with pytest.raises(InputError, match="fetched by hand"):
        models.load(row.name, tmp_path)


def test_an_archive_serves_all_of_its_rows(publish, server, state, tmp_path):
    make_zip(tmp_path / "three.zip", {f"run/s{n}/best.ckpt": state[1] for n in range(3)})
    server.files["/three.zip"] = (tmp_path / "three.zip").read_bytes()
    for seed in ("s0", "s2"):
        file = File((f"{server.address}/three.zip",), folder="three", inside=f"{seed}/best.ckpt")
        row = publish(f"small/mnist5k/{seed}", file=file)
        models.load(row.name, tmp_path / "root")
        assert (tmp_path / "root/three/run" / seed / "best.ckpt").is_file()
    assert len(server.seen) == 1
    row = publish(file=dataclasses.replace(file, inside="s3/best.ckpt"))
    with pytest.raises(ObtainError, match="holds no 's3/best.ckpt', but run"):
        models.load(row.name, tmp_path / "root")


def test_weights_of_a_method_name_the_command(publish, tmp_path):
    row = publish(kind="heatmap", config="cifar10_resnet18_ood")
    words = f"eval_ood.py -config configs/cifar10_resnet18_ood.json -weights {row.name}"
    with pytest.raises(models.ModelError, match=words):
        models.load(row.name, tmp_path)


def test_listing_says_what_is_there(publish, tmp_path):
    row = publish(accuracy={"final": 0.9123})
    models.load(row.name, tmp_path)
    text = published.listing(weights.TABLE.values(), tmp_path)
    line = next(line for line in text.splitlines() if line.startswith(row.name + " "))
    assert "91.23" in line and line.endswith("there")
    assert "by hand" in text and "to fetch" in text and "first use" in text
    assert max(map(len, text.splitlines())) < 160
