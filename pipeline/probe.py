"""What of the exchange can be reached from here, and how this clock differs from its.

    python3 -m pipeline.probe       as JSON; `verif.py --doctor` runs it in each container

In: the settings. Out: for each way, "" or why not. Promise: it takes at most some seconds, whatever does not answer.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import websocket

from config import Settings, load_settings
from pipeline.rest import Rest, RestError

_TIMEOUT = 4.0  # seconds, for each way
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
    """Try each way once."""
    failed, clock = _websocket(settings.mexc_ws_url)
    return Reached(_dns(settings.mexc_ws_url), _rest(settings), failed, clock, _address())


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
