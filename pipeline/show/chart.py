"""What a plot of a symbol shows: the figures, not how they look.

In: a symbol and a range of time, read from ClickHouse. Out: a Chart: candles with their volume, mid and spread, the
depth around the mid, gaps. Promise: its size is bounded however long the range, and so is the memory it takes to make
it: ClickHouse adds up, and what comes here is a candle an interval and some books a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_driver import Client

from config import Settings, SymbolConfig
from pipeline.contracts import known_contract
from pipeline.messages import DEAL, DEPTH, DEPTH_LEVELS
from pipeline.read.decode import ROWS, decode, interval_ms
from pipeline.read.quality import DEPTH_SILENCE_MS, TICKER_SILENCE_MS, SymbolQuality, examine
from pipeline.show.figures import examined_range, marks, price_series, read_prices
from pipeline.show.quality_report import coverage
from pipeline.store.client import permitted
from pipeline.store.source import History, Source, in_range, read_rows
from pipeline.times import from_ms

COLORS = {
    "ink": "#1b1f24",
    "faint": "#59636f",
    "line": "#e2e4e7",
    "up": "#2f8f76",
    "down": "#c4563f",
    "mid": "#2462b4",
    "gap": "#e3a21a",
}
HEAT = ("#ffffff", "#dbe6f4", "#a9c5e6", "#6a99d0", "#2f66ad", "#143a75")
"""From nothing on offer to much."""

INTERVALS = ("1s", "5s", "10s", "30s", "1m", "2m", "5m", "10m", "30m", "1h", "2h", "4h", "12h", "1d", "7d", "28d")
"""Of candles: the shortest is taken that makes no more than _CANDLES of them."""

_CANDLES = 150
_POINTS = 1000  # of mid and spread
_STEPS = 400  # of depth
_BOOKS = 20  # a step, of which depth is the average
_SHORTEST_MS = 100  # from one of them to the next
_BINS = 40  # of depth, on each side
_ROUNDED = 1e-6  # of a bin: differences of floats are not exact

GAP = f"gap: no books for over {DEPTH_SILENCE_MS // 1000} s, or no tickers for over {TICKER_SILENCE_MS // 1000} s"

_Floats = npt.NDArray[np.float64]
_T = TypeVar("_T")


class _Span(NamedTuple):
    """Milliseconds since the epoch: from, and before."""

    start: int
    beyond: int


class NoChart(Exception):
    """There is nothing to plot; the text is one line that says why."""


@dataclass(frozen=True)
class Candles:
    """Candles of deals, oldest first; intervals without a deal have none. Prices in USDT."""

    interval: str
    """Such as 5m; they begin at its multiples since 1970, UTC."""
    start_ms: npt.NDArray[np.int64]
    open: _Floats
    high: _Floats
    low: _Floats
    close: _Floats
    volume: _Floats
    """In `Chart.unit`."""

    @property
    def interval_ms(self) -> int:
        return interval_ms(self.interval)


@dataclass(frozen=True)
class Depth:
    """What was on offer at which distance from the mid: the average of some books of each step.

    These are the ones that stood at equally distant moments. A book stands for ten seconds at most; after that, it is a
    gap.
    """

    start_ms: int
    """Where the first step begins; the others follow without a hole."""
    step_ms: int
    width: float
    """Of a bin, in USDT: from its lower edge, which is at a multiple of this, to its upper one."""
    amounts: _Floats
    """In `Chart.unit`: a row a bin, the furthest bids first, the furthest asks last; a column a step, nan where no book
    stood. Levels beyond the bins are left out."""

    @property
    def much(self) -> float:
        """An amount that few bins exceed, at which colors may end."""
        there = self.amounts[self.amounts > 0]  # which nan is not
        return float(np.quantile(there, 0.995)) if len(there) else 1.0

    @property
    def edges(self) -> _Floats:
        """Of the bins: USDT from the mid, below 0 for bids."""
        half = len(self.amounts) // 2
        return np.arange(-half, half + 1).astype(np.float64) * self.width

    @property
    def edges_ms(self) -> npt.NDArray[np.int64]:
        """Of the steps: milliseconds since the epoch."""
        return self.start_ms + np.arange(self.amounts.shape[1] + 1) * self.step_ms


@dataclass(frozen=True)
class Chart:
    """All that a plot shows of a symbol. Times are milliseconds since the epoch, UTC, unless they say otherwise."""

    symbol: str
    start_ms: int
    end_ms: int
    unit: str
    """Of volume and depth: the coin, or contracts where it is not known how many coins one is."""
    quality: SymbolQuality
    candles: Candles | None
    prices: dict[str, Any] | None
    """As `pipeline.show.figures.price_series` has them; times are seconds."""
    depth: Depth | None
    gaps: list[tuple[float, float, int, float]]
    """As `pipeline.show.figures.marks` has them; times are seconds."""

    @property
    def title(self) -> str:
        """From when to when this is, and how much of that is covered."""
        has_seconds = self.start_ms % 60_000 or self.end_ms % 60_000
        form = "%Y-%m-%d %H:%M:%S" if has_seconds else "%Y-%m-%d %H:%M"
        first, last = (from_ms(ms).strftime(form) for ms in (self.start_ms, self.end_ms))
        return f"{first} to {last} UTC · {', '.join(coverage(self.quality))}"

    @property
    def lacks(self) -> list[str]:
        """What there is nothing to show of, in words."""
        shown = {"deals": self.candles, "order books with both sides": self.prices}
        return [what for what, found in shown.items() if found is None]


def read_chart(
    client: Client,
    settings: Settings,
    config: SymbolConfig,
    start: datetime | None = None,
    end: datetime | None = None,
    history: History | None = None,
) -> Chart:
    """Return the chart from `start` until before `end` (aware), or of all there is.

    What is missing at the ends of a range that was asked for is a gap, but not what is yet to come. Raises NoChart,
    pipeline.store.source.HistoryError, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    database, table = settings.clickhouse_database, config["table_name"]
    (quality,) = examine(client, database, [config], start=start, end=end, show_progress=True, history=history)
    problem = quality.problem or ("" if any(channel.rows for channel in quality.channels) else "there are no rows")
    if problem or quality.start_ms is None or quality.end_ms is None:
        asked = (
            " in this range: verif.py --quality says what there is"
            if (start or end) and problem.startswith("there are no rows")
            else ""
        )
        raise NoChart(f"{config['symbol']}: {problem}{asked}")
    contract = known_contract(settings, config)
    size = float(contract.size) if contract else 1.0
    beyond_ms = quality.end_ms + (end is None)  # the newest row is in it
    span = _Span(quality.start_ms, max(beyond_ms, quality.start_ms + 1))
    prices = read_prices(client, database, table, from_ms(span.start), from_ms(span.beyond), _POINTS, history)

    def read(what: Callable[[Source, _Span, float], _T]) -> _T | None:
        return read_rows(client, database, table, lambda source: what(source, span, size), history)

    chart = Chart(
        config["symbol"],
        *span,
        config["symbol"].partition("_")[0] if contract else "contracts",
        quality,
        read(_candles),
        price_series(prices),
        read(_depth),
        marks(quality.uncovered, examined_range(quality)),
    )
    if len(chart.lacks) == 2:
        raise NoChart(f"{config['symbol']}: there are no deals and no order books with both sides in this range")
    return chart


def alone(values: _Floats) -> npt.NDArray[np.bool_]:
    """Return which values of a line have no neighbour, but nan on both sides: no line shows them."""
    is_there = np.pad(~np.isnan(values), 1)
    found: npt.NDArray[np.bool_] = is_there[1:-1] & ~is_there[:-2] & ~is_there[2:]
    return found


# Candles are those of pipeline.read.candles, added up by ClickHouse: decimals, since its floats are not always the ones
# nearest to the text.
_CANDLES_QUERY = """
    WITH
        toUnixTimestamp64Milli(ts) AS ts_ms,
        splitByChar('|', m) AS parts,
        assumeNotNull(toDecimal128OrNull(parts[1], 18)) AS price,
        (ts_ms, {place}) AS place
    SELECT
        intDiv(ts_ms, {step}) * {step} AS start,
        toString(argMin(price, place)), toString(max(price)), toString(min(price)), toString(argMax(price, place)),
        toString(sum(assumeNotNull(toDecimal128OrNull(parts[2], 18))))
    FROM {source} WHERE mt = 'd' AND match(m, %(rows)s) AND {range}
    GROUP BY start ORDER BY start
"""

_BOOKS_QUERY = """
    SELECT
        intDiv(toUnixTimestamp64Milli(ts), {step}) AS number,
        toUnixTimestamp64Milli(max(ts)), argMax(m, (toUnixTimestamp64Milli(ts), {place}))
    FROM {source} WHERE mt = 'dp' AND m LIKE '[%%|[%%' AND {range}
    GROUP BY number ORDER BY number
"""


def _ask(source: Source, query: str, span: _Span, step: int) -> list[tuple[Any, ...]]:
    """Return what a query, which adds up times of `step` milliseconds, answers about a span."""
    settings = permitted(source.client, {"max_execution_time": 0}) | source.settings
    bounds = " AND ".join(in_range(*span))
    query = query.format(source=source.table, place=source.place, step=step, range=bounds)
    found: list[tuple[Any, ...]] = source.client.execute(query, {"rows": ROWS[DEAL]}, settings=settings)
    return found


def _candles(source: Source, span: _Span, size: float) -> Candles | None:
    length = span.beyond - span.start
    interval = next((each for each in INTERVALS if length <= _CANDLES * interval_ms(each)), INTERVALS[-1])
    rows = _ask(source, _CANDLES_QUERY, span, interval_ms(interval))
    if not rows:
        return None
    starts, *columns = zip(*rows, strict=True)
    opened, high, low, close, contracts = (np.array(column, np.float64) for column in columns)
    return Candles(interval, np.array(starts, np.int64), opened, high, low, close, contracts * size)


def _depth(source: Source, span: _Span, size: float) -> Depth | None:
    length = span.beyond - span.start
    apart = max(_SHORTEST_MS, -(-length // ((_STEPS - 1) * _BOOKS)))
    books_of = min(_BOOKS, max(1, -(-length // ((_STEPS - 1) * apart))))
    step = apart * books_of
    rows = _ask(source, _BOOKS_QUERY, span, apart)
    books = decode(DEPTH, [ts for _, ts, _ in rows], [text for *_, text in rows]).table
    books = books.filter(pc.and_(books["bid_price_1"].is_valid(), books["ask_price_1"].is_valid()))
    if not len(books):
        return None
    bids, asks = _levels(books, "bid"), _levels(books, "ask")
    mids = (bids.prices[:, :1] + asks.prices[:, :1]) / 2
    distances = mids - bids.prices, asks.prices - mids
    width, bins = _grid(bids.prices, asks.prices, distances)
    amounts = np.zeros((len(books), 2 * bins))
    for away, levels, direction in zip(distances, (bids, asks), (-1, 1), strict=True):
        places = np.floor(np.nan_to_num(away, nan=np.inf) / width + _ROUNDED)
        book, level = np.nonzero((places >= 0) & (places < bins))
        place = places[book, level].astype(np.int64)
        np.add.at(amounts, (book, bins + place if direction > 0 else bins - 1 - place), levels.contracts[book, level])
    times = books["ts"].cast("int64").to_numpy()
    first, beyond = span.start // step, -(-span.beyond // step)
    begins = np.arange(first * books_of, beyond * books_of) * apart
    last = np.searchsorted(times, begins + apart) - 1  # the book that stands at the end of each
    stands = (last >= 0) & (begins + apart - times[last] <= DEPTH_SILENCE_MS) & (begins < span.beyond)
    shown = np.where(stands[:, None], amounts[last] * size, 0).reshape(-1, books_of, 2 * bins).sum(axis=1)
    count = stands.reshape(-1, books_of).sum(axis=1).astype(np.float64)
    count[count == 0] = np.nan
    return Depth(first * step, step, width, (shown / count[:, None]).T)


class _Levels(NamedTuple):
    """A side of books: a row a book, a column a level; nan where there is none."""

    prices: _Floats
    contracts: _Floats


def _levels(books: pa.Table, side: str) -> _Levels:
    numbers = range(1, DEPTH_LEVELS + 1)
    prices, contracts = (
        np.column_stack([books[f"{side}_{what}_{number}"].to_numpy() for number in numbers])
        for what in ("price", "contracts")
    )
    return _Levels(prices, contracts)


def _grid(bids: _Floats, asks: _Floats, distances: Sequence[_Floats]) -> tuple[float, int]:
    """Return how wide a bin is, a multiple of the price unit, and how many there are on each side."""
    apart = np.abs(np.concatenate([np.diff(side, axis=1).ravel() for side in (bids, asks)]))
    apart = apart[apart > 1e-9 * np.nanmax(asks)]  # which nan is not
    furthest = np.concatenate([np.nanmax(away, axis=1) for away in distances])
    reach = max(float(np.quantile(furthest, 0.9)), 0.0)
    unit = float(apart.min()) if len(apart) else reach or 1.0
    steps = reach / unit / _BINS
    factor = next((each for each in (1, 2, 5) if each >= steps), 10 ** math.ceil(math.log10(max(steps, 1))))
    width = float(f"{unit * factor:.6g}")
    return width, min(max(1, math.floor(reach / width + _ROUNDED) + 1), _BINS + 1)
