"""Downloads and archives that mean harm, and the command lines of the two scripts about data."""

from __future__ import annotations

import dataclasses
import tarfile
import zipfile
from pathlib import Path

from download_toys import RawServer, make_tar, make_zip

from faults import Fault
from ood.data.fetch.bounded import UnpackError
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fetch
from ood.data.fetch.unpack import unpack

HASTY = Patience(
    tries=2, attempts=4, timeout=5, answer=0.2, pause=0.001, longest=0.002, deadline=20
)
HASTY = dataclasses.replace(HASTY, window=0.1, unannounced=1000)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"
DOWNLOAD, SCRIPT = "scripts/download_data.py", "scripts/check_data.py"


def served(*answers: bytes, **options):
    """Return an action: fetch a file from servers that each send one of these and close."""

    def action(folder: Path):
        servers = [RawServer(lambda send, _, answer=answer: send(answer)) for answer in answers]
        try:
            fetch([s.address for s in servers], folder / "file", patience=HASTY, **options)
        finally:
            for server in servers:
                server.close()

    return action


def download(name: str, words: tuple[str, ...], *answers: bytes, keeps=False, **options) -> Fault:
    left = ("file", *(() if keeps else ("file.part*",)))
    action = served(*answers, **options)
    return Fault(f"server: {name}", None, (), action, DownloadError, 2, words, None, left)


def archive(name: str, words: tuple[str, ...], make, limit: int | None = None) -> Fault:
    """An archive that `make(path)` writes and `unpack` refuses; nothing may leave the target."""

    def action(folder: Path):
        make(folder / "archive")
        unpack(folder / "archive", folder / "in" / "target", limit=limit)

    left = ("evil*", "in/evil*", "in/target/evil*")
    return Fault(f"archive: {name}", None, (), action, UnpackError, 2, words, None, left)


def tar(**members):
    return lambda path: make_tar(path, members)


def entry(kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo("x")
    made.type, made.linkname, made.size = kind, target, size
    return made


def first_header(kind: bytes, size: int):
    return lambda path: path.write_bytes(entry(kind, size=size).tobuf() + bytes(2_000_000))


def zipped(method: int):
    def make(path: Path):
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("a", bytes(1000))

    return make


ROWS = [
    download(
        "refuses",
        ("answered 404", "answered 403"),
        b"HTTP/1.1 404 No\r\n\r\n",
        b"HTTP/1.1 403 No\r\n\r\n",
    ),
    download("is overloaded", ("answered 503", "2 times"), b"HTTP/1.1 503 Later\r\n\r\n"),
    download(
        "redirects to a file",
        ("302",),
        b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n",
    ),
    download(
        "redirects to half an address",
        ("cannot be read",),
        b"HTTP/1.1 302 F\r\nLocation: http://[::1\r\n\r\n",
    ),
    download(
        "redirects to itself", ("answered 302",), b"HTTP/1.1 302 F\r\nLocation: /file\r\n\r\n"
    ),
    download("sends a page", ("a web page",), OK + b"Content-Type: text/html\r\n\r\nabc"),
    download(
        "sends too few bytes", ("ended after 2 of 3",), OK + b"\r\nab", md5="0" * 32, keeps=True
    ),
    download("offers another size", ("offers 3 bytes instead of 4",), OK + b"\r\nabc", size=4),
    download("sends a wrong file", ("has the md5", "instead of"), OK + b"\r\nabc", md5="0" * 32),
    download("sends a wrong file, sha256", ("has the sha256",), OK + b"\r\nabc", sha256="0" * 64),
    download(
        "sends a body without end",
        ("more than the 1,000 bytes",),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000),
    ),
    download(
        "sends a length that is none",
        ("more than the 1,000 bytes",),
        "HTTP/1.1 200 OK\r\nContent-Length: ²\r\n\r\n".encode("latin-1") + bytes(5000),
    ),
    download(
        "has a file for no disk",
        ("needs 999,999,999,999,999 more bytes",),
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\n",
    ),
    download("sends no HTTP", ("broke the connection",), b"220 hello\r\n"),
    download("sends nothing", ("broke the connection",), b""),
    download(
        "sends a range nobody asked for",
        ("when asked for byte 0",),
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 5-9/10\r\n\r\n",
    ),
    download("has no content", ("answered 204",), b"HTTP/1.1 204 None\r\n\r\n"),
    download("sends many headers", ("broke the connection",), OK + b"X: y\r\n" * 200 + b"\r\n"),
    download("is not there", ("no mirror is known",)),
    archive("path that leads out", ("leads out",), tar(**{"../evil": b"x"})),
    archive("absolute path", ("absolute path",), tar(**{"/tmp/evil": b"x"})),
    archive("path of Windows", ("absolute path",), tar(**{"C:\\evil": b"x"})),
    archive(
        "link that leads out", ("link", "outside"), tar(link=entry(tarfile.SYMTYPE, "../../evil"))
    ),
    archive(
        "link to an absolute path", ("leads out",), tar(link=entry(tarfile.SYMTYPE, "/etc/passwd"))
    ),
    archive("link to nothing", ("leads to no file",), tar(link=entry(tarfile.SYMTYPE, "gone"))),
    archive("pipe", ("device or a pipe",), tar(pipe=entry(tarfile.FIFOTYPE))),
    archive("device", ("device or a pipe",), tar(device=entry(tarfile.CHRTYPE))),
    archive("bomb", ("more than 1,000 bytes",), tar(a=bytes(5000)), limit=1000),
    archive(
        "bomb in a zip",
        ("more than 1,000 bytes",),
        lambda path: make_zip(path, {"a": bytes(5000)}),
        limit=1000,
    ),
    archive("pax header of 4 GiB", ("a header of more than",), first_header(b"x", 2**32)),
    archive("global header of 4 GiB", ("a header of more than",), first_header(b"g", 2**32)),
    archive("name of 4 GiB", ("a header of more than",), first_header(b"L", 2**32)),
    archive("link name of 4 GiB", ("a header of more than",), first_header(b"K", 2**32)),
    archive("zip by bzip2", ("method 12",), zipped(zipfile.ZIP_BZIP2)),
    archive("zip by lzma", ("method 14",), zipped(zipfile.ZIP_LZMA)),
    archive("empty", ("is damaged",), lambda path: path.write_bytes(b"")),
    archive("text", ("is damaged",), lambda path: path.write_bytes(b"no archive at all")),
    *(
        Fault(
            f"{script} {' '.join(words)}", script, (*words, "-data_dir", "{tmp}/data"), words=said
        )
        for script, words, said in (
            (DOWNLOAD, (), ("which data sets",)),
            (DOWNLOAD, ("iSNU",), ("did you mean 'iSUN'",)),
            (DOWNLOAD, ("./folder",), ("is a path",)),
            (DOWNLOAD, ("iSUN", "-tries", "0"), ("-tries is 0", "above 0")),
            (DOWNLOAD, ("iSUN", "-tries", "many"), ("-tries", "many")),
            (DOWNLOAD, ("iSUN", "-timeout", "nan"), ("-timeout is nan",)),
            (DOWNLOAD, ("iSUN", "-timeout", "inf"), ("-timeout is inf", "at most 3,600")),
            (DOWNLOAD, ("iSUN", "-hours", "-1"), ("-hours is -1",)),
            (SCRIPT, ("iSNU",), ("no folder",)),
        )
    ),
]
