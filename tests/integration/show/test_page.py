"""The page of verif.py --html: what is in it, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from playwright.sync_api import Browser, Page, sync_playwright

from config import Settings
from pipeline.human import human_size
from pipeline.read.audit import Difference, NotCompared, SymbolAudit
from pipeline.read.quality import ChannelQuality, DeadLetters, Finding, Gap, SymbolQuality
from pipeline.show.figures import PricePoint, read_prices
from pipeline.show.page import render
from pipeline.store.storage import Storage, TableStorage
from pipeline.store.tiers import Tier, Tiers
from pipeline.times import from_ms, iso, to_ms
from tests.stack import Stack, eventually

START = to_ms(datetime(2026, 10, 1, tzinfo=UTC))
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
COMPACT_BLOCKS = 50_000
PER_MINUTE = {"tickers": 30, "deals": 600, "depth": 222}
HOSTILE = """</script><script>hacked=1</script><img src=x onerror=hacked=1>" onclick="hacked=1 ' & &amp; ${x} $title
<!--<script> \u202egnp.exe \x00\x1b[31m \ud800]]>"""


def gap(channel: str, start_ms: int, length_ms: int) -> Gap:
    return Gap(channel, start_ms, start_ms + length_ms, length_ms / 1000)


def symbol(length_ms: int, *gaps: Gap, name: str = "btc", start_ms: int = START) -> SymbolQuality:
    """An archive of some length, with as many rows as usual in each whole minute outside of its gaps."""
    end_ms = start_ms + length_ms
    quality = SymbolQuality(f"{name.upper()}_USDT", name, start_ms=start_ms, end_ms=end_ms, gaps=list(gaps))
    quality.uncovered = [each for each in gaps if each.channel != "all"]
    quality.coverage = 100 * (1 - sum(each.seconds for each in quality.uncovered) * 1000 / length_ms)
    for channel, rows in PER_MINUTE.items():
        silent = {
            minute
            for each in gaps
            if each.channel in (channel, "all")
            for minute in range(each.start_ms // MINUTE, -(-each.end_ms // MINUTE))
        }
        minutes = range(start_ms // MINUTE, -(-end_ms // MINUTE))
        by_minute = {minute * 60: rows for minute in minutes if minute not in silent}
        count = sum(by_minute.values())
        newest = end_ms - (channel != "depth")
        quality.channels.append(
            ChannelQuality(
                channel, count, start_ms, newest, rows, 0 if silent else rows, by_minute, duplicates=Finding()
            )
        )
        quality.rows += count
    return quality


def prices(quality: SymbolQuality, points: int = 2000) -> list[PricePoint]:
    """Prices that rise by 1 USDT a step from 84,000."""
    assert quality.start_ms is not None
    assert quality.end_ms is not None
    step = max(1000, (quality.end_ms - quality.start_ms) // points)
    return [
        PricePoint(ts_ms, step, 84_000 + number, 83_999 + number, 84_001 + number, 0.1, 0.25)
        for number, ts_ms in enumerate(range(quality.start_ms, quality.end_ms, step))
    ]


def page(
    *symbols: SymbolQuality,
    blocks: int = 3,
    made_at: datetime | None = None,
    audits: Sequence[SymbolAudit] = (),
    tiers: Sequence[Tiers] = (),
) -> str:
    """Render an archive of symbols; each row takes 20 bytes."""
    tables = [
        TableStorage(
            each.table,
            exists=each.problem is None,
            records=each.rows,
            by_type={"t": 5, "d": 6, "dp": each.rows - 11} if each.rows else {},
            data_bin=each.rows * 19,
            index_mrk=each.rows,
            total_bytes=each.rows * 20,
            blocks=blocks,
            small_blocks=blocks,
            block_memory=blocks * 450,
        )
        for each in symbols
    ]
    known = [each for each in symbols if each.end_ms is not None]
    made_at = made_at or from_ms(max((each.end_ms or 0 for each in known), default=START) + 2000)
    storage = Storage(tables, files_seen=True, volume=123 << 20)
    return render(storage, symbols, {each.table: prices(each) for each in known}, made_at, Settings(), audits, tiers)


def audit(length_ms: int, *differences: Difference, **known: Any) -> SymbolAudit:
    """What MEXC's klines say of BTC over some length, 1,000 contracts a minute."""
    minutes = length_ms // MINUTE
    found = SymbolAudit("BTC_USDT", "btc", None, START, START + length_ms, minutes, minutes - len(differences))
    found.contracts, found.differences = 1000.0 * minutes, list(differences)
    found.missing = sum(max(each.missing, 0) for each in differences)
    found.too_many = sum(max(-each.missing, 0) for each in differences)
    for name, value in known.items():
        setattr(found, name, value)
    return found


def data_of(text: str) -> Any:
    """The data for the charts in a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def title_of(text: str) -> str:
    return text.split("<title>")[1].split("</title>")[0]


def month() -> list[SymbolQuality]:
    """Three symbols over a month, the first with gaps of all kinds, the shortest of 11 seconds."""
    gaps = [
        gap("depth", START + 3 * DAY, 11_000),
        gap("tickers", START + 9 * DAY, 45_000),
        *(gap(channel, START + 20 * DAY, 5 * HOUR) for channel in ("all", "depth", "tickers")),
    ]
    return [symbol(30 * DAY, *gaps), symbol(30 * DAY, name="eth"), symbol(20 * DAY, name="sol", start_ms=START + DAY)]


# What is in it


def test_the_price_is_said_to_be_the_mid() -> None:
    text = page(symbol(DAY))
    assert "Mid price, USDT" in text
    assert "<h3>Mid price and spread</h3>" in text


def test_the_title_says_whether_all_is_well() -> None:
    assert title_of(page(symbol(DAY), symbol(DAY, name="eth"))) == "All is well · MEXC archive"
    with_gap = symbol(DAY, gap("depth", START + HOUR, 11_000), name="eth")
    assert title_of(page(symbol(DAY), with_gap)) == "ETH_USDT needs a look · MEXC archive"
    missing = SymbolQuality("SOL_USDT", "sol", problem="there is no such table, run ch_setup.py")
    assert title_of(page(symbol(DAY), with_gap, missing)) == "ETH_USDT and SOL_USDT need a look · MEXC archive"
    many = [symbol(HOUR, gap("depth", START + HOUR // 2, 11_000), name=f"c{number}") for number in range(19)]
    fine = [symbol(HOUR, name=f"d{number}") for number in range(5)]
    assert title_of(page(*many, *fine)) == "19 of 24 symbols need a look · MEXC archive"
    assert title_of(page(missing)) == "Nothing is stored yet · MEXC archive"


def test_an_archive_that_gets_no_new_rows_is_not_well() -> None:
    quality = symbol(DAY)
    fresh = page(quality, made_at=from_ms(START + DAY + 50_000))
    stale = page(quality, made_at=from_ms(START + DAY + 102_000))
    assert title_of(fresh).startswith("All is well")
    assert title_of(stale).startswith("BTC_USDT needs a look")
    assert "The newest row is 102.0 s old: is the collector running?" in stale
    # A time that was asked for ends after its newest row, and may be long ago.
    quality.end_ms = START + DAY + 1
    assert title_of(page(quality, made_at=from_ms(START + 9 * DAY))).startswith("All is well")


def test_coverage_of_less_than_all_is_never_rounded_up_to_it() -> None:
    text = page(symbol(30 * DAY, gap("depth", START + HOUR, 11_000)))
    assert "99.99 %" in text
    assert "100.00 %" not in text


def test_each_finding_is_told_in_words() -> None:
    quality = symbol(DAY)
    quality.crossed_books = Finding(2, START + 61_000)
    quality.unsorted_books = Finding(3, START)
    quality.unreadable_books = Finding(1, START)
    quality.channels[0].out_of_order, quality.channels[0].worst_seconds = Finding(7, START), 30
    quality.channels[2].out_of_order, quality.channels[2].worst_seconds = Finding(4, START), 2.9
    quality.channels[2].duplicates = Finding(1234, START)
    quality.misdated = Finding(1, START)
    quality.minutes_without_deals = [START // 1000 + 120, START // 1000 + 180]
    quality.dead_letters = [DeadLetters("rs.error", 3, START, "some text"), DeadLetters("binary", 1, START, "other")]
    text = re.sub(r"</?time>", "", page(quality))
    for words in (
        "2 minutes with trades and no deal: tickers show a new last price or open interest; first 2026-10-01 00:02:00.",
        "2 rows of depth crossed: the best bid is not below the best ask; first 2026-10-01 00:01:01.",
        "3 rows of depth with levels that are not in the order of their price; first 2026-10-01 00:00:00.",
        "1 row of depth that cannot be read, or without two sides; first",
        "7 rows of tickers older than one stored before, by 30.0 s at worst; first",
        "4 rows of depth older than one stored before, by 2.9 s at worst, as those are that only the slower of two",
        "1,234 rows of depth equal to the one before; first",
        "1 row dated before 2018 or after tomorrow, not examined; first",
        "3 dead letters, error messages of MEXC; first",
        "<code>some text</code>",
        "1 dead letter, binary; first",
        "To look at: missing deals, row order, duplicates, crossed books, unsorted books, unreadable books, misdated",
    ):
        assert words in text


def test_what_mexcs_klines_say_is_told_in_words() -> None:
    text = page(symbol(HOUR), audits=[audit(HOUR)])
    assert title_of(text).startswith("All is well")
    assert "None of the 60,000 contracts by MEXC&#x27;s klines is missing; 60 of 60 minutes agree exactly." in text
    assert "Contracts: 100.00 % of MEXC&#x27;s are here; 60 of 60 minutes agree exactly." in text
    assert "MEXC&#x27;s klines" not in page(symbol(HOUR))

    differences = (
        Difference(START + MINUTE, 1000, 3, ("open",)),
        Difference(START + 2 * MINUTE, 1000, 30, ()),
        Difference(START + 3 * MINUTE, 1000, -7, ()),
        Difference(START + 4 * MINUTE, 1000, 0, ("high", "close")),
    )
    refused = NotCompared(START, START + MINUTE, "MEXC's kline is nonsense: <b>")
    text = page(symbol(HOUR), audits=[audit(HOUR, *differences, not_compared=[refused])])
    assert title_of(text).startswith("BTC_USDT needs a look")
    text = re.sub(r"</?time>", "", text)
    for words in (
        "To look at: missing contracts, contracts too many",
        "33 of the 60,000 contracts by MEXC&#x27;s klines are missing, 99.94 % are here; most of them, 30, at"
        " 2026-10-01 00:02:00.",
        "7 contracts too many, by MEXC&#x27;s klines.",
        "1 minute with all contracts, and other prices than MEXC&#x27;s kline; first 2026-10-01 00:04:00.",
        "Not compared with MEXC&#x27;s klines: 2026-10-01 00:00:00 to 2026-10-01 00:01:00.",
        "<code>MEXC&#x27;s kline is nonsense: &lt;b&gt;</code>",
        "All minutes that differ, the most contracts first",
        "<td>high, close</td>",
        ">7 too many<",
    ):
        assert words in text
    assert text.index("<td>2026-10-01 00:02</td>") < text.index("<td>2026-10-01 00:03</td>")

    problem = SymbolAudit("BTC_USDT", "btc", problem="HTTP 403 Forbidden")
    assert "Not compared with MEXC&#x27;s klines: HTTP 403 Forbidden." in page(symbol(HOUR), audits=[problem])
    nothing = SymbolQuality("BTC_USDT", "btc", problem="there are no rows")
    all_missing = audit(HOUR, *(Difference(START + at * MINUTE, 1000, 1000, ()) for at in range(60)))
    assert "60,000 of the 60,000 contracts by MEXC&#x27;s klines are missing" in page(nothing, audits=[all_missing])


def test_a_year_of_missing_contracts_stays_small() -> None:
    differences = [Difference(START + at * MINUTE, 1000, at % 9 - 1, ()) for at in range(365 * 1440)]
    archive = symbol(365 * DAY)
    text = page(archive, audits=[audit(365 * DAY, *differences)])
    drawn = data_of(text)["symbols"]["btc"]["missing"]
    assert len(drawn["missing"]) == len(drawn["too_many"]) <= 1500
    assert sum(drawn["missing"]) == sum(max(each.missing, 0) for each in differences)
    assert sum(drawn["too_many"]) == sum(max(-each.missing, 0) for each in differences)
    assert len(text) - len(page(archive)) < 50_000


def test_sizes_are_written_as_verif_py_writes_them() -> None:
    quality = symbol(HOUR)
    data_bin, index_mrk = human_size(quality.rows * 19), human_size(quality.rows)
    text = page(quality)
    assert f"<dt>Disk</dt><dd>{human_size(quality.rows * 20)}, data.bin {data_bin}</dd>" in text
    assert f'<td class="number">{data_bin}</td>' in text
    assert f'<td class="number">{index_mrk}</td>' in text
    assert "All of ClickHouse takes 123.0M." in text
    assert "iB" not in without_scripts(text)


def test_many_symbols_are_a_number_and_the_worst_come_first() -> None:
    archive = [symbol(HOUR, name=f"c{number}") for number in range(24)]
    archive[7] = symbol(HOUR, gap("depth", START + 600_000, 60_000), name="gap")
    archive[9] = symbol(HOUR, gap("depth", START + 600_000, 600_000), name="longgap")
    archive[11] = SymbolQuality("NONE_USDT", "none", problem="there are no rows")
    text = page(*archive)
    assert f"<p>24 symbols from <time>{iso(START)[:19].replace('T', ' ')}</time> to " in text
    names = ["NONE_USDT", "LONGGAP_USDT", "GAP_USDT", "C0_USDT", "C1_USDT"]
    assert re.findall(r'<h2><a href="#\w+">(\w+)</a>', text)[:5] == names
    assert re.findall(r'<h2 id="\w+-name">(\w+)</h2>', text)[:5] == names


def tiers_of(each: SymbolQuality, beside: int, trouble: str = "") -> Tiers:
    """A table whose newest rows are in both."""
    times = each.start_ms, each.end_ms
    live, history = (Tier(name, 0, 1 << 20, *times) for name in (each.table, f"{each.table}_history"))
    by_type = {"t": 5, "dp": each.rows - 5}
    return Tiers(each.table, replace(live, records=beside), replace(history, records=each.rows), trouble, by_type)


def test_histories_of_many_symbols_are_a_line_each_those_with_trouble_first() -> None:
    archive = [symbol(HOUR, name=f"c{number}") for number in range(12)]
    trouble = "c7_history lacks rows that c7 has"
    text = page(*archive, tiers=[tiers_of(each, 77, trouble * (each.table == "c7")) for each in archive])
    assert f"<p>{trouble}.</p>" in text
    assert "c3_history" not in text, "nor anything else of those that are well"
    (table,) = re.findall('<table class="histories">(.*?)</table>', text, re.DOTALL)
    assert re.findall(r'<th scope="row">(\w+)</th>', table)[:3] == ["C7_USDT", "C0_USDT", "C1_USDT"]
    assert table.count('<td class="number">77</td>') == 12
    few = page(*archive[:3], tiers=[tiers_of(each, 77) for each in archive[:3]])
    assert f"<p>c0_history: {archive[0].rows} records, 1.0M, from " in few
    assert '<table class="histories">' not in few


def test_rows_of_a_history_count() -> None:
    (quality,) = archive = [symbol(HOUR)]
    text = page(quality, tiers=[replace(tiers_of(quality, 0), by_type={"t": 123_456, "d": 654_321})])
    assert re.search(r'<th scope="row">Rows</th><td class="number">777,777</td>', text)
    assert re.search(r'<th scope="row">– deals</th><td class="number">654,321</td>', text)
    assert f'<td class="number">{archive[0].rows:,}</td>' in page(*archive)


def test_of_what_the_exchange_has_sent_the_beginning_is_shown() -> None:
    quality = symbol(DAY)
    long = '{"channel":"push.kline","data":' + '{"a":1},' * 60
    quality.dead_letters = [DeadLetters("bad JSON", 1, START, "[" * 500), DeadLetters("other", 1, START, long)]
    codes = re.findall("<code>(.*?)</code>", page(quality))
    assert codes == ["[[[[… (500 times)", html.escape(long[:160]) + "…"]


def test_blocks_are_told_with_what_to_do_about_them() -> None:
    assert "ch_setup.py" not in page(symbol(DAY), blocks=COMPACT_BLOCKS)
    text = page(symbol(DAY), symbol(DAY, name="eth"), blocks=200_000)
    assert "<p>btc is fragmented: 200,000 small blocks, more than twice COMPACT_BLOCKS. " in text
    assert "if no collector runs, python3 ch_setup.py --compact eth.</p>" in text
    assert "85.8M" in text


@pytest.mark.parametrize("archive", [[], [SymbolQuality("X_USDT", "x", problem="there are no rows")], month()])
def test_nothing_is_loaded_from_anywhere(archive: list[SymbolQuality]) -> None:
    text = page(*archive)
    assert re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?[^#"'][^\s>]*""", without_scripts(text)) == []
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy.startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


def without_scripts(text: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_what_the_exchange_has_sent_is_never_markup() -> None:
    quality = symbol(DAY)
    quality.dead_letters = [DeadLetters(HOSTILE, 1, START, HOSTILE)]
    text = page(quality)
    innocent = page(symbol(DAY))
    for tag in ("<script", "</script", "<img", "<!--", "onerror=hacked=1>"):
        assert text.count(tag) == innocent.count(tag)
    assert "&lt;/script&gt;&lt;script&gt;hacked=1" in text
    assert "\\u202egnp.exe \\x00\\x1b[31m \\ud800" in text
    text.encode()


def test_no_data_can_end_its_script() -> None:
    quality = symbol(DAY, name="</script><script>hacked=1")
    text = page(quality)
    assert text.count("</script") == page(symbol(DAY)).count("</script")
    assert list(data_of(text)["symbols"]) == ["</script><script>hacked=1"]


def test_a_month_with_thousands_of_gaps_stays_small() -> None:
    gaps = [gap("depth", START + number * 11 * MINUTE, 11_000) for number in range(4000)]
    archive = [symbol(31 * DAY, *gaps, name=name) for name in ("btc", "eth", "sol")]
    for quality in archive:
        for number, channel in enumerate(quality.channels):
            channel.by_minute = {minute: minute // 60 % (997 + number) for minute in channel.by_minute}
        quality.dead_letters = [DeadLetters(f"kind {n}", 1, START, "<" * 500) for n in range(100)]
    text = page(*archive)
    assert len(text.encode()) < 1_000_000
    btc = data_of(text)["symbols"]["btc"]
    marks = btc["lanes"][1]["gaps"]
    assert 300 < len(marks) <= 401
    assert sum(count for _, _, count, _ in marks) == 4000
    assert sum(seconds for _, _, _, seconds in marks) == pytest.approx(4000 * 11)
    assert len(btc["rates"]["deals"]["mean"]) == 1488  # half an hour each
    assert len(btc["prices"]["times"]) == 2000
    assert len(btc["growth"]["times"]) <= 1490


def test_a_minute_without_rows_is_seen_in_any_bucket() -> None:
    quality = symbol(30 * DAY)
    del quality.channels[0].by_minute[START // 1000 + 12_345 * 60]
    rate = data_of(page(quality))["symbols"]["btc"]["rates"]["tickers"]
    assert rate["step"] == 30 * 60
    bucket = 12_345 // 30
    assert rate["low"][bucket - 1 : bucket + 2] == [30, 0, 30]
    assert rate["mean"][bucket] == 29
    assert rate["high"][bucket] == 30


def test_minutes_that_are_not_whole_make_no_dip() -> None:
    quality = symbol(10 * MINUTE, start_ms=START + 30_000)
    deals = quality.channels[1]
    deals.by_minute = {START // 1000 + minute * 60: 300 if minute in (0, 10) else 600 for minute in range(11)}
    rate = data_of(page(quality))["symbols"]["btc"]["rates"]["deals"]
    assert rate == {"start": START // 1000 + 60, "step": 60, "mean": [600] * 9}


def test_of_less_than_two_whole_minutes_nothing_is_drawn_by_the_minute() -> None:
    text = page(symbol(40_000, start_ms=START + 45_000))
    assert data_of(text)["symbols"]["btc"]["rates"] == {}
    assert "Rows: 60 tickers, 1,200 deals and 444 depth. A rate takes two whole minutes." in text
    assert "1,704 rows, about 33.3K; too short to draw." in text
    assert re.findall(r'data-chart="(\w+)"', without_scripts(text)) == ["coverage", "price", "spread"]
    assert 'data-chart="growth"' in without_scripts(page(symbol(2 * MINUTE)))


def test_a_price_is_not_drawn_across_a_time_without_one() -> None:
    quality = symbol(HOUR)
    points = [point for point in prices(quality) if not 600_000 < point.ts_ms - START < 700_000]
    text = render(Storage([], False, None), [quality], {"btc": points}, from_ms(START + HOUR), Settings())
    series = data_of(text)["symbols"]["btc"]["prices"]
    hole = series["mid"].index(None)
    assert series["times"][hole - 1 : hole + 2] == [START / 1000 + second for second in (599.4, 601.2, 700.2)]
    assert series["mid"].count(None) == 1


# What is read


def insert(stack: Stack, *rows: tuple[int, str, str], table: str = "btc") -> None:
    """Store rows, each in a block of its own."""
    for ts_ms, mt, m in rows:
        quoted = m.replace("'", "\\'")
        stack.query(f"INSERT INTO mexc_data.{table} VALUES (fromUnixTimestamp64Milli({ts_ms}), '{mt}', '{quoted}')")


def read(stack: Stack, table: str, seconds: int, points: int = 2000) -> list[PricePoint]:
    client = Client("127.0.0.1", port=stack.port, password=stack.env["CLICKHOUSE_PASSWORD"])
    return read_prices(client, "mexc_data", table, from_ms(START), from_ms(START + seconds * 1000), points)


def test_prices_are_those_of_the_first_levels(served: Stack) -> None:
    insert(
        served,
        (START, "dp", "[100,5],[99,1]|[101,3],[102,4]"),
        (START + 400, "dp", "[102,5]|[102.5,3]"),
        (START + 500, "t", "84055|84063.8|84104|546882118|0.00007200"),
        (START + 5_000, "dp", "[9,0],[7.5,1]|[7,0.0],[7.75,0.1],[8,1]"),
        (START - 1, "dp", "[1,1]|[2,1]"),
        (START + 10_000, "dp", "[1,1]|[2,1]"),
    )
    one_sided = (
        "|[101,3]",
        "[100,1]|",
        "|",
        "no book",
        "[a,1]|[b,1]",
        "[nan,1]|[inf,1]",
        "[1,1]|[",
        "",
        "[1,1]|[2,0]",
        "[1,0]|[2,1]",
    )
    insert(served, *((START + 7_000, "dp", m) for m in one_sided))
    assert read(served, "btc", 10) == [
        PricePoint(START, 1_000, mid=101.375, low=100.5, high=102.25, spread=0.75, widest=1.0),
        PricePoint(START + 5_000, 1_000, mid=7.625, low=7.625, high=7.625, spread=0.25, widest=0.25),
    ]


def test_prices_of_a_long_time_are_a_bounded_number_of_averages(served: Stack) -> None:
    served.query(
        f"INSERT INTO mexc_data.eth SELECT fromUnixTimestamp64Milli(toInt64({START}) + number * 1000), 'dp',"
        " concat('[', toString(1000 + number), ',5]|[', toString(1000 + number + 1 + number % 3), ',7]')"
        " FROM numbers(3600)"
    )
    found = read(served, "eth", 3600, points=10)
    assert len(found) <= 10
    step = found[1].ts_ms - found[0].ts_ms
    assert step == 400_000
    spreads = [1 + number % 3 for number in range(3600)]
    mids = [1000 + number + spreads[number] / 2 for number in range(3600)]
    for number, point in enumerate(found):
        inside = slice(number * 400, (number + 1) * 400)
        assert point.ts_ms == START + number * step
        assert point.mid == pytest.approx(sum(mids[inside]) / 400)
        assert (point.low, point.high) == (min(mids[inside]), max(mids[inside]))
        assert point.spread == pytest.approx(sum(spreads[inside]) / 400)
        assert point.widest == 3


def test_prices_of_a_table_that_is_being_compacted_are_read_where_its_rows_are(served: Stack) -> None:
    insert(served, (START, "dp", "[100,5]|[101,3]"), table="sol")
    served.query("RENAME TABLE mexc_data.sol TO mexc_data.sol_compacting_0123abcd")
    assert [point.mid for point in read(served, "sol", 10)] == [100.5]
    served.query("RENAME TABLE mexc_data.sol_compacting_0123abcd TO mexc_data.sol")


def test_prices_of_no_table_are_none(served: Stack) -> None:
    assert read(served, "nothing", 10) == []


# What a browser makes of it


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that playwright has installed."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page in the browser, with all that it asked for and complained of."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | options
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.url = file.as_uri()

    def figure(self, chart: str, table: str = "btc", channel: str = "") -> Any:
        return self.page.locator(f'figure[data-chart="{chart}"][data-table="{table}"][data-channel="{channel}"]')

    def readout(self, figure: Any) -> str:
        text: str = figure.locator(".readout").inner_text()
        return text

    def at(self, figure: Any, ts_ms: float, whole: tuple[float, float], y: float = 0.5) -> tuple[float, float]:
        """Where a moment is in a chart that shows the time from `whole[0]` to `whole[1]`."""
        figure.scroll_into_view_if_needed()
        box = figure.locator(".u-over").bounding_box()
        share = (ts_ms - whole[0]) / (whole[1] - whole[0])
        return box["x"] + box["width"] * share, box["y"] + box["height"] * y

    def point(self, figure: Any, ts_ms: float, whole: tuple[float, float], y: float = 0.5) -> str:
        """Move the mouse to a moment of a chart; return what its readout says."""
        self.page.mouse.move(*self.at(figure, ts_ms, whole, y))
        return self.readout(figure)

    def ink(self, figure: Any) -> str:
        """What a chart's canvas shows."""
        drawn: str = figure.locator("canvas").evaluate("canvas => canvas.toDataURL()")
        return drawn


MONTH = (START, START + 30 * DAY)


@pytest.fixture(scope="module")
def month_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("month") / "report.html"
    archive = month()
    archive[0].dead_letters = [DeadLetters("binary", 1, START, HOSTILE)]
    file.write_text(page(*archive), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def wide(browser: Browser, month_file: Path) -> Opened:
    """The month on a desktop."""
    return Opened(browser, month_file)


@pytest.fixture
def desktop(wide: Opened) -> Opened:
    """The month on a desktop, as it is at first."""
    wide.page.mouse.move(0, 0)
    wide.page.keyboard.press("Escape")
    return wide


@pytest.mark.browser
@pytest.mark.parametrize("archive", ["month", "hostile", "seconds", "moment", "empty", "only tickers", "audited"])
def test_it_asks_for_nothing_and_complains_of_nothing(archive: str, browser: Browser, tmp_path: Path) -> None:
    only_tickers = symbol(HOUR, gap("depth", START, HOUR))
    only_tickers.channels[1:] = [ChannelQuality("deals"), ChannelQuality("depth")]
    hostile = symbol(DAY)
    hostile.dead_letters = [DeadLetters(HOSTILE, 1, START, HOSTILE)]
    symbols = {
        "month": month(),
        "hostile": [hostile],
        "seconds": [symbol(41_000, start_ms=START + 45_000)],
        "moment": [SymbolQuality("BTC_USDT", "btc", rows=1, start_ms=START, end_ms=START)],
        "empty": [SymbolQuality("BTC_USDT", "btc", problem="there are no rows")],
        "only tickers": [only_tickers],
        "audited": [symbol(HOUR)],
    }[archive]
    audits = [audit(HOUR, Difference(START, 1000, 1, ()))] if archive == "audited" else []
    file = tmp_path / "report.html"
    file.write_text(page(*symbols, audits=audits), encoding="utf-8")
    opened = Opened(browser, file)
    assert opened.page.evaluate("typeof hacked") == "undefined"
    assert opened.page.locator("script").count() == 3
    assert opened.requests == [opened.url]
    assert opened.complaints == []
    charts = opened.page.locator("figure").count()
    assert (charts == 0) == (archive == "empty")
    assert opened.page.locator("figure canvas").count() == charts
    opened.context.close()


@pytest.mark.browser
def test_of_many_symbols_all_but_the_worst_are_folded_and_drawn_when_opened(browser: Browser, tmp_path: Path) -> None:
    archive = [symbol(HOUR, name=f"c{number}") for number in range(6)]
    archive[4] = symbol(HOUR, gap("depth", START + 600_000, 60_000), name="gap")
    archive += [symbol(HOUR, gap("depth", START, 9000 * number), name=f"g{number}") for number in range(2, 5)]
    file = tmp_path / "many.html"
    file.write_text(page(*archive), encoding="utf-8")
    opened = Opened(browser, file)
    drawn = opened.page.locator("figure .uplot")
    assert (opened.page.locator("details").count(), opened.page.locator("details[open]").count()) == (6, 0)
    figures = opened.page.locator("#gap figure").count()
    assert drawn.count() == 3 * figures
    assert opened.page.locator("#g2 summary").inner_text() == "G2_USDT To look at: gaps"
    opened.page.locator(".card h2 a", has_text="C2_USDT").click()
    eventually(lambda: drawn.count() == 4 * figures, "its charts are drawn")
    assert opened.page.locator("details[open]").count() == 1
    width = opened.figure("coverage", "c2").locator("canvas").bounding_box()["width"]
    assert width == opened.figure("coverage", "gap").locator("canvas").bounding_box()["width"]
    opened.page.goto(f"{opened.url}#c3")
    opened.page.reload()  # as somebody has it who was sent that address
    assert opened.page.locator("#c3 details[open] figure .uplot").count() == figures
    assert opened.complaints == []


@pytest.mark.browser
def test_its_policy_forbids_what_is_not_its_own(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    injected = "<script>hacked=1</script><img src='https://example.com/x.png'></body>"
    file.write_text(page(symbol(DAY)).replace("</body>", injected), encoding="utf-8")
    opened = Opened(browser, file)
    assert opened.page.evaluate("typeof hacked") == "undefined"
    assert len([text for text in opened.complaints if "Content Security Policy" in text]) == 2
    opened.context.close()


@pytest.mark.browser
def test_each_gap_is_drawn_and_can_be_seen(desktop: Opened) -> None:
    (btc, *_) = month()
    for lane, channel in enumerate(("tickers", "depth", "all")):
        gaps = [each for each in btc.gaps if each.channel == channel]
        height = desktop.figure("coverage").locator(".lane").nth(0).bounding_box()["height"] + 6
        plot = desktop.figure("coverage").locator(".u-over").bounding_box()
        marks = [
            box
            for box in (mark.bounding_box() for mark in desktop.figure("coverage").locator(".mark").all())
            if lane == round((box["y"] - plot["y"] - 3) / height)
        ]
        assert len(marks) == len(gaps)
        for box, each in zip(marks, gaps, strict=True):
            share = (each.start_ms - START) / (30 * DAY)
            assert box["x"] - plot["x"] == pytest.approx(share * plot["width"], abs=1)
            assert box["width"] == pytest.approx(
                max(2, (each.end_ms - each.start_ms) / (30 * DAY) * plot["width"]), abs=1
            )
    assert desktop.figure("coverage", "eth").locator(".mark").count() == 0


@pytest.mark.browser
def test_pointing_at_a_gap_tells_of_it(desktop: Opened) -> None:
    coverage = desktop.figure("coverage")
    silent = desktop.readout(coverage)
    assert (
        desktop.point(coverage, START + 3 * DAY, MONTH, 0.5) == "2026-10-04 00:00:00 to 00:00:11: no depth for 11.0 s"
    )
    assert (
        desktop.point(coverage, START + 9 * DAY, MONTH, 0.2) == "2026-10-10 00:00:00 to 00:00:45: no tickers for 45.0 s"
    )
    told = desktop.point(coverage, START + 20 * DAY + HOUR, MONTH, 0.8)
    assert told == "2026-10-21 00:00:00 to 05:00:00: no rows of any channel for 5 h 0 min"
    assert coverage.locator(".mark.hot").count() == 1
    # The depth was silent then, the tickers were not.
    assert desktop.point(coverage, START + 3 * DAY, MONTH, 0.2).startswith("2026-10-0")
    assert coverage.locator(".mark.hot").count() == 0
    desktop.page.mouse.move(0, 0)
    assert desktop.readout(coverage) == silent


@pytest.mark.browser
def test_pointing_at_one_chart_tells_of_that_time_in_all(desktop: Opened) -> None:
    desktop.point(desktop.figure("price", "sol"), START + 3 * DAY, MONTH)
    assert desktop.readout(desktop.figure("coverage")) == "2026-10-04 00:00:00 to 00:00:11: no depth for 11.0 s"
    assert desktop.readout(desktop.figure("rate", channel="deals")).endswith(": 600 a minute (600 to 600)")
    assert desktop.readout(desktop.figure("growth", "eth")).startswith("2026-10-0")


@pytest.mark.browser
def test_charts_tell_the_numbers_that_are_in_the_data(browser: Browser, tmp_path: Path) -> None:
    quality = symbol(6 * HOUR)
    deals = quality.channels[1].by_minute
    for minute in deals:
        deals[minute] = 1000 + (minute - START // 1000) // 60
    file = tmp_path / "report.html"
    file.write_text(page(quality), encoding="utf-8")
    opened = Opened(browser, file)
    whole = (START, START + 6 * HOUR)
    now = START + 2 * HOUR + 30_000
    assert opened.point(opened.figure("rate", channel="deals"), now, whole) == "2026-10-01 02:00: 1,120 a minute"
    assert opened.readout(opened.figure("rate", channel="depth")) == "2026-10-01 02:00: 222 a minute"
    # One price in 10.8 s is more than one a pixel; so where it is, is told by the price.
    told = re.match(r"2026-10-01 (02:0\S+): (\S+) \((\S+) to (\S+)\)$", opened.readout(opened.figure("price")))
    assert told is not None
    mid = float(told[2].replace(",", ""))
    assert told[1] == iso(START + int((mid - 84_000) * 10_800))[11:19]
    assert (told[3], told[4]) == (f"{mid - 1:,.2f}", f"{mid + 1:,.2f}")
    assert opened.readout(opened.figure("spread")) == f"2026-10-01 {told[1]}: 0.10, 0.01 bp, at most 0.25"
    rows = 360 * (30 + 222) + sum(deals.values())
    growth = opened.figure("growth")
    opened.page.mouse.move(0, 0)
    assert opened.readout(growth) == f"{rows:,} rows, about {rows * 20 / 2**20:.1f}M, {rows * 80 / 2**20:.1f}M a day"
    told_rows = opened.point(growth, START + 3 * HOUR, whole)
    half = 180 * (30 + 222) + sum(count for minute, count in deals.items() if minute < START // 1000 + 3 * 3600)
    assert told_rows == f"2026-10-01 03:00: {half:,} rows, about {half * 20 / 2**20:.1f}M"
    opened.context.close()


@pytest.mark.browser
def test_pointing_at_a_minute_tells_what_is_missing_of_it(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    differences = (
        Difference(START + 10 * MINUTE, 1000, 12, ()),
        Difference(START + 20 * MINUTE, 1000, -7, ()),
        Difference(START + 40 * MINUTE, 1000, 900, ("low",)),
    )
    file.write_text(page(symbol(HOUR), audits=[audit(HOUR, *differences)]), encoding="utf-8")
    opened = Opened(browser, file)
    chart, whole = opened.figure("missing"), (START, START + HOUR)
    assert opened.readout(chart) == "912; 98.48 % of MEXC's are here, 57 of 60 minutes agree exactly"
    assert opened.point(chart, START + 10.5 * MINUTE, whole) == "2026-10-01 00:10: 12 missing"
    assert opened.point(chart, START + 20.5 * MINUTE, whole) == "2026-10-01 00:20: 0 missing, 7 too many"
    assert opened.point(chart, START + 30.5 * MINUTE, whole) == "2026-10-01 00:30: 0 missing"
    opened.page.get_by_role("button", name="Zoom to the gap of a minute from 2026-10-01 00:40:00").click()
    told = opened.point(chart, START + 40.5 * MINUTE, (START + 38 * MINUTE, START + 43 * MINUTE))
    assert told == "2026-10-01 00:40: 900 missing"
    opened.context.close()


@pytest.mark.browser
def test_a_bucket_tells_its_least_and_most(desktop: Opened) -> None:
    desktop.page.locator("#btc tr", has_text="45.0 s").get_by_role("button").click()
    middle = START + 9 * DAY + 22_500
    view = (middle - 112_500, middle + 112_500)
    told = desktop.point(desktop.figure("rate", channel="tickers"), middle, view)
    assert told == "2026-10-10 00:00: 29 a minute (0 to 30)"


@pytest.mark.browser
def test_a_gap_is_looked_at_closely_and_left_again(desktop: Opened) -> None:
    row = desktop.page.locator("#btc tr", has_text="11.0 s")
    row.get_by_role("button", name="Zoom to the gap of 11.0 s from 2026-10-04 00:00:00").click()
    plot = desktop.figure("coverage").locator(".u-over").bounding_box()
    (mark,) = [each.bounding_box() for each in desktop.figure("coverage").locator(".mark").all() if each.is_visible()]
    assert mark["width"] == pytest.approx(plot["width"] / 5, abs=2)
    assert mark["x"] == pytest.approx(plot["x"] + plot["width"] * 2 / 5, abs=2)
    desktop.page.get_by_role("button", name="Show the whole range").click()
    assert desktop.page.get_by_role("button", name="Show the whole range").count() == 0
    # By hand, a part is marked.
    price = desktop.figure("price")
    whole = desktop.ink(price)
    desktop.page.mouse.move(*desktop.at(price, START + 5 * DAY, MONTH))
    desktop.page.mouse.down()
    desktop.page.mouse.move(*desktop.at(price, START + 10 * DAY, MONTH), steps=4)
    desktop.page.mouse.up()
    part = (START + 5 * DAY, START + 10 * DAY)
    told = desktop.point(desktop.figure("coverage"), START + 9 * DAY, part, 0.2)
    assert told == "2026-10-10 00:00:00 to 00:00:45: no tickers for 45.0 s"
    assert desktop.ink(price) != whole
    desktop.page.keyboard.press("Escape")
    desktop.page.mouse.move(0, 0)
    assert desktop.ink(price) == whole


@pytest.mark.browser
def test_dark_is_dark_also_when_it_comes_later(browser: Browser, month_file: Path) -> None:
    opened = Opened(browser, month_file)
    price = opened.figure("price")

    def paper() -> str:
        color: str = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return color

    light, drawn = paper(), opened.ink(price)
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_function(
        "([canvas, old]) => canvas.toDataURL() !== old", arg=[price.locator("canvas").element_handle(), drawn]
    )
    assert (light, paper()) == ("rgb(250, 250, 248)", "rgb(20, 23, 27)")
    dark = Opened(browser, month_file, color_scheme="dark")
    assert opened.ink(price) == dark.ink(dark.figure("price"))
    assert opened.complaints == []
    opened.context.close()
    dark.context.close()


@pytest.mark.browser
def test_it_fits_a_phone_and_a_finger(browser: Browser, month_file: Path) -> None:
    phone = Opened(browser, month_file, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 360
    heads = [each.inner_text() for each in phone.page.locator(".gaps th").all() if each.is_visible()]
    assert heads == ["Silent", "Start, UTC", "End, UTC", "Length"]
    assert phone.page.locator(".scroll:has(.gaps)").evaluate("each => each.scrollWidth <= each.clientWidth")
    coverage = phone.figure("coverage")
    x, y = phone.at(coverage, START + 3 * DAY, MONTH)
    phone.page.touchscreen.tap(x + 5, y)  # a finger is broader than a gap
    assert phone.readout(coverage) == "2026-10-04 00:00:00 to 00:00:11: no depth for 11.0 s"
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 360
    # Turned, the charts take the width.
    phone.page.set_viewport_size({"width": 740, "height": 360})
    canvas = coverage.locator("canvas")
    phone.page.wait_for_function("canvas => canvas.clientWidth > 600", arg=canvas.element_handle())
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 740
    assert phone.point(coverage, START + 3 * DAY, MONTH) == "2026-10-04 00:00:00 to 00:00:11: no depth for 11.0 s"
    assert phone.complaints == []
    phone.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_no_card_is_too_narrow_for_what_is_in_it(width: int, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    archive = [symbol(MINUTE, name=name) for name in ("btc", "doge", "avax", "1000000mog")]
    file.write_text(page(*archive), encoding="utf-8")
    opened = Opened(browser, file, viewport={"width": width, "height": 900})
    for card in opened.page.locator(".card").all():
        box = card.bounding_box()
        assert box
        for part in card.locator(".coverage, dd, h2").all():
            inside = part.bounding_box()
            assert inside
            assert inside["x"] + inside["width"] <= box["x"] + box["width"] - 15
    opened.context.close()


@pytest.mark.browser
def test_charts_are_named_and_tables_have_captions(desktop: Opened) -> None:
    for figure in desktop.page.get_by_role("img").all():
        assert re.match(r"(BTC|ETH|SOL)_USDT, ", figure.get_attribute("aria-label") or "")
    assert desktop.page.get_by_role("img").count() == 21
    assert desktop.page.locator("table").count() == desktop.page.locator("table > caption").count() == 2
    levels = [
        int(name[1]) for name in desktop.page.locator("h1,h2,h3,h4").evaluate_all("all => all.map(e => e.tagName)")
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.browser
def test_it_shows_what_collectors_have_stored(running: Stack, browser: Browser, tmp_path: Path) -> None:
    running.exchange()
    collectors = [running.collector(name) for name in ("btc", "eth")]

    def complete() -> bool:
        return all({"t", "d", "dp"} <= {mt for _, mt, _ in running.rows(name)} for name in ("btc", "eth"))

    eventually(complete, "rows of all kinds")
    assert [collector.stop() for collector in collectors] == [0, 0]
    file = tmp_path / "report.html"
    verif = running.run("verif.py", "--html", file)
    assert verif.wait() == 0, verif.output
    opened = Opened(browser, file)
    assert opened.complaints == []
    assert re.search(r"SOL_USDT needs? a look · MEXC archive$", opened.page.title())
    cards = opened.page.locator(".card")
    assert [card.locator(".verdict").inner_text() == "No data" for card in cards.all()] == [False, False, True]
    for number, name in enumerate(("btc", "eth", "sol")):
        told = cards.nth(number).locator("dt", has_text="Rows").locator("+ dd")
        assert told.inner_text() == f"{running.count(name):,}"
    rows = running.rows()
    last = next(m for _, mt, m in reversed(rows) if mt == "dp")
    bid, ask = (float(side[1:].split(",")[0]) for side in last.split("|"))
    series = data_of(file.read_text(encoding="utf-8"))["symbols"]["btc"]["prices"]
    assert series["low"][-1] <= (bid + ask) / 2 <= series["high"][-1]
    opened.context.close()
