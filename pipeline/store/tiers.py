"""What is where, with HISTORY=1: from when to when a table has rows, and its history.

In: clients of both servers. Out: a Tiers for each symbol, for verif.py's reports. Little is read for it: a history
knows its rows, and a table that is turned over is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from config import SymbolConfig
from pipeline.human import human_size
from pipeline.store.compact import read_table
from pipeline.store.history import history_of
from pipeline.store.source import History, HistoryError
from pipeline.times import iso


@dataclass(frozen=True)
class Tier:
    """A table that has rows of a symbol."""

    name: str
    records: int
    total_bytes: int
    oldest_ms: int | None
    newest_ms: int | None
    """Times of its rows, milliseconds since the epoch; None where there are none."""


@dataclass(frozen=True)
class Tiers:
    """Both tables of a symbol; None for one that does not exist."""

    table: str
    live: Tier | None
    history: Tier | None
    trouble: str
    """A line on why the history is not read; empty where it is."""

    def as_text(self) -> list[str]:
        """Return lines for verif.py's report."""
        tiers = [each for each in (self.history, self.live) if each]
        return [*map(_describe, tiers), *([self.trouble] if self.trouble else [])]


def survey_tiers(client: Client, database: str, configs: Sequence[SymbolConfig], history: History) -> list[Tiers]:
    """Return the tiers of each symbol.

    Raises pipeline.store.source.HistoryError, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    return [_survey(client, database, config["table_name"], history) for config in configs]


def _survey(client: Client, database: str, name: str, history: History) -> Tiers:
    live = read_table(client, database, name, lambda source: _tier(client, source))
    with history.explained():
        archived = read_table(history.client, database, history_of(name), lambda source: _tier(history.client, source))
    trouble, archive = "", f"{database}.{history_of(name)}"
    try:
        if not archived:
            trouble = f"Table {archive} does not exist: run ch_setup.py"
        elif not history.source_of(client, database, name):
            trouble = f"{archive} lacks rows that {name} has, so that is read: run ch_setup.py --history"
    except HistoryError as error:
        trouble = str(error)
    return Tiers(name, live, archived, trouble)


def _tier(client: Client, source: str) -> Tier:
    """Look at a table, given by its full name."""
    database, _, name = source.partition(".")
    query = (
        "SELECT count(), toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)),"
        " (SELECT total_bytes FROM system.tables WHERE database = %(database)s AND name = %(name)s)"
        f" FROM {source}"
    )
    ((records, oldest, newest, size),) = client.execute(query, {"database": database, "name": name})
    times = (oldest, newest) if records else (None, None)
    return Tier(name, records, size or 0, *times)


def _describe(tier: Tier) -> str:
    if tier.oldest_ms is None or tier.newest_ms is None:
        return f"{tier.name}: no records"
    times = f"from {iso(tier.oldest_ms)} to {iso(tier.newest_ms)}"
    return f"{tier.name}: {tier.records} records, {human_size(tier.total_bytes)}, {times}"
