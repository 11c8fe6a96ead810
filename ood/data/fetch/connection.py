"""HTTP connections that a server cannot hold open for ever, nor fill with more than was asked for.

The standard library bounds the time of each read only. A server that sends a byte now and then, or
"100 Continue" without end, keeps it waiting for ever. Here every byte that arrives passes through
a `Guard`, which bounds a whole attempt: seconds, bytes, and bytes per second.
"""

from __future__ import annotations

import http.client
import io
import ssl
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

REDIRECTS = 10
HEADER_BYTES = 2**20  # of all answers before the body: status lines, headers, redirects


@dataclass(frozen=True)
class Patience:
    """How long to try, and how much to take.

    Attributes:
        tries: attempts per mirror, in a row, that get no further than the ones before them.
        attempts: attempts in all, at all mirrors together.
        timeout: seconds without any byte before an attempt counts as failed.
        answer: seconds from a request to the first byte of the body, redirects included.
        pause: seconds before the second attempt, doubled each time, up to `longest`.
        rate, window: a transfer below `rate` bytes/s over `window` seconds counts as broken.
        deadline: seconds for the whole file, all attempts and pauses included.
        unannounced: most bytes of a file whose size neither its publisher nor the server names.
    """

    tries: int = 5
    attempts: int = 200
    timeout: float = 30.0
    answer: float = 60.0
    pause: float = 1.0
    longest: float = 60.0
    rate: float = 1024.0
    window: float = 30.0
    deadline: float = 48 * 3600.0
    unannounced: int = 2**34


class Refused(Exception):
    """This mirror will not give the file; try the next one."""


class Broken(Exception):
    """This attempt failed; another one at the same mirror may succeed.

    Attributes:
        wait: seconds that the server asks to wait for, or None.
    """

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def shown(text: object) -> str:
    """Return what a server sent as it may stand in a message: one short line, printable."""
    line = " ".join(str(text).split())[:100]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


class Guard:
    """What one attempt may cost; it is asked before and told after every read from the network.

    Args:
        end: when the whole file must be there, on the clock of `time.monotonic`.
    """

    def __init__(self, patience: Patience, end: float):
        self.patience, self.end = patience, end
        self.answered = time.monotonic() + patience.answer  # when the headers must be there
        self.left = HEADER_BYTES
        self.body = False
        self.since, self.bytes = 0.0, 0  # of the present window

    def begin_body(self, most: int) -> None:
        """Say that the headers are there and that `most` bytes may follow."""
        self.body, self.left = True, 2 * most + HEADER_BYTES  # small chunks have an overhead
        self.begin_window()

    def begin_window(self) -> None:
        self.since, self.bytes = time.monotonic(), 0

    def seconds(self) -> float:
        """Return how long the next read may wait. Raises Broken if there is no time left."""
        limit, reason = self.end, "is too slow for the time that the whole file may take"
        if not self.body and self.answered < self.end:
            limit, reason = self.answered, f"sent no answer within {self.patience.answer:g} s"
        left = limit - time.monotonic()
        if left <= 0:
            raise Broken(reason)
        return min(left, self.patience.timeout)

    def received(self, count: int) -> None:
        """Count bytes. Raises Broken for too many of them, or too few in a window of time."""
        self.left -= count
        self.bytes += count
        if self.left < 0:
            what = "much more than it should" if self.body else "an answer without end"
            raise Broken(f"sends {what}")
        took = time.monotonic() - self.since
        if self.body and took > self.patience.window:
            if self.bytes < self.patience.rate * took:
                raise Broken(f"sends less than {self.patience.rate:,.0f} bytes/s")
            self.begin_window()


class _GuardedReader(io.RawIOBase):
    """The reading side of a socket, where each read asks the guard first."""

    def __init__(self, connected, guard: Guard):
        self.socket, self.guard = connected, guard
        self.raw = connected.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        self.socket.settimeout(self.guard.seconds())
        try:
            count = self.raw.readinto(buffer)
        except TimeoutError:
            self.guard.seconds()  # says so if it is the end of all time
            raise Broken("sent nothing in time") from None
        except OSError as error:
            raise Broken(f"broke the connection ({type(error).__name__})") from None
        self.guard.received(count or 0)
        return count

    def close(self) -> None:
        if not self.closed:
            self.raw.close()
        super().close()


def _answers(guard: Guard) -> type:
    """Return the class of answers whose bytes pass through the guard."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, connected, *arguments, **options):
            super().__init__(connected, *arguments, **options)
            unguarded, self.fp = self.fp, io.BufferedReader(_GuardedReader(connected, guard))
            unguarded.close()

    return Answer


def opener(guard: Guard, known: bool) -> urllib.request.OpenerDirector:
    """Return an opener of http(s) addresses. `known`: a checksum of the file is known."""

    class Http(http.client.HTTPConnection):
        response_class = _answers(guard)

    class Https(http.client.HTTPSConnection):
        response_class = _answers(guard)

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(Http, request)

    class HttpsHandler(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(Https, request, context=ssl.create_default_context())

    return urllib.request.build_opener(HttpHandler, HttpsHandler, Redirects(known))


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) only, and from https to http only if a checksum is known."""

    max_redirections = REDIRECTS

    def __init__(self, known: bool):
        self.known = known

    def redirect_request(self, request, file, code, message, headers, target):
        before = urllib.parse.urlsplit(request.full_url).scheme
        after = urllib.parse.urlsplit(target).scheme
        if after not in ("http", "https"):
            raise Refused(f"redirects to '{shown(target)}', which is no web address")
        if before == "https" and after == "http" and not self.known:
            raise Refused("redirects from https to http, and no checksum of the file is known")
        return super().redirect_request(request, file, code, message, headers, target)
