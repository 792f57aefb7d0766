"""A symbol's table, and its history, against what the exchange has sent of it."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from clickhouse_driver.errors import ServerException

from config import SymbolConfig
from pipeline.store.client import is_missing_table
from pipeline.store.history import Beginning, beginnings
from pipeline.store.repair import examine
from pipeline.store.schema import parse_comment
from tests.chaos.audit import SentLog, Verdict, compare, end_of, joined, must_have_read, places
from tests.disks import Disks
from tests.pieces import Piece, pieces
from tests.stack import Exchange, Stack, StoredRow, eventually

FLOWING = 20  # rows after a fault that show that all is well again


class Archive:
    """The rows of one symbol."""

    def __init__(self, stack: Stack, disks: Disks, exchange: Exchange, config: SymbolConfig) -> None:
        self._stack, self._disks = stack, disks
        self.name = config["table_name"]
        self._data = stack.data / "store" / config["uuid"][:3] / config["uuid"]
        self._has_history = bool(int(stack.env["HISTORY"]))
        self.sent = SentLog(exchange.log, config["symbol"])
        self.stored: list[StoredRow] = []
        """What the table holds, after what those had that were reset."""
        self._again_before = self._again_now = 0
        self._former: list[StoredRow] = []  # of tables that were reset
        self._present: list[StoredRow] = []  # of the one that there is
        self._in_table = 0  # how many rows it had itself then: a history may have some that it forgot in a power loss
        self._is_known = True  # that these are still there
        self._view: tuple[str, list[Beginning]] = "", []  # by which table and history were taken together
        self._begun: dict[int, int] = {}
        self._ended = 0
        """The number of the last connection that has ended."""

    # What was sent

    def end_connection(self, unread_bytes: int | None = None) -> None:
        """Note that the connection ends now; how much of it will be unread is not known where it is None."""
        self.sent.read()
        newest, connection = max(self.sent.connections.items())
        if newest > self._ended:  # else its collector had not begun another one
            self._ended = newest
            connection.must = 0 if unread_bytes is None else must_have_read(connection.rows, unread_bytes)

    def end_with_what_the_journal_has(self, unread_bytes: int) -> None:
        """Note that the connection has ended, and that what the journal still has of it must be stored."""
        self.end_connection(unread_bytes)
        connection = self.sent.connections[self._ended]
        connection.read, connection.must = connection.must, 0
        connection.must = end_of([sent.row for sent in connection.rows], self._last_in_the_journal())

    def _last_in_the_journal(self) -> list[StoredRow]:
        """Return the newest rows of the journal, which no process has open."""
        with TemporaryDirectory() as name:
            for file in self._disks.seen(Path(self._stack.env["JOURNAL_DIR"])).glob(f"{self.name}.db*"):
                shutil.copy(file, name)
            with closing(sqlite3.connect(Path(name) / f"{self.name}.db")) as db:
                query = f"SELECT ts, mt, m FROM rows ORDER BY seq DESC LIMIT {FLOWING}"
                return db.execute(query).fetchall()[::-1]

    def expect(self) -> None:
        """Note what was sent until now; `flows` tells of what comes after it."""
        self.sent.read()
        self._begun = {number: len(connection.rows) for number, connection in self.sent.connections.items()}

    def flows(self) -> bool:
        """Whether enough was sent since then, on a connection that goes on; if so, all of it must be there from now."""
        self.sent.read()
        number, live = max(self.sent.connections.items())
        if number <= self._ended or len(live.rows) < self._begun.get(number, 0) + FLOWING:
            return False
        live.must = max(live.must, len(live.rows))
        return True

    # What is stored

    @property
    def again(self) -> int:
        """How many rows a table had, and the one that was made in its place as well."""
        return self._again_before + self._again_now

    def look(self, refused: int = 0) -> Verdict:
        """Compare what is stored now with what was sent; of that, `refused` rows may be left out."""
        view = self._how_they_go_together()
        if not self._is_known or view != self._view:
            self._present.clear()
        self._view = view
        self._present += self.rows(after=len(self._present))
        self.stored, self._again_now, verdict = self._joined(self._present, refused)
        self._is_known |= verdict.is_right
        return verdict

    def _how_they_go_together(self) -> tuple[str, list[Beginning]]:
        comment = self._comment() if self._has_history else ""
        return comment, self._beginnings(comment)

    def forget(self) -> None:
        """Note that there may be other rows than those that were seen, until they are found to be right."""
        self._is_known = False

    def check_again(self) -> None:
        """See that the rows which were read bit by bit are those of the table."""
        assert self.rows() == self._present + self.rows(after=len(self._present)), f"{self.name} has changed"

    @contextmanager
    def reset(self) -> Iterator[None]:
        """The table is deleted meanwhile.

        What it had then need not be in the new one. That is known from its files, which stay here, deleted or not.
        """
        if self._has_history:
            self._wait_until_it_grows()
        self.look()
        known, in_table = list(self._present), self._in_table
        directory = self._disks.seen(self._data)
        with (directory / "data.bin").open("rb") as data, (directory / "index.mrk").open("rb") as index:
            yield
            more = _rows_in(data, index) - in_table
        self.sent.read()
        sent = [each.row for connection in self.sent.connections.values() for each in connection.rows]
        at = end_of(sent, known[-FLOWING:])
        self._former, again, _ = self._joined([*known, *sent[at : at + max(0, more)]])
        self._again_before += again
        self._present.clear()

    def _wait_until_it_grows(self) -> None:
        """With a history, all rows may be there while the table is away, and being filled: into other files.

        Where rows do not get through just now, the table was there before.
        """
        query = f"SELECT total_rows FROM system.tables WHERE database = 'mexc_data' AND name = '{self.name}'"
        sizes: set[int] = set()
        give_up = time.monotonic() + 5
        while len(sizes) < 2 and time.monotonic() < give_up:
            sizes.update(rows for (rows,) in self._stack.query(query) if rows is not None)
            time.sleep(0.05)

    def _joined(self, present: list[StoredRow], refused: int = 0) -> tuple[list[StoredRow], int, Verdict]:
        """Return all rows, how many came again, and what is to be said of them, in the way that is right if one is."""
        self.sent.read()
        connections = list(self.sent.connections.values())
        ways = [
            (rows, again, compare(connections, rows, self.sent.missed, refused))
            for rows, again in joined(self._former, present)
        ]
        return next((way for way in ways if way[2].is_right), ways[0])

    def places(self) -> list[str]:
        """Return where rows are that are stored more or less often than they were sent, for who has to find out why."""
        found = places(list(self.sent.connections.values()), self.stored)
        former = f"{self.name}: {len(self._former)} rows of former tables, {self.again} of them again"
        return [former, *self._state_of_history(), *found]

    def _state_of_history(self) -> list[str]:
        """Return how table and history go together, where there is one."""
        comment, begun = self._how_they_go_together()
        if not begun:
            return []
        query = f"SELECT count(), min(n), max(n) FROM mexc_data.{self.name}_history"
        parts = pieces(self._stack.client, "mexc_data", self.name, comment)
        return [f"{self.name} is {comment}", *map(str, [*begun, *parts, self._stack.query(query), *self._rows_by_n()])]

    def _rows_by_n(self) -> list[tuple[int, int]]:
        """Return each n after which the history's rows are not numbered on, and of the row after it."""
        ns = [n for (n,) in self._stack.query(f"SELECT n FROM mexc_data.{self.name}_history ORDER BY n")]
        return [(n, after) for n, after in pairwise(ns) if after != n + 1]

    def rows(self, after: int = 0) -> list[StoredRow]:
        """Return the rows but the first `after`, in order: the table's, or with a history those of both together."""
        return _patiently(lambda: self._rows_of_both(after) if self._has_history else self._rows_of_end(after))

    def _rows_of_end(self, first: int) -> list[StoredRow]:
        found = self._rows_of_table(first)
        self._in_table = first + len(found)
        return found

    def _rows_of_table(self, first: int, end: int | None = None) -> list[StoredRow]:
        return self._select(f"{self.name} LIMIT {10**9 if end is None else end - first} OFFSET {first}")

    def _rows_of_both(self, after: int) -> list[StoredRow] | None:
        found: list[StoredRow] = []
        before = self._comment()
        if not before:  # it goes by another name just now
            return None
        begun = self._beginnings(before)
        if any(each.first < parse_comment(before)[1] for each in begun if not each.is_whole):
            self._copy()  # which a reader is told to do: there may be rows in the gap that the table had before
            return None
        parts = (
            pieces(self._stack.client, "mexc_data", self.name, before)
            if begun
            else [Piece(in_history=False, first=0, end=None)]
        )
        for in_history, first, end in parts:
            if in_history:
                source = f"{self.name}_history WHERE n >= {first} AND n < {end}"
                ((count,),) = self._stack.query(f"SELECT count() FROM mexc_data.{source}")
                skipped = min(after, count)
                found += self._select(f"{source} ORDER BY n LIMIT {count} OFFSET {skipped}")
            else:
                skipped = after if end is None else min(after, end - first)
                found += (
                    self._rows_of_end(first + skipped) if end is None else self._rows_of_table(first + skipped, end)
                )
            after -= skipped
        return found if self._comment() == before else None  # else it was turned over meanwhile

    def _select(self, source: str) -> list[StoredRow]:
        each = f"SELECT toUnixTimestamp64Milli(ts) AS ts, toString(mt) AS mt, m FROM mexc_data.{source}"
        ((rows,),) = self._stack.query(f"SELECT groupArray((ts, mt, m)) FROM ({each}) SETTINGS max_threads = 1")
        return list(rows)

    def _comment(self) -> str:
        query = f"SELECT comment FROM system.tables WHERE database = 'mexc_data' AND name = '{self.name}'"
        return str((self._stack.query(query) or [[""]])[0][0])

    def _beginnings(self, comment: str) -> list[Beginning]:
        """Return what is known of the history of the table with this comment; where that is nothing, nobody reads it.

        So it is where a reset was not noticed yet, by which rows are in the history that it does not share.
        """
        found = comment and beginnings(self._stack.client, "mexc_data", self.name, parse_comment(comment)[0])
        return found or []

    def complete(self) -> bool:
        """Return whether nothing has to be copied into the history, where there is one; if something has, copy it."""
        if not self._has_history:
            return True
        comment = self._comment()
        begun = self._beginnings(comment)
        if not begun:  # the table is away, or its collector has not noticed yet that it is another one
            return False
        if all(each.is_whole for each in begun):
            return self._is_joined(comment)
        self._copy()
        return False

    def _copy(self) -> None:
        self._stack.run("ch_setup.py", "--history", "--yes")
        self.forget()  # it may have rows that the table forgot, and keeps them

    def _is_joined(self, comment: str) -> bool:
        """Whether the history's newest row is the one before those that are in the table alone.

        It is not where it was not noticed yet that the history has rows which table and journal forgot.
        """
        *_, of_history, of_table = pieces(self._stack.client, "mexc_data", self.name, comment)
        if not of_table.first:  # all are in the table
            return True
        newest = self._select(f"{self.name}_history WHERE n < {of_history.end} ORDER BY n DESC LIMIT 1")
        try:
            return self._rows_of_table(of_table.first - 1, of_table.first) == newest
        except ServerException as error:
            if is_missing_table(error):
                return False
            raise

    def check_history(self) -> None:
        """See that the history, where there is one, has all rows that were stored until now, in order."""
        if not self._has_history:
            return
        rows, view = list(self._present), self._view

        def is_right() -> bool:
            nonlocal rows, view
            if not self.complete():
                return False
            if view != self._how_they_go_together():  # the history may have more rows than were seen: those of before
                self.look()
                rows, view = list(self._present), self._view
            return self._select(f"{self.name}_history ORDER BY n LIMIT {len(rows)}") == rows

        try:
            eventually(is_right, f"all rows in {self.name}_history")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self._state_of_history()])) from None


def _patiently(read: Callable[[], list[StoredRow] | None]) -> list[StoredRow]:
    """Return what `read` reads of a table, once that is there: it may be being compacted."""
    found: list[list[StoredRow]] = []

    def is_read() -> bool:
        try:
            rows = read()
        except ServerException as error:
            if is_missing_table(error):
                return False
            raise
        found.extend([] if rows is None else [rows])
        return rows is not None

    eventually(is_read, "a table that is there")
    return found[0]


def _rows_in(data: IO[bytes], index: IO[bytes]) -> int:
    """Return how many rows are in these files of a table."""
    with TemporaryDirectory() as name:
        for file, content in (("data.bin", data), ("index.mrk", index)):
            (Path(name) / file).write_bytes(content.read())
        return examine(Path(name)).prefix.rows
