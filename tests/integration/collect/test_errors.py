"""What a collector does, and says, when ClickHouse, MEXC or its user lets it down."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from config import PROJECT
from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, StoredRow, eventually, free_port, open_stack

# btcdat.py with other times than its own, which are too long to wait for in a test.
WITH_TIMES = """
import sys
from config import BTC_CONFIG
from pipeline.collect import collector
for given in sys.argv[1:]:
    name, _, seconds = given.partition("=")
    assert hasattr(collector, name)
    setattr(collector, name, float(seconds))
sys.exit(collector.collect(BTC_CONFIG))
"""

Collect = Callable[..., Process]


@pytest.fixture(scope="module")
def stack(served: Stack) -> Stack:
    """ClickHouse with its tables, for all tests of this module."""
    return served


@pytest.fixture(scope="module")
def exchange(stack: Stack) -> Exchange:
    """An exchange for all tests of this module; see `collect`."""
    return stack.exchange("--rate", 50)


@pytest.fixture
def collect(stack: Stack, exchange: Exchange, tmp_path: Path) -> Iterator[Collect]:
    """Start collectors of BTC, with a journal of the test's own and perhaps with other times; end what is left."""
    started: list[Process] = []

    def start(*times: str, **env: object) -> Process:
        command = ["-c", WITH_TIMES, *times] if times else ["btcdat.py"]
        given: dict[str, Any] = {"MEXC_WS_URL": exchange.url, "JOURNAL_DIR": tmp_path / "journal"} | env
        started.append(stack.start(*command, **given))
        return started[-1]

    yield start
    for process in started:
        process.stop(signal.SIGKILL)
    exchange.fault("none")


def explained(collector: Process, pattern: str) -> list[str]:
    """Return the lines in which `pattern` is found, of which there is one at least."""
    lines = [line for line in collector.lines if re.search(pattern, line)]
    assert lines, collector.output
    assert "Traceback" not in collector.output
    return lines


def grows(stack: Stack) -> None:
    """Wait until another row is stored."""
    before = stack.count()
    eventually(lambda: stack.count() > before, "another row")


def expected_rows(exchange: Exchange) -> list[StoredRow]:
    rows = [row for raw in exchange.sent("BTC_USDT") for row in parse_frame(raw, "BTC_USDT", 0).rows]
    return [(row.ts_ms, row.mt, row.m) for row in rows]


# ClickHouse


def test_rows_wait_while_clickhouse_is_down_and_all_are_stored_once_it_is_up(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        exchange = stack.exchange("--rate", 100, "--frames", 100)
        collector = stack.collector()
        down = f"ClickHouse at 127.0.0.1:{stack.port} cannot be reached: connection refused; [0-9,]+ rows? waits?"
        collector.wait_for(f"^{down}$")
        eventually(lambda: len(exchange.sent()) == 100, "all frames sent")
        collector.wait_for("^Waiting in journal: [1-9][0-9]+$")
        stack.clickhouse()
        stack.setup()
        collector.wait_for("^ClickHouse takes rows again; ")
        rows = stack.wait_for_rows(len(expected_rows(exchange)))
        assert rows == expected_rows(exchange)
        assert collector.stop() == 0
        assert "the next start sends" not in collector.output


def test_a_wrong_password_is_one_line_and_exit_code_2(collect: Collect, stack: Stack) -> None:
    collector = collect(CLICKHOUSE_PASSWORD="wrong")
    assert collector.wait() == 2
    line = (
        f"ClickHouse at 127.0.0.1:{stack.port} refuses user default: check CLICKHOUSE_USER (from the environment) and"
        " CLICKHOUSE_PASSWORD (from the environment)"
    )
    assert explained(collector, "ClickHouse") == [line]


def test_a_password_that_is_changed_later_makes_it_unhealthy_at_once(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.exchange("--rate", 50)
        server = stack.clickhouse()
        stack.setup()
        collector = stack.collector()
        stack.wait_for_rows(10)
        server.stop()
        stack.env["CLICKHOUSE_PASSWORD"] = "another"
        stack.clickhouse()
        collector.wait_for("refuses user default: check CLICKHOUSE_USER")

        def is_said() -> bool:
            health = stack.run("-m", "pipeline.collect.health", "btc")
            return health.wait() == 1 and " refuses user default: check CLICKHOUSE_USER (from" in health.output

        eventually(is_said, "health that says so")  # not only after a minute without rows taken
        assert collector.running


def test_a_port_of_something_else_is_one_line_and_exit_code_2(collect: Collect) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector = collect(CLICKHOUSE_PORT=server.server_port)
        assert collector.wait() == 2
        server.shutdown()
    assert explained(collector, "ClickHouse") == [
        f"ClickHouse at 127.0.0.1:{server.server_port} does not speak the native protocol:"
        " check CLICKHOUSE_PORT (9000, unless it was changed);"
        " where it is within TLS, as on port 9440, CLICKHOUSE_SECURE=1"
    ]


def test_a_table_that_is_set_up_late_is_waited_for(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        exchange = stack.exchange("--rate", 50, "--frames", 50)
        stack.clickhouse()
        collector = stack.collector()
        collector.wait_for("^Table mexc_data.btc does not exist: run ch_setup.py; [0-9,]+ rows? waits?$")
        stack.setup()
        eventually(lambda: len(exchange.sent()) == 50, "all frames sent")
        assert stack.wait_for_rows(len(expected_rows(exchange))) == expected_rows(exchange)
        assert collector.stop() == 0


def test_a_table_that_is_never_set_up_is_exit_code_2(collect: Collect) -> None:
    collector = collect("_SETUP_TIMEOUT=1.5", CLICKHOUSE_DATABASE="nowhere")
    assert collector.wait() == 2
    said = explained(collector, "Table")
    assert said[-1] == "Table nowhere.btc does not exist: run ch_setup.py"
    assert said[0].startswith(f"{said[-1]}; ")  # it did wait


def test_a_table_that_is_dropped_later_is_an_outage(collect: Collect, stack: Stack) -> None:
    collector = collect("_SETUP_TIMEOUT=0.1")
    grows(stack)
    stack.query("DROP TABLE mexc_data.btc SYNC")
    missing = r"Table mexc_data.btc does not exist: run ch_setup.py; [0-9,]+ rows? waits?"
    eventually(lambda: len(re.findall(missing, collector.output)) >= 2, "two complaints")
    stack.setup()
    collector.wait_for("^ClickHouse takes rows again; ")
    grows(stack)
    assert collector.stop() == 0


def test_a_second_collector_of_a_table_is_one_line_and_the_first_goes_on(collect: Collect, stack: Stack) -> None:
    first = collect()
    first.wait_for("Subscribed to: sub.deal")
    second = collect()
    assert second.wait() == 2
    assert len(second.lines) == 1
    assert second.lines[0].endswith("/btc.db is in use: a collector for this table is already running")
    grows(stack)
    assert first.stop() == 0


def test_the_absence_of_clickhouse_ends_nothing(collect: Collect, stack: Stack) -> None:
    port = free_port()
    collector = collect("_RETRY=0.01", CLICKHOUSE_PORT=port, MAX_ERROR_COUNT=2)
    eventually(lambda: len(re.findall("cannot be reached", collector.output)) >= 4, "twice as many failures as allowed")
    assert collector.stop() == 0
    (line,) = explained(collector, "rows? stays? in the journal; the next start sends (them|it)$")
    waiting = int(line.split()[0].replace(",", ""))
    before = stack.count()
    collect(MEXC_WS_URL=f"ws://127.0.0.1:{free_port()}/edge")
    eventually(lambda: stack.count() >= before + waiting, "what had waited")
    assert stack.count() == before + waiting


# MEXC


def test_an_exchange_that_cannot_be_reached_is_one_line_per_try(collect: Collect) -> None:
    url = f"ws://127.0.0.1:{free_port()}/edge"
    collector = collect(MEXC_WS_URL=url)
    line = rf"^Cannot connect to {url}: Connection refused; trying again in \d+\.\d s$"
    eventually(lambda: sum(bool(re.match(line, said)) for said in collector.lines) >= 3, "three tries")
    assert collector.stop() == 0
    assert len(explained(collector, url)) == sum(int(count) for count in re.findall(r"Errors: (\d+)", collector.output))


def test_too_many_tries_to_reach_the_exchange_end_it(collect: Collect) -> None:
    collector = collect(MEXC_WS_URL=f"ws://127.0.0.1:{free_port()}/edge", MAX_ERROR_COUNT=3)
    assert collector.wait() == 1
    assert len(explained(collector, "^Cannot connect to ")) == 3
    explained(collector, r"^Giving up after 3 consecutive errors \(failed connect\)$")


def test_errors_that_mexc_reports_are_said_and_counted(collect: Collect, exchange: Exchange) -> None:
    collector = collect()
    collector.wait_for("Subscribed to: sub.deal")
    exchange.fault("error")
    collector.wait_for("^MEXC reports: System busy$")
    collector.wait_for("^Errors: 1$")
    assert collector.stop() == 0


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["drop"], "Lost {url}: Connection reset by peer"),
        (["close"], "Lost {url}: closed by the exchange, code 1005"),
        (["stall"], "Lost {url}: nothing came for . s, not even a pong"),
        (["half-open"], "Lost {url}: nothing came for . s, not even a pong"),
        (["hang-up&count=1", "drop"], "Lost {url}: (Connection reset by peer|Broken pipe|the connection was closed)"),
        (["refuse&count=1", "drop"], "Cannot connect to {url}: (Connection reset by peer|the connection was closed)"),
        (["forbid&count=1", "drop"], "Cannot connect to {url}: the exchange answered HTTP 403"),
        (["gone:2"], "Cannot connect to {url}: Connection refused"),
    ],
)
def test_a_lost_connection_is_replaced(
    faults: list[str], said: str, collect: Collect, exchange: Exchange, stack: Stack
) -> None:
    collector = collect(PING_INTERVAL=0.5, STALE_TIMEOUT=20)
    grows(stack)
    for fault in faults:
        exchange.fault(fault)
    collector.wait_for(f"^{said.format(url=exchange.url)}; trying again (now|in .* s)$")
    eventually(lambda: collector.output.count("Subscribed to: sub.deal for BTC_USDT") >= 2, "another subscription")
    grows(stack)
    assert "Traceback" not in collector.output


def test_a_subscription_that_dies_is_replaced(collect: Collect, stack: Stack) -> None:
    quiet = stack.exchange("--rate", 100, "--frames", 10)  # then only pongs
    collector = collect(MEXC_WS_URL=quiet.url, PING_INTERVAL=0.5, STALE_TIMEOUT=1)
    collector.wait_for(f"^Gave up {quiet.url}: no market data for . s; trying again ")
    eventually(lambda: len(quiet.sent()) >= 20, "frames to another connection")


def test_pings_keep_a_connection_at_an_exchange_that_wants_them(collect: Collect, stack: Stack) -> None:
    strict = stack.exchange("--rate", 20, "--ping-limit", 1)
    collect(MEXC_WS_URL=strict.url, PING_INTERVAL=0.2)
    eventually(lambda: len(strict.sent()) >= 50, "frames for more than two seconds")
    assert strict.get("/status")["accepted"] == 1


# The user


def test_an_unusable_setting_is_one_line_and_exit_code_2(collect: Collect) -> None:
    collector = collect(PING_INTERVAL="often")
    assert collector.wait() == 2
    assert collector.lines == ["PING_INTERVAL=often is not a number"]


def test_a_journal_that_cannot_be_opened_is_one_line_and_exit_code_2(collect: Collect, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    collector = collect(JOURNAL_DIR=tmp_path / "file")
    assert collector.wait() == 2
    assert len(collector.lines) == 1
    assert collector.lines[0].endswith("; see JOURNAL_DIR")


def test_sigterm_while_clickhouse_is_down_keeps_the_rows_for_the_next_start(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        exchange = stack.exchange("--rate", 100, "--frames", 40)
        collector = stack.start("-c", WITH_TIMES, "_DRAIN_TIMEOUT=0.5")
        eventually(lambda: len(exchange.sent()) == 40, "all frames sent")
        collector.wait_for("^Waiting in journal: [1-9]")
        assert collector.stop(signal.SIGTERM) == 0
        expected = expected_rows(exchange)
        explained(collector, f"^{len(expected):,} rows stay in the journal; the next start sends them$")
        stack.clickhouse()
        stack.setup()
        stack.env["MEXC_WS_URL"] = f"ws://127.0.0.1:{free_port()}/edge"
        for _ in range(2):  # and the one after it sends nothing
            again = stack.collector()
            assert stack.wait_for_rows(len(expected)) == expected
            again.wait_for("Cannot connect to")
            assert again.stop() == 0
        assert stack.rows() == expected


def test_a_second_signal_ends_it_at_once_even_while_clickhouse_is_down(collect: Collect) -> None:
    collector = collect("_DRAIN_TIMEOUT=3600", CLICKHOUSE_PORT=free_port())
    collector.wait_for("^Waiting in journal: [1-9]")
    collector.send(signal.SIGINT)
    collector.send(signal.SIGTERM)  # another SIGINT could become one with the first on its way
    assert collector.wait() == 0
    explained(collector, "rows? stays? in the journal")


def test_a_later_second_ctrl_c_ends_it_too(collect: Collect) -> None:
    collector = collect("_DRAIN_TIMEOUT=3600", CLICKHOUSE_PORT=free_port())
    collector.wait_for("^Waiting in journal: [1-9]")
    collector.send(signal.SIGINT)
    # ClickHouse is tried, and its failures said, while it drains.
    before = len(collector.lines)
    eventually(lambda: len(collector.lines) > before, "another try")
    collector.send(signal.SIGINT)
    assert collector.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_is_no_traceback(
    stack: Stack, exchange: Exchange, tmp_path: Path, number: int
) -> None:
    env = stack.env | {"MEXC_WS_URL": exchange.url, "JOURNAL_DIR": str(tmp_path / "journal")}
    ends = set()
    for tenths in range(2, 14):
        with subprocess.Popen(
            [sys.executable, "btcdat.py"], cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as collector:
            time.sleep(tenths / 20)
            collector.send_signal(number)
            _, complaint = collector.communicate(timeout=30)
        # Python itself, before it has run the first line of the script, has words of its own.
        assert b"btcdat.py" not in complaint or b"from pipeline import interrupts" in complaint, complaint
        ends.add(collector.returncode)
    assert ends <= {0, -number, 1 if number == signal.SIGINT else 0}


# Nobody takes its lines


_FEW_LINES = """
import sys
from config import BTC_CONFIG
from pipeline.collect import lines
lines._LIMIT = 5
from pipeline.collect.collector import collect
sys.exit(collect(BTC_CONFIG))
"""


def written(journal: Path) -> float:
    """Return when the collector has last said how it is."""
    moment: float = json.loads((journal / "btc.status.json").read_text())["written"]
    return moment


@contextmanager
def unread(stack: Stack, exchange: Exchange, journal: Path, stdout: Any, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A collector whose lines go to `stdout`, stored rows of it, and no complaint on its stderr; it may go on."""
    environ = stack.env | {"MEXC_WS_URL": exchange.url, "JOURNAL_DIR": str(journal), **env}
    before = stack.count()
    with subprocess.Popen(
        [sys.executable, "-c", _FEW_LINES], cwd=PROJECT, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True
    ) as collector:
        try:
            eventually(lambda: stack.count() > before, "rows")
            yield collector
            assert collector.poll() is None, "it goes on"
            stored = stack.count()
            eventually(lambda: stack.count() > stored + 20, "more rows")
            asked = time.time()
            eventually(lambda: (journal / "btc.status.json").exists() and written(journal) > asked, "a heartbeat")
            collector.terminate()
            assert collector.wait(30) == 0
            assert collector.stderr is not None
            assert collector.stderr.read() == ""
        finally:
            collector.kill()


def test_a_reader_that_is_gone_does_not_end_it(stack: Stack, exchange: Exchange, tmp_path: Path) -> None:
    with unread(stack, exchange, tmp_path / "journal", subprocess.PIPE, STATS_INTERVAL="0.1") as collector:
        assert collector.stdout is not None
        assert collector.stdout.readline().startswith("Subscribed to: ")
        collector.stdout.close()


def test_a_full_disk_under_its_log_does_not_end_it(stack: Stack, exchange: Exchange, tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        unread(stack, exchange, tmp_path / "journal", full, STATS_INTERVAL="0.1"),
    ):
        pass


def test_a_reader_that_does_not_read_holds_up_nothing(stack: Stack, exchange: Exchange, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    lines: list[str] = []
    with os.fdopen(reading) as reader:
        late_reader = threading.Thread(target=lambda: lines.extend(reader))
        with unread(stack, exchange, tmp_path / "journal", writing, STATS_INTERVAL="0.01", PING_INTERVAL="1"):
            os.close(writing)
            stuck = stack.count()
            eventually(lambda: stack.count() > stuck + 400, "rows, while nobody reads")
            late_reader.start()
        late_reader.join()
    assert any(re.fullmatch(r"\(\d+ lines were dropped here: nobody took them\)\n", line) for line in lines)
