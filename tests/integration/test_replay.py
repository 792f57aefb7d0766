"""replay.py as a process, with real clients: what they get is what is stored, and nothing of it is lost."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import websocket
from clickhouse_driver import Client

from config import ALL_CONFIGS, PROJECT
from local.market import frames
from pipeline.messages import parse_frame
from pipeline.times import iso
from tests.stack import PATIENCE, Process, Stack, StoredRow, open_stack

BEGIN_MS = 1_790_000_000_000
MANY = 50_000  # books, of 1 KB
METHODS = ("sub.ticker", "sub.deal", "sub.depth.full")
Frame = dict[str, Any]
SYMBOLS = {config["table_name"]: config["symbol"] for config in ALL_CONFIGS}

ODD = [
    (0, "d", "2384.60|25329.000000000000000000000000000000|1"),
    (0, "d", "2384.60|25329.000000000000000000000000000000|1"),  # another deal, as far as anybody knows
    (-3, "d", "75480|0.50|2"),  # a frame that came late
    (0, "t", "84055||84063.80||-0.00004500"),
    (1, "t", "84055|84055.0|84063.80|546882118|0.00007200"),
    (1, "t", "84055|84055.0|84063.80|546882118|0.00007200"),
    (2, "dp", "[84055.10,3],[84055,0]|"),
    (2, "dp", "|[84055.10,3]"),
    (2, "dp", "|"),
]
LEFT_OUT = [(1, "dl", '{"channel":"push.mystery"}'), (1, "d", "none of|MEXC's|1"), (2, "dp", "[1]|")]


def fill(stack: Stack, name: str, rows: list[StoredRow]) -> None:
    with Client("127.0.0.1", stack.port, password=stack.env["CLICKHOUSE_PASSWORD"]) as client:
        client.execute(f"INSERT INTO mexc_data.{name} (ts, mt, m) VALUES", rows)


def market(name: str, count: int) -> list[StoredRow]:
    """Return the rows of a simulated market, with odd ones amid."""
    made: list[StoredRow] = []
    for _, frame in islice(frames(SYMBOLS[name], 7, BEGIN_MS), count):
        made += [row[:3] for row in parse_frame(frame, SYMBOLS[name], 0).rows]
    middle = made[count // 2][0]
    made[count // 2 : count // 2] = [(middle + offset, mt, m) for offset, mt, m in (*ODD, *LEFT_OUT)]
    return made


def pushable(rows: list[StoredRow]) -> list[StoredRow]:
    return [row for row in rows if row[1:] not in [odd[1:] for odd in LEFT_OUT]]


class Replay:
    def __init__(self, stack: Stack, *options: object) -> None:
        self.process = stack.start("replay.py", *options, "--port", 0)
        self.url = self.process.wait_for(r"listening on (ws://\S+)")[1]

    def subscribed(self, *names: str, methods: tuple[str, ...] = METHODS, **param: Any) -> websocket.WebSocket:
        """Return a connection with subscriptions that are confirmed."""
        ws = websocket.create_connection(self.url, timeout=PATIENCE, skip_utf8_validation=True)
        for name in names:
            for method in methods:
                ws.send(json.dumps({"method": method, "param": {"symbol": SYMBOLS[name], "compress": False, **param}}))
        for _ in range(len(names) * len(methods)):
            assert json.loads(ws.recv())["data"] == "success"
        return ws


def pushes(ws: websocket.WebSocket) -> list[str]:
    """Return what comes until the end."""
    came: list[str] = []
    while True:
        opcode, data = ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return came
        came.append(data.decode())


def rows_of(pushed: list[str], name: str) -> list[StoredRow]:
    """Return what a collector of a symbol would store of these frames."""
    return [
        row[:3] for text in pushed if SYMBOLS[name] in text[:40] for row in parse_frame(text, SYMBOLS[name], 0).rows
    ]


@pytest.fixture(scope="module")
def archive(served: Stack) -> dict[str, list[StoredRow]]:
    """The rows of three symbols, as they are stored."""
    rows = {name: market(name, 3_000) for name in SYMBOLS}
    for name, each in rows.items():
        fill(served, name, each)
    return rows


def test_collectors_store_what_is_in_the_archive(
    served: Stack, archive: dict[str, list[StoredRow]], tmp_path: Path
) -> None:
    replay = Replay(served, "all", "--speed", "max")
    with open_stack(tmp_path) as other:
        other.clickhouse()
        other.setup()
        http = replay.url.replace("ws://", "http://").removesuffix("/edge")
        collectors = [other.collector(name, MEXC_WS_URL=replay.url, MEXC_REST_URL=http) for name in SYMBOLS]
        assert replay.process.wait() == 0, replay.process.output
        for collector in collectors:
            assert collector.stop() == 0, collector.output
        for name, rows in archive.items():
            assert other.rows(name) == pushable(rows)
    pushed = sum(len(pushable(rows)) for rows in archive.values())
    replay.process.wait_for(rf"All pushed up to .*Z: {pushed:,} rows; 6 rows left out, not decodable")


def test_symbols_come_in_the_order_of_time(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    replay = Replay(served, "btc", "eth", "--speed", "max")
    pushed = pushes(replay.subscribed("btc", "eth"))
    for name in ("btc", "eth"):
        assert rows_of(pushed, name) == pushable(archive[name])
    turn: Frame = {"BTC_USDT": 0, "ETH_USDT": 0}
    for frame in map(json.loads, pushed):
        turn[frame["symbol"]] = max(turn[frame["symbol"]], frame["ts"])
        assert turn[frame["symbol"]] == max(turn.values())
    assert replay.process.wait() == 0


def test_a_range(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    rows = pushable(archive["sol"])
    start, end = (rows[len(rows) * part // 4][0] for part in (1, 2))
    assert start < end
    replay = Replay(served, "sol", "--from", iso(start), "--to", iso(end), "--speed", "max")
    pushed = pushes(replay.subscribed("sol"))
    assert rows_of(pushed, "sol") == [row for row in rows if start <= row[0] < end]


def test_what_is_subscribed_to_is_what_comes(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    replay = Replay(served, "btc", "--speed", "max")
    deals = replay.subscribed("btc", methods=("sub.deal",), compress=True)
    books = replay.subscribed("btc", methods=("sub.depth.full",), limit=5)
    merged = [json.loads(text) for text in pushes(deals)]
    assert {frame["channel"] for frame in merged} == {"push.deal"}
    assert [len(frame["data"]) for frame in merged] == [1] * len([r for r in pushable(archive["btc"]) if r[1] == "d"])
    came = [json.loads(text)["data"] for text in pushes(books)]
    for book, (_, _, m) in zip(came, (r for r in pushable(archive["btc"]) if r[1] == "dp"), strict=True):
        for side, text in zip(("bids", "asks"), m.split("|"), strict=True):
            assert book[side] == json.loads(f"[{text}]")[:5]


def test_the_clock_is_that_of_the_archive(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    replay = Replay(served, "btc", "--speed", "0.001")
    ws = websocket.create_connection(replay.url, timeout=PATIENCE)
    ws.send('{"method":"ping"}')
    first = archive["btc"][0][0]
    assert json.loads(ws.recv()) == {"channel": "pong", "data": first, "ts": first}
    ws.send('{"method":"sub.deal","param":{"symbol":"ETH_USDT"}}')
    assert json.loads(ws.recv()) == {
        "channel": "rs.error",
        "data": "Contract [ETH_USDT] not exists",
        "ts": first,
    }
    ws.send('{"method":"sub.deal","param":{"symbol":"BTC_USDT"}}')
    assert json.loads(ws.recv()) == {"channel": "rs.sub.deal", "data": "success", "ts": first}
    replay.process.wait_for("Begins at")
    replay.process.send(signal.SIGINT)
    assert replay.process.wait() == 130
    assert re.fullmatch(r"Stopped: pushed up to \S+Z: \d+ rows?", replay.process.lines[-1]), replay.process.output


def test_it_waits_while_nobody_is_subscribed(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    replay = Replay(served, "btc", "--speed", "10")
    first = replay.subscribed("btc")
    came = [json.loads(first.recv()) for _ in range(50)]
    first.close()
    replay.process.wait_for("Nobody is subscribed: waiting at")
    second = replay.subscribed("btc")
    assert json.loads(second.recv())["ts"] >= came[-1]["ts"] - 3
    assert replay.process.stop(signal.SIGTERM) == 130


def test_more_signals_while_it_ends_change_nothing(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    replay = Replay(served, "btc", "--speed", "0.001")
    replay.subscribed("btc")
    replay.process.wait_for("Begins at")
    numbers = cycle([signal.SIGTERM, signal.SIGINT])
    while replay.process.running:
        replay.process.send(next(numbers))
        time.sleep(0.001)
    assert replay.process.wait() == 130
    assert len(replay.process.lines) == 3, replay.process.output
    assert last(replay).startswith("Stopped: pushed up to ")


@pytest.fixture(scope="module")
def long(served: Stack, archive: dict[str, list[StoredRow]]) -> str:
    """The beginning of many books, as `--from` takes it."""
    later = BEGIN_MS + 10**9
    insert_books(served, later)
    return iso(later)


def insert_books(stack: Stack, begin_ms: int) -> None:
    """Store many books, a millisecond apart, in blocks that take little memory."""
    book = ",".join(f"[{84055 + n}.10,{n}]" for n in range(20))
    stack.query(
        "INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli(toInt64("
        f"{begin_ms} + number)) AS ts, 'dp' AS mt, '{book}|{book}' AS m FROM numbers({MANY})"
        " SETTINGS max_block_size = 8192, min_insert_block_size_rows = 1, min_insert_block_size_bytes = 1"
    )


def memory(process: Process) -> int:
    """Return the most memory that a process has had, in bytes."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[0])


def test_a_slow_reader_slows_it_down_costs_no_memory_and_loses_nothing(served: Stack, long: str) -> None:
    replay = Replay(served, "btc", "--from", long, "--speed", "max")
    slow, fast = replay.subscribed("btc"), replay.subscribed("btc")
    replay.process.wait_for("Begins at")
    before = memory(replay.process)
    fast.settimeout(2)
    came = 0
    with suppress(websocket.WebSocketTimeoutException):
        while came < MANY:
            fast.recv()
            came += 1
    assert 0 < came < MANY
    assert memory(replay.process) - before < 25 << 20
    fast.settimeout(PATIENCE)
    with ThreadPoolExecutor() as pool:
        rest = pool.submit(count, fast)
        assert count(slow) == MANY
        assert came + rest.result() == MANY
    assert replay.process.wait() == 0


def count(ws: websocket.WebSocket) -> int:
    """Return how many books come until the end; pings now and then."""
    came, pinged = 0, 0.0
    while True:
        opcode, data = ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return came
        came += b"push.depth.full" in data
        if time.monotonic() - pinged > 10:
            ws.send('{"method":"ping"}')
            pinged = time.monotonic()


def test_who_leaves_is_not_waited_for(served: Stack, long: str) -> None:
    replay = Replay(served, "btc", "--from", long, "--speed", "max")
    leaving, staying = replay.subscribed("btc"), replay.subscribed("btc")
    replay.process.wait_for("Begins at")
    leaving.sock.close()
    assert count(staying) == MANY
    assert replay.process.wait() == 0


# Errors: one line each


def test_clickhouse_goes_away_amid_it(stack: Stack) -> None:
    server = stack.clickhouse()
    stack.setup()
    insert_books(stack, BEGIN_MS)
    replay = Replay(stack, "btc", "--speed", "max")
    client = replay.subscribed("btc")
    replay.process.wait_for("Begins at")
    server.stop(signal.SIGKILL)
    came = count(client)
    assert 0 < came < MANY
    assert replay.process.wait() == 1
    assert re.fullmatch(r"ClickHouse at 127.0.0.1:\d+ (broke off the connection|cannot be reached: .*)", last(replay))


def last(replay: Replay) -> str:
    return replay.process.lines[-1]


def test_clickhouse_is_not_there(stack: Stack) -> None:
    assert fails(stack, "btc") == (1, f"ClickHouse at 127.0.0.1:{stack.port} cannot be reached: connection refused")


def test_a_table_that_is_missing(stack: Stack) -> None:
    stack.clickhouse()
    assert fails(stack, "eth") == (1, "Table mexc_data.eth does not exist: run ch_setup.py")


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (("--from", "2001-01-01", "--to", "2001-01-02"), 1, "There are no rows in this range: verif.py --quality .*"),
        (("--from", "2031-01-01"), 1, "There are no rows in this range: verif.py --quality .*"),
        (("--from", "2026-10-02", "--to", "2026-10-01"), 2, ".*--from 2026-10-02T00:00:00 is not before --to .*"),
        (("--from", "now"), 2, ".*now is no time.*"),
        (("--speed", "fast"), 2, ".*fast is no speed: give such as 1, 10, 0.5, or max"),
        (("--speed", "0"), 2, ".*0 is no speed: give such as .*"),
        (("--speed", "nan"), 2, ".*nan is no speed: give such as .*"),
        (("--port", "65536"), 2, ".*65536 is no port: give a number from 0 to 65535"),
        (("dash",), 2, "There is no symbol dash in config.py or SYMBOLS: give some of .*"),
    ],
)
def test_what_cannot_be_replayed(
    served: Stack, archive: dict[str, list[StoredRow]], options: tuple[str, ...], code: int, line: str
) -> None:
    found, said = fails(served, "btc", *options)
    assert found == code
    assert re.fullmatch(line, said)


def test_a_port_that_is_taken(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fails(served, "btc", "--port", port) == (
            1,
            f"Cannot listen on 127.0.0.1:{port}: address already in use",
        )


def test_nobody_reads_what_it_says(served: Stack, archive: dict[str, list[StoredRow]]) -> None:
    command = [sys.executable, "replay.py", "btc", "--port", "0"]
    env = served.env | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (1, b"Standard output cannot be written: broken pipe\n")


def fails(stack: Stack, *arguments: object) -> tuple[int, str]:
    process = stack.run("replay.py", *arguments)
    return process.wait(), process.lines[-1]
