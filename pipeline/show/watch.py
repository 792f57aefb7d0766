"""A live view of the archive for a terminal: what verif.py reports, and how fast it grows.

Each refresh asks what ClickHouse knows without reading a table: rows and bytes. The rest is counted, which reads all
rows: in the background, and a twentieth of the time at most, so that small tables are counted at each refresh and large
ones now and then; the view says when. Where nothing answers, it says so, keeps what it has, and goes on asking.
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
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from config import Settings, SymbolConfig
from pipeline.human import human_size
from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER
from pipeline.read.quality import find_newest
from pipeline.status import check, stale_after, status_path
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain, is_misconfigured, is_missing_table
from pipeline.store.compact import tables_of
from pipeline.store.source import HistoryError, open_history
from pipeline.store.storage import Storage, TableStorage, survey
from pipeline.store.tiers import Tiers, survey_tiers

_TYPES = {TICKER: "tickers", DEAL: "deals", DEPTH: "depth", DEADLETTER: "dead"}
_SHARE = 20  # counting takes one part in so many of the time
_MOMENT = 0.5  # seconds that a refresh waits for a count to end, so that a small one is in it
_LOOK_TIMEOUT = 5.0  # seconds; the view stands still for as long
_COUNT_TIMEOUT = 300.0  # seconds; a server that counts says every moment how far it is
_UNKNOWN = "-"


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
                show(_view(archive, settings))
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
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda view: console.print(view, "")
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda view: live.update(view, refresh=True)


# What is known


@dataclass
class _Table:
    """What ClickHouse said of a table when it was last asked."""

    name: str
    missing: str = ""
    """Why there is none by this name."""
    records: int | None = None
    """None where the table was not read since ClickHouse started, and so nobody knows."""
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
        """Return the rows of a table by message type; nothing where there was no table."""
        table = self.table(name)
        return {mt: table.by_type.get(mt, 0) for mt in _TYPES} if table else {}

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
        query = "SELECT name, total_rows, total_bytes FROM system.tables WHERE database = %(db)s AND name IN %(names)s"
        names = [table.name for table in self.tables]
        answer = self._client.execute(query, {"db": self._database, "names": names})
        now, at = time.monotonic(), time.time()
        found = {name: (records, size) for name, records, size in answer}
        for table in self.tables:
            table.missing = "" if table.name in found else self._why_missing(table.name)
            if table.missing:
                table.rate = None
                continue
            records, table.total_bytes = found[table.name]
            grown = None if records is None or table.records is None else records - table.records
            table.rate = None if grown is None or grown < 0 else grown / (now - self._looked)
            table.records = records
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


def _view(archive: _Archive, settings: Settings) -> RenderableType:
    now = time.time()
    title = Text(f"{settings.clickhouse_database} at {settings.clickhouse_host}:{settings.clickhouse_port}", "bold")
    title.append(f"   {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC", "not bold")
    statuses = {table.name: status_path(settings, table.name) for table in archive.tables}
    lines = list(_collectors(archive, statuses, settings, now))
    return Group(
        title,
        _trouble(archive, now),
        *(line for line, works in lines if not works),  # before all that a low screen may cut off
        _rows(archive, settings, now),
        "",
        _storage(archive, statuses),
        *_tiers(archive),
        *(line for line, works in lines if works),
        _counted(archive, now),
    )


def _trouble(archive: _Archive, now: float) -> Text:
    if not archive.trouble:
        return Text()
    old = f"; what follows is {_length(now - archive.looked_at)} old" if archive.looked_at else ""
    return Text(f"{archive.trouble}; trying again{old}", "bold red")


def _rows(archive: _Archive, settings: Settings, now: float) -> Table:
    grid = _grid("rows", *_TYPES.values(), "all", "newest")
    before, last = archive.counts
    lines = []
    for table in archive.tables:
        records = last.by_type(table.name) if last else {}
        rates = last.rates(table.name, before) if last and before else {}
        cells = [(records.get(mt), rates.get(mt)) for mt in _TYPES]
        lines.append([*cells, (table.records, table.rate)])
        grid.add_row(table.name, *starmap(_growth, lines[-1]), _newest(table, last, settings, now))
    sums = [tuple(map(_sum, zip(*column, strict=True))) for column in zip(*lines, strict=True)]
    grid.add_row("all", *starmap(_growth, sums))
    return grid


def _newest(table: _Table, last: _Count | None, settings: Settings, now: float) -> Text:
    """Return how old the newest row is."""
    if table.missing:
        return Text("see above", "bold red")
    if not last or table.name not in last.newest:
        return Text(_UNKNOWN)
    ts_ms = last.newest[table.name]
    if ts_ms is None:
        return Text("no rows yet")
    newest = ts_ms / 1000
    # Rows that have come since it was counted are taken for market data where that was coming then. Where it was not,
    # they may be dead letters, and the next count will tell.
    if table.grew_at > last.at and last.at - newest <= stale_after(settings):
        newest = table.grew_at
    age = max(0.0, now - newest)
    if age <= stale_after(settings):
        return Text(f"{_length(age)} ago")
    return Text(f"{_length(age)} ago\nSTALE", "bold red")


def _storage(archive: _Archive, statuses: dict[str, Path]) -> Table:
    grid = _grid("storage", "on disk", "data.bin", "index.mrk", "blocks", "rows a block", "in journal")
    last = archive.counts[1]
    lines: list[list[float | None]] = []
    for table in archive.tables:
        counted = last.table(table.name) if last else None
        files = [counted.data_bin, counted.index_mrk, counted.blocks, counted.records] if counted else [None] * 4
        lines.append([table.total_bytes, *files, _waiting(statuses[table.name])])
        grid.add_row(table.name, *_storage_cells(lines[-1]))
    grid.add_row("all", *_storage_cells([_sum(column) for column in zip(*lines, strict=True)]))
    return grid


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


def _collectors(
    archive: _Archive, statuses: dict[str, Path], settings: Settings, now: float
) -> Iterator[tuple[Text, bool]]:
    """Yield lines on the tables and their collectors, each with whether it says that all is well."""
    for table in archive.tables:
        status = statuses[table.name]
        works, line = check(status, settings, now) if status.exists() else (True, "")
        if table.missing:
            yield Text(f"{table.name}: {table.missing}", "bold red"), False
        if line:
            yield Text(f"{table.name}: {line}", "" if works else "bold red"), works
    if not any(status.exists() for status in statuses.values()):
        directory = next(iter(statuses.values())).parent
        yield Text(f"No collector has its journal here ({directory})", "dim"), True


def _counted(archive: _Archive, now: float) -> Text:
    """Return when the rows were counted, on which all depends but the columns "all" and "on disk"."""
    last = archive.counts[1]
    words = []
    if last:
        words.append(f"Types, files, blocks counted {_length(now - last.at)} ago in {last.took:.1f} s.")
        if last.storage.volume is not None:
            words.append(f"Volume {human_size(last.storage.volume)}.")
    if archive.counting_since is not None:
        words.append(f"Counting for {_length(now - archive.counting_since)}.")
    elif archive.count_trouble:
        words.append(f"Counting failed: {archive.count_trouble}.")
    return Text(" ".join([*words, "Ctrl-C ends."]), "dim")


def _grid(*columns: str) -> Table:
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left", no_wrap=True)
    return grid


def _growth(records: float | None, rate: float | None) -> str:
    if rate is None:
        return _number(records)
    return f"{_number(records)}\n{f'+{rate:,.1f}' if rate < 100 else f'+{rate:,.0f}'}/s"


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
