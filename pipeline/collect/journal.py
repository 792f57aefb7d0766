"""Rows on local disk until the table is known to hold them.

In: rows `(ts_ms, mt, m, trade_id)` as they come. Out: `(ts_ms, mt, m)` of the same rows, oldest first, for as long as
the table has not got them.
Promise: once `append` has returned, a killed process loses nothing, and a power loss takes at most what came since the
last `sync`. A row's id is the number it has in the table, counted from 1, so the table's own row count says which rows
it holds; that is the whole acknowledgement. Rows the table holds are kept for a while longer (`RETAINED_ROWS`), because
ClickHouse does not sync its files and may itself forget the newest.

One SQLite file for a table, in WAL mode, locked for as long as it is open: a table has one writer.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.collect.errors import JournalError, JournalFull

RETAINED_ROWS = 10_000
_TRIM_EVERY = 1_000  # rows; deleting them one by one would cost as much as writing them
_SPARE_PAGES = 500  # 2 MB that the file keeps free, so that it does not shrink and grow all day
_WAL_PAGES = 2_000  # 8 MB of log between two checkpoints

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, ts INTEGER NOT NULL, mt TEXT NOT NULL, m TEXT NOT NULL, trade INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS state (token TEXT, stored INTEGER NOT NULL);
INSERT INTO state SELECT NULL, 0 WHERE NOT EXISTS (SELECT 1 FROM state);
"""
_INSERT = "INSERT INTO rows VALUES (?, ?, ?, ?, ?)"


class Journal:
    """The journal of one table. Any thread may call any method."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open the journal at `path`, or begin it. Raises JournalError.

        Of more than `max_bytes` the oldest rows stay, and `append` refuses new ones.
        """
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that the file shrinks after an outage
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            self._db.execute(f"PRAGMA max_page_count = {max_bytes // self._pragma('page_size')}")
            self._wal = os.open(f"{path}-wal", os.O_RDONLY)
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise JournalError(f"{path} is in use: a collector for this table is already running") from None
            raise JournalError(f"{path} cannot be opened: {error}; see JOURNAL_DIR") from None
        self.token, self.stored = self._db.execute("SELECT token, stored FROM state").fetchone()
        oldest, newest = self._db.execute("SELECT min(id), max(id) FROM rows").fetchone()
        self.newest: int = max(newest or 0, self.stored)
        self.oldest: int = oldest or self.newest + 1

    token: str | None
    """The creation token of the table that the ids belong to; None until there was one."""
    stored: int
    """How many rows the table is known to hold."""
    newest: int
    """The id of the newest row."""
    oldest: int
    """The id of the oldest row that is still here; `newest` + 1 when there is none."""

    @property
    def waiting(self) -> int:
        """How many rows the table is not known to hold."""
        return self.newest - self.stored

    def append(self, rows: Sequence[tuple[int, str, str, int]]) -> None:
        """Take `rows`, all or none. Raises JournalFull."""
        with self._lock:
            self._append(rows)

    def append_missed(self, deals: Sequence[tuple[int, str, str, int]]) -> int:
        """Take those of `deals` whose trade ids no row kept here has; return how many. Raises JournalFull."""
        with self._lock:
            known = {trade for (trade,) in self._db.execute("SELECT trade FROM rows ORDER BY id DESC LIMIT 50000")}
            missed = [deal for deal in deals if deal[3] not in known]
            if missed:
                self._append(missed)
            return len(missed)

    def times(self, *types: str) -> tuple[int, int] | None:
        """Return the times of the oldest and the newest row of the message `types`; None where none is kept."""
        with self._lock:
            query = f"SELECT ts FROM rows WHERE mt IN ({','.join('?' * len(types))}) ORDER BY id"
            oldest, newest = (self._db.execute(f"{query} {way} LIMIT 1", types).fetchone() for way in ("ASC", "DESC"))
            return (oldest[0], newest[0]) if oldest else None

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for rows that the table has not got; return whether there are any."""
        with self._lock:
            return self._arrived.wait_for(lambda: self.waiting > 0, timeout)

    def pending(self, limit: int) -> list[tuple[int, str, str]]:
        """Return the rows after the `stored` first, oldest first, `limit` at most."""
        with self._lock:
            query = "SELECT ts, mt, m FROM rows WHERE id > ? ORDER BY id LIMIT ?"
            return self._db.execute(query, (self.stored, limit)).fetchall()

    def acknowledge(self, stored: int) -> None:
        """Note that the table holds the rows up to id `stored`, and no others."""
        with self._lock:
            self.stored = stored  # holds for this process even where the disk is too full to note it
            try:
                self._db.execute("UPDATE state SET stored = ?", (stored,))
                if stored - RETAINED_ROWS >= self.oldest + _TRIM_EVERY:
                    self._delete_up_to(stored - RETAINED_ROWS)
            except sqlite3.OperationalError:
                pass  # the next one notes it; after a restart the table is asked anyway

    def renumber(self, after: int, stored: int, token: str) -> None:
        """Number the rows after id `after` from `stored` + 1, and forget the others. Raises JournalFull.

        For a table that is not the one, or not in the state, that the ids were given for: it holds `stored` rows and
        its creation token is `token`.
        """
        with self._lock:
            shift = stored - after
            try:
                with self._transaction():
                    self._db.execute("DELETE FROM rows WHERE id <= ?", (after,))
                    if shift:
                        self._db.execute("UPDATE rows SET id = -(id + ?)", (shift,))  # via ids that nobody has
                        self._db.execute("UPDATE rows SET id = -id")
                    self._db.execute("UPDATE state SET token = ?, stored = ?", (token, stored))
            except sqlite3.OperationalError as error:
                raise JournalFull(f"The journal cannot be renumbered: {error}") from None
            self.token, self.stored = token, stored
            self.newest = max(self.newest, after) + shift
            self.oldest = stored + 1

    def sync(self) -> None:
        """Put all that was appended so far on the disk for good; what a power loss takes came after. Raises OSError."""
        os.fsync(self._wal)  # the checkpoints sync the main file, see PRAGMA synchronous = NORMAL

    def close(self) -> None:
        """Release the file. No other method may be called after it."""
        with self._lock:
            os.close(self._wal)
            self._db.close()

    def _pragma(self, name: str) -> int:
        value: int = self._db.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    def _append(self, rows: Sequence[tuple[int, str, str, int]]) -> None:
        numbered = [(self.newest + n, *row) for n, row in enumerate(rows, 1)]
        try:
            self._insert(numbered)
        except sqlite3.OperationalError as error:
            try:
                self._delete_up_to(self.stored)  # rows that the table holds make room for rows it does not
                self._insert(numbered)
            except sqlite3.OperationalError:
                raise JournalFull(str(error)) from None
        self.newest += len(numbered)
        self._arrived.notify()

    def _insert(self, numbered: Sequence[tuple[int, int, str, str, int]]) -> None:
        if len(numbered) == 1:
            self._db.execute(_INSERT, numbered[0])
        else:
            with self._transaction():
                self._db.executemany(_INSERT, numbered)

    def _delete_up_to(self, last: int) -> None:
        self._db.execute("DELETE FROM rows WHERE id <= ?", (last,))
        self.oldest = max(self.oldest, last + 1)
        spare = self._pragma("freelist_count") - _SPARE_PAGES
        if spare > 0:
            self._db.executescript(f"PRAGMA incremental_vacuum({spare})")  # `execute` would free one page only

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise
