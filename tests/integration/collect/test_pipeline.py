"""Simulated exchange -> collector -> ClickHouse, as real processes; what is stored is compared row by row."""

import base64
import json
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from config import PROJECT
from pipeline.messages import parse_frame
from tests.stack import Exchange, Stack, StoredRow, eventually, open_stack

REAL_FRAMES = PROJECT / "tests/data" / "mexc-frames.jsonl"
FAILED = PROJECT / "tests/data" / "frames.jsonl"


def expected_rows(frames: list[str], symbol: str) -> list[StoredRow]:
    """Return the rows that the collector of `symbol` should make of `frames`; all of them must have a ts."""
    return [(row.ts_ms, row.mt, row.m) for raw in frames for row in parse_frame(raw, symbol, 0).rows]


def assert_stored(stack: Stack, exchange: Exchange, symbol: str, table: str, at_least: int) -> None:
    """Wait until all that was sent is stored, and compare."""
    eventually(lambda: len(exchange.sent(symbol)) >= at_least, f"{at_least} frames sent")
    frames = exchange.sent(symbol)
    expected = expected_rows(frames, symbol)
    assert stack.wait_for_rows(len(expected), table)[: len(expected)] == expected


def test_every_real_frame_is_stored_as_designed(running: Stack) -> None:
    running.exchange("--replay", REAL_FRAMES)
    collector = running.collector()
    rows = running.wait_for_rows(15)
    assert rows == expected_rows(REAL_FRAMES.read_text().splitlines(), "BTC_USDT")
    assert (1788335242156, "d", "77525.9|3|2") in rows
    assert (1790870038460, "dp", "[84062.5,34991],[84062.4,61]|[84062.6,60366]") in rows
    assert (1790870036854, "t", "84055|84063.8|84104|546882118|0.00007200") in rows
    assert [mt for _, mt, _ in rows].count("dl") == 10
    assert collector.stop() == 0


def test_with_log_time_each_line_begins_with_its_time(running: Stack) -> None:
    running.exchange("--rate", 50, "--frames", 5)
    collector = running.collector(LOG_TIME=1)
    collector.wait_for("Total Records Appended: ")
    assert collector.stop() == 0
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z ", line) for line in collector.lines), collector.output


def test_each_frame_that_once_failed_gives_its_rows(running: Stack) -> None:
    """Frames of FAILED, binary ones among them, through a running collector."""
    cases = [json.loads(line) for line in FAILED.read_text().splitlines()]
    frames = [case["frame"] if "frame" in case else base64.b64decode(case["binary_base64"]) for case in cases]
    done = threading.Event()

    def push(connection: ServerConnection) -> None:
        for frame in frames:
            connection.send(frame)
        done.wait(60)

    with serve(push, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        collector = running.collector(MEXC_WS_URL=f"ws://127.0.0.1:{port}/edge", MEXC_REST_URL="http://127.0.0.1:9")
        expected = [tuple(row) for case in cases for row in case["rows"]]
        assert running.wait_for_rows(len(expected)) == expected
        collector.wait_for("^BTC_USDT: sub.deal is refused: Contract")
        collector.wait_for("^BTC_USDT: push.ticker comes without indexPrice; it is stored as empty$")
        collector.wait_for("^BTC_USDT: push.depth.full comes without bids; it is stored as empty$")
        assert collector.stop() == 0
        done.set()
        server.shutdown()
        thread.join()


def test_all_three_collectors_at_once(running: Stack) -> None:
    exchange = running.exchange("--rate", 100, "--frames", 300)
    collectors = [running.collector(name) for name in ("btc", "eth", "sol")]
    for name in ("btc", "eth", "sol"):
        assert_stored(running, exchange, f"{name.upper()}_USDT", name, 300)
    assert [collector.stop() for collector in collectors] == [0, 0, 0]


def test_one_row_is_one_insert_while_clickhouse_keeps_up(running: Stack) -> None:
    exchange = running.exchange("--rate", 5, "--frames", 30)  # slow enough for a busy machine to keep up
    running.collector()
    assert_stored(running, exchange, "BTC_USDT", "btc", 30)
    blocks = running.query("SELECT uniqExact(block) FROM (SELECT blockNumber() AS block FROM mexc_data.btc)")[0][0]
    assert blocks > 0.8 * running.count()


def test_what_waited_comes_in_one_insert(running: Stack) -> None:
    exchange = running.exchange("--rate", 200, "--frames", 1000)
    running.processes[0].send(signal.SIGSTOP)  # ClickHouse
    running.collector()
    eventually(lambda: len(exchange.sent()) >= 1000, "frames sent")
    running.processes[0].send(signal.SIGCONT)
    assert_stored(running, exchange, "BTC_USDT", "btc", 1000)
    blocks = running.query("SELECT uniqExact(block) FROM (SELECT blockNumber() AS block FROM mexc_data.btc)")[0][0]
    assert blocks < 0.2 * running.count()


def test_flush_interval_makes_fewer_blocks(running: Stack) -> None:
    exchange = running.exchange("--rate", 100, "--frames", 300)
    running.collector(FLUSH_INTERVAL=1)
    assert_stored(running, exchange, "BTC_USDT", "btc", 300)
    blocks = running.query("SELECT uniqExact(block) FROM (SELECT blockNumber() AS block FROM mexc_data.btc)")[0][0]
    assert blocks < 30


def test_what_a_user_sees(running: Stack) -> None:
    running.exchange()
    collector = running.collector()
    for channel in ("ticker", "deal", "depth.full"):
        collector.wait_for(f"^Subscribed to: sub.{channel} for BTC_USDT$")
    collector.wait_for("^Rate: [1-9]")
    assert collector.stop(signal.SIGINT) == 0
    rule = "=" * 50
    blocks = re.findall(
        rf"{rule}\nBTC_USDT STATISTICS \(Last \d+s\)\n{rule}\n"
        r"Total Records Appended: (\d+)\n"
        r"Ticker Messages: (\d+) → btc/data.bin\n"
        r"Deal Messages: (\d+) → btc/data.bin\n"
        r"Depth Messages: (\d+) → btc/data.bin\n"
        r"Skipped Messages: 0\nErrors: 0\n"
        r"(?:Waiting in journal: \d+\n)?"  # a row may be on its way just then
        rf"Rate: \d+\.\d\d records/sec\n{rule}",
        collector.output,
    )
    assert blocks, collector.output
    assert sum(int(total) for total, *_ in blocks) == running.count()
    for total, *by_type in blocks:
        assert int(total) == sum(map(int, by_type))


def test_dead_letters_are_counted_and_stored(running: Stack) -> None:
    exchange = running.exchange()
    collector = running.collector()
    collector.wait_for("Subscribed to: sub.deal")
    exchange.fault("broken-json")
    collector.wait_for("^Deadletter Messages: 1 → btc/data.bin$")
    assert running.query("SELECT count() FROM mexc_data.btc WHERE mt = 'dl'") == [(1,)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_drains_what_was_read(running: Stack, number: int) -> None:
    exchange = running.exchange("--rate", 500)
    collector = running.collector()
    running.wait_for_rows(200)
    assert collector.stop(number) == 0
    expected = expected_rows(exchange.sent(), "BTC_USDT")
    rows = running.rows()
    assert rows == expected[: len(rows)]
    assert "the next start sends" not in collector.output


def test_a_new_symbol_is_an_entry_in_config_and_a_copied_script(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("pipeline", "local"):
        shutil.copytree(PROJECT / name, project / name)
    for name in ("config.py", "ch_setup.py", "verif.py", "btcdat.py"):
        shutil.copy(PROJECT / name, project / name)
    config = (project / "config.py").read_text()
    config = config.replace("\nALL_CONFIGS = [", '\nXRP_CONFIG = symbol_config("XRP_USDT", "xrp")\n\nALL_CONFIGS = [')
    config = config.replace("SOL_CONFIG]", "SOL_CONFIG, XRP_CONFIG]")
    (project / "config.py").write_text(config)
    (project / "xrpdat.py").write_text((project / "btcdat.py").read_text().replace("BTC", "XRP"))
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        exchange = stack.exchange("--rate", 50, "--frames", 50)
        setup = stack.start("ch_setup.py", cwd=project)
        assert setup.wait() == 0
        assert "  XRP data: xrp table → xrp/data.bin (continuous growth)" in setup.lines
        stack.start("xrpdat.py", cwd=project).wait_for("Subscribed to: sub.deal for XRP_USDT")
        assert_stored(stack, exchange, "XRP_USDT", "xrp", 50)
        verif = stack.start("verif.py", "--json", cwd=project)
        assert verif.wait() == 0
        (xrp,) = (table for table in json.loads(verif.output)["tables"] if table["name"] == "xrp")
        assert xrp["records"] == stack.count("xrp")
