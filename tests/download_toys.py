"""What the tests of downloads share: a server that breaks as told, and archives made in place."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import itertools
import socket
import tarfile
import threading
import time
import zipfile

import numpy as np
from PIL import Image


class Server:
    """Serve `files` ({path: bytes}) over HTTP.

    Attributes:
        faults: {path: [what goes wrong, one per request]}; after those, requests succeed.
        seen: the requests so far, as (path, Range header).
        ranges: False ignores the Range header. tags: False sends no ETag.
    """

    def __init__(self):
        self.files, self.faults, self.seen, self.ranges, self.tags = {}, {}, [], True, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                path, span = self.path.split("?")[0], self.headers.get("Range")
                outer.seen.append((path, span))
                fault = outer.faults.get(path, [])
                fault = fault.pop(0) if fault else None
                self.close_connection = True
                if isinstance(fault, int):
                    self.send_response(fault)
                    self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                if isinstance(fault, str) and fault.startswith(("http", "file", "ftp")):
                    self.send_response(302)
                    self.send_header("Location", fault)
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                body = outer.files.get(path)
                if body is None:
                    return self.send_error(404)
                tag = f'"{hashlib.md5(body).hexdigest()[:8]}"'
                begun = 0
                if span and outer.ranges and self.headers.get("If-Range", tag) == tag:
                    begun = int(span.removeprefix("bytes=").rstrip("-"))
                    if begun >= len(body):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(body)}")
                        self.send_header("Content-Length", "0")
                        return self.end_headers()
                part = body[begun:]
                self.send_response(206 if begun else 200)
                if begun:
                    first = begun + 7 if fault == "shifted" else begun
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                if outer.tags:
                    self.send_header("ETag", tag)
                self.send_header(
                    "Content-Type", "text/html" if fault == "page" else "application/octet-stream"
                )
                if fault != "endless":
                    self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                outer.send(self.wfile, part, fault)

        self.running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.running.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.running.server_port}"
        threading.Thread(
            target=self.running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def send(self, file, body, fault):
        with contextlib.suppress(OSError):
            if fault == "cut":
                return file.write(body[: len(body) // 2])
            if fault == "silent":
                file.write(body[:1000])
                file.flush()
                time.sleep(8)
            elif fault in ("slow", "crawl"):
                step = 100 if fault == "slow" else 20_000
                for start in range(0, len(body), step):
                    file.write(body[start : start + step])
                    file.flush()
                    time.sleep(0.05)
            elif fault == "damage":
                file.write(body[:-1] + bytes([body[-1] ^ 1]))
            elif fault == "endless":
                file.write(body + b"more")
            else:
                file.write(body)

    def close(self):
        self.running.shutdown()
        self.running.server_close()


class RawServer:
    """Answer every request by a function of the bare socket, so that HTTP can be broken at will.

    Args:
        answer: answer(send, request) where send(bytes) returns False once the client has gone, and
            request is the text of the request.

    Attributes:
        seen: the requests so far, as text.
    """

    def __init__(self, answer):
        self.seen, self.answer = [], answer
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}/file"
        self.stopped = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        def send(data: bytes) -> bool:
            try:
                connection.sendall(data)
            except OSError:
                return False
            return not self.stopped.is_set()

        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(4096)
                if not received:
                    return
                request += received
            self.seen.append(request.decode("latin-1"))
            self.answer(send, self.seen[-1])

    def close(self):
        self.stopped.set()
        self.listening.close()


def drip(send, data: bytes, seconds: float = 0.02):
    """Send byte by byte, then the last byte for ever."""
    for byte in itertools.chain(data, itertools.repeat(data[-1])):
        if not send(bytes([byte])):
            return
        time.sleep(seconds)


def flood(send, data: bytes):
    """Send the same bytes for ever."""
    while send(data):
        pass


def make_tar(path, members, mode="w:gz"):
    """members: {name: bytes, or a TarInfo}"""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def make_zip(path, members):
    """members: {name: bytes, or (bytes, mode)}"""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(content, tuple):
                entry.create_system, entry.external_attr = 3, content[1] << 16
                content = content[0]
            archive.writestr(entry, content)


def pictures(count):
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        ).save(buffer, "PNG")
        yield buffer.getvalue()
