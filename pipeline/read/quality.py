"""How complete and how sound an archive is: gaps, reconnects, order, duplicates, books, dead letters.

In: the tables, in the order they are stored in. Out: a SymbolQuality for each symbol. All rows are read once, in a
stream, of which neither side ever holds more than a few blocks. The books are checked by the server; only times, types
and hashes of each row come here, and the texts of dead letters.

What rows can tell is limited. A channel that is silent was cut off, or had nothing to say: a traded symbol always has
new tickers and books, so for these there is a limit; for deals there is none. But a ticker with a new last price, or
with other open interest, says that there was a deal: see `Trades`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client

from config import SymbolConfig
from pipeline.messages import DEADLETTER, DEADLETTER_CHARACTERS, DEAL, DEPTH, TICKER, TYPE_NAMES, parse_frame
from pipeline.progress import progress
from pipeline.store.client import permitted
from pipeline.store.compact import is_being_compacted, read_table
from pipeline.store.source import History, Source, in_range, read_rows
from pipeline.times import to_ms

CHANNELS = {mt: TYPE_NAMES[mt] for mt in (TICKER, DEAL, DEPTH)}
"""The channels of market data: message type -> name."""

NEVER_SILENT = ("tickers", "depth")
"""Those whose silence means that they are cut off; deals are silent where nobody trades."""

DEPTH_SILENCE_MS, TICKER_SILENCE_MS, ALL_SILENCE_MS = 10_000, 30_000, 10_000
"""How long depth, tickers, or all channels together may be silent before it is a gap."""

_OLDEST = to_ms(datetime(2018, 1, 1, tzinfo=UTC))  # MEXC is not older
_DAY_MS = 86_400_000
_FILLED_MS = 1_000  # deals are filled in once market data has gone on for over a second, see pipeline.collect.gaps
_FULL_MINUTES = 3  # of fewer, there is no median worth the name
_MINUTE_MS = 60_000
_BORDER_MS = 5_000  # around a minute: a ticker tells of a deal a little after it, or a deal comes a little late
_BATCH_ROWS = 65_536

_Times = npt.NDArray[np.int64]
_Bounds = tuple[int | None, int | None]


@dataclass(frozen=True)
class Gap:
    """A time without rows. Times are milliseconds since the epoch, UTC.

    It begins with the last row before it, or where the examined time begins; it ends with the next row, or likewise.
    """

    channel: str
    """``depth``, ``tickers``, or ``all`` of market data. In `SymbolQuality.uncovered` also ``depth+tickers``."""
    start_ms: int
    end_ms: int
    seconds: float


@dataclass(frozen=True)
class Reconnect:
    """A time at which the connection must have been cut and made again, see `examine`."""

    start_ms: int
    end_ms: int
    silent: bool
    """Whether all channels were silent from start to end; else these are the times of the deals filled in."""
    filled_in: int
    """Deals that were filled in, or came late by the other one of two connections."""


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of one kind, see `kind_of`."""

    kind: str
    count: int
    first_ms: int
    example: str
    """The first of them, as stored: 500 characters at most, of any content."""


@dataclass
class Finding:
    """How many rows something is wrong with, and the time of the first of them."""

    count: int = 0
    first_ms: int | None = None

    def note(self, ts: _Times, wrong: npt.NDArray[np.bool_]) -> None:
        """Count the rows that are `wrong`."""
        count = int(wrong.sum())
        if count and not self.count:
            self.first_ms = int(ts[wrong.argmax()])
        self.count += count


@dataclass
class ChannelQuality:
    """One channel of one symbol."""

    name: str
    """``tickers``, ``deals`` or ``depth``."""
    rows: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    """The oldest and the newest time, wherever they are stored."""
    median_per_minute: float | None = None
    min_per_minute: int | None = None
    """Rows a minute over the full minutes of the examined time without a gap of this channel, for deals of all; None
    where those are fewer than three."""
    by_minute: dict[int, int] = field(default_factory=dict)
    """Rows by minute, in the order of time; a minute is given by its beginning, seconds since the epoch. Minutes
    without rows are not in it; the first and the last may not be whole."""
    out_of_order: Finding = field(default_factory=Finding)
    """Rows older than one of this channel that is stored before them."""
    worst_seconds: float = 0.0
    """By how much the worst of these is older."""
    duplicates: Finding | None = None
    """Rows equal to the one before them, in time and text. None for deals: two that are equal are no mistake, and
    the ids by which they could be told apart are not stored."""


@dataclass
class SymbolQuality:
    """One symbol."""

    symbol: str
    table: str
    problem: str | None = None
    """Why nothing can be said: there is no such table, or no row in it; all below is empty then."""
    rows: int = 0
    """Dead letters included."""
    start_ms: int | None = None
    end_ms: int | None = None
    """The examined time, see `examine`."""
    coverage: float | None = None
    """Percent of the examined time that is not in `uncovered`; None where that time has no length."""
    channels: list[ChannelQuality] = field(default_factory=list)
    """Tickers, deals, depth."""
    gaps: list[Gap] = field(default_factory=list)
    """Depth silent for over 10 s, tickers for over 30 s, all for over 10 s, not counting deals that were filled in; by
    start. They overlap."""
    uncovered: list[Gap] = field(default_factory=list)
    """The gaps of depth and tickers, joined where they overlap or touch; by start."""
    minutes_without_deals: list[int] = field(default_factory=list)
    """Minutes in which the market traded, and in and around which there is no deal, see `Trades`: their beginnings in
    seconds since the epoch, in the order of time."""
    reconnects: list[Reconnect] = field(default_factory=list)
    """By start."""
    dead_letters: list[DeadLetters] = field(default_factory=list)
    """The most frequent kind first."""
    crossed_books: Finding = field(default_factory=Finding)
    """Depth rows whose best bid is not below the best ask."""
    unsorted_books: Finding = field(default_factory=Finding)
    """Depth rows with bids that do not fall, or asks that do not rise, from level to level."""
    unreadable_books: Finding = field(default_factory=Finding)
    """Depth rows that do not have two sides of prices and amounts, or have a price that is no number."""
    misdated: Finding = field(default_factory=Finding)
    """Rows of market data dated before MEXC existed or later than tomorrow. They are in `rows`, and in nothing else:
    one of them would make a gap of years."""


@dataclass(frozen=True)
class Newest:
    """The newest row of market data of one symbol."""

    symbol: str
    table: str
    exists: bool
    """Whether there is such a table."""
    ts_ms: int | None
    """None if it has no row of market data."""
    channels: dict[str, int | None]
    """The same of each channel, by name."""
    being_compacted: bool
    """Whether new rows have to wait, because somebody is compacting the table."""


def examine(
    client: Client,
    database: str,
    configs: Sequence[SymbolConfig],
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    show_progress: bool = False,
    history: History | None = None,
) -> list[SymbolQuality]:
    """Read all rows from `start` on and before `end`, or all there are, and return what they say of each symbol.

    The examined time is from `start`, or the oldest row of market data, to `end`, but not beyond now. Without `end` it
    is to the newest row of market data, or to now if there is a `start`; now is when the symbol's rows were asked for.
    So where a time was asked for, what is missing at its ends counts.

    Reconnects show in two ways. All channels were silent for over 10 seconds and went on: the connection was lost, or
    the collector did not run, or MEXC was silent itself. Or deals are stored more than a second later than newer data:
    those that a collector has filled in, or, of two connections, those that only a lagging one brought after the other
    was cut; then books and tickers are late, too. A shorter cut in which no deal was made, or none could be
    filled in, leaves no trace. What is filled in for two cuts within 10 seconds counts as one.

    With `show_progress` a terminal sees how far it is. A table that is being compacted is read where its rows are; of a
    `history`, only the rows of the time asked for are read. Raises pipeline.store.source.HistoryError, and one of
    pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    bounds = (to_ms(start) if start else None, to_ms(end) if end else None)
    names = [config["table_name"] for config in configs]
    query = "SELECT sum(total_rows) FROM system.tables WHERE database = %(database)s AND name IN %(names)s"
    ((rows,),) = client.execute(query, {"database": database, "names": names})
    total = None if history else rows  # of a history it is not known how many there are in that time
    with progress("Examining rows", total) if show_progress else nullcontext(lambda count: None) as advance:
        return [_examine_symbol(client, database, config, bounds, advance, history) for config in configs]


def find_newest(
    client: Client, database: str, configs: Sequence[SymbolConfig], history: History | None = None
) -> list[Newest]:
    """Return the newest row of each symbol; where a table was turned over and has none, that of its `history`.

    Dead letters do not count: an exchange that sends nothing else brings no data. Nor do rows dated later than
    tomorrow: one of them would hide for good that no more come. Raises as `examine` does.
    """
    settings = permitted(client, {"max_threads": 1})  # each would copy the list of blocks
    is_sound = "ts < now() + INTERVAL 1 DAY"

    def read(source: str) -> dict[str, int]:
        newest = f"SELECT mt, toUnixTimestamp64Milli(max(ts)) FROM {source} WHERE mt != 'dl' AND {is_sound} GROUP BY mt"
        return dict(client.execute(newest, settings=settings))

    found = []
    for config in configs:
        name = config["table_name"]
        being_compacted = is_being_compacted(client, database, name)  # first, for it may end meanwhile
        answer = read_table(client, database, name, read)
        times = answer or {}
        source = history.source_of(client, database, name) if history and len(times) < len(CHANNELS) else None
        if source:
            with source.explained():
                for mt in CHANNELS.keys() - times:
                    rows = f"FROM {source.table} WHERE mt = '{mt}' AND {is_sound} ORDER BY ts DESC LIMIT 1"
                    for (ts,) in source.client.execute(f"SELECT toUnixTimestamp64Milli(ts) {rows}"):
                        times[mt] = ts
        channels = {channel: times.get(mt) for mt, channel in CHANNELS.items()}
        newest = max(times.values(), default=None)
        is_there = answer is not None or source is not None
        found.append(Newest(config["symbol"], name, is_there, newest, channels, being_compacted))
    return found


# Reading

_ROW = np.dtype([("ts", "<i8"), ("hash", "<u8"), ("mt", "i1"), ("book", "u1"), ("state", "<u4")])
_NUMBERS = {TICKER: 1, DEAL: 2, DEPTH: 3, DEADLETTER: 4}  # of the Enum8, see pipeline.store.schema
_CROSSED, _UNSORTED, _UNREADABLE = 1, 2, 4

_DELETED = "'[[][0-9.]+,0+([.]0*)?[]],?'"
LEVELS = f"if(position(m, ',0') = 0, m, replaceRegexpAll(if(position(m, ',0') = 0, '', m), {_DELETED}, ''))"
"""SQL: a book's text `m` without the levels that were deleted, which have no contracts. Few books have any."""

# A price is what stands between a bracket and an amount. Where something else does, there are fewer prices than
# brackets, or it becomes nan. The first element of arrayDifference is 0, so one is always counted.
_PRICES = "arrayMap(p -> toFloat64OrDefault(p, nan), extractAll(sides[{side}], '\\\\[([0-9.]+),[0-9]'))"
_QUERY = f"""
    WITH
        if(mt = 'dp', {LEVELS}, '') AS levels,
        splitByChar('|', levels) AS sides,
        {_PRICES.format(side=1)} AS bids,
        {_PRICES.format(side=2)} AS asks,
        length(sides) != 2 OR countSubstrings(levels, '[') != length(bids) + length(asks)
            OR (empty(bids) AND notEmpty(sides[1])) OR arrayExists(p -> isNaN(p), bids)
            OR (empty(asks) AND notEmpty(sides[2])) OR arrayExists(p -> isNaN(p), asks)
            AS unreadable,
        notEmpty(bids) AND notEmpty(asks) AND bids[1] >= asks[1] AS crossed,
        arrayCount(d -> d >= 0, arrayDifference(bids)) > 1 OR arrayCount(d -> d <= 0, arrayDifference(asks)) > 1
            AS unsorted,
        splitByChar('|', if(mt = 't', m, '')) AS ticker,
        toFloat64OrZero(ticker[1]) AS last_price,
        toFloat64OrZero(ticker[4]) AS open_interest
    SELECT
        concat(
            reinterpretAsFixedString(toUnixTimestamp64Milli(ts)),
            reinterpretAsFixedString(cityHash64(m)),
            reinterpretAsFixedString(CAST(mt, 'Int8')),
            reinterpretAsFixedString(toUInt8(
                multiIf(mt != 'dp', 0, unreadable, {_UNREADABLE}, crossed * {_CROSSED} + unsorted * {_UNSORTED})
            )),
            reinterpretAsFixedString(toUInt32(
                if(last_price > 0 AND open_interest > 0, cityHash64(last_price, open_interest), 0)
            ))
        ),
        if(mt = 'dl', m, '')
    FROM {{source}} {{clauses}}
"""


def _examine_symbol(
    client: Client,
    database: str,
    config: SymbolConfig,
    bounds: _Bounds,
    advance: Callable[[float], None],
    history: History | None,
) -> SymbolQuality:
    def read(source: Source) -> tuple[Scan, int]:
        asked_ms = to_ms(datetime.now(UTC))  # what comes while rows are read is not among them
        scan = Scan(config["symbol"], asked_ms)
        for rows in _stream(source, bounds, advance):
            packed, texts = zip(*rows, strict=True)
            scan.add(np.frombuffer(b"".join(packed), _ROW), texts)
        return scan, asked_ms

    answer = read_rows(client, database, config["table_name"], read, history)
    quality = SymbolQuality(config["symbol"], config["table_name"])
    if answer is None:
        quality.problem = "there is no such table, run ch_setup.py"
    else:
        scan, asked_ms = answer
        scan.report(quality, bounds, asked_ms)
    return quality


def _stream(source: Source, bounds: _Bounds, advance: Callable[[float], None]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield the rows in the order they are stored in, some at a time: packed as _ROW, and a dead letter's text."""
    better = {
        "max_execution_time": 0,
        "short_circuit_function_evaluation": "disable",  # which takes apart what is used twice, here a book's prices
    }
    settings = permitted(source.client, better) | source.settings | {"strings_as_bytes": True}
    for clauses in source.in_order(" AND ".join(in_range(*bounds)) or "1"):
        received = done = 0
        query = _QUERY.format(source=source.table, clauses=clauses)
        for rows in source.client.execute_iter(query, settings=settings, chunk_size=_BATCH_ROWS):
            yield rows
            received += len(rows)
            # Of a table that is read for a part of its rows, the server tells how many it has read; not every server
            # does.
            before, done = done, max(received, source.client.last_query.progress.rows)
            advance(done - before)


# What rows say


class Spans:
    """Times, joined to spans wherever neighbours are at most `limit_ms` apart; they may come in any order.

    Whatever lies between the ends of a span is near enough to some time of it. So the ends are all that is to be kept.
    """

    def __init__(self, limit_ms: int) -> None:
        self._limit = limit_ms
        self.starts: _Times = np.empty(0, np.int64)
        self.ends: _Times = np.empty(0, np.int64)
        self.counts: _Times = np.empty(0, np.int64)
        """How many times are in each span."""

    def add(self, times: _Times) -> None:
        """Add times, each a span of its own until it is joined to others."""
        if not len(times):
            return
        starts = np.concatenate((self.starts, times))
        order = np.argsort(starts, kind="stable")  # fast, since most are in order
        starts = starts[order]
        reach = np.maximum.accumulate(np.concatenate((self.ends, times))[order])
        counts = np.concatenate((self.counts, np.ones_like(times)))[order]
        first = np.append(0, np.flatnonzero(starts[1:] - reach[:-1] > self._limit) + 1)
        self.starts = starts[first]
        self.ends = reach[np.append(first[1:], len(starts)) - 1]
        self.counts = np.add.reduceat(counts, first)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the times in no span that are longer than the limit, from `start` to `end`."""
        return self._wide(np.append(start, self.ends), np.append(self.starts, end))

    def inner_gaps(self) -> list[tuple[int, int]]:
        """Return those between the first time of all and the last."""
        return self._wide(self.ends[:-1], self.starts[1:])

    def _wide(self, begins: _Times, ends: _Times) -> list[tuple[int, int]]:
        wide = ends - begins > self._limit
        return list(zip(begins[wide].tolist(), ends[wide].tolist(), strict=True))


class _Channel:
    """What is known of one channel's rows so far."""

    def __init__(self) -> None:
        self.rows = 0
        self.oldest: int | None = None
        self.newest: int | None = None
        self.by_minute: Counter[int] = Counter()
        self.out_of_order, self.duplicates = Finding(), Finding()
        self.worst_ms = 0
        self._last_ts: _Times = np.empty(0, np.int64)
        self._last_hash: npt.NDArray[np.uint64] = np.empty(0, np.uint64)

    def add(self, ts: _Times, hashes: npt.NDArray[np.uint64]) -> None:
        """Add rows in the order they are stored in."""
        if not len(ts):
            return
        behind, self.newest = _behind(ts, self.newest)
        self.out_of_order.note(ts, behind > 0)
        self.worst_ms = max(self.worst_ms, int(behind.max()))
        oldest = int(ts.min())
        self.oldest = oldest if self.oldest is None else min(self.oldest, oldest)
        self.rows += len(ts)
        minutes, counts = np.unique(ts // 60_000 * 60, return_counts=True)
        self.by_minute.update(dict(zip(minutes.tolist(), counts.tolist(), strict=True)))
        # Each row and the one before it, of which the very first has none.
        ts, hashes = np.append(self._last_ts, ts), np.append(self._last_hash, hashes)
        self.duplicates.note(ts[1:], (ts[1:] == ts[:-1]) & (hashes[1:] == hashes[:-1]))
        self._last_ts, self._last_hash = ts[-1:], hashes[-1:]

    def per_minute(self, start_ms: int, end_ms: int, gaps: Sequence[Gap]) -> tuple[float | None, int | None]:
        """Return median and minimum of the rows per minute, over the full minutes from start to end.

        Those that have a part in one of `gaps`, which are in the order of time, do not count.
        """
        begin, beyond = -(-start_ms // 60_000) * 60, end_ms // 60_000 * 60
        spans = []  # of minutes without a gap
        for gap in gaps:
            spans.append((begin, min(beyond, gap.start_ms // 60_000 * 60)))
            begin = max(begin, -(-gap.end_ms // 60_000) * 60)
        spans = [(first, last) for first, last in [*spans, (begin, beyond)] if first < last]
        minutes = sum(last - first for first, last in spans) // 60
        if minutes < _FULL_MINUTES:
            return None, None
        firsts = [first for first, _ in spans]
        counts = sorted(
            count
            for minute, count in self.by_minute.items()
            if (at := bisect_right(firsts, minute)) and minute < spans[at - 1][1]
        )
        empty = minutes - len(counts)  # these may be very many, so they are not listed
        middle = [0 if at < empty else counts[at - empty] for at in ((minutes - 1) // 2, minutes // 2)]
        return sum(middle) / 2, 0 if empty else counts[0]


class Trades:
    """The minutes in which tickers show a trade, and those that have a deal in or around them.

    Between two tickers there was a trade if last price or open interest are not the same: nothing else changes these.
    That counts for a minute where both are in it, five seconds or more from its ends; and a deal counts for it up to
    five seconds before and after it. So what a ticker tells late, and a deal that comes late, make no false alarm; a
    time without deals that is shorter than two minutes may be overlooked.
    """

    def __init__(self, latest_ms: int) -> None:
        """Take times up to `latest_ms`."""
        minutes = self._minutes(np.array([latest_ms + _BORDER_MS]))[0] + 1
        self._traded, self._dealt = np.zeros(minutes, np.bool_), np.zeros(minutes, np.bool_)
        self._ts: _Times = np.empty(0, np.int64)
        self._state: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        """Of the newest ticker."""

    def add_tickers(self, ts: _Times, state: npt.NDArray[np.uint32]) -> None:
        """Add tickers in the order they are stored in; `state` tells what a trade changes, 0 where it is not known."""
        ts, state = np.append(self._ts, ts), np.append(self._state, state)
        is_newest = np.maximum.accumulate(ts) == ts  # what an older one says has been overtaken
        ts, state = ts[is_newest], state[is_newest]
        changed = (state[1:] != state[:-1]) & (state[1:] > 0) & (state[:-1] > 0)
        before, after = ts[:-1][changed], ts[1:][changed]
        minutes = self._minutes(before)
        is_inner = (before % _MINUTE_MS >= _BORDER_MS) & (after % _MINUTE_MS <= _MINUTE_MS - _BORDER_MS)
        self._traded[minutes[is_inner & (minutes == self._minutes(after))]] = True
        self._ts, self._state = ts[-1:], state[-1:]

    def add_deals(self, ts: _Times) -> None:
        """Add deals in any order."""
        for near in (ts - _BORDER_MS, ts + _BORDER_MS):
            self._dealt[self._minutes(near)] = True

    def without_deals(self, start_ms: int, end_ms: int) -> list[int]:
        """Return the minutes with trades and no deal that lie within these times with what is around them."""
        minutes = np.flatnonzero(self._traded & ~self._dealt) + _OLDEST // _MINUTE_MS
        begins = minutes * _MINUTE_MS
        is_whole = (begins - _BORDER_MS >= start_ms) & (begins + _MINUTE_MS + _BORDER_MS <= end_ms)
        found: list[int] = (begins[is_whole] // 1000).tolist()
        return found

    @staticmethod
    def _minutes(ts: _Times) -> _Times:
        return np.maximum(ts // _MINUTE_MS - _OLDEST // _MINUTE_MS, 0)


class Scan:
    """What is known of one symbol's rows so far."""

    def __init__(self, symbol: str, now_ms: int) -> None:
        self._symbol = symbol
        self._latest = now_ms + _DAY_MS
        self._misdated = Finding()
        self._rows = 0
        self._channels = {mt: _Channel() for mt in CHANNELS}
        self._newest: int | None = None
        self._tickers, self._depth = Spans(TICKER_SILENCE_MS), Spans(DEPTH_SILENCE_MS)
        self._live, self._filled_in = Spans(ALL_SILENCE_MS), Spans(ALL_SILENCE_MS)
        self._trades = Trades(self._latest)
        self._books = {flag: Finding() for flag in (_CROSSED, _UNSORTED, _UNREADABLE)}
        self._dead_letters: dict[str, DeadLetters] = {}

    def add(self, rows: npt.NDArray[np.void], texts: Sequence[bytes]) -> None:
        """Add rows, of type _ROW, in the order they are stored in; `texts` are theirs where they are dead letters."""
        self._rows += len(rows)
        for at in np.flatnonzero(rows["mt"] == _NUMBERS[DEADLETTER]).tolist():
            self._add_dead_letter(int(rows["ts"][at]), texts[at].decode(errors="replace"))
        market = rows[rows["mt"] != _NUMBERS[DEADLETTER]]
        is_dated = (market["ts"] >= _OLDEST) & (market["ts"] <= self._latest)
        self._misdated.note(market["ts"], ~is_dated)
        market = market[is_dated]
        if not len(market):
            return
        for mt, channel in self._channels.items():
            of_channel = market[market["mt"] == _NUMBERS[mt]]
            channel.add(of_channel["ts"], of_channel["hash"])
        for flag, finding in self._books.items():
            finding.note(market["ts"], market["book"] & flag > 0)
        behind, self._newest = _behind(market["ts"], self._newest)
        tickers = market[market["mt"] == _NUMBERS[TICKER]]
        self._tickers.add(tickers["ts"])
        self._trades.add_tickers(tickers["ts"], tickers["state"])
        self._trades.add_deals(market["ts"][market["mt"] == _NUMBERS[DEAL]])
        self._depth.add(market["ts"][market["mt"] == _NUMBERS[DEPTH]])
        filled_in = (market["mt"] == _NUMBERS[DEAL]) & (behind > _FILLED_MS)
        self._live.add(market["ts"][~filled_in])
        self._filled_in.add(market["ts"][filled_in])

    def report(self, quality: SymbolQuality, bounds: _Bounds, now_ms: int) -> None:
        """Put into `quality` what all rows together say, within `bounds`."""
        start, end = bounds
        if end is None:
            end = self._newest if start is None else now_ms
        if end is not None:
            end = min(end, max(now_ms, self._newest or 0))  # what is yet to come is not missing; clocks may differ
        if start is None:
            start = min((each.oldest for each in self._channels.values() if each.oldest is not None), default=None)
        quality.rows = self._rows
        quality.misdated = self._misdated
        quality.dead_letters = sorted(self._dead_letters.values(), key=lambda letters: -letters.count)
        if start is None or end is None or start > end:
            quality.problem = "there are no rows of market data" if self._rows else "there are no rows"
            return
        quality.start_ms, quality.end_ms = start, end
        silences = {"tickers": self._tickers, "depth": self._depth, "all": self._live}
        quality.gaps = sorted(
            (_gap(name, *each) for name, spans in silences.items() for each in spans.gaps(start, end)),
            key=lambda gap: (gap.start_ms, gap.channel),
        )
        for mt, name in CHANNELS.items():
            gaps = [gap for gap in quality.gaps if gap.channel == (name if name in silences else "all")]
            quality.channels.append(self._describe(mt, name, start, end, gaps))
        quality.uncovered = list(_joined(gap for gap in quality.gaps if gap.channel != "all"))
        if end > start:
            missing = sum(gap.end_ms - gap.start_ms for gap in quality.uncovered)
            quality.coverage = 100 * (1 - missing / (end - start))
        quality.minutes_without_deals = self._trades.without_deals(start, end)
        quality.reconnects = self._reconnects()
        quality.crossed_books, quality.unsorted_books, quality.unreadable_books = self._books.values()

    def _describe(self, mt: str, name: str, start_ms: int, end_ms: int, gaps: Sequence[Gap]) -> ChannelQuality:
        channel = self._channels[mt]
        described = ChannelQuality(name, channel.rows, channel.oldest, channel.newest)
        described.median_per_minute, described.min_per_minute = channel.per_minute(start_ms, end_ms, gaps)
        described.by_minute = dict(sorted(channel.by_minute.items()))
        described.out_of_order = channel.out_of_order
        described.worst_seconds = channel.worst_ms / 1000
        described.duplicates = None if mt == DEAL else channel.duplicates
        return described

    def _reconnects(self) -> list[Reconnect]:
        silences = self._live.inner_gaps()
        ends = [end for _, end in silences]
        filled_in: Counter[int] = Counter()
        reconnects = []
        spans = (self._filled_in.starts, self._filled_in.ends, self._filled_in.counts)
        for start, end, count in zip(*(each.tolist() for each in spans), strict=True):
            # The deals asked for begin a second before the silence, and end one after it.
            at = bisect_left(ends, start - _FILLED_MS)
            if at < len(silences) and silences[at][0] <= end + _FILLED_MS:
                filled_in[at] += count
            else:
                reconnects.append(Reconnect(start, end, False, count))
        reconnects += [Reconnect(start, end, True, filled_in[at]) for at, (start, end) in enumerate(silences)]
        return sorted(reconnects, key=lambda reconnect: reconnect.start_ms)

    def _add_dead_letter(self, ts_ms: int, text: str) -> None:
        kind = kind_of(text, self._symbol)
        known = self._dead_letters.get(kind, DeadLetters(kind, 0, ts_ms, text))
        self._dead_letters[kind] = DeadLetters(kind, known.count + 1, known.first_ms, known.example)


def _behind(ts: _Times, newest: int | None) -> tuple[_Times, int]:
    """Return by how much each time is behind the newest before it, `newest` included, and then the newest of all.

    Those that are not behind have 0, or less.
    """
    before = np.maximum.accumulate(np.append(ts[0] if newest is None else newest, ts))
    return before[:-1] - ts, int(before[-1])


def _gap(channel: str, start_ms: int, end_ms: int) -> Gap:
    return Gap(channel, start_ms, end_ms, (end_ms - start_ms) / 1000)


def _joined(gaps: Iterator[Gap]) -> Iterator[Gap]:
    """Join gaps, which are in the order of their starts, wherever they overlap or touch."""
    channels: set[str] = set()
    start = end = 0
    for gap in gaps:
        if channels and gap.start_ms > end:
            yield _gap("+".join(sorted(channels)), start, end)
            channels = set()
        if not channels:
            start = end = gap.start_ms
        channels.add(gap.channel)
        end = max(end, gap.end_ms)
    if channels:
        yield _gap("+".join(sorted(channels)), start, end)


# Dead letters

_PUSHES = ("push.ticker", "push.deal", "push.depth.full")
_BINARY = re.compile(r"\\x[0-9a-f]{2}|[\x00-\x08\x0b\x0c\x0e-\x1f]")  # the first is how bytes are kept, and no JSON
_NAMES = re.compile(r'"(channel|symbol)"\s*:\s*"(.*?)"')


def kind_of(text: str, symbol: str) -> str:
    """Return what kind of dead letter `text` is, in the table of `symbol`; pure.

    ``rs.error``: MEXC reports an error. ``refused subscription``. ``another symbol``, ``unknown channel``: a push that
    was not subscribed to, or no push. ``bad field``: a push with something missing or of the wrong kind. ``broken
    JSON``; ``binary``, and no text: MEXC sends neither. ``cut short``: of 500 characters, the channel is not among
    them; where it is, anything may be wrong with the rest, and ``bad field`` is a guess. ``readable now``: an older
    collector could not read it.
    """
    if _BINARY.search(text):
        return "binary"
    try:
        frame = json.loads(text)
    except RecursionError:
        return "broken JSON"
    except json.JSONDecodeError as error:
        if not _is_cut(text, error):
            return "broken JSON"
        frame = dict(reversed(_NAMES.findall(text)))  # the first of each name stays
        if "channel" not in frame:
            return "another symbol" if frame.get("symbol", symbol) != symbol else "cut short"
    else:
        if all(row.mt != DEADLETTER for row in parse_frame(text, symbol, 0).rows):
            return "readable now"
    channel = frame.get("channel") if isinstance(frame, dict) else None
    if channel == "rs.error":
        return "rs.error"
    if isinstance(channel, str) and channel.startswith("rs.sub."):
        return "refused subscription"
    if channel not in _PUSHES:
        return "unknown channel"
    return "bad field" if frame.get("symbol") == symbol else "another symbol"


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether `text` may be the beginning of sound JSON: what is wrong with it is that it ends."""
    if len(text) < DEADLETTER_CHARACTERS:
        return False
    # A string has no end; or it is at the very end, where a word or a number may be cut in two.
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - len("false")
