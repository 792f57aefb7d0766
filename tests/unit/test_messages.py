"""Rows from frames, exact to the digit, whatever arrives."""

import base64
import gzip
import json
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import PROJECT
from pipeline.messages import Message, Row, format_frame, parse_answer, parse_deals, parse_frame

FRAMES = (PROJECT / "tests/data" / "mexc-frames.jsonl").read_text().splitlines()
CASES = [json.loads(line) for line in (PROJECT / "tests/data/frames.jsonl").read_text().splitlines()]
NOW = 1_795_000_000_000
TS = 1_788_335_242_156


def push(channel: str, data: str, *, symbol: str = "BTC_USDT", ts: str = str(TS)) -> str:
    return f'{{"symbol":"{symbol}","data":{data},"channel":"{channel}","ts":{ts}}}'


def parse(raw: str | bytes) -> Message:
    return parse_frame(raw, "BTC_USDT", NOW)


def texts(raw: str | bytes) -> list[tuple[str, str]]:
    return [(row.mt, row.m) for row in parse(raw).rows]


def ticker(**fields: str) -> str:
    given = {"lastPrice": "1", "fairPrice": "2", "indexPrice": "3", "holdVol": "4", "fundingRate": "0.0001"} | fields
    return push("push.ticker", "{" + ",".join(f'"{name}":{value}' for name, value in given.items()) + "}")


def deal(p: str = "84062.6", v: str = "13", direction: str = "1", rest: str = "") -> str:
    return f'{{"p":{p},"v":{v},"T":{direction}{rest}}}'


def made_at(t: int) -> str:
    return deal(rest=f',"t":{t}')


# The frames that MEXC really sent


@pytest.mark.parametrize("raw", FRAMES)
def test_a_real_frame_is_understood_by_the_collector_of_its_symbol(raw: str) -> None:
    frame = json.loads(raw)
    message = parse_frame(raw, frame.get("symbol", "BTC_USDT"), NOW)
    known = {"push.ticker": "t", "push.deal": "d", "push.depth.full": "dp"}
    control = frame["channel"] == "pong" or frame["channel"].startswith("rs.sub.")
    expected = [] if control else [known.get(frame["channel"], "dl")]
    assert [row.mt for row in message.rows] == expected
    assert all(row.ts_ms == frame["ts"] for row in message.rows)


def test_a_real_ticker() -> None:
    raw = next(raw for raw in FRAMES if "LINK_USDT" in raw)
    row = Row(1746351275382, "t", "14.022|14.022|14.028|14558875|-0.00004500", event_ms=1746351275382)
    assert parse_frame(raw, "LINK_USDT", NOW).rows == [row]


def test_a_real_deal() -> None:
    raw = next(raw for raw in FRAMES if "16005949540" in raw)
    assert parse(raw).rows == [Row(1788335242156, "d", "77525.9|3|2", id=16005949540, event_ms=1788335242156)]


def test_a_real_book_keeps_its_trailing_zeros() -> None:
    raw = next(raw for raw in FRAMES if "RIF_USDT" in raw)
    bids, asks = "[0.080490,46],[0.080480,489],[0.080470,420]", "[0.080550,48],[0.080560,347],[0.080570,149]"
    row = Row(1789498322169, "dp", f"{bids}|{asks}", id=5220571685, event_ms=1789498322165)
    assert parse_frame(raw, "RIF_USDT", NOW).rows == [row]


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_a_frame_that_was_once_misread_gives_its_rows(case: dict[str, Any]) -> None:
    raw = case["frame"] if "frame" in case else base64.b64decode(case["binary_base64"])
    assert [list(row[:3]) for row in parse(raw).rows] == case["rows"]


# Numbers


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("84055", "84055"),
        ("2384.60", "2384.60"),
        ("7.548E+4", "75480"),
        ("9.75e4", "97500"),
        ("1.5E-7", "0.00000015"),
        ("-0.5", "-0.5"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_a_price_is_stored_in_plain_notation_with_every_digit(sent: str, stored: str) -> None:
    assert texts(push("push.deal", deal(p=sent))) == [("d", f"{stored}|13|1")]


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_a_number_keeps_its_exact_value(number: Decimal) -> None:
    (row,) = parse(push("push.deal", deal(p=str(number)))).rows
    price = row.m.split("|")[0]
    assert Decimal(price) == number
    assert "e" not in price.lower()


@pytest.mark.parametrize("sent", ["63125.5", "-7", "7.5480", "0.00000015"])
def test_a_number_may_be_quoted(sent: str) -> None:
    raw = push("push.deal", deal(p=f'"{sent}"', v='"13.0"', direction='"1"'))
    assert texts(raw) == [("d", f"{sent}|13.0|1")]
    assert texts(push("push.depth.full", f'{{"bids":[["{sent}","1E+1","3"]],"asks":[]}}')) == [("dp", f"[{sent},10]|")]


_NO_NUMBERS = [
    "NaN",
    "Infinity",
    "01",
    "true",
    "null",
    '"01"',
    '"NaN"',
    '""',
    '" 1"',
    '"1 "',
    '"+1"',
    '"1_0"',
    '"１"',
    '"0x1"',
]


@pytest.mark.parametrize("sent", ["1E+999999999", "1e99999999999999999999", '"1E+999999999"', *_NO_NUMBERS])
def test_what_is_no_usable_number_makes_a_dead_letter(sent: str) -> None:
    raw = push("push.deal", deal(p=sent))
    assert texts(raw) == [("dl", raw[:500])]


# Tickers


@pytest.mark.parametrize(("sent", "stored"), [("546882118", "546882118"), ("5E+3", "5000"), ("12.0", "12")])
def test_hold_vol_is_stored_as_an_integer(sent: str, stored: str) -> None:
    assert texts(ticker(holdVol=sent)) == [("t", f"1|2|3|{stored}|0.00010000")]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("0", "0.00000000"),
        ("0.000072", "0.00007200"),
        ("-0.000045", "-0.00004500"),
        ("7.2E-5", "0.00007200"),
        ("0.0001234567891", "0.00012346"),
    ],
)
def test_the_funding_rate_has_eight_decimals_and_its_sign(sent: str, stored: str) -> None:
    assert texts(ticker(fundingRate=sent)) == [("t", f"1|2|3|4|{stored}")]


@pytest.mark.parametrize("field", ["lastPrice", "fairPrice", "indexPrice", "holdVol", "fundingRate"])
@pytest.mark.parametrize("value", ['"-"', '""', "[]", "true", "{}"])
def test_a_ticker_with_a_field_that_is_no_number_is_a_dead_letter(field: str, value: str) -> None:
    raw = ticker(**{field: value})
    assert texts(raw) == [("dl", raw)]


@pytest.mark.parametrize(
    ("field", "m"),
    [
        ("fairPrice", "1||3|4|0.00010000"),
        ("indexPrice", "1|2||4|0.00010000"),
        ("holdVol", "1|2|3||0.00010000"),
        ("fundingRate", "1|2|3|4|"),
    ],
)
def test_a_field_that_is_null_or_was_not_sent_is_empty_and_told(field: str, m: str) -> None:
    sent = ticker(**{field: "null"})
    for raw in (sent, sent.replace(f'"{field}"', '"other"')):
        message = parse(raw)
        assert [row.m for row in message.rows] == [m]
        assert message.missing == (field,)
        assert message.is_market_data


def test_a_ticker_may_be_a_price_and_nothing_else() -> None:
    message = parse(push("push.ticker", '{"lastPrice":84055}'))
    assert [row.m for row in message.rows] == ["84055||||"]
    assert message.missing == ("fairPrice", "indexPrice", "holdVol", "fundingRate")


@pytest.mark.parametrize("data", ["{}", '{"lastPrice":null,"fairPrice":2}', '{"fairPrice":2}'])
def test_a_ticker_without_the_last_price_is_a_dead_letter(data: str) -> None:
    raw = push("push.ticker", data)
    assert texts(raw) == [("dl", raw)]


def test_what_a_ticker_tells_of_itself() -> None:
    message = parse(ticker(volume24="311051901", timestamp="1788335242100"))
    assert (message.volume24, message.missing) == (311051901, ())
    assert message.rows == [Row(TS, "t", "1|2|3|4|0.00010000", 0, 1788335242100)]
    assert parse(ticker(volume24='"311051901"')).volume24 == 311051901
    for unusable in ("null", "[]", '"many"', "-1", "1" * 5000):
        assert parse(ticker(volume24=unusable)).volume24 == 0


def test_a_ticker_with_fractional_hold_vol_is_a_dead_letter() -> None:
    assert parse(ticker(holdVol="1.5")).rows[0].mt == "dl"


# Deals


def test_one_deal_comes_as_an_object() -> None:
    assert texts(push("push.deal", deal())) == [("d", "84062.6|13|1")]


def test_a_list_of_deals_is_stored_oldest_first() -> None:
    deals = [
        deal(p="4", rest=',"t":1746350434583,"i":"11"'),
        deal(p="3", rest=',"t":1746350434582,"i":"9"'),
        deal(p="2", rest=',"t":"1746350434581","i":10'),
        deal(p="1", rest=',"t":1746350434581,"i":"9"'),
    ]
    assert [m for _, m in texts(push("push.deal", f"[{','.join(deals)}]"))] == ["1|13|1", "2|13|1", "3|13|1", "4|13|1"]


def test_deals_without_time_and_id_stay_as_sent() -> None:
    deals = f"[{deal(p='3')},{deal(p='1')},{deal(p='2')}]"
    assert [m for _, m in texts(push("push.deal", deals))] == ["3|13|1", "1|13|1", "2|13|1"]


def test_the_good_deals_of_a_list_are_stored_and_the_frame_is_kept_once() -> None:
    raw = push("push.deal", f"[{deal(p='1')},7,{deal(v='null')},{deal(direction='3')},{deal(p='2')}]")
    assert texts(raw) == [("d", "1|13|1"), ("d", "2|13|1"), ("dl", raw)]


def test_an_empty_list_of_deals_gives_no_row() -> None:
    message = parse(push("push.deal", "[]"))
    assert message.rows == []
    assert message.is_market_data


# Depth


def test_only_the_best_twenty_levels_are_stored() -> None:
    levels = ",".join(f"[{n},{n + 100},1]" for n in range(30))
    bids, asks = texts(push("push.depth.full", f'{{"bids":[{levels}],"asks":[[1.0,2]]}}'))[0][1].split("|")
    assert bids == ",".join(f"[{n},{n + 100}]" for n in range(20))
    assert asks == "[1.0,2]"


@pytest.mark.parametrize(
    ("book", "m", "missing"),
    [
        ('{"asks":[],"bids":[[1,2,3]]}', "[1,2]|", ()),
        ('{"asks":null,"bids":[[1,2,3]]}', "[1,2]|", ("asks",)),
        ('{"bids":[[1,2,3]]}', "[1,2]|", ("asks",)),
        ('{"asks":[[1,2,3]],"bids":null}', "|[1,2]", ("bids",)),
        ('{"asks":[[1,2,3]]}', "|[1,2]", ("bids",)),
        ('{"asks":[],"bids":[]}', "|", ()),  # of a contract that stopped trading
        ('{"asks":[[1,0,0]],"bids":[[1,2]]}', "[1,2]|[1,0]", ()),
    ],
)
def test_a_side_without_levels_is_empty_text(book: str, m: str, missing: tuple[str, ...]) -> None:
    message = parse(push("push.depth.full", book))
    assert [(row.mt, row.m) for row in message.rows] == [("dp", m)]
    assert message.missing == missing


@pytest.mark.parametrize(
    "book",
    [
        '{"asks":[]}',
        '{"asks":[],"bids":[null]}',
        '{"asks":[],"bids":[[1]]}',
        '{"asks":[],"bids":[["one",2]]}',
        '{"asks":[[1,2]],"bids":[["1,2],[3",4]]}',
        '{"asks":{},"bids":[]}',
        '{"asks":[[1,2]],"bids":{}}',
        '{"asks":[[1,2]],"bids":false}',
        '{"asks":null,"bids":null}',
        '{"asks":[],"bids":null}',
        "[]",
    ],
)
def test_a_book_that_is_not_one_is_a_dead_letter(book: str) -> None:
    assert parse(push("push.depth.full", book)).rows[0].mt == "dl"


# Timestamps


@pytest.mark.parametrize("ts", [str(TS), f'"{TS}"'])
def test_ts_is_the_frames_own(ts: str) -> None:
    assert parse(push("push.deal", deal(), ts=ts)).rows[0].ts_ms == TS


NO_TIMES = [
    "null",
    "-5",
    "0",
    "1.5",
    '"soon"',
    "[]",
    "99999999999999999",
    "true",
    '"１２３"',
    '"１７８８３３５２４２１５６"',
]
NO_TIMES += [str(TS // 1000), str(TS * 1000), "1514764799999"]  # seconds, microseconds, 2017


@pytest.mark.parametrize("ts", NO_TIMES)
def test_the_local_clock_stands_in_for_an_unusable_ts(ts: str) -> None:
    assert parse(push("push.deal", deal(), ts=ts)).rows[0].ts_ms == NOW
    assert parse(push("push.deal", deal(rest=f',"t":{ts}'), ts=ts)).rows[0] == Row(NOW, "d", "84062.6|13|1")


@pytest.mark.parametrize("ts", NO_TIMES)
@pytest.mark.parametrize(
    ("channel", "data"),
    [
        ("push.ticker", '{"lastPrice":1,"timestamp":1789614158008}'),
        ("push.depth.full", '{"bids":[[1,2]],"asks":[],"cts":1789614158008}'),
        ("push.deal", deal(rest=',"cts":"1789614158007","t":1789614158008')),
        ("push.deal", deal(rest=',"t":"1789614158008"')),
        ("push.deal", f"[{made_at(1789614158007)},{made_at(1789614158008)},{deal()}]"),
        ("push.deal", f"[{made_at(1789614158008)},{deal(p='null')}]"),
        ("push.mystery", '{"timestamp":1789614158008}'),
    ],
)
def test_the_datas_own_time_comes_before_the_clock(channel: str, data: str, ts: str) -> None:
    assert {row.ts_ms for row in parse(push(channel, data, ts=ts)).rows} == {1789614158008}


def test_data_nested_deep_has_no_time_of_its_own() -> None:
    data = "[" * 400 + "]" * 400
    assert [row.ts_ms for row in parse(push("push.deal", data, ts="0")).rows] == [NOW]


def test_the_exchanges_own_number_and_time_of_a_deal_are_told() -> None:
    newest, oldest = deal(p="2", rest=',"t":1789614158008,"i":"12"'), deal(p="1", rest=',"t":"1789614158007","i":11')
    assert parse(push("push.deal", f"[{newest},{oldest},{deal(p='3')}]")).rows == [
        Row(TS, "d", "3|13|1"),
        Row(TS, "d", "1|13|1", 11, 1789614158007),
        Row(TS, "d", "2|13|1", 12, 1789614158008),
    ]


# Everything else


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "7",
        "null",
        "[]",
        '"push.deal"',
        "{}",
        '{"channel":7}',
        '{"channel":null,"data":{}}',
        push("push.deal", deal(), symbol="ETH_USDT"),
        push("push.depth", "{}"),
        '{"channel":"push.deal","data":{"p":1,"v":1,"T":1},"ts":1}',
        "[" * 100_000,
        '{"channel":' + '{"a":' * 100_000,
    ],
)
def test_anything_else_is_a_dead_letter_of_500_characters(raw: str) -> None:
    assert texts(raw) == [("dl", raw[:500])]


def test_an_error_frame_is_a_dead_letter_with_its_text() -> None:
    message = parse('{"channel":"rs.error","data":"Contract [NOPE_USDT] not exists","ts":1789498321790}')
    assert (message.channel, message.text) == ("rs.error", "Contract [NOPE_USDT] not exists")
    assert [(row.ts_ms, row.mt) for row in message.rows] == [(1789498321790, "dl")]


@pytest.mark.parametrize("raw", ['{"channel":"pong","data":1,"ts":1}', '{"channel":"rs.sub.deal","data":"success"}'])
def test_a_control_frame_gives_no_row(raw: str) -> None:
    message = parse(raw)
    assert (message.rows, message.refused) == ([], "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('"Contract [BTC_USDT] not exists"', "Contract [BTC_USDT] not exists"),
        ('"two\\nlines"', "two lines"),
        ('""', ""),
        ('"successful"', "successful"),
        ("null", None),
        ("1", None),
        ('{"code":1001,"message":"no"}', None),
        ('["success"]', None),
    ],
)
def test_a_subscription_that_was_refused_is_a_dead_letter_and_told(data: str, words: str | None) -> None:
    raw = f'{{"channel":"rs.sub.depth.full","data":{data},"ts":{TS}}}'
    message = parse(raw)
    assert message.rows == [Row(TS, "dl", raw)]
    assert (message.refused, message.text) == ("sub.depth.full", raw if words is None else words)


def test_other_dead_letters_are_no_refusals() -> None:
    assert parse('{"channel":"rs.error","data":"x"}').refused == ""
    assert parse(push("push.deal", "7")).refused == ""


def test_what_an_error_says_is_no_longer_than_a_dead_letter() -> None:
    assert len(parse(f'{{"channel":"rs.error","data":"{"x" * 10_000}"}}').text) == 500


# Binary frames


def test_a_binary_frame_of_text_is_read_like_one() -> None:
    raw = push("push.deal", deal())
    assert parse(raw.encode()) == parse(gzip.compress(raw.encode())) == parse(raw)
    unknown = push("push.mystery", '"é"')
    assert texts(unknown.encode()) == texts(gzip.compress(unknown.encode())) == [("dl", unknown)]


def test_a_binary_frame_that_cannot_be_read_is_a_dead_letter() -> None:
    assert texts(b"\xff\x00ok") == [("dl", "\\xff\x00ok")]
    whole = gzip.compress(push("push.deal", deal()).encode(), mtime=0)
    for raw in (whole[:-1], whole[:5], whole + b"x", whole[:30] + b"\0" + whole[31:], gzip.compress(b"\xff")):
        assert texts(raw) == [("dl", raw.decode("utf-8", "backslashreplace")[:500])]


def test_no_more_than_16_mb_are_unpacked() -> None:
    def padded(size: int) -> bytes:
        raw = push("push.deal", deal()).encode()
        return gzip.compress(raw + b" " * (size - len(raw)))

    assert [row.mt for row in parse(padded(16 << 20)).rows] == ["d"]
    tracemalloc.start()
    try:
        for bomb in (padded((16 << 20) + 1), gzip.compress(bytes(200 << 20))):
            tracemalloc.reset_peak()
            assert [row.mt for row in parse(bomb).rows] == ["dl"]
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# The deals that REST gives


def listed(*deals: str) -> list[Row]:
    return parse_deals(parse_answer(f'{{"success":true,"code":0,"data":[{",".join(deals)}]}}'.encode())["data"])


def test_rests_deals_have_no_ids_and_come_newest_first() -> None:
    newest, middle, oldest = (deal(p=p, rest=f',"O":1,"M":2,"t":{t}') for p, t in (("3", TS), ("2", TS), ("1", TS - 1)))
    assert listed(newest, middle, middle, oldest) == [
        Row(TS - 1, "d", "1|13|1", 0, TS - 1),
        Row(TS, "d", "2|13|1", 0, TS),
        Row(TS, "d", "2|13|1", 0, TS),
        Row(TS, "d", "3|13|1", 0, TS),
    ]


def test_rests_deals_with_ids_are_ordered_by_them() -> None:
    first, second = deal(p="1", rest=f',"t":{TS},"i":"9"'), deal(p="2", rest=f',"t":{TS},"i":10')
    assert [row.id for row in listed(first, second)] == [9, 10]


def test_rests_deals_that_cannot_be_used_are_left_out() -> None:
    bad = [deal(), deal(rest=f',"t":{TS // 1000}'), deal(p="null", rest=f',"t":{TS}'), "7", "null"]
    good = deal(rest=f',"t":"{TS}"')
    assert listed(*bad, good) == [Row(TS, "d", "84062.6|13|1", 0, TS)]
    assert listed() == []


@pytest.mark.parametrize("data", [None, {"p": 1}, "text", 7])
def test_data_that_is_no_list_of_deals_is_said_in_one_line(data: object) -> None:
    with pytest.raises(ValueError, match="the answer holds no deals: "):
        parse_deals(data)


# Whatever arrives


def test_another_symbols_push_is_no_sign_of_life() -> None:
    assert not parse(push("push.deal", deal(), symbol="ETH_USDT")).is_market_data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)
frames = st.fixed_dictionaries(
    {},
    optional={
        "channel": st.sampled_from(["push.deal", "push.ticker", "push.depth.full", "rs.error", "pong"]) | json_values,
        "symbol": st.just("BTC_USDT") | json_values,
        "ts": st.integers() | json_values,
        "data": st.dictionaries(st.sampled_from(["p", "v", "T", "i", "t", "bids", "asks", "holdVol"]), json_values)
        | st.lists(json_values, max_size=4)
        | json_values,
    },
)


@given(st.text() | st.binary() | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn\\u \ud800'))
def test_whatever_arrives_comes_out_as_rows(raw: str | bytes) -> None:
    check_rows(parse(raw))


@given(frames)
def test_whatever_a_frame_holds_comes_out_as_rows(frame: dict[str, object]) -> None:
    check_rows(parse(json.dumps(frame)))


def check_rows(message: Message) -> None:
    for row in message.rows:
        assert 0 < row.ts_ms < 10_413_792_000_000
        assert row.mt in ("t", "d", "dp", "dl")
        row.m.encode()  # or it could not be stored
        assert row.mt != "dl" or len(row.m) <= 500


# And back


@pytest.mark.parametrize("raw", FRAMES)
def test_a_row_of_a_real_frame_makes_a_frame_of_the_same_row(raw: str) -> None:
    symbol = json.loads(raw).get("symbol", "BTC_USDT")
    for row in parse_frame(raw, symbol, NOW).rows:
        frame = format_frame(row, symbol)
        assert (frame is None) == (row.mt == "dl")
        for stored in (row, row._replace(id=0, event_ms=0)):  # with what a history knows, and without
            frame = format_frame(stored, symbol)
            assert not frame or [each[:3] for each in parse_frame(frame, symbol, NOW).rows] == [row[:3]]
        assert not frame or json.loads(frame)["ts"] == row.ts_ms


@pytest.mark.parametrize(
    ("mt", "m"),
    [("d", "1|2|3"), ("d", "01|2|1"), ("d", "1|2"), ("dp", "[1]|"), ("dp", "[1,2]"), ("t", "|1|1|1|1"), ("x", "1|2|1")],
)
def test_a_row_that_no_frame_of_mexc_gives_makes_none(mt: str, m: str) -> None:
    assert format_frame(Row(TS, mt, m), "BTC_USDT") is None
