"""Candles as other tools want them: no interval without one, where that is asked for."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.messages import DEAL
from pipeline.read.decode import candles, decode
from pipeline.read.ohlcv import SCHEMA, Span, filled, ohlcv

MINUTE = 60_000
DEALS = [(2 * MINUTE, "10|1|1"), (2 * MINUTE + 5, "12|2|2"), (2 * MINUTE + 9, "11|3|1"), (5 * MINUTE, "13|4|1")]


def made(span: Span, deals: list[tuple[int, str]] = DEALS) -> list[tuple[float, ...]]:
    """Return candles by the minute, as minute, open, high, low, close, volume."""
    batch = decode(DEAL, [ts for ts, _ in deals], [text for _, text in deals])
    table = filled(ohlcv(candles(batch.table, "1m")), MINUTE, span)
    assert table.schema == SCHEMA
    minutes = pc.divide(table["date"].cast(pa.int64()), MINUTE).to_pylist()
    return list(zip(minutes, *(table[name].to_pylist() for name in SCHEMA.names[1:]), strict=True))


TWO, FIVE = (2, 10, 12, 10, 11, 6), (5, 13, 13, 13, 13, 4)


@pytest.mark.parametrize(
    ("span", "before", "after"),
    [
        (Span(None, None, None), [], []),
        (Span(0, None, 7.5), [(0, 7.5, 7.5, 7.5, 7.5, 0), (1, 7.5, 7.5, 7.5, 7.5, 0)], []),
        (Span(None, 8 * MINUTE, None), [], [(6, 13, 13, 13, 13, 0), (7, 13, 13, 13, 13, 0)]),
    ],
)
def test_each_interval_has_a_candle(span: Span, before: list[object], after: list[object]) -> None:
    between = [(3, 11, 11, 11, 11, 0), (4, 11, 11, 11, 11, 0)]
    assert made(span) == [*before, TWO, *between, FIVE, *after]


def test_a_day_without_deals_is_flat_where_a_price_is_known() -> None:
    assert made(Span(0, 2 * MINUTE, 3.0), []) == [(0, 3, 3, 3, 3, 0), (1, 3, 3, 3, 3, 0)]
    assert made(Span(None, 2 * MINUTE, None), []) == []
    assert made(Span(0, None, 3.0), []) == []


def test_volume_is_contracts_or_coins() -> None:
    deals = decode(DEAL, [0, 1], ["10|3|1", "11|4|2"], contract_size=Decimal("0.1")).table
    assert ohlcv(candles(deals, "1m"))["volume"].to_pylist() == [7]
    assert ohlcv(candles(deals, "1m"), coins=True)["volume"].to_pylist() == [pytest.approx(0.7)]
