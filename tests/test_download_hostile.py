"""Servers that mean harm: every transfer ends, nothing fills the disk, nothing false is kept.

The servers are bare sockets on this machine. What may take long is bounded by small numbers in
`QUICK`, and no test measures time: a fault would make it hang or send thousands of requests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil

import pytest
from download_toys import RawServer, Server, drip, flood

from ood.data.fetch import download
from ood.data.fetch.connection import Patience
from ood.data.fetch.download import DownloadError, fetch

QUICK = Patience(
    tries=2,
    attempts=6,
    timeout=5.0,
    answer=0.3,
    pause=0.001,
    longest=0.002,
    rate=20_000,
    window=0.2,
    deadline=20.0,
    unannounced=300_000,
)
BODY = bytes(range(256)) * 2000
MD5 = hashlib.md5(BODY).hexdigest()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"


@pytest.fixture
def raw():
    servers = []

    def start(answer):
        servers.append(RawServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def refused(servers, folder, words, patience=QUICK, **options):
    """Fetch from the servers, which must fail with these words, and return the message."""
    addresses = [server.address for server in servers]
    with pytest.raises(DownloadError, match=words) as raised:
        fetch(addresses, folder / "file", patience=patience, **options)
    assert not (folder / "file").exists()
    return str(raised.value)


def start_of(request: str) -> int:
    return int((re.search(r"Range: bytes=(\d+)-", request) or [0, 0])[1])


# --- attempts


def test_beginning_again_and_again_is_no_progress(tmp_path):
    """Half a megabyte arrives each time, but always the same one: the server knows no ranges."""
    server = Server()
    server.files, server.ranges, server.faults = {"/a": BODY * 4}, False, {"/a": ["cut"] * 50}
    with pytest.raises(DownloadError, match="the connection ended after .*, 2 times"):
        fetch([server.address + "/a"], tmp_path / "file", md5=MD5, patience=QUICK)
    server.close()
    assert len(server.seen) == 2


def test_a_wrong_file_is_fetched_anew_only_once(tmp_path):
    server = Server()
    server.files, server.faults = {"/a": BODY * 4}, {"/a": ["cut", None] * 50}
    with pytest.raises(DownloadError, match="the file has the md5"):
        fetch([server.address + "/a"], tmp_path / "file", md5=MD5, patience=QUICK)
    server.close()
    assert len(server.seen) == 4 and not list(tmp_path.iterdir())


def test_attempts_are_bounded_even_if_each_gets_further(raw, tmp_path):
    def a_little_more(send, request):
        begun = start_of(request)
        status = b"HTTP/1.1 206 Partial Content\r\n" if begun else b"HTTP/1.1 200 OK\r\n"
        span = f"Content-Range: bytes {begun}-99999999/100000000\r\n" if begun else ""
        head = f'{span}ETag: "1"\r\nContent-Length: {100_000_000 - begun}\r\n\r\n'
        send(status + head.encode() + bytes(300_000))

    server, other = raw(a_little_more), raw(a_little_more)
    message = refused([server, other], tmp_path, "given up after 6 attempts")
    assert len(server.seen) == 6 and not other.seen and "goes on from here" in message
    assert (tmp_path / "file.part").stat().st_size == 1_800_000
    refused([server], tmp_path, "given up")
    assert start_of(server.seen[6]) == 1_800_000


def test_the_whole_file_has_a_deadline(raw, tmp_path):
    """Each attempt breaks early and asks for another one later; tries alone would take for ever."""

    def later(send, request):
        send(b"HTTP/1.1 503 Later\r\nRetry-After: 99\r\nContent-Length: 0\r\n\r\n")

    slow = dataclasses.replace(QUICK, tries=10**9, attempts=10**9, deadline=0.1)
    server, other = raw(later), raw(later)
    refused([server, other], tmp_path, "given up after 0.1 s", patience=slow)
    assert server.seen and not other.seen


# --- answers without end


ENDLESS_ANSWERS = {
    "headers byte by byte": lambda send, _: drip(send, HEAD + b"X: "),
    "a status line byte by byte": lambda send, _: drip(send, b"HTTP/1.1 200 O"),
    "100 Continue now and then": lambda send, _: drip(send, b"HTTP/1.1 100 Continue\r\n\r"),
    "100 Continue in masses": lambda send, _: flood(send, b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "a redirect with a body in masses": lambda send, _: (
        send(b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n") and flood(send, bytes(100_000))
    ),
    "silence": lambda send, _: drip(send, b"H", seconds=0.4),
}


@pytest.mark.parametrize("name", ENDLESS_ANSWERS)
def test_endless_answers(raw, tmp_path, name):
    server = raw(ENDLESS_ANSWERS[name])
    refused([server], tmp_path, "sent no answer within 0.3 s, 2 times|an answer without end, 2 t")
    assert len(server.seen) == 2 and not list(tmp_path.iterdir())


# --- bodies without end


def chunked(send):
    return send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")


ENDLESS_BODIES = {
    "without a length, in masses": (
        lambda send, _: send(HEAD + b"\r\n") and flood(send, bytes(50_000)),
        "sends more than the 300,000 bytes it should",
    ),
    "chunks in masses": (
        lambda send, _: chunked(send) and flood(send, b"10000\r\n" + bytes(65536) + b"\r\n"),
        "sends more than the 300,000 bytes it should",
    ),
    "trailers in masses": (
        lambda send, _: chunked(send) and send(b"0\r\n") and flood(send, b"X: y\r\n" * 5000),
        "sends much more than it should, 2 times",
    ),
    "without a length, byte by byte": (
        lambda send, _: send(HEAD + b"\r\n") and drip(send, b"x"),
        "sends less than 20,000 bytes/s, 2 times",
    ),
    "the size of a chunk, byte by byte": (
        lambda send, _: chunked(send) and drip(send, b"0"),
        "sends less than 20,000 bytes/s, 2 times",
    ),
}


@pytest.mark.parametrize("name", ENDLESS_BODIES)
def test_endless_bodies(raw, tmp_path, name):
    answer, words = ENDLESS_BODIES[name]
    server = raw(answer)
    refused([server], tmp_path, words)
    assert len(server.seen) == (2 if "2 times" in words else 1)
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert kept < 1000, "an endless body is not kept"


def test_a_body_without_length_does_not_fill_the_disk(raw, tmp_path, monkeypatch):
    """The disk has less and less space; what arrived is removed, and the next mirror is asked."""
    monkeypatch.setattr(download, "LOOK_AT_DISK", 50_000)
    free = iter([10**9] + [10**8] * 2 + [10**6] * 1000)
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, next(free)))
    bad = raw(lambda send, _: send(HEAD + b"\r\n") and flood(send, bytes(50_000)))
    patience = dataclasses.replace(QUICK, unannounced=10**12)
    refused([bad], tmp_path, "a file of unknown size, and only 1,000,000 bytes are", patience)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    good = raw(lambda send, _: send(HEAD + b"\r\n" + BODY))
    patience = dataclasses.replace(QUICK, unannounced=len(BODY))
    fetch([good.address], tmp_path / "file", patience=patience)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_size_that_no_disk_holds_is_left_to_the_next_mirror(raw, tmp_path):
    huge = raw(lambda send, _: send(HEAD + b"Content-Length: 99999999999999999\r\n\r\n"))
    good = raw(lambda send, _: send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY))
    fetch([huge.address, good.address], tmp_path / "file", patience=QUICK)
    assert (tmp_path / "file").read_bytes() == BODY


# --- answers that lie


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("second", ['ETag: "2"\r\n', "", 'ETag: W/"1"\r\n'])
def test_a_part_of_another_version_is_not_joined(raw, tmp_path, known, second):
    """The second answer is a 206 with another ETag, although If-Range asked for the first one."""
    new = BODY[::-1]

    def answer(send, request):
        begun, number = start_of(request), len(server.seen)
        if number == 1:
            send(HEAD + b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(BODY) + BODY[:300_000])
        elif begun:
            span = f"Content-Range: bytes {begun}-{len(new) - 1}/{len(new)}\r\n"
            head = f"HTTP/1.1 206 Partial\r\n{span}{second}Content-Length: {len(new) - begun}"
            send(head.encode() + b"\r\n\r\n" + new[begun:])
        else:
            send(HEAD + b'ETag: "2"\r\nContent-Length: %d\r\n\r\n' % len(new) + new)

    server = raw(answer)
    md5 = hashlib.md5(new).hexdigest() if known else None
    patience = dataclasses.replace(QUICK, tries=3)
    fetch([server.address], tmp_path / "file", md5=md5, patience=patience)
    assert (tmp_path / "file").read_bytes() == new and len(server.seen) == 3
    assert 'If-Range: "1"' in server.seen[1]


def test_a_part_of_a_file_of_another_size_is_not_joined(raw, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:1000])

    def answer(send, request):
        if begun := start_of(request):
            span = f"Content-Range: bytes {begun}-{begun + 9}/{begun + 10}\r\n"
            head = f'HTTP/1.1 206 Partial\r\n{span}ETag: "1"\r\nContent-Length: 10\r\n\r\n'
            send(head.encode() + bytes(10))
        else:
            send(HEAD + b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(BODY) + BODY)

    server = raw(answer)
    note = {"url": server.address, "tag": '"1"', "total": len(BODY)}
    (tmp_path / "file.part.json").write_text(json.dumps(note))
    fetch([server.address], tmp_path / "file", patience=QUICK)
    assert (tmp_path / "file").read_bytes() == BODY


LIES = {
    "a redirect to half an address": (
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
        "leads to an address that cannot be read",
    ),
    "a redirect with a port that is none": (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:x/\r\n\r\n",
        "broke the connection|cannot be read",
    ),
    "an error without a reason": (b"HTTP/1.1 404\r\n\r\n", "answered 404"),
    "an error that writes to the terminal": (
        b"HTTP/1.1 404 \x1b[2J\x07gone\r\n\r\n",
        r"answered 404 \?\[2J\?gone",
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204"),
    "a success of another kind": (b"HTTP/1.1 299 Perhaps\r\n\r\nx", "answered 299"),
    "an error that asks to wait a strange time": (
        "HTTP/1.1 503 Later\r\nRetry-After: ²\r\n\r\n".encode("latin-1"),
        "answered 503 Later, 2 times",
    ),
    "an error that asks to wait for ever": (
        b"HTTP/1.1 503 Later\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n",
        "answered 503 Later, 2 times",
    ),
    "a range nobody asked for": (
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n\r\n",
        "when asked for byte 0, 2 times",
    ),
    "no HTTP at all": (b"220 ready\r\n", "broke the connection"),
    "nothing": (b"", "broke the connection"),
    "more headers than allowed": (HEAD + b"X: y\r\n" * 200 + b"\r\n", "broke the connection"),
    "a line without end": (HEAD + b"X: " + b"y" * 100_000, "broke the connection"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_named(raw, tmp_path, name):
    data, words = LIES[name]
    server = raw(lambda send, _: send(data))
    message = refused([server], tmp_path, words)
    assert len(server.seen) <= 2 and message.isprintable() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-5", "1e3"])
def test_a_length_that_is_no_number_is_no_length(raw, tmp_path, length):
    head = HEAD + f"Content-Length: {length}\r\n\r\n".encode("latin-1")
    server = raw(lambda send, _: send(head + BODY))
    patience = dataclasses.replace(QUICK, unannounced=len(BODY))
    try:
        fetch([server.address], tmp_path / "file", md5=MD5, patience=patience)
    except DownloadError as error:
        assert length.startswith("9") and "broke the connection" in str(error)
    else:
        assert (tmp_path / "file").read_bytes() == BODY


def test_notes_that_say_nothing_are_not_believed(raw, tmp_path):
    good = raw(lambda send, _: send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY))
    for note in ("[]", "7", "{", '{"url": 5, "tag": []}', ""):
        (tmp_path / "file.part").write_bytes(b"x" * 1000)
        (tmp_path / "file.part.json").write_text(note)
        fetch([good.address], tmp_path / "file", patience=QUICK)
        assert (tmp_path / "file").read_bytes() == BODY
    assert all(start_of(request) == 0 for request in good.seen)
