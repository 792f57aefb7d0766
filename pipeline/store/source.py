"""Where the rows of a symbol are read: in its history, where there is one that has them all, else in its table.

In: a client of the server that has the table, and a History. Out: what a caller makes of a Source. Promise: the same
rows come from either, in the order they were stored in. A table has that order by itself, read by one thread; a history
has it in `n`, and is read slice by slice, so that the server never sorts more than some ten thousand rows. Its rows are
those that it had when the first slice was asked for.

A history may be some seconds behind its table (HISTORY_INTERVAL), and have three columns more; where it is further
behind, a warning says by how many rows. Where the settings have no history, and the table was turned over, a warning
says that older rows are elsewhere.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.human import many
from pipeline.store.client import CLICKHOUSE_ERRORS
from pipeline.store.compact import read_table, tables_of
from pipeline.store.history import (
    Beginning,
    beginnings,
    connect_history,
    explain_history,
    history_of,
    is_there,
    kept_days,
)
from pipeline.store.schema import parse_comment
from pipeline.times import iso

_T = TypeVar("_T")

_SLICE = 65_536  # rows that are sorted at a time
_LATE = 60.0  # seconds that a history may be behind its table, beyond HISTORY_INTERVAL, without a word on it
_STEP = 65_536  # of n, which rises by one from row to row while a collector runs: no more rows have an n in it


class HistoryError(Exception):
    """A history cannot be read; the text is one line that says why."""


class History:
    """A connection to the server that has the histories, for one thread."""

    def __init__(self, settings: Settings, *, timeout: float = 120) -> None:
        self.client = connect_history(settings, timeout=timeout)
        self._settings = settings
        self._compared: set[str] = set()  # tables whose history is known to be behind or not

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the server answers into a HistoryError, for it need not be the one that has the tables."""
        try:
            yield
        except CLICKHOUSE_ERRORS as error:
            raise HistoryError(explain_history(error, self._settings)) from None

    def source_of(self, client: Client, database: str, name: str) -> Source | None:
        """Return the history of the table `name`; None where there is none, or the table has rows that it lacks.

        `client` is of the server that has the table. Raises HistoryError, also where neither has all rows.
        """
        history = f"{database}.{history_of(name)}"
        with self.explained():
            if not is_there(self.client, database, name):
                return None
        for before, begun in self._beginnings(client, database, name):
            if not begun or not all(each.is_whole for each in begun):
                if before and begun:
                    lacks = f"Table {history} lacks rows that {database}.{name} has"
                    raise HistoryError(f"{lacks}, which was turned over before: run ch_setup.py --history")
                return None
        return Source(self.client, history, self)

    def has_begun(self, client: Client, database: str, name: str) -> bool:
        """Whether a collector has noted from where on the history of the table `name` has its rows.

        Raises HistoryError.
        """
        return any(begun for _, begun in self._beginnings(client, database, name))

    def behind(self, client: Client, database: str, name: str) -> str:
        """Return a line on rows that the table `name` has and its history, which is read, has not got for a minute.

        It is empty where there are none. A history that has got a row just now is asked nothing more. Raises
        HistoryError.
        """
        history = f"{database}.{history_of(name)}"
        patience = int(1000 * (self._settings.history_interval + _LATE))
        recent = f"ts >= now64(3) - toIntervalDay(1) AND received >= now64(6) - toIntervalMillisecond({patience})"
        with self.explained():
            if self.client.execute(f"SELECT 1 FROM {history} WHERE {recent} LIMIT 1"):
                return ""
        tables = tables_of(client, database, name)
        if list(tables) != [name]:  # it is being rewritten, or there is none
            return ""
        token, before = parse_comment(tables[name])
        with self.explained():
            begun = beginnings(self.client, database, name, token)
            days = kept_days(self.client, database, name)
            if not begun or (days and begun[-1].n / 1e6 < time.time() - days * 86_400):  # some may have been dropped
                return ""
            query = f"SELECT count(), toUnixTimestamp64Milli(max(received)) FROM {history} WHERE n >= {begun[-1].n}"
            ((fed, newest_ms),) = self.client.execute(query)
        try:
            ((rows,),) = client.execute(f"SELECT count() FROM {database}.{name}")
        except ServerException:  # who may only read the history, say, or it is away since a moment ago
            return ""
        behind = before + rows - begun[-1].rows - fed
        if behind <= 0:
            return ""
        since = f", and has got no row since {iso(newest_ms)}" if fed else ""
        return (
            f"{history} is {many(behind, 'row')} behind {database}.{name}{since}: what is read of it lacks those;"
            " its collector says why"
        )

    def warn_if_behind(self, client: Client, database: str, name: str) -> None:
        """Warn, once, of rows that the table `name` has and its history has not. Raises HistoryError."""
        if name not in self._compared:
            self._compared.add(name)
            if line := self.behind(client, database, name):
                warnings.warn(line, stacklevel=4)

    def _beginnings(self, client: Client, database: str, name: str) -> Iterator[tuple[int, list[Beginning]]]:
        """Yield how many rows each of the tables of `name` had before it was turned over, and its beginnings."""
        for comment in tables_of(client, database, name).values():
            token, before = parse_comment(comment)
            with self.explained():
                begun = beginnings(self.client, database, name, token)
            yield before, begun


@contextmanager
def open_history(settings: Settings, *, timeout: float = 120) -> Iterator[History | None]:
    """Give a History, where the settings have one; `timeout` (seconds) is how long a single answer may take."""
    history = History(settings, timeout=timeout) if settings.history else None
    try:
        yield history
    finally:
        if history:
            history.client.disconnect()


@dataclass(frozen=True)
class Source:
    """A table that has the rows of a symbol."""

    client: Client
    table: str
    """Its full name, as it stands in SQL."""
    history: History | None = None
    """Where it is one, what it was reached by."""

    def explained(self) -> AbstractContextManager[None]:
        """Turn what the server of a history answers into a HistoryError; errors of the other one stay what they are."""
        return self.history.explained() if self.history else nullcontext()

    @property
    def settings(self) -> dict[str, Any]:
        """What queries need for rows to come in order."""
        return {} if self.history else {"max_threads": 1}

    @property
    def place(self) -> str:
        """SQL: a number that rises from row to row."""
        return "n" if self.history else "rowNumberInAllBlocks()"

    def in_order(self, condition: str) -> Iterator[str]:
        """Yield what is to follow ``FROM`` and the table, for queries that give the rows of `condition` in order.

        The rows of each query come after those of the one before it. Raises one of pipeline.store.client's
        CLICKHOUSE_ERRORS.
        """
        if not self.history:
            yield f"WHERE {condition}"
            return
        found = self.client.execute(
            "SELECT min(n), max(n), toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)), count()"
            f" FROM {self.table} WHERE {condition} GROUP BY intDiv(n, {_STEP}) ORDER BY min(n)"
        )
        while found:
            first, last, oldest, newest, rows = found.pop(0)
            while found and rows + found[0][4] <= _SLICE:
                _, last, low, high, more = found.pop(0)
                oldest, newest, rows = min(oldest, low), max(newest, high), rows + more
            times = f"ts >= {moment(oldest)} AND ts <= {moment(newest)}"
            yield f"WHERE {condition} AND {times} AND n >= {first} AND n <= {last} ORDER BY n"


def find_source(client: Client, database: str, name: str, history: History | None = None) -> Source:
    """Return where the rows of the table `name` are; that it is there is not asked. Raises as `read_rows` does."""
    if history:
        found = history.source_of(client, database, name)
        if found:
            history.warn_if_behind(client, database, name)
    else:
        found = None
        _warn_of_history(client, database, name)
    return found or Source(client, f"{database}.{name}")


def read_rows(
    client: Client, database: str, name: str, read: Callable[[Source], _T], history: History | None = None
) -> _T | None:
    """Return what `read` makes of where the rows of the table `name` are; None if there is no such table.

    While the table is being compacted, its rows are in another one. Raises HistoryError, and one of
    pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    if history and (source := history.source_of(client, database, name)):
        history.warn_if_behind(client, database, name)
        with history.explained():
            return read(source)
    if not history:
        _warn_of_history(client, database, name)
    return read_table(client, database, name, lambda table: read(Source(client, table)))


def _warn_of_history(client: Client, database: str, name: str) -> None:
    """Warn where a table was turned over, so that its history on the same server has rows which it has no more."""
    for comment in tables_of(client, database, name).values():
        token, before = parse_comment(comment)
        with suppress(ServerException):  # who may not look at a history has none
            if before and is_there(client, database, name) and beginnings(client, database, name, token):
                warnings.warn(
                    f"{database}.{name} has its newest rows only, and {database}.{history_of(name)} the older ones:"
                    " set HISTORY=1 to read all of them",
                    stacklevel=3,
                )


def in_range(start_ms: int | None, end_ms: int | None) -> list[str]:
    """Return as conditions of SQL that start <= ts < end; None is no bound."""
    conditions = [] if start_ms is None else [f"ts >= {moment(start_ms)}"]
    return conditions if end_ms is None else [*conditions, f"ts < {moment(end_ms)}"]


def moment(ts_ms: int) -> str:
    """Return milliseconds since the epoch as a time of SQL, by which a history finds rows without reading all."""
    return f"fromUnixTimestamp64Milli(toInt64({ts_ms}))"
