"""Rows of ClickHouse out, files of typed columns in: one a UTC day, in a tree that pandas, DuckDB and ClickHouse read.

    OUT/type=deals/symbol=BTC_USDT/date=2026-10-01/part-0.parquet

or, as Tardis names them, side by side: OUT/mexc-futures_trades_2026-10-01_BTC_USDT.csv.gz.

In: the rows of one message type of one table. Out: a day's file, written once ClickHouse has given as many rows as it
counted on that day; and in OUT/.export, since readers take all files that they find in a tree, a record of that number,
by which the next export knows that the day is there. OUT is a folder or object storage, see pipeline.read.places.
Promise: what is under a file's final name is whole and on the disk, whatever is killed and whenever; each row is in its
day's file, or reported as one that does not decode; no file gives way to one of fewer rows, or of a table that was
reset since.

Candles may be filled with MEXC's own bars, where there are no deals: those are asked of REST, see pipeline.read.klines.

A table has no index: whatever is asked of it, it is read as a whole. So one reading writes all days, in memory that
does not depend on how many there are, or in which order their rows come; nor on how many these are, but for candles,
which are made of a whole day's deals. Of a history (HISTORY=1), only the days that are to be written are read.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from clickhouse_driver import Client

from config import Settings, SymbolConfig
from pipeline.contracts import known_contract
from pipeline.files import silence_stdout
from pipeline.human import human_size, many
from pipeline.messages import DEAL
from pipeline.progress import progress
from pipeline.read import decode, ohlcv, tardis
from pipeline.read.books import last_prices
from pipeline.read.decode import BadRow
from pipeline.read.klines import MINUTE, Bar, Klines
from pipeline.read.places import Bucket, Folder, Paths, Place
from pipeline.read.spool import Spool
from pipeline.read.tardis import Tardis
from pipeline.rest import Rest
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, is_missing_table
from pipeline.store.compact import tables_of
from pipeline.store.schema import parse_comment
from pipeline.store.source import History, HistoryError, Source, find_source, in_range, open_history
from pipeline.times import iso

_DERIVED = {"depth-levels": "depth", "candles": "deals", "top-of-book": "depth"}  # from which messages

TYPES = (*decode.TYPES, *_DERIVED)
"""What can be exported."""

FORMATS = {"parquet": "parquet", "csv": "csv", "arrow": "arrow", "tardis": "csv.gz"}
"""The formats of files, with what their names end with. In Parquet and Arrow files, zstd is inside."""

COMPRESSIONS = {"none": "", "gzip": ".gz", "zstd": ".zst"}
"""How a CSV file can be compressed, with what its name then ends with."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_EPOCH = date(1970, 1, 1)

_BATCH_ROWS = {"depth": 10_000}  # a book has eighty columns
_OTHER_BATCH_ROWS = 50_000
_WRITE_BYTES = 16 << 20  # of columns that a day holds before it writes them, as a row group
_DAYS_AT_ONCE = 16  # days that are being written; there are more only if rows lie all over, and those wait
_ROWS_AT_ONCE = 10_000_000  # of days that are being held, where nothing can be written before a day is whole
_GZIP_LEVEL = 6  # 9, which is usual, takes far longer for little
_NEW_FILE, _NEW_RECORD = ".tmp", ".json.tmp"  # ends of names
_COINS = "coins"  # in a file's style
_NO_CONTRACT = "no contract"  # likewise, where its column of coins is empty
_EXAMPLES = 3  # of a day's rows that do not decode
_LONG = 600.0  # seconds; ClickHouse may read millions of blocks until it says something
_COMPACTION = 600.0  # seconds to wait for one to end
_LISTED = 3600  # seconds after a day's end, when MEXC has listed all bars of it that there will be
_SOURCES = ("deals", "exchange")
_OF_DEALS_ONLY = ("buy_contracts", "deals", "vwap")  # columns of candles that no bar of MEXC's has


class ExportError(Exception):
    """Why the export ended before all was done, in one line; the files that are there are whole."""


@dataclass(frozen=True)
class Job:
    """What to make of each day. Raises ValueError for an interval that cannot be used."""

    type: str
    """One of TYPES, or of pipeline.read.tardis.SOURCES where that is the format."""
    format: str
    """One of FORMATS."""
    exact: bool = False
    """Decimals, not floats."""
    interval: str | None = None
    """The length of the candles, for them only: such as 1m, and a part of a day, since days are apart."""
    fill: bool = False
    """Whether intervals without deals get MEXC's own bars; for candles of whole minutes only."""
    compress: str = "none"
    """One of COMPRESSIONS, for CSV."""
    coins: bool = False
    """Whether amounts are coins, not contracts; for the formats of other tools."""
    exchange: str = tardis.EXCHANGE
    """What Tardis calls the exchange."""
    is_ohlcv: bool = False
    """Whether candles have the columns that other tools expect."""
    is_flat: bool = False
    """Whether these have a candle for each interval, of no volume where there are no deals."""
    has_origin: bool = False
    """Whether messages have the columns that only a history knows."""

    def __post_init__(self) -> None:
        if self.interval:
            _hours_of_whole_candles(self.interval)
        if self.format == "tardis":
            tardis.check_exchange(self.exchange)
        if self.fill and self.step_ms % (MINUTE * 1000):
            raise ValueError(f"candles of {self.interval} are no whole minutes, as MEXC's are: give such as 1m, 5m, 1h")

    @property
    def step_ms(self) -> int:
        """The length of the candles in milliseconds."""
        return decode.interval_ms(self.interval or "1m")

    @property
    def name(self) -> str:
        """What it is called in the tree and before the user; candles of another length are another thing."""
        if self.format == "tardis":
            return f"{self.format}-{self.exchange}-{self.type}"
        layout = ["ohlcv"] * self.is_ohlcv + ["filled"] * self.is_flat
        return "-".join([self.type, *filter(None, [self.interval]), *["filled"] * self.fill, *layout])

    @property
    def ending(self) -> str:
        """What a file's name ends with."""
        return FORMATS[self.format] + COMPRESSIONS[self.compress]

    @property
    def style(self) -> str:
        """What else a file depends on; one of another style is written again."""
        parts = {
            "times with T": self.format == "csv",
            "each with a time": self.format == "tardis",  # earlier ones left out rows that a history was given later
            _COINS: self.coins,
        }
        return "-".join(part for part, is_so in parts.items() if is_so)

    @property
    def source(self) -> str:
        """The name of the messages that it is made of."""
        return {**_DERIVED, **tardis.SOURCES}.get(self.type, self.type)

    @property
    def needs_whole_days(self) -> bool:
        """Whether a day's messages have to be held until the last is there: a candle is made of all its deals."""
        return self.interval is not None

    @property
    def schema(self) -> Any:
        """The columns, a pyarrow.Schema."""
        if self.format == "tardis":
            return tardis.schema(self.type)
        if self.is_ohlcv:
            return ohlcv.SCHEMA
        return self.derive(self.messages).schema

    @property
    def messages(self) -> pa.Table:
        """A table of messages in which there are none."""
        return decode.schema(decode.TYPES[self.source], exact=self.exact, history=self.has_origin).empty_table()

    def derive(self, messages: pa.Table) -> pa.Table:
        """Return what is made of a table of messages: any part of a day's, but for candles all of them."""
        if self.interval:
            part = _hours_of_whole_candles(self.interval) * _HOUR_MS  # in parts, for it takes twice the deals' memory
            nothing = decode.candles(messages[:0], self.interval)
            parts = (decode.candles(deals, self.interval) for _, deals in _split(messages, part))
            made = pa.concat_tables([nothing, *parts])
            return _with_source(made, "deals") if self.fill else made
        if self.type == "depth-levels":
            return decode.depth_levels(messages)
        return decode.top_of_book(messages) if self.type == "top-of-book" else messages


@dataclass
class Result:
    """What was done, in all; `rows` and `bytes` are those of the files that were written."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    already_there: int = 0
    """Days whose files were there, with as many rows as ClickHouse has."""
    undecoded: int = 0
    """Rows that do not decode, of the days that were written."""
    kept: int = 0
    """Files that stay as they are, for ClickHouse has not all of their rows any more."""
    filled: int = 0
    """Rows that are of MEXC's own bars."""


def export(
    settings: Settings,
    config: SymbolConfig,
    job: Job,
    out: Path | Bucket,
    result: Result,
    *,
    start: date | None = None,
    end: date | None = None,
    quiet: bool = False,
) -> None:
    """Export the UTC days from `start` on and before `end` into the tree at `out`; None is as far as there are rows.

    Adds to `result` as it goes. Prints a line for each file, unless `quiet` or there is a bar on the terminal, and on
    stderr what was left out or is waited for. A table that is being compacted is waited for.

    Raises ExportError and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    with open_history(settings, timeout=_LONG) as history:
        place = Folder(out) if isinstance(out, Path) else out
        exporter = _Exporter(settings, config, job, place, result, history, quiet)
        while True:
            try:
                exporter.export(start, end)
            except HistoryError as error:
                raise ExportError(str(error)) from None
            except CLICKHOUSE_ERRORS as error:
                if not is_missing_table(error):
                    raise
                _wait_for_table(settings, config["table_name"])
            else:
                return


def _wait_for_table(settings: Settings, name: str) -> None:
    """Return once a table is there again that is being compacted. Raises ExportError if none is, or not soon."""
    full_name = f"{settings.clickhouse_database}.{name}"
    give_up = time.monotonic() + _COMPACTION
    is_said = False
    with _connected(settings) as client:
        while name not in (found := tables_of(client, settings.clickhouse_database, name)):
            if not found:
                raise ExportError(f"Table {full_name} does not exist: run ch_setup.py")
            if time.monotonic() > give_up:
                raise ExportError(f"{full_name} is still being compacted; if nobody does that, ch_setup.py finishes it")
            if not is_said:
                _warn(f"{full_name} is being compacted: waiting up to {_COMPACTION / 60:.0f} minutes for it")
            is_said = True
            time.sleep(1)


class _Exporter:
    """The export of one job for one symbol. Days are numbered from 1970-01-01 on."""

    def __init__(
        self,
        settings: Settings,
        config: SymbolConfig,
        job: Job,
        place: Place,
        result: Result,
        history: History | None,
        quiet: bool,
    ) -> None:
        self._settings, self._job, self._result, self._history = settings, job, result, history
        self._quiet = quiet or sys.stderr.isatty()
        self._source: Source | None = None  # the history, if that has all rows
        self._symbol, self._table = config["symbol"], config["table_name"]
        self._place, self._directory = place, PurePosixPath(f"type={job.name}", f"symbol={self._symbol}")
        self._token = ""
        self._written: set[int] = set()
        self._kept: set[int] = set()
        self._contract = known_contract(settings, config)
        self._lacks_coins = self._contract is None and "coins" in job.schema.names
        size = self._contract.size if self._contract and job.coins else None
        if job.coins and size is None:
            raise ExportError(
                f"{self._symbol}: how many coins a contract is, is not known: give its contract in config.py, or leave"
                " --coins away"
            )
        is_tardis = job.format == "tardis"
        self._tardis = Tardis(job.type, self._symbol, job.exchange, size) if is_tardis else None
        self._closes: dict[int, float] = {}
        self._there: list[int] = []  # the days that have a record
        self._records: dict[int, _Record | None] = {}  # those of them that were read
        self._klines = Klines(settings, Rest(settings), self._symbol) if job.fill else None

    def export(self, start: date | None, end: date | None) -> None:
        """Do it, or what is left of it if this was called before and failed."""
        low = _number(start) if start else 0
        high = _number(end) if end else _number(date.max)
        counted = self._count(low, high)
        if self._job.is_flat and (closes := self._last_prices()):
            self._closes = closes
            between = range(max(low, min(closes)), min(high, max(closes) + 1))
            counted = {day: counted.get(day, 0) for day in sorted(counted.keys() | set(between))}
        if self._job.fill:
            first = low if start else min(counted, default=high)
            last = min(high - 1 if end else max(counted, default=high), int(time.time() * 1000) // _DAY_MS)
            counted = {day: counted.get(day, 0) for day in range(first, last + 1)}
        if not counted:
            say(f"{self._symbol}: no {self._job.source} in the time asked for")
            return
        with _locked(self._place.aside / self._directory, self._place.name(self._directory)):
            self._look_what_is_there()
            while todo := self._todo(counted):
                for day in [day for day, rows in todo.items() if not rows]:
                    self._write_without_deals(day)
                    del todo[day]
                while todo:
                    for day in self._read(todo, counted):
                        del todo[day]
                if self._job.type != tardis.OF_CHANGES:
                    break  # else there may be days that go on from one that was written
        self._result.kept += len(self._kept)
        self._result.already_there += len(counted.keys() - self._written - self._kept)

    def _count(self, low: int, high: int) -> dict[int, int]:
        """Return the number of rows of each day, from `low` on and before `high`, that has any.

        Notes where the rows are, and the table's creation token.
        """
        database, condition = self._settings.clickhouse_database, self._condition(low, high)
        with progress(f"Counting {self._job.source} of {self._symbol}"), _connected(self._settings) as client:
            source = find_source(client, database, self._table, self._history)
            self._source = source if source.history else None
            self._job = replace(self._job, has_origin=source.history is not None and self._job.type in decode.TYPES)
            comment = next(iter(tables_of(client, database, self._table).values()), "")
            self._token, _ = parse_comment(comment)
            with source.explained():
                counted = source.client.execute(
                    f"SELECT intDiv(toUnixTimestamp64Milli(ts), {_DAY_MS}) AS day, count()"
                    f" FROM {source.table} WHERE {condition} GROUP BY day ORDER BY day"
                )
        return dict(counted)

    def _condition(self, low: int, high: int) -> str:
        """Return as SQL that a message is of a day from `low` on and before `high`."""
        times = in_range(low * _DAY_MS, high * _DAY_MS)
        return " AND ".join([f"mt = '{decode.TYPES[self._job.source]}'", *times])

    def _last_prices(self) -> dict[int, float]:
        """Return the price of each day's last deal."""
        with _connected(self._settings) as client:
            source = self._rows_of(client)
            query = (
                f"SELECT intDiv(toUnixTimestamp64Milli(ts), {_DAY_MS}) AS day, argMax(m, (ts, {source.place}))"
                f" FROM {source.table} WHERE mt = '{DEAL}' AND match(m, '^[0-9.]+[|][0-9.]+[|][12]$') GROUP BY day"
            )
            with source.explained():
                rows = source.client.execute(query, settings=source.settings)
        found = decode.decode(DEAL, [day * _DAY_MS for day, _ in rows], [text for _, text in rows]).table
        days = (moment // _DAY_MS for moment in found["ts"].cast(pa.int64()).to_pylist())
        return dict(zip(days, found["price"].to_pylist(), strict=True))

    def _span(self, day: int) -> ohlcv.Span:
        """Return what part of a day is to have candles: from the first deal of all to the last."""
        before = [other for other in self._closes if other < day]
        start = day * _DAY_MS if before else None
        end = (day + 1) * _DAY_MS if any(other > day for other in self._closes) else None
        return ohlcv.Span(start, end, self._closes[max(before)] if before else None)

    def _style(self, day: int) -> str:
        """Return what else a day's file depends on than its rows: see `Job.style`."""
        of_day = [self._span(day)] * self._job.is_flat + [f"after {after}" for after in [self._after(day)] if after]
        return " ".join(map(str, [self._job.style, *of_day, *[_NO_CONTRACT] * self._lacks_coins]))

    def _look_what_is_there(self) -> None:
        """Find the days that are there. Raises ExportError where contracts and coins would be mixed."""
        records, ending = self._paths(0).record.parent, f".{self._job.ending}.json"
        with using(self._place.name(records)):
            names = self._place.names(records)
        self._there, self._records = [], {}
        for name in sorted(names):
            with suppress(ValueError):  # it is none of ours
                if name.endswith(ending):
                    self._there.append(_number(date.fromisoformat(name.removesuffix(ending).partition("=")[2])))
        newest = self._newest_before(_number(date.max))
        if newest and (_COINS in newest.style) != self._job.coins:
            there, to_do = ("contracts", "leave --coins away") if self._job.coins else ("coins", "give --coins as well")
            raise ExportError(
                f"{self._symbol}: what is there of {self._job.name} is in {there}: {to_do}, or give another --out"
            )

    def _record(self, day: int) -> _Record | None:
        """Return the record of a day's file; None where there is none."""
        if day not in self._records:
            self._records[day] = _Record.of(self._place, self._paths(day))
        return self._records[day]

    def _newest_before(self, day: int) -> _Record | None:
        """Return the record of the newest file that is of a day before that one."""
        earlier = (self._record(each) for each in reversed(self._there) if each < day)
        return next(filter(None, earlier), None)

    def _after(self, day: int) -> list[float | None]:
        """Return how the file ends that a day's goes on from."""
        before = self._newest_before(day) if self._job.type == tardis.OF_CHANGES else None
        return before.ends_with if before else []

    def _todo(self, counted: Mapping[int, int]) -> dict[int, int]:
        done = self._written | self._kept
        return {day: rows for day, rows in counted.items() if day not in done and self._is_to_be_done(day, rows)}

    def _is_to_be_done(self, day: int, rows: int) -> bool:
        paths = self._paths(day)
        name = self._place.name(paths.file)
        if self._job.format == "csv":
            for compress, ending in COMPRESSIONS.items():
                other = paths.file.with_name(f"part-0.csv{ending}")
                with using(name):
                    is_there = other != paths.file and self._place.size(other) is not None
                if is_there:
                    raise ExportError(
                        f"{self._place.name(other)} is there, and a tree with both would have its rows twice: give"
                        f" --compress {compress}, or another --out"
                    )
        record = self._record(day)
        if record is None:
            return True
        why = ""
        if record.token != self._token:
            why = "it was made of another table, or before a reset; for the rows of this one, give another --out"
        elif record.source_rows > rows:
            why = (
                f"it was made of {record.source_rows:,} rows, and ClickHouse has {rows:,} now; to export the day again,"
                " move it away"
            )
        if why:
            _warn(f"{name} is kept: {why}")
            self._kept.add(day)
            return False
        style = self._style(day)
        styles = {style, style.removesuffix(f" {_NO_CONTRACT}")} if self._lacks_coins else {style}  # it was known then
        made_so = (record.exact, record.columns) == (self._job.exact, self._job.schema.names)
        return record.source_rows < rows or not made_so or record.style not in styles or not record.is_filled

    def _read(self, todo: Mapping[int, int], counted: Mapping[int, int]) -> set[int]:
        """Read once, and write as many of the days `todo` as there is room for, at least one; return those."""
        if self._source:  # where a day costs what is in it
            todo = {min(todo): todo[min(todo)]}
        low, high = min(todo), max(todo) + 1
        total = sum(rows for day, rows in counted.items() if low <= day < high)
        label = f"Exporting {self._job.name} of {self._symbol}"
        with (
            _Files(todo, self._job, self._begin, self._finish) as files,
            _connected(self._settings) as client,
            progress(label, total) as advance,
        ):
            for batch in self._batches(client, low, high):
                for day, rows, bad in _by_day(batch):
                    files.add(day, rows, bad)
                advance(len(batch.table) + len(batch.bad))
                if files.are_done:
                    return files.done
            day, got = files.first_short()
            raise ExportError(
                f"{self._symbol}: of {_date(day)}, ClickHouse counted {todo[day]:,} {self._job.source} and gave"
                f" {got:,}; try again, the table may have been reset"
            )

    def _batches(self, client: Client, low: int, high: int) -> Iterator[decode.Batch]:
        source = self._job.source
        return decode.stream(
            self._rows_of(client),
            decode.TYPES[source],
            self._condition(low, high),
            exact=self._job.exact,
            contract_size=self._contract.size if self._contract else None,
            batch_rows=_BATCH_ROWS.get(source, _OTHER_BATCH_ROWS),
            with_origin=self._job.has_origin or (self._source is not None and self._tardis is not None),
        )

    def _rows_of(self, client: Client) -> Source:
        return self._source or Source(client, f"{self._settings.clickhouse_database}.{self._table}")

    def _begin(self, day: int) -> _DayFile:
        return _DayFile(self._place, self._paths(day), self._job, self._token, self._tardis)

    def _write_without_deals(self, day: int) -> None:
        file = self._begin(day)
        try:
            self._finish(day, file)
        except BaseException:
            file.abandon()
            raise

    def _finish(self, day: int, file: _DayFile) -> None:
        filled = 0
        if self._klines:
            made = file.derive()
            bars, file.is_filled = self._bars(self._klines, day, made)
            more = self._candles(bars)
            filled = len(more)
            candles = pa.concat_tables([made, more]).sort_by("start")
            file.write(self._laid_out(day, candles) if self._job.is_ohlcv else candles)
        elif self._job.is_ohlcv:
            file.write(self._laid_out(day, file.derive()))
        before = self._record(day)
        if before and before.rows > file.rows and (self._klines or self._job.is_flat):
            file.abandon()
            now = "the bars that MEXC lists now" if self._klines else "the deals that there are now"
            fewer = f"it has {before.rows:,} rows, and with {now} it would have {file.rows:,}"
            _warn(f"{self._place.name(self._paths(day).file)} is kept: {fewer}")
            self._kept.add(day)
            return
        record = file.finish(self._style(day), self._after(day))
        self._records[day], self._there = record, sorted({*self._there, day})
        self._written.add(day)
        self._result.files += 1
        self._result.rows += record.rows
        self._result.bytes += record.bytes
        self._result.undecoded += record.undecoded
        self._result.filled += filled
        if not self._quiet:
            of_bars = f", {filled:,} of MEXC's own bars" if filled else ""
            name = self._place.name(self._paths(day).file)
            say(f"{name}: {many(record.rows, 'row')}{of_bars}, {human_size(record.bytes)}")
        if record.undecoded:
            examples = "; ".join([_describe(row) for row in file.bad] + ["..."] * (record.undecoded > len(file.bad)))
            _warn(
                f"{self._symbol}: {record.undecoded:,} of {record.source_rows:,} {self._job.source} on {_date(day)} do"
                f" not decode and were left out: {examples}"
            )

    def _laid_out(self, day: int, candles: pa.Table) -> pa.Table:
        """Return the candles of a day with the columns, and in the intervals, that other tools expect."""
        table = ohlcv.ohlcv(candles, coins=self._job.coins)
        return ohlcv.filled(table, self._job.step_ms, self._span(day)) if self._job.is_flat else table

    def _bars(self, klines: Klines, day: int, made: pa.Table) -> tuple[list[Bar], bool]:
        """Return MEXC's bars for the intervals of a day that have no candle, and whether there will be no more.

        Raises ExportError where MEXC does not answer.
        """
        midnight, step, now = day * _DAY_MS // 1000, self._job.step_ms // 1000, int(time.time())
        tomorrow = midnight + _DAY_MS // 1000
        there = {ts_ms // 1000 for ts_ms in made["start"].cast(pa.int64()).to_pylist()}
        empty = [start for start in range(midnight, tomorrow, step) if start not in there and start + step <= now]
        if not empty:
            return [], tomorrow <= now
        end = empty[-1] + step
        spoilt = set()
        for each in klines.fetch(empty[0], end):
            if not each.is_answer:
                raise ExportError(f"{self._symbol}: {_date(day)} cannot be filled: {each.why}")
            _warn(f"{self._symbol}: not filled from {iso(each.start * 1000)} to {iso(each.end * 1000)}: {each.why}")
            spoilt |= {minute // step * step for minute in range(each.start, each.end, MINUTE)}
        if klines.trouble:
            _warn(klines.trouble)
            klines.trouble = ""
        bars = list(klines.bars(empty[0], end))
        # A minute without a bar is one that is not listed yet, or one of which there will never be any.
        listed = tomorrow if now > tomorrow + _LISTED else bars[-1].time + MINUTE if bars else 0
        usable = {start for start in empty if start + step <= listed} - spoilt
        is_all = tomorrow <= now and listed >= end and not spoilt
        return [bar for bar in bars if bar.time // step * step in usable], is_all

    def _candles(self, bars: Sequence[Bar]) -> pa.Table:
        """Return candles of MEXC's bars, as if each were a deal of all at its open, and three of no contracts."""
        traded = [bar for bar in bars if bar.contracts]
        texts = [
            f"{price:f}|{contracts:f}|1"
            for bar in traded
            for price, contracts in zip(bar[2:], (bar.contracts, 0, 0, 0), strict=True)
        ]
        times = [bar.time * 1000 for bar in traded for _ in range(4)]
        size = self._contract.size if self._contract else None
        deals = decode.decode(DEAL, times, texts, exact=self._job.exact, contract_size=size)
        made = decode.candles(deals.table, self._job.interval or "1m")
        for name in _OF_DEALS_ONLY:
            place = made.column_names.index(name)
            made = made.set_column(place, name, pa.nulls(len(made), made.schema.field(name).type))
        return _with_source(made, "exchange")

    def _paths(self, day: int) -> Paths:
        # Where there is a column of that name, a reader of the tree could not tell it from the folder's.
        name = f"{'day' if self._job.is_ohlcv else 'date'}={_date(day)}"
        ending = self._job.ending
        record = ".export" / self._directory / f"{name}.{ending}.json"
        new = [self._place.aside / self._directory / f"{name}.{ending}{what}" for what in (_NEW_FILE, _NEW_RECORD)]
        if self._tardis:
            return Paths(PurePosixPath(self._tardis.file_name(_date(day))), record, *new)
        return Paths(self._directory / name / f"part-0.{ending}", record, *new)


class _Files:
    """The days `todo` during one reading, each in a file from its first row on until it has as many as it should.

    What was counted is the beginning of what is read: rows that were stored since then follow it. The batch that makes
    a day whole may hold some of these; they go into the file, and its record has them. Later ones are left for the next
    export. A day for which there is no room when it comes is left out of this reading.
    """

    def __init__(
        self,
        todo: Mapping[int, int],
        job: Job,
        begin: Callable[[int], _DayFile],
        finish: Callable[[int, _DayFile], None],
    ) -> None:
        self.done: set[int] = set()
        self._todo, self._job, self._begin, self._finish = todo, job, begin, finish
        self._left_out: set[int] = set()
        self._open: dict[int, _DayFile] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.abandon()

    @property
    def are_done(self) -> bool:
        """Whether nothing more is to come but what was left out."""
        return len(self.done) + len(self._left_out) == len(self._todo)

    def first_short(self) -> tuple[int, int]:
        """Return the first day that is not done, and how many rows it has had."""
        day = min(self._todo.keys() - self.done - self._left_out)
        return day, self._open[day].source_rows if day in self._open else 0

    def add(self, day: int, rows: pa.Table, bad: Sequence[BadRow]) -> None:
        """Take messages of a day: those that decode, and those that do not."""
        if day not in self._todo or day in self.done or day in self._left_out:
            return
        if day not in self._open:
            if not self._has_room_for(day):
                self._left_out.add(day)
                return
            self._open[day] = self._begin(day)
        file = self._open[day]
        file.add(rows, bad)
        if file.source_rows >= self._todo[day]:
            self._finish(day, file)
            self.done.add(day)
            del self._open[day]

    def _has_room_for(self, day: int) -> bool:
        if not self._open:
            return True
        held = sum(self._todo[each] for each in (*self._open, day)) if self._job.needs_whole_days else 0
        return len(self._open) < _DAYS_AT_ONCE and held <= _ROWS_AT_ONCE


# A day's file


@dataclass(frozen=True)
class _Record:
    """What a file was made of, how, and what it has become."""

    source_rows: int
    undecoded: int
    rows: int
    bytes: int
    exact: bool
    token: str
    """The creation token of the table that it was made of."""
    columns: list[str] = field(default_factory=list)
    """Their names; older versions had others, and did not record them."""
    is_filled: bool = True
    """Whether MEXC's bars are in it, as far as it is to have any, or there are none."""
    style: str = ""
    """What else it depends on, see `Job.style`; older versions knew of nothing."""
    ends_with: list[float | None] = field(default_factory=list)
    """Of a file of changes, the last book: see pipeline.read.books.last_prices."""

    @classmethod
    def of(cls, place: Place, paths: Paths) -> _Record | None:
        """Return a file's record; None where the file is not there, or not as it was recorded. Raises ExportError."""
        with using(place.name(paths.file)):
            text, size = place.read(paths.record), place.size(paths.file)
        with suppress(ValueError, TypeError):
            record = cls(**json.loads(text or ""))
            if record.bytes == size:
                return record
        return None


class _DayFile:
    """A file that is being written, under another name until it is whole. Raises ExportError if it cannot be."""

    def __init__(self, place: Place, paths: Paths, job: Job, token: str, tardis: Tardis | None) -> None:
        self.source_rows = 0
        self.is_filled = True
        self.bad: list[BadRow] = []
        """The first of the rows that do not decode."""
        self._undecoded = self._rows = 0
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._place, self._paths, self._name = place, paths, place.name(paths.file)
        self._job, self._token, self._tardis = job, token, tardis
        self._ends_with: list[float | None] = []
        schema = job.schema
        with using(self._name):
            self._spool = Spool(paths.new_file.parent) if tardis else None
            self._descriptor = os.open(paths.new_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            file = os.fdopen(self._descriptor, "wb", 1 << 20, closefd=False)
            self._parts = [*_open_writers(job, file, schema), file]
            self._writer = self._parts[0]

    def _from_spool(self) -> Iterator[pa.Table]:
        hours = iter(self._spool or ())
        while True:
            with using(self._name):
                hour = next(hours, None)
            if hour is None:
                return
            if self._job.type == tardis.OF_CHANGES:
                self._ends_with = last_prices(hour)
            yield hour

    def add(self, rows: pa.Table, bad: Sequence[BadRow]) -> None:
        """Take messages, those that decode and those that do not."""
        self.source_rows += len(rows) + len(bad)
        self._undecoded += len(bad)
        self.bad += bad[: _EXAMPLES - len(self.bad)]
        if self._spool:
            with using(self._name):
                self._spool.add(rows)
            return
        self._held.append(rows if self._job.needs_whole_days else self._job.derive(rows))
        self._held_bytes += self._held[-1].nbytes
        if self._held_bytes >= _WRITE_BYTES and not self._job.needs_whole_days:
            self.write(pa.concat_tables(self._held))

    @property
    def rows(self) -> int:
        """How many have been written."""
        return self._rows

    def derive(self) -> pa.Table:
        """Return what is made of the whole day's messages."""
        return self._job.derive(pa.concat_tables([self._job.messages, *self._held]))

    def write(self, table: pa.Table) -> None:
        """Write rows, in place of those that are held."""
        self._rows += len(table)
        self._held, self._held_bytes = [], 0
        with using(self._name):
            self._writer.write((_with_times_as_text(table) if self._job.format == "csv" else table).combine_chunks())

    def finish(self, style: str, after: Sequence[float | None]) -> _Record:
        """Give the file its name once it is on the disk, and return its record.

        `after` is what the file before it ends with, if it goes on from there.
        """
        if self._spool and self._tardis:
            for table in self._tardis.tables(self._from_spool(), after):
                self.write(table)
        elif self._held:
            self.write(self.derive() if self._job.needs_whole_days else pa.concat_tables(self._held))
        paths = self._paths
        with using(self._name):
            for part in self._parts:
                part.close()
            os.fsync(self._descriptor)
            size = os.fstat(self._descriptor).st_size
            record = _Record(
                source_rows=self.source_rows,
                undecoded=self._undecoded,
                rows=self._rows,
                bytes=size,
                exact=self._job.exact,
                token=self._token,
                columns=self._job.schema.names,
                is_filled=self.is_filled,
                style=style,
                ends_with=self._ends_with,
            )
            paths.new_record.write_text(json.dumps(asdict(record)))
            self._place.publish(paths)
        os.close(self._descriptor)
        if self._spool:
            self._spool.close()
        return record

    def abandon(self) -> None:
        """Remove what was written, as far as it goes."""
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(
                nowhere.fileno(), self._descriptor
            )  # whoever is closed writes what it still holds; the disk may be full
        for part in self._parts:
            with suppress(Exception):
                part.close()
        with suppress(OSError):
            os.close(self._descriptor)
        if self._spool:
            with suppress(OSError):
                self._spool.close()
        for unfinished in (self._paths.new_file, self._paths.new_record):
            with suppress(OSError):
                unfinished.unlink()


def _open_writers(job: Job, file: Any, schema: pa.Schema) -> list[Any]:
    """Return what writes tables into `file`, then what that writes through, as far as it has to be closed after it."""
    format = job.format
    if format == "parquet":
        time, *others = schema.names
        encoding = {time: "DELTA_BINARY_PACKED"}  # makes a file of deals a third smaller
        options = {"compression": "zstd", "use_dictionary": others, "column_encoding": encoding}
        return [pyarrow.parquet.ParquetWriter(file, schema, **options)]
    if format == "arrow":
        return [pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))]
    if format == "csv":
        schema = _with_times_as_text(schema.empty_table()).schema
    through: list[Any] = []
    if job.ending.endswith(".gz"):
        through = [gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)]
    elif job.compress == "zstd":
        through = [pa.CompressedOutputStream(file, "zstd")]
    sink = through[0] if through else file
    sink.write((",".join(schema.names) + "\n").encode())  # pyarrow would put names in quotes
    is_any_text = job.type == "dead-letters"
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed" if is_any_text else "none")
    return [pyarrow.csv.CSVWriter(sink, schema, write_options=options), *through]


def _with_times_as_text(table: pa.Table) -> pa.Table:
    """Return a table with its times as both pandas and spreadsheets take them for times."""
    for place, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type):
            table = table.set_column(place, column.name, pc.strftime(table[column.name], "%Y-%m-%dT%H:%M:%S"))
    return table


@contextmanager
def using(path: object) -> Iterator[None]:
    """Turn what the disk, or object storage, refuses into ExportError; ClickHouse's failures are OSErrors, too."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {_why(error)}") from None


def _why(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


@contextmanager
def _locked(aside: Path, directory: str) -> Iterator[None]:
    """Let no other export write into `directory`; the lock, in `aside`, goes with the process."""
    with ExitStack() as stack:
        with using(directory):
            aside.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((aside / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(f"{directory} is in use: another export is writing into it") from None
            for leftover in aside.glob("*.tmp"):  # of an export that was killed
                leftover.unlink()
        yield


# Days and lines


def _by_day(batch: decode.Batch) -> Iterator[tuple[int, pa.Table, list[BadRow]]]:
    """Yield the rows of each day in `batch`, those that decode and those that do not, in the order they have there."""
    rows = dict(_split(batch.table, _DAY_MS))
    bad: dict[int, list[BadRow]] = {}
    for row in batch.bad:
        bad.setdefault(row.ts_ms // _DAY_MS, []).append(row)
    for day in sorted({*rows, *bad}):
        yield day, rows.get(day, batch.table[:0]), bad.get(day, [])


def _split(table: pa.Table, length: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each span of `length` milliseconds since the epoch that has any, by its number."""
    places = pc.divide(table["ts"].cast(pa.int64()), length)
    found = sorted(pc.unique(places).to_pylist())
    for place in found:
        yield place, table if len(found) == 1 else table.filter(pc.equal(places, place))


def _hours_of_whole_candles(interval: str) -> int:
    """Return how many hours of a day hold whole candles of this length. Raises ValueError if not even a day does."""
    columns = decode.schema(decode.TYPES["deals"])
    for hours in (1, 2, 3, 4, 6, 8, 12, 24):
        deal = pa.table({"ts": [hours * _HOUR_MS], "price": [1], "contracts": [1], "coins": [1], "side": ["buy"]}).cast(
            columns
        )
        if decode.candles(deal, interval)["start"] == deal["ts"]:
            return hours
    raise ValueError(f"candles of {interval} do not fill a day: give such as 1s, 5m, 1h, 1d")


def _with_source(candles: pa.Table, source: str) -> pa.Table:
    """Return candles with a column that says where they are from: ``deals`` or ``exchange``."""
    sources = pa.DictionaryArray.from_arrays(
        pa.array([_SOURCES.index(source)] * len(candles), pa.int8()), list(_SOURCES)
    )
    return candles.append_column("source", sources)


def _number(day: date) -> int:
    return (day - _EPOCH).days


def _date(day: int) -> date:
    return _EPOCH + timedelta(day)


def _describe(row: BadRow) -> str:
    text = row.m if len(row.m) <= 60 else f"{row.m[:60]}..."
    return f"{datetime.fromtimestamp(row.ts_ms / 1000, UTC).isoformat(' ', 'milliseconds')} {text!r} ({row.reason})"


@contextmanager
def _connected(settings: Settings) -> Iterator[Client]:
    client = connect(settings, timeout=_LONG)
    try:
        yield client
    finally:
        client.disconnect()


def say(line: str) -> None:
    """Print a line at once. Raises ExportError: nobody reads on, or what is written to is full."""
    try:
        print(line, flush=True)
    except OSError as error:
        silence_stdout()
        raise ExportError(f"Standard output cannot be written: {(error.strerror or str(error)).lower()}") from None


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
