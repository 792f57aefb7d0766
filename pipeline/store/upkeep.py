"""Compacts tables for collectors that may not: in docker-compose.yml, their user of ClickHouse can only add rows.

In: the tables of all symbols, and COMPACT_BLOCKS. Out: each is compacted (pipeline.store.compact), one after the other,
when it has more small blocks than that, and brought back where a compaction of it was cut short. Promise: as where a
collector does it itself, at most a twentieth of the time goes to a table, and one that cannot be compacted stays as it
was and is put off.

    python3 -m pipeline.store.upkeep        until SIGTERM or Ctrl-C; exit code 2 for a setting that cannot be used
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable

from config import ConfigError, Settings, all_symbols, load_settings
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.compact import BeingCompacted, CompactionError, Progress, blocks_allowed, count_small_blocks, resume
from pipeline.store.turnover import tidy

_ROUND = 60.0  # seconds from one look at the tables to the next
_SHARE = 20  # one part of the time in so many may go to the compaction of a table
_RETRY = 600.0  # seconds from a compaction that failed to the next try


class Upkeep:
    """The care of one table."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._full_name = f"{settings.clickhouse_database}.{name}"
        self._rows, self._small = (
            0,
            blocks_allowed(settings) + 1,
        )  # when they were last counted; so they will be, at first
        self._not_before = 0.0  # on the monotonic clock

    def look(self) -> None:
        """Do what there is to be done for the table; prints what that was, or why it was not done."""
        started = time.monotonic()
        try:
            _show(resume(self._settings, self._name))
            if self._is_due(started):
                _show(tidy(self._settings, self._name))
                self._small = 0
                self._not_before = time.monotonic() + _SHARE * (time.monotonic() - started)
        except BeingCompacted:
            pass  # by `ch_setup.py --compact`
        except (CompactionError, *CLICKHOUSE_ERRORS) as error:
            reason = error if isinstance(error, CompactionError) else explain(error, self._settings)
            print(f"{self._full_name} stays as it is for now: {reason}", flush=True)
            self._not_before = time.monotonic() + max(_RETRY, _SHARE * (time.monotonic() - started))

    def _is_due(self, now: float) -> bool:
        """Whether to compact. To count blocks, all rows are read: only where as many have come as it takes."""
        limit = blocks_allowed(self._settings)
        if not limit or now < self._not_before:
            return False
        query = "SELECT total_rows FROM system.tables WHERE database = %(database)s AND name = %(name)s"
        with connect(self._settings) as client:
            found = client.execute(query, {"database": self._settings.clickhouse_database, "name": self._name})
        if not found:  # ch_setup.py has not run yet
            return False
        rows = found[0][0] or 0  # None: not touched since the server started
        self._rows = min(self._rows, rows)  # it was turned over, or old rows were dropped
        if self._small + rows - self._rows > limit:
            self._small = count_small_blocks(self._settings, self._name)
            self._rows = rows
        return self._small > limit


def _show(steps: Iterable[Progress]) -> None:
    for step in steps:
        if step.done in (0, 1):
            print(step.text, flush=True)


def main() -> int:
    """Run until told to stop; return the exit code."""
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tables = [Upkeep(settings, config["table_name"]) for config in all_symbols(settings)]
    try:
        while True:
            for table in tables:
                table.look()
            time.sleep(_ROUND)
    except KeyboardInterrupt:  # a compaction has brought its table back, or the next start does
        return 0


if __name__ == "__main__":
    sys.exit(main())
