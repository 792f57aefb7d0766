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
from itertools import islice
from typing import NamedTuple

from clickhouse_driver import Client

from config import Settings, SymbolConfig
from pipeline.messages import DEADLETTER, Row
from pipeline.read.decode import LoadError
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.compact import read_table
from pipeline.times import to_ms

_ROWS_AT_ONCE = 2_000
_IDLE = 30.0  # seconds with rows that were taken, after which others are asked for anew
_READING = {
    **ALL_ROWS,
    "max_threads": 1,  # with more, rows come in any order
    "max_block_size": _ROWS_AT_ONCE,
}


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
    for ts_ms, mt, m in _rows(settings, config["table_name"], _condition(start, end)):
        due_ms = max(due_ms, ts_ms)
        yield Stored(due_ms, config["symbol"], Row(ts_ms, mt, m))


def _rows(settings: Settings, name: str, condition: str) -> Iterator[tuple[int, str, str]]:
    """Yield ts, mt and m; a query that is not read for too long is given up, and another goes on where it was."""
    given = 0
    while True:
        try:
            with connect(settings) as client:
                table = _find(client, settings.clickhouse_database, name)
                query = f"SELECT toUnixTimestamp64Milli(ts), mt, toValidUTF8(m) FROM {table} WHERE {condition}"
                rows = client.execute_iter(f"{query} OFFSET {given}", settings=_READING)
                while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                    taken = time.monotonic()
                    yield from chunk
                    given += len(chunk)
                    if time.monotonic() - taken > _IDLE:
                        break
                else:
                    return
        except CLICKHOUSE_ERRORS as error:
            raise LoadError(explain(error, settings)) from None


def _find(client: Client, database: str, name: str) -> str:
    """Return the table that has the rows of `name`, as it stands in SQL. Raises LoadError."""

    def look(table: str) -> str:
        client.execute(f"SELECT 1 FROM {table} LIMIT 0")
        return table

    if found := read_table(client, database, name, look):
        return found
    raise LoadError(f"Table {database}.{name} does not exist: run ch_setup.py")


def _condition(start: datetime | None, end: datetime | None) -> str:
    conditions = [f"mt != '{DEADLETTER}'"]
    if start is not None:
        conditions.append(f"ts >= fromUnixTimestamp64Milli(toInt64({to_ms(start)}))")
    if end is not None:
        conditions.append(f"ts < fromUnixTimestamp64Milli(toInt64({to_ms(end)}))")
    return " AND ".join(conditions)
