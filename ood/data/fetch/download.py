"""Download one file over HTTP: several mirrors, resumed after a break, size and checksum enforced.

A transfer is written to `<file>.part`, with a note beside it that says where it came from. Only a
verified file gets its final name (os.replace). After a break, the next call goes on where the last
one stopped. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BLOCK = 2**18
AGENT = "Mozilla/5.0 (compatible; ood-download/1.0)"  # some hosts refuse Python's own name
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # worth another try at the same host
REDIRECTS = 10
SPARE_BYTES = 2**26  # left free on the disk


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        tries: attempts per mirror that bring next to nothing, in a row; one that brings more
            starts the count again.
        timeout: seconds without any byte.
        pause: seconds before the second attempt, doubled each time, up to `longest`.
        rate, window: a transfer below `rate` bytes/s over `window` seconds counts as broken.
    """

    tries: int = 5
    timeout: float = 30.0
    pause: float = 1.0
    longest: float = 60.0
    rate: float = 1024.0
    window: float = 30.0


class DownloadError(RuntimeError):
    """No mirror gave the file; the message says what each of them answered."""


class _Refused(Exception):
    """This mirror will not give the file; try the next one."""


class _Broken(Exception):
    """This attempt failed; another one at the same mirror may succeed."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    patience: Patience = Patience(),
    log: Callable[[str], None] = lambda line: None,
    accept: Callable[[Path], str | None] | None = None,
) -> str:
    """Download to `path` from the first mirror that gives the right file. Returns its sha256.

    Args:
        urls: http(s) addresses of the same file, best first.
        size, md5, sha256: what the file must have; None: unknown.
        accept: looks at the finished file, still under its .part name, and returns what is wrong
            with it, or None.

    Raises:
        DownloadError: no mirror gave the file; the message has one clause per mirror. What
            arrived stays for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, failures = path.with_name(path.name + ".part"), []
    for url in urls:
        try:
            digest = _from_mirror(url, part, size, md5, sha256, patience, log, accept)
        except _Refused as reason:
            failures.append(f"{url}: {reason}")
            log(f"{path.name}: {url}: {reason}")
            continue
        os.replace(part, path)
        _note(part).unlink(missing_ok=True)
        return digest
    raise DownloadError(
        f"could not download '{path.name}' ({'; '.join(failures) or 'no mirror is known'})"
    )


def sums(path: Path) -> tuple[str, str]:
    """Return the (md5, sha256) of a file."""
    one, other = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            one.update(block)
            other.update(block)
    return one.hexdigest(), other.hexdigest()


def fault(
    path: Path, size: int | None, md5: str | None, sha256: str | None
) -> tuple[str | None, str]:
    """Return (what is wrong with a file, or None; its sha256)."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes instead of {size:,}", ""
    got_md5, got_sha256 = sums(path)
    for kind, got, wanted in (("md5", got_md5, md5), ("sha256", got_sha256, sha256)):
        if wanted and got != wanted.lower():
            return f"has the {kind} {got} instead of {wanted}", got_sha256
    return None, got_sha256


def _from_mirror(url, part, size, md5, sha256, patience, log, accept) -> str:
    """Get the whole file from one mirror, in as many attempts as it takes.

    A complete file that is wrong is fetched once more from its beginning, if it was put together
    from parts.
    """
    failed, known = 0, bool(md5 or sha256)
    while True:
        begun = _kept(part, url, known, size)
        try:
            _attempt(url, part, begun, size, known, patience)
        except _Broken as error:
            failed = 1 if _length(part) - begun >= BLOCK else failed + 1
            if failed >= patience.tries:
                raise _Refused(f"{error}, {failed} times") from None
            wait = (
                error.wait
                if error.wait is not None
                else patience.pause * 2 ** (failed - 1) * (0.5 + random.random())
            )
            wait = min(patience.longest, wait)
            log(f"{part.stem}: {error}; again in {wait:.0f} s from byte {_length(part):,}")
            time.sleep(wait)
            continue
        wrong, digest = fault(part, size, md5, sha256)
        wrong = wrong or (accept(part) if accept else None)
        if wrong is None:
            return digest
        _discard(part)
        if not begun:
            raise _Refused(f"the file {wrong}")
        log(f"{part.stem}: the file {wrong}; once more from the beginning")


def _attempt(
    url: str, part: Path, begun: int, size: int | None, known: bool, patience: Patience
) -> None:
    """Append what is missing to `part`. Raises _Broken or _Refused."""
    if size is not None and begun == size:
        return
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
        tag = json.loads(_note(part).read_text()).get("tag")
        if tag and json.loads(_note(part).read_text()).get("url") == url:
            headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    with _translated(part, begun), _opener(known).open(request, timeout=patience.timeout) as answer:
        begun, total = _where(answer, begun, part)
        kind = answer.headers.get_content_type()
        if kind == "text/html" and not part.stem.endswith((".html", ".htm")):
            raise _Refused(
                "sent a web page instead of the file (it may be over its quota, or ask for a login)"
            )
        if size is not None and total is not None and total != size:
            raise _Refused(f"offers {total:,} bytes instead of {size:,}")
        _check_space(part, (size or total or 0) - begun)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        _note(part).write_text(
            json.dumps({"url": url, "tag": None if (tag or "").startswith("W/") else tag})
        )
        _copy(answer, part, begun, size or total, patience)


def _where(answer, begun: int, part: Path) -> tuple[int, int | None]:
    """Return (number of the first byte that follows, size of the whole file or None).

    A server that sends the whole file again may do so.
    """
    length = answer.headers.get("Content-Length")
    length = int(length) if length and length.isdigit() else None
    if answer.status == 206:
        span = answer.headers.get("Content-Range", "")
        first, _, total = span.removeprefix("bytes ").partition("/")
        if first.split("-")[0] != str(begun):
            _discard(part)
            raise _Broken(f"sent the range '{span}' when asked for byte {begun}")
        return begun, int(total) if total.isdigit() else None
    return 0, length


def _copy(answer, part: Path, begun: int, total: int | None, patience: Patience) -> None:
    """Write the body into `part` from byte `begun`, never more than announced."""
    with (
        open(part, "r+b" if begun and part.exists() else "wb") as file,
        _bar(part.stem, begun, total) as moved,
    ):
        file.seek(begun)
        file.truncate()
        at, since, base = begun, time.monotonic(), begun
        while True:
            block = answer.read1(BLOCK)
            if not block:
                break
            at += len(block)
            if total is not None and at > total:
                raise _Refused(f"sends more than the {total:,} bytes it should")
            file.write(block)
            moved(len(block))
            now = time.monotonic()
            if now - since > patience.window:
                if (at - base) / (now - since) < patience.rate:
                    file.flush()
                    raise _Broken(f"sends less than {patience.rate:,.0f} bytes/s")
                since, base = now, at
        file.flush()
        os.fsync(file.fileno())
    if total is not None and at < total:
        raise _Broken(f"the connection ended after {at:,} of {total:,} bytes")


@contextmanager
def _translated(part: Path, begun: int):
    """Turn network errors into _Refused (trying again is no use) or _Broken."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and begun:  # our part is as long as the file, or longer than it
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(begun):
                    return
                _discard(part)
                raise _Broken("has no such range (416)", wait=0) from None
            if error.code not in TEMPORARY:
                raise _Refused(
                    f"answered {error.code} {str(error.reason).splitlines()[0]}"
                ) from None
            after = error.headers.get("Retry-After", "")
            raise _Broken(
                f"answered {error.code} {error.reason}", float(after) if after.isdigit() else None
            ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _Refused(f"has no valid certificate ({error.reason.verify_message})") from None
        raise _Broken(f"cannot be reached ({error.reason})") from None
    except (TimeoutError, socket.timeout):
        raise _Broken("sent nothing in time") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise _Broken(f"broke the connection ({type(error).__name__})") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) only, and from https to http only if a checksum is known."""

    max_redirections = REDIRECTS

    def __init__(self, known: bool):
        self.known = known

    def redirect_request(self, request, file, code, message, headers, target):
        before, after = (
            urllib.parse.urlsplit(request.full_url).scheme,
            urllib.parse.urlsplit(target).scheme,
        )
        if after not in ("http", "https"):
            raise _Refused(f"redirects to '{target}', which is no web address")
        if before == "https" and after == "http" and not self.known:
            raise _Refused("redirects from https to http, and no checksum of the file is known")
        return super().redirect_request(request, file, code, message, headers, target)


def _opener(known: bool) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects(known))


def _kept(part: Path, url: str, known: bool, size: int | None) -> int:
    """Return how many bytes of `part` to go on from; remove what must not be continued.

    Without a checksum, only the mirror that began a file may finish it, and only if it named the
    version of its file.
    """
    if not part.exists() or not _note(part).exists():
        _discard(part)
        return 0
    try:
        note = json.loads(_note(part).read_text())
    except ValueError:
        note = {}
    length = _length(part)
    if (
        size is not None
        and length > size
        or not known
        and (note.get("url") != url or not note.get("tag"))
    ):
        _discard(part)
        return 0
    return length


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing + SPARE_BYTES > free:
        raise DownloadError(
            f"'{part.stem}' needs {missing:,} more bytes, "
            f"but only {free:,} are free in '{part.parent}'"
        )


@contextmanager
def _bar(label: str, begun: int, total: int | None):
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(
        desc=label, initial=begun, total=total, unit="B", unit_scale=True, file=sys.stderr
    ) as bar:
        yield bar.update
