"""Typed columns against the rows they come from; candles and books against slow plain versions."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PROJECT
from local.market import frames
from pipeline.messages import Row, parse_frame
from pipeline.read.decode import TYPES, BadRow, candles, decode, depth_levels, schema, top_of_book

REAL = (PROJECT / "tests/data" / "mexc-frames.jsonl").read_text().splitlines()
START = 1_790_812_800_000  # 2026-10-01
SYMBOLS = ("BTC_USDT", "ETH_USDT", "DOGE_USDT")

any_input = settings(max_examples=60, deadline=None)
both_kinds = pytest.mark.parametrize(("exact", "number"), [(False, float), (True, Decimal)], ids=["float", "exact"])


def rows_of(symbol: str, raw_frames: Iterable[str]) -> list[Row]:
    return [row for raw in raw_frames for row in parse_frame(raw, symbol, START).rows]


SIMULATED = {symbol: rows_of(symbol, (raw for _, raw in islice(frames(symbol, 7, START), 1_200))) for symbol in SYMBOLS}
RECORDED = [row for raw in REAL for row in rows_of(json.loads(raw).get("symbol", "BTC_USDT"), [raw])]


def plain(row: Row, number: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what a row decodes to, by plain Python."""
    decoded: dict[str, Any] = {"ts": datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row.ts_ms)}
    fields = row.m.split("|")
    if row.mt == "t":
        names = ("last_price", "fair_price", "index_price", "open_interest", "funding_rate")
        kinds: tuple[Callable[[Any], Any], ...] = (number, number, number, int, number)
        values = [kind(field) if field else None for kind, field in zip(kinds, fields, strict=True)]
        return decoded | dict(zip(names, values, strict=True))
    if row.mt == "d":
        price, contracts, direction = fields
        side = {"1": "buy", "2": "sell"}[direction]
        return decoded | {"price": number(price), "contracts": number(contracts), "coins": None, "side": side}
    if row.mt == "dp":
        for side, text in zip(("bid", "ask"), fields, strict=True):
            levels = [level for level in re.findall(r"\[([^,]*),([^\]]*)\]", text) if Decimal(level[1])]
            levels += [(None, None)] * (20 - len(levels))
            for place, what in enumerate(("price", "contracts")):
                values = [level[place] for level in levels]
                decoded |= {f"{side}_{what}_{n}": v and number(v) for n, v in enumerate(values, 1)}
        return decoded
    return decoded | {"text": row.m}


def decode_rows(rows: list[Row], mt: str, *, exact: bool = False) -> pa.Table:
    """Return the rows of type `mt` decoded, of which each is to be good."""
    mine = [row for row in rows if row.mt == mt]
    batch = decode(mt, [row.ts_ms for row in mine], [row.m for row in mine], exact=exact)
    assert not batch.bad
    assert batch.table.schema == schema(mt, exact=exact)
    assert len(batch.table) == len(mine)
    return batch.table


# Rows to columns


@both_kinds
@pytest.mark.parametrize("mt", TYPES.values())
@pytest.mark.parametrize("rows", [*SIMULATED.values(), RECORDED], ids=[*SIMULATED, "recorded"])
def test_rows_decode_to_the_numbers_they_hold(rows: list[Row], mt: str, exact: bool, number: type) -> None:
    table = decode_rows(rows, mt, exact=exact)
    assert table.to_pylist() == [plain(row, number) for row in rows if row.mt == mt]


def test_the_rows_of_the_test_above_are_of_all_kinds() -> None:
    types = {mt for rows in [*SIMULATED.values(), RECORDED] for mt in {row.mt for row in rows}}
    assert types == set(TYPES.values())


whole_numbers = st.integers(0, 10**16 - 1).map(str)
fractions = st.builds(
    "{:0{}}{}".format, st.integers(0, 10**9), st.integers(1, 18), st.sampled_from(["", "0" * 9, "0" * 30])
)
plain_numbers = st.one_of(whole_numbers, st.builds("{}.{}".format, whole_numbers, fractions))
none = st.just("")
integers = st.integers(0, 10**18 - 1).map(str)
nothing = st.sampled_from(["0", "0.0", "0.000"])
levels = st.lists(st.tuples(plain_numbers, plain_numbers | nothing), max_size=20)
times = st.integers(-2_208_988_800_000, 10_413_791_999_999)  # what DateTime64(3) holds


def side(pairs: list[tuple[str, str]]) -> str:
    return ",".join(f"[{price},{contracts}]" for price, contracts in pairs)


rows_by_type = {
    "t": st.builds(
        "{}|{}|{}|{}|{}".format,
        plain_numbers,
        *[plain_numbers | none] * 2,
        integers | none,
        plain_numbers | plain_numbers.map("-{}".format) | none,
    ),
    "d": st.builds("{}|{}|{}".format, plain_numbers, plain_numbers, st.sampled_from("12")),
    "dp": st.builds("{}|{}".format, levels.map(side), levels.map(side)),
    "dl": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}
any_rows = st.sampled_from(list(rows_by_type)).flatmap(
    lambda mt: st.lists(st.builds(Row, times, st.just(mt), rows_by_type[mt]), min_size=1, max_size=8)
)


@any_input
@given(rows=any_rows)
def test_every_digit_counts(rows: list[Row]) -> None:
    for exact, number in ((False, float), (True, Decimal)):
        table = decode_rows(rows, rows[0].mt, exact=exact)
        assert table.to_pylist() == [plain(row, number) for row in rows]


@any_input
@given(
    rows=any_rows, at=st.integers(0, 10_000), cut=st.integers(0, 3), put=st.text("0123456789.,|[]-eEx \n", max_size=3)
)
def test_a_damaged_row_is_reported_or_still_read_right_and_its_neighbours_are_there(
    rows: list[Row], at: int, cut: int, put: str
) -> None:
    mt, victim = rows[0].mt, at % len(rows)
    at %= len(rows[victim].m) + 1
    m = rows[victim].m[:at] + put + rows[victim].m[at + cut :]
    rows[victim] = Row(rows[victim].ts_ms, mt, m)
    batch = decode(mt, [row.ts_ms for row in rows], [row.m for row in rows], exact=True)
    bad = {(row.ts_ms, row.m) for row in batch.bad}
    assert bad <= {(rows[victim].ts_ms, m)}
    if bad:
        assert batch.bad[0].reason
        del rows[victim]
    assert batch.table.to_pylist() == [plain(row, Decimal) for row in rows]


LEVEL = "[84062.5,34991]"


@pytest.mark.parametrize(
    ("mt", "m", "reason"),
    [
        ("d", "", "1 fields, not 3"),
        ("d", "77525.9|3", "2 fields, not 3"),
        ("d", "77525.9|3|2|1", "4 fields, not 3"),
        ("d", "77525.9|3|3", "side is '3'"),
        ("d", "77525.9|-3|2", "contracts is '-3'"),
        ("d", "-1|3|2", "price is '-1'"),
        ("d", "1e5|3|2", "price is '1e5'"),
        ("d", "nan|3|2", "price is 'nan'"),
        ("d", " 1|3|2", "price is ' 1'"),
        ("d", "1|3|2\n", r"side is '2\n'"),
        ("d", "1.|3|2", "price is '1.'"),
        ("d", "٣|3|2", "price is '٣'"),
        ("d", "1" * 17 + "|3|2", f"price is '{'1' * 17}'"),
        ("d", f"0.{'1' * 19}|3|2", f"price is '0.{'1' * 19}'"),
        ("d", "9" * 1_000_000 + "|3|2", f"price is '{'9' * 40}...'"),
        ("t", "1|2|3|4", "4 fields, not 5"),
        ("t", "1|2|3|4.5|0.00010000", "open_interest is '4.5'"),
        ("t", f"1|2|3|{10**18}|0.00010000", f"open_interest is '{10**18}'"),
        ("t", "1|2|-3|4|0.00010000", "index_price is '-3'"),
        ("t", "1|2|3|4|--0.1", "funding_rate is '--0.1'"),
        ("t", "1|2|3|4|-", "funding_rate is '-'"),
        ("t", "|2|3|4|0.1", "last_price is ''"),
        ("d", "|3|2", "price is ''"),
        ("dp", LEVEL, "1 fields, not 2"),
        ("dp", f"{LEVEL}|{LEVEL}|", "3 fields, not 2"),
        ("dp", f"{LEVEL},[1]|{LEVEL}", "'1' among the bids"),
        ("dp", f"{LEVEL}|{LEVEL},", "'84062.5,34991],' among the asks"),
        ("dp", f"{LEVEL}|[1,-2]", "'1,-2' among the asks"),
        ("dp", "1,2|", "brackets are missing"),
        ("dp", f"|{','.join([LEVEL] * 21)}", "21 asks, more than 20"),
        # Python's re would take for ever to see that this fails, if asked for all levels at once.
        ("dp", ",".join(["[1.000000000000000000,1.000000000000000000]"] * 20) + "|[x]", "'x' among the asks"),
    ],
)
def test_a_bad_row_comes_with_its_time_text_and_reason(mt: str, m: str, reason: str) -> None:
    good = next(row for row in SIMULATED["BTC_USDT"] if row.mt == mt)
    batch = decode(mt, [good.ts_ms, 5, good.ts_ms], [good.m, m, good.m])
    assert batch.bad == [BadRow(5, m, reason)]
    assert batch.table.to_pylist() == [plain(good, float)] * 2


@both_kinds
def test_what_mexc_did_not_send_is_null(exact: bool, number: type) -> None:
    rows = [Row(START, "t", m) for m in ("84055||||", "84055|84063.8||546882118|", "1|2|3|4|-0.00004500")]
    columns = decode_rows(rows, "t", exact=exact).to_pydict()
    del columns["ts"]
    assert columns == {
        "last_price": [84055, 84055, 1],
        "fair_price": [None, number("84063.8"), 2],
        "index_price": [None, None, 3],
        "open_interest": [None, 546882118, 4],
        "funding_rate": [None, None, number("-0.000045")],
    }


@both_kinds
def test_a_level_without_contracts_is_left_out(exact: bool, number: type) -> None:
    books = ["[9,0],[8,1],[7,0.000],[6,2]|[10,0]", "[9,1]|[10,2]", "|[10,0.0],[11,10]", "[9,0]|[10,100],[11,0]"]
    depth = decode_rows([Row(START + n, "dp", book) for n, book in enumerate(books)], "dp", exact=exact)
    levels = depth_levels(depth).to_pylist()
    assert [(level["side"], level["level"], level["price"], level["contracts"]) for level in levels] == [
        *[("bid", 1, 8, 1), ("bid", 2, 6, 2), ("bid", 1, 9, 1), ("ask", 1, 10, 2)],
        *[("ask", 1, 11, 10), ("ask", 1, 10, 100)],
    ]


@pytest.mark.parametrize("mt", TYPES.values())
def test_no_rows_give_an_empty_table(mt: str) -> None:
    batch = decode(mt, [], [])
    assert (len(batch.table), batch.table.schema, batch.bad) == (0, schema(mt), [])


def test_many_rows_are_all_there_in_order() -> None:
    count = 40_000  # more than are split at a time
    texts = [f"{n}.5|{n}|{1 + n % 2}" for n in range(count)]
    texts[20_000] = "bad"
    batch = decode("d", range(count), texts)
    assert [row.ts_ms for row in batch.bad] == [20_000]
    kept = [n for n in range(count) if n != 20_000]
    assert batch.table["contracts"].to_pylist() == kept
    assert batch.table["ts"].cast(pa.int64()).to_pylist() == kept


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unknown message type 'x': give one of t, d, dp, dl$"):
        decode("x", [], [])


# Candles


def total(amounts: list[float] | list[Decimal]) -> float | Decimal:
    """Return the sum, of floats the float that is nearest to it."""
    found = sum((Decimal(str(amount)) for amount in amounts), Decimal())
    return found if any(isinstance(amount, Decimal) for amount in amounts) else float(found)


def slow_candles(deals: list[dict[str, Any]], step_ms: int) -> list[dict[str, Any]]:
    """Return the candles by the book, one deal at a time."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    by_start = defaultdict(list)
    for deal in sorted(deals, key=lambda deal: deal["ts"]):  # stable
        ms = (deal["ts"] - epoch) // timedelta(milliseconds=1)
        by_start[ms - ms % step_ms].append(deal)
    made = []
    for start, group in by_start.items():
        prices = [deal["price"] for deal in group]
        volume = [float(deal["contracts"]) for deal in group]
        coins = [deal["coins"] for deal in group]
        paid = math.fsum(float(price) * size for price, size in zip(prices, volume, strict=True))
        traded = math.fsum(volume)
        made.append(
            {
                "start": epoch + timedelta(milliseconds=start),
                "open": prices[0],
                "high": max(prices),
                "low": min(prices),
                "close": prices[-1],
                "contracts": total([deal["contracts"] for deal in group]),
                "coins": None if None in coins else total(coins),
                "buy_contracts": total([deal["contracts"] for deal in group if deal["side"] == "buy"]),
                "deals": len(group),
                "vwap": pytest.approx(paid / traded, rel=1e-9) if traded else None,
            }
        )
    return made


def out_of_order(rows: list[Row]) -> list[Row]:
    """Return the rows as a gap leaves them: some are stored late, with times of their own."""
    deals = [row for row in rows if row.mt == "d"]
    return deals[:100] + deals[150:400] + deals[100:150] + deals[400:]


@both_kinds
@pytest.mark.parametrize(("interval", "step_ms"), [("250ms", 250), ("1s", 1_000), ("1m", 60_000), ("7m", 420_000)])
def test_candles_are_those_of_the_slow_version(interval: str, step_ms: int, exact: bool, number: type) -> None:
    deals = decode_rows(out_of_order(SIMULATED["ETH_USDT"]), "d", exact=exact)
    expected = slow_candles(deals.to_pylist(), step_ms)
    assert len(expected) > (1 if step_ms < 60_000 else 0)
    assert candles(deals, interval).to_pylist() == expected


few_times = st.integers(-5_000, 5_000)
deal_texts = st.builds(
    "{}|{}|{}".format, st.integers(1, 99), st.sampled_from(["0", "7", "9", "0.3"]), st.sampled_from("12")
)


@both_kinds
@any_input
@given(
    stored=st.lists(st.tuples(few_times, deal_texts), max_size=30),
    cut=st.integers(0, 30),
    step_ms=st.integers(1, 3_000),
)
def test_candles_of_any_deals(stored: list[tuple[int, str]], cut: int, step_ms: int, exact: bool, number: type) -> None:
    size = Decimal("0.0001")
    parts = stored[:cut], stored[cut:]
    deals = pa.concat_tables([decode("d", *_unzip(part), exact=exact, contract_size=size).table for part in parts])
    expected = slow_candles(deals.to_pylist(), step_ms)
    assert candles(deals, timedelta(milliseconds=step_ms)).to_pylist() == expected


def _unzip(pairs: list[tuple[int, str]]) -> tuple[list[int], list[str]]:
    return [ts for ts, _ in pairs], [m for _, m in pairs]


def test_an_interval_without_deals_has_no_candle_and_days_are_those_of_utc() -> None:
    day = 86_400_000
    deals = decode("d", [START - 1, START, START + 2 * day + day // 2], ["1|5|1", "2|6|2", "3|7|1"]).table
    made = candles(deals, "1d").to_pylist()
    assert [(c["start"].isoformat(), c["open"], c["buy_contracts"]) for c in made] == [
        ("2026-09-30T00:00:00+00:00", 1.0, 5.0),
        ("2026-10-01T00:00:00+00:00", 2.0, 0.0),
        ("2026-10-03T00:00:00+00:00", 3.0, 7.0),
    ]


def test_deals_of_one_millisecond_keep_their_order() -> None:
    texts = ["5|1|1", "9|1|1", "1|1|1", "7|1|1"]
    (candle,) = candles(decode("d", [START] * 4, texts).table, "1s").to_pylist()
    assert [candle[name] for name in ("open", "high", "low", "close")] == [5, 9, 1, 7]


def test_candles_of_deals_as_another_tool_writes_them() -> None:
    deals = decode_rows(SIMULATED["BTC_USDT"], "d")
    deals = deals.select(["ts", "price", "contracts", "side"])  # as an older version had them
    other = pa.schema([("ts", pa.timestamp("ns", "UTC")), *[deals.field(n) for n in (1, 2)], ("side", pa.string())])
    made = candles(deals.cast(other), "1s")
    assert made.equals(candles(deals, "1s"))
    assert made["coins"].null_count == len(made) > 0


@both_kinds
def test_no_deals_give_no_candles_but_the_same_columns(exact: bool, number: type) -> None:
    deals = decode_rows(SIMULATED["BTC_USDT"], "d", exact=exact)
    none = candles(deals.slice(0, 0), "1m")
    assert (len(none), none.schema) == (0, candles(deals, "1m").schema)


@pytest.mark.parametrize(
    "interval", ["", "1", "m", "0s", "-1s", "1w", "1.5s", "1 m", timedelta(0), timedelta(microseconds=1500)]
)
def test_an_interval_that_cannot_be_used_is_refused(interval: str | timedelta) -> None:
    with pytest.raises(ValueError, match="is no interval: give such as 1s"):
        candles(schema("d").empty_table(), interval)


# Coins


@both_kinds
@pytest.mark.parametrize(
    ("size", "coins"),
    [
        ("0.0001", ["0.0001", "0.0003", "0.0013", "104.8576"]),
        ("0.1", ["0.1", "0.3", "1.3", "104857.6"]),
        ("1", ["1", "3", "13", "1048576"]),
        ("100", ["100", "300", "1300", "104857600"]),
        ("1E+2", ["100", "300", "1300", "104857600"]),
        ("0.25", ["0.25", "0.75", "3.25", "262144"]),
    ],
)
def test_coins_are_contracts_times_their_size(size: str, coins: list[str], exact: bool, number: type) -> None:
    texts = [f"84055|{contracts}|1" for contracts in (1, 3, 13, 1 << 20)]
    table = decode("d", [START] * 4, texts, exact=exact, contract_size=Decimal(size)).table
    assert table.schema == schema("d", exact=exact)
    assert table["coins"].to_pylist() == [number(each) for each in coins]


@any_input
@given(
    contracts=st.lists(plain_numbers, min_size=1, max_size=5),
    size=st.sampled_from(["0.0001", "0.1", "1", "3", "1000", "0.000000000000000001", "1E+16"]),
)
def test_coins_of_any_contracts_are_exact_or_none(contracts: list[str], size: str) -> None:
    texts = [f"1|{each}|2" for each in contracts]
    table = decode("d", [START] * len(texts), texts, exact=True, contract_size=Decimal(size)).table
    with localcontext(prec=80):
        expected = [Decimal(each) * Decimal(size) for each in contracts]
        for found, right in zip(table["coins"].to_pylist(), expected, strict=True):
            if right >= 10**16:
                assert found is None
            else:
                assert abs(found - right) <= Decimal("0.5e-18")  # which is all that the type holds


@both_kinds
def test_a_candle_has_the_coins_of_its_deals_if_each_of_them_is_known(exact: bool, number: type) -> None:
    rows = [row for row in SIMULATED["ETH_USDT"] if row.mt == "d"]
    times, texts = [row.ts_ms for row in rows], [row.m for row in rows]
    known = decode("d", times, texts, exact=exact, contract_size=Decimal("0.01")).table
    assert candles(known, "10s").to_pylist() == slow_candles(known.to_pylist(), 10_000)
    unknown = decode("d", times[:1], texts[:1], exact=exact).table
    first, *others = candles(pa.concat_tables([unknown, known]), "10s")["coins"].to_pylist()
    assert first is None
    assert others
    assert None not in others


# Books

ONE_SIDED = [Row(START, "dp", f"{LEVEL}|"), Row(START, "dp", f"|{LEVEL}"), Row(START, "dp", "|")]
EMPTY_LEVELS = [Row(START, "dp", "[1,0]|[2,0]")]


@both_kinds
@pytest.mark.parametrize(
    "rows", [SIMULATED["DOGE_USDT"], RECORDED, ONE_SIDED + EMPTY_LEVELS], ids=["simulated", "recorded", "odd"]
)
def test_the_top_of_the_book_is_that_of_the_slow_version(rows: list[Row], exact: bool, number: type) -> None:
    depth = decode_rows(rows, "dp", exact=exact)
    expected = []
    for book in depth.to_pylist():
        bid, bids, ask, asks = (
            book[f"{name}_1"] for name in ("bid_price", "bid_contracts", "ask_price", "ask_contracts")
        )
        two_sided = bid is not None and ask is not None
        with localcontext(prec=60):
            expected.append(
                {
                    "ts": book["ts"],
                    "bid_price": bid,
                    "bid_contracts": bids,
                    "ask_price": ask,
                    "ask_contracts": asks,
                    "spread": ask - bid if two_sided else None,
                    "mid": (bid + ask) * number("0.5") if two_sided else None,
                    "imbalance": (float(bids) - float(asks)) / (float(bids) + float(asks)) if bids and asks else None,
                }
            )
    assert top_of_book(depth).to_pylist() == expected


@both_kinds
@any_input
@given(bid=plain_numbers, ask=plain_numbers)
def test_spread_and_mid_of_any_prices(bid: str, ask: str, exact: bool, number: type) -> None:
    (top,) = top_of_book(decode("dp", [0], [f"[{bid},1]|[{ask},3]"], exact=exact).table).to_pylist()
    with localcontext(prec=60):
        spread, mid = number(ask) - number(bid), (number(ask) + number(bid)) * number("0.5")
    assert (top["spread"], top["mid"], top["imbalance"]) == (spread, mid, -0.5)


@both_kinds
@pytest.mark.parametrize(
    "rows", [SIMULATED["BTC_USDT"], RECORDED, ONE_SIDED], ids=["simulated", "recorded", "one-sided"]
)
def test_each_level_becomes_a_row_bids_first(rows: list[Row], exact: bool, number: type) -> None:
    depth = decode_rows(rows, "dp", exact=exact)
    expected = [
        {"ts": book["ts"], "side": side, "level": level, "price": price, "contracts": book[f"{side}_contracts_{level}"]}
        for book in depth.to_pylist()
        for side in ("bid", "ask")
        for level in range(1, 21)
        if (price := book[f"{side}_price_{level}"]) is not None
    ]
    halves = pa.concat_tables([depth.slice(0, 1), depth.slice(1)])  # a table may be in several pieces
    assert depth_levels(depth).to_pylist() == depth_levels(halves).to_pylist() == expected


@both_kinds
def test_no_books_give_the_same_columns(exact: bool, number: type) -> None:
    depth = decode_rows(SIMULATED["BTC_USDT"], "dp", exact=exact)
    none = depth.slice(0, 0)
    empty = schema("dp", exact=exact).empty_table()
    for derive in (depth_levels, top_of_book):
        assert (len(derive(none)), derive(none).schema) == (0, derive(depth).schema)
        assert derive(empty).schema == derive(depth).schema
