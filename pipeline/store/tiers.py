"""What is where, with HISTORY=1: from when to when a table has rows, and its history.

In: clients of both servers. Out: a Tiers for each symbol, for verif.py's reports. Little is read for it: a history
knows its rows, and a table that is turned over is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clickhouse_driver import Client

from config import SymbolConfig
from pipeline.human import human_size
from pipeline.store.both import count_rows
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
    by_type: dict[str, int] = field(default_factory=dict)
    """Records of both by message type, each counted once: t, d, dp, dl."""
    behind: str = ""
    """A line on rows that the history, which is read, has not got for too long; empty where there are none."""
    beyond: int = 0
    """How many of the records only the history has."""

    @property
    def records(self) -> int:
        """Records of both, each counted once."""
        return sum(self.by_type.values())

    @property
    def amiss(self) -> str:
        """A line on what is wrong with the history; empty where nothing is."""
        return self.trouble or self.behind

    def as_text(self) -> list[str]:
        """Return lines for verif.py's report."""
        tiers = [each for each in (self.history, self.live) if each]
        return [*map(_describe, tiers), *([self.amiss] if self.amiss else [])]


def survey_tiers(client: Client, database: str, configs: Sequence[SymbolConfig], history: History) -> list[Tiers]:
    """Return the tiers of each symbol.

    Raises pipeline.store.source.HistoryError, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    return [_survey(client, database, config["table_name"], history) for config in configs]


def _survey(client: Client, database: str, name: str, history: History) -> Tiers:
    live = read_table(client, database, name, lambda source: _tier(client, source))
    counted = count_rows(client, database, name, history)
    with history.explained():
        archived = read_table(history.client, database, history_of(name), lambda source: _tier(history.client, source))
    trouble, behind, archive = "", "", f"{database}.{history_of(name)}"
    try:
        if not archived:
            trouble = f"Table {archive} does not exist: run ch_setup.py"
        elif history.source_of(client, database, name):
            behind = history.behind(client, database, name)
        elif history.has_begun(client, database, name):
            trouble = f"{archive} lacks rows that {name} has, so that is read: run ch_setup.py --history"
        elif archived.records or (live and live.records):
            trouble = (
                f"{archive} has not begun, so {name} is read: let its collector run with HISTORY=1, then run"
                " ch_setup.py --history"
            )
    except HistoryError as error:
        trouble = str(error)
    return Tiers(name, live, archived, trouble, counted.by_type, behind, counted.beyond)


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
