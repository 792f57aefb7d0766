"""The simulated exchange as a process of its own, with real clients: what it promises, and each way to misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import websocket
import websockets

from local.market import CONTRACTS

PROJECT = Path(__file__).parents[2]
REAL_FRAMES = PROJECT / "tests" / "data" / "mexc-frames.jsonl"
STRIKES = (
    *("drop", "close", "stall", "half-open", "duplicate", "error", "wrong-symbol", "unknown-channel", "bad-field"),
    *("broken-json", "nested", "huge", "binary", "bad-utf8", "garbage"),
)
LASTING = ("refuse", "forbid", "hang-up", "rest-down", "gone")
CHANNELS = ("ticker", "deal", "depth.full")
DEADLINE = 20.0  # seconds; reached only when a test fails
BROKEN = (ConnectionResetError, websocket.WebSocketConnectionClosedException)  # as opposed to closed politely
UNREACHABLE = (ConnectionError, urllib.error.URLError)
Frame = dict[str, Any]


class Client:
    """A connection with websocket-client, as the collectors use it."""

    def __init__(self, url: str) -> None:
        self.ws = websocket.create_connection(url, timeout=DEADLINE)

    def send(self, **request: Any) -> None:
        self.ws.send(json.dumps(request))

    def subscribe(self, *channels: str, symbol: str = "BTC_USDT", **param: Any) -> None:
        for channel in channels or CHANNELS:
            self.send(method=f"sub.{channel}", param={"symbol": symbol, **param})

    def text(self) -> str:
        opcode, data = self.ws.recv_data()
        assert opcode == websocket.ABNF.OPCODE_TEXT, (opcode, data)
        return str(data.decode())

    def frame(self) -> Frame:
        frame = json.loads(self.text())
        assert isinstance(frame, dict)
        return frame

    def until(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """Return the frames up to the first wanted one."""
        frames = [self.frame()]
        while not wanted(frames[-1]):
            frames.append(self.frame())
        return frames

    def next(self, channel: str) -> Frame:
        return self.until(lambda frame: frame["channel"] == channel)[-1]

    def until_pong(self) -> list[Frame]:
        """Ping; return what came before the pong."""
        self.send(method="ping")
        return self.until(lambda frame: frame["channel"] == "pong")[:-1]

    def pushes(self, count: int) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < count:
            frame = self.frame()
            if frame["channel"].startswith("push."):
                frames.append(frame)
        return frames

    def end(self) -> int | type[Exception]:
        """Read to the end; return the code of the close frame (1005 if it has none), or the error.

        Raises WebSocketTimeoutException if nothing comes and nothing ends.
        """
        while True:
            try:
                opcode, data = self.ws.recv_data()
            except websocket.WebSocketTimeoutException:
                raise
            except (OSError, websocket.WebSocketException) as error:
                return type(error)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big") if data else 1005


class Exchange:
    """A running ``python3 -m local.exchange``."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "local.exchange", "--port", "0", *map(str, options)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.ready = self.process.stdout.readline()
        self.url = self.ready.split()[-1]
        self.http = self.url.replace("ws://", "http://").removesuffix("/edge")
        self.clients: list[Client] = []

    def connect(self) -> Client:
        self.clients.append(Client(self.url))
        return self.clients[-1]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.http + path, timeout=DEADLINE) as response:
            return json.load(response)

    def fault(self, fault: str) -> None:
        self.get(f"/control?fault={fault}")

    def deals(self, query: str = "") -> list[Frame]:
        deals: list[Frame] = self.get(f"/api/v1/contract/deals/BTC_USDT{query}")["data"]
        return deals

    def wait(self, wanted: Callable[[Any], object]) -> Any:
        """Return /status as soon as it is there and as wanted."""
        end = time.monotonic() + DEADLINE
        status = None
        while time.monotonic() < end:
            with suppress(*UNREACHABLE):
                if wanted(status := self.get("/status")):
                    return status
        pytest.fail(f"the last status was {status}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Return the exit code; whatever was written to stderr is an error."""
        for client in self.clients:
            with suppress(OSError):
                client.ws.shutdown()
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=DEADLINE)
        assert stderr == ""
        return self.process.returncode


Start = Callable[..., Exchange]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Exchange] = []

    def start(*options: object) -> Exchange:
        started.append(Exchange(*options))
        return started[-1]

    yield start
    for exchange in started:
        if exchange.process.returncode is None:  # the test has not waited for its end
            assert exchange.stop() == 0


@pytest.fixture(scope="module")
def calm() -> Iterator[Exchange]:
    """One exchange without faults, for all tests that leave it as it was."""
    exchange = Exchange("--rate", 500)
    yield exchange
    assert exchange.stop() == 0


@pytest.fixture
def client(calm: Exchange) -> Iterator[Client]:
    client = calm.connect()
    yield client
    client.ws.shutdown()


# Starting and stopping


def test_it_says_where_it_listens(start: Start) -> None:
    exchange = start()
    port = int(exchange.url.rsplit(":", 1)[1].removesuffix("/edge"))
    assert exchange.ready == f"Simulated MEXC exchange listening on ws://127.0.0.1:{port}/edge\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_while_clients_are_connected(start: Start, number: signal.Signals) -> None:
    exchange = start()
    client = Client(exchange.url)
    client.subscribe()
    client.pushes(1)
    exchange.process.send_signal(number)
    assert client.end() == 1001
    assert exchange.stop(number) == 0


def test_it_stops_while_a_connection_is_half_open(start: Start) -> None:
    exchange = start()
    exchange.connect().subscribe()
    exchange.wait(lambda status: status["sent"])
    exchange.fault("half-open")
    exchange.process.send_signal(signal.SIGTERM)
    assert exchange.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "70000"),
        (["--rate", "-1"], "-1"),
        (["--rate", "nan"], "nan"),
        (["--frames", "0"], "0 is not"),
        (["--replay", "no-such-file"], "no-such-file: No such file"),
        (["--log", "no-such-directory/log"], "no-such-directory/log: No such file"),
        (["--fault", "gremlin"], "no fault is called 'gremlin': give one of drop, close"),
        (["--fault", "drop"], "give drop:SECONDS"),
        (["--fault", "refuse:soon"], "give refuse:SECONDS, such as refuse:5"),
        (["--fault", "gone"], "give gone:SECONDS"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "local.exchange", "--port", "0", *options]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert run.returncode == 2
    assert words in run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "local.exchange", "--port", str(port)]
        run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert run.returncode == 2
    assert f"127.0.0.1:{port}" in run.stderr
    assert run.stderr.count("\n") == 1


def test_help_names_every_fault() -> None:
    command = [sys.executable, "-m", "local.exchange", "--help"]
    text = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    for name in (*STRIKES, *LASTING):
        assert f"\n  {name} " in text


# The protocol


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_subscription_is_acknowledged(client: Client, channel: str) -> None:
    client.subscribe(channel)
    text = client.text()
    ts = json.loads(text)["ts"]
    assert text == f'{{"channel":"rs.sub.{channel}","data":"success","ts":{ts}}}'
    assert abs(ts / 1000 - time.time()) < DEADLINE


def test_an_unknown_contract_is_an_error(client: Client) -> None:
    client.subscribe("deal", symbol="NOPE_USDT")
    text = client.text()
    ts = json.loads(text)["ts"]
    assert text == f'{{"channel":"rs.error","data":"Contract [NOPE_USDT] not exists","ts":{ts}}}'


def test_a_ping_is_answered(client: Client) -> None:
    client.send(method="ping")
    text = client.text()
    ms = json.loads(text)["data"]
    assert text == f'{{"channel":"pong","data":{ms},"ts":{ms}}}'


@pytest.mark.parametrize(
    "message",
    [
        '{"method":"sub.mystery","param":{"symbol":"BTC_USDT"}}',
        '{"method":["ping"]}',
        '"ping"',
        "[]",
        "no json",
        "[" * 100_000,
        "",
    ],
)
def test_what_it_does_not_know_gets_no_answer(client: Client, message: str) -> None:
    client.ws.send(message)
    assert client.until_pong() == []


@pytest.mark.parametrize("param", [None, {}, [], {"symbol": None}, {"symbol": ["BTC_USDT"]}])
def test_a_subscription_without_a_symbol_takes_the_connection_down(client: Client, param: object) -> None:
    client.send(method="sub.deal", param=param)
    assert client.end() in BROKEN


@pytest.mark.parametrize("channel", CHANNELS)
def test_only_what_was_subscribed_is_pushed(client: Client, channel: str) -> None:
    client.subscribe("ticker", symbol="ETH_USDT")
    client.pushes(1)
    client.subscribe(channel)
    seen = {(frame["symbol"], frame["channel"]) for frame in client.pushes(30)}
    assert seen <= {("ETH_USDT", "push.ticker"), ("BTC_USDT", f"push.{channel}")}


def test_nothing_is_pushed_before_the_acknowledgement(client: Client) -> None:
    assert client.until_pong() == []
    client.subscribe("deal")
    assert client.frame()["channel"] == "rs.sub.deal"
    assert client.frame()["channel"] == "push.deal"


@pytest.mark.parametrize(("param", "kind"), [({}, list), ({"compress": True}, list), ({"compress": False}, dict)])
def test_deals_come_as_a_list_unless_compress_is_false(client: Client, param: dict[str, Any], kind: type) -> None:
    client.subscribe("deal", **param)
    pushes = client.pushes(50)
    assert {type(push["data"]) for push in pushes} == {kind}
    deals = [deal for push in pushes for deal in (push["data"][::-1] if kind is list else [push["data"]])]
    numbers = [int(deal["i"]) for deal in deals]
    assert numbers == sorted(set(numbers))  # newest first within a list
    assert kind is dict or any(len(push["data"]) > 1 for push in pushes)
    for deal in deals:
        assert list(deal) == ["p", "v", "T", "O", "M", "t", "i", "cts"]


@pytest.mark.parametrize(
    ("param", "levels"), [({"limit": 5}, 5), ({"limit": 10}, 10), ({"limit": 20}, 20), ({}, 20), ({"limit": 5.0}, 5)]
)
def test_a_book_has_as_many_levels_as_asked_for(client: Client, param: dict[str, Any], levels: int) -> None:
    client.subscribe("depth.full", **param)
    books = [push["data"] for push in client.pushes(10)]
    assert {len(book["asks"]) for book in books} == {len(book["bids"]) for book in books} == {levels}
    versions = [book["version"] for book in books]
    assert versions == sorted(set(versions))


def test_two_clients_see_the_same_market(calm: Exchange, client: Client) -> None:
    other = calm.connect()
    for each in (client, other):
        each.subscribe("deal", compress=False)
        each.next("rs.sub.deal")
    first = other.frame()["data"]
    client.until(lambda frame: frame["data"] == first)
    deals = [push["data"] for push in client.pushes(50)]
    assert deals == [push["data"] for push in other.pushes(50)]
    assert len({deal["i"] for deal in deals}) == 50


def test_a_silent_client_is_disconnected(start: Start) -> None:
    exchange = start("--ping-limit", 0.4)
    client = exchange.connect()
    client.subscribe("deal")
    end = time.monotonic() + DEADLINE
    while (frame := client.frame())["channel"] != "rs.error":
        assert time.monotonic() < end
        client.subscribe("deal")  # only a ping counts
    assert frame["data"] == "more than 0.4 seconds no response, close the channel"
    assert client.end() == 1005


def test_a_client_that_pings_stays_connected(start: Start) -> None:
    client = start("--ping-limit", 1.5).connect()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        client.until_pong()
    assert client.until_pong() == []


def test_an_asyncio_client_is_served_as_well(calm: Exchange) -> None:
    async def talk() -> Frame:
        async with websockets.connect(calm.url) as ws:
            await ws.send('{"method":"sub.ticker","param":{"symbol":"SOL_USDT"}}')
            await ws.recv()
            frame: Frame = json.loads(await ws.recv())
            return frame

    frame = asyncio.run(talk())
    assert frame["symbol"] == frame["data"]["symbol"] == "SOL_USDT"


# What is simulated, and how much of it


def test_the_same_seed_gives_the_same_deals(start: Start) -> None:
    def deals(seed: int) -> list[tuple[Any, ...]]:
        client = start("--seed", seed, "--rate", 500).connect()
        client.subscribe("deal", compress=False)
        return [tuple(push["data"][key] for key in "pvTOMi") for push in client.pushes(50)]

    first = deals(3)
    assert deals(3) == first
    assert deals(4) != first


def test_frames_ends_the_pushes_of_each_connection(start: Start) -> None:
    exchange = start("--rate", 0, "--frames", 300)
    for _ in range(2):
        client = exchange.connect()
        client.subscribe(compress=False)
        client.subscribe(symbol="ETH_USDT")
        exchange.wait(lambda status: status["connections"][-1]["sent"] == {"BTC_USDT": 300, "ETH_USDT": 300})
        pushes = [frame for frame in client.until_pong() if frame["channel"].startswith("push.")]
        assert Counter(frame["symbol"] for frame in pushes) == {"BTC_USDT": 300, "ETH_USDT": 300}
        kinds = Counter(frame["channel"] for frame in pushes)
        assert kinds["push.deal"] > kinds["push.depth.full"] > kinds["push.ticker"] > 0


def test_frames_may_end_within_a_burst_of_deals(start: Start) -> None:
    exchange = start("--frames", 1)
    client = exchange.connect()
    for symbol in CONTRACTS:
        client.subscribe("deal", symbol=symbol, compress=False)
    exchange.wait(lambda status: status["sent"] == dict.fromkeys(CONTRACTS, 1))


def test_rate_paces_the_frames(start: Start) -> None:
    client = start("--rate", 100).connect()
    client.subscribe(compress=False)
    stamps = [push["ts"] for push in client.pushes(60)]
    assert stamps[-1] - stamps[0] >= 500  # ms; at the earliest, whatever the load


def test_a_file_is_replayed_byte_for_byte(start: Start, tmp_path: Path) -> None:
    lines = [
        *REAL_FRAMES.read_bytes().splitlines(),
        b'{"channel":"push.deal","data":{"p":',
        b'  {"spaces" : "kept"}\r',
        b'{"symbol":"\xff"}',
        b"not JSON",
        b"[" * 100_000,
    ]
    file = tmp_path / "frames.jsonl"
    file.write_bytes(b"\n".join([*lines[:3], b"", b"  ", *lines[3:]]))

    async def collect(subscriptions: int) -> list[bytes]:
        got: list[bytes] = []
        async with websockets.connect(exchange.url, max_size=None) as ws:
            for channel in CHANNELS[:subscriptions]:
                await ws.send(json.dumps({"method": f"sub.{channel}", "param": {"symbol": "BTC_USDT"}}))
            for channel in CHANNELS[:subscriptions]:
                assert f"rs.sub.{channel}".encode() in await ws.recv(decode=False)
            while len(got) < len(lines):
                got.append(await ws.recv(decode=False))
            await ws.send('{"method":"ping"}')
            assert b"pong" in await ws.recv(decode=False)  # and so nothing came twice
        return got

    exchange = start("--replay", file)
    assert asyncio.run(collect(3)) == lines
    assert asyncio.run(collect(1)) == lines


def test_rate_paces_a_replay(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "frames.jsonl"
    file.write_text('{"symbol":"BTC_USDT","channel":"push.deal"}\n' * 30)
    client = start("--replay", file, "--rate", 100).connect()
    client.subscribe()
    client.next("push.deal")
    begin = time.monotonic()
    client.pushes(29)
    assert time.monotonic() - begin >= 0.2  # s; at the earliest, whatever the load


def test_the_log_is_what_the_client_got(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--rate", 0, "--frames", 500, "--log", log)
    client = exchange.connect()
    client.subscribe(compress=False)
    got: list[str] = []
    while len(got) < 500:
        text = client.text()
        if '"push.' in text:
            got.append(text)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    sent = [entry for entry in entries if entry["conn"] == 1]
    assert [entry["frame"] for entry in sent] == got
    assert [entry["seq"] for entry in sent] == list(range(1, 501))
    assert {entry["symbol"] for entry in sent} == {"BTC_USDT"}


def test_the_log_has_replayed_frames_that_are_no_text(start: Start, tmp_path: Path) -> None:
    file, log = tmp_path / "frames.jsonl", tmp_path / "log"
    file.write_bytes(b'{"symbol":"BTC_USDT"}\n\xff\xfe\n')
    exchange = start("--replay", file, "--log", log)
    exchange.connect().subscribe()
    exchange.wait(lambda status: status["sent"].get("") == 1)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["symbol"] for entry in entries] == ["BTC_USDT", ""]
    assert entries[1]["frame"].encode(errors="surrogateescape") == b"\xff\xfe"


# REST


def test_rest_returns_the_last_deals_newest_first(calm: Exchange, client: Client) -> None:
    client.subscribe("deal", compress=False)
    numbers: list[str] = []
    while len(set(numbers)) < 120:
        numbers.append(client.next("push.deal")["data"]["i"])
    deals = calm.deals("?limit=100")
    assert len(deals) == 100
    assert [int(deal["i"]) for deal in deals] == sorted((int(deal["i"]) for deal in deals), reverse=True)
    while numbers[-1] != deals[0]["i"]:
        numbers.append(client.next("push.deal")["data"]["i"])
    assert [deal["i"] for deal in deals][::-1] == numbers[-100:]
    assert list(deals[0]) == ["p", "v", "T", "O", "M", "t", "i"]
    assert len(calm.deals()) == 100
    assert len(calm.deals("?limit=1000")) == 100
    assert len(calm.deals("?limit=7")) == 7


def test_rest_knows_no_deals_before_the_first_subscription(calm: Exchange) -> None:
    assert calm.get("/api/v1/contract/deals/LTC_USDT") == {"success": True, "code": 0, "data": []}


def test_rest_reports_an_unknown_contract_as_mexc_does(calm: Exchange) -> None:
    for path in ("deals/NOPE_USDT?limit=100", "detail?symbol=NOPE_USDT"):
        answer = calm.get(f"/api/v1/contract/{path}")
        assert (answer["success"], answer["code"]) == (False, 1001)
        assert answer["message"]


def test_rest_knows_the_size_of_a_contract(calm: Exchange) -> None:
    answer = calm.get("/api/v1/contract/detail?symbol=BTC_USDT")
    assert (answer["success"], answer["code"]) == (True, 0)
    assert answer["data"]["symbol"] == "BTC_USDT"
    assert answer["data"]["contractSize"] == 0.0001


def test_the_market_goes_on_while_nobody_is_connected(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--log", log)
    client = exchange.connect()
    client.subscribe("deal", compress=False)
    client.next("push.deal")
    client.ws.shutdown()
    exchange.wait(lambda status: not status["connections"])
    before = exchange.deals()[0]["i"]
    end = time.monotonic() + DEADLINE
    while exchange.deals()[0]["i"] == before:
        assert time.monotonic() < end
    after = {deal["i"] for deal in exchange.deals()}
    logged = {
        json.loads(entry["frame"])["data"]["i"]: entry["conn"]
        for entry in map(json.loads, log.read_text().splitlines())
    }
    assert after <= set(logged)
    assert {conn for number, conn in logged.items() if int(number) > int(before)} == {0}


@pytest.mark.parametrize("path", ["/", "/edge/", "/api/v1/contract/depth/BTC_USDT", "//["])
def test_what_is_not_there_is_404(calm: Exchange, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        calm.get(path)


# Misbehaviour: what strikes the open connections


@pytest.fixture
def struck(start: Start) -> tuple[Exchange, Client]:
    """An exchange and a client with a subscription that is otherwise quiet."""
    exchange = start("--frames", 1)
    client = exchange.connect()
    client.subscribe("deal")
    client.next("push.deal")
    return exchange, client


Struck = tuple[Exchange, Client]


def test_drop_resets_the_connection(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("drop")
    assert client.end() is ConnectionResetError


def test_close_sends_a_close_frame_without_a_code(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("close")
    assert client.end() == 1005


def test_stall_ends_all_answers_until_it_is_healed(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("stall")
    client.send(method="ping")
    client.ws.ping("still there?")  # WebSocket and TCP go on: so the server has read the ping before this one
    assert client.ws.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG
    exchange.fault("none")
    client.subscribe("ticker")
    assert client.frame()["channel"] == "rs.sub.ticker"


def test_a_stalled_connection_is_not_told_that_it_sends_no_ping(start: Start) -> None:
    exchange = start("--ping-limit", 0.2)
    client = exchange.connect()
    client.subscribe("deal")
    client.next("push.deal")
    exchange.fault("stall")
    client.ws.settimeout(0.6)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.end()


def test_a_stalled_client_may_leave(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("stall")
    client.ws.close()
    exchange.wait(lambda status: not status["connections"])


def test_half_open_neither_reads_nor_writes_until_it_is_healed(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("half-open")
    client.ws.ping("still there?")
    client.send(method="ping")
    readable, _, _ = select.select([client.ws.sock], [], [], 0.3)
    assert not readable
    exchange.fault("none")
    assert client.ws.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG
    assert client.frame()["channel"] == "pong"


def test_a_new_connection_is_not_stalled(struck: Struck) -> None:
    exchange, _ = struck
    for fault in ("stall", "half-open"):
        exchange.fault(fault)
        assert exchange.connect().until_pong() == []


def test_duplicate_sends_the_next_frame_twice(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("duplicate")
    client.subscribe("ticker")
    assert client.text() == client.text()
    client.send(method="ping")
    assert client.frame()["channel"] == "pong"
    client.subscribe("ticker")
    assert client.frame()["channel"] == "rs.sub.ticker"


def test_a_duplicated_push_is_logged_twice(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--log", log)
    client = exchange.connect()
    exchange.fault("duplicate&count=2")
    client.subscribe("ticker")  # the acknowledgement uses up one
    assert client.text() == client.text()
    assert client.text() == client.text()
    first, second = (json.loads(line) for line in log.read_text().splitlines()[:2])
    assert first["frame"] == second["frame"]
    assert (first["seq"], second["seq"]) == (1, 2)


def test_error_sends_as_many_error_frames_as_asked_for(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("error&count=3")
    assert [frame["channel"] for frame in client.until_pong()] == ["rs.error"] * 3


def test_wrong_symbol_pushes_what_nobody_asked_for(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("wrong-symbol")
    (frame,) = client.until_pong()
    assert frame["symbol"] == frame["data"]["symbol"] == "ETH_USDT"


def test_unknown_channel_and_bad_field_are_json(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("unknown-channel")
    exchange.fault("bad-field")
    unknown, bad = client.until_pong()
    assert unknown["channel"] not in {f"push.{channel}" for channel in CHANNELS}
    assert (bad["symbol"], bad["channel"], bad["data"]["v"]) == ("BTC_USDT", "push.deal", None)


@pytest.mark.parametrize(("fault", "error"), [("broken-json", ValueError), ("nested", RecursionError)])
def test_text_that_is_no_json(struck: Struck, fault: str, error: type[Exception]) -> None:
    exchange, client = struck
    exchange.fault(fault)
    with pytest.raises(error):
        json.loads(client.text())


def test_huge_is_megabytes_of_json(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("huge")
    text = client.text()
    assert len(text) > 4 << 20
    json.loads(text)


def test_binary_is_a_binary_frame(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("binary")
    assert client.ws.recv_data()[0] == websocket.ABNF.OPCODE_BINARY


def test_bad_utf8_is_a_text_frame(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("bad-utf8")
    with pytest.raises(websocket.WebSocketPayloadException):
        client.ws.recv_data()


def test_garbage_is_all_of_it(struck: Struck) -> None:
    exchange, client = struck
    exchange.fault("garbage")
    kinds = [client.ws.recv_data()[0] for _ in range(6)]
    assert Counter(kinds) == {websocket.ABNF.OPCODE_TEXT: 5, websocket.ABNF.OPCODE_BINARY: 1}
    with pytest.raises(websocket.WebSocketPayloadException):
        client.ws.recv_data()


def test_a_strike_can_be_repeated_until_it_is_healed(start: Start) -> None:
    exchange = start("--fault", "error:0.05")
    client = exchange.connect()
    for _ in range(3):
        client.next("rs.error")
    exchange.fault("none")
    client.until_pong()
    struck = exchange.get("/status")["struck"]
    client.ws.settimeout(0.3)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.end()
    assert exchange.get("/status")["struck"] == struck


# Misbehaviour: what holds


def test_refuse_closes_connections_without_a_word(start: Start) -> None:
    exchange = start("--fault", "refuse")
    with pytest.raises((OSError, websocket.WebSocketException)) as caught:
        Client(exchange.url)
    assert not isinstance(caught.value, websocket.WebSocketBadStatusException)
    exchange.fault("none")
    assert exchange.connect().until_pong() == []


def test_forbid_answers_403_as_often_as_asked_for(start: Start) -> None:
    exchange = start()
    exchange.fault("forbid&count=2")
    for _ in range(2):
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            Client(exchange.url)
    assert exchange.connect().until_pong() == []
    assert exchange.get("/status")["struck"] == {"forbid": 2}


def test_hang_up_closes_right_after_the_handshake(start: Start) -> None:
    exchange = start()
    exchange.fault("hang-up&count=1")
    assert Client(exchange.url).end() in BROKEN
    assert exchange.connect().until_pong() == []


def test_rest_down_fails_rest_only(start: Start) -> None:
    exchange = start("--fault", "rest-down")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        exchange.deals()
    assert exchange.connect().until_pong() == []
    exchange.fault("none")
    assert exchange.deals() == []


def test_gone_refuses_connections_and_comes_back(start: Start) -> None:
    exchange = start()
    client = exchange.connect()
    client.until_pong()
    exchange.fault("gone:0.5")
    assert client.end() == 1001
    with pytest.raises(ConnectionRefusedError):
        Client(exchange.url)
    exchange.wait(lambda status: status["struck"] == {"gone": 1})
    assert exchange.connect().until_pong() == []


def test_gone_twice_at_once_is_gone_one_after_the_other(start: Start) -> None:
    exchange = start("--fault", "gone:0.02", "--fault", "gone:0.02")
    exchange.wait(lambda status: status["struck"] == {"gone": 2})


def test_a_connection_that_comes_while_it_goes_is_not_left_hanging(start: Start) -> None:
    exchange = start()
    while exchange.wait(lambda _: True)["struck"].get("gone", 0) < 30:
        with suppress(*UNREACHABLE):
            exchange.fault("gone:0.001")


def test_it_stops_while_it_is_gone(start: Start) -> None:
    exchange = start()
    exchange.fault("gone:1000")
    assert exchange.stop() == 0


def test_a_lasting_fault_heals_after_its_time(start: Start) -> None:
    exchange = start("--fault", "rest-down:0.3")
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with suppress(urllib.error.HTTPError):
            assert exchange.deals() == []
            return
    pytest.fail("it did not heal")


@pytest.mark.parametrize("query", ["", "?fault=gremlin", "?fault=drop:x", "?fault=gone", "?fault=error&count=0"])
def test_control_refuses_what_it_cannot_do(calm: Exchange, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        calm.get(f"/control{query}")
    assert caught.value.read().count(b"\n") == 1


def test_status_tells_what_goes_on(start: Start) -> None:
    exchange = start("--frames", 5)
    exchange.connect().subscribe(symbol="SOL_USDT")
    status = exchange.wait(lambda status: status["sent"] == {"SOL_USDT": 5})
    assert status["accepted"] == 1
    (connection,) = status["connections"]
    assert connection["conn"] == 1
    assert connection["sent"] == {"SOL_USDT": 5}
    assert connection["subscriptions"] == [f"SOL_USDT {channel}" for channel in CHANNELS]
    exchange.fault("drop")
    status = exchange.wait(lambda status: not status["connections"])
    assert status["struck"] == {"drop": 1}
    assert status["sent"] == {"SOL_USDT": 5}


# Clients that do not read


def test_at_full_speed_a_client_that_does_not_read_is_waited_for(start: Start) -> None:
    exchange = start("--rate", 0)
    exchange.connect().subscribe()
    full = exchange.wait(lambda status: status["connections"][0]["backlog"] > 256 << 10)
    for _ in range(20):
        status = exchange.get("/status")
        assert status["sent"] == full["sent"]
        assert status["connections"][0]["backlog"] < 1 << 20


def test_a_client_that_does_not_read_is_disconnected_before_it_costs_much(start: Start) -> None:
    exchange = start()
    exchange.connect().subscribe()
    exchange.wait(lambda status: status["sent"])
    exchange.fault("huge&count=20")
    exchange.wait(lambda status: not status["connections"])
