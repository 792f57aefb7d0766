"""How a table and its history go together, by what was noted of them; who reads takes one or the other."""

from __future__ import annotations

from typing import NamedTuple

from clickhouse_driver import Client

from pipeline.store.history import beginnings, history_of
from pipeline.store.schema import parse_comment


class Piece(NamedTuple):
    """A part of what a table and its history have together: rows from `first` on, up to but not with `end`."""

    in_history: bool
    """Whether they are rows of the history, told by their n; else rows of the table, counted from 0."""
    first: int
    end: int | None
    """None is the end, of the table."""


def pieces(client: Client, database: str, name: str, comment: str) -> list[Piece]:
    """Return what to read of the table `name`, whose comment is given, and of its history, to have each row once.

    That is in their order: the pieces one after the other, rows of the history by n. Rows that come later are in none
    of them but the last; those of the table are where they were as long as its comment is the same.
    """
    token, before = parse_comment(comment)
    found = beginnings(client, database, name, token)
    first, rows = (found[-1].n, found[-1].rows) if found else (0, 0)
    ((fed, newest),) = client.execute(f"SELECT count(), max(n) FROM {database}.{history_of(name)} WHERE n >= {first}")
    parts: list[Piece] = []
    at = 0
    for each in found:
        if not each.is_whole:
            parts += [
                Piece(in_history=True, first=at, end=each.after + 1),
                Piece(in_history=False, first=max(0, each.first - before), end=max(0, each.rows - before)),
            ]
            at = each.n
    return [
        *parts,
        Piece(in_history=True, first=at, end=max(newest + 1, first)),
        Piece(in_history=False, first=max(0, rows + fed - before) if found else 0, end=None),
    ]
