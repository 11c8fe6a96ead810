"""ood.compat's sets with masks, sound and open-set simulations against pytorch-ood's."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import tarfile
import zipfile

import masked_toys
import numpy as np
import pytest
import torch
from download_toys import Server
from pytorch_ood.dataset import audio as their_audio
from pytorch_ood.dataset import img as theirs
from pytorch_ood.dataset import ossim as their_ossim
from torch.utils.data import TensorDataset

from ood.compat.dataset import audio, ossim
from ood.compat.dataset import img as ours
from ood.config import InputError
from ood.data import ArrayImages, info
from ood.data.registry import table

SETS = {  # name: (class, arguments)
    "fishyscapes": ("FishyScapes", {"version": "3.0.0"}),
    "lostandfound": ("LostAndFound", {}),
    "streethazards": ("StreetHazards", {"subset": "test"}),
    "streethazards train": ("StreetHazards", {"subset": "train"}),
    "streethazards validation": ("StreetHazards", {"subset": "validation"}),
    "roadanomaly": ("RoadAnomaly", {}),
    "roadanomaly21": ("SegmentMeIfYouCan", {"subset": "RoadAnomaly21"}),
    "roadobstacle21": ("SegmentMeIfYouCan", {"subset": "RoadObstacle21"}),
    "mvtec train": ("MVTechAD", {"split": "train"}),
    "mvtec": ("MVTechAD", {"split": "test"}),
    "mvtec grid": ("MVTechAD", {"split": "test", "subset": "grid"}),
}
WITHOUT_ARCHIVE = ("FishyScapes", "LostAndFound")  # theirs hash the archive; there is none


def make(module, name, root, **more):
    kind, arguments = SETS[name]
    if kind == "FishyScapes":
        more["cs_root"] = str(root / "cityscapes/leftImg8bit/val")
    return getattr(module, kind)(str(root), **arguments, **more)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    for written in set(masked_toys.MAKE.values()):
        written(root)
    return root


@pytest.mark.parametrize("name", SETS)
def test_images_and_masks_are_theirs(name, root, monkeypatch):
    """Same length, order, pixels and mode of the image; same mask, except for MVTec's sign."""
    kind = SETS[name][0]
    if kind in WITHOUT_ARCHIVE:
        monkeypatch.setattr(getattr(theirs, kind), "_check_integrity", lambda self: True)
    mine, other = make(ours, name, root), make(theirs, name, root)
    assert len(mine) == len(other) > 0
    outliers = 0
    for index in range(len(mine)):
        (image, mask), (image_there, mask_there) = mine[index], other[index]
        assert image.mode == image_there.mode and np.array_equal(image, image_there)
        if kind == "MVTechAD":  # bytes negated: its defects are 1
            assert np.array_equal(mask.numpy(), -(mask_there.numpy() != 0).astype(int))
        else:
            assert mask.dtype == mask_there.dtype and mask.equal(mask_there)
        outliers += int((mask < 0).sum())
    assert bool(outliers) == ("train" not in name and "validation" not in name)
    assert getattr(mine, "VOID_LABEL", None) == getattr(other, "VOID_LABEL", None)
    assert [file.split("/")[-1] for file in mine.files] == [
        path.split("/")[-1]
        .replace("_labels.png", "_leftImg8bit.png")
        .split("_", kind == "LostAndFound")[-1]
        for path in getattr(other, "files", None)
        or getattr(other, "all_images", None)
        or other.ano_files
    ]


@pytest.mark.parametrize("name", SETS)
def test_transforms(name, root):
    """One transform sees image and mask together; MVTec's two see one each."""
    kind = SETS[name][0]
    image, mask = make(ours, name, root)[1]
    if kind == "MVTechAD":
        flipped = make(
            ours, name, root, transform=lambda i: np.asarray(i)[::-1], target_transform=torch.flipud
        )[1]
    else:
        argument = "transforms" if kind in WITHOUT_ARCHIVE else "transform"
        both = {argument: lambda i, m: (np.asarray(i)[::-1], torch.flipud(m))}
        flipped = make(ours, name, root, **both)[1]
    assert np.array_equal(flipped[0], np.asarray(image)[::-1])
    assert flipped[1].equal(torch.flipud(mask))


def test_signatures_are_theirs():
    pairs = [(getattr(ours, kind), getattr(theirs, kind)) for kind, _ in SETS.values()]
    pairs += [(audio.FSDD, their_audio.FSDD)]
    for kind in ("DynamicOSS", "OpenSetSimulation"):
        mine, other = getattr(ossim, kind), getattr(their_ossim, kind)
        pairs += [(mine, other)]
        for name in ("train_dataset", "val_dataset", "test_dataset"):
            pairs += [(getattr(mine, name), getattr(other, name))]
    for mine, other in pairs:
        there = inspect.signature(other).parameters.values()
        here = inspect.signature(mine).parameters.values()
        assert [(p.name, p.default, p.kind) for p in here] == [
            (p.name, p.default, p.kind) for p in there
        ], mine


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there(name, tmp_path):
    with pytest.raises(RuntimeError, match="is not in") as caught:
        make(ours, name, tmp_path)
    if name == "fishyscapes":  # a person has to get Cityscapes
        assert "https://www.cityscapes-dataset.com (registration)" in str(caught.value)
    else:
        assert "give download=True" in str(caught.value)


def test_sets_that_are_not_whole(tmp_path):
    masked_toys.roadanomaly(tmp_path, 59)
    with pytest.raises(RuntimeError, match="59 images with masks, 'roadanomaly' has 60"):
        ours.RoadAnomaly(tmp_path)


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("FishyScapes", {"cs_root": "x", "version": "4.0.0"}),
        ("StreetHazards", {"subset": "val"}),
        ("SegmentMeIfYouCan", {"subset": "RoadAnomaly"}),
        ("MVTechAD", {"split": "val"}),
        ("MVTechAD", {"split": "test", "subset": "bottles"}),
    ],
)
def test_arguments_are_checked(kind, arguments, tmp_path):
    with pytest.raises(InputError, match="is not one of"):
        getattr(ours, kind)(tmp_path, **arguments)


# --- sound


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    from scipy.io import wavfile

    root = tmp_path_factory.mktemp("sound")
    folder = root / "Jakobovski-free-spoken-digit-dataset-e9e1155/recordings"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for digit, speaker, take in ((3, "theo", 0), (0, "jackson", 10), (0, "jackson", 2)):
        waveform = generator.integers(-999, 999, 20 + take).astype(np.int16)
        wavfile.write(folder / f"{digit}_{speaker}_{take}.wav", 8000, waveform)
    return root


def test_fsdd_is_theirs(recordings):
    mine, other = audio.FSDD(recordings), their_audio.FSDD(recordings)
    assert len(mine) == len(other) == 3 and mine.speakers == ["jackson", "jackson", "theo"]
    for index in range(3):
        (waveform, digit), (waveform_there, digit_there) = mine[index], other[index]
        assert np.array_equal(waveform, waveform_there) and digit == digit_there
    changed = audio.FSDD(recordings, lambda waveform: len(waveform), lambda digit: -1.0)
    assert changed[0] == (30, -1) and isinstance(changed[0][1], int)
    assert audio.FSDD.metadata == their_audio.FSDD.metadata


def test_fsdd_that_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="Jakobovski.*give download=True"):
        audio.FSDD(tmp_path)


# --- open-set simulations


def labelled(kind=np.asarray, count: int = 120):
    """A set of ten classes of different sizes, with `targets` of one kind."""
    targets = (
        np.random.default_rng(1).integers(0, 10, count) % np.array([10, 7, 4])[np.arange(count) % 3]
    )
    dataset = TensorDataset(torch.arange(count), torch.from_numpy(targets))
    dataset.targets = kind(targets)
    return dataset


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("numbers", [{}, {"kuc": 2}, {"kuc": 1, "uuc_val": 3, "uuc_test": 2}])
def test_simulations_are_theirs(numbers, seed, stage):
    dataset = labelled()
    mine = ossim.DynamicOSS(dataset, 0.5, 0.3, 0.2, seed=seed, **numbers)
    other = their_ossim.DynamicOSS(dataset, 0.5, 0.3, 0.2, seed=seed, **numbers)
    assert (mine.kkc, mine.kuc, mine.uuc) == (other.kkc, other.kuc, other.uuc)
    assert np.array_equal(mine.unique_targets, other.unique_targets)
    assert mine.indices == other.indices and mine.classes == other.classes
    for inside in (True, False):
        for outside in (True, False):
            there = getattr(other, f"{stage}_dataset")(inside, outside)
            here = getattr(mine, f"{stage}_dataset")(inside, outside)
            assert list(here.indices) == list(there.indices)
            assert [here[i] for i in range(len(here))] == [there[i] for i in range(len(there))]


@pytest.mark.parametrize("kind", [list, torch.as_tensor, None])
def test_where_the_targets_come_from(kind):
    dataset = labelled(kind or np.asarray)
    if kind is None:
        del dataset.targets
    mine = ossim.DynamicOSS(dataset, seed=3)
    images = ArrayImages(np.zeros((120, 1, 2, 2), np.uint8), labelled().targets)
    assert ossim.DynamicOSS(images, seed=3).indices == mine.indices
    assert mine.indices == ossim.DynamicOSS(labelled(), seed=3).indices


def test_simulations_without_a_seed_differ_and_can_be_repeated():
    dataset = labelled()
    first, second = ossim.DynamicOSS(dataset), ossim.DynamicOSS(dataset)
    assert first.seed != second.seed and first.indices != second.indices
    assert ossim.DynamicOSS(dataset, seed=first.seed).indices == first.indices


def test_shares_and_classes_are_checked():
    dataset = labelled()
    assert ossim.DynamicOSS(dataset, 0.5, 0.3, seed=0).indices == (
        ossim.DynamicOSS(dataset, 0.5, 0.3, 0.2, seed=0).indices
    )
    assert ossim.DynamicOSS(dataset, 0.9, 0.1, 0.0).indices["train"]  # 1 - 0.9 - 0.1 is below 0
    with pytest.raises(InputError, match="add up to 1"):
        ossim.DynamicOSS(dataset, 0.7, 0.4)
    with pytest.raises(InputError, match="must stay known"):
        ossim.DynamicOSS(dataset, uuc_val=5, uuc_test=5)
    with pytest.raises(NotImplementedError):
        ossim.OpenSetSimulation().train_dataset()


# --- downloads


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def publish(server, monkeypatch, tmp_path):
    """A function that lets our own server publish a row: its archives, made from a folder."""

    def publish(name, folder):
        row, packed = info(name), []
        for archive in row.archives:
            file, source = tmp_path / f"published {archive.name}", folder / archive.place
            paths = sorted(path for path in source.rglob("*") if path.is_file())
            names = [f"{archive.inside}/{path.relative_to(source)}".strip("/") for path in paths]
            if archive.name.endswith(".zip"):
                with zipfile.ZipFile(file, "w") as made:
                    for path, inside in zip(paths, names):
                        made.write(path, inside)
            else:
                with tarfile.open(file, "w") as made:
                    for path, inside in zip(paths, names):
                        made.add(path, inside)
            server.files[f"/{archive.name}"] = file.read_bytes()
            md5 = hashlib.md5(file.read_bytes()).hexdigest()
            urls = (f"{server.address}/{archive.name}",)
            packed.append(dataclasses.replace(archive, urls=urls, md5=md5))
        little = dataclasses.replace(row, archives=tuple(packed), count={})
        monkeypatch.setitem(table.TABLE, name, little)

    return publish


@pytest.mark.parametrize(
    "name, rows",
    [
        ("roadanomaly", ("roadanomaly",)),
        ("roadobstacle21", ("roadobstacle21",)),
        ("streethazards", ("streethazards",)),
        ("streethazards train", ("streethazards_normal",)),
        ("lostandfound", ("lostandfound", "fishyscapes_lostandfound")),
    ],
)
def test_sets_are_fetched(name, rows, root, server, publish, tmp_path):
    """What our server publishes arrives whole, once, verified; the items are those published."""
    for row in rows:
        publish(row, root)
    mine, published = make(ours, name, tmp_path / "data", download=True), make(ours, name, root)
    assert len(mine) == len(published) > 0
    for (image, mask), (image_there, mask_there) in zip(mine, published):
        assert np.array_equal(image, image_there) and mask.equal(mask_there)
    requests = len(server.seen)
    assert requests == sum(len(info(row).archives) for row in rows)
    make(ours, name, tmp_path / "data", download=True).download()
    assert len(server.seen) == requests


def test_an_archive_of_another_checksum_is_refused(root, server, publish, tmp_path):
    publish("roadanomaly", root)
    server.files["/RoadAnomaly_jpg.zip"] = server.files["/RoadAnomaly_jpg.zip"][:-1] + b"x"
    words = "RoadAnomaly_jpg.zip.*md5.*by hand from https://www.epfl.ch.*save it in '.*data'"
    with pytest.raises(RuntimeError, match=words):
        ours.RoadAnomaly(tmp_path / "data", download=True)
    assert not (tmp_path / "data" / "RoadAnomaly").exists()


def test_an_archive_that_a_person_saved_is_used(root, server, publish, tmp_path):
    publish("roadanomaly", root)
    content = server.files.pop("/RoadAnomaly_jpg.zip")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "RoadAnomaly_jpg.zip").write_bytes(content)
    assert len(ours.RoadAnomaly(tmp_path / "data", download=True)) == 60 and not server.seen


def test_fishyscapes_fetches_its_overlays(root, publish, tmp_path):
    """Cityscapes lies elsewhere; without it the error says how a person gets it."""
    publish("fishyscapes", root)
    photographs = root / "cityscapes/leftImg8bit/val"
    with pytest.raises(RuntimeError, match="cityscapes-dataset.com"):
        ours.FishyScapes(tmp_path / "data", tmp_path / "nothing", download=True)
    mine = ours.FishyScapes(tmp_path / "data", photographs, download=True)
    published = ours.FishyScapes(root, photographs)
    assert len(mine) == 3 and mine[1][1].equal(published[1][1])


def test_fsdd_is_fetched(recordings, publish, tmp_path):
    publish("fsdd", recordings)
    mine = audio.FSDD(tmp_path / "data", download=True)
    assert [digit for _, digit in mine] == [0, 0, 3] and len(mine[0][0]) == 30
