"""verif.py's report against what is on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from config import ALL_CONFIGS, PROJECT
from pipeline.human import human_size
from pipeline.store.storage import Storage, TableStorage
from tests.integration.store.test_compact import begin_statement
from tests.limited_clickhouse import limited
from tests.stack import Process, Stack, free_port, open_stack
from verif import replace_file, report

# A ClickHouse as others run it: its `file` function shows a directory that is not the one of its data.
FOREIGN = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
from local import clickhouse
clickhouse._enter = lambda directory: directory.absolute()
sys.exit(clickhouse.main())
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse with the tables; btc and eth have records."""
    with open_stack(tmp_path_factory.mktemp("verif")) as opened:
        opened.clickhouse()
        opened.setup()
        fill(opened, "btc", "t", 13)
        fill(opened, "btc", "d", 323)
        fill(opened, "btc", "dp", 92)
        fill(opened, "eth", "dl", 1)
        yield opened


def fill(stack: Stack, table: str, mt: str, count: int) -> None:
    rows = f"SELECT now64(3), '{mt}', randomPrintableASCII(99) FROM numbers({count})"
    stack.query(f"INSERT INTO mexc_data.{table} {rows}")


def size(stack: Stack, table: str, file: str) -> int:
    (config,) = (config for config in ALL_CONFIGS if config["table_name"] == table)
    return (stack.data / "store" / config["uuid"][:3] / config["uuid"] / file).stat().st_size


def volume(stack: Stack) -> int:
    """Return the bytes of all files of ClickHouse, each once."""
    return sum(path.stat().st_size for path in stack.data.rglob("*") if path.is_file())


def foreign(stack: Stack, directory: Path) -> Process:
    """Start ClickHouse on the data of `stack` so that it shows `directory` in place of its files."""
    directory.mkdir()
    server = stack.start("-c", FOREIGN, "--port", stack.port, "--data", stack.data, cwd=directory)
    server.wait_for("listening on")
    return server


def test_the_report_reads_as_in_the_readme_with_exact_sizes(stack: Stack) -> None:
    verif = stack.run("verif.py")
    assert verif.wait() == 0

    def file_line(table: str) -> str:
        data_bin, index_mrk = size(stack, table, "data.bin"), size(stack, table, "index.mrk")
        return f"  {table}/data.bin: {human_size(data_bin)} ({data_bin} bytes), index.mrk: {human_size(index_mrk)}"

    assert verif.lines == [
        "💾 Symbol-specific storage status:",
        "",
        "Total records appended: 429",
        "  btc/data.bin: 428 records",
        "  eth/data.bin: 1 records",
        "  sol/data.bin: 0 records",
        "",
        "Records by symbol and message type:",
        "  BTC: 428 total",
        "    t: 13    # Ticker messages",
        "    d: 323   # Deal messages",
        "    dp: 92   # Depth messages",
        "  ETH: 1 total",
        "    dl: 1    # Dead letters",
        "",
        "STORAGE STATISTICS",
        f"  Total ClickHouse volume size: {human_size(volume(stack))}",
        file_line("btc"),
        file_line("eth"),
        "  sol/data.bin: File not found yet",
        "",
        "Blocks, and what they cost the server in memory:",
        "  btc: 3 blocks of 142.7 rows on average, about 1.3K",
        "  eth: 1 block of 1.0 rows on average, about 450B",
    ]


def test_json_has_the_same_in_bytes(stack: Stack) -> None:
    verif = stack.run("verif.py", "--json")
    assert verif.wait() == 0

    def table(name: str, records: int, by_type: dict[str, int], blocks: int) -> dict[str, object]:
        files = [size(stack, name, file) if records else None for file in ("data.bin", "index.mrk")]
        return {
            "name": name,
            "exists": True,
            "being_compacted": False,
            "records": records,
            "by_type": by_type,
            "data_bin": files[0],
            "index_mrk": files[1],
            "total_bytes": sum(file or 0 for file in files),
            "blocks": blocks,
            "hidden": 0,
            "small_blocks": max(0, blocks - 1),
            "block_memory": 450 * blocks,
        }

    assert json.loads(verif.output) == {
        "records": 429,
        "tables": [
            table("btc", 428, {"t": 13, "d": 323, "dp": 92}, 3),
            table("eth", 1, {"dl": 1}, 1),
            table("sol", 0, {}, 0),
        ],
        "files_seen": True,
        "volume": volume(stack),
    }


@pytest.mark.parametrize(
    ("small_blocks", "compact_blocks", "advice"),
    [
        (100_000, 50_000, None),
        (100_001, 50_000, "raise FLUSH_INTERVAL"),
        (50_000, 0, None),
        (50_001, 0, "set COMPACT_BLOCKS"),
    ],
)
def test_it_says_what_to_do_about_too_many_small_blocks(
    small_blocks: int, compact_blocks: int, advice: str | None
) -> None:
    blocks = small_blocks + 1
    table = TableStorage(
        "btc", exists=True, records=blocks, by_type={"d": blocks}, blocks=blocks, small_blocks=small_blocks
    )
    text = report(Storage([table], files_seen=False, volume=None), compact_blocks, {}, {})
    assert ("ch_setup.py --compact btc" in text) == (advice is not None)
    assert advice is None or advice in text


def test_it_says_which_records_this_user_cannot_read(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        fill(stack, "btc", "t", 13)
        fill(stack, "btc", "d", 323)
        limited(stack, hidden={"btc": "mt != 't'"})
        text = stack.run("verif.py").output
        assert "Total records appended: 323\n" in text
        assert "\n  btc has 13 records more, which this user cannot read: see its row policies, and max_rows_" in text


def test_a_compacted_table_has_no_small_blocks(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        for _ in range(5):
            fill(stack, "btc", "d", 20)
        blocks = []
        for _ in range(2):
            (btc, *_) = json.loads(stack.run("verif.py", "--json").output)["tables"]
            blocks.append((btc["records"], btc["blocks"], btc["small_blocks"]))
            assert stack.run("ch_setup.py", "--compact", "btc").wait() == 0
        assert blocks == [(100, 5, 4), (100, 1, 0)]


def test_the_files_are_seen_while_rows_come_in_fast(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        stack.exchange("--rate", 0)
        collectors = [stack.collector(config["table_name"]) for config in ALL_CONFIGS]
        stack.wait_for_rows(1, "sol")
        for _ in range(5):  # each INSERT has a file for a moment that a server may list and then not find
            assert json.loads(stack.run("verif.py", "--json").output)["files_seen"]
        assert [collector.stop() for collector in collectors] == [0, 0, 0]


@pytest.mark.parametrize("shown", [None, "a file", "nothing", "no directory"])
def test_what_a_server_does_not_show_is_asked_of_system_tables(shown: str | None, tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        foreign(stack, tmp_path / "user_files")
        stack.setup()
        fill(stack, "btc", "d", 50)
        if shown == "a file":
            (tmp_path / "user_files" / "mine.csv").write_text("1,2,3\n")
        elif shown == "no directory":
            shutil.rmtree(tmp_path / "user_files")
        together = size(stack, "btc", "data.bin") + size(stack, "btc", "index.mrk")
        verif = stack.run("verif.py")
        assert verif.wait() == 0
        begin = verif.lines.index("STORAGE STATISTICS")
        assert verif.lines[begin : begin + 5] == [
            "STORAGE STATISTICS",
            "  This server does not show its files; sizes are from system.tables, data.bin + index.mrk:",
            f"  btc/data.bin: {human_size(together)}",
            "  eth/data.bin: 0B",
            "  sol/data.bin: 0B",
        ]


def test_the_size_in_system_tables_is_known_after_a_restart_too(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        server = stack.clickhouse()
        stack.setup()
        fill(stack, "btc", "d", 50)
        assert server.stop() == 0
        foreign(stack, tmp_path / "user_files")
        verif = stack.run("verif.py", "--json")
        btc = json.loads(verif.output)["tables"][0]
        assert btc["total_bytes"] == size(stack, "btc", "data.bin") + size(stack, "btc", "index.mrk")
        assert btc["data_bin"] is None


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        fill(stack, "btc", "d", 1)
        stack.query("DROP TABLE mexc_data.sol SYNC")
        verif = stack.run("verif.py")
        assert verif.wait() == 0
        assert "  sol/data.bin: No such table, run ch_setup.py" in verif.lines


def test_without_tables_there_is_one_line(stack: Stack) -> None:
    verif = stack.run("verif.py", CLICKHOUSE_DATABASE="other")
    assert verif.wait() == 1
    assert verif.lines == ["There are no tables in other: run ch_setup.py"]


def test_a_table_that_is_being_compacted_is_counted_where_its_rows_are(stack: Stack, tmp_path: Path) -> None:
    before = json.loads(stack.run("verif.py", "--json").output)
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_0123abcd")
    try:
        verif = stack.run("verif.py")
        after = json.loads(stack.run("verif.py", "--json").output)
        page = stack.run("verif.py", "--html", tmp_path / "report.html")
    finally:
        stack.query("RENAME TABLE mexc_data.btc_compacting_0123abcd TO mexc_data.btc")
    assert verif.wait() == page.wait() == 0
    assert verif.lines[-1] == "  btc is being compacted: new rows wait in the journal"
    assert after.pop("volume")
    assert before.pop("volume")
    for answer in (before, after):
        assert answer["tables"][0].pop("being_compacted") == (answer is after)
    assert after == before
    assert "<p>btc is being compacted: new rows wait in the journal.</p>" in (tmp_path / "report.html").read_text()


def test_with_empty_tables_there_is_one_line_after_the_report(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        verif = stack.run("verif.py")
        assert verif.wait() == 1
        assert "Total records appended: 0" in verif.lines
        assert verif.lines[-1] == "The tables are empty: no collector has stored a record yet"


def test_a_server_that_is_down_is_one_line(stack: Stack) -> None:
    port = free_port()
    verif = stack.run("verif.py", CLICKHOUSE_PORT=port)
    assert verif.wait() == 1
    assert verif.lines == [f"ClickHouse at 127.0.0.1:{port} cannot be reached: connection refused"]


def test_a_wrong_password_is_one_line(stack: Stack) -> None:
    verif = stack.run("verif.py", CLICKHOUSE_PASSWORD="wrong")
    assert verif.wait() == 1
    assert verif.lines == [
        f"ClickHouse at 127.0.0.1:{stack.port} refuses user default: check CLICKHOUSE_USER (from the environment) and"
        " CLICKHOUSE_PASSWORD (from the environment)"
    ]


def test_a_port_of_something_else_is_one_line(stack: Stack) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        verif = stack.run("verif.py", CLICKHOUSE_PORT=server.server_port)
        server.shutdown()
    assert verif.wait() == 1
    assert verif.lines == [
        f"ClickHouse at 127.0.0.1:{server.server_port} does not speak the native protocol:"
        " check CLICKHOUSE_PORT (9000, unless it was changed);"
        " where it is within TLS, as on port 9440, CLICKHOUSE_SECURE=1"
    ]


@contextmanager
def within_tls(port: int, speaks: bool = True) -> Iterator[int]:
    """Give a port where what speaks TLS gets to `port`; who does not is told so, or, unless it speaks, cut off."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(PROJECT / "tests" / "data" / "self-signed.pem")

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if not speaks:
                    client.recv(1)
                    client.shutdown(socket.SHUT_RDWR)
                    client.close()
                    continue
                with suppress(ssl.SSLError):
                    client = tls.wrap_socket(client, server_side=True)
                    server = socket.create_connection(("127.0.0.1", port))
                    Thread(target=carry, args=(client, server), daemon=True).start()
                    Thread(target=carry, args=(server, client), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_port_within_tls_is_told(stack: Stack, speaks: bool) -> None:
    with within_tls(stack.port, speaks) as port:
        verif = stack.run("verif.py", CLICKHOUSE_PORT=port)
    assert verif.wait() == 1
    assert len(verif.lines) == 1
    assert re.fullmatch(r"ClickHouse at \S+ .*TLS.*, CLICKHOUSE_SECURE=1", verif.lines[0])


def test_clickhouse_within_tls_is_reached(stack: Stack) -> None:
    ca = PROJECT / "tests" / "data" / "self-signed.pem"
    with within_tls(stack.port) as port:
        there = stack.run("verif.py", CLICKHOUSE_PORT=port, CLICKHOUSE_SECURE=1, CLICKHOUSE_CA=ca)
        unknown = stack.run("verif.py", CLICKHOUSE_PORT=port, CLICKHOUSE_SECURE=1)
    plain = stack.run("verif.py")
    assert there.lines == plain.lines
    assert len(unknown.lines) == 1
    assert "certificate" in unknown.lines[0]


def test_an_unusable_setting_is_one_line(stack: Stack) -> None:
    verif = stack.run("verif.py", CLICKHOUSE_DATABASE="mexc-data")
    assert verif.wait() == 2
    assert len(verif.lines) == 1
    assert verif.lines[0].startswith("CLICKHOUSE_DATABASE=mexc-data cannot be used: ")


# --quality


def test_quality_is_reported_a_symbol_at_a_time(stack: Stack) -> None:
    verif = stack.run("verif.py", "--quality")
    assert verif.wait() == 0
    assert verif.lines[0].startswith("BTC_USDT: ")
    assert "92 unreadable books" in verif.lines[0]
    assert any(re.fullmatch(r"  tickers +13 +n/a +n/a +20\S+Z  20\S+Z .*", line) for line in verif.lines)
    assert "ETH_USDT: there are no rows of market data" in verif.lines
    assert verif.lines[-1] == "SOL_USDT: there are no rows"


def test_quality_as_json_has_all_of_it(stack: Stack) -> None:
    verif = stack.run("verif.py", "--quality", "--json", "--from", "2020-01-01", "--to", "2020-01-02")
    assert verif.wait() == 1, "no rows in this time"
    btc, _, sol = json.loads(verif.output)["quality"]
    assert (btc["symbol"], btc["coverage"], btc["start"]) == ("BTC_USDT", 0, "2020-01-01T00:00:00.000Z")
    (uncovered,) = btc["uncovered"]
    assert (uncovered["channel"], uncovered["seconds"]) == ("depth+tickers", 86400)
    assert sol["problem"] is None
    verif = stack.run("verif.py", "--quality", "--json")
    assert verif.wait() == 0
    btc, eth, sol = json.loads(verif.output)["quality"]
    assert [channel["rows"] for channel in btc["channels"]] == [13, 323, 92]
    assert sum(btc["channels"][1]["by_minute"].values()) == 323
    (letters,) = eth["dead_letters"]
    assert (letters["count"], len(letters["example"])) == (1, 99)
    assert sol["problem"] == "there are no rows"


def test_gaps_are_an_exit_code_for_those_who_ask(stack: Stack) -> None:
    assert stack.run("verif.py", "--quality", "--fail-on-gaps", "--only", "btc").wait() == 0, "rows of one moment"
    assert stack.run("verif.py", "--quality", "--fail-on-gaps").wait() == 1, "of sol nothing is known"
    assert stack.run("verif.py", "--quality", "--from", "-24h").wait() == 0
    assert stack.run("verif.py", "--quality", "--from", "-24h", "--fail-on-gaps").wait() == 3
    assert stack.run("verif.py", "--quality", "--from", "yesterday", "--to=today", "--fail-on-gaps").wait() == 3
    unknown = stack.run("verif.py", "--quality", "--fail-on-gaps", "--only", "btc", "xrp", SYMBOLS="XRP_USDT")
    assert unknown.wait() == 1
    assert "there is no such table" in unknown.output


def test_quality_without_tables_is_a_line_for_each_symbol(stack: Stack) -> None:
    verif = stack.run("verif.py", "--quality", CLICKHOUSE_DATABASE="other")
    assert verif.wait() == 1
    assert [line for line in verif.lines if line] == [
        f"{symbol}: there is no such table, run ch_setup.py" for symbol in ("BTC_USDT", "ETH_USDT", "SOL_USDT")
    ]


# --max-age


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Stack]:
    """ClickHouse with the tables; all have a row of now, of each channel whose silence means something."""
    with open_stack(tmp_path) as opened:
        opened.clickhouse()
        opened.setup()
        for table in ("btc", "eth", "sol"):
            for mt in ("t", "dp"):
                fill(opened, table, mt, 1)
        yield opened


def test_the_exit_code_is_3_when_the_newest_row_of_a_symbol_is_too_old_or_there_is_none(fresh: Stack) -> None:
    verif = fresh.run("verif.py", "--max-age", "600")
    assert verif.wait() == 0
    assert [re.sub(r"\d+\.\d s old, of 20\S+Z$", "X", line) for line in verif.lines] == [
        f"{symbol}: the newest row is X" for symbol in ("BTC_USDT", "ETH_USDT", "SOL_USDT")
    ]
    fresh.query("TRUNCATE TABLE mexc_data.eth")
    fresh.query("INSERT INTO mexc_data.eth SELECT now64(3) - INTERVAL 1000 SECOND, 'dp', '|'")
    fresh.query("TRUNCATE TABLE mexc_data.sol")
    fill(fresh, "sol", "dl", 5)
    verif = fresh.run("verif.py", "--max-age", "600")
    assert verif.wait() == 3
    assert re.search(r"ETH_USDT: the newest row is 1\d min \d+ s old, of 20\S+Z$", verif.output, re.MULTILINE)
    assert verif.lines[-1] == "SOL_USDT: there is no row of market data"
    verif = fresh.run("verif.py", "--max-age", "600", "--json")
    assert verif.wait() == 3
    newest = json.loads("\n".join(verif.lines[verif.lines.index("{") :]))["newest"]
    assert [symbol["late"] for symbol in newest] == [False, True, True]
    assert 1000 <= newest[1]["age"] < 1100
    assert newest[2]["age"] is None
    assert newest[2]["channels"]["depth"] == {"ts": None, "age": None, "late": True}
    verif = fresh.run("verif.py", "--max-age", "600", "--quality")
    assert verif.wait() == 3
    assert any("covered" in line or "coverage" in line for line in verif.lines)
    fresh.query("DROP TABLE mexc_data.eth SYNC")
    verif = fresh.run("verif.py", "--max-age", "1e6")
    assert verif.wait() == 3
    assert "ETH_USDT: there is no table eth, run ch_setup.py" in verif.lines


def test_a_channel_that_is_dead_is_late_while_others_flow(fresh: Stack) -> None:
    for table, ages in {"btc": {"t": 0, "dp": 1000}, "eth": {"d": 0}, "sol": {"t": 0, "dp": 0, "d": 1000}}.items():
        fresh.query(f"TRUNCATE TABLE mexc_data.{table}")
        for mt, age in ages.items():
            fresh.query(f"INSERT INTO mexc_data.{table} SELECT now64(3) - INTERVAL {age} SECOND, '{mt}', '|'")
    verif = fresh.run("verif.py", "--max-age", "600")
    assert verif.wait() == 3
    sol, btc, eth = sorted(verif.lines, key=lambda line: ("SOL", "BTC", "ETH").index(line[:3]))
    newest = r"_USDT: the newest row is \d+\.\d s old, of 20\S+Z"
    assert re.fullmatch(rf"BTC{newest}; no depth for 16 min \d+ s", btc)
    assert re.fullmatch(rf"ETH{newest}; no tickers at all, no depth at all", eth)
    assert re.fullmatch(rf"SOL{newest}", sol), "deals alone may have nothing to say"
    verif = fresh.run("verif.py", "--max-age", "600", "--json")
    assert verif.wait() == 3
    symbols = json.loads("\n".join(verif.lines[verif.lines.index("{") :]))["newest"]
    late = [[name for name, channel in each["channels"].items() if channel["late"]] for each in symbols]
    assert late == [["depth"], ["tickers", "depth"], []]
    assert [each["late"] for each in symbols] == [True, True, False]
    assert 1000 <= symbols[0]["channels"]["depth"]["age"] < 1100
    assert 1000 <= symbols[2]["channels"]["deals"]["age"] < 1100


def test_a_table_that_is_being_compacted_is_not_late(fresh: Stack) -> None:
    fresh.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00000000")
    finish = begin_statement(fresh, "compact mexc_data.btc of a test", "eth")
    verif = fresh.run("verif.py", "--max-age", "0.001")
    assert verif.lines[0].startswith("BTC_USDT: ")
    assert verif.lines[0].endswith("; its table is being compacted, new ones wait")
    finish([])
    verif = fresh.run("verif.py", "--max-age", "600")
    assert verif.wait() == 0, "what is left of a compaction has rows, too"
    fresh.query("INSERT INTO mexc_data.btc_compacting_00000000 SELECT now64(3), 'd', ''")
    assert not verif.lines[0].endswith("wait")


# --html


def test_the_page_is_written_whole_or_not_at_all(stack: Stack, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    verif = stack.run("verif.py", "--html", page)
    assert verif.wait() == 0, verif.output
    assert verif.lines[-1] == f"Written: {page}"
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "BTC_USDT" in text
    assert list(tmp_path.iterdir()) == [page]
    stack.run("verif.py", "--html", page, "--quality", "--json")
    assert page.read_text() != text, "made later"


def test_a_page_of_nothing_is_not_written(stack: Stack, tmp_path: Path) -> None:
    verif = stack.run("verif.py", "--html", tmp_path / "report.html", CLICKHOUSE_DATABASE="other")
    assert verif.wait() == 1
    assert verif.lines == ["There are no tables in other: run ch_setup.py"]
    assert not list(tmp_path.iterdir())


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to("report.html")
    replace_file(tmp_path / "link.html", "new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "report.html").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    replace_file(tmp_path / "pipe", "new")
    assert reader.communicate()[0] == b"new"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "report.html", "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


# Options


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--quality", "--from", "tomorrow"], "--from: tomorrow is no time: give a UTC date or ISO time, such as"),
        (["--quality", "--from", "2026-10-02", "--to", "2026-10-02"], "--from has to be before --to"),
        (["--from", "2026-10-02"], "--from and --to go with --quality, --audit or --html"),
        (["--fail-on-gaps"], "--fail-on-gaps goes with --quality"),
        (["--max-age", "soon"], "--max-age: invalid number of seconds value: 'soon'"),
        (["--max-age", "0"], "--max-age: invalid number of seconds value: '0'"),
        (["--max-age", "nan"], "--max-age: invalid number of seconds value: 'nan'"),
        (["--html", "."], "--html: . cannot be written: give a file in a directory that is there"),
        (
            ["--html", "no/such/file.html"],
            "--html: no/such/file.html cannot be written: give a file in a directory that",
        ),
        (["--html", "x" * 300], "cannot be written: give a file in a directory that is there"),
        (["--watch", "1e10"], "--watch: invalid number of seconds value: '1e10'"),
        (["--watch", "--json"], "--watch goes with no other option"),
        (["--watch", "2", "--max-age", "5"], "--watch goes with no other option"),
        (["--watch", "0"], "--watch: invalid number of seconds value: '0'"),
    ],
)
def test_an_option_that_cannot_be_used_is_said(stack: Stack, options: list[str], line: str) -> None:
    verif = stack.run("verif.py", *options)
    assert verif.wait() == 2
    assert line in verif.lines[-1]


@pytest.mark.parametrize(
    ("options", "code"), [([], 130), (["--quality"], 130), (["--max-age", "60"], 130), (["--watch"], 0)]
)
def test_ctrl_c_ends_it_without_a_traceback(stack: Stack, options: list[str], code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        verif = stack.start("verif.py", *options, CLICKHOUSE_PORT=silent.getsockname()[1])
        connection, _ = silent.accept()
        with connection:
            assert verif.stop(signal.SIGINT) == code
    assert "Traceback" not in verif.output


@pytest.mark.parametrize("options", [(), ("--quality",), ("--json",)])
def test_a_reader_who_has_seen_enough_is_no_error(stack: Stack, options: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    verif = subprocess.run(
        [sys.executable, "verif.py", *options],
        env=stack.env,
        cwd=PROJECT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (verif.returncode, verif.stderr) == (0, b"")


def test_a_report_that_cannot_be_printed_is_one_line(stack: Stack) -> None:
    with Path("/dev/full").open("w") as full:
        verif = subprocess.run(
            [sys.executable, "verif.py"], env=stack.env, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (verif.returncode, verif.stderr) == (1, b"The report cannot be printed: No space left on device\n")


def test_the_plain_report_does_not_wait_for_what_it_does_not_need() -> None:
    heavy = {"numpy", "pandas", "pyarrow", "rich", "pipeline.read.quality", "pipeline.show.page", "pipeline.show.watch"}
    code = "import sys, verif; print(*sys.modules, sep='\\n')"
    imported = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(imported.stdout.splitlines())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (126_976, "124.0K"),
        (1024 * 1024 - 1, "1.0M"),
        (4_299_161, "4.1M"),
        (3 * 1024**3, "3.0G"),
        (5 * 1024**5, "5120.0T"),
    ],
)
def test_sizes_read_as_du_writes_them(size: int, text: str) -> None:
    assert human_size(size) == text
