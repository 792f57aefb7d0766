"""What a collector has done since the last statistics block, and the block itself."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER

_RULE = "=" * 50


class Stats:
    """Counts of one collector. Any thread may call any method."""

    def __init__(self, symbol: str, table_name: str) -> None:
        self._symbol = symbol
        self._file = f"{table_name}/data.bin"
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def appended(self, types: Iterable[str]) -> None:
        """Count rows that the table holds now, by their message types."""
        with self._lock:
            self._counts.update(types)

    def skipped(self) -> None:
        """Count a message of a known channel with nothing in it."""
        with self._lock:
            self._counts["skipped"] += 1

    def error(self) -> None:
        """Count an error of any kind."""
        with self._lock:
            self._counts["errors"] += 1

    def refused(self, rows: int) -> None:
        """Count rows that the journal had no room for: they are lost."""
        with self._lock:
            self._counts["refused"] += rows

    def block(self, seconds: float, waiting: int) -> str:
        """Return the block for the last `seconds`, and count anew; `waiting` rows are in the journal."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        total = sum(counts[mt] for mt in (TICKER, DEAL, DEPTH, DEADLETTER))
        lines = [
            _RULE,
            f"{self._symbol} STATISTICS (Last {seconds:.0f}s)",
            _RULE,
            f"Total Records Appended: {total}",
            f"Ticker Messages: {counts[TICKER]} → {self._file}",
            f"Deal Messages: {counts[DEAL]} → {self._file}",
            f"Depth Messages: {counts[DEPTH]} → {self._file}",
        ]
        if counts[DEADLETTER]:
            lines.append(f"Deadletter Messages: {counts[DEADLETTER]} → {self._file}")
        lines += [f"Skipped Messages: {counts['skipped']}", f"Errors: {counts['errors']}"]
        if waiting:
            lines.append(f"Waiting in journal: {waiting}")
        if counts["refused"]:
            lines.append(f"LOST, journal full: {counts['refused']}")
        return "\n".join([*lines, f"Rate: {total / seconds:.2f} records/sec", _RULE])
