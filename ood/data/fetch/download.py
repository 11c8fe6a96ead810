"""Download one file over HTTP: several mirrors, resumed after a break, size and checksum enforced.

A transfer is written to `<file>.part`, with a note beside it that says where it came from. Only a
verified file gets its final name (os.replace). After a break, the next call goes on where the last
one stopped. `Patience` bounds the whole: attempts, bytes and seconds. Uses the standard library
only.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ood.data.fetch.connection import Broken, Guard, Patience, Refused, opener, shown

BLOCK = 2**18  # bytes read at once; an attempt that gets this much further counts as progress
AGENT = "Mozilla/5.0 (compatible; ood-download/1.0)"  # some hosts refuse Python's own name
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # worth another try at the same host
SPARE_BYTES = 2**26  # left free on the disk
LOOK_AT_DISK = 2**26  # bytes written between two looks at how much is free


class DownloadError(RuntimeError):
    """No mirror gave the file; the message says what each of them answered."""


class _Spent(Exception):
    """The attempts or the seconds of the whole file are used up."""


@dataclass
class _Wanted:
    """The file that is wanted: where it grows, and what it must be. None means unknown.

    Attributes:
        accept: returns what is wrong with the finished file, or None.
    """

    part: Path
    size: int | None
    md5: str | None
    sha256: str | None
    accept: Callable[[Path], str | None]

    @property
    def known(self) -> bool:
        return bool(self.md5 or self.sha256)

    @property
    def length(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def note(self) -> Path:
        """The file beside the part: {"url", "tag", "total"} of the answer that began it."""
        return self.part.with_name(self.part.name + ".json")

    def read_note(self) -> dict:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def fault(self) -> tuple[str | None, str]:
        """Return (what is wrong with the part, or None; its sha256)."""
        wrong, digest = fault(self.part, self.size, self.md5, self.sha256)
        return wrong or self.accept(self.part), digest


class _Budget:
    """What is left of the attempts and of the time for one file."""

    def __init__(self, patience: Patience):
        self.patience, self.attempts = patience, 0
        self.end = time.monotonic() + patience.deadline

    def attempt(self) -> Guard:
        """Begin an attempt. Raises _Spent if there is none left."""
        if self.attempts >= self.patience.attempts:
            raise _Spent(f"given up after {self.attempts} attempts")
        if time.monotonic() >= self.end:
            raise _Spent(f"given up after {self.patience.deadline:,g} s")
        self.attempts += 1
        return Guard(self.patience, self.end)

    def pause(self, failed: int, asked: float | None) -> float:
        """Return the seconds to wait after `failed` failures; `asked`: by the server."""
        wait = asked
        if wait is None:
            wait = self.patience.pause * 2 ** min(failed - 1, 30) * (0.5 + random.random())
        return max(0.0, min(wait, self.patience.longest, self.end - time.monotonic()))


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    patience: Patience = Patience(),
    log: Callable[[str], None] = lambda line: None,
    accept: Callable[[Path], str | None] = lambda part: None,
) -> str:
    """Download to `path` from the first mirror that gives the right file. Returns its sha256.

    If the file is there already and has the checksum, nothing is fetched.

    Args:
        urls: http(s) addresses of the same file, best first.
        size, md5, sha256: what the file must have; None: unknown. A sum may be cut off: where a
            publisher states only how it begins, as in resnet50-19c8e357.pth, that is enforced.
        patience: bounds of the whole transfer.
        log: gets one line for each failure.
        accept: looks at the finished file, still under its .part name, and returns what is wrong
            with it, or None.

    Raises:
        DownloadError: no mirror gave the file; the message has one clause per mirror. What
            arrived stays for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = _Wanted(path.with_name(path.name + ".part"), size, md5, sha256, accept)
    if path.is_file() and wanted.known:
        wrong, digest = fault(path, size, md5, sha256)
        if wrong is None:
            wanted.discard()
            return digest
    budget, failures = _Budget(patience), []
    for url in urls:
        try:
            digest = _from_mirror(url, wanted, budget, log)
        except Refused as reason:
            failures.append(f"{url}: {reason}")
            log(f"{path.name}: {url}: {reason}")
            continue
        except _Spent as reason:
            failures.append(f"{url}: {reason}; the next call goes on from here")
            break
        os.replace(wanted.part, path)
        wanted.note.unlink(missing_ok=True)
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
        if wanted and not got.startswith(wanted.lower()):
            return f"has the {kind} {got} instead of {wanted}", got_sha256
    return None, got_sha256


def _from_mirror(url: str, wanted: _Wanted, budget: _Budget, log) -> str:
    """Get the whole file from one mirror, in several attempts if need be. Returns its sha256.

    An attempt makes progress if it gets further than all before it; beginning again from the
    first byte does not count. A complete file that was put together from parts and is wrong is
    fetched from its beginning, once.

    Raises:
        Refused: this mirror does not give the file.
        _Spent: no attempt is left at any mirror.
    """
    failed, again = 0, False
    furthest = _kept(wanted, url)
    while True:
        begun = _kept(wanted, url)
        try:
            _attempt(url, wanted, begun, budget.attempt())
        except Broken as error:
            failed = 1 if wanted.length - furthest >= BLOCK else failed + 1
            furthest = max(furthest, wanted.length)
            if failed >= budget.patience.tries:
                raise Refused(f"{error}, {failed} times") from None
            wait = budget.pause(failed, error.wait)
            log(f"{wanted.part.stem}: {error}; again in {wait:.0f} s from byte {wanted.length:,}")
            time.sleep(wait)
            continue
        wrong, digest = wanted.fault()
        if wrong is None:
            return digest
        wanted.discard()
        if not begun or again:
            raise Refused(f"the file {wrong}")
        failed, furthest, again = 0, 0, True
        log(f"{wanted.part.stem}: the file {wrong}; once more from the beginning")


def _kept(wanted: _Wanted, url: str) -> int:
    """Return how many bytes of the part to go on from; remove what must not be continued.

    Without a checksum, only the mirror that began a file may finish it, and only if it named the
    version of its file.
    """
    note, length = wanted.read_note(), wanted.length
    same_file = wanted.known or (note.get("url") == url and note.get("tag"))
    if not note or not same_file or (wanted.size is not None and length > wanted.size):
        wanted.discard()
        return 0
    return length


def _attempt(url: str, wanted: _Wanted, begun: int, guard: Guard) -> None:
    """Append what is missing to the part. Raises Broken or Refused."""
    if wanted.size is not None and begun == wanted.size:
        return
    headers, before = {"User-Agent": AGENT, "Accept-Encoding": "identity"}, {}
    if begun:
        headers["Range"] = f"bytes={begun}-"
        note = wanted.read_note()
        if note.get("url") == url:
            before = note
        if before.get("tag"):
            headers["If-Range"] = before["tag"]
    with _translated(wanted, begun):
        with _open(url, headers, guard, wanted.known) as answer:
            begun, total = _where(answer, begun, wanted, before)
            _check_offer(answer, wanted, total)
            total = total if wanted.size is None else wanted.size
            _check_space(wanted, begun, total)
            tag = _tag(answer)
            note = {"url": url, "tag": tag or before.get("tag"), "total": total}
            wanted.note.write_text(json.dumps(note), encoding="utf-8")
            guard.begin_body(guard.patience.unannounced if total is None else total - begun)
            _copy(answer, wanted, begun, total, guard)


def _open(url: str, headers: dict, guard: Guard, known: bool):
    try:
        request = urllib.request.Request(url, headers=headers)
        return opener(guard, known).open(request, timeout=guard.seconds())
    except ValueError as error:
        raise Refused(f"leads to an address that cannot be read ({shown(error)})") from None


def _where(answer, begun: int, wanted: _Wanted, before: dict) -> tuple[int, int | None]:
    """Return (number of the first byte that follows, size of the whole file or None).

    A server that sends the whole file again may do so. A part of another version of the file is
    not joined to what is there.
    """
    if answer.status == 200:
        return 0, _number(answer.headers.get("Content-Length"))
    if answer.status != 206:
        raise Refused(f"answered {answer.status}")
    span = answer.headers.get("Content-Range", "")
    first, _, total = span.removeprefix("bytes ").partition("/")
    if first.split("-")[0] != str(begun):
        wanted.discard()
        raise Broken(f"sent the range '{shown(span)}' when asked for byte {begun}")
    total, tag = _number(total), _tag(answer)
    if begun and not wanted.known:
        if tag != before.get("tag") or before.get("total") not in (None, total):
            wanted.discard()
            raise Broken("has another version of the file than the one that was begun")
    return begun, total


def _check_offer(answer, wanted: _Wanted, total: int | None) -> None:
    """Raise Refused if the headers say that this is another file."""
    kind = answer.headers.get_content_type()
    if kind == "text/html" and not wanted.part.stem.endswith((".html", ".htm")):
        raise Refused(
            "sent a web page instead of the file (it may be over its quota, or ask for a login)"
        )
    if wanted.size is not None and total not in (None, wanted.size):
        raise Refused(f"offers {total:,} bytes instead of {wanted.size:,}")


def _tag(answer) -> str | None:
    """Return what names the version of the file, or None. Weak tags do not name the bytes."""
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    return None if not tag or tag.startswith("W/") else tag


def _number(text: str | None) -> int | None:
    """Read a number of a header; None if it is none, or has more digits than any file has bytes."""
    plain = text is not None and text.isascii() and text.isdigit() and len(text) < 19
    return int(text) if plain else None


def _copy(answer, wanted: _Wanted, begun: int, total: int | None, guard: Guard) -> None:
    """Write the body into the part from byte `begun`, never more than announced."""
    part, most = wanted.part, guard.patience.unannounced if total is None else total
    looked = at = begun
    full = False
    with (
        open(part, "r+b" if begun and part.exists() else "wb") as file,
        _bar(part.stem, begun, total) as moved,
    ):
        file.seek(begun)
        file.truncate()
        while block := answer.read1(BLOCK):
            if full:
                break
            at += len(block)
            if at > most:
                break
            file.write(block)
            moved(len(block))
            if at - looked >= LOOK_AT_DISK:
                looked, full = at, _free(wanted) < SPARE_BYTES
        else:
            full = False  # the end of the body: nothing more has to fit
        file.flush()
        os.fsync(file.fileno())
    if full:
        _check_space(wanted, at, total)
    if at > most:
        if total is None:
            wanted.discard()
        raise Refused(f"sends more than the {most:,} bytes it should")
    if total is not None and at < total:
        raise Broken(f"the connection ended after {at:,} of {total:,} bytes")


def _check_space(wanted: _Wanted, at: int, total: int | None) -> None:
    """Raise an error if the disk has no place for the bytes from `at` to `total`.

    Raises:
        DownloadError: the publisher says how large the file is, so no mirror can help.
        Refused: the server says how large it is, or nobody does; then what arrived is removed.
    """
    free, missing = _free(wanted), 0 if total is None else total - at
    if missing + SPARE_BYTES <= free:
        return
    if total is None:
        wanted.discard()
        raise Refused(f"sends a file of unknown size, and only {free:,} bytes are free")
    raise (Refused if wanted.size is None else DownloadError)(
        f"'{wanted.part.stem}' needs {missing:,} more bytes, "
        f"but only {free:,} are free in '{wanted.part.parent}'"
    )


def _free(wanted: _Wanted) -> int:
    return shutil.disk_usage(wanted.part.parent).free


@contextmanager
def _translated(wanted: _Wanted, begun: int):
    """Turn network errors into Refused (trying again is no use) or Broken."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and begun:  # our part is as long as the file, or longer than it
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(begun):
                    return
                wanted.discard()
                raise Broken("has no such range (416)", wait=0) from None
            answered = f"answered {error.code} {shown(error.reason)}".strip()
            if error.code not in TEMPORARY:
                raise Refused(answered) from None
            raise Broken(answered, _number(error.headers.get("Retry-After"))) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"has no valid certificate ({error.reason.verify_message})") from None
        raise Broken(f"cannot be reached ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise Broken(f"broke the connection ({type(error).__name__})") from None


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
