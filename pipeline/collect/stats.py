"""What a collector has done: since the last statistics block, which is made here, and since its start."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER

_RULE = "=" * 50

ErrorKind = Literal[
    "failed connect",
    "dropped connection",
    "error frame",
    "dead subscription",
    "failed INSERT",
    "failed history INSERT",
    "failed sync",
]

OTHER = "other"
"""The channel of frames that have none, or one that nobody subscribed to."""


class Stats:
    """Counts of one collector. Any thread may call any method, unless it says another thing."""

    def __init__(self, symbol: str, table_name: str, channels: Iterable[str] = (), wanted: int = 1) -> None:
        """`channels` are those to be counted by their names, others are OTHER; `wanted` connections are to be up."""
        self._symbol = symbol
        self._file = f"{table_name}/data.bin"
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self.frames: dict[str, int] = dict.fromkeys((*channels, OTHER), 0)
        """Frames since the start, by channel."""
        self.errors: Counter[ErrorKind] = Counter()
        """Errors since the start, by kind."""
        self.connections = 0
        """Connections to the exchange since the start."""
        self.connected = 0
        """How many there are now."""
        self.wanted = wanted
        """How many there are to be."""

    def frame(self, channel: str) -> None:
        """Count a frame as it came, of whatever content; one thread at a time, this has no lock of its own."""
        try:
            self.frames[channel] += 1
        except KeyError:
            self.frames[OTHER] += 1

    def connection(self, *, is_up: bool) -> None:
        """Note that a connection was made, or that it ended; one thread at a time."""
        self.connections += is_up
        self.connected += 1 if is_up else -1

    def appended(self, types: Iterable[str]) -> None:
        """Count rows that the table holds now, by their message types."""
        with self._lock:
            self._counts.update(types)

    def skipped(self) -> None:
        """Count a message of a known channel with nothing in it."""
        with self._lock:
            self._counts["skipped"] += 1

    def repeated(self, rows: int) -> None:
        """Count rows that had come already."""
        with self._lock:
            self._counts["repeated"] += rows

    def error(self, kind: ErrorKind) -> None:
        """Count an error."""
        with self._lock:
            self._counts["errors"] += 1
            self.errors[kind] += 1

    def refused(self, rows: int) -> None:
        """Count rows that the journal had no room for: they are lost."""
        with self._lock:
            self._counts["refused"] += rows

    def totals(self) -> Counter[str]:
        """Return the counts since the start: rows by type, "repeated", "refused"; "skipped" messages, "errors"."""
        with self._lock:
            return self._before + self._counts

    def block(self, seconds: float, waiting: int, up: int = 1, history: int = 0) -> str:
        """Return the block for the last `seconds`, and count anew.

        `waiting` rows wait for the table, `up` connections are there, `history` rows wait for a history in trouble.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            self._before.update(counts)
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
        if self.wanted > 1:
            lines.append(f"Connections: {up} of {self.wanted} up")
        elif counts["repeated"]:
            lines.append(f"Repeated Deals, dropped: {counts['repeated']}")
        if waiting:
            lines.append(f"Waiting in journal: {waiting}")
        if history:
            lines.append(f"Waiting for history: {history}")
        if counts["refused"]:
            lines.append(f"LOST, journal full: {counts['refused']}")
        return "\n".join([*lines, f"Rate: {total / seconds:.2f} records/sec", _RULE])
