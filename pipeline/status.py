"""A collector's status file: what it notes about itself each second, and what that says of it.

In: the small JSON file that pipeline.collect.health writes beside each journal. Out: whether the collector works, with
a line that says why. It is on the ground because both ends need its form: the collector that writes it, and whoever
shows it. What is too old speaks of a collector that does not run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from config import PROJECT, Settings
from pipeline.human import many, rows_that

STATUS_SUFFIX = ".status.json"
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
    connections_down: int = 0
    """How many of the connections to the exchange that are wanted are not there."""
    blocked: str = ""
    """What has to be put right before anything goes on, a line; empty where nothing has."""
    trouble: list[str] = field(default_factory=list)
    """What is wrong with subscriptions, a line each."""
    channel_ages: dict[str, float] = field(default_factory=dict)
    """Since the newest push of each channel, or since the start where none came."""
    history_waiting: int | None = None
    """Rows in the journal that the history is not known to hold; None where there is none."""
    history_stuck_for: float = 0.0
    """For how long rows have waited for it without it acknowledging any."""


def stale_after(settings: Settings) -> float:
    """Return the seconds after which a table that gets no new rows is in trouble, whoever tells it."""
    return settings.stale_timeout + settings.flush_interval


def status_path(settings: Settings, table_name: str) -> Path:
    """Return where the collector of a table leaves its status."""
    return PROJECT / settings.journal_dir / f"{table_name}{STATUS_SUFFIX}"


def check(path: Path, settings: Settings, now: float) -> tuple[bool, str]:
    """Return whether the collector with the status at `path` works at the time `now`, and a line that says it."""
    try:
        status = Status(**json.loads(path.read_text()))
    except FileNotFoundError:
        return False, "the collector has not reported yet: it waits for the VPN, or is not running"
    except (OSError, ValueError, TypeError) as error:
        return False, f"{path} cannot be read: {error}"
    age = now - status.written
    if age < -_MAX_AGE:
        return False, f"the collector last reported {-age:.0f} s in the future: it is not running, the clock went back"
    if age > _MAX_AGE:
        return False, f"the collector has not reported for {age:.0f} s: it is stuck or not running, or the disk is full"
    if status.journal_full:
        return False, "the journal takes no more, new rows are LOST: free some disk, or see JOURNAL_MAX_MB"
    if status.blocked:
        return False, f"{status.blocked}; {rows_that(status.waiting, 'wait')}"
    # A connection that is silent for this long is given up by the feed, and a new one brings frames at once.
    if status.frame_age > max(settings.stale_timeout, 3 * settings.ping_interval):
        return False, f"nothing came from the exchange for {status.frame_age:.0f} s"
    if status.trouble:
        return False, f"{'; '.join(status.trouble)}; {rows_that(status.waiting, 'wait')}"
    if status.being_compacted:
        return True, f"its table is being compacted, {rows_that(status.waiting, 'wait')}"
    if status.stuck_for > stale_after(settings):
        waiting = f"{rows_that(status.waiting, 'wait')}, safe in the journal"
        return False, f"ClickHouse has taken no rows for {status.stuck_for:.0f} s; {waiting}"
    if status.history_stuck_for > stale_after(settings) + settings.history_interval:
        waiting = f"{rows_that(status.history_waiting or 0, 'wait')}, safe in the journal"
        return False, f"the history has taken no rows for {status.history_stuck_for:.0f} s; {waiting}"
    if status.market_age > settings.stale_timeout:
        return True, f"connected, but the market is empty: no data for {status.market_age:.0f} s"
    down = f" ({many(status.connections_down, 'connection')} down)" if status.connections_down else ""
    return True, f"working{down}, {rows_that(status.waiting, 'wait')}"
