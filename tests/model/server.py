"""What the code of a history asks of ClickHouse, answered by SQLite in memory: its own statements, on real tables."""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline.store.history import _ORDER, _PARTITION, BEGINS, COLUMNS

_SCHEMA = f"""
ATTACH ':memory:' AS mexc_data;
ATTACH ':memory:' AS system;
CREATE TABLE system.tables (
    database, name, comment, engine, partition_key, sorting_key, create_table_query, PRIMARY KEY (name)
);
CREATE TABLE system.columns (database, "table", name, type, position);
CREATE TABLE system.mutations (database, "table");
CREATE TABLE mexc_data.btc (ts, mt, m);
CREATE TABLE mexc_data.btc_history ({", ".join(COLUMNS)});
CREATE TABLE mexc_data.{BEGINS} (name, token, history, first, rows, after, n, at INTEGER PRIMARY KEY);
"""
_STATEMENTS = (
    (r"RENAME TABLE mexc_data\.(\w+) TO mexc_data\.(\w+)", "_rename"),
    (r"CREATE TABLE mexc_data\.(\w+) AS \S+ ENGINE = StripeLog COMMENT :token", "_create"),
    (r"ALTER TABLE mexc_data\.(\w+) MODIFY COMMENT :(?:comment|token)", "_comment"),
    (r"TRUNCATE TABLE (?:IF EXISTS )?mexc_data\.(\w+)", "_truncate"),
    (r"DROP TABLE IF EXISTS mexc_data\.(\w+)", "_drop"),
)


class Server:
    """Stands in for a clickhouse_driver.Client; the symbol's table is `mexc_data.btc`."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for name in ("toUnixTimestamp64Milli", "toUnixTimestamp64Micro", "fromUnixTimestamp64Milli", "toInt64"):
            self.db.create_function(name, 1, lambda value: value, deterministic=True)
        self.db.create_function("intDiv", 2, lambda one, other: one // other, deterministic=True)
        self.db.create_function("toString", 1, str, deterministic=True)
        self.db.create_function("match", 2, lambda text, pattern: bool(re.search(pattern, text)))
        self.db.create_function("cityHash64", -1, lambda *values: zlib.crc32(repr(values).encode()))
        self.db.executescript(_SCHEMA)
        columns = [("mexc_data", "btc_history", *column, n) for n, column in enumerate(COLUMNS.items())]
        self.db.executemany("INSERT INTO system.columns VALUES (?, ?, ?, ?, ?)", columns)
        self.make("btc", "StripeLog", "token 0")
        self.make("btc_history", "MergeTree", "history 0")
        self.blocks: set[str] = set()  # insert_deduplication_tokens that the history has seen
        self.kill_at = 0
        """Before how many statements that change something it is away; 0 is never."""

    def make(self, name: str, engine: str, comment: str) -> None:
        """Note a table in the server's own list."""
        row = ("mexc_data", name, comment, engine, _PARTITION, _ORDER, "")
        self.db.execute("INSERT OR REPLACE INTO system.tables VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def execute(
        self, sql: str, params: Any = None, settings: dict[str, Any] | None = None, query_id: str = ""
    ) -> list[Any]:
        """Return a statement's rows, as the driver does; of an INSERT, `params` are the rows."""
        if isinstance(params, list):
            token = (settings or {}).get("insert_deduplication_token", "")
            if token not in self.blocks or not token:
                marks = ", ".join("?" * len(params[0]))
                self.db.executemany(f"{sql} ({marks})", params)
            self.blocks |= {token} - {""}
            return []
        text = re.sub(r"%\((\w+)\)s", r":\1", sql).replace(" table = ", ' "table" = ')
        text = re.sub(r"(max\(\w+\))", r"ifnull(\1, 0)", text)  # which it is in ClickHouse where there are no rows
        for pattern, name in _STATEMENTS:
            if found := re.fullmatch(pattern, text):
                self._count_down()
                getattr(self, name)(*found.groups(), **(params or {}))
                return []
        if text.startswith("INSERT"):
            self._count_down()
        return self.db.execute(text, params or {}).fetchall()

    def execute_iter(self, sql: str) -> Iterator[Any]:
        """Yield a statement's rows."""
        return iter(self.execute(sql))

    def disconnect(self) -> None:
        """There is no connection."""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """There is no connection."""

    def _count_down(self) -> None:
        if self.kill_at:
            self.kill_at -= 1
            if not self.kill_at:
                raise KilledError

    # What SQLite has another statement for

    def _rename(self, old: str, new: str) -> None:
        self.db.execute(f"ALTER TABLE mexc_data.{old} RENAME TO {new}")
        self.db.execute("UPDATE system.tables SET name = ? WHERE name = ?", (new, old))

    def _create(self, name: str, token: str) -> None:
        self.db.execute(f"CREATE TABLE mexc_data.{name} (ts, mt, m)")
        self.make(name, "StripeLog", token)

    def _comment(self, name: str, **comment: str) -> None:
        self.db.execute("UPDATE system.tables SET comment = ? WHERE name = ?", (*comment.values(), name))

    def _truncate(self, name: str) -> None:
        self.db.execute(f"DELETE FROM mexc_data.{name}")

    def _drop(self, name: str) -> None:
        self.db.execute(f"DROP TABLE IF EXISTS mexc_data.{name}")
        self.db.execute("DELETE FROM system.tables WHERE name = ?", (name,))


class KilledError(Exception):
    """The process that sent the statement was killed just before it."""
