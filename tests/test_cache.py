"""The cache on disk: damaged files are found and computed again, killed runs leave nothing."""

import errno
import os

import numpy as np
import pytest
import torch

import models
from ood import cache as caching
from ood.cache import Cache, cached, content_key, damaged
from ood.cli import RunError
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.outputs import extract

PREPROCESS = Preprocess((0.5,), (0.25,))
IMAGES = ArrayImages(
    np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), dtype=np.uint8), np.arange(20) % 10
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.build("small_cnn", 10, in_channels=1, image_size=28, width=4).eval()


@pytest.fixture
def lines():
    """What the cache says."""
    return []


@pytest.fixture
def cache(tmp_path, lines):
    return Cache(tmp_path / "cache", lines.append)


def flip_a_bit(file, place=-200):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def cut(file, size):
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)


def other_array(dtype):
    def write(file):
        array = np.load(file)
        np.save(file, array.astype(dtype), allow_pickle=True)

    return write


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a flipped bit in the header": lambda file: flip_a_bit(file, 70),
    "a flipped bit in the checksum": lambda file: flip_a_bit(file, -3),
    "zeros of the same size": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "truncated": lambda file: cut(file, 300),
    "one byte short": lambda file: cut(file, -1),
    "empty": lambda file: cut(file, 0),
    "two rows for each": lambda file: file.write_bytes(file.read_bytes() * 2),
    "byte-swapped": other_array(">f4"),
    "an array of objects": other_array(object),
    "of another type": other_array("f2"),
    "no NumPy file": lambda file: file.write_text("features", encoding="utf-8"),
}


@pytest.mark.parametrize("part", ["logits", "tap1"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_computed_again(network, cache, lines, damage, part):
    first = extract(network, IMAGES, PREPROCESS, taps=True, cache=cache)
    logits, taps = first.logits.clone(), [tap.clone() for tap in first.taps]
    (file,) = cache.folder.glob(f"*/{part}.npy")
    DAMAGES[damage](file)
    for run in range(2):
        fresh = Cache(cache.folder, lines.append)
        again = extract(network, IMAGES, PREPROCESS, taps=True, cache=fresh)
        assert torch.equal(again.logits, logits)
        assert all(torch.equal(a, b) for a, b in zip(again.taps, taps, strict=True))
        assert len(lines) == 1, run  # once: then the file is sound again
    assert str(file) in lines[0] and "is computed again" in lines[0]


def test_all_taps_or_none(network, cache, lines):
    whole = extract(network, IMAGES, PREPROCESS, taps=True, cache=cache).taps
    assert len(whole) == 3
    for part in ("tap0", "tap1"):
        (file,) = cache.folder.glob(f"*/{part}.npy")
        file.unlink()
        assert len(extract(network, IMAGES, PREPROCESS, taps=True, cache=cache).taps) == 3
    assert not lines


def test_a_file_is_read_once_unless_it_changes(cache, monkeypatch):
    read = []
    monkeypatch.setattr(caching, "damaged", lambda file: read.append(file) or damaged(file))
    cache.put("key", "part", torch.arange(5))
    assert cache.sound("key", ["part"]) == cache.sound("key", ["part"]) == {"part"}
    assert len(read) == 1
    flip_a_bit(cache.folder / "key" / "part.npy", -40)
    assert cache.sound("key", ["part"]) == set() and cache.sound("key", ["part"]) == set()
    assert len(read) == 2


@pytest.mark.parametrize("shape", [(3,), (0, 4), (70, 3000), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_arrays_come_back_as_they_were(cache, shape, dtype):
    values = (torch.rand(shape) * 100).to(dtype)
    cache.put("key", "part", values)
    assert cache.sound("key", ["part"]) and damaged(cache.folder / "key" / "part.npy") == ""
    found = cache.get("key", "part")
    assert found.dtype == dtype and torch.equal(found, values)
    found += 1 if dtype != torch.bool else True  # the file is not written
    assert torch.equal(Cache(cache.folder).get("key", "part"), values)


def test_files_of_dead_processes_are_removed_and_those_of_living_ones_kept(cache):
    child = os.fork()
    if not child:  # dies while it writes
        cache.writer("key", "features", (10, 4), np.float32).add(np.zeros((3, 4), np.float32))
        os._exit(0)
    os.waitpid(child, 0)
    (cache.folder / "key" / ".features.12345.npy").write_bytes(b"of an earlier version")
    alive = cache.writer("key", "features", (10, 4), np.float32)
    try:
        assert len(list(cache.folder.rglob(".*.npy"))) == 3
        Cache(cache.folder).sound("another key", ["features"])
        assert list(cache.folder.rglob("*.npy")) == [alive.aside]
        alive.add(np.ones((10, 4), np.float32))
        alive.commit()
    finally:
        alive.close()
    assert [file.name for file in cache.folder.rglob("*.npy")] == ["features.npy"]


@pytest.mark.parametrize("place", ["reserve", "write", "commit"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(network, cache, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "reserve":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(caching.Writer, "write" if place == "write" else "commit", full)
    if place == "commit":
        monkeypatch.undo()
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="the disk is full: .* are free; make room"):
        extract(network, IMAGES, PREPROCESS, batch_size=8, cache=cache)
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


def test_a_file_cannot_be_the_folder(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file' is a file"):
            Cache(folder)


def test_arrays_of_other_passes_are_kept_by_their_content(cache, lines):
    """`cached`: what methods compute beside `extract`."""
    calls = []

    def arrays(network="n", autoencoder="a", cache=cache):
        def compute():
            calls.append(1)
            return {"toy-first": torch.arange(6.0).view(3, 2), "toy-second": torch.tensor([1, 2])}

        parts = {"toy-first": (network, "images"), "toy-second": (network, "images", autoencoder)}
        return cached(cache, parts, compute)

    for _ in range(2):
        found = arrays()
        assert found["toy-first"].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert found["toy-second"].dtype == torch.int64 and found["toy-second"].tolist() == [1, 2]
    assert len(calls) == 1
    arrays(autoencoder="b")
    arrays(network="m")
    arrays(cache=None)
    arrays(cache=None)
    assert len(calls) == 5 and not lines
    flip_a_bit(next(cache.folder.rglob("toy-first.npy")), -40)
    for _ in range(2):
        assert arrays()["toy-first"].tolist() == [[0, 1], [2, 3], [4, 5]]
        arrays(network="m")
    assert len(calls) == 6 and len(lines) == 1


def test_a_cache_key_is_made_of_text():
    """The printed form of a large tensor leaves its middle out: two of them would share a key."""
    assert content_key("a", "b") != content_key("ab")
    with pytest.raises(TypeError, match="got Tensor"):
        content_key("a", torch.zeros(3))
