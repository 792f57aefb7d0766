"""Rows from the journal into one ClickHouse table, each exactly once.

In: the journal's pending rows. Out: the same rows, in the same order, in the table. Promise: whatever happens to the
connection, the server or this process, no row is sent again that the table holds, and none is skipped that it does not
hold. This rests on being the table's only writer: a row's journal id is its number in the table, so the table's row
count tells what it holds. It is asked for whenever the outcome of an INSERT can be in doubt: at the start, after a
lost connection and after any failed INSERT.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Protocol

from config import Settings
from pipeline.collect.autocompact import AutoCompaction
from pipeline.collect.errors import JournalFull, StillInserting, TableMissing
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, is_missing_table
from pipeline.store.compact import BeingCompacted, CompactionError, resume, tables_of

_SETTINGS = {
    "async_insert": 0,  # on by default since ClickHouse 26.2; an acknowledged row must be a stored row
    "receive_timeout": 30,  # seconds the server waits for the rest of an INSERT whose sender is gone
}
_FENCE_TIMEOUT = 60.0  # seconds


TABLE_ERRORS = (TableMissing, StillInserting, CompactionError, JournalFull)
"""Nothing can be sent at the moment; the text is one line that says why."""

APPEND_ERRORS = (*CLICKHOUSE_ERRORS, *TABLE_ERRORS)
"""All that `Table.append_pending` raises; the same call may be tried again after each of them."""


class Waiting(Protocol):
    """What a table is fed from: the rows that wait, and what is known of those that do not. The journal is one."""

    @property
    def token(self) -> str | None: ...
    @property
    def stored(self) -> int: ...
    @property
    def newest(self) -> int: ...
    @property
    def oldest(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def pending(self, limit: int) -> list[tuple[int, str, str]]: ...
    def acknowledge(self, stored: int) -> None: ...
    def renumber(self, after: int, stored: int, token: str) -> None: ...


class Table:
    """The writing end of one table; for use by one thread."""

    def __init__(self, settings: Settings, name: str, journal: Waiting, say: Callable[[str], None]) -> None:
        """`name` is the table's, in the database of `settings`; `say` takes lines for the user."""
        self._settings = settings
        self._database, self._name = settings.clickhouse_database, name
        self._full_name = f"{self._database}.{name}"
        self._journal = journal
        self._say = say
        self.compaction = AutoCompaction(settings, name, say)
        self._client = connect(settings, query_settings=_SETTINGS)
        # Before each query the driver asks whether the connection is alive, and makes a new one if not. That costs a
        # round trip, and would hide that the server was restarted between two INSERTs; the INSERT itself finds out.
        self._client.connection.ping = lambda: True
        self._query_ids = f"append {self._full_name} "
        self._in_flight = 0  # rows of an INSERT whose outcome is not known
        self.in_step = False
        """Whether journal and table are known to agree, so that rows can be sent."""
        self.on_insert: Callable[[int, float], object] = lambda rows, seconds: None
        """Called after each INSERT that was acknowledged, with its rows and the seconds it took."""

    def append_pending(self) -> list[tuple[int, str, str]]:
        """Send what the journal holds for the table, in one INSERT; return the rows, now known to be stored.

        Raises one of APPEND_ERRORS; the rows then stay in the journal.
        """
        try:
            rows = self._append_pending()
        except BaseException as error:
            self.compaction.under_way = isinstance(error, BeingCompacted)
            raise
        self.compaction.under_way = False
        return rows

    def compact_if_due(self, stopping: Callable[[], bool]) -> None:
        """After an INSERT: rewrite the table into big blocks, where it has come to hold too many small ones.

        This may take long; it is given up half-way when `stopping`. Nothing is raised. See pipeline.store.compact.
        """
        self.in_step = self.compaction.inserted(stopping)

    def close(self) -> None:
        """Close the connection."""
        self._client.disconnect()

    def _append_pending(self) -> list[tuple[int, str, str]]:
        if not self.in_step:
            self._get_in_step()
            self.in_step = True
        rows = self._journal.pending(self._settings.max_batch_rows)
        if not rows:
            return rows
        started = time.perf_counter()
        try:
            self._in_flight = len(rows)
            self._client.execute(
                f"INSERT INTO {self._full_name} (ts, mt, m) VALUES", rows, query_id=f"{self._query_ids}{uuid.uuid4()}"
            )
        except BaseException as error:
            self.in_step = False
            if not is_missing_table(error):
                raise
            self._get_in_step()  # which tells what has become of it
            return []
        took = time.perf_counter() - started
        self._in_flight = 0
        self._journal.acknowledge(self._journal.stored + len(rows))
        self.on_insert(len(rows), took)
        return rows

    def _get_in_step(self) -> None:
        """Make the journal agree with the table on which rows are stored."""
        self.compaction.small_blocks = None  # the table may have been rewritten, or be another one
        self._client.disconnect()
        self._wait_for_earlier_inserts()
        count, token = self._state()
        journal = self._journal
        expected = range(journal.stored, journal.newest + 1)
        if self._in_flight:  # the block is stored as a whole or not at all
            expected = range(journal.stored, journal.stored + self._in_flight + 1, self._in_flight)
        if token != journal.token:
            if journal.token is not None:
                self._say(
                    f"{self._full_name} was reset: it holds {count:,} rows; {journal.waiting:,} waiting rows go there"
                )
            journal.renumber(journal.stored, count, token)
        elif count in expected:
            journal.acknowledge(count)
        elif count > journal.stored:
            self._say(
                f"WARNING: somebody else wrote to {self._full_name}: it holds {count:,} rows, at most {expected[-1]:,}"
                " are this collector's; going on after them. A table must have one writer"
            )
            journal.renumber(journal.stored, count, token)
        elif count >= journal.oldest - 1:
            self._say(f"{self._full_name} lost its last {journal.stored - count:,} rows: sending them again")
            journal.acknowledge(count)
        else:
            lost = journal.oldest - 1 - count
            self._say(
                f"WARNING: {self._full_name} lost {journal.stored - count:,} rows, and the first {lost:,} of them are"
                " no longer in the journal; sending the others again"
            )
            journal.renumber(journal.oldest - 1, count, token)
        self._in_flight = 0

    def _wait_for_earlier_inserts(self) -> None:
        """Wait until the server has done with INSERTs whose sender has given them up: they may yet be stored."""
        give_up = time.monotonic() + _FENCE_TIMEOUT
        query = "SELECT count() FROM system.processes WHERE startsWith(query_id, %(ids)s)"
        while self._client.execute(query, {"ids": self._query_ids})[0][0]:
            if time.monotonic() > give_up:
                raise StillInserting(f"An earlier INSERT into {self._full_name} has not ended: waiting for it")
            time.sleep(0.05)

    def _state(self) -> tuple[int, str]:
        """Return the table's number of rows and its creation token."""
        query = "SELECT total_rows, comment FROM system.tables WHERE database = %(database)s AND name = %(name)s"
        parameters = {"database": self._database, "name": self._name}
        found = self._client.execute(query, parameters)
        if not found and tables_of(self._client, self._database, self._name):
            self.compaction.under_way = True
            for step in resume(self._settings, self._name):
                if step.done in (0, 1):
                    self._say(step.text)
            found = self._client.execute(query, parameters)
        if not found:
            raise TableMissing(f"Table {self._full_name} does not exist: run ch_setup.py")
        count, token = found[0]
        if count is None:  # not touched since the server started
            count = self._client.execute(f"SELECT count() FROM {self._full_name}")[0][0]
        return count, token
