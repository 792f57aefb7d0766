"""The market generator: the same for the same seed, and each text as the exchange would write it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from itertools import islice, pairwise
from typing import Any

import pytest

from config import PROJECT
from local.market import CONTRACTS, KEPT_DEALS, LEVELS, Event, Market, frames, number, real

REAL_FRAMES = PROJECT / "tests/data" / "mexc-frames.jsonl"
START_MS = 1_790_870_036_854
Push = dict[str, Any]


SOME = [*CONTRACTS][:11] + [*CONTRACTS][-1:]


def events(market: Market) -> Iterator[Event]:
    """Let a market go on, 100 ms apart."""
    return (market.step(now_ms) for now_ms in itertools.count(START_MS, 100))


@cache
def pushes(symbol: str = "BTC_USDT", count: int = 1500) -> list[Push]:
    """Return parsed frames; numbers are Decimals that keep the digits of the wire."""
    texts = [text for _, text in islice(frames(symbol, 1, START_MS), count)]
    return [json.loads(text, parse_float=Decimal, parse_int=Decimal) for text in texts]


def of(channel: str, frames: list[Push]) -> list[Any]:
    return [frame["data"] for frame in frames if frame["channel"] == f"push.{channel}"]


@pytest.mark.parametrize(
    ("units", "decimals", "padded", "text"),
    [
        (754_800, 1, False, "7.548E+4"),
        (975_000, 1, False, "9.75E+4"),
        (840_550, 1, False, "84055"),
        (840_626, 1, False, "84062.6"),
        (238_460, 2, True, "2384.60"),
        (8_055, 5, False, "0.08055"),
        (80_550, 6, True, "0.080550"),
        (-45, 6, False, "-0.000045"),
        (72, 6, True, "0.000072"),
        (0, 6, False, "0"),
        (3, 1, False, "0.3"),
    ],
)
def test_numbers_are_written_as_mexc_writes_them(units: int, decimals: int, padded: bool, text: str) -> None:
    assert number(units, decimals, padded) == text


def test_the_same_seed_gives_the_same_frames() -> None:
    def run(seed: int) -> list[tuple[float, str]]:
        return list(islice(frames("ETH_USDT", seed, START_MS), 500))

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_symbols_of_one_seed_differ() -> None:
    assert of("deal", pushes("BTC_USDT", 10))[0]["i"] != of("deal", pushes("ETH_USDT", 10))[0]["i"]


@pytest.mark.parametrize("symbol", SOME)
def test_a_book_is_sorted_and_not_crossed(symbol: str) -> None:
    for book in of("depth.full", pushes(symbol)):
        bids = [price for price, _, _ in book["bids"]]
        asks = [price for price, _, _ in book["asks"]]
        assert len(bids) == len(asks) == LEVELS
        prices = bids[::-1] + asks
        assert all(low < high for low, high in pairwise(prices))
        assert prices[0] > 0


@pytest.mark.parametrize("symbol", SOME)
def test_every_price_is_a_whole_number_of_ticks(symbol: str) -> None:
    frames = pushes(symbol)
    tick = Decimal(1).scaleb(-CONTRACTS[symbol].decimals)
    prices = [deal["p"] for deal in of("deal", frames)]
    prices += [level[0] for book in of("depth.full", frames) for level in book["asks"] + book["bids"]]
    prices += [ticker["fairPrice"] for ticker in of("ticker", frames)]
    assert len(prices) > 1500
    assert all(price % tick == 0 for price in prices)


def test_a_book_changes_a_little_each_time() -> None:
    books = of("depth.full", pushes())
    for before, after in pairwise(books):
        old = {tuple(level) for level in before["bids"] + before["asks"]}
        new = {tuple(level) for level in after["bids"] + after["asks"]}
        assert old != new  # pushed on change only
    kept = [
        len({tuple(level) for level in before["asks"]} & {tuple(level) for level in after["asks"]})
        for before, after in pairwise(books)
    ]
    assert sum(kept) / len(kept) > LEVELS * 0.75


def test_versions_rise_with_holes() -> None:
    steps = {after["version"] - before["version"] for before, after in pairwise(of("depth.full", pushes()))}
    assert min(steps) >= 1
    assert max(steps) > 1


def test_deals_are_near_the_touch_and_numbered_upwards() -> None:
    frames = pushes()
    book, deals = None, []
    for frame in frames:
        if frame["channel"] == "push.depth.full":
            book = frame["data"]
        elif frame["channel"] == "push.deal":
            deal = frame["data"]
            deals.append(deal)
            if book:
                side = book["asks"] if deal["T"] == 1 else book["bids"]
                assert deal["p"] in [price for price, _, _ in side[:3]]
    numbers = [int(deal["i"]) for deal in deals]
    assert numbers == sorted(set(numbers))
    times = [deal["t"] for deal in deals]
    assert times == sorted(times)
    assert {deal["T"] for deal in deals} == {1, 2}
    assert all(isinstance(deal["i"], str) and deal["cts"] == str(deal["t"]) for deal in deals)


def test_a_list_of_deals_is_newest_first_and_single_ones_are_oldest_first() -> None:
    market = Market("BTC_USDT")
    event = next(event for event in events(market) if event.size > 2)
    (merged,) = event.frames(compress=True)
    single = [json.loads(frame)["data"] for frame in event.frames(compress=False)]
    assert json.loads(merged)["data"] == single[::-1]
    assert len(single) == event.size
    assert single[0]["t"] < single[-1]["t"]


@pytest.mark.parametrize("limit", [5, 10, 20])
def test_a_book_is_cut_to_the_limit(limit: int) -> None:
    market = Market("SOL_USDT")
    event = next(event for event in events(market) if event.channel == "depth.full")
    (whole,) = event.frames()
    (cut,) = event.frames(limit=limit)
    assert json.loads(cut)["data"]["asks"] == json.loads(whole)["data"]["asks"][:limit]
    assert json.loads(cut)["data"]["bids"] == json.loads(whole)["data"]["bids"][:limit]


def test_a_ticker_has_the_fields_of_a_real_one() -> None:
    (real,) = [
        frame["data"]
        for line in REAL_FRAMES.read_text().splitlines()
        if (frame := json.loads(line))["channel"] == "push.ticker" and frame["symbol"] == "BTC_USDT"
    ]
    for ticker in of("ticker", pushes()):
        assert list(ticker) == list(real)
        assert ticker["bid1"] < ticker["ask1"]
        assert ticker["lower24Price"] <= ticker["lastPrice"] <= ticker["high24Price"]
        assert ticker["holdVol"] == int(ticker["holdVol"])


def test_the_peculiar_numbers_of_the_wire_occur() -> None:
    texts = [text for _, text in islice(frames("BTC_USDT", 1, START_MS), 3000)]
    deals = [text for text in texts if "push.deal" in text]
    assert any("E+4" in text for text in deals)
    assert any('"amount24":' in text and "." + "0" * 30 in text for text in texts)
    assert any(".0," in text for text in texts)


def test_no_number_shows_a_binary_float() -> None:
    for _, text in islice(frames("SOL_USDT", 1, START_MS), 3000):
        json.loads(text, parse_float=_short)


def _short(digits: str) -> None:
    assert len(digits.rstrip("0")) <= 16, digits


def test_text_is_compact_and_keys_come_in_several_orders() -> None:
    texts = [text for _, text in islice(frames("BTC_USDT", 1, START_MS), 300)]
    assert all(" " not in text for text in texts)
    assert len({tuple(json.loads(text)) for text in texts}) > 1
    assert all(set(json.loads(text)) == {"symbol", "data", "channel", "ts"} for text in texts)


def test_frames_are_stamped_with_the_time_they_are_due() -> None:
    due = 0.0
    for delay, text in islice(frames("BTC_USDT", 1, START_MS), 300):
        due += delay
        assert json.loads(text)["ts"] == pytest.approx(START_MS + due * 1000, abs=1)


def test_a_busy_symbol_has_the_documented_rates() -> None:
    span = sum(delay for delay, _ in islice(frames("BTC_USDT", 1, START_MS), 20_000))
    frames_of = {channel: len(of(channel, pushes(count=20_000))) / span for channel in ("deal", "depth.full", "ticker")}
    assert 2 < frames_of["deal"] < 30
    assert frames_of["depth.full"] == pytest.approx(1 / 0.27, rel=0.1)
    assert 1 / 3 < frames_of["ticker"] < 1


def test_the_last_deals_are_kept() -> None:
    market = Market("BTC_USDT")
    pushed = [json.loads(text)["data"] for event in islice(events(market), 500) for text in event.frames()]
    numbers = [data["i"] for data in pushed if "i" in data]
    assert [str(deal.number) for deal in market.deals] == numbers[-KEPT_DEALS:]


def test_rest_gives_a_deal_without_a_number_so_that_two_may_be_equal_in_all() -> None:
    market, texts = Market("BTC_USDT"), []
    for event in islice(events(market), 2000):
        if event.channel == "deal":
            texts += [deal.text() for deal in market.deals][-event.size :]
    assert list(json.loads(texts[0])) == ["p", "v", "T", "O", "M", "t"]
    assert 0 < len(texts) - len(set(texts)) < len(texts) / 10


def deals_by_minute(market: Market, count: int, step_ms: int) -> dict[int, list[Any]]:
    """Let a market go on from the start of a minute; return the deals of each minute, oldest first."""
    minutes: dict[int, list[Any]] = {}
    for now_ms in islice(itertools.count(START_MS // 60_000 * 60_000, step_ms), count):
        event = market.step(now_ms)
        for text in event.frames() if event.channel == "deal" else ():
            deal = json.loads(text, parse_float=Decimal, parse_int=Decimal)["data"]
            minutes.setdefault(int(deal["t"]) // 60_000 * 60, []).append(deal)
    return minutes


def test_klines_are_of_the_deals_of_each_minute() -> None:
    market = Market("ETH_USDT")
    minutes = deals_by_minute(market, 1000, 701)
    start, end = min(minutes), max(minutes)
    klines = json.loads(market.klines(start, end, 2000, end * 1000), parse_float=Decimal, parse_int=Decimal)
    before = market.contract.start * Decimal("0.01")
    assert klines["time"] == list(range(start, end + 1, 60)) == sorted(minutes)
    for place, deals in enumerate(minutes.values()):
        bar = {name: column[place] for name, column in klines.items()}
        prices = [deal["p"] for deal in deals]
        assert (bar["realOpen"], bar["realClose"]) == (prices[0], prices[-1])
        assert (bar["realHigh"], bar["realLow"]) == (max(prices), min(prices))
        assert (bar["open"], bar["close"]) == (before, prices[-1])
        assert (bar["high"], bar["low"]) == (max(before, *prices), min(before, *prices))
        assert bar["vol"] == sum(deal["v"] for deal in deals)
        assert bar["amount"] == sum(deal["v"] * deal["p"] for deal in deals) * Decimal("0.01")
        before = prices[-1]
    assert len({*klines["open"]} - {*klines["realOpen"]}) > 0  # where the two differ is seen


def test_a_minute_without_deals_has_a_bar_and_the_minute_under_way_too() -> None:
    market = Market("BTC_USDT")
    (minute,) = deals_by_minute(market, 50, 10)
    close = float(market.deals[-1].price)
    klines = json.loads(market.klines(minute + 60, minute + 999, 2000, (minute + 125) * 1000))
    assert klines["time"] == [minute + 60, minute + 120]
    assert klines["vol"] == klines["amount"] == [0, 0]
    assert {klines[name][0] for name in klines if name not in ("time", "vol", "amount")} == {close}
    late = deals_by_minute(market, 50, 10)  # of a minute whose bar is not the newest any more
    again = json.loads(market.klines(minute, minute, 2000, (minute + 125) * 1000))
    assert again["vol"][0] > sum(float(deal["v"]) for deal in late[minute])


def test_no_klines_before_the_first_deal_and_the_newest_where_there_are_many() -> None:
    market = Market("BTC_USDT")
    assert json.loads(market.klines(0, 10**10, 2000, START_MS))["time"] == []
    deals_by_minute(market, 1000, 1000)
    times = json.loads(market.klines(0, 10**10, 2000, START_MS))["time"]
    assert json.loads(market.klines(0, 10**10, 3, START_MS))["time"] == times[-3:] != times


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5587051", "5587051.0"),
        ("61062435.67181", "6.106243567181E7"),
        ("60000000", "6.0E7"),
        ("9999999.5", "9999999.5"),
        ("0", "0.0"),
        ("0.00042", "4.2E-4"),
    ],
)
def test_sums_are_written_as_java_does(value: str, text: str) -> None:
    assert real(Decimal(value)) == text


def test_a_quiet_markets_book_is_pushed_though_its_levels_stay() -> None:
    def share(books: list[Any]) -> float:
        same = [a["asks"] == b["asks"] and a["bids"] == b["bids"] for a, b in pairwise(books)]
        return same.count(True) / len(same)

    assert share(of("depth.full", pushes("BTC_USDT"))) == 0
    assert 0.15 < share(of("depth.full", pushes("ADA_USDT"))) < 0.35


def test_a_book_can_be_held_still() -> None:
    market = Market("BTC_USDT")
    data = [market.step(now_ms, still=True) for now_ms in range(START_MS, START_MS + 10_000, 100)]
    books = [json.loads(text)["data"] for event in data if event.channel == "depth.full" for text in event.frames()]
    assert len(books) > 10
    assert all(a["asks"] == b["asks"] and a["version"] < b["version"] for a, b in pairwise(books))


def test_a_price_stays_far_from_zero() -> None:
    """A long benchmark must not run the market into the ground."""
    market = Market("ADA_USDT")
    market.contract = market.contract._replace(start=market.contract.start // 10)  # far above where it is drawn to
    for _ in islice(events(market), 20_000):
        pass
    assert 0 < float(market.deals[-1].price) < 0.45


def test_an_unknown_symbol_has_no_market() -> None:
    with pytest.raises(KeyError, match="NOPE_USDT"):
        Market("NOPE_USDT")
