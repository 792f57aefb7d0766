"""The simulated exchange as a process of its own, with real clients: what it promises, and each way to misbehave."""

from __future__ import annotations

import asyncio
import gzip
import http.client
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
from urllib.parse import urlsplit

import pytest
import websocket
import websockets

from local.market import CONTRACTS

PROJECT = Path(__file__).parents[2]
REAL_FRAMES = PROJECT / "tests" / "data" / "mexc-frames.jsonl"
STRIKES = (
    *("drop", "close", "stall", "half-open", "duplicate", "error", "wrong-symbol", "unknown-channel", "bad-field"),
    *("broken-json", "nested", "huge", "binary", "bad-utf8", "garbage"),
    *("ticker-dies", "deal-dies", "depth-dies"),
)
REST_FAULTS = ("down", "forbid", "login", "half", "html", "error")
LASTING = (
    *("refuse", "forbid", "hang-up", "gone", "unchanged-books", "gzip", "bare-ids", "quoted-numbers", "rest-moved"),
    *(
        f"{name}-{what}"
        for name in ("ticker", "deal", "depth")
        for what in ("refused", "refused-object", "ignored", "mute")
    ),
    *("ts-seconds", "ts-microseconds", "ts-string", "ts-missing"),
    *(f"{address}-{name}" for address in ("rest", "api") for name in REST_FAULTS),
)
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
        self.ready = [self.process.stdout.readline() for _ in range(2)]
        self.rest, self.url = (line.split()[-1] for line in self.ready)
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

    def ask(self, path: str) -> Any:
        """Return what REST answers at its own address."""
        with urllib.request.urlopen(f"{self.rest}/api/v1/contract/{path}", timeout=DEADLINE) as response:
            return json.load(response)

    def deals(self, query: str = "") -> list[Frame]:
        deals: list[Frame] = self.ask(f"deals/BTC_USDT{query}")["data"]
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
    port, rest_port = (urlsplit(address).port for address in (exchange.url, exchange.rest))
    assert port != rest_port
    assert exchange.ready == [
        f"Simulated MEXC exchange: REST on http://127.0.0.1:{rest_port}\n",
        f"Simulated MEXC exchange listening on ws://127.0.0.1:{port}/edge\n",
    ]


def test_rest_is_on_the_next_port_unless_another_is_given(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as other:
        port, other_port = probe.getsockname()[1], other.getsockname()[1]
    exchange = start("--port", port)
    assert exchange.rest == f"http://127.0.0.1:{port + 1}"
    assert exchange.stop() == 0
    assert start("--port", port, "--rest-port", other_port).rest == f"http://127.0.0.1:{other_port}"


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
        (["--rest-port", "-1"], "-1"),
        (["--fault", "gremlin"], "no fault is called 'gremlin': see --help"),
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


@pytest.mark.parametrize("option", ["--port", "--rest-port"])
def test_a_port_in_use_is_one_line_and_exit_code_2(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "local.exchange", "--port", "0", option, str(port)]
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


def as_rest_gives_it(deal: Frame) -> Frame:
    return {name: value for name, value in deal.items() if name not in ("i", "cts")}


def test_rest_returns_the_last_deals_newest_first_without_ids(calm: Exchange, client: Client) -> None:
    client.subscribe("deal", compress=False)
    pushed: list[Frame] = []
    while len(pushed) < 120:
        pushed.append(client.next("push.deal")["data"])
    deals = calm.deals("?limit=100")
    assert len(deals) == 100
    assert list(deals[0]) == ["p", "v", "T", "O", "M", "t"]
    assert [deal["t"] for deal in deals] == sorted((deal["t"] for deal in deals), reverse=True)
    while deals[::-1] != [as_rest_gives_it(deal) for deal in pushed[-100:]]:
        pushed.append(client.next("push.deal")["data"])
    assert len(calm.deals()) == 100
    assert len(calm.deals("?limit=1000")) == 100
    assert len(calm.deals("?limit=7")) == 7


def test_klines_are_of_the_deals_that_were_pushed(start: Start) -> None:
    exchange = start("--rate", 0, "--frames", 2000)
    client = exchange.connect()
    client.subscribe("deal", compress=False)
    deals = [push["data"] for push in client.pushes(1000)]
    first, last = deals[0], deals[-1]
    minute = first["t"] // 60_000 * 60
    kline = f"kline/BTC_USDT?interval=Min1&start={minute}"
    bars = exchange.ask(kline)["data"]
    assert bars["realOpen"][0] == first["p"]
    assert last["t"] // 60_000 * 60 in bars["time"]
    assert sum(bars["vol"]) >= sum(deal["v"] for deal in deals)
    assert exchange.ask(f"{kline}&end={minute}")["data"]["time"] == [minute]
    assert exchange.ask(f"{kline}&end={minute - 1}")["data"]["time"] == []
    for unusable in (f"kline/BTC_USDT?interval=Min1&start={minute}.5", "kline/BTC_USDT?interval=Week4"):
        assert exchange.ask(unusable)["success"] is False


def test_rest_knows_no_deals_before_the_first_subscription(calm: Exchange) -> None:
    assert calm.ask("deals/LTC_USDT") == {"success": True, "code": 0, "data": []}
    assert calm.ask("kline/LTC_USDT?interval=Min1")["data"]["time"] == []


@pytest.mark.parametrize(
    "path", ["deals/NOPE_USDT?limit=100", "detail?symbol=NOPE_USDT", "kline/NOPE_USDT", "funding_rate/"]
)
def test_rest_reports_an_unknown_contract_as_mexc_does(calm: Exchange, path: str) -> None:
    answer = calm.ask(path)
    assert (answer["success"], answer["code"]) == (False, 1001)
    assert answer["message"]


def test_rest_knows_the_size_of_a_contract(calm: Exchange) -> None:
    answer = calm.ask("detail?symbol=BTC_USDT")
    assert (answer["success"], answer["code"]) == (True, 0)
    unit = {"priceUnit": 0.1, "priceScale": 1, "volUnit": 1, "volScale": 0, "state": 0}
    assert answer["data"] == {"symbol": "BTC_USDT", "contractSize": 0.0001, **unit}
    whole = calm.ask("detail")["data"]
    assert [contract["symbol"] for contract in whole] == list(CONTRACTS)
    assert answer["data"] in whole


def test_rest_knows_the_funding_rate(calm: Exchange) -> None:
    rate = calm.ask("funding_rate/BTC_USDT")["data"]
    assert -0.001 < rate["fundingRate"] < 0.001
    assert rate["collectCycle"] == 8
    assert 0 < rate["nextSettleTime"] - rate["timestamp"] <= 8 * 3_600_000


def test_rest_is_at_the_websockets_address_too_until_it_has_moved(start: Start) -> None:
    exchange = start()
    path = "/api/v1/contract/detail"
    assert exchange.get(path) == exchange.ask("detail")
    exchange.fault("rest-moved")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        exchange.get(path)
    assert exchange.ask("detail")["success"]


def test_no_websocket_is_at_rests_address(calm: Exchange) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException, match="404"):
        Client(f"{calm.rest.replace('http', 'ws')}/edge")


def test_an_answer_is_gzipped_if_asked_for(calm: Exchange) -> None:
    request = urllib.request.Request(f"{calm.rest}/api/v1/contract/detail", headers={"Accept-Encoding": "br, gzip"})
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(response.read())) == calm.ask("detail")


def test_who_asks_too_often_is_refused_for_a_while(start: Start) -> None:
    exchange = start()
    begin = time.monotonic()
    answers = [exchange.ask("detail") for _ in range(11)]
    assert [answer["success"] for answer in answers] == [True] * 10 + [False]
    assert "too frequent" in answers[-1]["message"]
    assert exchange.ask("deals/BTC_USDT")["success"]
    while not exchange.ask("detail")["success"]:
        time.sleep(0.02)
    assert time.monotonic() - begin >= 2


def test_the_market_goes_on_while_nobody_is_connected(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--log", log)
    client = exchange.connect()
    client.subscribe("deal", compress=False)
    client.next("push.deal")
    client.ws.shutdown()
    exchange.wait(lambda status: not status["connections"])
    before = exchange.deals()[0]
    end = time.monotonic() + DEADLINE
    while (after := exchange.deals()[::-1])[-1] == before:
        assert time.monotonic() < end
        time.sleep(0.2)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    logged = [as_rest_gives_it(json.loads(entry["frame"])["data"]) for entry in entries]
    place = next(n for n in range(len(logged)) if logged[n : n + len(after)] == after)
    missed = entries[place + max(n for n, deal in enumerate(after) if deal == before) + 1 :]
    assert {entry["conn"] for entry in missed} == {0}


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
    for address in (exchange.http, exchange.rest):
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{address}/api/v1/contract/deals/BTC_USDT", timeout=DEADLINE)
    assert exchange.connect().until_pong() == []
    exchange.fault("none")
    assert exchange.deals() == []


def outcome(url: str) -> object:
    """Return the type of error, the status, or the text that a client gets who follows redirects."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return urlsplit(response.url).path, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    except http.client.IncompleteRead as error:
        return type(error)


def test_each_way_of_rest_to_fail_at_its_own_address_or_at_both(start: Start) -> None:
    exchange = start()
    path = "/api/v1/contract/detail"
    page = "<!DOCTYPE html><title>MEXC</title><p>Log in to go on.</p>\n"
    refusal = '{"success":false,"code":510,"message":"Requests are too frequent, please try again later!"}'
    failures = {
        "down": 503,
        "forbid": 403,
        "login": ("/login", page),
        "half": http.client.IncompleteRead,
        "html": (path, page),
        "error": (path, refusal),
    }
    assert tuple(failures) == REST_FAULTS
    good = outcome(exchange.rest + path)
    assert json.loads(good[1])["success"]  # type: ignore[index]
    for name, failure in failures.items():
        exchange.fault(f"api-{name}&count=1")
        assert [outcome(address + path) for address in (exchange.http, exchange.rest)] == [good, failure], name
        exchange.fault(f"rest-{name}&count=2")
        assert [outcome(address + path) for address in (exchange.http, exchange.rest)] == [failure, failure], name
        time.sleep(0.5)  # below the limit of requests
    assert exchange.get("/status")["struck"] == {
        f"{address}-{name}": count for name in REST_FAULTS for address, count in (("api", 1), ("rest", 2))
    }


# Misbehaviour of one channel


@pytest.fixture
def live(start: Start) -> tuple[Exchange, Client]:
    """An exchange and a client with all three subscriptions, which get pushes."""
    exchange = start("--rate", 500)
    client = exchange.connect()
    client.subscribe(compress=False)
    for channel in CHANNELS:
        client.next(f"push.{channel}")
    return exchange, client


def pushed(frames: list[Frame]) -> set[str]:
    return {frame["channel"].removeprefix("push.") for frame in frames if frame["channel"].startswith("push.")}


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_dies_until_it_is_subscribed_to_anew(live: Struck, channel: str) -> None:
    exchange, client = live
    exchange.fault(f"{channel.partition('.')[0]}-dies")
    client.until_pong()
    assert pushed(client.pushes(300)) == {*CHANNELS} - {channel}
    other = exchange.connect()
    other.subscribe(channel)
    other.next(f"push.{channel}")
    client.subscribe(channel, compress=False)
    client.next(f"rs.sub.{channel}")
    client.next(f"push.{channel}")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("refused", "Contract [BTC_USDT] not exists"),
        ("refused-object", {"code": 1001, "message": "Contract [BTC_USDT] not exists"}),
        ("ignored", None),
        ("mute", "success"),
    ],
)
def test_a_subscription_that_comes_to_nothing(start: Start, channel: str, fault: str, data: object) -> None:
    exchange = start("--rate", 500)
    client = exchange.connect()
    exchange.fault(f"{channel.partition('.')[0]}-{fault}&count=1")
    client.subscribe()
    frames = client.pushes(1)
    frames += client.until_pong() + client.pushes(300)
    assert pushed(frames) == {*CHANNELS} - {channel}
    client.subscribe(channel)
    assert client.next(f"rs.sub.{channel}")["data"] == "success"
    client.next(f"push.{channel}")

    exchange.fault(f"{channel.partition('.')[0]}-{fault}&count=1")
    again = exchange.connect()
    again.subscribe(channel)
    answers = [frame for frame in again.until_pong() if frame["channel"].startswith("rs.")]
    assert [(frame["channel"], frame["data"]) for frame in answers] == (
        [] if data is None else [(f"rs.sub.{channel}", data)]
    )
    exchange.fault("none")  # which lets a mute channel speak
    if fault == "mute":
        again.next(f"push.{channel}")


def test_a_deal_of_a_dead_channel_is_logged_as_one_that_nobody_got(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--rate", 100, "--log", log)
    client = exchange.connect()
    client.subscribe(compress=False)
    client.next("push.deal")
    exchange.fault("deal-dies")
    client.until_pong()
    client.pushes(20)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(entry["conn"] == 0 and '"push.deal"' in entry["frame"] for entry in entries)


# Frames that are not what they used to be


def test_books_can_stay_as_they_are(live: Struck) -> None:
    exchange, client = live
    exchange.fault("unchanged-books")
    client.until_pong()
    client.next("push.depth.full")
    books = [client.next("push.depth.full")["data"] for _ in range(5)]
    assert len({json.dumps([book["asks"], book["bids"]]) for book in books}) == 1
    assert len({book["version"] for book in books}) == 5
    exchange.fault("none")
    client.until_pong()
    healed = [client.next("push.depth.full")["data"] for _ in range(5)]
    assert len({json.dumps([book["asks"], book["bids"]]) for book in healed}) > 1


@pytest.mark.parametrize(
    ("fault", "as_sent"),
    [
        ("ts-seconds", lambda ts: int(ts) // 1000),
        ("ts-microseconds", lambda ts: int(ts) * 1000),
        ("ts-string", str),
        ("ts-missing", lambda _: None),
    ],
)
def test_oddities_of_ts(live: Struck, fault: str, as_sent: Callable[[int], object]) -> None:
    exchange, client = live
    exchange.fault(f"{fault}&count=50")
    frames = client.until(lambda frame: type(frame.get("ts")) is not int or not 10**12 < frame["ts"] < 10**13)
    tickers = [frame for frame in [frames[-1], *client.pushes(49)] if frame["channel"] == "push.ticker"]
    assert [frame.get("ts") for frame in tickers] == [as_sent(frame["data"]["timestamp"]) for frame in tickers]
    assert tickers
    assert client.pushes(1)[0]["ts"] > 10**12


def test_ids_can_be_numbers_and_numbers_strings(live: Struck) -> None:
    exchange, client = live
    exchange.fault("bare-ids")
    deal = client.until(lambda frame: frame["channel"] == "push.deal" and type(frame["data"]["i"]) is int)[-1]["data"]
    assert deal["cts"] == deal["t"]
    exchange.fault("none")
    exchange.fault("quoted-numbers")
    client.until(lambda frame: type(frame["ts"]) is str)
    deal = client.next("push.deal")["data"]
    assert {type(value) for value in deal.values()} == {str}
    assert len(deal) == 8
    (level, *_) = client.next("push.depth.full")["data"]["asks"]
    assert [type(value) for value in level] == [str] * 3
    ticker = client.next("push.ticker")["data"]
    assert {type(value) for name, value in ticker.items() if not name.startswith("riseFallRates")} == {str}


def test_frames_can_be_gzipped_and_are_logged_as_text(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exchange = start("--log", log, "--fault", "gzip")
    client = exchange.connect()
    client.subscribe("ticker")
    assert client.frame()["data"] == "success"
    opcode, data = client.ws.recv_data()
    assert opcode == websocket.ABNF.OPCODE_BINARY
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert gzip.decompress(data).decode() == entries[0]["frame"]


def test_gone_refuses_connections_and_comes_back(start: Start) -> None:
    exchange = start()
    client = exchange.connect()
    client.until_pong()
    exchange.fault("gone:0.5")
    assert client.end() == 1001
    with pytest.raises(ConnectionRefusedError):
        Client(exchange.url)
    with pytest.raises(urllib.error.URLError, match="refused"):
        exchange.deals()
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
        time.sleep(0.02)
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
