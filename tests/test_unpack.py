"""Archives from strangers: good ones come out whole, unsafe and damaged ones are refused."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import numpy as np
import pytest
from download_toys import make_tar, make_zip

from ood.data.fetch import unpack as unpacking
from ood.data.fetch.unpack import UnpackError, unpack

BODY = np.random.default_rng(0).integers(0, 256, 700_000, dtype=np.uint8).tobytes()


def special(kind, target=""):
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, target
    return entry


def make(kind, path, members):
    (make_zip if kind == "zip" else make_tar)(path, members)
    return path


@pytest.mark.parametrize(
    "kind, mode", [("zip", ""), ("tar", "w"), ("tar", "w:gz"), ("tar", "w:xz"), ("tar", "w:bz2")]
)
def test_good_archives(tmp_path, kind, mode):
    members = {"set/a/1.png": b"one", "set/b/2.png": b"two" * 1000, "./set/c.txt": b""}
    path = tmp_path / "archive"
    make_zip(path, members) if kind == "zip" else make_tar(path, members, mode)
    assert unpack(path, tmp_path / "out") == 3
    assert {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    } == {"set/a/1.png": b"one", "set/b/2.png": b"two" * 1000, "set/c.txt": b""}
    assert (
        unpack(
            path,
            tmp_path / "some",
            select=lambda names: [name for name in names if name.endswith(".png")],
        )
        == 2
    )


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/tmp/ood-evil",
        "..",
        "a\\..\\..\\evil",
        "C:/evil",
        "C:\\evil",
        "\\evil",
    ],
)
def test_paths_that_lead_out(tmp_path, kind, name):
    path = make(kind, tmp_path / f"bad.{kind}", {"good": b"x", name: b"evil"})
    with pytest.raises(UnpackError, match="leads out of it|absolute path"):
        unpack(path, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/ood-evil").exists()


@pytest.mark.parametrize(
    "kind, target",
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../outside"),
        (tarfile.SYMTYPE, "nowhere"),
        (tarfile.SYMTYPE, ""),
    ],
)
def test_links_that_lead_out(tmp_path, kind, target):
    (tmp_path / "outside").write_text("secret")
    make_tar(tmp_path / "bad.tar", {"a/1": b"x", "a/link": special(kind, target)})
    with pytest.raises(UnpackError, match="leads out|leads to no file|outside|absolute"):
        unpack(tmp_path / "bad.tar", tmp_path / "in" / "out")
    assert not any(
        p.is_symlink() or p.is_file() and b"secret" in p.read_bytes()
        for p in (tmp_path / "in").rglob("*")
    )


def test_write_through_a_link(tmp_path):
    """A link to a folder outside, then a file 'inside' that link."""
    (tmp_path / "outside").mkdir()
    make_tar(
        tmp_path / "bad.tar",
        {"a": special(tarfile.SYMTYPE, str(tmp_path / "outside")), "a/evil": b"x"},
    )
    with pytest.raises(UnpackError):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    make_zip(
        tmp_path / "bad.zip",
        {"a": (str(tmp_path / "outside").encode(), stat.S_IFLNK | 0o777), "a/evil": b"x"},
    )
    with pytest.raises(UnpackError, match="leads out"):
        unpack(tmp_path / "bad.zip", tmp_path / "out2")
    assert not list((tmp_path / "outside").iterdir())


def test_links_inside_become_copies(tmp_path):
    make_tar(
        tmp_path / "good.tar",
        {
            "a/1": b"one",
            "b/link": special(tarfile.SYMTYPE, "../a/1"),
            "hard": special(tarfile.LNKTYPE, "a/1"),
        },
    )
    assert unpack(tmp_path / "good.tar", tmp_path / "out") == 3
    assert (tmp_path / "out/b/link").read_bytes() == (
        tmp_path / "out/hard"
    ).read_bytes() == b"one" and not (tmp_path / "out/b/link").is_symlink()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes(tmp_path, kind):
    make_tar(tmp_path / "bad.tar", {"a": b"x", "device": special(kind)})
    with pytest.raises(UnpackError, match="device or a pipe"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    make_zip(tmp_path / "bad.zip", {"device": (b"", stat.S_IFIFO | 0o644)})
    with pytest.raises(UnpackError, match="device or a pipe"):
        unpack(tmp_path / "bad.zip", tmp_path / "out2")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bombs(tmp_path, kind, monkeypatch):
    path = make(kind, tmp_path / f"bomb.{kind}", {f"{n}": bytes(2_000_000) for n in range(10)})
    assert path.stat().st_size < 50_000
    with pytest.raises(UnpackError, match="unpacks to more than 5,000,000 bytes"):
        unpack(path, tmp_path / "out", limit=5_000_000)
    monkeypatch.setattr(unpacking, "FLOOR", 10_000)  # the default: so many times the archive's size
    with pytest.raises(UnpackError, match="unpacks to more than"):
        unpack(path, tmp_path / "out2")
    monkeypatch.setattr(unpacking, "MEMBERS", 5)
    with pytest.raises(UnpackError, match="more than 5 members"):
        unpack(path, tmp_path / "out3", limit=10**9)


def test_zip_that_lies_about_its_sizes(tmp_path):
    make_zip(tmp_path / "bomb.zip", {"a": bytes(3_000_000)})
    content = (
        (tmp_path / "bomb.zip")
        .read_bytes()
        .replace((3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    )
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(UnpackError):
        unpack(tmp_path / "bomb.zip", tmp_path / "out", limit=100_000)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()) <= 100_000


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives(tmp_path, kind):
    path = make(
        kind, tmp_path / f"bad.{kind}", {f"{n}": BODY[n * 1000 :][:50_000] for n in range(5)}
    )
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:100_000] + b"\xff" * 1000 + content[101_000:],
        b"",
        b"no archive at all",
    ):
        path.write_bytes(damaged)
        with pytest.raises(UnpackError, match="is damaged"):
            unpack(path, tmp_path / "out")
