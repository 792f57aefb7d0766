"""Rows of a real table as typed columns, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

import config
from config import load_settings
from local.market import frames
from pipeline.messages import Row, parse_frame
from pipeline.read.decode import TYPES, LoadError, decode, load, read
from pipeline.store.client import connect, is_missing_table
from tests.stack import Stack, free_port, open_stack

START = datetime(2026, 10, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
ROWS = [
    row for _, frame in islice(frames("BTC_USDT", 1, START_MS), 1_500) for row in parse_frame(frame, "BTC_USDT", 0).rows
]
ROWS += [ROWS[700], ROWS[500], Row(START_MS + 7, "dl", "oops")]  # filled in late, older than what is before them


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Table btc with ROWS, the first hundred in a block each; eth with some that do not decode."""
    with open_stack(tmp_path_factory.mktemp("decode")) as stack:
        stack.clickhouse()
        stack.setup()
        with client_of(stack) as client:
            for row in ROWS[:100]:
                insert(client, "btc", [row])
            insert(client, "btc", ROWS[100:800])
            insert(client, "btc", ROWS[800:])
            bad = [Row(START_MS + n, "d", f"{n}|nothing|2") for n in range(12)]
            insert(client, "eth", [Row(START_MS, "d", "2384.60|3|1"), *bad, Row(START_MS, "d", "2384.61|4|2")])
        yield stack


@pytest.fixture
def client(archive: Stack) -> Iterator[Client]:
    with client_of(archive) as opened:
        yield opened


@pytest.fixture
def environment(archive: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the archive, where `load` looks for them."""
    for name, value in archive.env.items():
        monkeypatch.setenv(name, value)


def client_of(stack: Stack) -> Client:
    return connect(load_settings(stack.env, dotenv=None))


def insert(client: Client, table: str, rows: list[Row]) -> None:
    client.execute(f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", [row[:3] for row in rows])


def expected(mt: str, rows: list[Row] = ROWS, *, exact: bool = False) -> pa.Table:
    mine = [row for row in rows if row.mt == mt]
    times, texts = [row.ts_ms for row in mine], [row.m for row in mine]
    return decode(mt, times, texts, exact=exact, contract_size=Decimal("0.0001")).table


# Reading


@pytest.mark.parametrize("exact", [False, True], ids=["float", "exact"])
@pytest.mark.parametrize("mt", TYPES.values())
def test_all_rows_of_a_type_are_read_in_stored_order(client: Client, mt: str, exact: bool) -> None:
    batches = list(read(client, "mexc_data", "btc", mt, exact=exact, batch_rows=97))
    wanted = expected(mt, exact=exact)
    sizes = [len(batch.table) for batch in batches]
    assert sizes == [97] * (len(wanted) // 97) + [len(wanted) % 97] * (len(wanted) % 97 > 0)
    assert pa.concat_tables(batch.table for batch in batches).equals(wanted)


def test_the_coins_of_a_contract_that_is_not_known_are_null(
    client: Client, archive: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.query("CREATE TABLE mexc_data.xrp AS mexc_data.eth")
    insert(client, "xrp", [Row(START_MS, "d", "2.1|3|1")])
    for configs in (config.ALL_CONFIGS, [*config.ALL_CONFIGS, config.symbol_config("XRP_USDT", "xrp")]):
        monkeypatch.setattr(config, "ALL_CONFIGS", configs)
        (batch,) = read(client, "mexc_data", "xrp", "d")
        assert (batch.table["contracts"].to_pylist(), batch.table["coins"].to_pylist()) == ([3], [None])


def test_the_range_has_its_start_and_not_its_end(client: Client) -> None:
    deals = [row for row in ROWS if row.mt == "d"]
    first, last = deals[50].ts_ms, deals[90].ts_ms
    inside = [row for row in deals if first <= row.ts_ms < last]
    start, end = (START + timedelta(milliseconds=ts_ms - START_MS) for ts_ms in (first, last))

    def found(start: datetime | None, end: datetime | None) -> pa.Table:
        return pa.concat_tables(batch.table for batch in read(client, "mexc_data", "btc", "d", start=start, end=end))

    assert found(start, end).equals(expected("d", inside))
    assert found(start, None).equals(expected("d", [row for row in deals if row.ts_ms >= first]))
    assert found(None, end).equals(expected("d", [row for row in deals if row.ts_ms < last]))
    little = timedelta(microseconds=1)  # rows have whole milliseconds
    assert found(start - little, end - little).equals(expected("d", inside))
    assert first not in found(start + little, end)["ts"].cast(pa.int64()).to_pylist()
    assert last in found(start, end + little)["ts"].cast(pa.int64()).to_pylist()


def test_a_range_without_rows_has_no_batch(client: Client) -> None:
    assert list(read(client, "mexc_data", "btc", "d", end=START)) == []


def test_bad_rows_are_read_with_the_good_ones(client: Client) -> None:
    (batch,) = read(client, "mexc_data", "eth", "d")
    assert batch.table["price"].to_pylist() == [2384.60, 2384.61]
    assert [(row.ts_ms, row.m) for row in batch.bad] == [(START_MS + n, f"{n}|nothing|2") for n in range(12)]


def test_what_is_no_utf8_is_read_too(running: Stack) -> None:
    running.query(f"INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli({START_MS}), 'dl', unhex('41FF42')")
    with client_of(running) as client:
        (batch,) = read(client, "mexc_data", "btc", "dl")
    assert batch.table["text"].to_pylist() == ["A\ufffdB"]


def test_rows_stored_one_by_one_come_together(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    packets = 0
    receive = client.receive_packet

    def counted() -> Any:
        nonlocal packets
        packets += 1
        return receive()

    monkeypatch.setattr(client, "receive_packet", counted)
    assert len(list(read(client, "mexc_data", "btc", "d"))) == 1
    assert packets < 10  # of the first hundred rows, in a block each, most are deals


def test_a_client_can_be_used_again_when_reading_was_given_up(client: Client) -> None:
    batches = read(client, "mexc_data", "btc", "d", batch_rows=10)
    next(batches)
    del batches
    assert client.execute("SELECT 1") == [(1,)]


def test_what_cannot_be_asked_is_said_at_once(client: Client) -> None:
    with pytest.raises(ValueError, match=r"^unknown message type 'deals': give one of t, d, dp, dl$"):
        read(client, "mexc_data", "btc", "deals")
    with pytest.raises(ValueError, match=r"^2026-10-01 00:00:00 has no time zone"):
        read(client, "mexc_data", "btc", "d", start=START.replace(tzinfo=None))


def test_a_table_that_is_not_there_is_an_error_of_clickhouse(client: Client) -> None:
    with pytest.raises(ServerException) as caught:
        list(read(client, "mexc_data", "nope", "d"))
    assert is_missing_table(caught.value)


# A process that reads many rows, and says how many, and how many bytes of memory that took.
READER = """
import json, resource
from config import load_settings
from pipeline.store.client import connect
from pipeline.read.decode import read

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
batches = read(connect(load_settings()), "mexc_data", "btc", "d", batch_rows=10_000)
rows = sum(len(batch.table) for batch in batches)
print(json.dumps({"rows": rows, "grown": peak() - before}))
"""


def test_memory_does_not_grow_with_the_rows(running: Stack) -> None:
    rows = 1_000_000  # some 200 MB, were they held at once
    running.query(
        f"INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli({START_MS} + number), 'd',"
        f" concat(toString(84000 + number / 10), '|', toString(number), '|1') FROM numbers({rows})"
    )
    found = json.loads(running.run("-c", READER).output)
    assert found["rows"] == rows
    assert found["grown"] < 110e6


# Loading


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("symbol", ["btc", "BTC", "BTC_USDT", "btc_usdt"])
def test_load_takes_symbols_and_types_by_name(symbol: str, name: str) -> None:
    assert load(symbol, name).equals(expected(TYPES[name]))


@pytest.mark.usefixtures("environment")
def test_load_takes_times_as_text_or_datetime() -> None:
    middle = START + timedelta(seconds=30)
    early = expected("d", [row for row in ROWS if row.ts_ms < START_MS + 30_000], exact=True)
    assert 0 < len(early) < len(expected("d"))
    for start, end in (("2026-10-01", "2026-10-01 00:00:30"), (START, middle), (None, "2026-10-01T02:00:30+02:00")):
        assert load("btc", "deals", start, end, exact=True).equals(early)
    assert load("btc", "deals", "2026-11-01").equals(expected("d", []))


@pytest.mark.usefixtures("environment")
def test_load_takes_a_date_for_its_first_moment() -> None:
    assert load("btc", "deals", date(2026, 10, 1)) == load("btc", "deals", "2026-10-01")
    with pytest.raises(ValueError, match="4711 is no time"):
        load("btc", "deals", 4711)  # type: ignore[arg-type]


@pytest.mark.usefixtures("environment")
def test_load_warns_of_rows_that_do_not_decode() -> None:
    with pytest.warns(UserWarning, match="do not decode") as caught:
        deals = load("eth", "deals")
    assert deals["contracts"].to_pylist() == [3, 4]
    assert deals["coins"].to_pylist() == [0.03, 0.04]
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith(
        "12 deals of mexc_data.eth do not decode: 2026-10-01T00:00:00.000Z '0|nothing|2' (contracts is 'nothing'); 2026"
    )
    assert text.count("nothing|2") == 10
    assert text.endswith("; ...")
    assert warning.filename == __file__


@pytest.mark.usefixtures("environment")
def test_load_says_what_it_can_be_asked_for() -> None:
    known = r"btc \(BTC_USDT\), eth \(ETH_USDT\), sol \(SOL_USDT\)"
    with pytest.raises(ValueError, match=rf"^unknown symbol 'xrp': give one of {known}$"):
        load("xrp", "deals")
    with pytest.raises(ValueError, match=r"^unknown type 'd': give one of tickers, deals, depth, dead-letters$"):
        load("btc", "d")
    with pytest.raises(ValueError, match="someday is no time"):
        load("btc", "deals", "someday")


@pytest.mark.usefixtures("environment")
def test_load_says_in_a_line_why_it_cannot(monkeypatch: pytest.MonkeyPatch, archive: Stack) -> None:
    archive.query("RENAME TABLE mexc_data.sol TO mexc_data.sol_compacting_0123abcd")
    with pytest.raises(LoadError, match=r"^mexc_data\.sol is being compacted: try again in a minute$"):
        load("sol", "deals")
    archive.query("RENAME TABLE mexc_data.sol_compacting_0123abcd TO mexc_data.hidden")
    with pytest.raises(LoadError, match=r"^Table mexc_data\.sol does not exist: run ch_setup\.py$"):
        load("sol", "deals")
    archive.query("RENAME TABLE mexc_data.hidden TO mexc_data.sol")
    port = free_port()
    monkeypatch.setenv("CLICKHOUSE_PORT", str(port))
    with pytest.raises(LoadError, match=rf"^ClickHouse at 127\.0\.0\.1:{port} cannot be reached: connection refused$"):
        load("sol", "deals")
