"""Rows on local disk until every table that is to have them has them.

In: rows as they come. Out: the same rows, oldest first, for each table those that it is not known to hold.
Promise: once `append` has returned, a killed process loses nothing, and a power loss takes at most what came since the
last `sync`. A row's `seq` is given once and never changes; it rises from run to run, even where a power loss or a copy
put back made the journal forget rows that had been given higher ones before. Where a table stands is a `Position`.
Rows that the tables hold are kept for a while longer (`RETAINED_ROWS`), because ClickHouse does not sync its files and
may itself forget the newest. A damaged file is put aside, and what can be read of it goes on.

One SQLite file for a symbol, in WAL mode, locked for as long as it is open:

    rows    what is kept: seq, the row, when it was received, the exchange's time and number of the event
    runs    seqs have holes between two runs of a collector; from which seq on a run counts, and the rows given before
    state   a Position each
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.collect.errors import JournalError, JournalFull
from pipeline.collect.salvage import aside, finish_salvage, salvage
from pipeline.files import sync as sync_file

RETAINED_ROWS = 10_000
VERSION = 1
"""Of the schema, as PRAGMA user_version has it; 0 is that of the journals before there were seqs."""

_TRIM_EVERY = 1_000  # rows; deleting them one by one would cost as much as writing them
_AT_ONCE = 10_000  # most rows, and pages, to delete and give back in one go: the feed has to wait meanwhile
_PAGE = 2_048  # bytes; each row costs the log a page, and most rows are smaller than this
_SPARE_PAGES = 1_000  # 2 MB that the file keeps free, so that it does not shrink and grow all day
_WAL_PAGES = 4_000  # 8 MB of log between two checkpoints

_SCHEMA = f"""
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, ts INTEGER NOT NULL, mt TEXT NOT NULL, m TEXT NOT NULL,
    id INTEGER NOT NULL DEFAULT 0, received INTEGER NOT NULL DEFAULT 0, event INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE runs (first INTEGER PRIMARY KEY, before INTEGER NOT NULL);
CREATE TABLE state (
    name TEXT PRIMARY KEY, token TEXT, base INTEGER NOT NULL, seq INTEGER NOT NULL, rows INTEGER NOT NULL, sent INTEGER
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
# Of version 0, whose rows were numbered as the table numbers them: 1, 2, 3 ...
_CONVERT = f"""
ALTER TABLE rows RENAME COLUMN id TO seq;
ALTER TABLE rows RENAME COLUMN trade TO id;
ALTER TABLE rows ADD COLUMN received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN event INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state RENAME TO state_0;
CREATE TABLE runs (first INTEGER PRIMARY KEY, before INTEGER NOT NULL);
CREATE TABLE state (
    name TEXT PRIMARY KEY, token TEXT, base INTEGER NOT NULL, seq INTEGER NOT NULL, rows INTEGER NOT NULL, sent INTEGER
) WITHOUT ROWID;
INSERT INTO state SELECT :name, token, ifnull((SELECT seq FROM rows ORDER BY seq LIMIT 1) - 1, stored), stored, stored,
    NULL FROM state_0;
INSERT INTO runs SELECT seq, seq - 1 FROM rows ORDER BY seq LIMIT 1;
DROP TABLE state_0;
PRAGMA user_version = {VERSION};
"""
_TS, _MT, _M = (
    "CAST(ifnull(ts, 0) AS INTEGER)",
    "CASE WHEN mt IN ('t', 'd', 'dp', 'dl') THEN mt ELSE 'dl' END",
    "CAST(ifnull(m, '') AS TEXT)",
)
STRIPELOG = f"{_TS}, {_MT}, {_M}"
"""The columns of `rows` that a StripeLog table has. A flipped bit that SQLite does not notice would make a row that no
table takes, and everything behind it wait for ever; such a row goes as a dead letter."""
_RECEIVED, _EVENT, _ID = (f"max(0, CAST(ifnull({name}, 0) AS INTEGER))" for name in ("received", "event", "id"))
HISTORY = f"seq, {_TS}, {_RECEIVED}, {_EVENT}, {_MT}, {_ID}, {_M}"
"""Those that a history has."""

_COLUMNS_0 = ["id", "ts", "mt", "m", "trade"]
_INSERT = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)"

_T = TypeVar("_T")

NewRow = tuple[int, str, str, int, int]
"""`(ts_ms, mt, m, id, event_ms)`, as pipeline.messages.Row has it.

`id` is the exchange's own number of it, a deal's or a book's version; `event_ms` is its own time of it. 0 is none.
"""


class Journal:
    """The journal of one symbol. Any thread may call any method."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the journal at `path`, or begin it. Raises JournalError.

        Of more than `max_bytes` the oldest rows stay, and `append` refuses new ones. `say` takes lines for the user,
        on damage; `clock` tells nanoseconds since the epoch.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._say = say
        self._clock = clock
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._positions: dict[str, Position] = {}
        self._is_open = False
        self._lost = ""  # why nothing can be done any more
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            finish_salvage(path)
            self._begin()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise _explained(path, error) from None
            self._save()
        except OSError as error:
            raise _explained(path, error) from None

    written: int
    """How many rows were ever appended, as far as the journal remembers. The newest row's number: its `seq` without
    the holes between runs."""

    @property
    def waiting(self) -> int:
        """How many rows some table is not known to hold."""
        return max((position.waiting for position in self._positions.values()), default=0)

    def append(self, rows: Sequence[NewRow], received_us: int = 0) -> None:
        """Take `rows`, received at that time, all or none. Raises JournalFull."""
        with self._lock:
            self._guarded(lambda: self._append(rows, received_us))

    def newest_deals(self, limit: int) -> list[tuple[int, str, int, int]]:
        """Return `(event_ms, m, id, ts_ms)` of the newest deals that are kept here, the newest last.

        Of those from a version that did not keep `event_ms`, that is 0: it was a little before `ts_ms`.
        """
        with self._lock:
            query = "SELECT event, m, id, ts FROM rows WHERE mt = 'd' ORDER BY seq DESC LIMIT ?"
            return self._query(query, limit)[::-1]

    def newest_time(self) -> int | None:
        """Return the `ts` of the newest row that is market data; None where none is kept."""
        with self._lock:
            found = self._query("SELECT ts FROM rows WHERE mt <> 'dl' ORDER BY seq DESC LIMIT 1")
            return found[0][0] if found else None

    def position(self, name: str, columns: str = STRIPELOG, beside: Position | None = None) -> Position:
        """Return where the table `name` stands; of one that was not asked for before, nothing is known.

        `columns` are what the table takes of `rows`. `beside` is the position of a table that has the same rows:
        then this one begins where that stands, and where there is no room, rows that only this one has not got make
        way for new ones (`has_gap`). Raises JournalFull.
        """
        with self._lock:
            if name not in self._positions:
                try:
                    self._positions[name] = self._guarded(lambda: self._read_position(name, columns, beside))
                except sqlite3.OperationalError as error:
                    raise JournalFull(f"{self.path} cannot be written: {error}") from None
            return self._positions[name]

    def leave(self) -> None:
        """Note that no table is to get what waits. Raises JournalFull."""
        with self._lock:
            for position in self._positions.values():
                waiting = position.waiting
                position.adopt(position.token, position.rows + (waiting if position._beside else 0), waiting)

    def sync(self) -> None:
        """Put all that was appended so far on the disk for good; what a power loss takes came after.

        Where the tables stand is noted first, as far as there is room for it. Raises OSError, JournalError.
        """
        with self._lock:
            with suppress(sqlite3.OperationalError):  # after a restart the table is asked anyway
                self._guarded(self._note)
            wal = os.dup(self._wal)  # a damaged file may be put aside meanwhile
        try:
            os.fsync(wal)  # the checkpoints sync the main file, see PRAGMA synchronous = NORMAL
        finally:
            os.close(wal)

    def close(self) -> None:
        """Note where the tables stand, and release the file. No other method may be called after it."""
        with self._lock:
            with suppress(sqlite3.Error):
                for position in self._positions.values():
                    position.fence()
                self._note()
            if self._is_open:
                os.close(self._wal)
            self._db.close()

    # Opening

    def _begin(self) -> None:
        self._db = _connect(self.path)
        try:
            self._provide_schema()
            self._db.execute(f"PRAGMA max_page_count = {self._max_bytes // self._pragma('page_size')}")
            self._wal = os.open(f"{self.path}-wal", os.O_RDONLY)
            try:
                self._read()
                os.fsync(self._wal)
                sync_file(self.path.parent)  # a new file's name has to be on the disk, too
                self._is_open = True
            except BaseException:
                os.close(self._wal)
                raise
        except BaseException:
            self._db.close()
            raise

    def _provide_schema(self) -> None:
        version = self._pragma("user_version")
        if version == VERSION:
            return
        if version > VERSION:
            raise JournalError(
                f"{self.path} is of a newer version of this program ({version}, not {VERSION}): update it, or set"
                " JOURNAL_DIR to another directory"
            )
        columns = [name for (name,) in self._db.execute("SELECT name FROM pragma_table_info('rows')")]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and columns != _COLUMNS_0:
            raise JournalError(f"{self.path} is no journal of this program: move it elsewhere, or see JOURNAL_DIR")
        with self._transaction():
            # One by one, for `executescript` would commit first.
            for statement in (_CONVERT if tables else _SCHEMA).split(";\n"):
                if statement.strip():
                    self._db.execute(statement, {"name": self.path.stem} if ":name" in statement else {})

    def _read(self) -> None:
        """Take in what there is, without reading more than a few pages of it; begin a run."""
        self.newest, self.oldest = (
            (row[0] if (row := self._db.execute(f"SELECT seq FROM rows ORDER BY seq {way} LIMIT 1").fetchone()) else 0)
            for way in ("DESC", "ASC")
        )
        found = self._db.execute("SELECT first, before FROM runs WHERE first <= ? ORDER BY first", (self.newest,))
        runs = found.fetchall()
        self._firsts: list[int] = [first for first, _ in runs]
        self._before: list[int] = [before for _, before in runs]
        self.written = self._before[-1] + self.newest - self._firsts[-1] + 1 if self._firsts else 0
        self._at_opening = self.written
        if not self.oldest:
            self.oldest = self.newest + 1
        # Above all seqs ever given here, those a power loss made it forget included: nobody gives one a microsecond.
        self._first = max(self.newest + 1, self._clock() // 1000)
        self._has_begun = self._first == self.newest + 1 and bool(self._firsts)

    def _read_position(self, name: str, columns: str, beside: Position | None) -> Position:
        query = "SELECT token, base, seq, rows, sent FROM state WHERE name = ?"
        found = self._db.execute(query, (name,)).fetchone()
        if found is None and beside is not None:
            seq = self._seq(beside._number)
            found = (None, seq, seq, 0, seq)
        token, base, seq, rows, sent = found or (None, 0, 0, 0, None)
        position = Position(self, name, columns, beside)
        position.token, position.rows = token, rows
        position._base, position._number = self._number(base), self._number(seq)
        # Of what was given in runs that are forgotten, it is not known how many rows came after that.
        position._is_adrift = (
            beside is not None and bool(self._firsts) and seq < self._firsts[0] and self._before[0] > 0
        )
        position._known_to = self._at_opening
        position._sent = max(position._number, self._at_opening if sent is None else self._number(sent))
        self._store(position)  # what comes from now on was not handed over, whatever becomes of this run
        return position

    newest: int
    """The seq of the newest row; 0 where there never was one."""
    oldest: int
    """The seq of the oldest row that is still here; above `newest` when there is none."""

    # Numbers: how many rows were given until then. They have no holes, and count what a table has.

    def _number(self, seq: int) -> int:
        """Return how many rows have a seq up to `seq`."""
        run = bisect_right(self._firsts, seq) - 1
        if run < 0:
            return self._before[0] if self._before else 0
        ends = self._before[run + 1] if run + 1 < len(self._before) else self.written
        return min(self._before[run] + seq - self._firsts[run] + 1, ends)

    def _seq(self, number: int) -> int:
        """Return the seq of the row with that number; 0 where it is of no run that is remembered."""
        run = bisect_left(self._before, number) - 1
        if run < 0:
            return 0
        return self._firsts[run] + number - self._before[run] - 1

    # Writing. All that follows is called with the lock held.

    def _append(self, rows: Sequence[NewRow], received_us: int) -> None:
        first = self.newest + 1 if self._has_begun else self._first
        kept = [
            (seq, ts, mt, m, number, received_us, event) for seq, (ts, mt, m, number, event) in enumerate(rows, first)
        ]
        # Where there is no room, rows that all tables hold make way; then those that only a table beside another lacks.
        for make_room in (None, self._delete_held, self._delete_spare):
            try:
                if make_room:
                    make_room()
                self._insert(kept)
                break
            except sqlite3.OperationalError as error:
                if not _is_no_room(error):
                    raise
                reason = str(error)
        else:
            raise JournalFull(reason)
        if not self._has_begun:
            self._firsts.append(first)
            self._before.append(self.written)
            self._has_begun = True
        if not self.written:
            self.oldest = first
        self.newest = first + len(rows) - 1
        self.written += len(rows)
        self._arrived.notify_all()

    def _insert(self, kept: Sequence[tuple[int, int, str, str, int, int, int]]) -> None:
        if len(kept) == 1 and self._has_begun:
            self._db.execute(_INSERT, kept[0])
            return
        with self._transaction():
            if not self._has_begun:
                self._db.execute("DELETE FROM runs WHERE first > ?", (self.newest,))
                self._db.execute("INSERT INTO runs VALUES (?, ?)", (self._first, self.written))
            self._db.executemany(_INSERT, kept)

    def _delete_held(self) -> None:
        self._delete_up_to(self._held())

    def _delete_spare(self) -> None:
        self._delete_up_to(min((each._number for each in self._positions.values() if not each._beside), default=0))
        for position in self._positions.values():
            if position.has_gap:
                position.fence()

    def _held(self) -> int:
        """Return the number up to which every table is known to hold all rows."""
        return min((position._number for position in self._positions.values()), default=0)

    def _delete_up_to(self, number: int) -> None:
        """Delete the oldest rows, those up to a number, `_AT_ONCE` of them at most."""
        last = self._seq(min(number, self._number(self.oldest) - 1 + _AT_ONCE))
        with self._transaction():
            self._note()  # a position on the disk may not be older than the oldest row
            self._db.execute("DELETE FROM rows WHERE seq <= ?", (last,))
            if (past := bisect_right(self._firsts, last) - 1) > 0:
                self._db.execute("DELETE FROM runs WHERE first < ?", (self._firsts[past],))
                del self._firsts[:past], self._before[:past]
        self.oldest = max(self.oldest, last + 1)
        spare = min(self._pragma("freelist_count") - _SPARE_PAGES, _AT_ONCE)
        if spare > 0:
            self._db.executescript(f"PRAGMA incremental_vacuum({spare})")  # `execute` would free one page only

    def _trim(self) -> None:
        """Forget rows that all tables have held for long; where there is no room to note that, some other time."""
        with suppress(sqlite3.OperationalError):
            self._guarded(self._delete_old)

    def _delete_old(self) -> None:
        last = self._held() - RETAINED_ROWS  # asked here: rows have other numbers where damage was found
        if last - self._number(self.oldest) >= _TRIM_EVERY:
            self._delete_up_to(last)

    def _note(self) -> None:
        """Write down where the tables stand, where that has changed."""
        for position in self._positions.values():
            if position._as_noted != position._as_stored():
                self._store(position)

    def _store(self, position: Position) -> None:
        stored = position._as_stored()
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?, ?, ?)", stored)
        position._as_noted = stored

    def _store_for_good(self, position: Position) -> None:
        """Write down a position whose meaning has changed, and have it on the disk. Raises JournalFull."""
        try:
            self._guarded(lambda: self._store(position))
            os.fsync(self._wal)
        except (sqlite3.OperationalError, OSError) as error:
            position._as_noted = None
            raise JournalFull(f"The journal cannot note where {position.name} stands: {error}") from None

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

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

    # Damage

    def _query(self, sql: str, *parameters: object) -> list[Any]:
        try:
            return self._guarded(lambda: self._db.execute(sql, parameters).fetchall())
        except sqlite3.OperationalError as error:
            raise JournalError(f"{self.path} cannot be read: {error}; see whether the disk fails") from None

    def _guarded(self, do: Callable[[], _T]) -> _T:
        """Return what `do` does; where it finds the file damaged, save what is left, and do it again.

        Raises JournalError where that failed, now or before.
        """
        if self._lost:
            raise JournalError(self._lost)
        try:
            return do()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._save()
            return do()

    def _save(self) -> None:
        """Put the damaged file aside, and go on with what can be read of it. Raises JournalError."""
        try:
            if self._is_open:
                os.close(self._wal)
                source: sqlite3.Connection | None = self._db
                self._is_open = False
            else:
                source = _connect_if_possible(self.path)
            known = {name: position._as_stored() for name, position in self._positions.items()}
            rows = salvage(source, self.path, _SCHEMA, known)
            finish_salvage(self.path)
            self._begin()
            for name, position in self._positions.items():
                position.__dict__.update(self._read_position(name, position.columns, position._beside).__dict__)
        except (sqlite3.Error, OSError) as error:
            self._lost = f"{self.path} is damaged, and what is in it cannot be saved ({error}): move it elsewhere"
            raise JournalError(self._lost) from None
        self._say(
            f"WARNING: {self.path} is damaged, and what was in it may be lost in part: the {rows:,} rows that can be"
            f" read of it go on. It is kept as {aside(self.path).name}: see whether the disk fails"
        )


def _connect_if_possible(path: Path) -> sqlite3.Connection | None:
    try:
        return _connect(path)
    except sqlite3.Error as error:
        if _is_damage(error):
            return None
        raise


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that the file shrinks after an outage
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA cache_size = -256")  # KB; what is written goes to the log, and what is read is the newest
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE}")
        db.execute("BEGIN IMMEDIATE")  # which takes the lock
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


class Standing(NamedTuple):
    """A position at some moment: what the table had, and which rows come next."""

    token: str | None
    rows: int
    """How many rows the table had."""
    number: int
    """How many rows were given until then; where those that come next are no longer here, until the oldest one."""
    base: int
    """Likewise, until its rows were last put into step with the table's by anything but the count."""
    base_seq: int
    """The seq after which all the table's rows are this journal's; 0 where that is not known any more."""
    last_seq: int
    """The seq of the last row that it is known to hold; 0 where none was sent since it was met."""
    next_seq: int
    """The seq of the row that comes next, here or yet to come."""
    is_known: bool
    """Whether the table was asked, and no INSERT is in doubt."""


class Position:
    """Where one table stands in its journal: rows up to here are in it, or are never to be.

    On the disk that is a row of `state`: the table's creation token; the `seq` of the last row that it is known to hold
    and how many `rows` it had then; `base`, the seq after which all its rows are this journal's, in order; and `sent`,
    the seq up to which rows were handed to an INSERT, or none while any may be at any moment. A plain advance is noted
    when the journal is synced, for the table can be asked; what gives a position another meaning is on the disk before
    the call returns. Numbers here count rows, so that a hole between two runs of the collector counts nothing.
    """

    def __init__(self, journal: Journal, name: str, columns: str, beside: Position | None = None) -> None:
        self._journal = journal
        self.name, self.columns = name, columns
        self._beside = beside
        self._is_adrift = False
        self.token: str | None = None
        """The creation token of the table; None where no table was met yet."""
        self.rows = 0
        """How many rows the table had when it was known to have those up to here, whoever wrote them."""
        self._number = self._base = 0
        self._sent = self._known_to = 0
        self.is_open = False
        """Whether rows may be handed over; False until it is known which ones the table holds."""
        self._as_noted: tuple[Any, ...] | None = None

    @property
    def waiting(self) -> int:
        """How many rows the table is not known to hold."""
        return self._journal.written - self._number

    @property
    def in_doubt(self) -> int:
        """How many of them may be in it all the same: handed over with an outcome that nobody knows."""
        return self._sent - self._number

    @property
    def comparable(self) -> int:
        """How many of them could be in it if the journal is not what it was, after a power loss or a copy put back."""
        return max(self._sent, self._known_to) - self._number

    @property
    def has_gap(self) -> bool:
        """Whether rows that come next are no longer here, as far as can be known."""
        with self._journal._lock:
            return self._is_adrift or self._number < self._journal._number(self._journal.oldest - 1)

    def wait(self, timeout: float, count: int = 1) -> bool:
        """Wait at most `timeout` seconds until `count` rows wait; return whether they do."""
        with self._journal._lock:
            return self._journal._arrived.wait_for(lambda: self.waiting >= count, timeout)

    def stand(self) -> Standing:
        """Return where it stands at this moment."""
        journal = self._journal
        with journal._lock:
            number = self._here()
            found = journal._query("SELECT seq FROM rows WHERE seq > ? ORDER BY seq LIMIT 1", journal._seq(number))
            next_seq = found[0][0] if found else journal.newest + 1 if journal._has_begun else journal._first
            last_seq = journal._seq(self._number) if self._number > self._base else 0
            base_seq = journal._seq(self._base)
            return Standing(self.token, self.rows, number, self._base, base_seq, last_seq, next_seq, self.is_open)

    def seq_of(self, number: int) -> int:
        """Return the seq of the row with that number, or one below all of them; 0 where it is not known."""
        journal = self._journal
        with journal._lock:
            if number <= 0:
                return journal._firsts[0] - 1 if journal._before[:1] == [0] else 0
            return journal._seq(number)

    def count(self, first: int, last: int) -> int:
        """Return how many rows have a seq from `first` to `last`."""
        with self._journal._lock:
            return self._journal._number(last) - self._journal._number(first - 1)

    def pending(self, limit: int, after: int = 0) -> list[Any]:
        """Return the rows that wait, `limit` at most, oldest first, without the first `after`: tuples of `columns`."""
        journal = self._journal
        with journal._lock:
            seq = journal._seq(self._here() + after)
            return journal._query(f"SELECT {self.columns} FROM rows WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit)

    def held(self, limit: int = -1) -> list[Any]:
        """Return the rows that the table is known to hold and that are kept, newest first: tuples of `columns`.

        Of all of them, or of the `limit` newest ones.
        """
        journal = self._journal
        with journal._lock:
            query = f"SELECT {self.columns} FROM rows WHERE seq <= ? ORDER BY seq DESC LIMIT ?"
            return journal._query(query, journal._seq(self._number), limit)

    def hand_over(self, count: int) -> bool:
        """Note that the first `count` rows that wait are handed to an INSERT; returns False where they may not be.

        That is in memory only: `open` has said it for all.
        """
        with self._journal._lock:
            if self.is_open:
                self._sent = self._number + count
            return self.is_open

    def open(self) -> None:
        """Have it on the disk that from now on any row may be handed over at any moment. Raises JournalFull."""
        if not self.is_open:
            self._change(is_open=True)

    def fence(self) -> None:
        """Note that no further row is handed over until `open`."""
        self.is_open = False

    def acknowledge(self, count: int) -> bool:
        """Note that the table has taken the `count` rows that were handed over; returns False where that says nothing.

        That is where the journal was damaged meanwhile: which rows wait is not what it was.
        """
        with self._journal._lock:
            if self.is_open:
                self.advance(count)
            return self.is_open

    def advance(self, count: int) -> None:
        """Note that the table holds `count` rows more, and no others."""
        with self._journal._lock:
            self._settle(self._number + count)
            self.rows += count
            self._journal._trim()

    @property
    def losses(self) -> int:
        """A number that is another one each time a table beside another has lost rows."""
        with self._journal._lock:
            return self._number - self.rows

    def go_back(self, count: int) -> int:
        """Note that the table lost its last `count` rows; return how many of them wait again. Raises JournalFull.

        Those before are of somebody else, or were trimmed.
        """
        with self._journal._lock:
            lowest = max(self._base, self._journal._number(self._journal.oldest - 1))
            again = max(0, min(count, self._number - lowest))
            number = self._number - again
            rows = self.rows - count - bool(self._beside)  # which nobody counts, see `losses`
            if again == count:
                self._settle(number)
                self.rows = rows
            else:
                self._go_to(number, rows=rows)
            return again

    def adopt(self, token: str | None, rows: int, skip: int) -> None:
        """Go on after what a table holds that is another one, or in another state, than was known. Raises JournalFull.

        It has that `token` and `rows` rows, the first `skip` waiting ones among them, wherever they stand. Where that
        is negative, so many that it was known to hold wait again.
        """
        with self._journal._lock:
            self._go_to(self._number + skip, token=token, rows=rows)

    def adopt_here(self, token: str, number: int) -> None:
        """Go on after the row with that number, in a table that has this `token`. Raises JournalFull."""
        with self._journal._lock:
            self._go_to(number, token=token, rows=number, _is_adrift=False)

    def _here(self) -> int:
        """Return the number of the row before those that wait and are here."""
        return max(self._number, self._journal._number(self._journal.oldest - 1))

    def _go_to(self, number: int, **changes: Any) -> None:
        self._change(_number=number, _base=number, _sent=number, _known_to=number, **changes)

    def _settle(self, number: int) -> None:
        self._number = self._sent = self._known_to = number

    def _change(self, **changes: Any) -> None:
        """Change what this position means, and have it on the disk; or change nothing. Raises JournalFull."""
        before = {name: getattr(self, name) for name in changes}
        with self._journal._lock:
            self.__dict__.update(changes)
            try:
                self._journal._store_for_good(self)
            except JournalFull:
                self.__dict__.update(before)
                raise

    def _as_stored(self) -> tuple[Any, ...]:
        seq = self._journal._seq
        sent = None if self.is_open else seq(self._sent)
        return self.name, self.token, seq(self._base), seq(self._number), self.rows, sent


def _explained(path: Path, error: Exception) -> JournalError:
    if isinstance(error, sqlite3.Error) and _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalError(f"{path} is in use: a collector for this table is already running")
    return JournalError(f"{path} cannot be opened: {error}; see JOURNAL_DIR")


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code of an error; 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_no_room(error: sqlite3.Error) -> bool:
    """Whether the disk, or the journal's own limit, is full, or the disk fails."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)


def _is_damage(error: sqlite3.Error) -> bool:
    if str(error).startswith("Could not decode to UTF-8"):  # by Python, so it has no code: a text that is none
        return True
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
