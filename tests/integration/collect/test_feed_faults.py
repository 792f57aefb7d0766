"""Whatever the exchange, the network or the clock does: never a crash, never a busy loop, and a line that says it."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from config import PROJECT
from local.market import frames
from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, eventually, open_stack

DATA = PROJECT / "tests/data"
REAL_FRAMES = (DATA / "mexc-frames.jsonl").read_bytes().splitlines()
MEMORY = 60 << 20  # bytes

Session = Callable[[ServerConnection], None]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A ClickHouse for all tests of this module."""
    with open_stack(tmp_path_factory.mktemp("served")) as stack:
        stack.clickhouse()
        yield stack


@pytest.fixture
def stack(served: Stack, tmp_path: Path) -> Iterator[Stack]:
    """Empty tables; what the test starts is ended with it."""
    served.setup("--reset", "--yes")
    served.env["JOURNAL_DIR"] = str(tmp_path / "journal")
    begin = len(served.processes)
    yield served
    for process in served.processes[begin:]:
        process.stop()
        assert "Traceback" not in process.output


@contextmanager
def exchange_of(session: Session, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Give the address of an exchange that has `session` with each connection."""

    def have_session(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            session(connection)

    with serve(have_session, "127.0.0.1", 0, ssl=tls, ping_interval=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'wss' if tls else 'ws'}://127.0.0.1:{server.socket.getsockname()[1]}/edge"
        finally:
            server.shutdown()
            thread.join()


def as_received(logged: str) -> str | bytes:
    """Return a frame of the exchange's log as a collector gets it: bytes where it is no UTF-8."""
    raw = logged.encode(errors="surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def expected(exchange: Exchange) -> list[tuple[str, str]]:
    """Return type and text of the rows that all frames sent so far should become."""
    came: set[object] = set()  # deals: one that comes again is dropped
    rows = []
    for logged in exchange.sent():
        for row in parse_frame(as_received(logged), "BTC_USDT", 0).rows:
            deal = (row.id, row.event_ms, row.m) if row.mt == "d" and row.id else None
            if deal not in came:
                rows.append((row.mt, row.m))
            if deal:
                came.add(deal)
    return rows


def stored(stack: Stack) -> list[tuple[str, str]]:
    return [(mt, m) for _, mt, m in stack.rows()]


def letters(stack: Stack, count: int) -> bool:
    """Return whether so many dead letters are stored."""
    found: int = stack.query("SELECT count() FROM mexc_data.btc WHERE mt = 'dl'")[0][0]
    return found == count


def memory(process: Process) -> int:
    """Return how many bytes of memory a process has in use."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


# Frames


def test_a_flood_is_stored_whole_and_in_order(stack: Stack) -> None:
    exchange = stack.exchange("--rate", 0, "--frames", 20_000)
    collector = stack.collector()
    stack.wait_for_rows(20_000)
    assert stored(stack) == expected(exchange)
    assert memory(collector) < MEMORY


def test_each_kind_of_garbage_is_a_dead_letter_and_the_connection_stays(stack: Stack) -> None:
    exchange = stack.exchange("--rate", 50)
    collector = stack.collector()
    collector.wait_for("Subscribed to: sub.deal")
    exchange.fault("garbage")
    exchange.fault("wrong-symbol")
    eventually(partial(letters, stack, 8), "eight dead letters")
    before = stack.count()
    stack.wait_for_rows(before + 50)
    dead = [m for mt, m in stored(stack) if mt == "dl"]
    unknown, bad_field, broken, nested, huge, binary, bad_utf8, wrong_symbol = dead
    assert unknown.startswith('{"channel":"push.mystery","data":"?"')
    assert '"p":"-"' in bad_field
    assert broken == '{"symbol":"BTC_USDT","data":{"lastPrice":84'
    assert nested == "[" * 500
    assert huge.startswith('{"channel":"push.mystery","data":"xxxx')
    assert len(huge) == 500
    assert binary == "\x1f\\x8b\x08\x00\\xff\\xfe"
    assert bad_utf8 == '{"symbol":"\\xff\\xfe"}'
    assert '"symbol":"ETH_USDT"' in wrong_symbol
    assert exchange.get("/status")["accepted"] == 1
    assert "Errors: 1" not in collector.output


def test_megabytes_in_a_frame_pass_through(stack: Stack) -> None:
    exchange = stack.exchange("--rate", 50)
    collector = stack.collector()
    collector.wait_for("Subscribed to: sub.deal")
    for number in range(1, 11):
        exchange.fault("huge")
        eventually(partial(letters, stack, number), "a dead letter")
    before = stack.count()
    stack.wait_for_rows(before + 50)
    assert exchange.get("/status")["accepted"] == 1
    assert memory(collector) < MEMORY


def damaged(chance: Random) -> bytes:
    """Return a real frame with something done to it."""
    frame = bytearray(chance.choice(REAL_FRAMES))
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(frame)), chance.randint(1, 30)
        change = chance.randrange(5)
        if change == 0:
            frame[at] = chance.randrange(256)
        elif change == 1:
            del frame[at : at + length]
        elif change == 2:
            frame[at:at] = frame[at : at + length]
        elif change == 3:
            frame[at : at + length] = chance.choice(
                [b"null", b"[" * 99, b"1E+999999999", b'"', b"{}", b"-0", b"\\ud800"]
            )
        else:
            frame[at:at] = chance.randbytes(length)
        frame = frame or bytearray(b"{")
    return bytes(frame).replace(b"\n", b" ") + b"."  # not blank


@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_damaged_frames_are_each_what_the_format_says(stack: Stack, tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    lines = [damaged(chance) if chance.random() < 0.9 else chance.choice(REAL_FRAMES) for _ in range(3000)]
    (tmp_path / "frames").write_bytes(b"\n".join(lines))
    exchange = stack.exchange("--replay", tmp_path / "frames")
    stack.collector(MAX_ERROR_COUNT=10_000)
    eventually(lambda: len(exchange.sent()) == len(lines), "all frames sent")
    assert len(expected(exchange)) > 2000
    stack.wait_for_rows(len(expected(exchange)))
    assert stored(stack) == expected(exchange)


def test_acknowledgements_that_come_twice_are_said_once(stack: Stack) -> None:
    _, push = next(frames("BTC_USDT", 0, 1_790_000_000_000))

    def session(connection: ServerConnection) -> None:
        for request in connection:
            for channel in ("ticker", "deal", "depth.full"):
                if f'"sub.{channel}"' in str(request):
                    connection.send([f'{{"channel":"rs.sub.{channel}","data":"success","ts":1790000000000}}'])
                    connection.send([f'{{"channel":"rs.sub.{channel}","data":"success","ts":1790000000000}}'])
                    connection.send(push)

    with exchange_of(session) as url:
        collector = stack.collector(MEXC_WS_URL=url)
        assert stack.wait_for_rows(3) == 3 * stack.rows()[:1]
        said = [line for line in collector.lines if line.startswith("Subscribed to")]
        assert said == [f"Subscribed to: sub.{channel} for BTC_USDT" for channel in ("ticker", "deal", "depth.full")]
        collector.stop()


def test_an_exchange_that_sends_nothing_but_garbage_is_given_up(stack: Stack) -> None:
    def session(connection: ServerConnection) -> None:
        while True:
            connection.send('{"channel":"push.mystery"}')
            threading.Event().wait(0.01)

    with exchange_of(session) as url:
        collector = stack.collector(MEXC_WS_URL=url, STALE_TIMEOUT=1)
        collector.wait_for(f"^Gave up {url}: no market data for . s; trying again in ")
        collector.stop()


# Connections


def delays(collector: Process) -> list[str]:
    return re.findall(r"; trying again (now|in \S+ s)$", collector.output, re.MULTILINE)


def assert_growing(said: list[str]) -> None:
    """Check that each wait is longer than the one before it could be: about 1, 2 and 4 s."""
    for number, delay in enumerate(said):
        assert delay != "now"
        assert 2**number / 2 <= float(delay.split()[1]) <= 2**number


@pytest.mark.parametrize("fault", ["refuse", "forbid", "hang-up"])
def test_an_exchange_that_wants_nobody_is_not_besieged(stack: Stack, fault: str) -> None:
    exchange = stack.exchange("--fault", fault)
    collector = stack.collector()
    eventually(lambda: len(delays(collector)) >= 3, "three tries")
    said = delays(collector)
    tried = exchange.get("/status")["struck"][fault]
    assert tried <= len(said) + 1, "a line for each try"
    assert_growing(said)
    exchange.fault("none")
    collector.wait_for("Subscribed to: sub.deal")


def test_an_exchange_that_closes_after_its_first_push_is_not_besieged(stack: Stack) -> None:
    _, push = next(frames("BTC_USDT", 0, 1_790_000_000_000))
    connections: list[ServerConnection] = []

    def session(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(push)
        connection.close()

    with exchange_of(session) as url:
        collector = stack.collector(MEXC_WS_URL=url)
        eventually(lambda: len(delays(collector)) >= 3, "three tries")
        said = delays(collector)
        assert len(connections) <= len(said) + 1
        assert_growing(said)
        collector.stop()


def test_a_certificate_that_nobody_vouches_for_is_named(stack: Stack) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "self-signed.pem")
    with exchange_of(lambda connection: None, tls=context) as url:
        collector = stack.collector(MEXC_WS_URL=url)
        eventually(lambda: len(delays(collector)) >= 2, "two tries")
        collector.wait_for(f"^Cannot connect to {url}: TLS: CERTIFICATE_VERIFY_FAILED; trying again in ")
        assert_growing(delays(collector))
        collector.stop()


def test_a_certificate_that_is_trusted_later_needs_no_new_start(stack: Stack, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.touch()
    certificate = DATA / "self-signed.pem"
    stack.exchange("--rate", 50, "--tls", certificate)
    collector = stack.collector(SSL_CERT_FILE=trusted)
    collector.wait_for(": TLS: CERTIFICATE_VERIFY_FAILED; trying again in ")
    trusted.write_bytes(certificate.read_bytes())
    stack.wait_for_rows(10)
    collector.stop()


# The clock

WITH_A_CLOCK = """
import pathlib, sys, time
clock, real = pathlib.Path(sys.argv[1]), time.time_ns
time.time_ns = lambda: real() + int(clock.read_text()) * 10**9
time.time = lambda: time.time_ns() / 1e9
from config import PROJECT, BTC_CONFIG
from pipeline.collect.collector import collect
sys.exit(collect(BTC_CONFIG))
"""


def test_jumps_of_the_clock_disturb_nothing(stack: Stack, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    exchange = stack.exchange("--rate", 50)
    collector = stack.start("-c", WITH_A_CLOCK, clock)
    stack.wait_for_rows(50)
    for number, years in enumerate((30, -20, 0), 1):
        (tmp_path / "next").write_text(str(years * 365 * 24 * 3600))
        (tmp_path / "next").replace(clock)
        exchange.fault("broken-json")  # it has no time of its own, so that the clock's is stored
        eventually(partial(letters, stack, number), "a dead letter")
        before = stack.count()
        stack.wait_for_rows(before + 50)
    assert exchange.get("/status")["accepted"] == 1
    assert "no market data" not in collector.output
    assert "trying again" not in collector.output
    rows = stack.rows()
    sent = expected(exchange)
    good = [(mt, m) for _, mt, m in rows if mt != "dl"]
    assert good == sent[: len(good)]
    this_year = datetime.now(UTC).year
    dead = [datetime.fromtimestamp(ts / 1000, UTC).year for ts, mt, _ in rows if mt == "dl"]
    assert [round((year - this_year) / 10) for year in dead] == [3, -2, 0]
