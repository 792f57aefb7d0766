"""What rows say of an archive, against a slow and plain version of it, wherever the stream is cut into batches."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.messages import DEADLETTER, parse_frame
from pipeline.read import quality
from pipeline.read.quality import Gap, Reconnect, Scan, Spans, SymbolQuality, kind_of
from pipeline.show.quality_report import as_json, as_text, verdict
from pipeline.times import from_ms, iso, parse_time, to_ms

T0 = 1_788_335_220_000  # a full minute: 2026-09-02T07:47:00Z
NUMBERS = {"t": 1, "d": 2, "dp": 3, "dl": 4}
LIMITS = {"tickers": 30_000, "depth": 10_000}

Rows = list[tuple[int, str, str]]


def state_of(mt: str, m: str) -> int:
    """Return what ClickHouse says of a ticker's last price and open interest, as far as tests tell them apart."""
    fields = m.split("|")
    return hash((fields[0], fields[3])) & (1 << 32) - 1 if mt == "t" and len(fields) == 5 and fields[3] else 0


def scanned(rows: Rows, cuts: Sequence[int] = (), start: int | None = None, end: int | None = None) -> SymbolQuality:
    """Return what the scan makes of `rows`, given to it in batches that end where `cuts` are."""
    scan = Scan("BTC_USDT", T0 + 10**9)
    places = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    for here, there in pairwise(places):
        batch = [(ts, hash(m) & (1 << 64) - 1, NUMBERS[mt], 0, state_of(mt, m)) for ts, mt, m in rows[here:there]]
        scan.add(np.array(batch, quality._ROW), [m.encode() for _, _, m in rows[here:there]])
    found = SymbolQuality("BTC_USDT", "btc")
    scan.report(found, (start, end), now_ms=T0 + 10**9)
    return found


def every(seconds: float, mt: str, start: float, end: float) -> Rows:
    """Return a row every so many seconds; times are seconds from T0."""
    times = range(T0 + round(1000 * start), T0 + round(1000 * end) + 1, round(1000 * seconds))
    return [(ts, mt, f"{mt} of {ts}") for ts in times]


def merged(*parts: Rows) -> Rows:
    return sorted(row for part in parts for row in part)


def gap(channel: str, start: float, end: float) -> Gap:
    return Gap(channel, T0 + round(1000 * start), T0 + round(1000 * end), end - start)


# Against the slow and plain version


def slow_gaps(times: list[int], limit: int, start: int, end: int) -> list[tuple[int, int]]:
    return [(a, b) for a, b in pairwise([start, *sorted(times), end]) if b - a > limit]


def slow_length(gaps: list[tuple[str, int, int]]) -> int:
    """Return how long it is that there is some gap."""
    edges = sorted({edge for _, a, b in gaps for edge in (a, b)})
    return sum(there - here for here, there in pairwise(edges) if any(a <= here and there <= b for _, a, b in gaps))


def slow_channel(rows: Rows, start: int, end: int, gaps: list[tuple[int, int]]) -> dict[str, Any]:
    """Return what is to be found of the rows of one channel, where these gaps are."""
    times = [ts for ts, _, _ in rows]
    behind = [max(times[: at + 1]) - ts for at, ts in enumerate(times)]
    minutes = {m: len(list(same)) for m, same in groupby(sorted(ts // 60_000 * 60 for ts in times))}
    full = range(-(-start // 60_000) * 60, end // 60_000 * 60, 60)
    whole = [minute for minute in full if not any(a < (minute + 60) * 1000 and minute * 1000 < b for a, b in gaps)]
    counts = [minutes.get(minute, 0) for minute in whole] if len(whole) >= 3 else []
    return {
        "rows": len(rows),
        "first_ms": min(times, default=None),
        "last_ms": max(times, default=None),
        "median_per_minute": median(counts) if counts else None,
        "min_per_minute": min(counts) if counts else None,
        "by_minute": minutes,
        "out_of_order": [ts for ts, late in zip(times, behind, strict=True) if late],
        "worst_seconds": max(behind, default=0) / 1000,
        "duplicates": [row[0] for before, row in pairwise(rows) if before == row],
    }


def slow_filled_in(rows: Rows) -> tuple[list[int], list[int]]:
    """Return the times of the deals that were filled in, and of all other rows."""
    filled_in: list[int] = []
    live: list[int] = []
    newest = 0
    for ts, mt, _ in rows:
        (filled_in if mt == "d" and newest - ts > 1000 else live).append(ts)
        newest = max(newest, ts)
    return filled_in, live


def assert_finding(found: quality.Finding, times: list[int]) -> None:
    assert (found.count, found.first_ms) == (len(times), times[0] if times else None)


TIMES = st.one_of(st.integers(0, 100), st.integers(0, 400).map(lambda second: second * 1000), st.integers(0, 400_000))
ROWS = st.lists(st.tuples(TIMES.map(T0.__add__), st.sampled_from(["t", "d", "d", "dp"]), st.sampled_from("xy")))
IN_ORDER = st.builds(sorted, ROWS)


@settings(deadline=None)
@example([(T0 + 61_000, "t", "x"), (T0, "t", "x")], [1], False)
@given(st.one_of(ROWS, IN_ORDER), st.lists(st.integers(0, 50), max_size=5), st.booleans())
def test_it_finds_what_a_plain_version_finds(rows: Rows, cuts: list[int], is_bounded: bool) -> None:
    bounds = (T0 - 5_000, T0 + 500_000) if is_bounded else (None, None)
    found = scanned(rows, cuts, *bounds)
    times = [ts for ts, _, _ in rows]
    start, end = bounds if is_bounded else (min(times, default=None), max(times, default=None))
    assert (found.start_ms, found.end_ms) == (start, end)
    if start is None or end is None:
        assert found.problem == "there are no rows"
        return
    gaps = []
    filled_in, live = slow_filled_in(rows)
    for mt, name, channel in zip(("t", "d", "dp"), ("tickers", "deals", "depth"), found.channels, strict=True):
        of_channel = [row for row in rows if row[1] == mt]
        silent = slow_gaps(
            [row[0] for row in of_channel] if name in LIMITS else live, LIMITS.get(name, 10_000), start, end
        )
        expected = slow_channel(of_channel, start, end, silent)
        duplicates = expected.pop("duplicates")
        assert_finding(channel.out_of_order, expected.pop("out_of_order"))
        if channel.duplicates is not None:
            assert_finding(channel.duplicates, duplicates)
        assert (channel.duplicates is None) == (mt == "d")
        assert {name: getattr(channel, name) for name in expected} == expected
        assert list(channel.by_minute) == sorted(channel.by_minute)
        if name in LIMITS:
            gaps += [(name, *each) for each in silent]
    if start < end:
        assert found.coverage == pytest.approx(100 - 100 * slow_length(gaps) / (end - start))
    gaps += [("all", *each) for each in slow_gaps(live, 10_000, start, end)]
    assert sorted((each.channel, each.start_ms, each.end_ms) for each in found.gaps) == sorted(gaps)
    assert [each.start_ms for each in found.gaps] == sorted(each.start_ms for each in found.gaps)
    for before, after in pairwise(found.uncovered):
        assert before.end_ms < after.start_ms
    silent = [(each.start_ms, each.end_ms) for each in found.reconnects if each.silent]
    assert silent == (slow_gaps(live, 10_000, min(live), max(live)) if live else [])
    assert sum(each.filled_in for each in found.reconnects) == len(filled_in)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 60))), st.integers(0, 9))
def test_spans_are_the_same_in_whatever_order_times_come(batches: list[list[int]], limit: int) -> None:
    spans = Spans(limit)
    for batch in batches:
        spans.add(np.array(batch, np.int64))
    times = sorted(time for batch in batches for time in batch)
    assert spans.gaps(-5, 70) == slow_gaps(times, limit, -5, 70)
    assert spans.inner_gaps() == (slow_gaps(times, limit, times[0], times[-1]) if times else [])
    assert spans.counts.sum() == len(times)


# What is a gap


def test_depth_that_is_silent_for_over_ten_seconds_is_a_gap() -> None:
    rows = merged(every(5, "t", 0, 100), every(1, "dp", 0, 40), every(1, "dp", 50.5, 100))
    found = scanned(rows)
    assert found.gaps == found.uncovered == [gap("depth", 40, 50.5)]
    assert found.coverage == pytest.approx(89.5)
    assert verdict(found) == "BTC_USDT: 89.50 % covered, 1 gap, longest 10.5 s"


def test_limits_themselves_are_no_gaps() -> None:
    rows = merged(every(30, "t", 0, 90), every(10, "dp", 0, 90))
    found = scanned(rows)
    assert not found.gaps
    assert found.coverage == 100


def test_gaps_that_touch_count_once() -> None:
    rows = merged(every(1, "t", 0, 40), every(1, "t", 80, 100), every(1, "dp", 0, 60), every(1, "dp", 90, 100))
    found = scanned(rows)
    assert found.gaps == [gap("tickers", 40, 80), gap("all", 60, 80), gap("depth", 60, 90)]
    assert found.uncovered == [gap("depth+tickers", 40, 90)]
    assert found.coverage == pytest.approx(50)


def test_a_channel_that_ended_early_or_never_came_is_a_gap() -> None:
    found = scanned(merged(every(1, "d", 0, 100), every(1, "dp", 0, 20)))
    assert found.gaps == [gap("tickers", 0, 100), gap("depth", 20, 100)]
    assert found.coverage == 0
    assert not found.reconnects


def test_what_is_missing_at_the_ends_counts_only_where_a_time_was_asked_for() -> None:
    rows = merged(every(1, "t", 100, 200), every(1, "dp", 100, 200))
    assert scanned(rows).coverage == 100
    found = scanned(rows, start=T0, end=T0 + 400_000)
    assert found.uncovered == [gap("depth+tickers", 0, 100), gap("depth+tickers", 200, 400)]
    assert found.coverage == pytest.approx(25)
    assert not found.reconnects


def test_what_is_yet_to_come_is_not_missing() -> None:
    rows = merged(every(1, "t", 0, 60), every(1, "dp", 0, 60))
    scan = Scan("BTC_USDT", T0 + 10**9)
    scan.add(np.array([(ts, 0, NUMBERS[mt], 0, 0) for ts, mt, _ in rows], quality._ROW), [b""] * len(rows))
    for end in (None, T0 + 10**9):
        found = SymbolQuality("BTC_USDT", "btc")
        scan.report(found, (T0, end), now_ms=T0 + 65_000)
        assert (found.end_ms, found.coverage) == (T0 + 65_000, 100)


def test_rows_a_minute_need_three_full_minutes() -> None:
    rows = merged(every(1, "t", 30, 230), every(0.5, "dp", 30, 230))
    tickers, _, depth = scanned(rows).channels
    assert (tickers.median_per_minute, tickers.min_per_minute, depth.median_per_minute) == (None, None, None)
    assert "n/a" in as_text(scanned(rows))
    rows = merged(every(1, "t", 30, 130), every(1, "t", 140, 250))
    tickers, deals, _ = scanned(rows).channels
    assert (tickers.median_per_minute, tickers.min_per_minute) == (60, 51)
    assert (deals.median_per_minute, deals.min_per_minute) == (0, 0)


def test_rows_a_minute_are_those_of_minutes_without_a_gap() -> None:
    rows = merged(*(every(1, mt, *times) for mt in ("t", "d", "dp") for times in ((0, 250), (990, 1200))))
    for channel in scanned(rows).channels:
        assert (channel.median_per_minute, channel.min_per_minute) == (60, 60)


# Reconnects


def test_silence_of_all_channels_is_a_reconnect_with_the_deals_filled_in() -> None:
    live = merged(*(every(1, mt, *times) for mt in ("t", "d", "dp") for times in ((0, 60), (75, 200))))
    at = live.index((T0 + 80_000, "d", f"d of {T0 + 80_000}"))
    rows = live[:at] + every(2, "d", 61, 74) + live[at:]
    found = scanned(rows)
    assert found.reconnects == [Reconnect(T0 + 60_000, T0 + 75_000, silent=True, filled_in=7)]
    assert gap("all", 60, 75) in found.gaps
    assert found.channels[1].out_of_order.count == 7
    assert found.channels[1].worst_seconds == 18  # the deals of second 79 are before it
    assert "no market data for 15.0 s, 7 deals filled in or late" in as_text(found)


def test_a_short_cut_shows_by_the_deals_filled_in() -> None:
    live = merged(*(every(1, mt, 0, 200) for mt in ("t", "d", "dp")))
    at = live.index((T0 + 80_000, "d", f"d of {T0 + 80_000}"))
    found = scanned(live[:at] + every(0.1, "d", 75.3, 75.8) + live[at:])
    assert found.reconnects == [Reconnect(T0 + 75_300, T0 + 75_800, silent=False, filled_in=6)]
    assert not found.gaps


@pytest.mark.parametrize("second", [59.1, 75.9])
def test_deals_filled_in_just_before_and_after_a_silence_are_of_the_same_reconnect(second: float) -> None:
    live = merged(*(every(1, mt, *times) for mt in ("t", "d", "dp") for times in ((0, 60), (75, 200))))
    found = scanned([*live, *every(1, "d", second, second)])
    assert found.reconnects == [Reconnect(T0 + 60_000, T0 + 75_000, silent=True, filled_in=1)]


def test_deals_a_little_out_of_order_are_no_reconnect() -> None:
    rows = [*merged(*(every(1, mt, 0, 60) for mt in ("t", "d", "dp"))), (T0 + 59_000, "d", "late")]
    found = scanned(rows)
    assert not found.reconnects
    assert (found.channels[1].out_of_order.count, found.channels[1].worst_seconds) == (1, 1)


# Minutes with trades and no deal


def ticker(second: float, last: float = 84055, held: int | str = 546882118) -> tuple[int, str, str]:
    return T0 + round(1000 * second), "t", f"{last}|84063.8|84060.1|{held}|0.00007200"


def deal(second: float) -> tuple[int, str, str]:
    return T0 + round(1000 * second), "d", "84055|1|1"


def without_deals(*rows: tuple[int, str, str]) -> list[int]:
    """Return the minutes with trades and no deal, in seconds from T0, where there are deals at 0 and 300 seconds."""
    return [second - T0 // 1000 for second in scanned([deal(0), *rows, deal(300)]).minutes_without_deals]


@pytest.mark.parametrize(
    ("after", "is_found"),
    [
        (ticker(100, last=84056), True),
        (ticker(100, held=546882119), True),
        (ticker(100), False),
        (ticker(100, held=""), False),  # MEXC sent none: nothing is known
        (ticker(115, last=84056), True),
        (ticker(115.001, last=84056), False),  # the deal may be of the next minute by its own time
        (ticker(130, last=84056), False),
    ],
)
def test_a_minute_whose_tickers_show_a_trade_has_a_deal_missing(after: tuple[int, str, str], is_found: bool) -> None:
    assert without_deals(ticker(65), after) == ([60] if is_found else [])


@pytest.mark.parametrize(
    ("second", "is_found"), [(54.999, True), (55, False), (90, False), (124.999, False), (125, True)]
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_deal_near_the_minute_is_its_deal(second: float, is_found: bool, is_late: bool) -> None:
    rows = [ticker(70), ticker(80, last=1)]
    rows = [*rows, ticker(200), deal(second)] if is_late else [deal(second), *rows]
    assert without_deals(*rows) == ([60] if is_found else [])


def test_what_changes_before_the_inner_part_of_a_minute_does_not_count() -> None:
    assert without_deals(ticker(64.9), ticker(70, last=1)) == []
    assert without_deals(ticker(10), ticker(70, last=1)) == []


def test_a_ticker_that_came_late_shows_no_trade() -> None:
    rows = [ticker(70, last=2), ticker(68, last=1), ticker(72, last=2), ticker(74, held=""), ticker(76, last=3)]
    assert without_deals(*rows) == []


def test_minutes_that_were_not_examined_with_what_is_around_them_do_not_count() -> None:
    rows = [row for minute in range(5) for row in (ticker(60 * minute + 10), ticker(60 * minute + 20, last=1))]
    assert [second - T0 // 1000 for second in scanned(rows).minutes_without_deals] == [60, 120, 180]
    bounded = scanned(rows, start=T0 + 55_001, end=T0 + 185_000).minutes_without_deals
    assert [second - T0 // 1000 for second in bounded] == [120]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(ticker, st.integers(0, 400), st.sampled_from([1.0, 2.0]), st.sampled_from([7, 8, ""])),
            st.builds(deal, st.integers(0, 400)),
        )
    ),
    st.lists(st.integers(0, 50), max_size=5),
)
def test_minutes_without_deals_are_those_of_a_plain_version(rows: Rows, cuts: list[int]) -> None:
    tickers: Rows = []
    for row in rows:
        if row[1] == "t" and (not tickers or row[0] >= tickers[-1][0]):
            tickers.append(row)
    times = [ts for ts, _, _ in rows]
    expected = []
    for minute in range(T0, T0 + 480_000, 60_000):
        inner = [row for row in tickers if 5_000 <= row[0] - minute <= 55_000]
        states = [state_of("t", m) for _, _, m in inner]
        traded = any(before and after and before != after for before, after in pairwise(states))
        near = any(mt == "d" and minute - 5_000 <= ts < minute + 65_000 for ts, mt, _ in rows)
        if traded and not near and min(times) <= minute - 5_000 and minute + 65_000 <= max(times):
            expected.append(minute // 1000)
    assert scanned(rows, cuts).minutes_without_deals == expected


def test_minutes_without_deals_are_told_with_examples() -> None:
    rows = [row for minute in range(12) for row in (ticker(60 * minute + 10), ticker(60 * minute + 20, last=1))]
    found = scanned(rows)
    assert verdict(found).endswith(", 10 minutes with trades and no deal")
    times = [iso(T0 + 60_000 * minute) for minute in range(1, 5)]
    assert (
        f"  deals: 10 minutes with trades and no deal: {', '.join(times[:3])} and 7 more; --json has all"
        in as_text(found).splitlines()
    )
    assert as_json(found)["minutes_without_deals"][:4] == times
    found.minutes_without_deals = found.minutes_without_deals[:1]
    assert f"deals: 1 minute with trades and no deal: {times[0]}\n" in as_text(found)
    found.minutes_without_deals = []
    assert "  deals: no minute with trades and no deal" in as_text(found).splitlines()
    assert "no deal" not in verdict(found)


# Dead letters


def dead(raw: str | bytes) -> str:
    """Return what is kept of a frame, which must be a dead letter."""
    rows = [row for row in parse_frame(raw, "BTC_USDT", 0).rows if row.mt == DEADLETTER]
    assert rows, raw
    return rows[0].m


TICKER = '{"lastPrice":1,"fairPrice":2,"indexPrice":3,"holdVol":4,"fundingRate":0.0001}'
PADDING = "x" * 600


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ('{"channel":"rs.error","data":"Contract [NOPE_USDT] not exists","ts":1}', "rs.error"),
        (f'{{"symbol":"ETH_USDT","data":{TICKER},"channel":"push.ticker","ts":1}}', "another symbol"),
        (f'{{"data":{TICKER},"channel":"push.ticker","ts":1}}', "another symbol"),
        ('{"symbol":"BTC_USDT","data":{},"channel":"push.kline","ts":1}', "unknown channel"),
        ('{"symbol":"BTC_USDT","data":{},"channel":7,"ts":1}', "unknown channel"),
        ('["no", "object"]', "unknown channel"),
        ('{"symbol":"BTC_USDT","data":{"lastPrice":"?"},"channel":"push.ticker","ts":1}', "bad field"),
        ('{"channel":"rs.sub.deal","data":"Contract [BTC_USDT] not exists","ts":1}', "refused subscription"),
        (f'{{"channel":"rs.sub.deal","data":"{PADDING}","ts":1}}', "refused subscription"),
        ('{"symbol":"BTC_USDT","data":[{"p":1,"v":2,"T":1},{"p":1}],"channel":"push.deal","ts":1}', "bad field"),
        ('{"symbol":"BTC_USDT","data":{"p":NaN,"v":2,"T":1},"channel":"push.deal","ts":1}', "bad field"),
        ('{"symbol":"BTC_USDT","data":', "broken JSON"),
        ("", "broken JSON"),
        ("\ud800", "broken JSON"),
        ("[" * 400, "broken JSON"),
        (b"\x00\xff\xfe", "binary"),
        (b"\x1f\x8b\x08zipped", "binary"),
        (b"plain \x07 bytes", "binary"),
        # Cut at 500 characters
        (f'{{"channel":"push.kline","data":"{PADDING}"}}', "unknown channel"),
        (f'{{"channel":"push.deal","symbol":"BTC_USDT","data":"{PADDING}"}}', "bad field"),
        (f'{{"channel":"push.deal","symbol":"ETH_USDT","data":"{PADDING}"}}', "another symbol"),
        (f'{{"symbol":"ETH_USDT","data":"{PADDING}","channel":"push.deal"}}', "another symbol"),
        (
            f'{{"channel":"push.deal","symbol":"ETH_USDT","data":{{"symbol":"BTC_USDT","x":"{PADDING}"}}}}',
            "another symbol",
        ),
        (f'{{"symbol":"BTC_USDT","data":"{PADDING}","channel":"push.kline"}}', "cut short"),
        ('{"symbol":"BTC_USDT","data":[' + '{"p":8406,"v":25,"T":1},' * 40 + "]}", "cut short"),
        ('{"symbol":"BTC_USDT","data":[' + '{"p":8406,"v":25,"T":1};' * 40 + "]}", "broken JSON"),
        (PADDING, "broken JSON"),
    ],
)
def test_dead_letters_by_kind(raw: str | bytes, kind: str) -> None:
    assert kind_of(dead(raw), "BTC_USDT") == kind


@pytest.mark.parametrize("cut", range(500, 530))
def test_wherever_sound_json_is_cut_it_is_not_called_broken(cut: int) -> None:
    text = json.dumps({"a": ["x" * 478, 1.5e-7, True, False, None, {"b": '\\ü"'}, -12], "c": 1})
    assert kind_of(text[:cut], "BTC_USDT") == ("unknown channel" if cut >= len(text) else "cut short")


@pytest.mark.parametrize(
    "text",
    [
        f'{{"symbol":"BTC_USDT","data":{TICKER},"channel":"push.ticker","ts":1}}',  # in a binary frame
        '{"symbol":"BTC_USDT","data":{"lastPrice":1,"fairPrice":null},"channel":"push.ticker","ts":1}',
        '{"symbol":"BTC_USDT","data":{"bids":[[1,2,3]],"asks":null},"channel":"push.depth.full","ts":1}',
        '{"channel":"pong","data":1}',
    ],
)
def test_what_an_older_collector_could_not_read_is_told_apart(text: str) -> None:
    assert kind_of(text, "BTC_USDT") == "readable now"


def test_what_no_collector_has_stored_has_a_kind_too() -> None:
    assert kind_of("[" * 100_000, "BTC_USDT") == "broken JSON"


@settings(deadline=None)
@given(st.text(max_size=600) | st.binary(max_size=600))
def test_whatever_arrives_has_a_kind(raw: str | bytes) -> None:
    for row in parse_frame(raw, "BTC_USDT", 0).rows:
        assert kind_of(row.m, "BTC_USDT") in ("binary", "broken JSON", "unknown channel", "cut short")


def test_dead_letters_are_counted_with_the_first_as_example() -> None:
    rows = [(T0, "dl", "{"), (T0 + 1, "dl", '{"channel":"rs.error"}'), (T0 + 2, "dl", "[")]
    found = scanned([*rows, (T0 + 3, "dl", "\x1b[2J")])
    assert [(each.kind, each.count, each.first_ms, each.example) for each in found.dead_letters] == [
        ("broken JSON", 2, T0, "{"),
        ("rs.error", 1, T0 + 1, '{"channel":"rs.error"}'),
        ("binary", 1, T0 + 3, "\x1b[2J"),
    ]
    assert found.problem == "there are no rows of market data"
    text = as_text(found)
    assert "\x1b" not in text
    assert "1 binary, 2026-09-02T07:47:00.003Z: \\x1b[2J" in text


# The reports


def test_the_text_leaves_the_shorter_gaps_out_and_json_does_not() -> None:
    rows = merged(*(every(1, mt, 60 * n, 60 * n + 40 - n) for mt in ("t", "dp") for n in range(12)))
    found = scanned(rows)
    assert len(found.uncovered) == 11
    text = as_text(found)
    assert "and 3 of 22.0 s and less; --json has all" in text
    assert text.index("30.0 s") < text.index("29.0 s")
    listed = as_json(found)
    json.dumps(listed)
    assert len(listed["uncovered"]) == 11
    assert listed["uncovered"][0] == {
        "channel": "depth",
        "start": "2026-09-02T07:47:40.000Z",
        "end": "2026-09-02T07:48:00.000Z",
        "seconds": 20.0,
    }
    assert listed["channels"][0]["by_minute"]["2026-09-02T07:47:00.000Z"] == 41


def test_what_is_not_whole_does_not_seem_to_be() -> None:
    found = SymbolQuality("BTC_USDT", "btc", coverage=99.9999, uncovered=[gap("depth", 0, 11)])
    assert verdict(found) == "BTC_USDT: 99.99 % covered, 1 gap, longest 11.0 s"
    found.coverage = 99.98
    assert "99.98 %" in verdict(found)


def test_one_row_is_too_few_to_speak_of_coverage() -> None:
    found = scanned([(T0, "t", "x")])
    assert found.coverage is None
    assert verdict(found) == "BTC_USDT: too few rows to speak of coverage"
    as_text(found)


@pytest.mark.parametrize("wrong", [1_788_335_220, T0 + 2 * 10**9, 10_413_791_999_999])
def test_a_row_with_an_impossible_time_is_told_and_spoils_nothing_else(wrong: int) -> None:
    rows = merged(every(5, "t", 0, 600), every(1, "dp", 0, 600), every(1, "d", 0, 600))
    found = scanned([*rows[:500], (wrong, "t", "x"), *rows[500:]])
    expected = scanned(rows)
    assert_finding(found.misdated, [wrong])
    assert verdict(found) == "BTC_USDT: 100.00 % covered, 0 gaps, 1 misdated row"
    assert f"1 rows (first {iso(wrong)}) dated before 2018 or after tomorrow, not examined" in as_text(found)
    found.misdated, found.rows = expected.misdated, expected.rows
    assert found == expected


# Times


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-10-01", datetime(2026, 10, 1, tzinfo=UTC)),
        ("2026-10-01T13:30", datetime(2026, 10, 1, 13, 30, tzinfo=UTC)),
        (" 2026-10-01 13:30:00.125", datetime(2026, 10, 1, 13, 30, 0, 125_000, tzinfo=UTC)),
        ("2026-10-01T13:30:00Z", datetime(2026, 10, 1, 13, 30, tzinfo=UTC)),
        ("2026-10-01T13:30:00+02:00", datetime(2026, 10, 1, 11, 30, tzinfo=UTC)),
    ],
)
def test_a_time_is_utc_unless_it_says_else(text: str, time: datetime) -> None:
    assert parse_time(text) == time
    assert parse_time(text).tzinfo is UTC


NOW = datetime(2026, 11, 1, 12, 30, 15, 125_000, UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("today", datetime(2026, 11, 1, tzinfo=UTC)),
        (" Yesterday", datetime(2026, 10, 31, tzinfo=UTC)),
        ("-24h", NOW - timedelta(hours=24)),
        ("-90s", NOW - timedelta(seconds=90)),
        ("-5m", NOW - timedelta(minutes=5)),
        ("-7d", NOW - timedelta(days=7)),
    ],
)
def test_a_time_can_be_named_from_now(text: str, time: datetime) -> None:
    assert parse_time(text, NOW) == time
    assert abs(parse_time("-1h") - (datetime.now(UTC) - timedelta(hours=1))) < timedelta(hours=1)


@pytest.mark.parametrize(
    "text",
    [
        *("", "tomorrow", "24h", "-h", "-1.5h", "-9999999d", f"-{'9' * 5000}d"),
        *("2026-13-01", "1788335220", "0001-01-01T00:00:00+23:00"),
    ],
)
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is no time: give a UTC date or ISO time, such as 2026-10-01 or 2026-10-01T13:30:00, yesterday or -24h",
    ):
        parse_time(text)


def test_milliseconds_are_exact() -> None:
    zone = timezone(timedelta(hours=2))
    assert to_ms(datetime(2026, 9, 2, 9, 47, 0, 999_999, zone)) == T0 + 999
    assert from_ms(T0 + 7) == datetime(2026, 9, 2, 7, 47, 0, 7000, UTC)
    assert iso(T0 + 7) == "2026-09-02T07:47:00.007Z"
