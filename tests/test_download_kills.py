"""A download that is killed before each of its changes to the file system, and run again.

A change is a file opened for writing, a rename, a removal or a new folder. The second run must
leave what an undisturbed run leaves, bit for bit, and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
from pathlib import Path

import pytest
from download_toys import Server, make_tar, pictures

from ood.data.fetch import obtain
from ood.data.fetch.connection import Patience
from ood.data.registry import table
from ood.data.registry.entry import Archive, DatasetInfo

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")  # audit events
PLACE = "ood_datasets/toy"
IMAGES = 2


@pytest.fixture
def row(tmp_path, monkeypatch):
    """A set of two images in a tar on a server of this machine."""
    server = Server()
    members = {f"toy/{number}/{number}.png": x for number, x in enumerate(pictures(IMAGES))}
    make_tar(tmp_path / "toy.tar.gz", members)
    content = (tmp_path / "toy.tar.gz").read_bytes()
    server.files["/toy.tar.gz"] = content
    archive = Archive(
        (server.address + "/toy.tar.gz",),
        PLACE,
        inside="toy",
        md5=hashlib.md5(content).hexdigest(),
        bytes=len(content),
    )
    toy = DatasetInfo("toy", "ood", "folder", (PLACE,), count={"test": IMAGES}, archives=(archive,))
    monkeypatch.setitem(table.TABLE, "toy", toy)
    yield toy
    server.close()


def is_change(event: str, arguments: tuple) -> bool:
    if event != "open":
        return event in CHANGES
    path, flags = arguments[0], arguments[-1]
    for_writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    return bool(for_writing) and isinstance(path, (str, Path))


def obtained(row, root: Path, kill_before: int | None = None, **options) -> int:
    """Run `obtain` in a process of its own. Returns the number of changes that it made.

    Args:
        kill_before: kill it before this change, counted from 1.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code, changes = 9, 0

        def hook(event, arguments):
            nonlocal changes
            if is_change(event, arguments):
                changes += 1
                if changes == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:  # nothing may escape: this process would go on as if it were its parent
            sys.addaudithook(hook)
            outcome = obtain.obtain(row, root, patience=Patience(tries=1), **options)
            os.write(writing, b"%d" % changes)
            code = 0 if outcome.state in ("done", "there") else 1
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        changes = int(pipe.read() or 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (0 if kill_before is None else -signal.SIGKILL)
    return changes


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("way", ["new", "replace", "keep", "first use"])
def test_killed_before_each_change(row, tmp_path, way):
    options = {"replace": way == "replace", "keep": way == "keep"}
    if way == "first use":  # no checksum is published
        archive = dataclasses.replace(row.archives[0], md5=None, bytes=None)
        row = dataclasses.replace(row, archives=(archive,))

    def before(root: Path) -> Path:
        """An incomplete set of one other image, where it is to be replaced."""
        if way == "replace":
            (root / PLACE / "0").mkdir(parents=True)
            (root / PLACE / "0" / "mine.png").write_bytes(next(pictures(1)))
        return root

    changes = obtained(row, before(tmp_path / "undisturbed"), **options)
    expected = tree(tmp_path / "undisturbed")
    assert changes > 15 and sum(name.endswith(".png") for name in expected) == IMAGES
    kept = {f".download/ood_datasets__toy{file}" for file in ("", "/kept", "/toy.tar.gz")}
    assert expected.keys() >= kept if way == "keep" else ".download/lock" in expected
    step = 1 if way in ("new", "replace") else 2  # the others differ at the end only
    for change in range(1, changes + 1, step):
        root = before(tmp_path / f"killed{change}")
        obtained(row, root, kill_before=change, **options)
        found = len(list((root / PLACE).glob("*/*.png")))
        assert found in ((0, 1, IMAGES) if way == "replace" else (0, IMAGES)), change
        assert obtain.obtain(row, root, **options).state in ("done", "there"), change
        left = tree(root)
        assert left.keys() == expected.keys(), (change, left.keys() ^ expected.keys())
        assert left == expected, change


def test_what_was_moved_away_is_put_back(row, tmp_path):
    """A run without -replace after a kill between the two renames finds the user's images again."""
    place = tmp_path / PLACE
    away = place.with_name(f".replaced-toy-{2**22}")
    away.mkdir(parents=True)
    (away / "mine.png").write_bytes(next(pictures(1)))
    outcome = obtain.obtain(row, tmp_path)
    assert outcome.state == "failed" and "1 of 2 images" in outcome.text
    assert (place / "mine.png").is_file() and not away.exists()


def test_a_broken_replacement_is_gone_on_with(row, tmp_path):
    """The archive of an interrupted -replace stays for the next one; else it is swept."""
    for replace, there in ((True, True), (False, False)):
        root = tmp_path / str(replace)
        (root / PLACE / "0").mkdir(parents=True)
        (root / PLACE / "0" / "mine.png").write_bytes(next(pictures(1)))
        part = root / ".download" / "ood_datasets__toy" / "toy.tar.gz.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"half")
        obtain._sweep(row, root, replace)
        assert part.exists() is there


def test_sweeping_does_not_wait_for_another_download(row, tmp_path):
    import fcntl

    assert obtain.obtain(row, tmp_path).state == "done"
    left = tmp_path / ".downloads.json.7"
    left.write_text("{")
    with open(tmp_path / ".download" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert obtain.obtain(row, tmp_path).state == "there" and left.exists()
    assert obtain.obtain(row, tmp_path).state == "there" and not left.exists()
