"""The WebSocket session, against a server on this machine that does as each test says."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from pipeline.collect import feed
from pipeline.collect.backoff import backoff
from pipeline.collect.feed import Feed, FeedEvents
from tests.stack import free_port

PATIENCE = 30.0  # seconds; reached only when a test fails
PING = '{"method":"ping"}'

Session = Callable[[ServerConnection], None]


class Recorder(FeedEvents):
    """Notes what a feed tells; frames that begin with "data" are market data."""

    def __init__(self) -> None:
        self._told: queue.Queue[tuple[str, object]] = queue.Queue()

    def frame(self, raw: str | bytes) -> bool:
        self._told.put(("frame", raw))
        return isinstance(raw, str) and raw.startswith("data")

    def connected(self) -> None:
        self._told.put(("connected", None))

    def not_connected(self, line: str) -> None:
        self._told.put(("not connected", line))

    def dropped(self, line: str) -> None:
        self._told.put(("dropped", line))

    def next(self) -> tuple[str, object]:
        return self._told.get(timeout=PATIENCE)

    def next_of(self, kind: str) -> object:
        """Return what comes with the next event of a kind; the others before it are passed over."""
        while (event := self.next())[0] != kind:
            pass
        return event[1]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_WAKE_UP", 0.02)
    monkeypatch.setattr(feed, "backoff", lambda *_: backoff(first=0.02))


@contextmanager
def serving(*sessions: Session, forbid: bool = False) -> Iterator[str]:
    """Give the address of a server that has one of `sessions` with each connection, the last one with all further."""
    left = list(sessions)

    def have_session(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            (left.pop(0) if len(left) > 1 else left[0])(connection)

    def refuse(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(HTTPStatus.FORBIDDEN, "not you\n") if forbid else None

    with serve(have_session, "127.0.0.1", 0, process_request=refuse, ping_interval=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/edge"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def feeding(
    url: str, *subscriptions: object, ping_interval: float = 60, stale_timeout: float = 60, told: Recorder | None = None
) -> Iterator[Recorder]:
    """Run a feed, and give what it tells."""
    told = told or Recorder()
    running = Feed(url, subscriptions, told, ping_interval=ping_interval, stale_timeout=stale_timeout)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield told
    finally:
        running.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def listen(connection: ServerConnection) -> None:
    """Take what comes, until the client goes."""
    for _ in connection:
        pass


def say(*frames: str | bytes) -> Session:
    """Send frames, then listen."""

    def session(connection: ServerConnection) -> None:
        for frame in frames:
            connection.send(frame)
        listen(connection)

    return session


# A connection that works


def test_the_subscriptions_are_sent_in_order_before_it_is_called_connected() -> None:
    received: queue.Queue[str | bytes] = queue.Queue()

    def session(connection: ServerConnection) -> None:
        for frame in connection:
            received.put(frame)

    first, second = {"method": "sub.deal", "param": {"symbol": "BTC_USDT", "compress": False}}, {"method": "sub.ticker"}
    with serving(session) as url, feeding(url, first, second) as told:
        assert told.next() == ("connected", None)
        assert received.get(timeout=PATIENCE) == (
            '{"method":"sub.deal","param":{"symbol":"BTC_USDT","compress":false}}'
        )
        assert received.get(timeout=PATIENCE) == '{"method":"sub.ticker"}'


def test_frames_are_handed_over_in_order_text_as_text_and_the_rest_as_bytes() -> None:
    def session(connection: ServerConnection) -> None:
        connection.send("data 1")
        connection.send(b"\x1f\x8b\x00")
        connection.send(b'{"symbol":"\xff"}', text=True)  # not UTF-8, though it says so
        connection.send(["data ", "→", " in parts"])
        connection.send("data 2")
        listen(connection)

    with serving(session) as url, feeding(url) as told:
        assert [told.next() for _ in range(6)] == [
            ("connected", None),
            ("frame", "data 1"),
            ("frame", b"\x1f\x8b\x00"),
            ("frame", b'{"symbol":"\xff"}'),
            ("frame", "data → in parts"),
            ("frame", "data 2"),
        ]


def test_mexc_is_pinged_also_while_data_flows() -> None:
    def session(connection: ServerConnection) -> None:
        pings = 0
        while pings < 3:
            connection.send("data")
            with suppress(TimeoutError):
                pings += connection.recv(timeout=0.01) == PING
        connection.send("three pings")
        listen(connection)

    with serving(session) as url, feeding(url, ping_interval=0.1) as told:
        while told.next_of("frame") != "three pings":
            pass


def test_a_ping_of_the_protocols_own_is_answered_and_is_no_frame() -> None:
    def session(connection: ServerConnection) -> None:
        connection.ping("are you there").wait(PATIENCE)
        connection.send("answered")
        listen(connection)

    with serving(session) as url, feeding(url) as told:
        assert [told.next(), told.next()] == [("connected", None), ("frame", "answered")]


def test_stop_ends_it_while_nothing_comes() -> None:
    with serving(listen) as url, feeding(url) as told:
        told.next_of("connected")


def test_stop_ends_it_while_it_waits_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "backoff", lambda *_: iter([0.0, 3600.0]))
    with feeding(f"ws://127.0.0.1:{free_port()}/edge") as told:
        assert str(told.next_of("not connected")).endswith("; trying again in 3600.0 s")


# A connection that does not come about


def test_a_refused_connection_is_named_and_tried_again() -> None:
    port = free_port()
    with feeding(f"ws://127.0.0.1:{port}/edge") as told:
        line = f"Cannot connect to ws://127.0.0.1:{port}/edge: Connection refused; trying again in "
        assert str(told.next_of("not connected")).startswith(line)
        assert str(told.next_of("not connected")).startswith(line)


def test_an_http_error_is_named() -> None:
    with serving(listen, forbid=True) as url, feeding(url) as told:
        assert f"{url}: the exchange answered HTTP 403; trying" in str(told.next_of("not connected"))


def test_a_name_without_an_address_is_said_to_be_one() -> None:
    url = "ws://nobody.invalid/edge"
    with feeding(url) as told:
        assert f"Cannot connect to {url}: no internet, or no DNS; " in str(told.next_of("not connected"))


@pytest.mark.parametrize(("linger", "reason"), [(0, "the connection was closed"), (1, "Connection reset by peer")])
def test_an_exchange_that_hangs_up_on_the_handshake_is_named(linger: int, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/edge"
        with feeding(url) as told:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger, 0))
            connection.close()
            assert str(told.next_of("not connected")).startswith(f"Cannot connect to {url}: {reason}; ")


def test_an_exchange_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/edge"
        with feeding(url) as told:
            assert f"Cannot connect to {url}: no answer in time; " in str(told.next_of("not connected"))


def test_something_that_does_not_speak_tls_is_named() -> None:
    with serving(listen) as url, feeding(url.replace("ws://", "wss://")) as told:
        assert ": TLS: " in str(told.next_of("not connected"))


def test_something_that_does_not_speak_http_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/edge"
        with feeding(url) as told:
            connection, _ = server.accept()
            connection.sendall(b"220 mail.example\r\n250 what?\r\n\r\n")
            connection.close()
            assert f"{url}: Invalid status line: '220 mail.example'; " in str(told.next_of("not connected"))


# A connection that ends, or is of no use


@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_a_close_frame_is_told_with_its_code(code: int) -> None:
    with serving(lambda connection: connection.close(code, "reason"), listen) as url, feeding(url) as told:
        assert str(told.next_of("dropped")).startswith(f"Lost {url}: closed by the exchange, code {code}; ")
        told.next_of("connected")


def test_a_close_frame_without_a_code_is_1005() -> None:
    def session(connection: ServerConnection) -> None:
        with connection.send_context():
            connection.protocol.send_close()

    with serving(session, listen) as url, feeding(url) as told:
        assert str(told.next_of("dropped")).startswith(f"Lost {url}: closed by the exchange, code 1005; ")


def test_an_end_without_a_close_frame_is_told() -> None:
    with serving(lambda connection: connection.socket.shutdown(socket.SHUT_RDWR), listen) as url, feeding(url) as told:
        assert str(told.next_of("dropped")).startswith(f"Lost {url}: the connection was closed; ")
        told.next_of("connected")


def test_a_half_open_connection_is_given_up_after_three_ping_intervals() -> None:
    pings: list[str | bytes] = []

    def session(connection: ServerConnection) -> None:
        connection.send("data")
        pings.extend(connection)

    with serving(session, listen) as url, feeding(url, ping_interval=0.1) as told:
        assert str(told.next_of("dropped")).startswith(f"Lost {url}: nothing came for 0 s, not even a pong; ")
        told.next_of("connected")
    assert pings[:2] == [PING, PING]


def test_a_half_open_connection_is_given_up_even_where_pings_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_WAKE_UP", 0.1)
    with serving(say("data"), listen) as url, feeding(url, ping_interval=0.05) as told:
        assert "not even a pong" in str(told.next_of("dropped"))


def test_pongs_keep_a_quiet_connection() -> None:
    pings = 0

    def session(connection: ServerConnection) -> None:
        nonlocal pings
        for _ in connection:
            pings += 1
            connection.send("pong" if pings < 10 else "ten pings")

    with serving(session) as url, feeding(url, ping_interval=0.1) as told:
        kinds = [told.next()]
        while kinds[-1] != ("frame", "ten pings"):
            kinds.append(told.next())
    assert {kind for kind, _ in kinds} == {"connected", "frame"}


def test_a_subscription_that_died_is_given_up_though_pongs_come() -> None:
    def session(connection: ServerConnection) -> None:
        connection.send("data")
        for _ in connection:
            connection.send("pong")

    with serving(session) as url, feeding(url, ping_interval=0.05, stale_timeout=0.4) as told:
        assert str(told.next_of("dropped")).startswith(f"Gave up {url}: no market data for 0 s; ")
        told.next_of("connected")


def test_a_connection_survives_that_this_process_was_stopped_for_a_while() -> None:
    class Stopped(Recorder):
        def frame(self, raw: str | bytes) -> bool:
            if raw == "data 1":
                time.sleep(1)  # longer than all that is allowed
            return super().frame(raw)

    stopped = Stopped()

    def session(connection: ServerConnection) -> None:
        connection.send("data 1")
        for number, _ in enumerate(connection, 2):
            connection.send(f"data {number}")

    with serving(session) as url, feeding(url, ping_interval=0.2, stale_timeout=0.5, told=stopped) as told:
        assert [told.next() for _ in range(3)] == [("connected", None), ("frame", "data 1"), ("frame", "data 2")]


# Trying again


def test_after_a_useful_connection_the_next_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_OF_USE", 0.0)

    def session(connection: ServerConnection) -> None:
        connection.send("data")
        connection.close()

    with serving(session) as url, feeding(url) as told:
        for _ in range(5):
            assert str(told.next_of("dropped")).endswith("; trying again now")


def test_where_connections_are_of_no_use_the_delays_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "backoff", lambda *_: iter([0.0, 0.1, 0.2, 0.3, 3600.0]))
    with serving(lambda connection: connection.close()) as url, feeding(url) as told:
        ends = [str(told.next_of("dropped")).rpartition("; ")[2] for _ in range(4)]
    assert ends == [f"trying again in {delay} s" for delay in ("0.1", "0.2", "0.3", "3600.0")]


def test_an_exchange_that_closes_after_its_first_push_is_not_besieged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "backoff", lambda *_: iter([0.0, 0.1, 0.2, 3600.0]))

    def session(connection: ServerConnection) -> None:
        connection.send("data")
        connection.close()

    with serving(session) as url, feeding(url) as told:
        ends = [str(told.next_of("dropped")).rpartition("; ")[2] for _ in range(3)]
    assert ends == [f"trying again in {delay} s" for delay in ("0.1", "0.2", "3600.0")]
