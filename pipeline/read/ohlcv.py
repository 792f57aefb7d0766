"""Candles with the columns that other tools expect: date, open, high, low, close, volume.

In: candles of `pipeline.read.decode.candles`, oldest first. Out: a table a backtesting tool takes as it is. Promise: a
candle of deals keeps its numbers; one that is made up has the price before it, four times, and no volume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

_PRICES = ("open", "high", "low", "close")

SCHEMA = pa.schema([("date", pa.timestamp("ms", tz="UTC")), *((name, pa.float64()) for name in (*_PRICES, "volume"))])
"""The columns; volume is contracts, or coins."""


class Span(NamedTuple):
    """Which intervals are to have a candle, in milliseconds since the epoch."""

    start_ms: int | None
    """None: from the first candle on, for no price is known before it."""
    end_ms: int | None
    """None: until the last candle."""
    close: float | None
    """The price before them; None: none is known."""


def ohlcv(candles: pa.Table, *, coins: bool = False) -> pa.Table:
    """Return candles with the columns of SCHEMA."""
    columns = [candles[name] for name in ("start", *_PRICES, "coins" if coins else "contracts")]
    return pa.table(columns, names=SCHEMA.names).cast(SCHEMA)


def filled(table: pa.Table, step_ms: int, span: Span) -> pa.Table:
    """Return a table of SCHEMA with a candle for each interval of `span`."""
    there = table["date"].cast(pa.int64()).to_numpy()
    if not len(there) and (span.start_ms is None or span.end_ms is None):
        return table
    start = there[0] if span.start_ms is None else span.start_ms
    end = there[-1] + step_ms if span.end_ms is None else span.end_ms
    times = np.arange(start, end, step_ms)
    before = np.searchsorted(there, times, side="right")  # how many candles there are up to each interval
    closes = np.append(span.close or 0.0, table["close"].to_numpy())[before]
    columns = [pa.array(times)]
    is_there = np.isin(times, there)
    for name in (*_PRICES, "volume"):
        column = closes.copy() if name in _PRICES else np.zeros(len(times))
        column[is_there] = table[name].to_numpy()
        columns.append(pa.array(column))
    return pa.table(columns, names=SCHEMA.names).cast(SCHEMA)
