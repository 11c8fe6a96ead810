"""Downloads from a server that breaks as told; whole sets; a killed run.

The claim under test: nothing is lost, and nothing half done or wrong is ever taken for whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest
from download_toys import Server, make_tar, make_zip, pictures
from PIL import Image

from ood.data import info, load
from ood.data.fetch import obtain
from ood.data.fetch import unpack as unpacking
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fault, fetch
from ood.data.registry import table
from ood.data.registry.entry import Archive, DatasetInfo

HASTY = Patience(tries=3, timeout=10.0, pause=0.01, longest=0.05, rate=20_000, window=10.0)
BODY = np.random.default_rng(0).integers(0, 256, 700_000, dtype=np.uint8).tobytes()
MD5, SHA256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
    running = Server()
    running.files = {"/a": BODY, "/b": BODY}
    yield running
    running.close()


def get(server, path, *names, md5=MD5, size=len(BODY), patience=HASTY, **options):
    return fetch(
        [server.address + name for name in names or ("/a",)],
        path,
        size=size,
        md5=md5,
        patience=patience,
        **options,
    )


def left_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- one file


def test_a_good_file(server, tmp_path):
    assert get(server, tmp_path / "in" / "file") == SHA256
    assert (tmp_path / "in" / "file").read_bytes() == BODY
    assert left_in(tmp_path / "in") == ["file"] and server.seen == [("/a", None)]
    assert get(server, tmp_path / "other", md5=None, size=None, sha256=SHA256) == SHA256


def test_truncated_transfer_is_continued(server, tmp_path):
    server.faults["/a"] = ["cut", "cut"]
    get(server, tmp_path / "file")
    half, most = len(BODY) // 2, len(BODY) // 2 + len(BODY) // 4
    assert server.seen == [("/a", None), ("/a", f"bytes={half}-"), ("/a", f"bytes={most}-")]
    assert (tmp_path / "file").read_bytes() == BODY and left_in(tmp_path) == ["file"]


def test_what_arrived_stays_for_the_next_call(server, tmp_path):
    server.faults["/a"] = ["cut"] + [503] * 9
    with pytest.raises(DownloadError, match="answered 503"):
        get(server, tmp_path / "file")
    assert left_in(tmp_path) == ["file.part", "file.part.json"]
    assert (tmp_path / "file.part").stat().st_size == len(BODY) // 2
    server.faults["/a"], server.seen = [], []
    get(server, tmp_path / "file")
    assert server.seen == [("/a", f"bytes={len(BODY) // 2}-")]
    assert (tmp_path / "file").read_bytes() == BODY


def test_wrong_checksum_is_never_accepted(server, tmp_path):
    with pytest.raises(DownloadError, match=f"the file has the md5 {MD5} instead of {'0' * 32}"):
        get(server, tmp_path / "file", md5="0" * 32)
    assert left_in(tmp_path) == []
    with pytest.raises(DownloadError, match="has the sha256"):
        get(server, tmp_path / "file", md5=None, sha256="0" * 64)
    server.faults["/a"] = ["damage"]
    get(server, tmp_path / "file", "/a", "/b")  # the second mirror has the right one
    assert (tmp_path / "file").read_bytes() == BODY
    assert [path for path, _ in server.seen][-2:] == [
        "/a",
        "/b",
    ]


def test_a_continued_file_that_is_wrong_is_fetched_once_more(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.part.json").write_text(json.dumps({"url": "elsewhere", "tag": None}))
    get(server, tmp_path / "file")
    assert server.seen == [("/a", "bytes=1000-"), ("/a", None)]
    assert (tmp_path / "file").read_bytes() == BODY


def test_changed_file_is_not_mixed(server, tmp_path):
    """The server's file changes between two attempts: If-Range makes it send the new one whole."""
    server.faults["/a"] = ["cut"] + [500] * 9
    with pytest.raises(DownloadError):
        get(server, tmp_path / "file", md5=None, size=None)
    new = bytes(reversed(BODY))
    server.files["/a"], server.faults["/a"] = new, []
    get(server, tmp_path / "file", md5=None, size=None)
    assert (tmp_path / "file").read_bytes() == new


def test_without_checksum_and_version_nothing_is_continued(server, tmp_path):
    server.tags = False
    server.faults["/a"] = ["cut"]
    get(server, tmp_path / "file", md5=None, size=None)
    assert server.seen == [("/a", None), ("/a", None)] and (tmp_path / "file").read_bytes() == BODY


def test_missing_file_then_a_good_mirror(server, tmp_path):
    lines = []
    get(server, tmp_path / "file", "/nowhere", "/b", log=lines.append)
    assert (
        server.seen == [("/nowhere", None), ("/b", None)] and "answered 404" in lines[0]
    )  # 404 is not tried again
    with pytest.raises(DownloadError, match=r"/nowhere: answered 404.*; .*/gone: answered 404"):
        get(server, tmp_path / "other", "/nowhere", "/gone")


def test_overloaded_server_is_tried_again(server, tmp_path):
    server.faults["/a"] = [503, 429]
    get(server, tmp_path / "file")
    assert len(server.seen) == 3
    server.faults["/a"] = [500] * 3
    get(server, tmp_path / "other", "/a", "/b")
    assert [path for path, _ in server.seen[3:]] == ["/a", "/a", "/a", "/b"]


def test_refused_ranges_mean_from_the_beginning(server, tmp_path):
    server.ranges = False
    server.faults["/a"] = ["cut"]
    get(server, tmp_path / "file")
    assert len(server.seen) == 2 and (tmp_path / "file").read_bytes() == BODY


def test_wrong_range_is_not_appended(server, tmp_path):
    server.faults["/a"] = ["cut", "shifted"]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("extra, requests", [(b"", 1), (b"beyond", 2)])
def test_part_as_long_as_the_file_or_longer(server, tmp_path, extra, requests):
    """416: complete, or to be thrown away. The size is not known beforehand."""
    (tmp_path / "file.part").write_bytes(BODY + extra)
    (tmp_path / "file.part.json").write_text(
        json.dumps({"url": server.address + "/a", "tag": None})
    )
    get(server, tmp_path / "file", size=None)
    assert len(server.seen) == requests and (tmp_path / "file").read_bytes() == BODY


def test_complete_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY)
    (tmp_path / "file.part.json").write_text(json.dumps({"url": "elsewhere", "tag": None}))
    get(server, tmp_path / "file")
    assert server.seen == [] and left_in(tmp_path) == ["file"]


def test_slow_and_silent_servers(server, tmp_path):
    impatient = dataclasses.replace(HASTY, timeout=0.2, window=0.1)
    server.faults["/a"] = ["silent"]  # for 8 seconds
    get(server, tmp_path / "file", patience=impatient)
    assert server.seen[1] == ("/a", "bytes=1000-")
    server.faults["/a"] = ["slow"] * 3  # 2 kB/s where 20 are asked for
    lines = []
    get(server, tmp_path / "other", "/a", "/b", log=lines.append, patience=impatient)
    assert any("less than 20,000 bytes/s" in line for line in lines) and server.seen[-1][0] == "/b"
    server.files["/c"], server.faults["/c"] = BODY[:90_000], ["crawl"]  # slow, but it moves
    get(server, tmp_path / "third", "/c", md5=None, size=90_000)
    assert (tmp_path / "third").read_bytes() == BODY[:90_000]


def test_wrong_size_is_seen_before_the_transfer(server, tmp_path):
    with pytest.raises(DownloadError, match="offers 700,000 bytes instead of 700,001"):
        get(server, tmp_path / "file", size=700_001)
    server.faults["/a"] = ["endless"]
    with pytest.raises(DownloadError, match="more than the 700,000 bytes"):
        get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_redirects(server, tmp_path):
    server.faults["/a"] = [server.address + "/b?x=1"]
    get(server, tmp_path / "file")
    assert [path for path, _ in server.seen] == ["/a", "/b"]
    server.faults["/a"] = [server.address + "/a"] * 30
    with pytest.raises(DownloadError, match="answered 302"):
        get(server, tmp_path / "other")
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.faults["/a"] = [target]
        with pytest.raises(DownloadError, match="no web address|not allowed"):
            get(server, tmp_path / "other")
    assert left_in(tmp_path) == ["file"]


def test_no_downgrade_to_http_without_a_checksum():
    import urllib.request

    from ood.data.fetch.connection import Redirects, Refused

    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(Refused, match="from https to http"):
        Redirects(known=False).redirect_request(request, None, 302, "", {}, "http://example.org/b")
    assert (
        Redirects(known=True)
        .redirect_request(request, None, 302, "", {}, "http://example.org/b")
        .full_url
        == "http://example.org/b"
    )


def test_web_page_instead_of_the_file(server, tmp_path):
    server.faults["/a"] = ["page"]
    with pytest.raises(DownloadError, match="sent a web page instead of the file"):
        get(server, tmp_path / "file", md5=None, size=None)
    assert left_in(tmp_path) == []


def test_nobody_listens(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError, match="cannot be reached .*3 times"):
        fetch([f"http://127.0.0.1:{port}/a"], tmp_path / "file", patience=HASTY)
    with pytest.raises(DownloadError, match="no mirror is known"):
        fetch([], tmp_path / "file")


def test_full_disk_is_seen_before_the_transfer(server, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5)
    )
    with pytest.raises(DownloadError, match="needs 700,000 more bytes, but only 100,000 are free"):
        get(server, tmp_path / "file")


# --- whole sets


@pytest.fixture
def shop(server, tmp_path, monkeypatch):
    """A made-up set of 30 images in a tar on the server; shop(**facts) changes its row."""
    make_tar(
        tmp_path / "toy.tar.gz",
        {f"toy/{number % 3}/{number}.png": image for number, image in enumerate(pictures(30))},
    )
    server.files["/toy.tar.gz"] = (tmp_path / "toy.tar.gz").read_bytes()
    (tmp_path / "toy.tar.gz").unlink()

    def change(**facts):
        archive = dict(
            urls=(server.address + "/toy.tar.gz",),
            place="ood_datasets/toy",
            inside="toy",
            md5=hashlib.md5(server.files["/toy.tar.gz"]).hexdigest(),
            bytes=len(server.files["/toy.tar.gz"]),
        )
        row = dict(count={"test": 30}, layout="toy", folders=("ood_datasets/toy",))
        for key, value in facts.items():
            (archive if key in {field.name for field in dataclasses.fields(Archive)} else row)[
                key
            ] = value
        monkeypatch.setitem(
            table.TABLE,
            "toy",
            DatasetInfo("toy", "ood", "folder", archives=(Archive(**archive),), **row),
        )
        return info("toy")

    return change


def take(row, data_dir, **options):
    return obtain.obtain(row, data_dir, patience=HASTY, **options)


def test_a_set_is_fetched_once(server, shop, tmp_path):
    row, root = shop(), tmp_path / "data"
    assert take(row, root).state == "done" and len(load("toy", "test", root)) == 30
    record = json.loads((root / "downloads.json").read_text())
    assert record["ood_datasets/toy"]["trust"] == "published checksum"
    assert left_in(root / ".download") == ["lock"] and len(server.seen) == 1
    assert take(row, root).state == "there" and len(server.seen) == 1


def test_wrong_archive_leaves_no_set(server, shop, tmp_path):
    outcome = take(shop(md5="0" * 32), tmp_path / "data")
    assert outcome.state == "failed"
    assert "has the md5" in outcome.text
    assert not (tmp_path / "data" / "ood_datasets").exists()
    row = shop()
    server.files["/toy.tar.gz"] = server.files["/toy.tar.gz"][:-100]
    assert take(row, tmp_path / "data").state == "failed"
    assert not (tmp_path / "data" / "ood_datasets").exists()


def test_unsafe_archive_leaves_no_set(server, shop, tmp_path):
    make_tar(tmp_path / "bad.tar", {"toy/1.png": b"x", "toy/../../../evil": b"x"})
    server.files["/toy.tar.gz"] = (tmp_path / "bad.tar").read_bytes()
    outcome = take(shop(), tmp_path / "data")
    assert outcome.state == "failed" and "leads out" in outcome.text
    assert not (tmp_path / "data" / "ood_datasets").exists() and not list(tmp_path.rglob("evil"))


def test_fewer_images_than_published(shop, tmp_path):
    outcome = take(shop(count={"test": 31}), tmp_path / "data")
    assert outcome.state == "failed" and "30 of 31 images" in outcome.text


def test_trust_on_first_use(server, shop, tmp_path):
    row, root = shop(md5=None, bytes=None), tmp_path / "data"
    assert take(row, root).state == "done"
    record = json.loads((root / "downloads.json").read_text())["ood_datasets/toy"]
    assert record["trust"].startswith("first use")
    assert record["sha256"] == hashlib.sha256(server.files["/toy.tar.gz"]).hexdigest()
    import shutil

    shutil.rmtree(root / "ood_datasets")
    good = server.files["/toy.tar.gz"]
    make_tar(tmp_path / "other.tar", {"toy/1.png": b"another"})
    server.files["/toy.tar.gz"] = (tmp_path / "other.tar").read_bytes()
    outcome = take(row, root)
    assert outcome.state == "failed"
    assert "sha256" in outcome.text
    assert "remove the entry 'ood_datasets/toy'" in outcome.text
    assert not (root / "ood_datasets" / "toy").exists()
    server.files["/toy.tar.gz"] = good
    assert take(row, root).state == "done"
    (root / "downloads.json").write_text("{")
    assert "is damaged" in take(row, root, replace=True).text


def test_page_instead_of_an_archive_is_never_trusted(server, shop, tmp_path):
    server.files["/toy.tar.gz"] = b"quota exceeded, please log in" * 100
    outcome = take(shop(md5=None, bytes=None), tmp_path / "data")
    assert outcome.state == "failed"
    assert "is no archive" in outcome.text
    assert not (tmp_path / "data" / "downloads.json").exists()


def test_incomplete_set_is_replaced_only_when_asked(shop, tmp_path):
    row, root = shop(), tmp_path / "data"
    (root / "ood_datasets/toy/0").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "ood_datasets/toy/0/mine.png")
    outcome = take(row, root)
    assert outcome.state == "failed"
    assert "1 of 30 images" in outcome.text
    assert "-replace" in outcome.text
    assert (root / "ood_datasets/toy/0/mine.png").is_file()
    assert take(row, root, replace=True).state == "done"
    assert not (root / "ood_datasets/toy/0/mine.png").exists()
    assert left_in(root / "ood_datasets") == ["toy"]


def test_archive_placed_by_a_person(server, shop, tmp_path):
    row, root = (
        shop(urls=(), file="toy.tar.gz", steps="get toy.tar.gz into {data_dir}"),
        tmp_path / "data",
    )
    outcome = take(row, root)
    assert outcome.state == "steps" and f"get toy.tar.gz into {root}" in outcome.text
    (root / "toy.tar.gz").write_bytes(server.files["/toy.tar.gz"][:-1])
    assert "bytes instead of" in take(row, root).text
    (root / "toy.tar.gz").write_bytes(server.files["/toy.tar.gz"])
    assert take(row, root).state == "done" and (root / "toy.tar.gz").is_file() and server.seen == []


def test_seeded_choice(shop, tmp_path):
    row = shop(choose=7, count={"test": 7})
    assert take(row, tmp_path / "one").state == take(row, tmp_path / "two").state == "done"
    names = [load("toy", "test", tmp_path / root).paths for root in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 7
    assert obtain.choose([f"x/{n}.jpg" for n in range(5)], 3) == [
        "x/4.jpg",
        "x/3.jpg",
        "x/2.jpg",
    ]  # the same on every machine
    assert "fewer than the 31" in take(shop(choose=31), tmp_path / "three").text


def test_needs_come_first_and_once():
    assert [
        row.name for row in obtain.with_needs(["tinyimagenet32", "tinyimagenet", "imagenet200"])
    ] == ["tinyimagenet", "tinyimagenet32", "imagenet", "openood_lists", "imagenet200"]


def in_another_process(row, root, slowly=False) -> int:
    """Start obtain(row) in a process of its own; its exit code is 0 for 'done'.

    A fork, because it needs no second import of torch.
    """
    child = os.fork()
    if child:
        return child
    code = 9
    with contextlib.suppress(BaseException):
        if slowly:
            copy = unpacking._copy
            unpacking._copy = lambda *arguments: (time.sleep(0.05), copy(*arguments))[1]
        code = 0 if take(row, root).state == "done" else 1
    os._exit(code)


@pytest.mark.parametrize("where", ["transfer", "unpacking"])
def test_kill_9_then_a_second_run_completes(server, shop, tmp_path, where):
    root, work = tmp_path / "data", tmp_path / "data" / ".download" / "ood_datasets__toy"
    if where == "transfer":
        make_tar(
            tmp_path / "large.tar",
            {
                "toy/readme.txt": BODY,
                **{f"toy/{n}/{n}.png": image for n, image in enumerate(pictures(30))},
            },
            "w",
        )
        server.files["/toy.tar.gz"] = (tmp_path / "large.tar").read_bytes()
        server.faults["/toy.tar.gz"] = ["crawl"]
    row = shop()
    first = in_another_process(row, root, slowly=where == "unpacking")
    for _ in range(3000):  # until it is in the middle
        sizes = (
            [p.stat().st_size for p in work.glob("*.part")]
            if where == "transfer"
            else [len(list(work.glob("unpacked/toy/*/*.png")))]
        )
        if sizes and sizes[0] > (50_000 if where == "transfer" else 3):
            break
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == -signal.SIGKILL
    assert not (root / "ood_datasets").exists()  # nothing that looks complete
    if where == "transfer":
        assert 50_000 < (work / "toy.tar.gz.part").stat().st_size < len(server.files["/toy.tar.gz"])
    seen = len(server.seen)
    assert os.waitstatus_to_exitcode(os.waitpid(in_another_process(row, root), 0)[1]) == 0
    assert len(load("toy", "test", root)) == 30 and left_in(root / "ood_datasets") == ["toy"]
    if where == "transfer":
        assert server.seen[seen][1] is not None  # it went on where the first one stopped
    else:
        assert len(server.seen) == seen  # the verified archive was still there
    assert left_in(root / ".download") == ["lock"]


# --- preparation


def test_tiny_imagenet_as_its_archive_has_it(server, tmp_path, monkeypatch):
    def jpeg(seed):
        buffer = io.BytesIO()
        Image.fromarray(
            np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        ).save(buffer, "JPEG")
        return buffer.getvalue()

    members = {
        f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{n}.JPEG": jpeg(n)
        for n, wnid in enumerate(["n01", "n02", "n01", "n02"])
    }
    members |= {f"tiny-imagenet-200/val/images/val_{n}.JPEG": jpeg(n) for n in range(4)}
    members["tiny-imagenet-200/val/val_annotations.txt"] = "".join(
        f"val_{n}.JPEG\tn0{2 - n % 2}\t0\t0\t9\t9\n" for n in range(4)
    ).encode()
    make_zip(tmp_path / "tiny.zip", members)
    server.files["/tiny.zip"] = (tmp_path / "tiny.zip").read_bytes()
    for name in ("tinyimagenet", "tinyimagenet32"):
        row = info(name)
        archives = tuple(
            dataclasses.replace(a, urls=(server.address + "/tiny.zip",), md5=None, bytes=None)
            for a in row.archives
        )
        monkeypatch.setitem(
            table.TABLE,
            name,
            dataclasses.replace(
                row, archives=archives, num_classes=2, count={"train": 4, "test": 4}
            ),
        )
    root = tmp_path / "data"
    for row in obtain.with_needs(["tinyimagenet32"]):
        outcome = take(row, root)
        assert outcome.state == "done", outcome.text
    assert left_in(root / "tiny-imagenet-200" / "val") == ["n01", "n02", "val_annotations.txt"]
    small, large = load("tinyimagenet32", "test", root), load("tinyimagenet", "test", root, size=32)
    assert small.labels.tolist() == large.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(small.images, large.images)
    assert left_in(root / "tinyimagenet32") == ["train", "val"]


def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    from scipy.io import savemat

    root = tmp_path / "data"
    root.mkdir()

    def jpeg(seed):
        buffer = io.BytesIO()
        Image.fromarray(np.full((20, 20, 3), seed, dtype=np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    synsets = np.array(
        [(1, "n03"), (2, "n01"), (3, "n02")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": (tmp_path / "meta.mat").read_bytes(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"3\n1\n2\n3\n",
    }
    make_tar(root / "ILSVRC2012_devkit_t12.tar.gz", kit)
    make_tar(
        root / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_0000000{n}.JPEG": jpeg(n) for n in range(1, 5)},
        "w",
    )
    for number in (1, 2, 3):
        make_tar(
            tmp_path / f"n0{number}.tar", {f"n0{number}_{n}.JPEG": jpeg(n) for n in range(2)}, "w"
        )
    make_tar(
        root / "ILSVRC2012_img_train.tar",
        {f"n0{n}.tar": (tmp_path / f"n0{n}.tar").read_bytes() for n in (1, 2, 3)},
        "w",
    )
    row = info("imagenet")
    assert "get it again" in take(row, root).text  # these are not ImageNet's archives
    archives = tuple(dataclasses.replace(a, md5=None, bytes=None) for a in row.archives)
    monkeypatch.setitem(
        table.TABLE,
        "imagenet",
        dataclasses.replace(row, archives=archives, num_classes=3, count={"train": 6, "test": 4}),
    )
    outcome = take(info("imagenet"), root)
    assert outcome.state == "done", outcome.text
    assert load("imagenet", "test", root, size=16).paths == [
        "n01/ILSVRC2012_val_00000003.JPEG",
        "n02/ILSVRC2012_val_00000001.JPEG",
        "n02/ILSVRC2012_val_00000004.JPEG",
        "n03/ILSVRC2012_val_00000002.JPEG",
    ]
    assert load("imagenet", "train", root, size=16).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_svhn_subset(server, tmp_path, monkeypatch):
    from scipy.io import loadmat, savemat

    labels = np.random.default_rng(0).integers(1, 11, 40)
    savemat(
        tmp_path / "test.mat",
        {
            "X": np.random.default_rng(1).integers(0, 256, (32, 32, 3, 40), dtype=np.uint8),
            "y": labels[:, None].astype(np.uint8),
        },
    )
    server.files["/test_32x32.mat"] = (tmp_path / "test.mat").read_bytes()
    from ood.data import layouts
    from ood.data.fetch import prepare

    monkeypatch.setattr(prepare, "SVHN_PER_LABEL", 2)
    monkeypatch.setattr(layouts, "SVHN_PER_LABEL", 2)
    row = info("svhn_selected")
    archives = tuple(
        dataclasses.replace(a, urls=(server.address + "/test_32x32.mat",), md5=None, bytes=None)
        for a in row.archives
    )
    kept = sorted(np.concatenate([np.flatnonzero(labels == label)[:2] for label in range(1, 11)]))
    monkeypatch.setitem(
        table.TABLE,
        "svhn_selected",
        dataclasses.replace(row, archives=archives, count={"test": len(kept)}),
    )
    outcome = take(info("svhn_selected"), tmp_path / "data")
    assert outcome.state == "done", outcome.text
    file = tmp_path / "data/ood_datasets/svhn/selected_test_32x32.mat"
    assert loadmat(file)["y"].reshape(-1).tolist() == labels[kept].tolist()
    assert (
        load("svhn_selected", "test", tmp_path / "data").original_labels.tolist()
        == (labels[kept] % 10).tolist()
    )


# --- the script


def test_script(call_script):
    bad = call_script("scripts/download_data.py", "iSNU")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
    assert "no data set or benchmark 'iSNU' (did you mean 'iSUN'?)" in bad.stderr


def test_dry_run(call_script, tmp_path):
    shown = call_script(
        "scripts/download_data.py", "all_benchmarks", "-dry_run", "-data_dir", tmp_path
    )
    assert shown.returncode == 0 and shown.stderr == "" and not list(tmp_path.iterdir())
    for text in (
        "iSUN.tar.gz",
        "be77b0f2c26fda898afac5f99645ee70",
        "4,085,055 bytes",
        "trust on first use",
        "register at",
        "licence",
    ):
        assert text.lower() in shown.stdout.lower()


def test_script_in_this_process(call_script, tmp_path, monkeypatch, server, shop):
    shop()
    good = call_script("scripts/download_data.py", "toy", "demo", "-data_dir", tmp_path / "data")
    assert good.returncode == 0
    assert "toy: done: test: 30 images" in good.stdout
    assert "letters: there: made here" in good.stdout
    shop(count={"test": 31})
    short = call_script(
        "scripts/download_data.py", "toy", "-data_dir", tmp_path / "other", "-tries", 1
    )
    assert short.returncode == 1 and "0 of 1 sets are there; not: toy" in short.stdout
    hand = call_script("scripts/download_data.py", "imagenet", "-data_dir", tmp_path / "other")
    assert hand.returncode == 1
    assert "Register at https://www.image-net.org" in hand.stdout
    assert "not found" in hand.stdout
    assert call_script("scripts/download_data.py").returncode == 2
    assert call_script("scripts/download_data.py", "toy", "-timeout", "0").returncode == 2


def test_every_set_and_benchmark_is_described(tmp_path):
    for name in table.names():
        lines = obtain.describe(info(name), tmp_path)
        assert name in lines[0] and not re.search(
            r"\{(data_dir|split|part)?\}", "\n".join(lines)
        ), name


def test_readme_holds_the_table():
    from ood.data.fetch import catalogue

    assert catalogue.markdown() in catalogue.README.read_text(), (
        "run `python3 scripts/download_data.py -table`"
    )


def test_the_beginning_of_a_checksum_is_enforced(tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"weights")
    whole = hashlib.sha256(b"weights").hexdigest()
    assert fault(file, None, None, whole[:8]) == (None, whole)
    assert "instead of 00000000" in fault(file, None, None, "0" * 8)[0]
