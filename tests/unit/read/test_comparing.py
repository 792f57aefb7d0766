"""What is found of deals and bars: pure, with the times at which deals were made known to the test, and not to it."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.read.audit import LATEST_MS, Minutes, NotCompared, SymbolAudit, compare
from pipeline.read.klines import MINUTE, Bar

T0 = 1_790_812_800  # 2026-10-01


class Made(NamedTuple):
    """A deal: when it was made and when it was pushed, in milliseconds after T0."""

    made: int
    pushed: int
    price: float
    contracts: int


def bars_of(deals: list[Made], minutes: int, first: int = 0) -> list[Bar]:
    """Return MEXC's bars, by the times at which the deals were made."""
    bars = []
    close = 100.0
    for minute in range(first, minutes):
        of_minute = [deal for deal in deals if deal.made // 60_000 == minute]
        prices = [deal.price for deal in of_minute] or [close]
        close = prices[-1]
        total = sum(deal.contracts for deal in of_minute)
        values = (total, prices[0], max(prices), min(prices), close)
        bars.append(Bar(T0 + minute * MINUTE, *map(Decimal, values)))
    return bars


def stored(deals: list[Made]) -> Minutes:
    """Return what the archive has, by the times at which they were pushed."""
    minutes = Minutes()
    for minute in sorted({deal.pushed // 60_000 for deal in deals}):
        of_minute = sorted((deal for deal in deals if deal.pushed // 60_000 == minute), key=lambda deal: deal.pushed)
        early = [(deal.price, float(deal.contracts)) for deal in of_minute if deal.pushed % 60_000 < LATEST_MS]
        rest = [deal for deal in of_minute if deal.pushed % 60_000 >= LATEST_MS]
        prices = [deal.price for deal in rest] or [np.nan]
        total = float(sum(deal.contracts for deal in rest))
        minutes.add(T0 + minute * MINUTE, early, (total, prices[0], max(prices), min(prices), prices[-1]))
    return minutes


def found(archive: list[Made], bars: list[Bar], minutes: int, first: int = 0, **known: object) -> SymbolAudit:
    """Compare the minutes from `first` on and before `minutes`."""
    start, end = T0 + first * MINUTE, T0 + minutes * MINUTE
    audit = SymbolAudit("BTC_USDT", "btc", start_ms=start * 1000, end_ms=end * 1000)
    for name, value in known.items():
        setattr(audit, name, value)
    compare(audit, stored(archive), bars, (start, end))
    return audit


def missing_by_minute(audit: SymbolAudit) -> dict[int, float]:
    return {(each.start_ms // 1000 - T0) // MINUTE: each.missing for each in audit.differences}


def market(
    minutes: int, seed: int, lag: int, moves: tuple[int, ...] = (-1, 0, 0, 1), per_minute: float = 300
) -> list[Made]:
    """A market in which each deal is pushed up to `lag` ms later than it was made, and no sooner than those before."""
    chance = random.Random(seed)
    deals = []
    made, pushed, price = 0.0, 0, 1000
    while made < minutes * 60_000:
        price += chance.choice(moves)
        pushed = max(pushed, int(made) + chance.randrange(lag + 1))
        deals.append(Made(int(made), pushed, float(price), int(10 ** (3 * chance.random()))))
        made += chance.expovariate(per_minute / 60_000)
    return deals


@pytest.mark.parametrize("seed", range(20))
def test_deals_that_were_pushed_a_minute_later_are_no_difference(seed: int) -> None:
    deals = market(20, seed, lag=1500)
    assert sum(deal.made // 60_000 < deal.pushed // 60_000 for deal in deals) >= 20  # in each minute some
    audit = found(deals, bars_of(deals, 20), 19, first=1)
    assert (audit.minutes, audit.exact, audit.differences, audit.not_compared) == (18, 18, [], [])
    assert audit.percent == 100
    inside = [deal for deal in deals if 1 <= deal.made // 60_000 < 19]
    assert audit.earlier == sum(deal.made // 60_000 < deal.pushed // 60_000 for deal in inside)
    assert audit.contracts == sum(deal.contracts for deal in inside)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_missing_is_told_by_minute_and_number(seed: int) -> None:
    deals = market(20, seed, lag=1500)
    chance = random.Random(seed)
    lost: dict[int, int] = {}
    kept = []
    hit = chance.sample(range(2, 18, 2), 3)
    for deal in deals:
        minute = deal.made // 60_000
        if minute in hit and 20_000 <= deal.made % 60_000 < 40_000:
            lost[minute] = lost.get(minute, 0) + deal.contracts
        else:
            kept.append(deal)
    audit = found(kept, bars_of(deals, 20), 19, first=1)
    assert missing_by_minute(audit) == lost
    assert (audit.exact, audit.missing, audit.too_many) == (15, sum(lost.values()), 0)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_minutes_in_a_row_prices_tell_which_deals_are_missing_of_which(seed: int) -> None:
    deals = market(10, seed, lag=1500, moves=(1,))
    lost = dict.fromkeys((4, 5), 0)
    kept = []
    for deal in deals:
        minute = deal.made // 60_000
        if minute in lost and 20_000 <= deal.made % 60_000 < 40_000:
            lost[minute] += deal.contracts
        else:
            kept.append(deal)
    assert missing_by_minute(found(kept, bars_of(deals, 10), 9, first=1)) == lost


def test_a_single_contract_in_the_middle_of_a_minute_is_found() -> None:
    deals = [Made(second * 1000, second * 1000 + 3, 5.0, 1) for second in range(0, 600, 7)]
    without = [deal for deal in deals if deal.made != 252_000]
    audit = found(without, bars_of(deals, 10), 9, first=1)
    assert missing_by_minute(audit) == {4: 1}
    assert audit.differences[0].contracts == 8
    assert audit.differences[0].prices == ()


def test_what_there_is_too_much_of_is_found() -> None:
    deals = market(10, 1, lag=5)
    audit = found([*deals, Made(272_000, 272_000, 1000.0, 77)], bars_of(deals, 10), 9, first=1)
    assert missing_by_minute(audit) == {4: -77}
    assert (audit.missing, audit.too_many, audit.percent) == (0, 77, 100)


def test_prices_count_where_the_contracts_are_the_same() -> None:
    deals = market(10, 2, lag=5)
    place = next(place for place, deal in enumerate(deals) if deal.made > 272_000)
    wrong = [*deals[:place], deals[place]._replace(price=9_999.0), *deals[place + 1 :]]
    audit = found(wrong, bars_of(deals, 10), 9, first=1)
    (difference,) = audit.differences
    assert (difference.missing, difference.prices) == (0, ("high",))
    assert (audit.exact, audit.missing) == (7, 0)


def test_what_was_lost_cannot_hide_in_the_next_minute() -> None:
    # As many contracts as were lost are in the first deal of each minute after that, but for the last two.
    deals = [
        Made(minute * 60_000 + second * 1000, minute * 60_000 + second * 1000, 5.0, 3)
        for minute in range(10)
        for second in ((1, 30) if minute < 8 else (30,))
    ]
    audit = found([deal for deal in deals if deal.made != 270_000], bars_of(deals, 10), 9, first=1)
    assert missing_by_minute(audit) == {4: 3}
    assert audit.earlier == 0


def test_a_whole_minute_and_a_minute_without_trade() -> None:
    deals = [deal for deal in market(10, 3, lag=5) if deal.made // 60_000 != 5]
    kept = [deal for deal in deals if not 3 <= deal.made // 60_000 <= 4]
    audit = found(kept, bars_of(deals, 10), 9, first=1)
    bars = {(bar.time - T0) // MINUTE: float(bar.contracts) for bar in bars_of(deals, 10)}
    assert missing_by_minute(audit) == {3: bars[3], 4: bars[4]}
    assert audit.exact == 6  # the fifth, in which nothing was traded, is one of them


def test_minutes_without_a_bar_are_named_and_those_at_the_end_are_left_out() -> None:
    deals = market(10, 4, lag=5)
    bars = [bar for bar in bars_of(deals, 8) if (bar.time - T0) // MINUTE not in (3, 4)]
    audit = found(deals, bars, 10, first=1)
    assert audit.not_compared == [NotCompared((T0 + 180) * 1000, (T0 + 300) * 1000, "MEXC lists no kline")]
    assert (audit.minutes, audit.exact, audit.end_ms) == (5, 5, (T0 + 480) * 1000)


def test_minutes_that_were_refused_are_not_named_twice() -> None:
    deals = market(10, 4, lag=5)
    bars = [bar for bar in bars_of(deals, 10) if (bar.time - T0) // MINUTE not in (3, 4)]
    refused = NotCompared((T0 + 180) * 1000, (T0 + 300) * 1000, "nonsense")
    audit = found(deals, bars, 9, first=1, not_compared=[refused])
    assert audit.not_compared == [refused]
    assert (audit.minutes, audit.exact) == (6, 6)


def test_nothing_to_compare_with_is_a_problem() -> None:
    deals = market(3, 5, lag=5)
    audit = found(deals, [], 3)
    assert audit.problem == "MEXC lists no kline"
    assert audit.percent is None


def test_a_burst_of_thousands_at_the_beginning_of_a_minute() -> None:
    burst = [Made(120_000 + number // 10, 120_000 + number // 10, 5.0 + number % 7, 2) for number in range(5000)]
    deals = sorted([*market(5, 6, lag=5), *burst], key=lambda deal: deal.made)
    audit = found(deals, bars_of(deals, 5), 4, first=1)
    assert (audit.minutes, audit.exact) == (3, 3)
