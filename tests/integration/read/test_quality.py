"""What is found of constructed rows by the real engine, in whatever blocks they are stored, and of a collector's."""

from __future__ import annotations

import random
from datetime import datetime

import pytest

from config import ALL_CONFIGS, BTC_CONFIG
from pipeline.read import quality as module
from pipeline.read.quality import Finding, SymbolQuality, examine, find_newest
from pipeline.store import compact as compaction
from pipeline.store.client import connect
from pipeline.store.compact import compact
from pipeline.times import from_ms
from tests.integration.store.test_compact import advance, begin_statement, settings_of
from tests.stack import Stack, StoredRow, eventually
from tests.unit.read.test_findings import T0, every, gap, merged, scanned


def store(stack: Stack, *blocks: list[StoredRow], table: str = "btc") -> None:
    """Add rows to a table, each list as a block."""
    with connect(settings_of(stack)) as client:
        for rows in blocks:
            client.execute(f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", rows)


def found(stack: Stack, start: datetime | None = None, end: datetime | None = None) -> SymbolQuality:
    """Return what is found of the table btc."""
    with connect(settings_of(stack)) as client:
        (quality,) = examine(client, "mexc_data", [BTC_CONFIG], start=start, end=end)
    return quality


def in_blocks(rows: list[StoredRow], seed: int) -> list[list[StoredRow]]:
    """Cut rows into blocks of one to five."""
    chance = random.Random(seed)
    blocks = []
    while rows:
        size = chance.choice([1, 1, 1, 2, 5])
        blocks.append(rows[:size])
        rows = rows[size:]
    return blocks


# Books


GOOD = "[84062.5,34991],[84062.4,61]|[84062.6,60366],[84070,1]"


@pytest.mark.parametrize(
    ("book", "finding"),
    [
        (GOOD, None),
        ("|", None),
        ("|[84062.6,60366],[84070,1]", None),
        ("[9,1]|[10,1]", None),
        ("[0.00000001,1],[0.000000009,1]|[0.00000002,1]", None),
        ("[10,1]|[9.9,1]", "crossed_books"),
        ("[10,1]|[10.0,1]", "crossed_books"),
        ("[8,1],[9,1]|[10,1]", "unsorted_books"),
        ("[9,1],[9.0,1]|[10,1]", "unsorted_books"),
        ("[9,1]|[11,1],[10,1]", "unsorted_books"),
        ("[9,1]|[10,1],[11,1],[11,1]", "unsorted_books"),
        # A level without contracts is none.
        ("[10,0],[9,1]|[9.5,1]", None),
        ("[9,1],[10,0.00]|[11,1],[10.5,0.0],[12,0.05]", None),
        ("[9,0]|[8,1]", None),
        ("[9,0]|", None),
        ("[9,10]|[8,100]", "crossed_books"),
        ("[9,0.01]|[8,0.10]", "crossed_books"),
        ("[x,0]|[9,1]", "unreadable_books"),
        ("[9,]|[10,1]", "unreadable_books"),
        ("[9,1]", "unreadable_books"),
        ("[9,1]|[10,1]|[11,1]", "unreadable_books"),
        ("", "unreadable_books"),
        ("nonsense|", "unreadable_books"),
        ("|nonsense", "unreadable_books"),
        ("[9]|[10,1]", "unreadable_books"),
        ("[9,1],[8]|[10,1]", "unreadable_books"),
        ("[9,1]|[1.0.0,1]", "unreadable_books"),
        ("[9,1]|[x,1]", "unreadable_books"),
        ("[9,1]|[,1]", "unreadable_books"),
    ],
)
def test_a_book_is_checked(empty: Stack, book: str, finding: str | None) -> None:
    store(empty, [(T0, "dp", GOOD), (T0 + 1, "t", book), (T0 + 2, "dp", book)], [(T0 + 3, "dp", book)])
    quality = found(empty)
    findings = {name: getattr(quality, name) for name in ("crossed_books", "unsorted_books", "unreadable_books")}
    expected = {name: Finding() for name in findings}
    if finding:
        expected[finding] = Finding(2, T0 + 2)
    assert findings == expected


def test_a_book_can_be_crossed_and_unsorted(empty: Stack) -> None:
    store(empty, [(T0, "dp", "[10,1],[11,1]|[9,1]")])
    quality = found(empty)
    assert (quality.crossed_books.count, quality.unsorted_books.count) == (1, 1)


# The stream


@pytest.mark.parametrize(
    ("before", "after", "is_found"),
    [
        ("84055|1|2|546882118|0.00007200", "84056|1|2|546882118|0.00007200", True),
        ("84055|1|2|546882118|0.00007200", "84055|1|2|546882119|0.00007200", True),
        ("84055|1|2|546882118|0.00007200", "84055|3|4|546882118|0.00007300", False),
        ("84055|1|2|546882118|0.00007200", "84055.0|1|2|546882118|0.00007200", False),
        ("84055|1|2||0.00007200", "84056|1|2||0.00007200", False),
        ("84055|||546882118|", "84056|||546882118|", True),
        ("nonsense", "", False),
    ],
)
def test_a_trade_shows_in_the_last_price_or_the_open_interest(
    empty: Stack, before: str, after: str, is_found: bool
) -> None:
    ends = [(T0, "dp", GOOD), (T0 + 200_000, "dp", GOOD)]
    store(empty, [ends[0], (T0 + 70_000, "t", before)], [(T0 + 80_000, "t", after), ends[1]])
    assert found(empty).minutes_without_deals == [T0 // 1000 + 60] * is_found


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_found_as_stored_wherever_blocks_and_batches_end(
    empty: Stack, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    rows = []
    now = T0
    for _ in range(400):
        now += chance.choice([0, 0, 7, 300, 11_000])
        late = chance.choice([0, 0, 0, 0, 500, 5_000])
        rows.append((now - late, chance.choice(["t", "d", "dp", "dl"]), chance.choice(["{", "1|2", GOOD])))
    store(empty, *in_blocks(rows, seed))
    monkeypatch.setattr(module, "_BATCH_ROWS", 7)
    quality = found(empty)
    assert quality.unreadable_books.count
    quality.unreadable_books = Finding()
    assert quality == scanned(rows)


def test_a_time_has_its_beginning_and_not_its_end(empty: Stack) -> None:
    rows = merged(every(1, "t", 0, 100), every(1, "dp", 0, 100))
    store(empty, [(ts, mt, GOOD) for ts, mt, _ in rows])
    quality = found(empty, start=from_ms(T0 + 20_000), end=from_ms(T0 + 60_000))
    assert quality.rows == 80
    assert [(each.first_ms, each.last_ms) for each in quality.channels if each.rows] == [(T0 + 20_000, T0 + 59_000)] * 2
    assert quality.coverage == 100
    quality = found(empty, start=from_ms(T0 - 200_000), end=from_ms(T0 - 100_000))
    assert (quality.problem, quality.rows, quality.coverage) == (None, 0, 0)
    assert quality.uncovered == [gap("depth+tickers", -200, -100)]


def test_tables_without_rows_or_without_market_data_or_not_there_at_all(empty: Stack) -> None:
    store(empty, [(T0, "dl", "{")], table="eth")
    empty.query("RENAME TABLE mexc_data.sol TO mexc_data.elsewhere")
    with connect(settings_of(empty)) as client:
        problems = [quality.problem for quality in examine(client, "mexc_data", ALL_CONFIGS)]
        newest = [(each.exists, each.ts_ms) for each in find_newest(client, "mexc_data", ALL_CONFIGS)]
    empty.query("RENAME TABLE mexc_data.elsewhere TO mexc_data.sol")
    assert problems == [
        "there are no rows",
        "there are no rows of market data",
        "there is no such table, run ch_setup.py",
    ]
    assert newest == [(True, None), (True, None), (False, None)]


def test_the_newest_row_is_of_market_data_and_not_of_the_far_future(empty: Stack) -> None:
    store(
        empty, [(T0 + 5, "d", "1|2|1"), (T0 + 9, "t", ""), (T0 + 99, "dl", ""), (T0, "dp", GOOD), (4 * 10**12, "t", "")]
    )
    with connect(settings_of(empty)) as client:
        (newest,) = find_newest(client, "mexc_data", [BTC_CONFIG])
    assert (newest.ts_ms, newest.being_compacted) == (T0 + 9, False)


# While a table is compacted


def test_a_table_is_examined_at_each_step_of_a_compaction(empty: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_ALIVE", 0)
    store(empty, *in_blocks([(T0 + at, "dp", GOOD) for at in range(90)], seed=1))
    before = found(empty)
    was_away = False
    for _ in compact(settings_of(empty), "btc"):
        assert found(empty) == before
        with connect(settings_of(empty)) as client:
            (newest,) = find_newest(client, "mexc_data", [BTC_CONFIG])
        assert newest.ts_ms == T0 + 89
        was_away = was_away or "btc" not in dict(empty.query("SELECT name, 1 FROM system.tables"))
    assert was_away


def test_while_a_table_is_filled_from_its_copy_the_copy_is_examined(empty: Stack) -> None:
    store(empty, [(T0 + at, "dp", GOOD) for at in range(9)])
    before = found(empty)
    for sql in (
        "CREATE TABLE mexc_data.btc_copied_00000000 AS mexc_data.btc ENGINE = StripeLog",
        "INSERT INTO mexc_data.btc_copied_00000000 SELECT * FROM mexc_data.btc",
        "RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00000000",
        "TRUNCATE TABLE mexc_data.btc_compacting_00000000",
    ):
        empty.query(sql)
    assert found(empty) == before
    empty.query("RENAME TABLE mexc_data.btc_compacting_00000000 TO mexc_data.btc")
    assert found(empty).problem == "there are no rows"
    empty.query("DROP TABLE mexc_data.btc_copied_00000000 SYNC")


def test_whether_somebody_is_compacting_is_known(empty: Stack) -> None:
    store(empty, [(T0, "dp", GOOD)])
    steps = compact(settings_of(empty), "btc")
    advance(steps, "Copying")
    with connect(settings_of(empty)) as client:
        assert not find_newest(client, "mexc_data", [BTC_CONFIG])[0].being_compacted
        finish = begin_statement(empty, "compact mexc_data.btc of a test", "eth")
        assert find_newest(client, "mexc_data", [BTC_CONFIG])[0].being_compacted
        for _ in steps:
            pass
        assert not find_newest(client, "mexc_data", [BTC_CONFIG])[0].being_compacted, "it is back"
        finish([])


# A collector's rows


def test_a_collector_that_was_cut_off_shows_as_it_should(running: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = running.exchange("--rate", 20)
    collector = running.collector(PING_INTERVAL=1, STALE_TIMEOUT=5)
    running.wait_for_rows(30)
    for name in ("garbage", "error", "wrong-symbol"):
        exchange.fault(name)
    eventually(lambda: running.query("SELECT countIf(mt = 'dl') FROM mexc_data.btc")[0][0] == 9, "dead letters")
    exchange.fault("gone:5")
    said = collector.wait_for(r"BTC_USDT: no market data from .* to .* UTC \((\d+\.\d) s\)")
    filled_in = int(collector.wait_for(r"(\d+) missed deals? filled in")[1])
    before = running.count()
    running.wait_for_rows(before + 20)
    assert collector.stop() == 0
    for limit in ("ALL_SILENCE_MS", "DEPTH_SILENCE_MS", "TICKER_SILENCE_MS"):
        monkeypatch.setattr(module, limit, 4_000)
    quality = found(running)
    (reconnect,) = quality.reconnects
    assert (reconnect.silent, reconnect.filled_in) == (True, filled_in)
    assert (reconnect.end_ms - reconnect.start_ms) / 1000 == pytest.approx(float(said[1]), abs=0.06)
    assert [each.channel for each in quality.uncovered] == ["depth+tickers"]
    (missing,) = quality.uncovered
    assert missing.start_ms <= reconnect.start_ms < reconnect.end_ms <= missing.end_ms
    assert {each.kind: each.count for each in quality.dead_letters} == {
        "unknown channel": 2,
        "binary": 2,
        "bad field": 1,
        "broken JSON": 1,
        "cut short": 1,
        "rs.error": 1,
        "another symbol": 1,
    }
    assert not quality.crossed_books.count + quality.unsorted_books.count + quality.unreadable_books.count
    tickers, deals, depth = quality.channels
    assert deals.out_of_order.count >= filled_in
    assert tickers.out_of_order.count == depth.out_of_order.count == 0
    assert tickers.duplicates == depth.duplicates == Finding()


def test_a_short_cut_shows_by_the_deals_filled_in(running: Stack) -> None:
    exchange = running.exchange("--rate", 20)
    collector = running.collector(PING_INTERVAL=1, STALE_TIMEOUT=5)
    running.wait_for_rows(30)
    exchange.fault("gone:1")
    filled_in = int(collector.wait_for(r"(\d+) missed deals? filled in")[1])
    before = running.count()
    running.wait_for_rows(before + 20)
    assert collector.stop() == 0
    assert filled_in
    quality = found(running)
    assert [(each.silent, each.filled_in) for each in quality.reconnects] == [(False, filled_in)]
