"""local.clickhouse on an older engine, one that answers a statement per call: chdb before version 3.

    PYTHONPATH=venv-engines/2.0.4 python3 -m tests.old_clickhouse --port N --data DIR

A test starts it by `old_clickhouse`. What is not as in a server of that version: statements run one after the other; a
result is held as a whole; of a `DROP ... SYNC`, which would never end here, the second part is done by this module.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from config import PROJECT
from local import clickhouse, native
from local.clickhouse import ENGINE_ERRORS, _identifier, _quote, _server_error
from local.native import Block
from tests.stack import Process, Stack

ENGINES = PROJECT / "venv-engines"
"""Where `make test-engines` puts them, each in a folder named by its version of chdb."""

NONE: Mapping[str, str] = {}
_SYNC = re.compile(rb"(DROP\s.*)\sSYNC\s*", re.IGNORECASE | re.DOTALL)


def old_clickhouse(stack: Stack, version: str) -> Process:
    """Start the engine of that version of chdb as the stack's ClickHouse, and wait for it."""
    command = ["-m", "tests.old_clickhouse", "--port", stack.port, "--data", stack.data]
    server = stack.start(*command, PYTHONPATH=ENGINES / version)
    server.wait_for("listening on")
    return server


class _Engine(clickhouse.Engine):
    """The engine; a call of it begins with nothing but what is on the disk."""

    def __init__(self, data: Path) -> None:
        import chdb

        self._data, self._call, self._lock = data, chdb._chdb.query, threading.Lock()
        self.schema = object()
        self._defaults: dict[str, str] = {}
        self.ask(b"CREATE DATABASE IF NOT EXISTS default", "Native")
        about = self.ask(b"SELECT version(), timezone(), hostName()", "JSONCompact")
        self.version, self.timezone, self.host = json.loads(about)["data"][0]
        self._defaults = dict(json.loads(self.ask(b"SELECT name, value FROM system.settings", "JSONCompact"))["data"])
        self.settings = frozenset(self._defaults)

    def ask(self, sql: bytes, output: str, settings: Mapping[str, str] = NONE) -> bytes:
        """Return the answer to a statement with these settings, in that format. Raises one of ENGINE_ERRORS."""
        changed = {name: value for name, value in settings.items() if value != self._defaults[name]}
        state = "".join(f"SET {name} = {_quote(value)}; " for name, value in changed.items())
        text = state + (self._touch() if b"total_rows" in sql else "") + sql.decode(errors="surrogateescape")
        with self._lock:
            (self._data / "set_statements").unlink(missing_ok=True)  # of the call before, which it would repeat
            result = self._call(text, output, path=str(self._data), udf_path="")
            if result.has_error():
                raise RuntimeError(result.error_message())
            return result.bytes() or b""

    def _touch(self) -> str:
        """Return statements that let it know how many rows StripeLog tables have; a server would remember."""
        found = self.ask(b"SELECT database, name FROM system.tables WHERE engine = 'StripeLog'", "JSONCompact")
        tables = [".".join(map(_identifier, place)) for place in json.loads(found)["data"]]
        return "".join(f"SELECT count() FROM {table}; " for table in tables)

    def forget_dropped(self) -> None:
        """Delete what dropped StripeLog tables have left: one with the same UUID may be made at once."""
        with self._lock:
            for left in (self._data / "metadata_dropped").glob("*.sql"):
                if "ENGINE = StripeLog" not in left.read_text():
                    continue
                uuid = left.name.split(".")[-2]
                shutil.rmtree(self._data / "store" / uuid[:3] / uuid, ignore_errors=True)
                left.unlink()

    def close(self) -> None:
        """Nothing is open between calls."""


class _Session(clickhouse.Session):
    """A client's state, sent with each call."""

    _engine: _Engine

    def _open(self) -> None:
        self._settings: dict[str, str] = {}
        self._rows("SELECT 1")

    def close(self) -> None:
        """Nothing is open between calls."""

    def apply(self, settings: dict[str, str]) -> None:
        """Put these settings in force, and only these, for what follows."""
        self._settings = dict(settings)

    def _ask(self, sql: bytes, output: str = "Native") -> bytes:
        use = f"USE {_identifier(self.database)}; ".encode()
        without, drops = _SYNC.subn(rb"\1", sql)
        try:
            answer = self._engine.ask(use + without, output, self._settings)
        except ENGINE_ERRORS as error:
            raise _server_error(error) from None
        if drops:
            self._engine.forget_dropped()
        return answer

    def run(self, sql: str) -> Generator[bytes, None, None]:
        """Run a statement and yield its result's blocks, in the Native format."""
        encoded = sql.encode(errors="surrogateescape")
        if use := re.fullmatch(r"\s*USE\s+`?(\w+)`?\s*", sql, re.IGNORECASE):
            self.database = use[1]
        try:
            reader = native.reader_of(self._ask(encoded))
        finally:
            self._engine.schema = object()
        while reader.pending:
            yield native.read_block(reader).data

    def insert(self, sql: str, blocks: list[Block]) -> None:
        """Store all blocks, as one, or nothing; `sql` is the INSERT up to its columns and settings."""
        with tempfile.NamedTemporaryFile(suffix=".native") as file:
            for block in blocks:
                file.write(block.data)
            file.flush()
            self._ask(f"{sql} FROM INFILE {_quote(file.name)} FORMAT Native".encode(errors="surrogateescape"))

    def _rows(self, sql: str) -> list[list[Any]]:
        rows: list[list[Any]] = json.loads(self._ask(sql.encode(errors="surrogateescape"), "JSONCompact"))["data"]
        return rows


if __name__ == "__main__":
    clickhouse.Engine = _Engine  # type: ignore[misc]
    clickhouse.Session = _Session  # type: ignore[misc]
    sys.exit(clickhouse.main())
