"""Stored rows as they are, of several symbols in the order of time.

In: symbols and a range of time. Out: deals, books and tickers, one by one; dead letters are left out. Promises: those
of a symbol come in the order they were stored in, each once, and those of several as they would have come in one; in
memory are some thousand of each symbol; who takes them may take hours, and keeps no query open for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from heapq import merge
from itertools import chain, islice
from typing import Any, NamedTuple

from clickhouse_driver import Client

from config import Settings, SymbolConfig
from pipeline.messages import DEADLETTER, Row
from pipeline.read.decode import LoadError
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS, connect, explain, permitted
from pipeline.store.source import History, HistoryError, Source, in_range, open_history, read_rows
from pipeline.times import to_ms

_ROWS_AT_ONCE = 2_000
_IDLE = 30.0  # seconds with rows that were taken, after which others are asked for anew
_READING = {**ALL_ROWS, "max_block_size": _ROWS_AT_ONCE}


class Stored(NamedTuple):
    """A row, and when it is its turn: at the newest `ts` that its symbol has had so far; milliseconds since the epoch.

    A symbol's rows are stored as they came, and their `ts` go back by some milliseconds now and then.
    """

    due_ms: int
    symbol: str
    row: Row


def stored_rows(
    settings: Settings, configs: Sequence[SymbolConfig], start: datetime | None, end: datetime | None
) -> Iterator[Stored]:
    """Yield the rows with start <= ts < end. Raises LoadError, at the first row or amid them."""
    return merge(*(_of_symbol(settings, config, start, end) for config in configs), key=lambda stored: stored.due_ms)


def _of_symbol(
    settings: Settings, config: SymbolConfig, start: datetime | None, end: datetime | None
) -> Iterator[Stored]:
    due_ms = 0
    for row in _rows(settings, config["table_name"], _condition(start, end)):
        due_ms = max(due_ms, row.ts_ms)
        yield Stored(due_ms, config["symbol"], row)


def _rows(settings: Settings, name: str, condition: str) -> Iterator[Row]:
    """Yield the rows; a query that is not read for too long is given up, and another goes on where it was."""
    given = last = 0
    while True:
        try:
            with connect(settings) as client, open_history(settings) as history:
                source = _find(client, settings.clickhouse_database, name, history)
                with source.explained():
                    rows = chain.from_iterable(_queries(source, condition, given, last))
                    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                        taken = time.monotonic()
                        yield from (Row(*row[:-1]) for row in chunk)
                        given, last = given + len(chunk), chunk[-1][-1]
                        if time.monotonic() - taken > _IDLE:
                            break
                    else:
                        return
        except HistoryError as error:
            raise LoadError(str(error)) from None
        except CLICKHOUSE_ERRORS as error:
            raise LoadError(explain(error, settings)) from None


def _queries(source: Source, condition: str, given: int, last: int) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Yield the rows of each of the queries that it takes, without those that were given: what a Row has, and `n`."""
    columns, skip = "toUnixTimestamp64Milli(ts), mt, toValidUTF8(m)", ""
    if source.history:
        columns += ", id, toUnixTimestamp64Milli(event), n"
        condition += f" AND n > {last}"
    else:
        columns += ", 0, 0, 0"
        skip = f" OFFSET {given}"
    settings = permitted(source.client, _READING) | source.settings
    for clauses in source.in_order(condition):
        yield source.client.execute_iter(f"SELECT {columns} FROM {source.table} {clauses}{skip}", settings=settings)


def _find(client: Client, database: str, name: str, history: History | None) -> Source:
    """Return where the rows of `name` are. Raises LoadError."""

    def look(source: Source) -> Source:
        source.client.execute(f"SELECT 1 FROM {source.table} LIMIT 0")
        return source

    if found := read_rows(client, database, name, look, history):
        return found
    raise LoadError(f"Table {database}.{name} does not exist: run ch_setup.py")


def _condition(start: datetime | None, end: datetime | None) -> str:
    bounds = (None if time is None else to_ms(time) for time in (start, end))
    return " AND ".join([f"mt != '{DEADLETTER}'", *in_range(*bounds)])
