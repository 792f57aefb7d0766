"""What the charts of an archive's page are made of: the figures, not how they look.

In: what pipeline.read.quality and pipeline.read.audit found out of a symbol, what pipeline.store.storage knows of its
table, and the prices, which are read here. Out: numbers for page.js, ready for JSON. Promise: their number is bounded,
however long the archive. Times are seconds since the epoch unless a name ends in ``_ms``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from clickhouse_driver import Client

from pipeline.read.audit import SymbolAudit
from pipeline.read.quality import LEVELS, ChannelQuality, Gap, SymbolQuality
from pipeline.store.client import permitted
from pipeline.store.source import History, Source, moment, read_rows
from pipeline.store.storage import TableStorage
from pipeline.times import to_ms

_BUCKETS = 1500  # points of a series, at most; a screen has not many more pixels across
_MARKS = 400  # gaps of a lane, drawn one by one; where there are more, neighbours are joined
_FEWEST = 2  # whole minutes, where what goes by the minute can be drawn
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360, 720, 1440)
_LANES = {"tickers": "tickers", "depth": "depth", "all": "rows of any channel"}
"""The channels that gaps are told of, in the order they are drawn -> what was missing in one."""


@dataclass(frozen=True)
class PricePoint:
    """The best prices over some seconds; prices in USDT."""

    ts_ms: int
    """Where these seconds begin: milliseconds since the epoch, UTC."""
    step_ms: int
    """How long they are, in milliseconds: the next ones begin after that, if they have a price."""
    mid: float
    """Halfway between best bid and best ask: the average, and from `low` to `high`."""
    low: float
    high: float
    spread: float
    """Best ask minus best bid: the average, and `widest` at most."""
    widest: float


def read_prices(
    client: Client,
    database: str,
    table: str,
    start: datetime,
    end: datetime,
    points: int = 2000,
    history: History | None = None,
) -> list[PricePoint]:
    """Return the prices from `start` until before `end` (aware) by the first levels of the depth rows, oldest first.

    They are averaged by ClickHouse over equally long times of a second or more, `points` at most; times without an
    order book that has both sides are left out. Of a `history`, only the rows of that time are read. Raises
    pipeline.store.source.HistoryError, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    start_ms, end_ms = to_ms(start), to_ms(end)
    step_ms = max(1, -(-(end_ms - start_ms) // ((points - 1) * 1000))) * 1000
    query = f"""
        WITH
            {LEVELS} AS book,
            position(book, '|') AS middle,
            toFloat64OrNull(substring(book, 2, position(book, ',') - 2)) AS bid,
            toFloat64OrNull(substring(book, middle + 2, position(book, ',', middle) - middle - 2)) AS ask,
            (bid + ask) / 2 AS mid,
            ask - bid AS spread
        SELECT
            intDiv(toUnixTimestamp64Milli(ts), {step_ms}) AS bucket,
            avg(mid), min(mid), max(mid), avg(spread), max(spread)
        FROM {{source}}
        WHERE mt = 'dp' AND ts >= {moment(start_ms)} AND ts < {moment(end_ms)} AND middle > 0 AND mid < 1e15
        GROUP BY bucket ORDER BY bucket
    """

    def read(source: Source) -> list[tuple[Any, ...]]:
        better: dict[str, Any] = {"max_execution_time": 0}
        if not source.history:  # there is no index: all rows are read, and each thread copies the list of blocks
            better["max_threads"] = 1
        found: list[tuple[Any, ...]] = source.client.execute(
            query.replace("{source}", source.table), settings=permitted(source.client, better)
        )
        return found

    rows = read_rows(client, database, table, read, history)
    return [PricePoint(bucket * step_ms, step_ms, *prices) for bucket, *prices in rows or ()]


def figures(
    symbol: SymbolQuality, table: TableStorage, prices: Sequence[PricePoint], audit: SymbolAudit | None = None
) -> dict[str, Any]:
    """Return what page.js draws for a symbol. Times are seconds since the epoch."""
    is_drawn = has_minutes(symbol)
    rates = {channel.name: _rate(channel, symbol) for channel in symbol.channels if channel.rows and is_drawn}
    shown = examined_range(symbol)
    lanes = {name: [gap for gap in symbol.gaps if gap.channel == name] for name in _LANES}
    return {
        "range": shown,
        "lanes": [
            {"name": name.capitalize(), "missing": _LANES[name], "gaps": marks(gaps, shown)}
            for name, gaps in lanes.items()
        ],
        "rates": rates,
        "prices": price_series(prices),
        "growth": _cumulated(symbol, table),
        "missing": _missing(audit) if audit else None,
    }


def examined_range(symbol: SymbolQuality) -> list[float]:
    """Return the examined time; a moment is made a second, for a chart needs a width."""
    start, end = (symbol.start_ms or 0) / 1000, (symbol.end_ms or 0) / 1000
    return [start, end] if end > start else [start - 0.5, end + 0.5]


def has_minutes(symbol: SymbolQuality) -> bool:
    """Return whether enough whole minutes were examined to draw rows by the minute."""
    return len(_whole_minutes(symbol)) >= _FEWEST


def _whole_minutes(symbol: SymbolQuality) -> range:
    """Return the examined minutes, since the epoch, but for those at both ends, which are whole only by chance."""
    start, end = examined_range(symbol)
    return range(math.ceil(start / 60), math.floor(end / 60))


def marks(gaps: Iterable[Gap], shown: Sequence[float]) -> list[tuple[float, float, int, float]]:
    """Return gaps, by start, as they are drawn: start, end, how many gaps these are, how many seconds they have in all.

    They are one each, unless there are more of them than can be told apart; `shown` is the range that is drawn.
    """
    marks = [(gap.start_ms / 1000, gap.end_ms / 1000, 1, round(gap.seconds, 3)) for gap in gaps]
    if len(marks) <= _MARKS:
        return marks
    start, end = shown
    near = (end - start) / _MARKS
    joined = marks[:1]
    for mark in marks[1:]:
        before = joined[-1]
        if mark[0] - before[0] < near:
            joined[-1] = before[0], max(before[1], mark[1]), before[2] + 1, round(before[3] + mark[3], 3)
        else:
            joined.append(mark)
    return joined


def _rate(channel: ChannelQuality, symbol: SymbolQuality) -> dict[str, Any]:
    """Return rows a minute: of each whole minute, or of several the average with the least and the most."""
    whole = _whole_minutes(symbol)
    first, last = whole.start, whole.stop
    width = _width(last - first)
    buckets: list[list[int]] = [[] for _ in range(-(-(last - first) // width))]
    for second, rows in channel.by_minute.items():
        if first <= second // 60 < last:
            buckets[(second // 60 - first) // width].append(rows)
    rate: dict[str, Any] = {"start": first * 60, "step": width * 60}
    if width == 1:
        return rate | {"mean": [sum(bucket) for bucket in buckets]}
    minutes = [min(width, last - first - number * width) for number in range(len(buckets))]
    return rate | {
        "mean": [round(sum(bucket) / count, 1) for bucket, count in zip(buckets, minutes, strict=True)],
        "low": [min(bucket) if len(bucket) == count else 0 for bucket, count in zip(buckets, minutes, strict=True)],
        "high": [max(bucket, default=0) for bucket in buckets],
    }


def _missing(audit: SymbolAudit) -> dict[str, Any] | None:
    """Return the contracts that are missing, and those that are too many, in each minute or in several together."""
    if not (audit.missing or audit.too_many) or audit.start_ms is None or audit.end_ms is None:
        return None
    first, last = audit.start_ms // 60_000, audit.end_ms // 60_000
    width = _width(last - first)
    count = -(-(last - first) // width)
    missing, too_many = [0.0] * count, [0.0] * count
    for each in audit.differences:
        bucket = (each.start_ms // 60_000 - first) // width
        missing[bucket] += max(each.missing, 0)
        too_many[bucket] += max(-each.missing, 0)
    series = {"missing": missing, "too_many": too_many}
    return {"start": first * 60, "step": width * 60, "end": last * 60, **series}


def _width(minutes: int) -> int:
    """Return how many minutes a bucket has."""
    least = -(-minutes // _BUCKETS)
    return next((width for width in _MINUTES if width >= least), -(-least // 1440) * 1440)


def price_series(prices: Sequence[PricePoint]) -> dict[str, Any] | None:
    """Return the prices by column, with a null where there were none for a while; times are seconds."""
    if not prices:
        return None
    step_ms = prices[0].step_ms
    digits = _digits(statistics.median(abs(point.spread) for point in prices))
    columns: dict[str, list[Any]] = {name: [] for name in ("times", "mid", "low", "high", "spread", "widest")}
    for number, point in enumerate(prices):
        if number and point.ts_ms - prices[number - 1].ts_ms > max(10_000, 2.5 * step_ms):
            columns["times"].append((prices[number - 1].ts_ms + step_ms) / 1000)
            for name in list(columns)[1:]:
                columns[name].append(None)
        columns["times"].append(point.ts_ms / 1000)
        for name in list(columns)[1:]:
            columns[name].append(round(getattr(point, name), digits + 1))
    return columns | {"step": step_ms / 1000, "digits": digits}


def _digits(spread: float) -> int:
    """Return how many decimals a price is shown with, so that half a spread is seen."""
    return min(15, max(0, 1 - math.floor(math.log10(spread)))) if spread > 0 else 2


def _cumulated(symbol: SymbolQuality, table: TableStorage) -> dict[str, Any] | None:
    """Return how many rows there were by when, and the bytes that one of them takes."""
    disk = disk_bytes(table)
    if not table.records or disk is None:
        return None
    start, end = examined_range(symbol)
    step = 60 * _width(math.ceil((end - start) / 60))
    added: dict[float, int] = {start: 0}
    for channel in symbol.channels:
        for second, rows in channel.by_minute.items():
            bucket = second // step * step
            added.setdefault(max(start, bucket), 0)  # where nothing was added before, the line is level
            until = min(end, bucket + step)
            added[until] = added.get(until, 0) + rows
    times = sorted(added)
    rows_by = list(accumulate(added[time] for time in times))
    return {"times": times, "rows": rows_by, "bytes_per_row": round(disk / table.records, 3)}


def disk_bytes(table: TableStorage) -> int | None:
    """Return the bytes of a table's files; None where nobody knows."""
    return (table.data_bin + (table.index_mrk or 0)) if table.data_bin is not None else table.total_bytes
