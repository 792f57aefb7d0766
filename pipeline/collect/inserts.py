"""The connection by which a collector writes to one table, whatever that is.

In: rows, a block for an INSERT. Out: the same rows in ClickHouse. Promise: an INSERT is stored as a whole or not at
all, as long as it stays within one partition; and once `settle` has returned, none of ours is under way any more, so
that the table can be asked for what it holds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from clickhouse_driver import defines

from config import Settings
from pipeline.collect.errors import JournalFull, StillInserting, TableMissing, TableUnusable
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, is_missing_table
from pipeline.store.compact import CompactionError

_SETTINGS = {
    "async_insert": 0,  # on by default since ClickHouse 26.2; an acknowledged row must be a stored row
    "receive_timeout": 30,  # seconds the server waits for the rest of an INSERT whose sender is gone
}
_FENCE_TIMEOUT = 60.0  # seconds

defines.BUFFER_SIZE = 1 << 16  # bytes, twice a connection; the driver takes a megabyte, and rows are small

TABLE_ERRORS = (TableMissing, TableUnusable, StillInserting, CompactionError, JournalFull)
"""Nothing can be sent at the moment; the text is one line that says why."""

APPEND_ERRORS = (*CLICKHOUSE_ERRORS, *TABLE_ERRORS)
"""All that writing to the table raises; the same may be tried again after each of them."""


class Inserts:
    """The connection for the table `name`, with its database; for use by one thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._name = name
        self.client = connect(settings, query_settings=_SETTINGS)
        # Before each query the driver asks whether the connection is alive, and makes a new one if not. That costs a
        # round trip, and would hide that the server was restarted between two INSERTs; the INSERT itself finds out.
        self.client.connection.ping = lambda: True
        self._query_ids = f"append {name} "
        self.on_insert: Callable[[int, float], object] = lambda rows, seconds: None
        """Called after each INSERT that was acknowledged, with its rows and the seconds it took."""

    def insert(self, columns: str, rows: list[Any], settings: dict[str, Any] | None = None) -> None:
        """Store `rows` as one block. Raises one of APPEND_ERRORS; TableMissing may only mean that it is rewritten."""
        started = time.perf_counter()
        query_id = f"{self._query_ids}{uuid.uuid4()}"
        try:
            self.client.execute(
                f"INSERT INTO {self._name} ({columns}) VALUES", rows, query_id=query_id, settings=settings
            )
        except BaseException as error:
            if is_missing_table(error):
                raise self.missing() from error
            raise
        self.on_insert(len(rows), time.perf_counter() - started)

    def settle(self) -> None:
        """Wait until the server has done with INSERTs whose sender has given them up: they may yet be stored."""
        self.client.disconnect()
        give_up = time.monotonic() + _FENCE_TIMEOUT
        query = "SELECT count() FROM system.processes WHERE startsWith(query_id, %(ids)s)"
        while self.client.execute(query, {"ids": self._query_ids})[0][0]:
            if time.monotonic() > give_up:
                raise StillInserting(f"An earlier INSERT into {self._name} has not ended: waiting for it")
            time.sleep(0.05)

    def missing(self) -> TableMissing:
        """Return the error that the table is not there."""
        return TableMissing(f"Table {self._name} does not exist: run ch_setup.py")
