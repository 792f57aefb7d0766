"""What MEXC's REST interface says: a path in, the data of its answer out.

In: a path and its query. Out: the answer's `data`, numbers kept as text (`messages.Number`). Promises: whatever comes,
or does not, is the data or a RestError, whose text is one line that says what was asked and what came; no wait is
without end; requests keep well below MEXC's limits. Where the address that the documentation names cannot be reached,
or refuses, the WebSocket's host is asked.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.request
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from config import Settings
from pipeline.human import printable
from pipeline.messages import parse_answer
from pipeline.tls import explain_tls, tls

TOO_MANY_REQUESTS = 510
"""MEXC's own code for that; later, it would answer."""

_APART = 0.25  # seconds; MEXC takes 20 requests in 2 s, for some paths 10, and other processes of this machine ask, too
_LONGEST = 60.0  # seconds for one answer, however steadily it trickles in
_MOST = 16 << 20  # bytes of one answer; the largest, the list of all contracts, has 2.2 MB
_PIECE = 1 << 16
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": "Mozilla/5.0 (market-data archive)",  # some gateways refuse Python's own with 403
}


class RestError(Exception):
    """No data came; the text says in one line why. `code` is MEXC's own where it was MEXC that refused, else 0."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(printable(" ".join(text.split())))
        self.code = code


class Rest:
    """MEXC's REST interface; several threads may use it."""

    def __init__(self, settings: Settings, *, timeout: float = 5.0) -> None:
        """`timeout` is in seconds, for the connection and for each piece of an answer."""
        address = urlsplit(settings.mexc_ws_url)
        second = f"{address.scheme.replace('ws', 'http', 1)}://{address.netloc}"
        self._hosts = list(dict.fromkeys([settings.mexc_rest_url.rstrip("/"), second]))
        self._timeout = timeout
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may be made, on the monotonic clock

    def get(self, path: str, **query: object) -> Any:
        """Return the `data` that MEXC answers ``/api/v1/contract/...`` with. Raises RestError.

        The host that answered last is asked first, so that one that is away costs its timeout only once.
        """
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        failures = []
        for host in tuple(self._hosts):
            self._wait()
            try:
                data = self._ask(host + target)
            except RestError as error:
                failures.append(error)
                if error.code not in (0, TOO_MANY_REQUESTS):  # the other host would say the same
                    break
            else:
                self._hosts = [host, *(other for other in self._hosts if other != host)]
                return data
        raise RestError("; ".join(map(str, failures)), failures[-1].code)

    def _wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + _APART
        time.sleep(turn - now)

    def _ask(self, url: str) -> Any:
        """Return the data that one address answers with. Raises RestError."""
        try:
            request = urllib.request.Request(url, headers=_HEADERS)
            context = tls() if request.type == "https" else None
            with urllib.request.urlopen(request, timeout=self._timeout, context=context) as answer:
                raw = _body(answer)
                if answer.url != url:
                    url = f"{url}, which redirects to {answer.url}"
            return _data(raw)
        except RestError as error:
            raise RestError(f"{url}: {error}", error.code) from None
        except HTTPError as error:
            error.close()
            raise RestError(f"{url}: HTTP {error.code} {error.reason}") from None
        except IncompleteRead:
            raise RestError(f"{url}: the answer was cut") from None
        except (OSError, HTTPException, ValueError) as error:  # the last: no JSON, or a host that cannot be one
            raise RestError(f"{url}: {_reason(error)}") from None


def _body(answer: HTTPResponse) -> bytes:
    """Return what an answer holds. Raises IncompleteRead, RestError, and what a socket raises."""
    deadline = time.monotonic() + _LONGEST
    pieces, size = [], 0
    while piece := answer.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST:
            raise RestError(f"the answer is larger than {_MOST >> 20} MB")
        if time.monotonic() > deadline:
            raise RestError(f"the answer was not there after {_LONGEST:.0f} s")
    if answer.length:  # what is still to come; `read1` does not mind
        raise IncompleteRead(b"", answer.length)
    return b"".join(pieces)


def _data(raw: bytes) -> Any:
    """Return the data in an answer's body. Raises ValueError where it is none of MEXC's, and RestError for its no."""
    answer = parse_answer(raw)
    if answer.get("success") is False:
        message, code = answer.get("message"), answer.get("code")
        words = message[:200] if isinstance(message, str) and message.strip() else "no"
        number = int(code) if isinstance(code, str) and code.isdecimal() and code.isascii() and len(code) < 10 else 0
        raise RestError(f"MEXC says: {words} (code {number})", number)
    if answer.get("data") is None:
        raise ValueError("the answer holds no data")
    return answer["data"]


def _reason(error: Exception) -> str:
    """Return a few words on why nothing came."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no internet, or no DNS"
    if isinstance(error, ssl.SSLError):
        return explain_tls(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
