"""A small world for the real journal and the real `Table`: a table in memory, and all that can go wrong around them.

Rows are numbered as they come. The world keeps its own book of what has to be in the table, and compares.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.collect.journal import Journal
from pipeline.collect.table import Table

FOREIGN = -1
"""Stands for a row of somebody else."""


class Unreachable(Exception):
    """The table cannot be reached."""


class MemoryTable:
    """A table that does as it is told: `fate` is what becomes of the next INSERT."""

    name = "mexc_data.btc"

    def __init__(self) -> None:
        self.content: list[int] = []
        self.gone: list[int] = []  # rows that were turned over: its history has them, and its comment counts them
        self.token = 0
        self.is_reachable = True
        self.fate = "stored"

    @property
    def before(self) -> int:
        return len(self.gone)

    def at_once(self, rows: list[Any]) -> list[Any]:
        return rows

    def state(self) -> tuple[int, str]:
        if not self.is_reachable:
            raise Unreachable
        return len(self.gone) + len(self.content), f"token {self.token}"

    def insert(self, rows: list[Any]) -> None:
        if not self.is_reachable:
            raise Unreachable
        fate, self.fate = self.fate, "stored"
        if fate != "refused":
            self.content += [int(m) for _, _, m in rows]
        if fate != "stored":
            raise Unreachable

    def rows(self, after: int) -> Iterator[Any]:
        return (_row(number)[:3] for number in self.content[max(0, after - len(self.gone)) :])


def _row(number: int) -> tuple[int, str, str, int, int]:
    return (0, "d", str(number), 0, 0)


class World:
    """One collector's journal and table. Each public method of ACTIONS is something that happens."""

    ACTIONS: tuple[str, ...] = (
        "append",
        "send",
        "send_and_lose_the_answer",
        "send_and_be_refused",
        "sync",
        "kill",
        "lose_power",
        "stop",
        "copy",
        "put_the_copy_back",
        "table_loses_a_row",
        "reset",
        "reset_unnoticed",
        "somebody_writes",
    )

    def __init__(self, directory: Path) -> None:
        self._path = directory / "btc.db"
        self._synced = directory / "synced.db"
        self._copy = directory / "copy.db"
        self._clock = 10**18
        self._patch = pytest.MonkeyPatch()
        self._fsync = os.fsync
        self._patch.setattr(os, "fsync", self._noted_fsync)
        self.table = self.new_table()
        self.said: list[str] = []
        self._newest = 0
        self._excused: set[int] = set()  # rows that need not be in the table
        self._former: set[int] = set()  # rows of tables that were reset
        self._strays: set[int] = set()  # those of them that may come again, and late
        self._has_copy = False
        self._open()

    def new_table(self) -> MemoryTable:
        return MemoryTable()

    def close(self) -> None:
        self._journal.close()
        self._patch.undo()

    # What happens

    def append(self) -> None:
        """A row is read."""
        self._newest += 1
        self._journal.append([_row(self._newest)])

    def send(self) -> None:
        """What waits is sent, one row an INSERT, and all goes well."""
        self._send("stored")

    def send_and_lose_the_answer(self) -> None:
        """The table stores a row, and nobody hears of it."""
        self._send("unheard")

    def send_and_be_refused(self) -> None:
        """The table does not store a row, and nobody knows."""
        self._send("refused")

    def sync(self) -> None:
        """A second has passed."""
        self._journal.sync()

    def kill(self) -> None:
        """The process ends at once, and is started again."""
        self._keep(self._path, at := self._path.with_name("now.db"))
        self._reopen(at)

    def lose_power(self) -> None:
        """The journal's files are as they were at the last fsync; the process is started again."""
        if self._position.token != f"token {self.table.token}":  # of a reset that was not noticed yet
            self._strays |= self._former
        self._reopen(self._synced)

    def stop(self) -> None:
        """The process ends as it should, and is started again."""
        self._journal.close()
        self._open()

    def copy(self) -> None:
        """Somebody copies the journal; not while a reset or a loss is not noticed yet, which counts as before it."""
        token, rows = self._position.token, self._position.rows
        if token is None or (
            token == f"token {self.table.token}" and rows <= len(self.table.gone) + len(self.table.content)
        ):
            self._keep(self._path, self._copy)
            self._has_copy = True

    def put_the_copy_back(self) -> None:
        """And puts that copy in its place."""
        if self._has_copy:
            self._reopen(self._copy)

    def table_loses_a_row(self) -> None:
        """The power fails on ClickHouse's machine. What it forgets, the journal has, unless it forgot it, too."""
        if self.table.content:
            lost = self.table.content.pop()
            if lost not in self._can_come_again():
                self._excused.add(lost)
                self._has_copy = False  # it counts that row
            elif not self.table.content and self._position.token != f"token {self.table.token}":
                self._excused |= self._not_waiting()  # nothing is left that tells what it had
        self._table.doubt()

    def reset(self) -> None:
        """ch_setup.py --reset. What the old table had, or was known to have, need not be in the new one."""
        self.reset_unnoticed()
        self._table.doubt()

    def reset_unnoticed(self) -> None:
        """The same in between two INSERTs, so that the next one goes to the new table as if it were the old one."""
        self._former |= {*self.table.gone, *self.table.content} | self._not_waiting()
        self._excused |= self._former
        self.table.content, self.table.gone = [], []
        self.table.token += 1
        self._has_copy = False  # from before a reset, it would bring back what the old table had

    def somebody_writes(self) -> None:
        """A row of somebody else, while no INSERT is in doubt; and the collector asks before it ends for any reason."""
        if self._position.is_open and not self._position.in_doubt:
            self.table.content.append(FOREIGN)
            self._has_copy = False  # from before that, it could not tell those rows from its own
            self._table.doubt()
            self._settle()

    # What has to be true

    def check(self) -> None:
        """Send all that waits, and compare."""
        self._send("stored")
        self._compare(self.table.gone + self.table.content)

    def key(self) -> object:
        """Return what makes this state of the world another one than others."""
        position = self._position
        return (
            tuple(self.table.content),
            tuple(self.table.gone),
            self.table.token,
            self._newest,
            tuple(sorted(self._excused)),
            tuple(sorted(self._former)),
            tuple(sorted(self._strays)),
            position.token,
            position.rows,
            self._number_at(position._number),
            self._number_at(position._base),
            self._number_at(position._sent),
            self._number_at(position._known_to),
            position.is_open,
            self._table._in_flight,
            self._table._is_new,
            self._kept(self._path),
            self._kept(self._synced),
            self._kept(self._copy) if self._has_copy else None,
        )

    # How it is done

    def _compare(self, found: list[int]) -> None:
        """See whether the rows found are those that have to be there."""
        ours = [number for number in found if number != FOREIGN]
        assert len(ours) == len(set(ours)), f"doubled: {found}"
        in_order = [number for number in ours if number not in self._strays]
        assert in_order == sorted(in_order), f"out of order: {found}"
        lost = set(range(1, self._newest + 1)) - set(ours) - self._excused
        assert not lost, f"lost: {lost} of {found}, excused {self._excused}"

    def _open(self) -> None:
        self._clock += 10**15
        self._journal = Journal(self._path, 1 << 30, self.said.append, lambda: self._clock)
        self._position = self._journal.position("btc")
        self._table = Table(self._position, self.table, self.said.append, max_rows=1)

    def _reopen(self, files: Path) -> None:
        self._journal.close()
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{files}{suffix}", f"{self._path}{suffix}")
        self._open()
        kept = {int(m) for (m,) in self._journal._db.execute("SELECT m FROM rows")}
        forgotten = set(range(1, self._newest + 1)) - kept - {*self.table.gone, *self.table.content} - self._excused
        if forgotten:  # a copy from before could bring them back, late
            self._has_copy = False
        self._excused |= set(range(1, self._newest + 1)) - kept - set(self.table.gone)

    def _noted_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        if Path(f"{self._path}-wal").exists():
            self._keep(self._path, self._synced)

    def _keep(self, path: Path, at: Path) -> None:
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{at}{suffix}")

    def _send(self, fate: str) -> None:
        """Send until nothing waits; the first INSERT has the given fate."""
        self.table.fate = fate
        while self._position.waiting or not self._table.in_step:
            try:
                self._table.append_pending()
            except Unreachable:
                return
        self.table.fate = "stored"

    def _settle(self) -> None:
        """Ask the table, as any next INSERT would."""
        self.table.fate = "refused"
        with suppress(Unreachable):
            self._table.append_pending()
        self.table.fate = "stored"

    def _not_waiting(self) -> set[int]:
        """Return the rows that the table is known to hold."""
        return set(range(1, self._newest + 1)) - {int(m) for _, _, m in self._position.pending(10**6)}

    def _can_come_again(self) -> set[int]:
        """Return the rows that the journal has for a table that lost them."""
        position = self._position
        base = self._journal._seq(position._base)
        return {int(m) for (m,) in self._journal._db.execute("SELECT m FROM rows WHERE seq > ?", (base,))}

    def _number_at(self, number: int) -> object:
        seq = self._journal._seq(number)
        found = self._journal._db.execute("SELECT m FROM rows WHERE seq = ?", (seq,)).fetchone()
        return found or number

    def _kept(self, path: Path) -> object:
        """Return what a journal's files say, without seqs, which are times."""
        if path == self._path:
            db, close = self._journal._db, False
        else:
            at = path.with_name("look.db")
            self._keep(path, at)
            db, close = sqlite3.connect(at), True
        rows = db.execute("SELECT seq, m FROM rows ORDER BY seq").fetchall()
        numbers = dict(rows)
        states = db.execute("SELECT token, base, seq, rows, sent FROM state").fetchall()
        if close:
            db.close()
        named = [
            (token, numbers.get(base), numbers.get(seq), count, sent is None, numbers.get(sent))
            for token, base, seq, count, sent in states
        ]
        return tuple(m for _, m in rows), tuple(named)
