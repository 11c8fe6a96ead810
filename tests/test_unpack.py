"""Archives from strangers: good ones come out whole, unsafe and damaged ones are refused."""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from download_toys import make_tar, make_zip

from ood.data.fetch import bounded
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
    assert (tmp_path / "out/b/link").read_bytes() == (tmp_path / "out/hard").read_bytes() == b"one"
    assert not (tmp_path / "out/b/link").is_symlink()


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


GREEDY = 2**32  # bytes that a header claims


def header(kind, size, name="x"):
    """One block of a tar: a header of this kind that claims so many bytes."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def greedy_tars():
    """Return {name: tar whose header wants memory}. What they claim is there, as zeros."""
    zeros, small = bytes(3_000_000), header(tarfile.REGTYPE, 1) + b"x".ljust(512, b"\0")
    extended = {"a pax header": b"x", "a global pax header": b"g", "a long name": b"L"}
    tars = {name: header(kind, GREEDY) + zeros for name, kind in extended.items()}
    tars["a long link"] = header(b"K", GREEDY) + zeros
    tars["a pax header after a good member"] = small + header(b"x", GREEDY) + zeros
    tars["a name of negative length"] = small + header(b"L", -512) + zeros
    tars["pax headers one after the other"] = (header(b"x", 2**19) + bytes(2**19)) * 6
    sparse = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    sparse[482] = 1  # the map goes on in the next block
    sparse[148:156] = b"%06o\0 " % sum((*sparse[:148], *b" " * 8, *sparse[156:]))
    tars["a sparse map without end"] = bytes(sparse) + (bytes(504) + b"\1" + bytes(7)) * 5000
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    map_ = header(b"x", len(records)) + records.ljust(512, b"\0") + header(b"0", 512)
    tars["a sparse map in pax records"] = map_ + b"999999999\n" + b"1\n" * 1_500_000
    return tars


@pytest.mark.parametrize("opened", [bytes, gzip.compress], ids=["tar", "tgz"])
@pytest.mark.parametrize("name", greedy_tars())
def test_headers_that_want_memory(tmp_path, name, opened, monkeypatch):
    """None of them is read: the stream gives no more than what a header may have."""
    (tmp_path / "bad.tar").write_bytes(opened(greedy_tars()[name]))
    largest = []
    read = bounded.Bounded.read

    def watched(self, size=-1):
        data = read(self, size)
        largest.append(len(data))
        return data

    monkeypatch.setattr(bounded.Bounded, "read", watched)
    with pytest.raises(UnpackError, match="a header of more than 1,048,576 bytes"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    assert max(largest) <= 2**20 and sum(largest) <= 2**20 + 4096
    if "after a good member" in name or "negative" in name:
        assert unpacking.is_archive(tmp_path / "bad.tar")
    else:
        with pytest.raises(UnpackError, match="a header of more than"):
            unpacking.is_archive(tmp_path / "bad.tar")


def test_global_headers_that_add_up(tmp_path):
    """Each is small, but they are kept for all members that follow."""
    content = b""
    for number in range(6):
        record = b"%d k%d=%s\n" % (300_008, number, b"v" * 299_995)
        padded = record.ljust(-(-len(record) // 512) * 512, b"\0")
        content += header(b"g", len(record)) + padded + header(b"0", 0, f"file{number}")
    (tmp_path / "bad.tar").write_bytes(content + bytes(1024))
    with pytest.raises(UnpackError, match="a header of more than 1,048,576 bytes"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")


def test_member_of_negative_size(tmp_path):
    (tmp_path / "bad.tar").write_bytes(header(b"0", -1024) + bytes(4096))
    with pytest.raises(UnpackError, match="negative size|is damaged"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")


def test_long_names_are_unpacked(tmp_path):
    """Names beyond the 100 bytes of a plain header, in either format."""
    name = "/".join(["a" * 90] * 4) + ".png"
    for number, layout in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / "long.tar", "w:gz", format=layout) as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(BODY)
            archive.addfile(entry, io.BytesIO(BODY))
        assert unpack(tmp_path / "long.tar", tmp_path / f"out{number}") == 1
        assert (tmp_path / f"out{number}" / name).read_bytes() == BODY


def test_zip_whose_list_of_members_wants_memory(tmp_path, monkeypatch):
    make_zip(tmp_path / "large.zip", {f"{n}": b"" for n in range(300)})
    monkeypatch.setattr(unpacking, "DIRECTORY_BYTES", 100_000)
    assert unpack(tmp_path / "large.zip", tmp_path / "out") == 300
    monkeypatch.setattr(unpacking, "DIRECTORY_BYTES", 10_000)
    with pytest.raises(UnpackError, match="a list of members of more than 10,000 bytes"):
        unpack(tmp_path / "large.zip", tmp_path / "out2")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_expand_in_memory(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", method) as archive:
        archive.writestr("a", bytes(1000))
    with pytest.raises(UnpackError, match="only stored and deflated"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_zip_link_that_claims_to_be_short(tmp_path):
    """A link target is read piece by piece: 20 MB behind a claim of 100 bytes stay unread."""
    target = bytes(20_000_000)
    make_zip(tmp_path / "bad.zip", {"link": (target, stat.S_IFLNK | 0o777)})
    content = (tmp_path / "bad.zip").read_bytes()
    size = len(target).to_bytes(4, "little")
    (tmp_path / "bad.zip").write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(UnpackError):
        unpack(tmp_path / "bad.zip", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_xz_with_a_large_dictionary(tmp_path, monkeypatch):
    """The limit is 256 MiB, four times what `xz -9` needs; here both numbers are smaller."""
    make_tar(tmp_path / "plain.tar", {"a/1": BODY, "a/2": b"two"}, "w")
    content = (tmp_path / "plain.tar").read_bytes()
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(content, preset=3))  # 4 MiB
    assert unpack(tmp_path / "x.tar.xz", tmp_path / "out") == 2
    monkeypatch.setattr(bounded, "DICTIONARY_BYTES", 2**22)
    with pytest.raises(UnpackError, match="is damaged .*[Mm]emory"):
        unpack(tmp_path / "x.tar.xz", tmp_path / "out1")
    monkeypatch.undo()


def test_xz_in_several_streams(tmp_path):
    make_tar(tmp_path / "plain.tar", {"a/1": BODY, "a/2": b"two"}, "w")
    content = (tmp_path / "plain.tar").read_bytes()
    halves = [lzma.compress(part, preset=0) for part in (content[:1024], content[1024:])]
    (tmp_path / "joined.tar.xz").write_bytes(halves[0] + bytes(8) + halves[1])
    assert unpack(tmp_path / "joined.tar.xz", tmp_path / "joined") == 2
    assert (tmp_path / "joined/a/1").read_bytes() == BODY


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
