"""A journal and the tables that are filled from it, as a collector has them; for tests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from config import load_settings
from pipeline.collect.historylog import HistoryLog
from pipeline.collect.inserts import APPEND_ERRORS
from pipeline.collect.journal import HISTORY, Journal, Position
from pipeline.collect.stripelog import StripeLog
from pipeline.collect.table import Table
from pipeline.store.client import connect
from pipeline.store.schema import parse_comment
from tests.pieces import pieces
from tests.stack import Stack, StoredRow

START = 1_788_335_242_000


def numbered(first: int, last: int) -> list[StoredRow]:
    return [(START + n, "d", f"{n}|1|1") for n in range(first, last + 1)]


class JournalKeeper:
    """What may become of a journal, whatever tables are filled from it."""

    journal: Journal
    path: Path
    tries = 100
    """How many may fail."""

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def reopen(self) -> None:
        """As after a clean end."""
        self.close()
        self.open()

    def copy(self, name: str) -> None:
        """Keep the journal's files as they are; with a sync, that is what a power loss would leave of them."""
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", self.path.with_name(f"{name}{suffix}"))

    def put_back(self, name: str) -> None:
        """Go on with such a copy."""
        self.close()
        for suffix in ("", "-wal"):
            shutil.copy(self.path.with_name(f"{name}{suffix}"), f"{self.path}{suffix}")
        self.open()

    def kill(self) -> None:
        """As after the process was killed, with what it has written there, but no more."""
        self.copy("killed")
        self.put_back("killed")

    def take(self, rows: list[StoredRow], received: int = 0) -> None:
        self.journal.append([(*row, 0, 0) for row in rows], received)

    def store_in(self, table: Table, position: Position) -> int:
        """Send until the table has all; return how many tries failed."""
        failures = 0
        while position.waiting or not table.in_step:
            try:
                table.append_pending()
            except APPEND_ERRORS:
                failures += 1
                assert failures < self.tries
        return failures


class Writer(JournalKeeper):
    """A journal and both tables as a collector has them, on fresh ones."""

    def __init__(self, stack: Stack, directory: Path, port: int) -> None:
        self.stack, self.path = stack, directory / "btc.db"
        self.said: list[str] = []
        self.settings = replace(load_settings(stack.env, dotenv=None), history_port=port)
        stack.setup("--reset", "--yes")
        self.client = connect(self.settings)
        self.open()

    def open(self, max_bytes: int = 1 << 30) -> None:
        self.journal = Journal(self.path, max_bytes, self.said.append)
        self.live = self.journal.position("btc")
        self.position = self.journal.position("btc_history", HISTORY, beside=self.live)
        self.stripelog = StripeLog(self.settings, "btc", self.said.append)
        self.log = HistoryLog(self.settings, "btc", self.position, self.live, self.stripelog, self.said.append)
        self.table = Table(self.live, self.stripelog, self.said.append, 10_000)
        self.history = Table(self.position, self.log, self.said.append, 10_000)

    def close(self) -> None:
        self.stripelog.close()
        self.log.close()
        self.journal.close()

    def store(self) -> None:
        """Send until both have all."""
        self.store_in(self.table, self.live)
        self.store_in(self.history, self.position)

    def rows(self) -> list[StoredRow]:
        """Return the history's rows, in their order."""
        query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history ORDER BY n"
        return [tuple(row) for row in self.stack.query(query)]

    def comment(self) -> str:
        ((comment,),) = self.stack.query("SELECT comment FROM system.tables WHERE name = 'btc'")
        return str(comment)

    def token(self) -> str:
        return parse_comment(self.comment())[0]

    def read(self) -> list[StoredRow]:
        """Return all rows as a reader has them, from both tables."""
        query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history"
        found: list[StoredRow] = []
        for in_history, first, end in pieces(self.client, "mexc_data", "btc", self.comment()):
            if in_history:
                rows = self.stack.query(f"{query} WHERE n >= {first} AND n < {end} ORDER BY n")
                found += [tuple(row) for row in rows]
            else:
                found += self.stack.rows()[first:end]
        return found
