"""A symbol's StripeLog table, as rows are written to it.

In: rows `(ts_ms, mt, m)`, a block for an INSERT. Out: the same rows in ClickHouse, and the number of rows that are
there. Promise: an INSERT is stored as a whole or not at all, and rows are counted only when none of ours is under way.
A table that a compaction has left under another name is brought back first; one that somebody is compacting is waited
for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from clickhouse_driver import defines

from config import Settings
from pipeline.collect.autocompact import AutoCompaction
from pipeline.collect.errors import JournalFull, StillInserting, TableMissing
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS, connect, is_missing_table
from pipeline.store.compact import BeingCompacted, CompactionError, resume, tables_of

_SETTINGS = {
    "async_insert": 0,  # on by default since ClickHouse 26.2; an acknowledged row must be a stored row
    "receive_timeout": 30,  # seconds the server waits for the rest of an INSERT whose sender is gone
}
_FENCE_TIMEOUT = 60.0  # seconds

defines.BUFFER_SIZE = 1 << 16  # bytes, twice a connection; the driver takes a megabyte, and rows are small

TABLE_ERRORS = (TableMissing, StillInserting, CompactionError, JournalFull)
"""Nothing can be sent at the moment; the text is one line that says why."""

APPEND_ERRORS = (*CLICKHOUSE_ERRORS, *TABLE_ERRORS)
"""All that writing to the table raises; the same may be tried again after each of them."""


class StripeLog:
    """The table `name` in the database of `settings`; for use by one thread."""

    def __init__(self, settings: Settings, name: str, say: Callable[[str], None]) -> None:
        """`say` takes lines for the user."""
        self._settings = settings
        self._database, self._table = settings.clickhouse_database, name
        self.name = f"{self._database}.{name}"
        self._say = say
        self.compaction = AutoCompaction(settings, name, say)
        self._client = connect(settings, query_settings=_SETTINGS)
        # Before each query the driver asks whether the connection is alive, and makes a new one if not. That costs a
        # round trip, and would hide that the server was restarted between two INSERTs; the INSERT itself finds out.
        self._client.connection.ping = lambda: True
        self._query_ids = f"append {self.name} "
        self.on_insert: Callable[[int, float], object] = lambda rows, seconds: None
        """Called after each INSERT that was acknowledged, with its rows and the seconds it took."""

    def insert(self, rows: list[Any]) -> None:
        """Store `rows` as one block. Raises one of APPEND_ERRORS; TableMissing may only mean that it is rewritten."""
        started = time.perf_counter()
        query_id = f"{self._query_ids}{uuid.uuid4()}"
        try:
            self._client.execute(f"INSERT INTO {self.name} (ts, mt, m) VALUES", rows, query_id=query_id)
        except BaseException as error:
            if is_missing_table(error):
                raise self._missing() from error
            raise
        self.on_insert(len(rows), time.perf_counter() - started)

    def state(self) -> tuple[int, str]:
        """Return the table's number of rows and its creation token. Raises one of APPEND_ERRORS."""
        self.compaction.small_blocks = None  # the table may have been rewritten, or be another one
        try:
            self._client.disconnect()
            self._wait_for_earlier_inserts()
            found = self._count()
        except BaseException as error:
            self.compaction.under_way = isinstance(error, BeingCompacted)
            raise
        self.compaction.under_way = False
        return found

    def rows(self, after: int) -> Iterator[Any]:
        """Yield the rows but the first `after`, in order. All are read for that: StripeLog has no index."""
        query = f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM {self.name} LIMIT 1000000000 OFFSET {after}"
        with connect(self._settings, query_settings=ALL_ROWS | {"max_threads": 1}) as client:
            yield from client.execute_iter(query)

    def close(self) -> None:
        """Close the connection."""
        self._client.disconnect()

    def _wait_for_earlier_inserts(self) -> None:
        """Wait until the server has done with INSERTs whose sender has given them up: they may yet be stored."""
        give_up = time.monotonic() + _FENCE_TIMEOUT
        query = "SELECT count() FROM system.processes WHERE startsWith(query_id, %(ids)s)"
        while self._client.execute(query, {"ids": self._query_ids})[0][0]:
            if time.monotonic() > give_up:
                raise StillInserting(f"An earlier INSERT into {self.name} has not ended: waiting for it")
            time.sleep(0.05)

    def _missing(self) -> TableMissing:
        return TableMissing(f"Table {self.name} does not exist: run ch_setup.py")

    def _count(self) -> tuple[int, str]:
        query = "SELECT total_rows, comment FROM system.tables WHERE database = %(database)s AND name = %(name)s"
        parameters = {"database": self._database, "name": self._table}
        found = self._client.execute(query, parameters)
        if not found and tables_of(self._client, self._database, self._table):
            for step in resume(self._settings, self._table):
                if step.done in (0, 1):
                    self._say(step.text)
            found = self._client.execute(query, parameters)
        if not found:
            raise self._missing()
        if found[0][0] is None:  # not touched since the server started; count() is what this user can see, and no more
            self._client.execute(f"SELECT 1 FROM {self.name} LIMIT 1")
            found = self._client.execute(query, parameters)
        if not found or found[0][0] is None:
            raise self._missing()
        count, token = found[0]
        return count, token
