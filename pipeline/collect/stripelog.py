"""A symbol's StripeLog table, as rows are written to it.

In: rows `(ts_ms, mt, m)`, a block for an INSERT. Out: the same rows in ClickHouse, and the number of rows that are
there. Promise: an INSERT is stored as a whole or not at all, and rows are counted only when none of ours is under way.
A table that a compaction has left under another name is brought back first; one that somebody is compacting is waited
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from config import Settings
from pipeline.collect.autocompact import AutoCompaction
from pipeline.collect.inserts import Inserts
from pipeline.store.client import ALL_ROWS, connect
from pipeline.store.compact import BeingCompacted, resume, tables_of
from pipeline.store.schema import parse_comment


class StripeLog:
    """The table `name` in the database of `settings`; for use by one thread."""

    def __init__(self, settings: Settings, name: str, say: Callable[[str], None]) -> None:
        """`say` takes lines for the user."""
        self._settings = settings
        self._database, self._table = settings.clickhouse_database, name
        self.name = f"{self._database}.{name}"
        self._say = say
        self.compaction = AutoCompaction(settings, name, say)
        self.inserts = Inserts(settings, self.name)
        self.before = 0  # rows that it had before it was turned over, or old ones dropped

    def at_once(self, rows: list[Any]) -> list[Any]:
        """Return the rows: one INSERT may have all of them."""
        return rows

    def insert(self, rows: list[Any]) -> None:
        """Store `rows` as one block. Raises one of APPEND_ERRORS; TableMissing may only mean that it is rewritten."""
        self.inserts.insert("ts, mt, m", rows)

    def state(self) -> tuple[int, str]:
        """Return the table's number of rows and its creation token. Raises one of APPEND_ERRORS.

        Rows that it had before it was turned over count.
        """
        self.compaction.small_blocks = None  # the table may have been rewritten, or be another one
        try:
            self.inserts.settle()
            found = self._count()
        except BaseException as error:
            self.compaction.under_way = isinstance(error, BeingCompacted)
            raise
        self.compaction.under_way = False
        return found

    def rows(self, after: int) -> Iterator[Any]:
        """Yield the rows but the first `after`, in order. All are read for that: StripeLog has no index."""
        offset = max(0, after - self.before)
        query = f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM {self.name} LIMIT 1000000000 OFFSET {offset}"
        with connect(self._settings, query_settings=ALL_ROWS | {"max_threads": 1}) as client:
            yield from client.execute_iter(query)

    def close(self) -> None:
        """Close the connection."""
        self.inserts.client.disconnect()

    def _count(self) -> tuple[int, str]:
        query = "SELECT total_rows, comment FROM system.tables WHERE database = %(database)s AND name = %(name)s"
        parameters = {"database": self._database, "name": self._table}
        found = self.inserts.client.execute(query, parameters)
        if not found and tables_of(self.inserts.client, self._database, self._table):
            for step in resume(self._settings, self._table):
                if step.done in (0, 1):
                    self._say(step.text)
            found = self.inserts.client.execute(query, parameters)
        if not found:
            raise self.inserts.missing()
        if found[0][0] is None:  # not touched since the server started; count() is what this user can see, and no more
            self.inserts.client.execute(f"SELECT 1 FROM {self.name} LIMIT 1")
            found = self.inserts.client.execute(query, parameters)
        if not found or found[0][0] is None:
            raise self.inserts.missing()
        count, comment = found[0]
        token, self.before = parse_comment(comment)
        return self.before + count, token
