"""A live view of the archive for a terminal: what verif.py reports, and how fast it grows.

Each refresh asks what ClickHouse knows without reading a table: rows and bytes. The rest is counted, which reads all
rows: in the background, and a twentieth of the time at most, so that small tables are counted at each refresh and large
ones now and then; the view says when. Where nothing answers, it says so, keeps what it has, and goes on asking. What is
too much for the screen is a line a symbol, the worst first, with sums of those that have no place.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import starmap
from pathlib import Path
from typing import NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from config import Settings, SymbolConfig
from pipeline.human import human_size, many
from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER
from pipeline.read.quality import find_newest
from pipeline.status import check, stale_after, status_path
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain, is_misconfigured, is_missing_table
from pipeline.store.compact import tables_of
from pipeline.store.schema import parse_comment
from pipeline.store.source import HistoryError, open_history
from pipeline.store.storage import Storage, TableStorage, survey
from pipeline.store.tiers import Tiers, survey_tiers

_TYPES = {TICKER: "tickers", DEAL: "deals", DEPTH: "depth", DEADLETTER: "dead"}
_SHARE = 20  # counting takes one part in so many of the time
_MOMENT = 0.5  # seconds that a refresh waits for a count to end, so that a small one is in it
_LOOK_TIMEOUT = 5.0  # seconds; the view stands still for as long
_COUNT_TIMEOUT = 300.0  # seconds; a server that counts says every moment how far it is
_UNKNOWN = "-"
_STATE = 30  # characters of what is said of a symbol, at least, where it has one line
_WELL = 5  # how urgently a symbol needs a look: from here on it needs none


def watch(settings: Settings, configs: Sequence[SymbolConfig], seconds: float) -> int:
    """Show the tables of `configs`, anew every `seconds`, until Ctrl-C or SIGTERM; return the exit code.

    0: it was stopped. 1: ClickHouse refuses the user, or something else listens at its port. On a terminal the view
    takes the screen and gives it back as it was; elsewhere, and where TERM is dumb, each refresh is printed below the
    last one.
    """
    archive = _Archive(settings, configs)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        archive.look()
        if archive.is_misconfigured:
            print(archive.trouble, file=sys.stderr)
            return 1
        with _screen() as show:
            while True:
                show(_View(archive, settings))
                time.sleep(seconds)
                archive.look()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _screen() -> Iterator[Callable[[RenderableType], None]]:
    """Yield what shows a view."""
    console = Console()
    if not _has_screen(console):
        yield lambda view: console.print(view, "")
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda view: live.update(view, refresh=True)


def _has_screen(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


# What is known


@dataclass
class _Table:
    """What ClickHouse said of a table when it was last asked."""

    name: str
    missing: str = ""
    """Why there is none by this name."""
    records: int | None = None
    """None where the table was not read since ClickHouse started, and so nobody knows."""
    before: int = 0
    """How many more it had before it was turned over."""
    total_bytes: int | None = None
    """data.bin and index.mrk."""
    rate: float | None = None
    """Rows a second, since the time before that it was asked."""
    grew_at: float = 0.0
    """When rows were last seen to have come; this and all times here are seconds since the epoch."""


@dataclass(frozen=True)
class _Count:
    """What a count brought."""

    at: float
    """When it began."""
    took: float
    """Seconds."""
    storage: Storage
    newest: dict[str, int | None]
    """The time of the newest row, ms since the epoch, by table; None where there is none."""
    tiers: Sequence[Tiers]
    """With HISTORY=1, those of each table."""

    def table(self, name: str) -> TableStorage | None:
        """Return what was counted of a table, if there was one."""
        return next((table for table in self.storage.tables if table.name == name and table.exists), None)

    def by_type(self, name: str) -> dict[str, int]:
        """Return the rows of a table by message type, with those of its history; nothing where there was no table."""
        table = self.table(name)
        found = next((each.by_type for each in self.tiers if each.table == name), table.by_type if table else {})
        return {mt: found.get(mt, 0) for mt in _TYPES} if table else {}

    def rates(self, name: str, before: _Count) -> dict[str, float]:
        """Return the rows a second by message type since the count `before`; nothing where the table is another one."""
        then, now = before.by_type(name), self.by_type(name)
        rates = {mt: (now[mt] - then[mt]) / (self.at - before.at) for mt in now if mt in then}
        return rates if min(rates.values(), default=0) >= 0 else {}


class _Archive:
    """The tables, as far as they are known."""

    def __init__(self, settings: Settings, configs: Sequence[SymbolConfig]) -> None:
        self._settings, self._configs = settings, configs
        self._database = settings.clickhouse_database
        self._client = connect(settings, timeout=_LOOK_TIMEOUT)
        self._counter = threading.Thread()
        self._count_not_before = self._looked = 0.0  # on the monotonic clock
        self.tables = [_Table(config["table_name"]) for config in configs]
        self.looked_at: float | None = None
        """When ClickHouse last answered."""
        self.trouble = ""
        """Why it does not, in one line."""
        self.is_misconfigured = False
        self.counts: tuple[_Count | None, _Count | None] = (None, None)
        """The last count but one, and the last."""
        self.counting_since: float | None = None
        """When the count that goes on began."""
        self.count_trouble = ""
        """Why the last one failed, in one line."""

    def look(self) -> None:
        """Bring all up to date that is cheap, and the counts if they are due."""
        try:
            self._look()
        except CLICKHOUSE_ERRORS as error:
            self.trouble, self.is_misconfigured = explain(error, self._settings), is_misconfigured(error)
            for table in self.tables:
                table.rate = None
            return
        self.trouble = ""
        if not self._counter.is_alive():
            if time.monotonic() < self._count_not_before:
                return
            self._counter = threading.Thread(target=self._count, daemon=True)
            self._counter.start()
        self._counter.join(_MOMENT)

    def _look(self) -> None:
        columns = "name, total_rows, total_bytes, comment"
        query = f"SELECT {columns} FROM system.tables WHERE database = %(db)s AND name IN %(names)s"
        names = [table.name for table in self.tables]
        answer = self._client.execute(query, {"db": self._database, "names": names})
        now, at = time.monotonic(), time.time()
        found = {name: (records, size, parse_comment(comment)[1]) for name, records, size, comment in answer}
        for table in self.tables:
            table.missing = "" if table.name in found else self._why_missing(table.name)
            if table.missing:
                table.rate = None
                continue
            records, table.total_bytes, before = found[table.name]
            known = records is not None and table.records is not None
            grown = records + before - table.records - table.before if known else None
            table.rate = None if grown is None or grown < 0 else grown / (now - self._looked)
            table.records, table.before = records, before
            if grown and grown > 0:
                table.grew_at = at
        self._looked, self.looked_at = now, at

    def _why_missing(self, name: str) -> str:
        if tables_of(self._client, self._database, name):
            return "is being compacted, rows wait; if nobody does, ch_setup.py finishes it"
        return "does not exist: run ch_setup.py"

    def _count(self) -> None:
        """Count, in a thread of its own."""
        began = time.monotonic()
        at = self.counting_since = time.time()
        self.count_trouble = ""
        try:
            place = self._database, self._configs
            with (
                connect(self._settings, timeout=_COUNT_TIMEOUT) as client,
                open_history(self._settings, timeout=_COUNT_TIMEOUT) as history,
            ):
                storage = survey(client, *place)
                newest = {each.table: each.ts_ms for each in find_newest(client, *place, history)}
                tiers = survey_tiers(client, *place, history) if history else []
            self.counts = self.counts[1], _Count(at, time.monotonic() - began, storage, newest, tiers)
        except HistoryError as error:
            self.count_trouble = str(error)
        except CLICKHOUSE_ERRORS as error:
            if not is_missing_table(error):  # it is being compacted since a moment ago, and `look` will see that
                self.count_trouble = explain(error, self._settings)
        finally:
            self._count_not_before = time.monotonic() + (_SHARE - 1) * (time.monotonic() - began)
            self.counting_since = None


# What is shown


@dataclass(frozen=True)
class _View:
    """All that is known, or where that is too much for the screen, what matters most of it."""

    archive: _Archive
    settings: Settings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield what is to be shown in the space there is."""
        paper = _Paper(console, options)
        known = _Known(self.archive, self.settings, time.time())
        everything = _everything(known, paper)
        if not _has_screen(console) or paper.height_of(everything) <= options.size.height:
            yield everything
        else:
            yield _in_short(known, paper, options.size.height)


@dataclass(frozen=True)
class _Paper:
    """What a view is set on."""

    console: Console
    options: ConsoleOptions

    def height_of(self, part: RenderableType) -> int:
        """Return how many lines it takes."""
        return len(self.console.render_lines(part, self.options.reset_height(), pad=False))

    def room_beside(self, grid: Table) -> int:
        """Return how many columns are left beside it; fewer than none where it is too wide."""
        as_wide_as_need_be = self.options.update_width(10_000)
        return self.options.max_width - self.console.measure(grid, options=as_wide_as_need_be).maximum


class _Known:
    """What there is to show at the time `now`."""

    def __init__(self, archive: _Archive, settings: Settings, now: float) -> None:
        self.archive, self.settings, self.now = archive, settings, now
        last = archive.counts[1]
        self.history_trouble = {tiers.table: tiers.amiss for tiers in last.tiers} if last else {}
        self.symbols = [_Symbol(table, self) for table in archive.tables]

    def title(self) -> Text:
        """Return whose view it is, and of when."""
        settings = self.settings
        title = Text(f"{settings.clickhouse_database} at {settings.clickhouse_host}:{settings.clickhouse_port}", "bold")
        return title.append(f"   {datetime.fromtimestamp(self.now, UTC):%Y-%m-%d %H:%M:%S} UTC", "not bold")

    def trouble(self) -> Text:
        """Return why ClickHouse does not answer; an empty line where it does."""
        archive = self.archive
        if not archive.trouble:
            return Text()
        old = f"; what follows is {_length(self.now - archive.looked_at)} old" if archive.looked_at else ""
        return Text(f"{archive.trouble}; trying again{old}", "bold red")

    def no_journal(self) -> Iterator[Text]:
        """Yield a line where no collector has its journal where they are looked for."""
        if not any(symbol.status.exists() for symbol in self.symbols):
            where = self.symbols[0].status.parent
            why = "none runs, or they are of another folder, in containers, or have another JOURNAL_DIR"
            yield Text(f"No collector has its journal here, in {where}: {why}", "dim")

    def counted(self) -> Text:
        """Return when the rows were counted, on which all depends but the columns "all" and "on disk"."""
        archive, last = self.archive, self.archive.counts[1]
        words = []
        if last:
            words.append(f"Types, files, blocks counted {_length(self.now - last.at)} ago in {last.took:.1f} s.")
            if last.storage.volume is not None:
                words.append(f"Volume {human_size(last.storage.volume)}.")
        if archive.counting_since is not None:
            words.append(f"Counting for {_length(self.now - archive.counting_since)}.")
        elif archive.count_trouble:
            words.append(f"Counting failed: {archive.count_trouble}.")
        return Text(" ".join([*words, "Ctrl-C ends."]), "dim")


class _Symbol:
    """What there is to show of a table."""

    def __init__(self, table: _Table, known: _Known) -> None:
        self._table, self._known = table, known
        self.name = table.name
        self.missing = table.missing
        self.status = status_path(known.settings, table.name)
        is_here = self.status.exists()
        self.works, self.collector = check(self.status, known.settings, known.now) if is_here else (True, "")
        """Whether its collector works, and a line that says it; empty where it has no journal here."""
        before, last = known.archive.counts
        records = last.by_type(table.name) if last else {}
        rates = last.rates(table.name, before) if last and before else {}
        in_all = table.records
        if known.settings.history:  # what both have is known by counting only
            in_all = sum(records.values()) if records else None
        self.growth = [*((records.get(mt), rates.get(mt)) for mt in _TYPES), (in_all, table.rate)]
        """Rows, and rows a second, by type and in all; with HISTORY=1 those of both tables, each counted once."""
        counted = last.table(table.name) if last else None
        files = [counted.data_bin, counted.index_mrk, counted.blocks, counted.records] if counted else [None] * 4
        self.files: list[float | None] = [table.total_bytes, *files, _waiting(self.status)]
        """Bytes, and those of each file; blocks, the rows in them; rows in the journal."""
        self.is_counted = last is not None and table.name in last.newest
        self.age = None if table.missing else self._age(last)
        """Seconds since the newest row; None where none is known."""
        self.is_stale = self.age is not None and self.age > stale_after(known.settings)
        self.urgency, self.why = self._look()
        """How urgently it needs a look, from 0 on, and why; from `_WELL` on it needs none."""

    def _age(self, last: _Count | None) -> float | None:
        ts_ms = last.newest.get(self.name) if last else None
        if last is None or ts_ms is None:
            return None
        newest = ts_ms / 1000
        # Rows that have come since it was counted are taken for market data where that was coming then. Where it was
        # not, they may be dead letters, and the next count will tell.
        if self._table.grew_at > last.at and last.at - newest <= stale_after(self._known.settings):
            newest = self._table.grew_at
        return max(0.0, self._known.now - newest)

    def newest(self) -> str:
        """Return how old the newest row is."""
        if self.age is not None:
            return f"{_length(self.age)} ago"
        return "no rows yet" if self.is_counted and not self.missing else _UNKNOWN

    def _look(self) -> tuple[int, str]:
        if not self.works:
            return 0, self.collector
        if self.missing:
            return 1, self.missing
        if self.is_stale:
            return 2, "STALE"
        if trouble := self._known.history_trouble.get(self.name):
            return 3, trouble
        if self.age is None and self.is_counted:
            return 4, "no rows yet"
        dead, _ = self.growth[list(_TYPES).index(DEADLETTER)]
        return _WELL + (not dead), self.collector


def _everything(known: _Known, paper: _Paper) -> Group:
    lines = [line for symbol in known.symbols for line in _collector(symbol)]
    return Group(
        known.title(),
        known.trouble(),
        *(line for line, works in lines if not works),  # before all that a low screen may cut off
        _rows(known, paper),
        "",
        _storage(known, paper),
        *_tiers(known.archive),
        *(line for line, works in lines if works),
        *known.no_journal(),
        known.counted(),
    )


def _collector(symbol: _Symbol) -> Iterator[tuple[Text, bool]]:
    """Yield lines on a table and its collector, each with whether it says that all is well."""
    if symbol.missing:
        yield Text(f"{symbol.name}: {symbol.missing}", "bold red"), False
    if symbol.collector:
        yield Text(f"{symbol.name}: {symbol.collector}", "" if symbol.works else "bold red"), symbol.works


def _rows(known: _Known, paper: _Paper) -> Table:
    lines: list[list[RenderableType]] = []
    for symbol in known.symbols:
        newest = Text("see above" if symbol.missing else symbol.newest())
        if symbol.missing or symbol.is_stale:
            newest.append("\nSTALE" if symbol.is_stale else "").stylize("bold red")
        lines.append([symbol.name, *starmap(_growth, symbol.growth), newest])
    lines.append(["all", *starmap(_growth, _sums(known.symbols)), ""])
    return _grid(["rows", *_TYPES.values(), "all", "newest"], lines, paper, spare=("tickers", "depth", "deals"))


def _sums(symbols: Sequence[_Symbol]) -> list[tuple[float | None, ...]]:
    columns = zip(*(symbol.growth for symbol in symbols), strict=True)
    return [tuple(map(_sum, zip(*column, strict=True))) for column in columns]


def _storage(known: _Known, paper: _Paper) -> Table:
    columns = ["storage", "on disk", "data.bin", "index.mrk", "blocks", "rows a block", "in journal"]
    lines = [[symbol.name, *_storage_cells(symbol.files)] for symbol in known.symbols]
    lines.append(["all", *_storage_cells(_sums_of_files(known.symbols))])
    return _grid(columns, lines, paper, spare=("index.mrk", "data.bin", "rows a block"))


def _sums_of_files(symbols: Sequence[_Symbol]) -> list[float | None]:
    return [_sum(column) for column in zip(*(symbol.files for symbol in symbols), strict=True)]


def _in_short(known: _Known, paper: _Paper, height: int) -> Group:
    """Return a view with a line for each symbol, the worst first, and sums of those that have no place."""
    symbols = sorted(known.symbols, key=lambda symbol: symbol.urgency)
    worst = symbols[0]
    headline = Text.assemble(f"{many(len(symbols), 'symbol')}: ", _need(symbols))
    if worst.urgency < _WELL:
        headline.append(f"; {worst.name}: {worst.why}", "bold red")  # in full; below, the end may be cut off
    above = [known.title(), known.trouble(), headline]
    below = [*known.no_journal(), known.counted()]
    heads = 4  # of the table: its names, the rule, those that have no place, all
    shown = max(1, height - heads - paper.height_of(Group(*above, *below)))
    return Group(*above, _lines(symbols[:shown], symbols[shown:], paper), *below)


def _need(symbols: Sequence[_Symbol]) -> Text:
    """Return how many of them need a look."""
    if count := sum(symbol.urgency < _WELL for symbol in symbols):
        return Text(f"{count} need{'s' * (count == 1)} a look", "bold red")
    return Text("all well" if all(symbol.is_counted for symbol in symbols) else "counting")


def _lines(shown: Sequence[_Symbol], rest: Sequence[_Symbol], paper: _Paper) -> Table:
    """Return a table with a line for each symbol that is shown, one for the rest, and one for all."""
    lines: list[list[RenderableType]] = []
    for symbol in shown:
        state = Text(symbol.why, "bold red" if symbol.urgency < _WELL else "")
        lines.append([symbol.name, *_short_cells(symbol.growth, symbol.files), symbol.newest(), state])
    if rest:
        cells = _short_cells(_sums(rest), _sums_of_files(rest))
        lines.append([f"{len(rest)} more", *cells, "", _need(rest)])
    everything = [*shown, *rest]
    lines.append(["all", *_short_cells(_sums(everything), _sums_of_files(everything)), "", ""])
    columns = ["rows", *_TYPES.values(), "all", "a second", "on disk", "in journal", "newest", ""]
    spare = ("in journal", "on disk", "tickers", "deals", "depth", "dead", "a second")
    return _grid(columns, lines, paper, spare=spare, words=_STATE)


def _short_cells(growth: Sequence[tuple[float | None, ...]], files: Sequence[float | None]) -> list[str]:
    size, *_, waiting = _storage_cells(files)
    return [*(_number(records) for records, _ in growth), _rate(growth[-1][1]), size, waiting]


def _tiers(archive: _Archive) -> Iterator[Text]:
    """Yield lines on the histories."""
    last = archive.counts[1]
    for each in last.tiers if last else ():
        yield from map(Text, each.as_text())


def _storage_cells(figures: Sequence[float | None]) -> Iterator[str]:
    *sizes, blocks, records, waiting = figures
    for size in sizes:
        yield _UNKNOWN if size is None else human_size(int(size))
    yield _number(blocks)
    yield f"{records / blocks:,.1f}" if records and blocks else _UNKNOWN
    yield _number(waiting)


def _waiting(status: Path) -> int | None:
    """Return how many rows wait in the journal of a collector on this machine; None where there is none."""
    try:
        return int(json.loads(status.read_text())["waiting"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _grid(
    columns: Sequence[str],
    lines: Iterable[Sequence[RenderableType]],
    paper: _Paper,
    spare: Sequence[str],
    words: int | None = None,
) -> Table:
    """Return a table of `lines`; where it is too wide, without as many of the columns `spare` as need be.

    Where the last column has words, it is cut off where the paper ends, and after as many characters at the earliest.
    """
    lines = list(lines)
    for left_out in range(len(spare) + 1):
        grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
        kept = [number for number, column in enumerate(columns) if column not in spare[:left_out]]
        for number in kept:
            grid.add_column(columns[number], justify="right" if number else "left", no_wrap=True)
        for line in lines:
            grid.add_row(*(line[number] for number in kept))
        if words:
            grid.columns[-1].justify, grid.columns[-1].max_width = "left", words
        if (room := paper.room_beside(grid)) >= 0:
            break
    if words:
        grid.columns[-1].max_width = words + max(0, room)
    return grid


def _growth(records: float | None, rate: float | None) -> str:
    return _number(records) if rate is None else f"{_number(records)}\n{_rate(rate)}/s"


def _rate(rate: float | None) -> str:
    if rate is None:
        return _UNKNOWN
    return f"+{rate:,.1f}" if rate < 100 else f"+{rate:,.0f}"


def _number(value: float | None) -> str:
    """Return it in nine characters, whatever is counted."""
    if value is None:
        return _UNKNOWN
    return f"{value:,.0f}" if value < 10_000_000 else f"{value / 1e6:,.2f}M"


def _length(seconds: float) -> str:
    """Return a length of time for people: 12 s, 5 min, 3 h, 4 days."""
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < limit * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
