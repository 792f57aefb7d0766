"""What can be read of a damaged journal, in a new one.

In: a journal of which SQLite says that it is damaged. Out: the same rows in the same order, with the same seqs, but for
those that cannot be read. Promise: the damaged file is kept as it is, and at whatever moment the process is killed, the
next start finds either that file or a whole new one in its place.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pipeline.files import sync

_UNREADABLE = 100_000  # seqs that are tried one by one, from either side of what cannot be read


def _saving(path: Path) -> Path:
    return path.with_name(f"{path.name}.saving")


def aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def salvage(source: sqlite3.Connection | None, path: Path, schema: str, known: dict[str, tuple[Any, ...]]) -> int:
    """Write what can be read of the journal at `path` to a new file beside it; return how many rows that are.

    `source` is a connection to it, if there can be one, and `schema` what a journal is made of. `known` are positions
    as stored, by name, where they are known better than the file has them. Raises sqlite3.Error and OSError.
    """
    positions = dict(known)
    if source:
        with suppress(sqlite3.DatabaseError):
            for stored in source.execute("SELECT name, token, base, seq, rows, sent FROM state"):
                positions.setdefault(stored[0], stored)
    new = _saving(path)
    new.unlink(missing_ok=True)
    count, last = 0, None
    with closing(sqlite3.connect(new, isolation_level=None)) as target:
        target.executescript(f"PRAGMA auto_vacuum = INCREMENTAL; BEGIN; {schema}")
        for row in _readable(source, max((stored[3] for stored in positions.values()), default=0)) if source else ():
            if last is None or row[0] != last + 1:  # what is missing is a hole like those between runs
                target.execute("INSERT INTO runs VALUES (?, ?)", (row[0], count))
            target.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            count, last = count + 1, row[0]
        # Among those before a position rows may be missing, so nobody can go back by counting; nor forward, so that
        # none is trusted to be in the table: its own rows tell.
        for name, token, _, seq, rows, _ in positions.values():
            target.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", (name, token, seq, seq, rows, seq))
        target.execute("COMMIT")
    sync(new)
    return count


def finish_salvage(path: Path) -> None:
    """Put a damaged journal aside and what was saved of it in its place, if a salvage has come so far."""
    new, old = _saving(path), aside(path)
    if not new.exists():
        return
    try:
        with closing(sqlite3.connect(new)) as db:
            db.execute("SELECT count(*) FROM state")
    except sqlite3.DatabaseError:  # it has not: all is in the damaged file yet
        return
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{old}{suffix}")
    new.replace(path)
    sync(path.parent)


def _readable(db: sqlite3.Connection, near: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows that can be read, oldest first, whatever lies between; `near` is a seq that there could be."""
    query = "SELECT seq, ts, mt, m, id, received, event FROM rows WHERE seq"
    last = above = None
    with suppress(sqlite3.DatabaseError):
        for row in db.execute(f"{query} >= 0 ORDER BY seq"):
            yield row
            last = row[0]
        return
    with suppress(sqlite3.DatabaseError):
        for (seq,) in db.execute("SELECT seq FROM rows ORDER BY seq DESC"):
            if last is not None and seq <= last:
                break
            above = seq
    low = last + 1 if last is not None else (above if above is not None else near) - _UNREADABLE
    high = above if above is not None else low + 2 * _UNREADABLE
    middle = min(high, low + _UNREADABLE)
    for seq in itertools.chain(range(low, middle), range(max(middle, high - _UNREADABLE), high)):
        with suppress(sqlite3.DatabaseError):
            yield from db.execute(f"{query} = ?", (seq,)).fetchall()
    if above is not None:
        with suppress(sqlite3.DatabaseError):
            yield from db.execute(f"{query} >= ? ORDER BY seq", (above,))
