"""How many rows a table and its history have together, each counted once.

In: clients of both servers. Out: rows by message type: all of the history, and those of the table that it has not got.
So the number does not fall when the table is turned over, which empties it of what its history holds; it falls only
where rows are gone from both.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from clickhouse_driver import Client

from pipeline.messages import TYPE_NAMES
from pipeline.store.compact import read_table
from pipeline.store.history import first_number, history_of, what_is_wrong
from pipeline.store.schema import comment_of, parse_comment
from pipeline.store.source import History


class Counted(NamedTuple):
    """Rows of a table and its history."""

    by_type: dict[str, int]
    """By message type (t, d, dp, dl), each counted once."""
    beyond: int
    """How many of them the table has not got."""


def count_rows(client: Client, database: str, name: str, history: History | None, where: str = "1") -> Counted:
    """Return the rows of the table `name` and its history, if any.

    `client` is of the server that has the table; `where`, a condition of SQL, says which rows. A history that cannot
    be used counts for nothing. Raises pipeline.store.source.HistoryError, and one of
    pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    comment, live = read_table(client, database, name, partial(_count_live, client, where)) or ("", {})
    if not history:
        return Counted(live, 0)
    with history.explained():  # after the table: what comes in between is in the history, or not counted
        if what_is_wrong(history.client, database, name):
            return Counted(live, 0)
        source = f"{database}.{history_of(name)}"
        first = first_number(history.client, database, name, *parse_comment(comment))
        archived = _count(history.client, source, where)
        in_both = {} if first is None else _count(history.client, source, f"n >= {first} AND ({where})")
    types = [mt for mt in TYPE_NAMES if mt in live or mt in archived]
    both = {mt: archived.get(mt, 0) + max(0, live.get(mt, 0) - in_both.get(mt, 0)) for mt in types}
    return Counted(both, sum(both.values()) - sum(live.values()))


def _count_live(client: Client, where: str, source: str) -> tuple[str, dict[str, int]]:
    """Return a table's comment, which says where its rows begin, and its rows by type, both of the same moment."""
    while True:
        comment = comment_of(client, *source.split("."))
        found = _count(client, source, where)
        if comment_of(client, *source.split(".")) == comment:
            return comment, found


def _count(client: Client, source: str, where: str) -> dict[str, int]:
    return dict(client.execute(f"SELECT mt, count() FROM {source} WHERE {where} GROUP BY mt ORDER BY mt"))
