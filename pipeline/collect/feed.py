"""The WebSocket session with MEXC: connect, subscribe, ping, watch, reconnect.

In: an address and the subscriptions. Out: every frame received, in order, handed to a callback: text as str, a binary
frame or one that is no UTF-8 as bytes. Promise: `run` returns only when it is told to stop. A refused, broken, silent
or useless connection is reported and replaced, without hurry where that keeps failing.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any

import websocket

from pipeline.collect.backoff import backoff
from pipeline.collect.channels import Hopeless, Useless
from pipeline.tls import explain_tls, tls

_PING = '{"method":"ping"}'
_WAKE_UP = 0.5  # seconds; how soon a stop, a ping that is due or a silence is noticed
_CHECK = 0.25  # seconds between two checks of the subscriptions, where frames come more often
_CONNECT_TIMEOUT = 10.0  # seconds
_OF_USE = 2.0  # seconds; a connection that gave data for so long may be replaced at once
_HOPELESS = (60.0, 600.0)  # seconds; the first delay and the longest where a connection will hardly be of use
_ERRORS = (websocket.WebSocketException, OSError, ValueError)


class FeedEvents:
    """What a feed tells about itself; override what is of interest. Called in the feed's thread."""

    def frame(self, raw: str | bytes) -> bool:
        """Take a frame; return whether it was market data, the sign of a living subscription."""
        raise NotImplementedError

    def connected(self) -> None:
        """A connection is up, and the subscriptions were sent."""

    def check(self) -> Sequence[str]:
        """Return the methods that are to be subscribed anew; called about twice a second.

        Raises Useless, or Hopeless.
        """
        return ()

    def not_connected(self, line: str) -> None:
        """A try to connect failed; `line` says why and when the next one comes."""

    def dropped(self, line: str) -> None:
        """The connection ended, or was given up; `line` says why and when the next one comes."""


class _ConnectFailed(Exception):
    """There is no connection; the text says why."""


class _Dropped(Exception):
    """The connection is of no use any more; the text says why."""

    def __init__(self, text: str, *, is_hopeless: bool = False) -> None:
        super().__init__(text)
        self.is_hopeless = is_hopeless


class Feed:
    """One WebSocket at a time to `url`, for as long as `run` runs."""

    def __init__(
        self,
        url: str,
        subscriptions: Sequence[Any],
        events: FeedEvents,
        *,
        ping_interval: float,
        stale_timeout: float,
    ) -> None:
        """`subscriptions` are sent as JSON after connecting. The intervals are in seconds.

        Nothing at all for three ping intervals, or no market data for `stale_timeout`, ends a connection.
        """
        self._url = url
        self._requests = {each["method"]: json.dumps(each, separators=(",", ":")) for each in subscriptions}
        self._events = events
        self._ping_interval = ping_interval
        self._stale_timeout = stale_timeout
        self._stop = threading.Event()
        self._last_data: float | None = None  # when market data came, of whatever connection

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stop.set()

    def run(self) -> None:
        """Receive frames until `stop` is called."""
        delays, slow = backoff(), backoff(*_HOPELESS)
        delay = next(delays)
        next(slow)  # which is none
        while not self._stop.wait(delay):
            started = time.monotonic()
            try:
                connection = self._connect()
                try:
                    self._receive(connection)
                finally:
                    connection.shutdown()
            except (_ConnectFailed, _Dropped) as end:
                if self._last_data is not None and self._last_data - started > _OF_USE:
                    delays = backoff()
                delay = next(slow if isinstance(end, _Dropped) and end.is_hopeless else delays)
                report = self._events.dropped if isinstance(end, _Dropped) else self._events.not_connected
                report(f"{end}; trying again {f'in {delay:.1f} s' if delay else 'now'}")

    def _connect(self) -> websocket.WebSocket:
        try:
            connection = websocket.create_connection(
                self._url,
                timeout=_CONNECT_TIMEOUT,
                skip_utf8_validation=True,  # `_decode` does it, without ending the connection
                suppress_origin=True,
                sslopt={"context": tls()} if self._url.startswith("wss:") else None,
            )
        except _ERRORS as error:
            raise _ConnectFailed(f"Cannot connect to {self._url}: {_reason(error)}") from None
        connection.settimeout(_WAKE_UP)
        return connection

    def _receive(self, connection: websocket.WebSocket) -> None:
        """Hand over the connection's frames until `stop`. Raises _Dropped."""
        self._send(connection, *self._requests.values())
        self._events.connected()
        turn = last_frame = last_data = next_check = time.monotonic()
        next_ping = turn + self._ping_interval
        while not self._stop.is_set():
            raw = self._next_frame(connection)
            now = time.monotonic()
            if now - turn > self._ping_interval + _WAKE_UP:  # this process was stopped: the silence was its own
                last_frame = last_data = now
            turn = now
            if raw is not None:
                last_frame = now
                if raw and self._events.frame(raw):
                    last_data = self._last_data = now
            if now - last_frame > 3 * self._ping_interval:
                raise _Dropped(f"Lost {self._url}: nothing came for {now - last_frame:.0f} s, not even a pong")
            if now - last_data > self._stale_timeout:
                raise _Dropped(f"Gave up {self._url}: no market data for {now - last_data:.0f} s")
            if now >= next_check:
                next_check = now + _CHECK
                try:
                    again = self._events.check()
                except Useless as reason:
                    raise _Dropped(f"Gave up {self._url}: {reason}", is_hopeless=isinstance(reason, Hopeless)) from None
                self._send(connection, *(self._requests[method] for method in again))
            if now >= next_ping:
                next_ping = now + self._ping_interval
                self._send(connection, _PING)

    def _send(self, connection: websocket.WebSocket, *texts: str) -> None:
        try:
            for text in texts:
                connection.send(text)
        except _ERRORS as error:
            raise _Dropped(f"Lost {self._url}: {_reason(error)}") from None

    def _next_frame(self, connection: websocket.WebSocket) -> str | bytes | None:
        """Return the next frame; None if none came for a moment, and empty for a ping or pong of the protocol's own."""
        try:
            opcode, data = connection.recv_data(control_frame=True)
        except websocket.WebSocketTimeoutException:
            return None
        except _ERRORS as error:
            raise _Dropped(f"Lost {self._url}: {_reason(error)}") from None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005  # 1005: none was given
            raise _Dropped(f"Lost {self._url}: closed by the exchange, code {code}")
        if opcode == websocket.ABNF.OPCODE_TEXT:
            return _decode(data)
        return data if opcode == websocket.ABNF.OPCODE_BINARY else b""


def _decode(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _reason(error: Exception) -> str:
    """Return a few words on why a connection failed."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return f"the exchange answered HTTP {error.status_code}"
    if isinstance(error, TimeoutError | websocket.WebSocketTimeoutException):
        return "no answer in time"
    if isinstance(error, websocket.WebSocketAddressException):
        return "no internet, or no DNS"
    if isinstance(error, ssl.SSLError):
        return explain_tls(error)
    if isinstance(error, websocket.WebSocketConnectionClosedException):
        return "the connection was closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
