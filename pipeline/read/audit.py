"""Whether the exchange agrees: the archive's deals against MEXC's own one-minute klines.

In: the deals of a table, and the bars of pipeline.read.klines. Out: a SymbolAudit for each symbol: how many minutes
agree exactly, in contracts and in prices, and of which others contracts are missing, or too many. A figure for
completeness that does not come from us.

A table has the time at which a deal was pushed, not the one at which it was made, which is a little before. So the
first deals of a minute may be of the minute before, and where the line between the two lies is not known: any number of
those that were pushed within the first two seconds is possible, in the order of their times. Of all possible lines this
takes those, for all minutes at once, that leave the fewest minutes that differ; of these, those that leave the fewest
contracts missing or too many; then the fewest prices that differ; then those that take the fewest contracts over. What
is missing cannot hide that way, since it would then be missing one minute later; but at the end of what is compared, it
could. Where two minutes in a row lack deals, how many are of which may be beyond telling; how many in all is not.

ClickHouse adds up the minutes, in one reading of the table; only the deals of those two seconds come here one by one.
That takes this process some 1.4 KB a minute where ten deals come in a second: 60 MB for a month.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client

from config import Settings, SymbolConfig, load_settings
from pipeline.progress import progress
from pipeline.read.decode import LoadError, as_moment, symbol_config
from pipeline.read.klines import MINUTE, Bar, Klines
from pipeline.rest import Rest
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain, permitted
from pipeline.store.source import History, HistoryError, Source, moment, open_history, read_rows
from pipeline.times import to_ms

LATEST_MS = 2_000
"""How much later than it was made a deal may be pushed, and still be counted in its minute."""

PRICES = ("open", "high", "low", "close")

_MINUTE_MS = MINUTE * 1000
_DAY_MS = 86_400_000
_OLDEST = to_ms(datetime(2018, 1, 1, tzinfo=UTC))  # MEXC is not older
_MOST_EARLY = 300  # deals of two seconds that may be of the minute before; a burst of thousands is not
_SPILL = 256 << 20  # bytes, beyond which ClickHouse adds up on its disk
_BATCH_ROWS = 1_000
_EQUAL = 1e-6  # contracts; they are whole, but need not be

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A minute in which the archive and MEXC's kline are not the same."""

    start_ms: int
    contracts: float
    """By MEXC's kline."""
    missing: float
    """Contracts that the archive lacks; below 0, that it has too many; 0 where only prices differ."""
    prices: tuple[str, ...]
    """Which of the prices differ: some of ``open``, ``high``, ``low``, ``close``."""


@dataclass(frozen=True)
class NotCompared:
    """Minutes, from start and before end, that MEXC's klines say nothing of, and in a line why."""

    start_ms: int
    end_ms: int
    why: str


@dataclass
class SymbolAudit:
    """One symbol."""

    symbol: str
    table: str
    problem: str | None = None
    """Why nothing could be compared; what is below is empty then, but for `not_compared`."""
    start_ms: int | None = None
    end_ms: int | None = None
    """The minutes that were looked at: from start, and before end."""
    minutes: int = 0
    """Those of them that were compared."""
    exact: int = 0
    """Those of these in which contracts and prices are the same."""
    contracts: float = 0.0
    """By MEXC's klines, in the minutes that were compared."""
    missing: float = 0.0
    too_many: float = 0.0
    """Contracts that the archive lacks, and that it has too many, in all minutes that differ."""
    earlier: int = 0
    """Deals that were counted in the minute before the one they were pushed in."""
    undecoded: int = 0
    """Deals that do not decode, and were not counted."""
    differences: list[Difference] = field(default_factory=list)
    """By time."""
    not_compared: list[NotCompared] = field(default_factory=list)
    """By time."""
    notes: list[str] = field(default_factory=list)
    """What else there is to say, a line each."""

    @property
    def percent(self) -> float | None:
        """How much of MEXC's contracts the archive has; None where MEXC has none."""
        return 100 * (1 - self.missing / self.contracts) if self.contracts else None


def audit(
    client: Client,
    settings: Settings,
    configs: Sequence[SymbolConfig],
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    show_progress: bool = False,
    history: History | None = None,
) -> list[SymbolAudit]:
    """Compare the whole minutes from `start` on and before `end`, and return what was found of each symbol.

    Without `start`, from the oldest row of market data on; without `end`, to the newest one, or to now if there is a
    `start`. So where a time was asked for, what is missing at its ends counts. Minutes that are not over by MEXC's own
    klines are left out.

    With `show_progress` a terminal sees how far it is. Of a `history`, only the rows of that time are read. Raises
    pipeline.store.source.HistoryError, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    rest = Rest(settings)
    bounds = (to_ms(start) if start else None, to_ms(end) if end else None)
    return [_audit_symbol(client, settings, rest, config, bounds, show_progress, history) for config in configs]


def audit_symbol(
    symbol: str, start: datetime | date | str | None = None, end: datetime | date | str | None = None
) -> SymbolAudit:
    """Return the audit of a symbol, for scripts and notebooks; arguments are those of `pipeline.read.load`.

    Raises ValueError for an argument that cannot be used, and LoadError.
    """
    settings = load_settings()
    config = symbol_config(symbol, settings)
    try:
        with connect(settings) as client, open_history(settings) as history:
            (found,) = audit(client, settings, [config], start=as_moment(start), end=as_moment(end), history=history)
    except HistoryError as error:
        raise LoadError(str(error)) from None
    except CLICKHOUSE_ERRORS as error:
        raise LoadError(explain(error, settings)) from None
    return found


def _audit_symbol(
    client: Client,
    settings: Settings,
    rest: Rest,
    config: SymbolConfig,
    bounds: tuple[int | None, int | None],
    show_progress: bool,
    history: History | None,
) -> SymbolAudit:
    symbol, table = config["symbol"], config["table_name"]
    found = SymbolAudit(symbol, table)
    shown = progress if show_progress else lambda label, total=None: nullcontext(lambda count: None)
    with shown(f"Adding up the deals of {symbol}"):
        database = settings.clickhouse_database
        minutes = read_rows(client, database, table, lambda source: _read(source, bounds), history)
    if minutes is None:
        found.problem = "there is no such table, run ch_setup.py"
        return found
    span = _span(minutes, bounds, to_ms(datetime.now(UTC)))
    if span is None:
        found.problem = "no whole minute of market data is stored" if minutes.rows else "there are no rows"
        return found
    start, end = span
    found.start_ms, found.end_ms, found.undecoded = start * 1000, end * 1000, minutes.undecoded
    # One more on either side, which is not reported: it tells what was taken over from it.
    before, beyond = start - MINUTE, end + MINUTE
    klines = Klines(settings, rest, symbol)
    with shown(f"Asking MEXC for klines of {symbol}", (beyond - before) // MINUTE) as advance:
        refused = klines.fetch(before, beyond, advance)
    for each in refused:
        first, last = max(each.start, start), min(each.end, end)
        if first < last:
            found.not_compared.append(NotCompared(first * 1000, last * 1000, each.why))
    if klines.trouble:
        found.notes.append(klines.trouble)
    with shown(f"Comparing {symbol}", (beyond - before) // MINUTE) as advance:
        compare(found, minutes, klines.bars(before, beyond), span, advance)
    return found


def _span(minutes: Minutes, bounds: tuple[int | None, int | None], now_ms: int) -> tuple[int, int] | None:
    """Return the minutes to look at, in seconds: from, and before. None where there is no whole one."""
    start, end = bounds
    if start is None and not minutes.rows:
        return None
    if end is None:
        end = minutes.newest_ms if start is None else now_ms
    first = -(-(minutes.oldest_ms if start is None else start) // _MINUTE_MS) * MINUTE
    beyond = min(end, now_ms) // _MINUTE_MS * MINUTE
    return (first, beyond) if first < beyond else None


# What the archive has

_NO_DEALS = (0.0, np.nan, np.nan, np.nan, np.nan)


class Minute(NamedTuple):
    """The deals of a minute, by the times at which they were pushed."""

    early: _Floats
    """Price and contracts of those that may be of the minute before, a row each, in the order of their times."""
    rest: Sequence[float]
    """Contracts, open, high, low and close of all others; the prices are nan where there are none."""


class Minutes:
    """Minutes with their deals, in little memory."""

    def __init__(self) -> None:
        self.rows = 0
        """Of market data, as the next three."""
        self.oldest_ms, self.newest_ms = 0, 0
        self.undecoded = 0
        self._places: dict[int, int] = {}
        self._rest = array("d")
        self._early = array("d")
        self._early_ends = array("q", [0])

    def add(self, minute: int, early: Sequence[tuple[float, float]], rest: Sequence[float]) -> None:
        """Add a minute, given by its beginning in seconds; see Minute."""
        surplus = early[_MOST_EARLY:]
        if surplus:
            prices = [price for price, _ in surplus]
            contracts, _, high, low, close = rest
            high, low = float(np.fmax(high, max(prices))), float(np.fmin(low, min(prices)))
            close = prices[-1] if np.isnan(close) else close
            rest = (contracts + sum(size for _, size in surplus), prices[0], high, low, close)
        self._places[minute] = len(self._places)
        self._rest.extend(rest)
        for deal in early[:_MOST_EARLY]:
            self._early.extend(deal)
        self._early_ends.append(len(self._early))

    def get(self, minute: int) -> Minute:
        """Return a minute; one without deals where none were added."""
        place = self._places.get(minute)
        if place is None:
            return Minute(np.empty((0, 2)), _NO_DEALS)
        first, beyond = self._early_ends[place : place + 2]
        return Minute(np.array(self._early[first:beyond]).reshape(-1, 2), self._rest[5 * place : 5 * place + 5])


# Rows have a place in the order they are stored in, by which deals of one millisecond are told apart.
# Decimals, since ClickHouse's floats are not always the ones nearest to the text. The early deals come as one text each
# minute: a block of the answer has up to 65,000 minutes, and a Decimal of Python's takes a hundred bytes.
_QUERY = f"""
    WITH
        toUnixTimestamp64Milli(ts) AS ts_ms,
        splitByChar('|', m) AS parts,
        mt = 'd' AS is_deal,
        toDecimal128OrNull(if(is_deal, parts[1], ''), 18) AS price,
        toDecimal128OrNull(if(is_deal, parts[2], ''), 18) AS size,
        is_deal AND length(parts) = 3 AND price >= 0 AND size >= 0 AS is_sound,
        ifNull(is_sound, 0) AS counts,
        counts AND ts_ms % {_MINUTE_MS} < {LATEST_MS} AS is_early,
        counts AND ts_ms % {_MINUTE_MS} >= {LATEST_MS} AS is_later,
        assumeNotNull(price) AS p,
        assumeNotNull(size) AS c,
        (ts_ms, {{place}}) AS place
    SELECT
        intDiv(ts_ms, {_MINUTE_MS}) * {MINUTE} AS minute,
        count(), min(ts_ms), max(ts_ms), countIf(is_deal AND NOT counts),
        arrayStringConcat(arraySort(groupArrayIf((place, concat(toString(p), ' ', toString(c))), is_early)).2, ' '),
        countIf(is_later), sumIf(c, is_later), argMinIf(p, place, is_later),
        maxIf(p, is_later), minIf(p, is_later), argMaxIf(p, place, is_later)
    FROM {{source}} WHERE mt != 'dl' AND ts >= {{low}} AND ts < {{high}}
    GROUP BY minute ORDER BY minute
"""


def _read(source: Source, bounds: tuple[int | None, int | None]) -> Minutes:
    """Return the minutes of a table within `bounds`, and two more on either side."""
    start, end = bounds
    low, high = _OLDEST, to_ms(datetime.now(UTC)) + _DAY_MS
    if start is not None:
        low = max(low, start - 2 * _MINUTE_MS)
    if end is not None:
        high = min(high, end + 2 * _MINUTE_MS)
    query = _QUERY.format(source=source.table, place=source.place, low=moment(low), high=moment(high))
    better = {
        "max_execution_time": 0,
        "max_bytes_before_external_group_by": _SPILL,
        "max_bytes_before_external_sort": _SPILL,
    }
    settings = permitted(source.client, better) | source.settings
    minutes = Minutes()
    answer = source.client.execute_iter(query, settings=settings, chunk_size=_BATCH_ROWS)
    for chunk in answer:
        for minute, rows, oldest, newest, undecoded, early, later, *rest in chunk:
            minutes.oldest_ms = minutes.oldest_ms or oldest
            minutes.newest_ms = newest
            minutes.rows += rows
            minutes.undecoded += undecoded
            numbers = list(map(float, early.split()))
            deals = list(zip(numbers[::2], numbers[1::2], strict=True))
            minutes.add(minute, deals, [float(each) for each in rest] if later else _NO_DEALS)
    return minutes


# Comparing


def compare(
    found: SymbolAudit,
    minutes: Minutes,
    bars: Iterable[Bar],
    span: tuple[int, int],
    advance: Callable[[float], None] = lambda count: None,
) -> None:
    """Put into `found` what MEXC's `bars`, oldest first, say of the minutes of `span`, from and before, in seconds.

    There may be bars of one minute more on either side. Minutes of which there is none, and that are not among
    `found.not_compared`, are added to these.
    """
    start, end = span
    all_bars = {bar.time: tuple(map(float, bar[1:])) for bar in bars}
    taken = _settle(minutes, all_bars, range(start - MINUTE, end + MINUTE, MINUTE), advance)
    unknown: list[int] = []
    for minute in range(start, end, MINUTE):
        bar = all_bars.get(minute)
        if bar is None:
            unknown.append(minute)
            continue
        away, more = taken[minute], taken[minute + MINUTE]
        here, after = minutes.get(minute), minutes.get(minute + MINUTE)
        ours = _added_up(here.early[away:], here.rest, after.early[:more])
        found.minutes += 1
        found.contracts += bar[0]
        found.earlier += more
        missing = bar[0] - ours[0] if abs(bar[0] - ours[0]) > _EQUAL else 0.0
        prices = zip(PRICES, ours[1:], bar[1:], strict=True)
        differing = tuple(name for name, our, their in prices if our != their) if bar[0] and ours[0] else ()
        if missing or differing:
            found.differences.append(Difference(minute * 1000, bar[0], missing, differing))
        else:
            found.exact += 1
        found.missing += max(missing, 0)
        found.too_many += max(-missing, 0)
    _report_unknown(found, unknown)


def _report_unknown(found: SymbolAudit, unknown: Sequence[int]) -> None:
    """Note the minutes without a bar; those at the end are not over, or not yet listed, and so not looked at."""
    refused = [(each.start_ms // 1000, each.end_ms // 1000) for each in found.not_compared]
    unknown = [minute for minute in unknown if not any(start <= minute < end for start, end in refused)]
    spans: list[list[int]] = []
    for minute in unknown:
        if spans and minute == spans[-1][1]:
            spans[-1][1] = minute + MINUTE
        else:
            spans.append([minute, minute + MINUTE])
    if spans and spans[-1][1] * 1000 == found.end_ms and found.minutes:
        found.end_ms = spans.pop()[0] * 1000
    found.not_compared += [NotCompared(start * 1000, end * 1000, "MEXC lists no kline") for start, end in spans]
    found.not_compared.sort(key=lambda each: each.start_ms)
    if not found.minutes:
        found.problem = found.not_compared[0].why


def _settle(
    minutes: Minutes,
    bars: dict[int, tuple[float, ...]],
    span: range,
    advance: Callable[[float], None],
) -> dict[int, int]:
    """Return for each minute of `span`, and the one after them, how many of its first deals are of the one before it.

    This is the shortest way through all minutes (Viterbi): a step from one number of deals to the next costs what the
    minute between them then differs.
    """
    here = minutes.get(span[0])
    taken = _taken(here)
    so_far = [np.zeros(len(taken.contracts))] * (_COSTS - 1) + [taken.contracts]
    ways: list[npt.NDArray[np.int16]] = []
    for minute in span:
        after = minutes.get(minute + MINUTE)
        left, taken = _left(here), _taken(after)
        costs = [
            before[:, None] + step for before, step in zip(so_far, _cost(left, taken, bars.get(minute)), strict=True)
        ]
        way = _cheapest(costs)
        so_far = [cost[way, np.arange(len(way))] for cost in costs]
        ways.append(way)
        here = after
        advance(1)
    number = int(_cheapest([cost[:, None] for cost in so_far])[0])
    numbers = {span[-1] + MINUTE: number}
    for minute, way in zip(reversed(span), reversed(ways), strict=True):
        number = int(way[number])
        numbers[minute] = number
    return numbers


def _cheapest(costs: Sequence[_Floats]) -> npt.NDArray[np.int16]:
    """Return for each column the row that costs least by the first of the costs; of several, by the next; and so on."""
    possible = np.ones(costs[0].shape, np.bool_)
    for cost in costs:
        least = np.where(possible, cost, np.inf).min(axis=0)
        possible &= cost == least
    rows: npt.NDArray[np.int16] = possible.argmax(axis=0).astype(np.int16)  # _MOST_EARLY at most
    return rows


class _Sums(NamedTuple):
    """Deals added up, as many times as there are numbers of deals that are of the minute before: 0, 1, 2 ..."""

    contracts: _Floats
    open: _Floats
    high: _Floats
    low: _Floats
    close: _Floats


def _taken(minute: Minute) -> _Sums:
    """Return what the minute before gets of a minute."""
    prices, contracts = minute.early.T
    opens = np.append(np.nan, np.full(len(prices), prices[:1]))
    return _Sums(
        np.append(0.0, contracts.cumsum()),
        opens,
        np.append(np.nan, np.maximum.accumulate(prices)),
        np.append(np.nan, np.minimum.accumulate(prices)),
        np.append(np.nan, prices),
    )


def _left(minute: Minute) -> _Sums:
    """Return what is left of a minute without that."""
    prices, contracts = minute.early.T
    of_rest, opened, high, low, close = minute.rest
    return _Sums(
        np.append(contracts[::-1].cumsum()[::-1], 0.0) + of_rest,
        np.append(prices, opened),
        np.fmax.accumulate(np.append(prices, high)[::-1])[::-1],
        np.fmin.accumulate(np.append(prices, low)[::-1])[::-1],
        np.append(np.full(len(prices), prices[-1:] if np.isnan(close) else close), close),
    )


_COSTS = 4


def _cost(left: _Sums, taken: _Sums, bar: tuple[float, ...] | None) -> Sequence[_Floats]:
    """Return what a minute costs, for each number of deals that it gives away, and each that it takes over.

    That is: whether it differs from its bar, by how many contracts, in how many prices, and what it takes over.
    """
    contracts = left.contracts[:, None] + taken.contracts
    none = np.zeros(contracts.shape)
    if bar is None:
        return none, none, none, none + taken.contracts
    off = np.abs(contracts - bar[0])
    off[off <= _EQUAL] = 0
    prices = none.copy()
    if bar[0]:
        prices += np.where(np.isnan(left.open)[:, None], taken.open, left.open[:, None]) != bar[1]
        prices += np.fmax.outer(left.high, taken.high) != bar[2]
        prices += np.fmin.outer(left.low, taken.low) != bar[3]
        prices += np.where(np.isnan(taken.close), left.close[:, None], taken.close) != bar[4]
    return ((off > 0) | (prices > 0)).astype(np.float64), off, prices, none + taken.contracts


def _added_up(early: _Floats, rest: Sequence[float], more: _Floats) -> tuple[float, ...]:
    """Return contracts, open, high, low and close of deals, which come in this order."""
    contracts, opened, high, low, close = rest
    prices = [*early[:, 0], *([] if np.isnan(opened) else [opened, high, low, close]), *more[:, 0]]
    if not prices:
        return _NO_DEALS
    total = float(early[:, 1].sum() + contracts + more[:, 1].sum())
    return total, float(prices[0]), float(max(prices)), float(min(prices)), float(prices[-1])
