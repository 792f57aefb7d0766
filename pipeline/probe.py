"""What of the exchange can be reached from here, and how this clock differs from its.

    python3 -m pipeline.probe       as JSON; `verif.py --doctor` runs it in each container

In: the settings. Out: for each way, "" or why not. Promise: it takes some seconds at most, whatever happens.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import websocket

from config import Settings, load_settings
from pipeline.rest import Rest, RestError

_T = TypeVar("_T")

_TIMEOUT = 4.0  # seconds, for each answer
_LONGEST = 6.0  # seconds; to look up a name can take far longer where no name server answers, and knows no timeout
_ADDRESS_URL = "https://ipinfo.io/ip"


@dataclass(frozen=True)
class Reached:
    """What was reached. Each text is empty where it was, and else says why it was not."""

    dns: str
    rest: str
    websocket: str
    clock: float | None
    """Seconds that this clock is ahead of the exchange's; None where that did not tell the time."""
    address: str
    """The address that the internet sees; empty where nobody tells."""


def probe(settings: Settings) -> Reached:
    """Try each way once, all at the same time."""
    late = f"no answer within {_LONGEST:.0f} s"
    deadline = time.monotonic() + _LONGEST
    dns = _Try(lambda: _dns(settings.mexc_ws_url), late)
    rest = _Try(lambda: _rest(settings), late)
    pushes = _Try[tuple[str, float | None]](lambda: _websocket(settings.mexc_ws_url), (late, None))
    address = _Try(_address, "")
    failed, clock = pushes.result(deadline)
    return Reached(dns.result(deadline), rest.result(deadline), failed, clock, address.result(deadline))


class _Try(Generic[_T]):
    """What `function` returns, or `late` if it does not in time: it is left alone then, and ends with the process."""

    def __init__(self, function: Callable[[], _T], late: _T) -> None:
        self._function, self._found = function, late
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self, deadline: float) -> _T:
        """Return what there is at `deadline`, on the monotonic clock, or before."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._found

    def _run(self) -> None:
        self._found = self._function()


def _dns(url: str) -> str:
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError as error:
        return f"{urlsplit(url).hostname}: {error.strerror}"
    return ""


def _rest(settings: Settings) -> str:
    try:
        Rest(settings, timeout=_TIMEOUT).get("/api/v1/contract/detail", symbol="BTC_USDT")
    except RestError as error:
        return "" if error.code else str(error)  # where there is one, it was MEXC who refused
    return ""


def _websocket(url: str) -> tuple[str, float | None]:
    """Return why there is no connection, and the difference of the clocks."""
    try:
        connection = websocket.create_connection(url, timeout=_TIMEOUT, suppress_origin=True)
        try:
            sent = time.time()
            connection.send('{"method": "ping"}')
            pong = json.loads(connection.recv())
            there = pong["data"] / 1000
        finally:
            connection.shutdown()
    except (websocket.WebSocketException, OSError) as error:
        return f"{url}: {error}", None
    except (ValueError, KeyError, TypeError):
        return f"{url}: something else than MEXC answers", None
    return "", (sent + time.time()) / 2 - there


def _address() -> str:
    try:
        with urllib.request.urlopen(_ADDRESS_URL, timeout=_TIMEOUT) as answer:
            return str(answer.read(100).decode().strip())
    except (OSError, ValueError):
        return ""


if __name__ == "__main__":
    print(json.dumps(asdict(probe(load_settings()))))
