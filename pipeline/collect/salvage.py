"""What can be read of a damaged journal, in a new one.

In: a journal of which SQLite says that it is damaged. Out: the same rows in the same order, with the same seqs, but for
those that cannot be read. Promise: the damaged file is kept as it is, and at whatever moment the process is killed, the
next start finds either that file or a whole new one in its place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pipeline.files import sync

_PAGE_SIZES = (2_048, 4_096)
_LEAF = 0x0D  # the first byte of a page with rows
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> bytes
_INSERT = "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)"


def aside(path: Path) -> Path:
    """Return where the damaged journal is kept."""
    return path.with_name(f"{path.name}.damaged")


def salvage(source: sqlite3.Connection | None, path: Path, schema: str, known: dict[str, tuple[Any, ...]]) -> int:
    """Write what can be read of the journal at `path` to a new file beside it; return how many rows that are.

    `source` is a connection to it, if there can be one; it is closed. `schema` is what a journal is made of. `known`
    are positions as stored, by name, where they are known better than the file has them. Raises sqlite3.Error and
    OSError.
    """
    positions = dict(known)
    new = _saving(path)
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(new, isolation_level=None)) as target:
        target.executescript(f"PRAGMA page_size = {_PAGE_SIZES[0]}; PRAGMA auto_vacuum = INCREMENTAL; BEGIN; {schema}")
        if source:
            with suppress(sqlite3.DatabaseError):
                for stored in source.execute("SELECT name, token, base, seq, rows, sent FROM state"):
                    positions.setdefault(stored[0], stored)
            for way in ("ASC", "DESC"):  # from either end up to the damage
                with suppress(sqlite3.DatabaseError):
                    target.executemany(_INSERT, source.execute(f"SELECT * FROM rows ORDER BY seq {way}"))
            source.close()  # which puts into the file what is only in its log yet
        for size in _PAGE_SIZES:
            target.executemany(_INSERT, _rows_of_pages(path, size))
        # What is missing is a hole like those between two runs.
        target.execute(
            "INSERT INTO runs SELECT min(seq), min(number) - 1"
            " FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS number FROM rows) GROUP BY seq - number"
        )
        # Among those before a position rows may be missing, so nobody can go back by counting; nor forward, so that
        # none is trusted to be in the table: its own rows tell.
        for name, token, _, seq, rows, _ in positions.values():
            target.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", (name, token, seq, seq, rows, seq))
        (count,) = target.execute("SELECT count(*) FROM rows").fetchone()
        target.execute("COMMIT")
    sync(new)
    return int(count)


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


def _saving(path: Path) -> Path:
    return path.with_name(f"{path.name}.saving")


# SQLite's own way to a page may lead through one that is damaged. Its file format: https://sqlite.org/fileformat.html


def _rows_of_pages(path: Path, size: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows in all pages of `size` bytes that look as if they had any, in whatever order."""
    with path.open("rb") as file:
        while page := file.read(size):
            if page[0] != _LEAF:
                continue
            for cell in range(int.from_bytes(page[3:5])):
                with suppress(IndexError, ValueError):
                    at = 8 + 2 * cell
                    yield _row(page, int.from_bytes(page[at : at + 2]))


def _row(page: bytes, at: int) -> tuple[Any, ...]:
    """Return the row of the cell at `at`. Raises IndexError and ValueError where there is none, or not all of it."""
    size, at = _varint(page, at)
    seq, at = _varint(page, at)
    if size > len(page) - 35:
        raise ValueError("the rest is on other pages")
    header, types_at = _varint(page, at)
    values_at, end = at + header, at + size
    values: list[Any] = []
    while types_at < at + header:
        kind, types_at = _varint(page, types_at)
        length = _INTEGERS.get(kind, 0) if kind < 12 else (kind - 12) // 2
        raw = page[values_at : values_at + length]
        values_at += length
        if kind >= 13 and kind % 2:
            values.append(raw.decode())
        elif kind in (8, 9) or kind in _INTEGERS:
            values.append(kind - 8 if kind in (8, 9) else int.from_bytes(raw, signed=True))
        else:
            values.append(None)
    if values_at != end or [type(value) for value in values[1:5]] != [int, str, str, int] or len(values) > 7:
        raise ValueError("no row of a journal")
    return (seq, *values[1:], *(0,) * (7 - len(values)))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 1 to 9 bytes, and where it ends."""
    value = 0
    for length in range(8):
        value = value << 7 | data[at + length] & 0x7F
        if data[at + length] < 0x80:
            return value, at + length + 1
    return value << 8 | data[at + 8], at + 9
