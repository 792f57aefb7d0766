"""Whether a collector works: what it notes about itself each second, and the check that reads it.

    python3 -m pipeline.health [TABLE ...]      of all collectors that have left a status here, unless some are named

Out: one line per collector; exit code 0 if all of them work, 1 if one does not, 2 if a setting cannot be used. The
check reads a small file beside the journal and asks nobody. A status that cannot be written (a full disk) never stops
a collector; what is left is too old then, and that is noticed.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from config import PROJECT, ConfigError, Settings, load_settings
from pipeline.journal import Journal

_SUFFIX = ".status.json"
_MAX_AGE = 30.0  # seconds; it is written each second, but a disk may be slow


@dataclass(frozen=True)
class Status:
    """A collector at the time `written`, seconds since the epoch. The ages are in seconds, as of then."""

    written: float
    frame_age: float
    """Since any frame came from the exchange, a pong included, or since the start where none did."""
    market_age: float
    """Since market data came, or since the start where none did."""
    stuck_for: float
    """For how long rows have waited without ClickHouse acknowledging any; 0 when none wait."""
    waiting: int
    """Rows in the journal that the table is not known to hold."""
    journal_full: bool
    """Whether new rows are lost, because the journal takes no more."""
    being_compacted: bool = False
    """Whether rows wait because the table is being compacted."""


class Heartbeat:
    """Keeps a collector's status file up to date."""

    def __init__(self, settings: Settings, table_name: str, journal: Journal) -> None:
        self._path = PROJECT / settings.journal_dir / f"{table_name}{_SUFFIX}"
        self._new = self._path.with_suffix(".new")
        self._journal = journal
        self._last_frame = self._last_market = self._last_progress = time.monotonic()
        self._stored = journal.stored
        self.status = Status(time.time(), 0.0, 0.0, 0.0, journal.waiting, journal_full=False)
        """As of the last beat; for any thread."""

    def frame(self, *, is_market_data: bool) -> None:
        """Note that a frame came; in the feed's thread."""
        self._last_frame = time.monotonic()
        if is_market_data:
            self._last_market = self._last_frame

    def beat(self, *, journal_full: bool, being_compacted: bool = False) -> None:
        """Replace the status file, where that is possible; in the main thread."""
        now = time.monotonic()
        waiting, stored = self._journal.waiting, self._journal.stored
        if not waiting or stored != self._stored:
            self._last_progress, self._stored = now, stored
        self.status = Status(
            written=time.time(),
            frame_age=now - self._last_frame,
            market_age=now - self._last_market,
            stuck_for=now - self._last_progress,
            waiting=waiting,
            journal_full=journal_full,
            being_compacted=being_compacted,
        )
        with suppress(OSError):
            self._new.write_text(json.dumps(asdict(self.status)))
            self._new.replace(self._path)


def check(path: Path, settings: Settings, now: float) -> tuple[bool, str]:
    """Return whether the collector with the status at `path` works at the time `now`, and a line that says it."""
    try:
        status = Status(**json.loads(path.read_text()))
    except FileNotFoundError:
        return False, "the collector has not reported yet: it waits for the VPN, or is not running"
    except (OSError, ValueError, TypeError) as error:
        return False, f"{path} cannot be read: {error}"
    age = now - status.written
    if age > _MAX_AGE:
        return False, f"the collector has not reported for {age:.0f} s: it is stuck or not running, or the disk is full"
    if status.journal_full:
        return False, "the journal takes no more, new rows are LOST: free some disk, or see JOURNAL_MAX_MB"
    # A connection that is silent for this long is given up by the feed, and a new one brings frames at once.
    if status.frame_age > max(settings.stale_timeout, 3 * settings.ping_interval):
        return False, f"nothing came from the exchange for {status.frame_age:.0f} s"
    if status.being_compacted:
        return True, f"its table is being compacted, {status.waiting} rows wait"
    if status.stuck_for > settings.stale_timeout + settings.flush_interval:
        waiting = f"{status.waiting} rows wait, safe in the journal"
        return False, f"ClickHouse has taken no rows for {status.stuck_for:.0f} s; {waiting}"
    if status.market_age > settings.stale_timeout:
        return True, f"connected, but the market is empty: no data for {status.market_age:.0f} s"
    return True, f"working, {status.waiting} rows wait"


def main(names: list[str]) -> int:
    """Check the collectors of the tables `names`, or all; return the exit code."""
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error)
        return 2
    directory = PROJECT / settings.journal_dir
    names = names or sorted(path.name.removesuffix(_SUFFIX) for path in directory.glob(f"*{_SUFFIX}"))
    if not names:
        print(f"no collector has reported in {directory} yet: it waits for the VPN, or is not running")
        return 1
    all_work = True
    for name in names:
        works, line = check(directory / f"{name}{_SUFFIX}", settings, time.time())
        print(f"{name}: {line}")
        all_work = all_work and works
    return 0 if all_work else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
